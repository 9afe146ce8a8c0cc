"""Scores that mining went by, in bounded memory, and the thresholds that they suggest."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["ScoreSample", "SeenScores", "Suggested"]

_SAMPLED = 1 << 22  # scores that are kept of those that go by
_SHARE = 0.05  # of positives that are farther, and of candidates that may be nearer, where a window begins


class Suggested(NamedTuple):
    """Thresholds of about one strength: each refuses the candidates that are nearer than most positives are.

    bound = the 5 % quantile of the scores of positives: a candidate above it is nearer than 5 % of positives
    are to their anchors, and may be a positive itself. Margins refuse the same share of the candidates of
    pairs, and from `first_rank` on at most 5 % of candidates are above the bound.

    Args:
        looked_at: candidates, once an anchor.
        nearer: those above the bound.
        max_score: the bound.
        margin: for `margin=`; None where 0 already refuses more.
        relative_margin: for `relative_margin=`; None where 0 already refuses more.
        first_rank: for `ranks=(first_rank, …)`; None where candidates of every rank are as near.

    Example:
        >>> print(Suggested(20, 9, 0.5, 0.1, None, 3))
        9 of 20 candidates (45.00%) are nearer than 5% of positives: max_score=0.5, margin=0.1 or ranks from 3
    """

    looked_at: int
    nearer: int
    max_score: float
    margin: float | None
    relative_margin: float | None
    first_rank: int | None

    def __str__(self) -> str:
        share = self.nearer / max(1, self.looked_at)
        told = f"{self.nearer:,} of {self.looked_at:,} candidates ({share:.2%}) are nearer"
        told = f"{told} than {_SHARE:.0%} of positives"
        if not self.nearer:
            return f"{told}: no bound is needed"
        names = "max_score", "margin", "relative_margin"
        values = [(name, getattr(self, name)) for name in names]
        found = [f"{name}={value:.4g}" for name, value in values if value is not None]
        if self.first_rank is not None and self.first_rank > 1:
            found.append(f"ranks from {self.first_rank:,}")
        *others, last = found
        return f"{told}: {', '.join(others)}{' or ' if others else ''}{last}"


class ScoreSample:
    """Scores that are evenly spaced among all that go by, up to 2²² of them, whatever the blocks.

    Args:
        total: how many scores will go by.

    Example:
        >>> sample = ScoreSample(4)
        >>> sample.add(np.array([[1.0, 2.0]]))
        >>> sample.add(np.array([[3.0, 4.0]]))
        >>> sample.values.tolist()
        [1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, total: int) -> None:
        self._step = max(1, -(-total // _SAMPLED))
        self._passed = 0
        self._parts: list[np.ndarray] = []

    def add(self, scores: Float[np.ndarray, "a m"]) -> None:
        """Take some of a block of scores."""
        first = -self._passed % self._step
        self._parts.append(scores.ravel()[first :: self._step].astype(np.float32))
        self._passed += scores.size

    @property
    def values(self) -> Float[np.ndarray, " s"]:
        """float32 [s], in the order in which they went by."""
        return np.concatenate([np.empty(0, np.float32), *self._parts])


class SeenScores:
    """Scores of candidates: a sample, and how many of each rank are nearer than most positives.

    Args:
        own: scores of all pairs.
        anchors: how many anchors there are.
        depth: candidates of an anchor.

    Attributes:
        candidates: a sample of the scores of candidates, once an anchor.

    Example:
        >>> seen = SeenScores(np.array([0.5, 0.9]), 1, 3)
        >>> seen.add(np.array([[0.8, 0.4, -math.inf]]))
        >>> seen.add_pairs(np.array([0.5, 0.9]), np.array([[0.8, 0.4, -math.inf]] * 2))
        >>> found = seen.suggested()
        >>> found.looked_at, found.nearer, round(found.max_score, 2), found.first_rank
        (2, 1, 0.52, 2)
    """

    def __init__(self, own: Float[np.ndarray, " t"], anchors: int, depth: int) -> None:
        self._bound = float(np.quantile(own.astype(np.float64), _SHARE)) if len(own) else math.inf
        self.candidates = ScoreSample(anchors * depth)
        self._of_pairs, self._references = (ScoreSample(len(own) * depth) for _ in range(2))
        self._there = np.zeros(depth, dtype=np.int64)
        self._nearer = np.zeros(depth, dtype=np.int64)

    def add(self, scores: Float[np.ndarray, "a m"]) -> None:
        """Take the candidates of some anchors, nearest first; −inf where there are fewer."""
        self.candidates.add(scores)
        self._there += (scores > -math.inf).sum(0)
        self._nearer += (scores > self._bound).sum(0)

    def add_pairs(self, reference: Float[np.ndarray, " t"], scores: Float[np.ndarray, "t m"]) -> None:
        """Take the candidates of some pairs, with the scores that margins are taken from."""
        self._of_pairs.add(scores)
        self._references.add(np.broadcast_to(reference[:, None], scores.shape))

    def suggested(self) -> Suggested | None:
        """What the scores suggest; None where nothing was seen."""
        looked_at, nearer = int(self._there.sum()), int(self._nearer.sum())
        if not looked_at or not math.isfinite(self._bound):
            return None
        scores, references = (
            sample.values.astype(np.float64) for sample in (self._of_pairs, self._references)
        )
        references, scores = references[scores > -math.inf], scores[scores > -math.inf]
        gaps, size = references - scores, np.abs(references)
        behind = [counts[::-1].cumsum()[::-1] for counts in (self._nearer, self._there)]
        (few,) = np.nonzero(behind[0] <= _SHARE * behind[1])
        # Behind the last rank that has candidates there is nothing that a window could begin with.
        first = int(few[0]) + 1 if len(few) and self._there[few[0]] else None
        share = nearer / looked_at
        relative = gaps[size > 0] / size[size > 0]
        return Suggested(looked_at, nearer, self._bound, _least(gaps, share), _least(relative, share), first)


def _least(gaps: Float[np.ndarray, " s"], share: float) -> float | None:
    """The margin that refuses a share of the pairs with these gaps; None where that is below 0."""
    found = float(np.quantile(gaps, share)) if len(gaps) else -1.0
    return found if found >= 0 else None
