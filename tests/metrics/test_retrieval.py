import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from tercet.core.indices import References
from tercet.metrics import ranks
from tercet.metrics.graded import ndcg
from tercet.metrics.precision import map_at_r, mean_average_precision, mean_inp, mrr
from tercet.metrics.retrieval import cmc, precision_at_k, recall_at_k
from tercet.metrics.scores import Score
from tercet.reports.evaluation import evaluate
from tests.helpers import grid, points, unchecked
from tests.oracles import figures
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


def test_the_definitions_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [3.5], [10.0]])
    labels = [0, 0, 1, 0, 1]
    # retrieved, 1 for a hit: 1 0 1 0 | 1 0 1 0 | 0 0 0 1 | 0 1 1 0 | 0 1 0 0; R = 2 2 1 2 1
    assert recall_at_k(x, labels, [1, 2, 3, 4]) == {1: 0.4, 2: 0.8, 3: 0.8, 4: 1.0}
    assert math.isclose(map_at_r(x, labels), (1 / 2 + 1 / 2 + 0 + (1 / 2) / 2 + 0) / 5)


def test_collapsed_embeddings_score_what_chance_scores():
    x = torch.zeros(4, 1)
    score = recall_at_k(x, [0, 0, 1, 1])
    assert score == pytest.approx(1 / 3)
    assert score.tied == 1
    assert map_at_r(torch.ones(6, 3), [0, 0, 0, 1, 1, 1]).tied == 1
    assert recall_at_k(points(4), [0, 0, 1, 1]).tied == 0


def test_k_beyond_the_gallery_is_clipped_and_said():
    x, labels = points(6), [0, 0, 0, 1, 1, 1]
    score = precision_at_k(x, labels, 9)
    assert score == pytest.approx(2 / 5)
    assert score.clipped == 6
    assert precision_at_k(x, labels, 5).clipped == 0
    assert "Recall@9: 6 queries are compared with fewer images" in str(evaluate(x, labels, (1, 9)))


def test_queries_without_positives_are_worth_0_on_request():
    x, labels = torch.tensor([[0.0], [1.0], [5.0]]), ["a", "a", "b"]
    score = recall_at_k(x, labels, no_positives="zero")
    assert score == pytest.approx(2 / 3)
    assert (score.queries, score.left_out, score.without_positives) == (3, 0, 1)
    said = str(evaluate(x, labels, 1, no_positives="zero"))
    assert "3 queries, 1 of them worth 0: no other image of their class" in said


@pytest.mark.parametrize("trapezoid", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_rule_of_market_1501_equals_a_loop_of_its_protocol(seed, trapezoid):
    rng = np.random.default_rng(seed)
    identity, camera = rng.integers(-1, 6, 60), rng.integers(0, 3, 60)  # −1 is junk, 0 nobody's
    query, query_camera = rng.integers(1, 6, 12), rng.integers(0, 3, 12)
    x, y = rng.normal(size=(12, 4)), rng.normal(size=(60, 4))
    d = ((x[:, None] - y[None]) ** 2).sum(-1)
    average, ranks, ends = figures.market(d, query, query_camera, identity, camera, trapezoid)
    rule = {"groups": (query_camera, camera), "ignore": -1, "distractors": 0}
    ref = References(y, identity)
    found = mean_average_precision(x, query, ref=ref, rule="trapezoid" if trapezoid else "rectangle", **rule)
    assert found == pytest.approx(np.mean(average), rel=1e-12)
    assert found.queries == len(average)
    curve = cmc(x, query, 20, ref=ref, **rule)
    assert curve == pytest.approx([np.mean([rank <= k for rank in ranks]) for k in range(1, 21)])
    assert mean_inp(x, query, ref=ref, **rule) == pytest.approx(np.mean(ends))


NAMES = st.integers(0, 3)


@st.composite
def batches(draw):
    """Points of a small grid, with classes, groups and ids, a gallery or none."""
    n, r = draw(st.integers(1, 9)), draw(st.integers(0, 9))
    place = st.lists(st.integers(0, 2), min_size=2, max_size=2)

    def columns(count):
        return [draw(st.lists(each, min_size=count, max_size=count)) for each in (place, NAMES, NAMES, NAMES)]

    return columns(n), columns(r) if draw(st.booleans()) else None


@settings(deadline=None, max_examples=60)
@given(
    batches(),
    st.sampled_from([None, "group positives", "group"]),
    st.sampled_from([None, 3, [2, 3]]),
    st.sampled_from([None, 0]),
    st.booleans(),
    st.integers(1, 12),
)
def test_every_choice_of_protocol_equals_a_loop(batch, exclude, ignore, distractors, with_ids, k):
    (x, labels, groups, ids), gallery = batch
    y, others, other_groups, other_ids = gallery or (x, labels, groups, ids)
    junk = [ignore] if isinstance(ignore, int) else ignore or []
    nobody = [] if distractors is None else [distractors]
    sides = set(), set()
    asks = [i for i, label in enumerate(labels) if label not in junk and label not in nobody]
    for i in asks:
        for j, other in enumerate(others):
            same = labels[i] == other
            same_image = ids[i] == other_ids[j] if with_ids else gallery is None and i == j
            of_group = exclude and groups[i] == other_groups[j]
            if other in junk or same_image or (of_group and (same or exclude == "group")):
                continue
            sides[not same].add((i, j))
    d = [[float(sum((a - b) ** 2 for a, b in zip(p, q, strict=True))) for q in y] for p in x]
    every = figures.ranked_ties(d, *sides)
    options = {"ignore": ignore, "distractors": distractors}
    if with_ids:
        options["ids"] = torch.tensor(ids)
    if exclude:
        options |= {"exclude": exclude, "groups": (groups, other_groups) if gallery else groups}
    if gallery:
        held = torch.tensor(other_ids, dtype=torch.int64) if with_ids else None
        points = torch.tensor(y, dtype=torch.float32).view(-1, 2)
        options["ref"] = References(points, np.array(others, dtype=np.int64), held)
    points = torch.tensor(x, dtype=torch.float32)
    expected = {
        recall_at_k: [figures.chance_of_hit(ties, k) for ties in every],
        mean_average_precision: [
            figures.expected_precision_sum(ties, 99) / positives(ties) for ties in every
        ],
        mrr: [figures.expected_first(ties) for ties in every],
        map_at_r: [figures.expected_precision_sum(ties, positives(ties)) / positives(ties) for ties in every],
    }
    for metric, values in expected.items():
        more = {"k": k} if metric is recall_at_k else {}
        score = metric(points, labels, **more, **options)
        assert score == pytest.approx(figures.mean(values), rel=1e-12, nan_ok=True), metric.__name__
        assert (score.queries, score.left_out) == (len(values), len(asks) - len(values))
        kept = score.values[~np.isnan(score.values)]
        assert kept == pytest.approx(values)


def positives(ties):
    return sum(m for m, _ in ties)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any), min_size=1, max_size=3))
def test_the_oracle_of_ties_is_the_mean_over_all_orders(ties):
    r = positives(ties)
    if not r:
        return

    def precisions(hits, cut):
        return [sum(hits[:i]) / i for i in range(1, min(cut, len(hits)) + 1) if hits[i - 1]]

    def trapezoids(hits):
        before = [
            1.0 if i == 1 else sum(hits[: i - 1]) / (i - 1) for i in range(1, len(hits) + 1) if hits[i - 1]
        ]
        return [(a + b) / 2 for a, b in zip(precisions(hits, 99), before, strict=True)]

    def over_orders(figure, *more):
        return pytest.approx(figures.expected(lambda hits: figure(hits, *more), ties), rel=1e-12)

    for k in (1, 2, 4, 20):
        assert figures.chance_of_hit(ties, k) == over_orders(lambda hits, k: float(any(hits[:k])), k)
        assert figures.expected_hits(ties, k) == over_orders(lambda hits, k: sum(hits[:k]), k)
        assert figures.expected_precision_sum(ties, k) == over_orders(
            lambda *given: sum(precisions(*given)), k
        )
    assert figures.expected_precision_sum(ties, 99, trapezoid=True) == over_orders(
        lambda hits: sum(trapezoids(hits))
    )
    assert figures.expected_first(ties) == over_orders(lambda hits: 1 / (1 + hits.index(1)))
    assert figures.expected_last(ties) == over_orders(lambda hits: r / (len(hits) - hits[::-1].index(1)))


def test_graded_relevance_equals_a_loop_over_its_gains():
    labels = torch.randint(0, 3, (24, 2), generator=torch.Generator().manual_seed(3))
    x = grid(24)
    d = reference.distances("euclidean", x)

    def depth(a, j):
        agree = 0
        for left, right in zip(labels[a].tolist(), labels[j].tolist(), strict=True):
            if left != right:
                break
            agree += 1
        return agree / 2

    pairs = {(a, j) for a in range(24) for j in range(24) if a != j}
    positive = {(a, j) for a, j in pairs if depth(a, j) > 0}
    for gain, of in (("linear", float), ("exponential", lambda r: 2**r - 1)):
        every = figures.ranked_gains(d, positive, pairs - positive, lambda a, j, of=of: of(depth(a, j)))
        scores = ndcg(x, labels, (1, 3, 100), relevance="depth", gain=gain)
        for k, score in scores.items():
            values = [figures.ndcg(ties, k) for ties in every]
            assert score == pytest.approx(figures.mean(values), rel=1e-12)
            assert score.tied == pytest.approx(figures.mean(figures.gains_differ(ties, k) for ties in every))
    assert scores[100].clipped == 24


def test_figures_equal_those_of_scikit_learn():
    x, labels = points(40, 5).double(), torch.arange(40) % 4
    similar = -torch.cdist(x, x).numpy()
    relevant = (labels[:, None] == labels).numpy()
    average, gains = [], []
    for a in range(40):
        others = np.arange(40) != a
        average.append(average_precision_score(relevant[a, others], similar[a, others]))
        gains.append(ndcg_score(relevant[a : a + 1, others], similar[a : a + 1, others], k=7))
    assert mean_average_precision(x, labels) == pytest.approx(np.mean(average))
    assert ndcg(x, labels, 7) == pytest.approx(np.mean(gains))
    d = torch.cdist(grid(40), grid(40), compute_mode="donot_use_mm_for_euclid_dist").numpy()
    tied = [  # with ties, which both average
        ndcg_score(relevant[a : a + 1, np.arange(40) != a], -d[a : a + 1, np.arange(40) != a], k=7)
        for a in range(40)
    ]
    assert ndcg(grid(40), labels, 7) == pytest.approx(np.mean(tied))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exclude": "group"}, r"recall_at_k\(exclude='group'\): expected groups= beside it"),
        ({"groups": [0] * 20, "exclude": "self"}, r"recall_at_k\(exclude='self'\): expected one of"),
        ({"groups": [0] * 19}, r"recall_at_k\(groups='shape \(19,\)'\): expected shape \(20,\)"),
        ({"ignore": "junk"}, r"recall_at_k\(labels, ignore, distractors='int and str'\): expected all whole"),
        ({"no_positives": "one"}, r"recall_at_k\(no_positives='one'\): expected one of 'skip', 'zero'"),
        ({"of": "images"}, r"recall_at_k\(of='images'\): expected one of 'queries', 'positives'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(options, said):
    with unchecked(), pytest.raises(ValueError, match=said):
        recall_at_k(*BATCHES["balanced"], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"over": "min(k, R)"}, r"mean_average_precision\(over='min\(k, R\)'\): expected k= beside it"),
        ({"k": 2, "rule": "trapezoid"}, r"mean_average_precision\(rule='trapezoid'\): expected no k beside"),
    ],
)
def test_variants_of_average_precision_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        mean_average_precision(*BATCHES["balanced"], **options)


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
        ties = figures.ranked_ties(d, *reference.relation(labels))
        values = [figures.expected_precision_sum(each, 3) / 3 for each in ties]
        check_equal(map_at_r(x.to(dtype), labels), values, 20)


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
    assert "14 queries, 3 left out: no other image of their class" in str(found).splitlines()
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


@pytest.mark.campaign
def test_200_000_queries_take_bounded_memory():
    """In a process of its own: the peak above the inputs, and a figure that chance gives."""
    code = """
import resource, torch, tercet
torch.set_num_threads(1)
x, labels = torch.randn(200_000, 128, generator=torch.Generator().manual_seed(0)), torch.arange(200_000) // 8
tercet.evaluate(x[:2000], labels[:2000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = tercet.evaluate(x, labels)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, float(found["Recall@1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mib, recall = map(float, done.stdout.split())
    assert mib < 500
    assert recall < 0.01
