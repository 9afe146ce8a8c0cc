import math

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet import selection
from tercet.distances import as_distance
from tercet.pairwise import Pairwise
from tercet.selection import Scan, _shortlist


@pytest.fixture(params=[0, 512], ids=["as a wide batch", "as a narrow batch"], autouse=True)
def width(request, monkeypatch):
    monkeypatch.setattr(selection, "_NARROW", request.param)


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
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bounds_are_strict_even_at_a_column_s_own_distance(
    seed, n, classes, distance, spread, ordered, height
):
    scan, d, (positive, negative) = scan_of(seed, n, classes, distance, spread, ordered, height)
    for strip in scan.strips():
        column = strip.rows.flip(0)
        bound = scan.distances(strip.rows, column)
        farther, field = strip.positives(farthest=True), strip.negatives()
        beyond = scan.nearest(field, beyond=bound)
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


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_a_shortlist_holds_the_smallest(group, count):
    keys = torch.randint(0, 40, (9, 64), generator=torch.Generator().manual_seed(0)).float()
    keys[0] = math.inf
    values, at = _shortlist(keys, count, group)
    sorted_keys = torch.nn.functional.pad(keys.sort(1).values, (0, max(0, count - 64)), value=math.inf)
    assert torch.equal(values, sorted_keys[:, :count])
    assert torch.equal(keys.gather(1, at)[values < math.inf], values[values < math.inf])
