import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tercet.core.indices import References
from tercet.metrics.distributions import similarity_histograms
from tercet.metrics.verification import Verification, verification
from tercet.pairwise.budget import override
from tests.helpers import points, refusal_of
from tests.oracles.figures import compared_pairs


def pairs_of(x, labels):
    """The cosine of each positive and of each negative pair, in a loop, in steps of 2⁻²⁴."""
    sides = [], []
    for i, p in enumerate(x):
        for j in range(i + 1, len(x)):
            sides[labels[i] != labels[j]].append(rounded_cosine(p, x[j]))
    return sides


def rounded_cosine(p, q):
    lengths = math.hypot(*p) * math.hypot(*q)
    s = sum(a * b for a, b in zip(p, q, strict=True)) / lengths if lengths else 0.0
    return round(s * 2**24) / 2**24


def by_loop(positive, negative, rates):
    """AUC, P(negative ≥ positive), TAR by FAR, from every pair of pairs and every threshold."""
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    exceeds = sum(n >= p for p in positive for n in negative)
    total = len(positive) * len(negative)
    tar = {}
    for rate in rates:
        shares = [0.0]
        for threshold in positive:
            if sum(n >= threshold for n in negative) <= rate * len(negative):
                shares.append(sum(p >= threshold for p in positive) / len(positive))
        tar[rate] = max(shares)
    return wins / total, exceeds / total, tar


COLUMNS = st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=2, max_size=14)


@settings(deadline=None, max_examples=80)
@given(COLUMNS, st.data(), st.sampled_from([1, 2**23]))
def test_figures_equal_a_loop_over_pairs_of_pairs(x, data, tile):
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(x), max_size=len(x)))
    positive, negative = pairs_of(x, labels)
    rates = [0.9] if len(negative) >= 12 else []
    with override(tile_bytes=tile):
        found = verification(np.array(x, dtype=np.float64), labels, rates)
    assert (found.positives, found.negatives) == (len(positive), len(negative))
    if not positive or not negative:
        assert math.isnan(found.auc)
        return
    auc, exceeds, tar = by_loop(positive, negative, rates)
    truth = [1] * len(positive) + [0] * len(negative)
    assert found.auc == pytest.approx(auc, rel=1e-12)
    assert found.auc == pytest.approx(roc_auc_score(truth, positive + negative), rel=1e-12)
    assert found.p_exceeds == pytest.approx(exceeds, rel=1e-12)
    assert found.tar == pytest.approx(tar)
    area = np.trapezoid(found.curve[:, 1], found.curve[:, 0])
    assert area == pytest.approx(auc, rel=1e-9)
    assert lies_on(found.curve, found.eer, 1 - found.eer)


CLASSES, FEW = st.integers(0, 3), st.integers(0, 2)


@settings(deadline=None, max_examples=150)
@given(COLUMNS, COLUMNS, st.data(), st.sampled_from([1, 200, 2**23]))
def test_pairs_under_a_protocol_equal_a_loop(x, y, data, tile):
    def column(kind, count):
        return data.draw(st.lists(kind, min_size=count, max_size=count))

    with_gallery, with_ids, with_groups = (data.draw(st.booleans()) for _ in range(3))
    y = y if with_gallery else x
    labels, theirs = column(CLASSES, len(x)), column(CLASSES, len(y)) if with_gallery else None
    ids, groups = None, None
    if with_ids:
        ids = column(st.integers(0, 9), len(x)), column(st.integers(0, 9), len(y))
    if with_groups:
        groups = column(FEW, len(x)), column(FEW, len(y))
    if not with_gallery:
        ids, groups = (each and (each[0], each[0]) for each in (ids, groups))
    exclude = data.draw(st.sampled_from([None, "group positives", "group"])) if with_groups else None
    junk, others = data.draw(st.sampled_from([([], []), ([0], []), ([], [0]), ([0], [1]), ([], [0, 1])]))
    options = {"ignore": junk or None, "distractors": others or None, "exclude": exclude}
    if ids is not None:
        options["ids"] = torch.tensor(ids[0])
    if groups is not None:
        options["groups"] = groups if with_gallery else groups[0]
    if with_gallery:
        column_ids = None if ids is None else np.array(ids[1])
        options["ref"] = References(np.array(y, dtype=np.float64), np.array(theirs), column_ids)
    found = [
        [rounded_cosine(x[i], y[j]) for i, j in side]
        for side in compared_pairs(labels, theirs, ids, groups, exclude, junk, others)
    ]
    counts = np.zeros((2, 8))
    for side, row in zip(found, counts, strict=True):
        for s in side:
            row[min(int((s + 1) * 4), 7)] += 1
    rates = [0.9] if len(found[1]) >= 12 else []
    with override(tile_bytes=tile):
        result = verification(np.array(x, dtype=np.float64), labels, rates, **options)
        histograms = similarity_histograms(np.array(x, dtype=np.float64), labels, 8, **options)
    assert (result.positives, result.negatives) == tuple(map(len, found))
    assert [h.sum() for h in histograms] == pytest.approx([float(bool(side)) for side in found])
    if not any(abs(s * 4 - round(s * 4)) < 1e-6 for side in found for s in side):  # on no edge of a bin
        assert np.stack(histograms) == pytest.approx(counts / counts.sum(1, keepdims=True).clip(1))
    if all(found):
        auc, exceeds, tar = by_loop(*found, rates)
        assert (result.auc, result.p_exceeds) == pytest.approx((auc, exceeds), rel=1e-12)
        assert result.tar == pytest.approx(tar)


def lies_on(curve, x, y):
    """Whether a point lies on a line between two neighbours of a curve."""
    for p, q in pairwise(curve):
        along = np.clip(np.dot((x, y) - p, q - p) / max(np.dot(q - p, q - p), 1e-300), 0, 1)
        if np.abs(p + along * (q - p) - (x, y)).max() < 1e-9:
            return True
    return False


def test_collapsed_embeddings_tell_nothing():
    found = verification(torch.ones(8, 3), [0, 0, 1, 1, 2, 2, 3, 3])
    assert (found.auc, found.eer, found.p_exceeds) == (0.5, 0.5, 1.0)


def test_figures_without_each_class_are_those_of_the_other_classes():
    x, labels = points(60) + points(6).repeat_interleave(10, 0), torch.arange(60) // 10
    found = verification(x, labels, far=[0.1, 0.5])
    assert list(found.without) == list(found.figures())
    for c in range(6):
        other = verification(x[labels != c], labels[labels != c], far=[0.1, 0.5])
        for name, value in other.figures().items():
            # The ROC is a line within a bin: of 270 positives, a step of it is up to 1/225 high.
            assert found.without[name][c] == pytest.approx(value, abs=0.01), name
    assert found.fnmr == {rate: 1 - share for rate, share in found.tar.items()}
    assert isinstance(found, Verification)


def test_a_rate_that_too_few_negatives_can_tell_is_refused():
    x, labels = points(10), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert verification(x, labels).tar.keys() == set()  # 40 negatives are too few for 0.1
    said = refusal_of(verification, x, labels, 0.1)
    assert said.startswith("verification(far=0.1): expected a rate of at least 0.25; 10/FAR negative pairs")
    assert list(verification(x, labels, 0.25).tar) == [0.25]
    assert "finite" in refusal_of(verification, points(2).index_fill_(0, torch.tensor([0]), math.inf), [0, 0])


@pytest.mark.campaign
def test_large_collections_take_the_memory_of_a_tile():
    x, labels = points(20_000, 32), torch.arange(20_000) // 8
    found = verification(x, labels)
    assert found.negatives == 20_000 * 19_999 // 2 - found.positives
    assert found.auc == pytest.approx(0.5, abs=0.01)
