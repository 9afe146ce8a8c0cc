"""The console script as a person calls it: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import jaxtyping
import numpy as np
import pytest

from tercet.catalog import scan_folder
from tercet.cli.app import main
from tercet.formats import FORMATS
from tercet.manifest import read_manifest
from tercet.triplets.random import RandomTriplets

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tercet(monkeypatch, capfd):
    """Calls the console script; gives its exit code, standard output and standard error, as one line each."""
    monkeypatch.setenv("COLUMNS", "200")
    # Typer asks for the annotation typer.Context and then hands over its parent class.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = (re.sub(r"[\s│╭╮╰╯─┌┐└┘├┤┬┴]+", " ", text) for text in capfd.readouterr())
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def photos(tmp_path):
    """Four classes of 4, 3, 1 and 2 images, one of them in subfolders, and five things that are left out."""
    names = ["ant/IMG_1.JPG", "ant/a-b.jpg", "ant/x y.jpg", "ant/v1.2.jpg"]
    names += ["bee/é.png", "bee/a,b.jpg", "bee/p.webp", "cow/1.jpg", "dog/deep/1.jpg", "dog/deep/er/2.jpg"]
    names += ["ant/ok.jpg.txt", "ant/notes.txt", "top.jpg", "bee/.hidden.jpg"]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    (tmp_path / "photos" / "empty").mkdir()
    return tmp_path / "photos"


def listed(triplets):
    return list(zip(*(column.tolist() for column in triplets)))


# random


LEFT_OUT = (  # of the fixture's photos; said on standard error even where the rest is quiet
    "left out: ant/notes.txt: not an image left out: ant/ok.jpg.txt: not an image "
    "left out: bee/.hidden.jpg: hidden file left out: empty: folder without an image "
    "left out: top.jpg: image outside any class folder "
)


@pytest.mark.parametrize("suffix", FORMATS)
def test_random_writes_the_triplets_of_the_library(tercet, photos, tmp_path, suffix):
    output = tmp_path / f"t{suffix}"
    options = ["--positives", 2, "--negatives", 3, "--seed", 5, "--quiet"]
    assert tercet("make-triplets", "random", photos, output, *options) == (0, "", LEFT_OUT)
    catalog = scan_folder(photos)
    found = read_manifest(output, root=photos)
    assert found.catalog == catalog
    assert listed(found.triplets) == listed(RandomTriplets(catalog.labels, 2, 3, seed=5)[:])
    assert found.provenance["parameters"] == {"positives": 2, "negatives": 3, "seed": 5}
    assert all(found.catalog.file(row).is_file() for row in range(len(catalog)))
    before = output.read_bytes()
    again = [*options, "--chunk-size", 7, "--overwrite"]
    assert tercet("make-triplets", "random", f"{photos}/", output, *again)[0] == 0
    assert output.read_bytes() == before


def test_the_closing_table_tells_the_numbers(tercet, photos, tmp_path):
    code, out, err = tercet("make-triplets", "random", photos, tmp_path / "t.parquet", "--class-depth", 1)
    assert code == 0
    # 4 · 1 · 1 + 3 · 1 · 1 + 2 · 1 · 1 triplets; the image of cow is alone.
    assert out.startswith(f"{tmp_path}/t.parquet images 10 classes 4 queries 9 triplets 9 ")
    assert "no query: alone in its class 1 left out 5 " in out
    for reason, count in [
        ("not an image", 2),
        ("image outside any class folder", 1),
        ("hidden file", 1),
        ("folder without an image", 1),
    ]:
        assert f" {reason} {count} " in out
    assert re.search(r" seconds \d+\.\d\d $", out)
    assert "writing triplets" in err
    assert len(read_manifest(tmp_path / "t.parquet")) == 9


def test_names_in_brackets_are_shown_as_they_are(tercet, photos, tmp_path):
    (tmp_path / "x[").mkdir()
    code, out, _ = tercet("make-triplets", "random", photos, tmp_path / "x[" / "b] [red].txt")
    assert code == 0
    assert "x[/b] [red].txt images 10" in out


def test_class_depth(tercet, photos, tmp_path):
    assert tercet("make-triplets", "random", photos, tmp_path / "1.txt", "--class-depth", 1)[0] == 0
    assert read_manifest(tmp_path / "1.txt").catalog.classes == ["ant", "bee", "cow", "dog"]
    assert tercet("make-triplets", "random", photos, tmp_path / "2.txt")[0] == 0
    deep = ["ant", "bee", "cow", "dog/deep", "dog/deep/er"]
    assert read_manifest(tmp_path / "2.txt").catalog.classes == deep


def test_verify_leaves_out_what_does_not_decode(tercet, photos, tmp_path):
    for name in ("ant/1.png", "ant/2.png", "bee/1.png"):
        assert cv2.imwrite(str(photos / name), np.zeros((4, 4, 3), np.uint8))
    code, out, err = tercet("make-triplets", "random", photos, tmp_path / "t.txt", "--verify")
    assert code == 0
    assert " images 3 classes 2 queries 2 triplets 2 no query: alone in its class 1 left out 15 " in out
    assert "the file is empty 10 " in out
    assert "verifying images" in err


def test_a_table_is_a_source_too(tercet, photos, tmp_path):
    table = tmp_path / "t.csv"
    lines = ["file,who,camera,note", "photos/ant/a-b.jpg,Ann,1,", "photos/ant/x y.jpg,Ann,2,"]
    table.write_text("\n".join([*lines, "photos/cow/1.jpg,Bob,1,old"]))
    options = ["--path-column", "file", "--label-column", "who", "--positives", 3, "--quiet"]
    options += ["--group", "camera"]
    assert tercet("make-triplets", "random", table, tmp_path / "t.jsonl", *options) == (0, "", "")
    found = read_manifest(tmp_path / "t.jsonl")
    assert found.catalog.classes == ["Ann", "Bob"]
    assert found.catalog.groups["camera"].tolist() == [1, 2, 1]
    assert listed(found.triplets) == [(0, 1, 2), (1, 0, 2)]
    table.write_text("path,label\nant/a-b.jpg,1\nant/gone.jpg,1\nant/x y.jpg,1\ncow/1.jpg,2\n")
    options = ["--root", photos, "--path-prefix", f"{photos}/", "--quiet"]
    assert tercet("make-triplets", "random", table, tmp_path / "t.txt", *options)[0] == 0
    lines = (tmp_path / "t.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(path.startswith(f"{photos}/") for line in lines for path in line.split(","))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["random"], 2, "Missing argument 'source'."),
        (["random", "photos"], 2, "Missing argument 'output'."),
        (["random", "photos", "t.txt", "--positives"], 2, "Option '--positives' requires an argument"),
        (["random", "photos", "t.txt", "--positives", "1.5"], 2, "Invalid value for '--positives'"),
        (["random", "photos", "t.txt", "--negatives", "many"], 2, "Invalid value for '--negatives'"),
        (["random", "photos", "t.txt", "--positive", "1"], 2, "No such option: --positive"),
        (
            ["random", "photos", "t.txt", "--positives", "0"],
            1,
            "Error: RandomTriplets(positives=0): expected a whole number of at least 1",
        ),
        (
            ["random", "photos", "t.txt", "--negatives=-3"],
            1,
            "Error: RandomTriplets(negatives=-3): expected a whole number of at least 1",
        ),
        (
            ["random", "photos", "t.txt", "--seed=-1"],
            1,
            "Error: RandomTriplets(seed=-1): expected a whole number of at least 0",
        ),
        (
            ["random", "photos", "t.txt", "--chunk-size", "0"],
            1,
            "Error: write_manifest(chunk_size=0): expected a whole number of at least 1",
        ),
        (
            ["random", "photos", "t.txt", "--class-depth", "0"],
            1,
            "Error: scan_folder(class_depth=0): expected a whole number of at least 1",
        ),
        (
            ["random", "gone", "t.txt"],
            1,
            "Error: make-triplets(source='gone'): expected an existing folder or table",
        ),
        (
            ["random", "photos/top.jpg", "t.txt"],
            1,
            "Error: read_catalog(path='photos/top.jpg'): expected a table ending in .csv or .parquet",
        ),
        (
            ["random", "photos/empty", "t.txt"],
            1,
            "Error: scan_folder(root='photos/empty'): expected one folder per class with images in it; "
            "found none: it is empty",
        ),
        (
            ["random", "photos/dog", "t.txt", "--class-depth", "1"],
            1,
            "Error: RandomTriplets(labels='2 images of 1 class'): expected images of 2 classes or more; "
            "a negative is of another class",
        ),
        (
            ["random", "photos", "t.doc"],
            1,
            "Error: make-triplets(path='t.doc'): "
            "expected a name ending in .parquet, .arrow, .csv, .jsonl, .txt",
        ),
        (
            ["random", "photos", "no/t.txt"],
            1,
            "Error: make-triplets(path='no/t.txt'): expected an existing folder to write in; make no first",
        ),
        (
            ["random", "photos", "t.arrow", "--path-prefix", "/x/"],
            1,
            "Error: write_manifest(path_prefix='/x/'): expected no prefix for .arrow; "
            "give it to a text format",
        ),
        (
            ["random", "photos", "t.txt", "--root", "photos"],
            2,
            "--root, --group, --path-column and --label-column are for tables",
        ),
        (
            ["random", "photos", "t.txt", "--label-column", "who"],
            2,
            "--root, --group, --path-column and --label-column are for tables",
        ),
        (["random", "t.csv", "t.txt", "--class-depth", "1"], 2, "--class-depth is for folders"),
        (["randon", "photos", "t.txt"], 2, "No such command 'randon'."),
        (["--seed", "3", "random", "photos", "t.txt"], 2, "--seed before 'random'"),
        (["--overwrite", "random", "photos", "t.txt"], 2, "--overwrite before 'random'"),
        ([], 2, "missing: --input_directory, --output_directory, --num_pos_images, --num_neg_images"),
        (
            ["--seed", "3"],
            2,
            "name a strategy, such as `random`, or give the four flags; missing: --in",
        ),
    ],
)
def test_what_cannot_be_done_is_said_on_standard_error(tercet, photos, monkeypatch, arguments, code, said):
    monkeypatch.chdir(photos.parent)
    Path("t.csv").write_text("path,label\n")
    ended, out, err = tercet("make-triplets", *arguments)
    assert (ended, out.strip()) == (code, "")
    assert said in err
    assert "Traceback" not in err
    if code == 1:
        assert err == f"{said} "
    assert sorted(os.listdir()) == ["photos", "t.csv"]


def test_existing_output_is_refused_without_overwrite(tercet, photos, tmp_path):
    output = tmp_path / "t.txt"
    output.write_text("mine")
    code, out, err = tercet("make-triplets", "random", photos, output)
    assert (code, out) == (1, "")
    assert err.endswith("expected a new file; it exists; overwrite=True or --overwrite replaces it ")
    assert output.read_text() == "mine"
    assert tercet("make-triplets", "random", photos, output, "--overwrite")[0] == 0
    assert len(read_manifest(output)) == 7


def test_unwritable_output_is_refused_before_the_images_are_looked_at(tercet, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # root may write anywhere
    code, _, err = tercet("make-triplets", "random", photos, tmp_path / "t.txt", "--verify")
    assert code == 1
    assert err.endswith("expected a folder that may be written ")


# The four flags


def flags(photos, output, positives=2, negatives=3):
    return [
        *("--input_directory", photos, "--output_directory", output),
        *("--num_pos_images", positives, "--num_neg_images", negatives),
    ]


def by_the_old_rule(folder, positives, negatives):
    """The number of lines and the class of each path, by the rule of the four flags restated in loops."""
    images = {}
    for label in sorted(os.listdir(folder)):
        if os.path.isdir(os.path.join(folder, label)):
            for base, _, names in os.walk(os.path.join(folder, label)):
                for name in names:
                    if name.lower().endswith((".jpg", ".png", ".webp")) and not name.startswith("."):
                        images[os.path.normpath(os.path.join(base, name))] = label
    lines = 0
    for label in images.values():
        same = sum(other == label for other in images.values())
        lines += min(positives, same - 1) * min(negatives, len(images) - same)
    return lines, images


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (2, 3), (99, 99), (2, 100)])
@pytest.mark.parametrize("form", ["{}", "{}/", "relative", "relative/"])
def test_the_four_flags_write_the_lines_of_the_old_script(
    tercet, photos, tmp_path, monkeypatch, positives, negatives, form
):
    monkeypatch.chdir(tmp_path)
    given = form.format(photos).replace("relative", "photos")
    (tmp_path / "out").mkdir()
    code, out, _ = tercet("make-triplets", *flags(given, "out", positives, negatives))
    expected, images = by_the_old_rule(given, positives, negatives)
    assert code == 0
    assert f" triplets {expected:,} " in out
    found = read_manifest(tmp_path / "out" / "triplets.txt")
    lines = (tmp_path / "out" / "triplets.txt").read_text("utf-8").splitlines()
    assert len(lines) == len(found) == expected
    seen = {}
    for number, line in enumerate(lines):
        paths = re.findall(r'"[^"]*"|[^,]+', line)
        query, positive, negative = (path.strip('"') for path in paths)
        for path in (query, positive, negative):
            assert os.path.isfile(path)
            assert path.startswith(os.path.join(given, ""))
            assert "//" not in path
        query, positive, negative = map(os.path.normpath, (query, positive, negative))
        assert images[query] == images[positive] != images[negative]
        assert query != positive
        assert (query, positive, negative) not in seen
        seen[query, positive, negative] = number
    assert len({query for query, _, _ in seen}) == 9


def test_the_four_flags_take_a_seed_and_refuse_to_overwrite(tercet, photos, tmp_path):
    target = tmp_path / "triplets.txt"
    assert tercet("make-triplets", *flags(photos, tmp_path), "--quiet") == (0, "", LEFT_OUT)
    first = target.read_bytes()
    code, _, err = tercet("make-triplets", *flags(photos, tmp_path))
    assert code == 1
    assert "overwrite=True or --overwrite replaces it" in err
    assert tercet("make-triplets", *flags(photos, tmp_path), "--overwrite")[0] == 0
    assert target.read_bytes() == first
    assert tercet("make-triplets", *flags(photos, tmp_path), "--overwrite", "--seed", 1)[0] == 0
    assert target.read_bytes() != first
    assert json.loads((tmp_path / "triplets.txt.json").read_text())["parameters"]["seed"] == 1


@pytest.mark.parametrize("left_away", range(4))
def test_fewer_than_four_flags_are_refused(tercet, photos, tmp_path, left_away):
    given = flags(photos, tmp_path)
    name = given[2 * left_away]
    del given[2 * left_away : 2 * left_away + 2]
    code, _, err = tercet("make-triplets", *given)
    assert code == 2
    assert f"missing: {name} " in err
    assert os.listdir(tmp_path) == ["photos"]


def test_the_four_flags_are_refused_with_a_strategy(tercet, photos, tmp_path):
    code, _, err = tercet("make-triplets", *flags(photos, tmp_path), "random", photos, tmp_path / "t.txt")
    assert code == 2
    assert (
        "--input_directory, --num_neg_images, --num_pos_images, --output_directory before 'random': "
        "options of a strategy go behind its name"
    ) in err
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"positives": 0}, 1, "RandomTriplets(positives=0): expected a whole number of at least 1"),
        ({"negatives": -2}, 1, "RandomTriplets(negatives=-2): expected a whole number of at least 1"),
        ({"negatives": "x"}, 2, "Invalid value for '--num_neg_images'"),
        ({"photos": "gone"}, 1, "scan_folder(root='gone'): expected an existing folder"),
        (
            {"output": "gone"},
            1,
            "make-triplets(--output_directory='gone'): expected an existing folder; make it first",
        ),
    ],
)
def test_four_flags_that_cannot_be_followed(tercet, photos, tmp_path, changes, code, said):
    ended, _, err = tercet("make-triplets", *flags(**{"photos": photos, "output": tmp_path, **changes}))
    assert ended == code
    assert said in err
    assert os.listdir(tmp_path) == ["photos"]


# The script itself


def test_the_console_script_names_its_commands(tercet):
    code, out, err = tercet()
    assert code == 2
    assert "make-triplets" in out + err
    code, out, _ = tercet("--help")
    assert code == 0
    assert "make-triplets" in out
    code, out, _ = tercet("make-triplets", "--help")
    assert code == 0
    assert "--num_neg_images" in out
    assert "random" in out
    assert tercet("make-triplets", "random", "--help")[0] == 0
    assert tercet("--version") == (0, f"tercet {version('tercet')} ", "")
    assert tercet("nonsense")[0] == 2


@pytest.mark.parametrize("command", [["tools/make_triplets.py"], ["-m", "tercet.cli", "make-triplets"]])
def test_the_tool_is_the_same_command(photos, tmp_path, command):
    if command[0].endswith(".py"):
        command = [str(ROOT / command[0])]

    def run(*arguments):
        words = [sys.executable, *command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)

    done = run("random", "photos", "t.csv", "--positives", 2, "--quiet")
    assert (done.returncode, done.stdout, done.stderr.split()) == (0, "", LEFT_OUT.split())
    triplets = RandomTriplets(scan_folder(photos).labels, 2, 1)
    assert listed(read_manifest(tmp_path / "t.csv").triplets) == listed(triplets[:])
    done = run("random", "photos", "t.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: make-triplets(path='t.csv'): expected a new file")
    done = run(*flags("photos", "."), "--quiet")
    assert done.returncode == 0
    assert len(read_manifest(tmp_path / "triplets.txt")) == by_the_old_rule(photos, 2, 3)[0]
    assert run().returncode == 2
