"""Random triplets: the law by plain loops, purity, and uniformity by chi-square."""

from __future__ import annotations

import itertools
import pickle
import zlib
from collections import Counter

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.core.indices import Triplets, TripletSequence
from tercet.data.triplets import class_queries
from tercet.data.triplets.random import RandomTriplets
from tests.helpers import listed, refusal_of

labelings = st.lists(st.integers(0, 5), min_size=3, max_size=24).filter(
    lambda labels: 1 < len(set(labels)) < len(labels)
)
few = st.integers(1, 6)
lots = few | st.sampled_from([10**3, 2**62, 2**63 - 1])


def expected_count(labels, positives, negatives):
    """The triplets of the law, counted one at a time."""
    count = 0
    for query, label in enumerate(labels):
        others = [row for row, other in enumerate(labels) if other == label and row != query]
        strangers = [row for row, other in enumerate(labels) if other != label]
        for _ in others[:positives]:
            for _ in strangers[:negatives]:
                count += 1
    return count


def faults(rows, labels, positives, negatives):
    """What is wrong with triplets in the documented order; nothing is returned where all is well."""
    rows = iter(rows)
    for label in sorted(set(labels)):
        members = [row for row, other in enumerate(labels) if other == label]
        strangers = [row for row, other in enumerate(labels) if other != label]
        for query in members:
            seen = set()
            for _ in range(min(positives, len(members) - 1)):
                block = list(itertools.islice(rows, min(negatives, len(strangers))))
                if len(block) < min(negatives, len(strangers)):
                    yield "too few triplets"
                    return
                if {anchor for anchor, _, _ in block} != {query}:
                    yield f"not the triplets of query {query}"
                if len({positive for _, positive, _ in block}) != 1:
                    yield "two positives in a block"
                positive = block[0][1]
                if positive not in members or positive == query:
                    yield f"{positive} is no positive of {query}"
                if positive in seen:
                    yield f"positive {positive} twice"
                seen.add(positive)
                chosen = [negative for _, _, negative in block]
                if len(set(chosen)) < len(chosen):
                    yield f"a negative twice in {chosen}"
                if not set(chosen) <= set(strangers):
                    yield f"{chosen} are no negatives of {query}"
    if next(rows, None):
        yield "too many triplets"


@settings(deadline=None)
@given(labels=labelings, positives=lots, negatives=lots, seed=st.integers(0, 2**70))
@example(labels=[0, 0, 1], positives=1, negatives=1, seed=0)
@example(labels=[0, 1, 2, 2], positives=9, negatives=9, seed=0)
def test_the_triplets_follow_the_law(labels, positives, negatives, seed):
    triplets = RandomTriplets(labels, positives, negatives, seed)
    assert len(triplets) == expected_count(labels, positives, negatives)
    assert list(faults(listed(triplets[:]), labels, positives, negatives)) == []
    alone = [label for label in labels if labels.count(label) == 1]
    assert (triplets.alone, triplets.queries) == (len(alone), len(labels) - len(alone))
    assert len(set(triplets[:].anchor.tolist())) == triplets.queries


def test_the_checker_sees_every_fault():
    labels, law = [0, 0, 0, 1, 1], (2, 3)  # all there are, so that each change is a fault
    good = listed(RandomTriplets(labels, *law)[:])
    assert list(faults(good, labels, *law)) == []
    for place, row in itertools.product(range(len(good)), range(3)):
        for other in range(5):
            bad = [list(triplet) for triplet in good]
            if bad[place][row] != other:
                bad[place][row] = other
                assert list(faults(map(tuple, bad), labels, *law)), (place, row, other)
    assert list(faults(good[:-1], labels, *law)) == ["too few triplets"]
    assert list(faults([*good, good[0]], labels, *law)) == ["too many triplets"]
    assert list(faults(good[2:4] * 2 + good[4:], labels, *law))


@settings(deadline=None, max_examples=40)
@given(labels=labelings, positives=few, negatives=few, data=st.data())
def test_a_triplet_is_a_function_of_its_number(labels, positives, negatives, data):
    triplets = RandomTriplets(labels, positives, negatives, seed=3)
    rows = listed(triplets[:])
    n = len(triplets)
    numbers = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=20))
    assert listed(triplets[numbers]) == [rows[number] for number in numbers]
    for number in numbers:
        assert listed(triplets[number]) == [rows[number]]
        assert listed(triplets[np.int32(number)]) == [rows[number]]
    a, b, step = (
        data.draw(st.integers(-n, n)),
        data.draw(st.integers(-n, n)),
        data.draw(st.sampled_from([1, 3, -2])),
    )
    assert listed(triplets[a:b:step]) == rows[a:b:step]
    assert listed(triplets[torch.tensor(numbers)]) == [rows[number] for number in numbers]
    assert listed(RandomTriplets(labels, positives, negatives, seed=3)[:]) == rows


def test_what_comes_out_are_int64_arrays():
    triplets = RandomTriplets([0, 0, 1], 1, 1)
    assert isinstance(triplets, TripletSequence)
    for index in (0, slice(0, 2), [0, 1], [], slice(0, 0)):
        found = triplets[index]
        assert isinstance(found, Triplets)
        assert all(column.dtype == np.int64 and column.ndim == 1 for column in found)
    assert triplets[[]].count == triplets[1:1].count == 0
    assert triplets[-1].count == 1
    assert [listed(one) for one in triplets] == [[row] for row in listed(triplets[:])]


@pytest.mark.parametrize("index", [2, -3, [0, 2], [-3], 10**30, 0.5, [0.0], [True, False], "0", None, [[0]]])
def test_a_number_outside_the_sequence_is_refused(index):
    triplets = RandomTriplets([0, 0, 1], 1, 1)
    with pytest.raises(IndexError, match="expected "):
        triplets[index]
    assert len(triplets) == 2


@settings(deadline=None, max_examples=25)
@given(labels=labelings, seed=st.integers(0, 9))
def test_only_the_order_of_the_labels_matters(labels, seed):
    rows = listed(RandomTriplets(labels, 2, 2, seed)[:])
    names = ["ant", "bee", "cow", "dog", "eel", "fox"]
    alike = [
        [names[label] for label in labels],
        np.array(names)[labels],
        np.array([names[label] for label in labels], dtype=object),
        np.array(labels, dtype=np.uint8),
        [10 * label - 7 for label in labels],
        torch.tensor(labels),
    ]
    for other in alike:
        assert listed(RandomTriplets(other, 2, 2, seed)[:]) == rows


def test_another_seed_draws_others():
    labels = np.arange(200) % 20
    drawn = {
        tuple(listed(RandomTriplets(labels, 2, 2, seed)[:])) for seed in (0, 1, 2, 2**32, 2**64, 2**64 + 1)
    }
    assert len(drawn) == 6


def test_two_queries_are_drawn_apart():
    # 60 queries of one class draw 60 different sets of negatives, and each positive its own.
    triplets = RandomTriplets(np.arange(3000) % 50, 2, 5, seed=0)
    blocks = triplets[:].negative.reshape(-1, 5)
    assert len({tuple(block) for block in blocks.tolist()}) == len(blocks)


def test_more_than_there_are_gives_all_of_them():
    labels = [0, 1, 0, 0, 1, 2]
    rows = listed(RandomTriplets(labels, positives=99, negatives=99, seed=0)[:])
    every = {
        (a, p, n)
        for a, p, n in itertools.product(range(6), repeat=3)
        if a != p and labels[a] == labels[p] != labels[n]
    }
    assert len(rows) == len(every)
    assert set(rows) == every


def chi_square(counts, cells):
    """The probability of counts at least this uneven, over `cells` equally likely cells."""
    assert len(counts) <= cells
    observed = [*counts.values(), *[0] * (cells - len(counts))]
    return stats.chisquare(observed).pvalue


def draws(labels, positives, negatives, seeds):
    """[seeds, triplets, 3] of many seeds."""
    return np.array(
        [np.stack(RandomTriplets(labels, positives, negatives, seed)[:], axis=1) for seed in range(seeds)]
    )


def test_positives_and_negatives_are_uniform_over_seeds():
    labels = [1, 0, 1, 2, 0, 1, 0, 1, 2]  # 3, 4 and 2 images; the queries of class 0 are rows 1, 4 and 6
    drawn = draws(labels, 2, 2, seeds=1200)
    starts = {query: int(np.flatnonzero(drawn[0, :, 0] == query)[0]) for query in range(9)}
    values = []
    for query, start in starts.items():
        others = sum(label == labels[query] for label in labels) - 1
        strangers = len(labels) - others - 1
        first, second = drawn[:, start], drawn[:, start + 1]
        values.append(chi_square(Counter(map(tuple, first[:, 1:].tolist())), others * strangers))
        # Both negatives of one pair, in their order.
        pairs = Counter(zip(first[:, 2].tolist(), second[:, 2].tolist(), strict=True))
        values.append(chi_square(pairs, strangers * (strangers - 1)))
        if others > 1:  # both positives, in their order; and the negatives of one with those of the other
            third = drawn[:, start + 2]
            positives = Counter(zip(first[:, 1].tolist(), third[:, 1].tolist(), strict=True))
            values.append(chi_square(positives, others * (others - 1)))
            negatives = Counter(zip(first[:, 2].tolist(), third[:, 2].tolist(), strict=True))
            values.append(chi_square(negatives, strangers**2))
    # Two queries of one class draw independently of each other.
    together = Counter(zip(drawn[:, starts[0], 1].tolist(), drawn[:, starts[2], 1].tolist(), strict=True))
    values.append(chi_square(together, 9))
    assert min(values) > 1e-4
    assert np.mean(np.array(values) < 0.05) < 0.2


def test_positives_and_negatives_are_uniform_over_the_queries_of_one_seed():
    size, classes = 7, 3000
    labels = np.repeat(np.arange(classes), size)
    anchor, positive, negative = RandomTriplets(labels, 1, 1, seed=1)[:]
    places = Counter(zip((anchor % size).tolist(), (positive % size).tolist(), strict=True))
    assert chi_square(places, size * (size - 1)) > 1e-4
    away = (negative // size - anchor // size) % classes  # how many classes further: never 0
    bins = Counter((((away - 1) * 50) // (classes - 1)).tolist())
    shares = np.bincount(np.arange(classes - 1) * 50 // (classes - 1)) / (classes - 1)
    assert stats.chisquare([bins[i] for i in range(50)], shares * len(away)).pvalue > 1e-4
    assert chi_square(Counter((negative % size).tolist()), size) > 1e-4


def test_the_chi_square_sees_what_is_not_uniform():
    drawn = np.random.default_rng(0).integers(0, 20, 3000)
    assert chi_square(Counter(drawn.tolist()), 20) > 1e-4
    assert chi_square(Counter(np.maximum(drawn, 1).tolist()), 20) < 1e-4


def test_a_million_images_cost_no_drawing(monkeypatch):
    labels = np.random.default_rng(0).permutation(np.arange(1_000_000) % 50_000)  # 20 images a class
    monkeypatch.setattr(class_queries, "permute", None)  # nothing may be drawn
    assert len(RandomTriplets(labels, 5, 10)) == 1_000_000 * 5 * 10
    assert len(RandomTriplets(labels, 100, 1)) == 1_000_000 * 19
    everything = RandomTriplets(labels, 10**9, 10**9)
    assert len(everything) == 1_000_000 * 19 * 999_980
    monkeypatch.undo()
    anchor, positive, negative = everything[[0, -1, 7 * 10**12, 19 * 10**12 - 10**9]]
    assert (labels[anchor] == labels[positive]).all()
    assert (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            [3, 3, 3],
            "RandomTriplets(labels='3 images of 1 class'): expected images of 2 classes or more; "
            "a negative is of another class",
        ),
        (
            ["a", "b", "c"],
            "RandomTriplets(labels='3 classes of 1 image'): expected a class of 2 images or more; "
            "a positive is another image of it",
        ),
        (
            [],
            "RandomTriplets(labels='array of shape (0,)'): expected one label for each of 1 or more images",
        ),
        (
            [0.5, 0.5],
            "RandomTriplets(labels='float64'): expected whole numbers or strings; "
            "convert with .astype(int) or .astype(str)",
        ),
    ],
)
def test_labels_without_triplets_are_refused(labels, said):
    assert refusal_of(RandomTriplets, labels) == said


@pytest.mark.parametrize("name", ["positives", "negatives", "seed"])
@pytest.mark.parametrize("value", [-1, 0, 1.0, 1.5, "1", True, None])
def test_counts_that_are_no_counts_are_refused(monkeypatch, name, value):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    lowest = 0 if name == "seed" else 1
    if name == "seed" and value == 0:
        return
    said = f"RandomTriplets({name}={value!r}): expected a whole number of at least {lowest}"
    assert refusal_of(RandomTriplets, [0, 0, 1], **{name: value}) == said


def test_a_count_that_no_sequence_has_is_refused():
    labels = np.arange(6_000_000) % 2
    said = refusal_of(RandomTriplets, labels, positives=10**9, negatives=10**9)
    assert (
        said
        == "RandomTriplets(positives=1000000000): expected fewer than 2⁶³ triplets; lower it or negatives"
    )


def test_singletons_are_no_queries_but_are_negatives():
    triplets = RandomTriplets([7, 0, 0, 8, 9], positives=1, negatives=9, seed=0)
    assert (triplets.alone, triplets.queries, len(triplets)) == (3, 2, 6)
    assert set(triplets[:].anchor.tolist()) == {1, 2}
    assert set(triplets[:].negative.tolist()) == {0, 3, 4}


def test_the_provenance_says_all_that_is_needed_to_draw_again():
    labels = [7, 0, 0, 8, 8]
    triplets = RandomTriplets(labels, positives=2, negatives=3, seed=5)
    assert triplets.provenance() == {
        "strategy": "random",
        "parameters": {"positives": 2, "negatives": 3, "seed": 5, "negatives_from": "images", "limit": None},
        "counts": {"queries": 4, "images alone in their class": 1},
    }
    again = RandomTriplets(labels, **triplets.provenance()["parameters"])
    assert listed(again[:]) == listed(triplets[:])
    assert repr(triplets) == "RandomTriplets(12 triplets: 4 queries, positives=2, negatives=3, seed=5)"


def test_it_travels_to_a_worker():
    triplets = RandomTriplets([0, 0, 1, 1], 1, 2, seed=4)
    assert listed(pickle.loads(pickle.dumps(triplets))[:]) == listed(triplets[:])


def test_no_global_generator_is_read_or_written():
    labels = np.arange(60) % 7
    np.random.seed(0)  # noqa: NPY002
    first, state = listed(RandomTriplets(labels)[:]), np.random.get_state()[1].tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert listed(RandomTriplets(labels)[:]) == first
    np.random.seed(0)  # noqa: NPY002
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_case_same_seed_same_triplets_on_every_machine():
    drawn = np.stack(RandomTriplets(np.arange(1000) % 37, 3, 4, seed=5)[:])
    assert zlib.crc32(drawn.astype("<i8").tobytes()) == 3461736825  # another number breaks every manifest
