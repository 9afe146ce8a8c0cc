import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.neighbors.above import least_above


def of_row(keys, bound, error):
    """By a loop: the columns that may be the least above the bound, each key off by up to the error."""
    maybe = {c: k for c, k in enumerate(keys) if bound - error < k < math.inf}
    sure = [k for k in maybe.values() if k > bound + error]
    last = min(sure) + 2 * error if sure else math.inf
    return {c for c, k in maybe.items() if k <= last}


@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 6),
    width=st.integers(1, 9),
    bounds=st.integers(1, 4),
    error=st.sampled_from([0.0, 0.25, 1.0]),
    numbers=st.sampled_from([1, 20, 2**12]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_all_that_may_be_the_least_above_a_bound_are_listed(seed, rows, width, bounds, error, numbers, dtype):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randint(-5, 6, (rows, width), generator=g).to(dtype) / 2
    keys = keys.masked_fill(torch.rand(rows, width, generator=g) < 0.3, math.inf)
    bound = torch.randint(-6, 6, (rows, bounds), generator=g).to(dtype) / 2
    bound[torch.rand(rows, bounds, generator=g) < 0.2] = math.inf
    before = keys.clone()
    of_bound = torch.arange(rows).repeat_interleave(bounds)
    kept = torch.rand(len(of_bound), generator=g) < 0.8  # rows have unequal numbers of bounds
    of_bound, bound = of_bound[kept], bound.flatten()[kept]
    errors = torch.full((rows,), error, dtype=dtype)
    at, (place, column) = least_above(keys, of_bound, bound, errors, numbers)
    assert torch.equal(keys, before)
    assert place.tolist() == sorted(place.tolist())
    for i, (row, edge) in enumerate(zip(of_bound.tolist(), bound.tolist(), strict=True)):
        found = set(column[place == i].tolist())
        expected = of_row(keys[row].tolist(), edge, error)
        assert (at[i] == -1) == (not expected)
        if found:
            assert expected <= found  # an entry more is looked at in vain, one less would be wrong
            assert int(at[i]) in found
            assert not keys[row, list(found)].isinf().any()
        elif expected:
            assert {int(at[i])} == expected
            assert keys[row, at[i]] > edge + error


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_key_of_zero_is_above_the_number_before_it_and_not_above_zero(zero):
    keys, none = torch.tensor([[-1.0, zero]]), torch.zeros(1)
    before = -(2.0**-149)
    at, bounds = torch.zeros(3, dtype=torch.int64), torch.tensor([before, 0.0, -0.0])
    assert least_above(keys, at, bounds, none, 99)[0].tolist() == [1, -1, -1]


def test_keys_that_one_subtraction_cannot_tell_apart_are_all_listed():
    keys = torch.tensor([[1e-9, 2e-9, 5.0]])  # from a bound of −1 both are 1 away
    _, (place, column) = least_above(keys, torch.tensor([0]), torch.tensor([-1.0]), torch.zeros(1), 99)
    assert place.tolist() == [0, 0]
    assert column.tolist() == [0, 1]
