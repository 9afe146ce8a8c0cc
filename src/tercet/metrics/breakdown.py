"""Where a mean over queries comes from: classes, groups, sizes of classes, and the worst classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from tercet.core.checks import as_float, label_codes
from tercet.metrics.intervals import class_sums

__all__ = ["by_name", "by_size", "macro", "worst"]


def by_name(values: Float[np.ndarray, " n"], names: Any) -> dict[Any, tuple[float, int]]:
    """The mean over the queries of each class or group, and how many they are; the worst first.

    Args:
        values: [n], NaN where a row does not count.
        names: [n], the class or group of each row.

    Example:
        >>> by_name(np.array([1.0, 0.0, np.nan, 1.0]), ["a", "a", "b", "c"])
        {'a': (0.5, 2), 'c': (1.0, 1)}
    """
    if not len(values):
        return {}
    sums, counts = class_sums(values, names)
    _, classes = label_codes(None, names)
    kept = np.flatnonzero(counts)
    means = sums[kept] / counts[kept]
    order = kept[np.argsort(means, kind="stable")]
    return {
        classes[i].item() if hasattr(classes[i], "item") else classes[i]: (
            float(sums[i] / counts[i]),
            int(counts[i]),
        )
        for i in order
    }


def by_size(values: Float[np.ndarray, " n"], labels: Any) -> dict[str, tuple[float, int]]:
    """The mean over the queries of classes of 1, 2, 3–4, 5–8, … rows, and how many they are.

    Args:
        values: [n], NaN where a row does not count.
        labels: [n], the class of each row.

    Example:
        >>> by_size(np.array([1.0, 0.0, 1.0, 1.0, 1.0]), ["a", "a", "b", "b", "b"])
        {'2': (0.5, 2), '3–4': (1.0, 3)}
    """
    if not len(values):
        return {}
    codes, _ = label_codes(None, labels)
    step = np.ceil(np.log2(np.bincount(codes)[codes])).astype(np.int64)  # sizes 2ˢ⁻¹ + 1 … 2ˢ
    found = by_name(values, step)
    return {_sizes(s): found[s] for s in sorted(found)}


def _sizes(step: int) -> str:
    return str(1 << step) if step < 2 else f"{(1 << (step - 1)) + 1}–{1 << step}"


def macro(values: Float[np.ndarray, " n"], labels: Any) -> float:
    """The mean over classes of their means; NaN of no query.

    Args:
        values: [n], NaN where a row does not count.
        labels: [n], the class of each row.

    Example:
        >>> macro(np.array([1.0, 0.0, 1.0]), ["a", "a", "b"])
        0.75
    """
    means = [mean for mean, _ in by_name(values, labels).values()]
    return float(np.mean(means)) if means else math.nan


def worst(values: Float[np.ndarray, " n"], labels: Any, share: float = 0.1) -> float:
    """The mean over the worst classes, the worst tenth unless told otherwise, at least one.

    Args:
        values: [n], NaN where a row does not count.
        labels: [n], the class of each row.
        share: of the classes.

    Example:
        >>> worst(np.array([1.0, 0.0, 1.0]), ["a", "a", "b"])
        0.5
    """
    share = as_float("worst", "share", share, above=0)
    means = [mean for mean, _ in by_name(values, labels).values()]
    return float(np.mean(means[: max(1, round(share * len(means)))])) if means else math.nan
