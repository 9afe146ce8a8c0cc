"""What images there are: a folder of class folders, or a table, as one sorted list of rows."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import array_of, as_bool, as_int, path_of, refusal, string, strings_of
from tercet.core.indices import row_number
from tercet.data.catalog.scan import (
    IMAGE_SUFFIXES,
    MAX_FILES,
    LeftOut,
    ambiguous_names,
    decodable,
    walk_images,
)
from tercet.data.io.atomic import fresh_target
from tercet.data.io.images import MAX_PIXELS
from tercet.data.io.roots import refuse_leading_out, refuse_outside
from tercet.data.io.tables import first_rows, read_columns, sorted_classes, write_columns

__all__ = ["Catalog", "read_catalog", "refuse_unwritable", "scan_folder"]

_KINDS = (bool, int, float, str)  # of the values of a group; the first that fits


@dataclass(frozen=True, eq=False, repr=False)
class Catalog:
    """The images, their classes and their groups: row n of each array speaks of image n.

    Args:
        paths: str object array [n], relative to `root`, with forward slashes.
        labels: int64 [n], the class of each image, a position in `classes`.
        classes: the class names.
        groups: further columns by name, each [n], whole numbers, strings, floats or booleans: "parent" (the
            folder above the class folder, for use as a super-label), or a camera, a session, … from a
            table. The names "path" and "label" are taken.
        root: the folder that `paths` start from.
        left_out: what was found and is not in the catalog.
        outside_root: whether paths, and links on them, may lead out of `root`; in a catalog of a table or a
            manifest they may not unless that was asked for.

    Example:
        >>> catalog = Catalog(["ant/1.png", "bee/1.png"], [0, 1], ["ant", "bee"])
        >>> catalog
        Catalog(2 images, 2 classes)
        >>> catalog.select([1]).paths.tolist()
        ['bee/1.png']
    """

    paths: Any
    labels: Any
    classes: Any
    groups: Mapping[str, Any] = field(default_factory=dict)
    root: Path = Path()
    left_out: Sequence[LeftOut] = ()
    outside_root: bool = True

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("paths", np.array(_listed("paths", self.paths, str), dtype=object))
        put("labels", array_of("Catalog", "labels", self.labels, "a position in classes for each path"))
        put("classes", list(map(str, _listed("classes", self.classes, str, int, np.integer))))
        if not isinstance(self.groups, Mapping):
            raise refusal("Catalog", "groups", self.groups, "columns by name, a dict")
        expected = "one value for each path"
        groups = self.groups.items()
        put("groups", {name: array_of("Catalog", "groups", values, expected) for name, values in groups})
        put("root", path_of("Catalog", "root", self.root))
        put("outside_root", as_bool("Catalog", "outside_root", self.outside_root))
        if not isinstance(self.left_out, Sequence):
            raise refusal("Catalog", "left_out", self.left_out, "a sequence of LeftOut")
        put("left_out", tuple(self.left_out))
        for name, column in {"labels": self.labels, **self.groups}.items():
            if column.shape != self.paths.shape:
                raise refusal(
                    "Catalog", name, f"shape {column.shape}", f"one value for each of {len(self)} paths"
                )
        expected = f"positions in {len(self.classes)} classes"
        if self.labels.size and self.labels.dtype.kind not in "iu":
            raise refusal("Catalog", "labels", f"array of {self.labels.dtype}", expected)
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            worst = self.labels.min() if self.labels.min() < 0 else self.labels.max()
            raise refusal("Catalog", "labels", int(worst), expected)
        put("labels", self.labels.astype(np.int64))
        if len(set(self.classes)) < len(self.classes):
            raise refusal("Catalog", "classes", self.classes, "each class name once")
        for name in {"path", "label"} & self.groups.keys():
            raise refusal("Catalog", "groups", name, "another name: a table has that column already")

    def __len__(self) -> int:
        return self.paths.shape[0]

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
        """SHA-256 of paths, labels, classes and groups, in hexadecimal; the root does not enter."""
        groups = {name: list(map(str, values.tolist())) for name, values in self.groups.items()}
        columns = [self.paths.tolist(), self.labels.tolist(), self.classes, groups]
        return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()

    def file(self, row: int) -> Path:
        """The path of image `row`, root included.

        Raises:
            PermissionError: it leads out of the root, by a link for instance, without `outside_root`.
        """
        name = self.paths[row_number("Catalog.file", row, len(self))]
        if not self.outside_root:
            refuse_leading_out(self.root, name)
        return self.root / name

    def left_out_counts(self) -> dict[str, int]:
        """How many files or folders were left out, by reason, most frequent first."""
        return dict(Counter(item.reason for item in self.left_out).most_common())

    def select(self, rows: Any) -> Catalog:
        """The catalog of some rows, in the order given; classes keep their numbers.

        Args:
            rows: int [m] row numbers, or bool [n].

        Returns:
            A catalog of m images with the same `classes` and `root`, and nothing left out.

        Raises:
            ValueError: a row number outside [0, n), or a mask of another length.
        """
        index = array_of("Catalog.select", "rows", rows, "row numbers [m] or a mask [n]")
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

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table path, label, groups… that `read_catalog` and pandas read.

        Paths are written relative to the folder of the table, so that images and table can move together.
        To images that are not below that folder they lead by `..`: read them with `outside_root=True`.

        Args:
            path: where to, ending in .csv or .parquet.
            overwrite: replace an existing file.

        Raises:
            ValueError: another suffix, an existing file, or a folder that cannot be written.
        """
        target = fresh_target("Catalog.write", path, overwrite, (".csv", ".parquet"))
        refuse_unwritable("Catalog.write", self)
        base = os.path.relpath(self.root, target.parent)
        if base.startswith(".."):  # after a link, ".." is the folder above what the link leads to
            base = os.path.relpath(os.path.realpath(self.root), os.path.realpath(target.parent))
        prefix = "" if base == "." else f"{Path(base).as_posix()}/"
        names = np.array(self.classes, dtype=object)[self.labels]
        located = [name if os.path.isabs(name) else prefix + name for name in self.paths]
        paths = np.array(located, dtype=object)
        write_columns({"path": paths, "label": names, **self.groups}, target, overwrite)


def _listed(argument: str, names: Any, *kinds: type) -> list[Any]:
    """Names of images or classes as a list; one string is no list of them."""
    try:
        listed = None if isinstance(names, (str, bytes, Mapping)) else list(names)
    except Exception:  # not iterable
        listed = None
    if listed is None or not all(issubclass(kind, kinds) for kind in set(map(type, listed))):
        raise refusal("Catalog", argument, names, "a list of strings")
    return listed


def refuse_unwritable(caller: str, catalog: Any) -> None:
    """Refuse what is no catalog, or holds what no file of shards or triplets has room for.

    Args:
        caller: who writes, for the sentence.
        catalog: what came.

    Raises:
        ValueError: not a `Catalog`, a name that is not text in UTF-8, or a group of other values than whole
            numbers, numbers, strings, or True and False, all of one kind.
    """
    if not isinstance(catalog, Catalog):
        raise refusal(caller, "catalog", catalog, "a Catalog, such as tercet.scan_folder gives")
    texts = {"catalog.classes": catalog.classes, "catalog.paths": catalog.paths.tolist()}
    for name, values in catalog.groups.items():
        found = values.tolist()
        kinds = {next((kind for kind in _KINDS if isinstance(value, kind)), type(value)) for value in found}
        if len(kinds) > 1 or not kinds <= set(_KINDS) or values.dtype.kind == "M":  # times become numbers
            shown = " and ".join(sorted(kind.__name__ for kind in kinds))
            shown = shown if values.dtype.kind == "O" else values.dtype.name
            expected = "whole numbers, numbers, strings, or True and False in each group, of one kind"
            raise refusal(caller, "catalog.groups", name, expected, f"it holds {shown}; leave it out")
        if kinds == {str}:
            texts[f"catalog.groups[{name!r}]"] = found
    for argument, names in texts.items():
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            name = next(name for name in names if name != name.encode(errors="ignore").decode())
            raise refusal(caller, argument, name, "text that UTF-8 can write", "rename it") from None


def scan_folder(
    root: str | Path,
    *,
    class_depth: int | None = None,
    suffixes: Iterable[str] = IMAGE_SUFFIXES,
    verify: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_files: int = MAX_FILES,
    progress: bool = False,
) -> Catalog:
    """The catalog of a folder of class folders: every image below a folder, sorted by path.

    A folder that holds images is a class, named by its whole path below `root`; where classes lie deeper
    than the first level, `groups["parent"]` names the folder above each, for use as a super-label.
    The order is that of the path's parts, as plain strings, so class numbers are those of torchvision's
    ImageFolder on a flat tree.

    Links are followed, also out of `root`: a tree of links into a store is a common one. Each folder is
    entered once, by its own name or by the first link to it, so loops and doubled links end.

    Args:
        root: the folder.
        class_depth: a class is named by its first `class_depth` folders, and everything below belongs to
            it; None names it by its whole path, and warns where folders of one name become several classes.
        suffixes: what counts as an image, in lower case; compared in any case.
        verify: decode every image, in parallel, and leave out those that do not decode.
        max_pixels: how many pixels an image may have to be decoded.
        max_files: how many files and folders may lie below `root`.
        progress: show a progress bar while verifying.

    Returns:
        The catalog; `left_out` names each file or folder that is not in it, with the reason.

    Raises:
        ValueError: no such folder, no image in any class folder, or more files than `max_files`.

    Example:
        >>> import pathlib
        >>> for name in ("ant/1.JPG", "ant/2.jpg", "bee/x y.png", "bee/notes.txt"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"")
        >>> catalog = scan_folder("photos")
        >>> catalog, catalog.labels.tolist(), catalog.left_out_counts()
        (Catalog(3 images, 2 classes, 1 left out), [0, 0, 1], {'not an image': 1})
    """
    top = path_of("scan_folder", "root", root)
    verify, progress = as_bool("scan_folder", "verify", verify), as_bool("scan_folder", "progress", progress)
    if not top.is_dir():
        raise refusal("scan_folder", "root", str(root), "an existing folder")
    if class_depth is not None:
        class_depth = as_int("scan_folder", "class_depth", class_depth, minimum=1)
    wanted = frozenset(strings_of("scan_folder", "suffixes", suffixes))
    if not all(suffix.startswith(".") and suffix == suffix.lower() for suffix in wanted):
        expected = "suffixes in lower case with their dots"
        raise refusal("scan_folder", "suffixes", sorted(wanted), expected, 'such as [".jpg", ".png"]')
    left_out: list[LeftOut] = []
    max_pixels = as_int("scan_folder", "max_pixels", max_pixels, minimum=1)
    max_files = as_int("scan_folder", "max_files", max_files, minimum=1)
    found = list(walk_images(top, wanted, left_out, max_files))
    if verify:
        files = {"/".join(parts): top.joinpath(*parts) for parts in found}
        found = [tuple(name.split("/")) for name in decodable(files, left_out, max_pixels, progress)]
    if not found:
        reasons = Counter(item.reason for item in left_out)
        seen = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common()) or "it is empty"
        expected = "one folder per class with images in it"
        raise refusal("scan_folder", "root", str(root), expected, f"found none: {seen}")
    found.sort()
    folders = [parts[:-1][:class_depth] for parts in found]
    classes = sorted(set(folders))
    if class_depth is None and (warning := ambiguous_names(root, classes)):
        warnings.warn(warning, stacklevel=2)
    number = {folder: code for code, folder in enumerate(classes)}
    groups = {}
    if any(len(folder) > 1 for folder in classes):
        groups["parent"] = np.array(["/".join(folder[:-1]) for folder in folders], dtype=object)
    return Catalog(
        paths=["/".join(parts) for parts in found],
        labels=np.array([number[folder] for folder in folders], dtype=np.int64),
        classes=["/".join(folder) for folder in classes],
        groups=groups,
        root=top,
        left_out=sorted(left_out),
    )


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
        outside_root: let paths lead out of the root: `..`, absolute paths elsewhere, and links. Without it
            paths are refused here, and links on them where the image is opened: no image is looked for.
        path_column: the column of image paths.
        label_column: the column of classes, whole numbers or strings. Classes are sorted, as numbers
            where every one of them is a whole number.
        groups: columns to keep as groups; by default all others. Of a CSV they are strings, or whole numbers
            where every value is written as Python writes an int64, so `007` and `7` stay two values; of a
            Parquet they keep their type.
        verify: decode every image, in parallel, and leave out those that do not decode.
        max_pixels: how many pixels an image may have to be decoded.
        progress: show a progress bar while verifying.

    Returns:
        The catalog; a path that the table repeats with the same label is kept once.

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
    path = path_of(caller, "path", path)
    root = path.parent if root is None else path_of(caller, "root", root)
    verify, progress = as_bool(caller, "verify", verify), as_bool(caller, "progress", progress)
    outside_root = as_bool(caller, "outside_root", outside_root)
    text = (string(caller, "path_column", path_column), string(caller, "label_column", label_column))
    wanted = None if groups is None else strings_of(caller, "groups", groups)
    columns = read_columns("read_catalog", path, text, wanted)
    names, labels = (columns[name] for name in text)
    if wanted is None:
        wanted = [name for name in columns if name not in text]
    if not names.size:
        raise refusal("read_catalog", "path", str(path), "at least one row")
    if not outside_root:
        refuse_outside(caller, path, root, names, rows=True)
    first, repeated = first_rows(caller, path, names, labels)
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
