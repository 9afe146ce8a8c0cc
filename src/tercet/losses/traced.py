"""Losses as plain functions of one table of distances, which `torch.compile` traces into its own graph.

A head outside the graph differentiates its tiles itself, looks at numbers and chooses its way by them. None
of that can be traced. So inside a graph a batch is one table in shapes that the data do not change, and the
compiler differentiates it. What embeddings are checked for is answered by an operation that the compiler
keeps: it raises when it is run, on a processor at once and on an accelerator at the next call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tercet.core.checks import refusal
from tercet.pairwise.closed_forms import ProductForm
from tercet.pairwise.distances import (
    Distance,
    Mahalanobis,
    cosine,
    dot,
    euclidean,
    negative_cosine,
    squared_euclidean,
)
from tercet.pairwise.inputs import answer_later, finite_limit, what_is_finite
from tercet.pairwise.near_columns import fixed_tile
from tercet.pairwise.relations import CrossGroup, SameLabel, SharedLabel
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import full_precision

__all__ = ["checked", "finite", "is_traced", "traced_loss"]


_SCHEMA = "(Tensor loss, Tensor holds, str told, bool now) -> Tensor"


@torch.library.custom_op("tercet::checked", mutates_args=(), schema=_SCHEMA)
def _checked(loss: Tensor, holds: Tensor, told: str, now: bool) -> Tensor:
    caller, argument, shown, expected, hint = told.split("\n")
    error = refusal(caller, argument, shown if now else "those of an earlier call", expected, hint)
    if not now:
        answer_later(holds, error)
    elif not bool(holds):
        raise error
    return loss.clone()


_checked.register_fake(lambda loss, holds, told, now: torch.empty_like(loss))
_checked.register_autograd(lambda ctx, grad: (grad, None, None, None))


def checked(loss: Float[Tensor, ""], holds: Bool[Tensor, ""], time: str, *told: str) -> Float[Tensor, ""]:
    """The loss, by an operation that raises where `holds` is false when it is run.

    Args:
        loss: what is given back.
        holds: the answer of a check.
        time: one of `TIMES`.
        told: caller, argument, what was found, what was expected, and a hint, for the sentence.
    """
    if time == "never":
        return loss
    return _checked(loss, holds, "\n".join(told), time == "now" or loss.device.type == "cpu")


def finite(loss: Float[Tensor, ""], x: Float[Tensor, "n k"], caller: str, time: str) -> Float[Tensor, ""]:
    """The loss, `checked` for embeddings that are NaN, infinite or too large."""
    limit = finite_limit(x)
    holds = torch.linalg.vector_norm(x.detach(), math.inf) <= limit
    return checked(loss, holds, time, caller, "embeddings", "not finite", *what_is_finite(limit))


def is_traced(distance: Distance, relation: Any, reduction: str) -> bool:
    """Whether a head with these options can be traced; subclasses may do what cannot."""
    named = (cosine, dot, euclidean, negative_cosine, squared_euclidean)
    known = any(distance is each for each in named) or type(distance) is Mahalanobis
    return known and type(relation) in (SameLabel, CrossGroup, SharedLabel) and reduction != "none"


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
        labels = head.relation.check(caller, "labels", labels, len(x), x.device)
        positive, negative = head.relation.sides(labels, labels)
        other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        tile = Tile(0, _table(head._measured, x), positive & other, negative & other)
        total, count = head._traced_sum(tile, labels)
        loss = total if head.reduction == "sum" else total / count.clamp(min=1)
        return finite(loss.to(x.dtype), x, caller, head.check_finite)


def _table(distance: Distance, x: Float[Tensor, "n k"]) -> Float[Tensor, "n n"]:
    """D of every row with every row, with a graph."""
    form: Any = distance.form  # type: ignore[attr-defined]
    if isinstance(form, ProductForm):
        return -(x @ x.T)
    u = form.space(x)
    # The compiler takes no tensor twice into one function.
    d = fixed_tile(u, u.clone(), form.root)
    return d if form.scale == 1 else d * form.scale
