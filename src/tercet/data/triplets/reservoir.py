"""`ReservoirTriplets`: triplets by relevance from a stream, with a weighted reservoir for each class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import Refusal, as_float, as_int, as_seed, border, refusal
from tercet.core.indices import Triplets
from tercet.core.randomness import derive_key, keyed_bits, keyed_integers, keyed_uniform
from tercet.data.triplets.relevance import unit_rows
from tercet.data.triplets.reservoir_buffer import ClassBuffer
from tercet.data.triplets.weighted_draws import ROUNDING, drawn_columns

__all__ = ["ReservoirTriplets"]


class ReservoirTriplets:
    """Triplets by relevance from a stream of images, of which each class keeps some in a buffer.

    Image j gets the key k_j = u_j^(1/r_j), where u_j is uniform, a function of (seed, key), and r_j is its
    total relevance. The buffer of a class keeps the images with the largest k. For a triplet

        query         uniform over all buffered images, so that classes come as they fill their buffers
        positive      a candidate uniform over the other images of the buffer, accepted with probability
                      min(1, s · min(T_p, r_qp) / r_p)
        negative      out of class with probability `out_of_class`: uniform over the other buffers;
                      else in class: a candidate accepted likewise, where r_qp⁺ − r_qp⁻ ≥ T_r

    After `tries` candidates without success the query is given up and counted. (The candidates are not drawn
    one by one: whether one of them succeeds, and which, is drawn from the same distribution.) The paper
    accepts with min(1, r_qp / r_p), without T_p and with s = 1. As r_p grows with the size of the class, ever
    more queries would be given up. Here s = max(1, min_p r_p / T_p) over the buffer: this factor is common to
    all probabilities of the class and raises none above 1. It does not change how likely each positive and
    negative of a query is, but fewer queries are given up, as many in a large class as in a small one.

    The total relevance of an image in a stream is seldom known. Without `total`, `add` estimates it from the
    relevance of the image to those in the buffer when it arrives (each weighted by the inverse of its
    probability to be there), and to all that arrive later. Relevance is assumed to be symmetric.

    "Uniform over the buffer" is in proportion to r_j only while buffers are small, as an image cannot be in
    it twice. The frequency of images of a class of 200 relative to this proportion, first for total
    relevances that are uniform from 0, then for exponential ones:

        buffer / class               0.05           0.2            0.5
        most relevant tenth          0.98  0.96     0.94  0.84     0.82  0.58
        least relevant tenth         1.03  1.06     1.14  1.23     1.51  1.91

    Drawing from a buffer that holds over a fifth of the images seen of its class causes a warning.

    Args:
        capacity: images in the buffer of a class, at least 2.
        relevance: a function of features [a, …] and [r, …] that returns numbers from 0 to 1, [a, r]; by
            default the cosine of two vectors, 0 where it is negative.
        seed: a whole number of at least 0; another seed gives other draws.
        cap: T_p, in (0, 1]: above it all positives are equally likely.
        gap: T_r ≥ 0, by how much the positive is more relevant than an in-class negative.
        out_of_class: the share of triplets with a negative of another class, in [0, 1].
        tries: the number of candidates for a positive, and for a negative.

    Attributes:
        seen: how many different images were added. For a class with more than 4096 or 5 · capacity of them,
            whichever is larger, it is an estimate, typically to within 2 %.
        given_up: the number of queries given up, by reason.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> reservoir = ReservoirTriplets(capacity=3, seed=0, out_of_class=1)
        >>> features = np.random.default_rng(0).random((40, 8))
        >>> for key, row in enumerate(features):
        ...     gone = reservoir.add(key, label=key % 2, features=row)
        >>> len(reservoir), reservoir.seen
        (6, 40)
        >>> anchor, positive, negative = reservoir.triplets(5)
        >>> (anchor % 2 == positive % 2).all() and (anchor % 2 != negative % 2).all()
        np.True_

    Reference:
        J. Wang et al., "Learning fine-grained image similarity with deep ranking", CVPR 2014.
        P. Efraimidis, P. Spirakis, "Weighted random sampling with a reservoir", 2006.
    """

    def __init__(
        self,
        capacity: int,
        relevance: Callable[[np.ndarray, np.ndarray], Any] | None = None,
        seed: int = 0,
        *,
        cap: float = 1.0,
        gap: float = 0.1,
        out_of_class: float = 0.2,
        tries: int = 1000,
    ) -> None:
        caller = type(self).__name__
        self.capacity = as_int(caller, "capacity", capacity, minimum=2)
        if not (relevance is None or callable(relevance)):
            raise refusal(caller, "relevance", relevance, "a function of features [a, …] and [r, …]")
        self._relevance = _cosine if relevance is None else relevance
        self.seed = as_seed(caller, seed)
        self.cap = as_float(caller, "cap", cap, 0, 1)
        if not self.cap:
            raise refusal(caller, "cap", cap, "a number above 0", "pass 1 for no cap")
        self.gap = as_float(caller, "gap", gap, 0)
        self.out_of_class = as_float(caller, "out_of_class", out_of_class, 0, 1)
        self.tries = as_int(caller, "tries", tries, minimum=1)
        self.given_up: Counter[str] = Counter()
        self._buffers: dict[int | str, ClassBuffer] = {}
        self._label_of: dict[int, int | str] = {}  # of the keys in the buffers
        self._totals_given: bool | None = None
        self._drawn = 0
        self._warned = False
        self._admission = derive_key(caller, "admission", self.seed)
        self._draws = derive_key(caller, "draws", self.seed)

    def __len__(self) -> int:
        return sum(buffer.fill for buffer in self._buffers.values())

    @property
    def seen(self) -> int:
        """How many different images were added; estimated for large classes."""
        return sum(buffer.seen for buffer in self._buffers.values())

    def __repr__(self) -> str:
        return f"ReservoirTriplets({len(self)} of {self.seen} images, {len(self._buffers)} classes)"

    def add(self, key: Any, label: Any, features: Any, total: Any = None) -> int | None:
        """Add an image; returns the key of the image that is dropped, so that the caller can release it.

        An image that is in the buffer already is not added again: its features are replaced.

        Args:
            key: a whole number from 0 to 2⁶³ − 1, such as the catalog row; a name becomes one by
                `derive_key(name) >> 1` of `tercet.core.randomness`.
            label: its class, a whole number or a string.
            features: an array for `relevance`, of the same shape for every image; by default [d].
            total: r_j, its total relevance, where it is known: for every image or for none.

        Returns:
            The key of the image that was evicted, or of this one if it was not admitted; None if all fit.

        Raises:
            ValueError: a bad key or label, a key that is in the buffer of another label, features of another
                shape or not finite, a negative total, totals for some images only, or relevances out of
                [0, 1]. Nothing is added then.
        """
        with border("ReservoirTriplets.add"):
            number, name = self._named(key, label)
            array = self._checked_features(features)
            known = self._checked_total(total)
            buffer = self._buffers.get(name)
            if buffer is not None and number in self._label_of:
                buffer.put(int(np.flatnonzero(buffer.keys[: buffer.fill] == number)[0]), array)
                return None
            near = np.empty(0)  # its relevance to the images in the buffer, by which totals are estimated
            if known is None and buffer is not None:
                near = self._asked(array[None], buffer.features[: buffer.fill])[0]
            if buffer is None:
                buffer = self._new_buffer(name, array)
        self._totals_given = known is not None
        log_u = float(np.log(keyed_uniform(self._admission, np.int64(number)) + 2.0**-54)[0])
        gone = buffer.admit(number, array, log_u, known, near)
        if gone != number:
            self._label_of[number] = name
            if gone is not None:
                del self._label_of[gone]
        return gone

    def _named(self, key: Any, label: Any) -> tuple[int, int | str]:
        """A key and a label as they are stored; refused where the key is in the buffer of another label."""
        number = as_int(None, "key", key, maximum=2**63 - 1)
        name = label if isinstance(label, str) else as_int(None, "label", label, minimum=-(2**63))
        buffered = self._label_of.get(number, name)
        if buffered != name:
            raise Refusal("label", label, f"{buffered!r}, as key {number} is in the buffer of that label")
        return number, name

    def _checked_features(self, features: Any) -> np.ndarray:
        """Features as an array of finite numbers, of the shape of those before."""
        try:
            array = np.asarray(features)
        except Exception as error:  # rows of unequal length
            kind, expected = type(features).__name__, "an array of finite numbers"
            raise Refusal("features", kind, expected, str(error)) from error
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise Refusal("features", f"array of {array.dtype}", "an array of finite numbers")
        if self._relevance is _cosine and array.ndim != 1:
            hint = "pass a relevance of your own for others"
            raise Refusal("features", f"shape {array.shape}", "a vector [d]", hint)
        for buffer in self._buffers.values():
            shape = buffer.features.shape[1:]
            if array.shape != shape:
                expected = f"shape {shape}, as of the images before"
                raise Refusal("features", f"shape {array.shape}", expected)
            break  # all have that shape
        return array

    def _checked_total(self, total: Any) -> float | None:
        """A total relevance, or None; refused where the images before had one and this has not, or not so."""
        known = None if total is None else as_float(None, "total", total, 0)
        if self._totals_given not in (None, known is not None):
            raise Refusal("total", total, "a total for every image or for none")
        return known

    def _new_buffer(self, name: int | str, features: np.ndarray) -> ClassBuffer:
        """The empty buffer of a class that has none yet."""
        try:
            return self._buffers.setdefault(name, ClassBuffer(self.capacity, features))
        except (MemoryError, ValueError):
            raise Refusal("capacity", self.capacity, "buffers that fit into memory") from None

    def triplets(self, n: int) -> Triplets:
        """The triplets of the next n queries; fewer if queries are given up.

        Draws continue from earlier calls: without additions in between, 2 and then 3 are the same as 5.

        Args:
            n: the number of queries.

        Returns:
            Triplets of int64 [m] keys, m ≤ n.

        Raises:
            ValueError: n is not a whole number of at least 0, or relevances out of [0, 1].
        """
        n = as_int("ReservoirTriplets.triplets", "n", n)
        buffers = [buffer for buffer in self._buffers.values() if buffer.fill]
        self._warn_of_full(buffers)
        fill = np.array([buffer.fill for buffer in buffers], dtype=np.int64)
        ends = np.cumsum(fill)
        if not len(buffers):
            self._give_up("no image in any buffer", n)
            return Triplets(*np.empty((3, 0), dtype=np.int64))
        try:
            key = keyed_bits(self._draws, np.arange(self._drawn, self._drawn + n))
        except (MemoryError, ValueError):
            expected = "a number that fits into memory"
            raise refusal("ReservoirTriplets.triplets", "n", n, expected) from None
        self._drawn += n
        place = keyed_integers(key, 0, high=int(ends[-1]))
        which = np.searchsorted(ends, place, side="right")
        inside = keyed_uniform(key, 1) >= self.out_of_class
        start, others = (ends - fill)[which], ends[-1] - fill[which]
        away = keyed_integers(key, 2, high=np.maximum(others, 1))
        away += fill[which] * (away >= start)
        positive = np.full(n, -1, dtype=np.int64)
        negative = np.where(others > 0, away, -1)
        uniform = keyed_uniform(key[:, None], np.arange(3, 7))  # [n, 4]
        order = np.argsort(which, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(which[order])) + 1) if n else []:
            buffer, begin = buffers[which[mine[0]]], start[mine[0]]
            chosen = self._within(buffer, place[mine] - begin, uniform[mine], inside[mine])
            positive[mine] = np.where(chosen[0] < 0, -1, begin + chosen[0])
            among = mine[inside[mine]]
            negative[among] = np.where(chosen[1] < 0, -1, begin + chosen[1])[inside[mine]]
        served, unserved = (positive >= 0) & (negative >= 0), (positive >= 0) & (negative < 0)
        self._give_up("no positive accepted", int((positive < 0).sum()))
        self._give_up("no in-class negative accepted", int((unserved & inside).sum()))
        self._give_up("no image of another class", int((unserved & ~inside).sum()))
        keys = np.concatenate([buffer.keys[: buffer.fill] for buffer in buffers])
        return Triplets(*(keys[corner[served]] for corner in (place, positive, negative)))

    def _give_up(self, reason: str, count: int) -> None:
        if count:
            self.given_up[reason] += count

    def _within(
        self,
        buffer: ClassBuffer,
        query: Int64[np.ndarray, " k"],
        uniform: Float[np.ndarray, "k 4"],
        inside: Bool[np.ndarray, " k"],
    ) -> Int64[np.ndarray, "2 k"]:
        """Slots of a positive and of an in-class negative for each query; −1 where none is accepted."""
        features, total = buffer.features[: buffer.fill], buffer.totals()
        with border("ReservoirTriplets.triplets"):
            r = self._asked(features[query], features)  # [k, B]
        each = np.arange(len(query))
        bound = np.minimum(r, self.cap)
        scale = max(1.0, total.min(initial=np.inf, where=total > 0) / self.cap)
        bound *= scale if np.isfinite(scale) else 1  # infinite where all totals are 0
        accept = np.divide(bound, total, out=np.zeros_like(bound), where=total > 0)
        np.minimum(accept, 1, out=accept)
        accept[each, query] = 0
        positive = self._accepted(accept, uniform[:, 0], uniform[:, 1])
        far = r[each, positive][:, None] - r >= self.gap - ROUNDING
        accept *= far & inside[:, None] & (positive >= 0)[:, None]
        accept[each, positive] = 0
        return np.stack([positive, self._accepted(accept, uniform[:, 2], uniform[:, 3])])

    def _accepted(
        self,
        accept: Float[np.ndarray, "k B"],
        luck: Float[np.ndarray, " k"],
        which: Float[np.ndarray, " k"],
    ) -> Int64[np.ndarray, " k"]:
        """The first accepted of `tries` uniform candidates for each query, −1 where all fail."""
        chance = np.minimum(accept.sum(axis=1) / max(1, accept.shape[1] - 1), 1)  # of one candidate
        with np.errstate(divide="ignore"):  # a chance of 1
            succeeds = luck < -np.expm1(self.tries * np.log1p(-chance))
        return np.where(succeeds, drawn_columns(accept, which), -1)

    def _asked(self, features: np.ndarray, others: np.ndarray) -> Float[np.ndarray, "a r"]:
        """The result of the relevance function, refused unless it is [a, r] and in [0, 1]."""
        if not len(others):
            return np.empty((len(features), 0))
        shape = (len(features), len(others))
        r = np.asarray(self._relevance(features, others))
        if r.dtype.kind not in "fiub":
            raise Refusal("relevance", f"it gave an array of {r.dtype}", "numbers from 0 to 1")
        r = r.astype(np.float64)
        if r.shape != shape:
            raise Refusal("relevance", f"it gave shape {r.shape}", f"shape {shape}, [a, r]")
        if not (r.min() >= 0 and r.max() <= 1):
            bad = r[~((r >= 0) & (r <= 1))][0]
            raise Refusal("relevance", f"it gave {bad}", "numbers from 0 to 1")
        return r

    def _warn_of_full(self, buffers: list[ClassBuffer]) -> None:
        full = sum(buffer.full for buffer in buffers)
        if not full or self._warned:
            return
        self._warned = True
        of = f"{full} of {len(buffers)} class" + ("es" if len(buffers) != 1 else "")
        warnings.warn(
            f"ReservoirTriplets(capacity={self.capacity}): the buffer holds over a fifth of what came so far "
            f"of {of}, whose most relevant images come less often than is their due; "
            "lower capacity or draw later",
            stacklevel=3,
        )


def _cosine(features: np.ndarray, others: np.ndarray) -> Float[np.ndarray, "a r"]:
    """The cosine of two vectors, 0 where it is negative or one of them is 0."""
    # each product alone: BLAS rounds by the number of rows
    return np.clip(np.einsum("ad,rd->ar", unit_rows(features), unit_rows(others)), 0, 1)
