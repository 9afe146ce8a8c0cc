"""What listwise heads share: one loss for each anchor, and the tiles of a list of mined tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.losses.base import Head, distinct, pairs_of, reduced
from tercet.losses.tile_gradients import TileLoss, differentiated, loss_from_pair_gradients
from tercet.pairwise.accumulate import Masked, summed
from tercet.pairwise.distances import Distance, cosine, negative_cosine
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import PairTile, Pairwise, Tile, pairs_of_tiles, tile_height
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["ListwiseHead", "MinedPairs", "PositivePlaces"]


class ListwiseHead(Head):
    """A head whose losses of an anchor depend on its row alone; from a list each distinct pair counts once.

    A head adds its options and `_losses_of(tile)`, the losses of a tile that the mean is over. The memory is
    that of a few tiles, never positives × negatives.

    A constant added to every distance cancels in each of these losses. So `cosine`, 1 − s, is computed as −s
    (`negative_cosine`), which is a product.
    """

    _losses_of: Callable[[Tile], Tensor | Masked]

    @property
    def _measured(self) -> Distance:
        """`negative_cosine` for `cosine`."""
        return negative_cosine if self.distance == cosine else self.distance

    def _of_all(self, pairwise: Pairwise) -> Float[Tensor, "..."]:
        """The loss of rows against columns."""
        return self._loss_of(pairwise)

    def _traced_sum(self, tile: Tile, labels: Tensor, x: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum of `_losses_of` the tile."""
        return summed(self._losses_of(tile), self.reduction)

    def _of_mined(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, mined: Any
    ) -> Float[Tensor, "..."]:
        """The loss of the pairs of a list."""
        return self._loss_of(MinedPairs(inputs, self._listed(inputs, mined), self._measured, self.tile_rows))

    def _loss_of_tile(self, pairwise: Pairwise) -> tuple[str, Callable[[Tile, bool], TileLoss]] | None:
        """`_losses_of` the tile, differentiated."""
        return self.reduction, partial(differentiated, self._losses_among(pairwise), self.reduction)

    def _losses_among(self, compared: Pairwise | MinedPairs) -> Callable[[Tile], Tensor | Masked]:
        """`_losses_of`, for tiles of these rows and columns."""
        return self._losses_of

    def _loss_of(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns, whose positives come from labels or from a list."""
        caller, losses_of = type(self).__name__, self._losses_among(compared)
        if self.reduction != "none":
            loss_of = partial(differentiated, losses_of, self.reduction)
            return loss_from_pair_gradients(caller, compared, self.reduction, loss_of)

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            tiles = compared.tiles(*inputs)
            if not len(inputs[-1]):  # a row without columns may still have a loss
                d = compared.distance.tile(inputs[0], inputs[-1])  # [n, 0]
                tiles = [Tile(0, d, *compared.sides(slice(0, len(d))))]
            for tile in tiles:
                part = losses_of(tile)
                assert isinstance(part, Tensor)  # one by one they are chosen, not masked
                yield part

        return reduced(caller, "none", losses, *compared.inputs)


class PositivePlaces(NamedTuple):
    """The positive pairs of a tile; as many for each row where shapes may not depend on the data.

    Args:
        row: int64 [u], in rising order.
        column: int64 [u].
        real: bool [u], which are pairs, where each row has as many places; None where all are.
        rows: how many rows there are.
    """

    row: Int[Tensor, " u"]
    column: Int[Tensor, " u"]
    real: Bool[Tensor, " u"] | None
    rows: int

    @staticmethod
    def of(positive: Bool[Tensor, "a r"], most: int | None) -> PositivePlaces:
        """The places where `positive` is true; no row has more than `most`, where that is known."""
        a, r = positive.shape
        if not has_fixed_shapes(positive):
            return PositivePlaces(*true_places(positive), None, a)
        if torch.compiler.is_compiling():
            most = r
        elif most is None:
            most = int(positive.sum(1).max()) if positive.numel() else 0
        real, column = positive.float().topk(min(most, r), dim=1)  # [a, q]
        row = torch.arange(a, device=positive.device)[:, None].expand_as(column)
        return PositivePlaces(row.flatten(), column.flatten(), real.flatten() > 0, a)

    def sums(self, values: Float[Tensor, " u"]) -> Float[Tensor, " a"]:
        """The sum of each row's values."""
        if self.real is None:
            return values.new_zeros(self.rows).index_add(0, self.row, values)
        return values.masked_fill(~self.real, 0.0).view(self.rows, -1).sum(1)


class MinedPairs:
    """A list of mined tuples in the form of `Pairwise`: the listed columns are positive or negative.

    Args:
        inputs: features of the rows and of the columns, or one tensor that is both.
        mined: three index tensors, which count as their pairs (a, p) and (a, n), or four; of rows that exist.
        distance: a `Distance`.
        tile_rows: rows in a tile; None for as many as fit one table of distances.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> mined = [torch.tensor(v) for v in ([0, 0], [1, 1], [2, 3])]
        >>> pairs = MinedPairs((torch.eye(4),), mined, euclidean)
        >>> [(tile.positive.nonzero().tolist(), tile.negative.nonzero().tolist()) for tile in pairs.tiles()]
        [([[0, 1]], [[0, 2], [0, 3]])]
    """

    def __init__(
        self,
        inputs: tuple[Float[Tensor, "_ k"], ...],
        mined: Sequence[Int[Tensor, " _"]],
        distance: Distance,
        tile_rows: int | None = None,
    ) -> None:
        self.distance, self.inputs = distance, inputs
        self._pairs = pairs_of(mined)
        self.given_tile_rows = tile_rows
        self.tile_rows = tile_height(len(inputs[-1]), inputs[0], tile_rows)

    most_positives = None  # of a list the host knows the length alone

    def spans(self) -> Iterator[slice]:
        """The rows in blocks of `tile_rows`; none where there are no columns."""
        n = len(self.inputs[0]) if len(self.inputs[-1]) else 0
        for start in range(0, n, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, n))

    def sides(self, rows: slice) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which columns are listed as positive and which as negative for each of `rows`."""
        masks, height, r = [], rows.stop - rows.start, len(self.inputs[-1])
        every = height == len(self.inputs[0])
        fixed = not every and self.inputs[0].device.type != "cpu"
        for anchor, column in self._pairs if every or fixed else self._by_anchor:
            if fixed:  # the pairs of other rows are written to a place behind the table
                place = (anchor - rows.start) * r + column
                outside = (place < 0) | (place >= height * r)
                mask = anchor.new_zeros(height * r + 1, dtype=torch.bool)
                mask[place.masked_fill_(outside, height * r)] = True
                masks.append(mask[:-1].view(height, r))
                continue
            mask = anchor.new_zeros(height, r, dtype=torch.bool)
            if not every:
                ends = anchor.new_tensor([rows.start, rows.stop])
                here = slice(*torch.searchsorted(anchor, ends).tolist())
                anchor, column = anchor[here] - rows.start, column[here]
            mask[anchor, column] = True
            masks.append(mask)
        return masks[0], masks[1]

    def mirrored(self) -> MinedPairs:
        """The pairs (j, i) for (i, j), where the columns are the rows."""
        turned = copy(self)
        turned._pairs = tuple((column, anchor) for anchor, column in self._pairs)  # type: ignore[assignment]
        return turned

    @cached_property
    def _by_anchor(self) -> list[tuple[Tensor, Tensor]]:
        """The pairs sorted by anchor, as miners give them."""
        out = []
        for anchor, column in self._pairs:
            if bool((anchor[1:] < anchor[:-1]).any()):
                anchor, order = anchor.sort()
                column = column[order]
            out.append((anchor.contiguous(), column))
        return out

    def tiles(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[Tile]:
        """Anchors × columns, in row order; of `inputs`, where given, in place of `self.inputs`."""
        x, y = (inputs or self.inputs)[0], (inputs or self.inputs)[-1]
        for rows in self.spans():
            yield Tile(rows.start, self.distance.tile(x[rows], y), *self.sides(rows))

    def positive_pairs(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[PairTile]:
        """Listed positive pairs × columns, by anchor and then by positive; `inputs` as in `tiles`."""
        x, y = (inputs or self.inputs)[0], (inputs or self.inputs)[-1]
        return pairs_of_tiles(self.spans(), self.sides, lambda i: self.distance.tile(x[i], y), self.tile_rows)

    def triplets(self) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Every positive pair with every negative pair of its anchor, by anchor, positive and negative."""
        columns = len(self.inputs[-1])
        (a, p), (b, n) = (distinct(*side, columns) for side in self._pairs)
        first, last = torch.searchsorted(b, a), torch.searchsorted(b, a, right=True)
        pair = torch.arange(len(a), device=a.device).repeat_interleave(last - first)
        before = (last - first).cumsum(0) - (last - first)
        place = torch.arange(len(pair), device=a.device) + (first - before)[pair]
        return a[pair], p[pair], n[place]
