import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.neighbors.shortlists import least_keys, shortlist
from tercet.pairwise.budget import override

KINDS = ("whole numbers", "floats", "few", "all equal", "periodic", "huge and tiny", "below zero")


def drawn(kind, rows, width, seed):
    """Keys of each row: with ties, with the least where a sample of every so-many-th has none, and so on."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, width, generator=generator)
    match kind:
        case "whole numbers":
            keys = keys.mul(3).round()
        case "few":
            keys[torch.rand(rows, width, generator=generator) < 0.9] = math.inf
            keys[0] = math.inf
        case "all equal":
            keys[:] = 1.5
        case "periodic":
            keys[:, torch.arange(width) % 8 > 0] -= 100
            keys[0, torch.arange(width) % 8 == 0] -= 1000
        case "huge and tiny":
            keys *= 10.0 ** torch.randint(-44, 38, keys.shape, generator=generator)
        case "below zero":
            keys = -keys.abs()
    return keys


def check(found, keys, count):
    values, at = found
    width = keys.shape[1]
    expected = torch.nn.functional.pad(keys.sort(1).values, (0, max(0, count - width)), value=math.inf)
    assert torch.equal(values, expected[:, :count])
    real = values < math.inf
    assert torch.equal(keys.gather(1, at)[real], values[real])
    for row, kept in zip(at, real, strict=True):
        assert len(set(row[kept].tolist())) == int(kept.sum())


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_a_shortlist_holds_the_smallest(group, count):
    keys = torch.randint(0, 40, (9, 64), generator=torch.Generator().manual_seed(0)).float()
    keys[0] = math.inf
    check(shortlist(keys, count, group), keys, count)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 9),
    st.integers(1, 600),
    st.integers(1, 40),
    st.integers(0, 2**16),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_the_least_keys_are_those_of_a_sort(kind, rows, width, count, seed, dtype):
    keys = drawn(kind, rows, width, seed).to(dtype)
    before = keys.clone()
    check(least_keys(keys, count), keys, count)
    assert torch.equal(keys, before)
    for share in (0, 2, 16):
        with override(sampled_share=share):
            check(least_keys(keys, count), keys, count)


def test_a_sample_that_promises_too_much_is_noticed():
    keys = drawn("periodic", 3, 4096, 0)
    keys[1:, ::8] = -1000.0  # all of the sample is below all else, and fewer than are wanted
    with override(sampled_share=64):
        check(least_keys(keys, 60), keys, 60)


def test_the_check_finds_a_wrong_list():
    keys = torch.tensor([[1.0, 2.0, 3.0]])
    for values, at in (([1.0, 3.0], [0, 2]), ([1.0, 2.0], [0, 0]), ([1.0, 1.0], [0, 0])):
        with pytest.raises(AssertionError):
            check((torch.tensor([values]), torch.tensor([at])), keys, 2)
