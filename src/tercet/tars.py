"""What lies where in one tar of samples: from its headers, or from the table kept beside it."""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tercet.checks import refusal
from tercet.folders import IMAGE_SUFFIXES, LeftOut

__all__ = [
    "BLOCK",
    "DAMAGED",
    "UNKNOWN",
    "ShardTable",
    "class_in",
    "contents_crc",
    "extension",
    "of_this_file",
    "of_write_shards",
    "other_size",
    "read_table",
    "scan_tar",
    "table_path",
    "write_table",
]

BLOCK = 512  # bytes: every header, and the unit that contents are padded to
UNKNOWN = -1  # the CRC of content that was never read
FORMAT = 1
_KEY = "tercet.shard"
_GROUP = "groups."  # before the names of groups, so that one may be called "size"
_TEXT = ("key", "suffix", "path", "label")
_NUMBERS = ("offset", "size", "header_crc32", "crc32")
# webdataset's rule: the key ends at the first dot of the file name.
_SAMPLE_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
DAMAGED = "the tar is cut short or damaged here"
_SUCH = {"image": '"jpg"', "label": '"cls", or a field of JSON, such as "json:label"'}


@dataclass(frozen=True)
class ShardTable:
    """The samples of one tar, in its order.

    Args:
        tar: the file.
        tar_size: its bytes when it was indexed.
        columns: by name, each [n]: key, suffix, path and label (the class name), strings; offset (of the
            image's content), size, header_crc32 (of the 512 bytes before it) and crc32, int64.
        groups: further columns by name, each [n].
        left_out: what was found, or planned, and is no sample.
        facts: how the table came about, for comparison with what is asked for.
    """

    tar: Path
    tar_size: int
    columns: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["offset"])


def table_path(tar: Path) -> Path:
    """Where the table of a tar lies: a.index.parquet beside a.tar, part.000.index.parquet beside part.000."""
    return tar.with_name(tar.name.removesuffix(".tar") + ".index.parquet")


def write_table(table: ShardTable, target: Path) -> None:
    """Write a table as Parquet.

    Args:
        table: what to write.
        target: an unfinished name; the final one would end as `table_path` says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(table.columns[name], pa.string()) for name in _TEXT}
    columns |= {name: pa.array(table.columns[name], pa.int64()) for name in _NUMBERS}
    columns |= {_GROUP + name: pa.array(values) for name, values in table.groups.items()}
    told = {"format": FORMAT, "tar": table.tar.name, "tar_size": table.tar_size, "left_out": table.left_out}
    told |= {**table.facts, "contents": contents_crc(table)}
    metadata = {_KEY: json.dumps(told, sort_keys=True)}
    with pa.OSFile(str(target), "wb") as file:  # of a name with a colon pyarrow would make an address
        pq.write_table(pa.table(columns, metadata=metadata), file, compression="zstd")


def read_table(owner: str, tar: Path, rows: bool = True, argument: str = "index") -> ShardTable | None:
    """The table beside a tar; None where there is none.

    Args:
        owner: who asks, for the sentences.
        tar: the file.
        rows: False leaves the samples unread, and gives a table of none with its size and facts, and among
            these their number, "samples".
        argument: for which argument, for the sentences.

    Raises:
        ValueError: it cannot be read, or is that of a tar of another name.
    """
    source = table_path(tar)
    if not source.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pa.OSFile(str(source)) as opened:
            file = pq.ParquetFile(opened)
            table = file.read() if rows else file.schema_arrow.empty_table()
        facts = json.loads(table.schema.metadata[_KEY.encode()])
        if facts.pop("format") != FORMAT:
            raise KeyError(f"a format other than {FORMAT}")
        if not rows:
            facts["samples"] = file.metadata.num_rows
        left_out = tuple(LeftOut(*item) for item in facts.pop("left_out"))
        name = facts.pop("tar", tar.name)
        columns = {name: _values(table[name]) for name in (*_TEXT, *_NUMBERS)}
        groups = [name for name in table.column_names if name.startswith(_GROUP)]
        found = ShardTable(
            tar=tar,
            tar_size=facts.pop("tar_size"),
            columns=columns,
            groups={name.removeprefix(_GROUP): _values(table[name]) for name in groups},
            left_out=left_out,
            facts=facts,
        )
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        way_out = "restore it, or write the shards again with overwrite=True or --overwrite; beside a tar of "
        way_out += "another program delete it, and the tar is scanned instead "
        way_out += f"({str(error).partition(chr(10))[0]})"
        raise refusal(owner, argument, str(source), "the index of a tar", way_out) from error
    if name != tar.name:  # of tars as large, with the same keys, nothing else would tell them apart
        way_out = f"it is that of {name}; rename both, or delete it, and the tar is scanned instead"
        raise refusal(owner, argument, str(source), f"the index of {tar.name}", way_out)
    return found


def contents_crc(table: ShardTable) -> int:
    """A CRC of the keys and classes of the samples, in their order; that of a table which is kept is in
    its facts, as "contents"."""
    names = [table.columns["key"].tolist(), table.columns["label"].tolist()]
    return zlib.crc32(json.dumps(names).encode())


def other_size(owner: str, argument: str, tar: Path, expected: int) -> ValueError | None:
    """The refusal of a tar that is not as large as when it was looked at; None where it is."""
    size = tar.stat().st_size
    if size == expected:
        return None
    index = table_path(tar)
    way_out, when = f"delete {index.name} to index the tar as it is", "indexed"
    if not index.is_file():
        way_out, when = "open it anew", "opened"
    elif of_write_shards(owner, tar):
        way_out = "restore it, or write the shards again"
    expectation = f"{expected} bytes, as when it was {when}"
    return refusal(owner, argument, str(tar), expectation, f"it has changed to {size}; {way_out}")


def of_write_shards(owner: str, tar: Path) -> bool:
    """Whether `write_shards` wrote a tar, by the table beside it."""
    try:
        table = read_table(owner, tar, rows=False)
    except ValueError:  # a damaged index is told where it is read
        return False
    return table is not None and "plan" in table.facts


def of_this_file(table: ShardTable) -> bool:
    """Whether the tar of a scanned table has the time of change that it had then.

    (The tables of `write_shards` have no time: their tars are copied from machine to machine, and images and
    headers have CRCs.)
    """
    return table.facts.get("mtime_ns") == table.tar.stat().st_mtime_ns


def extension(owner: str, argument: str, value: Any) -> str:
    """The extension of a member as webdataset names it, without a dot and in lower case.

    Args:
        owner: who asks, for the sentence.
        argument: "image" or "label"; a label may be "json:field" too.
        value: what came.

    Raises:
        ValueError: not a string, or an empty one.

    Example:
        >>> extension("ShardIndex", "image", ".JPG"), extension("ShardIndex", "label", "json:Name")
        ('jpg', 'json:Name')
    """
    name, colon, field = value.partition(":") if isinstance(value, str) else ("", "", "")
    name = name.lstrip(".").lower()
    if not name or (colon and not (field and argument == "label")):
        raise refusal(owner, argument, value, f"the extension of a member, such as {_SUCH[argument]}")
    return name + colon + field


def _values(column: Any) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype.kind in "bfu":
        return values
    return values.astype(np.int64 if values.dtype.kind == "i" else object, copy=False)


def scan_tar(
    owner: str, tar: Path, image: str | None, label: str, damaged: str, argument: str = "tars"
) -> ShardTable:
    """The samples of a tar that any program wrote, from its headers and labels; images are not read.

    Args:
        owner: who asks, for the sentences.
        tar: an uncompressed tar; long names of GNU tar and pax are understood.
        image: the extension of the member that is the image; None for the one that is an image's.
        label: the extension of the member that holds the class, or "json:field"; as `extension` gives them.
        damaged: "drop" ends a tar that is cut short, or has a broken header, before the sample in question.
        argument: for which argument, for the sentences.

    Raises:
        ValueError: not such a tar, a damaged one, a sample with two images or without a class.
    """
    left_out: list[LeftOut] = []
    rows: list[tuple[Any, ...]] = []
    with open(tar, "rb") as file:
        before = os.fstat(file.fileno())
        for key, members in _samples(owner, argument, tar, file, damaged, left_out):
            suffix = _image_of(owner, argument, tar, key, members, image)
            if suffix is None:
                left_out.append(LeftOut(f"{tar.name}/{key}", "sample without an image"))
                continue
            info = members[suffix]
            name = _class_of(owner, tar, key, members, label, file)
            header = zlib.crc32(os.pread(file.fileno(), BLOCK, info.offset_data - BLOCK))
            spelled = info.name[len(key) + 1 :]  # in whatever case
            rows.append((key, spelled, info.name, name, info.offset_data, info.size, header, UNKNOWN))
    texts = len(_TEXT)
    columns = {}
    for place, column in enumerate((*_TEXT, *_NUMBERS)):
        columns[column] = np.array([row[place] for row in rows], dtype=object if place < texts else np.int64)
    cut = any(item.reason == DAMAGED for item in left_out)
    facts = {"image": image, "label": label, "damaged": cut, "mtime_ns": before.st_mtime_ns}
    return ShardTable(tar, before.st_size, columns, {}, tuple(left_out), facts)


def _samples(
    owner: str, argument: str, tar: Path, file: BinaryIO, damaged: str, left_out: list[LeftOut]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, {extension in lower case: member}) of each run of members with one key, as webdataset has it."""
    reasons: list[str] = []
    current, members = "", {}
    for info in _members(owner, argument, tar, file, reasons):
        if info.isdir():
            continue
        matched = _SAMPLE_NAME.fullmatch(info.name)
        reason = "webdataset's own metadata" if _META.match(info.name) else ""
        if not info.isreg() or info.issparse():
            reason = "not a plain file"
        if reason or not matched:
            left_out.append(LeftOut(f"{tar.name}/{info.name}", reason or "name without an extension"))
            continue
        key, extension = matched[1], matched[2].lower()
        if key != current:
            if members:
                yield current, members
            current, members = key, {}
        if extension in members:
            way_out = "webdataset does not read it either; write the tar again"
            raise refusal(owner, argument, str(tar), f"each member once, not {info.name!r} twice", way_out)
        members[extension] = info
    if reasons and damaged == "error":
        where = f"{reasons[0]} after {current!r}" if current else reasons[0]
        way_out = 'restore it, or pass damaged="drop" to keep the samples before'
        raise refusal(owner, argument, str(tar), f"a whole tar, and {where}", way_out)
    if reasons:  # what is missing may have belonged to the last sample
        left_out.append(LeftOut(f"{tar.name}/{current}", reasons[0]))
    elif members:
        yield current, members


def _members(
    owner: str, argument: str, tar: Path, file: BinaryIO, reasons: list[str]
) -> Iterator[tarfile.TarInfo]:
    """The members whose content is there whole; `reasons` gets why the tar ends too soon, if it does."""
    size = os.fstat(file.fileno()).st_size
    try:
        archive = tarfile.TarFile(fileobj=file)
    except tarfile.TarError as error:
        way_out = f"decompress it first, with gunzip for instance ({error})" if size else "it is empty"
        raise refusal(owner, argument, str(tar), "an uncompressed tar", way_out) from error
    while True:
        try:
            info = archive.next()
        except (tarfile.TarError, ValueError):
            reasons.append(DAMAGED)
            return
        if info is None:
            break
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  else it keeps them all
        if info.offset_data + info.size > size:
            reasons.append(DAMAGED)
            return
        yield info
    end = os.pread(file.fileno(), BLOCK, archive.offset)
    if end != bytes(BLOCK):  # tarfile takes the lack of an end, and a broken header, for one
        reasons.append(DAMAGED)


def _image_of(
    owner: str, argument: str, tar: Path, key: str, members: Mapping[str, tarfile.TarInfo], image: str | None
) -> str | None:
    """The extension of the sample's image; None where it has none."""
    if image is not None:
        return image if image in members else None
    found = [extension for extension in members if f".{extension}" in IMAGE_SUFFIXES]
    if len(found) > 1:
        expected = f"one image a sample, and {key!r} has {' and '.join(sorted(found))}"
        raise refusal(owner, argument, str(tar), expected, f"say which, such as image={found[0]!r}")
    return found[0] if found else None


def _class_of(
    owner: str, tar: Path, key: str, members: Mapping[str, tarfile.TarInfo], label: str, file: BinaryIO
) -> str:
    """The class of the sample, as a string."""
    extension, _, name = label.partition(":")
    if extension not in members:
        ways = ", ".join(sorted(members))
        way_out = f'the sample has {ways}; name another with label=, such as "cls" or "json:label"'
        raise refusal(owner, "label", label, f"a member {key}.{extension} in {tar}", way_out)
    info = members[extension]
    content = os.pread(file.fileno(), info.size, info.offset_data)
    try:
        return str(class_in(content, name))
    except (ValueError, LookupError, TypeError) as error:
        expected = f"a whole number or a name in {key}.{extension} of {tar}"
        raise refusal(owner, "label", label, expected, f"{type(error).__name__}: {error}") from error


def class_in(content: bytes | bytearray | str, field: str) -> int | str:
    """The class that a member holds: its text, or a field of its JSON.

    Raises:
        ValueError, LookupError, TypeError: neither a whole number nor a name.

    Example:
        >>> class_in(b"ant ", ""), class_in(b'{"id": 3}', "id")
        ('ant', 3)
    """
    if not field:
        value = (content if isinstance(content, str) else bytes(content).decode()).strip()
    else:
        value = json.loads(content)[field]
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"it is {value!r}")
    return value
