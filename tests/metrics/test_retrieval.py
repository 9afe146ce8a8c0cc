import math
import pickle

import numpy as np
import pytest
import torch

from tercet.core.indices import References
from tercet.metrics import ranks
from tercet.metrics.retrieval import evaluate, map_at_r, recall_at_k
from tercet.metrics.scores import Score
from tests.helpers import grid, points, unchecked
from tests.oracles import triplets as reference

BATCHES = {
    "balanced": (points(20, 5), torch.arange(20) % 5),
    "uneven, with singletons": (points(17, 5, seed=1), torch.tensor([0] * 7 + [1] * 5 + [2, 2, 3, 4, 5])),
    "ties": (grid(25), torch.arange(25) % 3),
    "collapsed": (torch.ones(9, 2), torch.arange(9) % 3),
    "one class": (points(4, 5), torch.zeros(4).long()),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


def check_equal(score, values, rows):
    """The mean of these values over queries, and right counts."""
    assert isinstance(score, Score)
    assert math.isclose(score, sum(values) / len(values), rel_tol=1e-12)
    assert (score.queries, score.left_out) == (len(values), rows - len(values))


@pytest.mark.parametrize("height", [None, 1, 3, 100])
@every_batch
def test_metrics_equal_the_loop_at_every_tile_height(batch, height):
    x, labels = BATCHES[batch]
    d, sides = reference.distances("euclidean", x), reference.relation(labels)
    scores = recall_at_k(x, labels, (1, 2, 5, 100), tile_rows=height)
    assert list(scores) == [1, 2, 5, 100]
    for k, score in scores.items():
        check_equal(score, reference.recall(d, *sides, k), len(x))
    check_equal(map_at_r(x, labels, tile_rows=height), reference.map_at_r(d, *sides), len(x))


@pytest.mark.parametrize("distance", ["cosine", "dot", "squared_euclidean"])
def test_metrics_equal_the_loop_under_every_distance(distance):
    x, labels = BATCHES["balanced"]
    d, sides = reference.distances(distance, x), reference.relation(labels)
    check_equal(recall_at_k(x, labels, 2, distance=distance), reference.recall(d, *sides, 2), 20)
    check_equal(map_at_r(x, labels, distance=distance), reference.map_at_r(d, *sides), 20)


def test_queries_against_references_with_ids():
    x, labels, ids = points(8, 5), torch.arange(8) % 3, torch.arange(8)
    y = torch.cat([points(15, 5, seed=2), x])
    ref = References(y, torch.cat([torch.arange(15) % 2, labels]), torch.arange(23) - 15)
    d = reference.distances("euclidean", x, y)
    sides = reference.relation(labels, ref.labels, ids, ref.ids)
    check_equal(recall_at_k(x, labels, 3, ids=ids, ref=ref), reference.recall(d, *sides, 3), 8)
    check_equal(map_at_r(x, labels, ids=ids, ref=ref), reference.map_at_r(d, *sides), 8)


def test_the_definitions_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [3.5], [10.0]])
    labels = [0, 0, 1, 0, 1]
    # retrieved, 1 for a hit: 1 0 1 0 | 1 0 1 0 | 0 0 0 1 | 0 1 1 0 | 0 1 0 0; R = 2 2 1 2 1
    assert recall_at_k(x, labels, [1, 2, 3, 4]) == {1: 0.4, 2: 0.8, 3: 0.8, 4: 1.0}
    assert math.isclose(map_at_r(x, labels), (1 / 2 + 1 / 2 + 0 + (1 / 2) / 2 + 0) / 5)


def test_ties_go_to_the_lower_row():
    x = torch.zeros(4, 1)
    assert (
        recall_at_k(x, [0, 1, 1, 0]) == 0.25
    )  # queries 1 to 3 retrieve row 0 first, query 0 retrieves row 1
    assert recall_at_k(x, [0, 0, 1, 1]) == 0.5


@pytest.mark.parametrize("metric", [recall_at_k, map_at_r])
def test_numpy_lists_strings_and_tensors_are_the_same_labels(metric):
    x, labels = BATCHES["balanced"]
    expected = metric(x, labels)
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    names = [f"class {v}" for v in labels.tolist()]
    for same in (labels.numpy(), labels.tolist(), labels.to(torch.uint8), names, np.array(names)):
        assert metric(x, same) == expected
        assert metric(frozen, same) == expected
        assert metric(x.numpy().astype(np.float64), same, ids=np.arange(20)) == expected


def test_labels_of_queries_and_references_are_compared_by_name():
    x, y = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    assert recall_at_k(x, ["b"], k=(2, 3), ref=References(y, np.array(["a", "c", "b"]))) == {2: 0.0, 3: 1.0}
    assert recall_at_k(x, torch.tensor([1]), ref=References(y.numpy(), [1, 0, 0])) == 1
    with pytest.raises(
        ValueError, match=r"recall_at_k\(labels='int and str'\): expected all whole numbers or all"
    ):
        recall_at_k(x, [1], ref=References(y, ["1", "2", "3"]))


def test_queries_without_another_image_of_their_class_are_counted():
    score = recall_at_k(points(5, 5), [0, 0, 1, 2, 3])
    assert (score.queries, score.left_out) == (2, 3)


@pytest.mark.parametrize("metric", [recall_at_k, map_at_r])
def test_no_query_is_nan_and_says_so(metric):
    for x, labels in (
        (points(3, 5), torch.arange(3)),
        (points(0, 5), torch.zeros(0).long()),
        (points(0, 5), []),
    ):
        score = metric(x, labels)
        assert math.isnan(score)
        assert (score.queries, score.left_out) == (0, len(x))
    score = metric(points(2, 5), torch.zeros(2).long(), ref=References(points(0, 5), torch.zeros(0).long()))
    assert math.isnan(score)
    assert score.left_out == 2


def test_half_precision_and_autocast():
    x, labels = BATCHES["balanced"]
    expected = map_at_r(x, labels, distance="dot")
    with torch.autocast("cpu", torch.bfloat16):
        assert map_at_r(x, labels, distance="dot") == expected
    for dtype in (torch.bfloat16, torch.float16):
        d = reference.distances("euclidean", x.to(dtype))
        check_equal(map_at_r(x.to(dtype), labels), reference.map_at_r(d, *reference.relation(labels)), 20)


def test_a_score_is_a_float_that_pickles():
    score = Score(0.5, queries=4, left_out=2)
    assert score == 0.5
    assert f"{score:.2f}" == "0.50"
    copy = pickle.loads(pickle.dumps(score))
    assert (copy, copy.queries, copy.left_out) == (0.5, 4, 2)


def test_what_makes_no_sense_is_refused():
    x, labels = BATCHES["balanced"]
    for k in (0, [1, 0], 2.5):
        with (
            unchecked(),
            pytest.raises(ValueError, match=r"recall_at_k\(k=(0|2.5)\): expected a whole number of at"),
        ):
            recall_at_k(x, labels, k)
    with pytest.raises(ValueError, match=r"map_at_r\(distance='cosin'\).*did you mean 'cosine'"):
        map_at_r(x, labels, distance="cosin")
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"map_at_r\(labels='shape \(19,\)'\): expected shape \(20,\)"),
    ):
        map_at_r(x, labels[1:])
    with unchecked(), pytest.raises(ValueError, match=r"map_at_r\(ref='tuple'\): expected References"):
        map_at_r(x, labels, ref=(x, labels))
    with pytest.raises(
        ValueError, match=r"map_at_r\(embeddings='1 of 20 rows, the first is row 0'\): expected fin"
    ):
        map_at_r(x.clone().index_fill_(0, torch.tensor([0]), math.nan), labels)


def test_the_check_against_the_loop_can_fail():
    for wrong in (Score(0.6, 2, 1), Score(0.5, 3, 0), Score(0.5, 2, 0), 0.5):
        with pytest.raises(AssertionError):
            check_equal(wrong, [0.0, 1.0], 3)


def test_one_evaluation_is_what_the_single_figures_are():
    x, labels = BATCHES["uneven, with singletons"]
    found = evaluate(x, labels, k=(1, 3))
    assert list(found) == ["Recall@1", "Recall@3", "R-precision", "MAP@R"]
    assert dict(found)["Recall@3"] == recall_at_k(x, labels, 3)
    assert found["MAP@R"] == map_at_r(x, labels)
    assert all((score.queries, score.left_out) == (14, 3) for score in found.values())
    assert str(found).splitlines()[-1] == "14 queries, 3 left out: no other image of their class"
    assert dict(pickle.loads(pickle.dumps(found))) == dict(found)


def test_an_evaluation_searches_once(monkeypatch):
    searches = []

    class Counted(ranks.ExactSearch):
        def __init__(self, pairwise):
            searches.append(pairwise)
            super().__init__(pairwise)

    monkeypatch.setattr(ranks, "ExactSearch", Counted)
    evaluate(*BATCHES["balanced"], k=(1, 2, 19))
    assert len(searches) == 1


@pytest.mark.parametrize("k", [0, (), 1.5, "two", (1, 0)])
def test_evaluate_refuses_what_is_no_depth(k):
    with unchecked(), pytest.raises(ValueError, match=r"^evaluate\(k="):
        evaluate(*BATCHES["balanced"], k)
