"""What `AnchorSampler` reads of triplets and pairs: their anchors, and parts of few distinct images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from tercet.core.checks import array_of, refusal
from tercet.core.indices import LabeledPairs, Triplets

__all__ = ["anchors_of", "divided", "images_each"]

_CALLER = "AnchorSampler"
_READ = 2**18  # triplets read at a time
_MOST_KEYS = 2**62  # numbers for an image of a bundle: one for each bundle that is read and each row


def images_each(triplets: Any, caller: str = _CALLER, argument: str = "triplets") -> int:
    """How many images each entry of a sequence names: 3 of triplets, 2 of pairs.

    Args:
        triplets: the sequence.
        caller, argument: who was given it, and as what, for the sentence.

    Raises:
        ValueError: neither.
    """
    columns: Any = triplets
    if not isinstance(triplets, (Triplets, LabeledPairs)):
        expected = "a Manifest or another sequence of triplets or pairs"
        try:  # by an array of numbers, which a list or a Subset does not take
            columns = triplets[np.zeros(2, dtype=np.int64)] if len(triplets) else None
        except (ValueError, OSError):  # a manifest that is damaged says so itself
            raise
        except Exception:  # no length, or no such index
            raise refusal(caller, argument, type(triplets).__name__, expected) from None
        if not (columns is None or isinstance(columns, (Triplets, LabeledPairs))):
            shown = f"{type(triplets).__name__} of {type(columns).__name__}"
            raise refusal(caller, argument, shown, expected)
    return 2 if isinstance(columns, LabeledPairs) else 3


def anchors_of(triplets: Any) -> Int[np.ndarray, " t"]:
    """The anchor of each triplet, or the first image of each pair.

    Raises:
        ValueError: no such sequence, or columns of other things than whole numbers, or of unequal length.
    """
    each = images_each(triplets)
    if isinstance(triplets, (Triplets, LabeledPairs)):
        expected = "columns of row numbers, of one length"
        columns = [array_of(_CALLER, "triplets", column, expected) for column in triplets[:each]]
        shapes = {column.shape for column in columns}
        if any(column.dtype.kind not in "iu" and column.size for column in columns) or len(shapes) > 1:
            shown = ", ".join(f"{column.dtype} {column.shape}" for column in columns)
            raise refusal(_CALLER, "triplets", shown, expected)
        return columns[0].astype(np.int64)
    parts = [np.empty(0, dtype=np.int64)]
    parts += [triplets[first : first + _READ][0] for first in range(0, len(triplets), _READ)]
    return np.concatenate(parts)


def divided(
    triplets: Any, numbers: Int[np.ndarray, " t"], bundle: Int[np.ndarray, " t"], most: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Bundles of triplets, divided into parts of at most `most` distinct images.

    A bundle that has no more is one part. Another is cut, in the order of its triplets, wherever the next one
    would bring too many images.

    Args:
        triplets: the sequence.
        numbers: the numbers of all triplets, bundle after bundle.
        bundle: the bundle of each, never falling.
        most: at least the images of one triplet.

    Returns:
        Where each part begins in `numbers`, and how many distinct images it has.

    Raises:
        ValueError: rows too far apart to be those of a catalog.

    Example:
        >>> triplets = Triplets(np.array([0, 0, 5]), np.array([1, 1, 6]), np.array([2, 3, 7]))
        >>> starts, images = divided(triplets, np.arange(3), np.array([0, 0, 1]), most=3)
        >>> starts.tolist(), images.tolist()
        ([0, 1, 2], [3, 3, 3])
    """
    starts, sizes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for first, last in _blocks(bundle):
        rows = _rows(triplets, numbers[first:last])  # [m, c]
        begin = np.flatnonzero(np.diff(bundle[first:last], prepend=bundle[first] - 1))
        ends = np.append(begin[1:], last - first)
        place = np.repeat(np.arange(len(begin)), ends - begin)  # [m], the bundle of each
        low, span = int(rows.min()), int(rows.max()) - int(rows.min()) + 1
        if span * len(begin) > _MOST_KEYS:
            raise refusal(_CALLER, "triplets", f"row {rows.max()}", "row numbers of a catalog")
        keys = np.sort((place[:, None] * span + (rows - low)).reshape(-1))
        distinct = keys[np.diff(keys, prepend=-1) > 0]  # as np.unique finds them, in a tenth of its time
        images = np.bincount(distinct // span)  # of each bundle
        starts.append(first + begin)
        sizes.append(images)
        for one in np.flatnonzero(images > most).tolist():
            inner, inner_sizes = _cuts(rows[begin[one] : ends[one]], most)
            images[one] = inner_sizes[0]
            starts.append(first + begin[one] + np.array(inner[1:], dtype=np.int64))
            sizes.append(np.array(inner_sizes[1:], dtype=np.int64))
    start, size = np.concatenate(starts), np.concatenate(sizes)
    order = np.argsort(start)
    return start[order], size[order]


def _blocks(bundle: Int[np.ndarray, " t"]) -> Iterator[tuple[int, int]]:
    """Runs of whole bundles, of about `_READ` triplets, or of one bundle that has more."""
    first = 0
    while first < len(bundle):
        last = int(np.searchsorted(bundle, bundle[min(first + _READ, len(bundle)) - 1], side="right"))
        yield first, last
        first = last


def _rows(triplets: Any, numbers: Int[np.ndarray, " m"]) -> Int[np.ndarray, "m c"]:
    """The images that some triplets or pairs name."""
    columns = triplets[: images_each(triplets)] if isinstance(triplets, tuple) else triplets[numbers]
    if isinstance(triplets, tuple):
        columns = [np.asarray(column)[numbers] for column in columns]
    return np.stack(columns[: images_each(triplets)], axis=1).astype(np.int64)


def _cuts(rows: Int[np.ndarray, "m c"], most: int) -> tuple[list[int], list[int]]:
    """Where the parts of a bundle begin, the first at 0, and how many images each has."""
    starts, sizes, seen = [0], [], set[int]()
    for number, images in enumerate(map(set, rows.tolist())):
        fresh = images - seen
        if len(seen) + len(fresh) > most:
            starts.append(number)
            sizes.append(len(seen))
            seen = images
        else:
            seen |= fresh
    return starts, [*sizes, len(seen)]
