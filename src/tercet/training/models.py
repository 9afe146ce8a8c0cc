"""Networks that are part of a method: Deep Ranking's three paths, and the linear map of a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad
from torch.nn.utils import skip_init

from tercet.core.checks import as_bool, as_int, as_seed, refusal
from tercet.core.randomness import derive_key
from tercet.pairwise.distances import cosine
from tercet.pairwise.inputs import allocated, lack_of_data

__all__ = ["DeepRankingNet", "EmbeddingHead"]

_COARSE = ((4, 3, 4), (8, 7, 2))  # of each low-resolution path: subsampling, size and stride of the pool
_KERNEL, _STRIDE = 8, 4  # of the convolution in both


class EmbeddingHead(nn.Module):
    """The linear map xᵀL that learns a Mahalanobis distance: a layer after any backbone.

    y = xᵀL,  ‖y_i − y_j‖² = (x_i − x_j)ᵀ M (x_i − x_j),  M = LLᵀ

    With `normalize=False`, the Euclidean distance of its outputs is the distance `Mahalanobis(head.L)` of its
    inputs. A bias would move all points alike, so there is none.

    Args:
        in_features: d, the number of features that the backbone gives for an image.
        out_features: k, the dimension of the embedding, which bounds the rank of M.
        normalize: divide each row by its length, in float32; a row of zeros stays zero.
        seed: names the initial weights, uniform in ±1/√d.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> head = EmbeddingHead(512, 64)
        >>> head(torch.ones(2, 512, 1, 1)).shape, head.L.shape
        (torch.Size([2, 64]), torch.Size([512, 64]))

    Reference:
        Weinberger & Saul, "Distance metric learning for large margin nearest neighbor classification",
        JMLR 2009.
    """

    def __init__(self, in_features: int, out_features: int, *, normalize: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.in_features = as_int("EmbeddingHead", "in_features", in_features, minimum=1)
        self.out_features = as_int("EmbeddingHead", "out_features", out_features, minimum=1)
        self.normalize = as_bool("EmbeddingHead", "normalize", normalize)
        self.seed = as_seed("EmbeddingHead", seed)
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        with allocated("EmbeddingHead", **sizes):
            self.linear: Any = skip_init(nn.Linear, *sizes.values(), bias=False)
            _start("EmbeddingHead", self.linear, self.seed)

    @property
    def L(self) -> Float[Tensor, "d k"]:
        """The map as `Mahalanobis` takes it, a view of the weights."""
        return self.linear.weight.T

    def forward(self, features: Float[Tensor, "n *d"]) -> Float[Tensor, "n k"]:
        """Embeddings of features.

        Args:
            features: floats [n, d] of the weights' precision, or of any under autocast; [n, d, 1, 1] and the
                like are flattened.

        Returns:
            Floats [n, k], with the graph; of length 1 and float32 with `normalize`.

        Raises:
            ValueError: another number of features.
        """
        _refuse_others("EmbeddingHead", "features", features, self.linear.weight)
        x = features.flatten(1)
        if x.shape[1] != self.in_features:
            shown = f"shape {tuple(features.shape)}"
            raise refusal("EmbeddingHead", "features", shown, f"{self.in_features} numbers for each image")
        y = self.linear(x)
        return cosine.prepare(y) if self.normalize else y

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"normalize={self.normalize}, seed={self.seed}"


class DeepRankingNet(nn.Module):
    """Deep Ranking's network: a ConvNet for what an image shows, two coarse paths for how it looks.

        image ─┬─ backbone ───────────────────────────────────────────────────────────┬─ ℓ₂ ─┐
               ├─ 4:1 ── convolution 8×8, stride 4, F filters ── max-pool 3×3, stride 4 ── ℓ₂ ─┼─ linear ─ ℓ₂
               └─ 8:1 ── convolution 8×8, stride 4, F filters ── max-pool 7×7, stride 2 ── ℓ₂ ─┘

    Each path is flattened and divided by its length, so the linear embedding weighs the paths alike. Padding
    is that of the paper's framework: stride s turns n pixels into ⌈n/s⌉, and of an odd number of zeros the
    larger half comes after the image (pools ignore the padding). So from h × w pixels each coarse path gives
    F × ⌈h/64⌉ × ⌈w/64⌉ numbers, for any h and w: 225 → 57 → 15 → 4 and 225 → 29 → 8 → 4. Subsampling is the
    mean of 4 × 4 or 8 × 8 pixels, at the edges of those that exist. Taking every fourth pixel, as a widely
    copied version does, aliases: it shows patterns that are not in the image.

    Embeddings have length 1 and are float32, under autocast too; lengths are computed in float32. An image
    for which every path gives zeros gets the zero vector, and a gradient of 0, not NaN.

    Args:
        backbone: a module that gives [n, d], or [n, d, 1, 1] and the like, for images [n, c, h, w].
        image_size: h = w in pixels, or (h, w).
        embedding_size: the dimension of the embedding.
        channels: c, the channels of an image.
        filters: F, the filters of each coarse path's convolution.
        backbone_features: d; None runs the backbone on one black image, in eval mode and without gradient.
        seed: names the initial weights, uniform in ±1/√fan_in. Those of the backbone are left as they are.

    Attributes:
        features: how many numbers each of the three paths gives for an image.

    Raises:
        ValueError: an option out of range, or a backbone that gives something else.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> net = DeepRankingNet(backbone, image_size=225)
        >>> net.features, net(torch.zeros(2, 3, 225, 225)).shape
        ((32, 1536, 1536), torch.Size([2, 4096]))

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_size: int | Sequence[int],
        embedding_size: int = 4096,
        channels: int = 3,
        filters: int = 96,
        backbone_features: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        caller = "DeepRankingNet"
        if not isinstance(backbone, nn.Module):
            raise refusal(caller, "backbone", type(backbone).__name__, "a torch.nn.Module")
        sides = [image_size] * 2 if not isinstance(image_size, Sequence) else list(image_size)
        if len(sides) != 2:
            raise refusal(caller, "image_size", image_size, "a number of pixels or (height, width)")
        self.image_size = tuple(as_int(caller, "image_size", side, minimum=1) for side in sides)
        self.channels = as_int(caller, "channels", channels, minimum=1)
        filters = as_int(caller, "filters", filters, minimum=1)
        seed = as_seed(caller, seed)
        self.backbone = backbone
        if backbone_features is None:
            backbone_features = self._backbone_features()
        coarse = filters * math.prod(-(-side // 64) for side in self.image_size)
        found = as_int(caller, "backbone_features", backbone_features, minimum=1)
        self.features = (found, coarse, coarse)
        embedding_size = as_int(caller, "embedding_size", embedding_size, minimum=1)
        sizes = {"channels": self.channels, "filters": filters, "backbone_features": found}
        with allocated(caller, image_size=self.image_size[0], **sizes, embedding_size=embedding_size):
            self.coarse = nn.ModuleList(
                skip_init(nn.Conv2d, self.channels, filters, _KERNEL, stride=_STRIDE) for _ in _COARSE
            )
            self.embedding: Any = skip_init(nn.Linear, sum(self.features), embedding_size)
            for number, layer in enumerate([*self.coarse, self.embedding]):
                _start(caller, layer, seed, number)

    @torch.no_grad()
    def _backbone_features(self) -> int:
        """How many features the backbone gives for an image; its modes are left as they were."""
        training = {module: module.training for module in self.backbone.modules()}
        one = next((p for p in self.backbone.parameters() if p.is_floating_point()), torch.empty(0))
        image = torch.zeros(1, self.channels, *self.image_size, device=one.device, dtype=one.dtype)
        try:
            given = self.backbone.eval()(image)
        finally:
            for module, mode in training.items():
                module.training = mode
        return self._flat(given, 1).shape[1]

    def _flat(self, given: Any, count: int) -> Float[Tensor, "n d"]:
        """The output of the backbone, flattened to a row for each image."""
        if not isinstance(given, Tensor) or given.ndim < 2 or len(given) != count:
            shape = getattr(given, "shape", None)
            shown = type(given).__name__ if shape is None else f"it gave shape {tuple(shape)}"
            expected = f"[{count}, d] or [{count}, d, 1, 1] for {count} images"
            raise refusal("DeepRankingNet", "backbone", shown, expected)
        return given.flatten(1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """Embeddings of images.

        Args:
            images: floats [n, c, h, w] of the weights' precision, or of any under autocast.

        Returns:
            float32 [n, embedding_size], each row of length 1, with the graph.

        Raises:
            ValueError: images of another size or with other channels than the net was built for, or another
                number of features from the backbone.
        """
        _refuse_others("DeepRankingNet", "images", images, self.embedding.weight)
        if tuple(images.shape[1:]) != (self.channels, *self.image_size):
            expected = (
                f"[n, {self.channels}, {self.image_size[0]}, {self.image_size[1]}], as it was built for"
            )
            hint = "resize the images or build it with their image_size and channels"
            raise refusal("DeepRankingNet", "images", f"shape {tuple(images.shape)}", expected, hint)
        found = self._flat(self.backbone(images), len(images))
        if found.shape[1] != self.features[0]:
            expected = f"{self.features[0]} features, as it was built with"
            raise refusal("DeepRankingNet", "backbone", f"it gave {found.shape[1]}", expected)
        paths = [found]
        for convolution, (factor, size, stride) in zip(self.coarse, _COARSE, strict=True):
            small = avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)
            seen = convolution(_same(small, _KERNEL, _STRIDE, 0.0))
            paths.append(max_pool2d(_same(seen, size, stride, -math.inf), size, stride).flatten(1))
        joined = torch.cat([cosine.prepare(path) for path in paths], dim=1)
        return cosine.prepare(self.embedding(joined.to(self.embedding.weight.dtype)))

    def extra_repr(self) -> str:
        """Image size, channels and features, for `print`."""
        return f"image_size={self.image_size}, channels={self.channels}, features={self.features}"


def _refuse_others(caller: str, argument: str, values: Any, weight: Tensor) -> None:
    """Refuse what is no tensor of floats [n, …], or outside of autocast not of the weights' dtype."""
    # Without a `border`: a context here would end the graph of `torch.compile(fullgraph=True)`.
    if not isinstance(values, Tensor):
        raise refusal(caller, argument, type(values).__name__, "a tensor of floats [n, …]")
    lacking = lack_of_data(values)
    if lacking or values.ndim < 2 or not values.is_floating_point():
        shown = lacking or f"{values.dtype} of shape {tuple(values.shape)}"
        raise refusal(caller, argument, shown, "a dense tensor of floats [n, …] with data")
    if values.dtype != weight.dtype and not torch.is_autocast_enabled(values.device.type):
        expected = f"{weight.dtype}, as the weights have"
        raise refusal(caller, argument, str(values.dtype), expected, "convert it, or run under autocast")


def _same(images: Float[Tensor, "n c h w"], size: int, stride: int, value: float) -> Float[Tensor, "n c y x"]:
    """Images padded with `value`, for ⌈h / stride⌉ × ⌈w / stride⌉ windows of `size`."""
    edges: list[int] = []
    for side in (images.shape[3], images.shape[2]):  # `pad` takes the last axis first
        lacking = max((-(-side // stride) - 1) * stride + size - side, 0)
        edges += [lacking // 2, lacking - lacking // 2]
    return pad(images, edges, value=value)


@torch.no_grad()
def _start(name: str, layer: Any, seed: int, number: int = 0) -> None:
    """Set the initial weights of a layer, uniform in ±1/√fan_in, by (name, seed, number) alone."""
    generator = torch.Generator("cpu").manual_seed(derive_key(name, seed, number))
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for values in layer.parameters():
        drawn = torch.rand(values.shape, generator=generator, device="cpu", dtype=torch.float32)
        values.copy_((2 * drawn - 1) * bound)
