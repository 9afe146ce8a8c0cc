"""Layout of Arrow IPC files: footer and headers are read by offset, to find where the values of columns are.

pyarrow would memory-map the file, and a mapped file that another process cuts short ends the program that
reads it. The headers are flatbuffers; every offset in them is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.data.io.positional import PositionalFile
from tercet.data.manifests.columns import OnDiskColumns, block_count
from tercet.data.manifests.formats import (
    COLUMNS,
    ROWS_KEY,
    SUMS_KEY,
    column_types,
    decoded,
    fields,
    holds_paths,
    kind_of,
)

__all__ = ["ArrowBatch", "arrow_batches", "arrow_lengths", "arrow_schema", "open_arrow"]

_MAGIC = b"ARROW1"
_MOST_HEADER = 1 << 28  # bytes: a catalog of ten million images takes a third of it
_RECORD_BATCH = 3  # the header type of a record batch message
_BLOCK = np.dtype([("offset", "<i8"), ("header", "<i4"), ("padding", "<i4"), ("body", "<i8")])
_NODE = np.dtype([("length", "<i8"), ("nulls", "<i8")])
_BUFFER = np.dtype([("offset", "<i8"), ("length", "<i8")])


class ArrowBatch(NamedTuple):
    """Where the columns of a record batch are; each has values of a fixed size.

    Attributes:
        count: the number of rows.
        plain: whether it is uncompressed, with two buffers a column (validity and values), and without nulls.
        starts: [c] the offset in the file of the values of each column, in bytes.
        lengths: [c] the size of the values of each column, in bytes.
        metadata: the custom metadata of the batch, by name.
    """

    count: int
    plain: bool
    starts: np.ndarray
    lengths: np.ndarray
    metadata: dict[str, str]


def arrow_lengths(file: PositionalFile) -> tuple[int, int]:
    """The sizes that an Arrow file states for its first message and its footer; −1 for another file.

    Raises:
        ValueError: a size above the limit.
    """
    head, tail = file.pread(0, 16), file.pread(max(0, file.size - 10), 10)
    if len(head) < 16 or bytes(head[:6]) != _MAGIC or bytes(tail[4:]) != _MAGIC:
        return -1, -1
    lengths = [int.from_bytes(part, "little", signed=True) for part in (head[12:], tail[:4])]
    if max(lengths) > _MOST_HEADER:
        raise ValueError(f"it tells of headers of {max(lengths):,} bytes")
    return lengths[0], lengths[1]


def arrow_schema(file: PositionalFile) -> Any:
    """The `pyarrow.Schema` in the first message of an Arrow file.

    Raises:
        ValueError: there is none.
        pyarrow.ArrowException: it cannot be read.
    """
    import pyarrow as pa

    length, _ = arrow_lengths(file)
    if not 0 < length < file.size:
        raise ValueError("it does not begin and end as an Arrow file does")
    return pa.ipc.read_schema(pa.py_buffer(file.pread(8, 8 + length)))


def arrow_batches(file: PositionalFile) -> list[ArrowBatch]:
    """The record batches of an Arrow file, in the order of its footer.

    Raises:
        ValueError: not an Arrow file, or a damaged one.
    """
    _, length = arrow_lengths(file)
    if not 0 < length <= file.size - 10:
        raise ValueError("it does not begin and end as an Arrow file does")
    footer = _Flat(file.pread(file.size - 10 - length, length))
    return [_batch(file, block) for block in footer.records(footer.root(), 3, _BLOCK)]


def _batch(file: PositionalFile, block: Any) -> ArrowBatch:
    offset, size, body = int(block["offset"]), int(block["header"]), int(block["body"])
    end = offset + size + body
    if not (offset >= 8 and size > 8 and body >= 0 and end <= file.size):
        raise ValueError("a batch lies outside of the file")
    flat = _Flat(file.pread(offset + 8, size - 8))  # after a marker and the length
    message = flat.root()
    kind, header = flat.field(message, 1), flat.pointer(flat.field(message, 2))
    if not kind or flat.integer(kind, 1) != _RECORD_BATCH:
        raise ValueError("a batch is none")
    length = flat.field(header, 0)
    count = flat.integer(length, 8) if length else 0
    nodes, buffers = flat.records(header, 1, _NODE), flat.records(header, 2, _BUFFER)
    plain = not flat.field(header, 3) and len(buffers) == 2 * len(nodes) and not nodes["nulls"].any()
    plain = plain and bool((nodes["length"] == count).all())
    values = buffers[1::2] if plain else buffers[:0]
    within = (values["offset"] >= 0) & (values["length"] >= 0)
    within &= (values["offset"] <= body) & (values["length"] <= body - values["offset"])
    if count < 0 or not within.all():
        raise ValueError("a column lies outside of its batch")
    starts = values["offset"] + (offset + size)
    return ArrowBatch(count, plain, starts, values["length"].copy(), dict(flat.pairs(message, 4)))


class _Flat:
    """A flatbuffer: tables of numbered fields. An offset outside of it is a ValueError."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def part(self, place: int, length: int) -> memoryview:
        if not 0 <= place <= len(self._content) - length:
            raise ValueError("a header points outside of itself")
        return self._content[place : place + length]

    def integer(self, place: int, size: int) -> int:
        """A signed integer of `size` bytes."""
        return int.from_bytes(self.part(place, size), "little", signed=True)

    def pointer(self, place: int) -> int:
        """The offset that a field of a type other than a number points to."""
        if not place:
            raise ValueError("a header lacks a field")
        return place + self.integer(place, 4)

    def root(self) -> int:
        """The offset of the root table."""
        return self.integer(0, 4)

    def field(self, table: int, number: int) -> int:
        """The offset of a field of a table; 0 where the table does not have it."""
        vtable = table - self.integer(table, 4)
        if 4 + 2 * number >= self.integer(vtable, 2):
            return 0
        offset = self.integer(vtable + 4 + 2 * number, 2)
        return table + offset if offset else 0

    def records(self, table: int, number: int, kind: np.dtype) -> np.ndarray:
        """The vector of structs in a field; an empty one where the table does not have it."""
        place = self.field(table, number)
        if not place:
            return np.empty(0, kind)
        vector = self.pointer(place)
        count = self.integer(vector, 4)
        if count < 0:
            raise ValueError("a header has a list of negative length")
        return np.frombuffer(self.part(vector + 4, count * kind.itemsize), kind)

    def pairs(self, table: int, number: int) -> Iterator[tuple[str, str]]:
        """The vector of (key, value) in a field."""
        place = self.field(table, number)
        if not place:
            return
        vector = self.pointer(place)
        for at in range(self.integer(vector, 4)):
            entry = self.pointer(vector + 4 + 4 * at)
            yield self._text(entry, 0), self._text(entry, 1)

    def _text(self, table: int, number: int) -> str:
        text = self.pointer(self.field(table, number))
        return bytes(self.part(text + 4, self.integer(text, 4))).decode("utf-8", "replace")


def open_arrow(source: Path, key: str) -> tuple[OnDiskColumns, dict[str, str], bool] | None:
    """The columns of an .arrow manifest that `write_paths` wrote, on disk.

    Returns:
        The columns: int32 rows of the catalog, since each dictionary is the catalog's list of paths, and int8
        for the column same; the metadata; whether there are checksums, which files of version 0.1 lack. None
        where another program wrote the batches, whose dictionaries may be in any order.

    Raises:
        ValueError: it cannot be opened.
        pyarrow.ArrowException: it is damaged.
    """
    import pyarrow as pa

    file = PositionalFile(source, "a file to read")
    try:
        arrow_lengths(file)
    except ValueError as error:
        raise pa.ArrowInvalid(f"{error}: it is damaged") from error
    try:
        schema = arrow_schema(file)
        metadata = decoded(schema.metadata)
    except (ValueError, pa.ArrowException):
        return None  # `read_paths` says why
    try:
        batches = arrow_batches(file)
    except ValueError as error:
        if key not in metadata:
            return None
        raise pa.ArrowInvalid(f"{error}: it was cut short or damaged") from error
    marks = {batch.metadata.get(ROWS_KEY, "") for batch in batches} or {"0" * (key in metadata)}
    if marks == {""}:
        return None
    names = marks.pop()
    found = list(zip(schema.names, schema.types, strict=True))
    if marks or not names.isdecimal() or key not in metadata or found not in map(fields, COLUMNS):
        raise pa.ArrowInvalid("its headers are damaged")
    kind = kind_of(schema.names)
    types, counts = column_types(kind), np.array([batch.count for batch in batches], dtype=np.int64)
    for batch in batches:
        width = len(batch.starts) == len(types) and batch.plain
        if not width or any(batch.lengths < [batch.count * one.itemsize for one in types]):
            raise pa.ArrowInvalid("a batch has other columns than were written")
    limits = [int(names) if path else 2 for path in holds_paths(kind)]
    starts = np.array([batch.starts for batch in batches], np.int64).reshape(-1, len(types))
    sums = _sums_of(batches, types)
    return OnDiskColumns(file, starts, counts, types, limits, sums), metadata, sums is not None


def _sums_of(batches: list[ArrowBatch], types: list[np.dtype]) -> np.ndarray | None:
    """The checksums of all blocks; None for a file without checksums."""
    import pyarrow as pa

    texts = [batch.metadata.get(SUMS_KEY) for batch in batches]
    if texts and not any(text is not None for text in texts):
        return None
    try:
        sums = [np.frombuffer(bytes.fromhex(str(text)), "<u4") for text in texts]
    except (TypeError, ValueError):
        raise pa.ArrowInvalid("the checksums of a batch are damaged") from None
    expected = [sum(block_count(batch.count, one) for one in types) for batch in batches]
    if list(map(len, sums)) != expected:
        raise pa.ArrowInvalid("a batch has not as many checksums as blocks")
    return np.concatenate([*sums, np.empty(0, "<u4")]).astype(np.uint32)
