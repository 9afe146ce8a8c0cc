"""From the bytes of a file to an upright RGB image, or a sentence that says why not."""

from __future__ import annotations

import os
import re
import stat
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tercet.core.checks import escaped
from tercet.data.io.image_headers import claimed_pixels

__all__ = ["MAX_BYTES", "MAX_PIXELS", "decode_image", "file_content", "read_image", "why_unreadable"]

MAX_PIXELS = 1 << 28
"""How many pixels an image may have unless told otherwise: 16384 × 16384, 805 MB of RGB."""
MAX_BYTES = 1 << 30
"""How many bytes of a file are read as an image."""

_WAY_OUT = "restore the file, or leave it out with tercet.scan_folder(root, verify=True)"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte, nor fill, nor a restart
_JPEG_END = b"\xff\xd9"
# The entry of the EXIF directory: tag 0x0112, of type short, one value; in either byte order.
_ORIENTATION = re.compile(
    rb"\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00"
    rb"|\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])"
)


def read_image(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, upright, as RGB.

    The format is told by the content, not by the suffix: JPEG, PNG, WebP, TIFF, BMP, GIF and whatever else
    the installed OpenCV decodes. The orientation in the EXIF data is applied. Grey, 1-bit, palette and CMYK
    images become RGB, 16 bits are scaled to 8, and transparent parts of a PNG or WebP lie on white; other
    formats show their colours without regard to alpha. Of several frames or pages the first is taken.

    Args:
        path: the file.
        max_pixels: how many pixels it may have. It is compared with the header, before the image is decoded.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the file cannot be read, is no regular file (a pipe or a device would not end), has more
            than 2³⁰ bytes or `max_pixels` pixels, is empty or cut short, or does not decode. Damage in the
            middle that the decoder bridges, as JPEG's does, is not noticed.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("grey.pgm").write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> read_image("grey.pgm").tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    try:
        return _decoded(file_content(path), max_pixels)
    except ValueError as error:
        hint = _WAY_OUT if os.path.exists(path) else "is the root of the catalog the right folder?"
        raise ValueError(f"read_image: {escaped(Path(path))}: {error}; {hint}") from None


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """The image in the content of a file, as `read_image` gives it.

    Args:
        data: the whole content.
        name: where it comes from, for the error.
        max_pixels: how many pixels it may have.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the content is empty, cut short, damaged, too large, or no image.

    Example:
        >>> decode_image(b"P5 2 1 255 " + bytes([0, 255]), "shard-0.tar/grey.pgm").shape
        (1, 2, 3)
    """
    try:
        return _decoded(data, max_pixels)
    except ValueError as error:
        raise ValueError(f"decode_image: {escaped(name)}: {error}") from None


def why_unreadable(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why `read_image` refuses a file, in a phrase; None where it does not.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("hollow.jpg").write_bytes(b"")
        >>> why_unreadable("hollow.jpg")
        'the file is empty'
    """
    try:
        _decoded(file_content(path), max_pixels)
    except ValueError as error:
        return str(error)
    return None


def file_content(path: str | PathLike[str]) -> bytes:
    """What is in a file, if it may be an image.

    Args:
        path: the file.

    Raises:
        ValueError: why not, in a phrase: it cannot be read, is no regular file, or has more than 2³⁰ bytes.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("one.pgm").write_bytes(b"P5 1 1 255 a")
        >>> file_content("one.pgm")
        b'P5 1 1 255 a'
    """
    try:
        # Not waiting: of a pipe, the opening alone would wait for one who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            told = os.fstat(descriptor)
            if not stat.S_ISREG(told.st_mode):
                raise ValueError("it is not a regular file")
            if told.st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except UnicodeEncodeError:
        raise ValueError("the file cannot be read: its name is no text that the system takes") from None


def _decoded(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image; what stands in its way is the text of the ValueError."""
    import cv2

    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_JPEG) and not _jpeg_has_end(data):
        # Older OpenCV fills the missing part with grey and says nothing.
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
    if image.shape[0] * image.shape[1] > max_pixels:  # of a format whose header we do not know
        raise ValueError(f"it has more than max_pixels={max_pixels} pixels")
    if transparent:  # read unchanged, so OpenCV has not turned it
        image = _upright(_on_white(image), _orientation(data))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_has_end(data: bytes) -> bool:
    """Whether the image ends, by walking its markers; that of an embedded thumbnail does not count."""
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
    if image.ndim == 2:  # a grey PNG's one transparent value, which OpenCV ignores
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
    """The image turned and mirrored as an EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
