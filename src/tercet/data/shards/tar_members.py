"""The members of a tar, read from its headers within bounds, and the samples that they make."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

__all__ = [
    "BLOCK",
    "LARGEST",
    "DamagedTar",
    "Member",
    "MemberTwice",
    "grouped",
    "members",
    "sample_name",
    "why_no_sample",
    "with_member",
]

BLOCK = 512  # bytes: every header, and the unit that contents are padded to
LARGEST = 1 << 30  # bytes of a member that is read into memory
_HEADER = 1 << 20  # bytes of a long name or a pax header
_NAME = 1 << 16  # characters of a name
_TAIL = 1 << 22  # bytes after the end that are looked at
_ZEROS = bytes(BLOCK)
_WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes: their size counts no bytes
_PLAIN = b"\x0007"
_PAX_FOR_ONE, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = b"xX", b"g", b"L", b"K", b"S"
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_CRCS = struct.Struct(">II")
_META = re.compile(r"__[^/]*__($|/)")

Read = Callable[[int, int], "bytes | memoryview"]
Content = TypeVar("Content")


class DamagedTar(Exception):
    """A tar breaks off.

    Args:
        reason: a short fact.
        at: the offset of the header in question; at 0 it is no tar at all.
    """

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


class MemberTwice(Exception):
    """A sample has two members of one extension; the argument is the name of the second."""


class Member(NamedTuple):
    """One member.

    Args:
        name: with slashes; bytes that are no UTF-8 are surrogates.
        kind: "plain", "folder" or "other": a link, a device, a sparse file.
        header: the 512 bytes before the content.
        offset: of the content.
        size: bytes of the content.
    """

    name: str
    kind: str
    header: bytes
    offset: int
    size: int


def members(read: Read, size: int | None = None) -> Iterator[Member]:
    """The members of an uncompressed tar, in its order. Long names of GNU tar and of pax are understood.

    A header is trusted with nothing: names, header sizes and member sizes have bounds, and no content is read
    for a header that lies.

    Args:
        read: (start, length) → up to so many bytes from there; fewer where the tar ends.
        size: bytes of the tar; None where that shows only at its end.

    Raises:
        DamagedTar: it is cut short, a header is broken or out of bounds, or members follow its end.

    Example:
        >>> import io, tarfile
        >>> file = io.BytesIO()
        >>> with tarfile.open(fileobj=file, mode="w") as tar:
        ...     tar.addfile(tarfile.TarInfo("a.jpg"))
        >>> content = file.getvalue()
        >>> [(member.name, member.offset) for member in members(lambda at, n: content[at : at + n])]
        [('a.jpg', 512)]
    """
    at, told = 0, {}
    while (header := bytes(read(at, BLOCK))) != _ZEROS:
        kind = _checked(header, at)
        length, offset = _number(header[124:136], at), at + BLOCK
        if kind in _PAX_FOR_ONE + _PAX_FOR_ALL + _LONG_NAME + _LONG_LINK:
            if length > _HEADER:
                raise DamagedTar(f"a header claims {length:,} bytes", at)
            content = bytes(read(offset, length))
            if len(content) < length:
                raise DamagedTar("it ends in a header", at)
            if kind in _PAX_FOR_ONE + _PAX_FOR_ALL:
                records = _pax_records(content, at)
                if kind == _PAX_FOR_ALL and {"path", "size"} & records.keys():
                    raise DamagedTar("one name or size is given for all members", at)
                told = told if kind == _PAX_FOR_ALL else records | told
            elif kind == _LONG_NAME:
                told = {"path": content.partition(b"\0")[0]} | told
            at = offset + _padded(length)
            continue
        name = _name(header, kind, told, at)
        if "size" in told:
            length = _number(told["size"], at, base=10)
        sort = "plain" if kind in _PLAIN else "folder" if kind == b"5" else "other"
        if kind == b"\0" and name.endswith("/"):  # how tars of 1979 have folders
            sort = "folder"
        if "sparse" in told:
            sort = "other"
        if sort == "folder" or kind in _WITHOUT_CONTENT:
            length = 0
        if size is not None and offset + length > size:
            raise DamagedTar(f"a member claims {length:,} bytes, more than there are", at)
        extended = _sparse_blocks(read, offset, header) if kind == _SPARSE else 0
        yield Member(name.rstrip("/") if sort == "folder" else name, sort, header, offset, length)
        at, told = offset + extended + _padded(length), {}
    if told:
        raise DamagedTar("it ends after a header without a member", at)
    _refuse_more(read, at)


def _padded(length: int) -> int:
    return length + -length % BLOCK


def _checked(header: bytes, at: int) -> bytes:
    """The kind of member of a header whose sum is right."""
    if len(header) < BLOCK:
        raise DamagedTar("it ends within a header" if header else "it ends without a header", at)
    stated = _number(header[148:156], at)
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stated != found:  # some programs of old added signed bytes
        signed = found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if stated != signed:
            raise DamagedTar("a header is broken", at)
    return header[156:157]


def _number(field: bytes, at: int, base: int = 8) -> int:
    """The number in a field: octal digits, or 256-adic ones after a byte of 128, or decimal ones of pax."""
    if base == 8 and field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip() or b"0"
    if not (digits.isdigit() and len(digits) <= 20) or (base == 8 and set(digits) & set(b"89")):
        raise DamagedTar("a header is broken", at)
    return int(digits, base)


def _name(header: bytes, kind: bytes, told: dict[str, bytes], at: int) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if prefix and kind != _SPARSE:
        name = prefix + b"/" + name
    name = told.get("path", name)
    if len(name) > _NAME:
        raise DamagedTar(f"the name of a member has {len(name):,} bytes", at)
    return name.decode(errors="surrogateescape")


def _pax_records(content: bytes, at: int) -> dict[str, bytes]:
    """The records "length key=value" of a pax header that count here, path and size; others as one of each
    kind, "sparse" and "other", for a chain of headers may have millions."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        found = _PAX_LENGTH.match(content, start)
        end = start + int(found[1]) if found else 0
        key, sign, value = content[found.end() if found else 0 : end].partition(b"=")
        if not (sign and value.endswith(b"\n")) or end > len(content):
            raise DamagedTar("a pax header is broken", at)
        kind = "sparse" if key.startswith(b"GNU.sparse.") else "other"
        records[key.decode() if key in (b"path", b"size") else kind] = value[:-1]
        start = end
    return records


def _sparse_blocks(read: Read, offset: int, header: bytes) -> int:
    """Bytes of the further headers of a sparse file of GNU tar."""
    length, more = 0, header[482]
    while more:
        block = bytes(read(offset + length, BLOCK))
        if len(block) < BLOCK:
            raise DamagedTar("it ends in a header", offset)
        length, more = length + BLOCK, block[504]
    return length


def _refuse_more(read: Read, at: int) -> None:
    """Refuse members behind the end: a header of zeros, which damage may make, looks like one."""
    for start in range(at, at + _TAIL, 1 << 16):
        chunk = bytes(read(start, 1 << 16))
        if chunk.strip(b"\0"):
            raise DamagedTar("more follows behind its end", at)
        if len(chunk) < 1 << 16:
            return


def why_no_sample(member: Member) -> str:
    """Why a member is part of no sample; empty where it is part of one."""
    if _META.match(member.name):
        return "webdataset's own metadata"
    if member.kind != "plain":
        return "not a plain file"
    return "" if sample_name(member.name) else "name without an extension"


def sample_name(name: str) -> tuple[str, str] | None:
    """The key and the extension of a member's name, by webdataset's rule: the key ends at the first dot of
    the file name. None where there is no such dot.

    Example:
        >>> sample_name("a.b/c.seg.PNG"), sample_name("README")
        (('a.b/c', 'seg.PNG'), None)
    """
    last = name.rfind("/") + 1
    dot = name.find(".", last)
    if dot < 0 or not name[:dot]:
        return None
    if dot == last and "." in name[name.rfind("/", 0, last - 1) + 1 : last]:
        return None  # of "a.b/.jpg"; of "a/.jpg" the key is "a/"
    return name[:dot], name[dot + 1 :]


def grouped(named: Iterable[tuple[str, str, Content]]) -> Iterator[tuple[str, dict[str, Content]]]:
    """The runs of members with one key, as webdataset groups them into samples.

    Args:
        named: key, extension and content of each member, in the order of the tar.

    Yields:
        A key, and its contents by extension in lower case.

    Raises:
        MemberTwice: a run has an extension twice.
    """
    current, parts = None, {}
    for key, extension, content in named:
        if key != current:
            if parts:
                yield current or "", parts
            current, parts = key, {}
        if extension.lower() in parts:
            raise MemberTwice(f"{key}.{extension}")
        parts[extension.lower()] = content
    if parts:
        yield current or "", parts


def with_member(crc: int, header_crc: int, content_crc: int) -> int:
    """The CRC of some members and one more, of which the CRCs of header and content are known.

    Example:
        >>> with_member(with_member(0, 1, 2), 3, 4) == with_member(with_member(0, 3, 4), 1, 2)
        False
    """
    return zlib.crc32(_CRCS.pack(header_crc, content_crc), crc)
