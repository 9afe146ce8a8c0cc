"""Losses against proxies with equations of their own; those of a softmax alone are in `losses/softmax`."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from tercet.core.checks import as_bool, as_float, as_int, refusal
from tercet.losses.proxy_head import ProxyHead
from tercet.pairwise.closed_forms import products
from tercet.pairwise.euclidean import distances_within

__all__ = ["ProxyAnchor", "ProxyNCA", "SoftTriple"]


class ProxyNCA(ProxyHead):
    """The ProxyNCA loss: how near an embedding is to the proxies of other classes, against its own.

    ℓ = −log(exp(−D(x, p_y)/T) / Σ_{z≠y} exp(−D(x, p_z)/T)), D squared Euclidean on unit vectors

    The proxy of the class itself is not in the sum, so ℓ may be below 0. With `plus_plus` it is, and ℓ is the
    cross-entropy of a softmax: ProxyNCA++.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        plus_plus: True for ProxyNCA++.
        temperature: T, above 0, in units of the squared distance; None for 1, or for 1/9 with `plus_plus`.
        label_smoothing: ε, from 0 to 1: the target of a row is 1 − ε for its class, and ε/C more for each.
            With `plus_plus` alone, since the loss is no softmax otherwise.
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
        >>> head = ProxyNCA(num_classes=2, dim=2)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item()  # D is 0 to its own, 2 to the other
        -2.0

    Reference:
        Movshovitz-Attias, Toshev, Leung, Ioffe & Singh, "No fuss distance metric learning using proxies",
        2017. Teh, DeVries & Taylor, "ProxyNCA++: revisiting and revitalizing proxy neighborhood component
        analysis", 2020.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        plus_plus: bool = False,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
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
            check_finite=check_finite,
        )
        self.plus_plus = as_bool("ProxyNCA", "plus_plus", plus_plus)
        if temperature is None:
            temperature = 1 / 9 if plus_plus else 1.0
        self.temperature = as_float("ProxyNCA", "temperature", temperature, above=0)
        if self.label_smoothing and not self.plus_plus:
            expected = "0, since without the class's own proxy in its sum the loss is no softmax"
            raise refusal("ProxyNCA", "label_smoothing", label_smoothing, expected, "pass plus_plus=True")

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """2/T − D/T."""
        return products(x, proxies * (2 / self.temperature))

    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        nearness = self._scores(x, proxies)
        if self.plus_plus:
            return self._cross_entropy(nearness, labels, weights)
        own = labels[:, None]
        others = nearness.scatter(1, own, -math.inf).logsumexp(1)
        return self._reduced(others - nearness.gather(1, own)[:, 0], weights)


class ProxyAnchor(ProxyHead):
    """The proxy anchor loss: each proxy against all embeddings of the batch, its own class and the others.

    L = (1/|P⁺|) Σ_{p∈P⁺} log(1 + Σ_{x∈X⁺_p} exp(−α(s(x,p) − δ)))
      + (1/|P|) Σ_{p∈P} log(1 + Σ_{x∈X⁻_p} exp(α(s(x,p) + δ)))

    s is the cosine, P all proxies, P⁺ those whose class is in the batch, X⁺_p the embeddings of the class of
    p and X⁻_p the others.

    Args:
        num_classes: C, the number of classes, each with one proxy; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        margin: δ, in units of the cosine.
        alpha: α, above 0, the scale.
        class_weight: [num_classes] numbers of at least 0, how much the proxy of each class counts; None for
            equally much.
        reduction: `"mean"`, L; `"sum"`, the two sums without their divisors; `"none"`, the terms of both sums
            proxy by proxy, since the loss is one of proxies and not of rows.
        seed: a whole number from 0, which decides the first proxies: random directions of length 1.
        check_finite: when embeddings that are NaN, infinite or too large, and labels out of range, are
            refused. `"later"`: an accelerator answers without being waited for, and the next call on it
            raises what was wrong; on a processor at once. `"now"`: at once, and an accelerator is waited for.
            `"never"`: no check, and an accelerator takes the nearest class number instead.

    Returns:
        From the call `head(embeddings, labels)`, whose arguments `forward` lists: a scalar, 0 for an empty
        batch; with `reduction="none"` [num_classes].

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> head = ProxyAnchor(num_classes=2, dim=2, margin=0.0, alpha=1.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> loss = head(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)  # log(1 + exp(−1)) + log(1 + exp(0)) / 2
        0.6598

    Reference:
        Kim, Kim, Cho & Kwak, "Proxy anchor loss for deep metric learning", 2020.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.1,
        alpha: float = 32.0,
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
        self.margin = as_float("ProxyAnchor", "margin", margin)
        self.alpha = as_float("ProxyAnchor", "alpha", alpha, above=0)

    _per_row = False

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n p"]:
        """α s."""
        return products(x, proxies * self.alpha)

    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        s, own, shift = self._scores(x, proxies), labels[:, None], self.margin * self.alpha
        pulls = shift - s.gather(1, own)[:, 0]
        # Not −∞: the derivative of a sum over nothing but −∞ is NaN.
        lowest = torch.finfo(s.dtype).min
        if weights is not None:  # a row that weighs w is w equal rows: log w more in each sum
            more = weights.log().clamp(min=lowest)
            s, pulls = s + more[:, None], pulls + more
        pulled, present = _log_sums(pulls, labels, len(proxies), weights)  # [p]
        pushed = softplus(s.scatter(1, own, lowest).logsumexp(0) + shift)
        pulled = softplus(pulled)
        shares = self.class_weight
        if shares is not None:
            shares = shares.to(s)
            pulled, pushed = pulled * shares, pushed * shares
        if self.reduction != "mean":
            return pulled + pushed if self.reduction == "none" else pulled.sum() + pushed.sum()
        if shares is None:
            count = present.sum()
            return pulled.sum() / (count if weights is None else count.clamp(min=1)) + pushed.mean()
        least = torch.finfo(s.dtype).tiny
        counts = [(shares * present).sum(), shares.sum()]
        return pulled.sum() / counts[0].clamp(min=least) + pushed.sum() / counts[1].clamp(min=least)


class SoftTriple(ProxyHead):
    """The SoftTriple loss: a softmax over classes with several centers each, which may fall together.

    ℓ = −log(exp(λ(S_y − δ)) / (exp(λ(S_y − δ)) + Σ_{c≠y} exp(λ S_c))), S_c = Σ_k q_k x·w_ck,
    q = softmax_k(x·w_ck / γ); L = mean of ℓ + τ / (C K (K − 1)) Σ_c Σ_{s<t} ‖w_cs − w_ct‖

    x and w are unit vectors. The last term lets the centers of a class fall together where fewer are enough;
    where two coincide, its gradient is 0.

    Args:
        num_classes: C, the number of classes; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        centers: K; the centers of class c are the rows c·K to c·K + K − 1 of `proxies`.
        la: λ, above 0, the scale.
        gamma: γ, above 0, in units of the cosine: the smaller, the more the nearest center decides alone.
        margin: δ, in units of the cosine.
        tau: τ, at least 0, the weight of the last term.
        label_smoothing: ε, from 0 to 1: the target of a row is 1 − ε for its class, and ε/C more for each.
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: `"mean"`, weighted by the rows' weights, `"sum"`, or `"none"` for the losses one by one.
        seed: a whole number from 0, which decides the first centers: random directions of length 1.
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
        >>> head = SoftTriple(num_classes=2, dim=2, centers=1, la=1.0, margin=0.0)
        >>> _ = head.load_state_dict({"proxies": torch.eye(2)})
        >>> round(head(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item(), 4)  # log(1 + exp(−1))
        0.3133

    Reference:
        Qian, Shang, Sun, Hu, Li & Jin, "SoftTriple loss: deep metric learning without triplet sampling",
        2019.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        centers: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            seed,
            as_int("SoftTriple", "centers", centers, minimum=1),
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            reduction=reduction,
            check_finite=check_finite,
        )
        self.centers = self._per_class
        self.la = as_float("SoftTriple", "la", la, above=0)
        self.gamma = as_float("SoftTriple", "gamma", gamma, above=0)
        self.margin = as_float("SoftTriple", "margin", margin)
        self.tau = as_float("SoftTriple", "tau", tau, minimum=0)

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n c"]:
        """λ S."""
        near = products(x, proxies / self.gamma).unflatten(1, (self.num_classes, self.centers))  # [n, C, K]
        return (near.softmax(2) * near).sum(2) * (self.gamma * self.la)

    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        s = self._scores(x, proxies)
        s = s.scatter_add(1, labels[:, None], s.new_full((len(s), 1), -self.margin * self.la))
        loss = self._cross_entropy(s, labels, weights)
        if self.tau == 0 or self.centers == 1:
            return loss
        w = proxies.unflatten(0, (self.num_classes, self.centers))  # [C, K, d]
        apart = distances_within(w).sum() / 2
        return loss + self.tau * apart / (self.num_classes * self.centers * (self.centers - 1))


def _log_sums(
    values: Float[Tensor, " n"], labels: Int[Tensor, " n"], count: int, weights: Tensor | None
) -> tuple[Float[Tensor, " p"], Bool[Tensor, " p"]]:
    """log Σ exp of the values of each class, −∞ where there are none, and which classes have any.

    Values whose weight is 0 are none.
    """
    shown = values.detach()
    if weights is not None:
        values, shown = (v.masked_fill(weights == 0, -math.inf) for v in (values, shown))
    most = values.new_full((count,), -math.inf).scatter_reduce(0, labels, shown, "amax")
    # Of a class of weight 0, −∞ less the lowest number, and not −∞ − −∞, which is NaN.
    top = most if weights is None else most.clamp(min=torch.finfo(values.dtype).min)
    sums = values.new_zeros(count).index_add(0, labels, torch.exp(values - top[labels]))
    absent = sums == 0  # not log 0: its second derivative is NaN
    return most + torch.log(sums.masked_fill(absent, 1.0)), ~absent
