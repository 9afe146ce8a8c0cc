"""Groups out of a stream: the laws by plain counting, on streams drawn by hypothesis."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.core.checks import border
from tercet.data.streams.class_buffer import ClassBuffer, Group, checked_sizes

laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def played(labels, *arguments, **keywords):
    """The buffer and the batches of a stream in which item n is the number n."""
    buffer = ClassBuffer(*arguments, **keywords)
    batches = []
    for number, label in enumerate(labels):
        batches += buffer.put(label, number, str(number))
        held = buffer.buffered()
        assert sum(map(len, held.values())) <= buffer.size
        assert all(len(items) <= buffer.cap for items in held.values())
    return buffer, batches + list(buffer.flush())


def faults(batches, labels, p, k, on_short):
    """What is wrong with batches, by plain counting."""
    found, times = [], Counter()
    for place, batch in enumerate(batches):
        if len(batch) != p or len({group.label for group in batch}) != p:
            found.append(f"batch {place}: not {p} classes")
        for group in batch:
            counts = Counter(group.items)
            if len(group.items) != k:
                found.append(f"batch {place}: {len(group.items)} of a class")
            if any(labels[item] != group.label for item in group.items):
                found.append(f"batch {place}: an item of another class")
            if len(counts) < 2 or max(counts.values()) - min(counts.values()) > 1:
                found.append(f"batch {place}: {dict(counts)} is no even repetition of two or more")
            for item, view in zip(group.items, group.views, strict=True):
                if view != times[item]:
                    found.append(f"batch {place}: item {item} says view {view}")
                times[item] += 1
    if on_short != "repeat" and max(times.values(), default=1) > 1:
        found.append("an item twice")
    return found, times


@st.composite
def streams(draw):
    p, k = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(0, 3 * p), max_size=120))
    if draw(st.booleans()):
        labels.sort()
    buffer = draw(st.integers(p * k, 6 * p * k))
    cap = draw(st.none() | st.integers(k, buffer // p))
    return labels, p, k, buffer, cap, draw(st.sampled_from(["repeat", "drop"])), draw(st.integers(0, 99))


@laws
@given(streams())
def test_batches_are_exactly_p_times_k_and_each_item_is_accounted_for(case):
    labels, p, k, buffer, cap, on_short, key = case
    held, batches = played(labels, p, k, buffer=buffer, cap=cap, on_short=on_short, key=key)
    found, times = faults(batches, labels, p, k, on_short)
    assert not found
    assert held.seen == len(labels)
    assert held.used == len(times)
    assert held.seen == held.used + sum(held.dropped.values())
    assert held.batches == len(batches)
    assert not held.buffered()
    assert played(labels, p, k, buffer=buffer, cap=cap, on_short=on_short, key=key)[1] == batches


def test_the_checker_sees_what_is_wrong():
    labels = [0, 0, 1, 1]
    right = [[Group(0, [0, 1], [0, 0]), Group(1, [2, 3], [0, 0])]]
    assert not faults(right, labels, 2, 2, "drop")[0]
    wrong = [
        [right[0][:1]],
        [[right[0][0]] * 2],
        [[Group(0, [0], [0]), right[0][1]]],
        [[Group(0, [0, 2], [0, 0]), right[0][1]]],
        [[Group(0, [0, 0], [0, 1]), right[0][1]]],
        [[Group(0, [0, 1], [0, 1]), right[0][1]]],
        right + right,
    ]
    assert all(faults(batches, labels, 2, 2, "drop")[0] for batches in wrong)


def test_with_room_for_all_every_class_of_two_is_used_whole():
    sizes = [2, 3, 4, 5, 6, 7, 8, 9]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    held, _ = played(labels, 1, 4, buffer=1000)
    assert held.used == held.seen == sum(sizes)
    held, batches = played(labels, 1, 4, buffer=1000, on_short="drop")
    assert held.used == sum(size // 4 * 4 for size in sizes) == 4 * len(batches)


def test_a_class_that_fills_the_stream_leaves_room_for_the_next():
    # Each class comes whole before the next, and is larger than the buffer.
    labels = [label for label in range(4) for _ in range(500)]
    held, batches = played(labels, 4, 2, buffer=32)
    assert len(batches) >= 4
    assert set(held.dropped) <= {"more than cap of its class", "fewer than p classes at the end"}


@pytest.mark.parametrize("buffer", [32, 35, 60, 150])
@pytest.mark.parametrize(("classes", "least"), [(4, 0.85), (5, 0.93)])
def test_about_p_classes_are_used_though_they_never_fill_the_buffer(buffer, classes, least):
    # 4 classes of at most 35 // 4 items each are 32 items and never 35.
    draw = random.Random(buffer)
    labels = [draw.randrange(classes) for _ in range(2000)]
    held, _ = played(labels, 4, 2, buffer=buffer)
    assert held.used >= least * len(labels)


def test_the_buffer_stays_half_full_for_a_class_that_comes_often():
    draw = random.Random(0)
    labels = [0 if draw.random() < 0.5 else draw.randrange(1, 200) for _ in range(4000)]
    buffer, least = ClassBuffer(4, 2, buffer=64, on_short="drop"), []
    for number, label in enumerate(labels):
        before = sum(map(len, buffer.buffered().values()))
        if any(buffer.put(label, number)):
            least.append(before)
    assert len(least) > 20
    assert 32 <= min(least) < 64
    assert buffer.dropped["more than cap of its class"]


def test_of_a_full_class_any_items_stay():
    stayed = Counter()
    for key in range(400):
        held, batches = played([0] * 8 + [1] * 4, 2, 2, buffer=8, cap=4, key=key)
        stayed.update(item for batch in batches for group in batch for item in group.items if item < 8)
    shares = [stayed[item] / 400 for item in range(8)]
    assert min(shares) > 0.3
    assert held.dropped["more than cap of its class"] == 4


def test_keys_and_names_change_the_draws():
    labels = [n // 4 for n in range(200)]
    _, batches = played(labels, 4, 2, buffer=64, key=0)
    assert batches != played(labels, 4, 2, buffer=64, key=1)[1]
    unnamed = ClassBuffer(4, 2, buffer=64, key=0)
    others = [batch for n, label in enumerate(labels) for batch in unnamed.put(label, n)]
    assert others != batches[: len(others)]


def test_error_names_the_class_and_the_way_out():
    labels = [0] * 4 + [1] * 3
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        played(labels, 1, 4, on_short="error", caller="pk_batched")
    assert str(caught.value) == (
        'pk_batched(k=4, on_short="error"): class 1 leaves the buffer with 3 of 4 images; raise buffer=16 if '
        'more of it follow, or pass on_short="repeat" or "drop"'
    )
    held, batches = played([0] * 4 + [1] * 4, 1, 4, on_short="error")
    assert (held.used, len(batches)) == (8, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 2, None, None), "f(p=0): expected a whole number of at least 1"),
        ((2, 1, None, None), "f(k=1): expected a whole number of at least 2"),
        ((2, 3, 5, None), "f(buffer=5): expected at least p · k = 6 images"),
        ((2, 3, 12, 7), "f(cap=7): expected a whole number from 3 to 6"),
        ((2, 3, 12, 2), "f(cap=2): expected a whole number from 3 to 6"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(arguments, said):
    with pytest.raises(ValueError) as caught, border("f"):  # noqa: PT011
        checked_sizes(*arguments)
    assert str(caught.value) == said
