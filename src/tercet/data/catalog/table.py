"""`read_catalog`: a CSV or Parquet table of images, one a row, as a `Catalog`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tercet.core.checks import Refusal, as_bool, as_int, as_path, as_string, as_strings, border, refusal
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.catalog.scan import decodable
from tercet.data.io.images import MAX_PIXELS
from tercet.data.io.path_traversal import refuse_outside
from tercet.data.io.tables import read_columns, sorted_classes

__all__ = ["read_catalog"]


def read_catalog(
    path: str | Path,
    *,
    root: str | Path | None = None,
    outside_root: bool = False,
    path_column: str = "path",
    label_column: str = "label",
    groups: Iterable[str] | None = None,
    verify: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> Catalog:
    """The catalog of a table, CSV or Parquet, in the order of its rows.

    Args:
        path: the table, ending in .csv or .parquet.
        root: the folder that the paths start from; by default the folder of the table.
        outside_root: allow paths that lead out of the root: by `..`, by a link, or as absolute paths. By
            default such paths are refused here, and links when an image is opened; no image is accessed here.
        path_column: the column of image paths.
        label_column: the column of classes, whole numbers or strings. Classes are sorted, as numbers if all
            are whole numbers.
        groups: columns to keep as groups; by default all others. In a CSV they are strings, or whole numbers
            if every value is written as Python writes an int64, so `007` and `7` stay two values; in a
            Parquet file they keep their type.
        verify: decode every image, in parallel, and leave out those that do not decode.
        max_pixels: with `verify`, the most pixels of an image.
        progress: show a progress bar while verifying.

    Returns:
        The catalog; a path that occurs several times with the same label is kept once.

    Raises:
        ValueError: no such file, another suffix, a missing column, an empty value, no rows, a path that has
            two labels or leads out of the root, or no image that decodes.
        PermissionError: an image to be verified lies behind a link out of the root.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("faces.csv").write_text("path,label,camera\\na.jpg,Ann,1\\nb.jpg,Bob,2\\n")
        >>> catalog = read_catalog("faces.csv")
        >>> catalog.classes, catalog.groups["camera"].tolist()
        (['Ann', 'Bob'], [1, 2])
    """
    max_pixels = as_int("read_catalog", "max_pixels", max_pixels, minimum=1)
    caller = "read_catalog"
    path = as_path(caller, "path", path)
    root = path.parent if root is None else as_path(caller, "root", root)
    verify, progress = as_bool(caller, "verify", verify), as_bool(caller, "progress", progress)
    outside_root = as_bool(caller, "outside_root", outside_root)
    text = (as_string(caller, "path_column", path_column), as_string(caller, "label_column", label_column))
    wanted = None if groups is None else as_strings(caller, "groups", groups)
    with border(caller):
        columns = read_columns(path, text, wanted)
    names, labels = (columns[name] for name in text)
    if wanted is None:
        wanted = [name for name in columns if name not in text]
    if not names.size:
        raise refusal("read_catalog", "path", str(path), "at least one row")
    with border(caller):
        if not outside_root:
            refuse_outside(path, root, names, rows=True)
        first, repeated = _first_rows(path, names, labels)
    left_out = [LeftOut(name, "path repeated in the table") for name in repeated]
    classes = sorted_classes(labels)
    number = {label: code for code, label in enumerate(classes)}
    catalog = Catalog(
        paths=names,
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        classes=classes,
        groups={name: columns[name] for name in wanted},
        root=root,
        outside_root=outside_root,
    ).select(first)
    if verify:
        rows = {name: row for row, name in enumerate(catalog.paths)}
        files = {name: catalog.file(row) for name, row in rows.items()}
        kept = decodable(files, left_out, max_pixels, progress)
        if not kept:
            expected = "at least one image that decodes"
            raise refusal("read_catalog", "path", str(path), expected, f"of the first: {left_out[-1].reason}")
        catalog = catalog.select([rows[name] for name in kept])
    return replace(catalog, left_out=left_out)


def _first_rows(path: str | Path, names: np.ndarray, labels: np.ndarray) -> tuple[list[int], list[str]]:
    """The row where each path first occurs, and the paths of later rows, also those written `./a` or `b//a`.

    Args:
        path: the table, for messages.
        names, labels: object [n], the path and the label of each row.

    Raises:
        ValueError: a path has two labels.
    """
    first: dict[str, int] = {}
    repeated = []
    for row, name in enumerate(names):
        earlier = first.setdefault(_normalized(name), row)
        if labels[earlier] != labels[row]:
            both = f"{labels[earlier]!r} in row {earlier + 1} and {labels[row]!r} in row {row + 1}"
            raise Refusal("path", str(path), "one label for each path", f"{name!r} is {both}")
        if earlier != row:
            repeated.append(name)
    return list(first.values()), repeated


def _normalized(name: str) -> str:
    """A path without `.` parts and doubled slashes; `..` stays, since behind a link it leads elsewhere."""
    if "//" not in name and "./" not in name and "/." not in name:  # nearly all
        return name
    parts = (part for part in name.split("/") if part not in ("", "."))
    return "/" * name.startswith("/") + "/".join(parts)
