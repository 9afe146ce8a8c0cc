"""Re-mining by plain loops: which negatives are stale, what replaces them, and what a round reports."""

from __future__ import annotations

import math


def as_lists(pairs):
    """{(a, p): (negatives, reserve)}, each a list of (row, score, rank)."""
    found = {}
    for number, (a, p) in enumerate(zip(pairs.anchor.tolist(), pairs.positive.tolist(), strict=True)):
        lists = []
        for kind in (("negatives", "scores", "ranks"), ("reserve", "reserve_scores", "reserve_ranks")):
            columns = (getattr(pairs, name)[number].tolist() for name in kind)
            lists.append([entry for entry in zip(*columns, strict=True) if entry[0] >= 0])
        found[a, p] = tuple(lists)
    return found


def is_stale(now, mined, rank, factor):
    """Whether a negative has lost too much: by a factor of a similarity, or of a distance."""
    if rank == 0 or math.isnan(now):
        return False
    if now >= 0:
        return now * factor < mined
    return now * (2 - factor) < mined


def replaced(old, score_now, factor):
    """The pairs with stale negatives replaced; how many were, and how many had no reserve left.

    Args:
        old: as `as_lists` gives them.
        score_now: a function of (anchor, row).
        factor: of the test.
    """
    new, taken, lacking = {}, 0, 0
    for (a, p), (negatives, reserve) in old.items():
        negatives, reserve = list(negatives), list(reserve)
        for slot, (row, mined, rank) in enumerate(negatives):
            if is_stale(score_now(a, row), mined, rank, factor):
                if reserve:
                    negatives[slot] = reserve.pop(0)
                    taken += 1
                else:
                    lacking += 1
        new[a, p] = negatives, reserve
    return new, taken, lacking


def drift(old, new, score_now, factor):
    """(share of stale negatives, mean change of their scores, share of (anchor, negative) that are new)."""
    stale, changes = [], []
    for (a, _), (negatives, _) in old.items():
        for row, mined, rank in negatives:
            if rank:
                stale.append(is_stale(score_now(a, row), mined, rank, factor))
                changes.append(score_now(a, row) - mined)
    before = {(a, row) for (a, _), (negatives, _) in old.items() for row, _, _ in negatives}
    after = [(a, row) for (a, _), (negatives, _) in new.items() for row, _, _ in negatives]
    changed = sum(one not in before for one in after) / len(after)
    return sum(stale) / len(stale), sum(changes) / len(changes), changed
