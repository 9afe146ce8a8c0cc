"""Which shards a stream reads, what is known of each before it does, and what comes of it then."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tercet.checks import refusal
from tercet.shard_sets import classes_of_runs, find_tars, fits, refuse_other_runs
from tercet.stream_samples import Handler, Sample, base_name, image_field, number_in, told
from tercet.tars import BLOCK, DAMAGED, ShardTable, contents_crc, other_size, read_table, scan_tar

__all__ = ["KnownShard", "known_shards", "read_shard", "unreadable"]

_OWNER = "PKStream"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # s3://…, pipe:…; a drive has one letter
_MAGIC = 257  # where the header of a tar says that it is one


@dataclass(frozen=True)
class KnownShard:
    """What is known of a shard before it is read.

    Args:
        size: its bytes when it was indexed, or else now; None where it is no local file.
        contents: a CRC of its keys and classes; 0 where no index tells them, unless the labels are asked for.
        plan: names the run of `write_shards` that wrote it; None for those of other programs.
        labels: int64 [n], a number for each sample that names its class; None unless asked for.
        image_bytes: of all its images; 0 unless the labels are asked for.
        samples: those with an image; None where neither index nor labels tell how many.
    """

    size: int | None
    contents: int = 0
    plan: str | None = None
    labels: np.ndarray | None = None
    image_bytes: int = 0
    samples: int | None = None


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
    table = read_table(_OWNER, tar, count, "shards")
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
    if not count and table is None:
        return KnownShard(size, 0, plan)
    if table is None:
        assert isinstance(label, str)
        table = scan_tar(_OWNER, tar, image, label, "drop", "shards")
    _tell_damage(table, handler)
    if not count:
        same = fits(table, image, table.facts.get("label", ""), "drop")
        samples = table.facts["samples"] if same else None
        return KnownShard(size, table.facts.get("contents", 0), plan, samples=samples)
    assert isinstance(label, str)
    names = table.columns["label"].tolist()
    if plan is None or label == "json:class":  # else the column has names, and the field their numbers
        _refuse_names(tar, label, set(names))
    labels = np.fromiter((zlib.crc32(name.encode()) for name in names), np.int64, len(names))
    contents = table.facts.get("contents") or contents_crc(table)
    return KnownShard(size, contents, plan, labels, int(table.columns["size"].sum()), len(table))


def _tell_damage(table: ShardTable, handler: Handler | None) -> None:
    """Refuses a tar whose table ends before it does, unless the handler goes on with the samples there."""
    for place, reason in table.left_out:
        if reason == DAMAGED:
            fault = _damaged(str(table.tar), f", after {place}")
            if not told(handler, fault):
                raise fault


def _refuse_names(tar: Path, label: str, names: set[str]) -> None:
    for name in names:
        if isinstance(number_in(name), str):
            expected = f"a field of whole numbers, and in {tar.name} it has {name!r}"
            way_out = "write numbers, or pass label=, a function of a sample that gives them, and steps="
            raise refusal(_OWNER, "label", label, expected, way_out)


def _damaged(shard: str, where: str = "") -> ValueError:
    way_out = "restore it, or pass a handler that returns true to go on without the rest"
    return refusal(_OWNER, "shards", shard, f"a whole tar, and {DAMAGED}{where}", way_out)


def unreadable(shard: str) -> ValueError | None:
    """The refusal of a tar that cannot be opened, or is empty; None where it can."""
    try:
        with open(shard, "rb") as file:
            why = "" if file.read(1) else "it is empty"
    except OSError as error:
        why = error.strerror or str(error)
    return refusal(_OWNER, "shards", shard, "a tar that can be read", why) if why else None


def read_shard(
    shard: str, known: KnownShard, image: str | None, handler: Handler | None
) -> Generator[Sample, None, bool]:
    """The samples of a shard, as webdataset reads them.

    Args:
        shard: its address.
        known: of it; fewer samples than that are told.
        image, handler: as for `known_shards`.

    Returns:
        Whether the handler, where it was told of something, says to go on with the next shard.

    Raises:
        ValueError: without a handler, a shard that cannot be read, has changed, breaks off or lacks samples.
    """
    from webdataset.tariterators import tarfile_samples

    if known.size is not None:
        unread = unreadable(shard)
        # A tar cut between two members goes unnoticed by who reads it.
        fault = unread or other_size(_OWNER, "shards", Path(shard), known.size)
        if fault and not told(handler, fault):
            return False
        if unread:
            return True
    breaks, came, cut = _Breaks(shard, handler), 0, False
    source: dict[str, Any] = {"url": shard}
    try:
        for sample in tarfile_samples([source], handler=breaks):
            if not breaks.go_on:
                break
            came += image_field(sample, image) is not None
            yield sample
        # A broken header looks like an end.
        cut = not breaks.met and None is known.samples is not known.size and _goes_on(source["stream"])
        breaks.close(source)
    finally:
        if "stream" in source:
            with suppress(OSError):
                source["stream"].close()
    if breaks.raised is not None:
        raise breaks.raised
    if breaks.met or not (cut or came < (known.samples or 0)):
        return breaks.go_on
    fault = _damaged(shard)
    if not cut:
        expected = f"{known.samples} samples, as its index or a scan has them, and only {came} came"
        fault = refusal(_OWNER, "shards", shard, expected, "it is damaged; restore it")
    return told(handler, fault)


def _goes_on(file: BinaryIO) -> bool:
    """Whether an uncompressed tar has more behind the end that was read, or no end."""
    rest = any(chunk.strip(b"\0") for chunk in iter(partial(file.read, 1 << 16), b""))
    file.seek(_MAGIC)
    if file.read(5) != b"ustar":  # compressed: what was read is not what is in the file
        return False
    file.seek(-BLOCK, os.SEEK_END)
    return rest or file.read() != bytes(BLOCK)


class _Breaks:
    """A handler for webdataset, which tells a stream's own where a shard breaks off.

    What that one raises waits here: webdataset would catch it and ask again.
    """

    def __init__(self, shard: str, handler: Handler | None) -> None:
        self._shard, self._handler = shard, handler
        self.met, self.go_on = False, True
        self.raised: Exception | None = None

    def __call__(self, error: Exception) -> bool:
        self.met = True
        reason = str(getattr(error, "strerror", None) or (error.args or [error])[0]).partition(" @ ")[0]
        failed = re.search(r"exit \d+", reason)  # of a command, which is in the address
        where = ", or see whether its address is right" if _ADDRESS.match(self._shard) else ""
        way_out = f"restore it{where} ({failed[0] if failed else reason})"
        fault = refusal(_OWNER, "shards", self._shard, "a tar that can be read to its end", way_out)
        fault.__cause__ = error
        try:
            self.go_on = told(self._handler, fault)
        except Exception as raised:
            self.raised, self.go_on = raised, False
        return self.go_on

    def close(self, source: dict[str, Any]) -> None:
        """Closes what was read to its end: of a command that failed one hears now."""
        try:
            if "stream" in source:
                source["stream"].close()
        except OSError as error:
            if not self.met:
                self(error)
