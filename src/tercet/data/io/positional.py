"""Plain files open for reading: from front to back, or at offsets."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from tercet.core.checks import refusal

__all__ = ["Handle", "open_plain"]

_CAN_ANNOUNCE = hasattr(os, "posix_fadvise")


def open_plain(path: str | Path) -> BinaryIO:
    """A plain file open for reading; a folder, a pipe or a device is refused, and none is waited for.

    Raises:
        OSError: no such file, not a plain one, or it may not be read.

    Example:
        >>> _ = Path("some.bin").write_bytes(b"0123456789")
        >>> with open_plain("some.bin") as file:
        ...     file.read(2)
        b'01'
    """
    return open(_plain_descriptor(path), "rb")


def _plain_descriptor(path: str | Path) -> int:
    # A pipe that nobody writes to would be waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a plain file", str(path))
    return descriptor


class Handle:
    """A file open for reading at offsets; it closes when the last who reads from it lets go.

    It has no position, so threads and forked processes share it.

    Args:
        caller: who reads, for the sentence.
        argument: of which argument the file is.
        path: the file.
        kind: what it should be, such as "a tar to read".

    Attributes:
        path: the file.
        size: bytes of the file when it was opened.
        time: of its last change then, in nanoseconds.

    Raises:
        ValueError: it cannot be opened, or is a folder, a pipe or a device.

    Example:
        >>> _ = Path("some.bin").write_bytes(b"0123456789")
        >>> bytes(Handle("read", "path", Path("some.bin"), "a file").pread(3, 4))
        b'3456'
    """

    def __init__(self, caller: str, argument: str, path: Path, kind: str) -> None:
        self._descriptor = -1
        self.path = path
        try:
            self._descriptor = _plain_descriptor(path)
        except OSError as error:
            raise refusal(caller, argument, str(path), kind, error.strerror or "") from error
        told = os.fstat(self._descriptor)
        self.size, self.time = told.st_size, told.st_mtime_ns

    def changed(self) -> bool:
        """Whether size or time of change are no longer those of when it was opened."""
        told = os.fstat(self._descriptor)
        return told.st_mtime_ns != self.time or told.st_size != self.size

    def announce(self, reads: Sequence[tuple[int, int]]) -> None:
        """Have the system fetch ranges (start, length), so that many are on their way at once."""
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
        """The contents of many short ranges (start, length), joined; less where the file ends."""
        descriptor, pread = self._descriptor, os.pread  # in a loop of microseconds a look-up counts
        return b"".join([pread(descriptor, length, start) for start, length in reads])

    def __getstate__(self) -> None:
        # A copy would close the number a second time, when another file has it.
        raise TypeError("an open file cannot be copied or sent to another process; open it there")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if self._descriptor >= 0:
            close(self._descriptor)
