"""Atomic writes: a file, or a set of files, gets its name once it is complete and on the disk, or not at all.

Each file is written under a temporary name, flushed (fsync) and renamed. Locks are files too. The system
releases the locks of a process that dies, so leftovers of killed runs are recognised and removed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tercet.core.checks import Refusal, as_bool, as_path, escaped
from tercet.data.io.journal import JOURNAL, NO_FOLLOW, Journal, fsync, not_ours, pending_names

try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None

__all__ = [
    "atomically",
    "atomically_together",
    "final_names_in_errors",
    "fresh_target",
    "journal",
    "lock_file",
    "locked",
    "open_lock_file",
    "remove_leftovers",
]

_LEFT_OVER = re.compile(r"\..+\.([0-9a-f]{16}\.unfinished|tercet\.lock)", re.DOTALL)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def fresh_target(path: str | Path, overwrite: bool, suffixes: Sequence[str]) -> Path:
    """`path`, refused before any work is done for it if nothing could be written there.

    First what killed runs left in its folder is cleared: a set of files is renamed whole or undone, and
    temporary files are removed.

    Args:
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        suffixes: the accepted suffixes, with their dots.

    Raises:
        ValueError: another suffix, an existing file, no such folder, or an `overwrite` that is not a boolean.
        OSError: the name of the folder's journal is taken by a link or by something else.
    """
    overwrite = as_bool(None, "overwrite", overwrite)
    target = as_path(None, "path", path, new=True)
    if target.suffix not in suffixes:
        raise Refusal("path", str(path), "a name ending in " + ", ".join(suffixes))
    if target.is_dir():
        raise Refusal("path", str(path), "a file, not a folder")
    if not target.parent.is_dir():
        raise Refusal("path", str(path), "an existing folder to write in", f"make {target.parent} first")
    writable = os.access(target.parent, os.W_OK)
    if writable:
        remove_leftovers(target.parent)
    if os.path.lexists(target) and not overwrite:
        hint = "it exists; overwrite=True or --overwrite replaces it"
        raise Refusal("path", str(path), "a new file", hint)
    if not writable:
        raise Refusal("path", str(path), "a folder that may be written")
    return target


@contextmanager
def atomically(target: Path, overwrite: bool = True) -> Iterator[Path]:
    """A temporary file next to `target`: renamed to it when the block succeeds, removed when it fails.

    Args:
        target: the final name.
        overwrite: replace an existing file of that name.

    Yields:
        The path to write to, a new empty file.

    Raises:
        OSError: it cannot be written, or it exists and `overwrite` is False; the error names `target`.

    Example:
        >>> with atomically(Path("t.txt")) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        >>> Path("t.txt").read_text()
        'all of it'
    """
    with atomically_together([target], overwrite) as (unfinished,):
        yield unfinished


@contextmanager
def atomically_together(targets: Sequence[Path], overwrite: bool = True) -> Iterator[list[Path]]:
    """`atomically` for a set of files in one folder: readers that use `current_places` see all or none.

    Args:
        targets: the final names; at least one.
        overwrite: replace files of those names.

    Yields:
        The paths to write to, in the same order.

    Raises:
        OSError: as `atomically`.
    """
    files: dict[Path, Path] = {}
    held: list[int] = []
    try:
        with final_names_in_errors(files):
            for target in targets:
                file, descriptor = _temporary(target)
                files[file] = target
                held.append(descriptor)
            yield list(files)
            _publish(files, overwrite)
    finally:
        try:
            # Those that the journal lists stay: by them the next run completes the set, or undoes it.
            listed = set(pending_names(targets[0].parent).values())
            for file in files:
                if file.name not in listed:
                    file.unlink(missing_ok=True)
        finally:
            for descriptor in held:
                os.close(descriptor)


@contextmanager
def final_names_in_errors(files: Mapping[Path, Path]) -> Iterator[None]:
    """Make the OSErrors of the block name the final file where they name a temporary one or none.

    Args:
        files: the final name of each temporary file; an error without a name gets the first.
    """
    try:
        yield
    except OSError as error:
        found = {None: next(iter(files.values()), None), **{str(file): files[file] for file in files}}
        target = found.get(error.filename)
        if error.errno is None or target is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def _temporary(target: Path) -> tuple[Path, int]:
    """A new file beside `target`, and the descriptor that holds its lock; without the lock it is a leftover.

    The name is random, and the file is created exclusively: no link that others planted is followed.
    """
    while True:
        file = target.with_name(f".{target.name}.{secrets.token_hex(8)}.unfinished")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(target)) from error
        try:
            try_lock(descriptor, wait=True)
            if os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                return file, descriptor
        except FileNotFoundError:
            pass  # another run removed it as a leftover before it was locked
        except BaseException:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def _publish(files: Mapping[Path, Path], overwrite: bool) -> None:
    """Rename temporary files to their final names: all or none."""
    for file in files:
        fsync(file)
    folder = next(iter(files)).parent
    with journal(folder) as record:
        for target in files.values():
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if not overwrite and os.path.lexists(target):
                raise _exists(target)
        if len(files) == 1:
            _rename(*next(iter(files.items())), overwrite)
            fsync(folder)
            return
        try:
            record.enter(files, overwrite)
            for file, target in files.items():
                _rename(file, target, overwrite)
        except BaseException:
            record.complete_or_undo()
            raise
        record.clear()


def _rename(file: Path, target: Path, overwrite: bool) -> None:
    """Rename a file in one step; without `overwrite`, only if the name is free."""
    if overwrite:
        os.replace(file, target)
        return
    try:
        os.link(file, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without hard links; each reports it with another error
        os.replace(file, target)  # safe: the journal is held, so no run of ours can have written it since
    else:
        file.unlink()


def _exists(target: Path) -> OSError:
    hint = "another run has written it meanwhile; overwrite=True or --overwrite replaces it"
    return FileExistsError(escaped(f"{str(target)!r}: expected a new file; {hint}"))


@contextmanager
def journal(folder: Path) -> Iterator[Journal]:
    """Hold the journal of a folder, after the set that a dead run listed there is completed or undone.

    Args:
        folder: an existing folder that may be written.

    Yields:
        An empty journal. It is removed when the block ends, unless it still lists a set.

    Raises:
        OSError: its name is taken by something else, or a set of a dead run can neither be completed nor
            undone.

    Example:
        >>> with journal(Path(".")):
        ...     print(Path(JOURNAL).exists())
        True
        >>> Path(JOURNAL).exists()
        False
    """
    path = folder / JOURNAL
    descriptor = acquire(path, wait=True)
    assert descriptor is not None
    try:
        if os.fstat(descriptor).st_nlink > 1:  # a hard link: writing would change another file
            raise not_ours(path)
        held = Journal(folder, descriptor)
        held.complete_or_undo()
        try:
            yield held
        finally:
            if not os.fstat(descriptor).st_size:
                path.unlink(missing_ok=True)
    finally:
        release_lock(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Settle and remove what dead runs left in a folder; files of running processes stay.

    A temporary file or a lock file is a leftover if its lock is free: the process that held it is gone.

    Raises:
        OSError: as `journal`.
    """
    hidden = [name for name in os.listdir(folder) if name.startswith(".")]
    left_over = list(filter(_LEFT_OVER.fullmatch, hidden))
    if not left_over and JOURNAL not in hidden:
        return
    with journal(folder):  # so no run lists a temporary file meanwhile
        for name in left_over:
            _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | NO_FOLLOW)
    except OSError:  # gone, a link, or another user's
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and try_lock(descriptor, wait=False):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def lock_file(folder: Path, name: str) -> Path:
    """The file in `folder` that stands for the lock `name`; a leftover if its holder was killed."""
    return folder / f".{name}.tercet.lock"


@contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock while the block runs; the system takes it from a process that dies.

    Args:
        path: the file that stands for the lock; it is created, and removed when the block ends.
        wait: wait for the process or thread that holds it.
        shared: hold it beside others that share it, and keep out those that do not.

    Yields:
        Whether it is held: False only without `wait`, where another holds it.

    Raises:
        OSError: the path is a link, a folder or a pipe, or the file cannot be created.

    Example:
        >>> with locked(Path(".lock")) as held, locked(Path(".lock"), wait=False) as again:
        ...     print(held, again)
        True False
    """
    descriptor = acquire(path, wait, shared)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # While held alone: whoever opened it meanwhile sees this and creates another. Of those that
            # share it, the last one gets it alone.
            if not shared or try_lock(descriptor, wait=False) is not False:
                path.unlink(missing_ok=True)
            release_lock(descriptor)


def acquire(path: Path, wait: bool, shared: bool = False) -> int | None:
    """The descriptor of the lock file once its lock is held; None where another holds it."""
    while True:
        descriptor = open_lock_file(path)
        try:
            held = try_lock(descriptor, wait, shared)
            if held is not False and os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        except FileNotFoundError:  # removed since it was opened
            held = None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if held is False:
            return None


def open_lock_file(path: Path) -> int:
    """The descriptor of a lock file, which is created if it is missing.

    Raises:
        OSError: the path is a link, a folder, a pipe or another user's file, or the file cannot be created.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except PermissionError:
        if not os.path.lexists(path):
            raise
        expected, found = "a file of this user, or none", "another user's run is at work there or was killed"
        hint = "wait for it to end, or remove the file"
        raise PermissionError(escaped(f"{str(path)!r}: expected {expected}; {found}; {hint}")) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise not_ours(path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise not_ours(path)


def try_lock(descriptor: int, wait: bool, shared: bool = False) -> bool | None:
    """Lock an open file. Whether the lock is held now; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def release_lock(descriptor: int) -> None:
    """Close an open file and release its lock."""
    try:
        if fcntl is not None:
            fcntl.flock(
                descriptor, fcntl.LOCK_UN
            )  # closing alone would not, if a forked process has the file open
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
