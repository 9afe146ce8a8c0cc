"""The k-NN graph against plain loops: votes, ranks, mutual neighbours and the scale."""

import numpy as np
import pytest

from tercet.offline.neighbor_graph import neighbor_graph, own_scores, pair_scores

LENGTHS = {
    "euclidean": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "squared_euclidean": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "cosine": lambda a, b: np.sqrt(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()),
}


def collection(seed, n=24, d=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x[5] = x[4]
    x[7] = np.nan
    return x, rng.integers(0, 4, n)


@pytest.mark.parametrize("distance", sorted(LENGTHS))
@pytest.mark.parametrize("seed", range(3))
def test_the_graph_is_that_of_a_loop(distance, seed):
    x, codes = collection(seed)
    k = 5
    graph = neighbor_graph(x, k, distance)
    near = {}
    for i in range(len(x)):
        others = (
            [] if np.isnan(x[i]).any() else [j for j in range(len(x)) if j != i and not np.isnan(x[j]).any()]
        )
        near[i] = sorted(others, key=lambda j: (round(LENGTHS[distance](x[i], x[j]), 12), j))[:k]
    assert [[j for j in row if j >= 0] for row in graph.rows.tolist()] == list(near.values())
    first = [LENGTHS[distance](x[i], x[row[0]]) for i, row in near.items() if row]
    scale = np.median([length for length in first if length > 1e-9])
    assert graph.scale == pytest.approx(scale)
    votes, mutual, ranks = graph.votes(codes), graph.mutual, graph.own_rank(codes)
    found_by = [sum(i in row for row in near.values()) for i in near]
    assert graph.found_by.tolist() == found_by
    for i, row in near.items():
        weight = {}
        for j in row:
            w = 1 / (LENGTHS[distance](x[i], x[j]) + scale)
            weight[codes[j]] = weight.get(codes[j], 0) + w
        total = sum(weight.values()) or 1
        own = weight.pop(codes[i], 0)
        assert votes.own[i] == pytest.approx(own / total)
        assert votes.share[i] == pytest.approx(max(weight.values(), default=0) / total)
        assert weight.get(votes.best[i], 0) == pytest.approx(max(weight.values(), default=0))
        assert mutual[i, : len(row)].tolist() == [i in near[j] for j in row]
        assert not mutual[i, len(row) :].any()
        assert ranks[i] == next((place for place, j in enumerate(row, 1) if codes[j] == codes[i]), 0)


def test_scores_of_pairs_and_of_the_own_class():
    x = np.array([[0.0], [1.0], [3.0], [9.0]])
    assert pair_scores(x, "euclidean", np.array([0, 3]), np.array([2, 3])).tolist() == [-3, 0]
    own = own_scores(x, "euclidean", np.array([0, 1, 0, 2]), np.array([2, 3, 2]), None)
    assert own.tolist() == [-3, -np.inf, -3]
    assert own_scores(x, "cosine", np.zeros(4, int), np.array([], dtype=int), None).shape == (0,)


def test_one_image_and_none_have_no_neighbours():
    graph = neighbor_graph(np.ones((1, 2)), 10, "cosine")
    assert (graph.rows.tolist(), graph.scale, graph.found_by.tolist()) == ([[-1]], 0.0, [0])
    assert graph.votes(np.zeros(1, int)).winner_is_other.tolist() == [False]
