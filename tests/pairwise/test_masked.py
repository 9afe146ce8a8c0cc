import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.pairwise.budget import override
from tercet.pairwise.masked import compared, extreme_keys, first_places, kept_above, kept_where, true_places


@pytest.fixture(params=[0, 2**19], ids=["by torch", "by numpy"], autouse=True)
def size(request):
    with override(numpy_numbers=request.param, masked_numbers=request.param):
        yield


def table_of(seed, rows, columns, missing):
    g = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 6, (rows, columns), generator=g).float()
    return table.masked_fill_(torch.rand(rows, columns, generator=g) < missing, math.inf)


tables = given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    missing=st.sampled_from([0.0, 0.5, 1.0]),
)


@tables
@settings(max_examples=40, deadline=None)
def test_true_places_are_those_of_nonzero(seed, rows, columns, missing):
    mask = table_of(seed, rows, columns, missing) < 3
    for view in (mask, mask.T):
        assert torch.equal(torch.stack(true_places(view)).T, view.nonzero())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_mask_has_no_places(shape):
    row, column = true_places(torch.zeros(shape, dtype=torch.bool))
    assert row.dtype == column.dtype == torch.int64
    assert len(row) == len(column) == 0


@tables
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_kept_above_a_bound_is_strictly_above_it(seed, rows, columns, missing, inplace):
    table = table_of(seed, rows, columns, missing)
    before, bound = table.clone(), torch.arange(rows).float()
    bound[0], bound[-1] = -math.inf, math.inf
    kept = kept_above(bound, table, inplace)
    assert torch.equal(kept, before.masked_fill(before <= bound[:, None], math.inf))
    assert torch.equal(table, kept if inplace else before)


@tables
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("bounded", [False, True])
def test_the_first_place_of_a_row_and_what_may_come_before_it(seed, rows, columns, missing, bounded):
    table = table_of(seed, rows, columns, missing)
    before, slack = table.clone(), torch.arange(rows) / 4
    bound = torch.arange(rows).flip(0) / 2 if bounded else None
    place, (i, j), doubtful = first_places(table, slack, bound)
    assert torch.equal(table, before)
    assert i.dtype == j.dtype == doubtful.dtype == place.dtype == torch.int64
    for row, (numbers, width) in enumerate(zip(before.tolist(), slack.tolist())):
        edge = -math.inf if bound is None else float(bound[row])
        above = {column: number for column, number in enumerate(numbers) if edge - width < number < math.inf}
        others = j[i == row].tolist()
        if not above:
            assert place[row] == -1
            assert row not in doubtful
            assert not others
            continue
        least = min(above.values())
        assert above[int(place[row])] == least
        assert (row in doubtful) == (least <= edge + width)
        near = [column for column, number in above.items() if number <= least + 2 * width]
        assert others == (near if len(near) > 1 and row not in doubtful else [])


@tables
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("asked", [False, True])
def test_what_is_below_a_bound_and_what_may_be(seed, rows, columns, missing, asked):
    table = table_of(seed, rows, columns, missing)
    bound, slack = torch.arange(rows).float(), torch.full((rows,), 1.0)
    bound[rows // 2 :] = math.inf
    among = (
        table_of(seed + 1, rows, columns, 0.5) < 4 if asked else torch.ones(rows, columns, dtype=torch.bool)
    )
    below, places = compared(table, bound, slack, among if asked else None)
    assert torch.equal(below, (table < bound[:, None] - 1) & among)
    near = (table - bound[:, None]).abs() <= 1.0
    assert torch.equal(torch.stack(places).T, (near & among).nonzero())


@tables
@settings(max_examples=40, deadline=None)
def test_the_keys_of_positives_stand_negated_above_those_of_negatives(seed, rows, columns, missing):
    table = table_of(seed, rows, columns, 0.0)
    side = table_of(seed + 1, rows, columns, missing)
    above, below = extreme_keys(table, side < 2, side > 3).split(rows)
    assert torch.equal(above, torch.where(side < 2, -table, math.inf))
    assert torch.equal(below, torch.where(side > 3, table, math.inf))


@tables
@settings(max_examples=40, deadline=None)
def test_what_is_not_kept_is_infinite(seed, rows, columns, missing):
    table, mask = table_of(seed, rows, columns, missing), table_of(seed + 1, rows, columns, 0.5) < 4
    expected = torch.where(mask, table, math.inf)
    before = table.clone()
    assert torch.equal(kept_where(mask, table), expected)
    assert torch.equal(table, before)
    for part in (table, torch.cat([table, table], 1)[:, columns:]):  # also of a wider one
        assert kept_where(mask, part, inplace=True) is part
        assert torch.equal(part, expected)
