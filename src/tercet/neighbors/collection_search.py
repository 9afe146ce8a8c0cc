"""The exact search over a collection, tile by tile.

    for each block of queries, as many as the memory holds:
        for each tile of columns, read once a block:
            for each group of queries: rank keys, exclusions, least keys of small chunks → candidates
        exact distances of the few candidates, in order

Where a whole collection is searched by itself and a key is a product alone, as of normalised rows, a product
of two groups of rows serves both: half of the products are enough. Each query still meets the columns in
rising order.

A tile of keys stays in the processor's cache. One pass over it finds the least key of each chunk of columns;
only chunks below a query's limit are looked at again (`candidate_pool`). All that decides is exact, so no
result depends on tiles, memory or threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.neighbors.candidate_pool import CandidatePool
from tercet.neighbors.collection_keys import CollectionKeys, Queries
from tercet.neighbors.exclusions import Exclusions
from tercet.neighbors.keys import ExactDistances
from tercet.neighbors.search_plan import SearchPlan
from tercet.neighbors.stored_rows import StoredRows
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance
from tercet.pairwise.inputs import allocated
from tercet.pairwise.masked import true_places

__all__ = ["CollectionSearch"]

_SAMPLED = 4096  # rows whose mean is the centre of the keys


class CollectionSearch:
    """The k nearest columns of some rows of a matrix.

    Args:
        distance: a `Distance`.
        source: the matrix of the queries.
        target: the matrix of the columns; `source` itself where they are one.
        rows: int64 [q], the rows of `source` that are the queries.
        k: how many.
        skip_nan: leave out rows with NaN; else they are refused.

    Attributes:
        keys: the rank keys.
        dim: numbers of a prepared row.
        dtype: of keys and distances.

    Raises:
        ValueError: rows that are not finite.

    Example:
        >>> from tercet.neighbors.search_plan import plan_search
        >>> from tercet.pairwise.distances import euclidean
        >>> cpu, x = torch.device("cpu"), np.array([[0.0], [1.0], [3.0]])
        >>> stored = StoredRows("queries", x, euclidean, cpu)
        >>> search = CollectionSearch(euclidean, stored, stored, torch.arange(3), 1, skip_nan=False)
        >>> plan = plan_search(3, 3, 1, search.dim, search.dtype, cpu, None)
        >>> search.run(plan, Exclusions(torch.arange(3), []))[0].tolist()
        [[1], [0], [1]]
    """

    def __init__(
        self,
        distance: Distance,
        source: StoredRows,
        target: StoredRows,
        rows: Int[Tensor, " q"],
        k: int,
        skip_nan: bool,
    ) -> None:
        self.distance, self.source, self.target, self.rows, self.k = distance, source, target, rows, k
        sample = target.sample(_SAMPLED)
        self.keys = CollectionKeys(distance, sample)
        self.dim, self.dtype = sample.shape[1], sample.dtype
        step = max(1, budget(rows.device).gathered_numbers // max(1, target.width))
        target.check(skip_nan, step, self.keys.measure)
        self.keys.settle()
        if source is not target:
            source.check(skip_nan, step)

    def run(
        self,
        plan: SearchPlan,
        exclusions: Exclusions,
        without_duplicates: bool = False,
        classes: tuple[Int[Tensor, " q"], Int[Tensor, " r"]] | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search.

        Args:
            plan: the sizes.
            exclusions: what is left out.
            without_duplicates: leave out columns at distance 0 too.
            classes: numbers of queries and of columns, where a query finds columns of its own number alone:
                both are then taken in the order of these numbers, and tiles without a common one left out.
            progress: show a progress bar.

        Returns:
            Rows int64 [q, k] and distances [q, k].
        """
        q, r, k = len(self.rows), len(self.target), self.k
        with allocated(None, queries=q, k=k):
            found = np.full((q, k), -1, np.int64)
            distances = np.full((q, k), math.inf, np.float64 if self.dtype == torch.float64 else np.float32)
        if not q or not r:
            return found, distances
        exclusions.nowhere = self.target.bad
        order = None
        every = torch.arange(q, device=self.rows.device)
        if classes is not None:
            every, order = (numbers.argsort(stable=True) for numbers in classes)
        tiles = -(-r // plan.width)
        with _bar(progress, tiles * -(-q // plan.block)) as advance:
            for some in every.split(plan.block):
                block = _Block(
                    self, plan, some, exclusions.of_queries(some), without_duplicates, order is None
                )
                block.is_symmetric = order is None and self._is_symmetric(plan, exclusions)
                own = None if classes is None else (classes[0][some], classes[1])
                for start in range(0, r, plan.width):
                    block.search(start, order, own)
                    advance()
                block.write(found, distances)
        return found, distances

    def _is_symmetric(self, plan: SearchPlan, exclusions: Exclusions) -> bool:
        """Whether a product of two groups of rows serves both, each as the other's columns."""
        n = len(self.target)
        return (
            self.source is self.target
            and plan.passes == 1
            and self.keys.is_product
            and not exclusions.by_pairs
            and plan.width % plan.height == plan.height % plan.chunk == 0
            and plan.height // plan.chunk >= 2 * self.k  # else there is no limit after so few columns
            and torch.equal(self.rows, torch.arange(n, device=self.rows.device))
        )

    def of_queries(self, some: Int[Tensor, " a"]) -> CollectionSearch:
        """The same search for some of the queries, which are then numbered from 0 on."""
        found = copy.copy(self)
        found.rows = self.rows[some]
        return found

    def exact(self, queries: Int[Tensor, " t"], columns: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """The exact distance of each listed pair (number of a query, column)."""
        step = max(1, budget(queries.device).gathered_numbers // max(1, self.dim))
        parts = [queries.new_empty(0).to(self.dtype)]
        for i, j in zip(queries.split(step), columns.split(step), strict=True):
            rows, i = i.unique(return_inverse=True)
            others, j = j.unique(return_inverse=True)
            x, y = self.source.features(self.rows[rows]), self.target.features(others)
            parts.append(ExactDistances(self.distance, x, y).pairs(i, j))
        return torch.cat(parts)


class _Block:
    """Queries that go through the columns together."""

    def __init__(
        self,
        search: CollectionSearch,
        plan: SearchPlan,
        numbers: Int[Tensor, " a"],
        exclusions: Exclusions,
        without_duplicates: bool,
        in_order: bool,
    ) -> None:
        self._search, self._plan, self._numbers, self._exclusions = search, plan, numbers, exclusions
        self._keys, self._target = search.keys, search.target
        rows = search.rows[numbers]
        parts = [self._keys.queries(search.source.features(some)) for some in rows.split(plan.width)]
        self._queries = Queries(*(torch.cat(each) for each in zip(*parts, strict=True)))
        error, constant = self._queries.error, self._queries.constant
        self._pool = CandidatePool(
            min(search.k, len(self._target)),
            error,
            lambda i, j: search.exact(numbers[i], j),
            lambda d, i: self._keys.of_distance(d, constant[i]),
            in_order and self._keys.is_square,
        )
        self._zero = None  # the largest key of a column that may be at distance 0
        if without_duplicates:
            self._zero = self._keys.of_distance(torch.zeros_like(error), constant) + error
        width = -(-plan.width // plan.chunk) * plan.chunk
        self.is_symmetric = False
        self._inside = torch.arange(plan.chunk, device=error.device)
        self._buffer = error.new_empty(plan.height * width)

    def search(
        self, start: int, order: Int[Tensor, " r"] | None, classes: tuple[Tensor, Tensor] | None
    ) -> None:
        """Look at the tile of columns that begins at `start` of the order."""
        plan, device = self._plan, self._numbers.device
        stop = min(start + plan.width, len(self._target))
        columns = torch.arange(start, stop, device=device) if order is None else order[start:stop]
        low, high = 0, len(self._numbers)
        if classes is not None:  # queries in the order of their classes, of which the tile has a span
            span = classes[1][columns[[0, -1]]]
            low = int(torch.searchsorted(classes[0], span[0]))
            high = int(torch.searchsorted(classes[0], span[1], right=True))
        if low == high:
            return
        features = self._target.features(slice(start, stop) if order is None else columns)
        side, excluded = self._keys.columns(features), self._exclusions.tile(columns)
        width = -(-len(columns) // plan.chunk) * plan.chunk
        if self.is_symmetric:  # later queries are served when they are columns themselves
            high = stop
        for first in range(low, high, plan.height):
            some = slice(first, min(first + plan.height, high))
            keys = self._buffer[: (some.stop - first) * width].view(-1, width)
            keys[:, len(columns) :] = math.inf
            self._keys.table(self._queries.features[some], side, keys[:, : len(columns)])
            excluded.apply(keys, some)
            self._propose(some, keys, columns)
            if self.is_symmetric and some.stop <= start:
                if self._target.bad is not None:
                    keys[self._target.bad[some]] = math.inf
                self._propose(slice(start, stop), keys, self._numbers[some], crossed=True)

    def _propose(
        self, some: slice, keys: Float[Tensor, "h w"], columns: Int[Tensor, " c"], crossed: bool = False
    ) -> None:
        """Add the columns of a tile that are within the limits of their queries.

        Args:
            some: the queries.
            keys: their keys, a row each, or where `crossed` a column each.
            columns: the numbers of the columns.
            crossed: whether the table is turned.
        """
        chunk, pool, (height, width) = self._plan.chunk, self._pool, keys.shape
        groups = (height if crossed else width) // chunk
        # Group g is the columns g, g + groups, …: then the minimum runs over whole lines of memory.
        if crossed:
            least = keys.view(chunk, groups, width).amin(0)[:, : some.stop - some.start].T.contiguous()
        else:
            least = keys.view(height, chunk, groups).amin(1) if chunk > 1 else keys  # [a, groups]
        if pool.is_fresh(some) and groups >= pool.k:
            sure = least
            if self._zero is not None:
                sure = least.masked_fill(least <= self._zero[some, None], math.inf)
            pool.lower(some, sure.topk(pool.k, dim=1, largest=False).values[:, -1])
        limit = pool.limit[some]
        row, group = true_places(least <= limit[:, None])
        by_query, by_column = (1, width) if crossed else (width, 1)
        at = (row * by_query + group * by_column)[:, None] + self._inside * (groups * by_column)  # [t, chunk]
        values = keys.view(-1).index_select(0, at.view(-1)).view(-1, chunk)
        i, j = true_places(values <= limit.index_select(0, row)[:, None])
        row, key = row.index_select(0, i), values[i, j]
        column = columns.index_select(0, group.index_select(0, i) + j * groups)
        if self._zero is not None:
            (near,) = (key <= self._zero[some][row]).nonzero(as_tuple=True)
            if len(near):
                d = self._search.exact(self._numbers[row[near] + some.start], column[near])
                kept = torch.ones_like(row, dtype=torch.bool)
                kept[near] = d != 0
                row, column, key = row[kept], column[kept], key[kept]
        pool.add(some.start, row, column, key)

    def write(self, found: np.ndarray, distances: np.ndarray) -> None:
        """Write the results of the block's queries."""
        k = self._pool.k
        source, rows = self._search.source, self._search.rows
        for first in range(0, len(self._numbers), self._plan.height):
            some = slice(first, min(first + self._plan.height, len(self._numbers)))
            columns, d = self._pool.first(some)
            numbers = self._numbers[some]
            if source.bad is not None:
                bad = source.bad[rows[numbers]]
                columns, d = columns.masked_fill(bad[:, None], -1), d.masked_fill(bad[:, None], math.inf)
            at = numbers.numpy(force=True)
            found[at, :k], distances[at, :k] = columns.numpy(force=True), d.numpy(force=True)


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar of so many steps, and what to call after each; nothing where none is shown."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("nearest", total=total)
        yield lambda: bar.advance(task)
