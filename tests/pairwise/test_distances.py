import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tercet.core.indices import References
from tercet.losses.pair import Contrastive
from tercet.miners.hard import BatchHard
from tercet.miners.pairs import PairMargin
from tercet.pairwise import distances
from tercet.pairwise.differences import mapped_rows
from tercet.pairwise.distances import Distance, Mahalanobis, as_distance
from tests.helpers import points, unchecked
from tests.oracles import triplets as reference

NAMES = ["euclidean", "squared_euclidean", "cosine", "dot", "hamming"]
TRAINABLE = NAMES[:4]


def both_ways(metric, x, y):
    """The tile, after checking that `paired` gives the same numbers."""
    x, y = metric.prepare(x), metric.prepare(y)
    tile = metric.tile(x, y)
    i, j = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(y))).T
    torch.testing.assert_close(metric.paired(x[i], y[j]).view(len(x), len(y)), tile)
    return tile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_a_tile_and_pairs_equal_the_loop(name, dtype):
    x, y = points(7, 5, dtype=dtype), points(4, 5, seed=1, dtype=dtype)
    tile = both_ways(as_distance("test", name), x, y)
    if name == "hamming":
        x, y = x > 0, y > 0
    else:
        assert tile.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor(reference.distances(name, x, y), dtype=tile.dtype)
    torch.testing.assert_close(tile, expected)


@pytest.mark.parametrize("name", TRAINABLE)
def test_autocast_does_not_reach_a_distance(name):
    metric, x = as_distance("test", name), points(7, 5, dtype=torch.bfloat16)
    L = torch.eye(5)
    with torch.autocast("cpu", torch.bfloat16):
        inside, mapped = both_ways(metric, x, x), both_ways(Mahalanobis(L), x, x)
    assert torch.equal(inside, metric.tile(metric.prepare(x), metric.prepare(x)))
    assert inside.dtype == mapped.dtype == torch.float32
    assert torch.equal(mapped, distances.euclidean.tile(x.float(), x.float()))


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_equal_rows_are_exactly_0_apart_and_the_tile_is_symmetric(name, seed, scale):
    metric = as_distance("test", name)
    x = metric.prepare(points(6, 33, seed) * scale)
    tile = metric.tile(x, x.clone())
    assert (tile.diagonal() == 0).all()
    assert torch.equal(tile, tile.T)
    assert (tile >= 0).all()
    assert (metric.paired(x, x.clone()) == 0).all()


def test_near_duplicates_keep_their_digits():
    x = torch.nn.functional.normalize(points(50, 128, dtype=torch.float64))
    y = x + 1e-4 * torch.nn.functional.normalize(points(50, 128, 1, torch.float64))
    for name in ("euclidean", "squared_euclidean", "cosine"):
        metric = as_distance("test", name)
        a, b = metric.prepare(x.float()), metric.prepare(y.float())
        exact = metric.paired(metric.prepare(x), metric.prepare(y))
        torch.testing.assert_close(metric.tile(a, b).diagonal().double(), exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_equal_finite_differences(name):
    metric = as_distance("test", name)
    x, y = points(4, 3, 0, torch.float64).requires_grad_(), points(4, 3, 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: metric.tile(metric.prepare(x), metric.prepare(y)), (x, y))
    assert torch.autograd.gradcheck(lambda x, y: metric.paired(metric.prepare(x), metric.prepare(y)), (x, y))


@pytest.mark.parametrize("way", ["tile", "paired"])
@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine"])
def test_the_gradient_at_coincident_points_is_0(name, way):
    metric = as_distance("test", name)
    x = torch.ones(3, 4, requires_grad=True)
    getattr(metric, way)(metric.prepare(x), metric.prepare(x.detach())).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 4))


def test_a_zero_vector_is_orthogonal_to_all_others_and_gets_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    tile = both_ways(distances.cosine, x, x)
    torch.testing.assert_close(tile, torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    tile.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[0] == 0).all()


def test_negative_cosine_is_cosine_less_1_but_between_two_zero_rows():
    x = torch.cat([points(5, 5), torch.zeros(2, 5)])
    u = distances.cosine.prepare(x)
    assert torch.equal(u, distances.negative_cosine.prepare(x))
    expected = distances.cosine.tile(u, u) - 1
    expected[5:, 5:] = 0
    torch.testing.assert_close(both_ways(distances.negative_cosine, x, x), expected)


def test_cosine_does_not_see_the_length():
    x = points(7, 5)
    metric = distances.cosine
    scaled = metric.prepare(x * torch.arange(1.0, 8.0)[:, None])
    torch.testing.assert_close(metric.tile(scaled, scaled), metric.tile(metric.prepare(x), metric.prepare(x)))


def test_hamming_takes_signs_integers_and_bools():
    codes = torch.tensor([[1, 2**40, 3], [1, 2**40 + 1, 4]])
    assert both_ways(distances.hamming, codes, codes).tolist() == [[0, 2], [2, 0]]
    assert both_ways(distances.hamming, codes.float() - 2, codes.float() - 2).tolist() == [[0, 0], [0, 0]]
    bits = torch.tensor([[True, False], [True, True]])
    assert both_ways(distances.hamming, bits, bits).tolist() == [[0, 1], [1, 0]]


def test_mahalanobis_is_the_form_with_m_and_the_euclidean_distance_after_a_linear_layer():
    x, y = points(6, 5), points(4, 5, 1)
    layer = nn.Linear(5, 3, bias=False).requires_grad_(False)
    layer.weight.copy_(points(3, 5, 2))
    tile = both_ways(Mahalanobis(layer.weight.T), x, y)
    m = layer.weight.T @ layer.weight
    for i in range(6):
        for j in range(4):
            assert math.isclose(tile[i, j], math.sqrt((x[i] - y[j]) @ m @ (x[i] - y[j])), rel_tol=1e-4)
    torch.testing.assert_close(tile, distances.euclidean.tile(layer(x), layer(y)))


def test_mahalanobis_learns_a_parameter_and_carries_a_tensor():
    learned, fixed = Mahalanobis(nn.Parameter(torch.eye(5))), Mahalanobis(torch.eye(5))
    assert [name for name, _ in learned.named_parameters()] == ["L"]
    assert [name for name, _ in fixed.named_buffers()] == ["L"]
    learned.tile(learned.prepare(points(7, 5)), learned.prepare(points(7, 5, seed=1))).sum().backward()
    assert learned.L.grad.abs().sum() > 0
    assert "5×5" in repr(learned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (33, 17), (128, 64)])
def test_equal_rows_are_0_apart_by_mahalanobis_wherever_they_stand(shape, dtype):
    distance = Mahalanobis(points(*shape, 2, torch.float64))
    one = points(1, shape[0], 3, dtype)
    x = points(40, shape[0], 4, dtype)
    x[::3] = one
    features, alone = distance.prepare(x), distance.prepare(one)
    assert (features[::3] == alone).all()
    assert (distance.tile(features, alone)[::3] == 0).all()
    table = distances.exact(distance, features, features)
    assert torch.equal(table, table.T)
    assert (table[::3, ::3] == 0).all()
    pairs = PairMargin(0.0, 1e-300, distance=distance)(x, torch.arange(40) // 3)
    assert not (x[pairs.pos_anchor] == x[pairs.positive]).all(1).any()


def test_gradients_through_mahalanobis_in_float64_equal_finite_differences():
    x, L = points(4, 3, 0, torch.float64).requires_grad_(), points(3, 2, 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mapped_rows, (x, L))
    assert torch.autograd.gradgradcheck(mapped_rows, (x, L))


@pytest.mark.parametrize("L", [torch.ones(3), torch.ones(2, 2, dtype=torch.int64), "L"])
def test_mahalanobis_refuses_what_is_no_matrix_of_floats(L):
    with unchecked(), pytest.raises(ValueError, match=r"Mahalanobis\(L=.*expected a float tensor \[d, k\]"):
        Mahalanobis(L)


def test_mahalanobis_refuses_embeddings_of_another_dimension():
    with pytest.raises(
        ValueError, match=r"Mahalanobis\(L=\(4, 2\)\): expected one row for each of 5 dimensions"
    ):
        Mahalanobis(torch.ones(4, 2)).prepare(points(7, 5))


def test_integer_embeddings_are_refused_outside_hamming():
    with pytest.raises(
        ValueError, match=r"torch.int64.*expected floating-point embeddings.*\.float\(\).*hamming"
    ):
        distances.euclidean.prepare(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"BatchHard\(embeddings=.torch.int64.\): expected floating-point"):
        BatchHard()(torch.ones(2, 2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match=r"BatchHard\(embeddings=.torch.complex64.\).*real and imaginary"):
        BatchHard()(torch.ones(2, 2, dtype=torch.complex64), torch.arange(2))
    with pytest.raises(ValueError, match=r"torch.complex64.*expected floats, or whole numbers"):
        BatchHard(distance="hamming")(torch.ones(2, 2, dtype=torch.complex64), torch.arange(2))
    codes = References(torch.ones(2, 2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match=r"Contrastive\(ref.embeddings=.torch.int64.\): expected floating"):
        Contrastive()(torch.ones(2, 2), torch.arange(2), ref=codes)


def test_every_name_stands_for_its_object():
    for name in NAMES:
        assert as_distance("test", name) is getattr(distances, name)
        assert isinstance(getattr(distances, name), Distance)
        assert repr(getattr(distances, name)) == name
    metric = Mahalanobis(torch.eye(2))
    assert as_distance("test", metric) is metric


def test_a_misspelt_distance_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match=r"BatchHard\(distance='euclidian'\).*did you mean 'euclidean'\?"):
        as_distance("BatchHard", "euclidian")
    with pytest.raises(ValueError, match=r"distance=3\): expected one of 'euclidean'"):
        as_distance("BatchHard", 3)


def test_hamming_is_refused_where_a_gradient_is_needed():
    with pytest.raises(ValueError, match=r"Head\(distance=hamming\): expected a distance with a gradient"):
        as_distance("Head", "hamming", gradient=True)
