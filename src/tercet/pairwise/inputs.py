"""Checks of torch inputs: tensors with data, devices, tables that fit into memory."""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import Refusal, as_choice, refusal
from tercet.core.indices import References
from tercet.pairwise.distances import Distance, keeps_finite, takes_floats_only
from tercet.pairwise.transfer import SentDown

__all__ = [
    "TIMES",
    "FiniteCheck",
    "all_hold",
    "allocated",
    "answer_later",
    "as_time",
    "beside_pairwise",
    "check_at",
    "check_finite",
    "check_finite_later",
    "clamped_classes",
    "device_of",
    "features",
    "finite_limit",
    "is_now",
    "lack_of_data",
    "prepared",
    "raise_late",
    "tensor_of",
    "unchecked_features",
    "versions_of",
    "what_is_finite",
]


def lack_of_data(values: Tensor) -> str:
    """Which kind of tensor without a number at each place this is; empty where it is an ordinary one.

    Example:
        >>> lack_of_data(torch.ones(2)), lack_of_data(torch.ones(2, device="meta"))
        ('', 'torch.strided on meta')
    """
    if values.is_nested:
        return "a nested tensor"
    if values.is_quantized:
        return f"{values.dtype}, quantized"
    if values.layout != torch.strided or values.is_meta:
        return f"{values.layout} on {values.device}"
    return ""


def device_of(caller: str | None, device: Any) -> torch.device:
    """`device` as torch names it, with its number.

    Raises:
        ValueError: no device, or one that this machine does not have.

    Example:
        >>> device_of("MiningLoader", "cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=torch.device(device)).device
    except Exception as error:  # an unknown kind, one that is not here, or no name
        said = str(error).partition("\n")[0]
        raise refusal(caller, "device", device, 'a device, such as "cpu" or "cuda:0"', said) from None


@contextmanager
def allocated(caller: str | None, **sizes: int) -> Iterator[None]:
    """A context in which a failed allocation is reported with these sizes.

    Raises:
        ValueError: torch cannot count, or finds no memory for, so many numbers.

    Example:
        >>> with allocated("ArcFace", num_classes=2, dim=3):
        ...     proxies = torch.zeros(2, 3)
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, MemoryError):
        names, shape = ", ".join(sizes), " × ".join(map(str, sizes.values()))
        raise refusal(caller, names, shape, "a table that fits into memory") from None


def tensor_of(values: Any) -> Any:
    """A numpy array of numbers as a tensor that shares its memory where torch can; anything else unchanged.

    Example:
        >>> tensor_of(np.ones(2, ">f4")).dtype
        torch.float32
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        return values
    native = values.dtype.newbyteorder("=")
    native = np.dtype(np.float64) if native.itemsize > 8 else native
    return torch.from_numpy(np.require(values, native, ["W", "C"]))


class FiniteCheck(NamedTuple):
    """Whether embeddings are finite and so small that no distance overflows.

    Args:
        argument: the name of the argument, for the sentence.
        embeddings: float [n, d], as they came.
        features: float [n, k], what was made of them; `embeddings` where that is finite as they are.
        limit: the largest size that is accepted.
    """

    argument: str
    embeddings: Tensor
    features: Tensor
    limit: float

    @property
    def _given(self) -> list[Tensor]:
        same = self.features is self.embeddings
        return [v.detach() for v in ((self.features,) if same else (self.embeddings, self.features))]

    def sizes(self) -> list[Float[Tensor, ""]]:
        """The largest size of a number, on the device, for the host to compare with the limit."""
        return [torch.linalg.vector_norm(v, math.inf) for v in self._given]

    def holds(self) -> Bool[Tensor, ""]:
        """The answer, on the device. NaN passes no comparison."""
        sizes = self.sizes()
        if len(sizes) == 1:
            return sizes[0] <= self.limit
        return (torch.stack([v.to(sizes[-1].dtype) for v in sizes]) <= self.limit).all()

    def holds_here(self) -> bool:
        """The answer, on a processor: two numbers are cheaper than a tensor of them."""
        for values in self._given:
            low, high = torch.aminmax(values)
            if not -self.limit <= float(low) <= float(high) <= self.limit:
                return False
        return True

    def refusal(self) -> Refusal:
        """The sentence that names the rows, ready to raise."""
        bad = ~functools.reduce(torch.logical_and, [(v.abs() <= self.limit).all(1) for v in self._given])
        rows = bad.nonzero()[:, 0].tolist()
        shown = f"{len(rows)} of {len(bad)} rows, the first is row {rows[0]}"
        return Refusal(self.argument, shown, *what_is_finite(self.limit))


def what_is_finite(limit: float) -> tuple[str, str]:
    """What is expected of embeddings, and where to look if they are not so."""
    expected = f"finite embeddings, none larger than {limit:.1g}"
    return expected, "look for NaN or infinite values in what the model gives"


def all_hold(checks: Sequence[FiniteCheck], device: torch.device | None = None) -> Bool[Tensor, ""]:
    """Whether all checks hold, on their device; true where there are none, on `device` or the host."""
    answers = [check.holds() for check in checks]
    if not answers:
        return torch.ones((), dtype=torch.bool, device=device)
    return answers[0] if len(answers) == 1 else torch.stack(answers).all()


def check_finite(checks: Sequence[FiniteCheck]) -> None:
    """Look at the numbers now: on an accelerator one host read.

    Raises:
        ValueError: the first check that does not hold.
    """
    if not checks:
        return
    if checks[0].features.device.type != "cpu":
        raise_late(checks[0].features.device)
        if bool(all_hold(checks)):
            return
    for check in checks:
        if not check.holds_here():
            raise check.refusal()


TIMES = ("now", "later", "never")
"""When embeddings are looked at: before the call returns, when the next call begins, or not at all."""


def as_time(caller: str, time: Any) -> str:
    """`check_finite`, refused unless it is one of `TIMES`.

    Example:
        >>> as_time("Contrastive", "later")
        'later'
    """
    # Checkers of types draw an item of a sequence that they are shown, and heads leave Python's draws alone.
    return time if isinstance(time, str) and time in TIMES else as_choice(caller, "check_finite", time, TIMES)


def is_now(time: str, embeddings: Any) -> bool:
    """Whether the numbers are looked at before the call returns; `"later"` is at once on a processor."""
    here = not isinstance(embeddings, Tensor) or embeddings.device.type == "cpu"
    return time == "now" or (time == "later" and here)


def check_at(time: str, checks: Sequence[FiniteCheck], caller: str) -> None:
    """Look at the numbers at one of `TIMES`.

    Args:
        time: one of `TIMES`.
        checks: what to look at.
        caller: the class or function that was called.

    Raises:
        ValueError: a check that does not hold, or an earlier one that was sent and did not.
    """
    if not checks or time == "never":
        return
    if is_now(time, checks[0].features):
        check_finite(checks)
    else:
        check_finite_later(checks, caller)


def clamped_classes(
    classes: Int[Tensor, " n"], count: int, time: str, error: ValueError
) -> Int[Tensor, " n"]:
    """Class numbers as indices below `count`, so that no index stops an accelerator; the check follows later.

    Args:
        classes: [n], on an accelerator.
        count: how many classes there are.
        time: `"later"` to raise `error` at the next call where one was out of range, `"never"` not to.
        error: what is raised.
    """
    within = classes.clamp(0, count - 1)
    if time == "later" and len(classes):
        answer_later((within == classes).all(), error)
    return within


_LATE: dict[torch.device, list[tuple[SentDown, ValueError]]] = {}


def check_finite_later(checks: Sequence[FiniteCheck], caller: str) -> None:
    """Send the answers to the host without waiting; the next check on the device raises what was wrong.

    Args:
        checks: what to look at.
        caller: the class or function that was called; whoever makes the next check is not to blame.

    Raises:
        ValueError: an earlier check that was sent and did not hold.
    """
    if checks:
        raise_late(checks[0].features.device)
    for check in checks:
        expected, hint = what_is_finite(check.limit)
        hint += "; the call that raises this was not run"
        error = refusal(caller, check.argument, "those of an earlier call", expected, hint)
        answer_later(check.holds(), error)


def answer_later(holds: Bool[Tensor, ""], error: ValueError) -> None:
    """Send an answer to the host without waiting; the next check on the device raises `error` if it is no."""
    _LATE.setdefault(holds.device, []).append((SentDown(holds), error))


def raise_late(device: torch.device) -> None:
    """Read the answers that have arrived on the host.

    Raises:
        ValueError: a check that did not hold; its caller and argument are named.
    """
    waiting = _LATE.pop(device, [])
    for place, (answer, error) in enumerate(waiting):
        if not answer.has_arrived():
            _LATE[device] = waiting[place:]
            return
        if not answer.read():
            if rest := waiting[place + 1 :]:
                _LATE[device] = rest
            raise error


@atexit.register
def _warn_late() -> None:
    """Say at the end what no later call could raise: the answers of the last calls."""
    for answer, error in [each for waiting in _LATE.values() for each in waiting]:
        with contextlib.suppress(Exception):  # the device may be gone
            if not answer.read():
                warnings.warn(f"unread until now: {error}", RuntimeWarning, stacklevel=1)


def features(
    embeddings: Shaped[Tensor, "n d"], distance: Distance, ref: References | None = None
) -> tuple[Float[Tensor, "_ k"], ...]:
    """Checked and prepared rows and columns: two tensors, or one where the columns are the batch.

    Either way `[0]` are the rows and `[-1]` the columns.

    Args:
        embeddings: [n, d] floats of any precision (integer codes for `hamming`).
        distance: a `Distance`.
        ref: the columns; None for the batch itself.

    Raises:
        ValueError: embeddings that are no matrix of numbers, differ in dimension or device, or are not
            finite.
    """
    found, checks = unchecked_features(embeddings, distance, ref)
    check_finite(checks)
    return found


def unchecked_features(
    embeddings: Shaped[Tensor, "n d"], distance: Distance, ref: References | None = None
) -> tuple[tuple[Float[Tensor, "_ k"], ...], list[FiniteCheck]]:
    """`features`, unchecked, and the checks."""
    checks: list[FiniteCheck] = []
    if ref is None:
        return (prepared("embeddings", embeddings, distance, checks),), checks
    if not isinstance(ref, References):
        raise Refusal("ref", type(ref).__name__, "References(embeddings, labels, ids)")
    one = None  # the precision to prepare both in: else equal rows would not be at distance 0
    if all(isinstance(v, Tensor) and v.is_floating_point() for v in (embeddings, ref.embeddings)):
        both = {v.dtype for v in (embeddings, ref.embeddings)}
        one = torch.float64 if torch.float64 in both else torch.float32 if len(both) > 1 else None
    x = prepared("embeddings", embeddings, distance, checks, one)
    y = prepared("ref.embeddings", ref.embeddings, distance, checks, one)
    if ref.embeddings.shape[1] != embeddings.shape[1]:
        expected = f"{embeddings.shape[1]} dimensions, as the batch has"
        raise Refusal("ref.embeddings", f"{ref.embeddings.shape[1]} dimensions", expected)
    if y.device != x.device:
        raise Refusal("ref.embeddings", str(y.device), f"the batch's device {x.device}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return (x.to(dtype), y.to(dtype)), checks


def prepared(
    argument: str,
    embeddings: Any,
    distance: Distance,
    checks: list[FiniteCheck],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n k"]:
    """Features of embeddings, whose check is added to `checks`.

    Args:
        argument: the name of the argument, for the sentence.
        embeddings: [n, d].
        distance: a `Distance`.
        checks: is extended by a check that the numbers are finite, where they are floats.
        dtype: the precision to prepare them in; None for their own.

    Raises:
        ValueError: no matrix of numbers, or whole numbers under a distance of floats.
    """
    lacking = lack_of_data(embeddings) if isinstance(embeddings, Tensor) else ""
    if lacking:
        raise Refusal(argument, lacking, "a dense tensor with data")
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
        shape = getattr(embeddings, "shape", None)
        shown = type(embeddings).__name__ if shape is None else f"shape {tuple(shape)}"
        if shape is not None and not isinstance(embeddings, Tensor):
            shown = f"{type(embeddings).__name__} of {shown}"
        raise Refusal(argument, shown, "a tensor [n, d], one embedding a row")
    if takes_floats_only(distance) and not embeddings.is_floating_point():
        hint = 'convert with .float(), or take distance="hamming" for integer codes'
        if embeddings.is_complex():
            hint = "take real and imaginary parts as columns of their own"
        raise Refusal(argument, str(embeddings.dtype), "floating-point embeddings", hint)
    if embeddings.is_floating_point() and embeddings.dtype.itemsize == 1:
        embeddings = embeddings.float()  # float8 has no arithmetic
    if dtype is not None:
        embeddings = embeddings.to(dtype)
    x = distance.prepare(embeddings)
    if embeddings.is_floating_point() and x.numel():
        limit = finite_limit(x, embeddings.shape[1])
        checks.append(FiniteCheck(argument, embeddings, embeddings if keeps_finite(distance) else x, limit))
    return x


def finite_limit(x: Float[Tensor, "n k"], width: int = 0) -> float:
    """The largest number that embeddings may have, of which x is made.

    Centred on the columns' mean, (‖x‖ + ‖y‖)² ≤ 16·d·limit². So no distance between accepted rows overflows,
    nor its rank key. NaN fails every comparison.

    Example:
        >>> finite_limit(torch.zeros(3, 1)) < torch.finfo(torch.float32).max ** 0.5
        True
    """
    return math.sqrt(torch.finfo(x.dtype).max / (16 * max(x.shape[1], width)))


def beside_pairwise(caller: str, **others: Any) -> None:
    """Refuse arguments that a `Pairwise` has already, beside it."""
    for name, value in others.items():
        if value is not None:
            expected = "None beside a pairwise, which has its own"
            hint = "pass mined tuples as mined=" if name == "labels" else ""
            raise refusal(caller, name, type(value).__name__, expected, hint)


def versions_of(*values: Any) -> list[tuple[Tensor, int]]:
    """How often the numbers of each tensor were changed, and of each parameter of a module.

    torch does not count changes of tensors that were made under inference mode.

    Example:
        >>> x = torch.zeros(2)
        >>> before = versions_of(x, None)
        >>> versions_of(x.add_(1))[0][1] - before[0][1]
        1
    """
    tensors = [v for v in values if isinstance(v, Tensor)]
    for module in values:
        if isinstance(module, torch.nn.Module):
            tensors += [*module.parameters(), *module.buffers()]
    return [(v, v._version) for v in tensors if not v.is_inference()]
