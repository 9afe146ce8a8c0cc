"""Rows of all ranks and sums over ranks: what torch.distributed exchanges."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["gathered_rows", "is_distributed", "rows_of_ranks", "sum_over_ranks"]


def is_distributed() -> bool:
    """Whether torch.distributed is initialised.

    Example:
        >>> is_distributed()
        False
    """
    return dist.is_available() and dist.is_initialized()


def rows_of_ranks(count: int, device: torch.device) -> list[int]:
    """How many rows each rank has: one host read.

    Args:
        count: how many this rank has.
        device: the one that ranks exchange tensors of.
    """
    own = torch.tensor([count], device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return torch.cat(every).tolist()


def gathered_rows(rows: Shaped[Tensor, "n *c"], sizes: list[int]) -> Shaped[Tensor, "N *c"]:
    """The rows of all ranks, rank after rank: padded to the longest rank, exchanged, and cut.

    Args:
        rows: [n, …] of this rank, without gradient.
        sizes: how many rows each rank has.
    """
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_over_ranks(v: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Σ over ranks of `v`, with the gradient of this rank's own term.

    Each rank computes one and the same loss from the sum, so the gradient of that loss by each term is the
    gradient by the sum, and nothing has to be exchanged for it.
    """
    return _Sum.apply(v)  # type: ignore[return-value]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Any) -> Any:
        total = v.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad
