"""Triplets by their angle at the negative, against a loop over centers."""

import math

import pytest
import torch

from tercet.core.indices import References
from tercet.miners.angular import AngularMiner
from tercet.pairwise.budget import override
from tests.contracts.miners import (
    BATCHES,
    check_equal,
    check_permutation_equivariant,
    check_tile_invariant,
    check_valid,
    every_batch,
)
from tests.helpers import as_set, points
from tests.oracles import triplets as reference

every_angle = pytest.mark.parametrize("angle", [0.2, math.pi / 9, 0.6, 0.9])


@every_angle
@every_batch
def test_it_is_valid_and_equals_the_loop(batch, angle):
    x, labels = BATCHES[batch]
    mined = AngularMiner(angle)(x, labels)
    check_valid(mined, labels)
    check_equal(mined, reference.angular(x, *reference.relation(labels), angle))
    check_tile_invariant(lambda height: AngularMiner(angle, tile_rows=height)(x, labels))


@every_angle
def test_a_batch_of_several_parts_is_mined_alike(angle):
    x, labels = points(300, 8, seed=4), torch.arange(300) % 100
    with override(tile_bytes=2**16):  # the distances of all columns to each other take more
        mined = AngularMiner(angle)(x, labels)
    assert as_set(mined) == as_set(AngularMiner(angle)(x, labels))
    check_valid(mined, labels)
    assert 0 < mined.count < 300 * 2 * 297
    few = torch.arange(0, 300, 60)
    of_few = {each for each in as_set(mined) if each[0] in few.tolist()}
    positive, negative = reference.relation(labels)
    some = [{pair for pair in side if pair[0] in few.tolist()} for side in (positive, negative)]
    assert of_few == reference.angular(x, *some, angle)


def test_rows_shuffled_and_scaled_are_mined_alike():
    x, labels = BATCHES["P ≠ K, shuffled"]
    check_permutation_equivariant(AngularMiner(0.5), x, labels)
    lengths = torch.linspace(0.5, 2.0, len(x))[:, None]
    check_equal(AngularMiner(0.5)(x * lengths, labels), as_set(AngularMiner(0.5)(x, labels)))


@pytest.mark.parametrize("r", [0, 1, 30])
def test_references_are_positives_and_negatives(r):
    x, labels, ids = points(12, 6), torch.arange(12) % 4, torch.arange(12)
    y, ref_labels = points(r, 6, seed=5), torch.arange(r) % 5
    mined = AngularMiner(0.5)(x, labels, ids=ids, ref=References(y, ref_labels, torch.arange(r)))
    both = torch.cat([x, y])
    positive, negative = reference.relation(labels, ref_labels, ids, torch.arange(r))
    moved = [{(i, j + 12) for i, j in side} for side in (positive, negative)]
    expected = reference.angular(both, *moved, 0.5)
    check_equal(mined, {(a, p - 12, n - 12) for a, p, n in expected})


def test_at_most_max_count_are_drawn():
    x, labels = BATCHES["P ≠ K, shuffled"]
    every, few = AngularMiner()(x, labels), AngularMiner(max_count=5)(x, labels)
    assert few.count == 5
    assert as_set(few) < as_set(every)
    assert as_set(few) != as_set(AngularMiner(max_count=5)(x, labels, step=1))


@pytest.mark.parametrize(("angle", "text"), [(0.0, "above 0"), (-1.0, "above 0"), (1.6, "radians below π/2")])
def test_angles_that_mean_nothing_are_refused(angle, text):
    with pytest.raises(ValueError, match=rf"AngularMiner\(angle={angle}\): expected .*{text}"):
        AngularMiner(angle)


def test_zero_rows_are_equal_to_each_other():
    x, labels = points(12, 3, seed=1), torch.arange(12) % 3
    assert AngularMiner(0.2)(torch.zeros(12, 3), labels).count == 0
    x[6:] = 0
    assert all(min(a, p) < 6 for a, p, _ in as_set(AngularMiner(0.2)(x, labels)))
