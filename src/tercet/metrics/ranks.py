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

from tercet.metrics.first_ranks import (
    FirstKeys,
    Placed,
    decisive_table,
    first_keys,
    first_places,
    identities,
    is_short,
    keys_of_depth,
    longer_places,
    places_in_rows,
)
from tercet.neighbors.blocks import Candidates, RowBlock, split_rows
from tercet.neighbors.column_tiles import ColumnTiles
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import Places, kept_where, true_places
from tercet.pairwise.tiles import Pairwise

__all__ = ["BEYOND", "RankedBlock", "all_places", "kept_candidates", "ranked_blocks"]

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
    if depth is not None:
        yield from _first_blocks(pairwise, search, width, depth, to_r, nearest)
        return
    for block in search.blocks():
        least = _least(search, kept_candidates(block, copied=True)) if nearest else None
        placed = all_places(search, block, block.negatives(consume=True), *_positives(block))
        sizes = _sizes(block.positive, block.negative, len(block.columns))
        yield RankedBlock(block.rows, *sizes, *_in_order(placed, len(block.rows), width), least)


class _Part(NamedTuple):
    """A block of keys, of which so much is left: its first keys, and what its keys had to settle.

    Args:
        first: the least keys of the rows; inf where a row is settled.
        found, seen, nearest: as of `RankedBlock`.
        settled: positives of the settled rows.
    """

    first: FirstKeys
    found: Int[Tensor, " a"]
    seen: Int[Tensor, " a"]
    nearest: Float[Tensor, " a"] | None = None
    settled: Placed | None = None


def _first_blocks(
    pairwise: Pairwise, search: ExactSearch, width: int, depth: int, to_r: bool, nearest: bool
) -> Iterator[RankedBlock]:
    """`ranked_blocks` for the first results: blocks of keys are wide and low, so several make one."""
    most, held, parts = budget(pairwise.labels.device).gathered_keys, 0, []
    tiles = None if nearest else ColumnTiles.of(pairwise, search)
    if tiles is None:
        found = (_of_whole_rows(pairwise, search, block, depth, to_r, nearest) for block in search.blocks())
    else:
        found = _of_tiles(pairwise, search, tiles, depth, to_r)
    for part in found:
        numbers = part.first.keys.numel() + len(part.found) * width
        if parts and held + numbers > most:
            yield _ranked(pairwise, search, width, parts)
            parts, held = [], 0
        parts.append(part)
        held += numbers
    if parts:
        yield _ranked(pairwise, search, width, parts)


def _of_tiles(
    pairwise: Pairwise, search: ExactSearch, tiles: ColumnTiles, depth: int, to_r: bool
) -> Iterator[_Part]:
    """Blocks of which only the least keys are kept, and all keys of the rows that were missed."""
    for block in tiles.blocks():
        found, seen = _sizes(block.positive, block.negative, len(search.order[1]))
        depths = _depths(found, depth, to_r, len(search.order[1]))
        keys, columns, missed = tiles.least(block, keys_of_depth(depths))
        if not bool(missed.all()):
            first = FirstKeys(block.rows, depths, keys, columns)
            missed |= is_short(search, first)
            if bool(missed.any()):
                first, found, seen = FirstKeys(*(v[~missed] for v in first)), found[~missed], seen[~missed]
            yield _Part(first, found, seen)
        for whole in tiles.whole_rows(block, missed):
            yield _of_whole_rows(pairwise, search, whole, depth, to_r, False)


def _of_whole_rows(
    pairwise: Pairwise, search: ExactSearch, block: RowBlock, depth: int, to_r: bool, nearest: bool
) -> _Part:
    """What is kept of a block of all keys; it is used up."""
    found, seen = _sizes(block.positive, block.negative, len(block.columns))
    depths = _depths(found, depth, to_r, len(block.columns))
    candidates = kept_candidates(block)
    first, needed = first_keys(search, candidates, depths)
    settled = None
    if bool(needed.any()):
        settled = longer_places(pairwise, search, candidates, depths, needed)
        first.keys[needed > 0] = math.inf
    return _Part(first, found, seen, _least(search, candidates) if nearest else None, settled)


def _depths(found: Int[Tensor, " a"], depth: int, to_r: bool, count: int) -> Int[Tensor, " a"]:
    """How many results of each row are looked at."""
    return (found if to_r else torch.zeros_like(found)).clamp(min=depth, max=count)


def _ranked(pairwise: Pairwise, search: ExactSearch, width: int, parts: list[_Part]) -> RankedBlock:
    """What some parts have placed, as one block."""
    widest = max(part.first.keys.shape[1] for part in parts)
    first = FirstKeys(
        *(torch.cat(each) for each in zip(*(part.first.widened(widest) for part in parts), strict=True))
    )
    placed, start = [first_places(pairwise, search, first)], 0
    for part in parts:
        if part.settled is not None:
            placed.append(part.settled._replace(at=part.settled.at + start))
        start += len(part.found)
    placed = Placed(*(torch.cat(each) for each in zip(*placed, strict=True)))
    least = [part.nearest for part in parts if part.nearest is not None]
    return RankedBlock(
        first.rows,
        torch.cat([part.found for part in parts]),
        torch.cat([part.seen for part in parts]),
        *_in_order(placed, len(first.rows), width),
        torch.cat(least) if least else None,
    )


def _sizes(
    positive: Bool[Tensor, "a b"], negative: Bool[Tensor, "a b"], count: int
) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
    """How many images each query has to find, and how many of `count` it is compared with."""
    found = positive.sum(1)
    return found, found + negative.sum(1) + (count - negative.shape[1])


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
    labels = identities(pairwise.column_labels)
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
    rank = 2 * before + (tied > 0)  # those before a tie come before those in it
    same, later = at[1:] == at[:-1], at[1:] > at[:-1]
    if not bool((later | (same & (rank[1:] >= rank[:-1]))).all()):
        order = rank.argsort(stable=True)
        order = order[at[order].argsort(stable=True)]
        at, before, tied = at[order], before[order], tied[order]
    nth = places_in_rows(at, count)
    tables = at.new_full((count, width), BEYOND), at.new_zeros((count, width))
    for table, values in zip(tables, (before, tied), strict=True):
        table[at, nth] = values
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
            table = decisive_table(search, rows[some], keys[some], names)
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
    nth = places_in_rows(at, len(values))
    marks = values.new_zeros((2, len(values), int(nth.max()) + 1))  # [2, a, q]
    marks[0, at, nth], marks[1, at, nth] = low, high
    found = torch.searchsorted(values, marks[0]), torch.searchsorted(values, marks[1], right=True)
    return found[0][at, nth], found[1][at, nth]
