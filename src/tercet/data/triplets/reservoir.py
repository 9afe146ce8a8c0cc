"""Deep Ranking's triplets from a stream: a weighted reservoir for each class, and draws from them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import as_float, as_int, as_seed, refusal
from tercet.core.indices import Triplets
from tercet.core.randomness import derive_key, keyed_bits, keyed_integers, keyed_uniform
from tercet.data.triplets.relevance import unit_rows
from tercet.data.triplets.reservoir_buffer import ClassBuffer
from tercet.data.triplets.weighted_draws import ROUNDING, drawn_columns

__all__ = ["ReservoirTriplets"]


class ReservoirTriplets:
    """Triplets by relevance from a stream of images, held in a buffer for each class.

    Image j arrives with the key k_j = u_j^(1/r_j), u_j a uniform function of (seed, key), r_j its total
    relevance; of each class the largest k stay. For a triplet

        query         uniform over all buffered images, so that classes come as they fill their buffers
        positive      a candidate uniform over the other images of the buffer, accepted with probability
                      min(1, s · min(T_p, r_qp) / r_p)
        negative      out of class with probability `out_of_class`: uniform over the other buffers;
                      else in class: a candidate accepted likewise, where r_qp⁺ − r_qp⁻ ≥ T_r

    and after `tries` candidates without success the query is given up and counted. (The candidates are not
    played through: whether one of them succeeds, and which, is drawn from the law of that game.) The paper
    accepts with min(1, r_qp / r_p), which loses T_p, and has s = 1: as r_p grows with the class, ever more
    queries would be given up. Here s = max(1, min_p r_p / T_p) over the buffer: above 1 no probability of the
    class gets beyond 1, so all are raised by one factor. Which positive and which negative a query gets is
    as likely as with s = 1; only fewer queries are given up, no more in a large class than in a small one.

    The total relevance of an image in a stream is seldom known. Where `add` is not told, it is estimated:
    from the relevance of the image to those in the buffer when it comes (each weighted with one over its
    chance to be there), and to all that come after it. Relevance is taken as symmetric.

    "Uniform over the buffer" is in proportion to r_j only while buffers are small, as an image cannot be
    there twice. How often images of a class of 200 come, in shares of their due, first where total
    relevances are spread uniformly from 0 up, then exponentially:

        buffer / class               0.05           0.2            0.5
        most relevant tenth          0.98  0.96     0.94  0.84     0.82  0.58
        least relevant tenth         1.03  1.06     1.14  1.23     1.51  1.91

    A warning says when drawing from a buffer that holds over a fifth of what came of its class.

    Args:
        capacity: images in the buffer of a class, at least 2.
        relevance: a function of features [a, …] and [r, …] that gives numbers from 0 to 1, [a, r]; by
            default the cosine of two vectors, 0 where it is negative.
        seed: a whole number of at least 0.
        cap: T_p, in (0, 1].
        gap: T_r ≥ 0.
        out_of_class: the share of triplets with a negative of another class, in [0, 1].
        tries: the candidates for a positive, and again for a negative.

    Attributes:
        seen: how many different images have come; of more than 4096 of a class, or 5 · capacity if that is
            more, an estimate, typically to within 2 %.
        given_up: why queries were given up → how many, each query once.

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
        return sum(buffer.seen for buffer in self._buffers.values())

    def __repr__(self) -> str:
        return f"ReservoirTriplets({len(self)} of {self.seen} images, {len(self._buffers)} classes)"

    def add(self, key: Any, label: Any, features: Any, total: Any = None) -> int | None:
        """An image arrives; the key of the one that is not in the buffer now, so that it can be let go.

        An image that is in the buffer already is not entered twice: its features are renewed.

        Args:
            key: a whole number from 0 to 2⁶³ − 1, such as the catalog row; a name becomes one by
                `derive_key(name) >> 1` of `tercet.core.randomness`.
            label: its class, a whole number or a string.
            features: what `relevance` takes, an array of the same shape for every image; by default [d].
            total: r_j, its total relevance, where it is known: for every image or for none.

        Returns:
            The key of the image that made room, or that of this one where it has no room; else None.

        Raises:
            ValueError: a bad key or label, a key that is in the buffer of another label, features of another
                shape or not finite, a negative total, totals for some images only, or relevances out of
                [0, 1]. Nothing has changed then.
        """
        caller = "ReservoirTriplets.add"
        number = as_int(caller, "key", key, maximum=2**63 - 1)
        name = label if isinstance(label, str) else as_int(caller, "label", label, minimum=-(2**63))
        held = self._label_of.get(number, name)
        if held != name:
            raise refusal(caller, "label", label, f"{held!r}, as key {number} is in the buffer of that label")
        try:
            array = np.asarray(features)
        except Exception as error:  # rows of unequal length
            raise refusal(
                caller, "features", type(features).__name__, "an array of finite numbers", str(error)
            ) from error
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise refusal(caller, "features", f"array of {array.dtype}", "an array of finite numbers")
        if self._relevance is _cosine and array.ndim != 1:
            hint = "pass a relevance of your own for others"
            raise refusal(caller, "features", f"shape {array.shape}", "a vector [d]", hint)
        known = None if total is None else as_float(caller, "total", total, 0)
        if self._totals_given not in (None, known is not None):
            raise refusal(caller, "total", total, "a total for every image or for none")
        buffer = self._buffers.get(name)
        shaped = next(iter(self._buffers.values())).features[0] if self._buffers else array
        if array.shape != shaped.shape:
            found = f"shape {array.shape}"
            raise refusal(caller, "features", found, f"shape {shaped.shape}, as of the images before")
        if buffer is not None and number in self._label_of:
            buffer.put(int(np.flatnonzero(buffer.keys[: buffer.fill] == number)[0]), array)
            return None
        near = np.empty(0)
        if known is None and buffer is not None:
            near = self._asked(caller, array[None], buffer.features[: buffer.fill])[0]
        self._totals_given = known is not None
        if buffer is None:
            try:
                buffer = self._buffers.setdefault(name, ClassBuffer(self.capacity, array))
            except (MemoryError, ValueError):
                raise refusal(caller, "capacity", self.capacity, "buffers that fit into memory") from None
        log_u = float(np.log(keyed_uniform(self._admission, np.int64(number)) + 2.0**-54)[0])
        gone = buffer.admit(number, array, log_u, known, near)
        if gone != number:
            self._label_of[number] = name
            if gone is not None:
                del self._label_of[gone]
        return gone

    def triplets(self, n: int) -> Triplets:
        """The triplets of the next n queries, fewer where queries are given up.

        The draws go on from those before: while nothing is added, 2 and then 3 are the same as 5.

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
        r = self._asked("ReservoirTriplets.triplets", features[query], features)  # [k, B]
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

    def _asked(self, caller: str, features: np.ndarray, others: np.ndarray) -> Float[np.ndarray, "a r"]:
        """What the relevance function says, refused unless it is [a, r] and in [0, 1]."""
        if not len(others):
            return np.empty((len(features), 0))
        shape = (len(features), len(others))
        r = np.asarray(self._relevance(features, others))
        if r.dtype.kind not in "fiub":
            raise refusal(caller, "relevance", f"it gave an array of {r.dtype}", "numbers from 0 to 1")
        r = r.astype(np.float64)
        if r.shape != shape:
            raise refusal(caller, "relevance", f"it gave shape {r.shape}", f"shape {shape}, [a, r]")
        if not (r.min() >= 0 and r.max() <= 1):
            bad = r[~((r >= 0) & (r <= 1))][0]
            raise refusal(caller, "relevance", f"it gave {bad}", "numbers from 0 to 1")
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
