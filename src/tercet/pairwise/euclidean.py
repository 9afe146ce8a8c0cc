"""‖x − y‖ of every row with every column with the speed of a product and the digits of differences."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.differences import by_differences, chunks, listed_squares, squares_by_differences
from tercet.pairwise.masked import true_places
from tercet.pairwise.torch_modes import full_precision, roundoff

__all__ = [
    "NEAR",
    "centre_of",
    "distances_within",
    "fast_entries",
    "fast_tile",
    "lengths",
    "picked",
]

# Below this share of ‖x‖² + ‖y‖² a square by the product may be off by more than 2·10⁻⁵ of itself.
NEAR = 0.1


def distances_within(x: Float[Tensor, "*b a k"]) -> Float[Tensor, "*b a a"]:
    """`by_differences(x, x)` with a second derivative, which `torch.cdist` lacks; both are 0 where D is 0.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
        >>> (grad,) = torch.autograd.grad(distances_within(x).sum(), x, create_graph=True)
        >>> torch.autograd.grad(grad[0, 0], x)[0]
        tensor([[ 0.2560, -0.1920],
                [-0.2560,  0.1920]])
    """
    return _Within.apply(x)


def lengths(x: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """‖x_i‖ with a second derivative that is finite everywhere, as that of `vector_norm` is not at 0.

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    return _Lengths.apply(x)


def fast_tile(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], root: bool) -> Float[Tensor, "a r"]:
    """‖x_i − y_j‖, or its square, to 10⁻⁵ of itself; 0 for equal rows, where the gradient is 0 too.

    The product gives those pairs that are not near each other, measured by their norms about the columns'
    centre; the near ones, normally few, are computed by differences, in the gradient as well.
    """
    with full_precision(x.device):
        return _Tile.apply(x, y, root)


def fast_entries(
    x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"], root: bool
) -> Float[Tensor, " t"]:
    """`fast_tile(x, y, root)[i, j]`: differences are taken of those near pairs alone that are asked for.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> fast_entries(x, x, torch.tensor([0, 2]), torch.tensor([2, 1]), root=True)
        tensor([3., 2.])
    """
    with full_precision(x.device):
        return _Entries.apply(x, y, i, j, root)


def picked(x: Float[Tensor, "n *k"], rows: Int[Tensor, " t"]) -> Float[Tensor, "t *k"]:
    """x[rows]; on a processor by `index_select`: faster, but its gradient on a card has no order."""
    return x.index_select(0, rows) if x.device.type == "cpu" else x[rows]


def centre_of(x: Float[Tensor, "n k"], y: Float[Tensor, "r k"]) -> Float[Tensor, " k"]:
    """The mean of y; on the grid of x and y where they stand on one, so coarse that products on it are exact.

    Then ‖x − c‖² + ‖y − c‖² − 2(x − c)·(y − c) is exactly the sum of squared differences: what is decided by
    a product in a head is what differences decide in a miner.

    Example:
        >>> centre_of(torch.zeros(1, 1), torch.tensor([[0.0], [1.0], [1.0]]))
        tensor([0.6670])
    """
    if not y.numel():
        return y.new_zeros(y.shape[1])
    centre, bits = y.mean(0), _exact_bits(y.shape[1], y.dtype)
    if y.device.type == "cpu":  # a look at one number tells almost always, and costs next to nothing
        value, about = float(y.numpy()[0, 0]), float(centre.numpy()[0])
        grain = math.ldexp(1.0, math.frexp(value - about)[1] - bits)  # that of all is no finer
        if value != about and (not grain or value % grain):
            return centre
    both = [v for v in ((y,) if x is y else (x, y)) if v.numel()]
    reach = torch.stack([(v - centre).abs().amax() for v in both]).amax()
    grain = torch.ldexp(torch.ones_like(reach), torch.frexp(reach).exponent - bits)
    on_grid = torch.stack([((v / grain).frac() == 0).all() for v in both]).all()
    return torch.where(on_grid, (centre / grain).round() * grain, centre)


@functools.cache
def _exact_bits(k: int, dtype: torch.dtype) -> int:
    """How many bits numbers on a grid may have, and one more, so that 3·k squares of them add up exactly."""
    digits = 53 if dtype == torch.float64 else 24
    return int((digits - 2 - math.log2(3 * k)) // 2)


def _by_product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "a r"]]:
    """The columns' centre, the squares ‖u_i‖² and ‖v_j‖² of what lies about it, and ‖u_i − v_j‖²."""
    centre = centre_of(x, y)
    u, v = x - centre, y - centre
    uu, vv = u.square().sum(1), v.square().sum(1)
    return centre, uu, vv, torch.addmm(vv, u, v.T, alpha=-2).add_(uu[:, None])


class _Tile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, root: bool) -> Any:
        ctx.root = root
        centre, uu, vv, out = _by_product(x, y)
        i, j = true_places(out <= NEAR * (uu[:, None] + vv))
        ctx.dense = roundoff(x) > 2.0**-24 or 8 * len(i) > out.numel()
        if ctx.dense:
            out = by_differences(x, y) if root else squares_by_differences(x, y)
            ctx.save_for_backward(x, y, out)
            return out
        out[i, j] = listed_squares(x, y, i, j)
        if root:
            out.sqrt_()
        ctx.save_for_backward(x, y, centre, out if root else None, i, j)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if ctx.dense:
            x, y, out = ctx.saved_tensors
            by_x = _pull_by_differences(x, y, out, grad, ctx.root)
            return by_x, _pull_by_differences(y, x, out.mT, grad.mT, ctx.root), None
        x, y, centre, out, i, j = ctx.saved_tensors
        weight = _weights(out, grad)  # [a, r]
        near = weight[i, j]
        weight[i, j] = 0.0
        return *_pulls(ctx, x, y, centre, weight, (i, j, near)), None


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, i: Any, j: Any, root: bool) -> Any:
        centre, uu, vv, table = _by_product(x, y)
        out = table.view(-1).index_select(0, i * len(y) + j)
        near = i[:0]
        if bool(out.amin() <= NEAR * (uu.amax() + vv.amax())):
            (near,) = (out <= NEAR * (uu.index_select(0, i) + vv.index_select(0, j))).nonzero(as_tuple=True)
            out[near] = listed_squares(x, y, i[near], j[near])
        if root:
            out.sqrt_()
        ctx.save_for_backward(x, y, centre, out if root else None, i, j, near)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y, centre, out, i, j, near = ctx.saved_tensors
        weight = _weights(out, grad)  # [t]
        apart = weight[near]
        weight[near] = 0.0
        place = i * len(y) + j
        table = weight.new_zeros(len(x) * len(y), dtype=torch.float64)  # a pair may be listed a million times
        if table.device.type == "cpu":
            table.index_add_(0, place, weight.double())
        else:  # in an order that does not change
            table.index_put_((place,), weight.double(), accumulate=True)
        table = table.to(weight.dtype)
        pulls = _pulls(ctx, x, y, centre, table.view(len(x), -1), (i[near], j[near], apart))
        return *pulls, None, None, None


class _Lengths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = torch.linalg.vector_norm(x, dim=1)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, out = ctx.saved_tensors
        return _weights(out, grad)[:, None] * x


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = by_differences(x, x)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, out = ctx.saved_tensors
        return _pull_by_differences(x, x, out, grad + grad.mT, root=True)


# Every backward here is made of operations that have a derivative themselves, so `create_graph=True` gives
# second derivatives. `out` is then the saved output with its graph, and is not divided by where it is 0: what
# is masked afterwards would still be NaN in the second derivative.


def _weights(out: Tensor | None, grad: Tensor) -> Tensor:
    """What x − y is multiplied by in the gradient: D = ‖x − y‖ has (x − y) / D, its square 2(x − y)."""
    if out is None:
        return 2 * grad
    if torch.is_grad_enabled():
        return grad / out.masked_fill(out == 0, math.inf)
    return (grad / out).masked_fill_(out == 0, 0.0)


def _pulls(
    ctx: Any, x: Tensor, y: Tensor, centre: Tensor, weight: Tensor, near: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Σ w (x_i − y_j) by row, −Σ by column: a table of w by products, near (i, j, w) by differences."""
    u, v = x - centre, y - centre
    by_x = by_y = None
    with full_precision(x.device):
        if ctx.needs_input_grad[0]:
            by_x = (weight.sum(1)[:, None] * u).addmm_(weight, v, alpha=-1)
        if ctx.needs_input_grad[1]:
            by_y = (weight.sum(0)[:, None] * v).addmm_(weight.T, u, alpha=-1)
    for rows, columns, w in chunks(x.shape[1], *near):
        part = w[:, None] * (x[rows] - y[columns])
        if by_x is not None:
            by_x.index_add_(0, rows, part)
        if by_y is not None:
            by_y.index_add_(0, columns, part, alpha=-1)
    return by_x, by_y


def _pull_by_differences(x: Tensor, y: Tensor, out: Tensor, grad: Tensor, root: bool) -> Tensor:
    """Σ_j w_ij (x_i − y_j); with a graph of all a·r·k differences where one is recorded."""
    if torch.is_grad_enabled():
        weight = _weights(out if root else None, grad)
        return (weight[..., None] * (x[..., :, None, :] - y[..., None, :, :])).sum(-2)
    if not root:
        out = out.sqrt()
        grad = 2 * grad * out
    # The backward of `cdist` by itself: to get there through autograd would be to measure once more.
    return torch.ops.aten._cdist_backward(grad.contiguous(), x, y, 2.0, out.contiguous())
