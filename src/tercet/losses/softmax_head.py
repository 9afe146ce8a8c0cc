"""What heads share that are a softmax over classes, with a margin for the class of the row."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tercet.losses.proxy_head import ProxyHead

__all__ = ["SoftmaxHead"]


class SoftmaxHead(ProxyHead):
    """The cross-entropy of the classes' scores, of which the row's own is lowered by a margin.

    A head adds its options, `_scores`, and `_own`, its margin; `_others` where it changes other scores too.

    Args:
        num_classes: C, how many classes there are.
        dim: d, the dimension of the embeddings.
        seed: names the first proxies.
        per_class: proxies of a class.
        options: those that `ProxyHead` takes by name.
    """

    def __init__(self, num_classes: int, dim: int, seed: int, per_class: int = 1, **options: Any) -> None:
        super().__init__(num_classes, dim, seed, per_class, **options)

    def _own(
        self,
        own: Float[Tensor, "n 1"],
        x: Float[Tensor, "n d"],
        proxies: Float[Tensor, "p d"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 1"]:
        """The score of the row's own class, with its margin; of its score without."""
        raise NotImplementedError

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
