"""Writing commands that are killed anywhere: the next run of the same command ends well, with the same bytes.

Killed are commands before each of their steps of the file system, and at calls of functions drawn at random.
After each kill a reader sees the old set, the new set, or nothing; the same command is run again, and its
folder holds then the files of an unbroken run and no others.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tercet import embed, scan_folder
from tercet.data.manifests.formats import FORMATS
from tests.contracts import killing

ROOT = Path(__file__).parents[2]
SPLIT = ["--validation-fraction", "0.25"]


def case(name, *words, before=(), targets=(), given=""):
    return pytest.param(dict(command=words, before=before, targets=targets, given=given), id=name)


def manifests():
    for suffix in FORMATS:
        name, part = f"t{suffix}", f"t.validation{suffix}"
        random = ["make-triplets", "random", "photos", "{}/" + name, "--quiet", "--class-depth", "1"]
        deep = ["make-triplets", "deep-ranking", "photos", "{}/" + name, "--quiet", "--count", "40"]
        deep += ["--relevance", "folders", "--class-depth", "1", "--seed", "1"]
        new, old = [*random, "--seed", "1"], [*random, "--seed", "0"]
        yield case(f"random{suffix}", *new, targets=[name])
        yield case(f"split{suffix}", *new, *SPLIT, targets=[name, part])
        yield case(f"random{suffix} again", *new, "--overwrite", before=old, targets=[name])
        yield case(
            f"split{suffix} again", *new, *SPLIT, "--overwrite", before=[*old, *SPLIT], targets=[name, part]
        )
        yield case(f"deep{suffix}", *deep, targets=[name])


def others():
    shards = ["make-shards", "photos", "{}", "--layout", "mixed", "--images-per-shard", "4", "--quiet"]
    yield case("shards", *shards, "--workers", "1")
    yield case("shards in threads", *shards, "--workers", "3")
    yield case("shards again", *shards, "--workers", "1", "--seed", "1", "--overwrite", before=shards)
    yield case("index", "index-shards", "{}", "--quiet", given="tars")
    embed = ["embed", "pictures", "{}/x.npy", "--model", "models_of_kills:mean", "--workers", "0", "--quiet"]
    embed += ["--size", "4", "--batch-size", "2", "--part-size", "2", "--device", "cpu", "--class-depth", "1"]
    yield case("embed", *embed)
    yield case("embed again", *embed, "--normalize", "--overwrite", before=embed)
    yield case("embed with other labels", *embed[:-2], "--class-depth", "2", before=embed)
    mine = ["mine", "{}/x.npy", "{}/t.csv", "--work", "{}/work", "--overwrite", "--quiet"]
    yield case("mine", *mine, given="embedded")
    for suffix in (".csv", ".parquet"):
        yield case(f"catalog{suffix}", "catalog", "photos", "{}/c" + suffix, "--overwrite")


MODEL = """
import torch

class Mean(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))

mean = Mean
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files named as images, pictures that decode, a model and foreign tars in it."""
    folder = tmp_path_factory.mktemp("kills")
    for number in range(16):
        image = folder / "photos" / "ab"[number % 2] / "xy"[number // 8] / f"{number}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(bytes([number]) * 50)
    for number in range(7):
        image = folder / "pictures" / "ab"[number % 2] / "xy"[number // 4] / f"{number}.pgm"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"P5 2 1 255 " + bytes([number, 9]) if number != 3 else b"none")
    (folder / "models_of_kills.py").write_text(MODEL)
    (folder / "embedded").mkdir()
    catalog = scan_folder(folder / "pictures", class_depth=1)
    embed(lambda images: images.mean((2, 3)), catalog, folder / "embedded" / "x.npy", size=4, key="1")
    (folder / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(folder / "tars" / f"s-{shard}.tar", "w") as tar:
            for number in range(4):
                for suffix, content in (("jpg", b"image"), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def kill(place, tmp_path, case, steps, calls):
    words = json.dumps({**case, "place": str(tmp_path), "steps": steps, "calls": calls})
    command = [sys.executable, "-m", killing.__name__, words]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=1200, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.campaign
@pytest.mark.parametrize("case", [*manifests(), *others()])
def test_the_next_run_after_a_kill_at_any_step_or_at_random_ends_well(place, tmp_path, case):
    found = kill(place, tmp_path, case, steps=100, calls=4)
    print(case["command"], found)
    assert found["failed"] == []
    assert found["killed"] > 5


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["embed", "mine"])
def test_the_run_after_each_of_fifteen_random_kills_gives_the_same_bytes(place, tmp_path, name):
    (chosen,) = (one.values[0] for one in others() if one.id == name)
    found = kill(place, tmp_path, chosen, steps=0, calls=15)
    assert found["failed"] == []
    assert found["killed"] == 15


def test_the_next_run_after_a_kill_ends_well(place, tmp_path):
    """Of the campaign above, a split in the midst of its renamings."""
    (chosen,) = (one.values[0] for one in manifests() if one.id == "split.csv")
    found = kill(place, tmp_path, chosen, steps=0, calls=2)
    assert found == {"killed": 2, "through": 0, "complete": 0, "failed": []}


def test_the_next_run_after_embed_was_killed_ends_well(place, tmp_path):
    """Of the campaign too, a sample of the steps of the file system."""
    (chosen,) = (one.values[0] for one in others() if one.id == "embed again")
    found = kill(place, tmp_path, {**chosen, "every": 6}, steps=100, calls=2)
    assert found["failed"] == []
    assert found["killed"] > 5


def test_the_next_run_after_mine_was_killed_ends_well(place, tmp_path):
    """Of the campaign too: blocks that were done are kept, and the manifest is that of an undisturbed run."""
    (chosen,) = (one.values[0] for one in others() if one.id == "mine")
    found = kill(place, tmp_path, {**chosen, "every": 5}, steps=100, calls=2)
    assert found["failed"] == []
    assert found["killed"] > 5


def test_the_campaign_names_a_run_that_is_refused_and_files_that_are_left(tmp_path, monkeypatch):
    """The checker itself, on a command that writes one file after the other and takes no care of either."""

    def careless(command):
        folder = Path(command[0])
        if (folder / "a").exists():
            sys.exit(1)
        for name in "ab":
            (folder / f"{name}.unfinished").write_text(name)
            os.replace(folder / f"{name}.unfinished", folder / name)

    monkeypatch.setattr(killing, "run", careless)
    one = dict(command=["{}"], before=(), targets=[], given="", place=str(tmp_path), steps=9, calls=0)
    found = killing.campaign(one)
    left_over = "kill_before_step(2): ['b', 'b.unfinished']"
    refused = "kill_before_step(2): the next run ends with 1"
    assert (found["killed"], found["through"]) == (2, 1)
    assert found["failed"] == [refused, left_over]
