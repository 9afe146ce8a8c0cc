"""Ranks that share the parts of embeddings make the files of one process, also where one is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tercet import Catalog, embed
from tests.helpers import contents, names, picture, refusal_of
from tests.offline.test_engines import environment, slurm, torchrun

MODEL = """
import os, signal, torch

class Mean(torch.nn.Module):
    def forward(self, images):
        if os.environ.get("RANK") == os.environ.get("DYING") and os.path.exists("dying"):
            os.kill(os.getpid(), signal.SIGKILL)
        return images.mean((2, 3))

mean = Mean
"""
WORDS = ["--model", "models_of_ranks:mean", "--size", "4", "--batch-size", "2", "--part-size", "4"]
WORDS += ["--workers", "0", "--device", "cpu"]


def command(out, *more):
    return [sys.executable, "-m", "tercet.cli", "embed", "photos", out, *WORDS, *more]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """23 pictures, of which two do not decode, and a model."""
    for row in range(23):
        file = tmp_path / "photos" / "abc"[row % 3] / f"{row:02d}.png"
        picture(file, row)
        if row in (4, 20):
            file.write_bytes(b"none")
    (tmp_path / "models_of_ranks.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert subprocess.run(command("one/x.npy", "--quiet"), env=environment()).returncode == 0
    return tmp_path


@pytest.mark.parametrize(("world", "told"), [(1, torchrun), (2, slurm), (3, torchrun)])
def test_ranks_share_the_parts(here, world, told):
    words = command("many/x.npy", "--engine", "ranks")
    ranks = [
        subprocess.Popen(words, env=environment(**told(rank, world)), stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world
    assert ["embedded now" in text for text in said] == [True] + [False] * (world - 1)
    assert contents(here / "many") == contents(here / "one")
    late = subprocess.run(words, env=environment(**told(0, world)), capture_output=True, text=True)
    assert late.returncode == 0  # all is there
    assert contents(here / "many") == contents(here / "one")


def test_a_rank_that_is_killed_costs_the_others_its_part(here):
    (here / "dying").touch()
    words = command("many/x.npy", "--engine", "ranks", "--quiet")
    ranks = [subprocess.Popen(words, env=environment(**torchrun(rank, 3), DYING="1")) for rank in range(3)]
    ended = [rank.wait(timeout=300) for rank in ranks]
    assert ended[0] == ended[2] == 0
    assert ended[1] in (0, -signal.SIGKILL)  # 0 where the others had done all before it began
    assert contents(here / "many") == contents(here / "one")


def test_a_rank_alone_does_the_parts_of_all(here):
    words = command("many/x.npy", "--engine", "ranks", "--quiet")
    assert subprocess.run(words, env=environment(**torchrun(2, 3))).returncode == 0
    assert contents(here / "many") == contents(here / "one")


def mean(images):
    return images.mean((2, 3))


def test_a_run_that_was_killed_is_finished_by_ranks_and_the_other_way_round(here, monkeypatch):
    from tests.contracts.killing import in_another_process

    def killed_at(image, **options):
        import cv2

        count, decode = [image], cv2.imdecode

        def counted(*args):
            count[0] -= 1
            if not count[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(*args)

        cv2.imdecode = counted
        embed(mean, catalog, "many/x.npy", **OPTIONS, **options)

    paths = [f"{'abc'[row % 3]}/{row:02d}.png" for row in range(23)]
    catalog = Catalog(paths, np.arange(23) % 3, list("abc"), {}, Path("photos"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    embed(mean, catalog, "one/x.npy", **OPTIONS, overwrite=True)
    for first, second in (({}, {"engine": "ranks"}), ({"engine": "ranks"}, {})):
        assert in_another_process(lambda: killed_at(14, **first)) == -signal.SIGKILL  # noqa: B023
        found = embed(mean, catalog, "many/x.npy", **OPTIONS, **second)
        assert 0 < found.computed < 23
        assert contents(here / "many") == contents(here / "one")
        for file in (here / "many").iterdir():
            file.unlink()


OPTIONS = {"size": 4, "batch_size": 2, "part_size": 4}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "dask"}, "embed(engine='dask'): expected"),
        ({"engine": "ranks", "overwrite": True}, "embed(overwrite=True): expected False, as one rank would"),
        ({"processes": 2}, "embed(processes=2): expected None, or engine='ray'"),
        ({"engine": "ray", "processes": 0}, "embed(processes=0): expected a whole number"),
        ({"engine": "ray", "device": "nosuch"}, "embed(device='nosuch'): expected a device"),
    ],
)
def test_engines_that_do_not_fit_are_refused(here, monkeypatch, options, sentence):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    catalog = Catalog(["a/00.png"], [0], ["a"], {}, Path("photos"))
    assert refusal_of(embed, mean, catalog, "many/x.npy", **OPTIONS, **options).startswith(sentence)
    assert names(here / "many") == []


def test_embeddings_tell_nothing_of_the_engine(here):
    facts = json.loads((here / "one" / "x.npy.json").read_text())
    assert "engine" not in json.dumps(facts)
