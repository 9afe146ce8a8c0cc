"""`RandomPairs`: each pair is a function of its number, so there is no list and no limit on the count."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.indices import LabeledPairs, rows_at
from tercet.core.randomness import keyed_bits
from tercet.data.triplets.class_queries import ClassQueries

__all__ = ["RandomPairs"]


class RandomPairs(ClassQueries):
    """A virtual sequence of random labeled pairs: P positive and Q negative pairs for each query.

    Every image of every class is a query. Its positives are `positives` other images of its class, and its
    negatives `negatives` images of other classes, each drawn without repetition, or all where there are no
    more. Pair i is a pure function of (labels, groups, seed, i), computed on demand. With m_i the number of
    images of class c in the group of query i (1 without groups), n_c the size of the class and N of the
    catalog,

        count = Σ_c Σ_{queries i of c} (min(P, n_c − m_i) + min(Q, N − n_c))

    The query is the first of a pair, so two images of a class may form two pairs, one for each as the query.
    Pairs are ordered by class, group and query, positive before negative ones; queries in catalog order.

    Args:
        labels: [n] the class of each image, whole numbers or strings.
        positives: P ≥ 1, for each query.
        negatives: Q ≥ 1, for each query.
        seed: a whole number of at least 0; another seed gives other pairs.
        negatives_from: "images", uniform over the images of other classes; or "classes", uniform over the
            other classes and then over the images of the class.
        groups: [n] the group of each image, such as its camera, whole numbers or strings: positives are of
            another group than the query. None for no groups.
        limit: L ≥ 1, the most queries of a class, chosen by the seed; None for no limit.

    Attributes:
        queries: how many images are queries.
        alone: how many images are alone in their class, and so neither query nor positive.
        same_group: how many others have no positive, as all images of their class are of their group.
        over_limit: how many images are not queries because of the limit.

    Raises:
        ValueError: fewer than two classes, no class of two images, no class of two groups where there are
            groups, P, Q or L not a whole number ≥ 1, or groups of another length than labels.

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
