"""`Catalog`: the images, their classes and groups, a row each; and what was left out of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import Refusal, as_array, as_bool, as_path, border, refusal
from tercet.core.indices import row_number
from tercet.data.io.atomic import fresh_target
from tercet.data.io.path_traversal import refuse_leading_out
from tercet.data.io.tables import write_columns

__all__ = ["Catalog", "LeftOut", "refuse_unwritable", "root_prefix", "table_columns"]

_KINDS = (bool, int, float, str)  # types of the values of a group; bool first, as True is an int


class LeftOut(NamedTuple):
    """A file or folder that is not in the catalog, and why.

    Args:
        path: relative to the catalog's root, with forward slashes.
        reason: a phrase, the same for all of its kind, such as "not an image".
    """

    path: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Catalog:
    """The images of a data set, their classes and groups; row n of each array describes image n.

    Args:
        paths: str object array [n], relative to `root`, with forward slashes.
        labels: int64 [n], the class of each image as a position in `classes`.
        classes: the class names.
        groups: further columns by name, each [n], whole numbers, strings, floats or booleans: "parent" (the
            folder above the class folder, for use as a super-label), or a camera, a session, … from a
            table. The names "path" and "label" are reserved.
        root: the folder that `paths` start from.
        left_out: the files and folders that were found and are not in the catalog.
        outside_root: whether paths, and links on them, may lead out of `root`. A catalog read from a table or
            manifest does not allow it by default.

    Example:
        >>> catalog = Catalog(["ant/1.png", "bee/1.png"], [0, 1], ["ant", "bee"])
        >>> catalog
        Catalog(2 images, 2 classes)
        >>> catalog.select([1]).paths.tolist()
        ['bee/1.png']
        >>> catalog[:1], list(catalog)
        (Catalog(1 images, 2 classes), [('ant/1.png', 0), ('bee/1.png', 1)])
    """

    paths: Any
    labels: Any
    classes: Any
    groups: Mapping[str, Any] = field(default_factory=dict)
    root: Path = Path()
    left_out: Sequence[LeftOut] = ()
    outside_root: bool = True

    def __post_init__(self) -> None:
        self._convert()
        self._check_rows()
        if len(set(self.classes)) < len(self.classes):
            raise refusal("Catalog", "classes", self.classes, "each class name once")
        for name in {"path", "label"} & self.groups.keys():
            raise refusal("Catalog", "groups", name, "another name: a table has that column already")

    def _convert(self) -> None:
        """Convert each field to its type, refused where it cannot be."""

        def put(name: str, value: object) -> None:  # the class is frozen
            object.__setattr__(self, name, value)

        put("paths", np.array(_listed("paths", self.paths, str), dtype=object))
        put("labels", as_array("Catalog", "labels", self.labels, "a position in classes for each path"))
        put("classes", list(map(str, _listed("classes", self.classes, str, int, np.integer))))
        if not isinstance(self.groups, Mapping):
            raise refusal("Catalog", "groups", self.groups, "columns by name, a dict")
        expected = "one value for each path"
        groups = self.groups.items()
        put("groups", {name: as_array("Catalog", "groups", values, expected) for name, values in groups})
        put("root", as_path("Catalog", "root", self.root))
        put("outside_root", as_bool("Catalog", "outside_root", self.outside_root))
        if not isinstance(self.left_out, Sequence):
            raise refusal("Catalog", "left_out", self.left_out, "a sequence of LeftOut")
        put("left_out", tuple(self.left_out))

    def _check_rows(self) -> None:
        """Refuse columns of unequal length, and labels that are no positions in `classes`."""
        for name, column in {"labels": self.labels, **self.groups}.items():
            if column.shape != self.paths.shape:
                expected = f"one value for each of {len(self)} paths"
                raise refusal("Catalog", name, f"shape {column.shape}", expected)
        expected = f"positions in {len(self.classes)} classes"
        if self.labels.size and self.labels.dtype.kind not in "iu":
            raise refusal("Catalog", "labels", f"array of {self.labels.dtype}", expected)
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            worst = self.labels.min() if self.labels.min() < 0 else self.labels.max()
            raise refusal("Catalog", "labels", int(worst), expected)
        object.__setattr__(self, "labels", self.labels.astype(np.int64))

    def __len__(self) -> int:
        return self.paths.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        """(path, label) of one image; of a slice, row numbers or a mask, the catalog that `select` gives.

        Args:
            rows: an int, a slice, int [m] or bool [n].

        Returns:
            (str, int), or a `Catalog`.

        Raises:
            IndexError: a number outside the catalog.
            ValueError: row numbers or a mask that do not fit.
        """
        if isinstance(rows, slice):
            return self.select(np.arange(len(self))[rows])
        if np.ndim(rows):
            return self.select(rows)
        row = row_number("Catalog", rows, len(self))
        return self.paths[row], int(self.labels[row])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(path, label) of each image, in order."""
        return zip(self.paths.tolist(), self.labels.tolist(), strict=True)

    def __repr__(self) -> str:
        tail = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"Catalog({len(self)} images, {len(self.classes)} classes{tail})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalog):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of paths, labels, classes and groups, in hexadecimal; independent of the root."""
        groups = {name: list(map(str, values.tolist())) for name, values in self.groups.items()}
        columns = [self.paths.tolist(), self.labels.tolist(), self.classes, groups]
        return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()

    def file(self, row: int) -> Path:
        """The path of image `row`, including the root.

        Args:
            row: the row number; negative ones count from the end.

        Returns:
            `root` and the path in the catalog, joined. Nothing is opened.

        Raises:
            IndexError: a number outside the catalog.
            PermissionError: the path leads out of the root, for instance by a link, and `outside_root` is
                False.
        """
        name = self.paths[row_number("Catalog.file", row, len(self))]
        if not self.outside_root:
            refuse_leading_out(self.root, name)
        return self.root / name

    def left_out_counts(self) -> dict[str, int]:
        """How many files or folders were left out, by reason, most frequent first."""
        return dict(Counter(item.reason for item in self.left_out).most_common())

    def select(self, rows: Any) -> Catalog:
        """The catalog of selected rows, in the order given; classes keep their numbers.

        Args:
            rows: int [m] row numbers, or a mask, bool [n].

        Returns:
            A catalog of m images with the same `classes` and `root`, and an empty `left_out`.

        Raises:
            ValueError: a row number outside [0, n), or a mask of another length.
        """
        index = as_array("Catalog.select", "rows", rows, "row numbers [m] or a mask [n]")
        if index.dtype == bool:
            if index.shape != self.paths.shape:
                raise refusal(
                    "Catalog.select", "rows", f"mask of shape {index.shape}", f"shape ({len(self)},)"
                )
            index = np.flatnonzero(index)
        index = index.astype(np.int64) if not index.size else index
        if index.dtype.kind not in "iu" or index.ndim != 1:
            raise refusal("Catalog.select", "rows", rows, "row numbers [m] or a mask [n]")
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            worst = index.max() if index.max() >= len(self) else index.min()
            raise refusal("Catalog.select", "rows", int(worst), f"row numbers from 0 to {len(self) - 1}")
        groups = {name: values[index] for name, values in self.groups.items()}
        rows_of = {"paths": self.paths[index], "labels": self.labels[index], "groups": groups}
        return replace(self, **rows_of, left_out=())

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the columns path, label (the name of the class) and the groups.

        Returns:
            The frame, a row an image; paths are relative to `root`.

        Raises:
            ImportError: pandas is not installed.

        Example:
            >>> Catalog(["1.png", "2.png"], [0, 1], ["ant", "bee"]).to_pandas()["label"].tolist()
            ['ant', 'bee']
        """
        try:
            import pandas
        except ImportError as error:
            said = "Catalog.to_pandas: expected an installed pandas; pip install pandas"
            raise ImportError(said) from error

        return pandas.DataFrame({"path": self.paths, "label": self._class_names(), **self.groups})

    def _class_names(self) -> np.ndarray:
        """The name of the class of each image, object [n]."""
        return np.array(self.classes, dtype=object)[self.labels]

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a table with columns path, label and the groups, which `read_catalog` and pandas read.

        Paths are written relative to the folder of the table, so that images and table can move together.
        Paths of images outside that folder contain `..`; read such a table with `outside_root=True`.

        Args:
            path: the table, ending in .csv or .parquet.
            overwrite: replace an existing file.

        Raises:
            ValueError: another suffix, an existing file, or a folder that cannot be written.
        """
        with border("Catalog.write"):
            target = fresh_target(path, overwrite, (".csv", ".parquet"))
            refuse_unwritable(self)
        write_columns(table_columns(self, target.parent), target, overwrite)


def table_columns(catalog: Catalog, folder: Path) -> dict[str, Any]:
    """The columns of the table that `Catalog.write` writes.

    Args:
        catalog: the catalog.
        folder: the folder of the table, which the paths are relative to.

    Returns:
        By name, each [n]: path, label and the groups.

    Example:
        >>> catalog = Catalog(["1.png", "2.png"], [0, 1], ["ant", "bee"], root=Path("photos"))
        >>> table_columns(catalog, Path())["path"].tolist()
        ['photos/1.png', 'photos/2.png']
    """
    prefix = root_prefix(catalog, folder)
    located = [name if os.path.isabs(name) else prefix + name for name in catalog.paths]
    return {"path": np.array(located, dtype=object), "label": catalog._class_names(), **catalog.groups}


def root_prefix(catalog: Catalog, folder: Path) -> str:
    """The way from a folder to the root of a catalog, "" or ending in a slash.

    Args:
        catalog: the catalog.
        folder: the folder.

    Example:
        >>> root_prefix(Catalog(["1.png"], [0], ["ant"], root=Path("photos")), Path("tables"))
        '../photos/'
    """
    base = os.path.relpath(catalog.root, folder)
    if base.startswith(".."):  # behind a link, ".." is the parent of the link's target
        base = os.path.relpath(os.path.realpath(catalog.root), os.path.realpath(folder))
    return "" if base == "." else f"{Path(base).as_posix()}/"


def _listed(argument: str, names: Any, *kinds: type) -> list[Any]:
    """Names of images or classes as a list; a single string is refused."""
    try:
        listed = None if isinstance(names, (str, bytes, Mapping)) else list(names)
    except Exception:  # not iterable
        listed = None
    if listed is None or not all(issubclass(kind, kinds) for kind in set(map(type, listed))):
        raise refusal("Catalog", argument, names, "a list of strings")
    return listed


def refuse_unwritable(catalog: Any) -> None:
    """Refuse a catalog that cannot be recorded in a file of shards or triplets.

    Args:
        catalog: the catalog to check.

    Raises:
        ValueError: not a `Catalog`, a name that is not text in UTF-8, or a group of other values than whole
            numbers, floats, strings or booleans, all of one type.
    """
    if not isinstance(catalog, Catalog):
        raise Refusal("catalog", catalog, "a Catalog, such as tercet.scan_folder gives")
    texts = {"catalog.classes": catalog.classes, "catalog.paths": catalog.paths.tolist()}
    for name, values in catalog.groups.items():
        found = values.tolist()
        kinds = {next((kind for kind in _KINDS if isinstance(value, kind)), type(value)) for value in found}
        if (
            len(kinds) > 1 or not kinds <= set(_KINDS) or values.dtype.kind == "M"
        ):  # .tolist() turns times into numbers
            shown = " and ".join(sorted(kind.__name__ for kind in kinds))
            shown = shown if values.dtype.kind == "O" else values.dtype.name
            expected = "whole numbers, numbers, strings, or True and False in each group, of one kind"
            raise Refusal("catalog.groups", name, expected, f"it holds {shown}; leave it out")
        if kinds == {str}:
            texts[f"catalog.groups[{name!r}]"] = found
    for argument, names in texts.items():
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            name = next(name for name in names if name != name.encode(errors="ignore").decode())
            raise Refusal(argument, name, "text that UTF-8 can write", "rename it") from None
