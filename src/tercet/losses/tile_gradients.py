"""Losses over all pairs or triplets with their gradient, in the memory of a few tiles.

A loss that sees embeddings through their distances alone has the gradient Σ_ij w_ij ∇D_ij, w_ij = ∂L/∂D_ij.
A head gives its losses and w for one tile of distances at a time; here w becomes a gradient by the embeddings
through one or two matrix products a tile. No autograd graph of a tile is kept, and no list of tuples is made.
`losses/distance_gradients` says how, for each kind of distance.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.losses.distance_gradients import Compared, kind_of
from tercet.pairwise.accumulate import Masked, summed, with_gradient
from tercet.pairwise.budget import budget
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import full_precision, widest_float

__all__ = ["TileLoss", "averaged_by_anchor", "differentiated", "is_one_tile", "loss_from_pair_gradients"]


class TileLoss(NamedTuple):
    """The losses of one tile.

    Args:
        value: their sum, float64.
        count: how many of them the mean is over, int64.
        pair_gradients: float [a, r], w = ∂value/∂D; None where no gradient is wanted.
    """

    value: Float[Tensor, ""]
    count: Int[Tensor, ""]
    pair_gradients: Float[Tensor, "a r"] | None


def loss_from_pair_gradients(
    caller: str,
    compared: Compared,
    reduction: str,
    loss_of: Callable[[Tile, bool], TileLoss],
    symmetric: bool = False,
    extra: tuple[Float[Tensor, "..."], Float[Tensor, "..."]] | None = None,
) -> Float[Tensor, ""]:
    """A loss summed over tiles, from its derivative by each distance.

    Args:
        caller: the head that was called, for error messages.
        compared: rows and columns.
        reduction: `"mean_active"`, `"mean"` or `"sum"`.
        loss_of: (tile, whether pair gradients are wanted) → the losses of the tile; called without a graph.
        symmetric: w_ij = w_ji, so the gradient by the columns equals that by the rows and is not computed.
        extra: one more input that the loss depends on, and a tensor for its gradient, which `loss_of` fills.

    Returns:
        The loss, with a graph that can be differentiated once.
    """
    columns = compared.inputs[-1]
    inputs = compared.inputs if extra is None else (*compared.inputs, extra[0])
    compared = copy(compared)  # the caller's own keeps its height
    compared.tile_rows = _height(compared)
    sought = [torch.is_grad_enabled() and v.requires_grad for v in inputs]
    wanted = any(sought[: len(compared.inputs)])
    value = count = None
    with torch.no_grad(), full_precision(columns.device):
        gradient = kind_of(compared)(compared, symmetric, wanted)
        for rows in compared.spans():
            d = gradient.measure(rows)
            tile = Tile(rows.start, d, *compared.sides(rows), *gradient.resolution(rows))
            loss = loss_of(tile, any(sought))
            if value is None or count is None:
                value, count = loss.value, loss.count
            else:  # in place: small tensors kept between large temporaries fragment the allocator
                value += loss.value
                count += loss.count
            if wanted and loss.pair_gradients is not None:
                gradient.add(rows, loss.pair_gradients)
        gradients = gradient.by_inputs() if wanted else [None for _ in compared.inputs]
    if extra is not None:
        gradients = [*gradients, extra[1]]
    if value is None or count is None:
        value = columns.new_zeros((), dtype=widest_float(columns.device))
        count = columns.new_zeros((), dtype=torch.int64)
    return with_gradient(caller, reduction, value, count, gradients if any(sought) else [], inputs)


def averaged_by_anchor(
    sums: Float[Tensor, " a"], numbers: Int[Tensor, " a"], pair_gradients: Float[Tensor, "a r"] | None
) -> TileLoss:
    """The mean of each anchor's own losses, of which the mean is over the anchors that have any.

    Args:
        sums: of each anchor's losses.
        numbers: how many losses each anchor has.
        pair_gradients: of the sums by each distance, which are written over; None where none are wanted.

    Example:
        >>> averaged_by_anchor(torch.tensor([6.0, 0.0, 1.0]), torch.tensor([3, 0, 2]), None)[:2]
        (tensor(2.5000, dtype=torch.float64), tensor(2))
    """
    shares = numbers.clamp(min=1).to(sums.dtype).reciprocal_()  # [a]
    value = (sums * shares).sum(dtype=widest_float(sums.device))
    if pair_gradients is not None:
        pair_gradients = pair_gradients.mul_(shares[:, None])
    return TileLoss(value, numbers.count_nonzero(), pair_gradients)


def is_one_tile(compared: Compared) -> bool:
    """Whether `loss_of` is called with a tile of all rows."""
    return _height(compared) >= len(compared.inputs[0])


def _height(compared: Compared) -> int:
    """The rows of a tile, over which a head makes several passes."""
    if compared.given_tile_rows is not None:
        return compared.tile_rows
    columns, sizes = compared.inputs[-1], budget(compared.inputs[-1].device)
    height = max(sizes.head_tile_rows, sizes.head_tile_numbers // max(1, len(columns)))
    return min(compared.tile_rows, height)


def differentiated(
    losses_of: Callable[[Tile], Tensor | Masked], reduction: str, tile: Tile, wanted: bool
) -> TileLoss:
    """A `TileLoss` of the losses of a tile, differentiated by its distances through autograd."""
    if not wanted:
        return TileLoss(*summed(losses_of(tile), reduction), None)
    with torch.enable_grad():
        d = tile.distance.requires_grad_()
        value, count = summed(losses_of(tile._replace(distance=d)), reduction)
        pair_gradients = torch.autograd.grad(value, d)[0] if value.requires_grad else None
    d.requires_grad_(False)
    return TileLoss(value.detach(), count, pair_gradients)
