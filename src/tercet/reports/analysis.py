"""What a page tells of embeddings: the k-NN graph, triplets with scores, suspects and the map."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tercet.core.checks import Refusal, as_array
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.mining_inputs import usable_rows
from tercet.offline.neighbor_graph import NeighborGraph, neighbor_graph, pair_scores
from tercet.reports.map import layout_of
from tercet.reports.page_data import (
    ScoredTriplets,
    confusion_view,
    filter_view,
    hardness_view,
    histogram_view,
    suspect_gallery,
    triplet_galleries,
)
from tercet.reports.suspects import suspects_among

__all__ = ["Analysis", "analysed", "counts_of", "triplets_of", "views_of"]

_SCORED = 1 << 21  # triplets that are compared; of more, evenly spaced ones
_COPY_SHARE, _ISOLATED = 0.25, 2.0  # as `suspects` takes them


class Analysis(NamedTuple):
    """A collection and its k-NN graph.

    Args:
        x: [n, d].
        codes: class numbers.
        distance: the name of the distance.
        search: memory and progress of searches.
        usable: rows without NaN.
        graph: of all rows.
    """

    x: Any
    codes: Int64[np.ndarray, " n"]
    distance: str
    search: Mapping[str, Any]
    usable: Bool[np.ndarray, " n"]
    graph: NeighborGraph


def analysed(
    x: Any, codes: Int64[np.ndarray, " n"], k: int, distance: str, search: Mapping[str, Any]
) -> Analysis:
    """The collection with its graph; arguments as the attributes of `Analysis`."""
    usable = usable_rows(x)
    return Analysis(x, codes, distance, search, usable, neighbor_graph(x, k, distance, **search))


def views_of(
    found: Analysis,
    names: list[str],
    rows: ScoredTriplets | None,
    counts: Mapping[str, int] | None,
    catalog: Any,
    tested: Bool[np.ndarray, " n"],
    most: int,
    layout: str,
) -> dict[str, Any]:
    """All views of a page with embeddings.

    Args:
        found: the collection.
        names: of the classes.
        rows: the triplets; None for the farthest positive and the nearest negative of each image.
        counts: what became of the candidates of mining, or None.
        catalog: the images.
        tested: which are test images.
        most: cards of a gallery.
        layout: of the map.
    """
    x, codes, distance, search, usable, graph = found
    if rows is None:
        mined = mine_hard_triplets(x, codes, positives="hardest", ranks=(1, 1), distance=distance, **search)
        rows = triplets_of(mined, len(codes))
    scores = [pair_scores(x, distance, rows.anchor, other) for other in (rows.positive, rows.negative)]
    there = np.isfinite(scores).all(0)
    columns = [column[there] for column in (rows.anchor, rows.positive, rows.negative, *scores)]
    rows = ScoredTriplets(*columns)
    votes = graph.votes(codes)
    doubtful = suspects_among(
        x, codes, names, graph, catalog, tested, _COPY_SHARE, _ISOLATED, distance, search
    )
    places = layout_of(layout, x, usable, distance == "cosine", graph)
    return {
        "galleries": {**triplet_galleries(rows, most), "suspects": suspect_gallery(doubtful, 2 * most)},
        "hardness": hardness_view(rows, votes, codes, graph.own_rank(codes)),
        "confusion": confusion_view(votes, codes),
        "histograms": histogram_view(x, codes, usable),
        "filters": filter_view(counts) if counts else None,
        "map": _map_view(places, usable, layout),
    }


def triplets_of(mined: Any, n: int) -> ScoredTriplets:
    """Rows of triplets, of `MinedTriplets`, a `Manifest` or `Triplets`; of very many, evenly spaced ones.

    Args:
        mined: the triplets.
        n: images of the catalog.

    Raises:
        ValueError: something else, pairs, or rows that the catalog has not.
    """
    expected = "MinedTriplets, a Manifest of triplets or Triplets of catalog rows"
    given = getattr(mined, "triplets", mined)
    is_sequence = all(hasattr(given, name) for name in ("__len__", "__getitem__"))
    if is_sequence and not hasattr(given, "anchor") and not isinstance(given, (str, bytes, tuple, list)):
        try:
            given = given[np.arange(0, len(given), max(1, -(-len(given) // _SCORED)))]
        except (TypeError, IndexError, KeyError, RuntimeError):  # an array without a length, a dict
            raise Refusal("mined", type(mined).__name__, expected) from None
    if not all(hasattr(given, name) for name in ("anchor", "positive", "negative")) or hasattr(
        given, "label"
    ):
        raise Refusal("mined", type(mined).__name__, expected)
    columns = [
        as_array(None, "mined", getattr(given, name), "row numbers")
        for name in ("anchor", "positive", "negative")
    ]
    for column in columns:
        whole = column.ndim == 1 and (column.dtype.kind in "iu" or not column.size)
        if not whole or len(column) != len(columns[0]) or ((column < 0) | (column >= n)).any():
            raise Refusal(
                "mined", f"{column.dtype} of shape {column.shape}", f"{expected}, from 0 to {n - 1}"
            )
    step = max(1, -(-len(columns[0]) // _SCORED))
    anchor, positive, negative = (column[::step].astype(np.int64) for column in columns)
    return ScoredTriplets(anchor, positive, negative)


def counts_of(mined: Any) -> Mapping[str, int] | None:
    """What became of the candidates, from the report of mining or from the provenance of a manifest."""
    report = getattr(mined, "report", None)
    if report is not None:
        return report.as_dict()["counts"]
    mining = getattr(mined, "provenance", {}).get("mining", {})
    return mining.get("counts") if isinstance(mining, Mapping) else None


def _map_view(places: Float64[np.ndarray, "n 2"], usable: np.ndarray, layout: str) -> dict[str, Any] | None:
    """Places as 16-bit numbers: one scale for both axes, the middle in the middle."""
    rows = np.flatnonzero(usable)
    if not len(rows):
        return None
    low, high = places[rows].min(0), places[rows].max(0)
    middle, side = (low + high) / 2, float((high - low).max()) or 1.0
    whole = np.zeros((len(places), 2), dtype="<u2")
    whole[rows] = np.clip(((places[rows] - middle) / side + 0.5) * 65535, 0, 65535).round()
    name = {"pca": "The first two principal components", "tsne": "t-SNE by openTSNE on the exact k-NN graph"}
    note = (
        f"{name[layout]}, {len(rows):,} images, a colour a class. Drag to move, wheel or pinch to zoom, "
        "double-click to see all, click a point for its image."
    )
    view = {"places": base64.b64encode(whole.tobytes()).decode(), "note": note}
    return view if len(rows) == len(places) else {**view, "rows": rows.tolist()}
