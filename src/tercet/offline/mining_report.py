"""What mining did: how many rows of the collection had which reason, and which scores it saw."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from tercet.offline.filters import FILTERS, Reason
from tercet.offline.mining_plan import MiningPlan
from tercet.offline.seen_scores import Suggested

__all__ = ["QUANTILES", "Account", "MiningReport", "quantiles"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_SAMPLED = 1 << 22  # scores that quantiles are taken of: of more, evenly spaced ones


_TAKEN = (Reason.CHOSEN, Reason.RESERVE, Reason.NOT_NEEDED, Reason.SELF, Reason.CLASS, Reason.GROUP)
_REFUSALS = [reason for reason in Reason if reason not in _TAKEN]


@dataclass(frozen=True)
class MiningReport:
    """The account of one run: each (pair, row of the collection) has one reason, and all are counted.

    Args:
        rows: usable rows of the collection.
        unusable: rows without an embedding, which are neither anchors nor candidates.
        lone: anchors asked for that have no other usable image of their class, or were skipped by a verdict.
        pairs: (anchor, positive) pairs that were mined.
        triplets: triplets that came of them.
        short: pairs with fewer negatives than asked for, before `on_short`.
        relaxed: negatives among the chosen that a filter had refused, taken by `on_short="relax"`.
        drawn: negatives among the chosen that were drawn at random, by `uniform` or `on_short="random"`.
        counts: how many (pair, row) have each reason; they add up to pairs × rows.
        positive_scores: quantiles `QUANTILES` of the scores of the pairs.
        candidate_scores: of all candidates that were looked at, once an anchor.
        negative_scores: of the chosen negatives.
        backend: how candidates were searched.
        recall: the share of the nearest rows that the search found, as measured; 1 of the exact search.
        plan: what the run was to take at most.
        alone: how many of `counts` each filter refused that no other filter refuses: lifted by itself, it
            would let these through. A teacher and `per_class` are asked last, of what all others let through.
        suggested: thresholds that the scores suggest; None where nothing was seen.

    Example:
        >>> report = MiningReport(4, 0, 0, 2, 2, 0, 0, 0, {Reason.CHOSEN: 2, Reason.SELF: 6}, (), (), ())
        >>> report.counts[Reason.CHOSEN], sum(report.counts.values()) == report.pairs * report.rows
        (2, True)
    """

    rows: int
    unusable: int
    lone: int
    pairs: int
    triplets: int
    short: int
    relaxed: int
    drawn: int
    counts: Mapping[Reason, int]
    positive_scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]
    negative_scores: tuple[float, ...]
    backend: str = "exact"
    recall: float = 1.0
    plan: MiningPlan | None = None
    alone: Mapping[Reason, int] = field(default_factory=dict)
    suggested: Suggested | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it, reasons by name."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plan = None if self.plan is None else {**self.plan._asdict(), "bytes": self.plan.bytes}
        tables = {
            name: {reason.name.lower(): count for reason, count in getattr(self, name).items()}
            for name in ("counts", "alone")
        }
        suggested = None if self.suggested is None else self.suggested._asdict()
        return {**plain, **tables, "plan": plan, "suggested": suggested}

    def __str__(self) -> str:
        total = max(1, self.pairs * self.rows)
        lines = [f"{self.pairs:,} pairs × {self.rows:,} rows = {self.pairs * self.rows:,} candidates"]
        if any(self.alone.values()):
            lines.append(f"  {'':<44} {'':>16}  {'':>8}  {'by this filter alone':>20}")
        for reason, count in self.counts.items():
            if count:
                line = f"  {reason.text:<44} {count:>16,}  {count / total:>8.3%}"
                alone = self.alone.get(reason)
                lines.append(line if alone is None else f"{line}  {alone:>20,}")
        facts = {
            "rows without an embedding": self.unusable,
            "anchors without a positive, or skipped": self.lone,
            "pairs with too few negatives": self.short,
            "negatives taken in spite of a filter": self.relaxed,
            "negatives drawn at random": self.drawn,
        }
        lines += [f"{count:,} {text}" for text, count in facts.items() if count]
        lines.append(f"{self.triplets:,} triplets")
        if self.suggested is not None:
            lines.append(f"suggested: {self.suggested}")
        if self.backend != "exact":
            lines.append(f"{self.backend} found {self.recall:.2%} of the nearest candidates, as measured")
        if self.plan is not None:
            lines.append(f"planned: {self.plan}")
        if self.positive_scores:
            head = "".join(f"{q:>8.0%}" for q in QUANTILES)
            lines.append(f"{'scores at quantile':<20}{head}")
            named = (("positives", self.positive_scores), ("candidates", self.candidate_scores))
            for name, values in (*named, ("chosen negatives", self.negative_scores)):
                lines.append(f"{name:<20}" + "".join(f"{value:>8.3f}" for value in values))
        return "\n".join(lines)


class Account:
    """How many (pair, row) have each reason. Only candidates are looked at; the others are counted.

    Args:
        classes: [n] class numbers; −1 for a row that is no candidate of any anchor.
        same: columns [n] of numbers; rows that have the anchor's are not candidates, such as its group.

    Example:
        >>> account = Account(np.array([0, 0, 1, 1, 1]), [])
        >>> account.add(np.array([0]), np.array([[Reason.CHOSEN, Reason.NOT_NEEDED]]), np.array([[2, 4]]))
        >>> {reason.name: count for reason, count in account.counts.items() if count}
        {'CHOSEN': 1, 'NOT_NEEDED': 1, 'SELF': 1, 'CLASS': 1, 'BEHIND_WINDOW': 1}
    """

    def __init__(self, classes: Int64[np.ndarray, " n"], same: Sequence[np.ndarray]) -> None:
        usable = classes >= 0
        self.rows = int(usable.sum())
        self.counts: Counter[Reason] = Counter({reason: 0 for reason in Reason})
        self.alone: Counter[Reason] = Counter({reason: 0 for reason in FILTERS})
        self._of_class = _sizes([classes], usable)
        # |rows of the anchor's group or image| − |those of its class too|, by inclusion and exclusion
        self._of_same = np.zeros(len(classes), dtype=np.int64)
        for count in range(1, len(same) + 1):
            for columns in itertools.combinations(same, count):
                here = _sizes(list(columns), usable) - _sizes([*columns, classes], usable)
                self._of_same += here if count % 2 else -here

    def add(
        self,
        anchor: Int64[np.ndarray, " t"],
        reasons: UInt8[np.ndarray, "t m"] | np.ndarray,
        candidates: Int64[np.ndarray, "t m"],
        outside: Int64[np.ndarray, " t"] | int = 0,
        dropped: Bool[np.ndarray, " t"] | None = None,
        alone: Bool[np.ndarray, "t m"] | None = None,
    ) -> None:
        """Count a block of pairs.

        Args:
            anchor: row of each pair.
            reasons: of each candidate.
            candidates: rows; −1 where there is none.
            outside: negatives of each pair that are not among the candidates.
            dropped: pairs that are left out whole.
            alone: candidates that one filter alone refuses.
        """
        there = candidates >= 0
        if alone is not None:
            alone = alone & there if dropped is None else alone & there & ~dropped[:, None]
            once = np.bincount(reasons[alone], minlength=len(Reason))
            for reason in FILTERS:
                self.alone[reason] += int(once[reason])
        outside = np.broadcast_to(outside, anchor.shape)
        if dropped is not None and dropped.any():
            self.counts[Reason.SHORT_PAIR] += int(dropped.sum()) * self.rows
            anchor, reasons, there, outside = (each[~dropped] for each in (anchor, reasons, there, outside))
        found = np.bincount(reasons[there], minlength=len(Reason))
        for reason in Reason:
            self.counts[reason] += int(found[reason])
        self.counts[Reason.CHOSEN] += int(outside.sum())
        self.counts[Reason.SELF] += len(anchor)
        self.counts[Reason.CLASS] += int((self._of_class[anchor] - 1).sum())
        self.counts[Reason.GROUP] += int(self._of_same[anchor].sum())
        behind = self.rows - self._of_class[anchor] - self._of_same[anchor] - there.sum(1) - outside
        self.counts[Reason.BEHIND_WINDOW] += int(behind.sum())

    def most_frequent_refusal(self) -> Reason:
        """The reason that cost most candidates, of those that an option decides."""
        return max(_REFUSALS, key=lambda reason: self.counts[reason])


def _sizes(columns: list[np.ndarray], usable: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many usable rows have the same numbers in all columns as each row, itself among them."""
    _, code = np.unique(np.stack(columns), axis=1, return_inverse=True)
    return np.bincount(code[usable], minlength=int(code.max(initial=-1)) + 1)[code]


def quantiles(scores: Float[np.ndarray, " s"]) -> tuple[float, ...]:
    """`QUANTILES` of scores: of up to 2²² exactly, else of so many that are evenly spaced; () of none.

    Example:
        >>> quantiles(np.arange(101.0))[4]
        50.0
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return ()
    spaced = finite[:: max(1, -(-len(finite) // _SAMPLED))].astype(np.float64)
    return tuple(float(value) for value in np.quantile(spaced, QUANTILES))
