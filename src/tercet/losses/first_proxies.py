"""The directions that proxies start with: a stream of random unit vectors that a seed names."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tercet.core.randomness import derive_key

__all__ = ["first_proxies"]

# torch draws normal numbers sixteen at a time, so blocks of whole sixteens are the numbers of one draw.
_ROWS = 4096


def first_proxies(seed: int, rows: int, dim: int) -> Iterator[tuple[slice, Float[Tensor, "b d"]]]:
    """Random directions of length 1 in blocks of rows, so that no second table of all is made.

    Args:
        seed: names them.
        rows: how many.
        dim: d, their dimension.

    Returns:
        An iterator of (which rows, their directions), float32 on the processor.

    Example:
        >>> [(block, directions.norm(dim=1).tolist()) for block, directions in first_proxies(0, 2, 1)]
        [(slice(0, 2, None), [1.0, 1.0])]
    """
    generator = torch.Generator("cpu").manual_seed(derive_key("proxies", seed))
    for first in range(0, rows, _ROWS):
        block = slice(first, min(first + _ROWS, rows))
        shape = (block.stop - first, dim)
        numbers = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        yield block, normalize(numbers)
