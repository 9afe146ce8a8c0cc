"""Random pairs: the law by plain loops, uniformity, and the two forms of pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.core.indices import LabeledPairs, Pairs, PairSequence
from tercet.data.triplets.pairs import RandomPairs
from tests.helpers import listed


def faults(rows, labels, groups, positives, negatives):
    """What is wrong with pairs in their order, by the law one query at a time."""
    by_query = {}
    for first, second, same in rows:
        by_query.setdefault(first, []).append((second, same))
    for query, label in enumerate(labels):
        mates = [
            row
            for row, other in enumerate(labels)
            if other == label and row != query and (groups is None or groups[row] != groups[query])
        ]
        strangers = [row for row, other in enumerate(labels) if other != label]
        expected = [min(positives, len(mates)), min(negatives, len(strangers))] if mates else [0, 0]
        found = by_query.pop(query, [])
        same = [flag for _, flag in found]
        if same != [True] * expected[0] + [False] * expected[1]:
            yield f"{same} of query {query}"
        for flag, allowed in ((True, mates), (False, strangers)):
            chosen = [row for row, its in found if its == flag]
            if not set(chosen) <= set(allowed) or len(set(chosen)) < len(chosen):
                yield f"{chosen} with {query}"
    if by_query:
        yield f"no queries: {sorted(by_query)}"


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=20).filter(
        lambda labels: 1 < len(set(labels)) < len(labels)
    ),
    positives=st.integers(1, 6) | st.just(2**62),
    negatives=st.integers(1, 6) | st.just(2**62),
    seed=st.integers(0, 9),
    way=st.sampled_from(["images", "classes"]),
)
def test_the_pairs_follow_the_law(labels, positives, negatives, seed, way):
    pairs = RandomPairs(labels, positives, negatives, seed, negatives_from=way)
    rows = listed(pairs[:])
    assert list(faults(rows, labels, None, positives, negatives)) == []
    assert len(rows) == len(pairs)
    for first, second, same in rows:
        assert (labels[first] == labels[second]) == same


def test_groups_and_limits_are_those_of_the_triplets():
    labels, groups = [0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 0, 1]
    pairs = RandomPairs(labels, 9, 9, groups=groups)
    assert list(faults(listed(pairs[:]), labels, groups, 9, 9)) == []
    assert (pairs.queries, pairs.alone, pairs.same_group, pairs.over_limit) == (3, 1, 2, 0)
    limited = RandomPairs(labels, 9, 9, groups=groups, limit=2)
    assert (limited.queries, limited.over_limit) == (2, 1)
    assert set(listed(limited[:])) < set(listed(pairs[:]))


def test_the_checker_sees_every_fault():
    labels = [0, 0, 0, 1, 1]
    good = listed(RandomPairs(labels, 9, 9)[:])
    assert list(faults(good, labels, None, 9, 9)) == []
    for place, (first, second, same) in enumerate(good):
        others = [(first, second, not same), *((first, row, same) for row in range(5) if row != second)]
        for other in [*others, *((row, second, same) for row in range(5) if row != first)]:
            assert list(faults([*good[:place], other, *good[place + 1 :]], labels, None, 9, 9)), other
        assert list(faults(good[:place] + good[place + 1 :], labels, None, 9, 9))


def test_both_sides_are_uniform_over_seeds():
    labels = [0, 1, 0, 1, 0, 2, 0]
    drawn = np.array([np.stack(RandomPairs(labels, 2, 2, seed)[:3]) for seed in range(600)])  # of row 0
    one, two, three = drawn[:, 1].T
    assert stats.chisquare(list(Counter(zip(one.tolist(), two.tolist(), strict=True)).values())).pvalue > 1e-4
    assert len(set(zip(one.tolist(), two.tolist(), strict=True))) == 6
    assert stats.chisquare(np.unique(three, return_counts=True)[1]).pvalue > 1e-4
    assert set(three.tolist()) == {1, 3, 5}


def test_what_comes_out():
    pairs = RandomPairs([0, 0, 1], 1, 1)
    assert isinstance(pairs, PairSequence)
    for index in (0, slice(0, 3), [0, 1], []):
        first, second, same = pairs[index]
        assert (first.dtype, second.dtype, same.dtype) == (np.int64, np.int64, bool)
        assert first.shape == second.shape == same.shape
    with pytest.raises(IndexError, match="expected "):
        pairs[4]
    assert repr(pairs) == "RandomPairs(4 pairs: 2 queries, positives=1, negatives=1, seed=0)"
    assert (pairs.kind, pairs[:].count) == ("pairs", 4)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_the_two_forms_of_pairs(kind):
    rows = LabeledPairs(kind([0, 0, 1]), kind([1, 2, 2]), kind([True, False, False]))
    apart = rows.as_pairs()
    assert [column.tolist() for column in apart] == [[0], [1], [0, 1], [2, 2]]
    assert listed(LabeledPairs.of(apart)) == [(0, 1, True), (0, 2, False), (1, 2, False)]
    assert LabeledPairs.of(Pairs(*(kind([]) for _ in range(4)))).count == 0
