"""What offline mining takes, known before it starts: bytes, and how often it reads the collection."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from tercet.neighbors.faiss import index_bytes
from tercet.neighbors.search_plan import plan_search
from tercet.neighbors.stored_rows import StoredRows
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance

__all__ = ["MiningPlan", "plan_mining", "searched_at_once"]

_FOUND = 16  # bytes of a found candidate: row and distance
_JUDGED = 112  # bytes of a candidate while pairs are judged: reasons, masks, places, an order
_PAIR = 112  # bytes of a pair while pairs are listed: places, rows, scores
_SLOT = 2 * (8 + 4 + 8)  # row, score and rank, in the blocks and joined


class MiningPlan(NamedTuple):
    """The most that mining takes above its inputs, a teacher and k-means not counted.

    Args:
        pairs: (anchor, positive) pairs, at most.
        searches: blocks of anchors that are searched one after the other.
        passes: how often the search reads the whole collection.
        search: bytes of one search, with the candidates that it finds.
        index: bytes of the index of FAISS.
        judged: bytes of the candidates that are judged at once.
        result: bytes of all pairs with their negatives and reserve lists.

    Example:
        >>> plan = MiningPlan(9_000, 1, 1, 300 << 20, 0, 224 << 20, 108 << 20)
        >>> print(plan)
        at most 632 MiB above the inputs: search 300, judging 224, 9,000 pairs 108; 1 pass over the collection
    """

    pairs: int
    searches: int
    passes: int
    search: int
    index: int
    judged: int
    result: int

    @property
    def bytes(self) -> int:
        """The most bytes at one time."""
        return self.search + self.index + self.judged + self.result

    def __str__(self) -> str:
        mib = {"search": self.search, "index": self.index, "judging": self.judged}
        mib[f"{self.pairs:,} pairs"] = self.result
        parts = ", ".join(f"{name} {-(-size >> 20):,}" for name, size in mib.items() if size)
        total = sum(-(-size >> 20) for size in mib.values())
        passes = f"{self.passes:,} pass{'es' if self.passes != 1 else ''} over the collection"
        return f"at most {total:,} MiB above the inputs: {parts}; {passes}"


def searched_at_once(depth: int, memory: int | None) -> int:
    """How many anchors are searched at once: as many as have the candidates that the budget allows.

    Args:
        depth: candidates of an anchor.
        memory: bytes of the search, of which a quarter is for its result; None for no such limit.

    Example:
        >>> searched_at_once(100, None), searched_at_once(100, 64 << 20)
        (115343, 10485)
    """
    most = budget(torch.device("cpu")).found_candidates
    if memory is not None:
        most = min(most, memory // (4 * _FOUND))
    return max(1, most // depth)


def plan_mining(
    embeddings: Any,
    classes: Int64[np.ndarray, " n"],
    anchors: Int64[np.ndarray, " a"],
    distance: Distance,
    *,
    depth: int,
    every_positive: bool,
    slots: int,
    memory: int | None = None,
    backend: str = "exact",
) -> MiningPlan:
    """What mining will take at most.

    Args:
        embeddings: [n, d], a numpy array or a tensor.
        classes: class numbers; −1 for rows that are left out.
        anchors: rows that are anchors.
        distance: a `Distance`.
        depth: candidates of an anchor.
        every_positive: whether an anchor is mined with every positive, not with one.
        slots: negatives and further candidates that a pair may have.
        memory: as for `nearest`.
        backend: as for `nearest`.

    Raises:
        ValueError: less memory than one tile takes, or the index: a `Refusal`.

    Example:
        >>> from tercet.pairwise.distances import euclidean
        >>> x, classes = np.zeros((100_000, 128), np.float32), np.arange(100_000) // 8
        >>> plan = plan_mining(
        ...     x, classes, np.arange(100_000), euclidean, depth=100, every_positive=True, slots=1
        ... )
        >>> plan.pairs, plan.passes, plan.bytes < 800 * 2**20
        (700000, 7, True)
    """
    asked = classes[anchors]
    size = np.bincount(classes[classes >= 0], minlength=1)
    positives = size[asked[asked >= 0]] - 1
    pairs = int(positives.sum() if every_positive else (positives > 0).sum())
    queries = int((positives > 0).sum())
    device = embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")
    prepared = StoredRows("embeddings", embeddings, distance, device).sample(1)
    at_once = min(searched_at_once(depth, memory), queries)
    rows, dim = len(classes), prepared.shape[1]
    plan = plan_search(at_once, rows, min(depth, rows), dim, prepared.dtype, device, memory)
    searches = -(-queries // max(1, at_once))
    scores = at_once * depth * (2 * prepared.dtype.itemsize + 1)
    judged = min(budget(torch.device("cpu")).judged_candidates, pairs * depth) * _JUDGED
    return MiningPlan(
        pairs,
        searches,
        searches * plan.passes,
        plan.bytes + scores,
        0 if backend == "exact" else index_bytes(backend, rows, dim),
        judged,
        pairs * (_PAIR + slots * _SLOT),
    )
