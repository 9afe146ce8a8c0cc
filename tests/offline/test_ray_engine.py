"""Ray's tasks and actors give what one process gives, also where a worker is killed.

The tests start a Ray of their own, of two processors, without dashboard; `conftest` turns its usage
statistics off and its token authentication on.
"""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tercet import mine_hard_triplets
from tests.helpers import names, refusal_of
from tests.offline.dying import DyingDistance
from tests.offline.test_work import check_equal, collection, mined

ROOT = Path(__file__).parents[2]
NO_RAY = 'Ray is not installed; pip install "tercet[ray]" runs these tests'


def test_without_ray_its_engine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    x, labels = collection()
    said = refusal_of(mined, tmp_path / "work", x, labels, engine="ray")
    start = "mine_hard_triplets(engine='ray'): expected an installed Ray; pip install \"tercet[ray]\" ("
    assert said.startswith(start)
    assert names(tmp_path) == []


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A Ray of two processors, started here."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
        )
        yield ray
        ray.shutdown()


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
