"""`MinedTriplets`: what offline mining gives, pair by pair, with scores, ranks and the account."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from tercet.core.indices import Triplets
from tercet.offline.mining_report import MiningReport
from tercet.offline.verdicts import Verdicts

__all__ = ["MinedTriplets"]


@dataclass(frozen=True, eq=False, repr=False)
class MinedTriplets:
    """Hard triplets of a collection: for each (anchor, positive) its negatives and a reserve list.

    Args:
        anchor: int64 [u] rows of the collection, rising.
        positive: int64 [u].
        positive_score: float32 [u].
        negatives: int64 [u, k], in the order of choice; −1 where a pair has fewer.
        scores: float32 [u, k]; NaN where there is none.
        ranks: int64 [u, k] among the rows of other classes, from 1; 0 for a row drawn at random that is not
            among the candidates.
        reserve: int64 [u, m] further allowed candidates; −1 where there are fewer.
        reserve_scores: float32 [u, m].
        reserve_ranks: int64 [u, m].
        suspects: the images that were set aside, for `write_verdicts`.
        report: what became of every candidate.

    Example:
        >>> from tercet.offline.hard_negatives import mine_hard_triplets
        >>> mined = mine_hard_triplets(np.array([[1.0, 0], [1, 0.1], [1, 1], [0, 1]]), [0, 0, 1, 1])
        >>> mined
        MinedTriplets(4 pairs × 1 negatives, 4 triplets)
        >>> mined.triplets.negative.tolist()
        [2, 2, 1, 1]
    """

    anchor: Int64[np.ndarray, " u"]
    positive: Int64[np.ndarray, " u"]
    positive_score: Float[np.ndarray, " u"]
    negatives: Int64[np.ndarray, "u k"]
    scores: Float[np.ndarray, "u k"]
    ranks: Int64[np.ndarray, "u k"]
    reserve: Int64[np.ndarray, "u m"]
    reserve_scores: Float[np.ndarray, "u m"]
    reserve_ranks: Int64[np.ndarray, "u m"]
    suspects: Verdicts
    report: MiningReport

    @property
    def triplets(self) -> Triplets:
        """Every (anchor, positive, negative), int64 [t], by pair and then in the order of choice."""
        pair, slot = np.nonzero(self.negatives >= 0)
        return Triplets(self.anchor[pair], self.positive[pair], self.negatives[pair, slot])

    def __len__(self) -> int:
        return int((self.negatives >= 0).sum())

    def __repr__(self) -> str:
        pairs, k = self.negatives.shape
        return f"MinedTriplets({pairs:,} pairs × {k} negatives, {len(self):,} triplets)"
