"""Tuples that a miner of ours gave are known again, and nothing else is taken for them."""

from dataclasses import dataclass

import pytest
import torch

from tercet.core.indices import Pairs, Triplets
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.miners.angular import AngularMiner
from tercet.miners.batch_all import BatchAll
from tercet.miners.distance_weighted import DistanceWeighted
from tercet.miners.easy_hard import EasyHard
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tercet.miners.whole_batch import HDC, UniformHistogram
from tercet.pairwise import mined
from tercet.pairwise.mined import is_remembered, mined_rows
from tests.helpers import points

LABELS = torch.arange(12) % 3
MINERS = [
    BatchAll(),
    BatchHard(),
    SemiHard(),
    EasyHard(),
    EasyPositive(),
    HardestN(),
    DistanceWeighted(),
    AngularMiner(),
    HDC(),
    UniformHistogram(),
    MultiSimilarityMiner(),
    PairMargin(),
]


def known(tuples, rows=12, columns=12):
    return is_remembered(tuples, rows, columns)


@pytest.mark.parametrize("miner", MINERS)
def test_what_a_miner_gave_is_known_and_taken_as_it_is(miner):
    x = points(12)
    found = miner(x, LABELS)
    assert known(found)
    assert known(tuple(found))
    assert all(a is b for a, b in zip(mined_rows(found, 12, 12, x.device), found, strict=True))
    assert known(miner(x[:0], LABELS[:0]), 0, 0)


def test_other_sizes_copies_and_changes_are_not_known():
    found = BatchHard()(points(12), LABELS)
    assert not known(found, 12, 11)
    assert not known(found, 11, 12)
    assert not known([index.clone() for index in found])
    assert not known([index[:] for index in found])
    assert not known((*found[:2], found[1]))
    assert not known((found[0], found[2], found[1]))
    found.negative[0] = 99
    assert not known(found)
    with pytest.raises(ValueError, match=r"mined='row 99'"):
        TripletMargin()(points(12), LABELS, found)


def test_sides_of_two_miners_are_not_known_together():
    near, far = (PairMargin(0.0, bound)(points(12), LABELS) for bound in (1.5, 9.0))
    assert not known(Pairs(*near[:2], *far[2:]))
    assert known(far)
    mixed = Pairs(far[2], far[3], far[2], far[3])
    with pytest.raises(ValueError, match=r"listed as positive or as negative, not as both"):
        Contrastive()(points(12), LABELS, mixed)


@dataclass(frozen=True)
class Beyond(BatchHard):
    """A rule of one's own, and a wrong one."""

    def select(self, pairwise, step):
        a, p, n = super().select(pairwise, step)
        return Triplets(a, p, n + 100)


def test_a_rule_of_ones_own_is_checked():
    found = Beyond()(points(12), LABELS)
    assert not known(found)
    with pytest.raises(ValueError, match=r"rows below 12"):
        TripletMargin()(points(12), LABELS, found)


def test_what_is_gone_is_forgotten():
    before = dict(mined._REMEMBERED)
    found = BatchHard()(points(12), LABELS)
    assert len(mined._REMEMBERED) == len(before) + 1
    del found
    assert before.keys() == mined._REMEMBERED.keys()


def test_under_inference_mode_nothing_is_noted():
    with torch.inference_mode():
        found = BatchHard()(points(12), LABELS)
        assert not known(found)
        assert TripletMargin()(points(12), LABELS, found).ndim == 0
