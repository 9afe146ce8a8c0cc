import pytest
import torch

from tercet.core.indices import References
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import PairMargin
from tercet.pairwise.budget import override
from tercet.pairwise.distances import Mahalanobis
from tests.contracts.miners import (
    BATCHES,
    check_equal,
    check_tile_invariant,
    every_batch,
)
from tests.helpers import as_set, grid, points, unchecked
from tests.oracles import triplets as reference


def test_a_draw_is_a_function_of_the_seed_the_step_and_the_batch():
    x, labels = BATCHES["ties"]
    draw = lambda seed=0, step=0, labels=labels, **more: as_set(  # noqa: E731
        BatchAll(max_count=20, seed=seed)(x, labels, step=step, **more)
    )
    assert draw() == draw()
    assert (
        len({frozenset(each) for each in (draw(), draw(1), draw(0, 1), draw(ids=torch.arange(14) + 1))}) == 4
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("margin", [None, 0.5])
def test_every_triplet_is_drawn_equally_often(margin):
    x, labels = BATCHES["uneven positives per anchor"]
    seen = {triplet: 0 for triplet in as_set(BatchAll(margin)(x, labels))}
    for step in range(100):
        for triplet in as_set(BatchAll(margin, max_count=10)(x, labels, step=step)):
            seen[triplet] += 1
    expected = 1000 / len(seen)
    chi = sum((count - expected) ** 2 / expected for count in seen.values())
    assert abs(chi - len(seen)) < 5 * (2 * len(seen)) ** 0.5


@every_batch
@pytest.mark.parametrize("margin", [None, 0.5])
def test_triplets_are_counted_without_a_list(margin, batch):
    count = BatchAll(margin, max_count=1).count(*BATCHES[batch])
    assert count == BatchAll(margin)(*BATCHES[batch]).count


@pytest.fixture
def few_bounds():
    with override(sorted_bounds=8):
        yield


@pytest.fixture(params=[64, 200, 2**20])
def parts(request):
    with override(gathered_keys=request.param, numpy_numbers=50, masked_numbers=50):
        yield


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("options", [{}, {"margin": None}, {"fallback": "easiest"}], ids=str)
@pytest.mark.usefixtures("width", "few_bounds")
def test_rows_asked_often_are_sorted_once_and_mined_alike(options, spread):
    """Two classes of 20: so many positives an anchor that its negatives are sorted."""
    x = grid(40, 2, seed=5) + spread * points(40, 2, seed=6)
    labels = torch.arange(40) % 2
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    expected = reference.semi_hard(d, *reference.relation(labels), **options)
    check_equal(SemiHard(**options)(x, labels), expected)
    check_tile_invariant(lambda height: SemiHard(**options, tile_rows=height)(x, labels), heights=(13,))


@pytest.mark.parametrize("options", [{"fallback": "easiest"}, {"margin": None}], ids=str)
@pytest.mark.usefixtures("width", "parts")
def test_pairs_and_tables_taken_in_several_parts_are_mined_alike(options):
    """Parts of unequal heights, in room that is kept and grows."""
    x, labels = points(41, 3, seed=7), torch.arange(41) % 7
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    expected = reference.semi_hard(d, *reference.relation(labels), **options)
    check_equal(SemiHard(**options)(x, labels), expected)
    check_tile_invariant(lambda height: SemiHard(**options, tile_rows=height)(x, labels), heights=(13,))


def test_a_row_of_other_layout_or_precision_is_still_the_same_row():
    x, labels = points(40, 7, seed=9), torch.arange(40) % 4
    turned, ref = x.T.contiguous().T, References(x, labels)
    for distance in ("euclidean", "cosine"):
        for batch in (turned, x.double()):
            pairs = PairMargin(0.0, 1e-30, distance=distance)(batch, labels, ref=ref)
            assert not (pairs.pos_anchor == pairs.positive).any()
        mined = SemiHard(distance=distance)(turned, labels)
        assert all(
            torch.equal(u, v) for u, v in zip(mined, SemiHard(distance=distance)(x, labels), strict=True)
        )
    mapped = Mahalanobis(points(7, 5, seed=10))
    for n in (1, 3, 40):
        pairs = PairMargin(0.0, 1e-30, distance=mapped)(x[:n], labels[:n], ref=ref)
        assert not (pairs.pos_anchor == pairs.positive).any()


def test_what_underflows_is_decided_by_differences_too():
    x, labels = points(60, 1, seed=11) * 3e-21, torch.arange(60) % 26
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    check_equal(BatchHard()(x, labels), reference.batch_hard(d, *reference.relation(labels)))


def test_the_largest_embeddings_let_through_are_mined():
    s = 2e18
    x = torch.tensor([[s]] * 19 + [[-s], [-0.75 * s]])
    pairs = PairMargin(1e3, 1.0)(x, torch.zeros(21).long())
    expected = {(i, j) for i in range(21) for j in range(21) if x[i] != x[j]}
    assert set(zip(pairs.pos_anchor.tolist(), pairs.positive.tolist(), strict=True)) == expected


def test_more_negatives_asked_for_than_there_are():
    x, labels = points(9, 6), torch.arange(9) % 3
    every = HardestN(k=6)(x, labels)
    for k in (7, 10**6, 2**62):
        assert all(torch.equal(u, v) for u, v in zip(HardestN(k=k)(x, labels), every, strict=True))
    assert HardestN(k=2, skip=2**62)(x, labels).count == 0


def test_a_count_in_a_compiled_step_is_the_count():
    x, labels = BATCHES["P × K"]
    miner = BatchAll(margin=0.5)
    compiled = torch.compile(lambda x: miner.count(x * 1, labels), backend="eager")
    assert compiled(x) == miner.count(x, labels)


def test_a_margin_that_is_none_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"SemiHard\(margin=-0.1\): expected a finite number of at least 0"):
        SemiHard(margin=-0.1)
    with pytest.raises(ValueError, match=r"BatchAll\(margin=nan\): expected a finite number"):
        BatchAll(margin=float("nan"))
    with pytest.raises(ValueError, match=r"SemiHard\(fallback='easyest'\).*did you mean 'easiest'\?"):
        SemiHard(fallback="easyest")
    with pytest.raises(ValueError, match=r"SemiHard\(negatives='every'\): expected one of 'nearest', 'all'"):
        SemiHard(negatives="every")
    with pytest.raises(ValueError, match=r"EasyPositive\(negative='semihard'\).*did you mean 'semi_hard'\?"):
        EasyPositive(negative="semihard")
    with pytest.raises(ValueError, match=r"HardestN\(k=0\): expected a whole number of at least 1"):
        HardestN(k=0)
    with pytest.raises(ValueError, match=r"HardestN\(skip=-1\): expected a whole number of at least 0"):
        HardestN(skip=-1)
    with pytest.raises(ValueError, match=r"BatchHard\(max_count=0\): expected a whole number of at least 1"):
        BatchHard(max_count=0)
    with unchecked(), pytest.raises(ValueError, match=r"BatchAll\(margin='all'\): expected a finite number"):
        BatchAll(margin="all")


def test_a_promise_of_complete_batches_is_held_to():
    x = points(12, 4)
    for n in (0, 12):
        labels = torch.arange(n) // 3
        promised = BatchHard(complete=True)(x[:n], labels)
        assert all(torch.equal(u, v) for u, v in zip(promised, BatchHard()(x[:n], labels), strict=True))
    for labels, lacking in {(0, 0, 0, 1): 1, (0, 0, 0, 0): 4, (0, 1, 2, 2): 2}.items():
        text = (
            rf"BatchHard\(labels='{lacking} of 4 rows lack one of them'\): expected a positive and a negative"
        )
        with pytest.raises(ValueError, match=text):
            BatchHard(complete=True)(x[:4], torch.tensor(labels))
    with pytest.raises(ValueError, match=r"BatchHard\(max_count=3\): expected None with complete=True"):
        BatchHard(complete=True, max_count=3)


def test_semi_hard_is_strict_on_both_sides():
    x, labels = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [1.5]]), torch.tensor([0, 0, 1, 1, 1])
    mined = SemiHard(margin=1.0)(x, labels)
    assert (0, 1, 4) in as_set(mined)  # not 2, which is as far as the positive, nor 3, a whole margin farther
    assert (0, 1, 4) not in as_set(SemiHard(margin=0.5)(x, labels))


def test_ties_go_to_the_lower_row():
    x, labels = torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    assert as_set(BatchHard()(x, labels)) == {
        (0, 2, 1),
        (1, 3, 0),
        (2, 0, 1),
        (3, 1, 0),
        (4, 0, 1),
        (5, 1, 0),
    }
    assert {n for _, _, n in as_set(SemiHard(fallback="easiest")(x, labels))} == {0, 1}
