"""`RandomTriplets`: each triplet is a function of its number, so there is no list and no limit."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.indices import Triplets, rows_at
from tercet.core.randomness import keyed_bits
from tercet.data.triplets.class_queries import ClassQueries

__all__ = ["RandomTriplets"]


class RandomTriplets(ClassQueries):
    """A virtual sequence of random triplets: P positives for each query, Q negatives for each positive.

    Every image of every class is a query. Its positives are `positives` other images of its class, drawn
    without repetition, or all where the class has no more. For each positive there are `negatives` images of
    other classes, drawn without repetition. Triplet i is a pure function of (labels, groups, seed, i),
    computed on demand, so any slice is available at once and a manifest is written in constant memory.

        count = Σ_c n_c · min(P, n_c − 1) · min(Q, N − n_c)

    With `groups`, such as cameras or sessions, the positive is of another group than the query. With `limit`,
    at most L images of a class are queries, chosen by the seed among those that have a positive; a larger
    limit adds to them. With m_i the number of images of class c in the group of query i (1 without groups),

        count = Σ_c Σ_{queries i of c} min(P, n_c − m_i) · min(Q, N − n_c)

    With `negatives_from="classes"` the class of a negative is uniform over the other classes and the image
    uniform in it, so that large classes are not drawn more often. The Q negatives of a positive are of as
    many classes as possible: a second of a class comes after one of every other class.

    Triplets are ordered by class, group, query, positive, negative; the queries in catalog order.

    Args:
        labels: [n] the class of each image, whole numbers or strings.
        positives: P ≥ 1, for each query.
        negatives: Q ≥ 1, for each query and positive.
        seed: a whole number of at least 0; another seed gives other triplets.
        negatives_from: "images", uniform over the images of other classes, or "classes".
        groups: [n] the group of each image, whole numbers or strings; None for no groups.
        limit: L ≥ 1, the most queries of a class; None for no limit.

    Attributes:
        queries: how many images are anchors.
        alone: how many images are alone in their class, and so neither query nor positive.
        same_group: how many others have no positive, as all images of their class are of their group.
        over_limit: how many images are not queries because of the limit.

    Raises:
        ValueError: fewer than two classes, no class of two images, no class of two groups where there are
            groups, P, Q or L not a whole number ≥ 1, or groups of another length than labels.

    Example:
        >>> triplets = RandomTriplets(["ant", "ant", "bee", "bee", "cow"], positives=1, negatives=2, seed=0)
        >>> len(triplets), triplets.queries, triplets.alone
        (8, 4, 1)
        >>> triplets[:2].anchor.tolist(), triplets[:2].positive.tolist()
        ([0, 0], [1, 1])
        >>> RandomTriplets([0, 0, 0, 1], groups=["left", "left", "right", "left"])[:].positive.tolist()
        [2, 2, 0]

    Reference:
        The law "P positives a query, Q negatives a pair" is that of the scripts that accompany
        implementations of Wang et al., "Learning fine-grained image similarity with deep ranking", 2014.
    """

    kind = "triplets"
    _stream = "RandomTriplets"

    def _slots(self, positives: Int64[np.ndarray, " c"], negatives: Int64[np.ndarray, " c"]) -> np.ndarray:
        return positives * negatives

    def __getitem__(self, index: Any) -> Triplets:
        """The triplets at an int, a slice or an int array [t]; negative numbers count from the end.

        Returns:
            Triplets of int64 [t] catalog rows; t = 1 for an int.

        Raises:
            IndexError: a number outside the sequence.
        """
        return self._at(rows_at(index, len(self)))

    def _at(self, number: Int64[np.ndarray, " t"]) -> Triplets:
        cell, label, place, slot = self._located(number)
        negatives = self._negatives[label]
        nth_positive = slot // negatives
        nth_negative = slot - nth_positive * negatives
        anchor = self._rows[place]
        key = keyed_bits(self._key, anchor)
        positive = self._positive(cell, label, place, nth_positive, key)
        return Triplets(anchor, positive, self._negative(label, nth_negative, keyed_bits(key, nth_positive)))
