"""The pairs of images that figures of pairs are over, each once, under the protocol of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int, Shaped
from torch import Tensor

from tercet.core.checks import border
from tercet.core.indices import References
from tercet.metrics.inputs import as_references, unit_rows
from tercet.metrics.protocol import opened
from tercet.pairwise.budget import budget
from tercet.pairwise.relations import Relation

__all__ = ["ComparedPairs", "PairBlock", "compared"]


class PairBlock(NamedTuple):
    """Some queries against some columns.

    Args:
        rows: which of the ordered queries.
        columns: which of the ordered columns.
        similar: float64 [a, r], cosine similarities.
        positive: bool [a, r], the positive pairs that no other block has.
        negative: bool [a, r], likewise.
    """

    rows: slice
    columns: slice
    similar: Float64[Tensor, "a r"]
    positive: Bool[Tensor, "a r"]
    negative: Bool[Tensor, "a r"]


@dataclass(frozen=True, eq=False)
class ComparedPairs:
    """Pairs (query, column), both in order of class; where the queries are columns too, those come first.

    Args:
        rows: float64 [q, d], unit vectors of the queries.
        columns: float64 [r, d]; where `once`, column i is query i for i < q.
        classes: int64 [q], the class of each query, numbered without gaps.
        column_classes: int64 [r], likewise; −1 for a class that no query has.
        labels: of the queries, as the relation takes them.
        column_labels: of the columns.
        ids: which image each query is; None where no column is a query.
        column_ids: which image each column is.
        relation: which pairs are positive, which negative.
        once: whether (i, j) and (j, i) are one pair.
    """

    rows: Float64[Tensor, "q d"]
    columns: Float64[Tensor, "r d"]
    classes: Int[Tensor, " q"]
    column_classes: Int[Tensor, " r"]
    labels: Shaped[Tensor, "q *c"]
    column_labels: Shaped[Tensor, "r *c"]
    ids: Int[Tensor, " q"] | None
    column_ids: Int[Tensor, " r"] | None
    relation: Relation
    once: bool

    def sides(self, rows: slice, columns: slice) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """(positive, negative) pairs, each once.

        Args:
            rows: of the ordered queries.
            columns: of the ordered columns.
        """
        sides = self.relation.sides(self.labels[rows], self.column_labels[columns])
        if self.ids is not None and self.column_ids is not None:
            other = self.ids[rows, None] != self.column_ids[None, columns]  # [a, r]
            sides = sides[0] & other, sides[1] & other
        if self.once:
            sides = tuple(side.triu(1 + rows.start - columns.start) for side in sides)
        return sides[0], sides[1]

    def spans(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of tiles that hold every pair."""
        start, width = 0, len(self.columns)
        while start < len(self.rows) and width:
            first = start if self.once else 0
            stop = start + max(1, budget(self.rows.device).tile_bytes // (8 * (width - first)))
            stop = min(stop, len(self.rows))
            yield slice(start, stop), slice(first, width)
            start = stop

    def blocks(self) -> Iterator[PairBlock]:
        """Every pair, a tile at a time."""
        for rows, columns in self.spans():
            yield self._block(rows, columns)

    def positives(self) -> Iterator[PairBlock]:
        """The positive pairs alone, in blocks of one class."""
        if not len(self.rows):
            return
        every = torch.arange(int(self.classes.max()) + 1)
        bounds = [torch.searchsorted(self.classes, every, right=right).tolist() for right in (False, True)]
        whose = self.column_classes[self.column_classes >= 0]  # such columns come first, in order
        columns = [torch.searchsorted(whose, every, right=right).tolist() for right in (False, True)]
        for low, high, left, right in zip(*bounds, *columns, strict=True):
            height = max(1, budget(self.rows.device).tile_bytes // (8 * max(1, right - left)))
            for start in range(low, high, height):
                first = max(start, left) if self.once else left
                yield self._block(slice(start, min(start + height, high)), slice(first, right))

    def counts(self) -> tuple[int, int]:
        """How many positive pairs there are, and how many negative ones."""
        counts = [0, 0]
        for rows, columns in self.spans():
            for i, side in enumerate(self.sides(rows, columns)):
                counts[i] += int(side.count_nonzero())
        return counts[0], counts[1]

    def _block(self, rows: slice, columns: slice) -> PairBlock:
        similar = self.rows[rows] @ self.columns[columns].T
        return PairBlock(rows, columns, similar, *self.sides(rows, columns))


def compared(
    caller: str,
    embeddings: Any,
    labels: Any,
    ids: Any,
    ref: Any,
    groups: Any,
    exclude: Any,
    ignore: Any,
    distractors: Any,
) -> ComparedPairs:
    """The pairs of a figure of pairs; arguments as for `recall_at_k`, after the caller's name.

    Raises:
        ValueError: shapes, kinds or names that do not fit, or embeddings that are not finite.
    """
    x = y = unit_rows(caller, embeddings)
    if ref is not None:
        with border(caller):
            ref = as_references(ref)
        y = unit_rows(caller, ref.embeddings, "ref.embeddings")
        ref = References(y, ref.labels, ref.ids)
    given = (ids, ref, groups, exclude, ignore, distractors)
    queries = opened(caller, x, labels, *given, "skip", "euclidean", None)
    found, once = queries.pairwise, ref is None
    key, column_key = (_class_of(found.relation, each) for each in (found.labels, found.column_labels))
    classes, own = key.unique(return_inverse=True)
    place = torch.searchsorted(classes, column_key).clamp(max=max(len(classes) - 1, 0))
    known = classes[place] == column_key if len(classes) else torch.zeros_like(column_key, dtype=torch.bool)
    theirs = place.masked_fill(~known, -1)
    order = own.argsort(stable=True)
    column_order = theirs.masked_fill(~known, len(classes)).argsort(stable=True)
    rows, columns = (torch.from_numpy(each) for each in (queries.rows, queries.columns))
    share_ids = found.ids is not None and found.column_ids is not None and not found.own_column
    return ComparedPairs(
        x[rows[order]],
        y[columns[column_order]],
        own[order],
        theirs[column_order],
        found.labels[order],
        found.column_labels[column_order],
        found.ids[order] if share_ids and found.ids is not None else None,
        found.column_ids[column_order] if share_ids and found.column_ids is not None else None,
        found.relation,
        once,
    )


def _class_of(relation: Relation, labels: Tensor) -> Int[Tensor, " n"]:
    key = relation.key(labels)
    assert key is not None  # the relations of `opened` have classes
    return key.contiguous()
