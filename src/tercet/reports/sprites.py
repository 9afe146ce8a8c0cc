"""Thumbnails of images, put together into sheets, so that a page carries a few pictures and not thousands."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from tercet.core.checks import escaped

__all__ = ["COLUMNS", "Sprites", "sprites", "thumbnail"]

COLUMNS = 16
"""Cells of a row, and rows of a sheet."""
_THREADS = 4


class Sprites(NamedTuple):
    """Sheets of thumbnails, and where each image is.

    Args:
        sheets: `data:` addresses of WebP pictures with transparent edges.
        cell: int64 [n], the cell of each image: 256 a sheet, by rows; −1 for an image without one.
        failed: (row, why) of each image that does not decode.
    """

    sheets: Sequence[str]
    cell: Int64[np.ndarray, " n"]
    failed: Sequence[tuple[int, str]]


def thumbnail(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 4"]:
    """An image in the middle of a square with transparent edges; pixels of a small one stay sharp.

    Args:
        image: RGB.
        size: pixels of the square.

    Example:
        >>> small = thumbnail(np.full((4, 8, 3), 7, np.uint8), 16)
        >>> small.shape, small[8, 8].tolist(), small[0, 0].tolist()
        ((16, 16, 4), [7, 7, 7, 255], [0, 0, 0, 0])
    """
    import cv2

    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = cv2.resize(image, shape, interpolation=how)
    square = np.zeros((size, size, 4), dtype=np.uint8)
    top, left = (size - shape[1]) // 2, (size - shape[0]) // 2
    square[top : top + shape[1], left : left + shape[0], :3] = small
    square[top : top + shape[1], left : left + shape[0], 3] = 255
    return square


def sprites(rows: Int64[np.ndarray, " m"], n: int, read: Callable[[int], np.ndarray], size: int) -> Sprites:
    """Sheets with thumbnails of some images of a collection.

    Args:
        rows: which images, each once.
        n: images of the collection.
        read: gives the image of a row, RGB.
        size: pixels of a cell.
    """
    import cv2

    def cell_of(row: int) -> np.ndarray | str:
        try:
            return thumbnail(read(row), size)
        except (ValueError, OSError) as error:
            return escaped(error)

    place, failed, sheets = np.full(n, -1), [], []
    sheet, used = np.zeros((0, 0, 4), dtype=np.uint8), 0
    per_sheet = COLUMNS * COLUMNS

    def close() -> None:
        filled = -(-(used % per_sheet or per_sheet) // COLUMNS) * size
        whole = np.zeros_like(sheet)
        whole[:filled] = sheet[:filled]
        bgra = cv2.cvtColor(whole, cv2.COLOR_RGBA2BGRA)
        content = cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
        sheets.append("data:image/webp;base64," + base64.b64encode(content).decode())

    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(rows), per_sheet):
            part = rows[first : first + per_sheet].tolist()
            for row, cell in zip(part, pool.map(cell_of, part), strict=True):
                if isinstance(cell, str):
                    failed.append((row, cell))
                    continue
                if used % per_sheet == 0:
                    sheet = np.zeros((COLUMNS * size, COLUMNS * size, 4), dtype=np.uint8)
                top, left = (side * size for side in divmod(used % per_sheet, COLUMNS))
                sheet[top : top + size, left : left + size] = cell
                place[row] = used
                used += 1
                if used % per_sheet == 0:
                    close()
    if used % per_sheet:
        close()
    return Sprites(sheets, place, failed)
