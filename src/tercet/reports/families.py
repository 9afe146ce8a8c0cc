"""Which figures each family of `evaluate` holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tercet.metrics import figures as named
from tercet.metrics.clustering import clustering
from tercet.metrics.distributions import similarity_histograms
from tercet.metrics.episodes import few_shot
from tercet.metrics.figures import measured
from tercet.metrics.geometry import geometry
from tercet.metrics.protocol import Queries
from tercet.metrics.verification import verification

__all__ = ["FIGURES", "other_figures", "ranked_figures"]

FIGURES = "retrieval ranking curves verification similarities clustering geometry few-shot".split()
CURVE = 50  # ranks of the CMC and of the recall curve


def ranked_figures(
    queries: Queries, chosen: list[str], ks: list[int]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The figures of rankings by name, and the curves, all from one search.

    Args:
        queries: who is searched for whom.
        chosen: names of families.
        ks: ranks of Recall@k and its like.
    """
    wanted, drawn = {}, {}
    if "retrieval" in chosen:
        wanted |= {f"Recall@{k}": named.recall(k) for k in ks}
        wanted |= {"R-precision": named.r_precision(), "MAP@R": named.map_at_r()}
    if "ranking" in chosen:
        wanted |= {f"Precision@{k}": named.precision(k) for k in ks}
        wanted |= {f"true recall@{k}": named.true_recall(k) for k in ks}
        wanted |= {f"mAP@{k} over R": named.map_at_k(k, True) for k in ks}
        wanted |= {f"mAP@{k} over min(k, R)": named.map_at_k(k, False) for k in ks}
        wanted |= {"MAP": named.mean_average(False), "MAP, trapezoid": named.mean_average(True)}
        wanted |= {"MRR": named.mrr(), "mINP": named.minp()}
    if "curves" in chosen:
        drawn |= {f"cmc {k}": named.recall(k) for k in range(1, CURVE + 1)}
        drawn |= {f"recall {k}": named.true_recall(k) for k in range(1, CURVE + 1)}
    scores = measured(queries, wanted | drawn) if wanted or drawn else {}
    curves = {
        name: np.array([scores[f"{name} {k}"] for k in range(1, CURVE + 1)])
        for name in ("cmc", "recall")
        if drawn
    }
    return {name: scores[name] for name in wanted}, curves


def other_figures(
    chosen: list[str],
    embeddings: Any,
    labels: Any,
    seed: int,
    found: dict[str, float],
    curves: dict[str, np.ndarray],
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Add the figures that are of no ranking to `found` and `curves`.

    Args:
        chosen: names of families.
        embeddings, labels, seed: as for `evaluate`.
        found: figures by name.
        curves: arrays by name.

    Returns:
        Lines for the table, and the sums of classes of figures that have such.
    """
    notes, sums = [], {}
    if "verification" in chosen:
        pairs = verification(embeddings, labels)
        found |= pairs.figures()
        sums |= pairs.by_class
        curves["roc"] = pairs.curve
        notes.append(f"{pairs.positives:,} positive and {pairs.negatives:,} negative pairs, each once")
    if "similarities" in chosen:
        both = np.stack(similarity_histograms(embeddings, labels))
        found["overlap of similarities"] = float(both.min(0).sum()) if both.any(1).all() else math.nan
        curves["similarities"] = both
    if "clustering" in chosen:
        clusters = clustering(embeddings, labels, seed=seed)
        found |= clusters.figures()
        notes.append(f"k-means, {clusters.clusters} clusters, best of {clusters.restarts} restarts")
    if "geometry" in chosen:
        found |= geometry(embeddings, labels).figures()
    if "few-shot" in chosen:
        score = few_shot(embeddings, labels, seed=seed)
        found["5-way 1-shot accuracy"] = float(score)
        notes.append(f"few-shot: {score.queries} episodes, {score.left_out} classes of fewer than 16 images")
    return notes, sums
