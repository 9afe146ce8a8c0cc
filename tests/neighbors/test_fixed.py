"""The search of fixed shape, on a processor: what `ExactSearch` finds, or a row noted as ambiguous."""

from __future__ import annotations

import pytest
import torch

from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.fixed import FixedShapeSearch
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tercet.pairwise.tiles import Pairwise

DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot", "hamming"]


def batches():
    g = torch.Generator().manual_seed(0)
    n = 140
    x = torch.randn(n, 6, generator=g)
    twice = torch.cat([x[: n // 2]] * 2)
    return {
        "random": x,
        "twice": twice,
        "near": twice + 1e-6 * torch.randn(n, 6, generator=g),
        "grid": torch.randint(0, 3, (n, 3), generator=g).float(),
        "equal": torch.ones(n, 4),
        "few": x[:5],
    }


BATCHES = batches()


def searches(name, distance, **options):
    """Both searches, the exact one in one block and the fixed one in some."""
    x = BATCHES[name]
    labels = torch.randint(0, max(2, len(x) // 4), (len(x),), generator=torch.Generator().manual_seed(1))
    made = [
        Pairwise("test", x, labels, distance=as_distance("test", distance), tile_rows=h) for h in (None, 33)
    ]
    return ExactSearch(made[0], ordered=False), lambda **more: FixedShapeSearch(made[1], **options, **more)


def questions(search, block):
    """Everything that is asked of a block, [a, …] each."""
    positives, negatives = block.positives(), block.negatives()
    p = search.nearest(positives)[:, 0]
    bound = search.distances(block.rows, p.clamp(min=0))
    at, column = block.positive_pairs()
    above = search.nearest_above(negatives, at, search.distances(block.rows[at], column))
    per_row = torch.full((len(block.rows), 20), -2)
    place = torch.arange(len(at)) - torch.searchsorted(at, at)
    per_row[at, place] = above
    hardest = search.hardest(block.extremes())
    return torch.cat(
        [
            search.nearest(block.positives(farthest=True), 3),
            search.nearest(negatives, 2),
            search.nearest(negatives, 30),
            search.nearest(negatives, above=bound),
            torch.stack([p, search.farthest(negatives), *hardest], 1),
            per_row,
            search.closer_than(negatives, bound),
            search.closer_than(negatives, bound, equal=True),
            search.closer_than(block.positives(farthest=True), bound),
            search.closer_than(block.all_columns(), bound, equal=True, among=block.positive),
        ],
        dim=1,
    )


def answered(search):
    """The rows of all blocks, with what is answered for each."""
    found = [(block.rows, questions(search, block)) for block in search.blocks()]
    rows = torch.cat([rows for rows, _ in found])
    return rows, torch.cat([answers for _, answers in found])


@pytest.mark.parametrize("direct", [0, 2**30], ids=["rank keys", "exact tables"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", BATCHES)
def test_a_row_that_is_not_noted_is_answered_as_by_the_exact_search_and_again_exactly(name, distance, direct):
    exact, fixed = searches(name, distance)
    _, expected = answered(exact)
    with override(direct_numbers=direct):
        search = fixed()
        rows, found = answered(search)
    assert rows.tolist() == list(range(len(BATCHES[name])))
    ambiguous = search.ambiguous > 0
    assert torch.equal(found[~ambiguous], expected[~ambiguous])
    if direct or name == "random" or distance == "hamming":
        assert not ambiguous.any()
    (again,) = ambiguous.nonzero(as_tuple=True)
    if name == "equal" and not direct and distance != "hamming":
        assert len(again)  # nothing that a product proposes can be sure here
    if len(again):
        search = fixed(rows=again, exactly=True)
        rows, found = answered(search)
        assert torch.equal(rows, again)
        assert torch.equal(found, expected[again])
        assert not search.ambiguous.any()


def test_a_search_that_asks_for_no_differences_would_be_seen():
    """The batches do hold rows whose products are in another order than their distances."""
    exact, fixed = searches("near", "euclidean")
    _, expected = answered(exact)
    with override(direct_numbers=0):
        search = fixed()
        search._keys.error.zero_()  # as if products were exact
        rows, found = answered(search)
    assert not torch.equal(found, expected)
    assert len(rows) == len(BATCHES["near"])


def test_no_columns_give_no_blocks():
    pairwise = Pairwise(
        "test", torch.ones(0, 3), torch.ones(0, dtype=torch.int64), distance=as_distance("test", "dot")
    )
    assert list(FixedShapeSearch(pairwise).blocks()) == []
