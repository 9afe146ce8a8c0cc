"""A table for Embedding Atlas: places, thumbnails and neighbours of each image."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tercet.data.io.tables import write_columns
from tercet.reports.analysis import Analysis
from tercet.reports.sprites import thumbnail

__all__ = ["write_atlas"]


def write_atlas(
    target: Path,
    found: Analysis,
    data: dict[str, Any],
    catalog: Any,
    read: Callable[[int], np.ndarray],
    size: int,
    overwrite: bool,
) -> None:
    """Write a Parquet table with id, x, y, image, path, class and neighbors.

    An image is {bytes, path}, a PNG thumbnail, null where it does not decode; neighbors are {ids, distances}.

    Args:
        target: a path that `fresh_target` has returned.
        found: the collection.
        data: of the page: its map and names of classes.
        catalog: the images.
        read: gives the image of a row, RGB.
        size: pixels of a thumbnail.
        overwrite: replace an existing table.
    """
    import cv2

    def picture(row: int) -> dict[str, Any] | None:
        try:
            small = thumbnail(read(row), size)
        except (ValueError, OSError):
            return None
        content = cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGBA2BGRA))[1].tobytes()
        return {"bytes": content, "path": catalog.paths[row]}

    n = len(catalog)
    places = np.zeros((n, 2))
    if data["map"] is not None:
        places = np.frombuffer(base64.b64decode(data["map"]["places"]), "<u2").reshape(n, 2) / 65535
    neighbors = [
        {"ids": rows[rows >= 0].tolist(), "distances": lengths[rows >= 0].tolist()}
        for rows, lengths in zip(found.graph.rows, found.graph.lengths, strict=True)
    ]
    columns = {
        "id": np.arange(n),
        "x": np.where(found.usable, places[:, 0], np.nan),
        "y": np.where(found.usable, 1 - places[:, 1], np.nan),  # upwards there, downwards in pixels
        "image": [picture(row) for row in range(n)],
        "path": catalog.paths.tolist(),
        "class": [data["classes"][code] for code in found.codes.tolist()],
        "neighbors": neighbors,
    }
    write_columns(columns, target, overwrite)
