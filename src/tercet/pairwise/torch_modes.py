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

__all__ = [
    "forced_precision",
    "full_precision",
    "has_fixed_shapes",
    "outside_graph",
    "product_precision",
    "roundoff",
    "running_sums",
    "sums_by_doubling",
    "widest_float",
    "with_float64",
]

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


def running_sums(v: Tensor, dim: int) -> Tensor:
    """`v.cumsum(dim)`, also where torch is told to be deterministic, for which CUDA has no sum of floats.

    There each of log2 steps adds what stands 1, 2, 4, … places before, which differs by rounding.

    Example:
        >>> running_sums(torch.tensor([1.0, 2.0, 3.0]), 0)
        tensor([1., 3., 6.])
    """
    if v.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return v.cumsum(dim)
    return sums_by_doubling(v, dim)


def sums_by_doubling(v: Tensor, dim: int) -> Tensor:
    """Running sums by additions of whole tensors alone.

    Example:
        >>> sums_by_doubling(torch.tensor([[1.0, 2.0, 3.0]]), 1)
        tensor([[1., 3., 6.]])
    """
    length, step = v.shape[dim], 1
    while step < length:
        before = v.narrow(dim, 0, length - step)
        v = torch.cat([v.narrow(dim, 0, step), v.narrow(dim, step, length - step) + before], dim=dim)
        step *= 2
    return v


def has_fixed_shapes(x: Tensor) -> bool:
    """Whether no shape may depend on numbers: on an accelerator, which would be read, and in a traced graph.

    Example:
        >>> has_fixed_shapes(torch.zeros(1))
        False
    """
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast; an empty one where autocast is off, since that costs less."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def widest_float(device: torch.device) -> torch.dtype:
    """float64, in which sums are taken; float32 on a device that has no more, as Apple's MPS.

    Example:
        >>> widest_float(torch.device("cpu"))
        torch.float64
    """
    return torch.float64 if device.type in ("cpu", "cuda") else _widest(device)


@functools.cache
def _widest(device: torch.device) -> torch.dtype:
    try:
        return torch.empty(0, dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def with_float64(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that computes in float64 where that is: on the tensors' device, or on the host.

    Args:
        function: gives a tensor or several.
        args: its arguments; tensors are of one device.

    Returns:
        What it gives; from the host it is sent back, float64 as float32.

    Example:
        >>> with_float64(lambda x: x.double().sum(), torch.tensor([0.5, 1.0]))
        tensor(1.5000, dtype=torch.float64)
    """
    device = next(v.device for v in args if isinstance(v, Tensor))
    if widest_float(device) == torch.float64:
        return function(*args)

    def back(v: Tensor) -> Tensor:
        return (v.float() if v.dtype == torch.float64 else v).to(device)

    found = function(*(v.cpu() if isinstance(v, Tensor) else v for v in args))
    return back(found) if isinstance(found, Tensor) else tuple(map(back, found))


def roundoff(x: Tensor) -> float:
    """The unit roundoff of matrix products of such tensors under torch's current settings."""
    return 2.0**-53 if x.dtype == torch.float64 else _ROUNDOFF[product_precision(x.device.type)]


_ROUNDOFF = {"ieee": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}
_asks_newer = False  # once the older question has failed, it fails at each call


def product_precision(kind: str) -> str:
    """To what products of float32 may round their factors: `"ieee"` (not at all), `"tf32"` or `"bf16"`.

    Miners let such products propose, and decide by differences, so their results stay exact. A program that
    wants TF32 for mining alone sets `torch.backends.cuda.matmul.fp32_precision = "tf32"` before it calls the
    miner, and the former value after. That is a setting of the whole process, other threads included, so no
    call of this library changes it.

    Args:
        kind: the type of a device. A processor's settings and CUDA's are apart; of other devices, which have
            none of their own, the lower of the two is taken.

    Example:
        >>> product_precision("cpu")
        'ieee'
    """
    global _asks_newer
    forced, answer = forced_precision(kind), "highest"
    if not _asks_newer:  # the older question is the faster one, and "highest" holds for all devices
        try:
            answer = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch refuses to answer once its newer settings have been used
            _asks_newer = True
        else:
            if answer == "highest":
                return forced
    older = {"highest": "ieee", "high": "tf32"}.get(answer, "bf16")  # for a torch without newer settings
    asked = {"cpu": ("mkldnn",), "cuda": ("cuda",)}.get(kind, ("mkldnn", "cuda"))
    found = [getattr(getattr(torch.backends, name).matmul, "fp32_precision", older) for name in asked]
    return max(forced, *found, key=lambda each: _ROUNDOFF.get(each, 0.0))


# A constant to `torch.compile`, which traces no question about settings. torch's own decorator for it would
# load the compiler.
product_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def forced_precision(kind: str) -> str:
    """What the environment forces on every product, which torch's settings do not show; "ieee" for nothing.

    cuBLAS heeds NVIDIA_TF32_OVERRIDE; oneDNN, which multiplies on ARM processors, its default math mode.
    """
    if kind == "cuda":
        return "tf32" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1" else "ieee"
    modes = {os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "").upper() for name in ("DNNL", "ONEDNN")}
    lowered = "bf16" if modes & {"BF16", "ANY"} else "tf32" if "TF32" in modes else "ieee"
    return lowered if kind == "cpu" else "ieee"
