"""Exact search in shapes that the data do not change, for accelerators: nothing is read until the end.

The searches are those of `ExactSearch`, and so are the results. A processor resolves ambiguous rows at once.
Here each look at them would be a host read. So all rows are treated alike, and ambiguous ones are counted on
the device and searched again at the end:

1. *Small tables*, up to `Budget.direct_numbers` distances, hold exact distances: nothing is ambiguous.
2. *Larger ones* hold rank keys (`neighbors/keys`). Of each row the first k + 7 by key are measured by
   differences, and the first k of those are the result. It is sure if the k-th is so near that no key outside
   the list can stand for a distance as small: its own key lies below the list's last by more than ε, since
   the key of an exact distance is off by at most ε from the rank key of the same column. For a bound, the 8
   keys nearest to it are measured; it is sure if the 8th is more than ε off.
3. *Rows that are not sure* are counted in `ambiguous`, which stays on the device. It is read together with
   the results, in one host read, and those rows are searched once more with `exactly=True`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.neighbors.blocks import Candidates, RowBlock, split_rows
from tercet.neighbors.keys import ExactDistances, RankKeys
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import form_of
from tercet.pairwise.tiles import Pairwise

__all__ = ["FixedShapeSearch"]


class FixedShapeSearch:
    """The rows of a batch in blocks, and searches among the candidates of a block, without a host read.

    Args:
        pairwise: rows and columns.
        rows: int64 [s], the rows to search for; None for all.
        exactly: tables of exact distances whatever their size.
        pairs: how many positive pairs `rows` have, where the host knows; else asking for them reads it.

    Attributes:
        ambiguous: int64 [n], how many searches of each row may have been decided wrongly.
        decides: whether all rows are searched and nothing is ambiguous: then counts alone are left to read.
        complete: whether the host knows, beside that, that each row has a positive and a negative.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> search = FixedShapeSearch(Pairwise("doc", x, torch.tensor([0, 0, 1, 1]), distance=euclidean))
        >>> for block in search.blocks():
        ...     print(search.nearest(block.negatives(), k=2).tolist(), search.ambiguous.tolist())
        [[2, 3], [2, 3], [1, 0], [1, 0]] [0, 0, 0, 0]
    """

    in_order = True

    def __init__(
        self,
        pairwise: Pairwise,
        rows: Int[Tensor, " s"] | None = None,
        exactly: bool = False,
        pairs: int | None = None,
    ) -> None:
        self._pairwise = pairwise
        inputs = [v.detach() for v in pairwise.inputs]
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        sizes = budget(device)
        self._more = sizes.measured_more
        self._exact = ExactDistances(pairwise.distance, *inputs)
        self._keys = None  # then tables hold exact distances
        if not (exactly or form_of(pairwise.distance) is None or n * r <= sizes.direct_numbers):
            self._keys = RankKeys(pairwise.distance, self._exact.x, self._exact.y)
        self._rows, self._pairs = rows, pairs
        self.decides = rows is None and self._keys is None
        self.complete = self.decides and pairwise.is_surely_complete
        self._positives: list[Tensor] = []  # of each row, once pairs were asked for
        numbers = pairwise.ids if pairwise.own_column else None  # then the ids are the row numbers
        self._every = torch.arange(n, device=device) if numbers is None else numbers
        self._columns = self._every if r == n else torch.arange(r, device=device)
        self.ambiguous = torch.zeros(n, dtype=torch.int64, device=device)
        height = max(1, sizes.tile_bytes // (max(1, r) * inputs[0].dtype.itemsize))
        self._height = pairwise.given_tile_rows or height

    def blocks(self) -> Iterator[RowBlock]:
        """All rows, some at a time: few blocks, since an accelerator's tiles are large."""
        r = len(self._columns)
        if not r:
            return
        rows = self._every if self._rows is None else self._rows
        for start in range(0, len(rows), self._height):
            places = slice(start, start + self._height)
            some = rows if self._height >= len(rows) else rows[places]
            named = places if self._rows is None else some
            if self._keys is None:
                table = self._exact.table_of_different(some, self._columns)
            else:
                table = self._keys.table(named)
            yield RowBlock(some, table, self._columns, slice(0, r), *self._pairwise.sides(named))

    def distances(self, rows: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """The exact distance of each row to its column."""
        return self._exact.pairs(rows, columns)

    def positive_pairs(
        self, block: RowBlock, having: Candidates | None = None
    ) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Each (anchor, positive) as (place in the block, column), by anchor.

        How many there are follows from labels that are still on the host; where they are not, it is read.
        `having` is not looked at: anchors that lack those candidates find none later.
        """
        if self._rows is not None:
            alone = len(block.rows) == len(self._rows)
            count = self._pairs if alone else None
        else:
            self._positives.append(block.positive.sum(1))
            first = sum(map(len, self._positives[:-1]))
            every = self._pairwise.positives_on_host
            count = None if every is None else int(every[first : first + len(block.rows)].sum())
        if count is None:
            count = int(block.positive.sum())
        at, column = torch.nonzero_static(block.positive, size=count).unbind(1)
        return at, column

    def doubts(self) -> list[Int[Tensor, ""]]:
        """How many rows are ambiguous, and how many of the positive pairs that were asked for are theirs.

        Nothing where nothing can be ambiguous; one number where no pairs were asked for.
        """
        if self._keys is None:
            return []
        ambiguous = self.unsure
        if not self._positives:
            return [ambiguous.sum()]
        positives = self._positives[0] if len(self._positives) == 1 else torch.cat(self._positives)
        return [ambiguous.sum(), (positives * ambiguous).sum()]

    @property
    def unsure(self) -> Bool[Tensor, " n"]:
        """The rows of which something may have been decided wrongly."""
        return self.ambiguous > 0

    def judged(self, numbers: list[int]) -> tuple[int, int]:
        """How many rows are ambiguous, and how many of the pairs are theirs, given what `doubts` read."""
        count, pairs = (*numbers, 0, 0)[:2]
        return count, pairs

    def first(
        self, candidates: Candidates, above: Float[Tensor, " a"] | None = None, consume: bool = False
    ) -> Int[Tensor, " a"]:
        """`nearest` for k = 1, as int64 [a]."""
        return self.nearest(candidates, 1, above)[:, 0]

    def nearest(
        self,
        candidates: Candidates,
        k: int = 1,
        above: Float[Tensor, " a"] | None = None,
        consume: bool = False,
    ) -> Int[Tensor, "a k"]:
        """The first k candidates of each row, in order; −1 where there are no more.

        Args are those of `ExactSearch.nearest`; keys that `consume` hands over are left as they are.
        """
        rows, keys, columns, _ = candidates
        if not len(columns):
            return rows.new_full((len(rows), k), -1)
        error = limit = None
        if self._keys is not None:
            error = self._of_rows(self._keys.error, rows)
        if above is not None:  # what lies surely before the bound is no candidate
            limit, bound = candidates.signed(above), candidates.signed(self._keys_of(above, rows))
            if error is not None:
                bound = bound - error
            keys = keys.masked_fill(keys <= bound[:, None], math.inf)
        if error is None:
            return _first(keys, k)
        width = min(k + self._more, len(columns))
        values, at = keys.topk(width, dim=1, largest=False)  # [a, w]
        if k > 1:  # a stable sort by distance then keeps the lower column first
            at, order = at.sort(dim=1)
            listed = values.gather(1, order)
        else:
            listed = values
        d = candidates.signed(self._listed(rows, at))
        out = listed == math.inf
        if limit is not None:
            out = out | (d <= limit[:, None])
        d = d.masked_fill_(out, math.inf)
        if k > 1:
            d, order = d.sort(dim=1, stable=True)
            chosen = at.gather(1, order).masked_fill_(d == math.inf, -1)[:, :k]
            last = d[:, min(k, width) - 1]
        else:
            last = d.amin(1)
            none = len(columns)
            chosen = at.masked_fill(d != last[:, None], none).amin(1, keepdim=True)
            chosen = chosen.masked_fill(last[:, None] == math.inf, -1)
        if chosen.shape[1] < k:
            chosen = torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)
        if width < len(columns):
            outside = values[:, -1]  # no key outside the list is smaller
            key = candidates.signed(
                self._keys_of(candidates.signed(last), rows)
            )  # inf where fewer than k are left
            self._note(rows, (key >= outside - error) & (outside < math.inf))
        return chosen

    def farthest(self, candidates: Candidates) -> Int[Tensor, " a"]:
        """The last candidate of each row, −1 where there is none."""
        return self.nearest(candidates.reversed())[:, 0]

    def nearest_above(
        self, candidates: Candidates, at: Int[Tensor, " t"], above: Float[Tensor, " t"]
    ) -> Int[Tensor, " t"]:
        """The first candidate after a distance, for any number of distances a row. As in `ExactSearch`."""
        parts = split_rows(len(candidates.columns), at, above)
        found = [self.nearest(candidates.take(some), above=bound)[:, 0] for some, bound in parts]
        return torch.cat(found) if found else torch.full_like(at, -1)

    def closer_than(
        self,
        candidates: Candidates,
        bound: Float[Tensor, " a"],
        equal: bool = False,
        among: Bool[Tensor, "a c"] | None = None,
    ) -> Bool[Tensor, "a c"]:
        """Which candidates come before a distance. As `ExactSearch.closer_than`."""
        rows, keys, *_ = candidates
        middle = candidates.signed(self._keys_of(bound, rows))[:, None]
        if self._keys is None:
            found = (keys <= middle).logical_and_(keys < math.inf) if equal else keys < middle
            return found if among is None else found & among
        error = self._of_rows(self._keys.error, rows)[:, None]
        above = keys - middle  # one difference, so that rounding puts no entry on neither side
        found, gap = above < -error, above.abs()
        if among is not None:
            found &= among
            gap.masked_fill_(~among, math.inf)
        near, at = gap.topk(min(1 + self._more, gap.shape[1]), dim=1, largest=False)  # [a, w]
        d, b = candidates.signed(self._listed(rows, at)), candidates.signed(bound)[:, None]
        decided = d <= b if equal else d < b
        found.scatter_(1, at, torch.where(near <= error, decided, found.gather(1, at)))
        if at.shape[1] < gap.shape[1]:
            self._note(rows, near[:, -1] <= error[:, 0])
        return found

    def hardest(self, extremes: tuple[Candidates, ...]) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
        """Of `RowBlock.extremes`, the farthest positive and the nearest negative; −1 where none is."""
        found = [self.nearest(each)[:, 0] for each in extremes]
        positive, negative = found if len(found) == 2 else found[0].chunk(2)
        return positive, negative

    def _listed(self, rows: Int[Tensor, " a"], at: Int[Tensor, "a w"]) -> Float[Tensor, "a w"]:
        """The exact distance of each row to each of its listed columns."""
        return self.distances(rows[:, None].expand_as(at).flatten(), at.flatten()).view_as(at)

    def _keys_of(self, distance: Float[Tensor, " a"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        return distance if self._keys is None else self._keys.of_distance(distance, self._unless_every(rows))

    def _of_rows(self, values: Float[Tensor, " n"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        return values if self._unless_every(rows) is None else values[rows]

    def _unless_every(self, rows: Int[Tensor, " a"]) -> Int[Tensor, " a"] | None:
        """The rows; None where they are all, in order."""
        return None if rows is self._every else rows

    def _note(self, rows: Int[Tensor, " a"], ambiguous: Bool[Tensor, " a"]) -> None:
        if rows is self._every:
            self.ambiguous += ambiguous
        else:
            self.ambiguous.index_add_(0, rows, ambiguous.to(torch.int64))


def _first(distances: Float[Tensor, "a r"], k: int) -> Int[Tensor, "a k"]:
    """The first k of exact distances; −1 for those that are infinite. Ties go to the lower column."""
    if k == 1:
        at = distances.argmin(1, keepdim=True)  # the first of equal ones
        return at.masked_fill(distances.gather(1, at) == math.inf, -1)
    values, at = distances.sort(dim=1, stable=True)
    at = at[:, :k].masked_fill(values[:, :k] == math.inf, -1)
    return torch.nn.functional.pad(at, (0, k - at.shape[1]), value=-1)
