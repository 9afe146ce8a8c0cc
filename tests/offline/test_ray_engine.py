"""Ray's tasks give what one process gives, also where a worker is killed."""

import os
import sys

import numpy as np
import pytest

from tercet import mine_hard_triplets
from tests.helpers import names, refusal_of
from tests.offline.dying import DyingDistance
from tests.offline.test_work import check_equal, collection, mined


def test_without_ray_its_engine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    x, labels = collection()
    said = refusal_of(mined, tmp_path / "work", x, labels, engine="ray")
    start = "mine_hard_triplets(engine='ray'): expected an installed Ray; pip install \"tercet[ray]\" ("
    assert said.startswith(start)
    assert names(tmp_path) == []


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_tasks_share_the_work(ray, tmp_path, processes):
    x, labels = collection()
    found = mined(tmp_path / "work", x, labels, suspects=0.2, engine="ray", processes=processes)
    check_equal(found, mine_hard_triplets(x, labels, suspects=0.2))
    assert ray.is_initialized()  # it is the caller's


def test_the_task_of_a_worker_that_is_killed_is_repeated(ray, tmp_path):
    x, labels = collection()
    distance = DyingDistance(tmp_path / "mark")
    found = mined(tmp_path / "work", x, labels, distance=distance, engine="ray", processes=2)
    assert (tmp_path / "mark").exists()
    check_equal(found, mine_hard_triplets(x, labels, distance=distance))
    assert sum(name.endswith(".block") for name in names(tmp_path / "work")) == 12


def test_tasks_get_no_embeddings(ray, tmp_path, monkeypatch):
    """What is sent to a task is less than the embeddings of one block."""
    x = np.random.default_rng(0).normal(size=(60, 5000)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    x, labels = np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(60) % 12
    sent, put = [], ray.put

    def noted(value):
        sent.append(len(ray.cloudpickle.dumps(value)))
        return put(value)

    monkeypatch.setattr(ray, "put", noted)
    found = mined(tmp_path / "work", x, labels, engine="ray", processes=2)
    assert len(sent) == 1
    assert sent[0] < 10_000
    check_equal(found, mine_hard_triplets(x, labels))


class Refusing(DyingDistance):
    """Refuses to search anywhere else."""

    def prepare(self, embeddings):
        if os.getpid() != self.parent:
            raise ValueError("not here")
        return embeddings.float()


def test_errors_of_tasks_are_those_of_the_caller(ray, tmp_path):
    x, labels = collection()
    distance = Refusing(tmp_path / "mark")
    assert refusal_of(mined, tmp_path / "work", x, labels, distance=distance, engine="ray") == "not here"
