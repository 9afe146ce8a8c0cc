"""The shared epoch counter: workers agree, whoever comes first."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch.utils.data

from tercet.data.streams.iterator import SharedEpochs


class Workers:
    """Stands in for the workers of a loader: `iteration_id(w)` as if called in worker w."""

    def __init__(self, monkeypatch, epochs, seed, number):
        self.patch, self.epochs, self.seed, self.number = monkeypatch, epochs, seed, number

    def ids(self):
        return [self.iteration_id(worker) for worker in range(self.number)]

    def iteration_id(self, worker):
        told = SimpleNamespace(id=worker, num_workers=self.number, seed=self.seed + worker)
        with self.patch.context() as patch:
            patch.setattr(torch.utils.data, "get_worker_info", lambda: told)
            return self.epochs.iteration_id()


@pytest.fixture
def epochs():
    return SharedEpochs()


def test_the_workers_of_an_iteration_agree_in_any_order(epochs, monkeypatch):
    first = Workers(monkeypatch, epochs, 100, 3).ids()
    second = Workers(monkeypatch, epochs, 777, 3).ids()
    begun = [epochs.begin(first[2]), epochs.begin(second[0]), epochs.begin(first[0]), epochs.begin(second[2])]
    assert begun == [(0, 0), (1, 0), (0, 0), (1, 0)]
    assert epochs.peek(first[1]) == (0, 0)
    assert epochs.begin(None) == (2, 0)


def test_persistent_workers_go_on_to_the_next_epoch(epochs, monkeypatch):
    workers = Workers(monkeypatch, epochs, 5, 2)
    for epoch in range(100):
        assert [epochs.begin(one) for one in workers.ids()] == [(epoch, 0)] * 2


def test_loaders_with_the_same_seed_are_told_apart(epochs, monkeypatch):
    # As when the global seed is set anew before each loader.
    for epoch in range(3):
        ids = Workers(monkeypatch, epochs, 5, 2).ids()
        assert [epochs.begin(one) for one in ids] == [(epoch, 0)] * 2
    wider = Workers(monkeypatch, epochs, 5, 4).ids()
    assert [epochs.begin(one) for one in wider] == [(3, 0)] * 4


def test_seeds_that_come_again_name_other_iterations(epochs, monkeypatch):
    # As when a run sets the global seed, has two epochs, and is started once more.
    for epoch, seed in enumerate([5, 9, 5, 9, 5]):
        ids = Workers(monkeypatch, epochs, seed, 2).ids()
        assert [epochs.begin(one) for one in ids] == [(epoch, 0)] * 2


@pytest.mark.parametrize("move", [lambda epochs: epochs.set(7, 3), lambda epochs: epochs.follow(6)])
def test_a_worker_that_begins_late_is_in_its_own_iteration_still(epochs, monkeypatch, move):
    early, late = Workers(monkeypatch, epochs, 5, 2).ids()
    assert epochs.begin(early) == (0, 0)
    move(epochs)
    expected = epochs.peek(None)
    assert epochs.begin(late) == (0, 0)
    ids = Workers(monkeypatch, epochs, 5, 2).ids()
    assert [epochs.begin(one) for one in ids] == [expected] * 2


def test_set_is_seen_by_the_next_iteration_only(epochs, monkeypatch):
    workers = Workers(monkeypatch, epochs, 5, 2)
    epochs.set(7, 3)
    ids = workers.ids()
    assert [epochs.begin(one) for one in ids] == [(7, 3)] * 2
    assert [epochs.begin(one) for one in workers.ids()] == [(8, 0)] * 2
    epochs.follow(20)
    assert epochs.peek(None) == (21, 0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda epochs: pickle.loads(pickle.dumps(epochs))])
def test_a_copy_counts_for_itself_and_is_shared_again(epochs, copied):
    epochs.set(4)
    other = copied(epochs)
    assert other.begin(None) == (4, 0)
    assert epochs.begin(None) == (4, 0)
    assert all(part.is_shared() for part in (other._next, other._begun, other._starts))


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", 1 << 31])
def test_an_epoch_that_is_none_is_refused(epochs, epoch, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"^set_epoch\(epoch="):
        epochs.set(epoch)
