import math
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.neighbors import exact
from tercet.neighbors.blocks import Candidates
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tercet.pairwise.tiles import Pairwise
from tests.oracles import triplets as reference

pytestmark = pytest.mark.usefixtures("width")


def plain(name, x):
    """Every distance from its definition, in the precision that decides: differences of float32."""
    if name == "euclidean":
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    if name == "hamming":
        return ((x > 0)[:, None] != (x > 0)).sum(-1).float()
    if name == "dot":
        return -(x[:, None] * x).sum(-1)
    if name == "cosine":
        x = torch.nn.functional.pad(x / torch.linalg.vector_norm(x, dim=1, keepdim=True), (0, 1))
    return (x[:, None] - x).square().sum(-1) * (0.5 if name == "cosine" else 1.0)


def points(seed, n, spread, d=4):
    """Rows of which some are equal, some nearly, and some apart."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x[torch.randint(0, n if spread else 2, (n,), generator=g)] + spread * torch.randn(
        n, d, generator=g
    )


def search_of(seed, n, classes, distance, spread, ordered, height):
    x = points(seed, n, spread)
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    pairwise = Pairwise("test", x, labels, distance=as_distance("test", distance), tile_rows=height)
    return ExactSearch(pairwise, ordered), plain(distance, x).tolist(), reference.relation(labels)


cases = given(
    seed=st.integers(0, 999),
    n=st.sampled_from([2, 9, 40, 140]),
    classes=st.integers(1, 5),
    distance=st.sampled_from(["euclidean", "squared_euclidean", "cosine", "dot", "hamming"]),
    spread=st.sampled_from([0.0, 1e-6, 1.0]),
    ordered=st.booleans(),
    height=st.sampled_from([None, 1, 7]),
)
suppressed = [HealthCheck.function_scoped_fixture]


@cases
@settings(max_examples=15, deadline=None, suppress_health_check=suppressed)
def test_the_nearest_and_the_farthest_equal_the_loop_ties_to_the_lower_column(
    seed, n, classes, distance, spread, ordered, height
):
    search, d, (positive, negative) = search_of(seed, n, classes, distance, spread, ordered, height)
    for block in search.blocks():
        for sign in (1, -1):
            for k in (1, 3):
                chosen = search.nearest(block.positives(farthest=sign < 0), k)
                for a, row in zip(block.rows.tolist(), chosen.tolist(), strict=True):
                    assert [j for j in row if j >= 0] == reference.nearest(d, positive, a, sign)[:k]
        field = block.negatives()
        for k in (1, 2):
            for a, row in zip(block.rows.tolist(), search.nearest(field, k).tolist(), strict=True):
                assert [j for j in row if j >= 0] == reference.nearest(d, negative, a)[:k]
        for a, found in zip(block.rows.tolist(), search.farthest(field).tolist(), strict=True):
            assert found == next(iter(reference.nearest(d, negative, a, -1)), -1)


@cases
@settings(max_examples=15, deadline=None, suppress_health_check=suppressed)
def test_bounds_are_strict_even_at_a_column_s_own_distance(
    seed, n, classes, distance, spread, ordered, height
):
    search, d, (positive, negative) = search_of(seed, n, classes, distance, spread, ordered, height)
    for block in search.blocks():
        column = block.rows.flip(0)
        bound = search.distances(block.rows, column)
        farther, field = block.positives(farthest=True), block.negatives()
        beyond = search.nearest(field, above=bound)
        for a, b, found in zip(block.rows.tolist(), bound.tolist(), beyond.tolist(), strict=True):
            assert found[0] == next((j for j in reference.nearest(d, negative, a) if d[a][j] > b), -1)
        for among, some, equal, before in (
            (negative, field, False, float.__lt__),
            (negative, field, True, float.__le__),
            (positive, farther, False, float.__gt__),
            (positive, farther, True, float.__ge__),
        ):
            within = search.closer_than(some, bound, equal)
            for a, b, inside in zip(block.rows.tolist(), bound.tolist(), within, strict=True):
                expected = {j for i, j in among if i == a and before(d[a][j], b)}
                assert set(some.columns[inside].tolist()) == expected


def mixed(block, seed=0):
    """The positives, farthest first, and the negatives, nearest first, as candidates of rows in any order."""
    order = torch.randperm(2 * len(block.rows), generator=torch.Generator().manual_seed(seed))
    sides = block.positives(farthest=True), block.negatives()
    width = block.keys.shape[1]
    keys = [torch.nn.functional.pad(s.keys, (0, width - s.keys.shape[1]), value=math.inf) for s in sides]
    both = (torch.cat([s.rows for s in sides]), torch.cat(keys), torch.cat([s.sign for s in sides]))
    rows, keys, sign = (each[order] for each in both)
    return Candidates(rows, keys, block.columns, sign)


@pytest.mark.parametrize("columns", [600, 90], ids=["more than 512 columns", "few columns"])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "dot"])
def test_rows_of_either_sign_in_one_table_equal_the_loop(distance, spread, columns):
    x, labels = points(0, columns, spread), torch.arange(columns) % 4
    pairwise = Pairwise("test", x, labels, distance=as_distance("test", distance), tile_rows=20)
    search, d = ExactSearch(pairwise, ordered=False), plain(distance, x).tolist()
    positive, negative = reference.relation(labels)
    block = next(search.blocks())
    some = mixed(block)
    assert {-1.0, 1.0} == set(some.sign.tolist())
    bound = search.distances(some.rows, some.rows.roll(1))
    at = torch.arange(len(some.rows)).repeat_interleave(2)
    above = torch.stack([bound, bound.roll(1)], dim=1).flatten()
    found = (
        search.nearest(some, 1).tolist(),
        search.nearest(some, 2).tolist(),
        search.nearest(some, 2, above=bound).tolist(),
        search.farthest(some).tolist(),
        search.nearest_above(some, at, above).view(-1, 2).tolist(),
        search.closer_than(some, bound),
    )
    with override(sorted_bounds=0):
        sorted_once = ExactSearch(pairwise, ordered=False).nearest_above(some, at, above).view(-1, 2).tolist()
    assert sorted_once == found[4]
    for place, (a, sign, b) in enumerate(
        zip(some.rows.tolist(), some.sign.tolist(), bound.tolist(), strict=True)
    ):
        order = reference.nearest(d, positive if sign < 0 else negative, a, sign)
        after = [j for j in order if sign * d[a][j] > sign * b]
        assert found[0][place] == order[:1]
        assert found[1][place] == order[:2]
        assert found[2][place] == [*after, -1, -1][:2]
        assert found[3][place] == reference.nearest(d, positive if sign < 0 else negative, a, -sign)[0]
        for one, limit in zip(found[4][place], above.view(-1, 2)[place].tolist(), strict=True):
            assert one == next((j for j in order if sign * d[a][j] > sign * limit), -1)
        inside = {j for j in order if sign * d[a][j] < sign * b}
        assert set(some.columns[found[5][place]].tolist()) == inside


@pytest.mark.parametrize("ordered", [True, False])
def test_nothing_is_changed_that_is_not_to_be_consumed(ordered):
    """So the order of calls does not matter; what is consumed gives the same answers, in the same memory."""
    x, labels = points(1, 60, 1e-6), torch.arange(60) % 3
    pairwise = Pairwise("test", x, labels, distance=as_distance("test", "euclidean"), tile_rows=60)
    search = ExactSearch(pairwise, ordered)
    (block,) = search.blocks()
    before, bound = block.keys.clone(), search.distances(block.rows, block.rows.flip(0))
    positives = block.positives()
    negatives = block.negatives()
    kept = negatives.keys.clone()
    first = [search.nearest(negatives, 2, above=bound), search.farthest(negatives)]
    first += [search.nearest_above(negatives, torch.arange(60), bound), search.closer_than(negatives, bound)]
    search.hardest(block.extremes())
    assert torch.equal(block.keys, before)
    assert torch.equal(negatives.keys, kept)
    assert torch.equal(block.positives().keys, positives.keys)
    consumed = block.negatives(consume=True)
    assert consumed.keys is block.keys
    assert torch.equal(consumed.keys, kept)
    assert torch.equal(search.nearest(consumed, 2, above=bound, consume=True), first[0])


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
        pairwise = Pairwise("test", x, labels, distance=as_distance("test", "euclidean"))
        search = ExactSearch(pairwise, ordered=False)
    rank, rank_all = Mock(wraps=search._resolve_listed), Mock(wraps=exact.first_of_rows)
    monkeypatch.setattr(search, "_resolve_listed", rank)
    monkeypatch.setattr(exact, "first_of_rows", rank_all)
    (block,) = search.blocks()
    field = block.negatives()
    bound = search.distances(torch.tensor([0]), torch.tensor([1]))
    found = search.nearest(field.take(torch.tensor([0])), 2, above=bound)
    d = plain("euclidean", x)[0].tolist()
    assert found[0].tolist() == [j for _, j in sorted((d[j], j) for j in range(2, 300) if d[j] > bound)[:2]]
    assert (rank.call_count, rank_all.call_count) == (ranked, ranked_whole)
