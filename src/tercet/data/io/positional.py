"""Plain files open for reading, from front to back or at offsets, and rows of a .npy file at offsets.

Nothing is memory-mapped: a mapped file that another process cuts short ends the program that reads it.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tercet.core.checks import Refusal

__all__ = ["NpyFile", "PositionalFile", "open_plain"]

_CAN_ANNOUNCE = hasattr(os, "posix_fadvise")
_HEADER = 1 << 16  # bytes read for the header of a .npy file; numpy allows 10,000


def open_plain(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a folder, a pipe or a device is refused without waiting.

    Raises:
        OSError: the file does not exist, is not a regular file, or may not be read.

    Example:
        >>> _ = Path("some.bin").write_bytes(b"0123456789")
        >>> with open_plain("some.bin") as file:
        ...     file.read(2)
        b'01'
    """
    return open(_plain_descriptor(path), "rb")


def _plain_descriptor(path: str | Path) -> int:
    # O_NONBLOCK: opening a pipe would otherwise wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a plain file", str(path))
    return descriptor


class PositionalFile:
    """A file open for reading at offsets (`pread`), closed when the object is deleted.

    It has no file position, so threads and forked processes can share it.

    Args:
        path: the file.
        kind: what the file should be, for messages, such as "a tar to read".

    Attributes:
        path: the file.
        size: the size of the file in bytes when it was opened.
        time: the time of its last modification then, in nanoseconds.

    Raises:
        ValueError: it cannot be opened, or is a folder, a pipe or a device.

    Example:
        >>> _ = Path("some.bin").write_bytes(b"0123456789")
        >>> bytes(PositionalFile(Path("some.bin"), "a file").pread(3, 4))
        b'3456'
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._descriptor = -1
        self.path = path
        try:
            self._descriptor = _plain_descriptor(path)
        except OSError as error:
            raise Refusal(None, str(path), kind, error.strerror or "") from error
        opened = os.fstat(self._descriptor)
        self.size, self.time = opened.st_size, opened.st_mtime_ns

    def changed(self) -> bool:
        """Whether size or modification time have changed since the file was opened."""
        now = os.fstat(self._descriptor)
        return now.st_mtime_ns != self.time or now.st_size != self.size

    def prefetch(self, reads: Sequence[tuple[int, int]]) -> None:
        """Ask the system to read ranges (start, length) ahead, so that many are read at once."""
        if _CAN_ANNOUNCE:
            descriptor, advise, soon = self._descriptor, os.posix_fadvise, os.POSIX_FADV_WILLNEED
            for start, length in reads:
                advise(descriptor, start, length, soon)

    def pread(self, start: int, length: int) -> memoryview:
        """Up to `length` bytes; fewer where the file ends."""
        block = os.pread(self._descriptor, length, start)
        while len(block) < length and (
            more := os.pread(self._descriptor, length - len(block), start + len(block))
        ):
            block += more
        return memoryview(block)

    def gather(self, reads: Sequence[tuple[int, int]]) -> bytes:
        """The contents of many short ranges (start, length), joined; fewer bytes where the file ends."""
        descriptor, pread = self._descriptor, os.pread  # local: an attribute look-up costs as much as a read
        return b"".join([pread(descriptor, length, start) for start, length in reads])

    def __getstate__(self) -> None:
        # A copy would close the descriptor a second time, when it may belong to another file.
        raise TypeError("an open file cannot be copied or sent to another process; open it there")

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # bound early: at interpreter exit `os` may be gone
        if self._descriptor >= 0:
            close(self._descriptor)


class NpyFile:
    """A .npy file of numbers [n, d] from which blocks of rows are read on demand.

    Args:
        path: the file.

    Attributes:
        shape: the shape of the array, [n, d].
        dtype: the type of its numbers.

    Raises:
        ValueError: it cannot be opened, is no .npy file, does not hold numbers [n, d], or is shorter than its
            header says; when rows are read, it has been changed since.

    Example:
        >>> np.save("x.npy", np.arange(6.0).reshape(3, 2))
        >>> file = NpyFile(Path("x.npy"))
        >>> file.shape, file[1:3].tolist()
        ((3, 2), [[2.0, 3.0], [4.0, 5.0]])
    """

    def __init__(self, path: Path) -> None:
        from numpy.lib import format as npy

        self._name = str(path)
        self._file = PositionalFile(path, "a .npy file to read")
        head = io.BytesIO(self._file.pread(0, _HEADER))
        try:
            version = npy.read_magic(head)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its version is {version}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, self._by_column, self.dtype = read(head)
        except Exception as error:  # numpy parses the header as a Python literal, which can fail in many ways
            expected, hint = "an existing .npy file of numbers [n, d]", f"its header is damaged ({error})"
            raise Refusal(None, self._name, expected, hint) from error
        self._start = head.tell()
        if len(self.shape) != 2 or min(self.shape) < 1 or self.dtype.kind not in "fiu":
            found = f"it holds {self.dtype} {list(self.shape)}"
            raise Refusal(None, self._name, "numbers [n, d], one row for each image", found)
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > self._file.size - self._start:
            found = f"it has {self._file.size - self._start:,}: it was cut short or damaged"
            raise Refusal(None, self._name, f"{size:,} bytes of numbers, as its header tells", found)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows first … stop − 1, [m, d]."""
        n, d = self.shape
        first, stop, _ = rows.indices(n)
        width, count = self.dtype.itemsize, stop - first
        if self._by_column:  # Fortran order: column after column
            reads = [(self._start + (column * n + first) * width, count * width) for column in range(d)]
        else:
            reads = [(self._start + first * d * width, count * d * width)]
        content = b"".join(self._file.pread(*read) for read in reads)
        if self._file.changed() or len(content) < count * d * width:
            hint = "it was cut short or written to while it was read"
            raise Refusal(None, self._name, "the file as it was", hint)
        numbers = np.frombuffer(content, self.dtype)
        return numbers.reshape(d, count).T if self._by_column else numbers.reshape(count, d)
