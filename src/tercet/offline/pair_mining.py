"""The negatives of some (anchor, positive) pairs, from the candidates near their anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from tercet.core.randomness import derive_key, keyed_bits, keyed_uniform
from tercet.offline.filters import Candidates, Limits, Reason, judge, refuse
from tercet.offline.random_negatives import Forbidden, draw_negatives
from tercet.offline.selection import Strategy, first_of_each_class, selection_order

__all__ = ["SHORT", "Chosen", "PairBlock", "PairMiner", "Rules"]

SHORT = ("keep", "drop", "relax", "random", "error")
# What `on_short="relax"` takes back: bounds, and no fact about an image.
_RELAXED = (
    Reason.MAX_SCORE,
    Reason.QUANTILE,
    Reason.MIN_SCORE,
    Reason.HARDER_THAN_POSITIVE,
    Reason.MARGIN,
    Reason.RELATIVE_MARGIN,
    Reason.TEACHER,
    Reason.CLASS_USED,
)


class PairBlock(NamedTuple):
    """Pairs with the scores that their negatives are measured by.

    Args:
        anchor: [t] rows.
        positive: [t] rows.
        own: [t] the score of each pair.
        reference: [t] the score that margins are taken from.
    """

    anchor: Int64[np.ndarray, " t"]
    positive: Int64[np.ndarray, " t"]
    own: Float[np.ndarray, " t"]
    reference: Float[np.ndarray, " t"]


class Chosen(NamedTuple):
    """Negatives of pairs, and the reasons of everything else.

    Args:
        rows: [t, k] rows; −1 where there are fewer.
        scores: [t, k]; NaN where there is none.
        ranks: [t, k] from 1, nearest first; 0 for one drawn from outside of the candidates.
        reserve: [t, r] further rows in the order of the strategy; −1 where there are fewer.
        reserve_scores: [t, r].
        reserve_ranks: [t, r].
        reasons: [t, m] of the candidates.
        alone: [t, m] candidates that one filter alone refuses.
        outside: negatives drawn from outside of the candidates.
        short: [t] whether too few were found, before `on_short`.
        relaxed: how many were taken in spite of a filter.
        drawn: how many were drawn at random.
    """

    rows: Int64[np.ndarray, "t k"]
    scores: Float[np.ndarray, "t k"]
    ranks: Int64[np.ndarray, "t k"]
    reserve: Int64[np.ndarray, "t r"]
    reserve_scores: Float[np.ndarray, "t r"]
    reserve_ranks: Int64[np.ndarray, "t r"]
    reasons: UInt8[np.ndarray, "t m"]
    alone: Bool[np.ndarray, "t m"]
    outside: Int64[np.ndarray, " t"]
    short: Bool[np.ndarray, " t"]
    relaxed: int
    drawn: int


class Rules(NamedTuple):
    """How negatives are chosen, whatever the collection.

    Args:
        limits: bounds on scores.
        first_rank: the nearest rank that may be chosen.
        strategy: in which order.
        negatives: k, for each pair.
        reserve: r further candidates.
        uniform: the share of negatives that are drawn from the whole collection.
        on_short: what a pair with too few negatives gets, one of `SHORT`.
        per_class: at most so many of one class or cluster; None for any number.
        teacher_margin: a negative's teacher score is at most the positive's, less this.
    """

    limits: Limits
    first_rank: int
    strategy: Strategy
    negatives: int
    reserve: int
    uniform: float
    on_short: str
    per_class: int | None
    teacher_margin: float


@dataclass(frozen=True)
class PairMiner:
    """Rules, applied to blocks of pairs of one collection.

    Args:
        rules: how negatives are chosen.
        bound: the score of `rules.limits.max_quantile`; inf where it is off.
        kinds: [n] the class or cluster that `rules.per_class` counts.
        teacher: scores of (rows, rows) by a second opinion, or None.
        set_aside: functions (rows, rows) → bool by their reason: verdicts and suspects.
        forbidden: what may not be drawn.
        measure: scores of (rows, rows), for what is drawn.
    """

    rules: Rules
    bound: float
    kinds: Int64[np.ndarray, " n"]
    teacher: Callable[[Any, Any], Any] | None
    set_aside: Mapping[Reason, Callable[[Any, Any], Any]]
    forbidden: Forbidden
    measure: Callable[[Any, Any], Any]

    def mine(self, pairs: PairBlock, candidates: Candidates) -> Chosen:
        """The negatives of a block of pairs.

        Args:
            pairs: t pairs.
            candidates: of each pair's anchor, [t, m].
        """
        reasons, times = self._judged(pairs, candidates)
        order, allowed = self._ordered(pairs, candidates, reasons)
        count, k = allowed.sum(1), self.rules.negatives
        to_draw = self._slots_to_draw(pairs)
        wanted = k - to_draw
        short = count < wanted
        taken = np.minimum(count, wanted)
        relaxed = 0
        if self.rules.on_short == "relax" and short.any():
            before = int(taken.sum())
            order, taken = _with_relaxed(order, reasons, taken, wanted)
            relaxed = int(taken.sum()) - before
        places = _first(order, taken, k)
        rows = _at(candidates.rows, places, -1)
        _mark(reasons, places, Reason.CHOSEN)
        slots = np.arange(k)
        empty = (slots >= wanted[:, None]) | ((rows < 0) if self.rules.on_short == "random" else False)
        rows, places, outside = self._drawn(pairs, candidates, reasons, rows, places, empty)
        _mark(reasons, places, Reason.CHOSEN)
        kept = np.take_along_axis(reasons, order, 1) == Reason.NOT_NEEDED
        left = np.take_along_axis(order, np.argsort(~kept, axis=1, kind="stable"), 1)
        spare = _first(left, np.minimum(kept.sum(1), self.rules.reserve), self.rules.reserve)
        _mark(reasons, spare, Reason.RESERVE)
        scores = _at(candidates.scores, places, np.nan).astype(np.float32)
        far = (rows >= 0) & (places < 0)
        if far.any():
            anchors = np.broadcast_to(pairs.anchor[:, None], rows.shape)
            scores[far] = self.measure(anchors[far], rows[far])
        return Chosen(
            rows,
            scores,
            np.where(places >= 0, places + 1, 0),
            _at(candidates.rows, spare, -1),
            _at(candidates.scores, spare, np.nan).astype(np.float32),
            np.where(spare >= 0, spare + 1, 0),
            reasons,
            times <= 1,
            outside,
            short,
            relaxed,
            int((empty & (rows >= 0)).sum()),
        )

    def _judged(
        self, pairs: PairBlock, candidates: Candidates
    ) -> tuple[UInt8[np.ndarray, "t m"], UInt8[np.ndarray, "t m"]]:
        """The reason of each candidate so far, and how many filters refuse it before the teacher is asked."""
        there = candidates.rows >= 0
        anchors = np.broadcast_to(pairs.anchor[:, None], there.shape)
        aside = {}
        for reason, is_aside in self.set_aside.items():
            aside[reason] = there & is_aside(anchors, np.maximum(candidates.rows, 0))
        reasons, times = judge(
            candidates,
            pairs.own,
            pairs.reference,
            self.rules.limits,
            self.bound,
            self.rules.first_rank,
            aside,
        )
        reasons[~there] = Reason.BEHIND_WINDOW  # no candidate at all: these are counted elsewhere
        if self.teacher is not None:
            allowed = reasons == Reason.NOT_NEEDED
            near = np.zeros(allowed.shape, dtype=bool)
            most = self.teacher(pairs.anchor, pairs.positive) - self.rules.teacher_margin
            at, _ = np.nonzero(allowed)
            near[allowed] = self.teacher(pairs.anchor[at], candidates.rows[allowed]) > most[at]
            refuse(reasons, near, Reason.TEACHER)
        return reasons, times

    def _ordered(
        self, pairs: PairBlock, candidates: Candidates, reasons: UInt8[np.ndarray, "t m"]
    ) -> tuple[Int64[np.ndarray, "t m"], Bool[np.ndarray, "t m"]]:
        """Places of candidates in the order of the strategy, the allowed first; which are allowed."""
        allowed = reasons == Reason.NOT_NEEDED
        rows, scores = candidates.rows, candidates.scores
        order = selection_order(
            self.rules.strategy, pairs.anchor, pairs.positive, rows, scores, pairs.own, allowed
        )
        if self.rules.per_class is not None:
            kinds = self.kinds[np.maximum(rows, 0)]
            first = first_of_each_class(kinds, order, allowed, self.rules.per_class)
            refuse(reasons, ~first, Reason.CLASS_USED)
            allowed = first
            still = np.take_along_axis(allowed, order, 1)
            order = np.take_along_axis(order, np.argsort(~still, axis=1, kind="stable"), 1)
        return order, allowed

    def _slots_to_draw(self, pairs: PairBlock) -> Int64[np.ndarray, " t"]:
        """How many negatives of each pair are drawn, each with probability `uniform`."""
        if not self.rules.uniform:
            return np.zeros(len(pairs.anchor), dtype=np.int64)
        key = keyed_bits(derive_key("uniform share", self.rules.strategy.seed), pairs.anchor)
        key = keyed_bits(key, pairs.positive)[:, None]
        return (keyed_uniform(key, np.arange(self.rules.negatives)[None]) < self.rules.uniform).sum(1)

    def _drawn(
        self,
        pairs: PairBlock,
        candidates: Candidates,
        reasons: UInt8[np.ndarray, "t m"],
        rows: Int64[np.ndarray, "t k"],
        places: Int64[np.ndarray, "t k"],
        empty: Bool[np.ndarray, "t k"],
    ) -> tuple[Int64[np.ndarray, "t k"], Int64[np.ndarray, "t k"], Int64[np.ndarray, " t"]]:
        """The negatives with empty ones drawn, their places among the candidates, and how many have none."""
        outside = np.zeros(len(rows), dtype=np.int64)
        (some,) = np.nonzero(empty.any(1))
        if not len(some):
            return rows, places, outside
        rows, places = rows.copy(), places.copy()
        refused = np.where(reasons[some] == Reason.NOT_NEEDED, -1, candidates.rows[some])
        anchor, positive = pairs.anchor[some], pairs.positive[some]
        rows[some] = draw_negatives(
            self.rules.strategy.seed, anchor, positive, rows[some], empty[some], refused, self.forbidden
        )
        for slot in range(rows.shape[1]):
            found = candidates.rows[some] == rows[some, slot, None]  # [s, m]
            at = np.where(found.any(1), found.argmax(1), -1)
            drawn = empty[some, slot] & (rows[some, slot] >= 0)
            places[some, slot] = np.where(drawn, at, places[some, slot])
            outside[some] += drawn & (at < 0)
        return rows, places, outside


def _with_relaxed(
    order: Int64[np.ndarray, "t m"],
    reasons: UInt8[np.ndarray, "t m"],
    taken: Int64[np.ndarray, " t"],
    wanted: Int64[np.ndarray, " t"],
) -> tuple[Int64[np.ndarray, "t m"], Int64[np.ndarray, " t"]]:
    """The order with candidates that a bound refused behind the allowed ones, the farthest of them first."""
    m = reasons.shape[1]
    refused = np.isin(reasons, [int(reason) for reason in _RELAXED])
    allowed = reasons == Reason.NOT_NEEDED
    place = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(m), order.shape), 1)
    key = np.where(allowed, place, np.where(refused, 2 * m - np.arange(m), 3 * m))
    count = np.minimum(allowed.sum(1) + refused.sum(1), wanted)
    return np.argsort(key, axis=1, kind="stable"), np.maximum(taken, count)


def _first(
    order: Int64[np.ndarray, "t m"], count: Int64[np.ndarray, " t"], k: int
) -> Int64[np.ndarray, "t k"]:
    """The first `count` places of each row in k columns, then −1."""
    places = np.full((len(order), k), -1, dtype=np.int64)
    width = min(k, order.shape[1])
    places[:, :width] = np.where(np.arange(width) < count[:, None], order[:, :width], -1)
    return places


def _at(table: np.ndarray, places: Int64[np.ndarray, "t k"], nothing: float) -> np.ndarray:
    """The entries at some places of each row, `nothing` at −1."""
    if not table.shape[1]:
        return np.full(places.shape, nothing, dtype=table.dtype)
    return np.where(
        places >= 0, np.take_along_axis(table, np.maximum(places, 0), 1), table.dtype.type(nothing)
    )


def _mark(reasons: UInt8[np.ndarray, "t m"], places: Int64[np.ndarray, "t k"], reason: Reason) -> None:
    """Give the candidates at some places of each row a reason, in place; −1 is no place."""
    at, slot = np.nonzero(places >= 0)
    reasons[at, places[at, slot]] = reason
