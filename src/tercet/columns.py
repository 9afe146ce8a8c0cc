"""Columns of whole numbers by row: held in memory, or read from a file where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from tercet.checks import refusal
from tercet.handles import Handle

__all__ = ["HeldColumns", "StoredColumns"]

_AT_ONCE = 1 << 16  # rows read at a time
_GAP = 1 << 9  # bytes between two values up to which one read takes both


class HeldColumns:
    """Columns in memory.

    Args:
        columns: c arrays of whole numbers, [n] each.

    Example:
        >>> HeldColumns([np.array([5, 6, 7]), np.array([0, 1, 0])]).take(np.array([2, 0])).tolist()
        [[7, 5], [0, 0]]
    """

    def __init__(self, columns: Sequence[np.ndarray]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def take(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "c m"]:
        """The values at some rows, from 0 to n − 1."""
        out = np.empty((len(self._columns), len(rows)), dtype=np.int64)
        for values, column in zip(out, self._columns):
            values[:] = column[rows]
        return out


class StoredColumns:
    """Columns that lie uncompressed in a file, in parts one behind the other.

    Only what is asked for is read, and nothing of it is kept. A mapped file would count all pages ever
    touched, and their neighbours, as memory of the process: after one shuffled epoch that is the whole file.

    Args:
        path: the file; it is opened now, and a file that takes its name later changes nothing.
        starts: [parts, c], where the values of a part begin, in bytes.
        counts: [parts], the rows of each part.
        types: the types of the c columns.
        limits: for each column what all its values, from 0 on, are below.

    Raises:
        ValueError: the file cannot be opened.

    Example:
        >>> _ = Path("numbers.bin").write_bytes(np.arange(10, dtype=np.int32).tobytes())
        >>> starts, counts = np.array([[0], [24]]), np.array([2, 3])
        >>> columns = StoredColumns(Path("numbers.bin"), starts, counts, [np.dtype(np.int32)], [9])
        >>> columns.take(np.array([4, 0]))
        array([[8, 0]])
    """

    def __init__(
        self,
        path: Path,
        starts: Int64[np.ndarray, "parts c"],
        counts: Int64[np.ndarray, " parts"],
        types: Sequence[np.dtype],
        limits: Sequence[int],
    ) -> None:
        self._path = path
        self._starts = starts
        self._ends = np.concatenate([[0], np.cumsum(counts)])  # the last is the length
        self._types = types
        self._limits = limits
        self._handle = Handle("read_manifest", "path", path, "a file to read")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "c m"]:
        """The values at some rows, from 0 to n − 1.

        Raises:
            ValueError: the file has been written to since it was opened, or holds a value out of range.
        """
        out = np.empty((len(self._types), len(rows)), dtype=np.int64)
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            part = np.searchsorted(self._ends, some, side="right") - 1
            within = some - self._ends[part]
            plans = [
                _plan(self._starts[part, column] + within * kind.itemsize, kind.itemsize)
                for column, kind in enumerate(self._types)
            ]
            for reads, _ in plans:
                self._handle.announce(reads)
            for values, kind, (reads, places) in zip(out, self._types, plans):
                joined = self._handle.gather(reads)
                if len(joined) < sum(length for _, length in reads):
                    way_out = "it was cut short since it was opened; write it again"
                    raise refusal("Manifest", "path", str(self._path), "the file as it was", way_out)
                values[first : first + len(some)] = np.frombuffer(joined, kind)[places]
        if self._handle.changed():  # asked after the reading: what is given was there before
            way_out = "it was written to since it was opened; read it anew, with read_manifest"
            raise refusal("Manifest", "path", str(self._path), "the file as it was", way_out)
        for values, limit in zip(out, self._limits):
            unsigned = values.view(np.uint64)  # so a negative one is large
            if len(rows) and unsigned.max() >= limit:
                wrong = int(np.argmax(unsigned >= limit))
                expected = f"whole numbers below {limit}, and row {rows[wrong]} holds {values[wrong]}"
                raise refusal("Manifest", "path", str(self._path), expected, "it is damaged; write it again")
        return out


def _plan(
    places: Int64[np.ndarray, " m"], width: int
) -> tuple[list[tuple[int, int]], Int64[np.ndarray, " m"]]:
    """What to read for some values, neighbours at once, and which value of all that is read is which.

    Args:
        places: m ≥ 1 offsets in bytes, apart by multiples of `width`.
        width: bytes of a value.

    Returns:
        (begin, length) of each read in bytes; [m] positions in their contents joined.
    """
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    new = np.diff(ordered, prepend=ordered[0] - _GAP - 1) > _GAP
    begins = ordered[new]
    last = np.append(np.flatnonzero(new)[1:] - 1, len(ordered) - 1)
    lengths = ordered[last] + width - begins
    shift = np.cumsum(lengths) - lengths - begins  # from a place in the file to one in what is read
    positions = np.empty(len(places), dtype=np.int64)
    positions[order] = (ordered + shift[np.cumsum(new) - 1]) // width
    return list(zip(begins.tolist(), lengths.tolist())), positions
