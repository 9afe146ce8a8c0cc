"""The split for validation: no image twice, no class twice, the shares, and nothing else that matters."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.data.catalog.split import train_validation_split
from tercet.data.triplets.random import RandomTriplets

many = st.lists(st.integers(0, 6), min_size=2, max_size=60)
fractions = st.floats(0.01, 0.99)


def nearest(share):
    """The nearest whole number, the even one of two."""
    return round(share)


@settings(deadline=None, max_examples=200)
@given(labels=many, fraction=fractions, seed=st.integers(0, 99))
def test_by_image_each_class_gives_its_share_and_no_image_is_in_both(labels, fraction, seed):
    wanted = {label: min(nearest(fraction * n), n - 1) for label, n in Counter(labels).items()}
    if not any(wanted.values()):
        with pytest.raises(ValueError, match="raise fraction or split by class"):
            train_validation_split(labels, fraction, seed)
        return
    train, validation = train_validation_split(labels, fraction, seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train)
    assert validation.tolist() == sorted(validation)
    found = Counter(labels[row] for row in validation)
    assert all(found[label] == count for label, count in wanted.items())
    assert {labels[row] for row in train} == set(labels)


@settings(deadline=None, max_examples=100)
@given(labels=many.filter(lambda labels: len(set(labels)) > 1), fraction=fractions, seed=st.integers(0, 99))
def test_by_class_no_class_is_in_both(labels, fraction, seed):
    train, validation = train_validation_split(labels, fraction, seed, by="class")
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    sides = [{labels[row] for row in rows} for rows in (train, validation)]
    assert not sides[0] & sides[1]
    classes = len(set(labels))
    assert len(sides[1]) == min(max(nearest(fraction * classes), 1), classes - 1)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 3), min_size=40, max_size=60).filter(
        lambda labels: len(set(labels)) == 4 and min(Counter(labels).values()) > 4
    ),
    by=st.sampled_from(["image", "class"]),
)
def test_no_triplet_of_one_side_holds_an_image_of_the_other(labels, by):
    rows = train_validation_split(labels, 0.5, by=by)
    sides = []
    for side in rows:
        triplets = RandomTriplets(np.array(labels)[side], 3, 3)[:]
        sides.append({row for column in triplets for row in side[column].tolist()})
        assert sides[-1] <= set(side.tolist())
    assert not sides[0] & sides[1]


def test_every_choice_is_as_likely():
    by_image, by_class = Counter(), Counter()
    for seed in range(2000):
        rows = train_validation_split([0] * 5 + [1] * 6, 0.4, seed)[1].tolist()
        by_image[tuple(row for row in rows if row < 5)] += 1
        by_class[tuple(train_validation_split([0, 1, 2, 3, 4], 0.4, seed, by="class")[1].tolist())] += 1
    for found in (by_image, by_class):
        assert set(found) == set(combinations(range(5), 2))
        assert stats.chisquare(list(found.values())).pvalue > 1e-4


def test_the_kind_of_the_labels_does_not_matter():
    labels = [0, 1, 2, 1, 0, 2, 1, 0] * 3
    rows = [column.tolist() for column in train_validation_split(labels, 0.3, 5)]
    for other in ([f"c{label}" for label in labels], np.array(labels, np.uint8), torch.tensor(labels)):
        assert [column.tolist() for column in train_validation_split(other, 0.3, 5)] == rows
    assert [column.tolist() for column in train_validation_split(labels, 0.3, 6)] != rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([0, 0, 1], 0), "(fraction=0.0): expected a number between 0 and 1, neither of them"),
        (([0, 0, 1], 1), "(fraction=1.0): expected a number between 0 and 1, neither of them"),
        (([0, 0, 1], 1.5), "(fraction=1.5): expected a finite number from 0 to 1"),
        (([0, 0, 1], 0.5, -1), "(seed=-1): expected a whole number of at least 0"),
        (
            ([0, 0, 1], 0.5, 0, "classes"),
            "(by='classes'): expected one of 'image', 'class'; did you mean 'class'?",
        ),
        (([0, 0], 0.5, 0, "class"), "(labels='2 images of 1 class'): expected two classes or more to part"),
        (
            ([0, 0, 1], 0.2),
            "(labels='3 images of 2 classes'): expected a class with images to spare; "
            "the largest has 2 images; raise fraction or split by class",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, said):
    with pytest.raises(ValueError, match=r".") as raised:
        train_validation_split(*arguments)
    assert str(raised.value) == f"train_validation_split{said}"
