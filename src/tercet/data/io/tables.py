"""Tables on disk: CSV and Parquet files as numpy columns by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal, as_path
from tercet.data.io.atomic import atomically
from tercet.data.io.parquet_files import opened_parquet, parquet_writer

__all__ = ["fill_table", "read_columns", "sorted_classes", "write_columns"]

# A whole number as Python writes it, within the number of digits that Python reads.
_WHOLE = r"^(0|-?[1-9][0-9]{0,599})$"


def write_columns(columns: Mapping[str, Any], target: Path, overwrite: bool = False) -> None:
    """Write columns of equal length as a table, CSV or Parquet by the suffix of `target`.

    Args:
        columns: by name, each [n]: whole numbers, strings, floats or booleans. A CSV gets floats and booleans
            as Python writes them.
        target: a path that `fresh_target` has returned.
        overwrite: replace an existing file.

    Raises:
        OSError: it cannot be written, or it exists and `overwrite` is False.
    """
    with atomically(target, overwrite) as unfinished:
        fill_table(columns, unfinished, target.suffix)


def fill_table(columns: Mapping[str, Any], file: Path, suffix: str) -> None:
    """Write columns as `write_columns` does into a file of any name, such as one of `atomically_together`.

    Args:
        columns: by name, each [n].
        file: where to.
        suffix: the format, ".csv" or ".parquet".
    """
    import pyarrow as pa

    table = pa.table({name: _array(values, suffix == ".csv") for name, values in columns.items()})
    if suffix == ".parquet":
        with parquet_writer(file, table.schema) as writer:
            writer.write_table(table)
    else:
        from pyarrow import csv

        csv.write_csv(table, file)


def _array(values: Any, text: bool) -> Any:
    """Values as an Arrow array; as text, integers beyond 64 bits and, in a CSV, floats and booleans."""
    import pyarrow as pa

    with suppress(OverflowError):
        array = pa.array(values)
        if not text or not (pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
            return array
    return pa.array(list(map(str, np.asarray(values).tolist())))


def read_columns(
    path: str | Path,
    text: Sequence[str] = (),
    others: Sequence[str] | None = None,
    numbers: Sequence[str] = (),
    integers: Sequence[str] = (),
    suffix: str | None = None,
) -> dict[str, np.ndarray]:
    """Read columns of a table, CSV or Parquet by its suffix, without changing how values are written.

    A CSV column is text, or whole numbers where every value is written as Python writes an int64: `007`,
    `1.10` and `1e5` stay text. A Parquet column keeps its type: text, whole numbers, floats or booleans;
    whole numbers of 2⁶³ and more become text, as in CSV, and so do dates and decimals.

    Args:
        path: the table.
        text: columns that are read as strings, with a value in every row.
        others: further columns to read; None for all.
        numbers: columns that are read as numbers, with a value in every row.
        integers: columns that are read as whole numbers, with a value in every row.
        suffix: the format, ".csv" or ".parquet", of a file that has no name yet; by default that of the path.

    Returns:
        By name, object arrays of str, or int64, float64 or bool [n]; float64 for `numbers`, int64 for
        `integers`.

    Raises:
        ValueError: no such file, another suffix, not a table, a column missing, a missing value (in CSV
            an empty field; the quoted field `""` is an empty text), or a value of another type.
    """
    import pyarrow as pa

    source = as_path(None, "path", path)
    suffix = source.suffix if suffix is None else suffix
    if suffix not in (".csv", ".parquet"):
        raise Refusal("path", str(path), "a table ending in .csv or .parquet")
    if not source.is_file():
        raise Refusal("path", str(path), "an existing file")
    try:
        table = _parquet(source) if suffix == ".parquet" else _csv(source)
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:200]  # the error may quote a line of the table
        raise Refusal("path", str(path), "a readable table", said) from error
    for name in (*text, *numbers, *integers, *(table.column_names if others is None else others)):
        if table.column_names.count(name) != 1:
            shown = ", ".join(table.column_names)
            raise Refusal("path", str(path), f"one column {name!r}", f"its columns are: {shown}")
    kinds: dict[str, Any] = dict.fromkeys(table.column_names if others is None else others)
    kinds |= {**dict.fromkeys(text, str), **dict.fromkeys(numbers, float), **dict.fromkeys(integers, int)}
    columns = {}
    for name, kind in kinds.items():
        try:
            columns[name], missing = _values(table[name], kind, guess=suffix == ".csv")
        except pa.ArrowException as error:
            expected, said = _refused(name, kind, table[name], error)
            raise Refusal("path", str(path), expected, said) from None
        rows = np.flatnonzero(missing)
        if rows.size:
            expected = f"a value in every row of column {name!r}"
            said = f"row {rows[0] + 1} of {len(table)} has none"
            raise Refusal("path", str(path), expected, said)
    return columns


def _parquet(source: Path) -> Any:
    with opened_parquet(source) as (file, _):
        return file.read()


def _csv(source: Path) -> Any:
    """The table with all columns as text; an empty field is null, but `""` and words such as NA are not."""
    import pyarrow as pa
    from pyarrow import csv

    parsing = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(source, parse_options=parsing) as head:
        names = head.schema.names
    options: dict[str, Any] = {"null_values": [""], "strings_can_be_null": True}
    types = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), quoted_strings_can_be_null=False, **options
    )
    return csv.read_csv(source, parse_options=parsing, convert_options=types)


def _values(column: Any, kind: type | None, guess: bool) -> tuple[np.ndarray, np.ndarray]:
    """One Arrow column as numpy, and a mask, bool [n], of the rows without a value.

    Args:
        column: the column.
        kind: str, int or float; None for the type of the column.
        guess: whether text that is all whole numbers becomes int64.

    Raises:
        pyarrow.ArrowException: a value is not of that kind.
    """
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute  # type checkers do not see its functions, which are created at run time

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if kind in (int, float):
        column = pc.utf8_trim_whitespace(column) if is_text else column
        column = column.cast(pa.float64() if kind is float else pa.int64())
    elif kind is None and pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    elif kind is str or not pa.types.is_boolean(column.type):
        whole = kind is None and (pa.types.is_integer(column.type) or (guess and _all_whole(column)))
        column = _as_int64(column) if whole else column.cast(pa.string())
    missing = pc.is_null(column, nan_is_null=True).to_numpy()  # pandas writes a missing number as NaN
    values = column.to_numpy()
    if pa.types.is_string(column.type):
        values = values.astype(object)
        missing = missing | (values == "") if kind is str else missing
    return values, missing


def _all_whole(column: Any) -> bool:
    """Whether every text is a whole number as Python writes it."""
    from pyarrow import compute

    pc: Any = compute  # type checkers do not see its functions, which are created at run time

    return len(column) > 0 and bool(
        pc.all(pc.match_substring_regex(column, _WHOLE), skip_nulls=False).as_py()
    )


def _as_int64(column: Any) -> Any:
    """Whole numbers as int64; as text where one exceeds it."""
    import pyarrow as pa

    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def _refused(name: str, kind: type | None, column: Any, error: Exception) -> tuple[str, str]:
    """What was expected of a column with values of another kind, and what it holds, for the message."""
    if kind not in (int, float):
        return f"numbers, text or booleans in column {name!r}", f"it holds {column.type}"
    expected = f"{'whole ' if kind is int else ''}numbers in column {name!r}"
    return expected, str(error).splitlines()[0][:200]


def sorted_classes(names: Iterable[str]) -> list[str]:
    """The distinct class names, sorted as numbers if all are whole numbers, else as text.

    Example:
        >>> sorted_classes(["10", "9", "10"]), sorted_classes(["10", "9", "x"])
        (['9', '10'], ['10', '9', 'x'])
    """
    distinct = set(names)
    numbers = all(re.fullmatch(_WHOLE, name) for name in distinct)
    return sorted(distinct, key=int if numbers else None)
