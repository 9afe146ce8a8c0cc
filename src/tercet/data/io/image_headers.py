"""How many pixels an image claims to have, from its header alone: a file of 1 MB can unpack to gigabytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

__all__ = ["claimed_pixels"]

_SEARCHED = 1 << 16  # bytes at the start of a file, where a header of text stands
# Neither a stuffed byte, nor fill, nor one of the markers without a length.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNM_SIZE = re.compile(rb"\AP[1-6Ff](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)")
_PAM_SIZE = re.compile(rb"(?:^|\r)[^\S\r\n]*(WIDTH|HEIGHT)\s+(\d+)", re.MULTILINE)
_RADIANCE_SIZE = re.compile(rb"^[-+][XY] +(\d+) +[-+][XY] +(\d+)", re.MULTILINE)
_MOST_PARTS = 1 << 16  # of a JPEG before its frame, or sizes in an AVIF: no program writes as many
_LARGEST = 1 << 16, 1 << 16  # what a file with more is taken to claim
_TIFF_SIZES = ((256, 257), (322, 323))  # width and height of the image, and of a tile
_TIFF_ENTRIES = 4096  # libtiff reads no more
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def claimed_pixels(data: bytes) -> int | None:
    """How many pixels the header of an image claims, whatever is in it.

    Args:
        data: the whole content of a file.

    Returns:
        Width times height; the largest where a file claims several. None where the format is not known or the
        header is cut short or damaged: a decoder does not get further either, or has a limit of its own.

    Example:
        >>> claimed_pixels(b"P5 30000 20000 255 ")
        600000000
    """
    try:
        return max((abs(width * height) for width, height in _sizes(data)), default=None)
    except (struct.error, ValueError):  # cut short
        return None


def _sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) wherever the header speaks of them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        yield struct.unpack_from(">II", data, 16)
    elif data.startswith(b"\xff\xd8"):
        yield from _jpeg_sizes(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        yield struct.unpack_from("<HH", data, 6)
    elif data.startswith(b"BM"):
        of_os2 = struct.unpack_from("<I", data, 14)[0] == 12
        yield struct.unpack_from("<HH" if of_os2 else "<ii", data, 18)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        yield _webp_size(data)
    elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        yield from _tiff_sizes(data)
    elif data.startswith(b"P7"):
        found = _PAM_SIZE.findall(data[:_SEARCHED])
        widths, heights = ([int(n[:20]) for name, n in found if name == of] for of in (b"WIDTH", b"HEIGHT"))
        yield max(widths), max(heights)
    elif data.startswith((b"P", b"#?R")):
        pattern = _PNM_SIZE if data.startswith(b"P") else _RADIANCE_SIZE
        for width, height in pattern.findall(data[:_SEARCHED]):
            yield int(width[:20]), int(height[:20])
    elif data.startswith(b"\x59\xa6\x6a\x95"):  # Sun raster
        yield struct.unpack_from(">II", data, 4)
    elif data[4:8] == b"ftyp":  # AVIF: a size for each item, and the image is one of them
        for number, found in enumerate(re.finditer(rb"ispe\0\0\0\0", data)):
            if number == _MOST_PARTS:
                yield _LARGEST
                return
            yield struct.unpack_from(">II", data, found.end())
    elif data[4:8] == b"jP  " or data.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: that of the codestream
        yield struct.unpack_from(">II", data, data.index(b"\xff\x4f\xff\x51") + 8)


def _jpeg_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The size in the first frame header, which stands before the first scan; decoders refuse a second."""
    at = 2
    for _ in range(_MOST_PARTS):
        found = _JPEG_MARKER.search(data, at)
        if not found:
            return
        marker = found[1][0]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, found.end() + 3)
            yield width, height
            return
        at = found.end() + struct.unpack_from(">H", data, found.end())[0]
    yield _LARGEST


def _webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))  # type: ignore[return-value]
    if data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The sizes in the first directory: of the image, and of a tile, which takes memory as well."""
    order, big = "<" if data.startswith(b"II") else ">", b"+" in data[2:4]
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    entry, value = (20, 12) if big else (12, 8)
    first, known = start + (8 if big else 2), {}
    for at in range(first, first + entry * min(count, _TIFF_ENTRIES), entry):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if kind in _TIFF_TYPES:
            found = struct.unpack_from(order + _TIFF_TYPES[kind], data, at + value)[0]
            known[tag] = max(found, known.get(tag, 0))
    for width, height in _TIFF_SIZES:
        if width in known and height in known:
            yield known[width], known[height]
