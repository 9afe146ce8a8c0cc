"""The samples of a tar of any program, from its headers and labels."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal
from tercet.data.catalog.catalog import LeftOut
from tercet.data.io.images import IMAGE_SUFFIXES
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.tar_index import DAMAGED, NUMBERS, TEXTS, UNKNOWN, ShardTable, sampled_headers
from tercet.data.shards.tar_members import (
    BLOCK,
    LARGEST,
    DamagedTar,
    Member,
    MemberTwice,
    grouped,
    members,
    sample_name,
    why_no_sample,
)

__all__ = ["class_in", "extension", "scan_tar"]

_SUCH = {"image": '"jpg"', "label": '"cls", or a field of JSON, such as "json:label"'}
_LABEL = 1 << 24  # bytes of a member that holds a class
_NAME = 1024  # characters of a class


def scan_tar(tar: Path, image: str | None, label: str, damaged: str) -> ShardTable:
    """The samples of a tar of any program, from its headers and labels. Images are not read.

    Args:
        tar: an uncompressed tar; long names of GNU tar and pax are understood.
        image: the extension of the member that is the image; None for the one that is an image's.
        label: the extension of the member that holds the class, or "json:field". This and the image as
            `extension` gives them.
        damaged: "error" refuses a tar that is cut short or has a broken header; "drop" keeps the samples that
            are surely whole.

    Raises:
        ValueError: not such a tar, a damaged one, a sample with two images or without a class, or a tar that
            changes while it is scanned.
    """
    left_out: list[LeftOut] = []
    rows: list[tuple[Any, ...]] = []
    file = PositionalFile(tar, "an uncompressed tar")
    for key, parts in _samples(tar, file, damaged, left_out):
        extension = _image_of(tar, key, parts, image)
        if extension is None:
            left_out.append(LeftOut(f"{tar.name}/{key}", "sample without an image"))
            continue
        found = parts[extension]
        if found.size > LARGEST:
            left_out.append(LeftOut(f"{tar.name}/{key}", f"image of more than {LARGEST:,} bytes"))
            continue
        name = _class_of(tar, key, parts, label, file)
        suffix = found.name[len(key) + 1 :]  # in its own case
        header = zlib.crc32(file.pread(found.offset - BLOCK, BLOCK))
        rows.append((key, suffix, found.name, name, found.offset, found.size, header, UNKNOWN))
    columns = {
        column: np.array([row[place] for row in rows], dtype=object if column in TEXTS else np.int64)
        for place, column in enumerate((*TEXTS, *NUMBERS))
    }
    if file.changed():
        raise Refusal(None, str(tar), "a tar that nobody writes to while it is scanned")
    facts = {
        "image": image,
        "label": label,
        "damaged": any(item.reason == DAMAGED for item in left_out),
        "mtime_ns": file.time,
        "headers": sampled_headers(columns),
    }
    return ShardTable(tar, file.size, columns, {}, tuple(left_out), facts)


def _samples(
    tar: Path, file: PositionalFile, damaged: str, left_out: list[LeftOut]
) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, {extension in lower case: member}) of each sample, as webdataset groups them.

    Members that belong to no sample are added to `left_out`. Arguments as for `scan_tar`.
    """
    broken: list[DamagedTar] = []

    def named() -> Iterator[tuple[str, str, Member]]:
        try:
            for member in members(file.pread, file.size):
                reason = why_no_sample(member)
                name = sample_name(member.name)
                if not reason and name is not None:
                    yield *name, member
                elif member.kind != "folder":
                    left_out.append(LeftOut(f"{tar.name}/{member.name}", reason))
        except DamagedTar as error:
            broken.append(error)

    current, previous = "", None
    try:
        for key, parts in grouped(named()):
            if previous is not None:
                yield previous
            current, previous = key, (key, parts)
    except MemberTwice as error:
        hint = "webdataset does not read it either; write the tar again"
        expected = f"each member once, not {error.args[0]!r} twice"
        raise Refusal(None, str(tar), expected, hint) from None
    if not broken:
        if previous is not None:
            yield previous
        return
    reason = broken[0].reason
    if broken[0].at == 0:
        hint = f"decompress it first, with gunzip for instance ({reason})" if file.size else "it is empty"
        raise Refusal(None, str(tar), "an uncompressed tar", hint)
    if damaged == "error":
        where = f"{DAMAGED} after {current!r}" if current else DAMAGED
        hint = f'{reason}; restore it, or pass damaged="drop" to keep the samples before'
        raise Refusal(None, str(tar), f"a whole tar, and {where}", hint)
    # The last sample may lack a member that was lost: it is left out.
    left_out.append(LeftOut(f"{tar.name}/{current}", DAMAGED))


def _image_of(tar: Path, key: str, parts: Mapping[str, Member], image: str | None) -> str | None:
    """The extension of the sample's image; None where it has none."""
    if image is not None:
        return image if image in parts else None
    found = [extension for extension in parts if f".{extension}" in IMAGE_SUFFIXES]
    if len(found) > 1:
        expected = f"one image a sample, and {key!r} has {' and '.join(sorted(found))}"
        raise Refusal(None, str(tar), expected, f"say which, such as image={found[0]!r}")
    return found[0] if found else None


def _class_of(tar: Path, key: str, parts: Mapping[str, Member], label: str, file: PositionalFile) -> str:
    """The class of the sample, as a string."""
    extension, _, name = label.partition(":")
    if extension not in parts:
        ways = ", ".join(sorted(parts))
        hint = f'the sample has {ways}; name another with label=, such as "cls" or "json:label"'
        raise Refusal("label", label, f"a member {key}.{extension} in {tar}", hint)
    found = parts[extension]
    try:
        if found.size > _LABEL:
            raise ValueError(f"it has {found.size:,} bytes")
        content = bytes(file.pread(found.offset, found.size))
        return str(class_in(content, name))
    except (ValueError, LookupError, TypeError) as error:
        expected = f"a whole number or a name in {key}.{extension} of {tar}"
        raise Refusal("label", label, expected, f"{type(error).__name__}: {error}") from error


def class_in(content: bytes | bytearray | str, field: str) -> int | str:
    """The class that a member holds: its text, or a field of its JSON.

    Args:
        content: of the member.
        field: the field of its JSON; "" for its text.

    Raises:
        ValueError, LookupError, TypeError: neither a whole number nor a name, or one of more than 1,024
            characters.

    Example:
        >>> class_in(b"ant ", ""), class_in(b'{"id": 3}', "id")
        ('ant', 3)
    """
    if not field:
        value = (content if isinstance(content, str) else bytes(content).decode()).strip()
    else:
        try:
            value = json.loads(content)[field]
        except RecursionError:
            raise ValueError("brackets nested too deep") from None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        shown = f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(value)
        raise ValueError(f"it is {shown}")
    if len(str(value)) > _NAME:
        raise ValueError(f"it has {len(str(value)):,} characters, and at most {_NAME:,} are read")
    return value


def extension(argument: str, value: Any) -> str:
    """The extension of a member as webdataset names it, without a dot and in lower case.

    Args:
        argument: "image" or "label"; a label may be "json:field" too.
        value: what came.

    Raises:
        ValueError: not a string, or an empty one.

    Example:
        >>> extension("image", ".JPG"), extension("label", "json:Name")
        ('jpg', 'json:Name')
    """
    name, colon, field = value.partition(":") if isinstance(value, str) else ("", "", "")
    name = name.lstrip(".").lower()
    if not name or (colon and not (field and argument == "label")):
        raise Refusal(argument, value, f"the extension of a member, such as {_SUCH[argument]}")
    return name + colon + field
