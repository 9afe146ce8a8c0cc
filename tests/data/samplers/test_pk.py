"""Samplers: every law on epochs drawn by hypothesis, against plain loops that count."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from itertools import chain, combinations, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tercet.core.randomness import KeyedRow
from tercet.data.catalog.catalog import Catalog
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.samplers import balanced_plan
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tests.helpers import (
    UNEVEN,
    Rows,
    epoch_of,
    labels_of,
    laws,
    loaded,
    plain,
    refusal_of,
    stateful,
)

pytestmark = pytest.mark.filterwarnings("ignore:PKSampler.p=1.. a batch of one class")

torch.set_num_threads(1)


# What is drawn, and what is counted.


def faults(steps, labels, p, k, epoch):
    """What is wrong with an epoch, given as [step][rank] batches of (row, epoch, view); by plain counting."""
    sizes, drawn, found = Counter(labels), Counter(), []
    for step, batches in enumerate(steps):
        classes = []
        for batch in batches:
            if len(batch) != p * k:
                found.append(f"step {step}: {len(batch)} rows")
            for start in range(0, len(batch), k):
                rows = [row for row, _, _ in batch[start : start + k]]
                here = {labels[row] for row in rows}
                if len(here) != 1:
                    found.append(f"step {step}: {k} rows side by side of {len(here)} classes")
                classes += sorted(here)
                times = Counter(rows)
                if (
                    len(times) != min(k, sizes[labels[rows[0]]])
                    or max(times.values()) - min(times.values()) > 1
                ):
                    found.append(f"step {step}: images repeated unevenly")
            for row, its_epoch, view in batch:
                if (its_epoch, view) != (epoch, drawn[row]):
                    found.append(f"step {step}: row {row} says epoch {its_epoch}, view {view}")
                drawn[row] += 1
        if len(set(classes)) != p * len(batches):
            found.append(f"step {step}: {len(set(classes))} distinct classes")
    by_class = defaultdict(list)
    for row, label in enumerate(labels):
        by_class[label].append(drawn[row])
    uneven = [label for label, counts in by_class.items() if max(counts) - min(counts) > 1]
    return found + [f"class {label}: images drawn unevenly" for label in uneven], by_class


def ranks_of(labels, world_size=1, **arguments):
    return [PKSampler(labels, rank=rank, world_size=world_size, **arguments) for rank in range(world_size)]


def steps_of(samplers, epoch):
    return list(zip(*(epoch_of(sampler, epoch) for sampler in samplers), strict=True))


def warned(*arguments, **keywords):
    """A PKSampler, and the sentences that its construction warns with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler = PKSampler(*arguments, **keywords)
    assert all(warning.category is UserWarning for warning in caught)
    return sampler, [str(warning.message) for warning in caught]


# The laws of the contract.


@st.composite
def cases(draw, with_supers=False):
    k = draw(st.integers(2, 5))
    world_size = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    each = draw(st.integers(1, 3))
    arguments = {
        "p": groups * each if with_supers else each,
        "k": k,
        "seed": draw(st.integers(0, 1 << 40)),
        "world_size": world_size,
        "short_classes": draw(st.sampled_from(["repeat", "skip"])),
        "epoch_length": draw(st.sampled_from(["every_image", "every_label", 1, 7])),
    }
    least = 2 if arguments["short_classes"] == "repeat" else k
    size = st.one_of(st.integers(least, 12), st.sampled_from([40]))
    if not with_supers:
        need = each * world_size
        sizes = draw(st.lists(size, min_size=need, max_size=need + 8))
        return sizes, None, arguments
    need = groups * world_size
    family = st.lists(size, min_size=each, max_size=each + 3)
    families = draw(st.lists(family, min_size=need, max_size=need + 3))
    sizes = [size for family in families for size in family]
    super_of = [f"family {f}" for f, family in enumerate(families) for _ in family]
    return sizes, super_of, arguments | {"supers_per_batch": groups}


def least_of(sizes, k, epoch_length):
    return [{"every_image": -(-n // k), "every_label": 1}.get(epoch_length, 0) for n in sizes]


@laws
@given(cases(), st.integers(0, 3))
def test_exactly_p_classes_of_k_images_and_all_covered(case, epoch):
    sizes, _, arguments = case
    labels = labels_of(sizes)
    samplers = ranks_of(labels, **arguments)
    steps = steps_of(samplers, epoch)
    found, by_class = faults(steps, labels, arguments["p"], arguments["k"], epoch)
    assert not found
    least = least_of(sizes, arguments["k"], arguments["epoch_length"])
    width = arguments["p"] * arguments["world_size"]
    length = arguments["epoch_length"]
    if isinstance(length, str):
        length = max(*least, -(-sum(least) // width))
    assert {len(sampler) for sampler in samplers} == {len(steps)} == {length}
    if arguments["epoch_length"] == "every_image":
        assert min(min(counts) for counts in by_class.values()) >= 1
    # Surplus appearances: as many as any other class, to within one, or in every step.
    surplus = {label: sum(counts) // arguments["k"] - least[label] for label, counts in by_class.items()}
    free = [extra for label, extra in surplus.items() if extra + least[label] < length]
    assert min(surplus.values()) >= 0
    assert not free or max(surplus.values()) - min(free) <= 1


@laws
@given(cases(with_supers=True), st.integers(0, 3))
def test_super_labels_share_each_batch(case, epoch):
    sizes, super_of, arguments = case
    labels = labels_of(sizes)
    samplers = ranks_of(labels, super_labels=[super_of[label] for label in labels], **arguments)
    steps = steps_of(samplers, epoch)
    found, by_class = faults(steps, labels, arguments["p"], arguments["k"], epoch)
    assert not found
    assert {len(sampler) for sampler in samplers} == {len(steps)}
    if arguments["epoch_length"] in ("every_image", "every_label"):
        picked = {"every_image": min, "every_label": max}[arguments["epoch_length"]]
        assert min(picked(counts) for counts in by_class.values()) >= 1
    for batches in steps:
        supers = [Counter(super_of[labels[row]] for row, _, _ in batch) for batch in batches]
        each = arguments["p"] // arguments["supers_per_batch"] * arguments["k"]
        assert all(set(counts.values()) == {each} for counts in supers)
        assert len(set().union(*supers)) == arguments["supers_per_batch"] * arguments["world_size"]


@laws
@given(cases())
def test_ranks_are_slices_of_one_plan(case):
    sizes, _, arguments = case
    labels = labels_of(sizes)
    samplers = ranks_of(labels, **arguments)
    whole = PKSampler(labels, **arguments | {"p": arguments["p"] * len(samplers), "world_size": 1})
    assert [list(chain(*batches)) for batches in steps_of(samplers, 2)] == epoch_of(whole, 2)


@pytest.mark.parametrize("supers", [None, [0] * len(UNEVEN)], ids=["classes", "one super-label"])
def test_epochs_differ_and_seeds_differ(supers):
    sampler, other = (PKSampler(UNEVEN, p=4, k=2, seed=seed, super_labels=supers) for seed in (5, 6))
    epochs = [list(sampler) for _ in range(20)] + [list(other)]
    assert len({str(epoch) for epoch in epochs}) == 21
    for batches in zip(*epochs, strict=True):
        assert len({tuple(sorted(batch)) for batch in batches}) > 10
        assert len({tuple(sorted(UNEVEN[row] for row in batch)) for batch in batches}) > 10


def test_iterating_gives_the_batches_and_asking_in_any_order_does_too():
    sampler = PKSampler(UNEVEN, p=3, k=3)
    replay = plain(sampler)
    assert replay == epoch_of(sampler, 0)
    asked = {step: plain([PKSampler(UNEVEN, p=3, k=3).batch(0, step)])[0] for step in (4, 0, 2)}
    assert all(replay[step] == batch for step, batch in asked.items())
    assert all(
        type(row) is KeyedRow and row.epoch == 0 for batch in PKSampler(UNEVEN, p=3, k=3) for row in batch
    )


def test_blocks_computed_ahead_do_not_show(monkeypatch):
    long = epoch_of(PKSampler(UNEVEN, p=3, k=3, epoch_length=40), 0)
    monkeypatch.setattr("tercet.data.samplers.pk.BLOCK_ROWS", 30)
    assert plain(PKSampler(UNEVEN, p=3, k=3, epoch_length=40)) == long
    assert list(ShuffledSampler(100)) == list(ShuffledSampler(range(100)))
    assert sorted(ShuffledSampler(100)) == list(range(100))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda labels: np.array(labels, np.uint8)])
def test_labels_of_any_kind_give_the_same_batches(convert):
    assert epoch_of(PKSampler(convert(UNEVEN), p=4, k=2), 0) == epoch_of(PKSampler(UNEVEN, p=4, k=2), 0)


# The checker itself: an epoch without fault, and one fault at a time brought into it.


def spoilt_view(steps):
    row, epoch, view = steps[1][0][0]
    steps[1][0][0] = row, epoch, view + 1


def spoilt_order(steps):
    steps[0][0][0], steps[0][0][-1] = steps[0][0][-1], steps[0][0][0]


def spoilt_class(steps):
    steps[0][0][2:4] = [(row, epoch, view + 1) for row, epoch, view in steps[0][0][:2]]


def spoilt_images(steps):
    steps[0][0][1] = (*steps[0][0][0][:2], 1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt_view, "step 1: row"),
        (spoilt_order, "step 0: 2 rows side by side of 2 classes"),
        (spoilt_class, "step 0: 2 distinct classes"),
        (spoilt_images, "step 0: images repeated unevenly"),
        (lambda steps: steps[0][0].pop(), "step 0: 5 rows"),
        (lambda steps: steps.extend(copy.deepcopy(steps[:1] * 9)), "images drawn unevenly"),
    ],
)
def test_the_checker_names_every_fault(spoil, said):
    labels = labels_of([4, 4, 4, 4, 4])
    steps = [list(batches) for batches in steps_of(ranks_of(labels, p=3, k=2), 0)]
    assert faults(steps, labels, 3, 2, 0)[0] == []
    spoil(steps)
    assert any(said in fault for fault in faults(steps, labels, 3, 2, 0)[0])


# The cases that broke another library.


def test_case_fewer_classes_than_p():
    labels = labels_of([2] * 3 + [5] * 6)
    said = refusal_of(PKSampler, labels, p=16, k=4)
    assert said == "PKSampler(p=16): only 9 classes have 2 images or more; lower p"
    said = refusal_of(PKSampler, labels, p=8, k=4, short_classes="skip")
    assert said == (
        'PKSampler(p=8): only 6 classes have 4 images or more; lower p or pass short_classes="repeat"'
    )
    said = refusal_of(PKSampler, labels, p=10, k=4, short_classes="skip")  # "repeat" would give 9
    assert said == "PKSampler(p=10): only 6 classes have 4 images or more; lower p"
    said = refusal_of(PKSampler, [0] * 3, p=2, k=3, short_classes="error")
    assert said == "PKSampler(p=2): only 1 class has 3 images or more; lower p"
    said = refusal_of(PKSampler, ["ant", "bee"], p=1, k=2)
    assert said == "PKSampler(p=1): only 0 classes have 2 images or more; lower p"


def test_case_p_times_world_size_exceeds_the_classes():
    labels = labels_of([4] * 9)
    said = refusal_of(PKSampler, labels, p=5, k=2, world_size=2, rank=1)
    assert said == (
        "PKSampler(p=5, world_size=2): only 9 classes have 2 images or more, and a step needs 10; "
        "lower p or lower world_size"
    )
    said = refusal_of(PKSampler, labels, p=4, k=5, world_size=2, short_classes="skip")
    assert said.endswith('; lower p or lower world_size or pass short_classes="repeat"')


def test_case_class_sizes_5_5_100():
    labels = labels_of([5, 5, 100])
    sampler = PKSampler(labels, p=2, k=5)
    assert len(sampler) == 20
    found, by_class = faults([[batch] for batch in epoch_of(sampler, 0)], labels, 2, 5, 0)
    assert not found
    assert by_class[2] == [1] * 100
    assert by_class[0] == by_class[1] == [10] * 5


def test_case_10_classes_of_6000_images():
    labels = np.repeat(np.arange(10), 6000)
    sampler = PKSampler(labels, p=5, k=4)
    assert len(sampler) == 3000
    rows = np.array([[int(row) for row in batch] for batch in sampler])
    assert np.array_equal(np.sort(rows.ravel()), np.arange(60_000))
    assert all(len(set(batch)) == 5 for batch in labels[rows].reshape(3000, 5, 4)[:, :, 0].tolist())


def test_case_a_class_of_one_image():
    labels = ["ant", "bee", "bee", "cow", "cow", "cow", "dog"]
    sampler, said = warned(labels, p=2, k=2)
    assert said == [
        "PKSampler(k=2): left out 2 classes (2 images): 2 of fewer than 2 images, such as 'ant'; "
        "add images (a positive pair takes 2) or drop them from the labels"
    ]
    assert sampler.left_out == {"ant": 1, "dog": 1}
    assert all({labels[row] for row in batch} == {"bee", "cow"} for batch in sampler)
    assert all(len(set(batch)) == 4 for batch in sampler)


def test_case_string_labels_in_two_processes():
    program = (
        "import json, random, sys; import numpy as np\n"
        "from tercet.data.samplers.pk import PKSampler\n"
        "from tercet.data.samplers.shuffled import ShuffledSampler\n"
        "state = lambda: repr(random.getstate()) + repr(np.random.get_state())\n"
        "before = state()\n"
        "labels = [f'class {i * i % 7}' for i in range(60)]\n"
        "sampler = PKSampler(labels, p=3, k=4, seed=9)\n"
        "rows = [[int(row) for row in batch] for batch in sampler], list(ShuffledSampler(9))\n"
        "print(json.dumps([*rows, 'torch' in sys.modules, state() == before]))"
    )
    printed = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    sampler = PKSampler([f"class {i * i % 7}" for i in range(60)], p=3, k=4, seed=9)
    rows, shuffled, torch_loaded, generators_rest = json.loads(printed.pop())
    assert rows == [[int(row) for row in batch] for batch in sampler]
    assert shuffled == list(ShuffledSampler(9))
    assert not torch_loaded
    assert generators_rest  # no global generator was read or moved


@pytest.mark.parametrize("epoch_length", ["every_image", "every_label", 13])
def test_case_the_length_is_exact(epoch_length):
    sampler = PKSampler(labels_of([10] * 10), p=3, k=4, epoch_length=epoch_length)
    assert [len(list(sampler)) for _ in range(3)] == [len(sampler)] * 3
    assert len(sampler) == {"every_image": 10, "every_label": 4}.get(epoch_length, 13)


def test_case_a_batch_of_a_single_class():
    # 60 images of one class outlast all others: its last batches must still have company.
    labels = labels_of([60, 2, 2, 2])
    batches = epoch_of(PKSampler(labels, p=2, k=2), 0)
    assert all(len({labels[row] for row, _, _ in batch}) == 2 for batch in batches)
    # Where it is asked for, it is given: other ranks, or a memory, bring the negatives.
    assert all(len({labels[row] for row in batch}) == 1 for batch in PKSampler(labels, p=1, k=2))


@stateful
@pytest.mark.parametrize("stop", [0, 1, 4, 7, 8, "end"])
def test_case_saved_mid_epoch_with_prefetching_workers(stop):
    def fresh(num_workers):
        sampler = PKSampler(UNEVEN, p=4, k=2, seed=3)
        return StatefulDataLoader(Rows(), batch_sampler=sampler, num_workers=num_workers)

    probe = PKSampler(UNEVEN, p=4, k=2, seed=3)
    replay = {epoch: epoch_of(probe, epoch) for epoch in range(3)}
    count = len(probe)
    for num_workers in (0, 2) if stop in (4, "end") else (2,):
        loader = fresh(num_workers)
        assert loaded(loader) == replay[0]
        running = iter(loader)
        seen = loaded(islice(running, count + 1 if stop == "end" else min(stop, count)))
        state = json.loads(json.dumps(loader.state_dict()))
        loader = fresh(num_workers)
        loader.load_state_dict(state)
        if stop != "end":  # after the end of an epoch the next one follows at once
            assert seen + loaded(loader) == replay[1]
        assert loaded(loader) == replay[2]


@pytest.mark.parametrize("of_loader", [True, False])
def test_case_saved_after_the_last_batch_but_before_the_end(of_loader):
    sampler = PKSampler(UNEVEN, p=4, k=2)
    running = iter(sampler)
    for _ in range(len(sampler)):
        next(running)
    state = sampler.state_dict()
    assert state == running.state_dict()
    resumed = PKSampler(UNEVEN, p=4, k=2)
    resumed.load_state_dict(state)
    assert plain(resumed) == []
    assert plain(resumed) == epoch_of(sampler, 1)
    # After the end was seen, the state is the beginning of the next epoch.
    assert next(running, None) is None
    resumed.load_state_dict(sampler.state_dict())
    assert plain(resumed) == epoch_of(sampler, 1)


def test_case_set_epoch_with_persistent_workers():
    sampler = PKSampler(UNEVEN, p=4, k=2)
    loader = DataLoader(Rows(), batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for epoch in (3, 1, 3):
        sampler.set_epoch(epoch)
        assert loaded(loader) == epoch_of(sampler, epoch)
    assert loaded(loader) == epoch_of(sampler, 4)


@pytest.mark.parametrize("persistent", [True, False])
def test_plain_loader_with_workers_goes_from_epoch_to_epoch(persistent):
    sampler = PKSampler(UNEVEN, p=4, k=2)
    loader = DataLoader(Rows(), batch_sampler=sampler, num_workers=2, persistent_workers=persistent)
    assert len(loader) == len(sampler)
    for epoch in range(3):
        assert loaded(loader) == epoch_of(sampler, epoch)


def calls_to_plan(classes):
    """How many of tercet's functions are entered to construct a sampler and draw its first batch."""
    labels = np.arange(20 * classes) % classes
    entered = 0

    def count(frame, event, argument):
        nonlocal entered
        entered += event == "call" and frame.f_globals.get("__name__", "").startswith("tercet")

    sys.setprofile(count)
    try:
        sampler = PKSampler(labels, p=32, k=4)
        next(iter(sampler))
    finally:
        sys.setprofile(None)
    return entered, sampler, labels


def test_case_a_million_images_of_50_000_classes():
    few, _, _ = calls_to_plan(500)
    many, sampler, labels = calls_to_plan(50_000)
    assert many < few + 100  # no loop over classes, images or steps
    assert len(sampler) == 7813
    classes, turns = sampler._planned(0)
    rows = np.sort(classes, axis=1)
    assert (rows[:, 1:] != rows[:, :-1]).all()
    assert set(np.bincount(classes.ravel()).tolist()) == {5, 6}
    assert np.array_equal(np.bincount(turns.ravel())[:5], [50_000] * 5)
    assert len(set(labels[[int(row) for row in sampler.batch(0, 7812)]].tolist())) == 32
    assert len(json.dumps(sampler.state_dict())) < 300


# Arguments, and what is left out.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"p": 0}, "PKSampler(p=0): expected a whole number of at least 1"),
        ({"k": 0}, "PKSampler(k=0): expected a whole number of at least 1"),
        ({"seed": -1}, "PKSampler(seed=-1): expected a whole number of at least 0"),
        ({"rank": 2, "world_size": 2}, "PKSampler(rank=2): expected a whole number from 0 to 1"),
        ({"epoch_length": 0}, "PKSampler(epoch_length=0): expected a whole number of at least 1"),
        (
            {"epoch_length": "every_images"},
            "PKSampler(epoch_length='every_images'): expected one of 'every_image', 'every_label'; "
            "did you mean 'every_image'?",
        ),
        (
            {"short_classes": "drop"},
            "PKSampler(short_classes='drop'): expected one of 'repeat', 'skip', 'error'",
        ),
        ({"supers_per_batch": 2}, "PKSampler(supers_per_batch=2): expected super_labels beside it"),
        (
            {"supers_per_batch": 3, "super_labels": UNEVEN},
            "PKSampler(supers_per_batch=3): expected a divisor of p=4",
        ),
        (
            {"super_labels": UNEVEN[1:]},
            "PKSampler(super_labels='44 super-labels'): expected one for each of the 45 images",
        ),
        (
            {"labels": []},
            "PKSampler(labels='array of shape (0,)'): expected one label for each of 1 or more images",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, said):
    assert refusal_of(PKSampler, **{"labels": UNEVEN, "p": 4, "k": 2} | arguments) == said


def test_short_classes():
    sizes = [1, 2, 3, 4, 5, 6]
    labels = labels_of(sizes)
    sampler, said = warned(labels, p=2, k=4, short_classes="skip")
    assert said == [
        "PKSampler(k=4): left out 3 classes (6 images): 3 of fewer than 4 images, such as 0; "
        'pass short_classes="repeat" to keep those of 2 images or more'
    ]
    assert sampler.left_out == {0: 1, 1: 2, 2: 3}
    assert {labels[row] for batch in sampler for row in batch} == {3, 4, 5}
    sampler, said = warned(labels, p=2, k=4)
    assert said[0].startswith(
        "PKSampler(k=4): left out 1 class (1 image): 1 of fewer than 2 images, such as 0;"
    )
    assert {labels[row] for batch in sampler for row in batch} == {1, 2, 3, 4, 5}
    assert refusal_of(PKSampler, labels, p=2, k=4, short_classes="error") == (
        'PKSampler(k=4, short_classes="error"): found 3 classes (6 images): 3 of fewer than 4 images, '
        'such as 0; drop them from the labels or pass short_classes="repeat" or "skip"'
    )
    sampler, said = warned(labels_of([4, 5]), p=2, k=4, short_classes="error")
    assert (said, sampler.left_out) == ([], {})


# Super-labels.

NAMES = [f"class {label}" for label in labels_of([4] * 7)]
SUPERS = [{"6": "few"}.get(name[-1], "low" if name[-1] < "3" else "high") for name in NAMES]


def test_a_class_in_two_super_labels_is_refused():
    supers = ["insect", "fly", "fly", "fly"]
    assert refusal_of(PKSampler, ["ant", "ant", "bee", "bee"], p=2, k=2, super_labels=supers) == (
        "PKSampler(super_labels=...): class 'ant' has images in super-labels 'insect' and 'fly'; "
        "give each class one super-label"
    )


def test_super_labels_of_too_few_classes():
    arguments = {"p": 6, "k": 2, "super_labels": SUPERS, "supers_per_batch": 2}
    sampler, said = warned(NAMES, **arguments)
    assert said == [
        "PKSampler(k=2): left out 1 class (4 images): 1 in a super-label of fewer than 3 such classes, "
        "such as 'class 6'; lower p, drop them from the labels or pass short_supers=\"repeat\""
    ]
    assert sampler.left_out == {"class 6": 4}
    assert not faults([[batch] for batch in epoch_of(sampler, 0)], NAMES, 6, 2, 0)[0]
    assert refusal_of(PKSampler, NAMES, **arguments, short_classes="error").startswith(
        'PKSampler(k=2, short_classes="error"): found 1 class (4 images): 1 in a super-label of fewer than 3'
    )
    assert refusal_of(PKSampler, NAMES, **arguments, world_size=2) == (
        "PKSampler(supers_per_batch=2, world_size=2): only 2 super-labels have 3 classes of 2 images or "
        "more, and a step needs 4; lower supers_per_batch or lower p=6 for fewer classes of each "
        "super-label or lower world_size"
    )
    assert refusal_of(PKSampler, NAMES, p=8, k=2, super_labels=SUPERS).endswith(
        "have 8 classes of 2 images or more; lower p=8 for fewer classes of each super-label"
    )
    arguments |= {"p": 4, "super_labels": [*SUPERS, "few"]}
    _, said = warned([*NAMES, "class 7"], **arguments)  # of the two classes of "few", one is of one image
    assert said[0].startswith(
        "PKSampler(k=2): left out 2 classes (5 images): 1 of fewer than 2 images, such as 'class 7', "
        "1 in a super-label of fewer than 2 such classes, such as 'class 6'; add images"
    )


# Who meets whom: the plan is mixed, and the test of it sees one that is not.


def excess(epoch=0, **arguments):
    """χ² of the classes' meetings, a pair of classes; it grows where some meet again and again."""
    plan = PKSampler(**arguments)._planned(epoch)[0]
    present = np.zeros((len(plan), plan.max() + 1))
    np.put_along_axis(present, plan, 1, axis=1)
    meetings, share = present.T @ present, present.mean(axis=0)
    pairs = np.triu_indices(len(share), 1)
    expected = len(plan) * np.outer(share, share)[pairs]
    return ((meetings[pairs] - expected) ** 2 / expected).mean()


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": np.repeat(np.arange(32), 1600), "p": 16, "k": 4},
        {"labels": np.repeat(np.arange(300), 20), "p": 16, "k": 4},
        {"labels": np.repeat(np.arange(80), 2000 // np.arange(1, 81)), "p": 4, "k": 2},
        {
            "labels": np.repeat(np.arange(60), 400),
            "p": 8,
            "k": 4,
            "super_labels": np.repeat(np.arange(3), 8000),
        },
    ],
    ids=["few classes", "many classes", "power law", "super-labels"],
)
def test_classes_meet_by_chance(arguments, monkeypatch):
    def mean_excess(rounds):
        monkeypatch.setattr(balanced_plan, "ROUNDS", rounds)
        return np.mean([excess(epoch, **arguments) for epoch in range(3)])

    mixed, long_mixed, unmixed = (mean_excess(rounds) for rounds in (balanced_plan.ROUNDS, 60, 0))
    assert abs(mixed / long_mixed - 1) < 0.1
    assert unmixed > 2 * long_mixed


@pytest.mark.parametrize("p", [3, 5])  # with p=5 on two ranks, every class is in every step
def test_classes_are_on_every_rank_and_in_every_place_alike(p):
    samplers = ranks_of(np.repeat(np.arange(10), 40), p=p, k=2, world_size=2)
    plans = [np.hstack([sampler._planned(epoch)[0] for sampler in samplers]) for epoch in range(20)]
    places = [np.bincount(column, minlength=10) for column in np.concatenate(plans).T]
    times = sum(np.stack([np.bincount(part.ravel(), minlength=10) for part in plan[:32:8]]) for plan in plans)
    assert stats.chi2_contingency(np.stack(places)).pvalue > 1e-3
    assert stats.chi2_contingency(times).pvalue > 1e-3


@pytest.mark.parametrize(("size", "epochs"), [(8, 100), (2400, 1)], ids=["over epochs", "within one"])
def test_images_of_a_class_meet_by_chance(size, epochs):
    labels = labels_of([8, size])
    batches = chain(*[PKSampler(labels, p=2, k=2)] * epochs)
    pairs = Counter(tuple(sorted(batch[i : i + 2])) for batch in batches for i in (0, 2))
    meetings = [
        pairs[pair] for pair in combinations([row for row in range(len(labels)) if labels[row] == 0], 2)
    ]
    assert stats.chisquare(meetings).pvalue > 1e-3


def test_same_seed_same_batches_on_every_machine():
    labels = np.arange(1000) % 37
    batches = np.array(list(PKSampler(labels, p=8, k=4, seed=5)))
    assert zlib.crc32(batches.astype("<i8").tobytes()) == 789368928  # another number breaks every resume
    order = np.array(list(ShuffledSampler(1000, seed=5)))
    assert zlib.crc32(order.astype("<i8").tobytes()) == 110579647


def test_a_catalog_or_a_dataset_stands_for_its_labels():
    catalog = Catalog([f"{n}.png" for n in range(6)], [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    batches = list(PKSampler(catalog.labels, p=2, k=2))
    for source in (catalog, ImageDataset(catalog)):
        assert list(PKSampler(source, p=2, k=2)) == batches


def test_missing_labels_are_counted():
    said = refusal_of(PKSampler, ["a", "a", None, "b", None, "b"], p=2, k=2)
    found = "PKSampler(labels='2 missing, the first at row 2')"
    assert said == f"{found}: expected a label for each image; drop these rows"


def test_a_batch_of_one_class_has_no_negatives():
    with pytest.warns(UserWarning, match=r"^PKSampler\(p=1\): a batch of one class has no negatives; "):
        PKSampler([0, 0, 1, 1], p=1, k=2)
    PKSampler([0, 0, 1, 1], p=1, k=2, world_size=2)  # all ranks together have two


def test_the_repr_tells_what_was_asked_for():
    shown = repr(PKSampler([0, 0, 1, 1], p=2, k=2, seed=3))
    assert shown == "PKSampler(p=2, k=2, seed=3, world_size=1: 1 steps an epoch)"


def test_as_a_sampler_of_rows_it_is_refused_with_the_way_out():
    dataset = ImageDataset(Catalog(["1.png", "2.png"], [0, 0], ["a"]))
    with pytest.raises(TypeError, match=r"; pass a sampler of batches as batch_sampler=$"):
        dataset[[0, 1]]
    assert repr(dataset) == "ImageDataset(2 images, 1 classes)"
    assert dataset.labels.tolist() == dataset.targets.tolist() == [0, 0]
    assert dataset.classes == ["a"]
