"""Random pairs of one class or of two, each a function of its number."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.indices import LabeledPairs, rows_at
from tercet.core.randomness import keyed_bits
from tercet.data.triplets.class_queries import ClassQueries

__all__ = ["RandomPairs"]


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
