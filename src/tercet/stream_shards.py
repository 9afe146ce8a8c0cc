"""Which shards a stream reads, and what is known of each before it does."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tercet.checks import refusal
from tercet.shard_sets import classes_of_runs, find_tars, fits, refuse_other_runs
from tercet.stream_samples import Handler, base_name, number_in, told
from tercet.tars import contents_crc, other_size, read_table, scan_tar

__all__ = ["KnownShard", "known_shards", "unreadable"]

_OWNER = "PKStream"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # s3://…, pipe:…; a drive has one letter


@dataclass(frozen=True)
class KnownShard:
    """What is known of a shard before it is read.

    Args:
        size: its bytes when it was indexed, or else now; None where it is no local file.
        contents: a CRC of its keys and classes; 0 where no index tells them, unless the labels are asked for.
        plan: names the run of `write_shards` that wrote it; None for those of other programs.
        labels: int64 [n], a number for each sample that names its class; None unless asked for.
        image_bytes: of all its images; 0 unless the labels are asked for.
    """

    size: int | None
    contents: int = 0
    plan: str | None = None
    labels: np.ndarray | None = None
    image_bytes: int = 0


def known_shards(
    source: Any,
    split: str | None,
    *,
    image: str | None,
    label: str | Callable[..., Any],
    handler: Handler | None,
    count: bool,
) -> dict[str, KnownShard]:
    """The shards by their addresses, those of files in full: in one order, by name, whatever the order given.

    Args:
        source, split, image, label, handler: as for `PKStream`, the image and a label that is a string as
            `extension` gives them.
        count: look for the labels, in the tables beside the tars or else in the tars.

    Raises:
        ValueError: no shard, one that is missing, two of one name, shards that are not all there or have
            changed; with `count` also shards whose labels cannot be told before they are read.
    """
    found, info = _listed(source, split)
    found = [shard if _ADDRESS.match(shard) else os.path.abspath(shard) for shard in found]
    found.sort(key=lambda shard: (base_name(shard), shard))
    for one, other in pairwise(found):
        if base_name(one) == base_name(other):
            expected = f"shards of different names, which key their images, and there is {one!r} too"
            raise refusal(_OWNER, "shards", other, expected, "rename one, or leave it out if it is the same")
    known = {shard: _known(shard, image, label, handler, count) for shard in found}
    runs = {(Path(shard).parent, one.plan): Path(shard) for shard, one in known.items() if one.plan}
    plans = {plan for _, plan in runs}
    if plans:  # a stream does without the tables; those there are have to be of one run
        refuse_other_runs(_OWNER, "shards", source, info, plans)
    if len(plans) > 1:  # or of runs that number the classes alike
        classes_of_runs(_OWNER, "shards", runs)
    return known


def _listed(source: Any, split: str | None) -> tuple[list[str], dict[str, Any] | None]:
    """The addresses, and what info.json says, as from `find_tars`."""
    if isinstance(source, str) and not Path(source).is_dir():
        from webdataset.shardlists import expand_urls

        source = expand_urls(source)
    remote: list[str] = []
    if isinstance(source, (list, tuple)):
        remote = [shard for shard in source if isinstance(shard, str) and _ADDRESS.match(shard)]
        source = [shard for shard in source if not (isinstance(shard, str) and _ADDRESS.match(shard))]
    if remote and not source and split is None:
        return remote, None
    tars, info = find_tars(_OWNER, "shards", source, split)
    return [*remote, *map(str, tars)], info


def _known(
    shard: str, image: str | None, label: str | Callable[..., Any], handler: Handler | None, count: bool
) -> KnownShard:
    tar = Path(shard)
    local = tar.is_file()
    if count and not (local and isinstance(label, str)):
        what = shard if isinstance(label, str) else label
        expected = "local files and the name of a field, to count the batches of an epoch"
        raise refusal(_OWNER, "shards", what, expected, "or pass steps=")
    if not local:
        return KnownShard(None)
    table = read_table(_OWNER, tar, rows=count)
    plan = None if table is None else table.facts.get("plan")
    size = tar.stat().st_size if table is None else table.tar_size
    unread = unreadable(shard)
    fault = unread or other_size(_OWNER, "shards", tar, size)
    if fault and not told(handler, fault):
        raise fault
    if unread:
        return KnownShard(size, 0, plan, np.zeros(0, np.int64) if count else None)
    if table is not None and (fault or not (callable(label) or fits(table, image, label, "drop"))):
        table = None  # it tells of another tar, or of other classes
    if not count:
        return KnownShard(size, 0 if table is None else table.facts.get("contents", 0), plan)
    assert isinstance(label, str)
    if table is None:
        table = scan_tar(_OWNER, tar, image, label, "drop")
    names = table.columns["label"].tolist()
    if plan is None or label == "json:class":  # else the column has names, and the field their numbers
        _refuse_names(tar, label, set(names))
    labels = np.fromiter((zlib.crc32(name.encode()) for name in names), np.int64, len(names))
    contents = table.facts.get("contents") or contents_crc(table)
    return KnownShard(size, contents, plan, labels, int(table.columns["size"].sum()))


def _refuse_names(tar: Path, label: str, names: set[str]) -> None:
    for name in names:
        if isinstance(number_in(name), str):
            expected = f"a field of whole numbers, and in {tar.name} it has {name!r}"
            way_out = "write numbers, or pass label=, a function of a sample that gives them, and steps="
            raise refusal(_OWNER, "label", label, expected, way_out)


def unreadable(shard: str) -> ValueError | None:
    """The refusal of a tar that cannot be opened; None where it can."""
    try:
        with open(shard, "rb"):
            return None
    except OSError as error:
        return refusal(_OWNER, "shards", shard, "a tar that can be read", error.strerror or str(error))
