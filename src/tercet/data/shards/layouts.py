"""Which images go into which shard, and in which order."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from tercet.core.randomness import derive_key, keyed_bits, permute

__all__ = ["by_identity", "mixed"]


def by_identity(
    labels: Int64[np.ndarray, " n"], k: int, images_per_shard: int, seed: int
) -> list[Int64[np.ndarray, " _"]]:
    """The rows of each shard: a class in one shard, its images in groups of at least k, side by side.

    A class of n images makes max(1, ⌊n / k⌋) groups, equal to within one image; the groups of all classes of
    a shard are shuffled.

    Args:
        labels: n ≥ 1 class numbers of at least 0.
        k: the least size of a group.
        images_per_shard: about how many images a shard has.
        seed: names the order of classes, images and groups.

    Returns:
        One array for each shard; together they hold each row once.

    Example:
        >>> rows = by_identity(np.array([0, 0, 0, 0, 1, 1]), k=2, images_per_shard=100, seed=0)[0]
        >>> sorted(rows.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = permute(np.arange(len(classes)), len(classes), derive_key("shards classes", seed))
    ends = np.cumsum(sizes[shuffled])
    # A class lies where its middle does, in whole numbers: the same on every machine.
    shard_of = np.empty(len(classes), dtype=np.int64)
    images_per_shard = min(
        images_per_shard, max(1, len(labels))
    )  # then all are in one; no more would fit int64
    shard_of[shuffled] = (2 * ends - sizes[shuffled]) // (2 * images_per_shard)
    shard_of = np.unique(shard_of, return_inverse=True)[1]  # none is empty

    rows = np.argsort(codes, kind="stable")  # class after class
    code, size = codes[rows], sizes[codes[rows]]
    first = (np.cumsum(sizes) - sizes)[code]
    key = keyed_bits(derive_key("shards images", seed), classes)[code]
    place = permute(np.arange(len(rows)) - first, size, key)  # in its class's order
    group = place * np.maximum(1, size // k) // size
    draw = keyed_bits(derive_key("shards groups", seed), classes[code], group)
    order = np.lexsort((place, group, code, draw, shard_of[code]))
    counts = np.bincount(shard_of[code])
    return np.split(rows[order], np.cumsum(counts)[:-1])


def mixed(n: int, images_per_shard: int, seed: int) -> list[Int64[np.ndarray, " _"]]:
    """The rows of each shard, shuffled over all of them; shards are equal to within one image.

    Args:
        n: the number of images, at least 1.
        images_per_shard: the most images of a shard.
        seed: names the order.

    Returns:
        ⌈n / images_per_shard⌉ arrays; together they hold each row once.

    Example:
        >>> [len(rows) for rows in mixed(10, 4, seed=0)]
        [4, 3, 3]
    """
    return np.array_split(
        permute(np.arange(n), n, derive_key("shards mixed", seed)), -(-n // images_per_shard)
    )
