"""Beside `mine_hard_negatives` of sentence-transformers: the same negatives wherever both are right."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="the bench extra is not installed")
pytest.importorskip("datasets", reason="the bench extra is not installed")

BENCH = str(Path(__file__).parents[2] / "tools" / "bench")
sys.path.insert(0, BENCH)
try:
    from bench_offline import WRONGS, collection, ours, same_share, theirs, wrongs
finally:
    sys.path.remove(BENCH)

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ({}, {}),
        ({"relative_margin": 0.05}, {"relative_margin": 0.05, "reference": "min"}),
        ({"absolute_margin": 0.2}, {"margin": 0.2, "reference": "min"}),
        ({"max_score": 0.25, "min_score": 0.1}, {"max_score": 0.25, "min_score": 0.1}),
        ({"num_negatives": 40, "range_max": 40}, {"negatives": 40, "ranks": (1, 40)}),
    ],
)
def test_where_both_are_right_both_mine_the_same(told, asked):
    x, labels, groups = collection(600)
    found = theirs(x, labels, True, **told)
    wrong = wrongs(found, x, labels, groups)
    assert not wrong["anchor"].any()  # it is told that anchor and class are positives
    assert not wrong["class"].any()
    assert same_share(found, ours(x, labels, **asked), wrong, x) == 1.0
    some = {anchor: negatives[:-1] for anchor, negatives in ours(x, labels, **asked).items()}
    assert same_share(found, some, wrong, x) < 1.0


@pytest.mark.parametrize("every", [False, True])
def test_ours_mines_no_anchor_class_group_or_duplicate_and_the_peer_does(every):
    x, labels, groups = collection(600)
    mine = wrongs(ours(x, labels, groups=groups), x, labels, groups)
    assert not any(mine[name].any() for name in WRONGS)
    assert len(mine["of"]) > 2500
    peer = wrongs(theirs(x, labels, every), x, labels, groups)
    for name in ("group", "duplicate") if every else WRONGS:
        assert np.count_nonzero(peer[name])
