"""How a search over a collection is cut to fit a memory budget, and what it takes at most."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from tercet.core.checks import Refusal
from tercet.neighbors.candidate_pool import slots_of
from tercet.pairwise.budget import budget

__all__ = ["DEFAULT_MEMORY", "SearchPlan", "plan_search"]

DEFAULT_MEMORY = 256 * 2**20

_CHUNK = 8  # columns whose least key is taken together; with 16 there is more to look at again
_WIDE = 8  # a tile is so many times as wide as high: then its columns are prepared and sorted less often


class SearchPlan(NamedTuple):
    """Sizes of a search. They change no result.

    Args:
        block: queries that go through the columns together.
        height: queries of a tile.
        width: columns of a tile.
        chunk: columns whose least key is taken together.
        passes: how often all columns are read, the look for NaN not counted.
        bytes: the most memory above the inputs, the result included.

    Example:
        >>> plan = plan_search(100_000, 100_000, 16, 128, torch.float32, torch.device("cpu"), None)
        >>> plan.passes, plan.width, plan.height, plan.bytes < 256 * 2**20
        (1, 4096, 512, True)
    """

    block: int
    height: int
    width: int
    chunk: int
    passes: int
    bytes: int


def plan_search(
    queries: int, columns: int, k: int, dim: int, dtype: torch.dtype, device: torch.device, memory: int | None
) -> SearchPlan:
    """The sizes with which a search stays below a budget.

    Args:
        queries: how many queries.
        columns: how many columns.
        k: how many nearest.
        dim: numbers of an embedding.
        dtype: float32 or float64, in which keys are computed.
        device: where they are computed.
        memory: bytes above the inputs, the result included; None for 256 MiB, or what the result needs more.

    Raises:
        ValueError: less memory than the result and one tile take.
    """
    item, sizes = dtype.itemsize, budget(device)
    numbers = max(1, min(sizes.tile_bytes, (memory or DEFAULT_MEMORY) // 8) // item)
    width = 1 << max(0, round(math.log2(numbers * _WIDE) / 2))
    width = min(max(width, 1 << (4 * k - 1).bit_length()), numbers, 1 << max(0, columns - 1).bit_length())
    height = min(1 << max(0, (numbers // width).bit_length() - 1), max(1, queries))
    chunk = _CHUNK
    while chunk > 1 and (width % chunk or width // chunk < 4 * k):
        chunk //= 2
    slots = slots_of(k)
    # Of a tile: keys, least keys and masks, places of candidates; its columns raw, prepared and centred.
    # Then the tables in which full queries are shortened, and the differences of one chunk of pairs.
    tables = min(sizes.gathered_keys, height * (width + slots)) * (item + 8) * 3
    pairs = min(sizes.gathered_numbers, height * (slots + width) * dim) * item * 4
    fixed = 4 * height * width * item + 5 * width * (dim + 1) * item + tables + pairs + (queries * k) * 16
    each = (dim + 1) * item + slots * (item + 8) + 160
    room = max(DEFAULT_MEMORY, fixed + each * min(queries, 2**14)) if memory is None else memory
    block = min(max(0, room - fixed) // each, max(1, queries))
    if block < height:
        expected = f"{fixed + each * height} bytes or more for this search"
        raise Refusal("memory", memory, expected)
    passes = -(-queries // block)
    block = -(-queries // max(1, passes)) if queries else 1  # blocks of equal size
    return SearchPlan(block, height, width, chunk, passes, fixed + each * block)
