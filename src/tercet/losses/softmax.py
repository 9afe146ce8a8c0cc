"""Softmax losses over one proxy a class: plain, with a margin on the angle, with a margin on the cosine."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from tercet.checks import real
from tercet.losses.proxy import ProxyHead, cosines
from tercet.losses.rowwise import above_zero

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
        return cross_entropy(cosines(x, proxies) / self.temperature, labels)


class ArcFace(ProxyHead):
    """The cross-entropy of the classes, where the angle to the own proxy counts as m larger than it is.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ cos θ_c))), ψ(θ) = cos(θ + m)

    Beyond θ = π − m the cosine would rise again. There ψ(θ) = cos θ − m sin m, which keeps falling, after a
    step down of cos m + m sin m − 1 at π − m. With `easy_margin`, ψ(θ) = cos θ beyond π/2.

    θ comes from the chord, as 2 atan2(‖x − p‖, ‖x + p‖), so its gradient is finite everywhere: 0 at x = ±p.

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
        self.easy_margin = easy_margin

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        p, length = proxies[labels], torch.linalg.vector_norm
        theta = 2 * torch.atan2(length(x - p, dim=1), length(x + p, dim=1))  # [n]
        if self.easy_margin:
            last, beyond = math.pi / 2, torch.cos(theta)
        else:
            last, beyond = math.pi - self.margin, torch.cos(theta) - self.margin * math.sin(self.margin)
        own = torch.where(theta <= last, torch.cos(theta + self.margin), beyond)
        return _softmax_loss(cosines(x, proxies), own, labels, self.scale)


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
        s = cosines(x, proxies)
        return _softmax_loss(s, s.gather(1, labels[:, None])[:, 0] - self.margin, labels, self.scale)


def _softmax_loss(
    s: Float[Tensor, "n p"], own: Float[Tensor, " n"], labels: Int[Tensor, " n"], scale: float
) -> Float[Tensor, ""]:
    """The mean cross-entropy of `scale` · s, with `own` in the place of each row's own class."""
    return cross_entropy(scale * s.scatter(1, labels[:, None], own[:, None]), labels)
