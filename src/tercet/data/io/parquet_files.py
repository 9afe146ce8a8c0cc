"""Parquet files with checksums, so that a damaged byte is noticed: one of each page, one of the file.

The metadata holds size and checksum of the file. The checksum is computed with zeros in their place, which
are then overwritten. Other programs verify the page checksums too. A file written by another program has no
file checksum, or a copied one that belongs to a file of another size; it is read without that check.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tercet.data.io.positional import open_plain

__all__ = ["KEY", "opened_parquet", "parquet_writer"]

KEY = "tercet.crc32"  # the metadata key of size and checksum
_DIGITS = 24  # hexadecimal: 16 of the size, 8 of the checksum
_ZEROS = b"0" * _DIGITS
# The entry as Thrift writes it. The byte 0x18 cannot occur in JSON or base64, so no value looks like it.
_ENTRY = re.compile(rb"\x18\x0c" + KEY.encode() + rb"\x18\x18([0-9a-f]{24})")
_AT_ONCE = 1 << 20  # bytes
_MOST_METADATA = 1 << 28  # bytes: a catalog of ten million images takes a third of it
# Limits against decompression bombs: three columns take about a bit a row, and zeros compress most.
FREE_ROWS, ROWS_A_BYTE = 1 << 24, 64
FREE_BYTES, TIMES = 1 << 28, 1 << 10


@contextmanager
def parquet_writer(target: Path, schema: Any, metadata: dict[str, str] | None = None, **options: Any) -> Any:
    """A `pyarrow.parquet.ParquetWriter` whose file has checksums when the block ends well.

    Args:
        target: the file.
        schema: the Arrow schema of the tables that are written.
        metadata: keys and values for the file, in addition to those of the schema.
        options: further options of `ParquetWriter`.

    Example:
        >>> import pyarrow as pa
        >>> table = pa.table({"n": [1, 2, 3]})
        >>> with parquet_writer(Path("n.parquet"), table.schema) as writer:
        ...     writer.write_table(table)
        >>> with opened_parquet("n.parquet") as (file, checked):
        ...     file.read().to_pydict(), checked
        ({'n': [1, 2, 3]}, True)
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = {"compression": "zstd", "write_page_checksum": True, **options}
    # Opened here: pyarrow would read a name with a colon as a URI.
    with pa.OSFile(str(target), "wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
        yield writer
        writer.add_key_value_metadata({**(metadata or {}), KEY: _ZEROS.decode()})
    with open(target, "r+b") as file:
        place, _ = _entry(file)
        file.seek(0)
        crc = 0
        while block := file.read(_AT_ONCE):
            crc = zlib.crc32(block, crc)
        file.seek(place)
        file.write(b"%016x%08x" % (os.fstat(file.fileno()).st_size, crc))


@contextmanager
def opened_parquet(path: str | Path, dictionaries: Iterable[str] = ()) -> Iterator[tuple[Any, bool]]:
    """A `pyarrow.parquet.ParquetFile`, and whether the file has a checksum, which is verified.

    Everything is read from one descriptor, so it is of one file even if another takes its name meanwhile.

    Args:
        path: the file.
        dictionaries: columns that stay dictionary-encoded, where the file has them.

    Raises:
        pyarrow.ArrowInvalid: no Parquet file, a damaged one, one that changes while the block runs, or one
            whose metadata names far more rows than its bytes can hold.
        OSError: it cannot be opened or read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_plain(path) as file:
        before = os.fstat(file.fileno())
        place, noted = _entry(file)
        size, crc = (int(noted[a:b] or b"0", 16) for a, b in ((0, 16), (16, _DIGITS)))
        checked = size == before.st_size
        if checked and _crc_but(file, place) != crc:
            raise pa.ArrowInvalid("its checksum does not fit: it was changed or damaged")
        file.seek(0)
        # By its descriptor: threads of Arrow that read a Python file hold its bytes for a moment longer than
        # the caller waits, and letting go of them while the interpreter ends aborts the process.
        named = f"/proc/self/fd/{file.fileno()}"
        source = pa.OSFile(named) if os.path.exists(named) else pa.PythonFile(file, "r")
        metadata = pq.read_metadata(source)
        _refuse_impossible_sizes(metadata, before.st_size)
        options: Any = {"metadata": metadata, "page_checksum_verification": True}
        encoded = [name for name in metadata.schema.names if name in dictionaries]
        yield pq.ParquetFile(source, read_dictionary=encoded, **options), checked
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise pa.ArrowInvalid("it was written to while it was read")


def _entry(file: BinaryIO) -> tuple[int, bytes]:
    """The offset of the digits of size and checksum, and the digits; b"" in a file without them."""
    import pyarrow as pa

    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or not 0 < length <= min(size - 12, _MOST_METADATA):
        raise pa.ArrowInvalid("it does not end as a Parquet file does: it was cut short or damaged")
    start = size - 8 - length
    file.seek(start)
    found = list(_ENTRY.finditer(file.read(length)))
    return (start + found[-1].start(1), found[-1][1]) if found else (0, b"")


def _crc_but(file: BinaryIO, place: int) -> int:
    """The CRC of a file, with zeros at `place`."""
    file.seek(0)
    crc, left = 0, place
    while left and (block := file.read(min(left, _AT_ONCE))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    crc = zlib.crc32(_ZEROS, crc)
    file.seek(place + len(_ZEROS))
    while block := file.read(_AT_ONCE):
        crc = zlib.crc32(block, crc)
    return crc


def _refuse_impossible_sizes(metadata: Any, size: int) -> None:
    """Refuse metadata with more rows or bytes than the file can hold, before memory is allocated for them."""
    import pyarrow as pa

    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows, unpacked = metadata.num_rows, sum(group.total_byte_size for group in groups)
    if rows != sum(group.num_rows for group in groups):
        raise pa.ArrowInvalid(f"its {rows:,} rows are not those of its row groups")
    most_rows, most_bytes = FREE_ROWS + ROWS_A_BYTE * size, FREE_BYTES + TIMES * size
    for claimed, most, what in ((rows, most_rows, "rows"), (unpacked, most_bytes, "bytes unpacked")):
        if not 0 <= claimed <= most:
            raise pa.ArrowInvalid(f"it tells of {claimed:,} {what}, and {size:,} bytes hold at most {most:,}")
