"""Candidates: rows with the rank keys of the columns that may be chosen for them, and in which order."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget
from tercet.pairwise.masked import kept_where, signed_keys, true_places

__all__ = ["Candidates", "RowBlock", "span_of", "split_rows"]


class Candidates(NamedTuple):
    """Some rows, and the columns that may be chosen for each, in an order of its own.

    Nothing is changed in place, except by a call whose `consume` or `out` says so.

    Args:
        rows: int64 [a], row numbers; a row may occur several times.
        keys: float [a, w], rank keys times the row's sign; inf where a column may not be chosen.
        columns: int64 [c], c ≤ w, the column number of each key; keys from c on are padding of inf.
        sign: float [a], 1 where the nearest column comes first, −1 where the farthest does.
    """

    rows: Int[Tensor, " a"]
    keys: Float[Tensor, "a w"]
    columns: Int[Tensor, " c"]
    sign: Float[Tensor, " a"]

    def reversed(self, out: Float[Tensor, "a w"] | None = None) -> Candidates:
        """The same columns in the opposite order of each row, with keys in `out` where it is given."""
        keys = torch.neg(self.keys, out=out).masked_fill_(self.keys == math.inf, math.inf)
        return self._replace(keys=keys, sign=-self.sign)

    def signed(
        self, values: Float[Tensor, "_ *k"], places: Int[Tensor, " _"] | None = None
    ) -> Float[Tensor, "_ *k"]:
        """Numbers of the rows, or of the rows at these places, times the row's sign.

        Rows that are all nearest first share one sign tensor, which is recognised and left out: in a small
        batch, or on an accelerator, each call counts.
        """
        if self.sign is _signs(self.sign.shape[0], 0, self.sign.dtype, self.sign.device):
            return values
        sign = self.sign if places is None else self.sign.index_select(0, places)
        return values * (sign[:, None] if values.ndim == 2 else sign)

    def take(self, places: Int[Tensor, " t"], out: Float[Tensor, "t w"] | None = None) -> Candidates:
        """The rows at these places, with keys in `out` where it is given."""
        keys = torch.index_select(self.keys, 0, places, out=out)
        plain = self.sign is _signs(len(self.sign), 0, keys.dtype, keys.device)
        sign = _signs(len(places), 0, keys.dtype, keys.device) if plain else self.sign[places]
        return Candidates(self.rows[places], keys, self.columns, sign)

    def some(self) -> Bool[Tensor, " a"]:
        """Whether each row has any candidate."""
        return self.keys.amin(1) < math.inf


class RowBlock(NamedTuple):
    """Some rows against all columns.

    Args:
        rows: int64 [a], row numbers.
        keys: float [a, w], w ≥ r: rank keys, and padding of inf.
        columns: int64 [r], the column number of each key.
        class_block: [b] of the columns, those that may be positives or the same image; all others are
            negatives.
        positive: bool [a, b], of the columns of the class block.
        negative: bool [a, b].
    """

    rows: Int[Tensor, " a"]
    keys: Float[Tensor, "a w"]
    columns: Int[Tensor, " r"]
    class_block: slice
    positive: Bool[Tensor, "a b"]
    negative: Bool[Tensor, "a b"]

    def positives(self, farthest: bool = False) -> Candidates:
        """The positives of each row, nearest first, or farthest first; their keys are new."""
        keys = self.keys[:, self.class_block]
        keys = kept_where(self.positive, -keys if farthest else keys, inplace=farthest)
        count = keys.shape[0]
        sign = _signs(0 if farthest else count, count if farthest else 0, keys.dtype, keys.device)
        return Candidates(self.rows, keys, self.columns[self.class_block], sign)

    def negatives(self, consume: bool = False) -> Candidates:
        """The negatives of each row, nearest first.

        Args:
            consume: take the block's own keys for it; the block is used up. Otherwise they are copied.
        """
        keys = self.keys if consume else self.keys.clone()
        kept_where(self.negative, keys[:, self.class_block], inplace=True)
        return Candidates(self.rows, keys, self.columns, _signs(keys.shape[0], 0, keys.dtype, keys.device))

    def all_columns(self) -> Candidates:
        """Every column of each row, nearest first, with the block's own keys."""
        return Candidates(
            self.rows, self.keys, self.columns, _signs(len(self.keys), 0, self.keys.dtype, self.keys.device)
        )

    def extremes(self, consume: bool = False) -> tuple[Candidates, ...]:
        """The positives, farthest first, and the negatives, nearest first.

        Args:
            consume: as for `negatives`.

        Returns:
            Two candidates of [a] rows; of a small table one of [2a], since one pass costs half of two.
        """
        a, b = self.positive.shape
        if b < self.columns.shape[0] or b > budget(self.keys.device).argmin_columns:
            return self.positives(farthest=True), self.negatives(consume)
        keys = signed_keys(self.keys[:, :b], self.positive, self.negative)
        sign = _signs(a, a, keys.dtype, keys.device)
        return (Candidates(torch.cat([self.rows, self.rows]), keys, self.columns, sign),)

    def positive_pairs(self, having: Candidates | None = None) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Each (anchor, positive) as (place in `rows`, column number), by anchor.

        Args:
            having: candidates of the block's rows: anchors without any are left out.
        """
        at, column = true_places(self.positive)
        column = self.columns[self.class_block][column]
        if having is None:
            return at, column
        some = having.some()[at]
        return at[some], column[some]


def span_of(some: Int[Tensor, " a"], classes: Int[Tensor, " r"]) -> slice:
    """Where the classes of some rows stand among all, both in rising order.

    Example:
        >>> span_of(torch.tensor([1, 3]), torch.tensor([0, 1, 1, 2, 3, 4]))
        slice(1, 5, None)
    """
    first = torch.searchsorted(classes, some[:1])
    last = torch.searchsorted(classes, some[-1:], right=True)
    return slice(*torch.cat([first, last]).tolist())


def split_rows(width: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equally long tensors side by side, so many rows at a time as make tables of a bounded size.

    Args:
        width: the numbers that each row stands for.
        columns: tensors of equal length.
    """
    step = max(1, budget(columns[0].device).gathered_keys // max(1, width))
    parts = zip(*(column.split(step) for column in columns), strict=True)
    return (part for part in parts if len(part[0]))


@functools.lru_cache(maxsize=64)
def _signs(nearest: int, farthest: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " a"]:
    """−1 for the first `farthest` rows, then 1 for `nearest` rows; the same tensor each time."""
    sign = torch.ones(farthest + nearest, dtype=dtype, device=device)
    sign[:farthest] = -1
    return sign
