import pytest
import torch

from tercet.pairwise.budget import override
from tercet.pairwise.differences import by_differences
from tercet.pairwise.euclidean import (
    CentredRows,
    add_listed_differences,
    add_table_differences,
    distances_within,
    fast_entries,
    fast_tile,
    weighted_differences,
)
from tercet.pairwise.torch_modes import roundoff
from tests.helpers import double_points as points


def batch(kind, d=64):
    x = torch.nn.functional.normalize(points(120, d))
    if kind == "near duplicates":
        x[60:] = x[:60] + 10.0 ** -torch.linspace(1, 6, 60, dtype=torch.float64)[:, None] * points(60, d, 1)
    if kind == "duplicates":
        x[60:] = x[:60]
    if kind == "far from the origin":
        x = x + 10
    if kind == "of all sizes":
        x = x * 10.0 ** torch.linspace(-3, 3, 120, dtype=torch.float64)[:, None]
    if kind == "collapsed":
        x = x[:1].expand(120, -1) + 0
    return x.float()


KINDS = ["spread", "near duplicates", "duplicates", "far from the origin", "of all sizes", "collapsed"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def listed(x, y, root):
    """Every entry of the table, in no order."""
    place = torch.randperm(len(x) * len(y), generator=torch.Generator().manual_seed(3))
    found = fast_entries(x, y, place // len(y), place % len(y), root)
    return found[place.argsort()].view(len(x), len(y))


every_way = pytest.mark.parametrize("measured", [fast_tile, listed])


@pytest.mark.parametrize("d", [1, 64, 2048])
@pytest.mark.parametrize("root", [True, False])
@every_way
@every_kind
def test_every_distance_is_right_to_1_in_100_000(kind, measured, root, d):
    x = batch(kind, d)
    exact = torch.linalg.vector_norm(x.double()[:, None] - x.double()[None, :60], dim=2)
    tile = measured(x, x[:60].clone(), root)
    torch.testing.assert_close(
        tile.double(), exact if root else exact**2, rtol=1e-5 if root else 2e-5, atol=0
    )
    assert (tile[exact == 0] == 0).all()


@pytest.mark.parametrize("root", [True, False])
@every_way
@every_kind
def test_the_gradient_is_that_of_differences(kind, measured, root):
    x, weight = batch(kind), points(120, 60, 2)

    def gradients(dtype, tile):
        u, v = (each.to(dtype).clone().detach().requires_grad_() for each in (x, x[:60]))
        (weight.to(dtype) * tile(u, v)).sum().backward()
        return u.grad.double(), v.grad.double()

    def plain(u, v):
        d = by_differences(u, v)
        return d if root else d.square()

    fast, exact = (
        gradients(torch.float32, lambda u, v: measured(u, v, root)),
        gradients(torch.float64, plain),
    )
    for a, b in zip(fast, exact, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@every_kind
def test_the_parts_of_a_gradient_are_those_of_a_loop(kind):
    """Near pairs, weighted differences by a product, and listed ones: what heads that stream are made of."""
    x = batch(kind).double()
    y, weights = x[:60] + 0.1, points(120, 60, 2)
    both = CentredRows(x, y)
    q = both.squares(slice(3, 90))
    i, j = both.near_places(q, slice(3, 90))
    far = torch.ones_like(q, dtype=torch.bool)
    far[i, j] = False
    exact = (x[3:90, None] - y).square().sum(2)
    torch.testing.assert_close(q[far], exact[far], rtol=1e-11, atol=0)
    assert both.any_near(q) or not len(i)
    at = torch.cartesian_prod(torch.arange(3, 90), torch.arange(60)).T
    assert torch.equal(both.near_listed(q.flatten(), *at), (i * 60 + j).sort().values)

    apart = weights[..., None] * (x[:, None] - y)  # [120, 60, k]
    fresh, added = weighted_differences(weights, both.u, both.v), torch.ones_like(x)
    weighted_differences(weights, both.u, both.v, added)
    torch.testing.assert_close(fresh, apart.sum(1))
    torch.testing.assert_close(added, apart.sum(1) + 1)
    by_x, by_y = torch.zeros_like(x), torch.zeros_like(y)
    i, j = torch.cartesian_prod(torch.arange(120), torch.arange(60)).T
    with override(gathered_numbers=1000):
        add_listed_differences(weights.flatten(), x, y, i, j, by_x, None)
        add_listed_differences(weights.flatten(), x, y, i, j, None, by_y)
    torch.testing.assert_close(by_x, apart.sum(1))
    torch.testing.assert_close(by_y, -apart.sum(0))


SECOND = {
    "tile": lambda x, y: fast_tile(x, y, root=True),
    "squared tile": lambda x, y: fast_tile(x, y, root=False),
    "entries": lambda x, y: listed(x, y, root=True),
    "squared entries": lambda x, y: listed(x, y, root=False),
    "within": lambda x, y: distances_within(torch.stack([torch.cat([x, y]), torch.cat([y, x])])),
}


@pytest.mark.parametrize("near", [0, 1, 5], ids=["none near", "one near", "all near"])
@pytest.mark.parametrize("name", SECOND)
def test_the_second_derivative_is_that_of_finite_differences(name, near):
    x, y = points(5, 3), points(6, 3, seed=1)
    y[:near] = x[:near] + 1e-2 * points(near, 3, seed=2)
    if near == 5:
        x, y = x[:1] + 1e-2 * points(5, 3, seed=3), x[:1] + 1e-2 * points(6, 3, seed=4)
    given = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradgradcheck(SECOND[name], given, rtol=1e-2 if near else 1e-3)


@pytest.mark.parametrize("equal", [1, 5], ids=["one pair", "all pairs"])
@pytest.mark.parametrize("name", SECOND)
def test_the_second_derivative_at_equal_rows_is_finite(name, equal):
    x = points(5, 3)
    y = torch.cat([x[:1].expand(equal, 3), points(6 - equal, 3, seed=1)])
    x = x if equal == 1 else x[:1].expand(5, 3)
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(SECOND[name](x, y).sum(), x, create_graph=True)
    assert grad.isfinite().all()
    assert torch.autograd.grad(grad.square().sum(), x)[0].isfinite().all()


def test_lowered_precision_of_products_does_not_reach_a_distance():
    x = batch("spread")
    exact = by_differences(x, x)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(fast_tile(x, x, True), exact)
        assert roundoff(x) == 2.0**-8
    finally:
        torch.set_float32_matmul_precision(before)
    assert roundoff(x) == 2.0**-24
    assert roundoff(x.double()) == 2.0**-53


@every_kind
@pytest.mark.parametrize("root", [True, False])
def test_a_table_by_differences_alone_has_the_same_numbers_and_gradient(kind, root):
    def result():
        x, y = batch(kind).requires_grad_(), batch("spread").requires_grad_()
        d = fast_tile(x, y, root)
        return d, *torch.autograd.grad((d * points(120, 120, 7).float()).sum(), (x, y))

    expected = result()
    with override(difference_numbers=2**25):
        found = result()
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5 * float(right.detach().abs().max()))


@pytest.mark.parametrize("numbers", [1, 100, 2**20])
def test_weighted_differences_of_a_table_are_made_in_parts(numbers):
    weights, x, y = points(9, 7), points(9, 5, 1), points(7, 5, 2)
    by_x, by_y = points(9, 5, 3), points(7, 5, 4)
    apart = weights[..., None] * (x[:, None] - y)
    expected = by_x + apart.sum(1), by_y - apart.sum(0)
    with override(summed_numbers=numbers):
        add_table_differences(weights, x, y, by_x, by_y)
        add_table_differences(weights, x, y, None, None)
    torch.testing.assert_close((by_x, by_y), expected)
