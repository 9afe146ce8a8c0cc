"""Tables of distances in fixed shapes equal those that look which pairs are near, whatever the data are."""

import pytest
import torch

from tercet.pairwise.budget import override
from tercet.pairwise.euclidean import fast_tile
from tercet.pairwise.near_columns import fixed_entries, fixed_tile, near_columns
from tests.helpers import double_points as points
from tests.helpers import grid


def few(count):
    """Tables of any size by products, and so many columns of a row by differences."""
    return override(difference_numbers=0, dense_share=0, near_columns_unknown=count)


def tables():
    x = points(30, 6, seed=1)
    return {
        "spread": (x, points(20, 6, seed=2)),
        "far from the origin": (x + 1e4, x[:9] + 1e4),
        "near pairs": (x, x[:20] + 1e-6 * points(20, 6, seed=3)),
        "grid": (grid(30, 3).double(), grid(20, 3, seed=1).double()),
        "equal": (torch.ones(5, 3).double(), torch.ones(4, 3).double()),
        "one row": (x[:1], x[:1]),
        "no column": (x, x[:0]),
        "no row": (x[:0], x),
    }


every_table = pytest.mark.parametrize("name", tables())


def exactly(x, y, root):
    d = (x[:, None] - y).square().sum(2)
    return torch.where(d == 0, 0, torch.where(d == 0, 1, d).sqrt()) if root else d


def check(measured, x, y, root, rtol=1e-6):
    results = []
    for function in (measured, exactly):
        leaves = [v.clone().requires_grad_() for v in (x, y)]
        d = function(*leaves, root)
        weights = torch.linspace(-1, 2, d.numel()).to(d).view_as(d)
        results.append((d, *torch.autograd.grad((d * weights).sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("count", [2, 100])
@every_table
def test_a_table_with_few_near_columns_is_that_of_differences(name, count, root):
    x, y = tables()[name]
    with few(count):
        check(fixed_tile, x, y, root)
    with override(difference_numbers=2**30):
        assert near_columns(x, y) is None
        check(fixed_tile, x, y, root)


@pytest.mark.parametrize("root", [True, False])
def test_more_equal_rows_than_near_columns_are_equal_still(root):
    x = points(6, 5, seed=4).float().repeat(8, 1)
    with few(2):
        d = fixed_tile(x, x, root)
        leaf = x.clone().requires_grad_()
        torch.autograd.backward(fixed_tile(leaf, leaf[:6].detach(), root), torch.ones(48, 6))
    assert not d[::6, ::6].any()
    torch.testing.assert_close(d, fast_tile(x, x, root), rtol=1e-4, atol=0)
    assert torch.isfinite(leaf.grad).all()


def test_a_near_pair_beyond_the_near_columns_keeps_a_small_error():
    x = 0.05 * points(40, 16, seed=5).float() + points(2, 16, seed=6).float().repeat(20, 1)
    with few(2):
        found = fixed_tile(x, x, False)
    expected = exactly(x, x, False)
    size = x.square().sum(1)
    assert ((found - expected).abs() <= 2e-6 * (size[:, None] + size)).all()


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("count", [2, 100])
def test_second_derivatives_are_those_of_finite_differences(count, root):
    x, y = points(5, 3, seed=7).requires_grad_(), points(4, 3, seed=8).requires_grad_()
    for sizes in ({}, {"difference_numbers": 2**30}):
        with few(count), override(**sizes):
            assert torch.autograd.gradgradcheck(lambda x, y: fixed_tile(x, y, root), (x, y), fast_mode=True)


@every_table
def test_entries_are_those_of_the_table_with_its_gradient(name):
    x, y = tables()[name]
    if not x.numel() or not y.numel():
        return
    place = torch.randint(len(x) * len(y), (50,), generator=torch.Generator().manual_seed(1))
    i, j = place // len(y), place % len(y)
    with few(3):
        leaf = x.clone().requires_grad_()
        listed = fixed_entries(leaf, y, i, j, root=True)
        assert torch.equal(listed, fixed_tile(x, y, root=True)[i, j])
        (found,) = torch.autograd.grad(listed.sum(), leaf)
        (expected,) = torch.autograd.grad(fixed_tile(leaf, y, root=True)[i, j].sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_how_many_columns_are_near_follows_from_the_sizes():
    x = torch.zeros(100, 8)
    with override(difference_numbers=100, dense_share=8, near_columns=3, near_columns_unknown=9):
        assert [near_columns(x, x, most) for most in (0, 9, 10, None)] == [3, 12, None, 9]
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            assert near_columns(x, x) is None  # the digits are not in such a product
        finally:
            torch.set_float32_matmul_precision(before)
