"""Assignment of items to batches: exact counts, and water poured drop by drop."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.samplers.balanced_plan import assign, occurrences, water_fill
from tests.helpers import (
    laws,
)


@st.composite
def tables(draw):
    """Groups of items: the least count of each item, the batches of each group, the width of a batch."""
    width = draw(st.integers(1, 4))
    least, group, batches = [], [], []
    for g in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(0, 9), min_size=width, max_size=width + 6))
        batches.append(max(*counts, -(-sum(counts) // width)) + draw(st.integers(0, 9)))
        least += counts
        group += [g] * len(counts)
    shuffled = draw(st.permutations(range(len(group))))
    return [least[i] for i in shuffled], [group[i] for i in shuffled], batches, width


@settings(laws, max_examples=100)
@given(tables(), st.integers(0, 99))
def test_batches_come_out_full_and_each_item_gets_its_count(table, key):
    least, group, batches, width = (np.array(part) for part in table)
    counts = water_fill(least, group, batches, int(width), key)
    extra = counts - least
    for g in range(len(batches)):
        # Water, drop by drop: one more for the item that has got the least yet and is not in every batch.
        poured = [0] * len(least)
        for _ in range(int(batches[g] * width - least[group == g].sum())):
            open_ = [i for i in np.flatnonzero(group == g) if least[i] + poured[i] < batches[g]]
            poured[min(open_, key=lambda i: poured[i])] += 1
        assert sorted(extra[group == g]) == sorted(np.array(poured)[group == g])
        assert (counts <= batches[group]).all()
    plan = assign(counts, group, batches, int(width), key)
    assert plan.shape == (batches.sum(), width)
    assert np.bincount(plan.ravel(), minlength=len(counts)).tolist() == counts.tolist()
    assert all(len(set(batch)) == width for batch in plan.tolist())
    assert (group[plan] == np.repeat(np.arange(len(batches)), batches)[:, None]).all()
    seen = Counter()
    for entry, before in zip(plan.ravel().tolist(), occurrences(plan).ravel().tolist(), strict=True):
        assert before == seen[entry]
        seen[entry] += 1
