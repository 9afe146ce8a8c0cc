"""Who is searched for whom: one conversion of what every retrieval metric takes.

The query itself is never found, nor another row of its id. The choices that make figures of papers differ
each have a name: `groups` and `exclude` (the same camera or session), `ignore` (junk, which does not count),
`distractors` (which count, but are nobody's positives), `no_positives` (what such a query is worth).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.core.checks import Refusal, as_array, as_choice, border, with_length
from tercet.core.indices import References
from tercet.metrics.inputs import as_pairwise, as_references, numbered
from tercet.pairwise.inputs import tensor_of
from tercet.pairwise.relations import CrossGroup, Relation, SameLabel
from tercet.pairwise.tiles import Pairwise

__all__ = ["EXCLUDED", "Queries", "opened"]

EXCLUDED = ("group positives", "group")


class Queries(NamedTuple):
    """Queries against their gallery.

    Args:
        pairwise: the queries and the gallery.
        rows: int64 [q], the row of the given embeddings that each query is.
        columns: int64 [r], the row of the given gallery that each column is.
        given: n, how many rows were given.
        zero: whether a query without positives counts as 0 and is not left out.
    """

    pairwise: Pairwise
    rows: Int[np.ndarray, " q"]
    columns: Int[np.ndarray, " r"]
    given: int
    zero: bool


class _OtherGroup(CrossGroup):
    """Positive and negative as in `CrossGroup`, but nothing of the query's group is found."""

    is_symmetric = True

    def sides(
        self, rows: Int[Tensor, "a 2"], columns: Int[Tensor, "r 2"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        positive, negative = super().sides(rows, columns)
        return positive, negative & (rows[:, None, 1] != columns[None, :, 1])


def opened(
    caller: str,
    embeddings: Any,
    labels: Any,
    ids: Any,
    ref: Any,
    groups: Any,
    exclude: Any,
    ignore: Any,
    distractors: Any,
    no_positives: Any,
    distance: Any,
    tile_rows: Any,
) -> Queries:
    """The queries and the gallery of a metric; arguments as for `recall_at_k`, after the caller's name.

    Raises:
        ValueError: shapes, kinds or names that do not fit.
    """
    zero = as_choice(caller, "no_positives", no_positives, ("skip", "zero")) == "zero"
    with border(caller):
        if groups is None and exclude is not None:
            raise Refusal("exclude", exclude, "groups= beside it: the group of each image")
        rule = as_choice(None, "exclude", EXCLUDED[0] if exclude is None else exclude, EXCLUDED)
    plain = as_pairwise(caller, embeddings, labels, ids, ref, distance, tile_rows)
    n, r = len(plain.labels), len(plain.column_labels)
    if groups is None and ignore is None and distractors is None:
        return Queries(plain, np.arange(n), np.arange(r), n, zero)
    with border(caller):
        x, ref = tensor_of(embeddings), as_references(ref)
        wanted = [_listed("ignore", ignore), _listed("distractors", distractors)]
        names = [_array("labels", labels)] + ([] if ref is None else [_array("ref.labels", ref.labels)])
        codes = _numbered_together("labels, ignore, distractors", [*names, *wanted])
        own, gallery, (junk, others) = codes[0], codes[-3], codes[-2:]
        of_group = None if groups is None else _groups(groups, n, None if ref is None else r)
    asks, kept = ~torch.isin(own, torch.cat([junk, others])), ~torch.isin(gallery, junk)
    gallery = gallery.masked_fill(torch.isin(gallery, others), -1)  # a class of no query
    relation: Relation = SameLabel()
    if of_group is not None:
        relation = CrossGroup() if rule == EXCLUDED[0] else _OtherGroup()
        own, gallery = (torch.stack(pair, 1) for pair in zip((own, gallery), of_group, strict=True))
    ids, column_ids = plain.ids, plain.column_ids
    if ref is not None or not bool(asks.all()):  # else the rows are the columns
        y = x if ref is None else ref.embeddings
        ref = References(*(_some(each, kept, x.device) for each in (y, gallery, column_ids)))
    elif plain.own_column:
        ids = None
    x, own, ids = (_some(each, asks, x.device) for each in (x, own, ids))
    pairwise = Pairwise(
        caller, x, own, distance=plain.distance, relation=relation, ids=ids, ref=ref, tile_rows=tile_rows
    )
    rows, columns = (each.nonzero()[:, 0].numpy() for each in (asks, kept))
    return Queries(pairwise, rows, columns, n, zero)


def _some(values: Any, kept: Bool[Tensor, " n"], device: torch.device) -> Any:
    """The kept rows, on a device; all of them without a copy."""
    if values is None:
        return None
    values = values.to(device)
    return values if bool(kept.all()) else values[kept.to(device)]


def _array(argument: str, values: Any) -> np.ndarray:
    return as_array(None, argument, values, "one label for each embedding")


def _listed(argument: str, values: Any) -> np.ndarray:
    """The labels that are meant: one, several, or none."""
    several = isinstance(values, Iterable) and not isinstance(values, str) and getattr(values, "ndim", 1)
    array = as_array(None, argument, [] if values is None else values if several else [values], "labels")
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "biuUTO"):
        raise Refusal(argument, f"{array.dtype} of shape {array.shape}", "a label, or several")
    return array


def _numbered_together(argument: str, names: list[np.ndarray]) -> list[Int[Tensor, " n"]]:
    """The numbers of several columns of names, equal where the names are."""
    lengths = [len(each) for each in names]
    return list(numbered(argument, [each for each in names if len(each)]).split(lengths))


def _groups(groups: Any, n: int, r: int | None) -> tuple[Int[Tensor, " n"], Int[Tensor, " r"]]:
    """The group of each query and of each column."""
    given = [groups]
    if r is not None:
        if not isinstance(groups, (tuple, list)) or len(groups) != 2:
            expected = "two columns: the groups of the queries and those of the references"
            raise Refusal("groups", with_length(groups), expected)
        given = list(groups)
    arrays = [as_array(None, "groups", each, "one for each row") for each in given]
    for array, count in zip(arrays, (n, r), strict=False):
        if array.shape != (count,):
            raise Refusal("groups", f"shape {array.shape}", f"shape ({count},), one for each embedding")
    codes = _numbered_together("groups", arrays)
    return codes[0], codes[-1]
