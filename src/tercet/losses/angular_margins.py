"""Softmax losses whose margin depends on the row: on its angle, its length, or how far training has come."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import as_float, as_int
from tercet.losses.softmax import ArcFace, WithDerivative, cosine_and_sine
from tercet.losses.softmax_head import SoftmaxHead
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import cosine, dot

__all__ = ["AdaFace", "CurricularFace", "SphereFace"]


class SphereFace(SoftmaxHead):
    """The SphereFace loss: a softmax over classes, with the angle to the own proxy multiplied by m.

    ℓ = −log(exp(σ‖x‖ ψ(θ_y)) / (exp(σ‖x‖ ψ(θ_y)) + Σ_{c≠y} exp(σ‖x‖ cos θ_c))),
    ψ(θ) = (−1)ᵏ cos(mθ) − 2k for kπ/m ≤ θ ≤ (k + 1)π/m

    ψ falls from 1 to 1 − 2m. The lengths of embeddings count, those of proxies do not. The paper begins with
    a mean of ψ(θ) and cos θ, which it lets go; here the margin is whole from the start.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: m, a whole number from 1, a factor of the angle.
        scale: σ, above 0.
        label_smoothing: ε, from 0 to 1: the target of a row is 1 − ε for its class, and ε/C more for each.
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: `"mean"`, weighted by the rows' weights, `"sum"`, or `"none"` for the losses one by one.
        sample: how many classes a step in training mode draws, a share such as 0.1 or a whole number: a row
            is compared with these and the classes of the batch. `proxies` gets a sparse gradient then, which
            `SparseAdam` and `SGD` take. None for all classes.
        sharded: True to hold a part of the classes on each rank of torch.distributed, which all call the head
            together: each with its own rows, for the loss of all. Keep the head out of DDP.
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
        >>> head = SphereFace(num_classes=2, dim=2, margin=2)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> half = torch.tensor([[1.0, 1.0]])  # 45° to both, so ψ is cos 90°
        >>> round(head(half, torch.tensor([0])).item(), 4)  # log(1 + exp(√2 · √½))
        1.3133

    Reference:
        Liu, Wen, Yu, Li, Raj & Song, "SphereFace: deep hypersphere embedding for face recognition", 2017.
    """

    _measured = dot

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: int = 4,
        scale: float = 1.0,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        sample: float | None = None,
        sharded: bool = False,
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            seed,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            reduction=reduction,
            sample=sample,
            sharded=sharded,
            check_finite=check_finite,
        )
        self.margin = as_int("SphereFace", "margin", margin, minimum=1, maximum=64)
        self.scale = as_float("SphereFace", "scale", scale, above=0)

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """σ‖x‖ cos θ."""
        return products(x, proxies * self.scale)

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """σ‖x‖ ψ(θ)."""
        length = x.norm(dim=1, keepdim=True) * self.scale
        c = own / length.masked_fill(length == 0, 1.0)  # cos θ
        before, turned = torch.ones_like(c), c
        for _ in range(self.margin - 1):  # cos(nθ) = 2 cos θ cos((n − 1)θ) − cos((n − 2)θ)
            before, turned = turned, 2 * c * turned - before
        k = (c.detach().clamp(-1, 1).acos() * (self.margin / math.pi)).floor()
        return length * ((1 - 2 * (k % 2)) * turned - 2 * k)


class AdaFace(SoftmaxHead):
    """The AdaFace loss: a softmax over classes, with margins that grow with the quality of the image.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ cos θ_c))),
    ψ(θ) = cos(θ − m ẑ) − (m ẑ + m), ẑ = clip(h (‖x‖ − μ) / (s + 10⁻³), −1, 1)

    The length of an embedding tells how good its image is: μ and s are the running mean and deviation of
    lengths. At ẑ = −1 the margin is one of the angle, as in `ArcFace`; at 1 it stresses the rows near the
    decision boundary less. θ − m ẑ is kept within [0, π]. No gradient flows through ẑ.

    Embeddings must not be normalised before. μ and s are part of the state; they take in each batch in
    training mode, and are those of the first batch after it. In evaluation mode they stay.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: m, in radians and in units of the cosine, from 0 to π/2.
        scale: σ, above 0.
        h: the concentration of ẑ, above 0: at 1/3, a length of three deviations above the mean has ẑ = 1.
        momentum: the share of a batch in μ and s, above 0, at most 1.
        label_smoothing: ε, from 0 to 1: the target of a row is 1 − ε for its class, and ε/C more for each.
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: `"mean"`, weighted by the rows' weights, `"sum"`, or `"none"` for the losses one by one.
        sample: how many classes a step in training mode draws, a share such as 0.1 or a whole number: a row
            is compared with these and the classes of the batch. `proxies` gets a sparse gradient then, which
            `SparseAdam` and `SGD` take. None for all classes.
        sharded: True to hold a part of the classes on each rank of torch.distributed, which all call the head
            together: each with its own rows, for the loss of all. Keep the head out of DDP.
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
        >>> head = AdaFace(num_classes=2, dim=2, margin=0.5, scale=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)}, strict=False)
        >>> one = torch.tensor([[5.0, 0.0]])  # its length is the mean, so ẑ is 0 and ψ is cos θ − m
        >>> round(head(one, torch.tensor([0])).item(), 4)  # log(1 + exp(−1/2))
        0.4741
        >>> head.statistics.tolist()
        [5.0, 0.0]

    Reference:
        Kim, Jain & Liu, "AdaFace: quality adaptive margin for face recognition", 2022.
    """

    statistics: Tensor
    batches: Tensor
    _measured = dot

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.4,
        scale: float = 64.0,
        h: float = 1 / 3,
        momentum: float = 0.01,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        sample: float | None = None,
        sharded: bool = False,
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            seed,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            reduction=reduction,
            sample=sample,
            sharded=sharded,
            check_finite=check_finite,
        )
        self.margin = as_float("AdaFace", "margin", margin, minimum=0, maximum=math.pi / 2)
        self.scale = as_float("AdaFace", "scale", scale, above=0)
        self.h = as_float("AdaFace", "h", h, above=0)
        self.momentum = _share("AdaFace", momentum)
        self.register_buffer("statistics", torch.zeros(2))  # μ and s
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # how many they are of

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """σ cos θ."""
        return products(cosine.prepare(x), proxies * self.scale)

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """σ ψ(θ)."""
        z = self._quality(x.detach())

        def turned(own: Tensor, x: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
            c, sine, slope = cosine_and_sine(own / self.scale, x, proxies[labels])
            by, across = torch.cos(self.margin * z), -torch.sin(self.margin * z)  # of the angle −m ẑ
            outside = sine * by + c * across < 0  # sin(θ − m ẑ)
            value = torch.where(outside, c.sign(), c * by - sine * across)
            derivative = (slope * across + by).masked_fill(outside, 0.0)
            return self.scale * (value - self.margin * (z + 1)), derivative

        return WithDerivative.apply(turned, own, cosine.prepare(x), proxies)

    @torch.no_grad()
    def _quality(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        """ẑ."""
        length = x.norm(dim=1, keepdim=True)
        # One length has no deviation.
        found = torch.stack([length.mean(), length.std(correction=min(1, len(x) - 1))])
        kept = self.statistics.to(found)
        kept = torch.where(
            self.batches > 0, kept.lerp(found, self.momentum) if self.training else kept, found
        )
        if self.training:
            self.statistics.copy_(kept)
            self.batches += 1
        return ((length - kept[0]) / (kept[1] + 1e-3) * self.h).clamp(-1, 1)


class CurricularFace(ArcFace):
    """The CurricularFace loss: ArcFace, in which hard negatives count more the further training has come.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ N(cos θ_c)))),
    N(s) = s where s ≤ ψ(θ_y), s (t + s) otherwise; t ← (1 − α) t + α · mean of cos θ_y

    ψ is that of `ArcFace`. A class nearer than the own one with its margin is a hard negative: weighed down
    while t is near 0, and up once t + s is above 1. t is part of the state; it takes in each batch in
    training mode, before the batch's loss, and stays in evaluation mode.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: m, in radians, from 0 to π.
        scale: σ, above 0.
        momentum: α, the share of a batch in t, above 0, at most 1.
        label_smoothing: ε, from 0 to 1: the target of a row is 1 − ε for its class, and ε/C more for each.
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: `"mean"`, weighted by the rows' weights, `"sum"`, or `"none"` for the losses one by one.
        sample: how many classes a step in training mode draws, a share such as 0.1 or a whole number: a row
            is compared with these and the classes of the batch. `proxies` gets a sparse gradient then, which
            `SparseAdam` and `SGD` take. None for all classes.
        sharded: True to hold a part of the classes on each rank of torch.distributed, which all call the head
            together: each with its own rows, for the loss of all. Keep the head out of DDP.
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
        >>> head = CurricularFace(num_classes=2, dim=2, margin=0.0, scale=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)}, strict=False)
        >>> head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item() < 0.3133  # log(1 + exp(−1))
        True
        >>> round(head.t.item(), 4)
        0.01

    Reference:
        Huang, Wang, Tai, Liu, Shen, Li, Li & Huang, "CurricularFace: adaptive curriculum learning loss for
        deep face recognition", 2020.
    """

    t: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        momentum: float = 0.01,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        sample: float | None = None,
        sharded: bool = False,
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            margin=margin,
            scale=scale,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            reduction=reduction,
            sample=sample,
            sharded=sharded,
            seed=seed,
            check_finite=check_finite,
        )
        self.momentum = _share("CurricularFace", momentum)
        self.register_buffer("t", torch.zeros(()))

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """σ ψ(θ)."""
        if self.training:
            with torch.no_grad():
                self.t.lerp_((own.mean() / self.scale).to(self.t), self.momentum)
        return super()._own(own, x, proxies, labels)

    def _others(self, scores: Float[Tensor, "n c"], own: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        """σ N(cos θ)."""
        return torch.where(scores > own, scores * (scores / self.scale + self.t.to(scores)), scores)


def _share(caller: str, momentum: Any) -> float:
    as_float(caller, "momentum", momentum, above=0)
    return as_float(caller, "momentum", momentum, maximum=1)
