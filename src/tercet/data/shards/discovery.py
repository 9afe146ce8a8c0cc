"""Which tars there are, by their files or by info.json, and the table of each."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal, as_string
from tercet.data.io.atomic import atomically, remove_leftovers
from tercet.data.io.path_traversal import inside
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.shard_info import INFO, ShardInfo, listed_tars, read_info
from tercet.data.shards.tar_index import ShardTable, changed, read_table, table_path, write_table
from tercet.data.shards.tar_scan import extension, scan_tar

__all__ = [
    "classes_of_runs",
    "find_tables",
    "find_tars",
    "fits",
    "refuse_exchanged",
    "refuse_other_runs",
    "warn_without_checksums",
    "written_classes",
]

_SPLITS = {"valid": "val", "validation": "val", "dev": "val", "testing": "test", "training": "train"}
_SPLITS |= {name: name for name in ("train", "val", "trainval", "test", "eval", "query", "gallery")}


def find_tars(
    source: Any, split: str | None, outside_root: bool = False
) -> tuple[list[Path], dict[str, Any] | None]:
    """The tars of a folder, of a list, or a single one, and what info.json says about their run.

    Args:
        source: a folder, a tar, or a list of tars.
        split: which of the splits in the folder's info.json; None for the only one.
        outside_root: take tars that info.json lists but that lie outside of its folder.

    Returns:
        The tars, and the entry of their run of `write_shards` in info.json: {} where another program wrote
        them, None where there is no info.json.

    Raises:
        ValueError: no tar, one that is missing or there twice, no such split, none asked for while there are
            several, finished or not, or without info.json tars of several splits, by their names.
    """
    split = None if split is None else as_string(None, "split", split)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        folder = Path(source)
        info = read_info(folder)
        if info is None and split is not None:
            raise Refusal("split", split, f"{INFO} in {folder} to name the splits")
        if info is None:
            return _tars_in(folder, source), None
        tars, written = listed_tars(folder, info, split, outside_root)
        return _existing(tars), written
    if split is not None:
        raise Refusal("split", split, "a folder of shards beside it, not single tars")
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    given = isinstance(source, Sequence) and all(isinstance(tar, (str, os.PathLike)) for tar in source)
    if not given or not source:
        raise Refusal(None, source, "a folder of shards, a tar, or a list of tars")
    return _existing([Path(tar) for tar in source]), None


def _tars_in(folder: Path, source: Any) -> list[Path]:
    """The tars in a folder without info.json, refused where their names tell several splits."""
    # Names that begin with a dot are notes of the system, such as "._a.tar" of macOS.
    tars = sorted(tar for tar in folder.glob("*.tar") if not tar.name.startswith("."))
    if not tars:
        raise Refusal(None, str(source), "a folder with .tar files in it")
    _existing(tars)
    splits = sorted(set(map(_split_in_name, tars)))
    if len(splits) > 1:
        shown = " and ".join(split or "others" for split in splits)
        expected = f"tars of one split, and by their names there are {shown}"
        raise Refusal(None, str(source), expected, "pass a list of tars")
    return tars


def _existing(tars: list[Path]) -> list[Path]:
    """The tars, refused where one is missing or there twice, under another name too."""
    for tar in tars:
        if not tar.is_file():
            hint = "it is a folder" if tar.is_dir() else ""
            raise Refusal(None, str(tar), "an existing tar", hint)
    first: dict[str, Path] = {}
    for tar in tars:
        same = first.setdefault(os.path.realpath(tar), tar)  # links and other spellings are the same file
        if same is not tar:
            hint = f"it is {same} too" if str(same) != str(tar) else "it is there twice"
            raise Refusal(None, str(tar), "each tar once", hint)
    return tars


def _split_in_name(tar: Path) -> str:
    """The split in the name of a tar, by the first word that names one: "train" in a_train-0.tar.

    "" where no word does, as in trainset-0.tar.
    """
    words = re.findall("[a-z]+", tar.name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def refuse_other_runs(source: Any, info: dict[str, Any] | None, plans: Set[str | None]) -> None:
    """Refuse a folder unless its shards are all of one finished run of `write_shards`, or of other programs.

    Args:
        source: the folder, or what else was given.
        info: from `find_tars`.
        plans: the plans in the tables beside the tars; None is that of other programs' tars.

    Raises:
        ValueError: two runs, or an interrupted one.
    """
    # Shards and info.json of two runs may be mixed after a copy, and would give wrong classes.
    if info and "plan" in info and plans != {info["plan"]}:
        expected = "shards and info.json of one run of write_shards"
        hint = "write the shards again with overwrite=True or --overwrite"
        raise Refusal(None, str(source), expected, hint)
    folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
    if info is None and folder and len(plans) == 1 and None not in plans:
        hint = "the writing was interrupted; run write_shards again, and it goes on"
        hint += f"; or shards were copied here: copy their {INFO} too"
        raise Refusal(None, str(source), f"all shards and {INFO}", hint)


def written_classes(tables: Sequence[ShardTable]) -> list[str] | None:
    """The classes of the catalog that shards of `write_shards` were written from, from info.json beside them.

    So a class keeps its number. None for tars of other programs.

    Args:
        tables: the tables of the tars.

    Raises:
        ValueError: tars of both kinds, no info.json of their run beside them, or runs of different classes.
    """
    runs = {(table.tar.parent, table.facts["plan"]): table.tar for table in tables if table.ours}
    if not runs:
        return None
    for table in tables:
        if not table.ours:
            expected = f"the index of write_shards beside it, as beside {next(iter(runs.values())).name}"
            hint = "restore it; tars of other programs make an index of their own"
            raise Refusal(None, str(table.tar), expected, hint)
    return classes_of_runs(runs)


def classes_of_runs(runs: Mapping[tuple[Path, str], Path]) -> list[str]:
    """The classes of runs of `write_shards` that number them alike, from info.json in each folder.

    Args:
        runs: by folder and plan, at least one, a tar of each run, for the sentences.

    Raises:
        ValueError: no info.json of a run in its folder, or runs of different classes.
    """
    found: list[list[str]] = []
    for (folder, plan), tar in runs.items():
        info = read_info(folder) or ShardInfo()
        named = [run for run in info.runs.values() if run["plan"] == plan]
        if not named:
            expected = f"the {INFO} that was written with it in its folder: it numbers the classes"
            raise Refusal(None, str(tar), expected, "copy it there too")
        found.append(named[0]["classes"])
        if found[-1] != found[0]:
            hint = "by others the same number is another class; take the runs one by one"
            raise Refusal(None, str(tar), "shards of one list of classes", hint)
    return found[0]


def refuse_exchanged(info: dict[str, Any] | None, digests: Mapping[str, str | None]) -> None:
    """Refuse shards of `write_shards` whose indexes have other digests than info.json.

    Args:
        info: from `find_tars`.
        digests: by name of a tar that has an index, the SHA-256 in that index.

    Raises:
        ValueError: as above.
    """
    if info:
        for name, digest in zip(
            info.get("filenames", ()), info.get("sha256", ()), strict=False
        ):  # 0.1 has no digests
            if digests.get(name, digest) != digest:
                expected = f"the shard that {INFO} tells of, by its SHA-256"
                hint = "it was exchanged together with its index; restore both, or write the shards again"
                raise Refusal(None, name, expected, hint)


def find_tables(
    tars: list[Path],
    image: str | None,
    label: str | None,
    damaged: str,
    *,
    keep: bool,
    folder: Path | None,
    verify: bool,
    progress: bool,
) -> list[ShardTable]:
    """The table of each tar: the one beside it where that fits what is asked, otherwise from a scan.

    Args:
        tars: the files.
        image: the extension of the member that is the image; None for that of the tables beside the tars.
        label: where the class is; None for that of the tables beside the tars.
        damaged: "error" or "drop", as in `ShardIndex`.
        keep: write the table of a scan beside the tar.
        folder: nothing is written outside of it; None where single tars were given.
        verify: read each tar whole, and compare or scan it.
        progress: show a progress bar.

    Raises:
        ValueError: a shard of `write_shards` that has changed, an image or label for such shards, tables
            of different images or labels, one that cannot be kept, or what `scan_tar` raises.
    """
    from rich.console import Console
    from rich.progress import track

    shown: dict[str, Any] = {"console": Console(stderr=True), "disable": not progress}
    found = [_current(tar, verify) for tar in track(tars, "reading indexes", **shown)]
    image = _asked(found, "image", image, None)
    label = _asked(found, "label", label, "cls") or "cls"
    if keep:  # even where no table is missing: a run that was killed may have written the last one
        _remove_leftovers({tar.parent for tar in tars} if folder is None else {folder})
    tables = []
    for tar, table in zip(track(tars, "indexing shards", **shown), found, strict=True):
        if table is None or _is_outdated(table, image, label, damaged, keep, verify):
            table = _scanned(tar, image, label, damaged, keep, folder)
        tables.append(table)
    warn_without_checksums([table.tar for table in tables if not table.facts.get("checked", True)])
    return tables


def _is_outdated(
    table: ShardTable, image: str | None, label: str, damaged: str, keep: bool, verify: bool
) -> bool:
    """Whether a tar is scanned although it has a table. Arguments as for `find_tables`.

    A table of `write_shards` is never replaced: nothing but its run knows the classes and groups.
    """
    if table.ours:
        return False
    without_checksums = keep and not table.facts["checked"]
    return verify or without_checksums or not fits(table, image, label, damaged)


def _scanned(
    tar: Path, image: str | None, label: str, damaged: str, keep: bool, folder: Path | None
) -> ShardTable:
    """The table of a tar from a scan, with `keep` written beside it. Arguments as for `find_tables`."""
    if keep:
        _refuse_no_place(tar, folder)
    table = scan_tar(tar, image, label, damaged)
    if keep:
        with atomically(table_path(tar)) as unfinished:
            write_table(table, unfinished)
    return table


def _remove_leftovers(folders: Set[Path]) -> None:
    """Remove what killed runs left in folders, where these may be written."""
    for folder in folders:
        if os.access(folder, os.W_OK):
            remove_leftovers(folder)


def _refuse_no_place(tar: Path, folder: Path | None) -> None:
    """Refuse to keep an index in a folder that may not be written, or outside of the one that was given."""
    if folder is not None and not inside(folder, tar.parent):
        expected = f"tars in {folder}, and {tar} lies outside of it"
        hint = "leave it out: the tars are scanned; or pass a list of tars"
        raise Refusal("write_index", True, expected, hint)
    if not os.access(tar.parent, os.W_OK):
        expected = f"a folder that may be written, and {tar.parent} may not"
        raise Refusal("write_index", True, expected, "leave it out: the tars are scanned")


def warn_without_checksums(tars: Sequence[Path]) -> None:
    """Warn once about tars whose indexes have no checksums, as those of version 0.1."""
    if tars:
        more = f" and {len(tars) - 1} more have" if len(tars) > 1 else " has"
        hint = "write the shards again, or for tars of other programs run tercet index-shards, to have them"
        text = f"the index {str(table_path(tars[0]))!r}{more} no checksums, so damage may pass; {hint}"
        warnings.warn(text, UserWarning, stacklevel=4)


def _current(tar: Path, verify: bool) -> ShardTable | None:
    """The table beside a tar, or None; refused where a shard of `write_shards` has changed."""
    table = read_table(tar)
    if table is not None and table.ours:
        file = PositionalFile(tar, "a tar that can be read")
        fault = changed(tar, table.state, file)
        if fault is not None:
            raise fault
        if verify:
            _verify(table, file)
    return table


def _verify(table: ShardTable, file: PositionalFile) -> None:
    """Refuse a shard of `write_shards` whose bytes differ from its SHA-256."""
    if "sha256" not in table.facts:
        expected = f"shards with digests, and {table.tar.name} was written before version 0.2"
        raise Refusal("verify", True, expected, "write the shards again with overwrite=True")
    digest = hashlib.sha256()
    for start in range(0, file.size, 1 << 20):
        digest.update(file.pread(start, 1 << 20))
    if digest.hexdigest() != table.facts["sha256"]:
        expected = "the bytes that write_shards wrote, by their SHA-256"
        hint = "it has changed; restore it, or write the shards again with overwrite=True or --overwrite"
        raise Refusal(None, str(table.tar), expected, hint)


def _asked(tables: list[ShardTable | None], name: str, value: Any, default: str | None) -> str | None:
    """The image or label to look for: the given one, by default that of the tables, or else `default`."""
    found = [table for table in tables if table is not None]
    if value is not None:
        value = extension(name, value)
        if any(table.ours for table in found):
            hint = "image and label are for tars of other programs; leave it out"
            expected = f"no {name} for shards of write_shards, whose index has it"
            raise Refusal(name, value, expected, hint)
        return value
    kept = {table.facts.get(name, default) for table in found if not table.ours}
    if len(kept) > 1:
        shown = " and ".join(sorted(map(repr, kept)))
        expected = f"one that all indexes beside the tars are made with, and they are with {shown}"
        raise Refusal(name, None, expected, f"pass {name}=")
    return kept.pop() if kept else default


def fits(table: ShardTable, image: str | None, label: str, damaged: str) -> bool:
    """Whether a table has the images and classes that a scan with these options would find now.

    Args:
        table: the table.
        image: the extension of the member that is the image; None for the one that is an image's.
        label: where the class is.
        damaged: "error" or "drop", as in `ShardIndex`.
    """
    facts = table.facts
    # `write_shards` writes the class three times: all of these fields tell the same classes apart.
    labels = ("cls", "json:label", "json:class") if table.ours else (facts.get("label"),)
    same = label in labels and image == facts.get("image")
    whole = damaged == "drop" or not facts.get("damaged", False)
    if not (same and whole and (table.ours or "mtime_ns" in facts)):
        return False
    file = PositionalFile(table.tar, "a tar that can be read")
    return table.state.change(file) is None
