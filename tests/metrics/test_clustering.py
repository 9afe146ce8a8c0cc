from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from torch.nn.functional import normalize

from tercet.metrics.clustering import _pair_f1, clustered, clustering
from tests.helpers import points, refusal_of


def test_figures_are_those_of_scikit_learn_and_f1_is_a_loop_over_pairs():
    x, labels = points(60, 3), (torch.arange(60) % 4).tolist()
    found = clustering(x, labels, restarts=3, seed=5)
    clusters = KMeans(4, n_init=3, random_state=5).fit_predict(normalize(x.double()).numpy()).tolist()
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, clusters))
    pairs = [(labels[i] == labels[j], clusters[i] == clusters[j]) for i, j in combinations(range(60), 2)]
    both = sum(a and b for a, b in pairs)
    precision, recall = both / sum(b for _, b in pairs), both / sum(a for a, _ in pairs)
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert (found.clusters, found.restarts) == (4, 3)
    assert "best of 3 restarts" in str(found)


def test_classes_apart_are_found_and_names_do_not_matter():
    x = np.repeat(np.eye(4), 5, axis=0)
    labels = np.repeat(["d", "a", "c", "b"], 5)
    assert clustering(x, labels, restarts=2)[:4] == (1, 1, 1, 1)


def test_what_makes_no_sense_is_refused():
    assert "clusters=9" in refusal_of(clustering, points(4), [0, 0, 1, 1], clusters=9)
    assert "labels" in refusal_of(clustering, points(4), [0, 0, 1])


def test_figures_without_each_class_are_those_of_the_same_clusters():
    x, labels = points(120, 3) + 2 * points(8, 3, seed=1).repeat_interleave(15, 0), np.arange(120) // 15
    labels[:4] = 7  # classes of unequal sizes
    found, without = clustered(x, labels, None, 3, 5)
    assert list(without) == list(found.figures())
    clusters = KMeans(8, n_init=3, random_state=5).fit_predict(normalize(x.double()).numpy())
    for c in range(8):
        kept = labels != c
        own, theirs = labels[kept], clusters[kept].astype(np.int64)
        assert without["NMI"][c] == pytest.approx(normalized_mutual_info_score(own, theirs))
        assert without["AMI"][c] == pytest.approx(adjusted_mutual_info_score(own, theirs), abs=0.02)
        assert without["ARI"][c] == pytest.approx(adjusted_rand_score(own, theirs))
        assert without["F1"][c] == pytest.approx(_pair_f1(own, theirs))
