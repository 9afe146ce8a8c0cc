"""Files that appear whole or not at all: temporary names, fsync, and one renaming for a file or a set."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tercet.core.checks import as_bool, escaped, path_of, refusal
from tercet.data.io.journal import journal, pending, synced, tidy
from tercet.data.io.locks import SAFELY, flock

__all__ = ["atomically", "fresh_target", "naming", "together"]


def fresh_target(caller: str, path: str | Path, overwrite: bool, suffixes: Sequence[str]) -> Path:
    """`path`, refused before any work is done for it if nothing could be written there.

    What runs that were killed left in its folder is settled and removed first.

    Args:
        caller: who asks, for the sentence.
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        suffixes: the suffixes that are known, with their dots.

    Raises:
        ValueError: another suffix, an existing file, no such folder, or an `overwrite` that is no flag.
        OSError: a link or another foreign thing stands under the name of the folder's journal.
    """
    overwrite = as_bool(caller, "overwrite", overwrite)
    target = path_of(caller, "path", path, new=True)
    if target.suffix not in suffixes:
        raise refusal(caller, "path", str(path), "a name ending in " + ", ".join(suffixes))
    if target.is_dir():
        raise refusal(caller, "path", str(path), "a file, not a folder")
    if not target.parent.is_dir():
        raise refusal(
            caller, "path", str(path), "an existing folder to write in", f"make {target.parent} first"
        )
    writable = os.access(target.parent, os.W_OK)
    if writable:
        tidy(target.parent)
    if os.path.lexists(target) and not overwrite:
        hint = "it exists; overwrite=True or --overwrite replaces it"
        raise refusal(caller, "path", str(path), "a new file", hint)
    if not writable:
        raise refusal(caller, "path", str(path), "a folder that may be written")
    return target


@contextmanager
def atomically(target: Path, overwrite: bool = True) -> Iterator[Path]:
    """A temporary file beside `target` that gets its name when the block ends well, and vanishes when not.

    Args:
        target: the final name.
        overwrite: replace a file of that name.

    Yields:
        The name to write to. It is a new, empty file.

    Raises:
        OSError: it cannot be written, or without `overwrite` there is such a file; the error names `target`.

    Example:
        >>> with atomically(Path("t.txt")) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        >>> Path("t.txt").read_text()
        'all of it'
    """
    with together([target], overwrite) as (unfinished,):
        yield unfinished


@contextmanager
def together(targets: Sequence[Path], overwrite: bool = True) -> Iterator[list[Path]]:
    """As `atomically`, for a set of files in one folder: readers that look with `located` see all or none.

    Args:
        targets: the final names; at least one.
        overwrite: replace files of those names.

    Yields:
        The names to write to, in the same order.

    Raises:
        OSError: as `atomically`.
    """
    files: dict[Path, Path] = {}
    held: list[int] = []
    try:
        with naming(files):
            for target in targets:
                file, descriptor = _temporary(target)
                files[file] = target
                held.append(descriptor)
            yield list(files)
            _publish(files, overwrite)
    finally:
        try:
            listed = set(pending(targets[0].parent).values())  # the next run needs those
            for file in files:
                if file.name not in listed:
                    file.unlink(missing_ok=True)
        finally:
            for descriptor in held:
                os.close(descriptor)


@contextmanager
def naming(files: Mapping[Path, Path]) -> Iterator[None]:
    """Have the system's errors in the block name the final name, where they name a temporary file or none.

    Args:
        files: the final name of each temporary file; an error that names no file is that of the first.
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
    """A new file beside `target`, and the descriptor that holds its lock: without one, `tidy` removes it.

    Nobody can foresee the name, and nothing may stand there: no link that others planted is followed.
    """
    while True:
        file = target.with_name(f".{target.name}.{secrets.token_hex(8)}.unfinished")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFELY, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(target)) from error
        try:
            flock(descriptor, wait=True)
            if os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                return file, descriptor
        except FileNotFoundError:
            pass  # before it was locked another run took it for left over
        except BaseException:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def _publish(files: Mapping[Path, Path], overwrite: bool) -> None:
    """Give temporary files their final names: all, or none."""
    for file in files:
        synced(file)
    folder = next(iter(files)).parent
    with journal(folder) as record:
        for target in files.values():
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if not overwrite and os.path.lexists(target):
                raise _exists(target)
        if len(files) == 1:
            _rename(*next(iter(files.items())), overwrite)
            synced(folder)
            return
        try:
            record.enter(files, overwrite)
            for file, target in files.items():
                _rename(file, target, overwrite)
        except BaseException:
            record.settle()
            raise
        record.clear()


def _rename(file: Path, target: Path, overwrite: bool) -> None:
    """Give a file its final name, without `overwrite` only if nothing stands there, in one step."""
    if overwrite:
        os.replace(file, target)
        return
    try:
        os.link(file, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # of a file system without second names for a file, and each says so in its own way
        os.replace(file, target)  # the journal is held: no run of ours has written it since it was looked for
    else:
        file.unlink()


def _exists(target: Path) -> OSError:
    hint = "another run has written it meanwhile; overwrite=True or --overwrite replaces it"
    return FileExistsError(escaped(f"{str(target)!r}: expected a new file; {hint}"))
