"""What heads that compare rows with columns share: their options, their call, and the walk over a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tercet.core.checks import as_choice, as_int, promised, refusal
from tercet.core.indices import GatheredReferences, References
from tercet.pairwise.accumulate import REDUCTIONS, once_differentiable, summed, tiled_mean
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance, as_distance
from tercet.pairwise.euclidean import picked
from tercet.pairwise.relations import Relation, SameLabel, as_relation
from tercet.pairwise.tiles import Pairwise, features, mined_rows, tile_height
from tercet.pairwise.torch_modes import full_precision, outside_graph, roundoff

__all__ = [
    "LONG",
    "Head",
    "distinct",
    "nothing_of",
    "pairs_of",
    "reduced",
    "rows_of_table",
]

_FEW_NUMBERS = 2**17  # of the features of a list

LONG = 2**15
"""So much of a list is taken at a time where a table serves it."""

_ENTRIES_TO_ONE = 8  # a table has at most so many entries to each pair that is listed
_LEAST = 2**18  # numbers of features, pairs × dimension: fewer do not pay for setting a table up


class Head(nn.Module, ABC):
    """The call: labels say who is positive and who is negative, or a list of mined tuples does.

    A head adds its options, `of_all` for all pairs or triplets and `of_mined` for a list of them.
    """

    tuples = "pairs"  # what a list is of, for the sentences
    listing: str | None = None  # how to list them all, where one loss each is given of a list alone
    sums_over_anchors: bool = True  # whether the losses of parts of the batch against all of it add up

    def __init__(
        self, distance: Distance | str, relation: Relation, reduction: str, tile_rows: int | None
    ) -> None:
        super().__init__()
        caller = type(self).__name__
        self.distance = as_distance(caller, distance, gradient=True)
        self.relation = as_relation(caller, relation)
        self.reduction = as_choice(caller, "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else as_int(caller, "tile_rows", tile_rows, minimum=1)

    @outside_graph
    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined tuples, or of all.

        It waits for the device, to look for NaN and where what comes next follows from the data, and stands
        outside the graph of something compiled.

        With `reduction="none"` it can be differentiated twice, except `Circle`, whose weights are constants
        to the gradient. Otherwise `create_graph=True` is refused.

        Args:
            embeddings: [n, d] floats. Whatever their precision and that of autocast, they are compared in
                float32 or float64.
            labels: [n] integers or bools, or what `relation` takes; without `mined` they are needed.
            mined: `Triplets`, `Pairs`, or any three or four index tensors like them; None for all.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there is nothing to compare. With `reduction="none"` one loss for each that the mean is over, in
            the order of the list, or by anchor and then by positive.

        Raises:
            ValueError: neither labels nor tuples, what `Pairwise` refuses, rows that do not exist, or columns
                of `gather` where the loss is no sum over anchors.
        """
        caller = type(self).__name__
        if isinstance(ref, GatheredReferences) and not self.sums_over_anchors:
            expected = "columns of one process, since this loss is no sum over anchors"
            hint = "call it on every rank with (ref.embeddings, ref.labels, ids=ref.ids) and no ref"
            raise refusal(caller, "ref", "columns from gather", expected, hint)
        if mined is not None:
            return self.of_mined(embeddings, labels, mined, ref)
        if labels is None:
            raise refusal(caller, "labels", None, f"labels, or mined {self.tuples}")
        if self.listing and self.reduction == "none":
            raise refusal(
                caller, "mined", None, f'mined {self.tuples} with reduction="none"', f"pass {self.listing}"
            )
        return self.of_all(
            Pairwise(
                caller,
                embeddings,
                labels,
                ids=ids,
                ref=ref,
                distance=self.measured,
                relation=self.relation,
                tile_rows=self.tile_rows,
            )
        )

    @property
    def measured(self) -> Distance:
        """What the loss is computed from: the distance, or one that differs from it where no loss minds."""
        return self.distance

    @abstractmethod
    def of_all(self, pairwise: Pairwise) -> Float[Tensor, "..."]:
        """The loss of rows against columns."""

    @abstractmethod
    def of_mined(
        self, embeddings: Tensor, labels: Tensor | None, mined: Any, ref: References | None
    ) -> Float[Tensor, "..."]:
        """The loss of a list."""

    def listed(
        self, embeddings: Tensor, mined: Any, ref: References | None, kinds: tuple[int, ...] = (3, 4)
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Checked and prepared features, and the list as row numbers."""
        caller = type(self).__name__
        inputs = features(caller, embeddings, self.measured, ref)
        return inputs, mined_rows(caller, mined, len(inputs[0]), len(inputs[-1]), inputs[0].device, kinds)

    def few(self, inputs: tuple[Tensor, ...], rows: tuple[Int[Tensor, " _"], ...]) -> bool:
        """Whether a list is so short, but not empty, that its graph takes less than its walk."""
        count = len(rows[0]) + (len(rows[-1]) if len(rows) == 4 else 0)
        return self.tile_rows is None and 0 < count <= _FEW_NUMBERS // max(1, inputs[0].shape[1])

    def parts(
        self, x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], *rows: Int[Tensor, " t"], long: bool = True
    ) -> Iterator[tuple[Int[Tensor, " c"], ...]]:
        """A list, some tuples at a time: as many rows of features as a tile has numbers.

        They are more where `between` would take a table for all of them. `long` is False where distances of
        other rows are taken too, which may have no table.
        """
        height = tile_height(type(self).__name__, x.shape[1], x, self.tile_rows)
        longest = max(height, LONG) if long and self.tile_rows is None else height
        for part in zip(*(index.split(longest) for index in rows)):
            if len(part[0]) <= height or self._rows_of_table(x, y, part[0]):
                yield part
            else:
                yield from zip(*(index.split(height) for index in part))

    def between(
        self,
        x: Float[Tensor, "n k"],
        y: Float[Tensor, "r k"],
        i: Int[Tensor, " t"],
        *columns: Int[Tensor, " t"],
    ) -> tuple[Float[Tensor, " t"], ...]:
        """D(x_i, y_j) of each listed pair, for each j of `columns`."""
        first, second = torch.cat([i] * len(columns)), torch.cat(columns)
        table = self._rows_of_table(x, y, first)
        if table is None:
            distances = self.distance.paired(picked(x, first), picked(y, second))
        else:
            distances = self.distance.entries(x[table], y, first - table.start, second)  # type: ignore[attr-defined]
        return tuple(distances.view(len(columns), -1))

    def _rows_of_table(self, x: Tensor, y: Tensor, i: Tensor) -> slice | None:
        """`rows_of_table`, where the distance has `entries` and no second derivative may be asked for."""
        rows = None if self.reduction == "none" else rows_of_table(x, y, i)
        # Asked last: of a short list, which has no table, the question would be a fortieth of the call.
        return rows if rows and promised(self.distance, "entries", "tile", "paired") else None

    def extra_repr(self) -> str:
        """The options, for `print`."""
        shown = {name: vars(self)[name] for name in signature(type(self)).parameters if name in vars(self)}
        return ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value!r}"
            for name, value in shown.items()
            if name != "tile_rows" and value != SameLabel()
        )


def nothing_of(inputs: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, " 0"]:
    """No losses, with the graph of all inputs: another rank may wait for this one's gradient."""
    return torch.stack([v.sum() for v in inputs]).sum()[None][:0]


def reduced(
    caller: str,
    reduction: str,
    losses: Callable[..., Iterator[Tensor]],
    *inputs: Float[Tensor, "..."],
    whole: bool = False,
) -> Float[Tensor, "..."]:
    """The losses that a generator makes of tensors like `inputs`, some at a time, as `reduction` says.

    `whole` says that they are few, and some: then their own graph is the cheapest.
    """
    if reduction == "none":
        return torch.cat([nothing_of(inputs), *losses(*inputs)])
    if whole:
        with full_precision(inputs[0].device):
            part, *more = losses(*inputs)
            part = torch.cat([part, *more]) if more else part
        total, count = summed(part, reduction)
        loss = total if reduction == "sum" else total / count.clamp(min=1)
        return once_differentiable(caller, loss.to(part.dtype))

    def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in losses(*inputs):
            yield summed(part, reduction)

    return tiled_mean(caller, reduction, terms, *inputs)


def pairs_of(rows: tuple[Int[Tensor, " _"], ...]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The positive and the negative pairs (row, column) of a list; of triplets (a, p) and (a, n)."""
    return (rows[0], rows[1]), (rows[2] if len(rows) == 4 else rows[0], rows[-1])


def distinct(
    i: Int[Tensor, " t"], j: Int[Tensor, " t"], columns: int, *, unordered: bool = False
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Each pair (row, column) once, in order; and (j, i) with (i, j) where the pairs are unordered."""
    if unordered:
        i, j = torch.minimum(i, j), torch.maximum(i, j)
    columns = max(1, columns)
    key = torch.unique(i * columns + j)
    return key // columns, key % columns


def rows_of_table(x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"]) -> slice | None:
    """The rows whose table of products with all columns takes less than the differences of listed pairs.

    Args:
        x: the rows.
        y: the columns.
        i: the row of each pair. That of a table is all from the lowest to the highest; finding them waits for
            the device where the list is long enough.

    Returns:
        None where the list is too short for a table, or the table too large for a tile, and where products
        are not of full precision.
    """
    most = min(_ENTRIES_TO_ONE * len(i), budget(x.device).tile_bytes // x.element_size())
    if len(i) * x.shape[1] < _LEAST or most < len(y) or roundoff(x) > 2.0**-24:
        return None
    low, high = torch.stack(i.aminmax()).tolist()
    return slice(low, high + 1) if (high + 1 - low) * len(y) <= most else None
