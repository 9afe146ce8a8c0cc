"""Lists of pairs: their forms, and when a table is the cheaper way to their distances."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise import TILE_BYTES

__all__ = ["LONG", "distinct", "pairs_of", "picked", "table_rows"]

LONG = 2**18
"""So much of a list is taken at a time where a table serves it."""

# A table takes as long as the distances of a list where there are so many entries to each that is listed,
# and some more, of so many numbers of features, for setting it up.
_ENTRIES_TO_ONE, _SET_UP = 24, 2**21


def pairs_of(rows: tuple[Int[Tensor, " _"], ...]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The positive and the negative pairs (row, column) of a list; of triplets (a, p) and (a, n)."""
    return (rows[0], rows[1]), (rows[2] if len(rows) == 4 else rows[0], rows[-1])


def distinct(
    i: Int[Tensor, " t"], j: Int[Tensor, " t"], columns: int, *, unordered: bool = False
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Each pair (row, column) once, in order; and (j, i) with (i, j) where the pairs are unordered."""
    if unordered:
        i, j = torch.minimum(i, j), torch.maximum(i, j)
    columns = max(1, columns)
    key = torch.unique(i * columns + j)
    return key // columns, key % columns


def picked(x: Float[Tensor, "n *k"], rows: Int[Tensor, " t"]) -> Float[Tensor, "t *k"]:
    """x[rows]; on a processor by `index_select`: faster, but its gradient on a card has no order."""
    return x.index_select(0, rows) if x.device.type == "cpu" else x[rows]


def table_rows(
    x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], times: int = 1
) -> slice | None:
    """The rows whose table of distances to all columns takes less than those of a list; None if more.

    Args:
        x: the rows.
        y: the columns.
        i: the row of each pair. That of a table is all from the lowest to the highest; finding them waits for
            the device where the list is long enough.
        times: how many columns are asked for each.
    """
    worth = _ENTRIES_TO_ONE * times * len(i) - _SET_UP // max(1, x.shape[1])
    if not len(i) or worth < len(y):
        return None
    low, high = torch.stack(i.aminmax()).tolist()
    entries = (high + 1 - low) * len(y)
    small = entries <= min(worth, TILE_BYTES // x.element_size())
    return slice(low, high + 1) if small else None
