"""The nearest columns by an index of FAISS: approximate, with a recall that is measured before it is used.

The index proposes; distances, exclusions and ties are as in the exact search. A query that is left with fewer
than k of the columns that were fetched is searched again for twice as many, at last exactly. FAISS's own
selectors are not used: indexes on GPUs do not apply them.

FAISS is imported only here, on the first call. On macOS its OpenMP and torch's crash in one process where
both use several threads, so there FAISS is held to one.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import Refusal
from tercet.neighbors.candidate_pool import by_row
from tercet.neighbors.collection_search import CollectionSearch
from tercet.neighbors.exclusions import Exclusions
from tercet.neighbors.search_plan import SearchPlan
from tercet.pairwise.closed_forms import EuclideanForm, ProductForm
from tercet.pairwise.distances import form_of

__all__ = ["FaissIndex", "IndexSearch", "index_bytes"]

_LINKS = 32  # of a column in HNSW, twice as many at the bottom
_SAMPLED = 1000  # queries on which recall is measured
_MOST = 2048  # columns that are fetched at most for a query, as many as FAISS finds on GPUs
_EFFORTS = {"faiss-ivf": 8, "faiss-hnsw": 32}  # the first; it is doubled until the recall is reached
_MOST_EFFORT = 4096


def index_bytes(kind: str, columns: int, dim: int) -> int:
    """What an index takes: all columns as float32, their numbers, and links.

    Example:
        >>> index_bytes("faiss-ivf", 1_000_000, 128)
        520000000
    """
    return columns * (dim * 4 + 8 + (_LINKS * 2 * 4 * 2 if kind == "faiss-hnsw" else 0))


class FaissIndex:
    """An index over the columns of a search.

    Args:
        kind: `"faiss-ivf"` or `"faiss-hnsw"`.
        search: the search, whose columns are read once.

    Raises:
        ValueError: FAISS is not installed, or the distance is none of FAISS's.
    """

    def __init__(self, kind: str, search: CollectionSearch) -> None:
        form = form_of(search.distance)
        if not isinstance(form, (EuclideanForm, ProductForm)):
            hint = 'take backend="exact"'
            raise Refusal("distance", search.distance, "a Euclidean distance, cosine or dot for FAISS", hint)
        self._space = form.space if isinstance(form, EuclideanForm) else None
        faiss = _faiss(kind)
        metric = faiss.METRIC_INNER_PRODUCT if self._space is None else faiss.METRIC_L2
        self._target, self._is_ivf, r = search.target, kind == "faiss-ivf", len(search.target)
        dim = self._rows(search.target.sample(1)).shape[1]
        if self._is_ivf:
            lists = max(1, min(int(4 * math.sqrt(r)), r // 39))  # FAISS asks for 39 columns a list or more
            flat = (faiss.IndexFlatIP if self._space is None else faiss.IndexFlatL2)(dim)
            self._index: Any = faiss.IndexIVFFlat(flat, dim, lists, metric)
            self._index.train(self._rows(search.target.sample(64 * lists)))
            self.most = lists
        else:
            self._index = faiss.IndexHNSWFlat(dim, _LINKS, metric)
            self._index.hnsw.efConstruction = 80
            self.most = min(_MOST_EFFORT, max(1, r))
        kept = []
        for start in range(0, r, 2**14):
            rows = torch.arange(start, min(start + 2**14, r), device=search.rows.device)
            if search.target.bad is not None:
                rows = rows[~search.target.bad[rows]]
            self._index.add(self._rows(search.target.features(rows)))
            kept.append(rows.cpu())
        self._kept = torch.cat([*kept, torch.tensor([-1])])  # FAISS writes −1 where it finds no more

    def _rows(self, features: Float[Tensor, "a k"]) -> np.ndarray:
        found = features if self._space is None else self._space(features)
        return found.float().numpy(force=True)

    def fetch(self, features: Float[Tensor, "a k"], count: int, effort: int) -> Int[Tensor, "a c"]:
        """The columns that the index holds to be nearest; −1 where it finds no more.

        Args:
            features: [a, k], queries.
            count: how many.
            effort: lists that are looked through, or entries that HNSW keeps in view.
        """
        if self._is_ivf:
            self._index.nprobe = min(effort, self.most)
        else:
            self._index.hnsw.efSearch = max(effort, count)
        _, found = self._index.search(self._rows(features), count)
        return self._kept[torch.from_numpy(found)].to(features.device)


class IndexSearch:
    """Approximate nearest columns, with as little effort as gives the recall on sampled queries.

    recall = the share of the sampled queries' exact results that are found; a column at most as far as the
    k-th counts, since of equal distances either is right

    Args:
        kind: `"faiss-ivf"` or `"faiss-hnsw"`.
        search: what is searched; neither queries nor columns are empty.
        plan: sizes of the exact search of sampled queries, and of those that the index leaves short.
        exclusions: what is left out; not by a relation that is asked for every pair.
        without_duplicates: leave out columns at distance 0 too.
        min_recall: in (0, 1].

    Attributes:
        recall: what was measured.

    Raises:
        ValueError: the recall is not reached.
    """

    def __init__(
        self,
        kind: str,
        search: CollectionSearch,
        plan: SearchPlan,
        exclusions: Exclusions,
        without_duplicates: bool,
        min_recall: float,
    ) -> None:
        exclusions.nowhere = search.target.bad
        self._index, self._effort = FaissIndex(kind, search), _EFFORTS[kind]
        self._search, self._plan, self._exclusions = search, plan, exclusions
        self._without_duplicates = without_duplicates
        q = len(search.rows)
        sample = torch.linspace(0, q - 1, min(q, _SAMPLED), dtype=torch.float64).round().long()
        sample = sample.to(search.rows.device)
        exact = self._exact(sample)[1]
        while (recall := recall_of(exact, self.of(sample)[1])) < min_recall:
            if self._effort >= self._index.most:
                tried = f"{len(sample)} queries with effort {self._effort}"
                others = '"exact"' if kind == "faiss-ivf" else '"faiss-ivf" or "exact"'
                expected = f"at most {recall:.4f}, the recall of {tried}"
                raise Refusal("min_recall", min_recall, expected, f"take backend={others}")
            self._effort *= 2
        self.recall = recall

    def _exact(self, numbers: Int[Tensor, " m"]) -> tuple[np.ndarray, np.ndarray]:
        excluded = self._exclusions.of_queries(numbers)
        return self._search.of_queries(numbers).run(self._plan, excluded, self._without_duplicates)

    def of(self, numbers: Int[Tensor, " m"]) -> tuple[np.ndarray, np.ndarray]:
        """Rows [m, k] and distances [m, k] of some queries."""
        search = self._search
        found = np.full((len(numbers), search.k), -1, np.int64)
        double = search.dtype == torch.float64
        distances = np.full(found.shape, math.inf, np.float64 if double else np.float32)
        most = min(len(search.target), _MOST)
        left, count = torch.arange(len(numbers), device=numbers.device), min(2 * search.k, most)
        if search.source.bad is not None:
            left = left[~search.source.bad[search.rows[numbers]]]
        while len(left):
            short = []
            for part in left.split(max(1, 2**20 // count)):
                columns, d = self._fetched(numbers[part], count)
                full = columns[:, -1] >= 0
                done = part[full].numpy(force=True)
                found[done], distances[done] = columns[full].numpy(force=True), d[full].numpy(force=True)
                short.append(part[~full])
            left = torch.cat(short)
            if count >= most:
                break
            count = min(2 * count, most)
        if len(left):
            at = left.numpy(force=True)
            found[at], distances[at] = self._exact(numbers[left])
        return found, distances

    def _fetched(
        self, numbers: Int[Tensor, " a"], count: int
    ) -> tuple[Int[Tensor, "a k"], Float[Tensor, "a k"]]:
        """The k nearest of so many fetched columns that are not left out; −1 where they are fewer."""
        search = self._search
        features = search.source.features(search.rows[numbers])
        columns = self._index.fetch(features, count, self._effort)
        i, j = (columns >= 0).nonzero(as_tuple=True)
        barred = self._exclusions.of_pairs(numbers[i], columns[i, j])
        columns[i[barred], j[barred]] = -1

        def exact(i: Tensor, j: Tensor) -> Tensor:
            d = search.exact(numbers[i], j)
            return d.masked_fill(d == 0, math.inf) if self._without_duplicates else d

        found, d, _ = by_row(columns, exact, search.k)
        return found, d


def recall_of(exact: np.ndarray, found: np.ndarray) -> float:
    """The share of results that are as near as those of the exact search.

    Args:
        exact: [s, k], distances, inf where there are none.
        found: [s, k].

    Example:
        >>> recall_of(np.array([[1.0, 2.0], [3.0, math.inf]]), np.array([[1.0, 5.0], [3.0, math.inf]]))
        0.6666666666666666
    """
    wanted = np.isfinite(exact).sum(1)
    last = np.where(np.isfinite(exact), exact, -math.inf).max(1, initial=-math.inf)
    hits = np.minimum((found <= last[:, None]).sum(1), wanted)
    return float(hits.sum() / max(1, wanted.sum())) if wanted.sum() else 1.0


def _faiss(kind: str) -> Any:
    """The library, with as many threads as torch has; on macOS with one."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Refusal(
            "backend", kind, "FAISS, which is not installed", "pip install 'tercet[faiss]'"
        ) from None
    faiss.omp_set_num_threads(1 if sys.platform == "darwin" else torch.get_num_threads())
    return faiss
