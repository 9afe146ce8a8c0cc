"""An accelerator that is none: a device that holds the processor's tensors and logs what is asked of it.

torch lets Python register its spare device, PrivateUse1. A tensor of the pretended card says
`device="card:0"` and keeps its numbers in `near`, a tensor of the processor. Code that asks
`device.type == "cpu"` takes its other branch, control flow follows real numbers, autograd works, a tensor of
the processor that meets one of the card is refused as CUDA refuses it, and `.numpy()` fails. Each operation
is logged with the file and line of tercet that it comes from, and so is each *read*: the host waits for the
device.

The registration holds for a process, and its autograd thread never ends. So programs that use it run in a
process of their own, which leaves by `os._exit`: `tests/contracts/card_cases.py`.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.helpers import lowered

__all__ = [
    "CARD",
    "Census",
    "Event",
    "Numbers",
    "census",
    "down",
    "is_offered",
    "register",
    "rounded_factors",
    "up",
    "without_float64",
]

CARD = torch.device("cpu")  # `register` puts the card in its place

# Operations after which the host waits: it reads a number, or the shape of the result depends on numbers.
READS = {
    **dict.fromkeys(("_local_scalar_dense", "equal", "is_nonzero"), "number"),
    **dict.fromkeys(("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"), "shape"),
    "bincount": "shape",
}
# Operations that launch nothing, beside those that are views.
FREE = frozenset(
    """
    detach alias lift_fresh lift _local_scalar_dense is_same_size set_ resize_ _unsafe_view view
    _reshape_alias empty empty_like new_empty empty_strided new_empty_strided expand unbind split
    split_with_sizes chunk unsafe_split sym_size sym_stride sym_numel _has_same_storage_numel is_nonzero
    is_pinned _version
    """.split()
)


class Numbers(NamedTuple):
    """The shape of a tensor and the bytes of a number."""

    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Event:
    """One operation on the card: its name, where it comes from, whether it launches, why the host waits.

    `given` and `made` are the card's tensors that it takes and gives.
    """

    op: str
    where: str
    launches: bool
    read: str
    given: tuple[Numbers, ...] = ()
    made: tuple[Numbers, ...] = ()


@dataclass(eq=False)  # one that is open is told apart by identity
class Census:
    """What was asked of the card."""

    events: list[Event] = field(default_factory=list)

    @property
    def operations(self) -> int:
        return sum(event.launches for event in self.events)

    @property
    def reads(self) -> int:
        return sum(bool(event.read) for event in self.events)

    def places(self) -> list[str]:
        """Each place that reads, with its operation and how often."""
        counts = collections.Counter((e.where, e.op, e.read) for e in self.events if e.read)
        return [f"{times} × {op} ({read}) at {where}" for (where, op, read), times in counts.items()]


_LOGS: list[Census] = []
_BITS: list[int] = []  # the bits of fraction that products round their factors to, if any
_SINGLE: list[bool] = []  # open while the card has no float64
_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


def is_offered() -> bool:
    """Whether this torch lets Python register a device."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


class _Card(torch.Tensor):
    """A tensor that says it is on the card."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> _Card:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=CARD,
        )
        out.near = near
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        return self.cpu().numpy() if force else super().numpy()

    def __repr__(self) -> str:
        return f"_Card({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """While it is on, `torch.zeros(…, device=CARD)` and its siblings make tensors of the card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


def register() -> None:
    """Make the card known to torch: once a process."""
    global CARD

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
            pass

    backend_registration._setup_privateuseone_for_python_backend("card", backend_module=Module())
    # So that torch.tensor(v, device=CARD) is made on the processor and copied up, as it is for CUDA.
    torch._C._set_only_lift_cpu_tensors(True)
    CARD = torch.device("card", 0)


def up(value: Any) -> Any:
    """The same numbers as tensors of the card, wherever a tensor stands in `value`."""
    if not isinstance(value, torch.Tensor):
        return tree_map(lambda v: up(v) if isinstance(v, torch.Tensor) else v, value)
    out = _Card(value.detach().clone())
    return out.requires_grad_() if value.requires_grad else out


def down(value: Any) -> Any:
    """The numbers behind tensors of the card, without a read."""
    return tree_map(
        lambda v: v.near if isinstance(v, _Card) else v.detach() if isinstance(v, torch.Tensor) else v, value
    )


@contextmanager
def census() -> Iterator[Census]:
    """Everything that is asked of the card while it is open."""
    log = Census()
    _LOGS.append(log)
    try:
        with _Factories():
            yield log
    finally:
        _LOGS.remove(log)


@contextmanager
def rounded_factors(bits: int) -> Iterator[None]:
    """While it is open, products round their factors to so many bits, as tensor cores do: TF32 to 10."""
    _BITS.append(bits)
    try:
        yield
    finally:
        _BITS.pop()


@contextmanager
def without_float64() -> Iterator[None]:
    """While it is open, the card refuses float64, as Apple's MPS does."""
    _SINGLE.append(True)
    try:
        yield
    finally:
        _SINGLE.pop()


def _where() -> str:
    """The innermost line of tercet on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\", "/")
        if "/tercet/" in name and "/site-packages/torch/" not in name:
            return f"{name.rsplit('/tercet/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "autograd"


def _numbers(values: list[Any]) -> tuple[Numbers, ...]:
    return tuple(Numbers(tuple(v.shape), v.dtype.itemsize) for v in values if isinstance(v, torch.Tensor))


def _refuse(name: str, text: str) -> None:
    raise RuntimeError(f"{text} (aten::{name} at {_where()})")


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the numbers, and log it."""
    name = func._schema.name.split("::")[1]
    leaves = tree_leaves((args, kwargs))
    far = [v for v in leaves if isinstance(v, _Card)]
    near = [v for v in leaves if isinstance(v, torch.Tensor) and not isinstance(v, _Card)]
    target, given = bool(far), dict(kwargs)
    if given.get("device") is not None:
        target = torch.device(given["device"]).type == "card"
        given["device"] = torch.device("cpu")
    if not far and not target:
        return func(*args, **kwargs)
    read = _read_of(name, args, kwargs, far, near, target)
    empty = not any(v.numel() for v in far) and name not in ("zeros", "full", "arange", "ones")
    launches = not (name in FREE or func.is_view or empty)
    numbers = [*tree_map(lambda v: v.near if isinstance(v, _Card) else v, args)]
    for place in _FACTORS.get(name, ()) if _BITS else ():
        if numbers[place].dtype == torch.float32:
            numbers[place] = lowered(numbers[place], _BITS[-1])
    out = func(
        *numbers,
        **tree_map(lambda v: v.near if isinstance(v, _Card) else v, given),
    )
    if launches or read:
        event = Event(name, _where(), launches, read, _numbers(far), _numbers(tree_leaves(out)))
        for log in _LOGS:
            log.events.append(event)
    if not target:
        return out
    if _SINGLE and any(isinstance(v, torch.Tensor) and v.dtype == torch.float64 for v in tree_leaves(out)):
        raise TypeError(f"the card does not support float64 (aten::{name} at {_where()})")
    out = tree_map(lambda v: _Card(v) if isinstance(v, torch.Tensor) else v, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _read_of(
    name: str, args: Any, kwargs: dict[str, Any], far: list[Any], near: list[Any], target: bool
) -> str:
    """Why the host would wait for this operation; empty where it would not. Mixed devices are refused."""
    read = READS.get(name, "")
    if name in ("_to_copy", "copy_"):
        if kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
            return ""
        source = args[1] if name == "copy_" else args[0]
        into = isinstance(args[0], _Card) if name == "copy_" else target
        # A number that fills a tensor travels with the launch.
        filled = name == "copy_" and source.ndim == 0 and into
        if isinstance(source, _Card) != into and not filled:
            return "copy down" if isinstance(source, _Card) else "copy up"
        return ""
    if near and far:
        if name.startswith(("index", "_index_put")):
            if not isinstance(args[0], _Card):
                _refuse(name, "a tensor of the processor is indexed by one of the card")
            if any(v.ndim for v in near):
                read = "copy up"
        elif any(v.ndim for v in near) or (name.endswith("_") and not isinstance(args[0], _Card)):
            _refuse(name, "expected all tensors on one device, found card:0 and cpu")
    if name.startswith("index") and isinstance(args[1], (list, tuple)):
        masks = [v for v in args[1] if v is not None and v.dtype in (torch.bool, torch.uint8)]
        filled = "put" in name and len(args[1]) == 1 and args[2].numel() == 1  # becomes a masked_fill
        if masks and not filled:
            read = "shape"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        read = "shape"
    if name == "multinomial" and (len(args) < 3 or not args[2] or args[1] == 1):
        read = "number"
    return read
