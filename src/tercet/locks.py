"""One at a time: locks between processes and threads, on files beside what they guard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock while the block runs; the system takes it from a process that dies.

    Args:
        path: the file that stands for the lock; it is made, and gone when the block ends.
        wait: wait for one who holds it.

    Yields:
        Whether it is held: False only without `wait`, where another holds it.

    Example:
        >>> with locked(Path(".lock")) as held, locked(Path(".lock"), wait=False) as again:
        ...     print(held, again)
        True False
    """
    import fcntl  # no such module on Windows, where the rest may still be imported

    descriptor = _taken(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile makes another
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a forked process has the file open
            os.close(descriptor)


def _taken(path: Path, how: int) -> int | None:
    """The open file whose lock is held; None where another holds it."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # gone since it was opened
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
