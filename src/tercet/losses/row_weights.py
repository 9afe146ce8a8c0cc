"""How much each row of a batch counts: numbers that a caller gives, and how often mined tuples name a row."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tercet.core.checks import refusal
from tercet.pairwise.inputs import answer_later, lack_of_data, tensor_of
from tercet.pairwise.mined import mined_rows

__all__ = ["as_weights", "named_rows"]


def as_weights(
    caller: str,
    argument: str,
    values: Any,
    count: int,
    what: str,
    like: Tensor | None = None,
    time: str = "now",
) -> Float[Tensor, " n"]:
    """Weights as floats without a graph, refused unless they are finite numbers of at least 0.

    Args:
        caller: the head that was called, for error messages.
        argument: the name of the argument, for error messages.
        values: [count] numbers of any kind; a list or an array where `like` is None.
        count: how many there are.
        what: what has a weight each, for error messages.
        like: a tensor of the device and precision that are wanted; None for float32 as they come.
        time: when numbers on an accelerator are looked at, as `check_finite` says.

    Raises:
        ValueError: no numbers, another shape, or numbers below 0, NaN or infinite.

    Example:
        >>> as_weights("ArcFace", "class_weight", [1, 0.5], 2, "num_classes")
        tensor([1.0000, 0.5000])
    """
    expected = f"{count} finite numbers of at least 0, one for {what}"
    given = tensor_of(values)
    if like is None and not isinstance(given, Tensor):
        try:
            given = torch.as_tensor(values, dtype=torch.float32)
        except Exception:  # words, ragged lists, an object of the user's
            raise refusal(caller, argument, values, expected) from None
    if not isinstance(given, Tensor) or given.is_complex() or lack_of_data(given):
        lacking = lack_of_data(given) if isinstance(given, Tensor) else ""
        shown = lacking or (given.dtype if isinstance(given, Tensor) else type(values).__name__)
        raise refusal(caller, argument, str(shown), expected)
    if given.shape != (count,):
        raise refusal(caller, argument, f"shape {tuple(given.shape)}", expected)
    here = given.detach()
    found = here.to(like.device, like.dtype, non_blocking=True) if like is not None else here.float()
    if here.device.type != "cpu" and time != "now":
        if time == "later":
            error = refusal(caller, argument, "those of an earlier call", expected)
            answer_later(((found >= 0) & (found < torch.inf)).all(), error)
        return found
    near = here.to(found.dtype)
    low, high = torch.stack(near.aminmax()).tolist() if count else (0.0, 0.0)
    if not 0 <= low <= high < torch.inf:  # NaN passes no comparison
        bad = near[~((near >= 0) & (near < torch.inf))]
        raise refusal(caller, argument, float(bad[0]), expected)
    return found


def named_rows(mined: Any, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """How often tuples name each row, as anchor, positive or negative.

    Args:
        mined: `Triplets` or `Pairs` of rows of the batch, as they were given.
        x: [n, d], the rows.

    Example:
        >>> named_rows(([0, 0], [1, 2], [3, 3]), torch.zeros(4, 2))
        tensor([2., 1., 1., 2.])
    """
    rows = torch.cat(mined_rows(mined, len(x), len(x), x.device))
    return x.new_zeros(len(x)).index_add(0, rows, x.new_ones(len(rows)))
