"""Columns of whole numbers by row, in memory or on disk; on disk they are read on demand and verified."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt32

from tercet.core.checks import refusal
from tercet.data.io.positional import PositionalFile

__all__ = ["InMemoryColumns", "OnDiskColumns", "block_count", "block_sums"]

AT_ONCE = 1 << 16  # rows read at a time
_BLOCK = 1 << 14  # bytes covered by one checksum
_AT_A_TIME = 1 << 16  # bytes of neighbouring blocks read at once
GAP = 1 << 9  # values up to so many bytes apart are read at once


class InMemoryColumns:
    """Columns in memory.

    Args:
        columns: c arrays of whole numbers, [n] each.

    Example:
        >>> InMemoryColumns([np.array([5, 6, 7]), np.array([0, 1, 0])]).take(np.array([2, 0])).tolist()
        [[7, 5], [0, 0]]
    """

    def __init__(self, columns: Sequence[np.ndarray]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def take(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "c m"]:
        """The values at some rows, from 0 to n − 1."""
        out = np.empty((len(self._columns), len(rows)), dtype=np.int64)
        for values, column in zip(out, self._columns, strict=True):
            values[:] = column[rows]
        return out


def block_sums(values: np.ndarray) -> list[int]:
    """The CRC of each block of 16 KiB of a column, in order; the last block may be shorter."""
    content = values.data.cast("B") if len(values) else memoryview(b"")
    return [zlib.crc32(content[at : at + _BLOCK]) for at in range(0, len(content), _BLOCK)]


def block_count(count: int, kind: np.dtype) -> int:
    """How many checksums `block_sums` gives for a column of `count` values."""
    return -(-count * kind.itemsize // _BLOCK)


class OnDiskColumns:
    """Columns stored uncompressed in a file, in consecutive parts (the record batches of an .arrow file).

    Rows are read on demand and not cached. With a memory-mapped file, all pages ever touched and their
    neighbours would count as memory of the process: the entire file after one shuffled epoch.

    Args:
        file: the file.
        starts: [parts, c], the offset in bytes of each column of each part.
        counts: [parts], the rows of each part.
        types: the types of the c columns.
        limits: for each column, the bound that all its values, from 0, must be below.
        sums: uint32, the `block_sums` of each column of each part, joined; a block is verified when it is
            first read. None for a file without checksums.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("numbers.bin").write_bytes(np.arange(10, dtype=np.int32).tobytes())
        >>> starts, counts = np.array([[0], [24]]), np.array([2, 3])
        >>> file = PositionalFile(Path("numbers.bin"), "a file")
        >>> columns = OnDiskColumns(file, starts, counts, [np.dtype(np.int32)], [9])
        >>> columns.take(np.array([4, 0]))
        array([[8, 0]])
    """

    def __init__(
        self,
        file: PositionalFile,
        starts: Int64[np.ndarray, "parts c"],
        counts: Int64[np.ndarray, " parts"],
        types: Sequence[np.dtype],
        limits: Sequence[int],
        sums: UInt32[np.ndarray, " blocks"] | None = None,
    ) -> None:
        self._file = file
        self._starts = starts
        self._ends = np.concatenate([[0], np.cumsum(counts)])  # the last is the length
        self._types = types
        self._limits = limits
        self._blocks = None if sums is None else _Blocks(file, starts, counts, types, sums)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "c m"]:
        """The values at some rows, from 0 to n − 1.

        Raises:
            ValueError: the file has been written to since it was opened, or is damaged.
        """
        out = np.empty((len(self._types), len(rows)), dtype=np.int64)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            self._read_run(out, int(rows[0]))
        else:
            for first in range(0, len(rows), AT_ONCE):
                self._read(out[:, first : first + AT_ONCE], rows[first : first + AT_ONCE])
        if self._file.changed():  # checked after reading, so what is returned was read before any change
            hint = "it was written to since it was opened; read it anew, with read_manifest"
            raise refusal("Manifest", "path", str(self._file.path), "the file as it was", hint)
        for values, limit in zip(out, self._limits, strict=True):
            unsigned = values.view(np.uint64)  # negative values become large
            if len(rows) and unsigned.max() >= limit:
                wrong = int(np.argmax(unsigned >= limit))
                expected = f"whole numbers below {limit}, and row {rows[wrong]} holds {values[wrong]}"
                hint = "it is damaged; write it again"
                raise refusal("Manifest", "path", str(self._file.path), expected, hint)
        return out

    def _read(self, out: Int64[np.ndarray, "c m"], rows: Int64[np.ndarray, " m"]) -> None:
        """Read the values at any rows."""
        part = np.searchsorted(self._ends, rows, side="right") - 1
        within = rows - self._ends[part]
        plans = []
        for column, kind in enumerate(self._types):
            if self._blocks:
                self._blocks.compare(part * len(self._types) + column, within * kind.itemsize)
            plans.append(_plan(self._starts[part, column] + within * kind.itemsize, kind.itemsize))
        for reads, _ in plans:
            self._file.prefetch(reads)
        for values, kind, (reads, places) in zip(out, self._types, plans, strict=True):
            values[:] = np.frombuffer(self._gathered(reads), kind)[places]

    def _read_run(self, out: Int64[np.ndarray, "c m"], first: int) -> None:
        """Read the values at consecutive rows."""
        stop = first + out.shape[1]
        for part in range(*np.searchsorted(self._ends, [first, stop - 1], side="right") - [1, 0]):
            a, b = max(first, int(self._ends[part])), min(stop, int(self._ends[part + 1]))
            within = a - int(self._ends[part])
            if a == b:
                continue
            for column, (values, kind) in enumerate(zip(out, self._types, strict=True)):
                width = kind.itemsize
                if self._blocks:
                    steps = range(within * width, (within + b - a) * width, _BLOCK)
                    places = np.append(steps, (within + b - a) * width - 1)  # one of each block
                    self._blocks.compare(np.full(len(places), part * len(out) + column), places)
                reads = [(int(self._starts[part, column]) + within * width, (b - a) * width)]
                values[a - first : b - first] = np.frombuffer(self._gathered(reads), kind)

    def _gathered(self, reads: list[tuple[int, int]]) -> bytes:
        joined = self._file.gather(reads)
        if len(joined) < sum(length for _, length in reads):
            raise _cut_short(self._file)
        return joined


class _Blocks:
    """Verifies blocks of on-disk columns by their checksums, each once.

    Args: as for `OnDiskColumns`.
    """

    def __init__(
        self,
        file: PositionalFile,
        starts: Int64[np.ndarray, "parts c"],
        counts: Int64[np.ndarray, " parts"],
        types: Sequence[np.dtype],
        sums: UInt32[np.ndarray, " blocks"],
    ) -> None:
        self._file, self._sums = file, sums
        widths = np.array([kind.itemsize for kind in types])
        # Of each column of each part, in order: its offset, its size in bytes, its first block.
        self._starts, self._bytes = starts.ravel(), (counts[:, None] * widths).ravel()
        self._first = np.concatenate([[0], np.cumsum(-(-self._bytes // _BLOCK))])
        self._compared = np.zeros(len(sums), dtype=bool)

    def compare(self, nth: Int64[np.ndarray, " m"], places: Int64[np.ndarray, " m"]) -> None:
        """Verify the blocks that contain some bytes, unless they were verified before.

        Args:
            nth: the column of each byte, counted from the first column of the first part.
            places: the offset of each byte from the start of its column.

        Raises:
            ValueError: a block is cut short or has another checksum.
        """
        blocks = self._first[nth] + places // _BLOCK
        missing = blocks[~self._compared[blocks]]
        if missing.size:
            self._compare(np.unique(missing))

    def _compare(self, blocks: Int64[np.ndarray, " b"]) -> None:
        nth = np.searchsorted(self._first, blocks, side="right") - 1  # the column of the part
        before = (blocks - self._first[nth]) * _BLOCK
        starts, lengths = self._starts[nth] + before, np.minimum(_BLOCK, self._bytes[nth] - before)
        new = (np.diff(starts, prepend=-1) != _BLOCK) | (
            before % _AT_A_TIME == 0
        )  # else read together with the last
        first = np.flatnonzero(new)
        reads = list(zip(starts[first].tolist(), np.add.reduceat(lengths, first).tolist(), strict=True))
        self._file.prefetch(reads)
        sums = iter(self._sums[blocks].tolist())
        for start, length in reads:
            content = self._file.pread(start, length)
            if len(content) < length:
                raise _cut_short(self._file)
            for at in range(0, length, _BLOCK):
                if zlib.crc32(content[at : at + _BLOCK]) != next(sums):
                    expected, where = "values that fit their checksums", f"bytes from {start + at:,} on"
                    hint = f"{where} are damaged; write it again"
                    raise refusal("Manifest", "path", str(self._file.path), expected, hint)
        self._compared[blocks] = True


def _cut_short(file: PositionalFile) -> ValueError:
    hint = "it was cut short since it was opened; write it again"
    return refusal("Manifest", "path", str(file.path), "the file as it was", hint)


def _plan(
    places: Int64[np.ndarray, " m"], width: int
) -> tuple[list[tuple[int, int]], Int64[np.ndarray, " m"]]:
    """Which ranges to read for some values, neighbours at once, and where in them each value is.

    Args:
        places: m ≥ 1 offsets in bytes, apart by multiples of `width`.
        width: bytes of a value.

    Returns:
        (begin, length) in bytes of each range; [m] the position of each value in the joined contents.
    """
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    new = np.diff(ordered, prepend=ordered[0] - GAP - 1) > GAP
    begins = ordered[new]
    last = np.append(np.flatnonzero(new)[1:] - 1, len(ordered) - 1)
    lengths = ordered[last] + width - begins
    shift = np.cumsum(lengths) - lengths - begins  # from a place in the file to one in what is read
    positions = np.empty(len(places), dtype=np.int64)
    positions[order] = (ordered + shift[np.cumsum(new) - 1]) // width
    return list(zip(begins.tolist(), lengths.tolist(), strict=True)), positions
