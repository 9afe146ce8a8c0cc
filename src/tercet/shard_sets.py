"""Which tars there are, as files or as info.json lists them, and the table of each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tercet.atomic import atomically
from tercet.checks import refusal
from tercet.tars import (
    ShardTable,
    extension,
    of_this_file,
    of_write_shards,
    other_size,
    read_table,
    scan_tar,
    table_path,
    write_table,
)

__all__ = [
    "INFO",
    "classes_of_runs",
    "find_tables",
    "find_tars",
    "fits",
    "refuse_other_runs",
    "written_classes",
]

INFO = "info.json"
_SPLITS = {"valid": "val", "validation": "val", "dev": "val", "testing": "test", "training": "train"}
_SPLITS |= {name: name for name in ("train", "val", "trainval", "test", "eval", "query", "gallery")}


def find_tars(
    owner: str, argument: str, source: Any, split: str | None
) -> tuple[list[Path], dict[str, Any] | None]:
    """The tars, and what info.json says of how tercet wrote them, {} where it did not; None without one.

    Args:
        owner, argument: who asks, and for which argument, for the sentences.
        source, split: as in `ShardIndex`.

    Raises:
        ValueError: no tar, one that is missing or there twice, no such split, none asked for while there are
            several, finished or not, or without info.json tars of several splits, as their names have it.
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
        _existing(owner, argument, tars)
        splits = sorted(set(map(_split_named, tars)))
        if len(splits) > 1:
            shown = " and ".join(split or "others" for split in splits)
            expected = f"tars of one split, and by their names there are {shown}"
            raise refusal(owner, argument, str(source), expected, "pass a list of tars")
        return tars, None
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
    first: dict[str, Path] = {}
    for tar in tars:
        same = first.setdefault(os.path.realpath(tar), tar)
        if same is not tar:
            way_out = f"it is {same} too" if str(same) != str(tar) else "it is there twice"
            raise refusal(owner, argument, str(tar), "each tar once", way_out)
    return tars


def _split_named(tar: Path) -> str:
    """The split that the name of a tar tells, by the first word that is one's: "train" of a_train-0.tar, and
    "", as that of others, where none is: of trainset-0.tar."""
    words = re.findall("[a-z]+", tar.name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def _listed(owner: str, argument: str, folder: Path, split: str | None) -> tuple[list[Path], dict[str, Any]]:
    """The tars of a split as info.json lists them."""
    source = folder / INFO
    expected, way_out = "splits with their filenames", "pass a list of tars to do without"
    try:
        info = json.loads(source.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(owner, argument, str(source), expected, f"{way_out} ({error})") from error
    splits = info.get("splits") if isinstance(info, dict) else None
    told = splits if isinstance(splits, dict) else {}
    listed: dict[str, Any] = {
        name: one.get("filenames") for name, one in told.items() if isinstance(one, dict)
    }
    if not listed or len(listed) < len(told) or not all(map(_are_names, listed.values())):
        raise refusal(owner, argument, str(source), expected, way_out)
    if split is None and len(listed) == 1:
        split = next(iter(listed))
        _refuse_unfinished(owner, folder, split, {name for names in listed.values() for name in names})
    if split is None or split not in listed:
        shown = ", ".join(sorted(listed))
        raise refusal(owner, "split", split, f"one of the splits in {source}: {shown}")
    tars = [folder / name for name in listed[split]]
    written = _runs_in(source).get(split, {})
    missing = [str(tar) for tar in tars if not tar.exists()]
    if missing:
        way_out = "restore it" + (", or run write_shards again, which writes what is missing" * bool(written))
        raise refusal(owner, argument, missing[0], f"every tar that {source} lists", way_out)
    return _existing(owner, argument, tars), written


def _refuse_unfinished(owner: str, folder: Path, split: str, listed: Set[str]) -> None:
    """Refuse to take the one split that is listed for all there is, beside shards of one that is not."""
    for tar in sorted(set(folder.glob("*.tar")) - {folder / name for name in listed}):
        other = tar.name.rpartition("-")[0]
        if not tar.name.startswith(".") and other != split and of_write_shards(owner, tar):
            expected = f"a split, since {INFO} in {folder} does not list {tar.name}"
            way_out = f"{other!r} was interrupted; pass split={split!r}, or run write_shards again for it"
            raise refusal(owner, "split", None, expected, way_out)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _runs_in(info: Path) -> dict[str, dict[str, Any]]:
    """What an info.json says of runs of `write_shards`, by split; {} where it says nothing."""
    try:
        told = json.loads(info.read_text("utf-8"))["tercet"]
        return {split: run for split, run in told.items() if isinstance(run, dict)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


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
        way_out = "write the shards again with overwrite=True or --overwrite"
        raise refusal(owner, argument, str(source), expected, way_out)
    folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
    if info is None and folder and len(plans) == 1 and None not in plans:
        way_out = "the writing was interrupted; run write_shards again, and it goes on"
        way_out += f"; or shards were copied here: copy their {INFO} too"
        raise refusal(owner, argument, str(source), f"all shards and {INFO}", way_out)


def written_classes(owner: str, argument: str, tables: Sequence[ShardTable]) -> list[str] | None:
    """The classes of the catalog that shards of `write_shards` were written from, as info.json beside them
    lists them, so that a class keeps its number; None for tars of other programs.

    Args:
        owner, argument: who asks, and for which argument, for the sentences.
        tables: of the tars.

    Raises:
        ValueError: tars of both kinds, no info.json of their run beside them, or runs of different classes.
    """
    runs = {(table.tar.parent, table.facts["plan"]): table.tar for table in tables if _ours(table)}
    if not runs:
        return None
    for table in tables:
        if not _ours(table):
            expected = f"the index of write_shards beside it, as beside {next(iter(runs.values())).name}"
            way_out = "restore it; tars of other programs make an index of their own"
            raise refusal(owner, argument, str(table.tar), expected, way_out)
    return classes_of_runs(owner, argument, runs)


def classes_of_runs(owner: str, argument: str, runs: Mapping[tuple[Path, str], Path]) -> list[str]:
    """The classes that runs of `write_shards` number alike, as info.json in each folder lists them.

    Args:
        owner, argument: who asks, and for which argument, for the sentences.
        runs: by folder and plan, at least one; a tar of each, for the sentences.

    Raises:
        ValueError: no info.json of a run in its folder, or runs of different classes.
    """
    found: list[list[str]] = []
    for (folder, plan), tar in runs.items():
        named = [run for run in _runs_in(folder / INFO).values() if run.get("plan") == plan]
        if not named or not _are_names(named[0].get("classes")):
            expected = f"the {INFO} that was written with it in its folder: it numbers the classes"
            raise refusal(owner, argument, str(tar), expected, "copy it there too")
        found.append(named[0]["classes"])
        if found[-1] != found[0]:
            way_out = "by others the same number is another class; take the runs one by one"
            raise refusal(owner, argument, str(tar), "shards of one list of classes", way_out)
    return found[0]


def find_tables(
    owner: str,
    tars: list[Path],
    image: str | None,
    label: str | None,
    damaged: str,
    keep: bool,
    progress: bool,
) -> list[ShardTable]:
    """The table of each tar: the one beside it where it fits what is asked, else by scanning.

    Args:
        owner: who asks, for the sentences.
        tars: the files.
        image, label, damaged, keep, progress: as in `ShardIndex`, `keep` for its `write_index`.

    Raises:
        ValueError: a shard of `write_shards` that has changed, an image or label for such shards, indexes
            that disagree in theirs, one that cannot be kept, or as `scan_tar` says.
    """
    from rich.console import Console
    from rich.progress import track

    shown: dict[str, Any] = {"console": Console(stderr=True), "disable": not progress}
    found = [_current(owner, tar) for tar in track(tars, "reading indexes", **shown)]
    image = _asked(owner, found, "image", image, None)
    label = _asked(owner, found, "label", label, "cls")
    assert label is not None
    tables = []
    for tar, table in zip(track(tars, "indexing shards", **shown), found):
        if table is None or not (_ours(table) or fits(table, image, label, damaged)):
            if keep and not os.access(tar.parent, os.W_OK):
                expected = f"a folder that may be written, and {tar.parent} may not"
                raise refusal(owner, "write_index", keep, expected, "leave it out: the tars are scanned")
            table = scan_tar(owner, tar, image, label, damaged)
            if keep:
                with atomically(table_path(tar)) as unfinished:
                    write_table(table, unfinished)
        tables.append(table)
    return tables


def _current(owner: str, tar: Path) -> ShardTable | None:
    """The table beside a tar, refused where a shard of `write_shards` has another size."""
    table = read_table(owner, tar)
    if table is not None and _ours(table):
        changed = other_size(owner, "tars", tar, table.tar_size)
        if changed is not None:
            raise changed
    return table


def _ours(table: ShardTable) -> bool:
    """Whether `write_shards` wrote it."""
    return "plan" in table.facts


def _asked(
    owner: str, tables: list[ShardTable | None], name: str, value: Any, default: str | None
) -> str | None:
    """The image or label to look for: what is given, else that of the indexes there are, else the default."""
    there = [table for table in tables if table is not None]
    if value is not None:
        value = extension(owner, name, value)
        if any(map(_ours, there)):
            way_out = "image and label are for tars of other programs; leave it out"
            expected = f"no {name} for shards of write_shards, whose index has it"
            raise refusal(owner, name, value, expected, way_out)
        return value
    kept = {table.facts.get(name) for table in there if not _ours(table)}
    if len(kept) > 1:
        shown = " and ".join(sorted(map(repr, kept)))
        expected = f"one that all indexes beside the tars are made with, and they are with {shown}"
        raise refusal(owner, name, None, expected, f"pass {name}=")
    return kept.pop() if kept else default


def fits(table: ShardTable, image: str | None, label: str, damaged: str) -> bool:
    """Whether a table is what a scan with these options would give now, or tells the same classes apart."""
    facts = table.facts
    labels = ("cls", "json:label", "json:class") if _ours(table) else (facts.get("label"),)
    same = label in labels and image == facts.get("image")
    whole = damaged == "drop" or not facts.get("damaged", False)
    as_large = table.tar.stat().st_size == table.tar_size
    return same and whole and as_large and (_ours(table) or of_this_file(table))
