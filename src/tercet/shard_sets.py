"""Which tars there are, as files or as info.json lists them, and the table of each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from tercet.checks import refusal
from tercet.tables import atomically
from tercet.tars import ShardTable, extension, other_size, read_table, scan_tar, table_path, write_table

__all__ = ["INFO", "find_tables", "find_tars", "fits", "refuse_other_runs"]

INFO = "info.json"


def find_tars(
    owner: str, argument: str, source: Any, split: str | None
) -> tuple[list[Path], dict[str, Any] | None]:
    """The tars, and what info.json says of how tercet wrote them, {} where it did not; None without one.

    Args:
        owner, argument: who asks, and for which argument, for the sentences.
        source, split: as in `ShardIndex`.

    Raises:
        ValueError: no tar, one that is missing, or no such split.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        folder = Path(source)
        if (folder / INFO).is_file():
            return _listed(owner, argument, folder, split)
        if split is not None:
            raise refusal(owner, "split", split, f"{INFO} in {folder} to name the splits")
        # What begins with a dot is a system's note on a file, such as macOS's "._a.tar".
        tars = sorted(tar for tar in folder.glob("*.tar") if not tar.name.startswith("."))
        if not tars:
            raise refusal(owner, argument, str(source), "a folder with .tar files in it")
        return _existing(owner, argument, tars), None
    if split is not None:
        raise refusal(owner, "split", split, "a folder of shards beside it, not single tars")
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    given = isinstance(source, Sequence) and all(isinstance(tar, (str, os.PathLike)) for tar in source)
    if not given or not source:
        raise refusal(owner, argument, source, "a folder of shards, a tar, or a list of tars")
    return _existing(owner, argument, [Path(tar) for tar in source]), None


def _existing(owner: str, argument: str, tars: list[Path]) -> list[Path]:
    for tar in tars:
        if not tar.is_file():
            way_out = "it is a folder" if tar.is_dir() else ""
            raise refusal(owner, argument, str(tar), "an existing tar", way_out)
    return tars


def _listed(owner: str, argument: str, folder: Path, split: str | None) -> tuple[list[Path], dict[str, Any]]:
    """The tars of a split as info.json lists them."""
    source = folder / INFO
    try:
        info = json.loads(source.read_text("utf-8"))
        listed = {name: list(told["filenames"]) for name, told in info["splits"].items()}
        written = dict(info.get("tercet", {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = "splits with their filenames"
        raise refusal(owner, argument, str(source), expected, f"{error}") from error
    if split is None and len(listed) == 1:
        split = next(iter(listed))
    if split not in listed:
        shown = ", ".join(sorted(listed))
        raise refusal(owner, "split", split, f"one of the splits in {source}: {shown}")
    tars = [folder / name for name in listed[split]]
    missing = [str(tar) for tar in tars if not tar.is_file()]
    if missing:
        way_out = "restore it, or run write_shards again, which writes what is missing"
        raise refusal(owner, argument, missing[0], f"every tar that {source} lists", way_out)
    return tars, written.get(split, {})


def refuse_other_runs(
    owner: str, argument: str, source: Any, info: dict[str, Any] | None, plans: Set[str | None]
) -> None:
    """Refuses a folder whose shards are not all those of one finished run of `write_shards`, or of none.

    Args:
        owner, argument, source: who asks, for which argument, and what it is, for the sentences.
        info: as from `find_tars`.
        plans: of the tables beside the tars, None for those of other programs' tars.

    Raises:
        ValueError: two runs, or an interrupted one.
    """
    if info and "plan" in info and plans != {info["plan"]}:
        expected = "shards and info.json of one run of write_shards"
        raise refusal(owner, argument, str(source), expected, "write the shards again")
    folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
    if not info and folder and len(plans) == 1 and None not in plans:
        way_out = "the writing was interrupted; run write_shards again, and it goes on"
        raise refusal(owner, argument, str(source), f"all shards and {INFO}", way_out)


def find_tables(
    tars: list[Path], image: str | None, label: str | None, damaged: str, keep: bool, progress: bool
) -> list[ShardTable]:
    """The table of each tar: the one beside it where it fits what is asked, else by scanning.

    Args:
        tars: the files.
        image, label, damaged, keep, progress: as in `ShardIndex`, `keep` for its `write_index`.

    Raises:
        ValueError: a tar that changed since it was indexed, an image or label for shards of `write_shards`,
            indexes that disagree in theirs, or as `scan_tar` says.
    """
    from rich.console import Console
    from rich.progress import track

    shown: dict[str, Any] = {"console": Console(stderr=True), "disable": not progress}
    found = [_current(tar) for tar in track(tars, "reading indexes", **shown)]
    image = _asked(found, "image", image, None)
    label = _asked(found, "label", label, "cls")
    assert label is not None
    tables = []
    for tar, table in zip(track(tars, "indexing shards", **shown), found):
        if table is None or not (_ours(table) or fits(table, image, label, damaged)):
            table = scan_tar("ShardIndex", tar, image, label, damaged)
            if keep:
                with atomically(table_path(tar)) as unfinished:
                    write_table(table, unfinished)
        tables.append(table)
    return tables


def _current(tar: Path) -> ShardTable | None:
    """The table beside a tar, refused where the tar has changed since."""
    table = read_table("ShardIndex", tar)
    changed = None if table is None else other_size("ShardIndex", "tars", tar, table.tar_size)
    if changed is not None:
        raise changed
    return table


def _ours(table: ShardTable) -> bool:
    """Whether `write_shards` wrote it."""
    return "plan" in table.facts


def _asked(tables: list[ShardTable | None], name: str, value: Any, default: str | None) -> str | None:
    """The image or label to look for: what is given, else that of the indexes there are, else the default."""
    there = [table for table in tables if table is not None]
    if value is not None:
        value = extension("ShardIndex", name, value)
        if any(map(_ours, there)):
            way_out = "image and label are for tars of other programs; leave it out"
            expected = f"no {name} for shards of write_shards, whose index has it"
            raise refusal("ShardIndex", name, value, expected, way_out)
        return value
    kept = {table.facts.get(name) for table in there if not _ours(table)}
    if len(kept) > 1:
        shown = " and ".join(sorted(map(repr, kept)))
        expected = f"one that all indexes beside the tars are made with, and they are with {shown}"
        raise refusal("ShardIndex", name, None, expected, f"pass {name}=")
    return kept.pop() if kept else default


def fits(table: ShardTable, image: str | None, label: str, damaged: str) -> bool:
    """Whether a table is what a scan with these options would give, or tells the same classes apart."""
    facts = table.facts
    labels = ("cls", "json:label", "json:class") if _ours(table) else (facts.get("label"),)
    same = label in labels and image == facts.get("image")
    return same and (damaged == "drop" or not facts.get("damaged", False))
