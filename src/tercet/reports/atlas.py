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
    """Write a Parquet table with row, x, y, image, path, class and neighbors.

    An image is {bytes, path}, a PNG thumbnail, null where it does not decode; neighbors are {ids, distances},
    ids being rows of this table. Embedding Atlas asks for as many neighbours in every row, so images without
    an embedding are left out; `row` is that of the catalog.

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

    n, kept = len(catalog), np.flatnonzero(found.usable)
    number = np.full(n + 1, -1)  # the last: no neighbour
    number[kept] = np.arange(len(kept))
    places = np.zeros((n, 2))
    if data["map"] is not None:
        places = np.frombuffer(base64.b64decode(data["map"]["places"]), "<u2").reshape(n, 2) / 65535
    near, lengths = (each[kept] for each in (found.graph.rows, found.graph.lengths))
    width = int((near >= 0).sum(1).min(initial=near.shape[1]))
    neighbors = [
        {"ids": ids, "distances": distances}
        for ids, distances in zip(number[near[:, :width]].tolist(), lengths[:, :width].tolist(), strict=True)
    ]
    columns = {
        "row": kept,
        "x": places[kept, 0],
        "y": 1 - places[kept, 1],  # upwards there, downwards in pixels
        "image": [picture(row) for row in kept.tolist()],
        "path": catalog.paths[kept].tolist(),
        "class": [data["classes"][code] for code in found.codes[kept].tolist()],
        "neighbors": neighbors,
    }
    write_columns(columns, target, overwrite)
