"""The retrieval figures as functions of ranks, and the one pass that gives any number of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import as_int, refusal
from tercet.metrics.protocol import Queries
from tercet.metrics.ranks import RankedBlock, ranked_blocks
from tercet.metrics.scores import Score
from tercet.metrics.tie_orders import average_precision, first_hit, first_rank, last_rank, share_within
from tercet.pairwise.torch_modes import widest_float

__all__ = [
    "Figure",
    "by_depth",
    "depths",
    "map_at_k",
    "map_at_r",
    "mean_average",
    "measured",
    "minp",
    "mrr",
    "precision",
    "r_precision",
    "recall",
    "score_of",
    "true_recall",
]


class Figure(NamedTuple):
    """A figure of ranked queries.

    Args:
        value: [a], its expected value for each query of a block.
        tied: bool [a], whether it depends on the order of images that are equally far.
        depth: how many results it looks at; None for all, 0 where it looks at the first R.
        k: the k that was asked for, which is clipped to the images that there are; None where there is none.
    """

    value: Callable[[RankedBlock], Float[Tensor, " a"]]
    tied: Callable[[RankedBlock], Bool[Tensor, " a"]]
    depth: int | None
    k: int | None = None


def recall(k: int) -> Figure:
    """Recall@k: whether any positive is among the first k."""
    return Figure(lambda b: first_hit(b, _cut(b, k)), lambda b: _tied(b, _cut(b, k), 1), k, k)


def true_recall(k: int) -> Figure:
    """The share of the R positives that is among the first k."""
    return Figure(lambda b: share_within(b, _cut(b, k), b.found), partial(_tied_to, k), k, k)


def precision(k: int) -> Figure:
    """The share of the first k that is positive."""
    return Figure(lambda b: share_within(b, _cut(b, k), _cut(b, k)), partial(_tied_to, k), k, k)


def r_precision() -> Figure:
    """The share of the first R that is positive."""
    return Figure(lambda b: share_within(b, b.found, b.found), lambda b: _tied(b, b.found), 0)


def map_at_r() -> Figure:
    """(1/R) Σ_{i ≤ R} P(i) · 1[the i-th is a positive]."""
    return Figure(lambda b: average_precision(b, b.found, b.found), lambda b: _tied(b, b.found), 0)


def map_at_k(k: int, by_r: bool) -> Figure:
    """(1/R) Σ_{i ≤ k} P(i) · 1[the i-th is a positive], or over min(k, R)."""

    def value(b: RankedBlock) -> Float[Tensor, " a"]:
        cut = _cut(b, k)
        return average_precision(b, cut, b.found if by_r else cut.minimum(b.found))

    return Figure(value, partial(_tied_to, k), k, k)


def mean_average(trapezoid: bool) -> Figure:
    """(1/R) Σ over all positives of the precision at each."""
    return Figure(lambda b: average_precision(b, None, b.found, trapezoid), lambda b: _tied(b), None)


def mrr() -> Figure:
    """1 over the rank of the first positive."""
    return Figure(first_rank, lambda b: _tied(b, None, 1), None)


def minp() -> Figure:
    """R over the rank of the last positive."""

    def tied(b: RankedBlock) -> Bool[Tensor, " a"]:
        nth = torch.arange(1, b.tied.shape[1] + 1, device=b.tied.device)
        return ((b.tied > 0) & (nth == b.found[:, None])).any(1)

    return Figure(last_rank, tied, None)


def _cut(block: RankedBlock, k: int) -> Int[Tensor, " a"]:
    """k of each query, at most the images that it is compared with; 1 where there are none."""
    return block.seen.clamp(1, k)


def _tied_to(k: int, block: RankedBlock) -> Bool[Tensor, " a"]:
    return _tied(block, _cut(block, k))


def _tied(
    block: RankedBlock, cut: Int[Tensor, " a"] | None = None, first: int | None = None
) -> Bool[Tensor, " a"]:
    """Whether one of the positives, or of the `first` ones, is tied with a negative, before `cut`."""
    tied = block.tied[:, :first] > 0
    if cut is not None:
        places = torch.arange(tied.shape[1], device=tied.device)
        tied &= block.before[:, :first] + places < cut[:, None]
    return tied.any(1)


def measured(queries: Queries, figures: Mapping[str, Figure]) -> dict[str, Score]:
    """The figures by name, from one search that is as deep as the deepest of them."""
    pairwise, count = queries.pairwise, len(queries.pairwise.labels)
    depths = [figure.depth for figure in figures.values()]
    depth = None if None in depths else max((each for each in depths if each), default=0)
    device = pairwise.labels.device
    shape, wide = (len(figures), count), widest_float(device)
    values = torch.full(shape, math.nan, dtype=wide, device=device)
    tied = torch.zeros(shape, dtype=torch.bool, device=device)
    seen = torch.zeros(count, dtype=torch.int64, device=device)
    for block in ranked_blocks(pairwise, depth, 0 in depths):
        some = block.found > 0
        seen[block.rows] = block.seen
        for i, figure in enumerate(figures.values()):
            values[i, block.rows] = figure.value(block).masked_fill(~some, math.nan)
            tied[i, block.rows] = figure.tied(block) & some
    values, tied, seen = values.cpu().double().numpy(), tied.cpu().numpy(), seen.cpu().numpy()
    return {
        name: score_of(queries, values[i], tied[i], 0 if figure.k is None else int((seen < figure.k).sum()))
        for i, (name, figure) in enumerate(figures.items())
    }


def score_of(queries: Queries, values: np.ndarray, tied: np.ndarray, clipped: int = 0) -> Score:
    """The mean over queries.

    Args:
        queries: which they are.
        values: float64 [q], NaN of a query that has nothing to find.
        tied: bool [q], whether the value depends on the order of images that are equally far.
        clipped: queries that were compared with fewer than k images.
    """
    has = ~np.isnan(values)
    left_out = int((~has).sum())
    if queries.zero:
        values, has = np.where(has, values, 0.0), np.ones_like(has)
    count = int(has.sum())
    every = np.full(queries.given, math.nan)
    every[queries.rows] = values
    return Score(
        float(values[has].mean()) if count else math.nan,
        count,
        0 if queries.zero else left_out,
        without_positives=left_out,
        tied=float(tied[has].mean()) if count else 0.0,
        clipped=clipped,
        values=every,
    )


def depths(caller: str, k: Any) -> tuple[list[int], bool]:
    """The numbers k, and whether there may be several."""
    several = isinstance(k, Iterable) and getattr(k, "ndim", 1) > 0
    ks = [as_int(caller, "k", each, minimum=1) for each in (k if several else [k])]
    if not ks:
        raise refusal(caller, "k", k, "one number or more")
    return ks, several


def by_depth(found: Mapping[str, Score], ks: list[int], several: bool) -> Score | dict[int, Score]:
    """The scores by k, or the only one."""
    return {k: found[str(k)] for k in ks} if several else found[str(ks[0])]
