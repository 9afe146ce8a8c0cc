"""The steps of offline mining: pairs, blocks of them with the rows near their anchors, and the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64

from tercet.core.checks import Refusal
from tercet.neighbors.nearest_search import Neighbors
from tercet.offline.filters import Candidates, Limits, scores_of
from tercet.offline.mined_triplets import MinedTriplets
from tercet.offline.mining_report import Account, MiningReport, quantiles
from tercet.offline.pair_mining import Chosen, PairBlock, PairMiner, Rules
from tercet.offline.positives import class_pairs, reference_scores, select_positives
from tercet.offline.seen_scores import SeenScores
from tercet.offline.verdicts import Verdicts, named
from tercet.pairwise.budget import budget

__all__ = ["MinedPart", "blocks_of", "joined", "mined_block", "pairs_of"]


class MinedPart(NamedTuple):
    """What a block of pairs gave.

    Args:
        chosen: its negatives; their reasons have been counted, and are left out.
        kept: the pairs that are not dropped.
    """

    chosen: Chosen
    kept: Bool[np.ndarray, " t"]


def pairs_of(
    classes: Int64[np.ndarray, " n"],
    asked: Int64[np.ndarray, " a"],
    said: Verdicts,
    apart: tuple[np.ndarray | None, ...],
    chosen_positives: str | int,
    limits: Limits,
    score_of: Callable[[Any, Any], Any],
) -> tuple[PairBlock, float]:
    """The pairs that are mined, by anchor, and the score of `max_quantile` of all that could be."""
    skipped = named(said, "skip").image
    there = classes.copy()
    there[skipped] = -1
    rows = asked[there[asked] >= 0]
    at, positive = class_pairs(there, rows)
    for column in apart:
        if column is not None:
            other = column[rows[at]] != column[positive]
            at, positive = at[other], positive[other]
    own = score_of(rows[at], positive)
    bound = math.inf
    if limits.max_quantile is not None and len(own):
        bound = float(np.quantile(own.astype(np.float64), limits.max_quantile))
    against = reference_scores(limits.reference, own, at)
    chosen = select_positives(chosen_positives, at, -own)
    return PairBlock(rows[at[chosen]], positive[chosen], own[chosen], against[chosen]), bound


def blocks_of(pairs: PairBlock, at_once: int) -> Iterator[PairBlock]:
    """The pairs in blocks of whole anchors whose candidates fit into memory; one empty block of none.

    Args:
        pairs: by anchor.
        at_once: anchors of a block.

    Example:
        >>> pairs = PairBlock(*np.array([[0, 0, 1], [1, 2, 0], [0, 0, 0], [0, 0, 0]]))
        >>> [block.positive.tolist() for block in blocks_of(pairs, 100)]
        [[1, 2, 0]]
    """
    starts = np.flatnonzero(np.diff(pairs.anchor, prepend=-1))
    cuts = [0, *starts[at_once::at_once].tolist(), len(pairs.anchor)]
    for first, stop in itertools.pairwise(cuts):
        yield PairBlock(*(column[first:stop] for column in pairs))


def mined_block(
    miner: PairMiner,
    pairs: PairBlock,
    found: Neighbors,
    is_cosine: bool,
    account: Account,
    seen: SeenScores,
) -> list[MinedPart]:
    """Choose the negatives of some pairs.

    Args:
        miner: chooses.
        pairs: of whole anchors, by anchor.
        found: the nearest rows of other classes, a line for each anchor of the pairs, in rising order.
        is_cosine: whether a score is 1 − D, else −D.
        account: is added to.
        seen: takes the scores of the candidates.
    """
    _, of_anchor = np.unique(pairs.anchor, return_inverse=True)
    scores = scores_of(found.distances, is_cosine)
    seen.add(scores)
    parts = []
    step = max(1, budget(torch.device("cpu")).judged_candidates // max(1, found.rows.shape[1]))
    for first in range(0, max(1, len(of_anchor)), step):
        some = PairBlock(*(column[first : first + step] for column in pairs))
        at = of_anchor[first : first + step]
        candidates = Candidates(found.rows[at], scores[at], found.distances[at] == 0)
        chosen = miner.mine(some, candidates)
        kept = ~chosen.short if miner.rules.on_short == "drop" else np.ones(len(at), dtype=bool)
        account.add(some.anchor, chosen.reasons, candidates.rows, chosen.outside, ~kept, chosen.alone)
        seen.add_pairs(some.reference, candidates.scores)
        done = {"reasons": chosen.reasons[:0].copy(), "alone": chosen.alone[:0].copy()}
        parts.append(MinedPart(chosen._replace(**done), kept))
    return parts


def joined(
    parts: list[list[MinedPart]],
    pairs: PairBlock,
    rules: Rules,
    account: Account,
    n: int,
    asked: int,
    doubtful: Verdicts,
    seen: SeenScores,
    **searched: Any,
) -> MinedTriplets:
    """The blocks as one result, with its report.

    Args:
        parts: what the blocks gave.
        pairs: of all blocks.
        rules: how negatives were chosen.
        account: of all candidates.
        n: rows of the collection.
        asked: anchors asked for.
        doubtful: the images that were set aside.
        seen: scores of candidates.
        searched: facts of the search that the report tells: backend, recall, plan.

    Raises:
        ValueError: pairs with too few negatives under `on_short="error"`: a `Refusal`.
    """
    flat = [part for block in parts for part in block]
    kept = np.concatenate([part.kept for part in flat])
    columns = {
        name: np.concatenate([getattr(part.chosen, name) for part in flat])
        for name in ("rows", "scores", "ranks", "reserve", "reserve_scores", "reserve_ranks", "short")
    }
    short = int(columns.pop("short").sum())
    if rules.on_short == "error" and short:
        expected = f"{rules.negatives} negatives for each pair, and {short:,} pairs have fewer"
        worst = account.most_frequent_refusal()
        hint = f"most candidates are {worst.text}; widen it, or pass on_short='keep'"
        raise Refusal("on_short", "error", expected, hint)
    columns = {name: column[kept] for name, column in columns.items()}
    negatives = columns.pop("rows")
    report = MiningReport(
        rows=account.rows,
        unusable=n - account.rows,
        lone=asked - len(np.unique(pairs.anchor)),
        pairs=len(pairs.anchor),
        triplets=int((negatives >= 0).sum()),
        short=short,
        relaxed=sum(part.chosen.relaxed for part in flat),
        drawn=sum(part.chosen.drawn for part in flat),
        counts=dict(account.counts),
        positive_scores=quantiles(pairs.own),
        candidate_scores=quantiles(seen.candidates.values),
        negative_scores=quantiles(columns["scores"].ravel()),
        alone=dict(account.alone),
        suggested=seen.suggested(),
        **searched,
    )
    return MinedTriplets(
        pairs.anchor[kept],
        pairs.positive[kept],
        pairs.own[kept].astype(np.float32),
        negatives,
        suspects=doubtful,
        report=report,
        **columns,
    )
