import pytest
import torch
from torch import nn

from tercet.core.indices import References
from tercet.losses import margin, pair, tile_gradients, triplet
from tercet.losses.distance_gradients import kind_of
from tercet.losses.listwise import InfoNCE
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.pair_weighting import MultiSimilarity
from tercet.losses.softmax import ArcFace
from tercet.losses.tile_gradients import TileLoss, differentiated, loss_from_pair_gradients
from tercet.losses.triplet import TripletMargin
from tercet.pairwise.accumulate import summed
from tercet.pairwise.budget import override
from tercet.pairwise.distances import Mahalanobis, as_distance, negative_cosine
from tercet.pairwise.relations import CrossGroup, Graded, SameLabel, SharedLabel
from tercet.pairwise.tiles import Pairwise
from tests.helpers import double_points as points


class Foreign:
    """A distance of somebody else's, and not the same in both directions."""

    differentiable = True

    def prepare(self, embeddings):
        return embeddings

    def tile(self, x, y):
        return (x[:, None] - 2 * y).square().sum(2)

    def paired(self, x, y):
        return (x - 2 * y).square().sum(1)


DISTANCES = {
    **{name: as_distance("test", name) for name in ("euclidean", "squared_euclidean", "cosine", "dot")},
    "negative cosine": negative_cosine,
    "Mahalanobis": Mahalanobis(torch.eye(6, dtype=torch.float64)[:, :5] * 2),
    "foreign": Foreign(),
}
every_distance = pytest.mark.parametrize("name", DISTANCES)


def batch(kind, n=48):
    x = points(n, 6)
    if kind == "near duplicates":
        x[::2] = x[1::2] + 1e-4 * points(n // 2, 6, seed=1)
    if kind == "half of it collapsed":  # so that some tiles are products and others are not
        x[: n // 2] = x[0] + 1e-3 * points(n // 2, 6, seed=1)
    if kind == "duplicates":
        x[::3] = x[0]
    return x


KINDS = ["spread", "near duplicates", "half of it collapsed", "duplicates"]


def weighted(tile, wanted):
    """Σ of D² of positives and −3 D of negatives, whose slopes are known."""
    positive, negative = tile.positive.double(), tile.negative.double()
    d = tile.distance.double()
    value = (d.square() * positive - 3 * d * negative).sum()
    return TileLoss(value, tile.positive.sum(), (2 * d * positive - 3 * negative).to(tile.distance))


def plain(pairwise, x, y):
    """The same by differences and autograd, in float64."""
    total = 0.0
    for i in range(len(x)):
        d = pairwise.distance.paired(x[i].expand_as(y), y)
        positive, negative = pairwise.sides(torch.tensor([i]))
        total = total + (d.square() * positive[0] - 3 * d * negative[0]).sum()
    return total


def gradients(distance, x, y, dtype, loss, **options):
    """The value, and the gradient by x and by y, which may be x."""
    x = x.to(dtype, copy=True).requires_grad_()
    y = None if y is None else y.to(dtype, copy=True).requires_grad_()
    ref = None if y is None else References(y, torch.arange(len(y)) // 3)
    pairwise = Pairwise("test", x, torch.arange(len(x)) // 4, distance=distance, ref=ref, **options)
    value = loss(pairwise)
    value.backward()
    return value.double(), x.grad.double(), None if y is None else y.grad.double()


@pytest.mark.parametrize("height", [None, 12])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@every_distance
def test_value_and_gradient_are_those_of_differences(name, kind, with_ref, height):
    x, y = batch(kind), torch.cat([batch(kind)[5:30], points(4, 6, seed=2)]) if with_ref else None

    def slow(pairwise):
        return plain(pairwise, pairwise.inputs[0], pairwise.inputs[-1])

    expected = gradients(DISTANCES[name], x, y, torch.float64, slow)
    for dtype, far in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        found = gradients(
            DISTANCES[name],
            x,
            y,
            dtype,
            lambda pairs: loss_from_pair_gradients("Head", pairs, "sum", weighted),
            tile_rows=height,
        )
        for u, v in zip(found, expected, strict=True):
            if v is not None:
                assert (u - v).norm() <= far * v.norm()


@pytest.mark.parametrize("kind", KINDS)
@every_distance
def test_the_rows_part_twice_is_the_gradient_where_pairs_are_symmetric(name, kind):
    def loss(symmetric):
        return lambda pairs: loss_from_pair_gradients("Head", pairs, "mean", weighted, symmetric=symmetric)

    for height in (None, 12):
        args = DISTANCES[name], batch(kind), None, torch.float64
        once, both = (gradients(*args, loss(symmetric), tile_rows=height) for symmetric in (True, False))
        torch.testing.assert_close(once[:2], both[:2])


def test_only_relations_known_to_be_symmetric_count_as_such():
    x, labels = points(4), torch.zeros(4, 2).long()
    relations = {
        SharedLabel(): True,
        CrossGroup(): True,
        Graded(0.5, 0.2): True,
        Graded(0.5, 0.2, lambda a, b: (a[:, None] > b).all(2).float()): False,
    }
    for relation, expected in relations.items():
        pairwise = Pairwise("test", x, labels, relation=relation, distance=as_distance("test", "dot"))
        assert pairwise.is_symmetric == expected
    for ref, expected in ((None, True), (References(x, labels[:, 0]), False)):
        pairwise = Pairwise(
            "test", x, labels[:, 0], ref=ref, relation=SameLabel(), distance=as_distance("test", "dot")
        )
        assert pairwise.is_symmetric == expected


@every_distance
def test_only_gradients_that_are_wanted_are_computed(name, monkeypatch):
    x, y, labels = points(8, 6), points(5, 6, seed=1), torch.arange(8) % 3
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        inputs = [v.clone().requires_grad_(w) for v, w in zip((x, y), wanted, strict=True)]
        ref = References(inputs[1], torch.arange(5) % 3)
        pairwise = Pairwise("test", inputs[0], labels, ref=ref, distance=DISTANCES[name])
        loss = loss_from_pair_gradients("Head", pairwise, "mean", weighted)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
            assert [v.grad is not None for v in inputs] == list(wanted)


def test_a_tile_is_differentiated_by_its_distances_alone():
    x = nn.functional.normalize(points(9, 6))
    pairwise = Pairwise("test", x, torch.arange(9) % 3, distance=as_distance("test", "euclidean"))
    (tile,) = pairwise.tiles()
    losses = lambda tile: torch.relu(tile.distance - 1)[tile.positive]  # noqa: E731
    for reduction in ("mean", "mean_active"):
        found = differentiated(losses, reduction, tile, True)
        value, count = summed(losses(tile), reduction)
        assert (found.value, found.count) == (value, count)
        assert torch.equal(found.pair_gradients, ((tile.distance > 1) & tile.positive).to(x))
        found = differentiated(losses, reduction, tile, False)
        assert (found.value, found.count, found.pair_gradients) == (value, count, None)
    nothing = differentiated(lambda tile: tile.distance.new_zeros(0), "mean", tile, True)
    assert nothing.pair_gradients is None or not nothing.pair_gradients.any()


def test_lowered_precision_of_products_does_not_reach_a_distance():
    x, before = batch("spread").float(), torch.get_float32_matmul_precision()
    pairwise = Pairwise("test", x, torch.zeros(len(x)).long(), distance=as_distance("test", "euclidean"))
    found = []
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            found.append(kind_of(pairwise).__name__)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == ["_EuclideanGradient", "_TileGradient"]


@pytest.mark.parametrize("head", [InfoNCE(), MultiSimilarity(), MarginLoss(), Contrastive(), TripletMargin()])
def test_no_slope_is_computed_where_nobody_wants_one(head, monkeypatch):
    found = []

    class Watched(TileLoss):
        def __new__(cls, *args):
            found.append(super().__new__(cls, *args))
            return found[-1]

    for module in (tile_gradients, margin, pair, triplet):
        monkeypatch.setattr(module, "TileLoss", Watched)
    x, labels = points(9, 6), torch.arange(9) % 3
    head.requires_grad_(False)
    for wanted in (False, True):
        found.clear()
        loss = head(x.clone().requires_grad_(wanted), labels)
        assert loss.requires_grad == wanted
        assert [each.pair_gradients is not None for each in found] == [wanted]


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine", "Mahalanobis"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [48 * 48 * 7, 48 * 30 * 7])
@pytest.mark.parametrize("ref", [False, True])
def test_differences_of_all_pairs_give_the_same_loss_and_gradient(name, kind, numbers, ref):
    def result():
        x = batch(kind).requires_grad_()
        y = batch("spread", 30).requires_grad_() if ref else None
        labels = torch.arange(48) % 5
        columns = None if y is None else References(y, torch.arange(30) % 5)
        pairwise = Pairwise("test", x, labels, ref=columns, distance=DISTANCES[name])
        loss = loss_from_pair_gradients("test", pairwise, "sum", weighted)
        return loss, *torch.autograd.grad(loss, [x] if y is None else [x, y])

    expected = result()
    with override(difference_numbers=numbers):
        found = result()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [Contrastive, InfoNCE, lambda **more: ArcFace(3, 6, **more)])
def test_nobody_looks_at_embeddings_that_are_never_checked(make):
    x, labels = batch("spread"), torch.arange(48) % 3
    x[5] = torch.nan
    for time in ("now", "later"):  # a processor looks at once either way
        with pytest.raises(ValueError, match="1 of 48 rows, the first is row 5"):
            make(check_finite=time).double()(x, labels)
    assert make(check_finite="never").double()(x, labels).ndim == 0
    assert "check_finite='never'" in repr(make(check_finite="never")).replace("=never", "='never'")
    assert "check_finite" not in repr(make())
