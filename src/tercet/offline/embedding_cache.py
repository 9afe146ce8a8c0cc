"""The key of embeddings, what they were made of; and the parts of an unfinished run, which can go on."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import Refusal, shown
from tercet.data.io.atomic import atomically, lock_file, locked, remove_leftovers
from tercet.data.io.checked_json import JsonRecord, to_json
from tercet.data.io.images import file_content
from tercet.data.io.positional import open_plain
from tercet.offline.fingerprints import Fingerprint, fingerprint

__all__ = ["FIELDS", "Part", "Parts", "differing", "digests_of", "images_digest", "key_of", "parts_of"]

FIELDS = {
    "version": "version of tercet",
    "model": "model (its layers or code)",
    "weights": "weights",
    "transform": "transform",
    "views": "views",
    "normalize": "normalize",
    "precision": "precision",
    "dtype": "dtype",
    "key": "key",
    "paths": "paths of the images",
    "images": "images (size or time of change)",
    "content": "images (content)",
}
"""What embeddings depend on, in the words of messages."""
_READABLE = ("version", "normalize", "precision", "dtype", "key")  # not digests
_PLAN, _SUFFIX = "plan.json", ".part"
_MOST_HEAD = 1 << 28  # bytes of the JSON of a part


def key_of(
    data: Any, model: Any, transform: Any, views: Any, options: Mapping[str, Any], content: bool
) -> dict[str, Any]:
    """The key: a value for each of `FIELDS`, digests but for the options; `content` only where asked for.

    Args:
        data: a `Catalog` or a `ShardIndex`.
        model, transform, views: the callables.
        options: normalize, precision, dtype and key.
        content: read all files and add a digest of their content.

    Raises:
        ValueError: nothing tells what one of the callables is, and `options["key"]` is empty.
    """
    facts: dict[str, Any] = {"version": version("tercet"), **options}
    facts |= digests_of(model, transform, views, options["key"])
    facts |= {"paths": _digest(map(os.fsencode, data.paths.tolist())), "images": images_digest(data)}
    if content:
        facts["content"] = _content_digest(data)
    return {name: facts[name] for name in FIELDS if name in facts}


def digests_of(model: Any, transform: Any, views: Any, key: str) -> dict[str, str]:
    """The fields of a key that tell of callables.

    Args:
        model, transform, views: the callables.
        key: the caller's text; where it is not empty, it stands for what cannot be told.

    Raises:
        ValueError: as `key_of`.

    Example:
        >>> sorted(digests_of(len, None, [], ""))
        ['model', 'transform', 'views', 'weights']
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile: it has other names for the weights
    code, weights = _told("model", model, key)
    others = (_told("transform", transform, key), _told("views", views, key))
    joined = [_digest(map(str.encode, digest)) for digest in others]
    return {"model": code, "weights": weights, "transform": joined[0], "views": joined[1]}


def _told(argument: str, value: Any, key: str) -> Fingerprint:
    try:
        return fingerprint(value)
    except (ValueError, RecursionError) as error:
        if key:
            return fingerprint(None)
        expected = f"one whose changes can be told; it holds {error}"
        hint = 'pass key="v1" (--key v1), and another one whenever it changes'
        raise Refusal(argument, value, expected, hint) from None


def _digest(items: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(b"%d " % len(item) + item)
    return digest.hexdigest()


def images_digest(data: Any) -> str:
    """SHA-256 of size and time of change of each file; of shards, those of the tars."""
    if hasattr(data, "tars"):
        files = iter(data.tars)
    else:
        files = (data.file(row) for row in range(len(data)))

    def told(file: Path) -> bytes:
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            return b"none"
        return b"%d %d" % (status.st_size, status.st_mtime_ns)

    return _digest(map(told, files))


def _content_digest(data: Any) -> str:
    """SHA-256 of the content of all files; one that cannot be read counts as its reason."""
    if hasattr(data, "read"):
        blocks = (range(first, min(first + 256, len(data))) for first in range(0, len(data), 256))
        return _digest(hashlib.sha256(content).digest() for rows in blocks for content in data.read(rows))

    def told(row: int) -> bytes:
        try:
            return hashlib.sha256(file_content(data.file(row))).digest()
        except ValueError as error:
            return str(error).encode()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and reading release the interpreter lock
        chunks = (range(first, min(first + 1024, len(data))) for first in range(0, len(data), 1024))
        return _digest(chain.from_iterable(pool.map(told, chunk) for chunk in chunks))


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The fields that differ, as a phrase; empty where the key is the same.

    Where both have a digest of contents, it stands for size and time of change.

    Args:
        there: the key in a file.
        here: the key of a call.

    Example:
        >>> differing({"dtype": "float32", "weights": "1f"}, {"dtype": "float16", "weights": "2e"})
        "weights, dtype ('float32' there, 'float16' here)"
    """
    fields = [name for name in FIELDS if name in here and there.get(name) != here[name]]
    if "content" in here and "content" in there and "images" in fields:
        fields.remove("images")
    said = []
    for name in fields:
        values = f" ({shown(there.get(name))} there, {shown(here[name])} here)" if name in _READABLE else ""
        lacks = ", of which no digest was kept" if name == "content" and name not in there else ""
        said.append(FIELDS[name] + values + lacks)
    return ", ".join(said)


class Part(NamedTuple):
    """Embeddings of a run of rows, on disk.

    Args:
        file: where they are.
        start: the first row.
        count: how many rows there are.
        width: how many numbers a row has; 0 where no image of the part decodes, and then none is stored.
        unreadable: row and reason of those that do not decode.
        offset: where in the file the numbers begin.
    """

    file: Path
    start: int
    count: int
    width: int
    unreadable: list[tuple[int, str]]
    offset: int

    def numbers(self, dtype: np.dtype) -> np.ndarray:
        """The embeddings [count, width]."""
        with open_plain(self.file) as file:
            file.seek(self.offset)
            return np.frombuffer(file.read(), dtype).reshape(self.count, self.width)


class Parts:
    """The parts of one run in a folder of their own, each whole or not there.

    Args:
        folder: the folder, hidden beside the output.
        dtype: of the numbers.

    Attributes:
        done: the parts from row 0 on, without a gap.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.done: list[Part] = []

    @property
    def rows(self) -> int:
        """How many rows are done."""
        return self.done[-1].start + self.done[-1].count if self.done else 0

    @property
    def width(self) -> int:
        """The dimension of the embeddings; 0 as long as no image has been embedded."""
        return max((part.width for part in self.done), default=0)

    def plan(self) -> dict[str, Any]:
        """What the run of the parts that lie there was asked for; {} without any."""
        try:
            return JsonRecord.read(self.folder / _PLAN).fields
        except (ValueError, OSError):  # killed before it was written, or damaged
            return {}

    def exist(self) -> bool:
        """Whether there is a part of any run."""
        return any(self.folder.glob(f"*{_SUFFIX}"))

    def resume(self) -> None:
        """Find the parts that are whole; a damaged one, and what follows it, is made again."""
        remove_leftovers(self.folder)
        self.done = []
        for file in sorted(self.folder.glob(f"*{_SUFFIX}")):
            part = self._read(file)
            if part is None or part.start != self.rows or part.width not in (0, self.width or part.width):
                break
            self.done.append(part)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Remove what lies there and begin a run."""
        self.clear()
        self.folder.mkdir(exist_ok=True)
        self.done = []
        self.note(plan)

    def note(self, plan: Mapping[str, Any]) -> None:
        """Write the plan down."""
        with atomically(self.folder / _PLAN) as unfinished:
            unfinished.write_text(to_json(plan), "utf-8")

    def add(self, start: int, numbers: np.ndarray, unreadable: list[tuple[int, str]]) -> None:
        """Keep the embeddings [count, width] of the next rows."""
        content = np.ascontiguousarray(numbers, self.dtype).tobytes()
        facts = {"start": start, "count": len(numbers), "width": numbers.shape[1]}
        facts |= {"rows": [row for row, _ in unreadable], "reasons": [reason for _, reason in unreadable]}
        head = to_json({**facts, "sum": zlib.crc32(content)}).encode() + b"\n"
        file = self.folder / f"{start:012}{_SUFFIX}"
        with atomically(file) as unfinished:
            unfinished.write_bytes(head + content)
        self.done.append(Part(file, start, len(numbers), numbers.shape[1], unreadable, len(head)))

    def clear(self) -> None:
        """Remove the folder and what tercet made in it."""
        if not self.folder.is_dir():
            return
        (self.folder / _PLAN).unlink(missing_ok=True)  # first: without it no part counts
        remove_leftovers(self.folder)
        for file in self.folder.glob(f"*{_SUFFIX}"):
            file.unlink(missing_ok=True)
        self.folder.rmdir()

    def _read(self, file: Path) -> Part | None:
        try:
            with open_plain(file) as opened:
                head = opened.readline(_MOST_HEAD)
                facts = JsonRecord(head, file)
                start, count, width = (facts.integer(name) for name in ("start", "count", "width"))
                unreadable = list(zip(facts.integers("rows"), facts.strings("reasons"), strict=True))
                content = opened.read()
        except (ValueError, OSError):
            return None
        whole = len(content) == count * width * self.dtype.itemsize and zlib.crc32(content) == facts.integer(
            "sum"
        )
        return Part(file, start, count, width, unreadable, len(head)) if whole and count else None


@contextmanager
def parts_of(target: Path, dtype: np.dtype) -> Iterator[Parts]:
    """The parts of unfinished runs for `target`, which no other run touches in the block.

    Raises:
        ValueError: another run writes it now.
        OSError: the name of the folder is taken by a link or by a file.
    """
    folder = target.with_name(f".{target.name}.parts")
    with locked(lock_file(target.parent, target.name), wait=False) as held:
        if not held:
            raise Refusal("out", str(target), "a file that no other run is writing", "wait for it to end")
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            raise FileExistsError(
                f"{str(folder)!r}: expected a folder that tercet made there, or none; move it away"
            )
        yield Parts(folder, dtype)
