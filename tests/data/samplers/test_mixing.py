"""How `PKSampler` mixes classes where it is told to: weights, super-labels, groups, confusable classes."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.data.samplers.balanced_plan import every_pair, water_fill, weighted_fill
from tercet.data.samplers.near_classes import assign_near, near_items
from tercet.data.samplers.pk import PKSampler
from tests.helpers import epoch_of, labels_of, laws, refusal_of

SIZES = [4, 4, 4, 4, 4, 9, 9, 5, 2, 2]
LABELS = labels_of(SIZES)
SUPERS = ["abcde"[label // 2] for label in LABELS]


def plain_rows(sampler, epoch=0):
    return [[row for row, _, _ in batch] for batch in epoch_of(sampler, epoch)]


def ranked(world_size, *arguments, **options):
    """The steps of an epoch, each with the batches of all ranks."""
    ranks = [PKSampler(*arguments, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    return list(zip(*(plain_rows(sampler) for sampler in ranks), strict=True))


# One image a class, and whole classes.


def test_one_image_a_class_is_for_heads_with_centers():
    labels = [0, 0, 0, 1, 2, 2, 3]
    with pytest.warns(UserWarning, match=r"PKSampler\(k=1\): a batch has no positive pair; .*class centers"):
        sampler = PKSampler(labels, p=2, k=1)
    assert sampler.left_out == {}  # a class of one image is as good as any
    batches = plain_rows(sampler)
    assert all(len({labels[row] for row in batch}) == len(batch) == 2 for batch in batches)
    assert set(chain(*batches)) == set(range(7))


@pytest.mark.parametrize("world_size", [1, 2])
def test_whole_classes(world_size):
    for step in ranked(world_size, LABELS, 2, "all"):
        classes = [LABELS[row] for batch in step for row in batch]
        assert len(set(classes)) == 2 * world_size
        assert Counter(classes) == {label: SIZES[label] for label in set(classes)}
        assert len(set(chain(*step))) == len(classes)
    sampler = PKSampler(LABELS, p=3, k="all", epoch_length=40)
    batches = epoch_of(sampler, 1)
    views = Counter()
    for batch in batches:
        for row, epoch, view in batch:
            assert (epoch, view) == (1, views[row])
            views[row] += 1
    assert plain_rows(sampler, 1)[7] == [int(row) for row in sampler.batch(1, 7)]
    with pytest.warns(UserWarning, match=r"left out 1 class \(1 image\): 1 of fewer than 2 images"):
        assert PKSampler([0, 1, 1, 2, 2], p=2, k="all").left_out == {0: 1}


# Weights.


@laws
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_counts_in_proportion(weights, width, batches, key):
    width = min(width, len(weights))
    weights = np.array(weights)
    counts = weighted_fill(weights, batches, width, key)
    least = weighted_fill(weights, batches, width, None)
    assert counts.sum() == batches * width
    assert counts.max() <= batches
    assert ((counts - least >= 0) & (counts - least <= 1)).all()
    # By a plain loop: raise the level until the counts that it gives, each at most all batches, are enough.
    low, high = 0.0, batches / weights.min() + 1
    for _ in range(200):
        level = (low + high) / 2
        low, high = (
            (level, high) if np.minimum(level * weights, batches).sum() < batches * width else (low, level)
        )
    assert np.abs(counts - np.minimum(high * weights, batches)).max() < 1 + 1e-6


def test_a_weight_near_zero_gets_no_batch_by_rounding():
    weights = np.array([1e-12, 1.0, 1.0])
    assert weighted_fill(weights, 10**9, 2, None)[0] == 0
    assert weighted_fill(np.array([3.0, 2.0, 1.0]) / 7, 6 * 10**8, 2, None).tolist() == [6e8, 4e8, 2e8]
    said = refusal_of(PKSampler, LABELS, 2, 2, class_weights={0: 1e-12})
    assert "steps of this width; a whole number bounds an epoch" in said


def test_rounding_favours_no_item():
    weights = np.array([1, 2.5, 4, 0.3, 0.7])
    mean = np.mean([weighted_fill(weights, 7, 2, key) for key in range(2000)], axis=0)
    assert np.abs(mean - 14 * weights / weights.sum()).max() < 0.05


def test_classes_by_weight():
    weights = {0: 3.0, 5: 0.5}
    batches = plain_rows(PKSampler(LABELS, p=2, k=2, epoch_length=210, class_weights=weights))
    drawn = Counter(LABELS[batch[place]] for batch in batches for place in (0, 2))
    assert (
        drawn == {0: 120, 5: 20} | dict.fromkeys([1, 2, 3, 4, 6, 7, 8, 9], 40)
        or max(abs(drawn[c] - 420 * weights.get(c, 1.0) / 11.5) for c in range(10)) < 1
    )
    as_array = np.array([weights.get(c, 1.0) for c in range(10)])
    assert plain_rows(PKSampler(LABELS, p=2, k=2, epoch_length=210, class_weights=as_array)) == batches
    every = PKSampler(LABELS, p=2, k=2, class_weights=weights)
    assert set(chain(*plain_rows(every))) == set(range(len(LABELS)))  # each image still, in a longer epoch
    assert len(every) > len(PKSampler(LABELS, p=2, k=2))


# Super-labels.


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("items", [2, 3, 4, 5, 6, 7, 11, 12])
def test_any_two_super_labels_meet_equally_often(items, ranks):
    if items < 2 * ranks:
        return
    pairs = items * (items - 1) // 2
    for steps in (1, pairs, 3 * pairs + 2):
        plan = every_pair(items, steps, ranks, key=5)
        assert plan.shape == (steps, 2 * ranks)
        assert all(len(set(step)) == 2 * ranks for step in plan.tolist())
        met = Counter(tuple(sorted(pair)) for pair in plan.reshape(-1, 2).tolist())
        times = [met[pair] for pair in combinations(range(items), 2)]
        assert max(times) - min(times) <= (1 if ranks == 1 else 2)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_few_steps_of_many_super_labels_list_a_few_pairs(ranks):
    tracemalloc.start()
    plan = every_pair(3000, 50, ranks, key=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({tuple(sorted(pair)) for pair in plan.reshape(-1, 2).tolist()}) == 50 * ranks
    assert peak < 3e6  # all 4,498,500 pairs take 72 MB


@pytest.mark.parametrize("world_size", [1, 2])
def test_super_labels_in_every_pair(world_size):
    options = {"super_labels": SUPERS, "supers_per_batch": 2, "spread_pairs": True}
    steps = ranked(world_size, LABELS, 2, 2, **options)
    assert set(chain(*chain(*steps))) == set(range(len(LABELS)))
    met = Counter(tuple(sorted({SUPERS[row] for row in batch})) for step in steps for batch in step)
    assert len(met) == 10
    assert max(met.values()) - min(met.values()) <= world_size
    other = PKSampler(LABELS, 2, 2, seed=1, **options)
    assert plain_rows(other) != plain_rows(PKSampler(LABELS, 2, 2, **options))


def test_super_labels_of_few_classes_repeat_them():
    supers = ["few" if label < 2 else "many" for label in LABELS]
    sampler = PKSampler(LABELS, p=5, k=2, super_labels=supers, short_supers="repeat")
    assert sampler.left_out == {}
    batches = plain_rows(sampler)
    assert set(chain(*batches)) == set(range(len(LABELS)))
    extra = Counter()
    for batch in batches:
        assert len(batch) == 10
        assert len({supers[row] for row in batch}) == 1
        drawn = Counter(LABELS[row] for row in batch)
        if supers[batch[0]] == "many":
            assert set(drawn.values()) == {2}
        else:  # two classes at five places: two each, and one more of either
            assert sorted(drawn.values()) == [4, 6]
            extra[max(drawn, key=drawn.get)] += 1
            assert max(Counter(batch).values()) - min(Counter(batch).values()) <= 1
    assert abs(extra[0] - extra[1]) <= 1
    assert PKSampler(LABELS, p=5, k=2, super_labels=["x"] * len(LABELS), short_supers="repeat")


# Groups.


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_is_of_one_group(world_size):
    labels, cameras = np.repeat(np.arange(8), 12), [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 1] * 8
    steps = ranked(world_size, labels, 3, 2, pure_groups=cameras)
    for step in steps:
        assert len({cameras[row] for row in chain(*step)}) == 1
        assert len({labels[row] for row in chain(*step)}) == 3 * world_size
        assert all(len(batch) == 6 for batch in step)
    assert set(chain(*chain(*steps))) == set(range(96))


def test_shares_of_groups():
    labels, languages = np.repeat(np.arange(8), 12), ["de", "en", "fr", "en"] * 24
    options = {"pure_groups": languages, "epoch_length": 100}
    shares = {"de": 1, "en": 2, "fr": 1}
    for given_shares in (shares, [1, 2, 1]):
        batches = plain_rows(PKSampler(labels, 2, 2, group_shares=given_shares, **options))
        assert Counter(languages[batch[0]] for batch in batches) == {"de": 25, "en": 50, "fr": 25}
    every = PKSampler(labels, 2, 2, pure_groups=languages, group_shares=shares)
    assert set(chain(*plain_rows(every))) == set(range(96))


def test_a_group_of_too_few_classes_is_left_out():
    labels, groups = [0, 0, 1, 1, 2, 2], ["a", "a", "a", "a", "b", "b"]
    with pytest.warns(UserWarning, match=r"in a group of fewer than 2 such classes, such as \(2, 'b'\)"):
        sampler = PKSampler(labels, 2, 2, pure_groups=groups)
    assert sampler.left_out == {(2, "b"): 2}
    assert refusal_of(PKSampler, labels, 2, 2, pure_groups=groups, world_size=2) == (
        "PKSampler(p=2, world_size=2): only 0 groups have 4 classes of 2 images or more, and a step needs 4; "
        "lower p or lower world_size"
    )


# Confusable classes.


def families(classes, each=5, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(-(-classes // each), 16))
    return (centers[np.arange(classes) // each] + 0.4 * rng.normal(size=(classes, 16))).astype(np.float32)


@laws
@given(st.integers(2, 30), st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(0, 99))
def test_near_classes_in_exactly_as_many_batches(classes, ranks, width, steps, key):
    width = max(1, min(width, classes // ranks))
    if ranks * width > classes:
        return
    rng = np.random.default_rng(key)
    least = rng.integers(0, steps + 1, classes) // 2
    while least.sum() > steps * ranks * width:
        least //= 2
    group = np.zeros(classes, dtype=np.int64)
    counts = water_fill(least, group, np.array([steps]), ranks * width, key)
    directions = families(classes, seed=key)
    for near in {1, width, (width + 1) // 2}:
        plan = assign_near(counts, steps, ranks, width, near, near_items(directions, group, near), key)
        assert plan.shape == (steps, ranks * width)
        assert np.array_equal(np.bincount(plan.ravel(), minlength=classes), counts)
        assert all(len(set(step)) == ranks * width for step in plan.tolist())


def nearness(sampler, directions, epochs=2):
    """The mean cosine of two classes of a batch."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    found = []
    for epoch in range(epochs):
        for classes in sampler._planned(epoch)[0]:
            gram = unit[classes] @ unit[classes].T
            found.append(gram[np.triu_indices(len(classes), 1)].mean())
    return np.mean(found)


def test_confusable_classes_meet():
    directions = families(100)
    labels = np.repeat(np.arange(100), 6)
    plain = PKSampler(labels, p=4, k=2)
    whole = PKSampler(labels, p=4, k=2, confusion=directions, confusion_share=1)
    part = PKSampler(labels, p=4, k=2, confusion=directions, confusion_share=0.6)
    assert abs(nearness(plain, directions)) < 0.1
    assert nearness(whole, directions) > 0.6  # the classes of a family alone: 0.86
    assert nearness(plain, directions) + 0.1 < nearness(part, directions) < nearness(whole, directions) - 0.1
    counts = [np.bincount(sampler._planned(0)[0].ravel()) for sampler in (plain, whole, part)]
    assert len(plain) == len(whole)
    assert all(set(count.tolist()) == {3} for count in counts)
    first, second = (sorted(map(sorted, whole._planned(epoch)[0].tolist())) for epoch in (0, 1))
    assert first != second  # other company in another epoch


def test_means_of_images_are_the_vectors_of_classes():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(len(LABELS), 8)).astype(np.float32)
    means = np.stack([images[np.array(LABELS) == c].mean(axis=0) for c in range(10)])
    by_image, by_class = (PKSampler(LABELS, 3, 2, confusion=values) for values in (images, means))
    assert plain_rows(by_image) == plain_rows(by_class)
    state = by_image.state_at(0, 2)
    by_class.load_state_dict(state)
    assert [[int(r) for r in batch] for batch in by_class] == plain_rows(by_image)[2:]
    said = refusal_of(PKSampler(LABELS, 3, 2).load_state_dict, state)
    assert "the state was saved with confusion=" in said


@pytest.mark.parametrize("world_size", [1, 2])
def test_confusable_classes_within_super_labels_and_groups(world_size):
    labels = np.repeat(np.arange(60), 4)
    supers = labels % 2
    directions = families(60, each=6)
    options = {"confusion": directions, "confusion_share": 1}
    by_super = ranked(world_size, labels, 3, 2, super_labels=supers, **options) if world_size == 1 else []
    by_group = ranked(world_size, labels, 3, 2, pure_groups=supers, **options)
    for steps in (by_super, by_group):
        for step in steps:
            assert all(len({supers[row] for row in batch}) == 1 for batch in step)
            assert len({labels[row] for row in chain(*step)}) == 3 * world_size
    near = [
        np.mean([len({labels[row] // 6 for row in batch}) for step in steps for batch in step])
        for steps in (by_super, by_group)
        if steps
    ]
    assert max(near) < 2  # of three classes; by chance some 2.8 families


def test_a_group_without_a_step_among_confusable_classes():
    options = {"pure_groups": SUPERS, "group_shares": [1] + [1e-9] * 4, "epoch_length": 3}
    sampler = PKSampler(LABELS, 2, 2, confusion=families(10, each=2), **options)
    assert {SUPERS[row] for batch in plain_rows(sampler) for row in batch} == {"a"}


# What does not go together.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": "whole"}, "PKSampler(k='whole'): expected one of 'all'"),
        ({"spread_pairs": True}, "expected super_labels and supers_per_batch=2 beside it"),
        ({"short_supers": "repeat"}, "PKSampler(short_supers='repeat'): expected super_labels beside it"),
        ({"group_shares": {"a": 1}}, "PKSampler(group_shares='<shares>'): expected pure_groups beside it"),
        ({"super_labels": SUPERS, "pure_groups": SUPERS}, "expected no super_labels beside it"),
        ({"super_labels": SUPERS, "class_weights": {0: 1}}, "expected no super_labels or pure_groups"),
        ({"class_weights": {0: 0}}, "PKSampler(class_weights=0): expected"),
        ({"class_weights": {0: 1.7e308, 1: 1.7e308}}, "expected a finite number from 1e-100 to 1e+100"),
        ({"class_weights": [math.nan] * 10}, "PKSampler(class_weights=nan): expected"),
        ({"p": 1, "k": 99, "short_classes": "skip", "pure_groups": SUPERS}, "; give a group more classes or"),
        ({"class_weights": {99: 1}}, "PKSampler(class_weights=99): expected names among [0, 1, 2]"),
        ({"class_weights": [1, 2]}, "array of shape (2,)'): expected a dict, or 10 numbers"),
        ({"pure_groups": SUPERS, "group_shares": {"a": 1}}, "nothing for 'b'"),
        (
            {"pure_groups": SUPERS[1:]},
            "PKSampler(pure_groups='46 groups'): expected one for each of the 47 images",
        ),
        ({"confusion": np.ones((3, 2))}, "expected an array of floats [47, d], one row an image, or [10, d]"),
        ({"confusion": np.full((10, 2), np.nan)}, "NaN or infinite numbers in 10 of 10 classes"),
        (
            {"confusion": np.ones((10, 2)), "confusion_share": 0},
            "expected a finite number above 0 and at most 1",
        ),
        ({"confusion_share": 0.5}, "PKSampler(confusion_share=0.5): expected confusion beside it"),
        ({"p": 1, "confusion": np.ones((10, 2))}, "expected at least two classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:PKSampler.p=1")
def test_arguments_that_do_not_go_together(arguments, said):
    assert said in refusal_of(PKSampler, **{"labels": LABELS, "p": 2, "k": 2} | arguments)
