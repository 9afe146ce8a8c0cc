"""Which columns may not be found for which queries, applied to the rank keys of a tile.

A column that is left out gets the key inf before anything is chosen. So k results are k results, whatever was
left out, and nothing is searched twice. Few columns of a tile are marked by their places, many by a mask.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import Refusal, as_array, label_codes
from tercet.pairwise.relations import Relation

__all__ = ["Codes", "Exclusions", "codes_of", "rows_of"]

_MASKED_SHARE = 8  # a mask costs two passes over a tile, a place as much as some eight entries of it


class Codes(NamedTuple):
    """Names as numbers from 0 on: a query and a column of one number are left out for each other.

    Args:
        queries: int64 [q].
        columns: int64 [r].
    """

    queries: Int[Tensor, " q"]
    columns: Int[Tensor, " r"]


class Exclusions:
    """What is left out for each query.

    Args:
        own: int64 [q], the column that is the query itself; None where there is none.
        codes: groups, ids or classes of which a query finds no column.
        sides: (relation, labels of queries, labels of columns, whether positives are wanted), where what is
            left out is not a question of equal numbers; None otherwise.

    Attributes:
        nowhere: bool [r], columns that no query finds; None for none.

    Example:
        >>> few = Exclusions(torch.tensor([0, 1]), [])
        >>> few.tile(torch.arange(3)).apply(torch.zeros(2, 3), slice(0, 2))
        tensor([[inf, 0., 0.],
                [0., inf, 0.]])
    """

    def __init__(
        self,
        own: Int[Tensor, " q"] | None,
        codes: list[Codes],
        sides: tuple[Relation, Tensor, Tensor, bool] | None = None,
    ) -> None:
        self._own, self._codes, self._sides = own, codes, sides
        self.nowhere: Bool[Tensor, " r"] | None = None
        self._sizes = [1 + int(torch.cat(pair).amax()) if len(pair.columns) else 0 for pair in codes]

    @property
    def by_pairs(self) -> bool:
        """Whether a relation is asked for every pair."""
        return self._sides is not None

    def of_queries(self, some: slice | Int[Tensor, " a"]) -> Exclusions:
        """The same for some of the queries, which are then numbered from 0 on."""
        found = Exclusions(None if self._own is None else self._own[some], [], self._sides)
        found.nowhere = self.nowhere
        found._codes = [pair._replace(queries=pair.queries[some]) for pair in self._codes]
        found._sizes = self._sizes
        if self._sides is not None:
            relation, labels, others, positive = self._sides
            found._sides = relation, labels[some], others, positive
        return found

    def of_pairs(self, queries: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Bool[Tensor, " t"]:
        """Whether the column of each listed pair is left out; a relation that needs tables is not asked."""
        barred = torch.zeros_like(queries, dtype=torch.bool)
        if self._own is not None:
            barred |= self._own[queries] == columns
        for pair in self._codes:
            barred |= pair.queries[queries] == pair.columns[columns]
        return barred if self.nowhere is None else barred | self.nowhere[columns]

    def tile(self, columns: Int[Tensor, " w"]) -> TileExclusions:
        """What is left out of a tile of these columns, in this order."""
        lists, device = [], columns.device
        if self._own is not None:
            order = columns.argsort()
            at = torch.searchsorted(columns[order], self._own).clamp(max=len(columns) - 1)
            lists.append((order, at, (columns[order[at]] == self._own).long(), None))
        for (queries, everyone), size in zip(self._codes, self._sizes, strict=True):
            codes = everyone[columns]
            count = torch.bincount(codes, minlength=size)
            first = count.cumsum(0) - count
            lists.append((codes.argsort(stable=True), first[queries], count[queries], (queries, codes)))
        sides = None
        if self._sides is not None:
            relation, labels, others, positive = self._sides
            sides = relation, labels, others[columns], positive
        bad = None
        if self.nowhere is not None:
            (bad,) = self.nowhere[columns].nonzero(as_tuple=True)
        return TileExclusions(lists, sides, bad, torch.arange(len(columns), device=device))


class TileExclusions:
    """What is left out of one tile of columns; made by `Exclusions.tile`."""

    def __init__(self, lists: list[Any], sides: Any, bad: Tensor | None, places: Tensor) -> None:
        self._lists, self._sides, self._bad, self._places = lists, sides, bad, places

    def apply(self, keys: Float[Tensor, "a w"], queries: slice) -> Float[Tensor, "a w"]:
        """The keys, with inf written where a column is left out for a query.

        Args:
            keys: a table [a, w], whose first columns are those of the tile; it is changed.
            queries: the numbers of its queries.
        """
        a, w = keys.shape
        for order, first, count, codes in self._lists:
            count = count[queries]
            total = int(count.sum())
            if not total:
                continue
            if codes is not None and _MASKED_SHARE * total > a * w:
                keys[:, : len(codes[1])].masked_fill_(codes[0][queries, None] == codes[1], math.inf)
                continue
            row = torch.repeat_interleave(count, output_size=total)
            skipped = first[queries] - (count.cumsum(0) - count)
            place = order[torch.arange(total, device=keys.device) + skipped.index_select(0, row)]
            keys.view(-1).index_fill_(0, row * w + place, math.inf)
        if self._sides is not None:
            relation, labels, others, wanted = self._sides
            positive, negative = relation.sides(labels[queries], others)
            keys[:, : len(others)].masked_fill_(~(positive if wanted else negative), math.inf)
        if self._bad is not None and len(self._bad):
            keys[:, self._bad] = math.inf
        return keys


def codes_of(argument: str, queries: Any, columns: Any, q: int, r: int, device: torch.device) -> Codes:
    """Names of queries and of columns, numbered together so that equal names are one number.

    Args:
        argument: the name of the argument, for the sentences; that of the columns is `column_` + it.
        queries: [q] whole numbers, bools or strings; for a collection searched by itself those of its rows.
        columns: [r], or None where both are the same rows.
        q: how many queries there are.
        r: how many columns there are.
        device: where the numbers are needed.

    Raises:
        ValueError: another shape, or names of mixed kinds.
    """
    arrays = []
    for name, values, count in ((argument, queries, q), (f"column_{argument}", columns, r)):
        if values is None:
            continue
        array = as_array(None, name, values, "one for each row")
        if array.shape != (count,):
            raise Refusal(name, f"shape {array.shape}", f"shape ({count},), one for each row")
        arrays.append(array)
    if any(array.dtype.kind in "UTO" for array in arrays):
        arrays = [array.astype(object) for array in arrays]  # else "1" and 1 would become one
    if not sum(len(array) for array in arrays):
        numbers = torch.zeros(0, dtype=torch.int64, device=device)
    else:
        numbers = torch.from_numpy(label_codes(None, np.concatenate(arrays), argument)[0]).to(device)
    return Codes(numbers[:q], numbers if columns is None else numbers[q:])


def rows_of(argument: str, values: Any, count: int, device: torch.device) -> Int[Tensor, " a"]:
    """Row numbers below `count`, in any order.

    Raises:
        ValueError: no whole numbers [a], or rows that do not exist.
    """
    array = as_array(None, argument, values, "whole row numbers [q]")
    if array.ndim == 1 and not array.size:
        return torch.zeros(0, dtype=torch.int64, device=device)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        hint = "of a mask take mask.nonzero()[0]" if array.dtype.kind == "b" else ""
        raise Refusal(argument, f"{array.dtype} of shape {array.shape}", "whole row numbers [q]", hint)
    outside = array[(array < 0) | (array >= count)]
    if len(outside):
        raise Refusal(argument, int(outside[0]), f"rows from 0 to {count - 1}, as there are {count}")
    return torch.from_numpy(array.astype(np.int64)).to(device)
