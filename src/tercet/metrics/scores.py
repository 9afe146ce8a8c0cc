"""Result types: a figure is a float that carries its counts."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Score", "TripletScore"]


class Score(float):
    """A mean over queries that knows what it is a mean of. It is a float wherever a float is wanted.

    Args:
        value: the mean; NaN where no query was left.
        queries: how many queries the mean is over.
        left_out: how many were left out, having no other image of their class to find.
        without_positives: how many have nothing to find: those that are left out, or that count as 0.
        tied: the share of the queries whose value depends on the order of images that are equally far; it is
            the expected value over these orders. Distances are compared in the precision of the embeddings:
            far down a long ranking some are equal in float32 that float64 tells apart.
        clipped: how many queries were compared with fewer images than the k that was asked for.
        values: float64 [n], the value of each row that was given, NaN where it is not counted; None where
            they are not kept.

    Example:
        >>> score = Score(0.5, queries=8, left_out=1)
        >>> score, score + 1, score.left_out
        (0.5, 1.5, 1)
    """

    queries: int
    left_out: int
    without_positives: int
    tied: float
    clipped: int
    values: np.ndarray | None

    def __new__(
        cls,
        value: float,
        queries: int,
        left_out: int,
        without_positives: int | None = None,
        tied: float = 0.0,
        clipped: int = 0,
        values: np.ndarray | None = None,
    ) -> Score:
        self = super().__new__(cls, value)
        self.queries = queries
        self.left_out = left_out
        self.without_positives = left_out if without_positives is None else without_positives
        self.tied = tied
        self.clipped = clipped
        self.values = values
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (
            float(self),
            self.queries,
            self.left_out,
            self.without_positives,
            self.tied,
            self.clipped,
            self.values,
        )


class TripletScore(float):
    """A number over triplets that knows how many there were. It is a float wherever a float is wanted.

    Args:
        value: the number.
        correct: how many of the counted triplets have D(q, p⁺) < D(q, p⁻).
        counted: how many triplets the number is over.
        triplets: how many were given.

    Example:
        >>> score = TripletScore(0.75, correct=3, counted=4, triplets=4)
        >>> score, score.counted - score.correct
        (0.75, 1)
    """

    correct: int
    counted: int
    triplets: int

    def __new__(cls, value: float, correct: int, counted: int, triplets: int) -> TripletScore:
        self = super().__new__(cls, value)
        self.correct = correct
        self.counted = counted
        self.triplets = triplets
        return self

    def __getnewargs__(self) -> tuple[float, int, int, int]:
        return float(self), self.correct, self.counted, self.triplets
