"""What heads that compare rows with columns share: options, the call, and the loss of a list of mined tuples.

A list is measured and differentiated in one of four ways, from the fastest to the one that can do most:

| way       | taken                                       | distances          | gradient       |
|-----------|---------------------------------------------|--------------------|----------------|
| one graph | short lists (`_fits_one_graph`)              | pair by pair       | one graph      |
| table     | lists long for their rows (`rows_of_table`) | a table by product | chunk by chunk |
| chunks    | all other lists                             | pair by pair       | chunk by chunk |
| none      | `reduction="none"`                          | pair by pair       | one graph      |

"Chunk by chunk": each chunk is differentiated and freed at once, so memory is bounded and the loss can be
differentiated once. With `reduction="none"` every loss keeps its graph, and can be differentiated twice. A
given `tile_rows` sets the chunks' length, and a list is then never one graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tercet.core.checks import as_choice, as_int, refusal
from tercet.core.indices import GatheredReferences, References
from tercet.losses.tile_gradients import TileLoss
from tercet.losses.traced import is_one_a_row, traced_list_loss, traced_loss
from tercet.pairwise.accumulate import BY_ANCHOR, REDUCTIONS, Masked, once_differentiable, summed, tiled_mean
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance, as_distance, entries_of
from tercet.pairwise.euclidean import gather_rows
from tercet.pairwise.inputs import (
    FiniteCheck,
    as_time,
    beside_pairwise,
    check_at,
    is_now,
    unchecked_features,
)
from tercet.pairwise.mined import mined_rows
from tercet.pairwise.relations import Relation, SameLabel, as_relation
from tercet.pairwise.tiles import Pairwise, Tile, tile_height
from tercet.pairwise.torch_modes import full_precision, outside_graph, roundoff
from tercet.pairwise.traced import is_traced

__all__ = ["Head", "anchor_shares", "distinct", "empty_loss", "pairs_of", "reduced", "rows_of_table"]


class Head(nn.Module, ABC):
    """A loss of rows against columns, whose positives and negatives come from labels or from mined tuples.

    A head adds its options, `_of_all` for all pairs or triplets and `_of_mined` for a list of them.
    """

    _tuples = "pairs"  # what a list consists of, for error messages
    _listing: str | None = None  # how to list all tuples, where reduction="none" takes a list only
    _averages_by_anchor: bool = False  # whether an anchor has several losses, which can be averaged first
    _sums_over_anchors: bool = True  # whether the losses of parts of the batch against all of it add up
    # What a graph of `torch.compile` calls; None where a head cannot be traced. Of (tile of all rows, labels,
    # features) the sum of its losses and how many the mean is over; of the features of anchors, positives
    # and negatives, [t, k] each, the losses of these triplets.
    _traced_sum: Callable[..., tuple[Float[Tensor, ""], Int[Tensor, ""]]] | None = None
    _traced_losses: Callable[..., Float[Tensor, " t"]] | None = None

    def __init__(
        self,
        distance: Distance | str,
        relation: Relation,
        reduction: str,
        tile_rows: int | None,
        check_finite: str = "later",
    ) -> None:
        super().__init__()
        caller = type(self).__name__
        self.distance = as_distance(caller, distance, gradient=True)
        self.relation = as_relation(caller, relation)
        if isinstance(reduction, str) and reduction == BY_ANCHOR and not self._averages_by_anchor:
            expected = f"one of {', '.join(map(repr, REDUCTIONS))}"
            hint = "TripletMargin, Contrastive and MarginLoss average the losses of an anchor first"
            raise refusal(caller, "reduction", reduction, expected, hint)
        choices = (*REDUCTIONS, BY_ANCHOR) if self._averages_by_anchor else REDUCTIONS
        self.reduction = as_choice(caller, "reduction", reduction, choices)
        self.tile_rows = None if tile_rows is None else as_int(caller, "tile_rows", tile_rows, minimum=1)
        self.check_finite = as_time(caller, check_finite)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"] | Pairwise,
        labels: Shaped[Tensor, "n *c"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined tuples, or of all.

        Without mined tuples, ids and references, a head with a named distance and a usual relation is traced
        into the graph of `torch.compile`, but for `soft`, `swap`, `SmoothAP` and `RecallSurrogate` of large
        batches; so is `TripletMargin` of as many triplets as rows, which `BatchHard(complete=True)` gives.
        With `check_finite="later"` it raises what was wrong when the graph is run, on an accelerator at the
        next call. Any other call stays outside the graph.

        It does not wait for an accelerator, where labels are on the host and mined tuples come from a miner
        of this library, unchanged; other tuples that are on the accelerator are read once, to check them.

        With `reduction="none"` the loss can be differentiated twice, except that of `Circle`, whose weights
        are constants to the gradient. With any other reduction `create_graph=True` is refused.

        Args:
            embeddings: [n, d] floats of any precision; compared in float32, or in float64 if they are
                float64, also under autocast. Or what `miner.pairwise(embeddings, labels, ids=, ref=)` gave,
                in place of labels, ids and ref too: what the miner has checked and prepared is then shared.
            labels: [n] integers or bools, or [n, c] where `relation` takes that; may be None beside `mined`.
            mined: `Triplets` or `Pairs` of row numbers, or three or four int tensors [t] like them; None for
                all tuples.
            ids: [n] integers, which image each row is: equal ids are one image, neither positive nor negative
                to each other. Read only without `mined`; None where each row is another image.
            ref: `References(embeddings [r, d], labels, ids)`, the columns that positives and negatives are
                rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings); 0, with a graph whose gradient is 0, where
            there is nothing to compare. With `reduction="none"` [t], one loss for each item that the mean is
            over, in the order of the list, or by anchor and then by positive.

        Raises:
            ValueError: neither labels nor mined tuples; shapes, kinds or devices that do not fit together;
                embeddings that are NaN, infinite or too large, of this call or, with
                `check_finite="later"`, of an earlier one; row numbers that do not exist; columns from
                `gather` where the loss is no sum over anchors.
        """
        if torch.compiler.is_compiling() and ids is None and ref is None:
            if mined is None and labels is not None and self._is_traced(embeddings):
                return traced_loss(self, embeddings, labels)  # type: ignore[arg-type]
            if mined is not None and self._is_traced_list(embeddings, mined):
                return traced_list_loss(self, embeddings, mined)  # type: ignore[arg-type]
        return self._called(embeddings, labels, mined, ids, ref)

    def _is_traced(self, embeddings: Any) -> bool:
        """Whether `torch.compile` may trace a call without mined tuples, ids and references."""
        known = self._traced_sum is not None and self.reduction not in ("none", BY_ANCHOR)
        return known and is_traced(self._measured, self.relation, embeddings)

    def _is_traced_list(self, embeddings: Any, mined: Any) -> bool:
        """Whether `torch.compile` may trace a call with these mined tuples."""
        known = self._traced_losses is not None and self.reduction not in ("none", BY_ANCHOR)
        return (
            known and is_traced(self._measured, self.relation, embeddings) and is_one_a_row(mined, embeddings)
        )

    @outside_graph
    def _called(self, embeddings: Any, labels: Any, mined: Any, ids: Any, ref: Any) -> Float[Tensor, "..."]:
        caller, shared = type(self).__name__, None
        if isinstance(embeddings, Pairwise):
            beside_pairwise(caller, labels=labels, ids=ids, ref=ref)
            relation = self.relation if mined is None else None
            taken_by = embeddings.taken_by
            shared = taken_by(caller, self.distance, relation, self.tile_rows, self._measured)
            labels, ref = shared.given_labels, shared.ref
        if isinstance(ref, GatheredReferences) and not self._sums_over_anchors:
            expected = "columns of one process, since this loss is no sum over anchors"
            hint = "call it on every rank with (ref.embeddings, ref.labels, ids=ref.ids) and no ref"
            raise refusal(caller, "ref", "columns from gather", expected, hint)
        if mined is not None:
            if shared is None:
                inputs, checks = unchecked_features(embeddings, self._measured, ref)  # type: ignore[arg-type]
            else:
                inputs, checks = shared.inputs, shared.checks
            self._look(checks)
            return self._of_mined(inputs, labels, mined)
        if labels is None:
            raise refusal(caller, "labels", None, f"labels, or mined {self._tuples}")
        if self._listing and self.reduction == "none":
            raise refusal(
                caller, "mined", None, f'mined {self._tuples} with reduction="none"', f"pass {self._listing}"
            )
        looks_now = is_now(self.check_finite, embeddings)
        pairwise = shared or Pairwise(
            caller,
            embeddings,  # type: ignore[arg-type]
            labels,
            ids=ids,
            ref=ref,
            distance=self._measured,
            relation=self.relation,
            tile_rows=self.tile_rows,
            check=looks_now,
        )
        if shared is not None or not looks_now:
            self._look(pairwise.checks)
        return self._of_all(pairwise)

    @property
    def _measured(self) -> Distance:
        """The distance that is computed: `distance`, or that less a constant which cancels in the loss."""
        return self.distance

    @abstractmethod
    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, "..."]:
        """The loss of rows against columns."""

    @abstractmethod
    def _of_mined(
        self, inputs: tuple[Float[Tensor, "_ k"], ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of a list.

        Args:
            inputs: the features of the rows and of the columns, or one tensor that is both.
            labels: of the rows, as they were given.
            mined: as it was given.
        """

    def _loss_of_tile(self, pairwise: Pairwise) -> tuple[str, Callable[[Tile, bool], TileLoss]] | None:
        """A reduction, and the loss of a tile of all rows, where the loss is a function of its distances."""
        return None

    def _look(self, checks: list[FiniteCheck]) -> None:
        """Look at embeddings when `check_finite` says, and not once more if others share them."""
        check_at(self.check_finite, checks, type(self).__name__)
        if self.check_finite != "never":
            checks.clear()

    def _listed(self, inputs: tuple[Float[Tensor, "_ k"], ...], mined: Any) -> tuple[Int[Tensor, " _"], ...]:
        """A list as row numbers."""
        return mined_rows(mined, len(inputs[0]), len(inputs[-1]), inputs[0].device)

    def _fits_one_graph(self, inputs: tuple[Tensor, ...], rows: tuple[Int[Tensor, " _"], ...]) -> bool:
        """True if one autograd graph over the whole list is cheaper than accumulating it in chunks."""
        count = len(rows[0]) + (len(rows[-1]) if len(rows) == 4 else 0)
        most = budget(inputs[0].device).one_graph_numbers // max(1, inputs[0].shape[1])
        return self.tile_rows is None and 0 < count <= most

    def _chunks(
        self, x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], *rows: Int[Tensor, " t"], tables: bool = True
    ) -> Iterator[tuple[Int[Tensor, " c"], ...]]:
        """A list in chunks whose features are as many numbers as a tile has.

        Chunks are longer where `_listed_distances` would use a table for all of one. `tables` is False where
        distances between other rows are needed too, for which a table may not serve.
        """
        height = tile_height(x.shape[1], x, self.tile_rows)
        longest = height
        if tables and self.tile_rows is None:
            longest = max(height, budget(x.device).table_tuples)
        for chunk in zip(*(index.split(longest) for index in rows), strict=True):
            if len(chunk[0]) <= height or self._table_rows(x, y, chunk[0]):
                yield chunk
            else:
                yield from zip(*(index.split(height) for index in chunk), strict=True)

    def _listed_distances(
        self,
        x: Float[Tensor, "n k"],
        y: Float[Tensor, "r k"],
        i: Int[Tensor, " t"],
        *columns: Int[Tensor, " t"],
    ) -> tuple[Float[Tensor, " t"], ...]:
        """D(x_i, y_j) of each listed pair, for each j of `columns`."""
        first, second = torch.cat([i] * len(columns)), torch.cat(columns)
        table = self._table_rows(x, y, first)
        if table is None:
            distances = self.distance.paired(gather_rows(x, first), gather_rows(y, second))
        else:
            rows, entries = table
            distances = entries(x[rows], y, first - rows.start, second)
        return tuple(distances.view(len(columns), -1))

    def _table_rows(
        self, x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"]
    ) -> tuple[slice, Callable[..., Float[Tensor, " t"]]] | None:
        """The rows of a list's table and the distance's `entries`; None where the list is measured by pairs.

        With `reduction="none"` there is no table: all distances of a list then keep their graph.
        """
        rows = None if self.reduction == "none" else rows_of_table(x, y, i)
        # The distance is asked last: a short list has no table, and asking would be a fortieth of its call.
        entries = None if rows is None else entries_of(self.distance)
        return None if rows is None or entries is None else (rows, entries)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        shown = {name: vars(self)[name] for name in signature(type(self)).parameters if name in vars(self)}
        return ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value!r}"
            for name, value in shown.items()
            if name != "tile_rows" and value != SameLabel() and (name, value) != ("check_finite", "later")
        )


def empty_loss(inputs: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, " 0"]:
    """No losses, with the graph of all inputs: with several ranks each must send a gradient."""
    return torch.stack([v.sum() for v in inputs]).sum()[None][:0]


def reduced(
    caller: str,
    reduction: str,
    losses: Callable[..., Iterator[Tensor | Masked]],
    *inputs: Float[Tensor, "..."],
    one_graph: bool = False,
) -> Float[Tensor, "..."]:
    """The losses that a generator yields in chunks, reduced.

    Args:
        caller: the head that was called, for error messages.
        reduction: how a head makes one number of its losses.
        losses: from tensors like `inputs`, yields losses [c] with their graph; `Masked` ones if `reduction`
            is not `"none"`, and alone if `one_graph`.
        inputs: what the gradient flows to.
        one_graph: keep the graph of all chunks; of one chunk or more.

    Returns:
        A scalar, or all losses [t] for `"none"`.
    """
    if reduction == "none":
        return torch.cat([empty_loss(inputs), *losses(*inputs)])  # type: ignore[list-item]
    if one_graph:
        with full_precision(inputs[0].device):
            part, *more = losses(*inputs)
            if more:
                part = torch.cat([part, *more])  # type: ignore[list-item]
        total, count = summed(part, reduction)
        loss = total if reduction == "sum" else total / count.clamp(min=1)
        dtype = part.losses.dtype if isinstance(part, Masked) else part.dtype
        return once_differentiable(caller, loss.to(dtype))

    def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in losses(*inputs):
            yield summed(part, reduction)

    return tiled_mean(caller, reduction, terms, *inputs)


def anchor_shares(x: Float[Tensor, "n k"], *anchors: Int[Tensor, " _"]) -> Float[Tensor, " n"]:
    """What each loss of an anchor counts, so that their sum is the mean over anchors of each anchor's mean.

    Args:
        x: rows [n, k].
        anchors: the rows of the listed losses.

    Example:
        >>> anchor_shares(torch.zeros(3, 1), torch.tensor([0, 2, 2]), torch.tensor([2, 2]))
        tensor([0.5000, 0.5000, 0.1250])
    """
    every = torch.cat(anchors)
    numbers = every.new_zeros(len(x)).index_add_(0, every, torch.ones_like(every))
    return (numbers.clamp(min=1) * numbers.count_nonzero().clamp(min=1)).to(x.dtype).reciprocal_()


def pairs_of(rows: Sequence[Int[Tensor, " _"]]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The positive and the negative pairs (row, column) of a list; of triplets (a, p) and (a, n)."""
    return (rows[0], rows[1]), (rows[2] if len(rows) == 4 else rows[0], rows[-1])


def distinct(
    i: Int[Tensor, " t"], j: Int[Tensor, " t"], columns: int, *, unordered: bool = False
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Each pair (row, column) once, in order; (i, j) and (j, i) are one pair where they are `unordered`."""
    if unordered:
        i, j = torch.minimum(i, j), torch.maximum(i, j)
    columns = max(1, columns)
    key = torch.unique(i * columns + j)
    return key // columns, key % columns


def rows_of_table(x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"]) -> slice | None:
    """The rows of a table of products with all columns, where that is cheaper than differences of the pairs.

    Args:
        x: rows [n, k].
        y: columns [r, k].
        i: [t], the row of each listed pair. A table has all rows from the lowest to the highest; on an
            accelerator, which would be read to find them, simply all.

    Returns:
        A slice of rows; None where the list is too short for a table, the table would be larger than a tile,
        or products do not have full precision.
    """
    sizes = budget(x.device)
    most = min(sizes.table_share * len(i), sizes.tile_bytes // x.element_size())
    if len(i) * x.shape[1] < sizes.table_numbers or most < len(y) or roundoff(x) > 2.0**-24:
        return None
    if x.device.type != "cpu":
        return slice(0, len(x)) if len(x) * len(y) <= most else None
    low, high = torch.stack(i.aminmax()).tolist()
    return slice(low, high + 1) if (high + 1 - low) * len(y) <= most else None
