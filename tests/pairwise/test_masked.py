import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.pairwise import masked
from tercet.pairwise.budget import override
from tercet.pairwise.masked import below_bound, kept_above, kept_where, row_argmin, signed_keys, true_places


def both(operation):
    """A test of the two forms of an operation."""
    forms = [getattr(masked, f"{operation}_{library}") for library in ("torch", "numpy")]
    return pytest.mark.parametrize(operation, forms, ids=["by torch", "by numpy"])


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
@both("kept_above")
def test_what_is_kept_above_a_bound_is_strictly_above_it(kept_above, seed, rows, columns, missing, inplace):
    table = table_of(seed, rows, columns, missing)
    before, bound = table.clone(), torch.arange(rows).float()
    bound[0], bound[-1] = -math.inf, math.inf
    kept = kept_above(bound, table, inplace)
    assert torch.equal(kept, before.masked_fill(before <= bound[:, None], math.inf))
    assert torch.equal(table, kept if inplace else before)


@tables
@settings(max_examples=40, deadline=None)
@both("row_argmin")
def test_the_first_place_of_a_row_and_what_may_come_before_it(row_argmin, seed, rows, columns, missing):
    table = table_of(seed, rows, columns, missing)
    before, error = table.clone(), torch.arange(rows) / 4
    place, (i, j) = row_argmin(table, error)
    assert torch.equal(table, before)
    assert i.dtype == j.dtype == place.dtype == torch.int64
    for row, (numbers, width) in enumerate(zip(before.tolist(), error.tolist(), strict=True)):
        kept = {column: number for column, number in enumerate(numbers) if number < math.inf}
        others = j[i == row].tolist()
        if not kept:
            assert place[row] == -1
            assert not others
            continue
        least = min(kept.values())
        assert kept[int(place[row])] == least
        near = [column for column, number in kept.items() if number <= least + 2 * width]
        assert others == (near if len(near) > 1 else [])


@tables
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("asked", [False, True])
@both("below_bound")
def test_what_is_below_a_bound_and_what_may_be(below_bound, seed, rows, columns, missing, asked):
    table = table_of(seed, rows, columns, missing)
    bound, error = torch.arange(rows).float(), torch.full((rows,), 1.0)
    bound[rows // 2 :] = math.inf
    among = (
        table_of(seed + 1, rows, columns, 0.5) < 4 if asked else torch.ones(rows, columns, dtype=torch.bool)
    )
    below, places = below_bound(table, bound, error, among if asked else None)
    assert torch.equal(below, (table < bound[:, None] - 1) & among)
    near = (table - bound[:, None]).abs() <= 1.0
    assert torch.equal(torch.stack(places).T, (near & among).nonzero())


@tables
@settings(max_examples=40, deadline=None)
@both("signed_keys")
def test_the_keys_of_positives_stand_negated_above_those_of_negatives(
    signed_keys, seed, rows, columns, missing
):
    table = table_of(seed, rows, columns, 0.0)
    side = table_of(seed + 1, rows, columns, missing)
    above, below = signed_keys(table, side < 2, side > 3).split(rows)
    assert torch.equal(above, torch.where(side < 2, -table, math.inf))
    assert torch.equal(below, torch.where(side > 3, table, math.inf))


@tables
@settings(max_examples=40, deadline=None)
@both("kept_where")
def test_what_is_not_kept_is_infinite(kept_where, seed, rows, columns, missing):
    table, mask = table_of(seed, rows, columns, missing), table_of(seed + 1, rows, columns, 0.5) < 4
    expected = torch.where(mask, table, math.inf)
    before = table.clone()
    assert torch.equal(kept_where(mask, table, False), expected)
    assert torch.equal(table, before)
    for part in (table, torch.cat([table, table], 1)[:, columns:]):  # also of a wider one
        assert kept_where(mask, part, inplace=True) is part
        assert torch.equal(part, expected)


def results(operation, table, rows, side):
    """What an operation gives on a table, with whatever else it takes; as a list of tensors."""
    bound, error = torch.arange(rows).float(), torch.arange(rows) / 4
    given = {
        kept_where: (side, table),
        kept_above: (bound, table),
        signed_keys: (table, side, ~side),
        row_argmin: (table, error),
        below_bound: (table, bound, error),
    }[operation]
    found = operation(*given)
    found = found if isinstance(found, tuple) else (found,)
    return [v for part in found for v in (part if isinstance(part, tuple) else (part,))]


@tables
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("operation", [kept_where, kept_above, signed_keys, row_argmin, below_bound])
def test_an_operation_gives_the_same_on_both_sides_of_its_size(operation, seed, rows, columns, missing):
    table, side = table_of(seed, rows, columns, missing), table_of(seed + 1, rows, columns, 0.5) < 3
    found = []
    # By torch, in parts of a row; by numpy, with a count of what is close and without.
    for numbers, counted in ((0, 0), (rows * columns, rows * columns), (rows * columns, 0)):
        with override(numpy_numbers=numbers, masked_numbers=numbers, counted_numbers=counted):
            found.append(results(operation, table, rows, side))
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("numbers", [11, 12])
def test_a_table_of_the_size_goes_to_numpy_and_a_larger_one_to_torch(numbers):
    asked = []
    with pytest.MonkeyPatch.context() as patch, override(numpy_numbers=numbers):
        for form in ("kept_where_numpy", "kept_where_torch"):
            patch.setattr(masked, form, lambda *given, form=form: asked.append(form) or given[1])
        kept_where(torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 4))
    assert asked == ["kept_where_numpy" if numbers == 12 else "kept_where_torch"]
