"""One at a time: locks between processes and threads, on files beside what they guard.

A link that stands under the name of a lock is not followed: it is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tercet.core.checks import escaped

try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None

__all__ = ["SAFELY", "flock", "foreign", "lock_file", "locked", "opened", "release", "taken"]

SAFELY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""For `os.open`: a link is refused, and a pipe that stands there is not waited for."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def lock_file(folder: Path, name: str) -> Path:
    """The file in `folder` that stands for the lock `name`; `tidy` removes it if its holder was killed."""
    return folder / f".{name}.tercet.lock"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock while the block runs; the system takes it from a process that dies.

    Args:
        path: the file that stands for the lock; it is made, and gone when the block ends.
        wait: wait for one who holds it.

    Yields:
        Whether it is held: False only without `wait`, where another holds it.

    Raises:
        OSError: a link, a folder or a pipe stands there, or the file cannot be made.

    Example:
        >>> with locked(Path(".lock")) as held, locked(Path(".lock"), wait=False) as again:
        ...     print(held, again)
        True False
    """
    descriptor = taken(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile makes another
            release(descriptor)


def taken(path: Path, wait: bool) -> int | None:
    """The open file whose lock is held; None where another holds it."""
    while True:
        descriptor = opened(path)
        try:
            held = flock(descriptor, wait)
            if held is not False and os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        except FileNotFoundError:  # gone since it was opened
            held = None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if held is False:
            return None


def opened(path: Path) -> int:
    """The descriptor of a file that is made if it is not there.

    Raises:
        OSError: a link, a folder, a pipe or another user's file stands there, or the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o666)
    except PermissionError:
        if not os.path.lexists(path):
            raise
        expected, found = "a file of this user, or none", "another user's run is at work there or was killed"
        hint = "wait for it to end, or remove the file"
        raise PermissionError(escaped(f"{str(path)!r}: expected {expected}; {found}; {hint}")) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise foreign(path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise foreign(path)


def foreign(path: Path) -> OSError:
    """The refusal of what stands where a lock or another mark of ours belongs."""
    expected = "a file that tercet made there, or none"
    return OSError(escaped(f"{str(path)!r}: expected {expected}; something else has this name, move it away"))


def flock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file: whether it is held now; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def release(descriptor: int) -> None:
    """Close an open file, and let go of its lock where it was locked."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a forked process has the file open
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
