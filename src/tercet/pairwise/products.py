"""x·yᵀ + b in full precision, by the faster of the two libraries that torch has on a processor.

torch multiplies matrices of float32 by MKL, which takes half of the width of the vector units of processors
that are not Intel's. oneDNN, which torch has for layers, takes all of it: where a processor has AVX-512, it
is as fast or about twice as fast. Its result is a tensor of its own kind, which is copied: so a tile should
fit the cache.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from tercet.pairwise.torch_modes import roundoff

__all__ = ["product_plus", "product_side"]


def product_side(x: Float[Tensor, "a k"]) -> Tensor:
    """The left factor of `product_plus`, prepared once for many right ones."""
    exact = x.dtype == torch.float32 and roundoff(x) <= torch.finfo(x.dtype).eps / 2
    fast = x.device.type == "cpu" and exact and x.numel() > 0 and torch.backends.mkldnn.enabled
    return x.to_mkldnn() if fast and _has_wide_units() else x


def product_plus(
    side: Tensor, y: Float[Tensor, "r k"], added: Float[Tensor, " r"], out: Tensor
) -> Float[Tensor, "a r"]:
    """x·yᵀ + b.

    Args:
        side: x [a, k], from `product_side`.
        y: [r, k].
        added: b, for each column.
        out: memory for a · r numbers, which is taken where the result needs it.

    Example:
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> product_plus(product_side(x), y, torch.tensor([0.5, 0.25]), torch.empty(2))
        tensor([[11.5000,  2.2500]])
    """
    if side.is_mkldnn:
        return linear(side, y, added).to_dense()
    a, r = len(side), len(y)
    return torch.addmm(added, side, y.T, out=out[: a * r].view(a, r))


@functools.cache
def _has_wide_units() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
