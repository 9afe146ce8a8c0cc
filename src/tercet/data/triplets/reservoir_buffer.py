"""A weighted reservoir of the images of one class, their total relevance given or estimated."""

from __future__ import annotations

from heapq import heappush, heappushpop
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["ClassBuffer"]

_LEAST = 4096  # numbers kept at least, by which the images of a class are counted
_MOST_SHARE = 0.2  # the largest share of a class in a buffer whose draws are close to their distribution


class Distinct:
    """Counts distinct numbers: exactly up to a limit, then estimated from the smallest ones.

    The k-th smallest of n numbers uniform in (0, 1) is about k / n, so n is known to within 1 / √k.

    Args:
        limit: how many numbers are kept.

    Example:
        >>> came = Distinct(limit=10)
        >>> for u in [0.5, 0.25, 0.5]:
        ...     came.add(u)
        >>> came.count
        2
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._heap: list[float] = []  # the smallest numbers, negated, so that the largest of them is first
        self._kept: set[float] = set()
        self._more = False

    def add(self, u: float) -> None:
        """Count a number, uniform in (0, 1) for a new image and the same whenever that image is added."""
        if u in self._kept:
            return
        if len(self._heap) < self.limit:
            heappush(self._heap, -u)
            self._kept.add(u)
            return
        self._more = True
        evicted = -heappushpop(self._heap, -u)
        if evicted != u:
            self._kept.remove(evicted)
            self._kept.add(u)

    @property
    def count(self) -> int:
        """The number of distinct numbers, exact or estimated."""
        if not self._more:
            return len(self._heap)
        return max(self.limit + 1, round((self.limit - 1) / -self._heap[0]))


class ClassBuffer:
    """The buffered images of a class, and what is known of their relevance.

    Args:
        capacity: the most images that are kept.
        like: the features of an image, for their shape and type.

    Example:
        >>> buffer = ClassBuffer(1, np.zeros(2))
        >>> buffer.admit(7, np.zeros(2), log_u=-0.5, known=1.0, near=np.empty(0))
        >>> buffer.admit(8, np.zeros(2), log_u=-0.5, known=2.0, near=np.empty(0))
        7
    """

    def __init__(self, capacity: int, like: np.ndarray) -> None:
        kind = like.dtype if like.dtype.kind == "f" else np.float64
        self.keys = np.empty(capacity, dtype=np.int64)
        self.features = np.empty((capacity, *like.shape), dtype=kind)
        self.log_u = np.empty(capacity)
        self.sums = np.empty(capacity)  # of relevances to `counts` images; a total given counts as one
        self.counts = np.empty(capacity)
        self.fill = 0
        self.given = False
        self._came = Distinct(max(_LEAST, int(capacity / _MOST_SHARE) + 1))
        self._all = np.zeros(2)  # the sum and number of all relevances so far

    @property
    def seen(self) -> int:
        """How many different images were added, exact while that decides `full`."""
        return self._came.count

    @property
    def full(self) -> bool:
        """Whether the buffer holds over a fifth of the images added."""
        return self.fill > _MOST_SHARE * self.seen

    def put(self, slot: int, features: np.ndarray) -> None:
        """Store features, and widen the type of all where these need it."""
        kind = np.promote_types(self.features.dtype, features.dtype)
        self.features = self.features.astype(kind, copy=False)
        self.features[slot] = features

    def means(self) -> Float[np.ndarray, " B"]:
        """The mean relevance of each image to one of its class; a given total unchanged.

        One relevance of the class average is added to those of each image, as a new image has few.
        """
        sums, counts = self.sums[: self.fill], self.counts[: self.fill]
        return sums.copy() if self.given else (sums + self._average()) / (counts + 1)

    def totals(self) -> Float[np.ndarray, " B"]:
        """The total relevance of each image to the images of its class added so far."""
        return self.means() * (1 if self.given else self.seen - 1)

    def _average(self) -> float:
        return float(self._all[0] / self._all[1]) if self._all[1] else 0.5

    def admit(
        self,
        key: int,
        features: np.ndarray,
        log_u: float,
        known: float | None,
        near: Float[np.ndarray, " B"],
    ) -> int | None:
        """Add an image.

        Args:
            key: its number.
            features: its features.
            log_u: log u of its reservoir key u^(1/r).
            known: its total relevance; None where it is estimated.
            near: [B] its relevance to the buffered images.

        Returns:
            The key of the image that is evicted, its own if it is not admitted, or None.
        """
        self._came.add(float(np.exp(log_u)))
        self.given = known is not None
        if known is not None:
            total, count, mean = known, 1.0, known
        else:
            # The buffered images are a biased sample of the class: each is weighted by 1 / π, with π the
            # probability that it is buffered.
            part = 1 / self._chances() if self.fill else np.empty(0)
            count = float(self.fill)
            total = count * float((near * part).sum() / part.sum()) if self.fill else 0.0
            self.sums[: self.fill] += near
            self.counts[: self.fill] += 1
            self._all += near.sum(), len(near)
            mean = (total + self._average()) / (count + 1)
        if known == 0:
            return key
        slot = self.fill
        evicted = None
        if self.fill == len(self.keys):
            slot = int(np.argmin(self._logs()))
            if _log_key(log_u, mean) <= self._logs()[slot]:
                return key
            evicted = int(self.keys[slot])
        else:
            self.fill += 1
        self.put(slot, features)
        self.keys[slot], self.log_u[slot] = key, log_u
        self.sums[slot], self.counts[slot] = total, count
        return evicted

    def _logs(self) -> Float[np.ndarray, " B"]:
        """log k = log u / r of the buffered images; the scale of r does not matter."""
        return _log_key(self.log_u[: self.fill], self.means())

    def _chances(self) -> Float[np.ndarray, " B"]:
        """P(k > the smallest buffered key), or 1 while there is room."""
        if self.fill < len(self.keys):
            return np.ones(self.fill)
        least = self._logs().min()
        return np.maximum(-np.expm1(self.means() * least), 1e-9) if np.isfinite(least) else np.ones(self.fill)


def _log_key(log_u: Any, r: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.divide(log_u, r)
