"""Images that are there twice: files with the same bytes, and embeddings much nearer than others are."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.data.io.images import file_content
from tercet.offline.neighbor_graph import NeighborGraph

__all__ = ["Copies", "copies", "equal_files"]


class Copies(NamedTuple):
    """Pairs of images that are one picture, those of equal bytes first, then by length.

    Args:
        image: int64 [c].
        other: int64 [c].
        length: [c], as a share of the graph's scale; 0 for equal bytes.
        of_bytes: bool [c], whether the files are equal.
    """

    image: Int64[np.ndarray, " c"]
    other: Int64[np.ndarray, " c"]
    length: Float[np.ndarray, " c"]
    of_bytes: Bool[np.ndarray, " c"]

    def at(self, kept: Bool[np.ndarray, " c"]) -> Copies:
        """Those of a mask."""
        return Copies(*(column[kept] for column in self))


def copies(
    graph: NeighborGraph,
    share: float,
    files: Int64[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
    *,
    leaks: bool,
) -> Copies:
    """Each image that has a copy, beside the nearest one: leaks, or else duplicates within one part.

    Args:
        graph: the k-NN graph.
        share: two images are one picture where their length is at most this share of the graph's scale.
        files: a number of the file content of each image, as `equal_files` gives it.
        test: which images are of the test part.
        leaks: whether the pairs have a test image and, as `other`, one of the rest; else both are of one part
            and `other` is the earlier row.
    """
    n, k = graph.rows.shape
    image, other = np.repeat(np.arange(n), k), graph.rows.ravel()
    length = graph.lengths.ravel()
    near = (other >= 0) & (length <= share * graph.scale)
    image, other, length = image[near], other[near], length[near]
    image, other = np.concatenate([image, other]), np.concatenate([other, image])
    length = np.concatenate([length, length]) / (graph.scale or 1.0)
    # Of equal files each part's first stands for it: the other images are beside that one.
    first = np.full((2, n), -1)
    for part in (1, 0):
        rows = np.flatnonzero(test == bool(part))[::-1]
        first[part, files[rows]] = rows
    beside = first[0][files] if leaks else first[test.astype(int), files]
    same = np.flatnonzero((beside >= 0) & (beside != np.arange(n)))
    image, other = np.concatenate([same, image]), np.concatenate([beside[same], other])
    length = np.concatenate([np.zeros(len(same)), length])
    of_bytes = files[image] == files[other]
    fits = test[image] & ~test[other] if leaks else (test[image] == test[other]) & (other < image)
    image, other, length, of_bytes = (each[fits] for each in (image, other, length, of_bytes))
    order = np.lexsort((other, length, ~of_bytes, image))
    _, at = np.unique(image[order], return_index=True)
    kept = order[at]
    kept = kept[np.lexsort((image[kept], length[kept], ~of_bytes[kept]))]
    return Copies(image[kept], other[kept], length[kept], of_bytes[kept])


def equal_files(catalog: Any) -> tuple[Int64[np.ndarray, " n"], list[int]]:
    """A number for each image, equal where the bytes of the files are, and the rows that could not be read.

    Only files that are as long as another are read.

    Args:
        catalog: the images.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    numbers, unread = np.arange(len(catalog)), []
    for row in range(len(catalog)):
        try:
            by_size[os.stat(catalog.file(row)).st_size].append(row)
        except (OSError, ValueError):
            unread.append(row)
    for rows in by_size.values():
        known: dict[bytes, int] = {}
        for row in rows if len(rows) > 1 else ():
            try:
                content = file_content(catalog.file(row))
            except (OSError, ValueError):
                unread.append(row)
                continue
            numbers[row] = known.setdefault(hashlib.sha256(content).digest(), row)
    return numbers, sorted(unread)
