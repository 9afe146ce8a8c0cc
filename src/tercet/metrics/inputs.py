"""One conversion and check of what metrics take: embeddings, labels, ids and triplets, torch or numpy.

Labels and groups may be whole numbers, bools or strings. Those of queries and of references are numbered
together, so that equal names are one class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tercet.core.checks import Refusal, as_array, border, label_codes, refusal, with_length
from tercet.core.indices import References
from tercet.pairwise.distances import as_distance
from tercet.pairwise.inputs import lack_of_data, tensor_of
from tercet.pairwise.tiles import Pairwise

__all__ = [
    "as_candidate_lists",
    "as_pairwise",
    "as_references",
    "as_triplet_rows",
    "finite_rows",
    "numbered",
    "rows_as_classes",
    "unit_rows",
]

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_pairwise(
    caller: str, embeddings: Any, labels: Any, ids: Any, ref: Any, distance: Any, tile_rows: Any
) -> Pairwise:
    """Queries against the other queries, or against references, with classes as numbers.

    Args:
        caller: the function that was called, for the sentences.
        embeddings: [n, d], torch or numpy.
        labels: [n] whole numbers, bools or strings: a tensor, an array or a list.
        ids: [n] whole numbers, or None.
        ref: `References`, torch or numpy, with labels of the same kinds; None for the queries themselves.
        distance: a `Distance` or its name.
        tile_rows: queries compared at once, or None.

    Returns:
        A `Pairwise` under the relation `SameLabel`.

    Raises:
        ValueError: no `References`, labels of mixed kinds, or what `Pairwise` refuses.
    """
    x, ids = tensor_of(embeddings), tensor_of(ids)
    with border(caller):
        if ref is None:
            (labels,) = _classes(labels)
        else:
            ref = as_references(ref)
            labels, gallery = _classes(labels, ref.labels)
            ref = ref._replace(labels=gallery)
    metric = as_distance(caller, distance)
    return Pairwise(caller, x, labels, ids=ids, ref=ref, distance=metric, tile_rows=tile_rows)


def as_references(ref: Any) -> References | None:
    """References with embeddings and ids as tensors; their labels stay what they are.

    Raises:
        ValueError: neither `References` nor None.
    """
    if ref is None:
        return None
    if not isinstance(ref, References):
        raise Refusal("ref", type(ref).__name__, "References(embeddings, labels, ids)")
    return References(tensor_of(ref.embeddings), ref.labels, tensor_of(ref.ids))


def rows_as_classes(labels: Any, ref: References | None) -> tuple[Int[Tensor, " n"], References | None]:
    """One class number for each row of labels [n, c], equal where the rows are; those of `ref` too.

    Args:
        labels: [n, c] whole numbers.
        ref: with labels [r, c], or None.
    """
    rows = [
        torch.as_tensor(tensor_of(each)).cpu() for each in (labels, *(() if ref is None else (ref.labels,)))
    ]
    codes = torch.cat(rows).unique(dim=0, return_inverse=True)[1].split([len(each) for each in rows])
    return codes[0], None if ref is None else ref._replace(labels=codes[1])


def finite_rows(
    caller: str, embeddings: Any, argument: str = "embeddings"
) -> tuple[Float64[Tensor, "m d"], Bool[np.ndarray, " n"]]:
    """The finite rows of embeddings in float64 on the host, and which of all rows they are.

    Raises:
        ValueError: no matrix of numbers.
    """
    try:
        given = torch.as_tensor(tensor_of(embeddings)).detach()
    except Exception as error:  # strings, ragged lists
        raise refusal(caller, argument, type(embeddings).__name__, "numbers [n, d]", str(error)) from None
    if lacking := lack_of_data(given):
        raise refusal(caller, argument, lacking, "a dense tensor with data")
    if given.is_complex():
        raise refusal(caller, argument, str(given.dtype), "real numbers [n, d]")
    rows = given.cpu().double()
    if rows.ndim != 2:
        raise refusal(caller, argument, f"shape {tuple(rows.shape)}", "shape [n, d]")
    kept = rows.isfinite().all(1)
    return (rows if bool(kept.all()) else rows[kept]), kept.numpy()


def unit_rows(caller: str, embeddings: Any, argument: str = "embeddings") -> Float64[Tensor, "n d"]:
    """Embeddings as unit vectors in float64 on the host.

    Raises:
        ValueError: no matrix of numbers, or rows that are not finite.
    """
    rows, kept = finite_rows(caller, embeddings, argument)
    if not kept.all():
        raise refusal(caller, argument, "NaN or infinite values", "finite embeddings")
    return torch.nn.functional.normalize(rows)


def as_triplet_rows(triplets: Any, n: int, r: int, device: torch.device) -> tuple[Int[Tensor, " t"], ...]:
    """Queries below n, positives and negatives below r, as int64 on `device`.

    Args:
        triplets: `Triplets`, or any three index tensors or arrays [t].
        n: the number of queries.
        r: the number of columns.
        device: where the embeddings are.

    Raises:
        ValueError: another form, unequal lengths, or rows that do not exist.
    """
    expected = "Triplets (three index tensors or arrays [t])"
    if not isinstance(triplets, (tuple, list)) or len(triplets) != 3:
        hint = "take all of a sequence's by [:]" if hasattr(triplets, "__getitem__") else ""
        raise Refusal("triplets", with_length(triplets), expected, hint)
    try:
        rows = [torch.as_tensor(corner) for corner in triplets]
    except Exception:  # strings, None, ragged lists
        shown = ", ".join(type(corner).__name__ for corner in triplets)
        raise Refusal("triplets", shown, f"{expected} of row numbers") from None
    lacking = next(filter(None, map(lack_of_data, rows)), "")
    if lacking:
        raise Refusal("triplets", lacking, "dense tensors with data")
    for corner in rows:
        if corner.dtype not in _WHOLE or corner.ndim != 1 or len(corner) != len(rows[0]):
            shown = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in rows)
            raise Refusal("triplets", shown, f"{expected} of row numbers")
    for name, corner, size in zip(("query", "positive", "negative"), rows, (n, r, r), strict=True):
        outside = corner[(corner < 0) | (corner >= size)]
        if len(outside):
            found = f"{name} {int(outside[0])}"
            raise Refusal("triplets", found, f"rows from 0 to {size - 1}, as there are {size}")
    return tuple(corner.to(device, torch.int64) for corner in rows)


def as_candidate_lists(
    groups: Any, n: int, ref: References | None, device: torch.device
) -> tuple[Int[Tensor, " n"], Int[Tensor, " r"]]:
    """The number of each query's candidate list, and the list that each reference belongs to.

    Args:
        groups: [n] whole numbers or strings; None for one list of everything.
        n: the number of queries.
        ref: references, whose labels are their groups; None where there are none: r is 0.
        device: where the embeddings are.

    Raises:
        ValueError: shapes that do not fit, or neither whole numbers nor strings.
    """
    r = 0 if ref is None else len(ref.embeddings)
    if groups is None or not n + r:
        own, theirs = (torch.zeros(count, dtype=torch.int64, device=device) for count in (n, r))
        return own, theirs
    given = [("groups", groups, n)]
    if ref is not None:
        given.append(("ref.labels", ref.labels, r))
    names = []
    for argument, values, count in given:
        array = as_array(None, argument, values, "one for each row")
        if array.shape != (count,):
            expected = f"shape ({count},), one for each row"
            raise Refusal(argument, f"shape {array.shape}", expected)
        names.append(array)
    codes = numbered("groups", names).to(device)
    return codes[:n], codes[n:]


def _classes(*labels: Any) -> tuple[Any, ...]:
    """Labels that can be compared with each other: tensors as they are, anything else by its class number."""
    if all(isinstance(each, Tensor) for each in labels):
        return labels
    arrays = []
    for each in labels:
        array = as_array(None, "labels", each, "one label for each embedding")
        if array.ndim != 1:
            shown = type(each).__name__ if not array.ndim else f"shape {array.shape}"
            raise Refusal("labels", shown, "one label for each embedding")
        arrays.append(array)
    return numbered("labels", arrays).split([len(array) for array in arrays])


def numbered(argument: str, names: list[np.ndarray]) -> Int[Tensor, " n"]:
    """The class numbers of several columns of names, one column after the other."""
    if not sum(len(each) for each in names):
        return torch.empty(0, dtype=torch.int64)
    if any(each.dtype.kind in "UTO" for each in names):
        names = [each.astype(object) for each in names]  # else "1" and 1 would become one class
    return torch.from_numpy(label_codes(None, np.concatenate(names), argument)[0])
