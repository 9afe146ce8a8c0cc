"""Which shards a stream reads, what is known of each before it does, and what comes of it then."""

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

from tercet.core.checks import refusal
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
from tercet.data.streams.samples import Handler, base_name, number_in, told
from tercet.data.streams.shard_bytes import ShardBytes

__all__ = ["KnownShard", "damaged_shard", "known_shards"]

_CALLER = "PKStream"
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # https://…, pipe:…; a drive has one letter


@dataclass(frozen=True)
class KnownShard:
    """What is known of a shard before it is read.

    Args:
        state: what it was like when it was indexed, or else now; None for a URL.
        contents: a CRC of its keys and classes; 0 where no index tells them, unless the labels are asked for.
        label: where those classes are, as for `PKStream`; None where `contents` is of other images.
        members: a CRC of all its members; None where no index tells it.
        sha256: of a shard of `write_shards`; None where no index tells it.
        checked: whether its index, if it has one, has checksums.
        plan: names the run of `write_shards` that wrote it; None for those of other programs.
        labels: int64 [n], a number for each sample that names its class; None unless asked for.
        image_bytes: of all its images; 0 unless the labels are asked for.
        samples: those with an image; None where neither index nor labels tell how many.
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
    """The shards by their absolute paths or URLs: in one order, by name, whatever the order given.

    Args:
        source, split, urls, outside_root, image, label, handler: as for `PKStream`, the image and a label
            that is a string as `extension` gives them.
        count: look for the labels, in the tables beside the tars or else in the tars.

    Raises:
        ValueError: no shard, one that is missing, two of one name, shards that are not all there or have
            changed; with `count` also shards whose labels cannot be told before they are read.
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
        shard: KnownShard(None) if shard in remote else _known(shard, image, label, handler, count)
        for shard in found
    }
    warn_without_checksums([Path(shard) for shard, one in known.items() if not one.checked])
    runs = {(Path(shard).parent, one.plan): Path(shard) for shard, one in known.items() if one.plan}
    plans = {plan for _, plan in runs}
    if plans:  # a stream does without the tables; those there are have to be of one run
        refuse_other_runs(_CALLER, "shards", source, info, plans)
        digests = {Path(shard).name: one.sha256 for shard, one in known.items() if one.plan}
        refuse_exchanged(_CALLER, "shards", info, digests)
    if len(plans) > 1:  # or of runs that number the classes alike
        classes_of_runs(_CALLER, "shards", runs)
    return known


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
                _refuse_address(_CALLER, "shards", shard, urls)
        remote = [shard for shard in source if urls and isinstance(shard, str) and _is_url(shard)]
        source = [shard for shard in source if not (isinstance(shard, str) and shard in remote)]
    if remote and not source and split is None:
        return remote, [], None
    tars, info = find_tars(_CALLER, "shards", source, split, outside_root)
    return remote, tars, info


def _is_url(shard: str) -> bool:
    """Whether a string is a URL of a scheme that webdataset opens without a shell: https, gs, hf, …"""
    found = _ADDRESS.match(shard)
    return found is not None and shard.startswith("//", found.end()) and found[1].lower() in _schemes()


def _refuse_address(caller: str, argument: str, shard: str, urls: bool) -> None:
    """Refuse what is no file but looks like an address: a name is opened as a file, whatever it is.

    Args:
        caller, argument: who asks, and for which argument, for the sentences.
        shard: a string that the user passed.
        urls: whether URLs are asked for.

    Raises:
        ValueError: as above.
    """
    found = _ADDRESS.match(shard)
    if found is None or os.path.exists(shard) or (urls and _is_url(shard)):
        return
    hint = "pass urls=True to have it read as a URL"
    if not _is_url(shard):
        hint = f"a URL begins with one of {', '.join(sorted(_schemes()))}, and commands are not run: "
        hint += "read them with webdataset.WebDataset(…).compose(pk_batched(p, k))"
    raise refusal(caller, argument, shard, "an existing tar", hint)


def _schemes() -> set[str]:
    """Those that webdataset, or who registered one with it, opens; never a command for the shell."""
    from webdataset.gopen import gopen_schemes

    return set(gopen_schemes) - {"pipe", "__default__"}


def _expanded(notation: str) -> list[str]:
    """The shards that webdataset's notation stands for, such as "train-{000000..000099}.tar"."""
    from webdataset.shardlists import expand_urls

    try:
        return expand_urls(notation)
    except (AssertionError, ValueError) as error:
        expected = "a folder of shards, a tar, or webdataset's notation for several"
        raise refusal(_CALLER, "shards", notation, expected, str(error)) from error


def _known(
    shard: str, image: str | None, label: str | Callable[..., Any], handler: Handler | None, count: bool
) -> KnownShard:
    tar = Path(shard)
    table = read_table(_CALLER, tar, count, "shards")
    facts = {} if table is None else table.facts
    of_index = {
        "plan": facts.get("plan"),
        "sha256": facts.get("sha256"),
        "checked": facts.get("checked", True),
    }
    try:
        opened = ShardBytes(_CALLER, "shards", shard, url=False)
    except ValueError as unread:
        if not told(handler, unread):
            raise
        size = 0 if table is None else table.tar_size
        return KnownShard(TarState(size), labels=np.zeros(0, np.int64) if count else None, **of_index)
    file = opened.file
    assert file is not None
    state = TarState(file.size, file.time)
    if table is not None:
        state = table.state if table.ours else TarState(table.tar_size)
        fault = changed(_CALLER, "shards", tar, state, file)
        if fault and not told(handler, fault):
            raise fault
        if fault or not (callable(label) or fits(table, image, label, "drop")):
            table = None  # it tells of another tar, or of other classes
        elif not table.ours:
            state = table.state
    if not count and table is None:
        return KnownShard(state, **of_index)
    if table is None:
        assert isinstance(label, str)
        if opened.size is None:
            expected = "a tar that is not compressed, to count the batches of an epoch"
            raise refusal(_CALLER, "shards", shard, expected, "decompress it first, or pass steps=")
        table = scan_tar(_CALLER, tar, image, label, "drop", "shards")
        state = table.state
    _tell_damage(table, handler)
    contents = table.facts.get("contents", 0)
    if not count and not fits(table, image, table.facts.get("label", ""), "drop"):
        return KnownShard(state, contents, **of_index)  # of other images
    what = {"label": table.facts.get("label"), "members": table.facts.get("members"), **of_index}
    if not count:
        return KnownShard(state, contents, samples=table.facts["samples"], **what)
    assert isinstance(label, str)
    names = table.columns["label"].tolist()
    if of_index["plan"] is None or label == "json:class":  # else the column has names, and the field numbers
        _refuse_names(tar, label, set(names))
    return KnownShard(
        state,
        contents or contents_crc(table),
        labels=np.fromiter((zlib.crc32(name.encode()) for name in names), np.int64, len(names)),
        image_bytes=int(table.columns["size"].sum()),
        samples=len(table),
        **what,
    )


def _tell_damage(table: ShardTable, handler: Handler | None) -> None:
    """Refuses a tar whose table ends before it does, unless the handler goes on with the samples there."""
    for place, reason in table.left_out:
        if reason == DAMAGED:
            fault = damaged_shard(str(table.tar), f", after {place}")
            if not told(handler, fault):
                raise fault


def _refuse_names(tar: Path, label: str, names: set[str]) -> None:
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
