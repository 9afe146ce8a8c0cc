"""How often an embedding orders triplets as they are given: Deep Ranking's two metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tercet.core.checks import array_of, as_int, label_codes, refusal, with_length
from tercet.core.indices import References
from tercet.neighbors.exact import Scan
from tercet.pairwise.distances import Distance, as_distance, exact_pairs
from tercet.pairwise.inputs import lack_of_data, tensor_of
from tercet.pairwise.relations import whole_numbers
from tercet.pairwise.tiles import Pairwise, features, tile_height

__all__ = ["TripletScore", "score_at_top_k", "similarity_precision"]

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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


@torch.no_grad()
def similarity_precision(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    triplets: Any,
    *,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
) -> TripletScore:
    """The share of triplets whose positive is nearer to the query than their negative.

    similarity precision = (1/t) Σ 1[D(q, p⁺) < D(q, p⁻)]

    A tie is not correct, so collapsed embeddings score 0. Distances are taken by differences: their order
    does not depend on how triplets are cut into chunks. (A dot product has no differences.)

    Args:
        embeddings: [n, d], torch or numpy.
        triplets: `Triplets` of rows, or any three index tensors or arrays [t], such as `manifest.triplets`
            for the embeddings of `manifest.catalog`.
        ref: the columns that positives and negatives are rows of; None for the embeddings themselves.
        distance: a `Distance` or its name.

    Returns:
        A `TripletScore`; NaN without triplets.

    Raises:
        ValueError: rows that do not exist, embeddings that are NaN or infinite, or shapes that do not fit.

    Example:
        >>> x = np.array([[0.0], [1.0], [3.0]])
        >>> triplets = np.array([0, 0, 1]), np.array([1, 2, 0]), np.array([2, 1, 2])
        >>> precision = similarity_precision(x, triplets)
        >>> round(precision, 3), precision.correct
        (0.667, 2)

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """
    caller = "similarity_precision"
    metric = as_distance(caller, distance)
    inputs = features(caller, tensor_of(embeddings), metric, _torch_columns(caller, ref))
    x, y = inputs[0], inputs[-1]
    rows = _rows(caller, triplets, len(x), len(y), x.device)
    correct, count = int(_ordered(caller, metric, x, y, rows).sum()), len(rows[0])
    return TripletScore(correct / count if count else math.nan, correct, count, count)


@torch.no_grad()
def score_at_top_k(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    triplets: Any,
    k: int = 30,
    *,
    groups: Any = None,
    ids: Any = None,
    ref: References | None = None,
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> TripletScore:
    """Correct minus incorrect among the triplets that show among a query's first results.

    score = Σ ±1 over triplets with p⁺ or p⁻ among the K nearest of q's candidate list,
    + where D(q, p⁺) < D(q, p⁻), − where not

    It is a number of triplets, as in the paper, of `counted` ones; `score / score.counted` compares sets of
    triplets of different sizes. A tie is incorrect, so collapsed embeddings score −`counted`. In the
    candidate list, equally near images rank by row number. The K nearest are exact, found for distinct
    queries, in the memory of a few tiles and K numbers a query.

    Args:
        embeddings: [n, d], torch or numpy.
        triplets: `Triplets` of rows, or any three index tensors or arrays [t].
        k: K, how many results count as the first.
        groups: [n] whole numbers or strings: the candidate list of a query is the other images of its group,
            in the paper those of one text query. None for all other images.
        ids: [n] integers, which image each row is; an image is no candidate for itself.
        ref: the columns that positives and negatives are rows of, and the candidates; its labels are their
            groups, read only with `groups`. None for the embeddings themselves.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `TripletScore`; 0 without triplets.

    Raises:
        ValueError: k below 1, rows that do not exist, groups of another number, or what `Pairwise` refuses.

    Example:
        >>> x = np.array([[0.0], [1.0], [3.0], [7.0]])
        >>> triplets = np.array([0, 0, 0]), np.array([1, 2, 2]), np.array([3, 1, 3])
        >>> score = score_at_top_k(x, triplets, k=1)  # the last has neither in first place
        >>> score, score.correct, score.counted, score.triplets
        (0.0, 1, 2, 3)

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """
    caller = "score_at_top_k"
    k = as_int(caller, "k", k, minimum=1)
    metric = as_distance(caller, distance)
    x, ref = tensor_of(embeddings), _torch_columns(caller, ref)
    inputs = features(caller, x, metric, ref)
    n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
    rows = _rows(caller, triplets, n, r, device)
    queries, query = rows[0].unique(return_inverse=True)  # [m], [t]
    own, theirs = _lists(caller, groups, n, ref, device)
    if ids is not None:
        ids = whole_numbers(caller, "ids", tensor_of(ids), n, device)
    if ref is None:
        ids = torch.arange(n, device=device) if ids is None else ids
        columns = References(x, own, ids)
    else:
        columns = References(ref.embeddings, theirs, ref.ids)
    pairwise = Pairwise(
        caller,
        x[queries],
        own[queries],
        distance=metric,
        ids=None if ids is None else ids[queries],
        ref=columns,
        tile_rows=tile_rows,
    )
    first = torch.full((len(queries), min(k, r)), -1, device=device)  # [m, k], columns
    scan = Scan(pairwise)
    for strip in scan.strips():  # a candidate is of the query's list and another image: a positive of it
        first[strip.rows] = scan.nearest(strip.positives(farthest=False), min(k, r))
    counted = torch.zeros_like(query, dtype=torch.bool)
    for part in torch.arange(len(query), device=device).split(tile_height(caller, k, first, None)):
        listed = first[query[part]]  # [c, k]
        for corner in rows[1:]:
            counted[part] |= (listed == corner[part, None]).any(1)
    chosen = tuple(corner[counted] for corner in rows)
    correct, count = int(_ordered(caller, metric, inputs[0], inputs[-1], chosen).sum()), len(chosen[0])
    return TripletScore(2 * correct - count, correct, count, len(query))


def _ordered(
    caller: str, metric: Distance, x: Tensor, y: Tensor, rows: tuple[Int[Tensor, " t"], ...]
) -> Bool[Tensor, " t"]:
    """Whether D(q, p⁺) < D(q, p⁻), for each triplet of prepared rows and columns."""
    height = tile_height(caller, x.shape[1], x, None)
    parts = [torch.zeros(0, dtype=torch.bool, device=x.device)]
    for q, p, n in zip(*(corner.split(height) for corner in rows)):
        near, far = (exact_pairs(metric, x[q], y[j]) for j in (p, n))
        parts.append(near < far)
    return torch.cat(parts)


def _rows(caller: str, triplets: Any, n: int, r: int, device: torch.device) -> tuple[Int[Tensor, " t"], ...]:
    """Queries below n, positives and negatives below r, as int64 on `device`."""
    expected = "Triplets (three index tensors or arrays [t])"
    if not isinstance(triplets, (tuple, list)) or len(triplets) != 3:
        hint = "take all of a sequence's by [:]" if hasattr(triplets, "__getitem__") else ""
        raise refusal(caller, "triplets", with_length(triplets), expected, hint)
    try:
        rows = [torch.as_tensor(corner) for corner in triplets]
    except Exception:  # strings, None, ragged lists
        shown = ", ".join(type(corner).__name__ for corner in triplets)
        raise refusal(caller, "triplets", shown, f"{expected} of row numbers") from None
    lacking = next(filter(None, map(lack_of_data, rows)), "")
    if lacking:
        raise refusal(caller, "triplets", lacking, "dense tensors with data")
    for corner in rows:
        if corner.dtype not in _WHOLE or corner.ndim != 1 or len(corner) != len(rows[0]):
            shown = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in rows)
            raise refusal(caller, "triplets", shown, f"{expected} of row numbers")
    for name, corner, size in zip(("query", "positive", "negative"), rows, (n, r, r)):
        outside = corner[(corner < 0) | (corner >= size)]
        if len(outside):
            found = f"{name} {int(outside[0])}"
            raise refusal(caller, "triplets", found, f"rows from 0 to {size - 1}, as there are {size}")
    return tuple(corner.to(device, torch.int64) for corner in rows)


def _lists(
    caller: str, groups: Any, n: int, ref: References | None, device: torch.device
) -> tuple[Tensor, ...]:
    """The number of each row's candidate list, and that of each reference."""
    r = 0 if ref is None else len(ref.embeddings)
    if groups is None or not n + r:
        return tuple(torch.zeros(count, dtype=torch.int64, device=device) for count in (n, r))
    expected = "one for each row"
    names = [array_of(caller, "groups", groups, expected)]
    if ref is not None:
        names.append(array_of(caller, "ref.labels", ref.labels, expected))
    for argument, given, count in zip(("groups", "ref.labels"), names, (n, r)):
        if given.shape != (count,):
            raise refusal(caller, argument, f"shape {given.shape}", f"shape ({count},), one for each row")
    if any(each.dtype.kind in "UTO" for each in names):
        names = [each.astype(object) for each in names]  # else "1" and 1 would become one group
    codes = torch.from_numpy(label_codes(caller, np.concatenate(names), "groups")[0]).to(device)
    return codes[:n], codes[n:]


def _torch_columns(caller: str, ref: Any) -> References | None:
    """References of numpy arrays as those of tensors; their labels stay what they are."""
    if ref is None:
        return None
    if not isinstance(ref, References):
        raise refusal(caller, "ref", type(ref).__name__, "References(embeddings, labels, ids)")
    return References(tensor_of(ref.embeddings), ref.labels, tensor_of(ref.ids))
