"""Which figures each family of `evaluate` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tercet.core.checks import refusal, with_length
from tercet.metrics import figures as named
from tercet.metrics.clustering import clustered
from tercet.metrics.distributions import binned_similarities, overlap
from tercet.metrics.episodes import played
from tercet.metrics.figures import measured
from tercet.metrics.geometry import shape_of
from tercet.metrics.graded import discounted
from tercet.metrics.intervals import class_sums
from tercet.metrics.pooled import pooled
from tercet.metrics.protocol import Queries
from tercet.metrics.verification import verification

__all__ = ["FIGURES", "UNBOUNDED", "other_figures", "ranked_figures"]

FIGURES = "retrieval ranking curves ndcg gap verification similarities clustering geometry few-shot".split()
ONE_SET = {"clustering", "geometry", "few-shot"}  # figures of rows that are nobody's gallery
UNBOUNDED = {"effective rank", "uniformity", "alignment", "hubness"}  # no shares, from 0 to 1
BINS = 100  # of similarity
CURVE = 50  # ranks of the CMC and of the recall curve


def ranked_figures(
    queries: Queries, graded: Queries, labels: Any, chosen: list[str], ks: list[int], gain: str
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The figures of rankings by name, and the curves, all but nDCG and GAP from one search.

    Args:
        queries: who is searched for whom.
        graded: the same by relevance, for nDCG.
        labels: [n], the class of each row.
        chosen: names of families.
        ks: ranks of Recall@k and its like.
        gain: of nDCG.

    Returns:
        Figures, curves, and figures without each class, by name.
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
    found: dict[str, float] = {name: scores[name] for name in wanted}
    without = {}
    if "ndcg" in chosen:
        found |= {f"nDCG@{k}": score for k, score in discounted(graded, ks, gain == "exponential").items()}
    if "gap" in chosen:
        found["GAP"], growth = pooled(queries)
        of_class = class_sums(growth[queries.rows], _rows(labels, queries.rows))[0]
        without["GAP"] = found["GAP"] - of_class  # to first order
    return found, curves, without


def other_figures(
    chosen: list[str],
    embeddings: Any,
    labels: Any,
    seed: int,
    protocol: Mapping[str, Any],
    kept: Int[np.ndarray, " r"],
    found: dict[str, float],
    curves: dict[str, np.ndarray],
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Add the figures that are of no ranking to `found` and `curves`.

    Args:
        chosen: names of families.
        embeddings, labels, seed: as for `evaluate`.
        protocol: `ids`, `ref`, `groups`, `exclude`, `ignore` and `distractors` of `evaluate`.
        kept: the rows that are no junk, where there is no `ref`.
        found: figures by name.
        curves: arrays by name.

    Returns:
        Lines for the table, and figures without each class, by name.

    Raises:
        ValueError: an option that a family has no meaning for.
    """
    notes, without = [], {}
    _refuse_protocol_of_one_set(chosen, protocol)
    if "verification" in chosen:
        pairs = verification(embeddings, labels, **protocol)
        found |= pairs.figures()
        without |= pairs.without
        curves["roc"] = pairs.curve
        notes.append(f"{pairs.positives:,} positive and {pairs.negatives:,} negative pairs, each once")
    if "similarities" in chosen:
        pairs = binned_similarities(embeddings, labels, BINS, protocol)
        name, both = "overlap of similarities", np.stack([pairs.positive.sum(0), pairs.negatives])
        found[name], without[name] = overlap(pairs)
        curves["similarities"] = both / both.sum(1, keepdims=True).clip(1)
    if protocol["ignore"] is not None and ONE_SET & set(chosen):
        embeddings, labels = (_rows(each, kept) for each in (embeddings, labels))
    if "clustering" in chosen:
        clusters, of_classes = clustered(embeddings, labels, None, 10, seed)
        found |= clusters.figures()
        without |= of_classes
        notes.append(f"k-means, {clusters.clusters} clusters, best of {clusters.restarts} restarts")
    if "geometry" in chosen:
        shape, of_classes = shape_of(embeddings, labels)
        found |= shape.figures()
        without |= of_classes
    if "few-shot" in chosen:
        name, (score, of_classes) = "5-way 1-shot accuracy", played(embeddings, labels, seed=seed)
        found[name], without[name] = float(score), of_classes
        notes.append(f"few-shot: {score.queries} episodes, {score.left_out} classes of fewer than 16 images")
    return notes, without


def _refuse_protocol_of_one_set(chosen: list[str], protocol: Mapping[str, Any]) -> None:
    for family in chosen:
        for argument in ("ids", "ref", "groups", "distractors"):
            if family in ONE_SET and protocol[argument] is not None:
                shown = "references" if argument == "ref" else with_length(protocol[argument])
                expected = f'None beside figures="{family}", which compares no query with a gallery'
                hint = f"evaluate {family!r} in a call of its own, of the rows that it is to be of"
                raise refusal("evaluate", argument, shown, expected, hint)


def _rows(values: Any, kept: Int[np.ndarray, " r"]) -> Any:
    if isinstance(values, Tensor):
        return values[torch.from_numpy(kept).to(values.device)]
    return np.asarray(values)[kept]
