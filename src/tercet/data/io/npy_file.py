"""Rows of a .npy file, read by offset: a mapped file that is cut short meanwhile ends the program."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from tercet.core.checks import refusal
from tercet.data.io.positional import Handle

__all__ = ["NpyFile"]

_HEADER = 1 << 16  # bytes, of which numpy takes 10,000 at most


class NpyFile:
    """A .npy file, of which blocks of rows are read where they are asked for.

    Args:
        caller: who reads, for the sentences.
        argument: of which argument the file is, for the sentences.
        path: the file.

    Attributes:
        shape: of the array, [n, d].
        dtype: of its numbers.

    Raises:
        ValueError: it cannot be opened, is no such file, not of numbers [n, d], or is shorter than its header
            tells; when rows are read, it has been written to.

    Example:
        >>> np.save("x.npy", np.arange(6.0).reshape(3, 2))
        >>> file = NpyFile("read", "path", Path("x.npy"))
        >>> file.shape, file[1:3].tolist()
        ((3, 2), [[2.0, 3.0], [4.0, 5.0]])
    """

    def __init__(self, caller: str, argument: str, path: Path) -> None:
        from numpy.lib import format as npy

        self._words = caller, argument, str(path)
        self._handle = Handle(caller, argument, path, "a .npy file to read")
        head = io.BytesIO(self._handle.pread(0, _HEADER))
        try:
            version = npy.read_magic(head)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its version is {version}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, self._by_column, self.dtype = read(head)
        except Exception as error:  # numpy has the header's text parsed as Python
            expected, hint = "an existing .npy file of numbers [n, d]", f"its header is damaged ({error})"
            raise refusal(*self._words, expected, hint) from error
        self._start = head.tell()
        if len(self.shape) != 2 or min(self.shape) < 1 or self.dtype.kind not in "fiu":
            found = f"it holds {self.dtype} {list(self.shape)}"
            raise refusal(*self._words, "numbers [n, d], one row for each image", found)
        told = math.prod(self.shape) * self.dtype.itemsize
        if told > self._handle.size - self._start:
            found = f"it has {self._handle.size - self._start:,}: it was cut short or damaged"
            raise refusal(*self._words, f"{told:,} bytes of numbers, as its header tells", found)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows first … stop − 1, [m, d]."""
        n, d = self.shape
        first, stop, _ = rows.indices(n)
        width, count = self.dtype.itemsize, stop - first
        if self._by_column:  # a column after the other
            reads = [(self._start + (column * n + first) * width, count * width) for column in range(d)]
        else:
            reads = [(self._start + first * d * width, count * d * width)]
        content = b"".join(self._handle.pread(*read) for read in reads)
        if self._handle.changed() or len(content) < count * d * width:
            hint = "it was cut short or written to while it was read"
            raise refusal(*self._words, "the file as it was", hint)
        numbers = np.frombuffer(content, self.dtype)
        return numbers.reshape(d, count).T if self._by_column else numbers.reshape(count, d)
