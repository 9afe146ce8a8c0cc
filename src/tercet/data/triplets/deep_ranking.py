"""`DeepRankingTriplets`: triplets by relevance, drawn exactly, each as a function of its number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import Refusal, as_float, as_int, as_seed, border, label_codes, refusal
from tercet.core.indices import Triplets, rows_at
from tercet.core.randomness import derive_key, keyed_bits, keyed_integers, keyed_uniform
from tercet.data.triplets.relevance import Relevance
from tercet.data.triplets.weighted_draws import ROUNDING, below, drawn_columns

__all__ = ["DeepRankingTriplets"]

CELLS = 2**20  # relevances in memory at a time, unless one query has more
SURVEYED = 2**16  # queries surveyed at a time


class DeepRankingTriplets:
    """A virtual sequence of triplets by relevance: relevant queries and positives, less relevant negatives.

    With r_ij ∈ [0, 1] the relevance of image j to image i of its class, 0 for i itself, r_i = Σ_j r_ij and
    w_ij = min(T_p, r_ij), triplet number t is drawn independently of all others:

        negative      out of class with probability `out_of_class`, else in class
        query         P(q)  ∝ r_q
        positive      P(p⁺) ∝ w_qp
        negative      out of class: uniform over the images of other classes
                      in class: P(p⁻) ∝ w_qp⁻ over those with r_qp⁺ − r_qp⁻ ≥ T_r

    The paper draws by rejection: where a positive has no in-class negative, it draws another positive, and it
    gives a query up after too many failures. Here the distribution is that of unlimited retries. For an
    in-class negative, the query is drawn ∝ r_q among those with an in-class negative for at least one
    positive, and the positive ∝ w_qp among those with an in-class negative. Queries without any are counted
    in `unserved`; they get negatives of other classes only. As w = 0 where r = 0, images of no relevance are
    neither positives nor in-class negatives. r and T_r are compared with a tolerance of 10⁻⁷, the precision
    of float32.

    Triplet t is a pure function of (labels, relevance, seed, t), so any slice is available at once. Queries
    are drawn from a cumulative table of all r_i, positives and negatives from cumulative sums over the
    query's class, computed on demand. The construction computes Σ_c n_c² relevances, a triplet n_c of them;
    memory is about 40 bytes an image plus 100 MB. Long slices are faster, since their queries share classes.

    Args:
        labels: [n] the class of each image, whole numbers or strings.
        relevance: a `TeacherRelevance`, `FolderRelevance`, `TableRelevance`, `FunctionRelevance`, or
            another object with their methods.
        count: the number of triplets, the length of the sequence.
        seed: a whole number of at least 0; another seed gives other triplets.
        cap: T_p, in (0, 1]: above it all positives are equally likely.
        gap: T_r ≥ 0, by how much the positive is more relevant than an in-class negative. With 0 they may
            be equally relevant.
        out_of_class: the share of triplets with a negative of another class, in [0, 1].

    Attributes:
        queries: how many images are queries: r_i > 0.
        alone: how many images are alone in their class.
        irrelevant: how many others have r_i = 0.
        unserved: how many of the queries have no in-class negative.

    Raises:
        ValueError: an argument out of range; relevances for another number of images, or out of [0, 1]; no
            query; negatives of other classes, or in class, where there are none.

    Example:
        >>> from tercet.data.triplets.relevance import TableRelevance
        >>> labels = ["ant", "ant", "ant", "bee"]
        >>> table = TableRelevance([0, 0, 1], [1, 2, 2], [0.9, 0.4, 0.4])
        >>> triplets = DeepRankingTriplets(labels, table, count=1000, seed=0, gap=0.3, out_of_class=0)
        >>> triplets.queries, triplets.alone, triplets.unserved
        (3, 1, 1)
        >>> sorted(set(zip(*(column.tolist() for column in triplets[:]))))
        [(0, 1, 2), (1, 0, 2)]

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """

    def __init__(
        self,
        labels: Any,
        relevance: Any,
        count: int,
        seed: int = 0,
        *,
        cap: float = 1.0,
        gap: float = 0.1,
        out_of_class: float = 0.2,
    ) -> None:
        caller = type(self).__name__
        codes, classes = label_codes(caller, labels)
        if isinstance(relevance, type) or not isinstance(relevance, Relevance):
            expected = "TeacherRelevance(embeddings), FolderRelevance(paths), TableRelevance(i, j, r) or "
            raise refusal(caller, "relevance", relevance, f"{expected}FunctionRelevance(function)")
        with border(caller):
            relevance.check(len(codes))
        self.relevance = relevance
        self.count = as_int(caller, "count", count, minimum=1, maximum=sys.maxsize)
        self.seed = as_seed(caller, seed)
        self.cap = as_float(caller, "cap", cap, 0, 1)
        if not self.cap:
            raise refusal(caller, "cap", cap, "a number above 0", "pass 1 for no cap")
        self.gap = as_float(caller, "gap", gap, 0)
        self.out_of_class = as_float(caller, "out_of_class", out_of_class, 0, 1)
        if len(classes) < 2 and self.out_of_class > 0:
            raise refusal(
                caller,
                "out_of_class",
                out_of_class,
                "0, as all images are of 1 class",
                "only in-class negatives exist",
            )
        self._least = round(self.gap - ROUNDING, 15)  # rounded: 0, or a step that changes a relevance of 1
        self._key = derive_key(caller, self.seed)
        self._sort_by_class(codes)
        with border(caller):
            total, self._floor, widest, served = self._survey()
        self._mass = np.cumsum(total)  # of all queries
        self._served_mass = np.cumsum(np.where(served, total, 0.0))
        self.alone = int((self._sizes == 1).sum())
        self.queries = int((total > 0).sum())
        self.irrelevant = len(codes) - self.alone - self.queries
        self.unserved = self.queries - int(served.sum())
        with border(caller):
            self._refuse_without_queries(gap, float(widest.max()), bool(served.any()))

    def _sort_by_class(self, codes: Int64[np.ndarray, " n"]) -> None:
        self._rows = np.argsort(codes, kind="stable")  # images, class by class; a place is a position here
        self._sizes = np.bincount(codes)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._label = codes[self._rows]

    def _refuse_without_queries(self, gap: Any, widest: float, served: bool) -> None:
        """Refuse relevances without a query, or without one for in-class negatives where those are wanted."""
        if not self.queries:
            found = f"{self.relevance!r}: none above 0 within a class"
            raise Refusal("relevance", found, "an image that is relevant to another of its class")
        if not served and self.out_of_class < 1:
            expected = f"at most {widest:g}, the widest gap between relevances to one query"
            if widest < 0:
                expected = "two images of some relevance to one query of their class"
            raise Refusal("gap", gap, expected, "lower it or pass out_of_class=1")

    def _survey(
        self,
    ) -> tuple[
        Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]
    ]:
        """For the query at each place: r_i, least r of an in-class negative, widest gap, whether it has one.

        With T_r > 0 the least r is the smallest above 0. With T_r = 0 it is the second smallest: the least
        relevant image is a negative for every other positive, and has the next one as its own negative where
        their r are equal to within the tolerance.
        """
        total, floor = np.zeros(len(self._rows)), np.full(len(self._rows), np.inf)
        widest, served = np.full(len(self._rows), -np.inf), np.zeros(len(self._rows), dtype=bool)
        several = np.flatnonzero(self._sizes[self._label] > 1)
        nth = 0 if self._least > 0 else 1
        for first in range(0, len(several), SURVEYED):
            places = several[first : first + SURVEYED]
            for at, _, r in self._blocks(places):
                if not (r.min() >= 0 and r.max() <= 1):
                    found = f"{self.relevance!r}: from {r.min()} to {r.max()}"
                    raise Refusal("relevance", found, "relevances from 0 to 1")
                where = places[at]
                positive = np.where(r > 0, r, np.inf)
                low = positive.min(axis=1) if nth == 0 else np.partition(positive, nth, axis=1)[:, nth]
                high = r.max(axis=1)
                total[where], floor[where], widest[where] = r.sum(axis=1), low, high - low
                served[where] = high >= low + self._least  # the same floating-point comparison as in `_at`
        return total, floor, widest, served

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return (
            f"DeepRankingTriplets({self.count} triplets: {self.queries} queries, {self.relevance!r}, "
            f"cap={self.cap:g}, gap={self.gap:g}, out_of_class={self.out_of_class:g}, seed={self.seed})"
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
        key = keyed_bits(self._key, number)
        inside = keyed_uniform(key, 0) >= self.out_of_class
        drawn = keyed_uniform(key, 1)
        query = np.empty_like(number)
        for mass, mine in ((self._served_mass, inside), (self._mass, ~inside)):
            mine = np.flatnonzero(mine)
            mine = mine[np.argsort(drawn[mine])]  # in order, so that the look-ups in the table are local
            query[mine] = np.searchsorted(mass, below(drawn[mine], mass[-1]), side="right")
        label = self._label[query]
        size, start = self._sizes[label], self._starts[label]
        positive = np.empty_like(number)
        # Skips the class, which is contiguous in _rows. With one class, the draw is not used.
        negative = keyed_integers(key, 4, high=np.maximum(len(self._rows) - size, 1))
        negative += size * (negative >= start)
        for_positive, for_negative = keyed_uniform(key, 2), keyed_uniform(key, 3)
        for at, begin, r in self._blocks(query):
            weight = np.minimum(r, self.cap)  # [b, m]
            floor = np.where(inside[at], self._floor[query[at]], -np.inf)
            leaves_one = r >= (floor + self._least)[:, None]
            chosen = self._drawn(weight * leaves_one, for_positive[at])
            positive[at] = begin + chosen
            mine = np.flatnonzero(inside[at])
            r, weight, at, chosen = r[mine], weight[mine], at[mine], chosen[mine]
            each = np.arange(len(mine))
            weight *= r + self._least <= r[each, chosen][:, None]
            weight[each, chosen] = 0
            negative[at] = begin[mine] + self._drawn(weight, for_negative[at])
        return Triplets(self._rows[query], self._rows[positive], self._rows[negative])

    def _drawn(
        self, weight: Float[np.ndarray, "b m"], uniform: Float[np.ndarray, " b"]
    ) -> Int64[np.ndarray, " b"]:
        """Draw a column for each row in proportion to its weights."""
        column = drawn_columns(weight, uniform)
        if (column < 0).any():
            raise RuntimeError(
                f"DeepRankingTriplets: {self.relevance!r} gives other relevances than when it was surveyed"
            )
        return column

    def _blocks(
        self, query: Int64[np.ndarray, " t"]
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"], Float[np.ndarray, "b m"]]]:
        """Yield the relevances of the queries in blocks: positions in `query`, class starts, and r.

        r is 0 for the query itself and beyond the end of its class. Classes with similar numbers of images
        and queries share a block, which saves numpy calls.
        """
        label = self._label[query]
        order = np.argsort(label, kind="stable")
        classes, first, counts = np.unique(label[order], return_index=True, return_counts=True)
        kinds = np.stack([_rounded_up(self._sizes[classes]), _rounded_up(counts)])
        for kind in np.unique(kinds, axis=1).T:
            alike = np.flatnonzero((kinds == kind[:, None]).all(axis=0))
            width, height = int(self._sizes[classes[alike]].max()), int(counts[alike].max())
            height = min(height, max(1, CELLS // width))
            together = max(1, CELLS // (width * height))
            for g in range(0, len(alike), together):
                group = alike[g : g + together]
                last = counts[group][:, None] - 1
                for h in range(0, int(last.max()) + 1, height):
                    nth = np.arange(h, h + height)
                    asked = nth <= last  # [g, a]; padding repeats the last query
                    at = order[first[group][:, None] + np.minimum(nth, last)]
                    r = self._relevance(query[at], classes[group], width)
                    begin = np.broadcast_to(self._starts[classes[group]][:, None], at.shape)
                    yield at[asked], begin[asked], r[asked]

    def _relevance(
        self, places: Int64[np.ndarray, "g a"], classes: Int64[np.ndarray, " g"], width: int
    ) -> Float[np.ndarray, "g a {width}"]:
        """The relevance of all images of a class to some of its queries, for several classes."""
        start, size = self._starts[classes][:, None], self._sizes[classes][:, None]
        column = np.arange(width)
        columns = start + np.minimum(column, size - 1)  # [g, m]
        r = self.relevance.of(self._rows[places], self._rows[columns])
        if r.dtype.kind not in "fiub":
            found = f"{self.relevance!r}: array of {r.dtype}"
            raise refusal(type(self).__name__, "relevance", found, "relevances from 0 to 1")
        r = r.astype(np.float64, copy=False)  # so that `_survey` and `_at` compare equal numbers
        r *= (column < size)[:, None, :]
        g, a = places.shape
        r[np.arange(g)[:, None], np.arange(a), places - start] = 0
        return r

    def provenance(self) -> dict[str, Any]:
        """The provenance for a manifest: the strategy, its parameters and its counts."""
        return {
            "strategy": "deep ranking",
            "parameters": {
                "count": self.count,
                "seed": self.seed,
                "cap": self.cap,
                "gap": self.gap,
                "out_of_class": self.out_of_class,
            },
            "relevance": repr(self.relevance),
            "counts": {
                "queries": self.queries,
                "images alone in their class": self.alone,
                "images of no relevance": self.irrelevant,
                "queries without an in-class negative": self.unserved,
            },
        }


def _rounded_up(counts: Int64[np.ndarray, " c"]) -> Int64[np.ndarray, " c"]:
    """Round up to the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …; counts with equal results share a block."""
    power = 2 ** np.ceil(np.log2(counts)).astype(np.int64)
    return np.where((counts > 2) & (counts <= power // 4 * 3), power // 4 * 3, power)
