"""One tar shard and its index, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import refusal
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.io.atomic import atomically, final_names_in_errors
from tercet.data.io.images import file_content
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.tar_index import (
    NUMBERS,
    ShardTable,
    read_table,
    sampled_headers,
    table_path,
    write_table,
)
from tercet.data.shards.tar_members import BLOCK, with_member

__all__ = ["ShardJob", "Stopped", "member_suffix", "readable_table", "unreadable_file", "write_shard"]

_SAME = {"jpeg": "jpg", "jpe": "jpg"}  # readers of shards ask for "jpg"
_END = 20 * BLOCK  # a tar's length is a multiple of it, and ends in two empty blocks


class Stopped(Exception):
    """A shard was given up because another could not be written."""


@dataclass(frozen=True)
class ShardJob:
    """What a run writes, the same for all its shards.

    Args:
        folder: where the shards go.
        catalog: the images.
        shards: the rows of each shard, in order.
        split: the name of the split.
        plan: the name of the run.
        sizes: bytes of each source file, −1 for one that cannot be read.
        skip: leave out files that cannot be read.
    """

    folder: Path
    catalog: Catalog
    shards: list[Int64[np.ndarray, " _"]]
    split: str
    plan: str
    sizes: list[int]
    skip: bool

    def tar(self, shard: int) -> Path:
        """The path of a shard."""
        return self.folder / f"{self.split}-{shard:06d}.tar"

    def key(self, row: int) -> str:
        """The key of an image in its shard."""
        return f"{row:09d}"

    def finished(self, shard: int) -> ShardTable | None:
        """The table of a shard that an earlier run of this plan wrote, if it is right; None to write it.

        It is right if the source files have the same sizes and the tar has not changed. A shard without
        digests, of version 0.1, is written again.
        """
        tar = self.tar(shard)
        table = readable_table(tar)
        ours = table is not None and table.facts.get("plan") == self.plan
        if table is None or not ours or not {"sha256", "members"} <= table.facts.keys():
            return None
        keys, sizes = table.columns["key"].tolist(), table.columns["size"].tolist()
        written = dict(zip(map(int, keys), sizes, strict=True))
        rows = self.shards[shard].tolist()
        same = [written.get(row, -1) for row in rows] == [self.sizes[row] for row in rows]
        if not same or not tar.is_file():
            return None
        file = PositionalFile(tar, "a tar that can be read")
        return table if table.state.change(file) is None else None


def member_suffix(path: str) -> str:
    """The extension of an image's member: the suffix of its file in lower case, jpg for all of JPEG's."""
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    return _SAME.get(suffix, suffix)


def unreadable_file(path: Path, reason: str) -> ValueError:
    """The refusal of a file that cannot be read, ready to raise."""
    hint = 'restore it, or pass unreadable="skip" to leave it out'
    return refusal("write_shards", "catalog", str(path), "files that can be read", f"{reason}; {hint}")


def readable_table(tar: Path) -> ShardTable | None:
    """The table beside a tar; None where there is none or it is damaged."""
    try:
        return read_table(tar)
    except ValueError:
        return None


def write_shard(job: ShardJob, shard: int, stop: threading.Event, step: Callable[[], None]) -> ShardTable:
    """Write one tar and its index; neither appears unless both are whole.

    Args:
        job: the run.
        shard: the number of the shard.
        stop: set where another shard has failed.
        step: called after each image.

    Returns:
        The table of the shard.

    Raises:
        Stopped: `stop` is set.
        ValueError: a file that cannot be read, unless such files are skipped.
    """
    tar, catalog = job.tar(shard), job.catalog
    rows, places, left_out = [], [], []
    # The index gets its name first, so a tar of ours always has an index.
    with atomically(tar) as unfinished, atomically(table_path(tar)) as unfinished_table:
        with final_names_in_errors({unfinished: tar}), open(unfinished, "wb") as opened:
            file = Digested(opened)
            for row in job.shards[shard].tolist():
                if stop.is_set():
                    raise Stopped
                content, reason = _content(catalog.file(row))
                if reason and not job.skip:
                    raise unreadable_file(catalog.file(row), reason)
                if reason:
                    left_out.append(LeftOut(catalog.paths[row], reason))
                else:
                    rows.append(row)
                    places.append(_add_sample(file, job, row, content))
                step()
            # The end of a tar: two empty blocks, padded as GNU tar does.
            file.write(bytes(2 * BLOCK))
            file.write(bytes(-file.tell() % _END))
        numbers = np.array(places, dtype=np.int64).reshape(-1, 4)
        columns = {
            "key": np.array([job.key(row) for row in rows], dtype=object),
            "suffix": np.array([member_suffix(catalog.paths[row]) for row in rows], dtype=object),
            "path": catalog.paths[rows],
            "label": np.array([catalog.classes[label] for label in catalog.labels[rows]], dtype=object),
            **dict(zip(NUMBERS, numbers.T, strict=True)),
        }
        groups = {name: values[rows] for name, values in catalog.groups.items()}
        facts = {
            "plan": job.plan,
            "label": "json:class",
            "sha256": file.sha256.hexdigest(),
            "members": file.members,
            "headers": sampled_headers(columns),
        }
        table = ShardTable(tar, file.tell(), columns, groups, tuple(left_out), facts)
        write_table(table, unfinished_table)
    return table


def _content(path: Path) -> tuple[bytes, str]:
    """The content of a file and "", or b"" and why it is no image."""
    try:
        content = file_content(path)
    except ValueError as error:
        return b"", str(error)
    return content, "" if content else "file is empty"


class Digested:
    """A file that is written from front to back, with digests of what is written.

    Attributes:
        sha256: the digest of all bytes.
        members: a CRC of all members.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0
        self.sha256, self.members = hashlib.sha256(), 0

    def tell(self) -> int:
        return self._size

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self.sha256.update(part)
        self._size += len(part)

    def put(self, header: bytes, content: bytes) -> tuple[int, int]:
        """Append a member, and return the CRCs of its header and content."""
        crcs = zlib.crc32(header), zlib.crc32(content)
        self.members = with_member(self.members, *crcs)
        self.write(header)
        self.write(content)
        self.write(bytes(-self._size % BLOCK))
        return crcs


def _add_sample(file: Digested, job: ShardJob, row: int, content: bytes) -> tuple[int, int, int, int]:
    """Append the three members of an image, and return the numbers of the first, as in `NUMBERS`."""
    catalog = job.catalog
    label = int(catalog.labels[row])
    facts = {name: values[row : row + 1].tolist()[0] for name, values in catalog.groups.items()}
    facts |= {"path": catalog.paths[row], "label": label, "class": catalog.classes[label]}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
    key = job.key(row)
    header = _header(f"{key}.{member_suffix(catalog.paths[row])}", len(content))
    offset = file.tell() + BLOCK
    crcs = file.put(header, content)
    file.put(_header(f"{key}.cls", len(str(label))), str(label).encode())
    file.put(_header(f"{key}.json", len(text)), text)
    return offset, len(content), *crcs


def _header(name: str, size: int) -> bytes:
    """The header of a member, 512 bytes that depend on name and size only: no time, no owner."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
