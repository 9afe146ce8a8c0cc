"""The parts of embeddings that are being made: runs of rows in files of their own, each whole or not there.

A part is named by a digest of all that decides its numbers, as the blocks of a search are, so processes that
share the parts, or come after a kill, take each other's, and never those of another run.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import Refusal
from tercet.data.io.atomic import atomically, lock_file, locked, remove_leftovers
from tercet.data.io.checked_json import JsonRecord, to_json
from tercet.data.io.positional import open_plain

__all__ = ["HOW", "Part", "Parts", "parts_of"]

HOW = ("batch_size", "device", "compile")
"""Of a plan, what decides the last bits beside the key, so an unfinished run has to keep it."""
_PLAN, _SUFFIX = "plan.json", ".part"
_MOST_HEAD = 1 << 28  # bytes of the JSON of a part


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
    """The parts of one run in a folder of their own.

    Args:
        folder: the folder, hidden beside the output.
        dtype: of the numbers.
        rows: how many rows there are in all.
    """

    def __init__(self, folder: Path, dtype: np.dtype, rows: int) -> None:
        self.folder, self.dtype, self._total = folder, dtype, rows
        self.height = 0  # rows of a part; of the last one there may be fewer
        self._digest = ""
        self._known: dict[int, Part] = {}

    def __len__(self) -> int:
        return -(-self._total // self.height)

    @property
    def done(self) -> list[Part]:
        """The parts that are known to be done, by row."""
        return [self._known[number] for number in sorted(self._known)]

    @property
    def rows(self) -> int:
        """How many rows are done."""
        return sum(part.count for part in self._known.values())

    @property
    def width(self) -> int:
        """The dimension of the embeddings; 0 as long as no image has been embedded.

        Raises:
            ValueError: parts have different ones.
        """
        widths = {part.width for part in self._known.values()} - {0}
        if len(widths) > 1:
            shown = " and ".join(map(str, sorted(widths)))
            raise Refusal("model", f"it gives {shown} numbers", "as many numbers for every image")
        return max(widths, default=0)

    def rows_of(self, number: int) -> range:
        """The rows of a part."""
        start = number * self.height
        return range(start, min(start + self.height, self._total))

    def plan(self) -> dict[str, Any]:
        """What the run of the parts that lie there was asked for; {} without any."""
        try:
            plan = JsonRecord.read(self.folder / _PLAN)
            size, height = plan.integer("batch_size", low=1), plan.integer("height", low=1)
        except (ValueError, OSError):  # killed before it was written, or damaged
            return {}
        return plan.fields if height % size == 0 else {}

    def exist(self) -> bool:
        """Whether there is a part of any run."""
        return any(self.folder.glob(f"*{_SUFFIX}"))

    def resume(self, plan: Mapping[str, Any]) -> None:
        """Find the parts of a plan that are whole; a damaged one is made again."""
        remove_leftovers(self.folder)
        self._set(plan)
        for number in range(len(self)):
            self.is_done(number)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Remove what lies there and begin a run."""
        self.clear()
        self.folder.mkdir(exist_ok=True)
        self._set(plan)
        self.note(plan)

    def note(self, plan: Mapping[str, Any]) -> None:
        """Write the plan down."""
        with atomically(self.folder / _PLAN) as unfinished:
            unfinished.write_text(to_json(plan), "utf-8")

    def _set(self, plan: Mapping[str, Any]) -> None:
        self.height, self._known = plan["height"], {}
        decides = {name: plan[name] for name in ("key", "height", *HOW)}
        self._digest = hashlib.sha256(to_json(decides).encode()).hexdigest()[:32]

    def is_done(self, number: int) -> bool:
        """Whether a part is there, and whole."""
        if number not in self._known:
            part = self._read(self._file(number))
            rows = self.rows_of(number)
            if part is None or (part.start, part.count) != (rows.start, len(rows)):
                return False
            self._known[number] = part
        return True

    def add(self, number: int, numbers: np.ndarray, unreadable: list[tuple[int, str]]) -> None:
        """Keep the embeddings [count, width] of a part."""
        content = np.ascontiguousarray(numbers, self.dtype).tobytes()
        start = self.rows_of(number).start
        facts = {"start": start, "count": len(numbers), "width": numbers.shape[1]}
        facts |= {"rows": [row for row, _ in unreadable], "reasons": [reason for _, reason in unreadable]}
        head = to_json({**facts, "sum": zlib.crc32(content)}).encode() + b"\n"
        file = self._file(number)
        with atomically(file) as unfinished:
            unfinished.write_bytes(head + content)
        self._known[number] = Part(file, start, len(numbers), numbers.shape[1], unreadable, len(head))

    def clear(self) -> None:
        """Remove the folder and what tercet made in it."""
        if not self.folder.is_dir():
            return
        (self.folder / _PLAN).unlink(missing_ok=True)  # first: without it no part counts
        remove_leftovers(self.folder)
        for file in self.folder.glob(f"*{_SUFFIX}"):
            file.unlink(missing_ok=True)
        self.folder.rmdir()

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.rows_of(number).start:012}.{self._digest}{_SUFFIX}"

    def _read(self, file: Path) -> Part | None:
        try:
            with open_plain(file) as opened:
                head = opened.readline(_MOST_HEAD)
                facts = JsonRecord(head, file)
                start, count, width = (facts.integer(name) for name in ("start", "count", "width"))
                unreadable = list(zip(facts.integers("rows"), facts.strings("reasons"), strict=True))
                content = opened.read()
                total = facts.integer("sum", high=2**32)
        except (ValueError, OSError):
            return None
        whole = len(content) == count * width * self.dtype.itemsize and zlib.crc32(content) == total
        return Part(file, start, count, width, unreadable, len(head)) if whole and count else None


@contextmanager
def parts_of(target: Path, dtype: np.dtype, rows: int, shared: bool) -> Iterator[Parts]:
    """The parts of unfinished runs for `target`, which no other run touches in the block.

    Args:
        target: the array that comes of them.
        dtype: of its numbers.
        rows: how many rows it has.
        shared: whether other processes of the same run have them too.

    Raises:
        ValueError: another run writes it now.
        OSError: the name of the folder is taken by a link or by a file.
    """
    folder = target.with_name(f".{target.name}.parts")
    with locked(lock_file(target.parent, target.name), wait=False, shared=shared) as held:
        if not held:
            raise Refusal("out", str(target), "a file that no other run is writing", "wait for it to end")
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            raise FileExistsError(
                f"{str(folder)!r}: expected a folder that tercet made there, or none; move it away"
            )
        yield Parts(folder, dtype, rows)
