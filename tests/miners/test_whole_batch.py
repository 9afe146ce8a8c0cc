"""The hardest share of a batch's pairs, and pairs of all distances alike."""

import pytest
import torch

from tercet.core.indices import References
from tercet.miners.whole_batch import HDC, UniformHistogram
from tests.contracts.miners import BATCHES, as_sets, every_batch
from tests.helpers import points
from tests.miners.test_pairs import check_equal, check_valid
from tests.oracles import triplets as reference

every_share = pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
MINERS = {
    "HDC": HDC(0.4),
    "UniformHistogram": UniformHistogram(5, 2, 3),
}
every_miner = pytest.mark.parametrize("name", MINERS)


@every_share
@every_batch
def test_the_hardest_share_equals_the_loop(batch, share):
    x, labels = BATCHES[batch]
    pairs = HDC(share)(x, labels)
    check_valid(pairs)
    d = reference.distances("euclidean", x)
    check_equal(pairs, reference.hardest_share(d, *reference.relation(labels), share))


@pytest.mark.parametrize("r", [0, 1, 30])
@every_share
def test_the_hardest_share_of_references(share, r):
    x, labels, ids = points(12, 6), torch.arange(12) % 4, torch.arange(12)
    ref = References(points(r, 6, seed=5), torch.arange(r) % 5, torch.arange(r))
    d = reference.distances("cosine", x, ref.embeddings)
    sides = reference.relation(labels, ref.labels, ids, ref.ids)
    pairs = HDC(share, distance="cosine")(x, labels, ids=ids, ref=ref)
    check_equal(pairs, reference.hardest_share(d, *sides, share))


@pytest.mark.parametrize("options", [(1, 2, 3), (5, 2, 4), (100, 1, 1), (7, 1000, 1000)], ids=str)
@every_batch
def test_each_bin_gives_as_many_pairs_as_it_may(batch, options):
    x, labels = BATCHES[batch]
    pairs = UniformHistogram(*options)(x, labels)
    check_valid(pairs)
    d = reference.distances("euclidean", x)
    for found, side, most in zip(as_sets(pairs), reference.relation(labels), options[1:], strict=True):
        assert found <= side
        for each in reference.bins_of(d, side, options[0]):
            assert len(found & each) == min(most, len(each))


def test_every_pair_of_a_bin_is_drawn_equally_often():
    x, labels = BATCHES["uneven positives per anchor"]
    side = reference.relation(labels)[1]
    bins = reference.bins_of(reference.distances("euclidean", x), side, 4)
    seen = dict.fromkeys(side, 0)
    for step in range(200):
        for pair in as_sets(UniformHistogram(4, neg_per_bin=5)(x, labels, step=step))[1]:
            seen[pair] += 1
    for each in bins:
        expected = 200 * min(5, len(each)) / max(1, len(each))
        chi = sum((seen[pair] - expected) ** 2 / expected for pair in each)
        assert chi < len(each) + 5 * (2 * len(each)) ** 0.5


def test_the_draw_is_a_function_of_the_seed_the_step_and_the_batch():
    x, labels = BATCHES["ties"]
    draw = lambda seed=0, step=0, **more: str(  # noqa: E731
        as_sets(UniformHistogram(4, 2, 2, seed=seed)(x, labels, step=step, **more))
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert draw() == draw()
    assert len({draw(), draw(1), draw(0, 1), draw(ids=torch.arange(14) + 1)}) == 4
    assert torch.equal(before, torch.get_rng_state())


@every_batch
@every_miner
def test_the_tile_height_changes_nothing(name, batch):
    x, labels = BATCHES[batch]
    whole = MINERS[name](x, labels)
    for height in (1, 2, 5):
        options = {**vars(MINERS[name]), "tile_rows": height}
        for u, v in zip(whole, type(MINERS[name])(**options)(x, labels), strict=True):
            assert torch.equal(u, v)


@every_miner
def test_at_most_max_count_of_each_kind_are_drawn(name):
    x, labels = BATCHES["ties"]
    every = as_sets(MINERS[name](x, labels))
    few = type(MINERS[name])(**{**vars(MINERS[name]), "max_count": 3})(x, labels)
    check_valid(few)
    for drawn, all_of_them in zip(as_sets(few), every, strict=True):
        assert len(drawn) == min(3, len(all_of_them))
        assert drawn <= all_of_them


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=rf"HDC\(share={share}\): expected a"):
        HDC(share)


@pytest.mark.parametrize("name", ["bins", "pos_per_bin", "neg_per_bin"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(ValueError, match=rf"UniformHistogram\({name}=0\): expected a whole number from 1"):
        UniformHistogram(**{name: 0})
