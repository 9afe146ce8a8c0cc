"""Random triplets as a function of their number: no list, no limit on the count."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.checks import label_codes, refusal, whole
from tercet.randomness import derive_key, keyed_bits, permute
from tercet.tuples import Triplets, rows_at

__all__ = ["RandomTriplets"]


class RandomTriplets:
    """The virtual sequence of P positives for each query and Q negatives for each of those.

    Every image of every class is a query. Its positives are `positives` other images of its class, drawn
    without repetition, all of them where the class has no more; for each, `negatives` images of other
    classes, drawn without repetition. Triplet i is a pure function of (labels, seed, i), computed when it
    is asked for, so any slice is ready at once and a manifest is written in constant memory.

        count = Σ_c n_c · min(P, n_c − 1) · min(Q, N − n_c)

    Triplets are ordered by class, query, positive, negative; the queries of a class in catalog order.

    Args:
        labels: [n] the class of each image, whole numbers or strings.
        positives: P ≥ 1, for each query.
        negatives: Q ≥ 1, for each query and positive.
        seed: a whole number of at least 0; another seed draws others.

    Attributes:
        queries: how many images are anchors.
        alone: how many images are alone in their class, and so neither query nor positive.

    Raises:
        ValueError: fewer than two classes, no class of two images, or P or Q not a whole number ≥ 1.

    Example:
        >>> triplets = RandomTriplets(["ant", "ant", "bee", "bee", "cow"], positives=1, negatives=2, seed=0)
        >>> len(triplets), triplets.queries, triplets.alone
        (8, 4, 1)
        >>> triplets[:2].anchor.tolist(), triplets[:2].positive.tolist()
        ([0, 0], [1, 1])

    Reference:
        The law "P positives a query, Q negatives a pair" is that of the scripts that accompany
        implementations of Wang et al., "Learning fine-grained image similarity with deep ranking", 2014.
    """

    def __init__(self, labels: Any, positives: int = 1, negatives: int = 1, seed: int = 0) -> None:
        owner = type(self).__name__
        codes, classes = label_codes(owner, labels)
        self.positives = whole(owner, "positives", positives, minimum=1)
        self.negatives = whole(owner, "negatives", negatives, minimum=1)
        self.seed = whole(owner, "seed", seed)
        if len(classes) < 2:
            found = f"{len(codes)} images of 1 class"
            raise refusal(
                owner, "labels", found, "images of 2 classes or more", "a negative is of another class"
            )
        self._rows = np.argsort(codes, kind="stable")  # images, class by class
        self._sizes = np.bincount(codes)
        if self._sizes.max() < 2:
            found = f"{len(classes)} classes of 1 image"
            raise refusal(
                owner, "labels", found, "a class of 2 images or more", "a positive is another image of it"
            )
        self._starts = np.cumsum(self._sizes) - self._sizes
        most = len(codes)  # a number that no int64 holds is cut to it
        self._per_pair = np.minimum(min(self.negatives, most), most - self._sizes)
        self._per_query = np.minimum(min(self.positives, most), self._sizes - 1) * self._per_pair
        if (self._sizes * self._per_query.astype(float)).sum() >= 2.0**63:
            raise refusal(
                owner, "positives", self.positives, "fewer than 2⁶³ triplets", "lower it or negatives"
            )
        self._ends = np.cumsum(self._sizes * self._per_query)
        self._key = derive_key("RandomTriplets", self.seed)
        self.alone = int((self._sizes == 1).sum())
        self.queries = len(codes) - self.alone

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return (
            f"RandomTriplets({len(self)} triplets: {self.queries} queries, positives={self.positives}, "
            f"negatives={self.negatives}, seed={self.seed})"
        )

    def __getitem__(self, index: Any) -> Triplets:
        """The triplets at an int, a slice or an int array [t]; negative numbers count from the end.

        Returns:
            Triplets of int64 [t] catalog rows; t = 1 for an int.

        Raises:
            IndexError: a number outside the sequence.
        """
        return self._at(rows_at(index, len(self)))

    def _at(self, number: Int64[np.ndarray, " t"]) -> Triplets:
        label = np.searchsorted(self._ends, number, side="right")
        size, start, per_query = self._sizes[label], self._starts[label], self._per_query[label]
        within = number - self._ends[label] + size * per_query  # number within the class
        query = within // per_query
        slot = within - query * per_query
        nth_positive = slot // self._per_pair[label]
        nth_negative = slot - nth_positive * self._per_pair[label]

        anchor = self._rows[start + query]
        key = keyed_bits(self._key, anchor)
        place = permute(nth_positive, size - 1, key)  # among the others of the class
        place += place >= query
        positive = self._rows[start + place]
        place = permute(nth_negative, len(self._rows) - size, keyed_bits(key, nth_positive))
        place += size * (place >= start)  # skips the class, which is contiguous in _rows
        return Triplets(anchor, positive, self._rows[place])

    def provenance(self) -> dict[str, Any]:
        """What a manifest records of the strategy: its name, every parameter and what it counted."""
        return {
            "strategy": "random",
            "parameters": {"positives": self.positives, "negatives": self.negatives, "seed": self.seed},
            "counts": {"queries": self.queries, "images alone in their class": self.alone},
        }
