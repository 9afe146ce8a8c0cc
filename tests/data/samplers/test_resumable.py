"""Epochs, positions and states of all samplers: resume equals replay."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import islice

import pytest

from tercet.data.io.checked_json import with_checksum
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tests.helpers import (
    UNEVEN,
    epoch_of,
    labels_of,
    plain,
    refusal_of,
)

KINDS = {
    "pk": lambda **more: PKSampler(UNEVEN, p=2, k=3, **more),
    "ranks": lambda **more: PKSampler(UNEVEN, p=2, k=3, rank=1, world_size=3, **more),
    "supers": lambda **more: PKSampler(
        UNEVEN, p=4, k=2, super_labels=[label % 3 for label in UNEVEN], supers_per_batch=2, **more
    ),
    "shuffled": lambda **more: ShuffledSampler(11, rank=1, world_size=2, **more),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def drawn(items):
    """Items of either sampler, by value."""
    return [plain([item if isinstance(item, list) else [item]])[0] for item in items]


@every_kind
def test_resume_equals_replay_at_every_stop(make):
    trail = make()
    replay = [drawn(trail) for _ in range(4)]
    assert len({str(epoch) for epoch in replay}) == 4
    for epoch in (0, 2):
        for stop in range(len(trail) + 1):
            sampler = make()
            sampler.set_epoch(epoch)
            running = iter(sampler)
            seen = drawn(islice(running, stop))
            by_sampler, by_iterator = sampler.state_dict(), running.state_dict()
            assert by_sampler == by_iterator

            resumed = make()
            resumed.load_state_dict(json.loads(json.dumps(by_sampler)))
            assert seen + drawn(resumed) == replay[epoch]
            assert drawn(resumed) == replay[epoch + 1]

            resumed = make()
            again = iter(resumed)
            next(again)
            again.load_state_dict(pickle.loads(pickle.dumps(by_iterator)))
            assert resumed.state_dict() == by_iterator
            assert seen + drawn(again) == replay[epoch]
            assert drawn(resumed) == replay[epoch + 1]

            resumed = make()
            resumed.set_epoch(epoch, step=stop)
            assert seen + drawn(resumed) == replay[epoch]


@every_kind
def test_iterators_take_their_epoch_at_the_first_item(make):
    sampler = make()
    unused, first, second = iter(sampler), iter(sampler), iter(sampler)
    assert unused.state_dict() == sampler.state_dict()
    a, b = next(first), next(second)
    assert drawn([a, *first]) == drawn(make())
    sampler.set_epoch(1)
    assert drawn([b, *second]) == drawn(sampler)
    assert next(first, None) is None
    assert next(unused).epoch == 2 if isinstance(sampler, ShuffledSampler) else next(unused)[0].epoch == 2


def test_breaking_off_moves_to_the_next_epoch():
    sampler = PKSampler(UNEVEN, p=2, k=3)
    next(iter(sampler))
    assert plain(sampler) == epoch_of(sampler, 1)
    next(iter(sampler))
    sampler.set_epoch(7)
    assert sampler.state_dict()["epoch"] == 7
    assert plain(sampler) == epoch_of(sampler, 7)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["step"]) == (8, 0)


def test_a_sampler_is_pickled_and_copied_with_its_position():
    sampler = PKSampler(UNEVEN, p=2, k=3)
    running = iter(sampler)
    next(running)
    for twin in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert twin.state_dict() == sampler.state_dict()
        twin.load_state_dict(twin.state_dict())
        assert plain(twin) == epoch_of(sampler, 0)[1:]


def test_a_state_serves_all_ranks_and_no_other_settings():
    settings = {"labels": UNEVEN, "p": 2, "k": 3, "world_size": 2}
    state = PKSampler(**settings).state_dict()
    PKSampler(**settings, rank=1).load_state_dict(state)
    said = refusal_of(PKSampler(**settings | {"k": 2}).load_state_dict, state)
    assert said == (
        "PKSampler.load_state_dict: the state was saved with k=3, but this sampler has k=2; "
        "build the sampler as it was, or start anew with set_epoch"
    )
    others = {
        "seed": 1,
        "p": 1,
        "labels": UNEVEN[::-1],
        "world_size": 1,
        "epoch_length": 9,
        "super_labels": [label % 2 for label in UNEVEN],
    }
    for name, other in others.items():
        said = refusal_of(PKSampler(**settings | {name: other}).load_state_dict, state)
        assert f"was saved with {name}=" in said
    said = refusal_of(ShuffledSampler(5).load_state_dict, state)
    assert "saved with epoch_length='every_image', but this sampler has epoch_length=None" in said


@pytest.mark.parametrize("state", [None, {}, {"epoch": 0}])
def test_what_is_no_state_is_refused(state):
    said = refusal_of(ShuffledSampler(5).load_state_dict, state)
    expected = "expected what a sampler's state_dict() returned"
    assert said == f"ShuffledSampler.load_state_dict(state={state!r}): {expected}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.load_state_dict(with_checksum(s.state_dict() | {"step": 9})), "load_state_dict(step=9)"),
        (
            lambda s: s.load_state_dict(with_checksum(s.state_dict() | {"epoch": -1})),
            "load_state_dict(epoch=-1)",
        ),
        (lambda s: s.set_epoch(-1), "set_epoch(epoch=-1): expected a whole number of at least 0"),
        (lambda s: s.set_epoch(0, 9), "set_epoch(step=9): expected a whole number from 0 to 8"),
        (lambda s: s.batch(0, 8), "batch(step=8): expected a whole number from 0 to 7"),
        (lambda s: s.batch(-1, 0), "batch(epoch=-1): expected a whole number of at least 0"),
    ],
)
def test_positions_out_of_range_are_refused(call, said):
    sampler = PKSampler(labels_of([4] * 8), p=2, k=2)
    assert refusal_of(call, sampler).startswith(f"PKSampler.{said}")
