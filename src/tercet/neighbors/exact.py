"""What every miner is made of: the nearest, the farthest and all within a bound, fast and exact.

Matrix products propose and differences decide. A *key* orders the columns of a row as their distances do,
‖y‖² − 2x·y where D rises with ‖x − y‖², and comes from a product whose error has a known bound, the *slack*.
Two keys further apart than the slack are in their true order; the few others are decided by `exact`
distances, equal ones by the lower column. So no result depends on the tile, and duplicates are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tercet.core.checks import promised
from tercet.neighbors.blocks import Field, Strip, split_pairs
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import ProductForm, SquareForm, form_of
from tercet.pairwise.distances import exact, exact_pairs
from tercet.pairwise.euclidean import square_bound
from tercet.pairwise.masked import compared, extreme_keys, first_places, kept_above, true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import full_precision, roundoff

__all__ = ["Scan"]


class Scan:
    """One way over all rows, strip by strip, and the questions that can be put to a strip.

    Args:
        pairwise: rows and columns.
        ordered: take rows and columns in the order of the relation's key, so that positives lie in a narrow
            band; where the relation has none, or one image bears two keys, the order is as given.
    """

    def __init__(self, pairwise: Pairwise, ordered: bool = True) -> None:
        self._pairwise = pairwise
        inputs = [v.detach() for v in pairwise.inputs]
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        self._budget = sizes = budget(device)
        self._labels = _banded(pairwise) if ordered and n > sizes.class_order_rows else None
        self.in_order = self._labels is None
        form = form_of(pairwise.distance)
        self._form = form if isinstance(form, SquareForm) else None
        self._by_product = isinstance(form, ProductForm)
        if self._form is not None:
            inputs = [self._form.space(v) for v in inputs]
            centre = inputs[-1].mean(0) if r else 0.0  # smaller norms, smaller error; the same differences
            centred = [v - centre for v in inputs]
            self._slack, self._offset, self._squares = square_bound(centred[0], centred[-1])
        else:
            centred = inputs
            self._offset = self._slack = inputs[0].new_zeros(n)
            if self._by_product and r:
                lengths = [torch.linalg.vector_norm(each, dim=1) for each in inputs]
                terms = 2 * inputs[0].shape[1] + 16
                self._slack = lengths[0] * lengths[-1].max() * (roundoff(inputs[0]) * terms)
        self._x, self._y = inputs[0], inputs[-1]  # their differences are the distances
        self._u, self._v = u, v = centred[0], centred[-1]  # their products are the keys
        if self._labels is None:
            own = pairwise.own_column  # then the ids are the row numbers
            every = pairwise.ids if own and pairwise.ids is not None else torch.arange(n, device=device)
            self._order = every, every if own else torch.arange(r, device=device)
        else:
            self._labels, self._order = zip(*(key.sort(stable=True) for key in self._labels))
            self._u, self._v = u[self._order[0]], v[self._order[1]]
            if self._form is not None:
                self._squares = self._squares[self._order[1]]
        self._group = 2 ** max(0, round(math.log2(max(1, r)) / 2 - 1))  # columns of a group of `_shortlist`
        self._width = -(-r // self._group) * self._group
        room = sizes.tile_bytes if self._labels is not None else sizes.block_bytes
        height = max(1, room // (max(1, r) * u.dtype.itemsize))
        if self._labels is not None:  # the band is about as wide as the strip is high
            height = min(height, max(sizes.product_rows, n // sizes.class_order_blocks))
        self._height = min(pairwise.given_tile_rows or height, max(1, n))
        self._room: Tensor | None = None

    def strips(self) -> Iterator[Strip]:
        """All rows, some at a time. The keys of a strip are overwritten by the next."""
        n, r = len(self._x), len(self._y)
        if not r:
            return
        if self.in_order and self._height == n and r <= self._budget.argmin_columns:
            sides = self._pairwise.sides(slice(0, n))
            yield Strip(self._order[0], self._keys(self._u), self._order[1], slice(0, r), *sides)
            return
        buffer = self._u.new_empty((self._height, self._width))
        if r < self._width:
            buffer[:, r:] = math.inf
        for start in range(0, n, self._height):
            rows = slice(start, min(start + self._height, n))
            keys = buffer[: rows.stop - start]
            self._keys(self._u[rows], out=keys[:, :r])
            named = self._order[0][rows]
            if self._labels is None:
                yield Strip(named, keys, self._order[1], slice(0, r), *self._pairwise.sides(rows))
                continue
            own, labels = self._labels[0][rows], self._labels[1]
            first = torch.searchsorted(labels, own[:1])
            last = torch.searchsorted(labels, own[-1:], right=True)
            band = slice(*torch.cat([first, last]).tolist())
            sides = self._pairwise.sides(named, self._order[1][band])
            yield Strip(named, keys, self._order[1], band, *sides)

    def _keys(self, u: Tensor, out: Tensor | None = None) -> Float[Tensor, "a r"]:
        with full_precision(u.device):
            if self._form is not None:
                return torch.addmm(self._squares, u, self._v.T, alpha=-2, out=out)
            tile = self._pairwise.distance.tile(u, self._v)
            return tile.clone() if out is None else out.copy_(tile)

    def distances(self, rows: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """The exact distance of each row to its column."""
        step = max(1, self._budget.gathered_numbers // max(1, self._x.shape[1]))
        if len(rows) > step:
            return torch.cat([self.distances(*some) for some in zip(rows.split(step), columns.split(step))])
        if not len(rows):
            return self._x.new_empty(0)
        x, y = self._x.index_select(0, rows), self._y.index_select(0, columns)
        if self._form is None:
            return exact_pairs(self._pairwise.distance, x, y)
        return self._form.exact_pairs_in_space(x, y)

    def _table(self, rows: Int[Tensor, " c"], columns: Int[Tensor, " w"]) -> Float[Tensor, "c w"]:
        """The exact distance of each row to every column."""
        once, again = torch.unique_consecutive(rows, return_inverse=True)
        if self._by_product:  # the tile of a product is no exact one
            i, j = torch.cartesian_prod(once, columns).T
            return self.distances(i, j).view(len(once), len(columns))[again]
        x, y = self._x[once], self._y[columns]
        if self._form is None:
            return exact(self._pairwise.distance, x, y)[again]
        return self._form.exact_in_space(x, y)[again]

    def _of(self, values: Float[Tensor, " n"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        return values if self._every(rows) else values[rows]

    def _named(self, names: Int[Tensor, " a"], places: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
        return places if self._every(names) else names[places]

    def _every(self, names: Int[Tensor, " a"]) -> bool:
        """Whether they are all rows, or columns, in order: each then stands in the place of its number."""
        return self.in_order and (names is self._order[0] or names is self._order[1])

    def _key(self, distance: Float[Tensor, " a"], rows: Int[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The key of a distance from each row."""
        if self._form is None:
            return distance
        return self._form.square_of(distance.clamp(min=0)) - self._of(self._offset, rows)

    def nearest(
        self, field: Field, k: int = 1, beyond: Float[Tensor, " a"] | None = None
    ) -> Int[Tensor, "a k"]:
        """The k nearest columns of each row, in order; −1 where there are no more.

        Args:
            field: rows and what may be chosen.
            k: how many.
            beyond: [a] distances; only columns farther than that count (where no keys are negated). The
                field's keys are then used up: those of nearer columns may become inf.
        """
        rows, keys, columns, _ = field
        if not len(columns):
            return rows.new_full((len(rows), k), -1)
        if k == 1 and len(columns) <= self._budget.argmin_columns:
            return self._first(field, beyond)[:, None]
        slack = self._of(self._slack, rows)
        if beyond is not None:
            bound = self._key(beyond, rows)
            kept_above(bound - slack, keys, inplace=True)
        values, at = _shortlist(keys, k + 2, self._group)
        chosen = columns[at[:, :k].clamp(max=len(columns) - 1)].masked_fill(values[:, :k] == math.inf, -1)
        apart = (values[:, 1:] - values[:, :-1] > 2 * slack[:, None]) | (values[:, 1:] == math.inf)
        doubt = ~apart[:, :k].all(1)
        if beyond is not None:
            doubt |= values[:, 0] <= bound + slack
        (unsure,) = doubt.nonzero(as_tuple=True)
        if not len(unsure):
            return chosen
        unsure = self._settled(chosen, field, unsure, values[unsure], at[unsure], beyond)
        longer = self._budget.longer_shortlist * (k + 2)
        if len(unsure) and 4 * longer <= keys.shape[1]:
            shortlist = _shortlist(keys[unsure], longer, self._group)
            unsure = self._settled(chosen, field, unsure, *shortlist, beyond)
        for (some,) in split_pairs(2 * keys.shape[1], unsure):
            limit = None if beyond is None else beyond[some]
            chosen[some] = self._rank_all(field, some, k, limit)
        return chosen

    def _settled(
        self, chosen: Tensor, field: Field, some: Tensor, values: Tensor, at: Tensor, beyond: Tensor | None
    ) -> Int[Tensor, " u"]:
        """Write what a shortlist of some rows gives into their rows of `chosen`; those it cannot settle."""
        limit = None if beyond is None else beyond[some]
        chosen[some], settled = self._rank(field, some, values, at, chosen.shape[1], limit)
        return some[~settled]

    def extremes(self, strip: Strip) -> tuple[Field, ...]:
        """The positives, farthest first, and the negatives, nearest first.

        Two fields [a, w], or one [2a, w] of both: one way over small tables costs half of two.
        """
        if not self.in_order or len(strip.columns) > self._budget.argmin_columns:
            return strip.positives(farthest=True), strip.negatives()
        keys = extreme_keys(strip.keys[:, : len(strip.columns)], strip.positive, strip.negative)
        return (Field(torch.cat([strip.rows, strip.rows]), keys, strip.columns, len(strip.rows)),)

    def hardest(self, fields: tuple[Field, ...]) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
        """Of `extremes`, the farthest positive and the nearest negative of each row; −1 where none is."""
        if len(fields) == 1:
            positive, negative = self._first(fields[0]).chunk(2)
        else:
            positive, negative = (self.nearest(field)[:, 0] for field in fields)
        return positive, negative

    def _first(self, field: Field, beyond: Float[Tensor, " a"] | None = None) -> Int[Tensor, " a"]:
        """`nearest` for k = 1 and a small table."""
        rows, keys, columns, flipped = field
        bound = None if beyond is None else self._key(beyond, rows)
        at, (i, j), doubtful = first_places(keys, self._of(self._slack, rows), bound)
        chosen = at if self.in_order else torch.where(at < 0, at, columns[at])
        if i.shape[0] > self._budget.crowded_entries * keys.shape[0]:  # as when all are equal
            doubtful, i = torch.cat([doubtful, i.unique_consecutive()]), i[:0]
        if doubtful.shape[0]:
            limit = None if beyond is None else beyond[doubtful]
            chosen[doubtful] = self._rank_all(field, doubtful, 1, limit)[:, 0]
        if not i.shape[0]:
            return chosen
        j = self._named(columns, j)
        best: dict[int, tuple[float, int]] = {}
        for row, d, column in zip(i.tolist(), self.distances(self._named(rows, i), j).tolist(), j.tolist()):
            candidate = (-d if row < flipped else d), column
            best[row] = min(best.get(row, candidate), candidate)
        places = chosen.new_tensor(list(best))
        chosen[places] = chosen.new_tensor([column for _, column in best.values()])
        return chosen

    def _rank(
        self, field: Field, some: Tensor, values: Tensor, at: Tensor, k: int, beyond: Tensor | None
    ) -> tuple[Int[Tensor, "u k"], Bool[Tensor, " u"]]:
        """The first k of a shortlist by exact distance, and whether nothing outside it can come before."""
        rows, sign, columns = field.rows[some], -1 if field.flipped else 1, field.columns
        listed = columns[at.clamp(max=len(columns) - 1)].masked_fill(values == math.inf, len(self._y))
        listed = listed.sort(dim=1).values  # [u, s]
        d = self._x.new_full(listed.shape, math.inf)
        i, j = true_places(listed < len(self._y))
        d[i, j] = sign * self.distances(rows[i], listed[i, j])
        if beyond is not None:
            d.masked_fill_(d <= beyond[:, None], math.inf)
        d, order = d.sort(dim=1, stable=True)
        best = listed.gather(1, order).masked_fill(d == math.inf, -1)[:, :k]
        last = sign * self._key(sign * d[:, k - 1], rows)
        complete = values[:, -1] == math.inf
        return best, complete | ((d[:, k - 1] < math.inf) & (last < values[:, -1] - self._slack[rows]))

    def _rank_all(self, field: Field, some: Tensor, k: int, beyond: Tensor | None) -> Int[Tensor, "c k"]:
        """The first k of all columns by exact distance."""
        columns, order = field.columns.sort()
        d = self._table(field.rows[some], columns)
        d[some < field.flipped] *= -1
        d.masked_fill_(field.keys[some][:, order] == math.inf, math.inf)
        if beyond is not None:
            d.masked_fill_(d <= beyond[:, None], math.inf)
        if k == 1:  # `min` may name any of several equal columns
            least = d.amin(1, keepdim=True)
            place = torch.arange(len(columns), device=d.device).expand_as(d)
            best = place.masked_fill(d != least, len(columns) - 1).amin(1, keepdim=True)
            return columns[best].masked_fill_(least == math.inf, -1)
        d, order = d.sort(dim=1, stable=True)
        best = columns[order[:, :k]].masked_fill_(d[:, :k] == math.inf, -1)
        return pad(best, (0, k - best.shape[1]), value=-1)

    def beyond(self, strip: Strip, at: Int[Tensor, " t"], bound: Float[Tensor, " t"]) -> Int[Tensor, " t"]:
        """The nearest negative farther than each bound of the row at a place; −1 where there is none.

        Places in rising order. Where a row is asked often, its keys are sorted once.
        """
        chosen = torch.full_like(at, -1)
        unsure = torch.arange(len(at), device=at.device)
        if len(at) > self._budget.sorted_bounds * len(strip.rows):
            chosen, sure = self._searched(strip, at, bound)
            (unsure,) = (~sure).nonzero(as_tuple=True)
        for (some,) in split_pairs(strip.keys.shape[1], unsure):
            field = strip.of_pairs(at[some], out=self._room_for(strip.keys, len(some)))
            chosen[some] = self.nearest(field, beyond=bound[some])[:, 0]
        return chosen

    def farthest(self, strip: Strip) -> Int[Tensor, " a"]:
        """The farthest negative of each row, −1 where there is none; after `negatives()`."""
        found = []
        for rows, keys in split_pairs(strip.keys.shape[1], strip.rows, strip.keys):
            negated = torch.neg(keys, out=self._room_for(strip.keys, len(rows)))
            negated.masked_fill_(keys == math.inf, math.inf)
            found.append(self.nearest(Field(rows, negated, strip.columns, len(rows)))[:, 0])
        return torch.cat(found)

    def _room_for(self, keys: Float[Tensor, "a w"], rows: int) -> Float[Tensor, "c w"]:
        """Room for so many rows of such keys, the same each time: fresh memory costs as much again."""
        if self._room is None or len(self._room) < rows:
            self._room = keys.new_empty((rows, keys.shape[1]))
        return self._room[:rows]

    def _searched(
        self, strip: Strip, at: Int[Tensor, " t"], bound: Float[Tensor, " t"]
    ) -> tuple[Int[Tensor, " t"], Bool[Tensor, " t"]]:
        """What `beyond` gives, and whether the keys alone could tell."""
        rows, slack = strip.rows[at], self._slack[strip.rows[at]]
        keys, order = pad(strip.keys, (0, 2), value=math.inf).sort(dim=1)  # [a, w + 2]
        first = torch.searchsorted(at, torch.arange(len(keys), device=at.device))
        place = torch.arange(len(at), device=at.device) - first[at]
        middle = self._key(bound, rows)
        marks = keys.new_full((2, len(keys), int(place.max()) + 1), math.inf)  # [2, a, q]
        marks[0, at, place], marks[1, at, place] = middle - slack, middle + slack
        low = torch.searchsorted(keys, marks[0])[at, place]
        high = torch.searchsorted(keys, marks[1], right=True)[at, place].clamp_(max=keys.shape[1] - 2)
        key, following = keys[at, high], keys[at, high + 1]
        missing = key == math.inf
        column = strip.columns[order[at, high].clamp_(max=len(strip.columns) - 1)]
        apart = (following - key > 2 * slack) | (following == math.inf)
        return column.masked_fill(missing, -1), (low == high) & (missing | apart)

    def within(
        self,
        field: Field,
        bound: Float[Tensor, " a"],
        equal: bool = False,
        among: Bool[Tensor, "a c"] | None = None,
    ) -> Bool[Tensor, "a c"]:
        """Which columns lie nearer than `bound`, a distance for each row; of flipped rows, which lie farther.

        `equal` takes in those that lie as far, `among` leaves out those for which it is false.
        """
        rows, keys, columns, flipped = field
        keys, middle = keys[:, : len(columns)], self._key(bound, rows)
        if flipped:
            middle = torch.cat([-middle[:flipped], middle[flipped:]])
        found, (i, j) = compared(keys, middle, self._of(self._slack, rows), among)  # [a, c]
        if len(i):
            if self._budget.dense_share * len(i) > keys.numel():
                d = self._table(rows, columns)[i, j]
            else:
                d = self.distances(self._named(rows, i), self._named(columns, j))
            below, b = torch.le if equal else torch.lt, bound[i]
            found[i, j] = torch.where(i < flipped, below(b, d), below(d, b)) if flipped else below(d, b)
        return found


def _banded(pairwise: Pairwise) -> tuple[Tensor, Tensor] | None:
    """The relation's keys of rows and columns, if rows of unequal keys are never the same image."""
    key = promised(pairwise.relation, "key", "sides")
    rows, columns = (key and key(each) for each in (pairwise.labels, pairwise.column_labels))
    if rows is None or columns is None:
        return None
    if not pairwise.own_column and pairwise.ids is not None and pairwise.column_ids is not None:
        ids, caller = torch.cat([pairwise.ids, pairwise.column_ids]).unique(return_inverse=True)
        both = torch.cat([rows, columns])
        one = both.new_empty(len(ids)).scatter_(0, caller, both)
        if not bool((one[caller] == both).all()):
            return None
    return rows, columns


def _shortlist(
    keys: Float[Tensor, "a w"], count: int, group: int
) -> tuple[Float[Tensor, "a s"], Int[Tensor, "a s"]]:
    """The `count` smallest of each row in order, and where they are; inf where there are fewer.

    They lie in those `count` groups of columns whose least key is smallest, so that one pass for the minima
    of groups is all that touches every key.
    """
    a, w = keys.shape
    if w % group:
        group = 1
    groups = w // group
    least = keys.view(a, group, groups).amin(1) if group > 1 else keys  # [a, groups]
    found = least.topk(min(count, groups), dim=1, largest=False).indices
    inside = torch.arange(group, device=keys.device) * groups
    at = (found[:, :, None] + inside).view(a, -1)  # [a, count · group]
    values = keys.gather(1, at)
    values, order = values.topk(min(count, at.shape[1]), dim=1, largest=False)
    missing = count - values.shape[1]
    return pad(values, (0, missing), value=math.inf), pad(at.gather(1, order), (0, missing))
