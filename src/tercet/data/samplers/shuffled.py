"""Every row once an epoch, in the order of a keyed permutation."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from tercet.core.checks import as_int
from tercet.core.randomness import KeyedRow, derive_key, permute
from tercet.data.samplers.resumable import EpochSampler

__all__ = ["ShuffledSampler"]

BLOCK_ROWS = 8192  # rows computed at a time while iterating, to spread the cost of numpy's calls


class ShuffledSampler(EpochSampler):
    """Every row once an epoch in the order of a keyed permutation, in O(1) memory for any number of rows.

        row(step) = π(i mod n),  i = step · world_size + rank,  π keyed by (seed, epoch)

    Each rank yields ⌈n / world_size⌉ rows. Where these are more than n together, the first rows of the order,
    at most world_size − 1, come once more, as a further view.

    Args:
        n: the number of rows, or anything with a length: a dataset, a catalog, labels.
        seed: the same seed gives the same order, on any machine.
        rank: the part of the order that this process takes, from 0.
        world_size: the number of processes.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> sampler = ShuffledSampler(5)
        >>> len(sampler), sorted(sampler)
        (5, [0, 1, 2, 3, 4])
    """

    def __init__(self, n: Any, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(seed, rank, world_size)
        with contextlib.suppress(Exception):  # a number has no length
            n = n if isinstance(n, (str, bytes)) else len(n)
        self.n = as_int("ShuffledSampler", "n", n, 1)
        self._length = -(-self.n // self.world_size)
        self._block = BLOCK_ROWS
        self._settings = {"n": self.n, "seed": self.seed, "world_size": self.world_size}

    def _items(self, epoch: int, start: int, stop: int) -> list[KeyedRow]:
        pass_, place = np.divmod(np.arange(start, stop) * self.world_size + self.rank, self.n)
        rows = permute(place, self.n, derive_key("ShuffledSampler", self.seed, epoch))
        return [KeyedRow(row, epoch, view) for row, view in zip(rows.tolist(), pass_.tolist(), strict=True)]
