"""A matrix of embeddings, wherever it lies, given in tiles: numpy, a memory-mapped .npy, Arrow or torch.

A collection may be larger than the memory. So nothing here reads more of it than a caller asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import Refusal
from tercet.pairwise.distances import Distance
from tercet.pairwise.inputs import FiniteCheck, lack_of_data, prepared

__all__ = ["StoredRows"]


class StoredRows:
    """A matrix [n, d] whose rows become features some at a time.

    Args:
        argument: the name of the argument, for the sentences.
        values: a numpy array, a memory map, an Arrow column of fixed-size lists, or a tensor.
        distance: prepares rows.
        device: where features are.

    Attributes:
        width: d.
        is_double: whether the rows are float64.

    Raises:
        ValueError: another kind, another number of dimensions, or Arrow rows that are null.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> rows = StoredRows("queries", np.eye(3, dtype=np.float16), euclidean, torch.device("cpu"))
        >>> rows.features(slice(1, 3))
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """

    def __init__(self, argument: str, values: Any, distance: Distance, device: torch.device) -> None:
        self._argument, self._distance, self._device = argument, distance, device
        self._parts = _parts(argument, values)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.width = int(self._parts[0].shape[1])
        self.is_double = _dtype(self._parts[0]) == torch.float64
        self.dtype: torch.dtype | None = None  # the precision to prepare rows in, where it is not their own
        self.bad: Bool[Tensor, " n"] | None = None  # the rows that are NaN, after `check`

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def is_floating_point(self) -> bool:
        """Whether the rows are floats, not whole numbers."""
        return _dtype(self._parts[0]).is_floating_point

    def features(self, rows: slice | Int[Tensor, " a"]) -> Float[Tensor, "a k"]:
        """Some rows, prepared for the distance; those that `check` found to be NaN are 0."""
        found = self._prepared(self._raw(rows), [])
        if self.bad is None:
            return found
        bad = self.bad[rows]
        return found.masked_fill(bad[:, None], 0.0) if bool(bad.any()) else found

    def sample(self, count: int) -> Float[Tensor, "s k"]:
        """At most so many rows, evenly spread over the matrix, prepared; those with NaN are left out."""
        step = max(1, len(self) // max(1, count))
        found = self._prepared(self._raw(torch.arange(0, len(self), step)[:count]), [])
        return found[found.isfinite().all(1)]

    def check(self, skip_nan: bool, step: int, seen: Callable[[Tensor], None] | None = None) -> None:
        """Look at every number, some rows at a time.

        Args:
            skip_nan: rows with NaN are noted in `bad` instead of refused.
            step: how many rows at a time.
            seen: is called with the features of all other rows.

        Raises:
            ValueError: rows that are not finite, or too large for their squares.
        """
        refused, first, bad, limit = 0, -1, [], 0.0
        for start in range(0, len(self), step):
            checks: list[FiniteCheck] = []
            raw = self._raw(slice(start, start + step))
            found = self._prepared(raw, checks)
            wrong = torch.zeros(len(raw), dtype=torch.bool, device=raw.device)
            for check in checks:
                if check.holds_here() if raw.device.type == "cpu" else bool(check.holds()):
                    continue
                limit = check.limit
                for values in {id(v): v for v in (check.embeddings, check.features)}.values():
                    wrong |= ~(values.abs() <= limit).all(1)
            nan = raw.isnan().any(1) if skip_nan and bool(wrong.any()) else torch.zeros_like(wrong)
            bad.append(nan.to(self._device))
            (others,) = (wrong & ~nan).nonzero(as_tuple=True)
            if len(others):
                first = start + int(others[0]) if first < 0 else first
                refused += len(others)
            elif seen is not None:
                seen(found[~nan] if bool(nan.any()) else found)
        if refused:
            expected = f"finite embeddings, none larger than {limit:.1g}"
            hint = "look for infinite values in what the model gives"
            if not skip_nan:
                hint = 'rows of NaN, as of images that do not decode, are left out with nan="skip"'
            shown = f"{refused} of {len(self)} rows, the first is row {first}"
            raise Refusal(self._argument, shown, expected, hint)
        everywhere = torch.cat(bad) if bad else torch.zeros(0, dtype=torch.bool, device=self._device)
        self.bad = everywhere if bool(everywhere.any()) else None

    def _prepared(self, raw: Tensor, checks: list[FiniteCheck]) -> Float[Tensor, "a k"]:
        found = prepared(self._argument, raw, self._distance, checks, self.dtype)
        return found if self.dtype is None else found.to(self.dtype)

    def _raw(self, rows: slice | Int[Tensor, " a"]) -> Shaped[Tensor, "a d"]:
        """Some rows as they are stored, on the device."""
        if len(self._parts) == 1:
            return _tensor(self._parts[0], rows).to(self._device)
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            some = [
                _tensor(part, slice(max(0, start - first), max(0, stop - first)))
                for part, first in zip(self._parts, self._starts[:-1].tolist(), strict=True)
                if first < stop and first + len(part) > start
            ]
            return torch.cat(some or [_tensor(self._parts[0], slice(0, 0))]).to(self._device)
        rows = rows.cpu()
        of_part = torch.from_numpy(np.searchsorted(self._starts, rows.numpy(), side="right") - 1)
        out = torch.empty(len(rows), self.width, dtype=_dtype(self._parts[0]))
        for number in of_part.unique().tolist():
            (at,) = (of_part == number).nonzero(as_tuple=True)
            out[at] = _tensor(self._parts[number], rows[at] - int(self._starts[number]))
        return out.to(self._device)


def _parts(argument: str, values: Any) -> list[Any]:
    """Arrays or tensors [_, d] that are the matrix, one below the other, without a copy."""
    kind = type(values).__module__.partition(".")[0]
    if kind == "pyarrow":
        return _arrow_parts(argument, values)
    if isinstance(values, Tensor):
        lacking = lack_of_data(values)
        if lacking:
            raise Refusal(argument, lacking, "a dense tensor with data")
        values = values.detach()
    elif not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        shown = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        expected = "a numpy array, a tensor or an Arrow array of fixed-size lists, [n, d]"
        raise Refusal(argument, shown, expected, "a .npy file is opened by numpy.load(path, mmap_mode='r')")
    if values.ndim != 2:
        raise Refusal(argument, f"shape {tuple(values.shape)}", "shape [n, d], one embedding a row")
    return [values]


def _arrow_parts(argument: str, values: Any) -> list[np.ndarray]:
    """The chunks of an Arrow column of fixed-size lists as arrays that share its memory."""
    import pyarrow as pa

    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    wanted = "an Arrow array of fixed-size lists of numbers"
    if not hasattr(values, "type") or not pa.types.is_fixed_size_list(values.type):
        shown = getattr(values, "type", type(values).__name__)
        raise Refusal(argument, str(shown), wanted, "cast lists of one length with .cast(pa.list_(…, d))")
    inner = values.type.value_type
    if not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise Refusal(argument, str(values.type), wanted)
    width = values.type.list_size
    parts = []
    for chunk in chunks:
        flat = chunk.flatten()
        if chunk.null_count or flat.null_count:
            raise Refusal(argument, "rows that are null", f"{wanted}, none null")
        parts.append(flat.to_numpy(zero_copy_only=True).reshape(-1, width))
    return parts or [np.empty((0, width), inner.to_pandas_dtype())]


def _dtype(part: Any) -> torch.dtype:
    return part.dtype if isinstance(part, Tensor) else _tensor(part, slice(0, 0)).dtype


def _tensor(part: Any, rows: slice | Int[Tensor, " a"]) -> Tensor:
    """Some rows of an array or a tensor; they share its memory where torch can."""
    if isinstance(part, Tensor):
        return part[rows.to(part.device) if isinstance(rows, Tensor) else rows]
    some = part[rows.numpy(force=True) if isinstance(rows, Tensor) else rows]
    native = some.dtype.newbyteorder("=")
    native = np.dtype(np.float64) if native.kind == "f" and native.itemsize > 8 else native
    some = np.require(some, native, ["C", "W"])  # what cannot be written, as a memory map, is copied
    return torch.from_numpy(np.asarray(some))
