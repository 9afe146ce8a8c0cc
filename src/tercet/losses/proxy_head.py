"""What heads with proxies share: the parameter, the call, weights of rows and classes, and new classes.

Proxies are learned points that stand for classes; embeddings are compared with them, not with each other.
Give them a learning rate of their own, 10 to 100 times the model's; `ProxyHead` says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tercet.core.checks import as_choice, as_float, as_int, as_seed, border, refusal
from tercet.core.indices import References
from tercet.losses.first_proxies import first_proxies
from tercet.losses.row_weights import as_weights, named_rows
from tercet.pairwise.distances import Distance, cosine
from tercet.pairwise.inputs import (
    allocated,
    as_time,
    check_at,
    clamped_classes,
    lack_of_data,
    unchecked_features,
)
from tercet.pairwise.relations import whole_numbers
from tercet.pairwise.torch_modes import full_precision, outside_graph
from tercet.pairwise.traced import checked, finite

__all__ = ["ProxyHead"]

_REDUCTIONS = ("mean", "sum", "none")
_USUAL = {
    "check_finite": "later",
    "reduction": "mean",
    "label_smoothing": 0.0,
    "sample": None,
    "sharded": False,
}  # not shown when printed


class ProxyHead(nn.Module, ABC):
    """The loss of a batch against the parameter `proxies`: the checks that all heads with proxies share.

    A head adds its options, `_scores`, the classes' scores of unit vectors, and `_loss`, its equation. That
    ends in `_cross_entropy` or `_reduced`, which weigh the losses of rows and reduce them.

    Proxies start with length 1. Their directions alone count, so a step turns a proxy by the step divided by
    its length, and the gradient is proportional to 1/length too: at one learning rate, longer proxies learn
    more slowly. Measured with seven heads, two seeds, a small network and 100 classes of handwritten
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
        label_smoothing: ε, the share of each target that is spread over all classes.
        class_weight: [num_classes] numbers of at least 0, how much the rows of each class count; None for
            equally much.
        reduction: "mean", weighted by the rows' weights, "sum", or "none" for the losses one by one.
        check_finite: when embeddings and labels are looked at: "now", "later" or "never".
        held: the number r of this process and how many, R, share the classes: it holds the proxies of the
            classes r, r + R, r + 2R, … in that order.

    Raises:
        ValueError: an option out of range.
    """

    class_weight: Tensor | None
    _measured: Distance = cosine  # `dot` of a head to which the lengths of embeddings count
    _per_row: bool = True  # whether the losses are those of rows

    def __init__(
        self,
        num_classes: int,
        dim: int,
        seed: int,
        per_class: int = 1,
        *,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        check_finite: str = "later",
        held: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        caller = type(self).__name__
        self.num_classes = as_int(caller, "num_classes", num_classes, minimum=2)
        self.dim = as_int(caller, "dim", dim, minimum=1)
        self.label_smoothing = as_float(caller, "label_smoothing", label_smoothing, minimum=0, maximum=1)
        # A checker of types draws an item of a sequence it is shown, and heads leave Python's draws alone.
        usual = isinstance(reduction, str) and reduction in _REDUCTIONS
        self.reduction = reduction if usual else as_choice(caller, "reduction", reduction, _REDUCTIONS)
        self.check_finite = as_time(caller, check_finite)
        self._per_class, self._seed, self._held = per_class, as_seed(caller, seed), held
        weights = None
        if class_weight is not None:
            weights = as_weights(caller, "class_weight", class_weight, self.num_classes, "num_classes")
        self.register_buffer("class_weight", weights, persistent=False)  # an option, not what was learned
        self.proxies = nn.Parameter(self._drawn(self.num_classes))

    def _drawn(self, num_classes: int, first: int = 0) -> Float[Tensor, "p d"]:
        """The first proxies of the classes held here from class `first` on, of so many in all.

        They are on the default device in the default precision.
        """
        (rank, ranks), k = self._held, self._per_class
        before = len(range(rank, first, ranks))
        own = len(range(rank, num_classes, ranks)) - before
        with allocated(type(self).__name__, num_classes=num_classes * k, dim=self.dim):
            proxies = torch.empty(own * k, self.dim)
            for block, directions in first_proxies(self._seed, num_classes * k, self.dim):
                row = torch.arange(block.start, block.stop, device="cpu")
                held = (row // k % ranks == rank) & (row // k >= first)
                place = (row // k // ranks - before) * k + row % k
                proxies[place[held].to(proxies.device)] = directions[held].to(proxies)
        return proxies

    @abstractmethod
    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n c"]:
        """The scores of the classes, without margin."""

    @abstractmethod
    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        """The loss of one or more unit vectors against unit proxies, reduced.

        Args:
            x: [n, d].
            proxies: [p, d].
            labels: [n], class numbers.
            weights: [n], how much each row counts; None for equally much.
        """

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
        weight: Shaped[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the batch.

        `torch.compile` traces a call without mined tuples into its graph, where what is wrong with
        embeddings, class numbers and weights is raised when the graph is run. It waits for an accelerator
        with `check_finite="now"` alone. The loss can be differentiated twice.

        Args:
            embeddings: [n, d] floats of any precision; only their directions count, unless the head says
                otherwise.
            labels: [n] integers or bools, class numbers from 0 to `num_classes` − 1.
            mined: `Triplets` or `Pairs` of rows of the batch: a row counts as often as they name it. They
                choose rows alone, since embeddings are compared with proxies, not with each other. None for
                every row once.
            ids: [n] integers, checked and not used, for the same reason.
            ref: None, for the same reason.
            weight: [n] numbers of at least 0, how much each row counts: 2 as two rows of its kind, 0 as none.
                They are constants to the gradient, and are multiplied with those of classes and `mined`.
                None for 1.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            the batch is empty or no row counts. With `reduction="none"` [n], the weighted losses of the rows.

        Raises:
            ValueError: no labels, a label that is no class number, ids of another shape or kind, mined rows
                that do not exist, references, weights that are below 0 or not finite, NaN or infinite
                embeddings, or those of another dimension or device than the proxies.
        """
        plain = mined is None and ref is None and ids is None and isinstance(labels, Tensor)
        if torch.compiler.is_compiling() and plain and labels.ndim == 1 and self._is_traced(embeddings):  # type: ignore[union-attr]
            return self._traced(embeddings, labels, weight)  # type: ignore[arg-type]
        return self._called(embeddings, labels, mined, ids, ref, weight)

    @outside_graph
    def logits(self, embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """The scores of all classes, scaled as in the loss and without its margin: for the training accuracy.

            accuracy = (head.logits(embeddings).argmax(1) == labels).float().mean()

        Args:
            embeddings: [n, d] floats of any precision.

        Returns:
            Floats [n, num_classes] with a graph; the class of a row's highest score is the nearest.

        Raises:
            ValueError: NaN or infinite embeddings, or those of another dimension or device than the proxies.
        """
        x = self._features(embeddings)
        with full_precision(x.device):
            return self._scores(x, cosine.prepare(self.proxies.to(x.dtype)))

    @torch.no_grad()
    def add_classes(self, n: int, embeddings: Shaped[Tensor, "m d"] | None = None) -> None:
        """Append classes, which get the numbers from `num_classes` on; the proxies that were learned stay.

        `proxies` is a new parameter then, which no optimiser knows: make the optimiser anew afterwards. Its
        running means start again, for old classes too.

        Args:
            n: how many classes are added, at least 1.
            embeddings: [n, d] floats whose directions the new proxies have, such as the mean embedding of
                each class; [n · K, d] where a class has K proxies. None for random ones: those that a head
                made with so many classes and the same seed has.

        Raises:
            ValueError: n below 1, or embeddings of another shape, NaN or infinite.
        """
        caller, old = type(self).__name__, self.proxies
        total = self.num_classes + as_int(caller, "n", n, minimum=1)
        if embeddings is None:
            new = self._drawn(total, self.num_classes)
        else:
            with border(caller):
                (new,), checks = unchecked_features(embeddings, cosine)
                check_at("now", checks, caller)
            if new.shape != (n * self._per_class, self.dim):
                expected = f"({n * self._per_class}, {self.dim}), a direction for each new proxy"
                raise refusal(caller, "embeddings", f"shape {tuple(new.shape)}", expected)
            rank, ranks = self._held
            here = torch.arange(self.num_classes, total) % ranks == rank
            new = new.unflatten(0, (n, self._per_class))[here.to(new.device)].flatten(0, 1)
        self.proxies = nn.Parameter(torch.cat([old, new.to(old)]), old.requires_grad)
        self.num_classes = total
        if self.class_weight is not None:
            self.class_weight = torch.cat([self.class_weight, self.class_weight.new_ones(n)])

    def _is_traced(self, embeddings: Any) -> bool:
        """Whether `torch.compile` may trace the call."""
        floats = isinstance(embeddings, Tensor) and embeddings.ndim == 2 and embeddings.is_floating_point()
        return floats and embeddings.shape[1] == self.dim and len(embeddings) > 0

    def _traced(self, embeddings: Tensor, labels: Tensor, weight: Any) -> Float[Tensor, "..."]:
        """The loss, in a graph that is traced."""
        caller, time = type(self).__name__, self.check_finite
        with torch.autocast(embeddings.device.type, enabled=False):
            x = self._measured.prepare(embeddings)
            there = whole_numbers(caller, "labels", labels, len(x), x.device)
            within = there.clamp(0, self.num_classes - 1)
            given = None if weight is None else weight.detach().to(x)
            proxies = cosine.prepare(self.proxies.to(x.dtype))
            loss = self._loss(x, proxies, within, self._weighed(x, within, None, given))
        loss = finite(loss, x, caller, time)
        if given is not None:
            holds = ((given >= 0) & (given < torch.inf)).all()
            told = "weight", "others", f"{len(x)} finite numbers of at least 0", ""
            loss = checked(loss, holds, time, caller, *told)
        holds, (expected, hint) = (within == there).all(), self._class_numbers()
        return checked(loss, holds, time, caller, "labels", "others", expected, hint)

    def _class_numbers(self) -> tuple[str, str]:
        """What is expected of labels, and a hint."""
        expected = f"class numbers from 0 to {self.num_classes - 1}, as num_classes says"
        return expected, "torch.unique(all_labels, return_inverse=True) numbers classes"

    def _features(self, embeddings: Any) -> Float[Tensor, "n d"]:
        """Checked embeddings, as unit vectors unless their lengths count."""
        caller = type(self).__name__
        (x,), checks = unchecked_features(embeddings, self._measured)
        check_at(self.check_finite, checks, caller)
        if x.shape[1] != self.dim:
            raise refusal(
                caller, "embeddings", f"{x.shape[1]} dimensions", f"{self.dim}, as the proxies have"
            )
        if x.device != self.proxies.device:
            expected = f"the proxies' device {self.proxies.device}"
            raise refusal(caller, "embeddings", str(x.device), expected, "move the head with .to(device)")
        # Rows that need no preparation are still those of inference mode, which no graph may keep.
        return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x

    @outside_graph
    def _called(
        self, embeddings: Any, labels: Any, mined: Any, ids: Any, ref: Any, weight: Any
    ) -> Float[Tensor, "..."]:
        caller = type(self).__name__
        if ref is not None:
            expected = "None: embeddings meet proxies, not each other"
            hint = "call it with embeddings and labels"
            raise refusal(caller, "ref", type(ref).__name__, expected, hint)
        if labels is None:
            raise refusal(caller, "labels", None, "labels")
        x = self._features(embeddings)
        if ids is not None:
            whole_numbers(caller, "ids", ids, len(x), x.device)
        labels = self._classes(labels, len(x))
        given = weight
        if weight is not None:
            given = as_weights(caller, "weight", weight, len(x), "each embedding", x, self.check_finite)
        weights = self._weighed(x, labels, mined, given)
        with torch.autocast(x.device.type, enabled=False):
            return self._compared(x, labels, weights)

    def _compared(
        self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], weights: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "..."]:
        """The loss of a batch, which may be empty."""
        proxies = cosine.prepare(self.proxies.to(x.dtype))
        return self._loss(x, proxies, labels, weights) if len(x) else self._nothing(x, proxies)

    def _nothing(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "..."]:
        """The loss of an empty batch."""
        zero = (x.sum() + proxies.sum()) * 0
        if self.reduction != "none":
            return zero
        return zero.expand(0 if self._per_row else self.num_classes)

    def _weighed(
        self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], mined: Any, weight: Tensor | None
    ) -> Float[Tensor, " n"] | None:
        """How much each row counts: by its weight, how often tuples name it, and its class."""
        parts = [] if weight is None else [weight]
        if mined is not None:
            parts.append(named_rows(mined, x))
        if self.class_weight is not None and self._per_row:
            parts.append(self.class_weight.to(x)[labels])
        return None if not parts else torch.stack(parts).prod(0) if len(parts) > 1 else parts[0]

    def _cross_entropy(
        self, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], weights: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "..."]:
        """−log of the softmax's share of the label, smoothed, weighted and reduced."""
        smooth = self.label_smoothing
        if weights is None:  # one operation, not three
            return cross_entropy(logits, labels, reduction=self.reduction, label_smoothing=smooth)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smooth)
        return self._reduced(losses, weights)

    def _reduced(self, losses: Float[Tensor, " n"], weights: Float[Tensor, " n"] | None) -> Tensor:
        """The losses of rows, weighted and reduced; of rows that weigh nothing the mean is 0."""
        if self.reduction == "mean" and weights is None:
            return losses.mean()
        losses = losses if weights is None else losses * weights
        if self.reduction == "none":
            return losses
        total = losses.sum()
        if self.reduction == "sum" or weights is None:
            return total
        return total / weights.sum().clamp(min=torch.finfo(total.dtype).tiny)

    def _classes(self, labels: Any, n: int) -> Int[Tensor, " n"]:
        """Labels on the device of the proxies, from 0 to `num_classes` − 1.

        Args:
            labels: [n], as they were given; on the host they are checked there, without a read.
            n: how many there are.
        """
        caller = type(self).__name__
        if isinstance(labels, Tensor) and not lack_of_data(labels) and labels.ndim > 1:
            expected = f"shape ({n},), a class number for each embedding"
            hint = "take a head with relation= for several labels a row"
            raise refusal(caller, "labels", f"shape {tuple(labels.shape)}", expected, hint)
        there = whole_numbers(caller, "labels", labels, n, self.proxies.device)
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

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """As torch's, which for proxies of another number of classes would name two shapes alone."""
        found = state_dict.get(f"{prefix}proxies")
        if isinstance(found, Tensor) and found.shape != self.proxies.shape:
            rows, width = (" × ".join(map(str, v.shape)) for v in (found, self.proxies))
            classes, rest = divmod(len(found) if found.ndim else 1, self._per_class)
            hint = "make the head with the options of the one that was saved"
            if found.shape[1:] == self.proxies.shape[1:] and not rest:
                hint = f"make the head with num_classes={classes}, load, then call add_classes for more"
            expected = f"{width}, as num_classes={self.num_classes} and dim={self.dim} say"
            raise refusal(type(self).__name__, "state_dict", f"proxies of {rows}", expected, hint)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}
        shown = {name: value for name, value in options.items() if _USUAL.get(name, self) != value}
        return ", ".join(f"{name}={value}" for name, value in shown.items())
