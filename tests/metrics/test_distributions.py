"""Histograms of similarities against a loop over pairs."""

import numpy as np
import pytest
import torch

from tercet.metrics.distributions import binned_similarities, overlap, similarity_histograms
from tests.helpers import unchecked


def oracle(points, labels, bins):
    """Each pair by itself."""
    counts = np.zeros((2, bins))
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            cosine = points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])
            counts[int(labels[i] != labels[j]), min(int((cosine + 1) / 2 * bins), bins - 1)] += 1
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def test_the_histograms_are_those_of_the_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(40, 5)), rng.integers(0, 4, 40)
    expected = oracle(points, labels, 16)
    np.testing.assert_allclose(similarity_histograms(points, labels, 16), expected)
    np.testing.assert_allclose(similarity_histograms(torch.tensor(points), labels.astype(str), 16), expected)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(similarity_histograms(points, labels[::-1].copy(), 16), expected)


def test_no_positive_pair_gives_an_empty_histogram():
    positive, negative = similarity_histograms(torch.eye(3), [0, 1, 2], 4)
    assert (positive.sum(), negative.tolist()) == (0, [0, 0, 1, 0])


def test_bad_input_is_refused():
    with unchecked(), pytest.raises(ValueError, match=r"labels='shape \(2,\)'\): expected shape \(3,\)"):
        similarity_histograms(torch.eye(3), [0, 1])
    with pytest.raises(ValueError, match="expected finite embeddings"):
        similarity_histograms(torch.full((2, 2), torch.nan), [0, 1])
    with pytest.raises(ValueError, match="one label for each of 1 or more images"):
        similarity_histograms(torch.zeros(0, 2), [])
    with pytest.raises(ValueError, match="a whole number of at least 1"):
        similarity_histograms(torch.eye(2), [0, 1], bins=0)


def test_the_overlap_without_each_class_is_that_of_the_others():
    rng = np.random.default_rng(1)
    points, labels = rng.normal(size=(60, 3)) + 2 * np.eye(3)[np.arange(60) % 3], np.arange(60) // 10
    protocol = dict.fromkeys(("ids", "ref", "groups", "exclude", "ignore", "distractors"))
    value, without = overlap(binned_similarities(points, labels, 20, protocol))
    assert value == pytest.approx(oracle(points, labels, 20).min(0).sum())
    for c in range(6):
        kept = labels != c
        assert without[c] == pytest.approx(oracle(points[kept], labels[kept], 20).min(0).sum())
    value, _ = overlap(binned_similarities(points[:6], np.arange(6), 20, protocol))
    assert np.isnan(value)
