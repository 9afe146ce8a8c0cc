"""The least keys of each row of a batch, tile by tile of the columns: no row has all its keys there at once.

A sample of the columns promises a limit for each row, below which a little more keys lie than are wanted
(`neighbors/shortlists`). A tile of keys then takes one comparison while it is in the cache, and what is below
the limits is kept. A row whose limit was too low has too few keys: it is *missed*, and all its keys are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.neighbors.blocks import RowBlock, span_of
from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.shortlists import first_listed, most_promised, promised_limit, promises
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import kept_where
from tercet.pairwise.tiles import Pairwise

__all__ = ["ColumnTiles", "TiledRows"]


class TiledRows(NamedTuple):
    """Some rows, which follow each other in class order.

    Args:
        rows: int64 [a], row numbers.
        places: where they stand in the order.
        class_block: the places of the columns that may be positives or the same image.
        positive: bool [a, b], of those columns.
        negative: bool [a, b].
    """

    rows: Int[Tensor, " a"]
    places: slice
    class_block: slice
    positive: Bool[Tensor, "a b"]
    negative: Bool[Tensor, "a b"]


class ColumnTiles:
    """The rows of a batch in blocks, and the least keys of each.

    Args:
        pairwise: rows and columns.
        search: the search of them, in class order.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x, labels = torch.arange(600.0)[:, None], torch.arange(600) // 100
        >>> pairwise = Pairwise("doc", x, labels, distance=euclidean)
        >>> tiles = ColumnTiles(pairwise, ExactSearch(pairwise))
        >>> rows = next(tiles.blocks())
        >>> tiles.least(rows, 2)[1][:3]
        tensor([[1, 2],
                [0, 2],
                [1, 3]])
    """

    def __init__(self, pairwise: Pairwise, search: ExactSearch) -> None:
        self._pairwise, self._search, self._keys = pairwise, search, search.keys
        n, self._count = len(search.order[0]), len(search.order[1])
        device = search.order[0].device
        self._budget = sizes = budget(device)
        height = pairwise.given_tile_rows or max(sizes.product_rows, n // sizes.class_order_blocks)
        self._height = min(height, sizes.key_tile_rows)
        self._width = min(max(1, sizes.key_tile_numbers // self._height), self._count)
        self._numbers = search.exact.x.new_empty(self._height * self._width)
        self._mask = np.empty(self._height * self._width, bool)
        step = max(sizes.sampled_share, -(-self._count // sizes.sampled_columns))
        places = torch.arange(step // 2, self._count, step, device=device)
        self._sampled = len(places)
        self._samples = [self._keys.columns(some) for some in places.split(self._width)]

    @staticmethod
    def of(pairwise: Pairwise, search: ExactSearch) -> ColumnTiles | None:
        """The tiles; None for small batches, other devices and other precisions."""
        x, columns = search.exact.x, len(search.order[1])
        if search.in_order or x.dtype != torch.float32 or not budget(x.device).sampled_share or not columns:
            return None
        return ColumnTiles(pairwise, search)

    def blocks(self) -> Iterator[TiledRows]:
        """All rows, some at a time."""
        order, labels = self._search.order, self._search.labels
        assert labels is not None
        for start in range(0, len(order[0]), self._height):
            places = slice(start, min(start + self._height, len(order[0])))
            class_block = span_of(labels[0][places], labels[1])
            sides = self._pairwise.sides(order[0][places], order[1][class_block])
            yield TiledRows(order[0][places], places, class_block, *sides)

    def least(
        self, block: TiledRows, count: int
    ) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"], Bool[Tensor, " a"]]:
        """The `count` least keys of each row among its positives and negatives, and their column numbers.

        Returns:
            Keys in rising order, inf where there are fewer; columns; and [a] which rows were missed.
        """
        if not promises(count, self._sampled, self._count):
            return self._none(block, count)
        height, side = len(block.rows), self._keys.side(block.places)
        limit = self._limit(side, height, count)
        most = height * most_promised(count, self._sampled, self._count) + self._budget.gathered_keys
        allowed, found = block.positive | block.negative, []
        for start in range(0, self._count, self._width):
            columns = slice(start, min(start + self._width, self._count))
            keys = self._keys.tile(side, self._keys.columns(columns), self._numbers)
            _leave_out(keys, columns, block.class_block, allowed)
            numbers = keys.numpy()
            mask = self._mask[: numbers.size]
            np.less_equal(numbers, limit[:, None], out=mask.reshape(numbers.shape))
            place = np.flatnonzero(mask)
            row = place // numbers.shape[1]
            found.append((row, place - row * numbers.shape[1] + start, numbers.reshape(-1)[place]))
            most -= len(row)
            if most < 0:  # as where all columns are equal
                return self._none(block, count)
        row, place, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
        order = row.astype(np.uint16 if height < 2**16 else np.int64).argsort(kind="stable")
        keys, at, missed = first_listed(row[order], place[order], numbers[order], limit, count)
        return keys, self._search.order[1][at], missed

    def _none(
        self, block: TiledRows, count: int
    ) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"], Bool[Tensor, " a"]]:
        """`least` where all rows are missed."""
        keys = self._numbers.new_empty(len(block.rows), 0)
        return keys, block.rows.new_empty(keys.shape), torch.ones_like(block.rows, dtype=torch.bool)

    def _limit(self, side: Tensor, height: int, count: int) -> np.ndarray:
        """The limit of each row, [a]. Its own column may be in the sample: there is room for a few."""
        sample, start = self._numbers.new_empty(height, self._sampled), 0
        for columns in self._samples:
            stop = start + len(columns[0])
            sample[:, start:stop] = self._keys.tile(side, columns, self._numbers)
            start = stop
        return promised_limit(sample.numpy(), count, self._count)

    def whole_rows(self, block: TiledRows, missed: Bool[Tensor, " a"]) -> Iterator[RowBlock]:
        """The missed rows of a block with all their keys, some at a time."""
        step = max(1, self._budget.tile_bytes // (self._count * self._numbers.itemsize))
        for some in missed.nonzero()[:, 0].split(step):
            if len(some):
                keys = self._keys.table(some + block.places.start)
                sides = block.positive[some], block.negative[some]
                yield RowBlock(block.rows[some], keys, self._search.order[1], block.class_block, *sides)


def _leave_out(
    keys: Float[Tensor, "a c"], columns: slice, class_block: slice, allowed: Bool[Tensor, "a b"]
) -> None:
    """Keys of inf for the columns of a tile that are neither positive nor negative."""
    start, stop = max(columns.start, class_block.start), min(columns.stop, class_block.stop)
    if start < stop:
        kept = allowed[:, start - class_block.start : stop - class_block.start]
        kept_where(kept, keys[:, start - columns.start : stop - columns.start], inplace=True)
