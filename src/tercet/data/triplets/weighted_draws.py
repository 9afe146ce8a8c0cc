"""Draws in proportion to weights by cumulative sums: exact, and not changed by padding with zero weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int64

__all__ = ["ROUNDING", "below", "drawn_columns"]

ROUNDING = 1e-7  # tolerance of relevance gaps: 0.3 − 0.1 counts as 0.2, in float32 too


def below(uniform: Any, total: Any) -> Any:
    """A point in [0, total) for each number in [0, 1); the product alone may be rounded up to the total.

    Example:
        >>> bool(below(1 - 2**-53, 5e-324) < 5e-324)
        True
    """
    return np.minimum(uniform * total, np.nextafter(total, 0))


def drawn_columns(
    weight: Float[np.ndarray, "b m"], uniform: Float[np.ndarray, " b"]
) -> Int64[np.ndarray, " b"]:
    """Draw a column for each row in proportion to its weights; −1 where all are 0.

    Args:
        weight: [b, m] weights of at least 0.
        uniform: [b] numbers in [0, 1).

    Returns:
        int64 [b].

    Example:
        >>> drawn_columns(np.array([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]), np.array([0.2, 0.2]))
        array([ 1, -1])
    """
    if not weight.size:
        return np.full(len(weight), -1, dtype=np.int64)
    sums = weight.astype(np.float64)
    np.cumsum(sums, axis=1, out=sums)  # twice as fast as with a dtype
    total = sums[:, -1]
    column = np.argmax(sums > below(uniform, total)[:, None], axis=1)
    return np.where(total > 0, column, -1)
