"""The members of a tar, read from its headers within bounds, and how they are grouped into samples."""

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
_TAIL = 1 << 22  # bytes after the end in which further members are looked for
_ZEROS = bytes(BLOCK)
_WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes: no bytes follow, whatever their size says
_PLAIN = b"\x0007"
_PAX_FOR_ONE, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = b"xX", b"g", b"L", b"K", b"S"
_EXTENSIONS = _PAX_FOR_ONE + _PAX_FOR_ALL + _LONG_NAME + _LONG_LINK
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_CRCS = struct.Struct(">II")
_META = re.compile(r"__[^/]*__($|/)")

Read = Callable[[int, int], "bytes | memoryview"]
Content = TypeVar("Content")


class DamagedTar(Exception):
    """A tar breaks off.

    Args:
        reason: a short fact.
        at: the offset of the header where it breaks off; 0 where it is no tar at all.
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

    No header is trusted: names, sizes of headers and sizes of members have bounds, and no content is read for
    a header that claims more.

    Args:
        read: a function of (start, length) that gives up to `length` bytes; fewer where the tar ends.
        size: bytes of the tar; None where only its end shows it.

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
    at = 0
    extended: dict[str, bytes] = {}  # facts of extension headers, for the member that follows them
    while (header := bytes(read(at, BLOCK))) != _ZEROS:
        kind = _checked(header, at)
        length, offset = _number(header[124:136], at), at + BLOCK
        if kind in _EXTENSIONS:
            extended = _extension(read, kind, offset, length, at) | extended
            at = offset + _padded(length)
            continue
        name = _name(header, kind, extended, at)
        if "size" in extended:
            length = _number(extended["size"], at, base=10)
        sort = _sort(kind, name, extended)
        if sort == "folder" or kind in _WITHOUT_CONTENT:
            length = 0
        if size is not None and offset + length > size:
            raise DamagedTar(f"a member claims {length:,} bytes, more than there are", at)
        more_headers = _sparse_blocks(read, offset, header) if kind == _SPARSE else 0
        yield Member(name.rstrip("/") if sort == "folder" else name, sort, header, offset, length)
        at, extended = offset + more_headers + _padded(length), {}
    if extended:
        raise DamagedTar("it ends after a header without a member", at)
    _refuse_more(read, at)


def _extension(read: Read, kind: bytes, offset: int, length: int, at: int) -> dict[str, bytes]:
    """What an extension header says of the member after it: "path", "size", "sparse" or "other".

    Args:
        read: as for `members`.
        kind: its type flag.
        offset: of its content.
        length: of its content.
        at: the offset of the header.
    """
    if length > _HEADER:
        raise DamagedTar(f"a header claims {length:,} bytes", at)
    content = bytes(read(offset, length))
    if len(content) < length:
        raise DamagedTar("it ends in a header", at)
    if kind == _LONG_NAME:
        return {"path": content.partition(b"\0")[0]}
    if kind == _LONG_LINK:  # the target of a link, which is no sample
        return {}
    records = _pax_records(content, at)
    if kind in _PAX_FOR_ONE:
        return records
    if {"path", "size"} & records.keys():
        raise DamagedTar("one name or size is given for all members", at)
    return {}


def _sort(kind: bytes, name: str, extended: dict[str, bytes]) -> str:
    """ "plain", "folder" or "other", as in `Member`."""
    if "sparse" in extended:
        return "other"
    if kind == b"5" or (kind == b"\0" and name.endswith("/")):  # the latter is a folder in the format of 1979
        return "folder"
    return "plain" if kind in _PLAIN else "other"


def _padded(length: int) -> int:
    return length + -length % BLOCK


def _checked(header: bytes, at: int) -> bytes:
    """The type flag of a header, refused where its checksum is wrong."""
    if len(header) < BLOCK:
        raise DamagedTar("it ends within a header" if header else "it ends without a header", at)
    stated = _number(header[148:156], at)
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stated != found:  # some old programs sum signed bytes
        signed = found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if stated != signed:
            raise DamagedTar("a header is broken", at)
    return header[156:157]


def _number(field: bytes, at: int, base: int = 8) -> int:
    """The number in a field: octal digits, or base 256 after a byte of 128; with `base=10` decimal digits."""
    if base == 8 and field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip() or b"0"
    if not (digits.isdigit() and len(digits) <= 20) or (base == 8 and set(digits) & set(b"89")):
        raise DamagedTar("a header is broken", at)
    return int(digits, base)


def _name(header: bytes, kind: bytes, extended: dict[str, bytes], at: int) -> str:
    """The name of a member, from the extension headers before it or from its own header."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if prefix and kind != _SPARSE:
        name = prefix + b"/" + name
    name = extended.get("path", name)
    if len(name) > _NAME:
        raise DamagedTar(f"the name of a member has {len(name):,} bytes", at)
    return name.decode(errors="surrogateescape")


def _pax_records(content: bytes, at: int) -> dict[str, bytes]:
    """The records "length key=value" of a pax header that matter here: path and size.

    All others are kept as one of each kind, "sparse" and "other": a chain of headers may have millions.
    """
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
    """The length of the further headers of a sparse file of GNU tar, in bytes."""
    length, more = 0, header[482]
    while more:
        block = bytes(read(offset + length, BLOCK))
        if len(block) < BLOCK:
            raise DamagedTar("it ends in a header", offset)
        length, more = length + BLOCK, block[504]
    return length


def _refuse_more(read: Read, at: int) -> None:
    """Refuse members after the end: a header that damage turned into zeros looks like the end."""
    for start in range(at, at + _TAIL, 1 << 16):
        chunk = bytes(read(start, 1 << 16))
        if chunk.strip(b"\0"):
            raise DamagedTar("more follows behind its end", at)
        if len(chunk) < 1 << 16:
            return


def why_no_sample(member: Member) -> str:
    """Why a member belongs to no sample; "" where it belongs to one."""
    if _META.match(member.name):
        return "webdataset's own metadata"
    if member.kind != "plain":
        return "not a plain file"
    return "" if sample_name(member.name) else "name without an extension"


def sample_name(name: str) -> tuple[str, str] | None:
    """The key and the extension of a member's name, by webdataset's rule; None where there is no dot.

    The key ends at the first dot of the file name, without the folders.

    Example:
        >>> sample_name("a.b/c.seg.PNG"), sample_name("README")
        (('a.b/c', 'seg.PNG'), None)
    """
    last = name.rfind("/") + 1
    dot = name.find(".", last)
    if dot < 0 or not name[:dot]:
        return None
    if dot == last and "." in name[name.rfind("/", 0, last - 1) + 1 : last]:
        return None  # as of "a.b/.jpg"; the key of "a/.jpg" is "a/"
    return name[:dot], name[dot + 1 :]


def grouped(named: Iterable[tuple[str, str, Content]]) -> Iterator[tuple[str, dict[str, Content]]]:
    """Runs of members with one key, as webdataset groups them into samples.

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
    """The CRC of some members and one more.

    Args:
        crc: of the members before, 0 where there are none.
        header_crc: of the header of the next one.
        content_crc: of its content.

    Example:
        >>> with_member(with_member(0, 1, 2), 3, 4) == with_member(with_member(0, 3, 4), 1, 2)
        False
    """
    return zlib.crc32(_CRCS.pack(header_crc, content_crc), crc)
