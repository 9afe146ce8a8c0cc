"""Modes of torch that a call may stand in: compilation, torch.func, autocast, lowered matmul precision."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tercet.core.checks import Refusal, refusal

__all__ = ["full_precision", "is_tf32_forced", "outside_graph", "roundoff"]

P = ParamSpec("P")
T = TypeVar("T")


def outside_graph(function: Callable[P, T]) -> Callable[P, T]:
    """A public method of a miner or a head, which `torch.compile` calls as it is instead of tracing it.

    Mining reads its results on the way, and the shapes of its output depend on the data, so a traced graph
    would break at every step. `torch.compiler.disable` as a decorator would load the compiler at import; here
    it is loaded only if a compiler is already at work.

    For the same reason a call inside `torch.func.grad`, `vmap`, `jacrev` and the like, which hide the
    numbers, is refused, and so is one inside `torch.autograd.forward_ad.dual_level`.
    `torch.func.functional_call` hides none.

    It is the border at which a `Refusal` from inside gets the name of the miner or head.

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
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Refusal as fact:
            raise fact.named(type(args[0]).__name__) from fact.__cause__

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(named)(*args, **kwargs)  # type: ignore[call-arg]
        # torch.autograd.Function makes the first check itself. In forward mode the derivative would silently
        # be 0.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            expected = "a call outside grad, vmap, jvp and the like, since it reads the numbers it is given"
            shown = "inside torch.func or forward_ad"
            raise refusal(type(args[0]).__name__, "embeddings", shown, expected, "take torch.autograd.grad")
        return named(*args, **kwargs)

    return called


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast; an empty one where autocast is off, since that costs less."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def roundoff(x: Tensor) -> float:
    """The unit roundoff of matrix products of such tensors under torch's current settings."""
    if x.dtype == torch.float64:
        return 2.0**-53
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to answer once its newer settings have been used
        precision = "medium"
    if precision == "highest" and x.device.type == "cuda" and is_tf32_forced():
        precision = "high"
    # "high" lets a product round float32 to 10 bits (TF32), "medium" to 7 (bfloat16).
    return {"highest": 2.0**-24, "high": 2.0**-11}.get(precision, 2.0**-8)


@functools.cache
def is_tf32_forced() -> bool:
    """Whether the environment forces TF32 on every product of cuBLAS, which torch's settings do not show."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"
