"""The journal of a folder: a record by which a set of files is renamed as one, even if the run is killed.

A set of files cannot be renamed in one step. Its temporary files are therefore first listed in
`.tercet.journal`. From then on the set is the new one: readers find its files through the journal
(`current_places`), whatever has been renamed so far. The journal is a locked file, so the next run that
writes in the folder can tell a dead run from one at work. It completes a set that replaces files, and removes
a set of new files, so that the same command can run again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tercet.core.checks import Refusal, escaped
from tercet.data.io.checked_json import JsonRecord, with_checksum

__all__ = [
    "JOURNAL",
    "NO_FOLLOW",
    "Journal",
    "current_places",
    "fsync",
    "not_ours",
    "pending_names",
    "read_consistently",
]

JOURNAL = ".tercet.journal"
NO_FOLLOW = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""For `os.open`: a link is refused, and a pipe that stands there is not waited for."""
_MARK = b'{"tercet": "journal"'  # the first bytes of a journal
_MOST = 1 << 16  # bytes that are read: a set has few files
_TRIES = 100  # attempts to read files that keep being replaced


_Read = TypeVar("_Read")


class _Entry(NamedTuple):
    """A file of a set: its two names, and what identifies it under the final one."""

    temporary: str
    name: str
    size: int
    time: int
    inode: int


class Journal:
    """A journal whose lock is held, so that no other run renames files of a set in its folder."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder, self._descriptor = folder, descriptor

    def enter(self, files: Mapping[Path, Path], overwrite: bool) -> None:
        """List the files of a set. Once the journal is on the disk, readers see the new set.

        Args:
            files: the final name of each temporary file; all in the folder of the journal.
            overwrite: whether files under the final names are replaced; otherwise there are none.
        """
        status = [os.stat(file) for file in files]
        facts = {
            "tercet": "journal",
            "order": "replace" if overwrite else "new",
            "temporary": [file.name for file in files],
            "names": [target.name for target in files.values()],
            "sizes": [one.st_size for one in status],
            "times": [one.st_mtime_ns for one in status],
            "inodes": [one.st_ino for one in status],
        }
        os.pwrite(self._descriptor, json.dumps(with_checksum(facts)).encode(), 0)
        os.fsync(self._descriptor)
        fsync(self._folder)

    def complete_or_undo(self) -> None:
        """Complete the renaming that the journal lists, or undo it, and empty the journal.

        Raises:
            OSError: a file cannot be renamed; the journal is as it was.
        """
        content = os.pread(self._descriptor, _MOST, 0)
        if not content:
            return
        if not _MARK.startswith(content.rstrip(b"\0")[: len(_MARK)]):
            raise not_ours(self._folder / JOURNAL)
        order, entries = _parsed(content)
        for entry in entries:
            file, target = self._folder / entry.temporary, self._folder / entry.name
            if order == "replace":
                if _is_plain(file):
                    os.replace(file, target)
                continue
            if _is(target, entry):  # otherwise the file is someone else's
                target.unlink()
            file.unlink(missing_ok=True)
        self.clear()

    def clear(self) -> None:
        """Empty the journal, once the renaming is on the disk."""
        fsync(self._folder)
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)  # otherwise the set would be undone after a power loss


def pending_names(folder: Path) -> dict[str, str]:
    """The temporary name of each file that the folder's journal lists, by final name; {} without one."""
    try:
        descriptor = os.open(folder / JOURNAL, os.O_RDONLY | NO_FOLLOW)
    except OSError:
        return {}
    try:
        content = os.pread(descriptor, _MOST, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
    return {entry.name: entry.temporary for entry in _parsed(content)[1]} if content else {}


def current_places(*paths: Path) -> list[Path]:
    """Where the content of files of one folder is: under their names, or under temporary names in a journal.

    Args:
        paths: at least one.

    Example:
        >>> current_places(Path("photos/t.csv"), Path("photos/t.csv.json"))
        [PosixPath('photos/t.csv'), PosixPath('photos/t.csv.json')]
    """
    listed = pending_names(paths[0].parent)
    places = [path.with_name(listed.get(path.name, path.name)) for path in paths]
    return [place if _is_plain(place) else path for place, path in zip(places, paths, strict=True)]


def read_consistently(paths: Sequence[Path], read: Callable[[list[Path]], _Read]) -> _Read:
    """Read files of one folder that belong together, although another run may be replacing them.

    Files are only ever replaced, never changed in place. So if each is the same file before and after `read`,
    what was read is of one run; otherwise `read` is called again.

    Args:
        paths: the files, whether they exist or not.
        read: gets the current place of each file, as `current_places` gives it.

    Returns:
        What `read` returns.

    Raises:
        ValueError: the files were replaced at each attempt. An error of `read` is passed on where the files
            stayed the same.
    """
    for _ in range(_TRIES):
        before = _located_status(paths)
        try:
            result = read([place for place, _ in before])
        except (OSError, ValueError):
            if before == _located_status(paths):
                raise
            continue
        if before == _located_status(paths):
            return result
    expected = "a file that stays as it is while it is read"
    raise Refusal("path", str(paths[0]), expected, f"it was replaced {_TRIES} times; read it later")


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | NO_FOLLOW)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> tuple[str, list[_Entry]]:
    """The order ("replace" or "new") and the entries of a journal; no entries where it is incomplete."""
    try:
        facts = JsonRecord(content, JOURNAL, "record")
        columns = (facts.strings("temporary"), facts.strings("names"))
        numbers = (facts.integers(name, high=2**64) for name in ("sizes", "times", "inodes"))
        entries = list(map(_Entry, *columns, *numbers))
        order = facts.string("order")
        ours = facts.checked and all(map(_of_one_file, entries))
    except ValueError:
        return "", []
    return (order, entries) if ours else ("", [])


def _of_one_file(entry: _Entry) -> bool:
    """Whether the two names are a file of this folder and its temporary file: a journal may be forged.

    Raises:
        ValueError: no file can have such a name.
    """
    os.fsencode(entry.name)
    plain = os.path.basename(entry.name) == entry.name not in ("", ".", "..") and "\0" not in entry.name
    temporary = rf"\.{re.escape(entry.name)}\.[0-9a-f]{{16}}\.unfinished"
    return plain and re.fullmatch(temporary, entry.temporary) is not None


def _is_plain(path: Path) -> bool:
    """Whether the path is a regular file, and not a link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _located_status(paths: Sequence[Path]) -> list[tuple[Path, tuple[int, ...] | None]]:
    """The current place of each file and what identifies it; a rename changes the place alone."""
    return [(place, _status(place)) for place in current_places(*paths)]


def _status(path: Path) -> tuple[int, ...] | None:
    """What distinguishes a file from another of the same name."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is(path: Path, entry: _Entry) -> bool:
    """Whether a file is that of an entry, by the attributes that a rename keeps."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns, status.st_ino) == (entry.size, entry.time, entry.inode)


def not_ours(path: Path) -> OSError:
    """The error for a path of ours, a lock or a journal, that is taken by something else."""
    expected = "a file that tercet made there, or none"
    return OSError(escaped(f"{str(path)!r}: expected {expected}; something else has this name, move it away"))
