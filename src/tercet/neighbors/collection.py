"""The nearest columns of each query in a whole collection: what is asked for, checked and numbered.

`collection_search` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tercet.core.checks import Refusal, as_bool, as_choice, as_float, as_int, as_strings, border, promised
from tercet.neighbors.collection_search import CollectionSearch
from tercet.neighbors.exclusions import Codes, Exclusions, codes_of, rows_of
from tercet.neighbors.search_plan import plan_search
from tercet.neighbors.stored_rows import StoredRows
from tercet.pairwise.closed_forms import ProductForm
from tercet.pairwise.distances import Distance, as_distance, form_of
from tercet.pairwise.inputs import device_of, tensor_of
from tercet.pairwise.relations import Relation, SameLabel, as_relation

__all__ = ["Neighbors", "nearest"]

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
        >>> found = nearest(np.array([[0.0], [1.0], [3.0]]), k=1)
        >>> found.rows.tolist(), found.distances.tolist(), found.recall
        ([[1], [0], [1]], [[1.0], [1.0], [2.0]], 1.0)
    """

    recall: float

    def __new__(cls, rows: np.ndarray, distances: np.ndarray, recall: float = 1.0) -> Neighbors:
        self = super().__new__(cls, rows, distances)
        self.recall = recall
        return self


@torch.no_grad()
def nearest(
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
) -> Neighbors:
    """The k nearest columns of each query, exactly, without the columns that a query may not find.

    N(i) = the first k of { j : j not excluded for i }, ordered by (D(x_i, y_j), j)

    Embeddings are numpy arrays, memory maps (`numpy.load(path, mmap_mode="r")`), pyarrow arrays of fixed-size
    lists, or tensors, of any precision. They are read a tile at a time. The result depends neither on tiles
    nor on threads. (With a distance of one's own it may where `tile` gives other bits for other tiles.)

    Args:
        queries: [q, d]; the collection [n, d] itself where `columns` is None.
        columns: [r, d] that are searched; None to search `queries` by its own rows.
        k: how many columns a query finds.
        rows: int [q], which rows of the collection are the queries; None for all. Only without `columns`.
        labels: one for each query, or for each row of the collection where it is searched by itself: whole
            numbers, bools or strings; for a `relation` of several labels a row, whole numbers [_, c].
        column_labels: [r], of the columns.
        groups: as `labels`: the camera, video or session of each image.
        column_groups: [r], of the columns.
        ids: as `labels`: which image each row is.
        column_ids: [r], of the columns.
        exclude: what a query does not find, one or several of
            `"self"`, its own row; the default where `columns` is None, and only there;
            `"class"`, columns that are not its negatives by `relation`: those of its own label;
            `"other classes"`, columns that are not its positives;
            `"group"` and `"id"`, columns of its group, or of its id;
            `"duplicates"`, columns at distance 0.
        relation: what `labels` say: `SameLabel()`, `SharedLabel()`, `CrossGroup()`, `Graded(…)` or one's own.
        distance: a `Distance` or its name.
        nan: `"error"`, or `"skip"`: rows with NaN, as of images that do not decode, find nothing and are not
            found.
        memory: bytes that the search may take above the inputs, the result included; None for 256 MiB. With
            less memory the columns are read more often. `neighbors.search_plan` tells both before a search.
        device: where to compute; None for the device of the inputs.
        backend: `"exact"`; or an index of FAISS (`pip install "tercet[faiss]"`), approximate and on the
            processor: `"faiss-ivf"`, or `"faiss-hnsw"`, which several threads build a little differently each
            time. The index holds all columns as float32. Distances and exclusions are exact with it too.
        min_recall: of FAISS: the least share of the exact results, measured on 1,000 queries; None for 0.95.
            The index works harder until it is reached.
        progress: show a progress bar; of the exact search alone.

    Returns:
        `Neighbors(rows, distances)`, numpy arrays [q, k], with the measured `recall` as an attribute.

    Raises:
        ValueError: embeddings that are no matrices of one width, or not finite; labels, groups or ids that
            are missing, do not fit or are not asked for; unknown names; less memory than one tile takes, or
            the index; or a recall that the index does not reach.

    Example:
        >>> x = np.array([[0.0], [1.0], [1.4], [9.0]])
        >>> nearest(x, k=2).rows.tolist()
        [[1, 2], [2, 0], [1, 0], [2, 1]]
        >>> nearest(x, k=2, labels=["a", "a", "b", "b"], exclude="class", rows=[0, 2]).rows.tolist()
        [[2, 3], [1, 0]]

    Reference:
        Johnson, Douze & Jégou, "Billion-scale similarity search with GPUs", 2019, for search by tiles.
    """
    with border("nearest"):
        metric = as_distance("nearest", distance)
        skip = as_choice(None, "nan", nan, ("error", "skip")) == "skip"
        progress = as_bool(None, "progress", progress)
        backend = as_choice(None, "backend", backend, BACKENDS)
        if min_recall is not None:
            min_recall = as_float(None, "min_recall", min_recall, 0, 1)
            if backend == "exact":
                raise Refusal("min_recall", min_recall, "a backend of FAISS: the exact search has recall 1")
        if progress and backend != "exact":
            raise Refusal("progress", True, 'backend="exact": FAISS does not tell how far it is')
        k = as_int(None, "k", k, minimum=1)
        given = {"labels": labels, "groups": groups, "ids": ids}
        others = {"column_labels": column_labels, "column_groups": column_groups, "column_ids": column_ids}
        names = _excluded(exclude, columns is None, given, others)
        if "duplicates" in names and isinstance(form_of(metric), ProductForm):
            raise Refusal("exclude", "duplicates", "a distance that is 0 for equal rows, which this is not")
        where = _device(device, queries, columns)
        source = StoredRows("queries", queries, metric, where)
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
        relation = as_relation("nearest", relation)
        excluded, classes = _exclusions(names, relation, given, others, chosen, n, r)
        if backend != "exact" and excluded.by_pairs:
            hint = 'take backend="exact"'
            raise Refusal(
                "backend",
                backend,
                'exclude= of "self", "class" by equal labels, "group", "id" or "duplicates"',
                hint,
            )
        search = CollectionSearch(metric, source, target, chosen, k, skip)
        plan = plan_search(len(chosen), r, min(k, max(1, r)), search.dim, search.dtype, where, memory)
        if backend == "exact":
            return Neighbors(*search.run(plan, excluded, "duplicates" in names, classes, progress))
        from tercet.neighbors.faiss import index_bytes, search_by_index

        if memory is not None and memory < (least := index_bytes(backend, r, search.dim)):
            raise Refusal("memory", memory, f"{least} bytes or more for the index")
        recall = 0.95 if min_recall is None else min_recall
        return Neighbors(*search_by_index(backend, search, plan, excluded, "duplicates" in names, recall))


def _device(device: Any, *matrices: Any) -> torch.device:
    """Where to compute: on `device`, or on an accelerator where a matrix lies on one."""
    if device is not None:
        return device_of("nearest", device)
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
