"""Deep Ranking's triplets: the exact law by plain loops against chi-square, purity, and what is refused."""

from __future__ import annotations

import pickle
import tracemalloc
import zlib
from collections import Counter, defaultdict

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.core.indices import Triplets, TripletSequence
from tercet.data.triplets import deep_ranking
from tercet.data.triplets.deep_ranking import DeepRankingTriplets
from tercet.data.triplets.relevance import (
    FolderRelevance,
    FunctionRelevance,
    TableRelevance,
    TeacherRelevance,
)
from tests.helpers import listed, uniforms


def matrix(n, seed=0, zeros=0.2):
    """Relevances that are not symmetric, on a grid of 1/20, a share of them 0."""
    r = np.ceil(uniforms(n * n, "matrix", seed) * 20) / 20
    return np.where(uniforms(n * n, "zeros", seed) < zeros, 0, r).reshape(n, n)


def lookup(r):
    return FunctionRelevance(lambda i, j: r[i, j])


LABELS = [2, 0, 1, 0, 0, 1, 2, 0, 1, 3, 0, 1, 0]  # 6, 4, 2 and 1 images


def negatives_of(labels, r, gap, query, positive):
    """In-class images that are less relevant by the gap, and of some relevance."""
    return [
        n
        for n in range(len(labels))
        if labels[n] == labels[query] and n not in (query, positive) and r[query][n] > 0
        if r[query][positive] - r[query][n] >= gap - 1e-7
    ]


def law(labels, r, cap, gap, inside):
    """(query, positive, negative) → probability, of triplets with the negative in class or not."""
    images = range(len(labels))
    mates = {q: [p for p in images if labels[p] == labels[q] and p != q and r[q][p] > 0] for q in images}
    if inside:
        mates = {q: [p for p in mates[q] if negatives_of(labels, r, gap, q, p)] for q in images}
    totals = {
        q: sum(r[q][j] for j in images if j != q and labels[j] == labels[q]) for q in images if mates[q]
    }
    chance = {}
    for q, total in totals.items():
        z = sum(min(cap, r[q][p]) for p in mates[q])
        for p in mates[q]:
            if inside:
                weights = {n: min(cap, r[q][n]) for n in negatives_of(labels, r, gap, q, p)}
            else:
                weights = {n: 1.0 for n in images if labels[n] != labels[q]}
            for n, weight in weights.items():
                share = total / sum(totals.values()) * min(cap, r[q][p]) / z * weight / sum(weights.values())
                chance[q, p, n] = share
    assert not chance or abs(sum(chance.values()) - 1) < 1e-9
    return chance


def p_value(drawn, chance):
    """Chi-square of counts against their law; cells that expect few are put together. 0 outside the law."""
    if set(drawn) - set(chance):
        return 0.0
    total = sum(drawn.values())
    cells = sorted((total * share, drawn[key]) for key, share in chance.items())
    expected, observed = [0.0], [0]
    for due, came in cells:
        if expected[-1] >= 8:
            expected.append(0.0)
            observed.append(0)
        expected[-1] += due
        observed[-1] += came
    if len(expected) == 1:
        return 1.0
    expected = np.array(expected) * (sum(observed) / sum(expected))
    return stats.chisquare(observed, expected).pvalue


def marginal(values, kept):
    """Counts or chances by some places of the triplet."""
    sums = defaultdict(float)
    for triplet, value in values.items():
        sums[tuple(triplet[place] for place in kept)] += value
    return sums


def p_values(drawn, labels, r, cap, gap):
    """By name: queries, positives, in-class and out-of-class negatives, and each with all before it."""
    inside = Counter(t for t in drawn if labels[t[0]] == labels[t[2]])
    outside = Counter(t for t in drawn if labels[t[0]] != labels[t[2]])
    found = {}
    for name, counts in (("in", inside), ("out", outside)):
        chance = law(labels, r, cap, gap, name == "in")
        for what, kept in (("query", [0]), ("positive", [0, 1]), ("negative", [2]), ("triplet", [0, 1, 2])):
            found[f"{what}, {name}"] = p_value(marginal(counts, kept), marginal(chance, kept))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("cap", "gap", "out_of_class"),
    [(1.0, 0.0, 0.5), (0.5, 0.0, 0.2), (0.5, 0.2, 0.5), (0.3, 0.6, 0.1), (1.0, 0.75, 0.5), (0.05, 0.05, 0.3)],
)
def test_the_draws_follow_the_law(seed, cap, gap, out_of_class):
    r = matrix(len(LABELS), seed)
    triplets = DeepRankingTriplets(
        LABELS, lookup(r), 60_000, seed, cap=cap, gap=gap, out_of_class=out_of_class
    )
    drawn = listed(triplets[:])
    values = p_values(drawn, LABELS, r.tolist(), cap, gap)
    assert min(values.values()) > 1e-3, values
    outside = sum(LABELS[q] != LABELS[n] for q, _, n in drawn)
    assert stats.binomtest(outside, len(drawn), out_of_class).pvalue > 1e-3


def test_the_chi_square_sees_that_a_threshold_is_dropped():
    r = matrix(len(LABELS))
    for law_of, drawn_with in [((0.5, 0.0), (1.0, 0.0)), ((0.5, 0.2), (1.0, 0.2)), ((0.5, 0.2), (0.5, 0.0))]:
        cap, gap = drawn_with
        triplets = DeepRankingTriplets(LABELS, lookup(r), 60_000, cap=cap, gap=gap, out_of_class=0.5)
        values = p_values(listed(triplets[:]), LABELS, r.tolist(), *law_of)
        assert values["triplet, in"] < 1e-6
        if cap != law_of[0]:
            assert values["positive, in"] < 1e-6
            assert values["positive, out"] < 1e-6
            assert values["query, out"] > 1e-3  # on which T_p has no bearing


def test_the_in_class_negatives_alone_show_a_dropped_cap():
    # One query in class 0 whose positive is certain: what is left is the law of the negative.
    r = np.zeros((5, 5))
    r[0] = [0, 1.0, 0.8, 0.4, 0.1]
    labels = [0, 0, 0, 0, 0]
    for cap, seen in [(0.5, True), (1.0, False)]:
        triplets = DeepRankingTriplets(labels, lookup(r), 40_000, cap=cap, gap=0.2, out_of_class=0)
        of_the_first = Counter(n for _, p, n in listed(triplets[:]) if p == 1)
        p = p_value(of_the_first, {2: 0.5 / 1.0, 3: 0.4 / 1.0, 4: 0.1 / 1.0})
        assert p > 1e-3 if seen else p < 1e-6


def test_the_chi_square_sees_a_wrong_draw():
    r = matrix(len(LABELS)).tolist()
    good = law(LABELS, r, 0.5, 0.2, True)
    assert p_value({key: 60_000 * share for key, share in good.items()}, good) > 0.99
    moved = dict.fromkeys(good, 60_000 / len(good))
    assert p_value(moved, good) < 1e-6
    assert p_value({(0, 0, 0): 1}, good) == 0


def test_the_law_holds_for_a_teacher_and_for_folders():
    labels = np.array([0] * 7 + [1] * 4)
    x = (uniforms(11 * 6, "teacher") - 0.3).reshape(11, 6)
    unit = x / np.sqrt((x * x).sum(axis=1, keepdims=True))
    paths = [f"ant/{'ab'[n % 2]}/{'xy'[n // 4]}/{n}.png" for n in range(7)]
    paths += [f"bee/{n % 2}/{n}.png" for n in range(4)]
    folders = FolderRelevance(paths)
    sources = [
        (TeacherRelevance(x), np.clip(unit @ unit.T, 0, 1)),
        (folders, folders.of(np.arange(11), np.arange(11))),
    ]
    for source, r in sources:
        triplets = DeepRankingTriplets(labels, source, 60_000, cap=0.6, gap=0.1, out_of_class=0.5)
        values = p_values(listed(triplets[:]), labels.tolist(), r.tolist(), 0.6, 0.1)
        assert min(values.values()) > 1e-3, values


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=20),
    seed=st.integers(0, 2**70),
    gap=st.sampled_from([0, 0.05, 0.3, 0.7]),
    out_of_class=st.sampled_from([0, 0.3, 1]),
)
def test_every_triplet_is_one_of_the_law(labels, seed, gap, out_of_class):
    r = matrix(len(labels), seed % 100)
    inside, outside = (law(labels, r.tolist(), 0.5, gap, kind) for kind in (True, False))
    queries = [
        q
        for q in range(len(labels))
        if any(labels[p] == labels[q] and p != q and r[q, p] > 0 for p in range(len(labels)))
    ]
    settled = (
        (not queries) or (out_of_class > 0 and len(set(labels)) < 2) or (out_of_class < 1 and not inside)
    )
    if settled:
        with pytest.raises(ValueError, match=r"DeepRankingTriplets\((relevance|out_of_class|gap)="):
            DeepRankingTriplets(labels, lookup(r), 10, seed, gap=gap, out_of_class=out_of_class)
        return
    triplets = DeepRankingTriplets(labels, lookup(r), 300, seed, cap=0.5, gap=gap, out_of_class=out_of_class)
    drawn = set(listed(triplets[:]))
    assert (
        drawn
        <= ({**inside, **outside} if 0 < out_of_class < 1 else outside if out_of_class else inside).keys()
    )
    alone = sum(labels.count(label) == 1 for label in labels)
    assert (triplets.queries, triplets.alone) == (len(queries), alone)
    assert triplets.irrelevant == len(labels) - len(queries) - alone
    assert triplets.unserved == len(queries) - len({q for q, _, _ in inside})


def mixed(n=700):
    """Labels of classes of 1 to 150 images in mixed order, and a teacher of them."""
    sizes = [1, 1, 2, 2, 3, 5, 17, 64, 65, 100, 128, 150]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.argsort(uniforms(len(labels), "order"))]
    x = uniforms(len(labels) * 8, "x").reshape(-1, 8) - 0.3
    return labels, TeacherRelevance(x)


def test_a_triplet_is_a_function_of_its_number(monkeypatch):
    labels, teacher = mixed()
    triplets = DeepRankingTriplets(labels, teacher, 5000, seed=3, cap=0.7, gap=0.2, out_of_class=0.3)
    rows = listed(triplets[:])
    assert [listed(triplets[number])[0] for number in range(0, 5000, 50)] == rows[::50]
    assert listed(triplets[-7:]) == rows[-7:]
    assert listed(triplets[4000:10:-13]) == rows[4000:10:-13]
    some = [4999, 0, -1, 17, 17, 2500]
    assert listed(triplets[some]) == [rows[number] for number in some]
    assert listed(triplets[torch.tensor(some)]) == [rows[number] for number in some]
    longer = DeepRankingTriplets(labels, teacher, 9000, seed=3, cap=0.7, gap=0.2, out_of_class=0.3)
    assert listed(longer[:5000]) == rows
    for cells in (300, 5000):  # blocks of any size
        monkeypatch.setattr(deep_ranking, "CELLS", cells)
        monkeypatch.setattr(deep_ranking, "SURVEYED", cells)
        again = DeepRankingTriplets(labels, teacher, 5000, seed=3, cap=0.7, gap=0.2, out_of_class=0.3)
        assert listed(again[:2000]) == rows[:2000]
        assert (again.queries, again.unserved) == (triplets.queries, triplets.unserved)


def test_case_same_seed_same_triplets_on_every_machine():
    labels, teacher = mixed()
    by_teacher = DeepRankingTriplets(labels, teacher, 5000, seed=5, cap=0.8, gap=0.1)
    paths = [f"{label}/{row % 3}/{row}.png" for row, label in enumerate(labels.tolist())]
    by_folder = DeepRankingTriplets(labels, FolderRelevance(paths), 5000, seed=5, gap=0.5)
    sums = [zlib.crc32(np.stack(t[:]).astype("<i8").tobytes()) for t in (by_teacher, by_folder)]
    assert sums == [4042979582, 3645502241]  # another number breaks every manifest


def test_another_seed_draws_others():
    labels, teacher = mixed()
    drawn = {
        tuple(listed(DeepRankingTriplets(labels, teacher, 50, seed)[:])) for seed in (0, 1, 2**32, 2**64)
    }
    assert len(drawn) == 4


def test_what_comes_out_are_int64_arrays():
    labels, teacher = mixed()
    triplets = DeepRankingTriplets(labels, teacher, 20)
    assert isinstance(triplets, TripletSequence)
    for index in (0, slice(0, 2), [0, 1], [], slice(0, 0)):
        found = triplets[index]
        assert isinstance(found, Triplets)
        assert all(column.dtype == np.int64 and column.ndim == 1 for column in found)
    assert (triplets[[]].count, triplets[3].count, len(triplets)) == (0, 1, 20)
    for bad in (20, -21, 0.5, "0", None):
        with pytest.raises(IndexError, match="expected "):
            triplets[bad]


def test_labels_of_any_kind_give_the_same():
    labels, teacher = mixed()
    names = [f"class {label:02}" for label in labels]
    rows = listed(DeepRankingTriplets(labels, teacher, 100)[:])
    for alike in (names, np.array(names), labels.astype(np.uint8), torch.from_numpy(labels), labels * 3 - 5):
        assert listed(DeepRankingTriplets(alike, teacher, 100)[:]) == rows


def test_a_gap_is_compared_as_it_is_written():
    # 0.3 − 0.1 is 0.19999999999999998, and 0.6 − 0.4 is below 0.2 too.
    for high, low in [(0.3, 0.1), (0.6, 0.4), (0.7, 0.5), (1.0, 0.8)]:
        source = TableRelevance([0, 0], [1, 2], [high, low], symmetric=False)
        triplets = DeepRankingTriplets([0, 0, 0], source, 5, gap=0.2, out_of_class=0)
        assert set(listed(triplets[:])) == {(0, 1, 2)}


class Given:
    """A relevance of one's own, in whatever kind of number."""

    def __init__(self, r):
        self.r = r

    def check(self, count): ...

    def of(self, rows, columns):
        return self.r[rows[..., :, None], columns[..., None, :]]

    def pairs(self, i, j):
        return self.r[i, j]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("high", "low", "gap"), [(0.41, 0.36, 0.05), (0.3, 0.1, 0.2), (0.9, 0.2, 0.7)])
def test_a_gap_is_compared_as_it_is_written_in_any_kind_of_number(dtype, high, low, gap):
    r = np.zeros((3, 3), dtype=dtype)
    r[0] = [0, high, low]
    triplets = DeepRankingTriplets([0, 0, 0], Given(r), 5, gap=gap, out_of_class=0)
    assert set(listed(triplets[:])) == {(0, 1, 2)}
    with pytest.raises(ValueError, match=r"DeepRankingTriplets\(gap="):
        DeepRankingTriplets([0, 0, 0], Given(r), 5, gap=gap + 1e-6, out_of_class=0)


def test_with_a_gap_of_0_what_is_equal_but_for_rounding_is_equal():
    r = np.zeros((4, 4))
    r[0] = [0, 0.45, 0.44999999999999996, 0.9]
    r[1] = [0.45, 0, 0.44999999999999996, 0]  # served by these two alone
    for gap in (0, 1e-8):
        triplets = DeepRankingTriplets([0] * 4, Given(r), 4000, gap=gap, out_of_class=0)
        found = set(listed(triplets[:]))
        assert {(p, n) for q, p, n in found if q == 0} == {(1, 2), (2, 1), (3, 1), (3, 2)}
        assert {(p, n) for q, p, n in found if q == 1} == {(0, 2), (2, 0)}
        assert triplets.unserved == 0


def test_with_a_gap_of_0_a_positive_and_its_negative_are_two_images():
    source = TableRelevance([0, 0, 0], [1, 2, 3], [0.5, 0.5, 0.2], symmetric=False)
    triplets = DeepRankingTriplets([0, 0, 0, 0], source, 4000, gap=0, out_of_class=0)
    found = Counter(listed(triplets[:]))
    assert found.keys() == {(0, 1, 2), (0, 1, 3), (0, 2, 1), (0, 2, 3)}
    due = {(0, 1, 2): 0.5 * 5 / 7, (0, 1, 3): 0.5 * 2 / 7, (0, 2, 1): 0.5 * 5 / 7, (0, 2, 3): 0.5 * 2 / 7}
    assert p_value(found, due) > 1e-3


def test_case_alone_or_of_no_relevance_is_no_query_and_told():
    source = TableRelevance([0, 1], [1, 2], [0.9, 0.5])
    labels = ["a", "a", "a", "a", "b", "c", "c"]  # image 3 and class c have no relevance
    triplets = DeepRankingTriplets(labels, source, 3000, gap=0.3, out_of_class=0.5)
    assert (triplets.queries, triplets.alone, triplets.irrelevant, triplets.unserved) == (3, 1, 3, 2)
    drawn = listed(triplets[:])
    assert {q for q, _, _ in drawn} == {0, 1, 2}
    assert {n for _, _, n in drawn} == {2, 4, 5, 6}  # 2 in class, for query 1
    assert triplets.provenance()["counts"] == {
        "queries": 3,
        "images alone in their class": 1,
        "images of no relevance": 3,
        "queries without an in-class negative": 2,
    }


def test_case_one_class():
    r = matrix(6, zeros=0)
    triplets = DeepRankingTriplets([0] * 6, lookup(r), 200, gap=0.05, out_of_class=0)
    assert all(q != n != p != q for q, p, n in listed(triplets[:]))


def test_case_a_gap_that_nothing_has():
    r = matrix(6) * 0.5
    outside = DeepRankingTriplets([0, 0, 0, 1, 1, 1], lookup(r), 200, gap=5, out_of_class=1)
    assert outside.unserved == outside.queries
    assert all(q // 3 == p // 3 != n // 3 for q, p, n in listed(outside[:]))


def sentence(**changes):
    """The text of the refusal of otherwise good arguments."""
    r = matrix(4, zeros=0)
    given = {"labels": [0, 0, 0, 1], "relevance": lookup(r), "count": 5, "gap": 0.0, **changes}
    with pytest.raises(ValueError, match=r".") as raised:
        DeepRankingTriplets(**given)
    return str(raised.value)


class Wild:
    """A relevance of one's own that is out of range."""

    def __init__(self, value):
        self.value = value

    def check(self, count): ...

    def of(self, rows, columns):
        return np.full((*rows.shape, columns.shape[-1]), self.value)

    def pairs(self, i, j):
        return np.full(i.shape, self.value)

    def __repr__(self):
        return "Wild()"


SOURCES = (
    "expected TeacherRelevance(embeddings), FolderRelevance(paths), TableRelevance(i, j, r) or "
    "FunctionRelevance(function)"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 0}, "(count=0): expected a whole number from 1 to 9223372036854775807"),
        ({"count": -1}, "(count=-1): expected a whole number from 1 to"),
        ({"count": 2.0}, "(count=2.0): expected a whole number from 1 to"),
        ({"count": True}, "(count=True): expected a whole number from 1 to"),
        ({"seed": -1}, "(seed=-1): expected a whole number of at least 0"),
        ({"cap": 0}, "(cap=0): expected a number above 0; pass 1 for no cap"),
        ({"cap": 1.5}, "(cap=1.5): expected a finite number from 0 to 1"),
        ({"cap": "much"}, "(cap='much'): expected a finite number from 0 to 1"),
        ({"gap": -0.1}, "(gap=-0.1): expected a finite number of at least 0"),
        ({"gap": np.nan}, "(gap=nan): expected a finite number of at least 0"),
        ({"out_of_class": 1.1}, "(out_of_class=1.1): expected a finite number from 0 to 1"),
        ({"out_of_class": None}, "(out_of_class=None): expected a finite number from 0 to 1"),
        ({"relevance": None}, "(relevance=None): " + SOURCES),
        ({"relevance": TeacherRelevance}, SOURCES),
        ({"relevance": np.eye(4)}, SOURCES),
        ({"relevance": TeacherRelevance(np.eye(5))}, "expected one of 4 images, as there are 4 labels"),
        ({"relevance": Wild(1.5)}, "(relevance='Wild(): from 0.0 to 1.5'): expected relevances from 0 to 1"),
        (
            {"relevance": Wild(-1.0)},
            "(relevance='Wild(): from -1.0 to 0.0'): expected relevances from 0 to 1",
        ),
        (
            {"relevance": Wild(0.5j)},
            "(relevance='Wild(): array of complex128'): expected relevances from 0 to 1",
        ),
        (
            {"relevance": Wild(np.nan)},
            "(relevance='Wild(): from nan to nan'): expected relevances from 0 to 1",
        ),
        (
            {"relevance": FunctionRelevance(lambda i, j: i * np.nan)},
            "FunctionRelevance(function='it gave nan for rows 0 and 0'): expected a number from 0 to 1",
        ),
        (
            {"relevance": TableRelevance([], [], [])},
            "(relevance='TableRelevance(0 pairs): none above 0 within a class'): "
            "expected an image that is relevant to another of its class",
        ),
        ({"labels": [0, 1, 2, 3]}, "none above 0 within a class'): expected an image that is relevant to"),
        (
            {"labels": [7, 7, 7, 7]},
            "(out_of_class=0.2): expected 0, as all images are of 1 class; only in-class negatives exist",
        ),
        (
            {"relevance": TableRelevance([0, 0], [1, 2], [0.75, 0.5]), "gap": 0.3},
            "(gap=0.3): expected at most 0.25, the widest gap between relevances to one query; "
            "lower it or pass out_of_class=1",
        ),
        (
            {"relevance": TableRelevance([0], [1], [0.75])},
            "(gap=0.0): expected two images of some relevance to one query of their class; "
            "lower it or pass out_of_class=1",
        ),
        ({"labels": []}, "(labels='array of shape (0,)'): expected one label for each of 1 or more images"),
    ],
)
def test_bad_input_gets_a_sentence(monkeypatch, changes, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert said in sentence(**changes)


def test_relevances_that_change_are_noticed():
    scale = [1.0]
    r = matrix(6, zeros=0)
    source = FunctionRelevance(lambda i, j: r[i, j] * scale[0])
    triplets = DeepRankingTriplets([0, 0, 0, 1, 1, 1], source, 50, gap=0.1, out_of_class=0)
    scale[0] = 0.01
    said = r"DeepRankingTriplets: FunctionRelevance\(.*\) gives other relevances than when it was surveyed"
    with pytest.raises(RuntimeError, match=said):
        triplets[:]


def test_memory_is_bounded_by_blocks():
    labels = np.arange(6000) % 2
    teacher = TeacherRelevance(uniforms(6000 * 4, "many").reshape(-1, 4))
    tracemalloc.start()
    triplets = DeepRankingTriplets(labels, teacher, 4000, gap=0)
    triplets[:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20  # all relevances of these queries at once are 96 MB, twice that as sums


def test_the_provenance_says_how_they_were_drawn():
    labels, teacher = mixed()
    triplets = DeepRankingTriplets(labels, teacher, 30, seed=5, cap=0.5, gap=0.25, out_of_class=0.5)
    told = triplets.provenance()
    assert told["strategy"] == "deep ranking"
    assert told["relevance"] == "TeacherRelevance(538 images, 8 dimensions)"
    again = DeepRankingTriplets(labels, teacher, **told["parameters"])
    assert listed(again[:]) == listed(triplets[:])
    assert again.provenance() == told
    assert repr(triplets) == (
        f"DeepRankingTriplets(30 triplets: {triplets.queries} queries, TeacherRelevance(538 images, "
        "8 dimensions), cap=0.5, gap=0.25, out_of_class=0.5, seed=5)"
    )


def test_it_travels_to_a_worker():
    labels, teacher = mixed()
    triplets = DeepRankingTriplets(labels, teacher, 100)
    assert listed(pickle.loads(pickle.dumps(triplets))[:]) == listed(triplets[:])


def test_no_global_generator_is_read_or_written():
    labels, teacher = mixed()
    np.random.seed(0)  # noqa: NPY002
    first, state = listed(DeepRankingTriplets(labels, teacher, 50)[:]), np.random.get_state()[1].tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert listed(DeepRankingTriplets(labels, teacher, 50)[:]) == first
    np.random.seed(0)  # noqa: NPY002
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
