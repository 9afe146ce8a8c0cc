"""README is true: its code runs, and its commands print what it says they print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def sessions():
    """(command, expected output) of every console block, in order."""
    return [
        (command, output)
        for block in blocks("console")
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)
    ]


def said(text):
    """Output without what differs from run to run: the seconds, and blanks at line ends."""
    text = re.sub(r"(seconds\s+│\s+)[\d.]+", r"\1…", text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory as README's reader has it: digits, photos and the tools."""
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import pathlib, quickstart; quickstart.write_digits(pathlib.Path('out/quickstart/digits'))",
        ],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "examples"), "NO_ALBUMENTATIONS_UPDATE": "1", "PATH": ""},
        check=True,
    )
    for number in range(17 * 4):
        file = folder / "photos" / f"class{number % 17}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((8, 8, 3), number, dtype=np.uint8))
    (folder / "tools").symlink_to(ROOT / "tools")
    return folder


def run(command, folder):
    words = shlex.split(command)
    if words[0] == "make":  # which makes an environment; that its recipe is sound is shown by a dry run
        words, folder = [*words, "--dry-run", "--always-make"], ROOT
    if words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_print_what_the_readme_says(folder):
    commands = sessions()
    assert len(commands) == 10
    for command, expected in commands:
        printed = run(command, folder)
        if expected:
            assert said(printed) == said(expected), command


def test_the_share_that_a_stream_would_use_is_as_printed(folder):
    command = next(command for command, _ in sessions() if "--batches 5 4" in command)
    if not (folder / "digits").exists():
        run(next(command for command, _ in sessions() if "cp -r" in command), folder)
    printed = run(command.replace(" shards ", " counted ").removesuffix(" --quiet"), folder)
    share = re.search(r"share of the images batches of 5 × 4 would\nuse: ([\d.]+)\.", README)[1]
    assert re.search(r"predicted yield at 5 × 4 │ +([\d.]+) │", printed)[1] == share


def test_make_quickstart_and_make_test_run_what_the_other_tests_run(folder):
    assert "examples/quickstart.py" in run("make quickstart", folder)
    assert "-m pytest" in run("make test", folder)


def test_python_blocks_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for part, made in (
        ("cp -r", "digits"),
        ("triplets.parquet", "triplets.parquet"),
        ("make_shards", "shards"),
    ):
        if not Path(made).exists():
            run(next(command for command, _ in sessions() if part in command), folder)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 8))
    given = {
        "model": model,
        "transform": lambda image: image,
        "embeddings": torch.eye(4)[[0, 0, 1, 1]],
        "labels": torch.tensor([0, 0, 1, 1]),
    }
    names = {}
    code = blocks("python")
    assert len(code) == 5
    for block in code:
        names.update(given)
        # The manifest is long, and its first batch says as much as all.
        block = block.replace(
            "for images, triplets", "sampler.set_epoch(0, len(sampler) - 1)\nfor images, triplets"
        )
        exec(compile(block, "README.md", "exec"), names)
        if "stream" in names and "streamed" not in names:
            names["streamed"] = [labels for _, labels in names["loader"]]
    assert model[1].weight.grad.abs().sum() > 0
    assert len(names["streamed"]) == len(names["stream"])
    assert all(labels.unique(return_counts=True)[1].tolist() == [4] * 5 for labels in names["streamed"])
    assert names["found"]["Recall@1"] == 1.0


def test_the_reader_of_blocks_finds_them():
    text = "```console\n$ a b\nout\n$ c\n```\n```python\nx = 1\n```\n"
    assert blocks("python", text) == ["x = 1\n"]
    assert blocks("console", text) == ["$ a b\nout\n$ c\n"]


def test_readme_is_at_most_210_lines():
    assert len(README.splitlines()) <= 210
