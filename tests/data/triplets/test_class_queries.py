"""Groups, limits and negatives by class: counts and laws by plain loops, purity, chi-square, refusals."""

from __future__ import annotations

import itertools
import pickle
import random
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tests.helpers import listed, refusal_of

few = st.integers(1, 5)


def cross_group_positives(labels, groups, query):
    """The images that may be positives of a query, one at a time."""
    found = []
    for row, label in enumerate(labels):
        if row == query or label != labels[query]:
            continue
        if groups is not None and groups[row] == groups[query]:
            continue
        found.append(row)
    return found


def able(labels, groups):
    """The images that can be queries, by class."""
    found = {}
    for row, label in enumerate(labels):
        if cross_group_positives(labels, groups, row):
            found.setdefault(label, []).append(row)
    return found


@st.composite
def worlds(draw):
    """Labels, groups or None, and a limit or None, with a query in them."""
    labels = draw(
        st.lists(st.integers(0, 4), min_size=3, max_size=20).filter(lambda some: len(set(some)) > 1)
    )
    groups = None
    if draw(st.booleans()):
        groups = draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels)))
    limit = draw(st.none() | st.integers(1, 8))
    return labels, groups, limit


def made(strategy, world, *args, **options):
    """The sequence of a world; None where no image of it has a positive, which is refused."""
    labels, groups, limit = world
    if able(labels, groups):
        return strategy(labels, *args, groups=groups, limit=limit, **options)
    with pytest.raises(ValueError, match=r"expected (two groups in a class|a class of 2 images or more);"):
        strategy(labels, *args, groups=groups, limit=limit, **options)
    return None


def faults(rows, world, positives, negatives):
    """What is wrong with triplets of a world, their order aside; nothing is returned where all is well."""
    labels, groups, limit = world
    chosen = {}
    for anchor, positive, negative in rows:
        chosen.setdefault(anchor, {}).setdefault(positive, []).append(negative)
    for label, rows_of_class in able(labels, groups).items():
        queries = [row for row in rows_of_class if row in chosen]
        if len(queries) != min(len(rows_of_class), limit or len(rows_of_class)):
            yield f"{len(queries)} queries of class {label}"
    for query, drawn in chosen.items():
        allowed = cross_group_positives(labels, groups, query)
        strangers = [row for row, label in enumerate(labels) if label != labels[query]]
        if not set(drawn) <= set(allowed):
            yield f"{sorted(drawn)} are no positives of {query}"
        if len(drawn) != min(positives, len(allowed)):
            yield f"{len(drawn)} positives of {query}"
        for found in drawn.values():
            if not set(found) <= set(strangers) or len(set(found)) < len(found):
                yield f"{found} are no distinct negatives of {query}"
            if len(found) != min(negatives, len(strangers)):
                yield f"{len(found)} negatives of {query}"


@settings(deadline=None, max_examples=150)
@given(
    world=worlds(),
    positives=few,
    negatives=few | st.just(2**62),
    seed=st.integers(0, 9),
    way=st.sampled_from(["images", "classes"]),
)
@example(world=([0, 0, 0, 1], [0, 0, 1, 0], 1), positives=2, negatives=2, seed=0, way="classes")
def test_the_triplets_follow_the_law(world, positives, negatives, seed, way):
    labels, groups, _ = world
    triplets = made(RandomTriplets, world, positives, negatives, seed, negatives_from=way)
    if triplets is None:
        return
    rows = listed(triplets[:])
    assert list(faults(rows, world, positives, negatives)) == []
    assert len(rows) == len(triplets) == len(set(rows))
    queries = {anchor for anchor, _, _ in rows}
    could = sum(map(len, able(labels, groups).values()))
    alone = sum(labels.count(label) == 1 for label in labels)
    assert triplets.queries == len(queries)
    assert triplets.over_limit == could - len(queries)
    assert triplets.alone == alone
    assert triplets.same_group == len(labels) - could - alone
    order = [(labels[a], groups[a] if groups else 0, a) for a, _, _ in rows]
    assert order == sorted(order)


def test_the_checker_sees_every_fault():
    world = ([0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 1], None)
    good = listed(RandomTriplets(world[0], 9, 9, groups=world[1])[:])
    assert list(faults(good, world, 9, 9)) == []
    for place in range(len(good)):
        assert list(faults(good[:place] + good[place + 1 :], world, 9, 9)), place
        for corner, row in itertools.product(range(3), range(6)):
            bad = [list(triplet) for triplet in good]
            if bad[place][corner] != row:
                bad[place][corner] = row
                assert list(faults(map(tuple, bad), world, 9, 9)), (place, corner, row)


@settings(deadline=None, max_examples=60)
@given(world=worlds(), way=st.sampled_from(["images", "classes"]), data=st.data())
@pytest.mark.parametrize("strategy", [RandomTriplets, RandomPairs])
def test_each_is_a_function_of_its_number(strategy, world, way, data):
    sequence = made(strategy, world, 2, 3, 7, negatives_from=way)
    if sequence is None:
        return
    rows, n = listed(sequence[:]), len(sequence)
    numbers = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=12))
    assert listed(sequence[numbers]) == [rows[number] for number in numbers]
    assert [listed(sequence[number])[0] for number in numbers] == [rows[number] for number in numbers]
    a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    assert listed(sequence[a:b]) == rows[a:b]
    assert listed(pickle.loads(pickle.dumps(sequence))[:]) == rows
    assert listed(made(strategy, world, 2, 3, 7, negatives_from=way)[:]) == rows


# Groups


def test_a_group_for_each_image_is_no_group():
    labels = np.random.default_rng(0).integers(0, 9, 80)
    plain = RandomTriplets(labels, 3, 2, seed=4)
    grouped = RandomTriplets(labels, 3, 2, seed=4, groups=np.arange(80))
    assert listed(grouped[:]) == listed(plain[:])


def test_only_the_order_of_the_groups_matters():
    labels, groups = [0, 1] * 6, [0, 0, 1, 2, 2, 1, 0, 1, 1, 2, 2, 0]
    rows = listed(RandomTriplets(labels, 2, 2, groups=groups)[:])
    for names in (["a", "b", "c"], [-5, 3, 8], [0, 1, 2**40]):
        assert listed(RandomTriplets(labels, 2, 2, groups=[names[group] for group in groups])[:]) == rows


def test_positives_are_uniform_over_those_of_other_groups():
    labels, groups = [0, 0, 1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 2, 1, 2, 1]
    counts = {}
    for seed in range(600):
        for anchor, positive, _ in listed(RandomTriplets(labels, 1, 1, seed, groups=groups)[:]):
            counts.setdefault(anchor, Counter())[positive] += 1
    for query, found in counts.items():
        allowed = cross_group_positives(labels, groups, query)
        assert set(found) == set(allowed)
        if len(allowed) > 1:
            assert stats.chisquare([found[row] for row in allowed]).pvalue > 1e-4, query


# Limits


def test_a_smaller_limit_keeps_some_of_the_queries_of_a_larger():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    queries = [set(RandomTriplets(labels, limit=limit)[:].anchor.tolist()) for limit in (1, 3, 10, None)]
    assert [len(some) for some in queries] == [5, 15, 50, 200]
    assert queries[0] < queries[1] < queries[2] < queries[3]
    triplets = RandomTriplets(labels, 2, 3, limit=10)
    every = {}
    for anchor, positive, negative in listed(RandomTriplets(labels, 2, 3)[:]):
        every.setdefault(anchor, []).append((anchor, positive, negative))
    kept = [row for query in dict.fromkeys(triplets[:].anchor.tolist()) for row in every[query]]
    assert listed(triplets[:]) == kept


def test_the_queries_of_a_limit_are_uniform_over_seeds():
    labels = [0] * 5 + [1] * 3
    found = Counter(
        tuple(sorted({a for a in RandomTriplets(labels, seed=seed, limit=2)[:].anchor.tolist() if a < 5}))
        for seed in range(800)
    )
    assert set(found) == set(itertools.combinations(range(5), 2))
    assert stats.chisquare(list(found.values())).pvalue > 1e-4


# Negatives by class


def dealt(sizes, own, count, chance):
    """Negatives (class, image) of one positive, by the law in loops: rounds over the other classes."""
    hands = {label: chance.sample(range(size), size) for label, size in enumerate(sizes) if label != own}
    found = []
    while len(found) < count and any(hands.values()):
        classes = [label for label, hand in hands.items() if hand]
        chance.shuffle(classes)
        for label in classes:
            found.append((label, hands[label].pop()))
    return found[:count]


def test_negatives_by_class_are_as_dealt_in_loops():
    # The joint law of four negatives, beyond the first round, against as many deals of Python's generator.
    sizes = [6000, 1, 3, 2]
    labels = np.repeat(np.arange(4), sizes)
    starts = np.cumsum([0, *sizes])
    chance, ours, theirs = random.Random(0), Counter(), Counter()
    negatives = RandomTriplets(labels, 1, 4, seed=2, negatives_from="classes")[:24_000].negative
    for four in negatives.reshape(6000, 4).tolist():
        ours[tuple((int(labels[row]), int(row - starts[labels[row]])) for row in four)] += 1
        theirs[tuple(dealt(sizes, 0, 4, chance))] += 1
    cells = sorted(set(ours) | set(theirs))
    table = np.array([[counts[cell] for cell in cells] for counts in (ours, theirs)])
    assert len(cells) == 6 * 6 * 3  # orders of the classes × images × the fourth: two of class 2, one of 3
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_each_negative_of_the_first_round_is_uniform_over_classes(nth):
    sizes = [30, 1, 5, 2]
    labels = np.repeat(np.arange(4), sizes)
    found = RandomTriplets(labels, 29, 3, seed=1, negatives_from="classes")[: 30 * 29 * 3]
    negative = found.negative[nth::3]
    assert stats.chisquare(np.bincount(labels[negative], minlength=4)[1:]).pvalue > 1e-4
    for label in (2, 3):
        within = negative[labels[negative] == label]
        assert stats.chisquare(np.unique(within, return_counts=True)[1]).pvalue > 1e-4
    plain = RandomTriplets(labels, 29, 3, seed=1)[: 30 * 29 * 3].negative[nth::3]
    assert stats.chisquare(np.bincount(labels[plain], minlength=4)[1:]).pvalue < 1e-9  # 1 : 5 : 2


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 1))
def test_all_negatives_by_class_come_in_rounds(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    anchor, _, negatives = RandomTriplets(labels, 1, 10**9, negatives_from="classes")[:]
    for query in sorted(set(anchor.tolist())):
        negative = negatives[anchor == query]
        own = labels[query]
        turns = [
            sorted(label for label, size in enumerate(sizes) if label != own and size > turn)
            for turn in range(max(sizes))
        ]
        place = 0
        for turn in turns:
            assert sorted(labels[negative[place : place + len(turn)]]) == turn
            place += len(turn)
        assert place == len(set(negative.tolist())) == len(labels) - sizes[own]


# Refusals, provenance


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"negatives_from": "class"},
            "negatives_from='class'): expected one of 'images', 'classes'; did you",
        ),
        ({"limit": 0}, "limit=0): expected a whole number of at least 1"),
        ({"groups": [0, 1]}, "groups='2 groups'): expected one group for each of 4 labels"),
        ({"groups": [0.5] * 4}, "groups='float64'): expected whole numbers or strings"),
        (
            {"groups": [1, 1, 2, 2]},
            "groups='one group in each of 2 classes'): expected two groups in a class; "
            "a positive is of another group than its query",
        ),
    ],
)
@pytest.mark.parametrize("strategy", [RandomTriplets, RandomPairs])
def test_what_cannot_be_drawn_is_refused(strategy, options, said):
    assert refusal_of(strategy, [0, 0, 1, 1], **options).startswith(f"{strategy.__name__}({said}")


def test_the_provenance_tells_what_was_asked_and_what_was_left():
    labels, groups = [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 0, 0, 0, 1, 2]
    triplets = RandomTriplets(labels, 2, 3, 5, negatives_from="classes", groups=groups, limit=2)
    told = triplets.provenance()
    assert told == {
        "strategy": "random",
        "parameters": {"positives": 2, "negatives": 3, "seed": 5, "negatives_from": "classes", "limit": 2},
        "counts": {
            "queries": 4,
            "images alone in their class": 0,
            "groups": 3,
            "images of classes of one group": 2,
            "images over the limit": 2,
        },
    }
    again = RandomTriplets(labels, groups=groups, **told["parameters"])
    assert listed(again[:]) == listed(triplets[:])
    said = "positives=2, negatives=3, seed=5, negatives_from='classes', 3 groups, limit=2)"
    assert repr(triplets) == f"RandomTriplets({len(triplets)} triplets: 4 queries, {said}"


def test_a_million_images_are_ready_at_once():
    labels = np.arange(1_000_000) % 50_000
    groups = np.random.default_rng(0).integers(0, 6, 1_000_000)
    triplets = RandomTriplets(labels, 4, 10**9, negatives_from="classes", groups=groups, limit=3)
    anchor, positive, negative = triplets[[0, -1, 7 * 10**10, len(triplets) // 2]]
    assert triplets.queries == 150_000
    assert (labels[anchor] == labels[positive]).all()
    assert (groups[anchor] != groups[positive]).all()
    assert (labels[anchor] != labels[negative]).all()


def test_case_same_seed_same_triplets_on_every_machine():
    labels, groups = np.arange(1000) % 37, np.arange(1000) * 7 % 5
    options = {"negatives_from": "classes", "groups": groups, "limit": 20}
    drawn = np.stack(RandomTriplets(labels, 3, 50, seed=5, **options)[:])
    pairs = np.stack(RandomPairs(labels, 3, 50, seed=5, **options)[:]).astype(np.int64)
    sums = [zlib.crc32(rows.astype("<i8").tobytes()) for rows in (drawn, pairs)]
    assert sums == [3188542520, 1732844046]  # other numbers break every manifest
