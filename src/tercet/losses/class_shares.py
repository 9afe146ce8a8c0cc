"""Softmax losses over more classes than one step can compare with, or one process can hold.

A step compares a batch with its own classes and a sample of the others. Ranks hold a part of the classes
each, and exchange embeddings, the largest logits and sums of exponentials, but no proxies.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from tercet.core.checks import as_float, as_int
from tercet.core.randomness import derive_key, permute
from tercet.pairwise.accumulate import refuse_second_derivative
from tercet.pairwise.collectives import gathered_rows, is_distributed, rows_of_ranks, sum_over_ranks

__all__ = [
    "ClassPart",
    "as_sample",
    "drawn_classes",
    "log_softmax_over_ranks",
    "place_of_process",
    "rows_of_all",
]


def as_sample(caller: str, sample: Any) -> int | float | None:
    """`sample`, refused unless it is a share above 0 up to 1, a whole number from 1, or None.

    Example:
        >>> as_sample("ArcFace", 0.1), as_sample("ArcFace", 1000)
        (0.1, 1000)
    """
    if sample is None:
        return None
    try:
        operator.index(sample)
    except Exception:  # no whole number; of a tensor without data it is a RuntimeError
        as_float(caller, "sample", sample, above=0)
        return as_float(caller, "sample", sample, maximum=1)
    return as_int(caller, "sample", sample, minimum=1)


def drawn_classes(seed: int, step: int, num_classes: int, sample: int | float) -> np.ndarray:
    """The class numbers that step `step` draws, int64 [m] and all different: a function of (seed, step).

    Args:
        seed: that of the head.
        step: how many steps were before.
        num_classes: how many classes there are.
        sample: how many are drawn, or a share of them.

    Example:
        >>> len(set(drawn_classes(0, 5, 100, 0.1).tolist()))
        10
    """
    count = min(num_classes, sample) if isinstance(sample, int) else max(1, round(sample * num_classes))
    return permute(np.arange(count), num_classes, derive_key("class sample", seed, step))


def place_of_process(sharded: bool) -> tuple[int, int]:
    """The number of this process and how many there are, of those that share the classes: (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if sharded and is_distributed() else (0, 1)


class ClassPart:
    """The classes of this process that a batch is compared with.

    Args:
        held: the number of this process, and how many share the classes: class c is held by process c mod R.
        chosen: the numbers of all classes that are compared, ascending, on the host; None for all.
        labels: int64 [N], class numbers.

    Example:
        >>> part = ClassPart((0, 1), torch.tensor([2, 5, 9]), torch.tensor([5, 2]))
        >>> part.rows.tolist(), part.at.tolist(), part.here.tolist()
        ([2, 5, 9], [1, 0], [True, True])
    """

    def __init__(
        self, held: tuple[int, int], chosen: Int[Tensor, " m"] | None, labels: Int[Tensor, " N"]
    ) -> None:
        rank, ranks = held
        self.here = labels % ranks == rank  # whose class is held here
        self.rows = None  # the classes as rows of the part; None for all
        at = labels // ranks
        if chosen is not None:
            own = chosen[chosen % ranks == rank] // ranks
            self.rows = own.to(labels.device)
            at = torch.searchsorted(self.rows, at)
        self.at = at.masked_fill(~self.here, 0)  # the place of the label among the compared classes

    def picked(self, proxies: Float[Tensor, "p d"], per_class: int) -> Float[Tensor, "q d"]:
        """The proxies of the compared classes, whose gradient is sparse where they are not all."""
        if self.rows is None:
            return proxies
        every = self.rows[:, None] * per_class + torch.arange(per_class, device=self.rows.device)
        return embedding(every.flatten(), proxies, sparse=True)


def rows_of_all(x: Float[Tensor, "n d"], *more: Tensor) -> tuple[Float[Tensor, "N d"], list[Tensor]]:
    """The rows of all ranks, with gradient, and what belongs to them, without.

    Each rank's gradient by a row is that by its own logits alone, so backward adds them up. It multiplies by
    the number of ranks too: DDP then averages to the gradient of one process.

    Args:
        x: [n, d] of this rank.
        more: tensors [n].
    """
    sizes = rows_of_ranks(len(x), x.device)
    gathered = _Gathered.apply(x, sizes)
    return gathered, [gathered_rows(each.detach(), sizes) for each in more]  # type: ignore[return-value]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, sizes: Any) -> Any:
        ctx.sizes = sizes
        return gathered_rows(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        expected = "False, since the gradient that ranks exchange has no graph"
        refuse_second_derivative("sharded", expected, "differentiate once")
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        first = sum(ctx.sizes[:rank])
        return total[first : first + ctx.sizes[rank]] * ranks, None


def log_softmax_over_ranks(
    logits: Float[Tensor, "N m"], own: Float[Tensor, "N 1"], classes: int, smoothing: float
) -> Float[Tensor, " N"]:
    """The cross-entropy of logits whose columns lie on several ranks: by maxima and sums over ranks.

    Args:
        logits: [N, m], those of this rank, which may be none.
        own: [N, 1], those of the labels, on each rank.
        classes: how many columns all ranks have together.
        smoothing: ε, the share of each target that is spread over all classes.
    """
    lowest = torch.finfo(logits.dtype).min
    top = torch.cat([logits.detach(), own.detach()], dim=1).amax(1, keepdim=True).clamp(min=lowest)
    dist.all_reduce(top, dist.ReduceOp.MAX)
    total = sum_over_ranks(torch.exp(logits - top).sum(1, keepdim=True))
    whole = (top + total.log())[:, 0]  # log Σ exp
    if not smoothing:
        return whole - own[:, 0]
    mean = sum_over_ranks(logits.sum(1)) / classes
    return whole - (1 - smoothing) * own[:, 0] - smoothing * mean
