"""Which image goes into which shard: the laws of the layouts, in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.shards.layouts import as_layout, by_class, mixed


def check_by_class(labels, shards, k):
    """The laws of the layout, in plain loops."""
    assert sorted(row for rows in shards for row in rows.tolist()) == list(range(len(labels)))
    sizes = {label: labels.count(label) for label in labels}
    homes = {}
    for shard, rows in enumerate(shards):
        assert len(rows)
        run, previous = 0, None
        for row in [*rows.tolist(), None]:
            label = None if row is None else labels[row]
            if row is not None:
                assert homes.setdefault(label, shard) == shard, "a class in two shards"
            if label != previous:
                assert previous is None or run >= min(k, sizes[previous]), "a group smaller than k"
                run = 0
            run, previous = run + 1, label


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=120),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 2**40),
)
def test_by_class_keeps_its_laws(labels, k, per, seed):
    check_by_class(labels, by_class(np.array(labels), k, per, seed), k)


def test_the_checker_of_the_layout_sees_a_breach():
    labels = [0, 0, 0, 0, 1, 1]
    check_by_class(labels, [np.array([0, 1, 4, 5, 2, 3])], 2)
    with pytest.raises(AssertionError, match="smaller than k"):
        check_by_class(labels, [np.array([0, 4, 5, 1, 2, 3])], 2)
    with pytest.raises(AssertionError, match="two shards"):
        check_by_class(labels, [np.array([0, 1, 4, 5]), np.array([2, 3])], 2)


def test_by_class_shuffles_groups_and_images_and_keeps_near_the_size():
    labels = np.repeat(np.arange(100), 40)
    shards = by_class(labels, 4, 500, 0)
    assert all(400 <= len(rows) <= 600 for rows in shards)
    rows = shards[0]
    changes = np.flatnonzero(np.diff(labels[rows])) + 1
    assert len(changes) > 2 * len(np.unique(labels[rows]))  # groups of a class lie apart
    assert max(np.diff(changes)) < 20
    assert not np.array_equal(rows, np.sort(rows))
    assert not np.array_equal(rows, by_class(labels, 4, 500, 1)[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 2**40))
def test_mixed_holds_each_row_once_in_equal_shards(n, per, seed):
    shards = mixed(n, per, seed)
    assert sorted(row for rows in shards for row in rows.tolist()) == list(range(n))
    assert max(map(len, shards)) <= per
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_old_name_of_a_layout_is_taken_with_a_warning():
    said = r"^f: the layout 'identity' is now called 'by_class'; the old name goes with version 0\.3$"
    with pytest.warns(DeprecationWarning, match=said):
        assert as_layout("f", "layout", "identity") == "by_class"
    assert [as_layout("f", "layout", name) for name in ("by_class", "mixed")] == ["by_class", "mixed"]
    with pytest.raises(ValueError, match="did you mean 'by_class'"):
        as_layout("f", "layout", "by_clas")
