"""Which tars there are, as files or as info.json lists them, and the table of each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tercet.checks import refusal
from tercet.tables import atomically
from tercet.tars import ShardTable, read_table, scan_tar, table_path, write_table

__all__ = ["INFO", "find_tables", "find_tars"]

INFO = "info.json"


def find_tars(source: Any, split: str | None) -> tuple[list[Path], dict[str, Any] | None]:
    """The tars, and what info.json says of how tercet wrote them, {} where it did not; None without one.

    Args:
        source, split: as in `ShardIndex`.

    Raises:
        ValueError: no tar, one that is missing, or no such split.
    """
    owner = "ShardIndex"
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        folder = Path(source)
        if (folder / INFO).is_file():
            return _listed(folder, split)
        if split is not None:
            raise refusal(owner, "split", split, f"{INFO} in {folder} to name the splits")
        tars = sorted(folder.glob("*.tar"))
        if not tars:
            raise refusal(owner, "tars", str(source), "a folder with .tar files in it")
        return tars, None
    if split is not None:
        raise refusal(owner, "split", split, "a folder of shards beside it, not single tars")
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if not isinstance(source, Sequence) or not source:
        raise refusal(owner, "tars", source, "a folder of shards, a tar, or a list of tars")
    tars = [Path(tar) for tar in source]
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing:
        raise refusal(owner, "tars", missing[0], "an existing tar")
    return tars, None


def _listed(folder: Path, split: str | None) -> tuple[list[Path], dict[str, Any]]:
    """The tars of a split as info.json lists them."""
    source = folder / INFO
    try:
        info = json.loads(source.read_text("utf-8"))
        listed = {name: list(told["filenames"]) for name, told in info["splits"].items()}
        written = dict(info.get("tercet", {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = "splits with their filenames"
        raise refusal("ShardIndex", "tars", str(source), expected, f"{error}") from error
    if split is None and len(listed) == 1:
        split = next(iter(listed))
    if split not in listed:
        shown = ", ".join(sorted(listed))
        raise refusal("ShardIndex", "split", split, f"one of the splits in {source}: {shown}")
    tars = [folder / name for name in listed[split]]
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing:
        way_out = "restore it, or run write_shards again, which writes what is missing"
        raise refusal("ShardIndex", "tars", missing[0], f"every tar that {source} lists", way_out)
    return tars, written.get(split, {})


def find_tables(
    tars: list[Path], image: str | None, label: str | None, damaged: str, keep: bool, progress: bool
) -> list[ShardTable]:
    """The table of each tar: the one beside it where it fits what is asked, else by scanning.

    Args:
        tars: the files.
        image, label, damaged, keep, progress: as in `ShardIndex`, `keep` for its `write_index`.

    Raises:
        ValueError: a tar that changed since it was indexed, or as `scan_tar` says.
    """
    from rich.console import Console
    from rich.progress import track

    image = None if image is None else image.lstrip(".").lower()
    label = None if label is None else label.lstrip(".")
    tables = []
    for tar in track(tars, "indexing shards", console=Console(stderr=True), disable=not progress):
        table = read_table("ShardIndex", tar)
        if table is not None and tar.stat().st_size != table.tar_size:
            expected = f"{table.tar_size} bytes, as when it was indexed"
            way_out = f"write the shards again, or delete {table_path(tar).name} to index the tar as it is"
            raise refusal("ShardIndex", "tars", str(tar), expected, f"it has changed; {way_out}")
        if table is None or not _fits(table, image, label, damaged):
            if keep and table is not None and "plan" in table.facts:
                way_out = "leave write_index out, and what the scan finds is held in memory"
                raise refusal("ShardIndex", "write_index", keep, f"no other index for {tar}", way_out)
            table = scan_tar("ShardIndex", tar, image, label or "cls", damaged)
            if keep:
                with atomically(table_path(tar)) as unfinished:
                    write_table(table, unfinished)
        tables.append(table)
    return tables


def _fits(table: ShardTable, image: str | None, label: str | None, damaged: str) -> bool:
    """Whether a table was made with the options that are asked for, as far as they are."""
    facts = table.facts
    same = image in (None, facts.get("image")) and label in (None, facts.get("label"))
    return same and (damaged == "drop" or not facts.get("damaged", False))
