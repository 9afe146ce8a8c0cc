"""Where each query's positives stand among its negatives: by rank keys, by differences where they are close.

A block of queries has rank keys to all columns, each off by at most ε (`neighbors/keys`). Where two keys are
too close to tell which column is nearer, the order matters only if one column is a positive and the other is
not. Then differences decide, and equal distances are ties, which no rule breaks: a metric takes its expected
value over their orders (`tie_orders`). So ranks are exact and depend neither on the block nor on the order of
the rows. First ranks take a shortlist of the least keys; all ranks take a sort of the keys.
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
from tercet.pairwise.masked import Places, kept_where, true_places
from tercet.pairwise.tiles import Pairwise

__all__ = ["BEYOND", "Placed", "RankedBlock", "all_places", "kept_candidates", "ranked_blocks"]

BEYOND = 2**40  # negatives before a positive that is deeper than was looked


class RankedBlock(NamedTuple):
    """Where the positives of a block of queries stand.

    The i-th nearest positive, i from 0, has rank 1 + i + before[i] where tied[i] = 0.

    Args:
        rows: int64 [a], the queries.
        found: int64 [a], R of each, how many images it has to find.
        seen: int64 [a], how many images it is compared with, positives and negatives.
        before: int64 [a, w], the negatives strictly nearer than each positive; `BEYOND` for those that are
            deeper than was asked for, and behind the last.
        tied: int64 [a, w], the negatives exactly as near.
        nearest: [a], the distance of the nearest image, where it was asked for; inf where there is none.
    """

    rows: Int[Tensor, " a"]
    found: Int[Tensor, " a"]
    seen: Int[Tensor, " a"]
    before: Int[Tensor, "a w"]
    tied: Int[Tensor, "a w"]
    nearest: Float[Tensor, " a"] | None = None


class Placed(NamedTuple):
    """Positives of a block one by one: place in the block, negatives before, negatives tied; int64 [t]."""

    at: Int[Tensor, " t"]
    before: Int[Tensor, " t"]
    tied: Int[Tensor, " t"]


def ranked_blocks(
    pairwise: Pairwise, depth: int | None = None, to_r: bool = False, nearest: bool = False
) -> Iterator[RankedBlock]:
    """Where the positives of each query stand, by one search.

    Args:
        pairwise: queries and columns.
        depth: positives with fewer images than this strictly nearer are placed; None for all positives.
        to_r: place those among the first R too.
        nearest: measure the distance of the nearest image.

    Yields:
        Blocks, in no order of rows.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [2.0]])
        >>> pairwise = Pairwise("doc", x, torch.tensor([0, 0, 1, 0]), distance=euclidean)
        >>> for block in ranked_blocks(pairwise):
        ...     print(block.before.where(block.before < BEYOND, -1).tolist(), block.tied.tolist())
        [[0, 0], [0, 0], [-1, -1], [1, 1]] [[0, 1], [1, 1], [0, 0], [0, 0]]
    """
    search, width = ExactSearch(pairwise), _most_positives(pairwise)
    for block in search.blocks():
        found = block.positive.sum(1)
        seen = found + block.negative.sum(1) + (len(block.columns) - block.negative.shape[1])
        least = None
        if depth is None:
            if nearest:
                least = _least(search, kept_candidates(block, copied=True))
            placed = all_places(search, block, block.negatives(consume=True), *_positives(block))
        else:
            limit = min(max(depth, int(found.max()) if to_r else 0), len(block.columns))
            candidates = kept_candidates(block)
            placed = _first_places(pairwise, search, candidates, limit)
            least = _least(search, candidates) if nearest else None
        yield RankedBlock(block.rows, found, seen, *_in_order(placed, len(found), width), least)


def kept_candidates(block: RowBlock, copied: bool = False) -> Candidates:
    """All candidates of each row, nearest first, without those that are neither positive nor negative.

    Args:
        block: the rows.
        copied: leave the block's own keys as they are.
    """
    keys = block.keys.clone() if copied else block.keys
    kept_where(block.positive | block.negative, keys[:, block.class_block], inplace=True)
    return block.all_columns()._replace(keys=keys)


def _most_positives(pairwise: Pairwise) -> int:
    """At least as many positives as any query has: a width of all blocks, so that no sum depends on one."""
    labels = _identities(pairwise.column_labels)
    if not len(labels):
        return 0
    _, counts = labels.unique(return_counts=True)
    return int(counts.max()) - pairwise.own_column


def _positives(block: RowBlock) -> Places:
    """The place in the block and the column number of each positive."""
    at, column = true_places(block.positive)
    return at, block.columns[block.class_block][column]


def _least(search: ExactSearch, candidates: Candidates) -> Float[Tensor, " a"]:
    """The distance of the nearest candidate of each row, inf where there is none."""
    column = search.nearest(candidates)[:, 0]
    return search.distances(candidates.rows, column.clamp(min=0)).masked_fill(column < 0, math.inf)


def _in_order(placed: Placed, count: int, width: int) -> tuple[Int[Tensor, "a w"], Int[Tensor, "a w"]]:
    """`before` and `tied` of a block, each row in the order of its positives."""
    at, before, tied = placed
    order = (2 * before + (tied > 0)).argsort(stable=True)  # those before a tie come before those in it
    order = order[at[order].argsort(stable=True)]
    at = at[order]
    held = torch.bincount(at, minlength=count)
    nth = torch.arange(len(at), device=at.device) - (held.cumsum(0) - held)[at]
    tables = at.new_full((count, width), BEYOND), at.new_zeros((count, width))
    for table, values in zip(tables, (before, tied), strict=True):
        table[at, nth] = values[order]
    return tables


def all_places(
    search: ExactSearch,
    block: RowBlock,
    against: Candidates,
    at: Int[Tensor, " t"],
    columns: Int[Tensor, " t"],
) -> Placed:
    """How many of the candidates are nearer than each listed column, and how many exactly as near.

    Args:
        search: the search of the block.
        block: the rows.
        against: what is counted, of the same rows.
        at: places in the block, in rising order.
        columns: a column number of each.
    """
    rows, keys, names, _ = against
    none = torch.zeros_like(at)
    if not len(at):
        return Placed(at, none, none)
    d = search.distances(rows[at], columns)  # [t]
    bound, error = search.keys.of_distance(d, rows[at]), search.keys.error[rows[at]]
    values, order = keys.sort(dim=1)
    low, high = _ranks_of(values, at, bound - error, bound + error)
    between = high - low
    total = int(between.sum())
    if budget(keys.device).dense_share * total > len(rows) * len(names):
        for (some,) in split_rows(2 * len(names), torch.arange(len(rows), device=at.device)):
            table = _table(search, rows[some], keys[some], names)
            values = table.masked_fill_(keys[some][:, : len(names)] == math.inf, math.inf).sort(dim=1).values
            (mine,) = ((at >= some[0]) & (at <= some[-1])).nonzero(as_tuple=True)
            if len(mine):
                low[mine], high[mine] = _ranks_of(values, at[mine] - some[0], d[mine], d[mine])
        return Placed(at, low, high - low)
    item = torch.repeat_interleave(between, output_size=total)
    inside = torch.arange(total, device=at.device) - (between.cumsum(0) - between)[item]
    near = names[order[at[item], low[item] + inside]]
    distance = search.distances(rows[at[item]], near)
    low += torch.bincount(item[distance < d[item]], minlength=len(at))
    return Placed(at, low, torch.bincount(item[distance == d[item]], minlength=len(at)))


def _ranks_of(
    values: Float[Tensor, "a w"], at: Int[Tensor, " t"], low: Float[Tensor, " t"], high: Float[Tensor, " t"]
) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """How many of the sorted values of its row are below `low`, and how many up to `high`, of each item."""
    held = torch.bincount(at, minlength=len(values))
    nth = torch.arange(len(at), device=at.device) - (held.cumsum(0) - held)[at]
    marks = values.new_zeros((2, len(values), int(held.max())))  # [2, a, q]
    marks[0, at, nth], marks[1, at, nth] = low, high
    found = torch.searchsorted(values, marks[0]), torch.searchsorted(values, marks[1], right=True)
    return found[0][at, nth], found[1][at, nth]


def _first_places(pairwise: Pairwise, search: ExactSearch, others: Candidates, depth: int) -> Placed:
    """The positives with fewer than `depth` candidates strictly nearer; uses up the candidates.

    A shortlist of the least keys is enough for almost every row. The others have many columns that may be
    among the first: a list that holds them all is made, or the whole row is compared where they are too many.
    """
    if not depth:
        return Placed(*(others.rows[:0],) * 3)
    count, share = depth + 2 + depth // 16, budget(others.keys.device).dense_share
    hits, joined, needed = _listed(pairwise, search, others, depth, count)
    (left,) = (needed > 0).nonzero(as_tuple=True)
    hits[left] = False
    found = [_placed(hits, joined, depth)]
    for (some,) in split_rows(2 * others.keys.shape[1], left):
        most = int(needed[some].max())
        if share * most > len(others.columns):
            hits, joined = _compared(pairwise, search, others.take(some))
        else:
            hits, joined, _ = _listed(pairwise, search, others.take(some), depth, most)
        at, before, tied = _placed(hits, joined, depth)
        found.append(Placed(some[at], before, tied))
    return Placed(*(torch.cat(each) for each in zip(*found, strict=True)))


def _listed(
    pairwise: Pairwise, search: ExactSearch, others: Candidates, depth: int, count: int
) -> tuple[Bool[Tensor, "a s"], Bool[Tensor, "a s"], Int[Tensor, " a"]]:
    """The first results of each row from its `count` least keys.

    Returns:
        [a, s] whether each result is a positive, and whether it is as near as the one before, known where
        that matters; [a] how many keys it takes where they are too few, else 0.
    """
    rows, keys, columns, _ = others
    error = 2 * search.keys.error[rows, None]  # two keys farther apart are in their true order
    values, at = _smallest(keys, count)
    listed = columns[at.clamp_(max=len(columns) - 1)]
    hits = _is_positive(pairwise, rows, listed) & (values < math.inf)
    joined = torch.zeros_like(hits)
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
            every = torch.arange(len(columns), device=rows.device)
            distance = search.exact.table(rows, every)[i, listed[i, j]]
        else:
            distance = search.distances(rows[i], listed[i, j])
        order = distance.argsort(stable=True)
        order = order[run[i, j][order].argsort(stable=True)]
        hits[i, j] = hits[i[order], j[order]]
        distance, of_run = distance[order], run[i, j]
        joined[i[1:], j[1:]] = (distance[1:] == distance[:-1]) & (of_run[1:] == of_run[:-1])
    return hits, joined, needed


def _compared(
    pairwise: Pairwise, search: ExactSearch, others: Candidates
) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
    """All results of each row, by differences: whether each is a positive, and as near as the one before."""
    rows, keys, columns, _ = others
    distance = _table(search, rows, keys, columns)
    distance = torch.where(keys[:, : len(columns)] == math.inf, math.inf, distance)
    distance, nearest = distance.sort(dim=1)
    real = distance < math.inf
    hits = _is_positive(pairwise, rows, columns[nearest]) & real
    return hits, pad((distance[:, 1:] == distance[:, :-1]) & real[:, 1:], (1, 0))


def _placed(hits: Bool[Tensor, "a s"], joined: Bool[Tensor, "a s"], depth: int) -> Placed:
    """The positives of ranked results with fewer than `depth` results strictly nearer."""
    count = hits.cumsum(1)  # [a, s]
    at, j = true_places(hits)
    start, before, tied = j, j - count[at, j] + 1, torch.zeros_like(j)
    if bool(joined.any()):
        place = torch.arange(hits.shape[1], device=at.device).expand_as(hits)
        first = place.masked_fill(joined, 0).cummax(1).values
        last = place.masked_fill(pad(joined[:, 1:], (0, 1)), hits.shape[1])  # of each run of equal distances
        last = last.flip(1).cummin(1).values.flip(1)
        start, end = first[at, j], last[at, j]
        ahead = count[at, start] - hits[at, start].long()  # positives before the run
        before = start - ahead
        tied = 1 + end - start - (count[at, end] - ahead)
    kept = start < depth
    return Placed(at[kept], before[kept], tied[kept])


def _is_positive(
    pairwise: Pairwise, rows: Int[Tensor, " a"], columns: Int[Tensor, "a s"]
) -> Bool[Tensor, "a s"]:
    """Whether listed columns, which are positives or negatives, are of the class of their row."""
    own, theirs = _identities(pairwise.labels), _identities(pairwise.column_labels)
    return theirs[columns] == own[rows, None]


def _identities(labels: Int[Tensor, "n *g"]) -> Int[Tensor, " n"]:
    """The class of each row; where groups stand beside it, a candidate of the class is of another group."""
    return labels if labels.ndim == 1 else labels[:, 0]


def _table(
    search: ExactSearch, rows: Int[Tensor, " a"], keys: Float[Tensor, "a w"], columns: Int[Tensor, " r"]
) -> Float[Tensor, "a r"]:
    """The distances that decide, [a, r]: the keys themselves where they have no error."""
    if bool(search.keys.error.any()):
        return search.exact.table(rows, columns)
    return keys[:, : len(columns)].clone()


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
