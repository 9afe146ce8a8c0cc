"""Which candidates may be negatives of an anchor and its positive: each that may not has one reason.

A score is a similarity: 1 − D under `cosine`, else −D. So "harder" is a larger score, under every distance.
The filters are asked in the order of `Reason`, and the first that refuses a candidate is its reason: the
counts of all reasons add up to the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from tercet.core.checks import Refusal, as_choice, as_float

__all__ = [
    "FILTERS",
    "REFERENCES",
    "Candidates",
    "Limits",
    "Reason",
    "as_limits",
    "judge",
    "refuse",
    "scores_of",
]

REFERENCES = ("own", "min", "mean", "max")


class Reason(IntEnum):
    """Why a row of the collection is, or is not, a negative of an anchor and positive."""

    CHOSEN = 0
    RESERVE = 1
    NOT_NEEDED = 2
    SELF = 3
    CLASS = 4
    GROUP = 5
    DUPLICATE = 6
    VERDICT = 7
    SUSPECT = 8
    BEFORE_WINDOW = 9
    BEHIND_WINDOW = 10
    MAX_SCORE = 11
    QUANTILE = 12
    MIN_SCORE = 13
    HARDER_THAN_POSITIVE = 14
    MARGIN = 15
    RELATIVE_MARGIN = 16
    TEACHER = 17
    CLASS_USED = 18
    SHORT_PAIR = 19

    @property
    def text(self) -> str:
        """The reason in words."""
        return _TEXTS[self]


_TEXTS = {
    Reason.CHOSEN: "chosen",
    Reason.RESERVE: "kept in reserve",
    Reason.NOT_NEEDED: "allowed, not needed",
    Reason.SELF: "the anchor itself",
    Reason.CLASS: "of the anchor's class",
    Reason.GROUP: "of the anchor's group, or the same image",
    Reason.DUPLICATE: "a duplicate of the anchor (distance 0)",
    Reason.VERDICT: "a person's verdict",
    Reason.SUSPECT: "suspected of the anchor's class, set aside",
    Reason.BEFORE_WINDOW: "nearer than the rank window",
    Reason.BEHIND_WINDOW: "farther than the rank window",
    Reason.MAX_SCORE: "score above max_score",
    Reason.QUANTILE: "score above max_quantile of positives",
    Reason.MIN_SCORE: "score below min_score",
    Reason.HARDER_THAN_POSITIVE: "not farther than the positive (semi-hard)",
    Reason.MARGIN: "within margin of the positive",
    Reason.RELATIVE_MARGIN: "within relative_margin of the positive",
    Reason.TEACHER: "too near for the teacher",
    Reason.CLASS_USED: "its class already has per_class negatives",
    Reason.SHORT_PAIR: "of pairs dropped as too short",
}


# What an option decides of candidates that are looked at: lifted, each lets more of them through.
FILTERS = (
    Reason.VERDICT,
    Reason.SUSPECT,
    Reason.BEFORE_WINDOW,
    Reason.MAX_SCORE,
    Reason.QUANTILE,
    Reason.MIN_SCORE,
    Reason.HARDER_THAN_POSITIVE,
    Reason.MARGIN,
    Reason.RELATIVE_MARGIN,
    Reason.TEACHER,
    Reason.CLASS_USED,
)


class Limits(NamedTuple):
    """Bounds on the scores of negatives; None or an infinite bound is off.

    Args:
        max_score: a negative's score is at most this.
        max_quantile: at most the score of this bound, a quantile of the scores of positives.
        min_score: at least this.
        semi_hard: below the positive's score.
        margin: at most the reference's score − margin.
        relative_margin: at most s − |s| · relative_margin of the reference's score s.
        reference: the positive's own score, or the min, mean or max of the anchor's positives.
    """

    max_score: float = math.inf
    max_quantile: float | None = None
    min_score: float = -math.inf
    semi_hard: bool = False
    margin: float | None = None
    relative_margin: float | None = None
    reference: str = "own"


class Candidates(NamedTuple):
    """The negatives of pairs that are looked at, nearest first.

    Args:
        rows: [t, m] rows of the collection; −1 where there are fewer.
        scores: [t, m]; −inf where there are fewer.
        duplicate: [t, m], whether the distance is 0.
    """

    rows: Int64[np.ndarray, "t m"]
    scores: Float[np.ndarray, "t m"]
    duplicate: Bool[np.ndarray, "t m"]


def as_limits(**given: Any) -> Limits:
    """Checked bounds, by the names of `Limits`.

    Raises:
        ValueError: no number, out of range, or `min_score` above `max_score`.
    """
    checked = dict(given)
    for name in ("max_score", "min_score"):
        default = Limits._field_defaults[name]
        checked[name] = default if given[name] is None else as_float(None, name, given[name])
    for name, most in (("max_quantile", 1), ("margin", math.inf), ("relative_margin", math.inf)):
        if given[name] is not None:
            checked[name] = as_float(None, name, given[name], 0, most)
    checked["reference"] = as_choice(None, "reference", given["reference"], REFERENCES)
    limits = Limits(**checked)
    if limits.min_score > limits.max_score:
        raise Refusal("min_score", limits.min_score, f"at most max_score={limits.max_score}")
    return limits


def scores_of(distances: Float[np.ndarray, "..."], is_cosine: bool) -> Float[np.ndarray, "..."]:
    """Scores of distances: 1 − D under `cosine`, else −D; −inf where D is inf."""
    return 1 - distances if is_cosine else -distances


def judge(
    candidates: Candidates,
    own: Float[np.ndarray, " t"],
    reference: Float[np.ndarray, " t"],
    limits: Limits,
    bound: float,
    first_rank: int,
    set_aside: Mapping[Reason, Bool[np.ndarray, "t m"]] | None = None,
) -> tuple[UInt8[np.ndarray, "t m"], UInt8[np.ndarray, "t m"]]:
    """The `Reason` of each candidate so far, NOT_NEEDED for all that may be chosen, and how many refuse it.

    Args:
        candidates: of t pairs; the first has rank 1.
        own: the score of each pair's positive.
        reference: the score that the margins are taken from.
        limits: the bounds.
        bound: the score of `limits.max_quantile`; inf where it is off.
        first_rank: candidates of a lower rank are nearer than the window.
        set_aside: candidates that a verdict or a suspicion excludes, by that reason.

    Example:
        >>> found = Candidates(np.array([[5, 7]]), np.array([[0.9, 0.2]]), np.zeros((1, 2), bool))
        >>> s = np.array([0.8])
        >>> reasons, refusals = judge(found, s, s, Limits(margin=0.1, max_score=0.85), math.inf, 1)
        >>> [Reason(each).text for each in reasons[0]], refusals.tolist()
        (['score above max_score', 'allowed, not needed'], [[2, 0]])
    """
    scores, p, s = candidates.scores, own[:, None], reference[:, None]
    reasons = np.full(scores.shape, Reason.NOT_NEEDED, dtype=np.uint8)
    refusals = {
        Reason.DUPLICATE: candidates.duplicate,
        **(set_aside or {}),
        Reason.BEFORE_WINDOW: np.arange(1, scores.shape[1] + 1)[None] < first_rank,
        Reason.MAX_SCORE: scores > limits.max_score,
        Reason.QUANTILE: scores > bound,
        Reason.MIN_SCORE: scores < limits.min_score,
    }
    if limits.semi_hard:
        refusals[Reason.HARDER_THAN_POSITIVE] = scores >= p
    if limits.margin is not None:
        refusals[Reason.MARGIN] = scores > s - limits.margin
    if limits.relative_margin is not None:
        refusals[Reason.RELATIVE_MARGIN] = scores > s - np.abs(s) * limits.relative_margin
    times = np.zeros(scores.shape, dtype=np.uint8)
    for reason, refused in refusals.items():
        refuse(reasons, refused, reason)
        times += refused
    return reasons, times


def refuse(reasons: UInt8[np.ndarray, "t m"], refused: Bool[np.ndarray, "_ m"], reason: Reason) -> None:
    """Give candidates that may still be chosen a reason why not, in place."""
    reasons[(reasons == Reason.NOT_NEEDED) & refused] = reason
