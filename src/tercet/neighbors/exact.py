"""Exact search among candidates: nearest, farthest, nearest above a bound, closer than a bound.

All four climb one ladder. Each rung decides what its numbers can tell apart (`neighbors/keys` has the lemma)
and leaves the ambiguous rest to the next:

| rung | nearest and farthest | nearest above a bound | closer than a bound |
|---|---|---|---|
| rank keys | arg-minimum, or the k + 2 smallest | the same, or bisection of sorted keys | comparison |
| differences of ambiguous entries | those within 2ε of the least | the same | those within ε of the bound |
| differences of a longer shortlist | 8 (k + 2) smallest | the same | |
| differences of whole rows | all candidates | the same | all, where many entries are ambiguous |

Equal distances are in the order of their column numbers. So no result depends on how rows are cut into
blocks, and duplicates are told apart from near ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.neighbors.above import first_of_rows, least_above, write_least
from tercet.neighbors.blocks import Candidates, RowBlock, span_of, split_rows
from tercet.neighbors.keys import ExactDistances, RankKeys, class_keys, first_above
from tercet.neighbors.shortlists import shortlist
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import Places, below_bound, kept_above, row_argmin, true_places
from tercet.pairwise.tiles import Pairwise

__all__ = ["ExactSearch"]


class ExactSearch:
    """The rows of a batch in blocks, and searches among the candidates of a block.

    Args:
        pairwise: rows and columns.
        ordered: take rows and columns in class order, so that the positives of a block lie in a narrow class
            block. Small batches, and relations without classes, stay as they are; `in_order` says so.

    Attributes:
        keys: the rank keys, with the error bound of each row.
        exact: the distances that decide.
        in_order: whether rows and columns stay in the order of their numbers.
        order: the numbers of rows and of columns in the order in which they are taken.
        labels: their classes in that order; None where `in_order`.
        complete: False: that every row has all that is asked for is known only to `FixedShapeSearch`.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> search = ExactSearch(Pairwise("doc", x, torch.tensor([0, 0, 1, 1]), distance=euclidean))
        >>> for block in search.blocks():
        ...     print(search.nearest(block.negatives(), k=2))
        tensor([[2, 3],
                [2, 3],
                [1, 0],
                [1, 0]])
    """

    def __init__(self, pairwise: Pairwise, ordered: bool = True) -> None:
        self._pairwise = pairwise
        inputs = [v.detach() for v in pairwise.inputs]
        n, r, device = inputs[0].shape[0], inputs[-1].shape[0], inputs[0].device
        self._budget = sizes = budget(device)
        classes = class_keys(pairwise) if ordered and n > sizes.class_order_rows else None
        self.in_order, self.complete = classes is None, False
        self.exact = ExactDistances(pairwise.distance, *inputs)
        self._x, self._y = self.exact.x, self.exact.y
        if classes is None:
            self.labels = None
            own = pairwise.own_column  # then the ids are the row numbers
            every = pairwise.ids if own and pairwise.ids is not None else torch.arange(n, device=device)
            self.order = every, every if own else torch.arange(r, device=device)
        else:
            rows = classes[0].sort(stable=True)
            columns = rows if classes[1] is classes[0] else classes[1].sort(stable=True)
            self.labels, self.order = zip(rows, columns, strict=True)
        self.keys = RankKeys(pairwise.distance, self._x, self._y, None if self.in_order else self.order)
        # Groups of √r / 2 columns: a shortlist reads 2√r least keys of groups, and the members of a few.
        self._group = 2 ** max(0, round(math.log2(max(1, r)) / 2 - 1))
        self._width = -(-r // self._group) * self._group
        size = sizes.block_bytes if self.in_order else sizes.tile_bytes
        height = max(1, size // (max(1, r) * self._x.dtype.itemsize))
        if not self.in_order:  # the class block is about as wide as the block is high
            height = min(height, max(sizes.product_rows, n // sizes.class_order_blocks))
        self._height = min(pairwise.given_tile_rows or height, max(1, n))
        self._rows: Tensor | None = None  # of the block that was given last, where rows are in order
        self._first = 0

    def blocks(self) -> Iterator[RowBlock]:
        """All rows, some at a time. The keys of a block are overwritten by the next block's."""
        n, r = self._x.shape[0], self._y.shape[0]
        if not r:
            return
        if self.in_order and self._height == n and r <= self._budget.argmin_columns:
            sides = self._pairwise.sides(slice(0, n))
            yield RowBlock(self.order[0], self.keys.table(), self.order[1], slice(0, r), *sides)
            return
        buffer = self._x.new_empty((self._height, self._width))
        if r < self._width:
            buffer[:, r:] = math.inf
        for start in range(0, n, self._height):
            places = slice(start, min(start + self._height, n))
            keys = buffer[: places.stop - start]
            self.keys.table(places, out=keys[:, :r])
            rows = self.order[0][places]
            if self.labels is None:
                self._rows, self._first = rows, start
                yield RowBlock(rows, keys, self.order[1], slice(0, r), *self._pairwise.sides(places))
                continue
            class_block = span_of(self.labels[0][places], self.labels[1])
            sides = self._pairwise.sides(rows, self.order[1][class_block])
            yield RowBlock(rows, keys, self.order[1], class_block, *sides)

    def distances(self, rows: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """The exact distance of each row to its column."""
        return self.exact.pairs(rows, columns)

    def positive_pairs(
        self, block: RowBlock, having: Candidates | None = None
    ) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """`block.positive_pairs(having)`; a search of another kind has to find their number first."""
        return block.positive_pairs(having)

    def nearest(
        self,
        candidates: Candidates,
        k: int = 1,
        above: Float[Tensor, " a"] | None = None,
        consume: bool = False,
    ) -> Int[Tensor, "a k"]:
        """The first k candidates of each row, in order; −1 where there are no more.

        Args:
            candidates: [a] rows and what may be chosen: the nearest first, or the farthest where the sign is
                −1.
            k: how many.
            above: [a], distances; only columns strictly farther count, strictly closer where the sign is −1.
            consume: the candidates' keys may be overwritten. It saves a copy where `above` is given.

        Returns:
            int64 [a, k], column numbers.
        """
        if k == 1:
            return self.first(candidates, above, consume)[:, None]
        return self._first_k(candidates, k, above, consume)

    def first(
        self, candidates: Candidates, above: Float[Tensor, " a"] | None = None, consume: bool = False
    ) -> Int[Tensor, " a"]:
        """`nearest` for k = 1, as int64 [a]."""
        rows, keys, columns, _ = candidates
        if not 0 < columns.shape[0] <= self._budget.argmin_columns:
            return self._first_k(candidates, 1, above, consume)[:, 0]
        error, limit, bound = self._of_rows(self.keys.error, rows), None, None
        if above is not None:
            limit, bound = candidates.signed(above), candidates.signed(self._keys_of(above, rows))
            candidates = candidates._replace(keys=kept_above(bound - error, keys, inplace=consume))
        at, listed = row_argmin(candidates.keys, error)
        chosen = at if self.in_order else torch.where(at < 0, at, columns[at])
        near: Tensor | None = None
        if bound is not None:  # a column whose least key is so near the bound may not be above it
            least = candidates.keys.gather(1, at.clamp(min=0)[:, None])[:, 0]
            near = (least <= bound + error).nonzero()[:, 0]
        if listed[0].shape[0]:
            self._write_first(candidates, None, limit, listed, chosen)
        if near is not None and near.shape[0]:
            chosen[near] = first_of_rows(self.exact, candidates, near, 1, limit)[:, 0]
        return chosen

    def _first_above(
        self, candidates: Candidates, at: Int[Tensor, " t"], above: Float[Tensor, " t"]
    ) -> Int[Tensor, " t"]:
        """`nearest_above` by arg-minima."""
        rows, columns = candidates.rows, candidates.columns
        limit = candidates.signed(above, at)
        bound = candidates.signed(self.keys.of_distance(above, rows[at]), at)
        error = self._of_rows(self.keys.error, rows)
        least, (i, j) = least_above(candidates.keys, at, bound, error, self._budget.argmin_numbers)
        chosen = torch.where(least < 0, least, columns[least])
        if len(i):
            self._write_first(candidates, at, limit, (i, j), chosen)
        return chosen

    def _write_first(
        self, candidates: Candidates, at: Tensor | None, limit: Tensor | None, listed: Places, chosen: Tensor
    ) -> None:
        """Write the first of the listed candidates above a limit into `chosen`, by differences.

        Args:
            candidates: [a] rows and what may be chosen.
            at: int64 [t], the place in `candidates.rows` of each item of `chosen`; None for the same place.
            limit: float [t], distances times the row's sign; None for none.
            listed: items of `chosen`, in rising order, and the places in `candidates.columns` that may be
                their first.
            chosen: int64 [t], written over where items are listed.
        """
        (i, j), width = listed, len(candidates.columns)
        if self._budget.dense_share * len(i) > width * len(chosen):  # as when all are equal
            for (item,) in split_rows(2 * width, i.unique_consecutive()):
                some = candidates.take(item if at is None else at[item])
                bound = None if limit is None else limit[item]
                chosen[item] = first_of_rows(self.exact, some, torch.arange(len(item)), 1, bound)[:, 0]
            return
        row, names = i if at is None else at[i], self.numbers(candidates.columns, j)
        d = candidates.signed(self.distances(self.numbers(candidates.rows, row), names), row)
        write_least(chosen, i, names, d, limit)

    def _first_k(
        self, candidates: Candidates, k: int, above: Float[Tensor, " a"] | None, consume: bool
    ) -> Int[Tensor, "a k"]:
        """`nearest`, by shortlists."""
        rows, keys, columns, _ = candidates
        if not len(columns):
            return rows.new_full((len(rows), k), -1)
        error, limit, bound = self._of_rows(self.keys.error, rows), None, None
        if above is not None:  # from here on, distances and their keys count times the sign
            limit, bound = candidates.signed(above), candidates.signed(self._keys_of(above, rows))
            candidates = candidates._replace(keys=kept_above(bound - error, keys, inplace=consume))
        values, at = shortlist(candidates.keys, k + 2, self._group)
        chosen = columns[at[:, :k].clamp(max=len(columns) - 1)].masked_fill(values[:, :k] == math.inf, -1)
        apart = (values[:, 1:] - values[:, :-1] > 2 * error[:, None]) | (values[:, 1:] == math.inf)
        ambiguous = ~apart[:, :k].all(1)
        if bound is not None:
            ambiguous |= values[:, 0] <= bound + error
        (left,) = ambiguous.nonzero(as_tuple=True)
        if len(left):
            self._resolve(candidates, k, limit, left, values, at, chosen)
        return chosen

    def farthest(self, candidates: Candidates) -> Int[Tensor, " a"]:
        """The last candidate of each row, −1 where there is none: the farthest where the sign is 1."""
        return self.first(candidates.reversed(), consume=True)

    def nearest_above(
        self, candidates: Candidates, at: Int[Tensor, " t"], above: Float[Tensor, " t"]
    ) -> Int[Tensor, " t"]:
        """The first candidate after a distance, for any number of distances a row; −1 where there is none.

        Args:
            candidates: [a] rows and what may be chosen.
            at: places in `candidates.rows`, in rising order.
            above: distances, as for `nearest`.

        Returns:
            int64 [t], column numbers.
        """
        if not len(at) or not len(candidates.columns):
            return torch.full_like(at, -1)
        if len(at) * len(candidates.columns) <= self._budget.copied_numbers:
            return self.first(candidates.take(at), above, consume=True)
        if len(at) <= self._budget.sorted_bounds * len(candidates.rows):
            return self._first_above(candidates, at, above)
        rows, columns = candidates.rows[at], candidates.columns
        bound = self._keys_of(above, rows) * candidates.sign[at]
        place, ambiguous = first_above(candidates.keys, at, bound, self.keys.error[rows])
        chosen = columns[place.clamp(0, len(columns) - 1)].masked_fill(place < 0, -1)
        (left,) = ambiguous.nonzero(as_tuple=True)
        if len(left):
            chosen[left] = self._first_above(candidates, at[left], above[left])
        return chosen

    def closer_than(
        self,
        candidates: Candidates,
        bound: Float[Tensor, " a"],
        equal: bool = False,
        among: Bool[Tensor, "a c"] | None = None,
    ) -> Bool[Tensor, "a c"]:
        """Which candidates come before a distance: those closer than it, or farther where the sign is −1.

        Args:
            candidates: [a] rows and what may be chosen.
            bound: [a], distances.
            equal: take in columns at exactly that distance.
            among: [a, c], leave out the columns for which it is False.
        """
        rows, keys, columns, _ = candidates
        middle = candidates.signed(self._keys_of(bound, rows))
        error = self._of_rows(self.keys.error, rows)
        if keys.shape[1] > columns.shape[0]:  # padding
            keys = keys[:, : columns.shape[0]]
        found, (i, j) = below_bound(keys, middle, error, among)  # [a, c]
        if i.shape[0]:
            if self._budget.dense_share * len(i) > found.numel():
                d = self.exact.table(rows, columns)[i, j]
            else:
                d = self.distances(self.numbers(rows, i), self.numbers(columns, j))
            d, b = candidates.signed(d, i), candidates.signed(bound[i], i)
            found[i, j] = d <= b if equal else d < b
        return found

    def hardest(self, extremes: tuple[Candidates, ...]) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
        """Of `extremes`, the farthest positive and the nearest negative of each row; −1 where none is."""
        one = len(extremes) == 1
        positive, negative = self.first(extremes[0]).chunk(2) if one else map(self.first, extremes)
        return positive, negative

    def _resolve(
        self,
        candidates: Candidates,
        k: int,
        limit: Float[Tensor, " a"] | None,
        left: Int[Tensor, " u"],
        values: Float[Tensor, "a s"],
        at: Int[Tensor, "a s"],
        chosen: Int[Tensor, "a k"],
    ) -> None:
        """Write the first k of the ambiguous rows `left` into `chosen`, by the cheapest rung that decides.

        `values` and `at` are the shortlist of all rows.
        """
        width = candidates.keys.shape[1]
        left = self._resolve_listed(candidates, limit, left, values[left], at[left], chosen)
        longer = self._budget.longer_shortlist * (k + 2)
        if len(left) and self._budget.shortlist_share * longer <= width:
            listed = shortlist(candidates.keys[left], longer, self._group)
            left = self._resolve_listed(candidates, limit, left, *listed, chosen)
        for (some,) in split_rows(2 * width, left):
            chosen[some] = first_of_rows(self.exact, candidates, some, k, limit)

    def _resolve_listed(
        self,
        candidates: Candidates,
        limit: Float[Tensor, " a"] | None,
        some: Int[Tensor, " u"],
        values: Float[Tensor, "u s"],
        at: Int[Tensor, "u s"],
        chosen: Int[Tensor, "a k"],
    ) -> Int[Tensor, " v"]:
        """Write the first k of a shortlist, by differences, into `chosen`; the rows that stay ambiguous.

        A row is resolved where no key outside its shortlist can stand for a distance as small as the k-th.
        """
        columns, k, none = candidates.columns, chosen.shape[1], len(self._y)
        rows, sign = candidates.rows[some], candidates.sign[some]
        listed = columns[at.clamp(max=len(columns) - 1)].masked_fill(values == math.inf, none)
        listed = listed.sort(
            dim=1
        ).values  # [u, s]: a stable sort by distance then keeps the lower column first
        d = self._x.new_full(listed.shape, math.inf)
        i, j = true_places(listed < none)
        d[i, j] = self.distances(rows[i], listed[i, j]) * sign[i]
        if limit is not None:
            d.masked_fill_(d <= limit[some, None], math.inf)
        d, order = d.sort(dim=1, stable=True)
        chosen[some] = listed.gather(1, order).masked_fill(d == math.inf, -1)[:, :k]
        last = self._keys_of(d[:, k - 1] * sign, rows) * sign
        complete = values[:, -1] == math.inf
        resolved = (d[:, k - 1] < math.inf) & (last < values[:, -1] - self.keys.error[rows])
        return some[~(complete | resolved)]

    def _keys_of(self, distance: Float[Tensor, " a"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The rank key of a distance from each row."""
        return self.keys.of_distance(distance, None if self._is_every(rows) else rows)

    def _of_rows(self, values: Float[Tensor, " n"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        return values if self._is_every(rows) else values[rows]

    def numbers(self, names: Int[Tensor, " a"], places: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
        """The row or column numbers at these places of `names`."""
        if self._is_every(names):
            return places
        if names is self._rows:  # they follow each other
            return places + self._first
        return names[places]

    def _is_every(self, names: Int[Tensor, " a"]) -> bool:
        """Whether they are all rows, or all columns, so that each stands at the place of its number."""
        return self.in_order and (names is self.order[0] or names is self.order[1])
