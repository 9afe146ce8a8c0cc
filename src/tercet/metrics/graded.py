"""nDCG, for relevance of any grade: it needs the place of each relevant image among all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import Refusal, as_choice, border
from tercet.core.indices import References
from tercet.metrics.figures import by_depth, depths, score_of
from tercet.metrics.inputs import as_references
from tercet.metrics.protocol import Queries, opened
from tercet.metrics.ranks import all_places, kept_candidates
from tercet.metrics.scores import Score
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise.distances import Distance, as_distance
from tercet.pairwise.inputs import tensor_of
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Graded
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import widest_float

__all__ = ["discounted", "graded", "ndcg"]


@torch.no_grad()
def ndcg(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] = 10,
    *,
    relevance: str | Callable[[Tensor, Tensor], Tensor] | None = None,
    gain: str = "linear",
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score | dict[int, Score]:
    """The normalised discounted cumulative gain of the first k results, for relevance of any grade.

    DCG@k = Σ_{i=1..k} g(r_i)/log₂(1 + i), nDCG@k = DCG@k / (DCG@k of the best order), mean over queries

    r_i is the relevance of the i-th nearest image to the query, from 0 to 1, g(r) = r or 2^r − 1. Images of
    equal distance share the gains of their places. A query to which nothing is relevant has no positives.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved; several numbers cost no more than one.
        relevance: None for 1 within a class and 0 else; or r of label rows [n, c] as in `Graded`:
            `"overlap"`, `"depth"` or a function of two label tensors; without `groups`, `ignore` and
            `distractors`.
        gain: g, `"linear"` or `"exponential"`.
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
        A `Score`, or with several k a dict of them by k.

    Raises:
        ValueError: k below 1, an unknown gain or relevance, labels of mixed kinds, embeddings that are
            NaN or infinite, or shapes that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(ndcg(x, [0, 0, 1, 0], k=2), 3)
        0.462
        >>> kinds = torch.tensor([[0, 0], [0, 1], [1, 2], [0, 0]])  # animal, breed
        >>> round(ndcg(x, kinds, k=2, relevance="depth"), 3)
        0.336

    Reference:
        Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    ks, several = depths("ndcg", k)
    exponential = as_choice("ndcg", "gain", gain, ("linear", "exponential")) == "exponential"
    if relevance is None:
        queries = opened(
            "ndcg",
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
    else:
        given = {"groups": groups, "exclude": exclude, "ignore": ignore, "distractors": distractors}
        how = (relevance, given, no_positives, distance, tile_rows)
        queries = graded("ndcg", embeddings, labels, ids, ref, *how)
    return by_depth(discounted(queries, ks, exponential), ks, several)


@dataclass(frozen=True)
class _Relevant(Graded):
    """Positive: r > 0. All other images are negatives."""

    def sides(
        self, rows: Shaped[Tensor, "a c"], columns: Shaped[Tensor, "r c"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        relevant = self._table(rows, columns) > 0
        return relevant, ~relevant


def graded(
    caller: str,
    embeddings: Any,
    labels: Any,
    ids: Any,
    ref: Any,
    relevance: Any,
    given: Mapping[str, Any],
    no_positives: Any,
    distance: Any,
    tile_rows: Any,
) -> Queries:
    """The queries of labels [n, c], by their relevance; arguments as for `ndcg`, after the caller's name.

    Raises:
        ValueError: one of `given` is not None, or shapes and kinds that do not fit.
    """
    zero = as_choice(caller, "no_positives", no_positives, ("skip", "zero")) == "zero"
    with border(caller):
        for name, value in given.items():
            if value is not None:
                raise Refusal(name, value, "None beside relevance=")
        relation = _Relevant(1.0, 0.0, relevance)
        x, ref = tensor_of(embeddings), as_references(ref)
        if ref is not None:
            ref = ref._replace(labels=tensor_of(ref.labels))
    pairwise = Pairwise(
        caller,
        x,
        tensor_of(labels),
        distance=as_distance(caller, distance),
        relation=relation,
        ids=tensor_of(ids),
        ref=ref,
        tile_rows=tile_rows,
    )
    return Queries(pairwise, np.arange(len(x)), np.arange(len(pairwise.column_labels)), len(x), zero)


def discounted(queries: Queries, ks: list[int], exponential: bool) -> dict[str, Score]:
    """nDCG@k by k."""
    pairwise, search = queries.pairwise, ExactSearch(queries.pairwise)
    count, device = len(pairwise.labels), pairwise.labels.device
    wide = widest_float(device)
    values = torch.full((len(ks), count), math.nan, dtype=wide, device=device)
    tied = torch.zeros((len(ks), count), dtype=torch.bool, device=device)
    seen = torch.zeros(count, dtype=torch.int64, device=device)
    places = torch.arange(1, max(len(pairwise.column_labels), 1) + 1, dtype=wide, device=device)
    sums = torch.cat([places.new_zeros(1), (1 / torch.log2(1 + places)).cumsum(0)])  # Σ_{i ≤ n} 1/log₂(1 + i)
    for block in search.blocks():
        at, place = true_places(block.positive)
        gain = torch.ones(len(at), dtype=wide, device=device)
        if isinstance(pairwise.relation, _Relevant):
            inside = block.columns[block.class_block]
            table = pairwise.relation._table(pairwise.labels[block.rows], pairwise.column_labels[inside])
            gain = table[at, place].to(wide)
        gain = torch.exp2(gain) - 1 if exponential else gain
        found = torch.bincount(at, minlength=len(block.rows))
        seen[block.rows] = found + block.negative.sum(1) + len(block.columns) - block.negative.shape[1]
        columns = block.columns[block.class_block][place]
        at, start, size = all_places(search, block, kept_candidates(block), at, columns)
        best, nth = _descending(at, gain, found)
        mixed = _is_mixed(at, start, size, gain)
        for i, k in enumerate(ks):
            got = gain * (sums[(start + size).clamp(max=k)] - sums[start.clamp(max=k)]) / size
            ideal = best * (sums[(nth + 1).clamp(max=k)] - sums[nth.clamp(max=k)])
            share = _by_row(at, got, found) / _by_row(at, ideal, found)
            values[i, block.rows] = share.masked_fill(found == 0, math.nan)
            tied[i, block.rows] = torch.bincount(at[mixed & (start < k)], minlength=len(found)) > 0
    numbers, unsure, every = values.cpu().double().numpy(), tied.cpu().numpy(), seen.cpu().numpy()
    return {
        str(k): score_of(queries, numbers[i], unsure[i], int((every < k).sum())) for i, k in enumerate(ks)
    }


def _descending(
    at: Int[Tensor, " t"], gain: Float[Tensor, " t"], found: Int[Tensor, " a"]
) -> tuple[Float[Tensor, " t"], Int[Tensor, " t"]]:
    """The gains of each row in falling order, and the place of each, from 0."""
    order = gain.argsort(descending=True, stable=True)
    order = order[at[order].argsort(stable=True)]
    return gain[order], torch.arange(len(at), device=at.device) - (found.cumsum(0) - found)[at]


def _is_mixed(
    at: Int[Tensor, " t"], start: Int[Tensor, " t"], size: Int[Tensor, " t"], gain: Float[Tensor, " t"]
) -> Bool[Tensor, " t"]:
    """Whether an image is tied with one of another gain."""
    if not len(at):
        return size > 1
    _, tie = torch.stack([at, start]).unique(dim=1, return_inverse=True)
    most = gain.new_zeros(int(tie.max()) + 1).scatter_reduce_(0, tie, gain, "amax", include_self=False)
    differs = torch.bincount(tie[gain < most[tie]], minlength=len(most)) > 0
    return differs[tie] | (torch.bincount(tie)[tie] < size)


def _by_row(
    at: Int[Tensor, " t"], values: Float[Tensor, " t"], found: Int[Tensor, " a"]
) -> Float[Tensor, " a"]:
    """The sum of each row's values."""
    return values.new_zeros(len(found)).index_add_(0, at, values)
