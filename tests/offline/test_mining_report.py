"""What the report says beside its counts: what each filter cost alone, and thresholds that scores suggest."""

import json

import numpy as np
import pytest

from tercet import mine_hard_triplets, suspected_labels
from tercet.offline.filters import FILTERS, Reason
from tercet.offline.mining_report import Account
from tercet.offline.seen_scores import ScoreSample, SeenScores
from tercet.offline.verdicts import Verdicts
from tercet.pairwise.budget import override
from tests.offline.test_hard_negatives import check_whole, clustered

X, LABELS = clustered(n=240, classes=24, noise=1.5)
SAID = Verdicts(*(column[:8] for column in suspected_labels(X, LABELS)[:4]), ["same"] * 8)
FILTERED = {
    "ranks": (3, 60),
    "max_score": 0.5,
    "min_score": 0.1,
    "max_quantile": 0.6,
    "strategy": "semi-hard",
    "margin": 0.02,
    "relative_margin": 0.1,
    "verdicts": SAID,
    "suspects": 0.2,
}
LIFTED = {
    Reason.BEFORE_WINDOW: {"ranks": (1, 60)},
    Reason.MAX_SCORE: {"max_score": None},
    Reason.MIN_SCORE: {"min_score": None},
    Reason.QUANTILE: {"max_quantile": None},
    Reason.HARDER_THAN_POSITIVE: {"strategy": "hardest"},
    Reason.MARGIN: {"margin": None},
    Reason.RELATIVE_MARGIN: {"relative_margin": None},
    Reason.SUSPECT: {"suspects": 0.0},
}


def survivors(report):
    """Candidates that no filter refuses."""
    return sum(report.counts[reason] for reason in (Reason.CHOSEN, Reason.RESERVE, Reason.NOT_NEEDED))


@pytest.mark.parametrize("some", [tuple(FILTERED), ("ranks", "max_score", "margin"), ("margin", "suspects")])
def test_a_filter_alone_cost_what_comes_back_once_it_is_lifted(some):
    options = {name: FILTERED[name] for name in some}
    report = mine_hard_triplets(X, LABELS, **options).report
    cost = 0
    for reason, lifted in LIFTED.items():
        if not set(lifted) <= set(options):
            assert report.alone[reason] == 0
            continue
        without = mine_hard_triplets(X, LABELS, **options | lifted).report
        assert report.alone[reason] == survivors(without) - survivors(report)
        assert report.alone[reason] <= report.counts[reason]
        cost += report.alone[reason]
    assert cost > 0
    assert set(report.alone) == set(FILTERS)


@pytest.mark.parametrize(
    ("options", "lifted", "reason"),
    [
        ({"per_class": 1}, {"per_class": None}, Reason.CLASS_USED),
        ({"verdicts": SAID}, {"verdicts": None}, Reason.VERDICT),
        ({"teacher": np.random.default_rng(1).normal(size=X.shape)}, {"teacher": None}, Reason.TEACHER),
    ],
)
def test_so_it_is_of_verdicts_a_teacher_and_of_classes(options, lifted, reason):
    options |= {"margin": 0.05, "ranks": (1, 40)}
    report = mine_hard_triplets(X, LABELS, **options).report
    without = mine_hard_triplets(X, LABELS, **options | lifted).report
    assert report.alone[reason] == survivors(without) - survivors(report) > 0


@pytest.mark.parametrize("on_short", ["keep", "drop", "relax", "random"])
def test_whatever_becomes_of_short_pairs_a_filter_alone_cost_no_more_than_it_refused(on_short):
    report = mine_hard_triplets(X, LABELS, **FILTERED, negatives=9, on_short=on_short, uniform=0.2).report
    assert sum(report.counts.values()) == report.pairs * report.rows
    assert all(0 <= report.alone[reason] <= report.counts[reason] for reason in FILTERS)
    assert sum(report.alone.values()) > 0


def test_suggested_thresholds_refuse_what_is_nearer_than_most_positives():
    options = {"positives": "easiest", "ranks": (1, 100)}
    free = mine_hard_triplets(X, LABELS, **options)
    found = free.report.suggested
    assert found.looked_at == 240 * 100
    bound = np.quantile(free.positive_score.astype(np.float64), 0.05)
    assert found.max_score == pytest.approx(bound)
    refused = mine_hard_triplets(X, LABELS, **options, max_score=found.max_score).report
    assert refused.counts[Reason.MAX_SCORE] == found.nearer > 0
    for name, reason in (("margin", Reason.MARGIN), ("relative_margin", Reason.RELATIVE_MARGIN)):
        value = getattr(found, name)
        count = mine_hard_triplets(X, LABELS, **options, **{name: value}).report.counts[reason]
        assert count == pytest.approx(found.nearer, abs=2)
    behind = mine_hard_triplets(X, LABELS, **options | {"ranks": (found.first_rank, 100)}, max_score=bound)
    rest = 240 * (101 - found.first_rank)
    assert 0 < behind.report.counts[Reason.MAX_SCORE] <= 0.05 * rest
    nearer = mine_hard_triplets(
        X, LABELS, **options | {"ranks": (found.first_rank - 1, 100)}, max_score=bound
    )
    assert nearer.report.counts[Reason.MAX_SCORE] > 0.05 * (rest + 240)


def test_a_bound_that_nothing_needs_or_no_margin_gives_is_not_suggested():
    apart = SeenScores(np.array([0.9, 0.8]), 1, 2)
    apart.add(np.array([[0.2, 0.1]]))
    apart.add_pairs(np.array([0.9]), np.array([[0.2, 0.1]]))
    found = apart.suggested()
    assert (found.nearer, found.first_rank) == (0, 1)
    assert str(found) == "0 of 2 candidates (0.00%) are nearer than 5% of positives: no bound is needed"
    mixed = SeenScores(np.array([0.1, 0.1]), 1, 2)
    mixed.add(np.array([[0.9, 0.8]]))
    mixed.add_pairs(np.array([0.1]), np.array([[0.9, 0.8]]))
    found = mixed.suggested()
    assert found[1:] == (2, pytest.approx(0.1), None, None, None)
    assert str(found).endswith("positives: max_score=0.1")
    assert SeenScores(np.empty(0), 0, 2).suggested() is None


def test_the_report_does_not_depend_on_blocks(monkeypatch):
    monkeypatch.setattr("tercet.offline.seen_scores._SAMPLED", 1000)
    whole = mine_hard_triplets(X, LABELS, **FILTERED).report
    with override(found_candidates=60 * 7, judged_candidates=60 * 11):
        parts = mine_hard_triplets(X, LABELS, **FILTERED).report
    assert parts.plan.searches > 1
    assert whole.as_dict() | {"plan": None} == parts.as_dict() | {"plan": None}


def test_a_sample_is_evenly_spaced_and_bounded(monkeypatch):
    monkeypatch.setattr("tercet.offline.seen_scores._SAMPLED", 10)
    sample = ScoreSample(95)
    for part in np.split(np.arange(95.0), [1, 1, 14, 50]):
        sample.add(part[None])
    assert sample.values.tolist() == list(range(0, 95, 10))


def test_the_table_and_the_json_tell_both():
    found = mine_hard_triplets(X, LABELS, **FILTERED)
    check_whole(found, LABELS)
    text, plain = str(found.report), json.loads(json.dumps(found.report.as_dict()))
    assert "by this filter alone" in text.splitlines()[1]
    row = next(line for line in text.splitlines() if line.strip().startswith("score above max_score"))
    assert row.endswith(f" {found.report.alone[Reason.MAX_SCORE]:,}")
    assert f"suggested: {found.report.suggested}" in text
    assert plain["alone"]["max_score"] == found.report.alone[Reason.MAX_SCORE]
    assert plain["suggested"]["max_score"] == found.report.suggested.max_score


def test_more_than_two_to_the_24_scores_are_counted_to_the_last():
    n, m, times = 2**12 + 1, 2**11 + 1, 5  # 42 million
    reasons = np.full((n, m), Reason.MARGIN, np.uint8)
    reasons[0, 0] = Reason.CHOSEN
    candidates = np.broadcast_to(np.arange(m), (n, m))
    account = Account(np.arange(n), [])
    for _ in range(times):
        account.add(np.arange(n), reasons, candidates, alone=np.ones((n, m), dtype=bool))
    assert account.counts[Reason.MARGIN] == account.alone[Reason.MARGIN] == times * (n * m - 1)
    assert account.counts[Reason.CHOSEN] == times
    assert sum(account.counts.values()) == times * n * n
    seen = SeenScores(np.zeros(1), times * n, m)
    for _ in range(times):
        seen.add(np.broadcast_to(np.float32(1), (n, m)))
    assert seen.suggested()[:2] == (times * n * m,) * 2
