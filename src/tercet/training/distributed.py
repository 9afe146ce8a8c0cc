"""The embeddings of all ranks as columns, with the gradient back to the rank that each came from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import refusal
from tercet.core.indices import GatheredReferences, References
from tercet.pairwise.accumulate import refuse_second_derivative
from tercet.pairwise.collectives import gathered_rows, is_distributed
from tercet.pairwise.relations import label_rows, whole_numbers

__all__ = ["gather", "rank", "world_size"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def rank() -> int:
    """The number of this process, from 0; 0 where torch.distributed is not initialised.

    Example:
        >>> rank(), world_size()
        (0, 1)
    """
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes that train together; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if is_distributed() else 1


def gather(
    embeddings: Float[Tensor, "n d"],
    labels: Shaped[Tensor, "n *c"],
    ids: Shaped[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, " n"], References]:
    """The ids of this rank's rows, and the embeddings of all ranks as columns, with gradient.

        ids, ref = gather(embeddings, labels)
        loss = head(embeddings, labels, miner(embeddings, labels, ids=ids, ref=ref), ref=ref)

    The columns are those of rank 0, then rank 1, …, so ties break as in one process that holds the whole
    batch. Ranks may hold different numbers of rows, or none. Without torch.distributed the columns are the
    batch.

    The loss ℓ_r of rank r has its own rows as anchors. Backward gives each rank the gradient of Σ_r ℓ_r by
    its embeddings, from the losses of all ranks. DDP then averages over the R ranks, so it steps along the
    gradient of (1/R) Σ_r ℓ_r. Whether that is the gradient of one process with the whole batch depends on the
    head and its reduction:

    - `"sum"`: yes, if the loss is multiplied by `world_size()`, with every head whose loss is a sum over
      anchors: all but those below.
    - `"mean"`, and `FastAP`: yes, as it is, if all ranks have equally many of what the mean is over
      (triplets, pairs, or rows); otherwise it is the mean of the ranks' means. So too `"mean_per_anchor"`,
      of equally many anchors that have a loss.
    - `"mean_active"`: no, since ranks differ in how many losses are above 0. For that mean, and any over
      different numbers, use `"sum"`, multiply by `world_size()` and divide by the number of all ranks.
    - `LiftedStructure`, `NPair`, `Histogram`, `DynamicSoftMargin`, `IntraPairVariance`, `VICReg`, and
      `MarginLoss` that sums with `nu`: no. They refuse the columns of several ranks.

    With every head and reduction, the gradient is that of one process if each rank computes the loss of the
    whole batch, at R times the work. DDP's average is then right as it is, also for a head's own parameters:

        ids, ref = gather(embeddings, labels)
        loss = head(ref.embeddings, ref.labels, miner(ref.embeddings, ref.labels, ids=ref.ids))

    Every rank has to call `gather`, and to backpropagate through it if one does: each waits for the others.

    Args:
        embeddings: [n, d] floats, of one precision and dimension on all ranks.
        labels: [n] integers or bools, or [n, c] for a relation that takes several.
        ids: [n] integers of 0 or more that name the image of each row. None gives each row of all ranks a
            number below 0 of its own, valid for this step.

    Returns:
        `ids` int64 [n], for the miner or the head, and `References` of all N rows.

    Raises:
        ValueError: shapes that do not match, embeddings that are no floats, or ranks that differ in
            precision, dimension, the labels of a row, in having ids, or in having a graph.

    Example:
        >>> from tercet.miners.hard import BatchHard
        >>> x, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> ids, ref = gather(x, labels)
        >>> BatchHard()(x, labels, ids=ids, ref=ref).positive.tolist()
        [1, 0]
    """
    if not isinstance(embeddings, Tensor):
        raise refusal("gather", "embeddings", type(embeddings).__name__, "floats of shape [n, d]")
    if embeddings.ndim != 2 or embeddings.dtype not in _DTYPES:
        shown = f"{embeddings.dtype} of shape {tuple(embeddings.shape)}"
        raise refusal("gather", "embeddings", shown, "floats of shape [n, d]")
    n, device = len(embeddings), embeddings.device
    labels = label_rows("gather", "labels", labels, n, device)
    if ids is not None:
        ids = whole_numbers("gather", "ids", ids, n, device)
    if not is_distributed():
        ids = _ids_of_one_step(n, 0, device) if ids is None else ids
        return ids, References(embeddings, labels, ids)
    sizes = _sizes(embeddings, labels, ids is not None)
    if ids is None:
        ids = _ids_of_one_step(n, sum(sizes[: rank()]), device)
    several = labels if labels.ndim == 2 else labels[:, None]
    integers = gathered_rows(torch.cat([ids[:, None], several], dim=1), sizes)  # [N, 1 + c]
    every_label = integers[:, 1:] if labels.ndim == 2 else integers[:, 1]
    kind = GatheredReferences if len(sizes) > 1 else References
    return ids, kind(_AllGather.apply(embeddings, sizes), every_label, integers[:, 0])


def _ids_of_one_step(count: int, first: int, device: torch.device) -> Int[Tensor, " n"]:
    """−1, −2, … in the order of the rows of all ranks: below 0, so none is a row of the catalog."""
    return -1 - first - torch.arange(count, device=device)


def _sizes(embeddings: Tensor, labels: Tensor, with_ids: bool) -> list[int]:
    """How many rows each rank has; refused on every rank if two ranks differ in precision, shape or graph."""
    graph = embeddings.requires_grad and torch.is_grad_enabled()
    dtype = _DTYPES.index(embeddings.dtype)
    width = labels.shape[1] if labels.ndim == 2 else -1
    own = torch.tensor([*embeddings.shape, dtype, width, with_ids, graph], device=embeddings.device)
    every = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(every, own)
    described = [(size, tuple(kind)) for size, *kind in torch.stack(every).tolist()]
    sizes, kinds = zip(*described, strict=True)
    for other, kind in enumerate(kinds):
        if kind != kinds[0]:
            shown = f"{_kind(*kind)} on rank {other}"
            raise refusal("gather", "embeddings", shown, f"{_kind(*kinds[0])}, as on rank 0")
    return list(sizes)


def _kind(dim: int, dtype: int, width: int, with_ids: int, graph: int) -> str:
    words = [f"{dim} × {str(_DTYPES[dtype]).removeprefix('torch.')}"]
    words += [f"with {width} labels a row"] * (width >= 0)
    return " ".join(words + ["with ids"] * with_ids + ["with graph"] * graph)


class _AllGather(torch.autograd.Function):
    """`gathered_rows` with a gradient: each rank gets the sum over all ranks of that of its own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Any, sizes: Any) -> Any:
        ctx.sizes = sizes
        return gathered_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        expected = "False, since the gradient that the ranks exchange has no graph"
        refuse_second_derivative("gather", expected, "take second derivatives of the rank's own rows alone")
        # Summed in float32 at least, and in a copy: autograd may use the incoming gradient elsewhere.
        dtype = torch.promote_types(grad.dtype, torch.float32)
        total = grad.to(dtype, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = sum(ctx.sizes[: rank()])
        return total[first : first + ctx.sizes[rank()]].to(grad.dtype), None
