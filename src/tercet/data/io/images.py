"""Image files as upright RGB arrays, or an error that says why not; and the size an image header claims."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tercet.core.checks import escaped

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "claimed_pixels",
    "decode_image",
    "decoded",
    "file_content",
    "read_image",
    "why_unreadable",
]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""The file name suffixes of images for `scan_folder`, in lower case."""
MAX_PIXELS = 1 << 28
"""The most pixels of an image by default: 16384 × 16384, 805 MB of RGB."""
MAX_BYTES = 1 << 30
"""The most bytes of an image file."""

_WAY_OUT = "restore the file, or leave it out with tercet.scan_folder(root, verify=True)"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # but no stuffed byte, fill byte or restart marker
_JPEG_END = b"\xff\xd9"
# The orientation in an EXIF directory: tag 0x0112, type short, one value; in either byte order.
_ORIENTATION = re.compile(
    rb"\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00"
    rb"|\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])"
)
_SEARCHED = 1 << 16  # bytes at the start of a file that are searched for a text header
# A marker with a length: no stuffed byte, fill byte, or marker without one.
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNM_SIZE = re.compile(rb"\AP[1-6Ff](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)")
_PAM_SIZE = re.compile(rb"(?:^|\r)[^\S\r\n]*(WIDTH|HEIGHT)\s+(\d+)", re.MULTILINE)
_RADIANCE_SIZE = re.compile(rb"^[-+][XY] +(\d+) +[-+][XY] +(\d+)", re.MULTILINE)
_MOST_PARTS = 1 << 16  # segments of a JPEG before its frame, or sizes in an AVIF; no program writes as many
_LARGEST = 1 << 16, 1 << 16  # the size assumed for a file with more
_TIFF_SIZES = ((256, 257), (322, 323))  # tags of width and height: of the image, of a tile
_TIFF_ENTRIES = 4096  # libtiff reads no more
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def read_image(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, upright, as RGB.

    The format is recognised by the content, not by the suffix: JPEG, PNG, WebP, TIFF, BMP, GIF and the others
    that the installed OpenCV decodes. The EXIF orientation is applied. Grey, 1-bit, palette and CMYK images
    become RGB, 16 bits are scaled to 8, and a transparent PNG or WebP is blended onto white; in other formats
    alpha is ignored. Of several frames or pages the first is taken.

    Args:
        path: the file.
        max_pixels: the most pixels it may have, compared with its header before it is decoded.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the file cannot be read, is not a regular file (a pipe or a device has no end), has more
            than 2³⁰ bytes or `max_pixels` pixels, is empty or cut short, or does not decode. Damage that the
            decoder skips, as JPEG decoders do, is not noticed.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("grey.pgm").write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> read_image("grey.pgm").tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    try:
        return decoded(file_content(path), max_pixels)
    except ValueError as error:
        hint = _WAY_OUT if os.path.exists(path) else "is the root of the catalog the right folder?"
        raise ValueError(f"read_image: {escaped(Path(path))}: {error}; {hint}") from None


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The image in the content of a file, decoded as by `read_image`: upright RGB.

    Args:
        data: the content of the file.
        name: where it comes from, for messages.
        max_pixels: the most pixels it may have, compared with its header before it is decoded.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the content is empty, cut short, damaged, too large, or no image.

    Example:
        >>> decode_image(b"P5 2 1 255 " + bytes([0, 255]), "shard-0.tar/grey.pgm").shape
        (1, 2, 3)
    """
    try:
        return decoded(data, max_pixels)
    except ValueError as error:
        raise ValueError(f"decode_image: {escaped(name)}: {error}") from None


def why_unreadable(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why `read_image` refuses a file, as a phrase; None where the image decodes.

    Args:
        path: the file.
        max_pixels: the most pixels it may have.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("hollow.jpg").write_bytes(b"")
        >>> why_unreadable("hollow.jpg")
        'the file is empty'
    """
    try:
        decoded(file_content(path), max_pixels)
    except ValueError as error:
        return str(error)
    return None


def file_content(path: str | PathLike[str]) -> bytes:
    """The content of a file, refused where it cannot be an image.

    Args:
        path: the file.

    Raises:
        ValueError: it cannot be read, is not a regular file, or has over 2³⁰ bytes; the text is a phrase.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("one.pgm").write_bytes(b"P5 1 1 255 a")
        >>> file_content("one.pgm")
        b'P5 1 1 255 a'
    """
    try:
        # O_NONBLOCK: opening a pipe would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except UnicodeEncodeError:
        raise ValueError("the file cannot be read: its name is no text that the system takes") from None


def decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The image in the content of a file, as `decode_image` gives it, for callers that keep the reason.

    Args:
        data: the content of the file.
        max_pixels: the most pixels it may have.

    Raises:
        ValueError: there is none; the text is a phrase that says why.

    Example:
        >>> decoded(b"P5 2 1 255 " + bytes([0, 255])).shape
        (1, 2, 3)
    """
    import cv2

    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_JPEG) and not _jpeg_has_end(data):
        # Older OpenCV silently fills the missing part with grey.
        raise ValueError("the JPEG is cut short")
    if data[4:8] == b"ftyp" and re.search(b"irot|imir", data.partition(b"mdat")[0]):
        raise ValueError("the AVIF image is turned or mirrored by a property that OpenCV ignores")
    if (claimed_pixels(data) or 0) > max_pixels:
        raise ValueError(f"it has more than max_pixels={max_pixels} pixels")
    transparent = _may_be_transparent(data)
    try:
        flags = cv2.IMREAD_UNCHANGED if transparent else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("OpenCV does not decode it: cut short, damaged, or no image of 8 or 16 bits")
    if image.shape[0] * image.shape[1] > max_pixels:  # a format whose header `claimed_pixels` does not know
        raise ValueError(f"it has more than max_pixels={max_pixels} pixels")
    if transparent:  # IMREAD_UNCHANGED, so OpenCV has not applied the orientation
        image = _upright(_on_white(image), _orientation(data))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_has_end(data: bytes) -> bool:
    """Whether the JPEG has an end marker of its own, besides those of embedded thumbnails."""
    if data.endswith(_JPEG_END):
        return True
    at = len(_JPEG)
    while found := _JPEG_MARKER.search(data, at):
        if found[0] == _JPEG_END:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def _may_be_transparent(data: bytes) -> bool:
    """Whether the header of a PNG or WebP announces transparency."""
    if len(data) < 26:
        return False
    if data.startswith(_PNG):
        return data[25] in (4, 6) or b"tRNS" in data.partition(b"IDAT")[0]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        extended, lossless = data[12:16] == b"VP8X", data[12:16] == b"VP8L"
        return (extended and bool(data[20] & 0x10)) or (lossless and bool(data[24] & 0x10))
    return False


def _on_white(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """α · image + (1 − α) · white, of an image of 1, 3 or 4 channels of 8 or 16 bits."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:  # a grey PNG with one transparent value, which OpenCV ignores
        image = image[..., None].repeat(3, axis=2)
    colour, alpha = image[..., :3], image[..., 3:].astype(np.uint16)  # [h, w, 3], [h, w, 0 or 1]
    if not alpha.size:
        return colour
    return ((alpha * colour + (255 - alpha) * 255 + 127) // 255).astype(np.uint8)


def _orientation(data: bytes) -> int:
    """The orientation, 1 to 8, in the EXIF data of a PNG or WebP; 1 where it says nothing."""
    start = data.find(b"eXIf" if data.startswith(_PNG) else b"EXIF")
    entry = _ORIENTATION.search(data, start, start + 65536) if start > 0 else None
    return (entry[1] or entry[2])[0] if entry else 1


def _upright(image: UInt8[np.ndarray, "_ _ 3"], orientation: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image rotated and mirrored by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def claimed_pixels(data: bytes) -> int | None:
    """The number of pixels that the header of an image claims: a file of 1 MB can unpack to gigabytes.

    Args:
        data: the content of a file.

    Returns:
        Width times height, the largest where there are several; None where the format is unknown or the
        header is cut short or damaged. In these cases the decoder fails too, or has a limit of its own.

    Example:
        >>> claimed_pixels(b"P5 30000 20000 255 ")
        600000000
    """
    try:
        return max((abs(width * height) for width, height in _sizes(data)), default=None)
    except (struct.error, ValueError):  # cut short
        return None


def _sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Each (width, height) in the header."""
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
    """The size in the first frame header, which precedes the first scan; decoders refuse a second one."""
    at = 2
    for _ in range(_MOST_PARTS):
        found = _JPEG_SEGMENT.search(data, at)
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
