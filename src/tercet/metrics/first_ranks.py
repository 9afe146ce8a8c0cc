"""The positives among the first results of each query, from a shortlist of the least rank keys.

A block of rank keys gives each row a list that is a little longer than what is looked at. That is enough for
almost every row; the others have many columns whose keys are too close to the last of the list, and are
settled at once, while their keys are there (`longer_places`). Lists are short, so those of many blocks are
ranked together (`first_places`): differences decide where a positive and a negative are too close.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.neighbors.blocks import Candidates, split_rows
from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.shortlists import least_keys
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise

__all__ = [
    "FirstKeys",
    "Placed",
    "decisive_table",
    "first_keys",
    "first_places",
    "identities",
    "is_short",
    "keys_of_depth",
    "longer_places",
    "places_in_rows",
]


class Placed(NamedTuple):
    """Positives of a block one by one: place in the block, negatives before, negatives tied; int64 [t]."""

    at: Int[Tensor, " t"]
    before: Int[Tensor, " t"]
    tied: Int[Tensor, " t"]


class FirstKeys(NamedTuple):
    """The least keys of some rows.

    Args:
        rows: int64 [a], row numbers.
        depth: int64 [a], results before which a positive counts.
        keys: [a, s], in rising order; inf where there are no more.
        columns: int64 [a, s], the column number of each.
    """

    rows: Int[Tensor, " a"]
    depth: Int[Tensor, " a"]
    keys: Float[Tensor, "a s"]
    columns: Int[Tensor, "a s"]

    def widened(self, width: int) -> FirstKeys:
        """The same with so many keys, those behind the last inf."""
        more = (0, width - self.keys.shape[1])
        return self._replace(keys=pad(self.keys, more, value=math.inf), columns=pad(self.columns, more))


def first_keys(
    search: ExactSearch, others: Candidates, depth: Int[Tensor, " a"], count: int | None = None
) -> tuple[FirstKeys, Int[Tensor, " a"]]:
    """The least keys of each row.

    Args:
        search: the search of the rows.
        others: what is ranked.
        depth: results before which a positive counts.
        count: how many keys; None for a few more than the largest depth.

    Returns:
        The keys, and [a] how many it takes where they are too few, else 0.
    """
    rows, keys, columns, _ = others
    count = keys_of_depth(depth) if count is None else count
    values, at = least_keys(keys, count)
    found = FirstKeys(rows, depth, values, columns[at.clamp_(max=len(columns) - 1)])
    needed = torch.zeros_like(rows)
    if count < len(columns) and bool((short := is_short(search, found)).any()):
        needed[short] = 1 + (keys[short] <= _bound(search, found)[short]).sum(1)
    return found, needed


def keys_of_depth(depth: Int[Tensor, " a"]) -> int:
    """How many keys are enough for almost every row."""
    most = int(depth.max())
    return most + 2 + most // 16


def is_short(search: ExactSearch, first: FirstKeys) -> Bool[Tensor, " a"]:
    """Whether columns behind the last of a list may be among the first `depth`, if there are more."""
    last = first.keys[:, -1]
    return (last <= _bound(search, first)[:, 0]) & (last < math.inf)


def _bound(search: ExactSearch, first: FirstKeys) -> Float[Tensor, "a 1"]:
    """The largest key with which a column may be among the first `depth`."""
    last = first.keys.gather(1, (first.depth[:, None] - 1).clamp(min=0))
    return last + 2 * search.keys.error[first.rows, None]


def longer_places(
    pairwise: Pairwise,
    search: ExactSearch,
    others: Candidates,
    depth: Int[Tensor, " a"],
    needed: Int[Tensor, " a"],
) -> Placed:
    """`first_places` of rows whose lists were too short: by longer ones, or by all columns.

    Args:
        pairwise: queries and columns.
        search: the search of the rows.
        others: what is ranked.
        depth: results before which a positive counts.
        needed: how many keys the list of a row takes; 0 for rows that are left out.
    """
    found, share = [], budget(others.keys.device).dense_share
    (left,) = (needed > 0).nonzero(as_tuple=True)
    for (some,) in split_rows(2 * others.keys.shape[1], left):
        most = int(needed[some].max())
        if share * most > len(others.columns):
            placed = _placed(*_compared(pairwise, search, others.take(some)), depth[some])
        else:
            lists, _ = first_keys(search, others.take(some), depth[some], most)
            placed = first_places(pairwise, search, lists)
        found.append(placed._replace(at=some[placed.at]))
    return Placed(*(torch.cat(each) for each in zip(*found, strict=True)))


def first_places(pairwise: Pairwise, search: ExactSearch, first: FirstKeys) -> Placed:
    """The positives with fewer than `depth` candidates strictly nearer, by row and then by rank."""
    rows, _, keys, listed = first
    error = 2 * search.keys.error[rows, None]  # two keys farther apart are in their true order
    hits = _is_positive(pairwise, rows, listed) & (keys < math.inf)
    close = (keys[:, 1:] - keys[:, :-1] <= error) & (keys[:, 1:] < math.inf)
    decisive = close & (hits[:, 1:] != hits[:, :-1]) & (keys[:, :-1] <= _bound(search, first))
    (some,) = decisive.any(1).nonzero(as_tuple=True)
    joined = None
    if len(some):
        hits[some], told = _told_apart(
            search, rows[some], listed[some], hits[some], close[some], decisive[some]
        )
        if bool(told.any()):
            joined = torch.zeros_like(hits)
            joined[some] = told
    return _placed(hits, joined, first.depth)


def _told_apart(
    search: ExactSearch,
    rows: Int[Tensor, " a"],
    listed: Int[Tensor, "a s"],
    hits: Bool[Tensor, "a s"],
    close: Bool[Tensor, "a s_1"],
    decisive: Bool[Tensor, "a s_1"],
) -> tuple[Bool[Tensor, "a s"], Bool[Tensor, "a s"]]:
    """Results in the order of their distances, where keys are too close to tell.

    Args:
        search: the search of the rows.
        rows: row numbers.
        listed: columns in the order of their keys.
        hits: whether each is a positive.
        close: whether the key of each but the first is too close to the one before.
        decisive: where that matters.

    Returns:
        Whether each is a positive, and as near as the one before, known where that matters.
    """
    joined = torch.zeros_like(hits)
    run = pad(~close, (1, 0), value=True).flatten().cumsum(0).view_as(hits) - 1  # of close keys
    mixed = run.new_zeros(run.numel(), dtype=torch.bool)
    mixed[run[:, 1:][decisive]] = True
    i, j = true_places(mixed[run])
    count = len(search.order[1])
    if budget(rows.device).dense_share * len(i) > len(rows) * count:
        distance = search.exact.table(rows, torch.arange(count, device=rows.device))[i, listed[i, j]]
    else:
        distance = search.distances(rows[i], listed[i, j])
    order = distance.argsort(stable=True)
    order = order[run[i, j][order].argsort(stable=True)]
    hits[i, j] = hits[i[order], j[order]]
    distance, of_run = distance[order], run[i, j]
    joined[i[1:], j[1:]] = (distance[1:] == distance[:-1]) & (of_run[1:] == of_run[:-1])
    return hits, joined


def _compared(
    pairwise: Pairwise, search: ExactSearch, others: Candidates
) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
    """All results of each row, by differences: whether each is a positive, and as near as the one before."""
    rows, keys, columns, _ = others
    distance = decisive_table(search, rows, keys, columns)
    distance = torch.where(keys[:, : len(columns)] == math.inf, math.inf, distance)
    distance, nearest = distance.sort(dim=1)
    real = distance < math.inf
    hits = _is_positive(pairwise, rows, columns[nearest]) & real
    return hits, pad((distance[:, 1:] == distance[:, :-1]) & real[:, 1:], (1, 0))


def _placed(
    hits: Bool[Tensor, "a s"], joined: Bool[Tensor, "a s"] | None, depth: Int[Tensor, " a"]
) -> Placed:
    """The positives of ranked results with fewer than `depth` results strictly nearer.

    Args:
        hits: whether each result is a positive.
        joined: whether each is as near as the one before; None where none is.
        depth: of each row.
    """
    at, j = true_places(hits)
    before, tied = j - places_in_rows(at, len(hits)), torch.zeros_like(j)
    start = j
    if joined is not None and bool((some := joined.any(1)).any()):
        start = j.clone()
        (item,) = some[at].nonzero(as_tuple=True)
        row, place = (some.cumsum(0) - 1)[at[item]], j[item]
        start[item], before[item], tied[item] = _in_ties(hits[some], joined[some], row, place)
    kept = start < depth[at]
    return Placed(at[kept], before[kept], tied[kept])


def _in_ties(
    hits: Bool[Tensor, "a s"], joined: Bool[Tensor, "a s"], at: Int[Tensor, " t"], j: Int[Tensor, " t"]
) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"], Int[Tensor, " t"]]:
    """Of positives at places j of rows: where their ties start, the negatives before those, and in them."""
    count = hits.cumsum(1)  # [a, s]
    place = torch.arange(hits.shape[1], device=at.device).expand_as(hits)
    first = place.masked_fill(joined, 0).cummax(1).values
    last = place.masked_fill(pad(joined[:, 1:], (0, 1)), hits.shape[1])  # of each run of equal distances
    last = last.flip(1).cummin(1).values.flip(1)
    start, end = first[at, j], last[at, j]
    ahead = count[at, start] - hits[at, start].long()  # positives before the run
    return start, start - ahead, 1 + end - start - (count[at, end] - ahead)


def places_in_rows(at: Int[Tensor, " t"], count: int) -> Int[Tensor, " t"]:
    """How many items of the same row come before each, where rows rise."""
    held = torch.bincount(at, minlength=count)
    return torch.arange(len(at), device=at.device) - (held.cumsum(0) - held)[at]


def _is_positive(
    pairwise: Pairwise, rows: Int[Tensor, " a"], columns: Int[Tensor, "a s"]
) -> Bool[Tensor, "a s"]:
    """Whether listed columns, which are positives or negatives, are of the class of their row."""
    own, theirs = identities(pairwise.labels), identities(pairwise.column_labels)
    return theirs[columns] == own[rows, None]


def identities(labels: Int[Tensor, "n *g"]) -> Int[Tensor, " n"]:
    """The class of each row; where groups stand beside it, a candidate of the class is of another group."""
    return labels if labels.ndim == 1 else labels[:, 0]


def decisive_table(
    search: ExactSearch, rows: Int[Tensor, " a"], keys: Float[Tensor, "a w"], columns: Int[Tensor, " r"]
) -> Float[Tensor, "a r"]:
    """The distances that decide, [a, r]: the keys themselves where they have no error."""
    if bool(search.keys.error.any()):
        return search.exact.table(rows, columns)
    return keys[:, : len(columns)].clone()
