"""info.json in a folder of shards: which tars a split has, and how tercet wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal, border, refusal
from tercet.data.io.atomic import atomically, lock_file, locked
from tercet.data.io.checked_json import JsonRecord, checksum_fits
from tercet.data.io.path_traversal import inside
from tercet.data.shards.tar_index import of_write_shards

__all__ = ["INFO", "ShardInfo", "edited_info", "listed_tars", "raw_info", "read_info"]

INFO = "info.json"
_MOST = 1 << 28  # bytes of an info.json


@dataclass(frozen=True)
class ShardInfo:
    """What an info.json says.

    Args:
        filenames: by split, the filenames of its tars.
        runs: by split that `write_shards` wrote, the plan, the classes, and since version 0.2 the filenames
            and their SHA-256.
    """

    filenames: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_info(folder: Path) -> ShardInfo | None:
    """What the info.json in a folder says, whatever program wrote it; None where there is none.

    Args:
        folder: a folder of shards.

    Raises:
        ValueError: it cannot be read, is damaged, or lists no splits.
    """
    source = folder / INFO
    expected, hint = "splits with their filenames", "pass a list of tars to do without"
    try:
        facts = JsonRecord.read(source, "splits", "", most=_MOST)
        splits = facts.part("splits")
        filenames = {split: splits.part(split).strings("filenames") for split in splits}
        written = facts.part("tercet", {})
        runs = {split: written.part(split) for split in written}
        for run in runs.values():
            run.string("plan")
            run.strings("classes")
            run.strings("sha256", [])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = str(error).partition(": expected ")[2] or error
        raise Refusal(None, str(source), expected, f"{hint} ({reason})") from error
    for split, run in runs.items():
        of_one_run = run.fields.get("filenames", filenames.get(split)) == filenames.get(split)
        if checksum_fits(run.fields) is False or not of_one_run:
            hint = "it was changed or damaged; restore it, or write the shards again"
            expected = f"facts of the split {split!r} that fit their checksum"
            raise Refusal(None, str(source), expected, hint)
    if not filenames:
        raise Refusal(None, str(source), expected, hint)
    return ShardInfo(filenames, {split: run.fields for split, run in runs.items()})


def raw_info(folder: Path) -> dict[str, Any]:
    """The content of info.json for `write_shards` to edit, whatever program wrote it.

    Args:
        folder: a folder of shards.

    Returns:
        All fields of the file; at least "splits" and "tercet", which are empty where there is no file.

    Raises:
        ValueError: it cannot be read, or lists no splits.
    """
    try:
        with border("write_shards", "folder"):
            fields = JsonRecord.read(folder / INFO, "splits", "").fields
        for split in fields["splits"].values():
            list(split.get("filenames", ()))
        return {**fields, "tercet": dict(fields.get("tercet", {}))}
    except FileNotFoundError:
        return {"splits": {}, "tercet": {}}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        hint = f"restore it, or move it away ({type(error).__name__}: {error})"
        expected = f"splits with their filenames in its {INFO}"
        raise refusal("write_shards", "folder", str(folder), expected, hint) from error


@contextmanager
def edited_info(folder: Path) -> Iterator[dict[str, Any]]:
    """The content of info.json, written back at the end of the block. No other run edits it meanwhile.

    Args:
        folder: a folder of shards.

    Raises:
        ValueError: as `raw_info`.
    """
    with locked(lock_file(folder, INFO)):
        info = raw_info(folder)
        yield info
        if not info["splits"] and info.keys() == {"splits", "tercet"}:
            (folder / INFO).unlink(missing_ok=True)
            return
        with atomically(folder / INFO) as unfinished:
            text = json.dumps(info, indent=1, sort_keys=True, ensure_ascii=False)
            unfinished.write_text(text + "\n", "utf-8")


def listed_tars(
    folder: Path, info: ShardInfo, split: str | None, outside_root: bool
) -> tuple[list[Path], dict[str, Any]]:
    """The tars of a split as info.json lists them, and what it says of the run of `write_shards`, or {}.

    Args:
        folder: where info.json lies.
        info: what it says.
        split: which split; None for the only one.
        outside_root: take tars that lie outside of the folder too.

    Raises:
        ValueError: no such split, none asked for while there are several, finished or not, or a tar that is
            missing or lies outside of the folder.
    """
    source, listed = folder / INFO, info.filenames
    if split is None and len(listed) == 1:
        split = next(iter(listed))
        _refuse_unfinished(folder, split, {name for names in listed.values() for name in names})
    if split is None or split not in listed:
        shown = ", ".join(sorted(listed))
        raise Refusal("split", split, f"one of the splits in {source}: {shown}")
    tars = [folder / name for name in listed[split]]
    written = info.runs.get(split, {})
    for tar in tars:
        if not (outside_root or inside(folder, tar)):
            expected = f"tars in {folder}, and {source} lists one outside of it"
            raise Refusal(None, str(tar), expected, "pass outside_root=True if that is meant")
    missing = [str(tar) for tar in tars if not tar.exists()]
    if missing:
        hint = "restore it" + (", or run write_shards again, which writes what is missing" * bool(written))
        raise Refusal(None, missing[0], f"every tar that {source} lists", hint)
    return tars, written


def _refuse_unfinished(folder: Path, split: str, listed: Set[str]) -> None:
    """Refuse to take the only listed split for granted beside shards of an unfinished one."""
    for tar in sorted(set(folder.glob("*.tar")) - {folder / name for name in listed}):
        other = tar.name.rpartition("-")[0]
        if not tar.name.startswith(".") and other != split and of_write_shards(tar):
            expected = f"a split, since {INFO} in {folder} does not list {tar.name}"
            hint = f"{other!r} was interrupted; pass split={split!r}, or run write_shards again for it"
            raise Refusal("split", None, expected, hint)
