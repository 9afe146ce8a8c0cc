"""Any engine and any number of processes gives what one process gives, also where one of them is killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tercet import mine_hard_triplets
from tercet.offline.engines import rank_of_environment
from tercet.pairwise.budget import override
from tests.helpers import names, picture, refusal_of, unchecked
from tests.offline.dying import DyingDistance
from tests.offline.test_work import check_equal, collection, mined

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys
from tercet.cli.app import main
from tercet.pairwise.budget import override
with override(work_anchors=5, work_columns=9):
    main()
"""


def environment(**more):
    """That of this process, without the ranks that it may have."""
    ranks = ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": paths, **more}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Embeddings of 30 pictures of five classes."""
    from tercet import embed, scan_folder

    for row in range(30):
        picture(tmp_path / "photos" / "abcde"[row % 5] / f"{row:02d}.png", row)
    monkeypatch.chdir(tmp_path)
    embed(lambda images: images[:, 0, :2, 0], scan_folder("photos"), "x.npy", size=4, key="1")
    return tmp_path


def slurm(rank, world):
    """The variables of an array that numbers from 10 by 5."""
    names = {"ID": 10 + 5 * rank, "COUNT": world, "MIN": 10, "STEP": 5}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def torchrun(rank, world):
    return {"RANK": str(rank), "WORLD_SIZE": str(world)}


@pytest.mark.parametrize(("world", "told"), [(1, torchrun), (2, slurm), (3, torchrun)])
def test_ranks_share_the_work_and_the_first_writes_what_one_process_writes(here, tercet, world, told):
    assert tercet("mine", "x.npy", "one.parquet", "--negatives", 2, "--quiet")[0] == 0
    words = ["mine", "x.npy", "t.parquet", "--negatives", "2", "--work", "work", "--engine", "ranks"]
    ranks = [
        subprocess.Popen([sys.executable, "-c", COMMAND, *words], env=environment(**told(rank, world)))
        for rank in range(world)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * world
    assert Path("t.parquet").read_bytes() == Path("one.parquet").read_bytes()
    assert len(names(here / "work")) == 6 * 4
    assert all(name.endswith(".block") for name in names(here / "work"))
    late = subprocess.run(  # a task of an array that begins when all is written
        [sys.executable, "-c", COMMAND, *words], env=environment(**told(1, 2)), capture_output=True, text=True
    )
    assert (late.returncode, late.stdout) == (0, "")
    refused = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], env=environment(**told(0, 2)), capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "it exists" in refused.stderr


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_work(tmp_path, processes):
    x, labels = collection()
    found = mined(tmp_path / "work", x, labels, suspects=0.2, processes=processes)
    check_equal(found, mine_hard_triplets(x, labels, suspects=0.2))


def test_a_process_that_is_killed_costs_a_warning_and_no_result(tmp_path):
    x, labels = collection(400)
    os.mkfifo(tmp_path / "pipe")
    distance = DyingDistance(tmp_path / "mark", tmp_path / "pipe")
    with (
        override(work_anchors=8, work_columns=400),
        pytest.warns(UserWarning, match=r"^1 of 2 processes ended early \(exit code -9\)"),
    ):
        found = mine_hard_triplets(x, labels, distance=distance, work=tmp_path / "work", processes=2)
    check_equal(found, mine_hard_triplets(x, labels, distance=DyingDistance(tmp_path / "mark")))
    left = names(tmp_path / "work")  # no lock of the dead one: another has done its block
    assert sum(name.endswith(".block") for name in left) == len(left) - 1 == 50
    assert sum(name.endswith(".embeddings") for name in left) == 1


class Here(DyingDistance):
    """A distance that is pickled by the name of a module that was run as a script."""


def test_a_distance_of_a_script_is_refused_for_other_processes(tmp_path, monkeypatch):
    x, labels = collection()
    monkeypatch.setattr(Here, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Here", Here, raising=False)
    said = refusal_of(mined, tmp_path / "work", x, labels, processes=2, distance=Here(tmp_path / "mark"))
    assert said.endswith(
        "expected a distance of a module, which other processes can import; or pass processes=1"
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_ARRAY_TASK_ID": "0"}, (3, 4)),
        (slurm(2, 3), (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, (2, 3)),
    ],
)
def test_ranks_are_read_from_the_environment(told, expected):
    assert rank_of_environment(told) == expected


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({}, "expected RANK and WORLD_SIZE, as torchrun sets them, or the variables of a SLURM array"),
        ({"RANK": "0"}, "expected RANK and WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "not RANK='2' with WORLD_SIZE='2'"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "not RANK='one' with WORLD_SIZE='2'"),
        ({**slurm(0, 2), "SLURM_ARRAY_TASK_STEP": "0"}, "not SLURM_ARRAY_TASK_ID='10'"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(tmp_path, monkeypatch, told, sentence):
    for name in ("RANK", "WORLD_SIZE", *slurm(0, 1)):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    x, labels = collection()
    said = refusal_of(mined, tmp_path / "work", x, labels, engine="ranks")
    assert said.startswith("mine_hard_triplets(engine='ranks'): expected ")
    assert sentence in said
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "dask"}, r"engine='dask'\): expected"),
        ({"engine": "ranks"}, r"work=None\): expected a folder, which the processes share"),
        ({"engine": "ray"}, r"work=None\): expected a folder, which the processes share"),
        ({"processes": 2}, r"work=None\): expected a folder, which the processes share"),
        ({"processes": 0, "work": "w"}, r"processes=0\): expected a whole number"),
        ({"processes": 2, "work": "w", "engine": "ranks"}, r"processes=2\): expected None: with"),
        ({"work": "missing/w"}, r"work='missing/w'\): expected an existing folder to make it in; make"),
        ({"work": "file"}, r"work='file'\): expected a folder, or a new name"),
        ({"work": 3}, r"work=3\): expected a path"),
    ],
)
def test_engines_that_do_not_fit_are_refused(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    x, labels = collection()
    with unchecked(), pytest.raises(ValueError, match=rf"^mine_hard_triplets\({sentence}"):
        mine_hard_triplets(x, labels, **options)
    assert names(tmp_path) == ["file"]


def test_nothing_to_mine_needs_no_block(tmp_path):
    x = np.eye(3, dtype=np.float32)
    found = mine_hard_triplets(x, [0, 1, 2], work=tmp_path / "work")
    check_equal(found, mine_hard_triplets(x, [0, 1, 2]))
    assert names(tmp_path / "work") == []
