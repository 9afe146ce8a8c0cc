"""Softmax losses over one proxy a class: plain, with a margin on the angle, with a margin on the cosine."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import as_bool, as_float
from tercet.losses.softmax_head import SoftmaxHead
from tercet.pairwise.closed_forms import products

__all__ = ["ArcFace", "CosFace", "NormalizedSoftmax", "WithDerivative", "cosine_and_sine"]


class NormalizedSoftmax(SoftmaxHead):
    """The normalised softmax loss: the cross-entropy of the classes, by the cosine to their proxies.

    ℓ = −log(exp(s_y/T) / Σ_c exp(s_c/T)), s_c = cos(x, p_c)

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        temperature: T, above 0, in units of the cosine.
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
        >>> head = NormalizedSoftmax(num_classes=2, dim=2, temperature=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1))
        0.3133

    Reference:
        Zhai & Wu, "Classification is a strong baseline for deep metric learning", 2019.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        temperature: float = 0.05,
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
        self.temperature = as_float("NormalizedSoftmax", "temperature", temperature, above=0)

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """s/T."""
        return products(x, proxies / self.temperature)

    def _with_margin(
        self,
        scores: Float[Tensor, "n c"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c"]:
        return scores  # there is none

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        return own


class ArcFace(SoftmaxHead):
    """The ArcFace loss: a softmax over classes, with a margin m added to the angle to the own proxy.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ cos θ_c))), ψ(θ) = cos(θ + m)

    Beyond θ = π − m the cosine would rise again. There ψ(θ) = cos θ − m sin m, which keeps falling, after a
    step down of cos m + m sin m − 1 at π − m. With `easy_margin`, ψ(θ) = cos θ beyond π/2.

    cos(θ + m) = cos m cos θ − sin m sin θ, with sin θ = ‖p − cos θ·x‖, whose gradient is finite everywhere: 0
    at x = ±p.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: m, in radians, from 0 to π.
        scale: σ, above 0.
        easy_margin: True to add the margin to acute angles only.
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
        self.margin = as_float(type(self).__name__, "margin", margin, minimum=0, maximum=math.pi)
        self.scale = as_float(type(self).__name__, "scale", scale, above=0)
        self.easy_margin = as_bool("ArcFace", "easy_margin", easy_margin)

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """σ cos θ."""
        return products(x, proxies * self.scale)

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """σ ψ(θ)."""

        def turned(own: Tensor, x: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
            return self._turned(own, x, self._own_proxies(x, proxies, labels))

        return WithDerivative.apply(turned, own, x, proxies)

    def _own_proxies(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Of each row the proxy of its class."""
        return proxies[labels]

    def _turned(
        self, own: Float[Tensor, "n 1"], x: Float[Tensor, "n d"], proxies: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
        """σ ψ(θ), and dψ/d cos θ = cos m + sin m · cos θ / sin θ, of σ cos θ and the own proxies."""
        cosine, sine, slope = cosine_and_sine(own / self.scale, x, proxies)
        derivative = slope * math.sin(self.margin) + math.cos(self.margin)
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        last, step = -math.cos(self.margin), self.margin * math.sin(self.margin)
        if self.easy_margin:
            last, step = 0.0, 0.0
        near = cosine >= last
        return self.scale * torch.where(near, turned, cosine - step), torch.where(near, derivative, 1.0)


def cosine_and_sine(
    cosine: Float[Tensor, "n 1"], x: Float[Tensor, "n d"], proxies: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
    """cos θ, sin θ and cos θ / sin θ of rows and their proxies; the last is 0 where θ is rounding."""
    sine = torch.addcmul(proxies, cosine, x, value=-1).norm(dim=1, keepdim=True)
    none = sine <= 4 * torch.finfo(sine.dtype).eps  # the finite part of a derivative by cos θ
    return cosine, sine, cosine / sine.masked_fill(none, math.inf)


class WithDerivative(torch.autograd.Function):
    """A function of `own` and of other tensors, that gives its value and its derivative by `own`.

    The other tensors are constants to the first derivative; the second is that of the derivative, by all.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, own: Any, *others: Any) -> Any:
        value, derivative = function(own, *others)
        ctx.function = function
        ctx.save_for_backward(derivative, own, *others)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        derivative, *given = ctx.saved_tensors
        if torch.is_grad_enabled():
            _, derivative = ctx.function(*given)
        return None, grad * derivative, *(None for _ in given[1:])


class CosFace(SoftmaxHead):
    """The CosFace loss: a softmax over classes, with a margin m taken off the cosine to the own proxy.

    ℓ = −log(exp(σ(s_y − m)) / (exp(σ(s_y − m)) + Σ_{c≠y} exp(σ s_c))), s_c = cos(x, p_c)

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: m, in units of the cosine.
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
        >>> head = CosFace(num_classes=2, dim=2, margin=0.5, scale=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1/2))
        0.4741

    Reference:
        Wang, Wang, Zhou, Ji, Gong, Zhou, Li & Liu, "CosFace: large margin cosine loss for deep face
        recognition", 2018.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.35,
        scale: float = 64.0,
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
        self.margin = as_float("CosFace", "margin", margin)
        self.scale = as_float("CosFace", "scale", scale, above=0)

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """σ cos θ."""
        return products(x, proxies * self.scale)

    def _with_margin(
        self,
        scores: Float[Tensor, "n c"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c"]:
        less = scores.new_full((len(scores), 1), -self.margin * self.scale)
        return scores.scatter_add(1, labels[:, None], less)

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        return own - self.margin * self.scale
