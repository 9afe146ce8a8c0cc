"""Losses against proxies: learned points that stand for classes. Embeddings are not compared with each other.

A head compares directions alone: embeddings and proxies are divided by their lengths. Give proxies a
learning rate of their own, 10 to 100 times the model's; `ProxyHead` says why. The heads that are a softmax
over one proxy for each class are in `losses/softmax`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from tercet.core.checks import as_bool, as_float, as_int, as_seed, refusal
from tercet.core.indices import References
from tercet.core.randomness import derive_key
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import cosine
from tercet.pairwise.euclidean import distances_within
from tercet.pairwise.inputs import (
    allocated,
    as_time,
    check_at,
    clamped_classes,
    lack_of_data,
    unchecked_features,
)
from tercet.pairwise.relations import whole_numbers
from tercet.pairwise.torch_modes import outside_graph
from tercet.pairwise.traced import checked, finite

__all__ = ["ProxyAnchor", "ProxyHead", "ProxyNCA", "SoftTriple"]


class ProxyHead(nn.Module, ABC):
    """The loss of a batch against the parameter `proxies`: the checks that all heads with proxies share.

    A head adds its options and `_loss`, its equation over unit vectors.

    Proxies start with length 1. Their directions alone count, so a step turns a proxy by the step divided by
    its length, and the gradient is proportional to 1/length too: at one learning rate, longer proxies learn
    more slowly. Measured with all seven heads, two seeds, a small network and 100 classes of handwritten
    digits side by side, d = 32: MAP@R after 150 steps of Adam, the model at 10⁻³, was on average

    | rate of the proxies             | 10⁻³ | 10⁻² | 10⁻¹ |
    |---------------------------------|------|------|------|
    | from length 1                   | 0.34 | 0.42 | 0.46 |
    | from √d, as normal numbers have | 0.31 | 0.35 | 0.44 |

    SGD with momentum at 10⁻² for both gave 0.30 and 0.25. There the scale of 64 of `ArcFace` and `CosFace`
    asks for a rate of 10⁻³.

    Args:
        num_classes: how many classes there are.
        dim: d, the dimension of the embeddings.
        seed: names the first proxies, which are random directions of length 1.
        per_class: proxies of a class; those of class c are the rows from c · `per_class` on.
        check_finite: when embeddings and labels are looked at: "now", "later" or "never".

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, num_classes: int, dim: int, seed: int, per_class: int = 1, check_finite: str = "later"
    ) -> None:
        super().__init__()
        caller = type(self).__name__
        self.num_classes = as_int(caller, "num_classes", num_classes, minimum=2)
        self.dim = as_int(caller, "dim", dim, minimum=1)
        self.check_finite = as_time(caller, check_finite)
        generator = torch.Generator("cpu").manual_seed(derive_key("proxies", as_seed(caller, seed)))
        shape = (self.num_classes * per_class, self.dim)
        with allocated(caller, num_classes=shape[0], dim=self.dim):
            directions = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
            self.proxies = nn.Parameter(torch.empty(shape).copy_(normalize(directions)))

    @abstractmethod
    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """The loss of one or more unit vectors against unit proxies."""

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch.

        `torch.compile` traces the call into its graph, where what is wrong with embeddings and class numbers
        is raised when the graph is run. It waits for an accelerator with
        `check_finite="now"` alone. The loss can be differentiated twice.

        Args:
            embeddings: [n, d] floats of any precision; only their directions count.
            labels: [n] integers or bools, class numbers from 0 to `num_classes` − 1.
            mined: None, since embeddings are compared with proxies, not with each other.
            ids: [n] integers, checked and not used, for the same reason.
            ref: None, for the same reason.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            the batch is empty.

        Raises:
            ValueError: no labels, a label that is no class number, ids of another shape or kind, mined rows
                or references, NaN or infinite embeddings, or those of another dimension or device than the
                proxies.
        """
        plain = mined is None and ref is None and ids is None and isinstance(labels, Tensor)
        if torch.compiler.is_compiling() and plain and labels.ndim == 1 and self._is_traced(embeddings):  # type: ignore[union-attr]
            return self._traced(embeddings, labels)  # type: ignore[arg-type]
        return self._called(embeddings, labels, mined, ids, ref)

    def _is_traced(self, embeddings: Any) -> bool:
        """Whether `torch.compile` may trace the call."""
        floats = isinstance(embeddings, Tensor) and embeddings.ndim == 2 and embeddings.is_floating_point()
        return floats and embeddings.shape[1] == self.dim and len(embeddings) > 0

    def _traced(self, embeddings: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """The loss, in a graph that is traced."""
        caller, time = type(self).__name__, self.check_finite
        with torch.autocast(embeddings.device.type, enabled=False):
            x = cosine.prepare(embeddings)
            there = whole_numbers(caller, "labels", labels, len(x), x.device)
            within = there.clamp(0, self.num_classes - 1)
            loss = self._loss(x, cosine.prepare(self.proxies.to(x.dtype)), within)
        loss = finite(loss, x, caller, time)
        holds, (expected, hint) = (within == there).all(), self._class_numbers()
        return checked(loss, holds, time, caller, "labels", "others", expected, hint)

    def _class_numbers(self) -> tuple[str, str]:
        """What is expected of labels, and a hint."""
        expected = f"class numbers from 0 to {self.num_classes - 1}, as num_classes says"
        return expected, "torch.unique(all_labels, return_inverse=True) numbers classes"

    @outside_graph
    def _called(self, embeddings: Any, labels: Any, mined: Any, ids: Any, ref: Any) -> Float[Tensor, ""]:
        caller = type(self).__name__
        for argument, value in (("mined", mined), ("ref", ref)):
            if value is not None:
                expected = "None: embeddings meet proxies, not each other"
                hint = "call it with embeddings and labels"
                raise refusal(caller, argument, type(value).__name__, expected, hint)
        if labels is None:
            raise refusal(caller, "labels", None, "labels")
        (x,), checks = unchecked_features(embeddings, cosine)
        check_at(self.check_finite, checks, caller)
        if x.shape[1] != self.dim:
            raise refusal(
                caller, "embeddings", f"{x.shape[1]} dimensions", f"{self.dim}, as the proxies have"
            )
        if x.device != self.proxies.device:
            expected = f"the proxies' device {self.proxies.device}"
            raise refusal(caller, "embeddings", str(x.device), expected, "move the head with .to(device)")
        if isinstance(labels, Tensor) and not lack_of_data(labels) and labels.ndim > 1:
            expected = f"shape ({len(x)},), a class number for each embedding"
            hint = "take a head with relation= for several labels a row"
            raise refusal(caller, "labels", f"shape {tuple(labels.shape)}", expected, hint)
        there = whole_numbers(caller, "labels", labels, len(x), x.device)
        if ids is not None:
            whole_numbers(caller, "ids", ids, len(x), x.device)
        labels = self._checked_classes(labels, there)
        with torch.autocast(x.device.type, enabled=False):
            proxies = cosine.prepare(self.proxies.to(x.dtype))
            return self._loss(x, proxies, labels) if len(x) else (x.sum() + proxies.sum()) * 0

    def _checked_classes(self, labels: Tensor, there: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Labels on the device of the proxies, from 0 to `num_classes` − 1.

        Args:
            labels: [n], as they were given; on the host they are checked there, without a read.
            there: [n], on the device of the proxies.
        """
        caller = type(self).__name__
        here = labels.long() if labels.device.type == "cpu" else there
        expected, hint = self._class_numbers()
        if here.device.type != "cpu" and self.check_finite != "now":
            error = refusal(caller, "labels", "those of an earlier call", expected, hint)
            return clamped_classes(there, self.num_classes, self.check_finite, error)
        least, most = torch.stack(here.aminmax()).tolist() if len(here) else (0, 0)
        if least < 0 or most >= self.num_classes:
            outside = here[(here < 0) | (here >= self.num_classes)]
            raise refusal(caller, "labels", int(outside[0]), expected, hint)
        return there

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}
        if self.check_finite == "later":
            del options["check_finite"]
        return ", ".join(f"{name}={value}" for name, value in options.items())


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
        seed: a whole number from 0, which decides the first proxies: random directions of length 1.
        check_finite: when embeddings that are NaN, infinite or too large, and labels out of range, are
            refused. `"later"`: an accelerator answers without being waited for, and the next call on it
            raises what was wrong; on a processor at once. `"now"`: at once, and an accelerator is waited for.
            `"never"`: no check, and an accelerator takes the nearest class number instead.

    Returns:
        From the call `head(embeddings, labels)`, whose arguments `forward` lists: a scalar, 0 for an empty
        batch.

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
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(num_classes, dim, seed, check_finite=check_finite)
        self.plus_plus = as_bool("ProxyNCA", "plus_plus", plus_plus)
        if temperature is None:
            temperature = 1 / 9 if plus_plus else 1.0
        self.temperature = as_float("ProxyNCA", "temperature", temperature, above=0)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        nearness = products(x, proxies * (2 / self.temperature))  # −D/T + 2/T, [n, p]
        if self.plus_plus:
            return cross_entropy(nearness, labels)
        own = labels[:, None]
        others = nearness.scatter(1, own, -math.inf).logsumexp(1)
        return (others - nearness.gather(1, own)[:, 0]).mean()


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
        seed: a whole number from 0, which decides the first proxies: random directions of length 1.
        check_finite: when embeddings that are NaN, infinite or too large, and labels out of range, are
            refused. `"later"`: an accelerator answers without being waited for, and the next call on it
            raises what was wrong; on a processor at once. `"now"`: at once, and an accelerator is waited for.
            `"never"`: no check, and an accelerator takes the nearest class number instead.

    Returns:
        From the call `head(embeddings, labels)`, whose arguments `forward` lists: a scalar, 0 for an empty
        batch.

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
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(num_classes, dim, seed, check_finite=check_finite)
        self.margin = as_float("ProxyAnchor", "margin", margin)
        self.alpha = as_float("ProxyAnchor", "alpha", alpha, above=0)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        s, own, shift = products(x, proxies * self.alpha), labels[:, None], self.margin * self.alpha  # α s
        pulled, present = _log_sums(shift - s.gather(1, own)[:, 0], labels, len(proxies))  # [p]
        # Not −∞: the derivative of a sum over nothing but −∞ is NaN.
        pushed = s.scatter(1, own, torch.finfo(s.dtype).min).logsumexp(0) + shift
        return softplus(pulled).sum() / present + softplus(pushed).mean()


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
        seed: a whole number from 0, which decides the first centers: random directions of length 1.
        check_finite: when embeddings that are NaN, infinite or too large, and labels out of range, are
            refused. `"later"`: an accelerator answers without being waited for, and the next call on it
            raises what was wrong; on a processor at once. `"now"`: at once, and an accelerator is waited for.
            `"never"`: no check, and an accelerator takes the nearest class number instead.

    Returns:
        From the call `head(embeddings, labels)`, whose arguments `forward` lists: a scalar, 0 for an empty
        batch.

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
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        super().__init__(
            num_classes,
            dim,
            seed,
            as_int("SoftTriple", "centers", centers, minimum=1),
            check_finite=check_finite,
        )
        self.centers = len(self.proxies) // self.num_classes
        self.la = as_float("SoftTriple", "la", la, above=0)
        self.gamma = as_float("SoftTriple", "gamma", gamma, above=0)
        self.margin = as_float("SoftTriple", "margin", margin)
        self.tau = as_float("SoftTriple", "tau", tau, minimum=0)

    def _loss(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        near = products(x, proxies / self.gamma).unflatten(1, (self.num_classes, self.centers))  # [n, C, K]
        s = (near.softmax(2) * near).sum(2) * (self.gamma * self.la)  # [n, C], λ S
        s = s.scatter_add(1, labels[:, None], s.new_full((len(s), 1), -self.margin * self.la))
        loss = cross_entropy(s, labels)
        if self.tau == 0 or self.centers == 1:
            return loss
        w = proxies.unflatten(0, (self.num_classes, self.centers))  # [C, K, d]
        apart = distances_within(w).sum() / 2
        return loss + self.tau * apart / (self.num_classes * self.centers * (self.centers - 1))


def _log_sums(
    values: Float[Tensor, " n"], labels: Int[Tensor, " n"], count: int
) -> tuple[Float[Tensor, " p"], Int[Tensor, ""]]:
    """log Σ exp of the values of each class, −∞ where there are none, and how many classes have any."""
    most = values.new_full((count,), -math.inf).scatter_reduce(0, labels, values.detach(), "amax")
    sums = values.new_zeros(count).index_add(0, labels, torch.exp(values - most[labels]))
    absent = sums == 0  # not log 0: its second derivative is NaN
    return most + torch.log(sums.masked_fill(absent, 1.0)), (~absent).sum()
