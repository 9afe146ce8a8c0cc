"""ShuffledSampler: a permutation an epoch, on every rank and in blocks."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchdata.stateful_dataloader import StatefulDataLoader

from tercet.data.samplers.shuffled import ShuffledSampler
from tests.helpers import (
    Rows,
    laws,
    loaded,
    plain,
    refusal_of,
    stateful,
)


@laws
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 1 << 40), st.integers(0, 5))
def test_shuffled_ranks_are_disjoint_and_cover(n, world_size, seed, epoch):
    samplers = [ShuffledSampler(n, seed=seed, rank=r, world_size=world_size) for r in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    assert {len(rows) for rows in ranks} == {len(sampler) for sampler in samplers} == {-(-n // world_size)}
    rows = [row for step in zip(*ranks, strict=True) for row in step]
    assert sorted(rows[:n]) == list(range(n))
    assert rows[n:] == [rows[i % n] for i in range(n, len(rows))]
    assert len(rows) - n < world_size
    assert [(row.epoch, row.view) for row in rows] == [(epoch, i // n) for i in range(len(rows))]


def test_shuffled_epochs_and_seeds_differ():
    sampler = ShuffledSampler(["any"] * 30)
    orders = [list(sampler) for _ in range(9)] + [list(ShuffledSampler(30, seed=1))]
    assert len({tuple(order) for order in orders}) == 10
    assert orders[0] == list(ShuffledSampler(30))


def test_shuffled_draws_of_100_million_rows_in_little_memory():
    tracemalloc.start()
    sampler = ShuffledSampler(10**8, rank=3, world_size=4)
    rows = list(islice(sampler, 9000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sampler) == 25_000_000
    assert len(set(rows)) == 9000
    assert peak < 10e6  # most of it the 9000 rows, with their epoch and view
    assert stats.kstest(np.array(rows) / 1e8, "uniform").pvalue > 1e-3


def test_shuffled_blocks_join_without_a_seam():
    assert sorted(ShuffledSampler(20_000)) == list(range(20_000))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": 0}, "ShuffledSampler(n=0): expected a whole number of at least 1"),
        ({"n": []}, "ShuffledSampler(n=0): expected a whole number of at least 1"),
        ({"n": 2.5}, "ShuffledSampler(n=2.5): expected a whole number of at least 1"),
        ({"n": 5, "rank": 1}, "ShuffledSampler(rank=1): expected a whole number from 0 to 0"),
        ({"n": 5, "world_size": 0}, "ShuffledSampler(world_size=0): expected a whole number of at least 1"),
    ],
)
def test_shuffled_arguments_out_of_range_are_refused(arguments, said):
    assert refusal_of(ShuffledSampler, **arguments) == said


@stateful
@pytest.mark.parametrize("stop", [0, 2, 4, "end"])
def test_shuffled_in_a_stateful_loader_whose_last_batch_is_small(stop):
    def fresh():
        return StatefulDataLoader(Rows(), sampler=ShuffledSampler(11), batch_size=3)

    rows = plain(ShuffledSampler(11)._items(epoch, 0, 11) for epoch in range(2))
    replay = [[epoch[i : i + 3] for i in range(0, 11, 3)] for epoch in rows]
    loader = fresh()
    seen = loaded(islice(loader, 5 if stop == "end" else stop))
    state = loader.state_dict()
    loader = fresh()
    loader.load_state_dict(state)
    if stop != "end":
        assert seen + loaded(loader) == replay[0]
    assert loaded(loader) == replay[1]
