"""Why an image or a pair of classes is suspected, in words, from the k-NN graph."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from tercet.offline.neighbor_graph import NeighborGraph, Votes
from tercet.offline.verdicts import Verdicts
from tercet.reports.copies import Copies

__all__ = ["confused_rows", "copy_rows", "isolated_rows", "label_reasons"]

_LEAST_CONFUSED = 2  # images of a pair of classes


def label_reasons(
    doubtful: Verdicts, graph: NeighborGraph, votes: Votes, codes: Int64[np.ndarray, " n"], names: list[str]
) -> list[str]:
    """Why each doubtful label is doubted: votes, the rank of its own class, mutual neighbours of others.

    Args:
        doubtful: of `suspected_labels`.
        graph: the k-NN graph.
        votes: of the graph.
        codes: class numbers.
        names: class names.
    """
    kinds = graph.classes(codes)
    against = (graph.mutual & (kinds != codes[:, None])).sum(1)
    size = np.bincount(codes)
    ranks, found = graph.own_rank(codes), (graph.rows >= 0).sum(1)
    reasons = []
    for i, j in zip(doubtful.image.tolist(), doubtful.other.tolist(), strict=True):
        share = _share_of(graph, kinds[i], int(codes[j]), i)
        rank = f"its nearest image of its own class is number {ranks[i]}"
        none = (
            "it is the only one of its class" if size[codes[i]] == 1 else "none of them is of its own class"
        )
        reasons.append(
            f"looks like {names[codes[j]]!r}: {share:.0%} of the vote of its {found[i]} nearest images, "
            f"{votes.own[i]:.0%} for its own class {names[codes[i]]!r}; "
            f"{rank if ranks[i] else none}; "
            f"{against[i]} of other classes have it among their nearest too"
        )
    return reasons


def _share_of(graph: NeighborGraph, kinds: Int64[np.ndarray, " k"], code: int, i: int) -> float:
    """The share of the vote of image i for one class."""
    weights = np.where(kinds >= 0, 1 / (graph.lengths[i] + (graph.scale or 1.0)), 0.0)
    return float(weights[kinds == code].sum() / max(weights.sum(), np.finfo(float).tiny))


def isolated_rows(graph: NeighborGraph, times: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images whose nearest is farther than so many times the scale, the nearest, and why.

    Args:
        graph: the k-NN graph.
        times: beyond which an image is listed.
    """
    first = np.where(np.isfinite(graph.lengths[:, 0]), graph.lengths[:, 0], 0)
    ratio = first / (graph.scale or 1.0)
    rows = np.flatnonzero(ratio > times)
    rows = rows[np.argsort(-ratio[rows], kind="stable")]
    found_by = graph.found_by
    reasons = [
        f"its nearest image is {ratio[i]:.1f} times as far as in the median; "
        f"{found_by[i] or 'no'} image{'' if found_by[i] == 1 else 's'} have it among their nearest"
        for i in rows
    ]
    return rows, graph.rows[rows, 0], reasons


def confused_rows(
    graph: NeighborGraph, votes: Votes, codes: Int64[np.ndarray, " n"], names: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of each pair of confused classes its clearest image, that one's nearest in the other class, and why.

    Args:
        graph: the k-NN graph.
        votes: of the graph.
        codes: class numbers.
        names: class names.
    """
    taken = np.flatnonzero(votes.winner_is_other)
    size = np.bincount(codes)
    by_pair: dict[tuple[int, int], list[int]] = {}
    for i in taken[np.argsort((votes.own - votes.share)[taken], kind="stable")].tolist():
        a, b = sorted((int(codes[i]), int(votes.best[i])))
        by_pair.setdefault((a, b), []).append(i)
    kept = {pair: rows for pair, rows in by_pair.items() if len(rows) >= _LEAST_CONFUSED}
    share = {pair: len(rows) / (size[pair[0]] + size[pair[1]]) for pair, rows in kept.items()}
    images, others, reasons = [], [], []
    kinds = graph.classes(codes)
    for pair in sorted(kept, key=lambda pair: (-share[pair], pair)):
        rows = kept[pair]
        clearest = rows[0]
        b = int(votes.best[clearest])
        a = int(codes[clearest])
        there = int((codes[rows] == a).sum())
        images.append(clearest)
        others.append(int(graph.rows[clearest, int((kinds[clearest] == b).argmax())]))
        reasons.append(
            f"{there:,} of the {size[a]:,} images of {names[a]!r} look like {names[b]!r}, "
            f"and {len(rows) - there:,} of its {size[b]:,} the other way round"
        )
    return np.array(images, dtype=np.int64), np.array(others, dtype=np.int64), reasons


def copy_rows(
    found: Copies, codes: Int64[np.ndarray, " n"], names: list[str], leaks: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images with a copy, the copy, and why.

    Args:
        found: the pairs.
        codes: class numbers.
        names: class names.
        leaks: whether they are of a test image and a training image.
    """
    reasons = []
    for i, j, length, of_bytes in zip(*(column.tolist() for column in found), strict=True):
        how = f"their embeddings are apart by {length:.0%} of the median length to the nearest image"
        apart = "" if codes[i] == codes[j] else f"; two classes, {names[codes[i]]!r} and {names[codes[j]]!r}"
        parts = "a test and a training image: " if leaks else ""
        reasons.append(f"{parts}{'their files have the same bytes' if of_bytes else how}{apart}")
    return found.image, found.other, reasons
