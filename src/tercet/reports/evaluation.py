"""`evaluate`: the figures of an embedding by one search, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from tercet.core.indices import References
from tercet.metrics import figures as named
from tercet.metrics.figures import depths, measured
from tercet.metrics.protocol import opened
from tercet.metrics.scores import Score

__all__ = ["Evaluation", "evaluate"]


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
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> list[str]:
        """What the figures are of, and what was left out, tied or clipped, a sentence each.

        Returns:
            A list of lines.
        """
        scores = list(self._figures.values())
        if not scores:
            return []
        score = scores[0]
        reason = "no other image of their class"
        said = f"{score.queries:,} queries"
        if score.left_out:
            said += f", {score.left_out:,} left out: {reason}"
        elif score.without_positives:
            said += f", {score.without_positives:,} of them worth 0: {reason}"
        lines = [said]
        tied = max(score.tied for score in scores)
        if tied:
            lines.append(
                f"{tied:.1%} of them depend on ties: expected values over the orders of equal distances"
            )
        for name, score in self._figures.items():
            if score.clipped:
                lines.append(f"{name}: {score.clipped:,} queries are compared with fewer images")
        return lines


@torch.no_grad()
def evaluate(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = (1, 2, 4, 8),
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Any = "euclidean",
    tile_rows: int | None = None,
) -> Evaluation:
    """Recall@k, R-precision and MAP@R from one search, which costs about what one of them does.

    R-precision = mean over queries of the share of the first R results that are of the query's class, R the
    number of images of that class to find; Recall@k as in `recall_at_k`, MAP@R as in `map_at_r`

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved; several numbers cost no more than one.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        An `Evaluation`: a `Score` by the name of each figure, printed as a table.

    Raises:
        ValueError: k below 1, labels of mixed kinds, embeddings that are NaN or infinite, or shapes
            that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5], [9.0]])
        >>> print(evaluate(x, ["a", "a", "b", "a", "c"], k=(1, 2)))
        Recall@1     0.333
        Recall@2     1.000
        R-precision  0.500
        MAP@R        0.333
        3 queries, 2 left out: no other image of their class

    Reference:
        Musgrave, Belongie & Lim, "A metric learning reality check", 2020.
    """
    ks, _ = depths("evaluate", k)
    queries = opened(
        "evaluate",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    wanted = {f"Recall@{each}": named.recall(each) for each in ks}
    wanted |= {"R-precision": named.r_precision(), "MAP@R": named.map_at_r()}
    return Evaluation(measured(queries, wanted))
