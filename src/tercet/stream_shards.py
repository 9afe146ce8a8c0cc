"""Which shards a stream reads, and what is known of each before it does."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tercet.checks import refusal
from tercet.shard_sets import find_tars, fits, refuse_other_runs
from tercet.streams import Handler, told
from tercet.tars import contents_crc, other_size, read_table, scan_tar

__all__ = ["KnownShard", "base_name", "known_shards"]

_OWNER = "PKStream"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # s3://…, pipe:…; a drive has one letter


@dataclass(frozen=True)
class KnownShard:
    """What is known of a shard before it is read.

    Args:
        size: its bytes when it was indexed, or else now; None where it is no local file.
        contents: a CRC of its keys and classes; 0 without an index, unless the labels are asked for.
        plan: names the run of `write_shards` that wrote it; None for those of other programs.
        labels: int64 [n], a number for each sample that names its class; None unless asked for.
    """

    size: int | None
    contents: int = 0
    plan: str | None = None
    labels: np.ndarray | None = None


def known_shards(
    source: Any,
    split: str | None,
    *,
    image: str | None,
    label: str | Callable[..., Any],
    handler: Handler | None,
    count: bool,
) -> dict[str, KnownShard]:
    """The shards by their addresses, in one order whatever the order given.

    Args:
        source, split, image, label, handler: as for `PKStream`, the image and a label that is a string as
            `extension` gives them.
        count: look for the labels, in the tables beside the tars or else in the tars.

    Raises:
        ValueError: no shard, one that is missing or there twice, shards that are not all there or have
            changed; with `count` also shards whose labels cannot be told before they are read.
    """
    found, info = _listed(source, split)
    if twice := len(found) - len(set(found)):
        raise refusal(_OWNER, "shards", f"{twice} twice", "a folder of tars, or different tars")
    known = {shard: _known(shard, image, label, handler, count) for shard in sorted(found)}
    plans = {one.plan for one in known.values()} - {None}
    if plans:  # a stream does without the tables; those there are have to be of one run
        refuse_other_runs(_OWNER, "shards", source, info, plans)
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
    if info is None and isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        splits = sorted({re.sub(r"\d*\.tar$", "", tar.name) for tar in tars})
        if len(splits) > 1:
            expected = f"tars of one split, and there are {', '.join(splits)}"
            raise refusal(_OWNER, "shards", str(source), expected, "pass a list of tars")
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
    facts = {} if table is None else table.facts
    size = tar.stat().st_size if table is None else table.tar_size
    changed = other_size(_OWNER, "shards", tar, size)
    if changed and not told(handler, changed):
        raise changed
    contents, plan = facts.get("contents", 0), facts.get("plan")
    if not count:
        return KnownShard(size, contents, plan)
    assert isinstance(label, str)
    if table is None or changed or not fits(table, image, label, "drop"):
        scanned = scan_tar(_OWNER, tar, image, label, "drop")
        contents = contents_crc(scanned) if table is None else contents
        table = scanned
    names = table.columns["label"].tolist()
    labels = np.fromiter((zlib.crc32(name.encode()) for name in names), np.int64, len(names))
    return KnownShard(size, contents, plan, labels)


def base_name(shard: str) -> str:
    """The name of a shard, wherever it lies."""
    return shard.replace("\\", "/").rpartition("/")[2]
