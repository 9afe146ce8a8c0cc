"""Some rows of a batch with the keys of all columns, and what may be chosen among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget
from tercet.pairwise.masked import kept_where, true_places

__all__ = ["Field", "Strip", "split_pairs"]


class Field(NamedTuple):
    """Some rows and what may be chosen for each.

    Args:
        rows: int64 [a], the rows; one may stand there several times.
        keys: float [a, w], inf where a column may not be chosen.
        columns: int64 [c], c ≤ w, the column of each key; what lies beyond is padding of inf.
        flipped: of so many rows, the first, the keys are negated, so that the nearest by key is the farthest.
    """

    rows: Int[Tensor, " a"]
    keys: Float[Tensor, "a w"]
    columns: Int[Tensor, " c"]
    flipped: int = 0


class Strip(NamedTuple):
    """Some rows against all columns.

    Args:
        rows: int64 [a].
        keys: float [a, w], w a little over r: the last are padding of inf.
        columns: int64 [r], the column of each key.
        band: where keys of positives and of the same image are; beyond it all are negatives.
        positive: bool [a, b], of the columns of the band.
        negative: bool [a, b].
    """

    rows: Int[Tensor, " a"]
    keys: Float[Tensor, "a w"]
    columns: Int[Tensor, " r"]
    band: slice
    positive: Bool[Tensor, "a b"]
    negative: Bool[Tensor, "a b"]

    def positives(self, farthest: bool) -> Field:
        """The positives of each row, the nearest first or the farthest."""
        keys = self.keys[:, self.band]
        keys = kept_where(self.positive, -keys if farthest else keys)
        return Field(self.rows, keys, self.columns[self.band], len(keys) if farthest else 0)

    def negatives(self) -> Field:
        """The negatives of each row. The strip's keys become the field's: ask for the positives before."""
        kept_where(self.negative, self.keys[:, self.band], inplace=True)
        return Field(self.rows, self.keys, self.columns)

    def positive_pairs(self) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Each (anchor, positive) as (place in `rows`, column)."""
        at, column = true_places(self.positive)
        return at, self.columns[self.band][column]

    def answerable(
        self, at: Int[Tensor, " t"], column: Int[Tensor, " t"]
    ) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
        """Those positive pairs whose anchor has a negative at all; after `negatives()`."""
        some = (self.keys.amin(1) < math.inf)[at]
        return at[some], column[some]

    def of_pairs(self, at: Int[Tensor, " t"], out: Float[Tensor, "t w"] | None = None) -> Field:
        """`negatives()` of the row at each place, as a field of its own, in `out`; after `negatives()`."""
        return Field(self.rows[at], torch.index_select(self.keys, 0, at, out=out), self.columns)


def split_pairs(width: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equally long tensors side by side, so many at a time as make tables of a bounded size."""
    step = max(1, budget(columns[0].device).gathered_keys // max(1, width))
    parts = zip(*(column.split(step) for column in columns))
    return (part for part in parts if len(part[0]))
