"""What `torch.compile` traces into its graph: tables of distances, and checks that are made when it is run.

Outside a graph, miners and heads look at numbers and choose their way by them. None of that can be traced. So
inside a graph a batch is one table in shapes that the data do not change. What embeddings are checked for is
answered by an operation that the compiler keeps: it raises when it is run, on a processor at once and on an
accelerator at the next call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import refusal
from tercet.pairwise.closed_forms import ProductForm
from tercet.pairwise.distances import (
    Mahalanobis,
    cosine,
    dot,
    euclidean,
    negative_cosine,
    squared_euclidean,
)
from tercet.pairwise.inputs import answer_later, finite_limit, what_is_finite
from tercet.pairwise.near_columns import fixed_tile
from tercet.pairwise.relations import CrossGroup, Relation, SameLabel, SharedLabel
from tercet.pairwise.torch_modes import full_precision

__all__ = [
    "checked",
    "finite",
    "hardest_in_graph",
    "incomplete",
    "is_traced",
    "sides_in_graph",
    "table_in_graph",
]


# Sending an answer to the host is nothing that a recorded CUDA graph can repeat, so the graph is cut there.
_TAGS: dict[str, Any] = {"tags": torch.Tag.cudagraph_unsafe} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
_SCHEMA = "(Tensor result, Tensor holds, str told, bool now) -> Tensor"


@torch.library.custom_op("tercet::checked", mutates_args=(), schema=_SCHEMA, **_TAGS)
def _checked(result: Tensor, holds: Tensor, told: str, now: bool) -> Tensor:
    caller, argument, shown, expected, hint = told.split("\n")
    error = refusal(caller, argument, shown if now else "those of an earlier call", expected, hint)
    if not now:
        answer_later(holds, error)
    elif not bool(holds):
        raise error
    return result.clone()


_checked.register_fake(lambda result, holds, told, now: torch.empty_like(result))
_checked.register_autograd(lambda ctx, grad: (grad, None, None, None))


def checked(
    result: Shaped[Tensor, "*s"], holds: Bool[Tensor, ""], time: str, *told: str
) -> Shaped[Tensor, "*s"]:
    """A result, by an operation that raises where `holds` is false when it is run.

    Args:
        result: what is given back: a loss, or row numbers.
        holds: the answer of a check.
        time: one of `TIMES`.
        told: caller, argument, what was found, what was expected, and a hint, for the sentence.
    """
    if time == "never":
        return result
    return _checked(result, holds, "\n".join(told), time == "now" or result.device.type == "cpu")


def finite(
    result: Shaped[Tensor, "*s"], x: Float[Tensor, "n k"], caller: str, time: str
) -> Shaped[Tensor, "*s"]:
    """A result, `checked` for embeddings that are NaN, infinite or too large."""
    limit = finite_limit(x)
    holds = torch.linalg.vector_norm(x.detach(), math.inf) <= limit
    return checked(result, holds, time, caller, "embeddings", "not finite", *what_is_finite(limit))


def is_traced(distance: Any, relation: Any, embeddings: Any) -> bool:
    """Whether a call with these options can be traced; subclasses may do what cannot."""
    named = (cosine, dot, euclidean, negative_cosine, squared_euclidean)
    known = any(distance is each for each in named) or type(distance) is Mahalanobis
    floats = isinstance(embeddings, Tensor) and embeddings.ndim == 2 and embeddings.is_floating_point()
    return known and floats and type(relation) in (SameLabel, CrossGroup, SharedLabel)


def sides_in_graph(
    caller: str, relation: Relation, labels: Any, x: Float[Tensor, "n k"]
) -> tuple[Shaped[Tensor, "n *c"], Bool[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """The labels of a batch, and which rows are positive and negative to which; no row is to itself."""
    labels = relation.check(caller, "labels", labels, len(x), x.device)
    positive, negative = relation.sides(labels, labels)
    other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return labels, positive & other, negative & other


def table_in_graph(distance: Any, x: Float[Tensor, "n k"]) -> Float[Tensor, "n n"]:
    """D of every row with every row, with a graph, by a distance that `is_traced`."""
    form = distance.form
    if isinstance(form, ProductForm):
        return -(x @ x.T)
    u = form.space(x)
    # The compiler takes no tensor twice into one function.
    d = fixed_tile(u, u.clone(), form.root)
    return d if form.scale == 1 else d * form.scale


def hardest_in_graph(
    caller: str, distance: Any, relation: Relation, embeddings: Float[Tensor, "n d"], labels: Any
) -> tuple[Int[Tensor, " n"], ...]:
    """Each row with its farthest positive and its nearest negative, by differences of all pairs.

    A row without a positive, or without a negative, is refused when the graph is run, and so are embeddings
    that are not finite.

    Args:
        caller: the miner that was called.
        distance, relation: its own, which `is_traced`.
        embeddings: [n, d] floats.
        labels: of the rows, as the relation takes them.
    """
    with full_precision(embeddings.device):
        x = distance.prepare(embeddings.detach())
        _, positive, negative = sides_in_graph(caller, relation, labels, x)
        product = isinstance(distance.form, ProductForm)
        d = -(x @ x.T) if product else distance.form.exact(x, x)
    p = d.masked_fill(~positive, -math.inf).argmax(1)  # the first of equal ones
    n = d.masked_fill(~negative, math.inf).argmin(1)
    complete = (positive.any(1) & negative.any(1)).all()
    p = checked(p, complete, "later", caller, *incomplete("rows that lack one of them"))
    return torch.arange(len(x), device=x.device), finite(p, x, caller, "later"), n


def incomplete(shown: str) -> tuple[str, str, str, str]:
    """Argument, what was found, what was expected, and a hint, where a promise about labels does not hold."""
    expected = "a positive and a negative for each row, as complete=True says"
    return "labels", shown, expected, "leave complete=False for other batches than those of P × K"
