"""Sum a loss over tiles: each tile is differentiated and freed at once, and only input gradients are kept.

So a sum over any number of tiles takes the memory of one, and can be differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import refusal
from tercet.pairwise.torch_modes import full_precision, has_fixed_shapes, widest_float

__all__ = [
    "BY_ANCHOR",
    "REDUCTIONS",
    "Masked",
    "counted_losses",
    "once_differentiable",
    "refuse_second_derivative",
    "summed",
    "tiled_mean",
    "tiled_sum",
    "with_gradient",
]

REDUCTIONS = ("mean_active", "mean", "sum", "none")
"""How a head reduces its losses: mean of those above 0, mean of all, sum, or all of them as they are."""
BY_ANCHOR = "mean_per_anchor"
"""The mean over anchors of each anchor's mean: a reduction of heads of which an anchor has several losses."""


def tiled_sum(
    caller: str, terms: Callable[..., Iterator[tuple[Tensor, Tensor]]], *inputs: Float[Tensor, "..."]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The sum of a loss over tiles, with its gradient, and the sum of a count, in the memory of one tile.

    Each term is differentiated as soon as it is made, and freed. The result can be differentiated once;
    `create_graph=True` is refused.

    Args:
        caller: the head that was called, for error messages.
        terms: from tensors like `inputs`, yields (a scalar with its graph, a count) for each tile.
        inputs: what the gradient flows to.

    Returns:
        The sum, added up in float64 where the device has it and given in the inputs' precision, and the int64
        sum of the counts. Without terms it is 0, with a graph whose gradient is 0.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> total, count = tiled_sum("doc", lambda x: ((v.square(), torch.tensor(1)) for v in x), x)
        >>> total.backward()
        >>> total.item(), count.item(), x.grad.tolist()
        (5.0, 2, [2.0, 4.0])
    """
    value, count, gradients = _accumulated(terms, inputs)
    return with_gradient(caller, "sum", value, count, gradients, inputs), count


class Masked(NamedTuple):
    """Losses of which some do not count, in a shape that does not depend on the data.

    Args:
        losses: finite numbers of any shape.
        counts: which of them are losses.
    """

    losses: Float[Tensor, "*s"]
    counts: Bool[Tensor, "*s"]


def counted_losses(
    losses: Float[Tensor, "*s"], counts: Bool[Tensor, "*s"], reduction: str
) -> Float[Tensor, " t"] | Masked:
    """The losses that count; on an accelerator, which would be read to choose them, all with their mask.

    Example:
        >>> counted_losses(torch.tensor([1.0, 2.0]), torch.tensor([False, True]), "mean")
        tensor([2.])
    """
    chosen = reduction == "none" or not has_fixed_shapes(losses)
    return losses[counts] if chosen else Masked(losses, counts)


def summed(losses: Float[Tensor, " t"] | Masked, reduction: str) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """One term of `tiled_mean`: the sum of losses [t] in float64, and how many of them the mean is over."""
    counts = None
    if isinstance(losses, Masked):
        losses, counts = losses.losses.masked_fill(~losses.counts, 0.0), losses.counts
    if reduction == "mean_active":
        count = (losses.detach() > 0).sum()
    elif counts is not None:
        count = counts.sum()
    else:  # filled by a launch, where `torch.tensor` would copy the number up and wait
        count = torch.full((), len(losses), dtype=torch.int64, device=losses.device)
    return losses.sum(dtype=widest_float(losses.device)), count


def tiled_mean(
    caller: str,
    reduction: str,
    terms: Callable[..., Iterator[tuple[Tensor, Tensor]]],
    *inputs: Float[Tensor, "..."],
) -> Float[Tensor, ""]:
    """The sum of a loss over tiles, divided by the sum of the counts unless `reduction` is `"sum"`.

    Args:
        caller: the head that was called, for error messages.
        reduction: how a head reduces its losses.
        terms: from tensors like `inputs`, yields (a scalar with its graph, how many losses the mean is over).
        inputs: what the gradient flows to.

    Returns:
        The loss in the inputs' precision; 0 without terms, with a graph whose gradient is 0.
    """
    return with_gradient(caller, reduction, *_accumulated(terms, inputs), inputs)


def with_gradient(
    caller: str,
    reduction: str,
    value: Float[Tensor, ""],
    count: Int[Tensor, ""],
    gradients: Sequence[Float[Tensor, "..."] | None],
    inputs: Sequence[Float[Tensor, "..."]],
) -> Float[Tensor, ""]:
    """A loss whose gradient is known: a sum, divided by a count unless `reduction` is `"sum"`.

    Args:
        caller: the head that was called, for error messages.
        reduction: how a head reduces its losses.
        value: the sum, float64, without a graph.
        count: what it is divided by; 0 counts as 1.
        gradients: of the sum by each input, None for an input that wants none; empty if no input wants one.
        inputs: what the gradient flows to.
    """
    share = None if reduction == "sum" else count.clamp(min=1)
    loss = (value if share is None else value / share).to(inputs[0].dtype)
    return _Known.apply((caller, loss, share, gradients), *inputs) if gradients else loss


def _accumulated(
    terms: Callable[..., Iterator[tuple[Tensor, Tensor]]], inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The sum of the terms in `widest_float`, the sum of the counts, and the gradients that are wanted."""
    enabled = torch.is_grad_enabled()
    leaves = [v.detach().requires_grad_(enabled and v.requires_grad) for v in inputs]
    sought = [v for v in leaves if v.requires_grad]
    device = inputs[0].device
    total = torch.zeros((), dtype=widest_float(device), device=device)
    count = torch.zeros((), dtype=torch.int64, device=inputs[0].device)
    gradients = [torch.zeros_like(v) if v.requires_grad else None for v in leaves] if sought else []
    kept = [v for v in gradients if v is not None]
    # Without autocast, which would compute the gradients of float32 products in 16 bits.
    with full_precision(total.device), torch.set_grad_enabled(bool(sought)):
        for value, number in terms(*leaves):
            total += value.detach()
            count += number
            if value.requires_grad:
                parts = torch.autograd.grad(value, sought, allow_unused=True)
                for gradient, part in zip(kept, parts, strict=True):
                    if part is not None:
                        gradient += part
    return total, count, gradients


def once_differentiable(caller: str, loss: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The loss, which refuses `create_graph=True` as every tiled loss does, however it was computed."""
    return _Once.apply(caller, loss)  # type: ignore[return-value]


def refuse_second_derivative(caller: str, expected: str, hint: str) -> None:
    """Refuse `create_graph=True`, from a backward that cannot be differentiated itself.

    torch's own `once_differentiable` is not enough: it leaves a node that raises when it is visited, but
    `autograd.grad(gradient, inputs)` never visits it, and a gradient penalty is silently wrong.

    Args:
        caller: the head or function that was called, for error messages.
        expected: what would have been right.
        hint: what to do instead.

    Raises:
        ValueError: gradients are recorded while this one is computed.

    Example:
        >>> with torch.no_grad():  # as in every backward without create_graph
        ...     refuse_second_derivative("doc", "False", "differentiate once")
    """
    if torch.is_grad_enabled():
        raise refusal(caller, "create_graph", True, expected, hint)


_ONCE = (  # what is expected, and the hint
    "False, since this loss can be differentiated only once",
    'a head with proxies, or with reduction="none" except Circle, can be differentiated twice',
)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, caller: Any, loss: Any) -> Any:
        ctx.caller = caller
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        refuse_second_derivative(ctx.caller, *_ONCE)
        return None, grad


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, known: Any, *inputs: Any) -> Any:
        ctx.caller, loss, ctx.share, gradients = known
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        refuse_second_derivative(ctx.caller, *_ONCE)
        if ctx.share is not None:
            grad = grad / ctx.share
        return None, *(None if gradient is None else gradient * grad for gradient in ctx.saved_tensors)
