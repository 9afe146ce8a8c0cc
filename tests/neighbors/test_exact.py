import math
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.neighbors.exact import Scan, _shortlist
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tercet.pairwise.tiles import Pairwise
from tests.oracles import triplets as reference


@pytest.fixture(params=[0, 512], ids=["as a wide batch", "as a narrow batch"], autouse=True)
def width(request):
    with override(class_order_rows=request.param, argmin_columns=request.param):
        yield


def scan_of(seed, n, classes, distance, spread, ordered, height):
    """Rows of which some are equal, some nearly, and some apart."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    x = x[torch.randint(0, n if spread else 2, (n,), generator=g)] + spread * torch.randn(n, 4, generator=g)
    labels = torch.randint(0, classes, (n,), generator=g)
    pairwise = Pairwise("test", x, labels, distance=as_distance("test", distance), tile_rows=height)
    scan = Scan(pairwise, ordered)
    i, j = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    return scan, scan.distances(i, j).view(n, n).tolist(), reference.relation(labels)


cases = given(
    seed=st.integers(0, 999),
    n=st.sampled_from([2, 9, 40, 140]),
    classes=st.integers(1, 5),
    distance=st.sampled_from(["euclidean", "squared_euclidean", "cosine", "dot", "hamming"]),
    spread=st.sampled_from([0.0, 1e-6, 1.0]),
    ordered=st.booleans(),
    height=st.sampled_from([None, 1, 7]),
)


@cases
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_nearest_and_the_farthest_equal_the_loop_ties_to_the_lower_column(
    seed, n, classes, distance, spread, ordered, height
):
    scan, d, (positive, negative) = scan_of(seed, n, classes, distance, spread, ordered, height)
    for strip in scan.strips():
        for sign in (1, -1):
            for k in (1, 3):
                chosen = scan.nearest(strip.positives(farthest=sign < 0), k)
                for a, row in zip(strip.rows.tolist(), chosen.tolist()):
                    assert [j for j in row if j >= 0] == reference.nearest(d, positive, a, sign)[:k]
        field = strip.negatives()
        for k in (1, 2):
            for a, row in zip(strip.rows.tolist(), scan.nearest(field, k).tolist()):
                assert [j for j in row if j >= 0] == reference.nearest(d, negative, a)[:k]


@cases
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bounds_are_strict_even_at_a_column_s_own_distance(
    seed, n, classes, distance, spread, ordered, height
):
    scan, d, (positive, negative) = scan_of(seed, n, classes, distance, spread, ordered, height)
    for strip in scan.strips():
        column = strip.rows.flip(0)
        bound = scan.distances(strip.rows, column)
        farther, field = strip.positives(farthest=True), strip.negatives()
        beyond = scan.nearest(field._replace(keys=field.keys.clone()), beyond=bound)
        for a, b, found in zip(strip.rows.tolist(), bound.tolist(), beyond.tolist()):
            assert found[0] == next((j for j in reference.nearest(d, negative, a) if d[a][j] > b), -1)
        for among, some, equal, before in (
            (negative, field, False, float.__lt__),
            (negative, field, True, float.__le__),
            (positive, farther, False, float.__gt__),
            (positive, farther, True, float.__ge__),
        ):
            for a, b, inside in zip(strip.rows.tolist(), bound.tolist(), scan.within(some, bound, equal)):
                expected = {j for i, j in among if i == a and before(d[a][j], b)}
                assert set(some.columns[inside].tolist()) == expected


@pytest.mark.parametrize(("crowd", "ranked", "ranked_whole"), [(1, 1, 0), (12, 2, 0), (60, 2, 1)])
def test_a_crowd_is_told_apart_by_a_longer_shortlist_and_a_larger_one_by_all(
    crowd, ranked, ranked_whole, monkeypatch
):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g)
    x[0], x[1] = 0.0, torch.tensor([5.0, *[0.0] * 7])
    x[2 : 2 + crowd] = x[1] + 1e-7 * torch.randn(crowd, 8, generator=g)  # farther than row 1, or not
    labels = torch.ones(300, dtype=torch.int64)
    labels[:2] = 0
    with override(class_order_rows=0, argmin_columns=0):
        scan = Scan(Pairwise("test", x, labels, distance=as_distance("test", "euclidean")), ordered=False)
    rank, rank_all = Mock(wraps=scan._rank), Mock(wraps=scan._rank_all)
    monkeypatch.setattr(scan, "_rank", rank)
    monkeypatch.setattr(scan, "_rank_all", rank_all)
    (strip,) = scan.strips()
    field = strip.negatives()
    bound = scan.distances(torch.tensor([0]), torch.tensor([1]))
    found = scan.nearest(field._replace(rows=field.rows[:1], keys=field.keys[:1]), beyond=bound)
    d = scan.distances(torch.zeros(300, dtype=torch.int64), torch.arange(300)).tolist()
    assert found[0, 0] == min((d[j], j) for j in range(2, 300) if d[j] > bound)[1]
    assert (rank.call_count, rank_all.call_count) == (ranked, ranked_whole)


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_a_shortlist_holds_the_smallest(group, count):
    keys = torch.randint(0, 40, (9, 64), generator=torch.Generator().manual_seed(0)).float()
    keys[0] = math.inf
    values, at = _shortlist(keys, count, group)
    sorted_keys = torch.nn.functional.pad(keys.sort(1).values, (0, max(0, count - 64)), value=math.inf)
    assert torch.equal(values, sorted_keys[:, :count])
    assert torch.equal(keys.gather(1, at)[values < math.inf], values[values < math.inf])
