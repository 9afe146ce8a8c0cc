"""Stale negatives: found and replaced as a plain loop does."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.stale_negatives import (
    MinedPairs,
    is_stale,
    joined,
    pairs_of,
    replace_stale,
    scores_now,
)
from tests.oracles import remining as oracle


def some_pairs(u, k, m, seed):
    """Pairs with short lists, random draws, and scores of both signs."""
    rng = np.random.default_rng(seed)
    columns = []
    for width in (k, m):
        count = rng.integers(0, width + 1, u)
        there = np.arange(width) < count[:, None]
        rows = np.where(
            there, rng.permuted(np.tile(np.arange(100, 100 + 3 * width), (u, 1)), axis=1)[:, :width], -1
        )
        scores = np.where(there, rng.normal(size=(u, width)), np.nan).astype(np.float32)
        columns += [rows, scores, np.where(there, rng.integers(0, 4, (u, width)), 0)]
    return MinedPairs(np.sort(rng.integers(0, 50, u)), rng.permutation(50)[:u] + 50, *columns)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 4), st.integers(0, 10**6), st.floats(1.01, 2))
def test_equals_the_loop(u, k, m, seed, factor):
    pairs = some_pairs(u, k, m, seed)
    rng = np.random.default_rng(seed + 1)
    now = (pairs.scores + rng.choice([0, -0.05, -0.3, 0.2, np.nan], pairs.scores.shape)).astype(np.float32)
    score = {
        (a, row): float(value)
        for a, rows, values in zip(pairs.anchor.tolist(), pairs.negatives.tolist(), now, strict=True)
        for row, value in zip(rows, values, strict=True)
    }
    if len(score) < (pairs.negatives >= 0).sum() + (pairs.negatives < 0).any(1).sum():
        return  # an anchor has a negative twice, in two pairs, with two scores: no table
    stale = is_stale(pairs, now, factor)
    found, taken = replace_stale(pairs, stale)
    expected, count, lacking = oracle.replaced(oracle.as_lists(pairs), lambda a, row: score[a, row], factor)
    assert repr(oracle.as_lists(found)) == repr(expected)
    assert (int(taken.sum()), int((stale & ~taken).sum())) == (count, lacking)
    assert [column.shape for column in found] == [column.shape for column in pairs]
    assert [column.dtype for column in found] == [column.dtype for column in pairs]


def test_a_score_that_is_exactly_at_the_bound_is_not_stale():
    row = np.array([[3, 4, 5]]), np.array([[1.5, 1.5, -1.0]], np.float32), np.array([[1, 2, 3]])
    pairs = MinedPairs(np.array([0]), np.array([1]), *row, *row)
    now = np.array([[1.0, np.nextafter(np.float32(1), np.float32(0)), -1.0]], np.float32)
    assert is_stale(pairs, now, 1.5).tolist() == [[False, True, False]]


def test_scores_now_are_those_that_mining_gives():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 4
    pairs = pairs_of(
        mine_hard_triplets(x, labels, negatives=3, ranks=(1, 35), reserve=2, positives="easiest")
    )

    def score(i, j):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (unit[i] * unit[j]).sum(1)

    now = scores_now(pairs, score)
    np.testing.assert_allclose(now, pairs.scores, atol=1e-5)
    nothing = pairs._replace(negatives=np.full_like(pairs.negatives, -1))
    assert np.isnan(scores_now(nothing, score)).all()


def test_joined_pairs_are_in_the_order_of_anchors_and_lose_none():
    pairs = some_pairs(9, 2, 3, 0)
    mask = np.arange(9) % 2 == 0
    again = joined(pairs.select(~mask), pairs.select(mask))
    assert (np.diff(again.anchor) >= 0).all()
    assert oracle.as_lists(again).items() >= {}.items()
    assert {key: repr(value) for key, value in oracle.as_lists(again).items()} == {
        key: repr(value) for key, value in oracle.as_lists(pairs).items()
    }
