"""The five file formats of manifests: how rows of paths are written and read.

Rows are written block by block, so memory does not grow with their count. All blocks but the last have one
size, so the bytes depend on the triplets alone. Both kinds have three columns: triplets three of paths, pairs
two of paths and one of 0 and 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tercet.data.io.parquet_files import KEY as CHECKSUM_KEY
from tercet.data.io.parquet_files import opened_parquet, parquet_writer
from tercet.data.io.positional import open_plain
from tercet.data.manifests.columns import block_sums

__all__ = [
    "BLOCK",
    "COLUMNS",
    "FORMATS",
    "ROWS_KEY",
    "SUMS_KEY",
    "TEXT_FORMATS",
    "column_types",
    "decoded",
    "fields",
    "holds_paths",
    "kind_of",
    "path_type",
    "read_paths",
    "spreadsheet_safe",
    "write_paths",
]

BLOCK = 1 << 20
"""Rows in a Parquet row group or an Arrow record batch; the last may have fewer."""
COLUMNS = {"triplets": ("anchor", "positive", "negative"), "pairs": ("first", "second", "same")}
"""Column names by kind; "same" is 1 for two images of one class, 0 for two of different classes."""
TEXT_FORMATS = (".csv", ".jsonl", ".txt")
FORMATS = (".parquet", ".arrow", *TEXT_FORMATS)
_SAME = "same"
# Custom metadata of each batch of an .arrow file: the number of paths. A program that rewrites the file drops
# it, so where it is present, positions in the dictionaries are known to be rows of the catalog.
ROWS_KEY = "tercet.rows"
SUMS_KEY = "tercet.crc32"  # likewise: the checksums of the blocks of the batch's columns
_MOST_OF_LINE = 1 << 20  # bytes of the first line that are read to recognise the kind
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
_NAMES = [column for columns in COLUMNS.values() for column in columns if column != _SAME]


def write_paths(
    target: Path,
    suffix: str,
    blocks: Iterable[np.ndarray],
    paths: Sequence[str],
    metadata: dict[str, str],
    kind: str = "triplets",
) -> None:
    """Write triplets or pairs as columns of paths.

    Args:
        target: the file.
        suffix: one of `FORMATS`.
        blocks: int32 [3, b] row numbers, of pairs the last row 0 or 1; b = `BLOCK` in all but the last.
        paths: str [n], the path of each row.
        metadata: stored in the schema of .parquet and .arrow; ignored by the text formats.
        kind: one of `COLUMNS`.
    """
    if suffix == ".parquet":
        _write_parquet(target, blocks, paths, metadata, kind)
    elif suffix == ".arrow":
        _write_arrow(target, blocks, paths, metadata, kind)
    else:
        _write_text(target, suffix, blocks, paths, kind)


def _write_parquet(
    target: Path, blocks: Iterable[np.ndarray], paths: Sequence[str], metadata: dict[str, str], kind: str
) -> None:
    import pyarrow as pa

    names = pa.array(paths, pa.string())
    schema = pa.schema(fields(kind))
    # Without the Arrow schema the stored type is a plain string in dictionary encoding, which every reader
    # knows; some refuse Arrow's dictionary type. Minima and maxima of random paths are of no use, and
    # computing them takes half the time.
    options: Any = {"store_schema": False, "write_statistics": False}
    with parquet_writer(target, schema, metadata, **options) as writer:
        used = np.zeros(len(paths), dtype=bool)
        for block in blocks:
            columns = []
            for rows, of_paths in zip(block, holds_paths(kind), strict=True):
                if not of_paths:
                    columns.append(pa.array(rows, pa.int8()))
                    continue
                used[:] = False
                used[rows] = True
                position = np.cumsum(used, dtype=np.int32) - 1
                dictionary = names.take(pa.array(np.flatnonzero(used)))
                columns.append(pa.DictionaryArray.from_arrays(position[rows], dictionary))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=BLOCK)


def _write_arrow(
    target: Path, blocks: Iterable[np.ndarray], paths: Sequence[str], metadata: dict[str, str], kind: str
) -> None:
    import pyarrow as pa

    names = pa.array(paths, pa.string())
    schema = pa.schema(fields(kind), metadata=metadata)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in blocks:
            values = [
                np.ascontiguousarray(rows, dtype)
                for rows, dtype in zip(block, column_types(kind), strict=True)
            ]
            columns = [
                pa.DictionaryArray.from_arrays(rows, names, safe=False) if path else pa.array(rows)
                for rows, path in zip(values, holds_paths(kind), strict=True)
            ]
            sums = [one for rows in values for one in block_sums(rows)]
            mark = {ROWS_KEY: str(len(paths)), SUMS_KEY: np.array(sums, "<u4").tobytes().hex()}
            writer.write_batch(pa.record_batch(columns, schema=schema), custom_metadata=mark)


def _write_text(
    target: Path, suffix: str, blocks: Iterable[np.ndarray], paths: Sequence[str], kind: str
) -> None:
    columns = COLUMNS[kind]
    if suffix == ".jsonl":
        escaped = [json.dumps(path, ensure_ascii=False) for path in paths]
    else:
        escaped = list(map(_csv_field, paths))
    texts = [escaped if of_paths else ["0", "1"] for of_paths in holds_paths(kind)]
    if suffix == ".jsonl":
        pieces = [
            f'{before}{column}": ' for before, column in zip(('{"', ', "', ', "'), columns, strict=True)
        ]
        texts = [[piece + text for text in column] for piece, column in zip(pieces, texts, strict=True)]
        texts[2] = [text + "}" for text in texts[2]]
    names = [np.array(column, dtype=object) for column in texts]
    separator = "" if suffix == ".jsonl" else ","
    with open(target, "w", encoding="utf-8", newline="\n") as file:
        if suffix == ".csv":
            file.write(",".join(columns) + "\n")
        for block in blocks:
            fields = (column[rows].tolist() for column, rows in zip(names, block, strict=True))
            file.writelines(separator.join(line) + "\n" for line in zip(*fields, strict=True))


def spreadsheet_safe(path: str) -> str:
    """A path as a cell that no spreadsheet runs: with an apostrophe before what could begin a formula.

    An apostrophe gets one too, so that two paths never become the same cell.

    Example:
        >>> spreadsheet_safe("=1+1.jpg"), spreadsheet_safe("ant/1.jpg")
        ("'=1+1.jpg", 'ant/1.jpg')
    """
    return f"'{path}" if path.startswith(_FORMULA_STARTS) else path


def _csv_field(path: str) -> str:
    """A path as one field of a comma-separated line, quoted only where necessary."""
    if not any(sign in path for sign in ',"\n\r\ufeff'):  # the last is a byte order mark
        return path
    return '"' + path.replace('"', '""') + '"'


def read_paths(
    source: Path | BinaryIO, suffix: str, kind: str | None = None
) -> tuple[str, np.ndarray, np.ndarray, dict[str, str]]:
    """Read triplets or pairs of paths into memory, as row numbers into their distinct paths.

    Args:
        source: the file; a text format may be passed as an open file.
        suffix: one of `FORMATS`.
        kind: one of `COLUMNS`; None recognises it by the column names, or, in a .txt file, which has none,
            as pairs if all lines end in 0 or 1.

    Returns:
        The kind; `paths` str object array [n], in no particular order; `rows` int32 [3, t], of pairs the last
        row 0 or 1; the metadata. `parquet_files.KEY` in it is the checksum of a Parquet file, "" where it was
        copied from another file.

    Raises:
        pyarrow.ArrowException: the file cannot be read as what its suffix says.
        KeyError: it has no columns anchor, positive, negative, nor first, second, same.
    """
    import pyarrow as pa

    table, kind = _read_table(source, suffix, kind)
    metadata = decoded(table.schema.metadata)
    table = table.select(list(COLUMNS[kind]))
    encoded = path_type()
    columns, same = [], []
    for column, of_paths in zip(table.columns, holds_paths(kind), strict=True):
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        (columns if of_paths else same).append(column.cast(encoded if of_paths else pa.int8()))
    if any(column.null_count for column in (*columns, *same)):
        raise pa.ArrowInvalid("a line without a path" if kind == "triplets" else "a line with an empty field")
    numbers = [column.to_numpy() for column in same]
    if any(((column != 0) & (column != 1)).any() for column in numbers):
        raise pa.ArrowInvalid("a number in column same that is neither 0 nor 1")
    if not len(table):
        return kind, np.empty(0, dtype=object), np.empty((3, 0), dtype=np.int32), metadata
    # One long column, so that all columns share one dictionary.
    joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks], encoded)
    chunks = joined.unify_dictionaries().chunks
    rows = np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).reshape(len(columns), -1)
    rows = np.concatenate([rows.astype(np.int32), *(column[None].astype(np.int32) for column in numbers)])
    return kind, np.array(chunks[-1].dictionary.to_pylist(), dtype=object), rows, metadata


def _read_table(source: Path | BinaryIO, suffix: str, kind: str | None) -> tuple[Any, str]:
    """The table with the columns of its kind among others, and the kind."""
    if suffix in TEXT_FORMATS:
        read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_txt}[suffix]
        with open_plain(source) if isinstance(source, Path) else nullcontext(source) as lines:
            return read(lines, kind)
    assert isinstance(source, Path)  # only text comes open
    table = _read_parquet(source) if suffix == ".parquet" else _read_arrow(source)
    return table, kind or kind_of(table.column_names)


def _read_parquet(source: Path) -> Any:
    with opened_parquet(source, _NAMES) as (file, checked):
        table = file.read()
    kept = table.schema.metadata or {}
    if checked or CHECKSUM_KEY.encode() not in kept:
        return table
    return table.replace_schema_metadata({**kept, CHECKSUM_KEY.encode(): b""})


def _read_arrow(source: Path) -> Any:
    import pyarrow as pa

    with pa.OSFile(str(source)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)  # else a position outside its dictionary would be followed
    return table


def _read_jsonl(lines: BinaryIO, kind: str | None) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    if _is_empty(lines):
        return _no_rows(kind)
    first = _first_object(lines)
    kind = kind or kind_of(first)
    number = pa.bool_() if isinstance(first.get(_SAME), bool) else pa.int8()
    types = [
        (column, pa.string() if path else number)
        for column, path in zip(COLUMNS[kind], holds_paths(kind), strict=True)
    ]
    options: Any = {"explicit_schema": pa.schema(types), "unexpected_field_behavior": "ignore"}
    return arrow_json.read_json(lines, parse_options=arrow_json.ParseOptions(**options)), kind


def _read_csv(lines: BinaryIO, kind: str | None) -> tuple[Any, str]:
    table = _read_fields(lines, None)
    return table, kind or kind_of(table.column_names)


def _read_txt(lines: BinaryIO, kind: str | None) -> tuple[Any, str]:
    import pyarrow as pa

    if _is_empty(lines):
        return _no_rows(kind)
    table = _read_fields(lines, COLUMNS["triplets"])
    last = set(table[2].unique().to_pylist())
    kind = kind or ("pairs" if last and last <= {"0", "1"} else "triplets")
    table = table.rename_columns(COLUMNS[kind])
    if kind == "pairs":
        table = table.set_column(2, _SAME, table[2].cast(pa.string()).cast(pa.int8()))
    return table, kind


def _read_fields(lines: BinaryIO, header: Sequence[str] | None) -> Any:
    """Comma-separated lines as a table; without `header` their first line names the columns."""
    from pyarrow import csv as arrow_csv

    return arrow_csv.read_csv(
        lines,
        read_options=arrow_csv.ReadOptions(column_names=header),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(_NAMES, path_type())),
    )


def _is_empty(lines: BinaryIO) -> bool:
    return not os.fstat(lines.fileno()).st_size


def _no_rows(kind: str | None) -> tuple[Any, str]:
    """The table of an empty file of a format without a header."""
    import pyarrow as pa

    kind = kind or "triplets"
    return pa.schema(fields(kind)).empty_table(), kind


def _first_object(lines: BinaryIO) -> dict[str, Any]:
    """The first line of a .jsonl file; {} where it is no JSON object: reading the whole file says why."""
    try:
        first = json.loads(lines.readline(_MOST_OF_LINE))
    except (ValueError, RecursionError):
        first = None
    lines.seek(0)
    return first if isinstance(first, dict) else {}


def path_type() -> Any:
    """The Arrow type of a column of paths."""
    import pyarrow as pa

    return pa.dictionary(pa.int32(), pa.string())


def holds_paths(kind: str) -> list[bool]:
    """Whether each column holds paths."""
    return [column != _SAME for column in COLUMNS[kind]]


def fields(kind: str) -> list[Any]:
    """Name and Arrow type of each column."""
    import pyarrow as pa

    return [(column, path_type() if column != _SAME else pa.int8()) for column in COLUMNS[kind]]


def decoded(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """Arrow's metadata as text."""
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}


def kind_of(names: Iterable[str]) -> str:
    """The kind of a file with these columns."""
    named = set(names)
    pairs = named.issuperset(COLUMNS["pairs"]) and not named.issuperset(COLUMNS["triplets"])
    return "pairs" if pairs else "triplets"


def column_types(kind: str) -> list[np.dtype]:
    """The type of each column of row numbers, and of 0 and 1."""
    return [np.dtype(np.int32 if path else np.int8) for path in holds_paths(kind)]
