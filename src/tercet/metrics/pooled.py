"""GAP: one list of the answers of all queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tercet.core.indices import References
from tercet.metrics.figures import recall
from tercet.metrics.protocol import Queries, opened
from tercet.metrics.ranks import ranked_blocks
from tercet.metrics.scores import Score
from tercet.pairwise.distances import Distance

__all__ = ["global_average_precision", "pooled"]


@torch.no_grad()
def global_average_precision(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The average precision of all queries' nearest images in one list, nearest first: GAP.

    GAP = (1/M) Σ_i P(i) 1[the i-th answer is right], answers ordered by their distance

    The answer of a query is its nearest image, P(i) the share of right answers among the first i, and M the
    number of queries with something to find. A query without positives stays in the list as a wrong answer:
    the figure asks whether distances tell when there is nothing to find.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
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
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score` over the M queries.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not
            fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5], [3.0]])
        >>> round(global_average_precision(x, [0, 0, 1, 0, 2]), 3)
        0.067

    Reference:
        Perronnin, Liu & Renders, "A family of contextual measures of similarity between distributions with
        application to image retrieval", 2009; for landmarks, Weyand, Araujo, Cao & Sim, "Google
        Landmarks Dataset v2", 2020.
    """
    queries = opened(
        "global_average_precision",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        "skip",
        distance,
        tile_rows,
    )
    return pooled(queries)[0]


def pooled(queries: Queries) -> tuple[Score, Float[np.ndarray, " n"]]:
    """GAP, and by how much it grows with how often each query is asked.

    It is the expected value over the orders of equally far images and of equally far answers.

    Of t answers at one distance, right with the probabilities p_a, the one at place j is right with the mean
    probability, and the others before it add (j − 1)/(t − 1) of Σ_{a ≠ b} p_a p_b / t to what is expected.
    """
    count = len(queries.pairwise.labels)
    right, distance = np.zeros(count), np.full(count, math.inf)
    asks, tied = np.zeros(count, bool), np.zeros(count, bool)
    first = recall(1)
    for block in ranked_blocks(queries.pairwise, 1, nearest=True):
        assert block.nearest is not None
        rows = block.rows.cpu().numpy()
        asks[rows] = (block.found > 0).cpu().numpy()
        right[rows] = np.where(asks[rows], first.value(block).cpu().double().numpy(), 0)
        tied[rows] = first.tied(block).cpu().numpy()
        distance[rows] = block.nearest.cpu().double().numpy()
    total = int(asks.sum())
    answers = distance < math.inf
    _, of, sizes = np.unique(distance[answers], return_inverse=True, return_counts=True)
    p = right[answers]
    sums = np.bincount(of, p, len(sizes))
    pairs = sums**2 - np.bincount(of, p * p, len(sizes))
    order = np.argsort(of, kind="stable")
    tie, place = of[order], np.arange(len(p))
    size, ahead = sizes[tie], (np.cumsum(sums) - sums)[tie]
    earlier = place - (np.cumsum(sizes) - sizes)[tie]  # j − 1
    several = np.maximum(size - 1, 1)
    value = (sums[tie] * (ahead + 1) + pairs[tie] * earlier / several) / size / (1 + place)
    unsure = tied.copy()
    if len(p):
        starts, by_tie = np.cumsum(sizes) - sizes, p[order]
        mixed = np.maximum.reduceat(by_tie, starts) > np.minimum.reduceat(by_tie, starts)
        unsure[answers] |= mixed[of]
    score = Score(
        float(value.sum() / total) if total else math.nan,
        total,
        count - total,
        tied=float(unsure[asks].mean()) if total else 0.0,
    )
    growth = np.zeros(queries.given)
    if total:
        own = -float(score) * asks
        own[answers] += _growth(p, of, order, sizes)
        growth[queries.rows] = own / total
    return score, growth


def _growth(
    p: Float[np.ndarray, " a"],
    of: Int[np.ndarray, " a"],
    order: Int[np.ndarray, " a"],
    sizes: Int[np.ndarray, " t"],
) -> Float[np.ndarray, " a"]:
    """∂/∂w_q of Σ_i w_i p_i (w_i + Σ_{j<i} w_j p_j)/Σ_{j≤i} w_j at w = 1, the mean over the places of a tie.

    Args:
        p: the probability that each answer is right.
        of: the tie that it is in, by distance.
        order: the answers by distance.
        sizes: how many answers each tie has.
    """
    tie = of[order]
    mean = (np.bincount(of, p) / sizes)[tie]  # of the tie, at each place
    rank = 1.0 + np.arange(len(p))
    here = (1 + np.cumsum(mean) - mean) / rank  # P(i) of a right answer
    later = np.cumsum((mean / rank)[::-1])[::-1] - mean / rank
    lost = np.cumsum((mean * here / rank)[::-1])[::-1]
    gained, lost = (np.bincount(tie, each) / sizes for each in (here + 1 / rank + later, lost))
    return p * gained[of] - lost[of]
