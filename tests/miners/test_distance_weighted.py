import pytest
import torch
from torch.nn.functional import normalize

from tercet.core.indices import References
from tercet.miners.distance_weighted import DistanceWeighted
from tests.contracts.miners import BATCHES, check_valid, every_batch
from tests.helpers import as_set, points
from tests.oracles import triplets as reference


@every_batch
def test_it_draws_one_negative_for_each_anchor_and_positive(batch):
    x, labels = BATCHES[batch]
    mined = DistanceWeighted(nonzero_loss_cutoff=2.0)(x, labels)
    check_valid(mined, labels)
    positive, negative = reference.relation(labels)
    d = reference.distances("cosine", x)
    possible = {a for a, n in negative if 2 * d[a][n] < 4.0}
    assert {(a, p) for a, p, _ in as_set(mined)} == {(a, p) for a, p in positive if a in possible}


@every_batch
def test_it_does_not_depend_on_the_tile_height(batch):
    whole = DistanceWeighted()(*BATCHES[batch])
    for height in (1, 2, 5, 100):
        assert all(
            torch.equal(u, v)
            for u, v in zip(whole, DistanceWeighted(tile_rows=height)(*BATCHES[batch]), strict=True)
        )


@pytest.mark.parametrize("dimensions", [3, 8])
def test_negatives_come_as_often_as_the_formula_says(dimensions):
    x, y = normalize(points(1, dimensions, seed=3)), normalize(points(10, dimensions, seed=4))
    d = [(2 * each) ** 0.5 for each in reference.distances("cosine", x, y)[0]]
    expected = torch.tensor(reference.distance_weights(d, dimensions, 0.5, 1.4)) * 4000
    ref = References(
        torch.cat([y, x.expand(500, -1)]), torch.tensor([1] * 10 + [0] * 500)
    )  # 500 draws a call
    seen = torch.zeros(10)
    for step in range(8):
        mined = DistanceWeighted()(x, torch.tensor([0]), ref=ref, step=step)
        assert mined.count == 500
        seen += mined.negative.bincount(minlength=10)
    possible = expected > 0
    assert (seen[~possible] == 0).all()
    chi = ((seen - expected)[possible].square() / expected[possible]).sum()
    assert chi < 2 * possible.sum() + 20


def test_many_dimensions_do_not_overflow():
    x, labels = normalize(points(40, 2000, seed=1)), torch.arange(40) // 4
    near = normalize(x + 0.3 * points(1, 2000, seed=2) * 2)
    mined = DistanceWeighted()(near, labels)
    check_valid(mined, labels)
    assert mined.count > 0


def test_negatives_beyond_the_cutoff_are_never_drawn_and_may_leave_no_triplet():
    x = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [-1.0, 0, 0], [0, 1.0, 0]])
    labels = torch.tensor([0, 0, 1, 2])
    assert DistanceWeighted(nonzero_loss_cutoff=1.0)(x, labels).count == 0
    mined = DistanceWeighted(nonzero_loss_cutoff=1.5)(x, labels)
    assert set(mined.negative.tolist()) == {3}


def test_only_directions_count_and_references_are_drawn_from():
    x, labels = points(8, 6), torch.arange(8) % 4
    scaled = x * torch.tensor([1.0, 2, 4, 8] * 2)[:, None]  # powers of two change no digit
    assert as_set(DistanceWeighted()(scaled, labels)) == as_set(DistanceWeighted()(x, labels))
    ref = References(points(30, 6, seed=2), torch.arange(30) % 4)
    mined = DistanceWeighted()(x, labels, ref=ref)
    check_valid(mined, labels, ref.labels)
    assert mined.negative.max() >= 8
    assert as_set(DistanceWeighted()(x, labels, ref=ref, step=1)) != as_set(mined)


def test_cutoffs_out_of_order_are_refused():
    with pytest.raises(
        ValueError, match=r"cutoff=1.5\): expected more than 0 and less than nonzero_loss_cutoff=1.4"
    ):
        DistanceWeighted(cutoff=1.5)
    with pytest.raises(ValueError, match=r"nonzero_loss_cutoff=3\): expected a finite number from 0 to 2"):
        DistanceWeighted(nonzero_loss_cutoff=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_negative_at_the_very_bound_is_drawn_at_no_tile_height(dtype):
    x = torch.randint(-1, 2, (120, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(120) % 5
    make = lambda height: DistanceWeighted(nonzero_loss_cutoff=1.0, tile_rows=height)(x, labels)  # noqa: E731
    whole = make(None)
    unit = torch.nn.functional.normalize(x.double())
    d = (unit[whole.anchor] - unit[whole.negative]).norm(dim=1)
    assert whole.count
    assert (d < 1 - 1e-6).all()
    for height in (1, 2, 7):
        assert all(torch.equal(u, v) for u, v in zip(whole, make(height), strict=True))
