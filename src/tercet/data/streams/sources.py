"""Which shards a stream reads, and what is known of each before it is read."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import border, refusal
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.discovery import (
    classes_of_runs,
    find_tars,
    fits,
    refuse_exchanged,
    refuse_other_runs,
    warn_without_checksums,
)
from tercet.data.shards.tar_index import (
    DAMAGED,
    ShardTable,
    TarState,
    changed,
    contents_crc,
    read_table,
)
from tercet.data.shards.tar_scan import scan_tar
from tercet.data.streams.samples import Handler, base_name, keep_going, number_in
from tercet.data.streams.shard_bytes import ShardBytes

__all__ = ["KnownShard", "damaged_shard", "known_shards"]

_CALLER = "PKStream"
_BORDER = border(_CALLER, "shards")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # https://…, pipe:…; a drive has one letter


@dataclass(frozen=True)
class KnownShard:
    """What is known of a shard before it is read.

    Args:
        state: what it was like when it was indexed, otherwise now; None for a URL.
        contents: a CRC of its keys and classes; 0 where no index has them, unless the labels are asked for.
        label: where those classes are, as for `PKStream`; None where `contents` is of other images.
        members: a CRC of all its members; None where no index has it.
        sha256: of a shard of `write_shards`; None where no index has it.
        checked: whether its index, if it has one, has checksums.
        plan: names the run of `write_shards` that wrote it; None for those of other programs.
        labels: int64 [n], a number for each sample that stands for its class; None unless asked for.
        image_bytes: of all its images; 0 unless the labels are asked for.
        samples: how many have an image; None where neither an index nor the labels say.
    """

    state: TarState | None
    contents: int = 0
    label: str | None = None
    members: int | None = None
    sha256: str | None = None
    checked: bool = True
    plan: str | None = None
    labels: np.ndarray | None = None
    image_bytes: int = 0
    samples: int | None = None


def known_shards(
    source: Any,
    split: str | None,
    *,
    urls: bool,
    outside_root: bool,
    image: str | None,
    label: str | Callable[..., Any],
    handler: Handler | None,
    count: bool,
) -> dict[str, KnownShard]:
    """The shards by absolute path or URL, in the order of their names, whatever the order given.

    Args:
        source, split, urls, outside_root, image, label, handler: as for `PKStream`, the image and a label
            that is a string as `extension` gives them.
        count: look for the labels, in the tables beside the tars or else in the tars.

    Raises:
        ValueError: no shard, one that is missing, two of one name, shards that are not all there or have
            changed; with `count` also shards whose labels cannot be known before they are read.
    """
    remote, tars, info = _listed(source, split, urls, outside_root)
    found = sorted([*remote, *map(os.path.abspath, tars)], key=lambda shard: (base_name(shard), shard))
    for one, other in pairwise(found):
        if base_name(one) == base_name(other):
            expected = f"shards of different names, which key their images, and there is {one!r} too"
            raise refusal(_CALLER, "shards", other, expected, "rename one, or leave it out if it is the same")
    if count and (remote or not isinstance(label, str)):
        expected = "local files and the name of a field, to count the batches of an epoch"
        raise refusal(_CALLER, "shards", remote[0] if remote else label, expected, "or pass steps=")
    known = {
        shard: KnownShard(None) if shard in remote else _known_file(shard, image, label, handler, count)
        for shard in found
    }
    warn_without_checksums([Path(shard) for shard, one in known.items() if not one.checked])
    _refuse_mixed_runs(source, info, known)
    return known


def _refuse_mixed_runs(source: Any, info: dict[str, Any] | None, known: Mapping[str, KnownShard]) -> None:
    """Refuse shards of runs of `write_shards` that do not belong together.

    Shards without an index pass: a stream does without. Those with one have to be all of one run, as
    info.json has it, or of runs that number the classes alike.
    """
    runs = {(Path(shard).parent, one.plan): Path(shard) for shard, one in known.items() if one.plan}
    plans = {plan for _, plan in runs}
    if plans:
        refuse_other_runs(source, info, plans)
        digests = {Path(shard).name: one.sha256 for shard, one in known.items() if one.plan}
        refuse_exchanged(info, digests)
    if len(plans) > 1:
        classes_of_runs(runs)


def _listed(
    source: Any, split: str | None, urls: bool, outside_root: bool
) -> tuple[list[str], list[Path], dict[str, Any] | None]:
    """The URLs, the files, and what info.json says, as from `find_tars`.

    A URL is a string that the user passed; what a folder or an info.json lists is a file, whatever its name.
    """
    if isinstance(source, str) and not os.path.exists(source):
        source = _expanded(source)
    remote: list[str] = []
    if isinstance(source, (list, tuple)):
        for shard in source:
            if isinstance(shard, str):
                _refuse_address(shard, urls)
        remote = [shard for shard in source if urls and isinstance(shard, str) and _is_url(shard)]
        source = [shard for shard in source if not (isinstance(shard, str) and shard in remote)]
    if remote and not source and split is None:
        return remote, [], None
    tars, info = find_tars(source, split, outside_root)
    return remote, tars, info


def _expanded(notation: str) -> list[str]:
    """The shards that webdataset's notation stands for, such as "train-{000000..000099}.tar"."""
    from webdataset.shardlists import expand_urls

    try:
        return expand_urls(notation)
    except (AssertionError, ValueError) as error:
        expected = "a folder of shards, a tar, or webdataset's notation for several"
        raise refusal(_CALLER, "shards", notation, expected, str(error)) from error


def _is_url(shard: str) -> bool:
    """Whether a string is a URL of a scheme that webdataset opens without a shell: https, gs, hf, …"""
    found = _ADDRESS.match(shard)
    return found is not None and shard.startswith("//", found.end()) and found[1].lower() in _schemes()


def _refuse_address(shard: str, urls: bool) -> None:
    """Refuse a string that is no file but looks like an address, unless `urls` allows for it."""
    found = _ADDRESS.match(shard)
    if found is None or os.path.exists(shard) or (urls and _is_url(shard)):
        return
    hint = "pass urls=True to have it read as a URL"
    if not _is_url(shard):
        hint = f"a URL begins with one of {', '.join(sorted(_schemes()))}, and commands are not run: "
        hint += "read them with webdataset.WebDataset(…).compose(pk_batched(p, k))"
    raise refusal(_CALLER, "shards", shard, "an existing tar", hint)


def _schemes() -> set[str]:
    """The schemes that webdataset opens, or that are registered with it; never a command for the shell."""
    from webdataset.gopen import gopen_schemes

    return set(gopen_schemes) - {"pipe", "__default__"}


def _known_file(
    shard: str, image: str | None, label: str | Callable[..., Any], handler: Handler | None, count: bool
) -> KnownShard:
    """What is known of a shard that is a file. Arguments as for `known_shards`."""
    tar = Path(shard)
    table = read_table(tar, count, None)
    run = _run_of(table)
    try:
        with _BORDER:
            opened = ShardBytes(shard, url=False)
    except ValueError as unread:
        if not keep_going(handler, unread):
            raise
        size = 0 if table is None else table.tar_size
        return KnownShard(TarState(size), labels=np.zeros(0, np.int64) if count else None, **run)
    assert opened.file is not None
    state, table = _state_and_table(tar, table, opened.file, image, label, handler)
    if table is None and not count:
        return KnownShard(state, **run)
    if table is None:
        table = _scanned(shard, opened, image, label)
        state = table.state
    _refuse_damage(table, handler)
    return _described(state, table, run, image, label, count)


def _run_of(table: ShardTable | None) -> dict[str, Any]:
    """What an index says of the run of `write_shards`, as arguments of `KnownShard`.

    It is taken even where the tar has changed since.
    """
    facts = {} if table is None else table.facts
    return {
        "plan": facts.get("plan"),
        "sha256": facts.get("sha256"),
        "checked": facts.get("checked", True),
    }


def _state_and_table(
    tar: Path,
    table: ShardTable | None,
    file: PositionalFile,
    image: str | None,
    label: str | Callable[..., Any],
    handler: Handler | None,
) -> tuple[TarState, ShardTable | None]:
    """What a tar is compared with when it is read, and its table if that is of this tar and of these classes.

    Raises:
        ValueError: the tar has changed since it was indexed, unless the handler goes on.
    """
    if table is None:
        return TarState(file.size, file.time), None
    # Of a tar of another program the size alone is compared, unless its table is used: times may differ.
    state = table.state if table.ours else TarState(table.tar_size)
    fault = changed(tar, state, file)
    if fault and not keep_going(handler, fault.named(_CALLER, "shards")):
        raise fault
    if fault or not (callable(label) or fits(table, image, label, "drop")):
        return state, None
    return table.state, table


def _scanned(
    shard: str, opened: ShardBytes, image: str | None, label: str | Callable[..., Any]
) -> ShardTable:
    """The table of a tar from a scan, for its labels; refused where it is compressed."""
    assert isinstance(label, str)
    if opened.size is None:
        expected = "a tar that is not compressed, to count the batches of an epoch"
        raise refusal(_CALLER, "shards", shard, expected, "decompress it first, or pass steps=")
    return scan_tar(Path(shard), image, label, "drop")


def _refuse_damage(table: ShardTable, handler: Handler | None) -> None:
    """Refuse a tar whose table ends before it does, unless the handler goes on with the samples before."""
    for place, reason in table.left_out:
        if reason == DAMAGED:
            fault = damaged_shard(str(table.tar), f", after {place}")
            if not keep_going(handler, fault):
                raise fault


def _described(
    state: TarState,
    table: ShardTable,
    run: Mapping[str, Any],
    image: str | None,
    label: str | Callable[..., Any],
    count: bool,
) -> KnownShard:
    """What a table says of a shard, with the labels if they are asked for."""
    facts = table.facts
    contents = facts.get("contents", 0)
    if not count and not fits(table, image, facts.get("label", ""), "drop"):
        return KnownShard(state, contents, **run)  # the table is of other images
    of_table = {"label": facts.get("label"), "members": facts.get("members"), **run}
    if not count:
        return KnownShard(state, contents, samples=facts["samples"], **of_table)
    assert isinstance(label, str)
    names = table.columns["label"].tolist()
    # The column has the names of classes. On shards of `write_shards` only "json:class" gives them; other
    # fields give the numbers that stand for them.
    if run["plan"] is None or label == "json:class":
        _refuse_names(table.tar, label, set(names))
    return KnownShard(
        state,
        contents or contents_crc(table),
        labels=np.fromiter((zlib.crc32(name.encode()) for name in names), np.int64, len(names)),
        image_bytes=int(table.columns["size"].sum()),
        samples=len(table),
        **of_table,
    )


def _refuse_names(tar: Path, label: str, names: set[str]) -> None:
    """Refuse classes that are no whole numbers, as labels of a batch have to be."""
    for name in names:
        if isinstance(number_in(name), str):
            expected = f"a field of whole numbers, and in {tar.name} it has {name!r}"
            hint = "write numbers, or pass label=, a function of a sample that gives them, and steps="
            raise refusal(_CALLER, "label", label, expected, hint)


def damaged_shard(shard: str, where: str = "", reason: str = "") -> ValueError:
    """The refusal of a tar that breaks off.

    Args:
        shard: its path.
        where: ", after …".
        reason: a short fact.
    """
    hint = "restore it, or pass a handler that returns true to go on without the rest"
    hint += f" ({reason})" if reason else ""
    return refusal(_CALLER, "shards", shard, f"a whole tar, and {DAMAGED}{where}", hint)
