"""A search for the nearest columns of a whole collection: what is asked for, checked and prepared once.

`collection_search` finds them exactly, `faiss` by an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tercet.core.checks import Refusal, as_bool, as_choice, as_float, as_int, as_strings, promised
from tercet.neighbors.collection_search import CollectionSearch
from tercet.neighbors.exclusions import Codes, Exclusions, codes_of, rows_of
from tercet.neighbors.search_plan import SearchPlan, plan_search
from tercet.neighbors.stored_rows import StoredRows
from tercet.pairwise.closed_forms import ProductForm
from tercet.pairwise.distances import Distance, as_distance, form_of
from tercet.pairwise.inputs import device_of, tensor_of
from tercet.pairwise.relations import Relation, SameLabel, as_relation

__all__ = ["BACKENDS", "NearestSearch", "Neighbors", "as_backend"]

EXCLUDED = ("self", "class", "other classes", "group", "id", "duplicates")
BACKENDS = ("exact", "faiss-ivf", "faiss-hnsw")
_MOST = 2**20  # columns that are asked for, where there are fewer; the rest is −1
_NAMED_BY = {"labels": ("class", "other classes"), "groups": ("group",), "ids": ("id",)}


class _Columns(NamedTuple):
    rows: np.ndarray
    distances: np.ndarray


class Neighbors(_Columns):
    """The nearest columns of each query, nearest first; equal distances are in the order of their rows.

    Args:
        rows: int64 [q, k], rows of the collection; −1 where a query has fewer than k columns left.
        distances: float32 or float64 [q, k], as the distance is computed; inf where `rows` is −1.
        recall: what was measured of an approximate search; 1 of an exact one. It is an attribute, not a third
            item.

    Example:
        >>> found = NearestSearch(np.array([[0.0], [1.0], [3.0]]), k=1).found()
        >>> found.rows.tolist(), found.distances.tolist(), found.recall
        ([[1], [0], [1]], [[1.0], [1.0], [2.0]], 1.0)
    """

    recall: float

    def __new__(cls, rows: np.ndarray, distances: np.ndarray, recall: float = 1.0) -> Neighbors:
        self = super().__new__(cls, rows, distances)
        self.recall = recall
        return self


class NearestSearch:
    """A search that is checked and prepared once, and gives the nearest columns of some queries at a time.

    Args:
        queries, columns, k, rows, labels, column_labels, groups, column_groups, ids, column_ids, exclude,
            relation, distance, nan, memory, device, backend, min_recall, progress: as for `nearest`.
        argument: the name of `queries`, for the sentences.
        at_once: of how many queries `found` is asked at most; None for all.

    Attributes:
        plan: sizes of the search of so many queries.
        recall: what was measured of an approximate search; 1 of an exact one.

    Raises:
        ValueError: as for `nearest`, without a caller: a `Refusal`.

    Example:
        >>> search = NearestSearch(np.array([[0.0], [1.0], [3.0]]), k=1)
        >>> search.found().rows.tolist(), search.found(slice(2, 3)).rows.tolist()
        ([[1], [0], [1]], [[1]])
    """

    def __init__(
        self,
        queries: Any,
        columns: Any = None,
        k: int = 10,
        *,
        rows: Any = None,
        labels: Any = None,
        column_labels: Any = None,
        groups: Any = None,
        column_groups: Any = None,
        ids: Any = None,
        column_ids: Any = None,
        exclude: str | Iterable[str] | None = None,
        relation: Relation = SameLabel(),  # noqa: B008
        distance: Distance | str = "euclidean",
        nan: str = "error",
        memory: int | None = None,
        device: Any = None,
        backend: str = "exact",
        min_recall: float | None = None,
        progress: bool = False,
        argument: str = "queries",
        at_once: int | None = None,
    ) -> None:
        metric = as_distance(None, distance)
        skip = as_choice(None, "nan", nan, ("error", "skip")) == "skip"
        self._progress = as_bool(None, "progress", progress)
        backend, least = as_backend(backend, min_recall)
        if self._progress and backend != "exact":
            raise Refusal("progress", True, 'backend="exact": FAISS does not tell how far it is')
        k = as_int(None, "k", k, minimum=1)
        given = {"labels": labels, "groups": groups, "ids": ids}
        others = {"column_labels": column_labels, "column_groups": column_groups, "column_ids": column_ids}
        names = _excluded(exclude, columns is None, given, others)
        self._distinct = "duplicates" in names
        if self._distinct and isinstance(form_of(metric), ProductForm):
            raise Refusal("exclude", "duplicates", "a distance that is 0 for equal rows, which this is not")
        where = _device(device, queries, columns)
        source = StoredRows(argument, queries, metric, where)
        target = source if columns is None else StoredRows("columns", columns, metric, where)
        _agree(source, target)
        if rows is not None and columns is not None:
            raise Refusal("rows", "given beside columns", "rows of a collection that is searched by itself")
        n, r = len(source), len(target)
        if k > max(r, _MOST):
            raise Refusal("k", k, f"at most {max(r, _MOST)}, as there are {r} columns")
        chosen = torch.arange(n, device=where) if rows is None else rows_of("rows", rows, n, where)
        if memory is not None:
            memory = as_int(None, "memory", memory, minimum=1)
        relation = as_relation(None, relation)
        self._exclusions, self._classes = _exclusions(names, relation, given, others, chosen, n, r)
        if backend != "exact" and self._exclusions.by_pairs:
            expected = 'exclude= of "self", "class" by equal labels, "group", "id" or "duplicates"'
            raise Refusal("backend", backend, expected, 'take backend="exact"')
        self._search = search = CollectionSearch(metric, source, target, chosen, k, skip)
        most = len(chosen) if at_once is None else min(at_once, len(chosen))
        self.plan: SearchPlan = plan_search(
            most, r, min(k, max(1, r)), search.dim, search.dtype, where, memory
        )
        self.recall, self._index = 1.0, None
        if backend == "exact":
            return
        from tercet.neighbors.faiss import IndexSearch, index_bytes

        if memory is not None and memory < (bytes_ := index_bytes(backend, r, search.dim)):
            raise Refusal("memory", memory, f"{bytes_} bytes or more for the index")
        if len(chosen) and r:
            self._index = IndexSearch(backend, search, self.plan, self._exclusions, self._distinct, least)
            self.recall = self._index.recall

    def found(self, some: slice | None = None) -> Neighbors:
        """The nearest columns of some of the queries, at most `at_once`; of all for None."""
        numbers = torch.arange(len(self._search.rows), device=self._search.rows.device)[some or slice(None)]
        if self._index is not None:
            return Neighbors(*self._index.of(numbers), self.recall)
        search, exclusions, classes = self._search, self._exclusions, self._classes
        if len(numbers) < len(search.rows):
            search, exclusions = search.of_queries(numbers), exclusions.of_queries(numbers)
            classes = None if classes is None else (classes[0][numbers], classes[1])
        return Neighbors(*search.run(self.plan, exclusions, self._distinct, classes, self._progress))


def as_backend(backend: Any, min_recall: Any) -> tuple[str, float]:
    """The name of a backend and the least recall of it.

    Raises:
        ValueError: an unknown name, no share, or a recall of the exact search.
    """
    backend = as_choice(None, "backend", backend, BACKENDS)
    if min_recall is None:
        return backend, 0.95
    if backend == "exact":
        raise Refusal("min_recall", min_recall, "a backend of FAISS: the exact search has recall 1")
    return backend, as_float(None, "min_recall", min_recall, 0, 1)


def _device(device: Any, *matrices: Any) -> torch.device:
    """Where to compute: on `device`, or on an accelerator where a matrix lies on one."""
    if device is not None:
        return device_of(None, device)
    found = [each.device for each in matrices if isinstance(each, Tensor) and not each.is_meta]
    return next((each for each in found if each.type != "cpu"), torch.device("cpu"))


def _agree(source: StoredRows, target: StoredRows) -> None:
    """Prepare both in one precision: else equal rows would not be at distance 0."""
    if source.width != target.width:
        expected = f"{source.width} dimensions, as queries have"
        raise Refusal("columns", f"{target.width} dimensions", expected)
    if source.is_floating_point and target.is_floating_point and source is not target:
        one = torch.float64 if source.is_double or target.is_double else torch.float32
        source.dtype = target.dtype = one


def _excluded(exclude: Any, own: bool, given: dict[str, Any], others: dict[str, Any]) -> tuple[str, ...]:
    """What is left out, by name, once it is clear that all that it needs was given, and nothing else."""
    if exclude is None:
        exclude = ("self",) if own else ()
    names = tuple(as_choice(None, "exclude", name, EXCLUDED) for name in as_strings(None, "exclude", exclude))
    if "self" in names and not own:
        hint = 'to leave out images that are in both, pass ids=, column_ids= and exclude="id"'
        raise Refusal("exclude", "self", "columns=None, where queries are columns themselves", hint)
    if "class" in names and "other classes" in names:
        raise Refusal("exclude", names, 'either "class" or "other classes": both leave nothing')
    for argument, uses in _NAMED_BY.items():
        used = " or ".join(f'"{use}"' for use in uses)
        column = f"column_{argument}"
        if set(uses) & set(names):
            if given[argument] is None:
                raise Refusal(argument, None, f"one for each row, since exclude= has {used}")
            if not own and others[column] is None:
                raise Refusal(column, None, f"one for each column, since exclude= has {used}")
        for name, values in ((argument, given[argument]), (column, others[column])):
            if values is not None and not set(uses) & set(names):
                raise Refusal(name, "given", f"exclude= with {used}, which alone asks for it")
        if own and others[column] is not None:
            raise Refusal(
                column, "given", f"columns=, or {argument}= alone where rows are searched by themselves"
            )
    return names


def _exclusions(
    names: tuple[str, ...],
    relation: Relation,
    given: dict[str, Any],
    others: dict[str, Any],
    chosen: Int[Tensor, " q"],
    n: int,
    r: int,
) -> tuple[Exclusions, tuple[Tensor, Tensor] | None]:
    """What is left out for each query; and class numbers, where a query finds its own class alone."""
    device = chosen.device
    codes = []
    for name in ("group", "id"):
        if name in names:
            values = given[f"{name}s"], others[f"column_{name}s"]
            codes.append(codes_of(f"{name}s", *values, n, r, device))
    sides = classes = None
    if "other classes" in names or "class" in names:
        wanted = "other classes" in names
        labels, column_labels = given["labels"], others["column_labels"]
        by_key = promised(relation, "key_is_class", "sides")
        if type(relation) is not SameLabel:  # that one takes names too
            labels = relation.check("nearest", "labels", tensor_of(labels), n, device)
            if column_labels is not None:
                column_labels = relation.check(
                    "nearest", "column_labels", tensor_of(column_labels), r, device
                )
        if not by_key:
            sides = relation, labels[chosen], labels if column_labels is None else column_labels, wanted
        else:
            if type(relation) is not SameLabel:
                labels, column_labels = (v if v is None else relation.key(v) for v in (labels, column_labels))
            pair = codes_of("labels", labels, column_labels, n, r, device)
            if wanted:
                classes = pair.queries[chosen], pair.columns
                sides = SameLabel(), *classes, True
            else:
                codes.append(pair)
    codes = [Codes(pair.queries[chosen], pair.columns) for pair in codes]
    return Exclusions(chosen if "self" in names else None, codes, sides), classes
