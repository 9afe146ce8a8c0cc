"""The columns that may still be among the k nearest of each query, while a collection goes by in tiles.

A query holds a few candidates with their keys, and a *limit*: no column with a key above it can be among its
k nearest. Let K be the k-th smallest key that was held. Columns with keys above K + 2ε are farther than k
others (`neighbors/keys`, lemma 1), so the limit is K + 2ε, and it is renewed only when a query's places are
full: the k nearest of a random order change about k·ln(r) times, so that is rare. Where more columns than
there are places have keys within the limit, as where many are duplicates, exact distances choose k of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.pairwise.budget import budget

__all__ = ["CandidatePool", "by_row", "slots_of"]

Exact = Callable[[Tensor, Tensor], Tensor]


def slots_of(k: int) -> int:
    """How many candidates a query has room for.

    Example:
        >>> slots_of(16)
        48
    """
    return 2 * k + 16


class CandidatePool:
    """Candidates of queries that are numbered from 0 on.

    Args:
        k: how many nearest columns are wanted.
        error: [q], ε of each query.
        exact: the exact distances of listed pairs (query, column).
        key_of: the keys κ of distances [t] of queries [t].
        ends_at_zero: whether columns come in rising order, and no distance is below 0: then k columns at
            distance 0 are final.

    Attributes:
        k: how many.
        limit: [q], the largest key that is still of interest.

    Example:
        >>> x = torch.tensor([5.0, 1.0, 3.0, 2.0])
        >>> pool = CandidatePool(1, torch.zeros(1), lambda i, j: x[j], lambda d, i: d, True)
        >>> pool.add(0, torch.zeros(4, dtype=torch.int64), torch.arange(4), x)
        >>> pool.first(slice(0, 1))
        (tensor([[1]]), tensor([[1.]]))
    """

    def __init__(
        self,
        k: int,
        error: Float[Tensor, " q"],
        exact: Exact,
        key_of: Callable[[Tensor, Tensor], Tensor],
        ends_at_zero: bool,
    ) -> None:
        self.k, self._error, self._exact, self._key_of = k, error, exact, key_of
        self._ends_at_zero = ends_at_zero
        count, self._slots = len(error), slots_of(k)
        self._keys = error.new_full((count, self._slots), math.inf)
        self._columns = torch.full_like(self._keys, -1, dtype=torch.int64)
        self._held = torch.zeros(count, dtype=torch.int64, device=error.device)
        self._largest = torch.finfo(error.dtype).max
        self.limit = torch.full_like(error, self._largest)  # excluded columns, with keys of inf, are above

    def is_fresh(self, queries: slice) -> bool:
        """Whether any of some queries has no limit yet."""
        return bool((self.limit[queries] == self._largest).any())

    def lower(self, queries: slice, kth: Float[Tensor, " a"]) -> None:
        """Lower the limits of queries with k columns whose keys are up to `kth` (inf: with fewer)."""
        limit = (kth + 2 * self._error[queries]).clamp(max=self._largest)
        self.limit[queries] = torch.minimum(self.limit[queries], limit)

    def add(
        self, start: int, row: Int[Tensor, " t"], column: Int[Tensor, " t"], key: Float[Tensor, " t"]
    ) -> None:
        """Hold more candidates.

        Args:
            start: what is added to `row`.
            row: int64 [t], numbers of queries, in rising order.
            column: int64 [t].
            key: [t].
        """
        if not len(row):
            return
        count = torch.bincount(row)
        queries = slice(start, start + len(count))
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        held = self._held[queries]
        full = held + count > self._slots
        (some,) = full.nonzero(as_tuple=True)
        if len(some):
            kept = ~full[row]
            crowded = ~kept
            self._merge(start, some, row[crowded], place[crowded], column[crowded], key[crowded])
            row, place, column, key = row[kept], place[kept], column[kept], key[kept]
            count = count.masked_fill(full, 0)
        at = row + start, place + held[row]
        self._keys[at] = key
        self._columns[at] = column
        self._held[queries] += count

    def _merge(
        self, start: int, some: Tensor, row: Tensor, place: Tensor, column: Tensor, key: Tensor
    ) -> None:
        """Hold, of what queries `some` have and what is new, only that within a renewed limit."""
        counts = torch.bincount(row, minlength=int(some[-1]) + 1)[some]
        first = counts.cumsum(0) - counts
        width = self._slots + int(counts.max())
        step = max(1, budget(key.device).gathered_keys // width)
        for begin in range(0, len(some), step):
            part = slice(begin, begin + step)
            queries, many = some[part] + start, counts[part]
            new = slice(int(first[begin]), int(first[begin]) + int(many.sum()))
            at = torch.repeat_interleave(torch.arange(len(many), device=row.device), many), place[new]
            keys = key.new_full((len(queries), width), math.inf)
            columns = torch.full_like(keys, -1, dtype=torch.int64)
            keys[:, : self._slots] = self._keys[queries]
            columns[:, : self._slots] = self._columns[queries]
            at = at[0], at[1] + self._slots
            keys[at], columns[at] = key[new], column[new]
            self._shorten(queries, keys, columns)

    def _shorten(
        self, queries: Int[Tensor, " c"], keys: Float[Tensor, "c w"], columns: Int[Tensor, "c w"]
    ) -> None:
        """Hold the candidates of a table that are within the limit that it gives."""
        k, error = self.k, self._error[queries]
        most = (self._slots + k) // 2  # then there is room again
        values, order = keys.topk(most + 1, dim=1, largest=False)
        limit = (values[:, k - 1] + 2 * error).clamp_(max=self._largest)
        limit = torch.minimum(limit, self.limit[queries])
        kept = values <= limit[:, None]
        values = values.masked_fill(~kept, math.inf)
        columns_kept = columns.gather(1, order).masked_fill(~kept, -1)
        (ambiguous,) = kept[:, most].nonzero(as_tuple=True)
        if len(ambiguous):
            exact, limits = self._resolved(
                queries[ambiguous], keys[ambiguous], columns[ambiguous], limit[ambiguous]
            )
            limit[ambiguous] = limits
            values[ambiguous, :k], columns_kept[ambiguous, :k] = exact
            values[ambiguous, k:], columns_kept[ambiguous, k:] = math.inf, -1
        self._keys[queries, :most] = values[:, :most]
        self._keys[queries, most:] = math.inf
        self._columns[queries, :most] = columns_kept[:, :most]
        self._columns[queries, most:] = -1
        self._held[queries] = (values[:, :most] < math.inf).sum(1)
        self.limit[queries] = limit

    def _resolved(
        self, queries: Tensor, keys: Tensor, columns: Tensor, limit: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The k nearest of each row by exact distances, as keys and columns, and the new limits."""
        columns = columns.masked_fill(keys > limit[:, None], -1)
        found, distances, order = by_row(columns, lambda i, j: self._exact(queries[i], j), self.k)
        kept = keys.gather(1, order).masked_fill(found < 0, math.inf)
        last = distances[:, -1]
        limits = torch.minimum(limit, self._key_of(last, queries) + self._error[queries])
        if self._ends_at_zero:
            limits = limits.masked_fill(last == 0, -math.inf)
        return (kept, found), limits

    def first(self, queries: slice) -> tuple[Int[Tensor, "a k"], Float[Tensor, "a k"]]:
        """The k nearest by exact distance and then by column; −1 and inf where there are fewer."""
        width = max(1, int(self._held[queries].max()))
        keys, columns = self._keys[queries, :width], self._columns[queries, :width]
        if width >= self.k:
            kth = keys.kthvalue(self.k, dim=1).values
            columns = columns.masked_fill(keys > (kth + 2 * self._error[queries])[:, None], -1)
        start = queries.start
        found, distances, _ = by_row(columns, lambda i, j: self._exact(i + start, j), self.k)
        return found, distances


def by_row(
    columns: Int[Tensor, "c w"], exact: Exact, k: int
) -> tuple[Int[Tensor, "c k"], Float[Tensor, "c k"], Int[Tensor, "c k"]]:
    """The k nearest of listed columns by row: equal distances are in the order of their numbers.

    Args:
        columns: int64 [c, w]; −1 is none.
        exact: the distances of pairs (row of the table, column).
        k: how many.

    Returns:
        Columns [c, k], −1 where a row has fewer; distances, then inf; and their places in the table.

    Example:
        >>> by_row(torch.tensor([[4, 2, -1]]), lambda i, j: torch.ones(len(i)), 3)[:2]
        (tensor([[ 2,  4, -1]]), tensor([[1., 1., inf]]))
    """
    none = torch.iinfo(torch.int64).max
    listed, places = columns.masked_fill(columns < 0, none).sort(dim=1)
    i, j = (listed < none).nonzero(as_tuple=True)
    d = exact(i, listed[i, j])
    table = d.new_full((len(columns), max(k, columns.shape[1])), math.inf)
    table[i, j] = d
    table, order = table.sort(dim=1, stable=True)  # stable: of equal distances the lower column stays first
    table, order = table[:, :k], order[:, :k].clamp(max=columns.shape[1] - 1)
    found = listed.gather(1, order).masked_fill(table == math.inf, -1)
    return found, table, places.gather(1, order)
