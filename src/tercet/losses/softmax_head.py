"""What heads share that are a softmax over classes: a margin, and which of the classes are compared."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_bool, refusal
from tercet.losses.class_shares import (
    ClassPart,
    as_sample,
    drawn_classes,
    log_softmax_over_ranks,
    place_of_process,
    rows_of_all,
)
from tercet.losses.proxy_head import ProxyHead
from tercet.pairwise.collectives import sum_over_ranks
from tercet.pairwise.distances import cosine

__all__ = ["SoftmaxHead"]


class SoftmaxHead(ProxyHead):
    """The cross-entropy of the classes' scores, of which the row's own is lowered by a margin.

    A head adds its options, `_scores`, and `_own`, its margin; `_others` where it changes other scores too.

    Args:
        num_classes: C, how many classes there are.
        dim: d, the dimension of the embeddings.
        seed: names the first proxies, and the classes that are drawn.
        per_class: proxies of a class.
        sample: how many classes a step in training mode draws, a share or a number; None for all.
        sharded: whether ranks hold a part of the classes each.
        options: those that `ProxyHead` takes by name.
    """

    step: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        seed: int,
        per_class: int = 1,
        *,
        sample: Any = None,
        sharded: bool = False,
        **options: Any,
    ) -> None:
        caller = type(self).__name__
        sharded, sample = as_bool(caller, "sharded", sharded), as_sample(caller, sample)
        super().__init__(num_classes, dim, seed, per_class, held=place_of_process(sharded), **options)
        self.sample, self.sharded = sample, sharded
        if sharded and self.reduction == "none":
            expected = '"mean" or "sum" beside sharded=True, since each rank computes the loss of all rows'
            raise refusal(caller, "reduction", "none", expected)
        if sample is not None:
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """The score of the row's own class, with its margin; of its score without."""

    def _others(self, scores: Float[Tensor, "n c"], own: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        """The scores of other classes, in place of all, beside the own with its margin."""
        return scores

    def _with_margin(
        self,
        scores: Float[Tensor, "n c"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c"]:
        at = labels[:, None]
        own = self._own(scores.gather(1, at), x, proxies, labels)
        return self._others(scores, own).scatter(1, at, own)

    def _loss(
        self,
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None,
    ) -> Float[Tensor, "..."]:
        scores = self._scores(x, proxies)
        return self._cross_entropy(self._with_margin(scores, x, proxies, labels), labels, weights)

    def logits(self, embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """The scores of all classes, scaled as in the loss and without its margin: for the training accuracy.

            accuracy = (head.logits(embeddings).argmax(1) == labels).float().mean()

        Args:
            embeddings: [n, d] floats of any precision.

        Returns:
            Floats [n, num_classes] with a graph; the class of a row's highest score is the nearest.

        Raises:
            ValueError: NaN or infinite embeddings, those of another dimension or device than the proxies, or
                a head whose classes several ranks hold.
        """
        if self._held[1] > 1:
            expected = "False, since this rank holds a part of the classes alone"
            raise refusal(f"{type(self).__name__}.logits", "sharded", True, expected)
        return super().logits(embeddings)

    def _is_traced(self, embeddings: Any) -> bool:
        """Whether `torch.compile` may trace the call: not where the classes that are compared change."""
        return self.sample is None and self._held[1] == 1 and super()._is_traced(embeddings)

    def _compared(
        self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], weights: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "..."]:
        """The loss of a batch, which may be empty, by a sample of the classes."""
        several, drawn = self._held[1] > 1, self.sample is not None and self.training
        if not several and not (drawn and len(x)):
            return super()._compared(x, labels, weights)
        if several:
            weights = x.new_ones(len(x)) if weights is None else weights  # a rank without rows has none
            x, (labels, weights) = rows_of_all(x, labels, weights)
        chosen = self._chosen(labels) if drawn else None
        part = ClassPart(self._held, chosen, labels)
        proxies = cosine.prepare(part.picked(self.proxies, self._per_class).to(x.dtype))
        if not several:
            return self._loss(x, proxies, part.at, weights)
        if not len(x):
            return self._nothing(x, proxies)
        losses = self._losses_over_ranks(
            x, proxies, part, len(chosen) if chosen is not None else self.num_classes
        )
        return self._reduced(losses, weights)

    def _chosen(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """The classes of the batch and those that this step draws, ascending, on the host."""
        *own, step = torch.cat([labels, self.step[None]]).tolist()  # one host read
        self.step += 1
        drawn = torch.from_numpy(drawn_classes(self._seed, step, self.num_classes, self.sample))  # type: ignore[arg-type]
        return torch.unique(torch.cat([torch.tensor(own, dtype=torch.int64), drawn]))

    def _losses_over_ranks(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], part: ClassPart, classes: int
    ) -> Float[Tensor, " n"]:
        """The losses of the rows of all ranks, the same on each; only its own classes get their gradient."""
        scores, here, at = self._scores(x, proxies), part.here[:, None], part.at[:, None]
        some = scores.shape[1] > 0  # this rank may have none of the classes that were drawn
        own = scores.gather(1, at) if some else torch.zeros_like(x[:, :1])
        own = sum_over_ranks(own.masked_fill(~here, 0.0))
        nearest = proxies if some else x.new_zeros(self._per_class, x.shape[1])
        with_margin = self._own(own, x, nearest, part.at)
        own = sum_over_ranks(with_margin.masked_fill(~here, 0.0))
        logits = self._others(scores, own)
        if some:
            logits = logits.scatter(1, at, torch.where(here, own, logits.gather(1, at)))
        return log_softmax_over_ranks(logits, own, classes, self.label_smoothing)
