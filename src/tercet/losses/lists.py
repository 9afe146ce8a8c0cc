"""Lists of pairs: their forms, and when a table is the cheaper way to their distances."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.euclidean import roundoff
from tercet.pairwise.tiles import TILE_BYTES

__all__ = ["LONG", "distinct", "pairs_of", "rows_of_table"]

LONG = 2**15
"""So much of a list is taken at a time where a table serves it."""

_ENTRIES_TO_ONE = 8  # a table has at most so many entries to each pair that is listed
_LEAST = 2**18  # numbers of features, pairs × dimension: fewer do not pay for setting a table up


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


def rows_of_table(x: Float[Tensor, "n k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"]) -> slice | None:
    """The rows whose table of products with all columns takes less than the differences of listed pairs.

    Args:
        x: the rows.
        y: the columns.
        i: the row of each pair. That of a table is all from the lowest to the highest; finding them waits for
            the device where the list is long enough.

    Returns:
        None where the list is too short for a table, or the table too large for a tile, and where products
        are not of full precision.
    """
    most = min(_ENTRIES_TO_ONE * len(i), TILE_BYTES // x.element_size())
    if len(i) * x.shape[1] < _LEAST or most < len(y) or roundoff(x) > 2.0**-24:
        return None
    low, high = torch.stack(i.aminmax()).tolist()
    return slice(low, high + 1) if (high + 1 - low) * len(y) <= most else None
