from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.neighbors import keys as keys_module
from tercet.neighbors.keys import ExactDistances, RankKeys, square_bound
from tercet.pairwise.differences import by_differences
from tercet.pairwise.distances import Mahalanobis, as_distance, cosine
from tests.helpers import lowered

DISTANCES = {
    **{
        name: as_distance("test", name)
        for name in ("euclidean", "squared_euclidean", "cosine", "dot", "hamming")
    },
    "mahalanobis": Mahalanobis(torch.diag(torch.tensor([3.0, 1.0, 0.1]))),
}


class Cubed:
    """A distance of one's own, without a closed form."""

    differentiable = True
    prepare = staticmethod(cosine.prepare)

    def tile(self, x, y):
        return (x[:, None] - y).abs().pow(3).sum(-1)

    def paired(self, x, y):
        return (x - y).abs().pow(3).sum(-1)


DISTANCES["own"] = Cubed()


def batch(seed, dtype, scale, shift, spread):
    """40 rows, half of them near the others: `spread` of the scale away."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=g, dtype=torch.float64)
    x[20:] = x[:20] + spread * x[20:]
    return (scale * (x + shift)).to(dtype)


def check_the_lemma(distance, x, shrink=1.0):
    """Keys more than 2ε apart, and a key and a bound more than ε apart, are in the order of the distances.

    `shrink` makes ε smaller than it is, so that the check fails.
    """
    x = distance.prepare(x)
    exact = ExactDistances(distance, x, x[:30])
    every, columns = torch.arange(40), torch.arange(30)
    d = exact.table(every, columns)
    keys = RankKeys(distance, exact.x, exact.y)
    k, error = keys.table().double(), keys.error.double() * shrink
    above = (k[:, :, None] - k[:, None, :]) > 2 * error[:, None, None]  # [n, r, r]
    assert (d[:, :, None] > d[:, None, :])[above].all()
    for bound in (
        d.roll(1, 0).T,
        d.roll(7, 1).T,
        1.1 * d.T[:1] + 0.1,
    ):  # distances of others, and no distance
        for b in bound:
            gap = k - keys.of_distance(b).double()[:, None]  # [n, r]
            assert (d > b[:, None])[gap > error[:, None]].all()
            assert (d < b[:, None])[gap < -error[:, None]].all()
    return above


@given(
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 10.0]),
    spread=st.sampled_from([0.0, 1e-8, 1e-6, 1e-3, 1.0]),
)
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("name", DISTANCES)
def test_keys_further_apart_than_twice_the_error_are_in_the_order_of_distances(
    name, seed, dtype, scale, shift, spread
):
    check_the_lemma(DISTANCES[name], batch(seed, dtype, scale, shift, spread))


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine", "mahalanobis"])
def test_the_check_fails_where_the_error_bound_is_too_small(name):
    def check_all():
        for seed in range(20):
            check_the_lemma(DISTANCES[name], batch(seed, torch.float32, 1.0, 0.0, 1e-4), shrink=1e-2)

    with pytest.raises(AssertionError):
        check_all()


@pytest.mark.parametrize("name", DISTANCES)
def test_most_columns_are_told_apart_by_their_keys(name):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    decided = check_the_lemma(DISTANCES[name], x)
    d = ExactDistances(DISTANCES[name], DISTANCES[name].prepare(x)).table(torch.arange(40), torch.arange(30))
    different = d[:, :, None] > d[:, None, :]
    assert decided.sum() > 0.99 * different.sum()


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_of_listed_pairs_are_those_of_the_table(name):
    x = DISTANCES[name].prepare(batch(0, torch.float32, 1.0, 0.0, 1e-6))
    exact = ExactDistances(DISTANCES[name], x)
    i, j = torch.randint(0, 40, (2, 300), generator=torch.Generator().manual_seed(1))
    assert torch.equal(exact.pairs(i, j), exact.table(i, torch.arange(40))[torch.arange(300), j])


@pytest.mark.parametrize("kind", ["spread", "near duplicates", "duplicates", "far from the origin"])
def test_the_bound_holds(kind):
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 120, 64, generator=g, dtype=torch.float64)
    x = torch.nn.functional.normalize(x)
    if kind == "near duplicates":
        x[60:] = x[:60] + 10.0 ** -torch.linspace(1, 6, 60, dtype=torch.float64)[:, None] * noise[60:]
    if kind == "duplicates":
        x[60:] = x[:60]
    if kind == "far from the origin":
        x += 100
    x = x.float()
    error, xx, yy = square_bound(x, x)
    product = torch.addmm(yy, x, x.T, alpha=-2) + xx[:, None]
    gap = (product.double() - by_differences(x, x).double() ** 2).abs()
    assert (gap <= error[:, None]).all()
    assert (error < 1e-2 * (xx + yy.max())).all()


def check_lowered(distance, x, bits, cut, shrink=1.0):
    """The lemma where factors of products have so few bits, which `roundoff` has been told of."""
    real = torch.addmm
    lower = lambda v: lowered(v, bits, cut)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "roundoff", lambda x: 2.0 ** -(bits + 1))
        patch.setattr(torch, "addmm", lambda c, a, b, **more: real(c, lower(a), lower(b), **more))
        return check_the_lemma(distance, x, shrink)


@pytest.mark.parametrize("cut", [False, True], ids=["rounded", "cut off"])
@pytest.mark.parametrize("bits", [10, 7], ids=["TF32", "bfloat16"])
@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
def test_products_of_lowered_precision_propose_within_their_bound(name, bits, cut):
    told_apart = 0.0
    for seed in range(12):
        for spread, shift in ((1.0, 0.0), (1e-3, 0.0), (1e-6, 10.0), (0.0, 0.0)):
            x = batch(seed, torch.float32, 1.0, shift, spread)
            told_apart = max(told_apart, float(check_lowered(DISTANCES[name], x, bits, cut).float().mean()))
    assert told_apart > (0.4 if bits == 10 else 0.2)  # half of all ordered pairs is all that can be


def test_the_check_of_lowered_precision_fails_where_the_bound_is_too_small():
    def check_all():
        for seed in range(20):
            x = batch(seed, torch.float32, 1.0, 0.0, 1e-3)
            check_lowered(DISTANCES["euclidean"], x, 10, True, shrink=0.02)

    with pytest.raises(AssertionError):
        check_all()


def test_keys_stay_within_their_bound_where_a_device_has_no_float64(monkeypatch):
    monkeypatch.setattr(keys_module, "widest_float", lambda device: torch.float32)
    full = square_bound(torch.ones(2, 64), torch.ones(3, 64))
    assert {part.dtype for part in full} == {torch.float32}
    for seed, name in product(range(12), ("euclidean", "squared_euclidean", "cosine")):
        for spread, shift in ((1.0, 0.0), (1e-3, 0.0), (1e-6, 10.0), (0.0, 0.0)):
            check_the_lemma(DISTANCES[name], batch(seed, torch.float32, 1.0, shift, spread))
