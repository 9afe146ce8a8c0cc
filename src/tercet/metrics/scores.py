"""Result types: a figure is a float that carries its counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["Evaluation", "Score", "TripletScore"]


class Score(float):
    """A mean over queries that knows how many there were. It is a float wherever a float is wanted.

    Args:
        value: the mean; NaN where no query was left.
        queries: how many queries the mean is over.
        left_out: how many were left out, having no other image of their class to find.

    Example:
        >>> score = Score(0.5, queries=8, left_out=1)
        >>> score, score + 1, score.left_out
        (0.5, 1.5, 1)
    """

    queries: int
    left_out: int

    def __new__(cls, value: float, queries: int, left_out: int) -> Score:
        self = super().__new__(cls, value)
        self.queries = queries
        self.left_out = left_out
        return self

    def __getnewargs__(self) -> tuple[float, int, int]:
        return float(self), self.queries, self.left_out


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


class Evaluation(Mapping[str, Score]):
    """Figures of one evaluation by name, each a `Score`; printed, they are a table.

    Args:
        figures: the scores by name, all over the same queries, in the order in which they are shown.

    Example:
        >>> found = Evaluation({"Recall@1": Score(0.5, queries=8, left_out=1)})
        >>> found["Recall@1"], list(found)
        (0.5, ['Recall@1'])
        >>> print(found)
        Recall@1  0.500
        8 queries, 1 left out: no other image of their class
    """

    def __init__(self, figures: Mapping[str, Score]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> Score:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"Evaluation({self._figures})"

    def __str__(self) -> str:
        width = max(map(len, self._figures), default=0)
        lines = [f"{name:<{width}}  {score:.3f}" for name, score in self._figures.items()]
        for score in list(self._figures.values())[:1]:
            left_out = (
                f", {score.left_out:,} left out: no other image of their class" if score.left_out else ""
            )
            lines.append(f"{score.queries:,} queries{left_out}")
        return "\n".join(lines)
