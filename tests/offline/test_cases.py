"""Cases of offline mining that broke a released library, each by its name.

Those of the cache of embeddings are in test_embedding_cache, that of the gradient cache is in
tests/training/test_gradient_cache.
"""

import math
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tercet import mine_hard_triplets, nearest
from tercet.offline.filters import Reason
from tercet.offline.mining_plan import plan_mining
from tercet.pairwise.distances import as_distance
from tests.helpers import refusal_of
from tests.offline.test_hard_negatives import check_whole, clustered

STRATEGIES = ["hardest", "semi-hard", "random", "softmax", "simans"]
ON_SHORT = ["keep", "drop", "relax", "random"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_way_out = pytest.mark.parametrize("on_short", ON_SHORT)


def mined_of(found):
    """Anchors [t] beside all that was mined for them, negatives and reserve."""
    rows = np.concatenate([found.negatives, found.reserve], axis=1)
    pair, slot = np.nonzero(rows >= 0)
    return found.anchor[pair], rows[pair, slot]


@every_strategy
@every_way_out
def test_case_the_anchor_mined_as_its_own_negative(strategy, on_short):
    """Also where it would be drawn: a class of nearly the whole collection leaves little else."""
    x, labels = clustered()
    labels = np.where(np.arange(240) < 220, 0, labels)
    options = {"negatives": 9, "reserve": 9, "uniform": 0.5, "anchors": range(0, 240, 7)}
    found = mine_hard_triplets(x, labels, strategy=strategy, on_short=on_short, **options)
    anchors, rows = mined_of(found)
    assert len(anchors) > 500
    assert (anchors != rows).all()
    assert found.report.counts[Reason.SELF] <= found.report.pairs


@every_strategy
@every_way_out
def test_case_same_class_items_as_negatives(strategy, on_short):
    x, labels = clustered(classes=3)
    options = {"negatives": 30, "reserve": 30, "uniform": 0.5, "positives": "easiest", "ranks": (1, 20)}
    found = mine_hard_triplets(x, labels, strategy=strategy, on_short=on_short, **options)
    anchors, rows = mined_of(found)
    assert len(anchors)
    assert (labels[anchors] != labels[rows]).all()
    check_whole(found, labels)


@every_strategy
@every_way_out
def test_case_duplicates_of_the_anchor_in_another_class(strategy, on_short):
    x, labels = clustered()
    x[120:] = x[:120]
    labels = np.concatenate([labels[:120], labels[:120] + 24])
    options = {"negatives": 9, "reserve": 9, "uniform": 0.5, "positives": "easiest"}
    found = mine_hard_triplets(x, labels, strategy=strategy, on_short=on_short, **options)
    anchors, rows = mined_of(found)
    assert (anchors % 120 != rows % 120).all()
    assert found.report.counts[Reason.DUPLICATE] == found.report.pairs == 240


def test_case_k_larger_than_the_collection():
    """Of a search the rest is −1; as many negatives as there are rows are refused, a longer window is not."""
    x, labels = clustered()
    found = nearest(x, k=1000, labels=labels, exclude="class")
    assert (found.rows >= 0).sum(1).tolist() == [230] * 240
    assert (found.rows[:, 230:] == -1).all()
    said = refusal_of(mine_hard_triplets, x, labels, negatives=240)
    assert said == "mine_hard_triplets(negatives=240): expected a whole number from 1 to 239"
    all_of_them = mine_hard_triplets(x, labels, negatives=239, ranks=(1, 5000), positives="easiest")
    assert ((all_of_them.negatives >= 0).sum(1) == 230).all()
    assert all_of_them.report.short == 240
    check_whole(all_of_them, labels)


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [
        ({"max_score": -1.0}, Reason.MAX_SCORE),
        ({"min_score": 1.0}, Reason.MIN_SCORE),
        ({"margin": 3.0}, Reason.MARGIN),
        ({"ranks": (231, 300)}, Reason.BEFORE_WINDOW),
        ({"teacher": lambda i, j: np.where(np.arange(240)[i] % 24 == j % 24, 0.0, 1.0)}, Reason.TEACHER),
    ],
)
def test_case_every_candidate_filtered_out(refusing, reason):
    x, labels = clustered()
    options = {"ranks": (1, 230), "negatives": 2} | refusing
    for on_short in ("keep", "drop"):
        found = mine_hard_triplets(x, labels, on_short=on_short, **options)
        assert len(found) == found.triplets.count == found.report.triplets == 0
        check_whole(found, labels)
        assert str(found.report)
    kept = mine_hard_triplets(x, labels, **options).report
    assert kept.counts[reason] == kept.pairs * 230
    assert kept.short == kept.pairs
    said = refusal_of(mine_hard_triplets, x, labels, on_short="error", **options)
    assert reason.text in said
    relaxed = mine_hard_triplets(x, labels, on_short="relax", **options)
    if reason is not Reason.BEFORE_WINDOW:  # the window stays
        assert relaxed.report.relaxed == len(relaxed) == 2 * kept.pairs
        check_whole(relaxed, labels)
    assert len(mine_hard_triplets(x, labels, on_short="random", **options | {"ranks": (231, 300)})) == (
        0  # what was looked at and refused is not drawn, and nothing else is left
    )


def test_case_one_class_only():
    x, _ = clustered()
    for on_short in ON_SHORT:
        found = mine_hard_triplets(x[:99], np.zeros(99, int), on_short=on_short, uniform=0.5, suspects=0.5)
        assert len(found) == 0
        check_whole(found, np.zeros(99))
    assert found.report.counts[Reason.CLASS] == 99 * 98 * 98


def test_case_rows_of_nan_are_no_anchor_positive_or_negative():
    x, labels = clustered()
    bad = [0, 24, 239]
    x[bad] = math.nan
    for options in ({}, {"on_short": "random", "margin": 1.0}, {"uniform": 1.0}, {"suspects": 0.1}):
        found = mine_hard_triplets(x, labels, negatives=40, reserve=3, **options)
        anchors, rows = mined_of(found)
        assert not np.isin(np.concatenate([anchors, rows, found.positive]), bad).any()
        assert found.report.unusable == 3
        check_whole(found, labels)
    every = mine_hard_triplets(np.full_like(x, math.nan), labels)
    assert (len(every), every.report.unusable, every.report.rows) == (0, 240, 0)


def test_case_negative_similarities_with_a_relative_margin():
    """A tenth below a score of −0.5 is −0.55; ½ · 0.9 would be −0.45, above the positive."""
    angle = np.array([0.0, 120.0, 121.0, 124.0, 180.0])
    x = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], 1)
    found = mine_hard_triplets(x, [0, 0, 1, 2, 3], anchors=[0], relative_margin=0.1, negatives=3)
    assert found.positive_score[0] == pytest.approx(-0.5)
    assert found.negatives.tolist() == [[3, 4, -1]]  # cos 121° = −0.515 is within, cos 124° = −0.559 is not
    assert found.report.counts[Reason.RELATIVE_MARGIN] == 1


def test_case_the_rank_window_counted_before_the_other_filters():
    """Ranks 3 to 6 are those of the collection, whatever the filters leave of ranks 1 to 6."""
    x = np.array([[0.0], [0.1], *([float(row)] for row in range(1, 11))])
    labels = [0, 0, *range(1, 11)]
    options = {"anchors": [0], "distance": "euclidean", "negatives": 9, "ranks": (3, 6)}
    free = mine_hard_triplets(x, labels, **options)
    assert free.negatives[0].tolist() == [4, 5, 6, 7, *[-1] * 5]
    strict = mine_hard_triplets(x, labels, **options, max_score=-4.5)
    assert strict.negatives[0].tolist() == [6, 7, *[-1] * 7]
    assert strict.ranks[0, :2].tolist() == [5, 6]
    assert strict.report.counts[Reason.BEFORE_WINDOW] == 2


def test_case_positives_dropped_where_a_margin_or_a_minimum_score_is_set():
    x, labels = clustered(noise=2.0)
    expected = mine_hard_triplets(x, labels)
    for options in ({"margin": 0.5}, {"min_score": 0.9}, {"max_score": -0.9}, {"relative_margin": 2.0}):
        found = mine_hard_triplets(x, labels, **options)
        assert np.array_equal(found.anchor, expected.anchor)
        assert np.array_equal(found.positive, expected.positive)
        assert found.report.short > 0


def test_case_pads_of_minus_one_read_as_the_last_row():
    """The last row is of the class of most anchors: a pad that is read as a row is a wrong negative."""
    x, _ = clustered()
    labels = np.zeros(240, dtype=int)
    labels[:3] = 1
    for options in ({}, {"strategy": "softmax"}, {"on_short": "relax", "margin": 1.0}, {"per_class": 5}):
        found = mine_hard_triplets(x, labels, negatives=5, reserve=5, positives="easiest", **options)
        anchors, rows = mined_of(found)
        assert set(rows[anchors >= 3].tolist()) == {0, 1, 2}
        assert (found.negatives[3:, 3:] == -1).all()
        assert np.isnan(found.scores[3:, 3:]).all()
        check_whole(found, labels)
        assert 239 not in found.triplets.negative[found.triplets.anchor >= 3]


def test_case_a_fixed_percentage_threshold_that_discards_most_candidates():
    """5 % of the positive's score cuts nearly all where scores are crowded, and the report says so."""
    x, labels = clustered(noise=0.7)
    x += 4.0  # all cosines are near 1
    found = mine_hard_triplets(x, labels, relative_margin=0.05, positives="easiest", ranks=(1, 100))
    report = found.report
    cost = report.counts[Reason.RELATIVE_MARGIN]
    assert cost > 0.5 * 240 * 100
    assert cost == report.alone[Reason.RELATIVE_MARGIN]
    assert report.short > 50
    suggested = report.suggested.relative_margin
    assert 0 <= suggested < 0.02
    again = mine_hard_triplets(x, labels, relative_margin=suggested, positives="easiest", ranks=(1, 100))
    assert again.report.counts[Reason.RELATIVE_MARGIN] < 0.1 * cost


@pytest.mark.parametrize("backend", ["faiss-ivf", "faiss-hnsw"])
def test_case_a_selector_that_the_index_ignores(backend):
    """Classes are left out after the index has answered, and as many candidates are found as without it."""
    pytest.importorskip("faiss")
    x, labels = clustered(n=1200, classes=4, noise=0.3)  # the 300 nearest are of the anchor's class
    options = {"negatives": 8, "reserve": 4, "positives": "easiest", "ranks": (1, 12)}
    found = mine_hard_triplets(x, labels, backend=backend, **options)
    anchors, rows = mined_of(found)
    assert len(anchors) == 1200 * 12
    assert (labels[anchors] != labels[rows]).all()
    check_whole(found, labels)


def test_case_more_than_two_to_the_24_scores_in_the_report():
    """4,201 anchors of 4,201 rows are 17.6 million: odd counts above 2²⁴ have no float32."""
    x, labels = clustered(n=4201, classes=2100, d=4)
    report = mine_hard_triplets(x, labels, positives="hardest", ranks=(1, 10), margin=0.01).report
    assert report.pairs * report.rows == 4201**2 > 2**24
    assert sum(report.counts.values()) == 4201**2
    assert all(type(count) is int for count in (*report.counts.values(), *report.alone.values()))
    assert report.counts[Reason.BEHIND_WINDOW] == 4201 * (4201 - 10 - 1) - report.counts[Reason.CLASS] > 2**24
    assert report.suggested.looked_at == 42_010


LARGE = 100_000


@pytest.mark.parametrize("depth", [16, 100])
def test_case_a_hundred_thousand_by_a_hundred_thousand_in_bounded_memory(depth):
    """All scores would be 37 GiB. What is allocated is planned, and the plan is kept (by a campaign)."""
    x, classes = np.zeros((LARGE, 128), np.float32), np.arange(LARGE) % (LARGE // 8)
    asked = {"depth": depth, "slots": 1, "every_positive": False}
    plan = plan_mining(x, classes, np.arange(LARGE), as_distance(None, "cosine"), **asked)
    assert plan.pairs == LARGE
    assert plan.bytes < 900 * 2**20
    twice = np.zeros((2 * LARGE, 128), np.float32), np.arange(2 * LARGE) % (LARGE // 4)
    larger = plan_mining(*twice, np.arange(2 * LARGE), as_distance(None, "cosine"), **asked)
    assert larger.bytes - plan.bytes < 1.2 * (plan.bytes + LARGE * 200)  # not four times as much


def taken(depth):
    """MiB that mining of the collection takes above it, what was planned, and triplets."""
    rng = np.random.default_rng(0)
    labels = np.arange(LARGE) % (LARGE // 8)
    x = rng.normal(size=(LARGE // 8, 128)).astype(np.float32)[labels]
    x += rng.standard_normal(x.shape, dtype=np.float32)
    options = {"positives": "easiest", "ranks": (1, depth)}
    mine_hard_triplets(x[:2000], np.arange(2000) % 250, **options)
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))
    from bench_nearest import Peak

    with Peak() as held:
        found = mine_hard_triplets(x, labels, **options)
    return held.mib, found.report.plan.bytes / 2**20, len(found)


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="the system tells what a process holds")
def test_case_a_hundred_thousand_by_a_hundred_thousand_takes_what_is_planned():
    with get_context("spawn").Pool(1) as pool:
        held, planned, count = pool.apply(taken, (16,))
    assert count == LARGE
    assert held < planned < 900
