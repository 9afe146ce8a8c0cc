"""Deep Ranking's metrics against loops that sort every query's list."""

import math
import pickle

import numpy as np
import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.data.triplets.random import RandomTriplets
from tercet.metrics.scores import TripletScore
from tercet.metrics.triplet_ranking import score_at_top_k, similarity_precision
from tercet.pairwise.budget import budget, override
from tests.helpers import grid, points, unchecked
from tests.oracles import triplets as reference
from tests.oracles.figures import precision_by_loop, score_by_loop

torch.set_num_threads(1)
K = (1, 2, 5, 1000)


def drawn(n, count, seed=0, columns=None):
    """Any triplets of different images; repeated ones among them."""
    rng, columns = np.random.default_rng(seed), columns or n
    rows = np.stack([rng.integers(0, n, count), *rng.integers(0, columns, (2, count))])
    distinct = (rows[0] != rows[1]) & (rows[0] != rows[2]) & (rows[1] != rows[2])
    return Triplets(*np.ascontiguousarray(rows[:, distinct]))


def others(n, groups=None):
    """Every other row, or those of one's group."""
    groups = groups or [0] * n
    return [[j for j in range(n) if j != q and groups[j] == groups[q]] for q in range(n)]


def check_score(score, correct, counted, triplets):
    assert isinstance(score, TripletScore)
    assert score == correct - (counted - correct)
    assert (score.correct, score.counted, score.triplets) == (correct, counted, triplets)


BATCHES = {
    "random": points(40),
    "ties": grid(40),
    "collapsed": torch.ones(40, 3),
    "near duplicates": points(8, seed=2).repeat_interleave(5, 0) + 1e-4 * points(40, seed=3),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


@every_batch
def test_similarity_precision_equals_the_loop(batch):
    x, triplets = BATCHES[batch], drawn(40, 300)
    correct, count = precision_by_loop(reference.distances("euclidean", x), triplets)
    with override(tile_bytes=7 * 16):  # chunks of 7 triplets
        score = similarity_precision(x, triplets)
    assert score == correct / count
    assert (score.correct, score.counted, score.triplets) == (correct, count, count)


@pytest.mark.parametrize("height", [None, 1, 7])
@pytest.mark.parametrize("groups", [None, [i % 3 for i in range(40)], [i // 39 for i in range(40)]])
@every_batch
def test_score_at_top_k_equals_the_loop(batch, groups, height):
    x, triplets = BATCHES[batch], drawn(40, 300)
    d, candidates = reference.distances("euclidean", x), others(40, groups)
    for k in K:
        found = score_at_top_k(x, triplets, k, groups=groups, tile_rows=height)
        check_score(found, *score_by_loop(d, triplets, k, candidates), triplets.count)


def test_many_queries_of_wide_lists():
    # Above the sizes from which the search sorts by group and keeps a shortlist.
    n = budget(torch.device("cpu")).class_order_rows + 150
    x, triplets, groups = grid(n, 3, seed=4), drawn(n, 2000), [i % 2 for i in range(n)]
    d = reference.distances("euclidean", x)
    for names in (None, groups):
        expected = score_by_loop(d, triplets, 30, others(n, names))
        check_score(score_at_top_k(x, triplets, groups=names), *expected, triplets.count)


@pytest.mark.parametrize("distance", ["cosine", "dot", "squared_euclidean", "hamming"])
def test_every_distance(distance):
    x, triplets = points(30, seed=5), drawn(30, 200)
    codes = (x > 0).double() if distance == "hamming" else x
    d = reference.distances(distance, codes)
    correct, count = precision_by_loop(d, triplets)
    assert similarity_precision(x, triplets, distance=distance) == correct / count
    found = score_at_top_k(x, triplets, 3, distance=distance)
    check_score(found, *score_by_loop(d, triplets, 3, others(30)), triplets.count)


def test_queries_against_references():
    x, y = points(12), torch.cat([points(20, seed=6), points(12)])
    ids, y_ids = torch.arange(12), torch.cat([torch.arange(100, 120), torch.arange(12)])
    groups, y_groups = [f"g{i % 3}" for i in range(12)], np.array([f"g{i % 3}" for i in range(32)])
    triplets = drawn(12, 200, columns=32)
    d = reference.distances("euclidean", x, y)
    ref = References(y, y_groups, y_ids)
    correct, count = precision_by_loop(d, triplets)
    assert similarity_precision(x, triplets, ref=ref) == correct / count
    others_of = [[j for j in range(32) if y_ids[j] != q] for q in range(12)]
    found = score_at_top_k(x, triplets, 3, ids=ids, ref=ref)
    check_score(found, *score_by_loop(d, triplets, 3, others_of), triplets.count)
    of_group = [[j for j in others_of[q] if y_groups[j] == groups[q]] for q in range(12)]
    found = score_at_top_k(x, triplets, 3, ids=ids, ref=ref, groups=groups)
    check_score(found, *score_by_loop(d, triplets, 3, of_group), triplets.count)
    found = score_at_top_k(x, triplets, 3, ref=References(y.numpy(), None))
    check_score(found, *score_by_loop(d, triplets, 3, [range(32)] * 12), triplets.count)


def test_an_image_that_is_there_twice_is_no_candidate_for_itself():
    x = torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    triplets = Triplets(*np.array([[0], [2], [3]]))
    assert score_at_top_k(x, triplets, 1).counted == 0  # row 1 comes first
    assert score_at_top_k(x, triplets, 1, ids=np.array([7, 7, 8, 9])) == 1


def test_the_definitions_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    triplets = Triplets(*np.array([[0, 1, 0, 3, 0], [1, 2, 2, 0, 3], [2, 0, 3, 2, 2]]))
    # correct: yes no yes no no; nearest of 0: 1 2 3, of 1: 0 2 3, of 3: 2 1 0
    precision = similarity_precision(x, triplets)
    assert (precision, precision.correct, precision.counted) == (0.4, 2, 5)
    check_score(score_at_top_k(x, triplets, 1), 1, 3, 5)
    check_score(score_at_top_k(x, triplets, 2), 2, 5, 5)


def test_collapsed_embeddings_score_nothing():
    x, triplets = torch.ones(40, 3), drawn(40, 100)
    assert similarity_precision(x, triplets) == 0
    score = score_at_top_k(x, triplets, 30)
    assert score == -score.counted < 0


def test_ties_rank_by_row():
    x = torch.zeros(4, 1)
    for negative, counted in ((1, 1), (2, 0)):
        triplets = Triplets(*np.array([[0], [3], [negative]]))
        assert score_at_top_k(x, triplets, 1).counted == counted


def test_tensors_arrays_and_precisions():
    x, triplets = points(30), drawn(30, 200)
    tensors = Triplets(*map(torch.from_numpy, triplets))
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    groups = torch.arange(30) % 2
    for metric, options in (
        (similarity_precision, {}),
        (score_at_top_k, {"k": 4}),
        (score_at_top_k, {"k": 4, "groups": groups}),
    ):
        expected = metric(x, triplets, **options)
        for rows in (tensors, tuple(triplets), [corner.to(torch.int32) for corner in tensors]):
            assert metric(frozen, rows, **options) == expected
        with torch.autocast("cpu", torch.bfloat16):
            assert metric(x.requires_grad_(), triplets, **options) == expected
        half = x.detach().bfloat16()
        assert metric(half, triplets, **options) == metric(half.float(), triplets, **options)
    strings = score_at_top_k(x, triplets, 4, groups=[f"query {g}" for g in groups.tolist()])
    assert strings == score_at_top_k(x, triplets, 4, groups=groups)


def test_no_triplets():
    nothing = Triplets(*np.empty((3, 0), dtype=np.int64))
    for x in (points(5), points(0)):
        assert math.isnan(similarity_precision(x, nothing))
        for groups in (None, [0] * len(x)):
            check_score(score_at_top_k(x, nothing, groups=groups), 0, 0, 0)


def test_a_score_is_a_float_that_pickles():
    score = pickle.loads(pickle.dumps(TripletScore(-2.0, 1, 4, 6)))
    assert (score, score.correct, score.counted, score.triplets) == (-2.0, 1, 4, 6)
    assert f"{score:.1f}" == "-2.0"


REFUSED = [
    ({"k": 0}, r"score_at_top_k\(k=0\): expected a whole number of at least 1"),
    ({"distance": "cosin"}, r"score_at_top_k\(distance='cosin'\).*did you mean 'cosine'"),
    ({"groups": [0] * 9}, r"score_at_top_k\(groups='shape \(9,\)'\): expected shape \(10,\)"),
    ({"groups": [0.5] * 10}, r"score_at_top_k\(groups='float64'\): expected whole numbers or strings"),
    ({"ref": (1, 2)}, r"score_at_top_k\(ref='tuple'\): expected References"),
    ({"triplets": drawn(10, 50)[:2]}, r"score_at_top_k\(triplets='tuple of 2'\): expected Triplets"),
    (
        {"triplets": RandomTriplets([0, 0, 1])},
        r"score_at_top_k\(triplets='RandomTriplets of 2'\): expected Triplets .*; take all .* by \[:\]",
    ),
    (
        {"triplets": (np.arange(2), np.arange(2), np.arange(3))},
        r"score_at_top_k\(triplets='torch.int64 \(2,\), torch.int64 \(2,\), torch.int64 \(3,\)'\): expected",
    ),
    ({"triplets": [np.arange(2.0)] * 3}, r"score_at_top_k\(triplets='torch.float64 .* of row numbers"),
    (
        {"triplets": drawn(20, 50)},
        r"score_at_top_k\(triplets='(query|positive|negative) 1\d'\): expected rows from 0 to 9, as",
    ),
    (
        {"triplets": np.array([[0], [1], [-1]]).tolist()},
        r"score_at_top_k\(triplets='negative -1'\): expected rows from 0 to 9, as there are 10",
    ),
    ({"embeddings": torch.full((10, 2), math.nan)}, r"score_at_top_k\(embeddings=.*expected finite"),
    (
        {"ref": References(points(10), [0] * 9), "groups": [0] * 10},
        r"score_at_top_k\(ref.labels='shape \(9,\)'\): expected shape \(10,\)",
    ),
    (
        {"ref": References(points(10), ["a"] * 10), "groups": [0] * 10},
        r"score_at_top_k\(groups='int and str'\): expected all whole numbers or all strings",
    ),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_makes_no_sense_is_refused(options, said):
    with unchecked(), pytest.raises(ValueError, match=said):
        score_at_top_k(**{"embeddings": points(10), "triplets": drawn(10, 50), **options})


def test_similarity_precision_refuses_by_its_own_name():
    with pytest.raises(ValueError, match=r"similarity_precision\(triplets='\w+ 1\d'\): expected rows from 0"):
        similarity_precision(points(10), drawn(20, 50))
    with unchecked(), pytest.raises(ValueError, match=r"similarity_precision\(ref='int'\): expected Ref"):
        similarity_precision(points(10), drawn(10, 50), ref=3)


def test_the_check_against_the_loop_can_fail():
    check_score(TripletScore(0, 2, 4, 5), 2, 4, 5)
    wrong = [(1, 2, 4, 5), (0, 1, 4, 5), (0, 2, 3, 5), (0, 2, 4, 6)]
    for score in (*(TripletScore(*each) for each in wrong), 0.0):
        with pytest.raises(AssertionError):
            check_score(score, 2, 4, 5)
