"""Softmax losses over one proxy a class: plain, with a margin on the angle, with a margin on the cosine."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from tercet.checks import flag, real
from tercet.losses.head import above_zero
from tercet.losses.proxy import ProxyHead
from tercet.losses.rowwise import products

__all__ = ["ArcFace", "CosFace", "NormalizedSoftmax"]


class NormalizedSoftmax(ProxyHead):
    """The cross-entropy of the classes, by the cosine to their proxies.

    ℓ = −log(exp(s_y/T) / Σ_c exp(s_c/T)), s_c = cos(x, p_c)

    Args:
        num_classes: how many classes, and proxies, there are.
        dim: d, the dimension of the embeddings.
        temperature: T, above 0.
        seed: names the first proxies, which are random directions of length 1.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> head = NormalizedSoftmax(num_classes=2, dim=2, temperature=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1))
        0.3133

    Reference:
        Zhai & Wu, "Classification is a strong baseline for deep metric learning", 2019.
    """

    def __init__(self, num_classes: int, dim: int, *, temperature: float = 0.05, seed: int = 0) -> None:
        super().__init__(num_classes, dim, seed)
        self.temperature = above_zero("NormalizedSoftmax", "temperature", temperature)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        return cross_entropy(products(x, proxies / self.temperature), labels)


class ArcFace(ProxyHead):
    """The cross-entropy of the classes, where the angle to the own proxy counts as m larger than it is.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ cos θ_c))), ψ(θ) = cos(θ + m)

    Beyond θ = π − m the cosine would rise again. There ψ(θ) = cos θ − m sin m, which keeps falling, after a
    step down of cos m + m sin m − 1 at π − m. With `easy_margin`, ψ(θ) = cos θ beyond π/2.

    cos(θ + m) = cos m cos θ − sin m sin θ, with sin θ = ‖p − cos θ·x‖, whose gradient is finite everywhere: 0
    at x = ±p.

    Args:
        num_classes: how many classes, and proxies, there are.
        dim: d, the dimension of the embeddings.
        margin: m, in radians, from 0 to π.
        scale: σ, above 0.
        easy_margin: add the margin to acute angles only.
        seed: names the first proxies, which are random directions of length 1.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> head = ArcFace(num_classes=2, dim=2, margin=math.pi / 3, scale=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1/2))
        0.4741

    Reference:
        Deng, Guo, Xue & Zafeiriou, "ArcFace: additive angular margin loss for deep face recognition", 2019.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        easy_margin: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, dim, seed)
        self.margin = real("ArcFace", "margin", margin, minimum=0, maximum=math.pi)
        self.scale = above_zero("ArcFace", "scale", scale)
        self.easy_margin = flag("ArcFace", "easy_margin", easy_margin)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        s = products(x, proxies * self.scale)  # [n, p], σ cos θ
        own, own_proxies = s.gather(1, labels[:, None]), proxies[labels]
        with torch.no_grad():
            cosine, sine = self._angle(own, x, own_proxies)
            turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
            step = 0.0 if self.easy_margin else self.margin * math.sin(self.margin)
            value = self.scale * torch.where(cosine >= self._last, turned, cosine - step)
        turned = _WithSlope.apply(value, self._slope, own, x, own_proxies)
        return cross_entropy(s.scatter(1, labels[:, None], turned), labels)

    @property
    def _last(self) -> float:
        """cos θ of the largest angle that the margin is added to."""
        return 0.0 if self.easy_margin else -math.cos(self.margin)

    def _angle(
        self, own: Float[Tensor, "n 1"], x: Float[Tensor, "n d"], own_proxies: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
        """cos θ and sin θ."""
        cosine = own / self.scale
        return cosine, torch.addcmul(own_proxies, cosine, x, value=-1).norm(dim=1, keepdim=True)

    def _slope(
        self, own: Float[Tensor, "n 1"], x: Float[Tensor, "n d"], own_proxies: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n 1"]:
        """dψ/d cos θ = cos m + sin m · cos θ / sin θ; where θ is rounding, its part that is finite."""
        cosine, sine = self._angle(own, x, own_proxies)
        none = sine <= 4 * torch.finfo(sine.dtype).eps
        slope = cosine / sine.masked_fill(none, math.inf) * math.sin(self.margin) + math.cos(self.margin)
        return torch.where(cosine >= self._last, slope, 1.0)


class _WithSlope(torch.autograd.Function):
    """`value` as a function of `own` with the slope `slope_of(own, *beside)`, which may have a graph."""

    @staticmethod
    def forward(ctx: Any, value: Any, slope_of: Any, own: Any, *beside: Any) -> Any:
        ctx.slope_of = slope_of
        ctx.save_for_backward(own, *beside)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        own, *beside = ctx.saved_tensors
        return None, None, grad * ctx.slope_of(own, *beside), *(None for _ in beside)


class CosFace(ProxyHead):
    """The cross-entropy of the classes, where the cosine to the own proxy counts as m smaller than it is.

    ℓ = −log(exp(σ(s_y − m)) / (exp(σ(s_y − m)) + Σ_{c≠y} exp(σ s_c))), s_c = cos(x, p_c)

    Args:
        num_classes: how many classes, and proxies, there are.
        dim: d, the dimension of the embeddings.
        margin: m, in units of the cosine.
        scale: σ, above 0.
        seed: names the first proxies, which are random directions of length 1.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> head = CosFace(num_classes=2, dim=2, margin=0.5, scale=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1/2))
        0.4741

    Reference:
        Wang, Wang, Zhou, Ji, Gong, Zhou, Li & Liu, "CosFace: large margin cosine loss for deep face
        recognition", 2018.
    """

    def __init__(
        self, num_classes: int, dim: int, *, margin: float = 0.35, scale: float = 64.0, seed: int = 0
    ) -> None:
        super().__init__(num_classes, dim, seed)
        self.margin = real("CosFace", "margin", margin)
        self.scale = above_zero("CosFace", "scale", scale)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        s = products(x, proxies * self.scale)  # [n, p], σ cos θ
        margin = s.new_full((len(s), 1), -self.margin * self.scale)
        return cross_entropy(s.scatter_add(1, labels[:, None], margin), labels)
