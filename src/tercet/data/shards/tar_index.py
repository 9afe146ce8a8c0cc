"""The table of a tar's samples: kept beside it as Parquet, with checksums, and compared with the tar."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal
from tercet.data.catalog.catalog import LeftOut
from tercet.data.io.checked_json import JsonRecord
from tercet.data.io.parquet_files import opened_parquet, parquet_writer
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.tar_members import BLOCK, LARGEST

__all__ = [
    "DAMAGED",
    "NUMBERS",
    "TEXTS",
    "UNKNOWN",
    "ShardTable",
    "TarState",
    "changed",
    "contents_crc",
    "keys_and_classes_crc",
    "of_write_shards",
    "read_table",
    "sampled_headers",
    "table_path",
    "write_table",
]

UNKNOWN = -1  # in place of the CRC of content that was never read
FORMAT = 1
TEXTS = ("key", "suffix", "path", "label")
NUMBERS = ("offset", "size", "header_crc32", "crc32")
DAMAGED = "the tar is cut short or damaged here"
_KEY = "tercet.shard"
_GROUP = "groups."  # before the names of groups, so that one may be called "size"
_SAMPLED = 8  # headers of a tar that are compared with it as it is


@dataclass(frozen=True)
class TarState:
    """What a tar was like when it was indexed or opened.

    Args:
        size: its bytes.
        time: of its last change, in nanoseconds; None where it is not compared: tars of `write_shards` have
            CRCs, and may be copied from machine to machine.
        headers: (offset, CRC) of a few headers.
    """

    size: int
    time: int | None = None
    headers: tuple[tuple[int, int], ...] = ()

    def change(self, tar: PositionalFile) -> tuple[str, str] | None:
        """(expected, found) where an open tar has changed; None where it has not."""
        if tar.size != self.size:
            return f"{self.size} bytes, as", f"it has changed to {tar.size}"
        if self.time not in (None, tar.time):
            return "the time of change that it had", "it was written since"
        for at, crc in self.headers:
            if zlib.crc32(tar.pread(at, BLOCK)) != crc:
                return f"the header at byte {at} that it had", "another stands there"
        return None


@dataclass(frozen=True)
class ShardTable:
    """The samples of one tar, in its order.

    Args:
        tar: the file.
        tar_size: its bytes when it was indexed.
        columns: by name, each [n]. Strings: key, suffix, path and label, the class name. int64: offset and
            size of the image's content, its crc32, and header_crc32 of the 512 bytes before it.
        groups: further columns by name, each [n].
        left_out: what was found, or was to be written, and is no sample.
        facts: how the table was made; it is compared with what is asked for.
    """

    tar: Path
    tar_size: int
    columns: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["offset"])

    @property
    def ours(self) -> bool:
        """Whether `write_shards` wrote the tar."""
        return "plan" in self.facts

    @property
    def state(self) -> TarState:
        """What the tar was like when it was indexed."""
        time = None if self.ours else self.facts.get("mtime_ns")
        headers = self.facts.get("headers", ())
        return TarState(self.tar_size, time, tuple((at, crc) for at, crc in headers))


def table_path(tar: Path) -> Path:
    """The path of a tar's table: a.index.parquet beside a.tar, part.000.index.parquet beside part.000."""
    return tar.with_name(tar.name.removesuffix(".tar") + ".index.parquet")


def write_table(table: ShardTable, target: Path) -> None:
    """Write a table as Parquet with checksums.

    Args:
        table: what to write.
        target: a temporary name; the final one is `table_path`.
    """
    import pyarrow as pa

    columns = {name: pa.array(table.columns[name], pa.string()) for name in TEXTS}
    columns |= {name: pa.array(table.columns[name], pa.int64()) for name in NUMBERS}
    columns |= {_GROUP + name: pa.array(values) for name, values in table.groups.items()}
    facts = {
        **table.facts,
        "format": FORMAT,
        "tar": table.tar.name,
        "tar_size": table.tar_size,
        "left_out": table.left_out,
        "contents": contents_crc(table),
        "samples": len(table),
    }
    written = pa.table(columns, metadata={_KEY: json.dumps(facts, sort_keys=True)})
    with parquet_writer(target, written.schema) as writer:
        writer.write_table(written)


def read_table(tar: Path, rows: bool = True, argument: str | None = "index") -> ShardTable | None:
    """The table beside a tar; None where there is none.

    Args:
        tar: the file.
        rows: False reads no samples, and gives an empty table with the size and the facts.
        argument: for which argument; None for the one that the border names.

    Returns:
        The table. Its facts include "samples", their number, and "checked", whether the table has checksums;
        those of version 0.1 have none.

    Raises:
        ValueError: it cannot be read, is damaged, or belongs to a tar of another name.
    """
    source = table_path(tar)
    if not source.is_file():
        return None
    import pyarrow as pa

    try:
        with opened_parquet(source) as (file, checked):
            samples = file.metadata.num_rows
            table = file.read() if rows else file.schema_arrow.empty_table()
        content = (table.schema.metadata or {})[_KEY.encode()]
        facts = JsonRecord(content, source, "facts", "")
        found = _typed(tar, facts, table, samples, checked)
        if rows:
            _refuse_damaged(found)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, MemoryError) as error:
        hint = "restore it, or write the shards again with overwrite=True or --overwrite; beside a tar of "
        hint += "another program delete it, and the tar is scanned instead "
        reason = str(error).partition("\n")[0]
        hint += f"({reason.partition(': expected ')[2] or reason})"
        raise Refusal(argument, str(source), "the index of a tar", hint) from error
    name = facts.string("tar", tar.name)
    if name != tar.name:  # nothing else tells tars of one size and the same keys apart
        hint = f"it is that of {name}; rename both, or delete it, and the tar is scanned instead"
        raise Refusal(argument, str(source), f"the index of {tar.name}", hint)
    return found


def _typed(tar: Path, facts: JsonRecord, table: Any, samples: int, checked: bool) -> ShardTable:
    """The table, with columns and facts of the right types.

    Raises:
        ValueError: a fact or a column of another type.
    """
    import pyarrow as pa

    if facts.integer("format") != FORMAT or facts.integer("samples", default=samples) != samples:
        raise ValueError(f"not a table of format {FORMAT} and {samples} rows")
    if "samples" in facts and not checked:
        raise ValueError("its checksum is missing")
    kinds = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(NUMBERS, pa.int64())}
    for name, kind in kinds.items():
        if table.schema.field(name).type != kind or table[name].null_count:
            raise ValueError(f"the column {name} is not of type {kind}")
    left_out = facts.items("left_out")
    if not _are_pairs(left_out, str):
        raise facts.wrong("left_out", "pairs of texts")
    groups = [name for name in table.column_names if name.startswith(_GROUP)]
    return ShardTable(
        tar=tar,
        tar_size=facts.integer("tar_size"),
        columns={name: _values(table[name]) for name in kinds},
        groups={name.removeprefix(_GROUP): _values(table[name]) for name in groups},
        left_out=tuple(LeftOut(*item) for item in left_out),
        facts={"samples": samples, "checked": checked, **_typed_facts(facts)},
    )


def _typed_facts(facts: JsonRecord) -> dict[str, Any]:
    """The facts of a table that are compared later, those that there are.

    Raises:
        ValueError: a fact of another type.
    """
    headers = facts.items("headers", [])
    if not _are_pairs(headers, int):
        raise facts.wrong("headers", "pairs of whole numbers")
    if any(at < 0 or at > facts.integer("tar_size") for at, _ in headers):
        raise facts.wrong("headers", "offsets in the tar")
    typed: dict[str, Any] = {"headers": headers}
    typed |= {name: facts.string(name) for name in ("plan", "label", "sha256") if name in facts}
    typed |= {name: facts.integer(name) for name in ("contents", "members", "mtime_ns") if name in facts}
    if "image" in facts:
        typed["image"] = None if facts.fields["image"] is None else facts.string("image")
    if "damaged" in facts:
        typed["damaged"] = bool(facts.fields["damaged"])
    return typed


def _are_pairs(items: list[Any], kind: type) -> bool:
    return all(isinstance(item, list) and list(map(type, item)) == [kind, kind] for item in items)


def _refuse_damaged(found: ShardTable) -> None:
    """Refuse a table whose keys or classes differ from their CRC, or whose samples lie outside of the tar.

    Raises:
        ValueError: the fact, for `read_table` to add the file.
    """
    contents = found.facts.get("contents")
    if contents is not None and contents != contents_crc(found):
        raise ValueError("its keys and classes do not fit their checksum")
    # Compared without a sum, which could overflow on damaged numbers.
    offset, size = found.columns["offset"], found.columns["size"]
    if not np.all((offset >= BLOCK) & (size >= 0) & (size <= LARGEST) & (offset <= found.tar_size - size)):
        raise ValueError("a sample lies outside the tar")
    keys = found.columns["key"].tolist()
    if found.ours and keys and not ("".join(keys).isdecimal() and set(map(len, keys)) <= set(range(1, 19))):
        raise ValueError("a key is no row number")


def contents_crc(table: ShardTable) -> int:
    """A CRC of the keys and classes of the samples, in order: the fact "contents" of a written table."""
    return keys_and_classes_crc(table.columns["key"].tolist(), table.columns["label"].tolist())


def keys_and_classes_crc(keys: list[str], classes: list[str]) -> int:
    """A CRC of the keys and classes of samples, in their order."""
    return zlib.crc32(json.dumps([keys, classes]).encode())


def sampled_headers(columns: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """(offset, CRC) of a few headers of images, evenly spread over a tar."""
    rows = np.unique(np.linspace(0, max(0, len(columns["offset"]) - 1), _SAMPLED, dtype=np.int64))
    rows = rows[: len(columns["offset"])]
    offsets, crcs = (columns["offset"][rows] - BLOCK).tolist(), columns["header_crc32"][rows].tolist()
    return list(zip(offsets, crcs, strict=True))


def changed(tar: Path, state: TarState, file: PositionalFile | None = None) -> Refusal | None:
    """The refusal of a tar that has changed; None where it has not.

    Args:
        tar: the file.
        state: what it was like.
        file: the open file; by default it is opened.

    Raises:
        ValueError: it cannot be opened.
    """
    difference = state.change(file or PositionalFile(tar, "a tar that can be read"))
    if difference is None:
        return None
    index = table_path(tar)
    hint, when = f"delete {index.name} to index the tar as it is", "indexed"
    if not index.is_file():
        hint, when = "open it anew", "opened"
    elif of_write_shards(tar):
        hint = "restore it, or write the shards again with overwrite=True or --overwrite"
    expected, found = difference
    return Refusal(None, str(tar), f"{expected} when it was {when}", f"{found}; {hint}")


def of_write_shards(tar: Path) -> bool:
    """Whether `write_shards` wrote a tar, by the table beside it."""
    try:
        table = read_table(tar, rows=False)
    except ValueError:  # whoever reads a damaged index refuses it
        return False
    return table is not None and table.ours


def _values(column: Any) -> np.ndarray:
    """A column as bools, floats, int64 or objects."""
    values = column.to_numpy()
    if values.dtype.kind in "bfu":
        return values
    return values.astype(np.int64 if values.dtype.kind == "i" else object, copy=False)
