"""A loss without softmax: the cosines to the proxies are to be 1 and 0."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from tercet.losses.proxy_head import ProxyHead
from tercet.pairwise.closed_forms import products

__all__ = ["P2SGrad"]


class P2SGrad(ProxyHead):
    """The loss whose gradient is P2SGrad: squared differences of the cosines from 1, or from 0.

    ℓ = ½ Σ_c (cos θ_c − [c = y])²

    Its gradient by cos θ_c is cos θ_c − [c = y], by the similarity itself where a softmax has a probability
    (equation 11 of the paper). So it has neither a scale nor a margin.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: `"mean"`, weighted by the rows' weights, `"sum"`, or `"none"` for the losses one by one.
        seed: a whole number from 0, which decides the first proxies: random directions of length 1.
        check_finite: when embeddings that are NaN, infinite or too large, and labels out of range, are
            refused. `"later"`: an accelerator answers without being waited for, and the next call on it
            raises what was wrong; on a processor at once. `"now"`: at once, and an accelerator is waited for.
            `"never"`: no check, and an accelerator takes the nearest class number instead.

    Returns:
        From the call `head(embeddings, labels)`, whose arguments `forward` lists: a scalar, 0 for an empty
        batch; with `reduction="none"` [n].

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> head = P2SGrad(num_classes=2, dim=2)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> head(torch.tensor([[5.0, 0.0]]), torch.tensor([1])).item()  # both cosines are 1 off
        1.0

    Reference:
        Zhang, Zhao, Yan, Li & Wang, "P2SGrad: refined gradients for optimizing deep face models", 2019.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        class_weight: Any = None,
        reduction: str = "mean",
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            seed,
            class_weight=class_weight,
            reduction=reduction,
            check_finite=check_finite,
        )

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """cos θ."""
        return products(x, proxies)

    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        s = self._scores(x, proxies)
        target = torch.zeros_like(s).scatter_(1, labels[:, None], 1.0)
        if weights is None and self.reduction == "mean":  # one operation, not four
            return mse_loss(s, target) * (s.shape[1] / 2)
        return self._reduced(mse_loss(s, target, reduction="none").sum(1) / 2, weights)
