"""Modes of torch that a call may stand in: compilation, torch.func, autocast, lowered matmul precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tercet.core.checks import refusal

__all__ = ["full_precision", "outside_graph", "roundoff"]

P = ParamSpec("P")
T = TypeVar("T")


def outside_graph(function: Callable[P, T]) -> Callable[P, T]:
    """The method, called as it is where it stands in something compiled.

    Mining reads what it found before it knows what to do next, and the shapes it gives follow from the
    data: a graph of it would break at every step. `torch.compiler.disable` as a decorator would load the
    compiler with this library; here it is asked only while one is at work.

    For the same reason it is refused inside `torch.func.grad`, `vmap`, `jacrev` and the like, which hide the
    numbers, and inside `torch.autograd.forward_ad.dual_level`. `torch.func.functional_call` hides none.

    Raises:
        ValueError: a call inside a transform of torch.func, or inside forward-mode differentiation.

    Example:
        >>> @outside_graph
        ... def nonzero(x):
        ...     return x.nonzero()
        >>> nonzero(torch.tensor([0, 3])).tolist()
        [[1]]
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[call-arg]
        # The first is what torch.autograd.Function asks. By forward mode a derivative would silently be 0.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            expected = "a call outside grad, vmap, jvp and the like, since it reads the numbers it is given"
            shown = "inside torch.func or forward_ad"
            raise refusal(type(args[0]).__name__, "embeddings", shown, expected, "take torch.autograd.grad")
        return function(*args, **kwargs)

    return called


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off; nothing where it is not on, which costs less than turning it off."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def roundoff(x: Tensor) -> float:
    """The largest relative error of one rounding in a matrix product of such tensors, as torch is set now."""
    if x.dtype == torch.float64:
        return 2.0**-53
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not say once its newer switches have been used
        precision = "medium"
    # "high" lets a product round float32 to 10 bits, "medium" to 7.
    return {"highest": 2.0**-24, "high": 2.0**-11}.get(precision, 2.0**-8)
