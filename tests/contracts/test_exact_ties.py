"""Squared distances and cosines are sums of squared differences, not squares of roots.

On a grid they are exact, so bounds that distances meet are decided alike by every miner and head, in float32
and float64, listed or not, whichever way they are computed.
"""

import pytest
import torch

from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.metrics.mining_stats import describe
from tercet.metrics.precision import map_at_r
from tercet.metrics.retrieval import recall_at_k
from tercet.miners.batch_all import BatchAll
from tercet.miners.easy_hard import EasyHard
from tercet.miners.hard import EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tercet.miners.whole_batch import HDC
from tercet.pairwise.budget import override
from tercet.pairwise.differences import pair_squares, squares_by_differences
from tercet.pairwise.distances import as_distance, exact, exact_pairs
from tercet.pairwise.euclidean import centre_of, fast_entries, fast_tile
from tests.contracts.heads import gradient_of
from tests.contracts.miners import as_sets
from tests.helpers import as_set
from tests.oracles import figures
from tests.oracles import triplets as reference

DTYPES = [torch.float32, torch.float64]


def grid(n, d, seed=0, largest=3):
    return torch.randint(0, largest + 1, (n, d), generator=torch.Generator().manual_seed(seed))


def axes(n, d, seed=0):
    """Multiples of ±e_i: their cosines are −1, 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 4, (n,), generator=g) * (1 - 2 * torch.randint(0, 2, (n,), generator=g))
    return torch.zeros(n, d).long().scatter_(1, torch.randint(0, d, (n, 1), generator=g), sizes[:, None])


BATCHES = {"squared_euclidean": grid(40, 6), "cosine": axes(40, 3)}
LABELS = torch.arange(40) % 5


def true_table(x, name):
    """Distances in whole numbers, halves for cosines."""
    if name == "cosine":
        x = x.sign()
    return ((x[:, None] - x[None]) ** 2).sum(2).double() / (2 if name == "cosine" else 1)


def test_a_negative_a_whole_margin_farther_is_no_triplet():
    x, labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0, 1])
    for dtype in DTYPES:  # D(a,p) = 1, D(a,n) = 2, m = 1
        found = as_set(BatchAll(margin=1.0, distance="squared_euclidean")(x.to(dtype), labels))
        assert found == {(1, 0, 2)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", BATCHES)
@pytest.mark.parametrize("bound", [0.0, 1.0, 2.0])
def test_miners_decide_at_a_bound_as_whole_numbers_do(distance, dtype, bound):
    x = BATCHES[distance]
    d, sides = true_table(x, distance).tolist(), reference.relation(LABELS)
    options = {"distance": distance}
    for miner, expected in (
        (BatchAll(margin=bound, **options), reference.batch_all(d, *sides, bound)),
        (SemiHard(margin=bound, **options), reference.semi_hard(d, *sides, bound)),
        (
            SemiHard(margin=bound, negatives="all", **options),
            reference.semi_hard(d, *sides, bound, negatives="all"),
        ),
        (EasyPositive(**options), reference.easy_positive(d, *sides)),
        (
            EasyHard("hard", "hard", negative_k=2, negative_range=(bound, 2.0), **options),
            reference.easy_hard(d, *sides, "hard", "hard", negative_k=2, negative_range=(bound, 2.0)),
        ),
        (
            EasyHard("semi_hard", "easy", margin=bound, positive_range=(None, bound), **options),
            reference.easy_hard(d, *sides, "semi_hard", "easy", margin=bound, positive_range=(None, bound)),
        ),
        (HardestN(k=3, **options), reference.hardest_n(d, *sides, 3)),
    ):
        assert as_set(miner(x.to(dtype), LABELS)) == expected
    for miner, expected in (
        (MultiSimilarityMiner(bound, **options), reference.multi_similarity(d, *sides, bound)),
        (HDC(0.3, **options), reference.hardest_share(d, *sides, 0.3)),
        (PairMargin(bound, bound, **options), reference.pair_margin(d, *sides, bound, bound)),
    ):
        assert as_sets(miner(x.to(dtype), LABELS)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", BATCHES)
@pytest.mark.parametrize("bound", [0.0, 1.0, 2.0])
def test_heads_count_as_active_what_miners_find(distance, dtype, bound):
    """All and listed, a loss a triplet, and what `describe` says of the list."""
    x = BATCHES[distance].to(dtype)
    mined = BatchAll(margin=bound, distance=distance)(x, LABELS)
    every = BatchAll()(x, LABELS)
    head = TripletMargin(bound, distance=distance)
    assert torch.equal(head(x, LABELS), head(x, LABELS, mined))
    assert torch.equal(head(x, LABELS), head(x, LABELS, every))
    single = TripletMargin(bound, distance=distance, reduction="none")
    assert (single(x, LABELS, every) > 0).sum() == mined.count
    assert describe(x, LABELS, every, margin=bound, distance=distance)["active"] * every.count == mined.count
    pairs = PairMargin(bound, bound, distance=distance)(x, LABELS)
    contrastive = Contrastive(bound, bound, distance=distance)
    assert torch.equal(contrastive(x, LABELS), contrastive(x, LABELS, pairs))
    margin = MarginLoss(0.0, bound, distance=distance)
    assert torch.equal(margin(x, LABELS), margin(x, LABELS, pairs))


def compare(head, x, mined, near):
    """Loss and gradient of all are those of the list."""
    for u, v in zip(gradient_of(head, x, LABELS), gradient_of(head, x, LABELS, mined=mined), strict=True):
        torch.testing.assert_close(u, v, **near)


DIRECTIONS = {
    "a grid": grid(40, 3, 3).double(),
    "a grid about 0": grid(40, 3, 4, 2).double() - 1,
    "duplicates": torch.randn(6, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[
        torch.arange(40) % 7 % 6
    ],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("few", [0, 32], ids=["by bucket", "by positive"])
@pytest.mark.parametrize("bound", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", DIRECTIONS)
@pytest.mark.parametrize("distance", BATCHES)
def test_heads_decide_ties_that_rounding_blurs_as_miners_do(distance, rows, bound, few, dtype):
    """Directions of whole numbers, and duplicates: ties that no product sees."""
    x = DIRECTIONS[rows].to(dtype)
    if distance == "squared_euclidean":
        x = torch.nn.functional.normalize(x)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    mined = BatchAll(margin=bound, distance=distance)(x, LABELS)
    for power in (1, 2):
        head = TripletMargin(bound, distance=distance, power=power)
        with override(positive_passes=few):
            compare(head, x, mined, near)
    pairs = PairMargin(bound, bound, distance=distance)(x, LABELS)
    for head in (Contrastive(bound, bound, distance=distance), MarginLoss(0.0, bound, distance=distance)):
        compare(head, x, pairs, near)


@pytest.mark.parametrize("distance", BATCHES)
def test_metrics_rank_by_sums_of_squares(distance):
    x, d = BATCHES[distance], true_table(BATCHES[distance], distance).tolist()
    every = figures.ranked_ties(d, *reference.relation(LABELS))
    found = [sum(m for m, _ in ties) for ties in every]
    average = figures.mean(
        figures.expected_precision_sum(ties, r) / r for ties, r in zip(every, found, strict=True)
    )
    recall = figures.mean(figures.chance_of_hit(ties, 1) for ties in every)
    for dtype in DTYPES:
        assert map_at_r(x.to(dtype), LABELS, distance=distance) == pytest.approx(average, rel=1e-12)
        assert recall_at_k(x.to(dtype), LABELS, distance=distance) == pytest.approx(recall, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "k", "largest", "offset"),
    [(50, 8, 100, 0), (30, 128, 31, 0), (9, 1, 1000, 0), (9, 33, 7, 0), (9, 3, 3, 10_000), (5, 0, 1, 0)],
)
def test_on_a_grid_products_and_differences_are_whole_numbers(n, k, largest, offset, dtype):
    x, y = grid(n, k, 1, largest) + offset, grid(n // 2, k, 2, largest) + offset + 5
    true = ((x[:, None] - y[None]) ** 2).sum(2).to(dtype)
    u, v = x.to(dtype), y.to(dtype)
    i, j = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(y))).T
    assert torch.equal(squares_by_differences(u, v), true)
    assert torch.equal(pair_squares(u[i], v[j]), true.flatten())
    assert torch.equal(fast_tile(u, v, root=False), true)
    assert torch.equal(fast_tile(u, v, root=True), true.sqrt())
    assert torch.equal(fast_entries(u, v, i, j, root=False), true.flatten())


def test_a_centre_is_on_the_grid_of_both_sides_or_the_mean():
    x, y = grid(7, 3).float(), grid(9, 3, 1).float()
    centre = centre_of(x, y)
    assert ((centre * 1024).frac() == 0).all()
    assert torch.allclose(centre, y.mean(0), atol=1e-2)
    assert torch.equal(centre_of(x + 0.3, y), y.mean(0))
    assert torch.equal(centre_of(x, y + 0.3), (y + 0.3).mean(0))
    y[3, 2] = 0.3  # none of the numbers that are looked at first
    assert torch.equal(centre_of(x, y), y.mean(0))
    small = torch.tensor([[1.0], [0.0], [2.0]]) / 2**20  # whose first is the mean
    assert centre_of(small, small).tolist() == [2**-20]


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3, 8, 17, 128])
def test_an_exact_distance_depends_on_its_two_rows_alone(name, k):
    x = torch.randn(70, k, generator=torch.Generator().manual_seed(k))
    metric = as_distance("test", name)
    x = metric.prepare(x)
    table = exact(metric, x, x)
    assert torch.equal(table, table.T)
    i, j = torch.cartesian_prod(torch.arange(70), torch.arange(70)).T
    assert torch.equal(exact_pairs(metric, x[i], x[j]), table.flatten())
    for rows in (slice(0, 1), slice(3, 10), slice(69, 70)):
        assert torch.equal(exact(metric, x[rows], x[5:6]), table[rows, 5:6])
        assert torch.equal(exact_pairs(metric, x[rows], x[rows]), table[rows, rows].diagonal())


def test_numbers_too_small_for_a_grid_have_a_centre():
    for dtype in DTYPES:
        x = torch.tensor([[torch.finfo(dtype).tiny * torch.finfo(dtype).eps], [0.0]], dtype=dtype)
        assert centre_of(x, x).isfinite().all()
        assert fast_tile(x, x, root=False).tolist() == [[0, 0], [0, 0]]


def test_a_table_in_several_blocks_is_the_same():
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    whole = squares_by_differences(x, x)
    for numbers in (1, 50, 1000):
        with override(summed_numbers=numbers):
            assert torch.equal(squares_by_differences(x, x), whole)
