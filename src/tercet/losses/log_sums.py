"""log Σ exp over part of a row, whose gradient is the softmax of that part."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tercet.pairwise.masked import kept_where
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["log_sum", "log_sum_and_shares"]


def log_sum(logits: Float[Tensor, "a r"], mask: Bool[Tensor, "a r"], dim: int = 1) -> Float[Tensor, " _"]:
    """log Σ exp of the entries where `mask` is true, along `dim`; of none, the lowest finite number.

    Example:
        >>> log_sum(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[True, False, True]]))  # log 2
        tensor([0.6931])
    """
    if not has_fixed_shapes(logits) and dim == 1 and logits.numel():
        return _LogSum.apply(logits, mask)  # type: ignore[return-value]
    # Not −∞: logsumexp of −∞ alone has the derivative NaN.
    return torch.logsumexp(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=dim)


def log_sum_and_shares(
    logits: Float[Tensor, "a r"], mask: Bool[Tensor, "a r"]
) -> tuple[Float[Tensor, " a"], Float[Tensor, "a r"]]:
    """`log_sum` of each row and its gradient, which is the softmax of that part, on a processor.

    Example:
        >>> log_sum_and_shares(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[True, False, True]]))
        (tensor([0.6931]), tensor([[0.5000, 0.0000, 0.5000]]))
    """
    kept = kept_where(mask, -logits, inplace=True).neg_()  # [a, r], −∞ where the mask is false
    most = kept.amax(1)  # [a]
    shares = torch.softmax(kept, 1)  # [a, r], NaN where a row has none
    # The largest share is exp(most − log Σ exp), at least 1/r.
    found = most - shares.amax(1).log_()
    none = most == -torch.inf
    if bool(none.any()):
        shares[none], found[none] = 0.0, torch.finfo(logits.dtype).min
    return found, shares


class _LogSum(torch.autograd.Function):
    """By a softmax, one pass that is its own gradient, where `logsumexp` takes four and four in its backward.

    On a processor torch's `exp` also costs up to thirty times as much where its result underflows, as it does
    for most pairs of a steep loss; that of its softmax does not.
    """

    @staticmethod
    def forward(ctx: Any, logits: Any, mask: Any) -> Any:
        found, shares = log_sum_and_shares(logits, mask)
        ctx.save_for_backward(logits, mask, shares)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        logits, mask, shares = ctx.saved_tensors
        if torch.is_grad_enabled():  # the same by operations that have a derivative themselves
            kept = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
            shares = torch.softmax(kept, 1) * mask
        return grad[:, None] * shares, None
