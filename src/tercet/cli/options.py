"""What the commands share: options, the catalog of a source, and groups of images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tercet.core.checks import Refusal
from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog

__all__ = [
    "ChunkSize",
    "ClassDepth",
    "CsvSafe",
    "Engine",
    "Group",
    "LabelColumn",
    "Output",
    "OutsideRoot",
    "Overwrite",
    "PathColumn",
    "PathPrefix",
    "Processes",
    "Quiet",
    "Root",
    "Seed",
    "Source",
    "Verify",
    "Work",
    "no_column",
    "opened_catalog",
    "path",
    "refuse_input",
    "with_groups",
]


def path(text: str) -> Path:
    """A path of the command line, refused if empty: `Path("")` would be the current folder.

    Raises:
        typer.BadParameter: an empty argument.
    """
    if not text:
        raise typer.BadParameter("expected a path, got an empty argument; is a variable of the shell unset?")
    return Path(text)


Source = Annotated[
    Path, typer.Argument(parser=path, help="A folder of class folders, or a .csv or .parquet table.")
]
Output = Annotated[
    Path, typer.Argument(parser=path, help="The manifest: .parquet, .arrow, .csv, .jsonl or .txt.")
]
Seed = Annotated[int, typer.Option(help="Another seed draws other triplets.")]
ClassDepth = Annotated[int | None, typer.Option(help="Name classes by their first folders only (folders).")]
Root = Annotated[
    Path | None, typer.Option(parser=path, help="The folder that the paths start from (tables).")
]
OutsideRoot = Annotated[
    bool, typer.Option("--outside-root", help="Let paths and links lead out of that folder (tables).")
]
Group = Annotated[
    list[str] | None, typer.Option(help="A column to keep in the catalog; may be repeated (tables).")
]
PathColumn = Annotated[str, typer.Option(help="The column of image paths (tables).")]
LabelColumn = Annotated[str, typer.Option(help="The column of classes (tables).")]
Verify = Annotated[bool, typer.Option("--verify", help="Decode every image; leave out those that fail.")]
PathPrefix = Annotated[str, typer.Option(help="Put before every path in .csv, .jsonl and .txt.")]
CsvSafe = Annotated[
    bool,
    typer.Option(
        "--csv-safe", help="In .csv, put ' before a path that a spreadsheet would run as a formula."
    ),
]
ChunkSize = Annotated[int, typer.Option(help="Triplets drawn at a time; the result is the same.")]
Work = Annotated[
    Path | None,
    typer.Option(
        parser=path, help="A folder that keeps the search block by block, to go on after an interruption."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="local: this process; ranks: each process that torchrun or a SLURM array starts; ray: the "
        "cluster at RAY_ADDRESS, or one that is started for this command."
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="How many, of ray (else as many as it has processors), and of local where it mines (else 1)."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was written before.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")]


def opened_catalog(
    source: Path,
    *,
    class_depth: int | None,
    root: Path | None,
    outside_root: bool,
    columns: list[str],
    path_column: str,
    label_column: str,
    verify: bool,
    quiet: bool,
) -> Catalog:
    """The images of a folder of class folders or of a table.

    Args:
        source: the folder or the table.
        class_depth, root, outside_root, columns, path_column, label_column, verify, quiet: the options of the
            same names; `columns` is `--group`.

    Raises:
        ValueError: no such source, or one without images.
        typer.BadParameter: an option for the other kind of source.
    """
    if not source.exists():
        raise Refusal("source", str(source), "an existing folder or table")
    if source.is_dir():
        if root or outside_root or columns or path_column != "path" or label_column != "label":
            raise typer.BadParameter(
                "--root, --outside-root, --group, --path-column and --label-column are for tables"
            )
        return scan_folder(source, class_depth=class_depth, verify=verify, progress=not quiet)
    if class_depth is not None:
        raise typer.BadParameter("--class-depth is for folders")
    names = {"path_column": path_column, "label_column": label_column, "groups": columns}
    return read_catalog(
        source, root=root, outside_root=outside_root, verify=verify, progress=not quiet, **names
    )


def no_column(group: str, catalog: Catalog) -> Refusal:
    """The refusal of a `--group` that the catalog of embeddings does not have."""
    hint = "tercet embed keeps one, of a folder by --groups, of a table by --group"
    return Refusal(
        "group", group, f"one of the catalog's columns: {', '.join(catalog.groups) or 'none'}", hint
    )


def refuse_input(output: Path, *inputs: Path, argument: str = "output") -> None:
    """Refuse an output that is also an input: `--overwrite` would destroy it."""
    for given in inputs:
        if output.resolve() == given.resolve():
            kind = "folder" if given.is_dir() else "file"
            raise Refusal(argument, str(output), f"another {kind} than what is read")


def with_groups(catalog: Catalog, groups: str, of_folder: bool) -> tuple[Catalog, Any]:
    """The catalog with the column of groups in it, and the column.

    Args:
        catalog: the images.
        groups: for a table, the name of a column; for a folder, the level of the folder that names the group,
            1 the highest, or a regular expression with one group, searched in each path.
        of_folder: whether the catalog is of a folder.

    Raises:
        ValueError: an invalid expression, or a path without such a folder or match.
    """
    if not of_folder:
        return catalog, catalog.groups[groups]
    if re.fullmatch(r"[0-9]+", groups):
        level = int(groups)
        ways = [path.split("/")[:-1] for path in catalog.paths]
        found = [way[level - 1] if 0 < level <= len(way) else None for way in ways]
        expected = f"a level of folders, from 1 to the {min(map(len, ways))} that every path has"
    else:
        expected = "a column, a folder level such as 2, or a regular expression with one group"
        try:
            pattern = re.compile(groups)
        except re.error as error:
            raise Refusal("--groups", groups, expected, str(error)) from None
        if pattern.groups != 1:
            hint = f"put one part of it in parentheses; it has {pattern.groups}"
            raise Refusal("--groups", groups, expected, hint)
        matches = map(pattern.search, catalog.paths)
        found = [match and match[1] for match in matches]
        expected = "an expression that is found in every path, its group too"
    if None in found:
        path = catalog.paths[found.index(None)]
        raise Refusal("--groups", groups, expected, f"not in {path!r}")
    values = np.array(found, dtype=object)
    return replace(catalog, groups={**catalog.groups, "group": values}), values
