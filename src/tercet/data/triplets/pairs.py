"""Pairs of one class or of two, as a function of their number; and the rows in which they are kept."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import array_of, refusal
from tercet.core.indices import Pairs, rows_at
from tercet.core.randomness import keyed_bits
from tercet.data.triplets.class_queries import ClassQueries

__all__ = ["LabeledPairs", "PairSequence", "RandomPairs"]


class LabeledPairs(NamedTuple):
    """Pairs of row numbers in their order, each with whether both are of one class.

    Args:
        first: int64 [t].
        second: int64 [t].
        same: bool [t].

    Example:
        >>> pairs = LabeledPairs(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
        >>> pairs.count, pairs.as_pairs().negative.tolist()
        (2, [2])
    """

    first: Any
    second: Any
    same: Any

    kind = "pairs"

    @property
    def count(self) -> int:  # type: ignore[override]
        """The number of pairs t. (It hides `tuple.count`, which nobody needs here.)"""
        return int(self.first.shape[0])

    def as_pairs(self) -> Pairs:
        """The positive and the negative pairs apart, as heads take them."""
        same = self.same
        return Pairs(self.first[same], self.second[same], self.first[~same], self.second[~same])

    @classmethod
    def of(cls, pairs: Pairs) -> LabeledPairs:
        """The rows of `Pairs`, such as a miner's: positive ones first."""
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 4:
            raise refusal("LabeledPairs.of", "pairs", pairs, "Pairs, four columns of row numbers")
        expected = "columns of row numbers"
        columns = [array_of("LabeledPairs.of", "pairs", column, expected) for column in pairs]
        first, positive, again, negative = columns
        if {column.ndim for column in columns} != {1} or first.shape + again.shape != (
            positive.shape + negative.shape
        ):
            shapes = ", ".join(str(column.shape) for column in columns)
            raise refusal(
                "LabeledPairs.of", "pairs", f"shapes {shapes}", "as many anchors as rows of each kind"
            )
        same = np.arange(len(first) + len(again)) < len(first)
        return cls(np.concatenate([first, again]), np.concatenate([positive, negative]), same)


@runtime_checkable
class PairSequence(Protocol):
    """What `write_manifest` takes beside triplets: labeled pairs by their number, computed or stored."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: Any) -> LabeledPairs:
        """The pairs at an int, a slice or an int array [t]."""
        ...


class RandomPairs(ClassQueries):
    """The virtual sequence of P positive and Q negative pairs for each query.

    By the law of `RandomTriplets`, whose arguments and attributes these are: queries, groups, limit and the
    two ways to draw negatives are the same, but the negatives are drawn once for a query.

        count = Σ_c Σ_{queries i of c} (min(P, n_c − m_i) + min(Q, N − n_c))

    The query is the first of a pair, so two images of a class may meet twice, once from each side. Pairs are
    ordered by class, group and query, the positive ones first.

    Example:
        >>> pairs = RandomPairs(["ant", "ant", "bee"], positives=1, negatives=1)
        >>> first, second, same = pairs[:]
        >>> first.tolist(), second.tolist(), same.tolist()
        ([0, 0, 1, 1], [1, 2, 0, 2], [True, False, True, False])
    """

    kind = "pairs"
    _stream = "RandomPairs"

    def _slots(self, positives: Int64[np.ndarray, " c"], negatives: Int64[np.ndarray, " c"]) -> np.ndarray:
        return np.where(positives > 0, positives + negatives, 0)

    def __getitem__(self, index: Any) -> LabeledPairs:
        """The pairs at an int, a slice or an int array [t]; negative numbers count from the end.

        Returns:
            Labeled pairs of int64 [t] catalog rows; t = 1 for an int.

        Raises:
            IndexError: a number outside the sequence.
        """
        return self._at(rows_at(index, len(self)))

    def _at(self, number: Int64[np.ndarray, " t"]) -> LabeledPairs:
        cell, label, place, slot = self._located(number)
        positives = self._positives[cell]
        same = slot < positives
        first = self._rows[place]
        key = keyed_bits(self._key, first)
        second = np.empty_like(first)
        one, two = np.flatnonzero(same), np.flatnonzero(~same)
        second[one] = self._positive(cell[one], label[one], place[one], slot[one], key[one])
        second[two] = self._negative(label[two], (slot - positives)[two], keyed_bits(key[two], 0))
        return LabeledPairs(first, second, same)
