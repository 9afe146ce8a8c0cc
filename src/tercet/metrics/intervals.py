"""Confidence intervals by resampling classes, and whether two models differ.

Queries of a class share positives and are no independent draws; classes are. So classes are drawn with
replacement, each with all of its queries, and one matrix product of how often each is drawn with the sums and
counts of the classes gives every resampled mean. Figures of pairs, clusters and clouds are no means over
queries: their intervals come from the figure without each class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from tercet.core.checks import as_float, as_int, as_seed, label_codes, refusal
from tercet.core.randomness import derive_key, keyed_uniform

__all__ = [
    "Difference",
    "Interval",
    "class_intervals",
    "class_sums",
    "jackknife_interval",
    "paired_difference",
]

_DRAWS = 2**22  # classes drawn at once


class Interval(NamedTuple):
    """A confidence interval; NaN where there are fewer than two classes.

    Example:
        >>> print(Interval(0.4612, 0.503))
        [0.461, 0.503]
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


class Difference(NamedTuple):
    """How much better one model is than another, over the same classes.

    Args:
        value: the mean of the first less that of the second.
        interval: of the difference, by a paired bootstrap.
        p: how often a difference as large comes about when signs of classes are flipped at random; at least
            1/(resamples + 1).
        queries: how many queries both are a mean over.

    Example:
        >>> print(Difference(0.02, Interval(0.005, 0.035), 0.012, 900))
        +0.020 [0.005, 0.035], p = 0.012
    """

    value: float
    interval: Interval
    p: float
    queries: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} {self.interval}, p = {self.p:.2g}"


def class_sums(
    values: Float[np.ndarray, " n"], labels: Any
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """The sum of the values of each class, and how many they are.

    Args:
        values: [n], NaN where a row does not count.
        labels: [n] whole numbers, bools or strings.

    Example:
        >>> class_sums(np.array([1.0, 0.0, np.nan, 0.5]), ["a", "a", "b", "c"])
        (array([1. , 0. , 0.5]), array([2., 0., 1.]))
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    codes, classes = label_codes(None, labels)
    counted = ~np.isnan(values)
    counts = np.bincount(codes[counted], minlength=len(classes)).astype(np.float64)
    return np.bincount(codes[counted], values[counted], len(classes)).astype(np.float64), counts


def class_intervals(
    sums: Float[np.ndarray, "c f"],
    counts: Float[np.ndarray, "c f"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """The interval of Σ sums / Σ counts of each of f figures, by one bootstrap of classes.

    Percentiles of the resampled means, a little farther out than `level`: at Φ(√(C/(C − 1)) t) for the
    quantile t of Student's distribution with C − 1 degrees of freedom, since percentiles of few classes are
    too narrow. They remain slightly narrow, since queries are drawn again but not what they retrieve: over
    nine kinds of simulated data sets 95 % intervals held the true value in 92.8 to 96.3 % of them, 94.4 % on
    average; on two more, of 40 and 100 classes, in 91 to 94.5 %.

    Args:
        sums: [c, f], a number for each class and figure.
        counts: [c, f], what it is a sum over.
        level: the share of data sets whose interval holds the true value.
        resamples: how many times classes are drawn.
        seed: another seed draws other classes.

    Returns:
        An `Interval` a figure.

    Raises:
        ValueError: a level outside [0.5, 0.999], or resamples < 1.

    Example:
        >>> print(class_intervals(np.array([[3.0], [5.0], [4.0], [8.0]]), np.full((4, 1), 10.0))[0])
        [0.300, 0.800]

    Reference:
        Efron & Tibshirani, "An introduction to the bootstrap", 1993; the correction: Hesterberg, "What
        teachers should know about the bootstrap", 2015.
    """
    level = as_float("class_intervals", "level", level, 0.5, 0.999)
    resamples = as_int("class_intervals", "resamples", resamples, minimum=1)
    classes, width = sums.shape
    if classes < 2:
        return [Interval(math.nan, math.nan)] * width
    both = np.concatenate([sums, counts], 1)  # [c, 2f]
    drawn = np.concatenate([weights @ both for weights in _drawn(classes, resamples, seed)])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = drawn[:, :width] / drawn[:, width:]
    return _percentiles(means, classes, level)


def jackknife_interval(value: float, without: Float[np.ndarray, " c"], share: bool = True) -> Interval:
    """The 95 % interval of a figure that is no mean over queries, from the figure without each class.

    θ ± t √((C − 1)/C Σ_c (θ₍c₎ − mean θ₍₎)²), θ₍c₎ the figure without class c, t of Student's distribution
    with C − 1 degrees of freedom. Of a share, ln θ/(1 − θ) has this interval, so that it stays in [0, 1] and
    is wider on the side of ½. Where classes matter only in pairs, as in the uniformity of a cloud that is the
    same in all directions, it is up to √2 times too wide.

    Args:
        value: θ, the figure.
        without: [c], θ₍c₎.
        share: the figure is at least 0 and at most 1.

    Returns:
        An `Interval`, NaN of fewer than two classes, and where the figure is not defined without one of them.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 2.0])  # of six classes, and their mean
        >>> print(jackknife_interval(3.0, (values.sum() - values) / 5, share=False))
        [1.125, 4.875]

    Reference:
        Efron & Stein, "The jackknife estimate of variance", 1981.
    """
    classes = len(without)
    if classes < 2 or not np.isfinite([value, *without]).all():
        return Interval(math.nan, math.nan)
    inside = share and min(value, without.min()) > 0 and max(value, without.max()) < 1
    if inside:
        value, without = math.log(value / (1 - value)), np.log(without / (1 - without))
    variance = (classes - 1) / classes * float(((without - without.mean()) ** 2).sum())
    half = -_student(0.025, classes - 1) * math.sqrt(variance)
    low, high = value - half, value + half
    if inside:
        low, high = 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))
    return Interval(max(low, 0.0), min(high, 1.0)) if share and 0 <= value <= 1 else Interval(low, high)


def paired_difference(
    values: Float[np.ndarray, " n"],
    others: Float[np.ndarray, " n"],
    labels: Shaped[np.ndarray, " n"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference of two models on the same queries, by the classes that both are resampled by.

    Args:
        values: [n], of one model; NaN where a row does not count.
        others: [n], of the other.
        labels: [n], the class of each row.
        level, resamples, seed: as for `class_intervals`; the signs of classes are flipped as often.

    Returns:
        A `Difference`, over the rows that count in both.

    Raises:
        ValueError: columns of unequal length.

    Example:
        >>> better, worse = np.array([1.0, 1.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.5, 0.0])
        >>> paired_difference(better, worse, np.array([0, 0, 1, 2])).value
        0.5
    """
    if values.shape != others.shape:
        shapes = f"shapes {values.shape} and {others.shape}"
        raise refusal("paired_difference", "values, others", shapes, "two models on the same rows")
    sums, counts = class_sums(values - others, labels)
    sums, counts = sums[counts > 0], counts[counts > 0]
    total, queries = float(sums.sum()), int(counts.sum())
    if not queries:
        return Difference(math.nan, Interval(math.nan, math.nan), math.nan, 0)
    as_large = 0
    for signs in _signs(len(sums), resamples, seed):
        as_large += int((np.abs(signs @ sums) >= abs(total) * (1 - 1e-12)).sum())
    options: Any = {"level": level, "resamples": resamples, "seed": seed}
    interval = class_intervals(sums[:, None], counts[:, None], **options)[0]
    return Difference(total / queries, interval, (1 + as_large) / (1 + resamples), queries)


def _percentiles(means: Float[np.ndarray, "b f"], classes: int, level: float) -> list[Interval]:
    quantile = _student((1 - level) / 2, classes - 1) * math.sqrt(classes / (classes - 1))
    tail = NormalDist().cdf(quantile)
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _student(p: float, freedom: int) -> float:
    """The p-quantile of Student's distribution by Fisher's expansion, within 0.01 from 4 degrees on."""
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def _uniforms(name: str, classes: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "b c"]]:
    """Numbers in [0, 1) for each class of each resample, some resamples at a time."""
    key, step = derive_key(as_seed("class_intervals", seed), name), max(1, _DRAWS // classes)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        yield keyed_uniform(key, np.arange(start * classes, stop * classes)).reshape(-1, classes)


def _drawn(classes: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "b c"]]:
    """How often each class is drawn in each resample."""
    for uniform in _uniforms("classes", classes, resamples, seed):
        chosen = (uniform * classes).astype(np.int64)
        chosen += classes * np.arange(len(chosen))[:, None]
        yield np.bincount(chosen.ravel(), minlength=chosen.size).reshape(-1, classes).astype(np.float64)


def _signs(classes: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "b c"]]:
    for uniform in _uniforms("signs", classes, resamples, seed):
        yield np.where(uniform < 0.5, -1.0, 1.0)
