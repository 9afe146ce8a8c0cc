import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet import small_tables
from tercet.small_tables import compared, extreme_keys, fill_where, first_places, true_places


@pytest.fixture(params=[0, 2**19], ids=["by torch", "by numpy"], autouse=True)
def size(request, monkeypatch):
    monkeypatch.setattr(small_tables, "_SMALL", request.param)


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
def test_the_first_place_of_a_row_and_who_else_is_near(seed, rows, columns, missing):
    table = table_of(seed, rows, columns, missing)
    before, slack = table.clone(), torch.arange(rows) / 4
    place, bound, unsure = first_places(table, slack)
    assert torch.equal(table, before)
    for row, numbers in enumerate(before.tolist()):
        least = min(numbers)
        if least == math.inf:
            assert place[row] == -1
            assert row not in unsure
            continue
        assert numbers[place[row]] == least
        assert bound[row] == least + 2 * float(slack[row])
        near = [number for number in numbers if number <= bound[row]]
        assert (row in unsure) == (len(near) > 1)


@tables
@settings(max_examples=40, deadline=None)
def test_what_is_less_and_what_is_near_a_bound(seed, rows, columns, missing):
    table = table_of(seed, rows, columns, missing)
    bound, slack = torch.arange(rows).float(), torch.full((rows,), 1.0)
    less, near = compared(table, bound, slack)
    assert torch.equal(less, table < bound[:, None])
    assert torch.equal(near, (table - bound[:, None]).abs() <= 1.0)


@tables
@settings(max_examples=40, deadline=None)
def test_the_keys_of_positives_stand_negated_above_those_of_negatives(seed, rows, columns, missing):
    table = table_of(seed, rows, columns, 0.0)
    side = table_of(seed + 1, rows, columns, missing)
    above, below = extreme_keys(table, side < 2, side > 3).split(rows)
    assert torch.equal(above, torch.where(side < 2, -table, math.inf))
    assert torch.equal(below, torch.where(side > 3, table, math.inf))


def test_a_view_is_filled_in_place():
    table = torch.zeros(3, 5)
    part = table[:, 1:3]
    assert fill_where(torch.tensor([[True, False]] * 3), part, math.inf) is part
    assert table.isinf().nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
