"""Figures of ranked queries: the expected value over the orders of equally distant images.

Each function takes a `RankedBlock` and gives a number a query. Where no positive is tied with a negative, the
i-th positive, i from 1, has rank i + before, and a figure is what its definition says. A *tie* has s images
before it, and t in it, of which m are positives; its t! orders are equally likely. Then, for its places
j = 1 … t:

- a positive stands at place j with probability 1/t, and given that, (j − 1)(m − 1)/(t − 1) other positives
  stand before it on average;
- no positive stands among the first J places with probability Π_{u<J} (t − m − u)/(t − u);
- the first positive stands at place j with probability p_1 = m/t, p_{j+1} = p_j (t − m − j + 1)/(t − j), and
  the last one at place t + 1 − j with the same.

Reference:
    McSherry & Najork, "Computing information retrieval performance measures efficiently in the presence of
    tied scores", 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.metrics.ranks import RankedBlock
from tercet.neighbors.blocks import split_rows
from tercet.pairwise.masked import true_places
from tercet.pairwise.torch_modes import widest_float

__all__ = ["Figure", "average_precision", "first_hit", "first_rank", "last_rank", "share_within"]

Figure: TypeAlias = Callable[[RankedBlock], Float[Tensor, " a"]]
"""A number for each query of a block; anything where it has no positive."""


class _Ties(NamedTuple):
    """Each tied positive: its place in the tables, and s, t, m, and the positives before the tie; [u]."""

    row: Int[Tensor, " u"]
    place: Int[Tensor, " u"]
    start: Int[Tensor, " u"]
    size: Int[Tensor, " u"]
    mates: Int[Tensor, " u"]
    ahead: Int[Tensor, " u"]


def _ties(block: RankedBlock) -> _Ties:
    row, place = true_places(block.tied > 0)
    before, tied = block.before[row, place], block.tied[row, place]
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = (row[1:] != row[:-1]) | (before[1:] != before[:-1])
    tie = new.long().cumsum(0) - 1
    mates = torch.bincount(tie)[tie] if len(tie) else tie
    ahead = place[new][tie]
    return _Ties(row, place, ahead + before, mates + tied, mates, ahead)


def _ranks(block: RankedBlock) -> Int[Tensor, "a w"]:
    """The rank of each positive by itself, where it is in no tie."""
    return block.before + torch.arange(1, block.before.shape[1] + 1, device=block.before.device)


def _zeros(block: RankedBlock) -> Float[Tensor, "a w"]:
    return torch.zeros(
        block.before.shape, dtype=widest_float(block.before.device), device=block.before.device
    )


def share_within(block: RankedBlock, cut: Int[Tensor, " a"], of: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
    """How many positives stand among the first `cut` results, as a share of `of`."""
    value = (_ranks(block) <= cut[:, None]).to(widest_float(cut.device))
    t = _ties(block)
    if len(t.row):
        inside = (cut[t.row] - t.start).clamp(min=0).minimum(t.size)
        value[t.row, t.place] = inside.to(value.dtype) / t.size
    return value.sum(1) / of


def first_hit(block: RankedBlock, cut: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
    """The probability that any positive stands among the first `cut` results."""
    value = _zeros(block)[:, :1] + (_ranks(block)[:, :1] <= cut[:, None])
    t = _first_ties(block)
    if len(t.row):
        places = (cut[t.row] - t.start).clamp(min=0).minimum(t.size)
        few, many = places.minimum(t.mates), places.maximum(t.mates)  # none of m in J, or none of J in m
        none = torch.ones(len(few), dtype=value.dtype, device=value.device)
        for u in range(int(few.max())):
            left = (t.size - many - u).clamp(min=0).to(none.dtype) / (t.size - u).clamp(min=1)
            none = torch.where(u < few, none * left, none)
        value[t.row, 0] = 1 - none
    return value.sum(1)


def average_precision(
    block: RankedBlock, cut: Int[Tensor, " a"] | None, of: Int[Tensor, " a"], trapezoid: bool = False
) -> Float[Tensor, " a"]:
    """The sum over the positives among the first `cut` results of the precision at each, over `of`.

    Args:
        block: the queries.
        cut: results that are looked at; None for all.
        of: what the sum is divided by.
        trapezoid: take the mean of the precision at the positive and at the result before it, 1 before the
            first; without `cut`.
    """
    ranks, wide = _ranks(block), widest_float(block.before.device)
    nth = torch.arange(1, ranks.shape[1] + 1, dtype=wide, device=ranks.device)
    value = nth / ranks
    if trapezoid:
        earlier = torch.where(ranks > 1, (nth - 1) / (ranks - 1).clamp(min=1), 1)
        value = (value + earlier) / 2
    limit = block.found if cut is None else cut
    value.masked_fill_(nth > block.found[:, None] if cut is None else ranks > limit[:, None], 0)
    t = _ties(block)
    if len(t.row):
        start, size = t.start.to(wide), t.size.to(wide)
        places = size if cut is None else (cut[t.row] - t.start).clamp(min=0).minimum(t.size).to(wide)
        slope = (t.mates - 1) / (size - 1).clamp(min=1)
        steps = _harmonic(start + places) - _harmonic(start)
        tied = (t.ahead + 1) * steps + slope * (places - (start + 1) * steps)
        if trapezoid:
            steps = _harmonic(start + size - 1) - _harmonic(start - 1)
            earlier = t.ahead * steps + slope * (size - start * steps)
            tied = (tied + torch.where(start > 0, earlier, t.mates.to(wide))) / 2
        value[t.row, t.place] = tied / size
    return value.sum(1) / of


def first_rank(block: RankedBlock) -> Float[Tensor, " a"]:
    """1 over the rank of the first positive."""
    value = 1 / (_zeros(block)[:, :1] + _ranks(block)[:, :1])
    t = _first_ties(block)
    if len(t.row):
        value[t.row, 0] = _mean_reciprocal(t, t.start + 1, 1)
    return value.sum(1)


def last_rank(block: RankedBlock) -> Float[Tensor, " a"]:
    """R over the rank of the last positive."""
    value = _zeros(block)[:, :1]
    if not value.shape[1]:
        return value.sum(1)
    at = (block.found - 1).clamp(min=0)[:, None]
    value += block.found[:, None].to(value.dtype) / _ranks(block).gather(1, at)
    t = _ties(block)
    last = t.place + 1 == block.found[t.row]
    t = _Ties(*(each[last] for each in t))
    if len(t.row):
        value[t.row, 0] = block.found[t.row] * _mean_reciprocal(t, t.start + t.size, -1)
    return value.sum(1)


def _first_ties(block: RankedBlock) -> _Ties:
    """The tie of the first positive of each row that has one."""
    t = _ties(block)
    first = t.place == 0
    return _Ties(*(each[first] for each in t))


def _mean_reciprocal(t: _Ties, rank: Int[Tensor, " u"], step: int) -> Float[Tensor, " u"]:
    """The mean of 1/rank of a tie's first positive, counted from `rank` on by `step`."""
    wide = widest_float(rank.device)
    value = torch.empty(len(rank), dtype=wide, device=rank.device)
    most = int((t.size - t.mates).max()) + 1
    places = torch.arange(most, device=rank.device)  # j − 1
    for (some,) in split_rows(4 * most, torch.arange(len(rank), device=rank.device)):
        size, mates = t.size[some, None].to(wide), t.mates[some, None].to(wide)
        ratio = (size - mates - places + 1).clamp(min=0) / (size - places).clamp(min=1)  # p_j / p_{j−1}
        ratio[:, 0] = (mates / size)[:, 0]
        ranks = (rank[some, None] + step * places).clamp(min=1)
        value[some] = (ratio.cumprod(1) / ranks).sum(1)
    return value


def _harmonic(n: Float[Tensor, " u"]) -> Float[Tensor, " u"]:
    """1 + 1/2 + … + 1/n, up to a constant."""
    return torch.special.digamma(n + 1)
