"""Columns on disk: CSV and Parquet tables, and the writing of a file whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tercet.checks import refusal

__all__ = ["atomically", "fresh_target", "naming", "read_columns", "write_columns"]


def fresh_target(owner: str, path: str | Path, overwrite: bool, suffixes: Sequence[str]) -> Path:
    """`path`, refused before any work is done for it if nothing could be written there.

    Args:
        owner: who asks, for the sentence.
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        suffixes: the suffixes that are known, with their dots.

    Raises:
        ValueError: another suffix, an existing file, or no such folder.
    """
    target = Path(path)
    if target.suffix not in suffixes:
        raise refusal(owner, "path", str(path), "a name ending in " + ", ".join(suffixes))
    if target.is_dir():
        raise refusal(owner, "path", str(path), "a file, not a folder")
    if target.exists() and not overwrite:
        way_out = "it exists; overwrite=True or --overwrite replaces it"
        raise refusal(owner, "path", str(path), "a new file", way_out)
    if not target.parent.is_dir():
        raise refusal(
            owner, "path", str(path), "an existing folder to write in", f"make {target.parent} first"
        )
    if not os.access(target.parent, os.W_OK):
        raise refusal(owner, "path", str(path), "a folder that may be written")
    return target


@contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that becomes `target` when the block ends well, and vanishes when not.

    Args:
        target: the final name.

    Yields:
        The name to write to, in the same folder, so that the renaming is one step of the file system.

    Raises:
        OSError: it cannot be written; the error names `target`.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        with naming(target, unfinished):
            yield unfinished
            os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def naming(target: Path, unfinished: Path) -> Iterator[None]:
    """Have the system's errors in the block name `target`, where they name its unfinished file or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(unfinished)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def write_columns(columns: Mapping[str, Any], target: Path) -> None:
    """Write columns of equal length as a table, CSV or Parquet by the suffix of `target`.

    Args:
        columns: by name, each [n], whole numbers or strings.
        target: a name that `fresh_target` has passed.
    """
    import pyarrow as pa

    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with atomically(target) as unfinished:
        if target.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pa.OSFile(str(unfinished), "wb") as file:  # of a name with a colon it would make an address
                pq.write_table(table, file, compression="zstd")
        else:
            from pyarrow import csv

            csv.write_csv(table, unfinished)


def read_columns(
    owner: str,
    path: str | Path,
    text: Sequence[str] = (),
    others: Sequence[str] | None = None,
    numbers: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Columns of a table, CSV or Parquet by suffix.

    Args:
        owner: who asks, for the sentences.
        path: the table.
        text: columns that are read as strings, whatever they look like, and have a value in every row.
        others: further columns; None for all there are.
        numbers: columns that are read as numbers, with a value in every row.

    Returns:
        By name: str object array [n] or int64 [n]; float64 [n] for those of `numbers`.

    Raises:
        ValueError: no such file, another suffix, not a table, a column missing, an empty value.
    """
    import pyarrow as pa

    source = Path(path)
    if source.suffix not in (".csv", ".parquet"):
        raise refusal(owner, "path", str(path), "a table ending in .csv or .parquet")
    if not source.is_file():
        raise refusal(owner, "path", str(path), "an existing file")
    try:
        if source.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pa.OSFile(str(source)) as file:
                table = pq.ParquetFile(file).read()
        else:
            from pyarrow import csv

            table = csv.read_csv(
                source,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
            )
    except (pa.ArrowException, OSError) as error:
        raise refusal(owner, "path", str(path), "a readable table", str(error).splitlines()[0]) from error
    for name in (*text, *numbers, *(table.column_names if others is None else others)):
        if table.column_names.count(name) != 1:
            shown = ", ".join(table.column_names)
            raise refusal(owner, "path", str(path), f"one column {name!r}", f"its columns are: {shown}")
    wanted = table.column_names if others is None else dict.fromkeys((*text, *numbers, *others))
    return {
        name: _numbers(owner, path, name, table[name])
        if name in numbers
        else _values(owner, path, name, table[name], name in text)
        for name in wanted
    }


def _values(owner: str, path: str | Path, name: str, column: Any, as_text: bool) -> np.ndarray:
    """One Arrow column as numpy: int64 where it holds whole numbers, else strings."""
    import pyarrow as pa

    try:
        strings = column.cast(pa.string())
    except pa.ArrowException:
        expected = f"whole numbers or strings in column {name!r}"
        raise refusal(owner, "path", str(path), expected, f"it holds {column.type}") from None
    values = strings.to_numpy().astype(object)
    empty = np.flatnonzero(values == "" if as_text and not strings.null_count else strings.is_null())
    if empty.size:
        expected = f"a value in every row of column {name!r}"
        raise refusal(owner, "path", str(path), expected, f"row {empty[0] + 1} of {len(column)} has none")
    whole_numbers = pa.types.is_integer(column.type) and not as_text
    return column.to_numpy().astype(np.int64) if whole_numbers else values


def _numbers(owner: str, path: str | Path, name: str, column: Any) -> np.ndarray:
    """One Arrow column as float64."""
    import pyarrow as pa

    try:
        values = column.cast(pa.float64())
    except pa.ArrowException as error:
        expected = f"numbers in column {name!r}"
        raise refusal(owner, "path", str(path), expected, str(error).splitlines()[0]) from None
    empty = np.flatnonzero(values.is_null())
    if empty.size:
        expected = f"a value in every row of column {name!r}"
        raise refusal(owner, "path", str(path), expected, f"row {empty[0] + 1} of {len(column)} has none")
    return values.to_numpy()
