"""A catalog as tar shards that webdataset and timm read, laid out for batches of P classes × K images."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tercet.core.checks import as_bool, as_choice, as_int, as_path, as_seed, border, refusal
from tercet.data.catalog.catalog import Catalog, refuse_unwritable
from tercet.data.io.atomic import lock_file, locked, open_lock_file, remove_leftovers
from tercet.data.io.checked_json import with_checksum
from tercet.data.io.images import MAX_BYTES
from tercet.data.io.journal import fsync
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.layouts import as_layout, by_class, mixed
from tercet.data.shards.shard_file import (
    ShardJob,
    Stopped,
    member_suffix,
    readable_table,
    unreadable_file,
    write_shard,
)
from tercet.data.shards.shard_info import INFO, edited_info, raw_info
from tercet.data.shards.tar_index import ShardTable

__all__ = ["shards_folder", "write_shards"]

_CALLER = "write_shards"
_SUFFIX = re.compile(r"[a-z0-9][a-z0-9_+-]{0,15}")
_SPLIT = re.compile(r"[A-Za-z0-9_]+")


def write_shards(
    folder: str | Path,
    catalog: Catalog,
    *,
    layout: str = "by_class",
    k: int | None = None,
    images_per_shard: int = 5000,
    split: str = "train",
    seed: int = 0,
    unreadable: str = "error",
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ShardIndex:
    """Write the images of a catalog as tar shards, with an index beside each and an info.json.

    An image becomes three members with its row number as key: the file as it is (`.jpg` for `.jpeg`), `.cls`,
    its class number, and `.json`, its path, label, class and groups. webdataset reads the tars, timm reads
    info.json, and `ShardIndex` reads single images by offset. info.json has the SHA-256 of each shard.

    The same catalog, files and options give the same tars on every machine, with any number of workers (and
    the same indexes, with the same version of pyarrow). Each shard appears when it is whole. A run that was
    interrupted is resumed by the same call: it writes the shards that are missing, and those whose images
    have changed in size. Of two runs that write one split at once the second is refused; two splits may be
    written at once.

    Args:
        folder: where the shards go; it is made if its parent exists. Several splits may share it.
        catalog: the images.
        layout: "by_class" puts all images of a class into one shard, in groups of at least `k` side by side,
            and shuffles the groups: a stream finds K images of a class together. "mixed" shuffles the images
            over all shards. "identity", the name of "by_class" before 0.2, is deprecated.
        k: the least size of a group, where the class has as many images; 4 by default. For "by_class" only.
        images_per_shard: about how many images a shard has; a larger class makes a larger shard.
        split: the name of the split, and of its files: train-000000.tar.
        seed: the same seed gives the same order.
        unreadable: "error" refuses a catalog with a file that is missing, empty or unreadable, before
            anything is written; "skip" leaves it out and reports it in `index.catalog.left_out`. Images are
            not decoded: `scan_folder(root, verify=True)` leaves out those that do not decode.
        workers: threads that write, each a shard at a time; by default one for each processor.
        overwrite: remove the shards of this split first, `train-000000.tar` and so on with their indexes,
            whatever wrote them, and write all anew. To resume a run that was interrupted, even while it
            removed shards, leave it out; with it, the run begins again.
        progress: show a progress bar.

    Returns:
        The index of the shards: its rows are those of the catalog, without those that were skipped.

    Raises:
        ValueError: an option out of range, an image without a suffix, names or groups that cannot be written,
            a file that cannot be read, shards of another run, another run that writes this split now, an
            info.json that cannot be read, lists no splits or lists files of other names for this one, or a
            folder that cannot be written.
        PermissionError: a path leads out of the root of a catalog whose `outside_root` is False.
        OSError: the shards do not fit on the disk.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> for name in ("ant/1.jpg", "ant/2.jpg", "bee/1.jpg"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(name.encode())
        >>> index = write_shards("shards", scan_folder("photos"))
        >>> sorted(file.name for file in pathlib.Path("shards").iterdir())
        ['info.json', 'train-000000.index.parquet', 'train-000000.tar']
    """
    options = _checked_options(layout, k, images_per_shard, seed)
    as_choice(_CALLER, "unreadable", unreadable, ("error", "skip"))
    workers = as_int(_CALLER, "workers", (os.cpu_count() or 1) if workers is None else workers, 1)
    overwrite, progress = as_bool(_CALLER, "overwrite", overwrite), as_bool(_CALLER, "progress", progress)
    target = shards_folder(folder, split)
    _check_catalog(catalog)
    if options["layout"] == "by_class":
        shards = by_class(catalog.labels, options["k"], options["images_per_shard"], options["seed"])
    else:
        shards = mixed(len(catalog), options["images_per_shard"], options["seed"])
    plan = _plan(options, catalog, split)
    sizes = _source_sizes(catalog, workers, unreadable == "skip")
    job = ShardJob(target, catalog, shards, split, plan, sizes, unreadable == "skip")

    with border(_CALLER, "folder"), _locked_split(target, split):
        _make_room(job, overwrite)
        tables = _write_all(job, workers, progress)
        with edited_info(target) as info:
            _list_shards(info, job, options, tables)
        return ShardIndex(target, split=split)


def _checked_options(layout: Any, k: Any, images_per_shard: Any, seed: Any) -> dict[str, Any]:
    """The options that decide which image goes where, as info.json has them."""
    layout = as_layout(_CALLER, "layout", layout, stacklevel=4)
    if layout == "mixed" and k is not None:
        raise refusal(_CALLER, "k", k, 'no k for layout="mixed", which has no groups')
    options = {
        "layout": layout,
        "images_per_shard": as_int(_CALLER, "images_per_shard", images_per_shard, minimum=1),
        "seed": as_seed(_CALLER, seed),
    }
    if layout == "by_class":
        options["k"] = as_int(_CALLER, "k", 4 if k is None else k, minimum=1)
    return options


def _plan(options: dict[str, Any], catalog: Catalog, split: str) -> str:
    """The name of a run: a digest of all that its shards depend on. A run of the same plan is resumed."""
    # A digest of the layout's name before 0.2, so that shards of version 0.1 are of the same plan.
    old_names = {"by_class": "identity", "mixed": "mixed"}
    facts = {**options, "layout": old_names[options["layout"]]}
    facts |= {"fingerprint": catalog.fingerprint, "split": split, "format": 1}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _list_shards(
    info: dict[str, Any], job: ShardJob, options: dict[str, Any], tables: list[ShardTable]
) -> None:
    """Enter the shards of a finished run into the content of info.json: for timm, and for `ShardIndex`."""
    lengths = [len(table) for table in tables]
    filenames = [table.tar.name for table in tables]
    info["splits"][job.split] = {
        "name": job.split,
        "num_samples": sum(lengths),
        "filenames": filenames,
        "shard_lengths": lengths,
    }
    written = {
        "library": f"tercet {version('tercet')}",
        **options,
        "fingerprint": job.catalog.fingerprint,
        "plan": job.plan,
        "classes": job.catalog.classes,
        "left_out": [item for table in tables for item in table.left_out],
        "filenames": filenames,
        "sha256": [table.facts["sha256"] for table in tables],
    }
    info["tercet"][job.split] = with_checksum(written)


def shards_folder(folder: str | Path, split: str) -> Path:
    """`folder`, refused if no shards of this split could be written there, before any other work is done.

    Args:
        folder: where the shards go.
        split: the name of the split.

    Raises:
        ValueError: no name of a split, no path, a file, no folder above it, or one that may not be written.
    """
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or "tar" in split:
        expected = "letters, digits and underscores, without 'tar', which timm takes for a file name"
        raise refusal(_CALLER, "split", split, expected)
    target = as_path(_CALLER, "folder", folder, new=True)
    if target.exists() and not target.is_dir():
        raise refusal(_CALLER, "folder", str(folder), "a folder, not a file")
    if not target.parent.is_dir():
        raise refusal(
            _CALLER, "folder", str(folder), "an existing folder above it", f"make {target.parent} first"
        )
    if not os.access(target if target.is_dir() else target.parent, os.W_OK):
        raise refusal(_CALLER, "folder", str(folder), "a folder that may be written")
    return target


def _check_catalog(catalog: Catalog) -> None:
    with border(_CALLER):
        refuse_unwritable(catalog)
    if not len(catalog):
        raise refusal(_CALLER, "catalog", catalog, "at least one image")
    if "class" in catalog.groups:
        expected = "no group of that name, which the JSON of each image has already"
        raise refusal(_CALLER, "catalog.groups", "class", expected, "rename it")
    for path in catalog.paths:
        suffix = member_suffix(path)
        if not _SUFFIX.fullmatch(suffix) or suffix in ("cls", "json"):
            expected = "the name of an image, with a suffix such as .jpg"
            raise refusal(_CALLER, "catalog.paths", path, expected, "webdataset tells members by it")


def _why_not(path: Path) -> tuple[int, str]:
    """The size of a file and "", or −1 and why it cannot be an image."""
    try:
        status = path.stat()
    except OSError as error:
        return -1, f"file cannot be read: {error.strerror}"
    except ValueError as error:  # a name that no file can have
        return -1, f"file cannot be read: {error}"
    if not stat.S_ISREG(status.st_mode):
        return -1, "not a regular file"
    if not status.st_size:
        return -1, "file is empty"
    if status.st_size > MAX_BYTES:
        return -1, f"file has more than {MAX_BYTES:,} bytes"
    return (status.st_size, "") if os.access(path, os.R_OK) else (-1, "file cannot be read: no permission")


def _source_sizes(catalog: Catalog, workers: int, skip: bool) -> list[int]:
    """The size of each file, −1 for one that cannot be read; refused unless such files are skipped."""

    def checked(start: int) -> list[tuple[int, str]]:
        return [_why_not(catalog.file(row)) for row in range(start, min(start + 1024, len(catalog)))]

    with ThreadPoolExecutor(workers) as pool:
        found = [one for some in pool.map(checked, range(0, len(catalog), 1024)) for one in some]
    bad = [row for row, (_, reason) in enumerate(found) if reason]
    if bad and (not skip or len(bad) == len(catalog)):
        raise unreadable_file(catalog.file(bad[0]), found[bad[0]][1])
    return [size for size, _ in found]


@contextmanager
def _locked_split(folder: Path, split: str) -> Iterator[None]:
    """Make the folder and hold the lock of a split in it; a new folder that stays empty is removed.

    Leftovers in the folder of runs that were killed are removed.

    Raises:
        ValueError: another run holds it.
    """
    is_new = not folder.is_dir()
    with ExitStack() as cleanup:
        if is_new:
            folder.mkdir(exist_ok=True)
            cleanup.callback(_remove_if_empty, folder)
        if not cleanup.enter_context(locked(lock_file(folder, split), wait=False)):
            expected = f"a folder in which no other run writes the split {split!r}"
            raise refusal(_CALLER, "folder", str(folder), expected, "wait for it to end, or stop it")
        remove_leftovers(folder)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _make_room(job: ShardJob, overwrite: bool) -> None:
    """Refuse files in the way of the shards; with `overwrite`, remove all files of the split.

    A removal that was interrupted is completed in any case: the rest might pass for shards of this run.

    Raises:
        ValueError: shards of another plan that may not be overwritten, an info.json of no splits or of other
            files in this one, or a folder in the place of a shard.
    """
    info = raw_info(job.folder)
    name_of_ours = re.compile(rf"{job.split}-\d{{6,}}\.(tar|index\.parquet)")
    names = [file.name for file in job.folder.iterdir()]
    ours = sorted(filter(name_of_ours.fullmatch, names))
    _refuse_others(job, name_of_ours, ours, info["splits"].get(job.split, {}).get("filenames", ()))
    # This file exists while old shards are removed, so a run that is killed meanwhile is noticed.
    begun = job.folder / f".{job.split}.overwriting"
    if overwrite or os.path.lexists(begun):
        _mark(begun)
        for name in reversed(ours):  # a tar before its index: one without an index would be foreign
            (job.folder / name).unlink()
        with edited_info(job.folder) as info:
            for facts in (info["splits"], info["tercet"]):
                facts.pop(job.split, None)
        begun.unlink()
    elif foreign := _foreign(job, info, ours):
        expected = "a folder without shards of another catalog or other options"
        hint = f"{foreign} is of others; overwrite=True or --overwrite replaces them"
        raise refusal(_CALLER, "folder", str(job.folder), expected, hint)


def _mark(path: Path) -> None:
    """Make an empty file that survives a crash; a link in its place is not followed."""
    os.close(open_lock_file(path))
    fsync(path.parent)


def _refuse_others(
    job: ShardJob, name_of_ours: re.Pattern[str], ours: list[str], listed: Iterable[Any]
) -> None:
    """Refuse files in the way that `write_shards` did not write, by their names: these are never removed."""
    folder = str(job.folder)
    for name in ours:
        if (job.folder / name).is_dir():
            raise refusal(_CALLER, "folder", folder, f"a file {name} or none", "it is a folder; move it away")
    for name in listed:
        if not name_of_ours.fullmatch(str(name)):
            expected = f"an {INFO} that lists files of write_shards as the split {job.split!r}"
            hint = f"it lists {name}; take another split or folder, or move both away"
            raise refusal(_CALLER, "folder", folder, expected, hint)


def _foreign(job: ShardJob, info: dict[str, Any], names: list[str]) -> str | None:
    """The first file that is not of this plan: info.json or one of `names`; None if all are."""
    run = info["tercet"].get(job.split)
    if job.split in info["splits"] and not (isinstance(run, dict) and run.get("plan") == job.plan):
        return INFO
    for name in names:
        table = readable_table(job.folder / f"{name.partition('.')[0]}.tar")
        if table is None or table.facts.get("plan") != job.plan:
            return name
    return None


def _write_all(job: ShardJob, workers: int, progress: bool) -> list[ShardTable]:
    """The tables of all shards; missing shards are written, in parallel."""
    from rich.console import Console
    from rich.progress import Progress

    tables = [job.finished(shard) for shard in range(len(job.shards))]
    stop = threading.Event()
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        done = sum(len(rows) for rows, table in zip(job.shards, tables, strict=True) if table)
        task = bar.add_task("writing shards", total=len(job.catalog), completed=done)

        def write(shard: int) -> None:
            try:
                tables[shard] = write_shard(job, shard, stop, lambda: bar.advance(task))
            except Stopped:
                return  # another shard raised the error
            except BaseException:
                stop.set()
                raise

        pool = ThreadPoolExecutor(workers)
        try:
            missing = [shard for shard, table in enumerate(tables) if table is None]
            for future in as_completed([pool.submit(write, shard) for shard in missing]):
                future.result()
        finally:  # after an error or an interrupt the other threads stop at their next image
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [table for table in tables if table is not None]
