"""Which of a query's first results are of its class: by rank keys, and by differences where they are close.

A block of queries has rank keys to all columns, each off by at most ε (`neighbors/keys`). Where two keys are
too close to tell which column is nearer, the order matters only if one column is a positive and the other is
not. Then differences decide, and the lower column comes first where they are equal: ranks are exact, they
depend neither on the block nor on the order of the rows, and a full sort of distances is never needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.neighbors.blocks import Candidates, RowBlock, split_rows
from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.keys import shortlist
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import kept_where, true_places
from tercet.pairwise.tiles import Pairwise

__all__ = ["RankedBlock", "first_ranks", "ranked_blocks"]


class RankedBlock(NamedTuple):
    """What a block of queries finds.

    Args:
        rows: int64 [a], the queries.
        found: int64 [a], R of each, how many images it has to find.
        hits: bool [a, k], whether each of the first k results is a positive, k the largest R of the block.
        first: int64 [a], the rank of the nearest positive, 0 where R = 0; see `ranked_blocks`.
    """

    rows: Int[Tensor, " a"]
    found: Int[Tensor, " a"]
    hits: Bool[Tensor, "a k"]
    first: Int[Tensor, " a"]


def first_ranks(pairwise: Pairwise) -> Int[Tensor, " n"]:
    """The rank of each query's nearest positive, 1 plus the negatives before it; 0 where it has none.

    Args:
        pairwise: queries and columns under `SameLabel`.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [9.0]])
        >>> first_ranks(Pairwise("doc", x, torch.tensor([0, 0, 1, 1]), distance=euclidean))
        tensor([1, 2, 3, 1])
    """
    ranks = torch.zeros_like(pairwise.labels)
    search = ExactSearch(pairwise)
    for block in search.blocks():
        nearest = search.nearest(block.positives())[:, 0]
        ahead = _negatives_ahead(search, block.negatives(consume=True), nearest)
        ranks[block.rows] = torch.where(nearest < 0, 0, 1 + ahead)
    return ranks


def ranked_blocks(pairwise: Pairwise, depth: int = 0) -> Iterator[RankedBlock]:
    """What each query finds, by one search: its first R results and the rank of its nearest positive.

    Args:
        pairwise: queries and columns under `SameLabel`.
        depth: ranks up to this one are needed; a larger one may be given as any number above `depth`.

    Yields:
        Blocks, in no order of rows.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.0]])
        >>> pairwise = Pairwise("doc", x, torch.tensor([0, 0, 1, 0]), distance=euclidean)
        >>> for block in ranked_blocks(pairwise, depth=3):
        ...     print(block.hits.long(), block.first)
        tensor([[1, 0],
                [0, 1],
                [0, 0],
                [0, 1]]) tensor([1, 2, 0, 2])
    """
    search = ExactSearch(pairwise)
    for block in search.blocks():
        found = block.positive.sum(1)
        hits = _hits(pairwise, search, block, int(found.max()))
        columns, width = len(block.columns), hits.shape[1]
        first = torch.where(found > 0, columns, 0)  # above any depth that is not looked at here
        if width:
            has_hit = hits.any(1)
            first = torch.where(has_hit, 1 + hits.byte().argmax(1), first)
            (left,) = (~has_hit & (found > 0)).nonzero(as_tuple=True)
            if depth > width and len(left):
                nearest = search.nearest(block.positives().take(left))[:, 0]
                first[left] = 1 + _negatives_ahead(search, block.all_columns().take(left), nearest)
        yield RankedBlock(block.rows, found, hits, first)


def _negatives_ahead(
    search: ExactSearch, negatives: Candidates, column: Int[Tensor, " a"]
) -> Int[Tensor, " a"]:
    """How many negatives come before a column of each row, nearer or as near and lower; 0 for column −1."""
    rows, keys, columns, _ = negatives
    distance = search.distances(rows, column.clamp(min=0))
    bound, error = search.keys.of_distance(distance, rows), search.keys.error[rows]
    bound = bound.masked_fill(column < 0, -math.inf)
    keys = keys[:, : len(columns)]
    near = keys <= (bound + error).clamp(max=torch.finfo(keys.dtype).max)[:, None]  # [a, r]
    share, ahead = budget(keys.device).dense_share, torch.zeros_like(rows)
    if share * int(near.count_nonzero()) > near.numel():  # then listing costs more than a second pass
        sure = keys < (bound - error)[:, None]
        ahead += sure.count_nonzero(1)
        near &= ~sure
        if share * int(near.count_nonzero()) > near.numel():
            d, d_p = _table(search, rows, keys, columns), distance[:, None]
            return ahead + (near & ((d < d_p) | ((d == d_p) & (columns < column[:, None])))).count_nonzero(1)
    i, j = true_places(near)
    before = keys[i, j] < (bound - error)[i]
    (ambiguous,) = (~before).nonzero(as_tuple=True)
    i_, j_ = i[ambiguous], columns[j[ambiguous]]
    d, d_p = search.distances(rows[i_], j_), distance[i_]
    before[ambiguous] = (d < d_p) | ((d == d_p) & (j_ < column[i_]))
    return ahead + torch.bincount(i[before], minlength=len(rows))


def _hits(pairwise: Pairwise, search: ExactSearch, block: RowBlock, depth: int) -> Bool[Tensor, "a k"]:
    """Whether each of the first `depth` results of a block's queries is a positive; uses up the block.

    A shortlist of the least keys is enough for almost every row. The others have many columns that may be
    among the first: a list that holds them all is made, or the whole row is compared where they are too many.
    """
    rows, keys, columns = block.rows, block.keys, block.columns
    kept_where(block.positive | block.negative, keys[:, block.class_block], inplace=True)
    hits = rows.new_zeros((len(rows), depth), dtype=torch.bool)
    if not depth:
        return hits
    others = block.all_columns()
    hits, needed = _listed_hits(pairwise, search, others, depth, depth + 2 + depth // 16)
    (left,) = (needed > 0).nonzero(as_tuple=True)
    for (some,) in split_rows(2 * keys.shape[1], left):
        most = int(needed[some].max())
        if budget(keys.device).dense_share * most > len(columns):
            hits[some] = _compared_hits(pairwise, search, others.take(some), depth)
        else:
            hits[some], _ = _listed_hits(pairwise, search, others.take(some), depth, most)
    return hits


def _listed_hits(
    pairwise: Pairwise, search: ExactSearch, others: Candidates, depth: int, count: int
) -> tuple[Bool[Tensor, "a k"], Int[Tensor, " a"]]:
    """`_hits` from the `count` least keys of each row.

    Returns:
        The hits [a, k], and [a] how many keys it takes where they are too few, else 0.
    """
    rows, keys, columns, _ = others
    error = 2 * search.keys.error[rows, None]  # two keys farther apart are in their true order
    values, at = _smallest(keys, count)
    listed = columns[at.clamp_(max=len(columns) - 1)]
    hits = (pairwise.column_labels[listed] == pairwise.labels[rows, None]) & (values < math.inf)
    bound = values[:, depth - 1 : depth] + error  # no column of a larger key can be among the first
    short = (values[:, -1] <= bound[:, 0]) & (values[:, -1] < math.inf) & (count < len(columns))
    needed = torch.zeros_like(rows)
    if bool(short.any()):
        needed[short] = 1 + (keys[short] <= bound[short]).sum(1)
    close = (values[:, 1:] - values[:, :-1] <= error) & (values[:, 1:] < math.inf)
    decisive = close & (hits[:, 1:] != hits[:, :-1]) & (values[:, :-1] <= bound) & ~short[:, None]
    if bool(decisive.any()):
        run = pad(~close, (1, 0), value=True).flatten().cumsum(0).view_as(hits) - 1  # of close keys
        mixed = run.new_zeros(run.numel(), dtype=torch.bool)
        mixed[run[:, 1:][decisive]] = True
        i, j = true_places(mixed[run])
        if budget(keys.device).dense_share * len(i) > len(rows) * len(columns):
            distance = search.exact.table(rows, torch.arange(len(columns), device=rows.device))[
                i, listed[i, j]
            ]
        else:
            distance = search.distances(rows[i], listed[i, j])
        order = listed[i, j].argsort(stable=True)
        for key in (distance, run[i, j]):
            order = order[key[order].argsort(stable=True)]
        hits[i, j] = hits[i[order], j[order]]
    return hits[:, :depth], needed


def _compared_hits(
    pairwise: Pairwise, search: ExactSearch, others: Candidates, depth: int
) -> Bool[Tensor, "a k"]:
    """`_hits` from differences to all columns."""
    rows, keys, columns, _ = others
    order = columns.argsort()  # a stable sort by distance then keeps the lower column first
    distance = _table(search, rows, keys, columns)
    distance = torch.where(keys[:, : len(columns)] == math.inf, math.inf, distance)
    distance, nearest = distance[:, order].sort(dim=1, stable=True)
    hits = pairwise.column_labels[columns[order[nearest[:, :depth]]]] == pairwise.labels[rows, None]
    return pad(hits & (distance[:, :depth] < math.inf), (0, max(0, depth - len(columns))))


def _table(
    search: ExactSearch, rows: Int[Tensor, " a"], keys: Float[Tensor, "a w"], columns: Int[Tensor, " r"]
) -> Float[Tensor, "a r"]:
    """The distances that decide, [a, r]: the keys themselves where they have no error."""
    if bool(search.keys.error.any()):
        return search.exact.table(rows, columns)
    return keys[:, : len(columns)]


def _smallest(keys: Float[Tensor, "a w"], count: int) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """The `count` smallest keys of each row in rising order, inf where there are fewer, and their places."""
    width = keys.shape[1]
    # Groups of √(width / count) columns: a shortlist then reads as many least keys as members of groups.
    group = 2 ** max(0, round(math.log2(width / count) / 2))
    while width % group:
        group //= 2
    if group > 1:
        return shortlist(keys, count, group)
    values, at = keys.topk(min(count, width), dim=1, largest=False)
    missing = count - values.shape[1]
    return pad(values, (0, missing), value=math.inf), pad(at, (0, missing))
