"""Mined pairs with their reserve lists, and what becomes of a negative that training has pushed away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.indices import Triplets
from tercet.offline.mined_triplets import MinedTriplets

__all__ = ["MinedPairs", "is_stale", "joined", "pairs_of", "replace_stale", "scores_now"]


class MinedPairs(NamedTuple):
    """The pairs of `MinedTriplets`, by anchor, without the account of how they were mined.

    Args:
        anchor: [u] rows, rising.
        positive: [u] rows.
        negatives: [u, k] rows; −1 where there is none.
        scores: [u, k] when they were mined; NaN where there is none.
        ranks: [u, k] from 1; 0 for a negative drawn at random from beyond the window.
        reserve: [u, m] the next candidates; −1 behind the last.
        reserve_scores: [u, m].
        reserve_ranks: [u, m].

    Example:
        >>> row = np.array([[3]]), np.array([[0.5]], np.float32), np.array([[1]])
        >>> pairs = MinedPairs(np.array([0]), np.array([1]), *row, *row)
        >>> pairs.triplets
        Triplets(anchor=array([0]), positive=array([1]), negative=array([3]))
    """

    anchor: Int64[np.ndarray, " u"]
    positive: Int64[np.ndarray, " u"]
    negatives: Int64[np.ndarray, "u k"]
    scores: Float[np.ndarray, "u k"]
    ranks: Int64[np.ndarray, "u k"]
    reserve: Int64[np.ndarray, "u m"]
    reserve_scores: Float[np.ndarray, "u m"]
    reserve_ranks: Int64[np.ndarray, "u m"]

    @property
    def triplets(self) -> Triplets:
        """Every (anchor, positive, negative), by pair and then in the order of choice."""
        pair, slot = np.nonzero(self.negatives >= 0)
        return Triplets(self.anchor[pair], self.positive[pair], self.negatives[pair, slot])

    def select(self, chosen: Bool[np.ndarray, " u"] | Int64[np.ndarray, " v"]) -> MinedPairs:
        """Some of the pairs, by a mask or by numbers."""
        return MinedPairs(*(column[chosen] for column in self))


def pairs_of(mined: MinedTriplets) -> MinedPairs:
    """The pairs of what `mine_hard_triplets` gives."""
    return MinedPairs(*(getattr(mined, name) for name in MinedPairs._fields))


def joined(first: MinedPairs, second: MinedPairs) -> MinedPairs:
    """Pairs of other anchors, by anchor.

    Args:
        first, second: pairs with as many negatives and as long reserve lists.
    """
    both = MinedPairs(*(np.concatenate(columns) for columns in zip(first, second, strict=True)))
    return both.select(np.argsort(both.anchor, kind="stable"))


def scores_now(
    pairs: MinedPairs, score_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Float[np.ndarray, "u k"]:
    """The scores that the negatives have by now; NaN where there is none.

    Args:
        pairs: the pairs.
        score_of: scores [t] of rows [t] and rows [t].
    """
    now = np.full(pairs.negatives.shape, np.nan, dtype=np.float32)
    there = pairs.negatives >= 0
    anchors = np.broadcast_to(pairs.anchor[:, None], there.shape)
    now[there] = score_of(anchors[there], pairs.negatives[there])
    return now


def is_stale(pairs: MinedPairs, now: Float[np.ndarray, "u k"], factor: float) -> Bool[np.ndarray, "u k"]:
    """Which negatives have lost so much of their score that training gains little from them.

        s + |s| · (factor − 1) < s when mined,  which is s · factor < s when mined where s is above 0

    The form with |s| holds for scores below 0 too, which are negative distances. A negative without a rank,
    drawn at random from beyond the rank window, never counts as stale: it was not chosen for its score.

    Args:
        pairs: the pairs.
        now: their scores by now.
        factor: above 1.

    Example:
        >>> row = np.array([[3, 4]]), np.array([[0.8, 0.8]], np.float32), np.array([[1, 2]])
        >>> pairs = MinedPairs(np.array([0]), np.array([1]), *row, *row)
        >>> is_stale(pairs, np.array([[0.69, 0.7]], np.float32), 1.15).tolist()
        [[True, False]]
    """
    mined = pairs.scores.astype(np.float64)
    score = now.astype(np.float64)
    return (pairs.ranks > 0) & (score + np.abs(score) * (factor - 1) < mined)


def replace_stale(
    pairs: MinedPairs, stale: Bool[np.ndarray, "u k"]
) -> tuple[MinedPairs, Bool[np.ndarray, "u k"]]:
    """The pairs with the next candidates of the reserve lists in place of stale negatives.

    The first stale negative of a pair gets the first candidate, and so on; those that the list is too short
    for stay.

    Args:
        pairs: the pairs.
        stale: which negatives to replace.

    Returns:
        New pairs, whose reserve lists are shorter, and which negatives were replaced.

    Example:
        >>> row = np.array([[3, 4]]), np.array([[0.8, 0.7]], np.float32), np.array([[1, 2]])
        >>> spare = np.array([[5]]), np.array([[0.6]], np.float32), np.array([[3]])
        >>> pairs = MinedPairs(np.array([0]), np.array([1]), *row, *spare)
        >>> new, replaced = replace_stale(pairs, np.array([[True, True]]))
        >>> new.negatives.tolist(), new.reserve.tolist(), replaced.tolist()
        ([[5, 4]], [[-1]], [[True, False]])
    """
    nth = np.cumsum(stale, axis=1) - 1  # [u, k] which candidate each stale negative gets
    taken = stale & (nth < (pairs.reserve >= 0).sum(1)[:, None])
    used = taken.sum(1)[:, None]  # [u, 1]
    left = np.arange(pairs.reserve.shape[1]) + used  # [u, m]

    def moved(negatives: np.ndarray, reserve: np.ndarray, nothing: Any) -> tuple[np.ndarray, np.ndarray]:
        u, m = reserve.shape
        longer = np.concatenate([reserve, np.full((u, 1), nothing, reserve.dtype)], axis=1)  # [u, m + 1]
        chosen = np.take_along_axis(longer, np.clip(nth, 0, m), 1)
        rest = np.take_along_axis(longer, np.minimum(left, m), 1)
        return np.where(taken, chosen, negatives), rest

    rows = moved(pairs.negatives, pairs.reserve, -1)
    scores = moved(pairs.scores, pairs.reserve_scores, np.nan)
    ranks = moved(pairs.ranks, pairs.reserve_ranks, 0)
    first, second = zip(rows, scores, ranks, strict=True)
    return MinedPairs(pairs.anchor, pairs.positive, *first, *second), taken
