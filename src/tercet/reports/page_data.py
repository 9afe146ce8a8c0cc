"""What a page shows, as JSON takes it: galleries, hardness of classes, confusion, histograms, filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from tercet.metrics.distributions import similarity_histograms
from tercet.offline.filters import Reason
from tercet.offline.neighbor_graph import Votes
from tercet.reports.suspects import Suspects

__all__ = [
    "ScoredTriplets",
    "confusion_view",
    "filter_view",
    "finite",
    "hardness_view",
    "histogram_view",
    "provenance_view",
    "suspect_gallery",
    "triplet_galleries",
]

_SHOWN_CLASSES = 40  # of the confusion of classes
_HISTOGRAM_ROWS = 4_000  # all pairs of so many images
_BINS = 80


class ScoredTriplets(NamedTuple):
    """Triplets of the collection, with the scores of both pairs, or None for both.

    Args:
        anchor: int64 [t].
        positive: int64 [t].
        negative: int64 [t].
        positive_score: [t].
        negative_score: [t].
    """

    anchor: Int64[np.ndarray, " t"]
    positive: Int64[np.ndarray, " t"]
    negative: Int64[np.ndarray, " t"]
    positive_score: Float[np.ndarray, " t"] | None = None
    negative_score: Float[np.ndarray, " t"] | None = None


def finite(value: Any) -> float | None:
    """A number as JSON takes it: None where it is not finite."""
    return round(float(value), 5) if math.isfinite(value) else None


def triplet_galleries(triplets: ScoredTriplets, most: int) -> dict[str, Any]:
    """The hardest triplets, positives and negatives; or, without scores, triplets as they come.

    Args:
        triplets: of the collection.
        most: how many of each.
    """
    a, p, n, own, score = triplets
    if own is None or score is None:
        rows = np.unique(np.linspace(0, max(0, len(a) - 1), min(most, len(a))).round().astype(int))
        items = [{"image": int(a[i]), "positive": int(p[i]), "other": int(n[i])} for i in rows]
        note = (
            f"{len(items):,} of {len(a):,} triplets, evenly spaced; without embeddings there are no scores."
        )
        return {"triplets": _gallery("Triplets", note, ("anchor", "positive", "negative"), items)}
    hardest = _first_of_each(a, own - score, most)
    triple = [
        {"image": int(a[i]), "positive": int(p[i]), "other": int(n[i]), "score": finite(score[i])}
        | {"own": finite(own[i])}
        for i in hardest
    ]
    pairs = {}
    for name, other, order in (("positives", p, own), ("negatives", n, -score)):
        low, high = np.minimum(a, other), np.maximum(a, other)
        _, first = np.unique(low * (int(high.max(initial=0)) + 1) + high, return_index=True)
        rows = first[np.argsort(order[first], kind="stable")][:most]
        value, beside = (own, score) if name == "positives" else (score, own)
        pairs[name] = [
            {"image": int(a[i]), "other": int(other[i])}
            | {"score": finite(value[i]), "own": finite(beside[i])}
            for i in rows
        ]
    of = f"{len(a):,} triplets"
    notes = {
        "triplets": f"The hardest {len(triple):,} of {of}, one an anchor: those whose negative is nearer "
        "than the positive by most. A mark is of the anchor and the negative.",
        "positives": f"The {len(pairs['positives']):,} farthest pairs of one class among {of}.",
        "negatives": f"The {len(pairs['negatives']):,} nearest pairs of different classes among {of}.",
    }
    return {
        "triplets": _gallery(
            "Hardest triplets", notes["triplets"], ("anchor", "positive", "negative"), triple
        ),
        "positives": _gallery(
            "Positives", notes["positives"], ("anchor", "farthest of its class"), pairs["positives"]
        ),
        "negatives": _gallery(
            "Negatives", notes["negatives"], ("anchor", "nearest other"), pairs["negatives"]
        ),
    }


def suspect_gallery(found: Suspects, most: int) -> dict[str, Any]:
    """Suspects: of each kind as many as leave room for the others.

    Args:
        found: all of them.
        most: how many in all.
    """
    kinds = list(dict.fromkeys(found.kind))
    places = [np.flatnonzero([each == kind for each in found.kind]) for kind in kinds]
    room, kept = most, []
    for left, at in sorted(zip(range(len(places)), places, strict=True), key=lambda pair: len(pair[1])):
        share = room // (len(places) - len(kept)) if places else 0
        kept.append((left, at[:share]))
        room -= len(kept[-1][1])
    items = [
        {
            "image": int(found.image[i]),
            "other": int(found.other[i]),
            "score": finite(found.score[i]),
            "own": finite(found.own_score[i]),
            "kind": found.kind[i],
            "reason": found.reason[i],
        }
        for _, at in sorted(kept, key=lambda pair: pair[0])
        for i in at.tolist()
    ]
    counts = ", ".join(f"{len(at):,} {kind}" for kind, at in zip(kinds, places, strict=True))
    of = f"{len(items):,} of {len(found):,} suspects ({counts or 'none'})"
    note = f"{of}, the most suspicious of each kind first."
    return _gallery("Suspects", note, ("image", "beside"), items)


def hardness_view(
    triplets: ScoredTriplets, votes: Votes, codes: Int64[np.ndarray, " n"], own_rank: Int64[np.ndarray, " n"]
) -> dict[str, Any]:
    """A row for each class: how many images, how they vote, how hard its triplets are.

    Args:
        triplets: with scores.
        votes: of the k-NN graph.
        codes: class numbers.
        own_rank: the rank of the nearest image of the own class, 0 for none among the k.
    """
    size = np.bincount(codes)
    of = codes[triplets.anchor]
    count = np.bincount(of, minlength=len(size))
    assert triplets.positive_score is not None
    assert triplets.negative_score is not None
    away = votes.winner_is_other

    def mean(values: Any, kinds: np.ndarray, total: np.ndarray) -> list[float | None]:
        sums = np.bincount(kinds, np.asarray(values, dtype=np.float64), minlength=len(size))
        return [finite(s / c) if c else None for s, c in zip(sums, total, strict=True)]

    own, score = triplets.positive_score, triplets.negative_score
    columns = [
        ("images", "", False, size.tolist()),
        ("triplets", "by anchor", False, count.tolist()),
        ("positive", "mean score of positives", False, mean(own, of, count)),
        ("negative", "mean score of negatives", False, mean(score, of, count)),
        ("other nearest", "images whose nearest is of another class", True, mean(own_rank != 1, codes, size)),
        ("voted away", "images that their neighbours vote into another class", True, mean(away, codes, size)),
        ("hard", "triplets whose negative is as near as the positive", True, mean(score >= own, of, count)),
    ]
    heads = [{"name": name, "title": title, "share": share} for name, title, share, _ in columns]
    rows = [list(row) for row in zip(range(len(size)), *(column[3] for column in columns), strict=True)]
    note = "How hard each class is. A click on a head sorts, a click on a class shows its hardest triplets."
    return {"heads": [{"name": "class", "title": ""}, *heads], "rows": rows, "note": note}


def confusion_view(votes: Votes, codes: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """Which class the vote of the neighbours takes for which other, of the most confused classes.

    Args:
        votes: of the k-NN graph.
        codes: class numbers.
    """
    taken = np.flatnonzero(votes.winner_is_other)
    pairs, counts = np.unique(np.stack([codes[taken], votes.best[taken]]), axis=1, return_counts=True)
    total = np.bincount(pairs.ravel(), np.tile(counts, 2), minlength=int(codes.max(initial=0)) + 1)
    chosen = np.sort(np.argsort(-total, kind="stable")[: min(_SHOWN_CLASSES, int((total > 0).sum()))])
    cells = [
        [int(a), int(b), int(count)]
        for (a, b), count in zip(pairs.T, counts, strict=True)
        if a in chosen and b in chosen
    ]
    left = int((total > 0).sum()) - len(chosen)
    note = (
        f"{len(taken):,} of {len(codes):,} images have more votes for another class than for their own. Row: "
        f"the label; column: what the neighbours say."
    )
    if left:
        note += f" {left:,} classes that are confused less are not shown."
    return {"kinds": chosen.tolist(), "cells": cells, "note": note}


def histogram_view(x: Any, codes: Int64[np.ndarray, " n"], usable: np.ndarray) -> dict[str, Any] | None:
    """Histograms of the cosine similarity of positive and negative pairs; None of fewer than two images.

    Args:
        x: [n, d].
        codes: class numbers.
        usable: bool [n].
    """
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        return None
    spaced = rows[:: -(-len(rows) // _HISTOGRAM_ROWS)]
    part = x[spaced]
    part = part.detach().cpu().float() if hasattr(part, "detach") else np.asarray(part, np.float32)
    positive, negative = similarity_histograms(part, codes[spaced], _BINS)
    overlap = np.minimum(positive, negative).sum()
    note = (
        f"Cosine similarity of all pairs of {len(spaced):,} images, as shares of each kind of pair. The "
        f"histograms overlap by {overlap:.3f}; the less, the better are classes apart."
    )
    shares = [[round(float(value), 6) for value in side] for side in (positive, negative)]
    return {"positive": shares[0], "negative": shares[1], "note": note}


def filter_view(counts: Mapping[str, int]) -> dict[str, Any]:
    """What became of each candidate of mining.

    Args:
        counts: how many candidates have each reason, by its name in lower case.
    """
    known = {reason.name.lower(): reason.text for reason in Reason}
    rows = [[known.get(name, name), int(count)] for name, count in counts.items() if count]
    note = "What became of each candidate: an anchor, its positive and one image of the collection."
    return {"rows": rows, "note": note}


def provenance_view(parts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts by title, nested ones by dotted names.

    Args:
        parts: facts by title.
    """

    def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
        lines = []
        for name, value in facts.items():
            if isinstance(value, Mapping):
                lines += flat(value, f"{prefix}{name}.")
            else:
                text = str(value)
                lines.append((f"{prefix}{name}", text if len(text) <= 500 else f"{text[:500]}…"))
        return lines

    return [(title, flat(facts)) for title, facts in parts.items() if facts]


def _gallery(title: str, note: str, roles: Sequence[str], items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"title": title, "note": note, "roles": list(roles), "items": items}


def _first_of_each(anchor: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """The first row of each anchor, in the order of a column."""
    rows = np.argsort(order, kind="stable")
    _, first = np.unique(anchor[rows], return_index=True)
    return rows[np.sort(first)][:most]
