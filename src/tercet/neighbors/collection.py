"""`nearest`: the nearest columns of each query in a whole collection. `nearest_search` finds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tercet.core.checks import border
from tercet.neighbors.nearest_search import NearestSearch, Neighbors
from tercet.pairwise.distances import Distance
from tercet.pairwise.relations import Relation, SameLabel

__all__ = ["Neighbors", "nearest"]


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
        >>> import numpy as np
        >>> x = np.array([[0.0], [1.0], [1.4], [9.0]])
        >>> nearest(x, k=2).rows.tolist()
        [[1, 2], [2, 0], [1, 0], [2, 1]]
        >>> nearest(x, k=2, labels=["a", "a", "b", "b"], exclude="class", rows=[0, 2]).rows.tolist()
        [[2, 3], [1, 0]]

    Reference:
        Johnson, Douze & Jégou, "Billion-scale similarity search with GPUs", 2019, for search by tiles.
    """
    with border("nearest"):
        search = NearestSearch(
            queries,
            columns,
            k,
            rows=rows,
            labels=labels,
            column_labels=column_labels,
            groups=groups,
            column_groups=column_groups,
            ids=ids,
            column_ids=column_ids,
            exclude=exclude,
            relation=relation,
            distance=distance,
            nan=nan,
            memory=memory,
            device=device,
            backend=backend,
            min_recall=min_recall,
            progress=progress,
        )
        return search.found()
