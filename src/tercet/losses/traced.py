"""Losses as plain functions of one table of distances, or of a short list, which `torch.compile` traces.

A head outside the graph differentiates its tiles itself. Inside, the compiler differentiates what is here, in
shapes that the data do not change (`pairwise/traced`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.accumulate import summed
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import full_precision
from tercet.pairwise.traced import checked, finite, sides_in_graph, table_in_graph

__all__ = ["is_one_a_row", "traced_list_loss", "traced_loss"]


def traced_loss(head: Any, embeddings: Float[Tensor, "n d"], labels: Any) -> Float[Tensor, ""]:
    """The loss of all pairs or triplets of a batch against itself.

    Args:
        head: its `_traced_sum` of a tile, and its distance and relation, which `is_traced`.
        embeddings: [n, d] floats.
        labels: of the rows, as the relation takes them.
    """
    caller = type(head).__name__
    with full_precision(embeddings.device):
        x = head._measured.prepare(embeddings)
        labels, positive, negative = sides_in_graph(caller, head.relation, labels, x)
        tile = Tile(0, table_in_graph(head._measured, x), positive, negative)
        total, count = head._traced_sum(tile, labels, x)
        loss = total if head.reduction == "sum" else total / count.clamp(min=1)
        return finite(loss.to(x.dtype), x, caller, head.check_finite)


def is_one_a_row(mined: Any, embeddings: Tensor) -> bool:
    """Whether this is a list of as many triplets as rows, as `BatchHard(complete=True)` gives."""
    if not isinstance(mined, tuple) or len(mined) != 3:
        return False
    return all(
        isinstance(index, Tensor)
        and index.dtype == torch.int64
        and index.shape == (len(embeddings),)
        and index.device == embeddings.device
        for index in mined
    )


def traced_list_loss(
    head: Any, embeddings: Float[Tensor, "n d"], mined: tuple[Int[Tensor, " n"], ...]
) -> Float[Tensor, ""]:
    """The loss of a list of triplets.

    Args:
        head: its `_traced_losses`, and its distance, which `is_traced`.
        embeddings: [n, d] floats.
        mined: anchors, positives and negatives, which `is_one_a_row`.
    """
    caller, n = type(head).__name__, len(embeddings)
    with full_precision(embeddings.device):
        x = head._measured.prepare(embeddings)
        given = torch.stack(mined)
        within = given.clamp(0, n - 1)  # so that no number stops an accelerator
        total, count = summed(head._traced_losses(*(x[rows] for rows in within)), head.reduction)
        loss = total if head.reduction == "sum" else total / count.clamp(min=1)
        loss = finite(loss.to(x.dtype), x, caller, head.check_finite)
    hint = "pass the embeddings that were mined"
    exist = (within == given).all()
    return checked(loss, exist, "later", caller, "mined", "other rows", f"rows below {n}", hint)
