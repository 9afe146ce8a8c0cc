"""The examples, run as a user runs them, from another folder."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tercet.data.manifests.manifest import read_manifest
from tercet.data.shards.index import ShardIndex

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments, folder):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(printed):
    """(Recall@1, MAP@R) before and after."""
    found = re.findall(r"Recall@1 ([\d.]+)\s+MAP@R ([\d.]+)", printed)
    return [tuple(map(float, pair)) for pair in found]


def test_quickstart_learns_classes_that_it_never_saw(tmp_path):
    printed = run("quickstart.py", folder=tmp_path)
    before, after = figures(printed)
    assert after[0] > before[0] + 0.1
    assert after[1] > before[1] + 0.1
    picture = cv2.imread(str(tmp_path / "out/quickstart/similarities.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 20  # not blank
    assert "44,925 triplets" in printed
    run("quickstart.py", folder=tmp_path)  # a second run replaces its own output


def test_deep_ranking_learns_the_teacher_s_order_of_images_that_it_never_saw(tmp_path):
    printed = run("deep_ranking.py", "--triplets", 5000, "--epochs", 2, folder=tmp_path)
    precision = [float(each) for each in re.findall(r"similarity precision ([\d.]+)", printed)]
    score = [float(each) for each in re.findall(r"triplets \(([+-][\d.]+)\)", printed)]
    assert len(precision) == len(score) == 2
    assert precision[1] > precision[0] + 0.03
    assert score[1] > score[0] + 0.05
    picture = cv2.imread(str(tmp_path / "out/deep_ranking/triplets.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 20  # not blank
    triplets = read_manifest(tmp_path / "out/deep_ranking/triplets.parquet")
    assert len(triplets) == 5000
    assert triplets.provenance["strategy"] == "deep ranking"


def test_offline_mining_learns_in_two_rounds(tmp_path):
    printed = run("offline_mining.py", folder=tmp_path)
    figures_of = figures(printed)
    assert len(figures_of) == 4
    assert figures_of[-1][1] > figures_of[0][1] + 0.1
    assert "of (anchor, negative) were not in the last round" in printed
    manifest = read_manifest(tmp_path / "out/offline_mining/rounds/000001.parquet")
    assert manifest.provenance["mining"]["triplets"] == len(manifest)
    assert f"{len(manifest):,} triplets\n" in printed
    run("offline_mining.py", folder=tmp_path)  # a second run replaces its own output


def test_rounds_of_a_process_beside_training_come_one_round_later(tmp_path):
    printed = run("remining_beside.py", folder=tmp_path)
    assert printed in (EXAMPLES.parent / "docs/guides/remining.md").read_text("utf-8")
    assert re.findall(r"step (\d+)\n", printed) == ["0", "40", "60"]


def test_streaming_learns_and_uses_what_was_predicted(tmp_path):
    printed = run("streaming.py", "--epochs", 4, folder=tmp_path)
    before, after = figures(printed)
    assert after[0] > before[0] + 0.05
    assert after[1] > before[1] + 0.1
    predicted, counted = map(float, re.search(r"predicted ([\d.]+) +counted ([\d.]+)", printed).groups())
    assert counted > 0.85
    assert abs(predicted - counted) <= 0.05
    assert len(ShardIndex(tmp_path / "out/streaming/shards", split="train")) == 1264
    run(
        "streaming.py", "--epochs", 1, "--workers", 0, folder=tmp_path
    )  # a second run goes on with the shards


def test_resume_ends_with_the_weights_of_the_unbroken_run(tmp_path):
    printed = run("resume.py", folder=tmp_path)
    guide = (EXAMPLES.parent / "docs/guides/resume.md").read_text()
    lines = [line for line in printed.splitlines() if "stopped after" in line]
    assert len(lines) == 2
    assert "\n".join(lines) in guide
    for kind in ("stream", "index"):
        stopped = torch.load(tmp_path / f"out/resume/{kind}.pt", weights_only=True)
        assert (stopped["position"]["epoch"], stopped["position"]["step"]) == (1, 7)
        end = torch.load(tmp_path / f"out/resume/{kind}-end.pt", weights_only=True)
        assert not any(torch.equal(end[name], stopped["model"][name]) for name in end)


def test_train_folder_on_a_nested_tree(tmp_path):
    rng = np.random.default_rng(0)
    for parent in ("left", "right"):
        for name in range(6):
            colour = rng.integers(0, 255, 3)
            for number in range(5):
                file = tmp_path / "tree" / parent / str(name) / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = rng.integers(-20, 20, (20, 24, 3))
                cv2.imwrite(str(file), np.clip(colour + noise, 0, 255).astype(np.uint8))
    options = ("--steps", 5, "--p", 3, "--k", 3, "--size", 16, "--unseen", 0.3)
    printed = run("train_folder.py", "tree", *options, folder=tmp_path)
    assert "Catalog(60 images, 12 classes)" in printed
    assert len(figures(printed)) == 2


def test_train_folder_takes_classes_from_as_few_parents_as_it_can():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from train_folder import parents
    finally:
        sys.path.remove(str(EXAMPLES))
    from tercet.data.catalog.catalog import Catalog

    def tree(*classes_of_parents):
        parent = [name for name, count in enumerate(classes_of_parents) for _ in range(count)]
        paths, labels = [f"{i}.png" for i in range(len(parent))], range(len(parent))
        return Catalog(paths, labels, [str(i) for i in labels], {"parent": np.array(parent)})

    assert parents(tree(8, 3), 8)["supers_per_batch"] == 1
    assert parents(tree(5, 5, 5, 5), 8)["supers_per_batch"] == 2
    assert parents(tree(*[1] * 8), 8)["supers_per_batch"] == 8
    assert parents(tree(2, 1), 8) == {}
    assert parents(Catalog(["a.png"], [0], ["a"]), 8) == {}


def test_train_folder_without_such_a_folder_says_so(tmp_path):
    command = [sys.executable, str(EXAMPLES / "train_folder.py"), "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "expected an existing folder" in done.stderr


# What stands in an example's head is what it prints; numbers of training differ from machine to machine.

PRINTED = {
    "memory_and_gather.py": None,
    "own_distance.py": None,
    "own_miner.py": None,
    "query_gallery.py": None,
    "hf_datasets.py": "datasets",
    "timm_backbone.py": "timm",
}


def without_numbers(text):
    return [re.sub(r"\d+(\.\d+)?", "N", line.strip()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_its_head_says(name, tmp_path):
    if PRINTED[name]:
        pytest.importorskip(PRINTED[name], reason="the example is about a library that is not installed")
    source = (EXAMPLES / name).read_text("utf-8")
    assert source.count("\n") <= 80
    assert source.count("# %%") >= 3
    said = re.search(r"^prints\n\n(.*?)\n\"\"\"", source, flags=re.MULTILINE | re.DOTALL).group(1)
    printed = run(name, folder=tmp_path)
    assert without_numbers(printed) == without_numbers(said)
    if name in ("own_miner.py", "own_distance.py"):
        assert printed.count("True") == said.count("True") > 0
    if name == "memory_and_gather.py":
        ranks, one = re.search(r"losses ([\d.]+), one process ([\d.]+)", printed).groups()
        assert float(ranks) == pytest.approx(float(one), abs=0.002)
    if name == "query_gallery.py":
        left_in, left_out = map(float, re.findall(r"camera.*Recall@1 ([\d.]+)", printed))
        assert left_in > left_out + 0.3


def test_the_command_lists_the_examples_and_copies_them(tmp_path, tercet):
    code, out, _ = tercet("examples")
    assert code == 0
    for file in EXAMPLES.glob("*.py"):
        assert re.search(rf"(^| ){file.stem} \w", out)
    code, out, _ = tercet("examples", "--output", tmp_path / "copies")
    assert (code, out.split()[1:3]) == (0, ["examples", "in"])
    copies = {file.name: file.read_bytes() for file in (tmp_path / "copies").iterdir()}
    assert copies == {file.name: file.read_bytes() for file in EXAMPLES.glob("*.py")}
    (tmp_path / "copies/resume.py").write_text("mine")
    code, _, err = tercet("examples", "--output", tmp_path / "copies")
    assert code == 1
    assert "expected a folder without these files; pass --overwrite" in err
    assert (tmp_path / "copies/resume.py").read_text() == "mine"
    assert tercet("examples", "--output", tmp_path / "copies", "--overwrite")[0] == 0
    assert (tmp_path / "copies/resume.py").read_bytes() == (EXAMPLES / "resume.py").read_bytes()
    code, _, err = tercet("examples", "--output", tmp_path / "copies/resume.py")
    assert code == 1
    assert "expected a folder" in err
