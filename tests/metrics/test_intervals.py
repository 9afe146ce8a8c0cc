import math

import numpy as np
import pytest
import torch
from scipy import stats

from tercet.metrics import breakdown
from tercet.metrics.intervals import (
    Interval,
    _student,
    class_intervals,
    class_sums,
    jackknife_interval,
    paired_difference,
)
from tercet.metrics.retrieval import recall_at_k
from tests.helpers import refusal_of, unchecked


def data_set(rng, classes=60):
    """0 and 1 of queries of uneven classes; a class is right at a rate of its own, 0.4 on average."""
    sizes = rng.integers(2, 30, classes)
    rates = rng.beta(2, 3, classes)
    labels = np.repeat(np.arange(classes), sizes)
    return (rng.random(len(labels)) < rates[labels]).astype(np.float64), labels


def test_one_product_gives_what_resampling_one_by_one_gives():
    rng = np.random.default_rng(0)
    values, labels = data_set(rng)
    sums, counts = class_sums(values, labels)
    found = class_intervals(np.stack([sums, 2 * sums], 1), np.stack([counts, counts], 1))
    means = []
    for _ in range(2000):
        drawn = rng.integers(0, 60, 60)
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [0.0228, 0.9772])  # Φ(√(60/59) t₀.₀₂₅ of 59 degrees of freedom) is 0.022
    assert found[0] == pytest.approx((low, high), abs=0.01)
    assert found[1] == pytest.approx(tuple(2 * each for each in found[0]))
    assert class_intervals(sums[:, None], counts[:, None], seed=1)[0] != found[0]
    assert class_intervals(sums[:, None], counts[:, None])[0] == found[0]


def test_intervals_of_queries_alone_would_be_too_narrow():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(40), 50)
    values = np.repeat((rng.random(40) < 0.5).astype(np.float64), 50)  # a class is all right or all wrong
    by_class = class_intervals(*(each[:, None] for each in class_sums(values, labels)))[0]
    one_by_one = class_intervals(values[:, None], np.ones((2000, 1)))[0]
    assert by_class.high - by_class.low > 5 * (one_by_one.high - one_by_one.low)


def test_the_quantile_of_student_is_that_of_the_table():
    for freedom, expected in ((4, -2.776), (10, -2.228), (59, -2.001), (10**6, -1.960)):
        assert _student(0.025, freedom) == pytest.approx(expected, abs=0.01)


def test_the_jackknife_of_a_mean_is_the_interval_of_student():
    values = np.random.default_rng(4).normal(size=30)
    without = (values.sum() - values) / 29
    expected = stats.t.interval(0.95, 29, values.mean(), values.std(ddof=1) / math.sqrt(30))
    assert jackknife_interval(values.mean(), without, share=False) == pytest.approx(expected, rel=1e-3)


def test_shares_have_intervals_within_0_and_1_wider_towards_a_half():
    without = 0.95 + np.linspace(-0.03, 0.03, 20)
    low, high = jackknife_interval(0.95, without)
    assert 0.95 - low > high - 0.95 > 0
    assert high < 1
    logits = np.log(without / (1 - without))
    half = stats.t.ppf(0.975, 19) * math.sqrt(19 / 20 * ((logits - logits.mean()) ** 2).sum())
    assert math.log(low / (1 - low)) == pytest.approx(math.log(19) - half, rel=1e-3)
    assert jackknife_interval(1.0, np.ones(5)) == (1.0, 1.0)
    assert jackknife_interval(0.99, np.array([1.0, 1.0, 0.97, 0.98])).high == 1.0  # on a plain scale
    for undefined in (np.array([0.5]), np.array([0.5, math.nan]), np.array([0.5, math.inf])):
        assert math.isnan(jackknife_interval(0.5, undefined).low)


def test_one_class_has_no_interval():
    assert all(math.isnan(each) for each in class_intervals(np.ones((1, 1)), np.ones((1, 1)))[0])
    assert str(Interval(0.4612, 0.5031)) == "[0.461, 0.503]"


def test_a_model_is_compared_with_itself_and_with_a_better_one():
    values, labels = data_set(np.random.default_rng(2))
    same = paired_difference(values, values, labels)
    assert (same.value, same.p) == (0, 1)
    better = np.minimum(1, values + (np.arange(len(values)) % 3 == 0))
    found = paired_difference(better, values, labels)
    assert found.value == pytest.approx((better - values).mean())
    assert found.interval.low > 0
    assert found.p == pytest.approx(1 / 2001)
    worse = paired_difference(values, better, labels)
    assert (worse.value, worse.p) == (pytest.approx(-found.value), found.p)
    with unchecked():
        assert "values, others" in refusal_of(paired_difference, values, values[1:], labels)


def test_p_of_models_that_differ_by_chance_is_uniform():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(100):
        labels = np.repeat(np.arange(25), 8)
        rates = rng.beta(2, 3, (2, 25))[:, labels]  # of either model, by the class
        values, others = (rng.random(rates.shape) < rates).astype(np.float64)
        found.append(paired_difference(values, others, labels, resamples=200).p)
    assert 0.35 < np.mean(found) < 0.65
    assert sum(p <= 0.1 for p in found) <= 20


@pytest.mark.campaign
@pytest.mark.parametrize("classes", [40, 60, 200])
def test_intervals_hold_the_known_value_in_93_to_97_percent_of_data_sets(classes):
    rng, held = np.random.default_rng(0), 0
    for seed in range(1000):
        sums, counts = class_sums(*data_set(rng, classes))
        interval = class_intervals(sums[:, None], counts[:, None], seed=seed, resamples=1000)[0]
        held += interval.low <= 0.4 <= interval.high
    assert 930 <= held <= 970


@pytest.mark.campaign
def test_intervals_of_recall_hold_its_mean_over_data_sets():
    """Classes are drawn from one population: a data set's Recall@1 estimates the mean over many."""
    found = []
    for seed in range(600):
        random = torch.Generator().manual_seed(seed)
        spread = 0.5 + torch.rand(40, 1, generator=random)  # some classes are harder
        centres = torch.randn(40, 8, generator=random).repeat_interleave(10, 0)
        x = centres + spread.repeat_interleave(10, 0) * torch.randn(400, 8, generator=random)
        score = recall_at_k(x, torch.arange(400) // 10)
        found.append((float(score), *class_sums(score.values, np.arange(400) // 10)))
    truth, held = np.mean([value for value, *_ in found]), 0
    for seed, (_, sums, counts) in enumerate(found[:200]):
        interval = class_intervals(sums[:, None], counts[:, None], seed=seed)[0]
        held += interval.low <= truth <= interval.high
    assert 186 <= held <= 194, held


def test_breakdowns_equal_loops():
    rng = np.random.default_rng(4)
    values, labels = data_set(rng, classes=9)
    values[rng.random(len(values)) < 0.2] = np.nan
    kept = ~np.isnan(values)
    classes = {c: values[kept & (labels == c)] for c in range(9)}
    found = breakdown.by_name(values, labels)
    assert found == {c: (pytest.approx(each.mean()), len(each)) for c, each in classes.items() if len(each)}
    means = [mean for mean, _ in found.values()]
    assert means == sorted(means)
    assert breakdown.macro(values, labels) == pytest.approx(np.mean(means))
    assert breakdown.worst(values, labels, 0.3) == pytest.approx(np.mean(means[: round(0.3 * len(means))]))
    sizes = np.bincount(labels)[labels]
    for name, (mean, count) in breakdown.by_size(values, labels).items():
        low, *high = map(int, name.split("–"))
        inside = kept & (sizes >= low) & (sizes <= (high or [low])[0])
        assert (mean, count) == (pytest.approx(values[inside].mean()), inside.sum())
    assert sum(count for _, count in breakdown.by_size(values, labels).values()) == kept.sum()
    assert breakdown.by_name(np.zeros(0), []) == {}
