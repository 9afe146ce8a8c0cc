"""The console script as a person calls it: what it writes, what it says, how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest

from tercet.data.catalog.scan import scan_folder
from tercet.data.manifests.formats import FORMATS
from tercet.data.manifests.manifest import read_manifest
from tercet.data.triplets.deep_ranking import DeepRankingTriplets
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tercet.data.triplets.relevance import FolderRelevance, TableRelevance, TeacherRelevance
from tests.helpers import listed

ROOT = Path(__file__).parents[2]


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
    law = {"positives": 2, "negatives": 3, "seed": 5}
    assert found.provenance["parameters"] == {**law, "negatives_from": "images", "limit": None}
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
            "--root, --outside-root, --group, --path-column and --label-column are for tables",
        ),
        (
            ["random", "photos", "t.txt", "--label-column", "who"],
            2,
            "--root, --outside-root, --group, --path-column and --label-column are for tables",
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


def end_to_end(tercet, photos, folder, suffix, *options):
    """The manifest that a command writes, twice the same bytes."""
    contents = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        assert (
            tercet("make-triplets", *options[:1], photos, folder / name / f"t{suffix}", *options[1:])[0] == 0
        )
        contents.append({file.name: file.read_bytes() for file in (folder / name).iterdir()})
    assert contents[0] == contents[1]
    return read_manifest(folder / "one" / f"t{suffix}", root=photos)


@pytest.fixture
def people(tmp_path):
    """Six people of 8 images from 2 cameras each; camera and number in folders and in names."""
    for person in range(6):
        for number in range(8):
            camera = number % 2 + 1
            file = (
                tmp_path / "people" / f"p{person}" / f"cam{camera}" / f"{person:04d}_c{camera}s1_{number}.jpg"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    return tmp_path / "people"


OPTIONS = ["--positives", 2, "--negatives", 3, "--seed", 5, "--class-depth", 1, "--quiet"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_option_of_random(tercet, people, tmp_path, suffix):
    more = ["--negatives-from", "classes", "--groups", 2, "--limit-per-class", 3]
    found = end_to_end(tercet, people, tmp_path, suffix, "random", *OPTIONS, *more)
    catalog = scan_folder(people, class_depth=1)
    cameras = [path.split("/")[1] for path in catalog.paths]
    law = {"negatives_from": "classes", "groups": cameras, "limit": 3}
    assert listed(found.triplets) == listed(RandomTriplets(catalog.labels, 2, 3, 5, **law)[:])
    assert found.catalog.groups["group"].tolist() == cameras
    assert found.provenance["groups"] == "2"
    assert found.provenance["parameters"]["negatives_from"] == "classes"
    assert found.provenance["counts"]["images over the limit"] == 6 * 5
    pattern = [
        r"_c(\d)s" if option == 2 and before == "--groups" else option
        for before, option in zip(["", *more[:-1]], more, strict=True)
    ]
    output = tmp_path / f"u{suffix}"
    assert tercet("make-triplets", "random", people, output, *OPTIONS, *pattern)[0] == 0
    again = read_manifest(output)
    assert listed(again.triplets) == listed(found.triplets)  # the cameras are the same
    assert again.catalog.groups["group"].tolist() == [camera.removeprefix("cam") for camera in cameras]


@pytest.mark.parametrize("suffix", FORMATS)
def test_pairs_end_to_end(tercet, people, tmp_path, suffix):
    found = end_to_end(tercet, people, tmp_path, suffix, "random", *OPTIONS, "--output-kind", "pairs")
    labels = scan_folder(people, class_depth=1).labels
    assert listed(found.pairs) == listed(RandomPairs(labels, 2, 3, 5)[:])
    for first, second, same in listed(found.pairs):
        assert (labels[first] == labels[second]) == same
    assert found.provenance["kind"] == "pairs"
    output = tmp_path / f"u{suffix}"
    _, out, _ = tercet(
        "make-triplets", "random", people, output, "--output-kind", "pairs", "--class-depth", 1
    )
    assert " queries 48 pairs 96 left out 0 " in out


@pytest.mark.parametrize("by", ["image", "class", None])
@pytest.mark.parametrize("kind", ["triplets", "pairs"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_split_writes_two_manifests_without_leakage(tercet, people, tmp_path, suffix, kind, by):
    options = ["--validation-fraction", 0.4, "--output-kind", kind, *(["--split-by", by] if by else [])]
    train = end_to_end(tercet, people, tmp_path, suffix, "random", *OPTIONS, *options)
    validation = read_manifest(tmp_path / "one" / f"t.validation{suffix}", root=people)
    images = [set(side.catalog.paths) for side in (train, validation)]
    assert not images[0] & images[1]
    assert images[0] | images[1] == set(scan_folder(people, class_depth=1).paths)
    classes = [{side.catalog.classes[label] for label in side.catalog.labels} for side in (train, validation)]
    assert bool(classes[0] & classes[1]) == (by != "class")
    for side, part in ((train, "train"), (validation, "validation")):
        assert len(side) > 0
        assert side.kind == kind
        whole = scan_folder(people, class_depth=1).fingerprint
        split = {"part": part, "by": by or "image", "fraction": 0.4, "seed": 5, "of": whole}
        assert side.provenance["split"] == split
        assert side.provenance["catalog"]["classes"] == len(set(side.catalog.labels))
        assert all(side.catalog.file(row).is_file() for row in range(len(side.catalog)))


def test_the_closing_table_of_a_split(tercet, people, tmp_path):
    options = [
        "--class-depth",
        1,
        "--validation-fraction",
        0.34,
        "--split-by",
        "class",
        "--limit-per-class",
        5,
    ]
    code, out, _ = tercet("make-triplets", "random", people, tmp_path / "t.csv", *options)
    assert code == 0
    assert out.startswith(f"{tmp_path}/t.csv {tmp_path}/t.validation.csv ")
    words = re.sub(r"[━┃┏┓┡┩╇┳╈ ]+", " ", out)
    assert " train validation images 32 16 classes 4 2 queries 20 10 triplets 20 10 " in words
    assert " no query: over the limit of its class 12 6 left out 0 seconds " in words


def test_a_csv_may_be_safe_for_a_spreadsheet(tercet, people, tmp_path):
    given = ("make-triplets", "random", people, tmp_path / "t.csv", "--class-depth", 1, "--quiet")
    assert tercet(*given, "--csv-safe", "--path-prefix", "=") == (0, "", "")
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("'=p0/cam")
    assert len(read_manifest(tmp_path / "t.csv")) == 48


def test_a_tree_of_persons_and_cameras_is_noticed(tercet, people, tmp_path):
    given = ("make-triplets", "random", people, tmp_path / "t.csv", "--quiet", "--overwrite")
    code, out, err = tercet(*given)
    assert (code, out) == (0, "")
    assert err.startswith("Warning: scan_folder(root=")
    assert (
        "'p0/cam1' and 'p1/cam1' are two classes, and likewise folders of 1 other name; pass class_depth=1 ("
        in err
    )
    assert tercet(*given, "--class-depth", 1) == (0, "", "")


def test_no_manifest_of_a_split_without_the_other(tercet, people, tmp_path):
    (tmp_path / "t.validation.csv").write_text("mine")
    split = ["--validation-fraction", 0.4, "--class-depth", 1, "--quiet"]
    code, _, err = tercet("make-triplets", "random", people, tmp_path / "t.csv", *split)
    assert code == 1
    assert err.endswith("expected a new file; it exists; overwrite=True or --overwrite replaces it ")
    assert sorted(os.listdir(tmp_path)) == ["people", "t.validation.csv"]
    assert tercet("make-triplets", "random", people, tmp_path / "t.csv", *split, "--overwrite")[0] == 0
    assert read_manifest(tmp_path / "t.validation.csv").provenance["split"]["part"] == "validation"
    code, _, err = tercet("make-triplets", "random", people, tmp_path / "u.csv", *split, "--chunk-size", 0)
    assert code == 1
    assert not list(tmp_path.glob("u*"))


def test_groups_of_a_table_are_a_column(tercet, people, tmp_path):
    catalog = scan_folder(people, class_depth=1)
    lines = [
        f"people/{path},{label},{row % 3}"
        for row, (path, label) in enumerate(zip(catalog.paths, catalog.labels, strict=True))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,camera", *lines]))
    options = ["--groups", "camera", "--positives", 2, "--quiet"]
    for more in ([], ["--group", "camera"]):
        output = tmp_path / f"{len(more)}.parquet"
        assert tercet("make-triplets", "random", tmp_path / "t.csv", output, *options, *more) == (0, "", "")
        found = read_manifest(output)
        cameras = found.catalog.groups["camera"]
        assert cameras.tolist() == [row % 3 for row in range(48)]
        assert found.provenance["groups"] == "camera"
        anchor, positive, _ = found.triplets
        assert (cameras[anchor] != cameras[positive]).all()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--split-by", "class"],
            2,
            "--split-by says how --validation-fraction is kept apart; give that too",
        ),
        (
            ["--output-kind", "pair"],
            1,
            "make-triplets(--output-kind='pair'): expected one of 'triplets', 'pairs'; did",
        ),
        (
            ["--negatives-from", "image"],
            1,
            "RandomTriplets(negatives_from='image'): expected one of 'images'",
        ),
        (["--limit-per-class", "0"], 1, "RandomTriplets(limit=0): expected a whole number of at least 1"),
        (["--limit-per-class", "few"], 2, "Invalid value for '--limit-per-class'"),
        (
            ["--validation-fraction", "1"],
            1,
            "train_validation_split(fraction=1.0): expected a number between 0 and 1",
        ),
        (
            ["--validation-fraction", "0.4", "--split-by", "folder"],
            1,
            "train_validation_split(by='folder'): expected one of 'image', 'class'",
        ),
        (
            ["--validation-fraction", "0.1", "--split-by", "class"],
            1,
            "validation: RandomTriplets(labels='8 images of 1 class'): expected images of 2 classes or more",
        ),
        (
            ["--groups", "1"],
            1,
            "RandomTriplets(groups='one group in each of 6 classes'): expected two groups in a class",
        ),
        (
            ["--groups", "3"],
            1,
            "make-triplets(--groups='3'): expected a level of folders, from 1 to the 2 that every path has; "
            "not in 'p0/cam1/0000_c1s1_0.jpg'",
        ),
        (
            ["--groups", "0"],
            1,
            "expected a level of folders, from 1 to the 2 that every path has; not in 'p0/",
        ),
        (["--groups", "(x"], 1, "a regular expression with one group; missing ), unterminated subpattern"),
        (["--groups", "cam"], 1, "with one group; put one part of it in parentheses; it has 0"),
        (["--groups", "(c)(am)"], 1, "with one group; put one part of it in parentheses; it has 2"),
        (
            ["--groups", r"_c(1)s"],
            1,
            "expected an expression that is found in every path, its group too; not in 'p0/cam2",
        ),
    ],
)
def test_options_that_cannot_be_followed(tercet, people, monkeypatch, options, code, said):
    monkeypatch.chdir(people.parent)
    ended, out, err = tercet("make-triplets", "random", "people", "t.csv", "--class-depth", 1, *options)
    assert (ended, out.strip()) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert os.listdir() == ["people"]


def test_a_column_of_groups_that_is_not_there_is_named(tercet, people, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na,1\nb,1\nc,2\n")
    code, _, err = tercet(
        "make-triplets", "random", tmp_path / "t.csv", tmp_path / "u.csv", "--groups", "camera"
    )
    assert code == 1
    assert err.endswith("expected one column 'camera'; its columns are: path, label ")


# deep-ranking


def write_relevance(folder, count):
    """A teacher and a table of relevance for `count` images, and the sources that read them."""
    chance = np.random.default_rng(0)
    embeddings = chance.random((count, 4))
    np.save(folder / "teacher.npy", embeddings)
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
    i, j = i[i != j], j[i != j]
    r = chance.random(len(i)).round(3)
    lines = [f"{a},{b},{value}" for a, b, value in zip(i, j, r, strict=True)]
    (folder / "table.csv").write_text("\n".join(["i,j,r", *lines]))
    return {
        "teacher.npy": TeacherRelevance(embeddings),
        "table.csv": TableRelevance(i, j, r, symmetric=False),
    }


@pytest.mark.parametrize("source", ["teacher.npy", "table.csv", "folders"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_deep_ranking_writes_the_triplets_of_the_library(tercet, people, tmp_path, suffix, source):
    catalog = scan_folder(people, class_depth=1)
    known = write_relevance(tmp_path, len(catalog)).get(source, FolderRelevance(catalog.paths))
    law = ["--cap", 0.9, "--gap", 0.2, "--out-of-class", 0.4, "--seed", 3, "--count", 200]
    relevance = ["--relevance", source if source == "folders" else tmp_path / source]
    relevance += ["--one-way"] if source == "table.csv" else []
    options = [*relevance, *law, "--class-depth", 1, "--quiet"]
    found = end_to_end(tercet, people, tmp_path, suffix, "deep-ranking", *options)
    expected = DeepRankingTriplets(catalog.labels, known, 200, 3, cap=0.9, gap=0.2, out_of_class=0.4)
    assert found.catalog == catalog
    assert listed(found.triplets) == listed(expected[:])
    told = found.provenance
    assert told["strategy"] == "deep ranking"
    assert told["parameters"] == {"count": 200, "seed": 3, "cap": 0.9, "gap": 0.2, "out_of_class": 0.4}
    assert told["relevance"] == repr(known)
    if source == "folders":
        assert "relevance file" not in told
    else:
        digest = hashlib.sha256((tmp_path / source).read_bytes()).hexdigest()
        more = {"symmetric": False} if source == "table.csv" else {}
        assert told["relevance file"] == {"name": source, "sha256": digest, **more}


def test_the_closing_table_of_deep_ranking(tercet, people, tmp_path):
    # Row 0 to 3 know each other; row 3 knows all three as well as each other: it has no in-class negative.
    pairs = [(0, 1, 0.9), (0, 2, 0.1), (1, 2, 0.5), (0, 3, 0.4), (1, 3, 0.4), (2, 3, 0.4)]
    (tmp_path / "r.csv").write_text("\n".join(["i,j,r", *(f"{i},{j},{r}" for i, j, r in pairs)]))
    (people / "z").mkdir()
    (people / "z" / "1.jpg").write_bytes(b"")
    options = ["--relevance", tmp_path / "r.csv", "--count", 1000, "--class-depth", 1]
    code, out, err = tercet("make-triplets", "deep-ranking", people, tmp_path / "t.parquet", *options)
    assert code == 0
    assert out.startswith(f"{tmp_path}/t.parquet images 49 classes 7 queries 4 triplets 1,000 ")
    assert " no query: alone in its class 1 no query: relevant to none of its class 44 " in out
    assert " query without an in-class negative 1 left out 0 seconds " in out
    assert "writing triplets" in err
    code, _, err = tercet("make-triplets", "deep-ranking", people, tmp_path / "t.parquet", *options)
    assert code == 1
    assert err.endswith("expected a new file; it exists; overwrite=True or --overwrite replaces it ")
    again = [*options, "--overwrite", "--quiet"]
    assert tercet("make-triplets", "deep-ranking", people, tmp_path / "t.parquet", *again) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--count", "5"], 2, "Missing option '--relevance'"),
        (["--relevance", "folders"], 2, "Missing option '--count'"),
        (
            ["--relevance", "folders", "--count", "0"],
            1,
            "DeepRankingTriplets(count=0): expected a whole number",
        ),
        (
            ["--relevance", "folder", "--count", "5"],
            1,
            "make-triplets(--relevance='folder'): expected folders, or a file ending in .npy, .csv, .parquet",
        ),
        (
            ["--relevance", "gone.npy", "--count", "5"],
            1,
            "(embeddings='gone.npy'): expected an existing .npy file",
        ),
        (["--relevance", "gone.csv", "--count", "5"], 1, "read(path='gone.csv'): expected an existing file"),
        (["--relevance", "folders", "--count", "5", "--one-way"], 2, "--one-way is for a --relevance table"),
        (["--relevance", "folders", "--count", "5", "--cap", "0"], 1, "(cap=0.0): expected a number above 0"),
        (
            ["--relevance", "folders", "--count", "5", "--gap", "0.6"],
            1,
            "(gap=0.6): expected at most 0.5, the widest",
        ),
        (
            ["--relevance", "folders", "--count", "5", "--out-of-class", "2"],
            1,
            "(out_of_class=2.0): expected a finite",
        ),
        (["--relevance", "few.npy", "--count", "5"], 1, "expected one of 48 images, as there are 48 labels"),
    ],
)
def test_deep_ranking_that_cannot_be_done(tercet, people, monkeypatch, options, code, said):
    monkeypatch.chdir(people.parent)
    np.save("few.npy", np.ones((3, 2)))
    arguments = ["deep-ranking", "people", "t.csv", "--class-depth", 1, *options]
    ended, out, err = tercet("make-triplets", *arguments)
    assert (ended, out.strip()) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert sorted(os.listdir()) == ["few.npy", "people"]


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


@pytest.mark.parametrize("option", ["source", "relevance"])
def test_an_output_that_is_an_input_is_refused_even_with_overwrite(tercet, photos, tmp_path, option):
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,1\nb.png,1\nc.png,2\n" if option == "source" else "i,j,r\n0,1,0.5\n")
    before = table.read_bytes()
    given = ("random", table) if option == "source" else ("deep-ranking", photos)
    more = () if option == "source" else ("--relevance", table, "--count", 5)
    code, _, err = tercet("make-triplets", *given, tmp_path / "." / "table.csv", *more, "--overwrite")
    assert code != 0
    assert "expected another file than what is read" in err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    "typed",
    [
        ("make-triplets", "random", "", "t.csv"),
        ("make-triplets", "random", "digits", ""),
        ("make-triplets", "random", "digits.csv", "t.csv", "--root", ""),
        ("make-shards", "digits", ""),
        ("index-shards", ""),
    ],
)
def test_an_empty_path_as_of_an_unset_variable_is_not_the_current_folder(
    typed, tmp_path, monkeypatch, tercet
):
    monkeypatch.chdir(tmp_path)
    code, _, said = tercet(*typed)
    assert code == 2
    assert "expected a path, got an empty argument; is a variable of the shell unset?" in " ".join(
        said.split()
    )
    assert not list(tmp_path.iterdir())
