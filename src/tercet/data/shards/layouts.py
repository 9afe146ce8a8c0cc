"""Which images go into which shard, and in which order."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import as_choice
from tercet.core.randomness import derive_key, keyed_bits, permute

__all__ = ["LAYOUTS", "as_layout", "by_class", "mixed"]

LAYOUTS = ("by_class", "mixed")
_OLD_NAMES = {"identity": "by_class"}  # accepted through 0.2


def as_layout(
    caller: str, argument: str, value: Any, layouts: tuple[str, ...] = LAYOUTS, stacklevel: int = 3
) -> str:
    """The name of a layout; "by_class" for "identity", its name before 0.2, with a warning.

    Args:
        caller: who was given it, for the sentence.
        argument: as which argument.
        value: the name.
        layouts: the names that are accepted.
        stacklevel: whose line the warning names, as for `warnings.warn`.

    Raises:
        ValueError: another name.

    Example:
        >>> as_layout("write_shards", "layout", "by_class")
        'by_class'
    """
    if isinstance(value, str) and value in _OLD_NAMES:
        new = _OLD_NAMES[value]
        text = f"{caller}: the layout {value!r} is now called {new!r}; the old name goes with version 0.3"
        warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
        return new
    return as_choice(caller, argument, value, layouts)


def by_class(
    labels: Int64[np.ndarray, " n"], k: int, images_per_shard: int, seed: int
) -> list[Int64[np.ndarray, " _"]]:
    """The rows of each shard: a class is in one shard, its images in groups of at least k, side by side.

    A class of n images makes max(1, ⌊n / k⌋) groups, equal to within one image. The groups of all classes of
    a shard are shuffled. Classes in shuffled order fill the shards; one that would lie in two of them goes
    whole into the one where its middle lies.

    Args:
        labels: [n] class numbers of at least 0, n ≥ 1.
        k: the least size of a group.
        images_per_shard: about how many images a shard has.
        seed: names the order of classes, images and groups.

    Returns:
        One int64 array for each shard; together they have each row once.

    Example:
        >>> rows = by_class(np.array([0, 0, 0, 0, 1, 1]), k=2, images_per_shard=100, seed=0)[0]
        >>> sorted(rows.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = permute(np.arange(len(classes)), len(classes), derive_key("shards classes", seed))
    ends = np.cumsum(sizes[shuffled])
    # More images than there are would give one shard too, and may overflow.
    images_per_shard = min(images_per_shard, max(1, len(labels)))
    # Whole numbers, so that every machine puts a class into the same shard.
    shard_of = np.empty(len(classes), dtype=np.int64)
    shard_of[shuffled] = (2 * ends - sizes[shuffled]) // (2 * images_per_shard)
    shard_of = np.unique(shard_of, return_inverse=True)[1]  # numbers without gaps: no shard is empty

    rows = np.argsort(codes, kind="stable")  # class after class
    code, size = codes[rows], sizes[codes[rows]]
    first = (np.cumsum(sizes) - sizes)[code]
    key = keyed_bits(derive_key("shards images", seed), classes)[code]
    place = permute(np.arange(len(rows)) - first, size, key)  # of each image in the order of its class
    group = place * np.maximum(1, size // k) // size
    draw = keyed_bits(derive_key("shards groups", seed), classes[code], group)
    order = np.lexsort((place, group, code, draw, shard_of[code]))
    counts = np.bincount(shard_of[code])
    return np.split(rows[order], np.cumsum(counts)[:-1])


def mixed(n: int, images_per_shard: int, seed: int) -> list[Int64[np.ndarray, " _"]]:
    """The rows of each shard, shuffled over all shards, whose sizes are equal to within one image.

    Args:
        n: the number of images, at least 1.
        images_per_shard: the most images of a shard.
        seed: names the order.

    Returns:
        ⌈n / images_per_shard⌉ int64 arrays; together they have each row once.

    Example:
        >>> [len(rows) for rows in mixed(10, 4, seed=0)]
        [4, 3, 3]
    """
    return np.array_split(
        permute(np.arange(n), n, derive_key("shards mixed", seed)), -(-n // images_per_shard)
    )
