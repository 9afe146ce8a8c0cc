"""A softmax with an angular margin over classes of several centers, the nearest of which counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_float, as_int
from tercet.losses.softmax import ArcFace
from tercet.losses.softmax_head import SoftmaxHead
from tercet.pairwise.closed_forms import products
from tercet.pairwise.distances import cosine
from tercet.pairwise.torch_modes import outside_graph

__all__ = ["SubCenterArcFace"]

_ROWS = 2**14  # that are compared with the centers of their classes at once


class SubCenterArcFace(ArcFace):
    """The sub-center ArcFace loss: ArcFace, in which a class has several centers and its nearest one counts.

    ℓ = −log(exp(σ ψ(θ_y)) / (exp(σ ψ(θ_y)) + Σ_{c≠y} exp(σ cos θ_c))), cos θ_c = max_k cos(x, w_ck)

    ψ is that of `ArcFace`. Most images of a class gather at one center, its dominant one; wrong or very hard
    ones at others. `outliers` lists the images that are far from the dominant center of their class.

    Args:
        num_classes: C, the number of classes; labels are from 0 to C − 1.
        dim: d, the dimension of the embeddings [n, d].
        sub_centers: K; the centers of class c are the rows c·K to c·K + K − 1 of `proxies`.
        margin: m, in radians, from 0 to π.
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
        >>> head = SubCenterArcFace(num_classes=2, dim=2, sub_centers=2)
        >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> _ = head.load_state_dict({"proxies": centers})
        >>> images = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0]])  # the last is at the other center
        >>> rows, dominant = head.outliers(images, torch.tensor([0, 0, 0]))
        >>> rows.tolist(), dominant.tolist()
        ([2], [0, -1])

    Reference:
        Deng, Guo, Liu, Gong & Zafeiriou, "Sub-center ArcFace: boosting face recognition by large-scale noisy
        web faces", 2020.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        sub_centers: int = 3,
        margin: float = 0.5,
        scale: float = 64.0,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        reduction: str = "mean",
        sample: float | None = None,
        sharded: bool = False,
        seed: int = 0,
        check_finite: str = "later",
    ) -> None:
        SoftmaxHead.__init__(
            self,
            num_classes,
            dim,
            seed,
            as_int("SubCenterArcFace", "sub_centers", sub_centers, minimum=1),
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            reduction=reduction,
            sample=sample,
            sharded=sharded,
            check_finite=check_finite,
        )
        self.sub_centers = self._per_class
        self.margin = as_float("SubCenterArcFace", "margin", margin, minimum=0, maximum=math.pi)
        self.scale = as_float("SubCenterArcFace", "scale", scale, above=0)
        self.easy_margin = False

    def _scores(self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"]) -> Float[Tensor, "n c"]:
        """σ cos θ."""
        return products(x, proxies * self.scale).unflatten(1, (-1, self.sub_centers)).max(2).values

    def _own_proxies(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Of each row's class the nearest center."""
        return proxies[labels * self.sub_centers + self._to_centers(x.detach(), proxies, labels).argmax(1)]

    def _to_centers(
        self, x: Float[Tensor, "n d"], proxies: Float[Tensor, "p d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """The cosines of each row to the centers of its class, without a graph to these."""
        centers = proxies.detach().unflatten(0, (-1, self.sub_centers))
        parts = zip(x.split(_ROWS), labels.split(_ROWS), strict=True)
        return torch.cat([torch.bmm(centers[y], v[:, :, None])[:, :, 0] for v, y in parts])

    @outside_graph
    @torch.no_grad()
    def outliers(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"],
        *,
        angle: float = math.radians(75),
    ) -> tuple[Int[Tensor, " t"], Int[Tensor, " c"]]:
        """The images that are far from the dominant center of their class: wrong labels, or very hard images.

        The dominant center of a class is the nearest one of most of its images; of several, the first. Give
        all images of the data set at once, or those of some classes. The paper drops the outliers, keeps the
        dominant centers and trains on.

        Args:
            embeddings: [n, d] floats of any precision.
            labels: [n] integers or bools, class numbers from 0 to `num_classes` − 1.
            angle: in radians, from 0 to π; what is farther from the dominant center is an outlier.

        Returns:
            Two int64 tensors: the rows of the outliers [t], in ascending order, and of each class the row of
            `proxies` that is its dominant center [num_classes], −1 where no image is given.

        Raises:
            ValueError: an angle out of range, or embeddings and labels that the head refuses in a call.
        """
        largest = as_float("SubCenterArcFace.outliers", "angle", angle, minimum=0, maximum=math.pi)
        x = self._features(embeddings)
        labels, k = self._classes(labels, len(x)), self.sub_centers
        near = self._to_centers(x, cosine.prepare(self.proxies.to(x.dtype)), labels)  # [n, K]
        counts = labels.new_zeros(self.num_classes * k)
        counts.index_add_(0, labels * k + near.argmax(1), torch.ones_like(labels))
        counts = counts.unflatten(0, (self.num_classes, k))
        most = counts.argmax(1)  # [C]
        far = near.gather(1, most[labels][:, None])[:, 0] < math.cos(largest)
        first = torch.arange(self.num_classes, device=x.device) * k
        return far.nonzero()[:, 0], (first + most).masked_fill(counts.sum(1) == 0, -1)
