"""Exact search in few launches, for accelerators, where the host knows the positives of every row.

Labels come from a loader, so they are on the host, and in batches of P × K each row has positives and
negatives. What `FixedShapeSearch` finds by passes over tables is then known before anything is computed:

1. Each row's positives are listed, and measured by differences: nothing about them is ambiguous.
2. The columns that are no negatives are listed too: one fill marks them, and no mask is made.
3. *Small batches*, up to `Budget.direct_numbers` distances, hold exact distances.
4. *Larger ones* hold negated rank keys (`neighbors/uniform_keys`). The first of them are measured by
   differences, and a row is noted where a column outside the list may stand before one that was chosen.

Columns that a bound excludes get the lowest number instead of −inf, which is left to the columns that are no
negatives: these are then in no list, since each row has more negatives than a list is long.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.neighbors.uniform_keys import HIGH_WORD, UniformKeys, first_listed
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import EuclideanForm
from tercet.pairwise.distances import form_of
from tercet.pairwise.known_labels import positive_table
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.transfer import bits_of, number_of, sent_up

__all__ = ["KnownPositives", "KnownRows", "search_known_positives"]


def search_known_positives(
    pairwise: Pairwise, listed: int, together: bool = False, padded: bool = False
) -> KnownPositives | None:
    """The search; None where the host does not know enough for it, or where it would be a waste.

    Args:
        pairwise: rows and columns, on an accelerator.
        listed: the most negatives of a row that a question asks for.
        together: leave room beside the positives for the negatives that are measured with them.
        padded: repeat each row's last positive until as many are listed as negatives are measured.
    """
    form, n = form_of(pairwise.distance), len(pairwise.inputs[0])
    sizes = budget(pairwise.inputs[0].device)
    if not (isinstance(form, EuclideanForm) and pairwise.is_surely_complete):
        return None
    is_small = n * n <= sizes.direct_numbers
    found = positive_table(pairwise.positive_pairs_on_host, n, n if is_small else sizes.listed_positives)
    if found is None:
        return None
    columns, counts = found
    width = listed if is_small else max(listed + sizes.measured_more, columns.shape[1] if padded else 0)
    if n - 1 - int(counts.max()) < width:
        return None
    if padded and not is_small:
        columns = np.pad(columns, ((0, 0), (0, width - columns.shape[1])), "edge")
    return KnownPositives(pairwise, form, columns, counts, width if together and not is_small else 0)


class KnownPositives:
    """All rows of a batch in blocks, with their positives.

    Args:
        pairwise: rows and columns; the columns are the rows.
        form: of the distance.
        columns: the positives of each row in rising order, [n, p]; a row that has fewer repeats its last.
        counts: how many positives each row has, [n].
        room: how many negatives of each row are measured together with its positives.

    Attributes:
        complete: each row has a positive and a negative.
    """

    complete = True

    def __init__(
        self, pairwise: Pairwise, form: EuclideanForm, columns: np.ndarray, counts: np.ndarray, room: int
    ) -> None:
        self.keys = UniformKeys(form, pairwise.inputs[0].detach())
        n, self.device = len(counts), self.keys.x.device
        sizes = budget(self.device)
        self.is_exact, self.more = n * n <= sizes.direct_numbers, sizes.measured_more
        self._columns, self._counts, self.room = columns, counts, room
        self._blocks: list[KnownRows] = []
        self._height = pairwise.given_tile_rows or max(
            1, sizes.tile_bytes // (n * self.keys.x.dtype.itemsize)
        )
        self.table_rows = max(1, sizes.gathered_keys // n)

    def blocks(self) -> Iterator[KnownRows]:
        """All rows, some at a time."""
        for start in range(0, len(self._counts), self._height):
            rows = slice(start, min(len(self._counts), start + self._height))
            self._blocks.append(KnownRows(self, rows, self._columns[rows], self._counts[rows]))
            yield self._blocks[-1]

    def doubts(self) -> list[Int[Tensor, ""]]:
        """What `judged` wants to be read: nothing where nothing can be ambiguous."""
        if self.is_exact:
            return []
        found = [self.unsure.sum(), bits_of(self.keys.reach)]
        if self._counts.min() < self._counts.max():
            found.append((sent_up(self._counts, self.device) * self.unsure).sum())
        return found

    def judged(self, numbers: list[int]) -> tuple[int, int]:
        """How many rows are ambiguous, and how many positives they have, given what `doubts` read."""
        if not numbers:
            return 0, 0
        if self.keys.underflows(number_of(numbers[1], self.keys.x.dtype)):
            self.unsure = torch.ones_like(self.unsure)
            return len(self._counts), int(self._counts.sum())
        return numbers[0], numbers[2] if len(numbers) > 2 else numbers[0] * int(self._counts[0])

    @functools.cached_property
    def unsure(self) -> Bool[Tensor, " n"]:
        """The rows of which something may have been decided wrongly."""
        found = [block.unsure for block in self._blocks]
        return found[0] if len(found) == 1 else torch.cat(found)


class KnownRows:
    """Some rows against all columns. Distances are in the scale of `UniformKeys`.

    Args:
        search: what the rows are of.
        rows: their numbers.
        columns: their positives [a, p], as `KnownPositives` has them.
        counts: how many positives each has, [a].

    Attributes:
        start: the number of the first row.
        rows: int64 [a], row numbers.
        positives: int64 [a, p], their positives.
        is_positive: bool [a, p], false where one is repeated; None where each row has as many.
    """

    def __init__(self, search: KnownPositives, rows: slice, columns: np.ndarray, counts: np.ndarray) -> None:
        self._search, self._keys, self._rows, self.start = search, search.keys, rows, rows.start
        (a, p), n = columns.shape, len(self._keys.x)
        numbers = np.arange(rows.start, rows.stop)
        own = np.concatenate([columns, numbers[:, None]], 1) + n * np.arange(a)[:, None]
        # All that the host knows goes up in one copy.
        width = p + search.room
        beside = np.concatenate([columns, np.zeros((a, search.room), columns.dtype)], 1)
        sent = sent_up(
            np.concatenate([numbers, beside.ravel(), own.ravel(), [-HIGH_WORD, HIGH_WORD]]), search.device
        )
        self.rows, beside, self._own, signs = sent.split([a, a * width, own.size, 2])
        self._beside, self._signs = beside.view(a, width), signs.view(2, 1)
        self.positives = self._beside[:, :p]
        real = np.arange(p) < counts[:, None]
        self.is_positive = None if real.all() else sent_up(real, search.device)
        self._near: Tensor | None = None
        if search.is_exact:
            self._table = self._keys.exact_table(rows)
            self._near = self._table.gather(1, self.positives)
        else:
            self._table = self._keys.table(rows)
        self._table.view(-1).index_fill_(0, self._own, math.inf if search.is_exact else -math.inf)
        self._unsure: list[Tensor] = []

    @property
    def unsure(self) -> Bool[Tensor, " a"]:
        """The rows of which a question so far may have been decided wrongly."""
        return functools.reduce(torch.logical_or, self._unsure)

    @property
    def distances(self) -> Float[Tensor, "a p"]:
        """The distance of each row to each of its positives."""
        if self._near is None:
            self._near = self._keys.listed(self.positives, self._rows)
        return self._near

    def only_positives(self, wanted: Bool[Tensor, "a p *n"]) -> Bool[Tensor, "a p *n"]:
        """`wanted` without repeated positives."""
        if self.is_positive is None:
            return wanted
        return wanted & self.is_positive.view(*self.is_positive.shape, *[1] * (wanted.ndim - 2))

    def hardest(self) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
        """The farthest positive and the nearest negative of each row."""
        (a, w), dtype = self.positives.shape, self._table.dtype
        if self._search.is_exact or dtype != torch.float32 or w <= self._search.more:
            return self.farthest_positive(), self.nearest(1)[:, 0]
        values, at = self._nearest_beside(), self._beside  # [a, w], [a, 2w]
        bits = self._keys.listed(at, self._rows).view(torch.int32)
        both = torch.addcmul(at.view(a, 2, w), bits.view(a, 2, w), self._signs).amin(2)  # [a, 2]
        words = both.view(torch.int32).view(a, 2, 2)
        self._unsure.append(self._keys.low_edge(words[:, 1, 1].view(dtype), self._rows) <= values[:, -1])
        positive, negative = words[:, :, 0].T.to(torch.int64, memory_format=torch.contiguous_format)
        return positive, negative

    def _nearest_beside(self) -> Float[Tensor, "a w"]:
        """The first negated keys of each row; their columns are written beside the positives."""
        at = self._beside[:, self.positives.shape[1] :]
        values = self._table.new_empty(at.shape)
        torch.topk(self._table, at.shape[1], dim=1, out=(values, at))
        return values

    def farthest_positive(self) -> Int[Tensor, " a"]:
        """The farthest positive of each row."""
        return self.positives.gather(1, self.distances.argmax(1, keepdim=True))[:, 0]

    def nearest_positive(self) -> tuple[Int[Tensor, " a"], Float[Tensor, " a"]]:
        """The nearest positive of each row, and its distance."""
        distance, place = self.distances.min(1, keepdim=True)
        return self.positives.gather(1, place)[:, 0], distance[:, 0]

    def nearest(self, k: int) -> Int[Tensor, "a k"]:
        """The k nearest negatives of each row, in order."""
        if self._search.is_exact:
            if k == 1:
                return self._table.argmin(1, keepdim=True)
            return self._table.sort(dim=1, stable=True).indices[:, :k]
        values, at = self._table.topk(k + self._search.more, dim=1)
        column, distance = first_listed(at, self._keys.listed(at, self._rows), k)
        self._unsure.append(self._keys.low_edge(distance[:, -1], self._rows) <= values[:, -1])
        return column

    def nearest_distance(self) -> Float[Tensor, " a"]:
        """The distance of each row to its nearest negative."""
        if self._search.is_exact:
            return self._table.amin(1)
        values, p = self._nearest_beside(), self.positives.shape[1]
        both = self._keys.listed(self._beside, self._rows)
        self._near, least = both[:, :p], both[:, p:].amin(1)
        self._unsure.append(self._keys.low_edge(least, self._rows) <= values[:, -1])
        return least

    def farthest(self) -> Int[Tensor, " a"]:
        """The farthest negative of each row."""
        outside = -math.inf if self._search.is_exact else math.inf
        table = self._table.view(-1).index_fill(0, self._own, outside).view(self._table.shape)
        if self._search.is_exact:
            return table.argmax(1)
        values, at = table.topk(1 + self._search.more, dim=1, largest=False)
        d = self._keys.listed(at, self._rows)
        last = d.amax(1)
        self._unsure.append(self._keys.edges(last, self._rows)[1] >= values[:, -1])
        return at.masked_fill(d != last[:, None], table.shape[1]).amin(1)

    def nearest_above(self, bound: Float[Tensor, "a q"]) -> tuple[Int[Tensor, "a q"], Float[Tensor, "a q"]]:
        """The nearest negative farther than each bound, and its distance: `beyond` or more where none is."""
        column, distance = self._in_parts(self._nearest_above, bound)
        return column, distance

    def _nearest_above(self, rows: slice, bound: Tensor) -> tuple[Tensor, ...]:
        table = self._table[rows, None]  # [a, 1, n]
        if self._search.is_exact:
            distance, at = torch.where(table > bound[:, :, None], table, math.inf).min(2)
            return at, distance
        _, nearer = self._keys.edges(
            bound, self._numbers(rows)
        )  # keys from here on are surely not above the bound
        table = torch.where(table < nearer[:, :, None], table, torch.finfo(table.dtype).min)
        values, at = table.topk(1 + self._search.more, dim=2)  # [a, q, w]
        d = self._keys.listed(at, self._numbers(rows))
        d = torch.where(d > bound[:, :, None], d, self._keys.beyond)
        column, distance = (v.view(bound.shape) for v in first_listed(at.flatten(0, 1), d.flatten(0, 1), 1))
        return (
            column,
            distance,
            _of_rows(self._keys.low_edge(distance, self._numbers(rows)) <= values[:, :, -1]),
        )

    def nearer_than(self, bound: Float[Tensor, "a q"]) -> Bool[Tensor, "a q n"]:
        """Which columns are negatives nearer than each bound."""
        return self._in_parts(self._nearer_than, bound)[0]

    def _nearer_than(self, rows: slice, bound: Tensor) -> tuple[Tensor, ...]:
        table = self._table[rows, None]  # [a, 1, n]
        if self._search.is_exact:
            return (table < bound[:, :, None],)
        farther, nearer = self._keys.edges(bound, self._numbers(rows))
        found = table > nearer[:, :, None]
        rest = torch.where(found, torch.finfo(table.dtype).min, table)
        values, at = rest.topk(1 + self._search.more, dim=2)  # [a, q, w]
        unsure = values[:, :, -1] >= farther
        decided = self._keys.listed(at, self._numbers(rows)) < bound[:, :, None]
        return found.scatter_(2, at, decided), _of_rows(unsure)

    def between(self, low: Float[Tensor, "a q"], high: Float[Tensor, "a q"]) -> Bool[Tensor, "a q n"]:
        """Which columns are negatives farther than the low bound and nearer than the high one."""
        return self._in_parts(self._between, low, high)[0]

    def _between(self, rows: slice, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        table, edges = self._table[rows, None], (low[:, :, None], high[:, :, None])  # [a, 1, n], [a, q, 1]
        if self._search.is_exact:
            return ((table < edges[1]).logical_and_(table > edges[0]),)
        # How far a key lies from the middle of the bounds' keys, less half of what is between these.
        squares = [v.square() if self._keys.form.root else v for v in (low, high)]
        # A bound beyond all columns, as a margin of collapsed rows, would round away what lies at the other.
        squares[1] = torch.minimum(squares[1], self._keys.beyond_all)
        side = self._keys.squares[self._numbers(rows), None]
        middle = torch.sub(side, squares[0] + squares[1], alpha=0.5)
        gap = (table - middle[:, :, None]).abs_().sub_((squares[1] - squares[0])[:, :, None], alpha=0.5)
        found = gap < 0
        values, at = gap.abs_().topk(1 + self._search.more, dim=2, largest=False)  # [a, q, w]
        d = self._keys.listed(at, self._numbers(rows))
        decided = (d < edges[1]).logical_and_(d > edges[0])
        return found.scatter_(2, at, decided), _of_rows(values[:, :, -1] <= self._keys.error)

    def _in_parts(
        self, question: Callable[..., tuple[Tensor, ...]], *bounds: Float[Tensor, "a q"]
    ) -> list[Tensor]:
        """The answers to a question, so many rows at a time as make tables [a, q, n] of a bounded size.

        Behind the answers come the ambiguous rows, which are noted.
        """
        a, q = bounds[0].shape
        step = max(1, self._search.table_rows // q)
        spans = [slice(start, start + step) for start in range(0, a, step)]
        parts = zip(*(question(rows, *(bound[rows] for bound in bounds)) for rows in spans), strict=True)
        found = [part[0] if len(spans) == 1 else torch.cat(part) for part in parts]
        if not self._search.is_exact:
            self._unsure.append(found.pop())
        return found

    def _numbers(self, rows: slice) -> slice:
        """Some of these rows as rows of the batch."""
        start, stop, _ = rows.indices(len(self.rows))
        return slice(self._rows.start + start, self._rows.start + stop)


def _of_rows(unsure: Bool[Tensor, "a q"]) -> Bool[Tensor, " a"]:
    return unsure[:, 0] if unsure.shape[1] == 1 else unsure.any(1)
