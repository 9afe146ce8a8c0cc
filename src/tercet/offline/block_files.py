"""Arrays in files that processes share: results of a block with a checksum, and embeddings by their place."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tercet.core.checks import Refusal
from tercet.data.io.atomic import atomically
from tercet.data.io.checked_json import JsonRecord, to_json, with_checksum
from tercet.data.io.positional import open_plain

__all__ = ["ArrayFile", "as_file", "chunks_of", "read_block", "write_block"]

_READ = 1 << 24  # bytes of embeddings that are looked at once
_MOST_HEAD = 1 << 16  # bytes of the JSON of a block


def write_block(file: Path, name: str, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays as one file, which appears whole.

    Args:
        file: where.
        name: what the arrays are, for `read_block`.
        arrays: of any shapes and types of numbers.

    Example:
        >>> write_block(Path("one.block"), "one", [np.arange(3)])
        >>> [array.tolist() for array in read_block(Path("one.block"), "one")]
        [[0, 1, 2]]
        >>> read_block(Path("one.block"), "two") is None
        True
    """
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    facts = {"name": name, "shapes": [list(array.shape) for array in arrays], "sum": zlib.crc32(content)}
    facts["types"] = [array.dtype.str for array in arrays]
    with atomically(file) as unfinished:
        unfinished.write_bytes(to_json(with_checksum(facts)).encode() + b"\n" + content)


def read_block(file: Path, name: str) -> list[np.ndarray] | None:
    """The arrays of a file; None where it is not there, is damaged, or is of another name."""
    try:
        with open_plain(file) as opened:
            facts = JsonRecord(opened.readline(_MOST_HEAD), file)
            content = opened.read()
        shapes, types, total = facts.items("shapes"), facts.strings("types"), facts.integer("sum", high=2**32)
        if not facts.checked or facts.string("name") != name or zlib.crc32(content) != total:
            return None
        arrays, start = [], 0
        for shape, kind in zip(shapes, types, strict=True):
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(content, kind, count, start).reshape(shape))
            start += arrays[-1].nbytes
    except (ValueError, TypeError, OSError):
        return None
    return arrays


class ArrayFile(NamedTuple):
    """An array in a file, which another process maps.

    Args:
        path: the file.
        kind: the type of its numbers, as numpy writes it.
        shape: of the array.
        offset: where in the file it begins.
        status: size and time of change of the file.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    status: tuple[int, int]

    def opened(self) -> np.ndarray:
        """The array, mapped.

        Raises:
            ValueError: the file has been changed.
        """
        if _status(self.path) != self.status:
            raise Refusal("embeddings", self.path, "a file that stays as it is while it is mined")
        return np.memmap(self.path, self.kind, "r", self.offset, self.shape)


def as_file(x: Any, folder: Path) -> ArrayFile:
    """Where embeddings lie on the disk; those that do not are written into a folder first.

    Args:
        x: a memory map, another array or a tensor.
        folder: the work folder.

    Example:
        >>> as_file(np.eye(2), Path(".")).opened().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(x, np.memmap) and not isinstance(x.base, np.ndarray) and x.flags.c_contiguous:
        # A view of a map has another base, and an offset that is not its own.
        path = os.path.abspath(str(x.filename))
        return ArrayFile(path, x.dtype.str, x.shape, x.offset, _status(path))
    digest = hashlib.sha256(repr((str(x.dtype), tuple(x.shape))).encode())
    for chunk in chunks_of(x):
        digest.update(chunk)
    file = (folder / f"{digest.hexdigest()[:32]}.embeddings").absolute()
    kind = np.dtype(np.float32) if str(x.dtype) == "torch.bfloat16" else _numpy(x[:0]).dtype
    if not file.exists():
        with atomically(file) as unfinished, open(unfinished, "wb") as opened:
            for first, stop in _spans(x):
                opened.write(_numpy(x[first:stop]).astype(kind, copy=False).tobytes())
    return ArrayFile(str(file), kind.str, tuple(x.shape), 0, _status(str(file)))


def chunks_of(x: Any) -> Iterator[memoryview]:
    """The bytes of embeddings [n, d], some rows at a time, whatever holds them.

    Example:
        >>> b"".join(chunks_of(torch.ones(2, 1, dtype=torch.float16))).hex()
        '003c003c'
    """
    for first, stop in _spans(x):
        part = x[first:stop]
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy()
        yield np.ascontiguousarray(part).view(np.uint8).reshape(-1).data


def _spans(x: Any) -> Iterator[tuple[int, int]]:
    step = max(1, _READ // max(1, x.shape[1] * 8))
    for first in range(0, len(x), step):
        yield first, min(first + step, len(x))


def _numpy(x: Any) -> np.ndarray:
    """A part as numpy has it; bfloat16, which numpy has not, as float32."""
    if not isinstance(x, Tensor):
        return np.ascontiguousarray(x)
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy()


def _status(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
