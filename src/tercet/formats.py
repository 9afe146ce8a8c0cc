"""Triplets of paths on disk, in five formats: blocks of row numbers in, row numbers out.

Written block by block, so memory does not grow with the count, and in blocks of one size whatever size
they were generated in, so the bytes depend on the triplets alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BLOCK", "COLUMNS", "FORMATS", "TEXT_FORMATS", "open_arrow", "read_paths", "write_paths"]

BLOCK = 1 << 20
"""Rows in a Parquet row group or an Arrow record batch; the last may have fewer."""
COLUMNS = ("anchor", "positive", "negative")
TEXT_FORMATS = (".csv", ".jsonl", ".txt")
FORMATS = (".parquet", ".arrow", *TEXT_FORMATS)


def write_paths(
    target: Path, suffix: str, blocks: Iterable[np.ndarray], paths: Sequence[str], metadata: dict[str, str]
) -> None:
    """Write triplets as three columns of paths.

    Args:
        target: the file.
        suffix: one of `FORMATS`.
        blocks: int32 [3, b] row numbers, b = `BLOCK` in all but the last.
        paths: str [n], the path of each row.
        metadata: goes into the schema of .parquet and .arrow; the text formats have no room for it.
    """
    if suffix == ".parquet":
        _write_parquet(target, blocks, paths, metadata)
    elif suffix == ".arrow":
        _write_arrow(target, blocks, paths, metadata)
    else:
        _write_text(target, suffix, blocks, paths)


def _write_parquet(
    target: Path, blocks: Iterable[np.ndarray], paths: Sequence[str], metadata: dict[str, str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pa.array(paths, pa.string())
    schema = pa.schema([(column, _encoded()) for column in COLUMNS])
    # The stored type is plain string in dictionary encoding, which every reader knows; the Arrow schema
    # is left away, since some refuse its dictionary type. The least and the greatest of random paths tell
    # nothing, and finding them takes half the time.
    options: Any = {"compression": "zstd", "store_schema": False, "write_statistics": False}
    with pq.ParquetWriter(target, schema, **options) as writer:
        used = np.zeros(len(paths), dtype=bool)
        for block in blocks:
            columns = []
            for rows in block:
                used[:] = False
                used[rows] = True
                position = np.cumsum(used, dtype=np.int32) - 1
                dictionary = names.take(pa.array(np.flatnonzero(used)))
                columns.append(pa.DictionaryArray.from_arrays(position[rows], dictionary))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=BLOCK)
        writer.add_key_value_metadata(metadata)


def _write_arrow(
    target: Path, blocks: Iterable[np.ndarray], paths: Sequence[str], metadata: dict[str, str]
) -> None:
    import pyarrow as pa

    names = pa.array(paths, pa.string())
    types = [(column, _encoded()) for column in COLUMNS]
    schema = pa.schema(types, metadata=metadata)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in blocks:
            columns = [pa.DictionaryArray.from_arrays(rows, names, safe=False) for rows in block]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _write_text(target: Path, suffix: str, blocks: Iterable[np.ndarray], paths: Sequence[str]) -> None:
    if suffix == ".jsonl":
        escaped = [json.dumps(path, ensure_ascii=False) for path in paths]
        pieces = [f"{a}{column}{b}" for column, a, b in zip(COLUMNS, ('{"', ', "', ', "'), ('": ',) * 3)]
        names = [np.array([piece + path for path in escaped], dtype=object) for piece in pieces]
        names[2] += "}"
    else:
        names = [np.array(list(map(_csv_field, paths)), dtype=object)] * 3
    separator = "" if suffix == ".jsonl" else ","
    with open(target, "w", encoding="utf-8", newline="\n") as file:
        if suffix == ".csv":
            file.write(",".join(COLUMNS) + "\n")
        for block in blocks:
            fields = (column[rows].tolist() for column, rows in zip(names, block))
            file.writelines(separator.join(line) + "\n" for line in zip(*fields))


def _csv_field(path: str) -> str:
    """A path as one field of a comma-separated line: quoted only where it must be."""
    if not any(sign in path for sign in ',"\n\r\ufeff'):  # the last would be a mark at the start of a file
        return path
    return '"' + path.replace('"', '""') + '"'


def read_paths(source: Path, suffix: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Triplets of paths as row numbers into their distinct paths, whole in memory.

    Args:
        source: the file.
        suffix: one of `FORMATS`.

    Returns:
        `paths` str object array [n], in no particular order; `rows` int32 [3, t]; the metadata.

    Raises:
        pyarrow.ArrowException: the file cannot be read as what its suffix says.
        KeyError: it has no columns anchor, positive, negative.
    """
    import pyarrow as pa

    table = _read_table(source, suffix).select(list(COLUMNS))
    encoded = _encoded()
    columns = []
    for name in COLUMNS:
        column = table[name]
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        columns.append(column.cast(encoded))
    # One column of three times the length, so that one dictionary serves all three.
    joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks], encoded)
    if joined.null_count:
        raise pa.ArrowInvalid("a line without a path")
    metadata = _decoded(table.schema.metadata)
    if not len(joined):
        return np.empty(0, dtype=object), np.empty((3, 0), dtype=np.int32), metadata
    chunks = joined.unify_dictionaries().chunks
    rows = np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).reshape(3, -1)
    return np.array(chunks[-1].dictionary.to_pylist(), dtype=object), rows.astype(np.int32), metadata


def _encoded() -> Any:
    """The Arrow type of a column of paths."""
    import pyarrow as pa

    return pa.dictionary(pa.int32(), pa.string())


def _decoded(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}


def _read_table(source: Path, suffix: str) -> Any:
    import pyarrow as pa

    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    if suffix in (".jsonl", ".txt") and not source.stat().st_size:  # no triplets: these have no header
        return schema.empty_table()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(source, read_dictionary=list(COLUMNS)).read()
    if suffix == ".arrow":
        with pa.OSFile(str(source)) as file:
            return pa.ipc.open_file(file).read_all()
    if suffix == ".jsonl":
        from pyarrow import json as arrow_json

        return arrow_json.read_json(
            source,
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    from pyarrow import csv as arrow_csv

    return arrow_csv.read_csv(
        source,
        read_options=arrow_csv.ReadOptions(column_names=COLUMNS if suffix == ".txt" else None),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, _encoded())),
    )


def open_arrow(source: Path, key: str) -> tuple[list[list[np.ndarray]], dict[str, str]] | None:
    """The row numbers of an .arrow manifest that `write_paths` wrote, mapped and not loaded.

    Returns:
        For each record batch three int32 [b] views into the file, rows of the catalog since the dictionary
        is its list of paths; and the metadata. None where it has no `key`, or columns of another type.
    """
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(source)))
    metadata = _decoded(reader.schema.metadata)
    if key not in metadata or reader.schema.types != [_encoded()] * 3:
        return None
    batches = map(reader.get_batch, range(reader.num_record_batches))
    return [[column.indices.to_numpy() for column in batch.columns] for batch in batches], metadata
