import pytest
import torch

from tercet.core.indices import Pairs, References
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tests.contracts.miners import (
    BATCHES,
    PAIR_MINERS,
    as_sets,
    every_batch,
    expected_of,
    make,
    mined_on_a_card,
)
from tests.helpers import points
from tests.oracles import triplets as reference

every_miner = pytest.mark.parametrize("name", PAIR_MINERS)


def check_valid(pairs):
    """int64 rows, sorted by anchor and then by column, none twice."""
    assert isinstance(pairs, Pairs)
    assert all(index.dtype == torch.int64 for index in pairs)
    assert pairs.count == sum(map(len, as_sets(pairs)))
    for side in (pairs[:2], pairs[2:]):
        listed = torch.stack(side).T.tolist()
        assert listed == sorted(listed)


def check_equal(pairs, expected):
    """The same positive pairs, and the same negative pairs."""
    assert as_sets(pairs) == tuple(map(set, expected))


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot"])
@every_batch
@every_miner
@pytest.mark.usefixtures("width")
def test_a_pair_miner_is_valid_and_equals_the_loop(name, batch, distance):
    x, labels = BATCHES[batch]
    pairs = make(name, distance=distance)(x, labels)
    check_valid(pairs)
    check_equal(pairs, expected_of(name, x, labels, distance))


@every_batch
@every_miner
def test_a_pair_miner_does_not_depend_on_the_tile_height(name, batch):
    whole = make(name)(*BATCHES[batch])
    for height in (1, 2, 5, 100):
        assert all(
            torch.equal(u, v)
            for u, v in zip(whole, make(name, tile_rows=height)(*BATCHES[batch]), strict=True)
        )


@pytest.mark.parametrize("r", [0, 1, 30])
@every_miner
def test_references_with_ids(name, r):
    x, labels, ids = points(12, 6), torch.arange(12) % 4, torch.arange(12)
    ref = References(points(r, 6, seed=5), torch.arange(r) % 5, torch.arange(r))
    pairs = make(name, distance="euclidean")(x, labels, ids=ids, ref=ref)
    check_equal(pairs, expected_of(name, x, labels, ids=ids, ref=ref))


@every_miner
def test_at_most_max_count_of_each_kind_are_drawn(name):
    every = as_sets(make(name)(*BATCHES["ties"]))
    few = make(name, max_count=5)(*BATCHES["ties"])
    check_valid(few)
    for drawn, all_of_them in zip(as_sets(few), every, strict=True):
        assert len(drawn) == min(5, len(all_of_them))
        assert drawn <= all_of_them
    again = make(name, max_count=5)(*BATCHES["ties"])
    assert all(torch.equal(u, v) for u, v in zip(few, again, strict=True))


def test_multi_similarity_is_the_papers_rule_on_similarities():
    x, labels = BATCHES["P × K"]
    unit = torch.nn.functional.normalize(x.double())
    s, positive, negative = unit @ unit.T, *reference.relation(labels)
    pulled, pushed = as_sets(MultiSimilarityMiner(0.1)(x.double(), labels))
    assert pulled == {
        (a, p) for a, p in positive if s[a, p] < max(s[a, j] for i, j in negative if i == a) + 0.1
    }
    assert pushed == {
        (a, n) for a, n in negative if s[a, n] > min(s[a, j] for i, j in positive if i == a) - 0.1
    }


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"MultiSimilarityMiner\(epsilon=nan\): expected a finite number"):
        MultiSimilarityMiner(epsilon=float("nan"))
    with pytest.raises(ValueError, match=r"PairMargin\(neg_margin=inf\): expected a finite number"):
        PairMargin(neg_margin=float("inf"))
    with pytest.raises(ValueError, match=r"PairMargin\(distance='cosin'\).*did you mean 'cosine'\?"):
        PairMargin(distance="cosin")


def test_the_checks_can_fail():
    pairs = Pairs(*(torch.tensor([i]) for i in (0, 1, 0, 2)))
    check_valid(pairs)
    check_equal(pairs, ({(0, 1)}, {(0, 2)}))
    for expected in (({(0, 1)}, {(0, 3)}), (set(), {(0, 2)})):
        with pytest.raises(AssertionError):
            check_equal(pairs, expected)
    with pytest.raises(AssertionError):
        check_valid(Pairs(torch.tensor([1, 0]), torch.tensor([0, 1]), pairs[2], pairs[3]))
    with pytest.raises(AssertionError):
        check_valid(Pairs(torch.tensor([0, 0]), torch.tensor([1, 1]), pairs[2], pairs[3]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_miner
@pytest.mark.usefixtures("width")
def test_a_cuda_device_mines_the_pairs_that_the_cpu_does(name):
    x, labels = points(96, 6, seed=12), torch.arange(96) % 12
    check_equal(mined_on_a_card(make(name), x, labels), as_sets(make(name)(x, labels)))
