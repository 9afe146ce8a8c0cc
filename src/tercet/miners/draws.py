"""Random draws over a batch: pure functions of the seed, the step and the batch's labels and ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.randomness import derive_key, keyed_bits, keyed_uniform, permute
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.transfer import sent_up

__all__ = ["batch_key", "drawn_places", "keyed"]


def batch_key(name: str, seed: int, step: int, pairwise: Pairwise) -> int:
    """The key of a draw: a pure function of the miner's name, seed, step, and the batch's labels and ids."""
    key = derive_key(name, seed, step)
    for values in pairwise.on_host():
        if values is not None:
            numbers = values.ravel()
            bits = keyed_bits(key, np.arange(len(numbers)), numbers)
            key = derive_key(key, int(np.bitwise_xor.reduce(bits)), len(numbers))
    return key


def drawn_places(count: int, total: int, key: int, device: Any) -> Int[Tensor, " t"]:
    """`count` different numbers below `total`, rising, each set of them as likely as another.

    Example:
        >>> drawn_places(3, 3, 0, "cpu")
        tensor([0, 1, 2])
    """
    places = np.sort(permute(np.arange(count), total, key))
    return sent_up(places, device)


def keyed(key: int, *rows: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
    """A number in [0, 1) for each tuple of row numbers, float64 [t]: a function of the key and the tuple."""
    device = rows[0].device
    return sent_up(keyed_uniform(key, *(each.cpu().numpy() for each in rows)), device)
