"""Ray's actors make the files that one process makes, also where one of them is killed."""

import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tercet import Catalog, ShardIndex, embed, scan_folder, write_shards
from tests.helpers import contents, names, picture, refusal_of
from tests.offline.dying import DyingModel
from tests.offline.test_embedding_work import MODEL, command
from tests.offline.test_engines import environment

OPTIONS = {"size": 4, "batch_size": 2, "part_size": 4}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """23 pictures, of which two do not decode, and two folders to write in."""
    for row in range(23):
        file = tmp_path / "photos" / "abc"[row % 3] / f"{row:02d}.png"
        picture(file, row)
        if row in (4, 20):
            file.write_bytes(b"none")
    monkeypatch.chdir(tmp_path)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_actors_share_the_parts(ray, here, processes):
    model, catalog = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)), scan_folder("photos")
    embed(model, catalog, "one/x.npy", **OPTIONS)
    found = embed(model, catalog, "many/x.npy", **OPTIONS, engine="ray", processes=processes)
    assert found.computed == 23
    assert contents(here / "many") == contents(here / "one")
    assert ray.is_initialized()  # it is the caller's
    assert embed(model, catalog, "many/x.npy", **OPTIONS, engine="ray").computed == 0


def test_an_actor_that_is_killed_is_started_again(ray, here):
    model, catalog = DyingModel(here / "mark"), scan_folder("photos")
    embed(model, catalog, "one/x.npy", **OPTIONS)
    assert not (here / "mark").exists()
    embed(model, catalog, "many/x.npy", **OPTIONS, engine="ray", processes=2)
    assert (here / "mark").exists()
    assert contents(here / "many") == contents(here / "one")


def test_parts_of_a_run_that_failed_are_not_made_again(ray, here):
    model, catalog = Failing(here / "mark"), scan_folder("photos")
    said = refusal_of(embed, model, catalog, "many/x.npy", **OPTIONS, engine="ray", processes=1)
    assert said == "not yet"
    parts = [name for name in names(here / "many" / ".x.npy.parts") if name.endswith(".part")]
    assert 1 <= len(parts) < 6
    (here / "mark").touch()
    found = embed(model, catalog, "many/x.npy", **OPTIONS, engine="ray", processes=2)
    done = sum(3 if name.startswith("000000000020.") else 4 for name in parts)
    assert found.computed == 23 - done
    embed(model, catalog, "one/x.npy", **OPTIONS)
    assert Path("many/x.npy").read_bytes() == Path("one/x.npy").read_bytes()


class Failing:
    """The mean colour; it fails on its fifth batch until a file is there."""

    def __init__(self, mark):
        self.mark, self.parent = str(mark), os.getpid()

    def __call__(self, images):
        calls = vars(type(self)).get("calls", 0) + 1
        type(self).calls = calls
        if calls == 5 and os.getpid() != self.parent and not os.path.exists(self.mark):
            raise ValueError("not yet")
        return images.mean((2, 3))


def test_shards_are_read_by_actors_too(ray, here):
    paths = [path for path in scan_folder("photos").paths if "04" not in path and "20" not in path]
    write_shards("tars", Catalog(paths, [0] * 21, ["a"], {}, Path("photos")), images_per_shard=5)
    shards = ShardIndex("tars")
    embed(torch.nn.Flatten(), shards, "one/x.npy", **OPTIONS)
    embed(torch.nn.Flatten(), shards, "many/x.npy", **OPTIONS, engine="ray", processes=2)
    assert contents(here / "many") == contents(here / "one")


def test_what_cannot_be_sent_is_refused(ray, here):
    lock, options = threading.Lock(), {**OPTIONS, "engine": "ray", "key": "1"}
    said = refusal_of(embed, lambda images: lock and images, scan_folder("photos"), "x.npy", **options)
    assert said.startswith("embed(engine='ray'): expected a model, transform and data that can be sent")


def test_errors_of_actors_are_sentences_of_the_caller(ray, here):
    said = refusal_of(embed, Odd(), scan_folder("photos"), "x.npy", **OPTIONS, engine="ray")
    assert said.startswith("embed(model='it gives float32 [2, 3, 4, 4]'): expected a model that gives")


class Odd:
    """Gives images back."""

    def __call__(self, images):
        return images


def test_the_command_starts_a_ray_of_its_own(ray, here):
    (here / "models_of_ranks.py").write_text(MODEL)
    assert subprocess.run(command("one/x.npy", "--quiet"), env=environment()).returncode == 0
    words = command("many/x.npy", "--engine", "ray", "--processes", "1", "--quiet")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert contents(here / "many") == contents(here / "one")
    assert np.load("many/x.npy").shape == (23, 3)
