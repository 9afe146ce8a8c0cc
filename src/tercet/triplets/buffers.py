"""A weighted reservoir of the images of one class, their total relevance given or estimated."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["ClassBuffer"]


class ClassBuffer:
    """The images of a class that stay, and what is known of their relevance.

    Args:
        capacity: how many stay.
        like: the features of an image, for their shape and kind.

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
        self.seen = 0
        self.given = False
        self._all = np.zeros(2)  # the sum and number of all relevances so far

    def means(self) -> Float[np.ndarray, " B"]:
        """The mean relevance of each image to one of its class; a given total as it is.

        One relevance of the average size in the class is added to the few that a new image has.
        """
        sums, counts = self.sums[: self.fill], self.counts[: self.fill]
        return sums.copy() if self.given else (sums + self._average()) / (counts + 1)

    def totals(self) -> Float[np.ndarray, " B"]:
        """The total relevance of each image to those of its class that have come."""
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
        """Enters an image, `near` its relevance to those here; the key that leaves, its own, or None."""
        self.seen += 1
        self.given = known is not None
        if known is not None:
            total, count, mean = known, 1.0, known
        else:
            # Those here are no fair sample of the class: each stands for 1 / π, π its chance to be here.
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
        gone = None
        if self.fill == len(self.keys):
            slot = int(np.argmin(self._logs()))
            if _log_key(log_u, mean) <= self._logs()[slot]:
                return key
            gone = int(self.keys[slot])
        else:
            self.fill += 1
        self.keys[slot], self.features[slot], self.log_u[slot] = key, features, log_u
        self.sums[slot], self.counts[slot] = total, count
        return gone

    def _logs(self) -> Float[np.ndarray, " B"]:
        """log k = log u / r of the images here; the scale of r does not matter."""
        return _log_key(self.log_u[: self.fill], self.means())

    def _chances(self) -> Float[np.ndarray, " B"]:
        """P(k > the smallest key here), or 1 while there is room."""
        if self.fill < len(self.keys):
            return np.ones(self.fill)
        least = self._logs().min()
        return np.maximum(-np.expm1(self.means() * least), 1e-9) if np.isfinite(least) else np.ones(self.fill)


def _log_key(log_u: Any, r: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.divide(log_u, r)
