"""`tercet make-shards` and `index-shards` as a person calls them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog
from tercet.data.shards import writing as shard_writing
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.streams.yield_prediction import predict_yield
from tests.helpers import contents

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Twelve classes of 6 images from 2 cameras in the working directory, and a file that is left out."""
    monkeypatch.chdir(tmp_path)
    for number in range(72):
        file = Path(f"photos/{number // 6:02d}/cam{number % 2}/{number}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number)
    Path("photos/00/notes.txt").write_text("mine")
    return Path("photos")


LEFT_OUT = "left out: 00/notes.txt: not an image "


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--layout", "mixed", "--images-per-shard", 20], {"layout": "mixed", "images_per_shard": 20}),
        (
            ["--k", 3, "--images-per-shard", 10, "--split", "test", "--seed", 5, "--workers", 2],
            {"k": 3, "images_per_shard": 10, "split": "test", "seed": 5},
        ),
        (["--batches", 4, 2], {"k": 2}),
    ],
)
def test_the_shards_are_those_of_the_library(tercet, photos, arguments, options):
    given = ["--class-depth", 1, "--groups", 2, *arguments, "--quiet"]
    assert tercet("make-shards", photos, "out", *given) == (0, "", LEFT_OUT)
    catalog = scan_folder(photos, class_depth=1)
    cameras = [path.split("/")[1] for path in catalog.paths]
    assert ShardIndex("out").groups["group"].tolist() == cameras
    groups = {**catalog.groups, "group": np.array(cameras, dtype=object)}
    write_shards(
        "expected", type(catalog)(catalog.paths, catalog.labels, catalog.classes, groups, photos), **options
    )
    assert contents(Path("out")) == contents(Path("expected"))


def test_the_old_name_of_the_layout_is_taken_with_a_warning(tercet, photos):
    depth = ("--class-depth", 1, "--quiet")
    assert tercet("make-shards", photos, "out", *depth, "--layout", "identity") == (
        0,
        "",
        "Warning: make-shards: the layout 'identity' is now called 'by_class'; the old name goes with "
        f"version 0.3 {LEFT_OUT}",
    )
    tercet("make-shards", photos, "expected", *depth)
    assert contents(Path("out")) == contents(Path("expected"))


def test_the_closing_table_tells_the_numbers(tercet, photos):
    options = ["--class-depth", 1, "--batches", 4, 2, "--images-per-shard", 20]
    code, out, err = tercet("make-shards", photos, "out", *options)
    assert code == 0
    size = sum(tar.stat().st_size for tar in Path("out").glob("*.tar"))
    told = predict_yield(scan_folder(photos, class_depth=1).labels, 4, 2, images_per_shard=20)
    assert out.startswith(f"out shards 4 images 72 classes 12 bytes {size:,} ")
    assert f" predicted yield at 4 × 2 {told.share:.2f} batches an epoch {told.batches} left out 1 " in out
    assert " not an image 1 seconds " in out
    assert "writing shards" in err


def test_a_table_with_its_groups(tercet, photos):
    lines = ["file,who,camera", "00/cam0/0.jpg,Ann,1", "00/cam1/1.jpg,Ann,2", "01/cam0/6.jpg,Bob,1"]
    Path("t.csv").write_text("\n".join(lines))
    options = ["--path-column", "file", "--label-column", "who", "--group", "camera", "--root", photos]
    assert tercet("make-shards", "t.csv", "out", *options, "--quiet") == (0, "", "")
    index = ShardIndex("out")
    names = {"path_column": "file", "label_column": "who", "groups": ["camera"], "root": photos}
    assert index.catalog == read_catalog("t.csv", **names)
    assert index.groups["camera"].tolist() == [1, 2, 1]
    assert index.read([2]) == [b"6"]


def test_what_is_left_out_is_told(tercet, photos):
    Path("photos/03/cam0/18.jpg").write_bytes(b"")
    depth = ("--class-depth", 2)
    code, out, err = tercet("make-shards", photos, "out", *depth)
    assert (code, out) == (1, "")
    assert "Error: write_shards(catalog='photos/03/cam0/18.jpg'): expected files that can be read; " in err
    assert not Path("out").exists()
    assert tercet("make-shards", photos, "out", "--unreadable", "skip", "--quiet", *depth) == (
        0,
        "",
        LEFT_OUT + "left out: 03/cam0/18.jpg: file is empty ",
    )
    assert len(ShardIndex("out")) == 71
    picture = np.zeros((4, 4, 3), np.uint8)
    assert cv2.imwrite("photos/00/cam0/0.jpg", picture)
    assert cv2.imwrite("photos/01/cam0/6.jpg", picture)
    assert tercet("make-shards", photos, "verified", "--verify", *depth)[0] == 0
    assert ShardIndex("verified").paths.tolist() == ["00/cam0/0.jpg", "01/cam0/6.jpg"]


@pytest.mark.parametrize("name", ["../secret.jpg", "{}/secret.jpg", "photos/link.jpg"])
def test_a_table_leads_out_of_its_root_only_when_asked(tercet, photos, name):
    Path("secret.jpg").write_bytes(b"mine")
    Path("tables/photos").mkdir(parents=True)
    Path("tables/photos/link.jpg").symlink_to("../../secret.jpg")
    rows = "".join(f"{path},x\n" for path in ("photos/a.jpg", name.format(os.getcwd())))
    Path("tables/photos/a.jpg").write_bytes(b"a")
    Path("tables/t.csv").write_text("path,label\n" + rows)
    code, out, err = tercet("make-shards", "tables/t.csv", "out", "--quiet")
    assert (code, out) == (1, "")
    assert "outside_root=True (--outside-root)" in err
    assert not Path("out").exists()
    assert tercet("make-shards", "tables/t.csv", "out", "--quiet", "--outside-root") == (0, "", "")
    assert ShardIndex("out").read([0, 1]) == [b"a", b"mine"]


def test_an_interrupted_run_goes_on(tercet, photos, monkeypatch):
    given = ("make-shards", photos, "out", "--images-per-shard", 12, "--workers", 1, "--class-depth", 2)
    write, came = shard_writing.write_shard, []

    def interrupted(job, shard, *more):
        came.append(shard)
        if len(came) == 3:
            raise KeyboardInterrupt
        return write(job, shard, *more)

    monkeypatch.setattr(shard_writing, "write_shard", interrupted)
    code, out, err = tercet(*given)
    assert code != 0
    assert out == ""
    assert "Traceback" not in err
    there = {file.name: file.stat().st_mtime_ns for file in Path("out").iterdir()}
    assert len(there) == 4  # two shards, each whole with its index, and no info.json
    with pytest.raises(ValueError, match="the writing was interrupted"):
        ShardIndex("out")
    anew = []
    monkeypatch.setattr(shard_writing, "write_shard", lambda *given: anew.append(given[1]) or write(*given))
    assert tercet(*given)[0] == 0
    assert sorted(anew) == [2, 3, 4, 5]
    assert {name: Path("out", name).stat().st_mtime_ns for name in there} == there
    write_shards("expected", scan_folder(photos, class_depth=2), images_per_shard=12)
    assert contents(Path("out")) == contents(Path("expected"))


def test_shards_of_other_options_are_refused_without_overwrite(tercet, photos):
    assert tercet("make-shards", photos, "out", "--quiet")[0] == 0
    before = contents(Path("out"))
    code, out, err = tercet("make-shards", photos, "out", "--seed", 1)
    assert (code, out) == (1, "")
    expected = (
        "expected a folder without shards of another catalog or other options; info.json is of others; "
    )
    assert expected in err
    assert contents(Path("out")) == before
    assert tercet("make-shards", photos, "out", "--seed", 1, "--overwrite", "--quiet")[0] == 0
    assert contents(Path("out")).keys() == before.keys()
    assert contents(Path("out")) != before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'source'"),
        (["photos"], 2, "Missing argument 'folder'"),
        (["photos", "out", "--images", "3"], 2, "No such option: --images"),
        (["gone", "out"], 1, "Error: make-shards(source='gone'): expected an existing folder or table"),
        (
            ["photos", "./photos"],
            1,
            "make-shards(folder='photos'): expected another folder than what is read",
        ),
        (
            ["photos", "photos/shards"],
            1,
            "make-shards(folder='photos/shards'): expected a folder outside photos, which is read",
        ),
        (
            [".", "photos/00"],
            1,
            "make-shards(folder='photos/00'): expected a folder outside ., which is read",
        ),
        (
            ["photos", "a/b"],
            1,
            "Error: write_shards(folder='a/b'): expected an existing folder above it; make a first",
        ),
        (["photos", "t.csv"], 1, "Error: write_shards(folder='t.csv'): expected a folder, not a file"),
        (
            ["photos", "out", "--layout", "by_clas"],
            1,
            "make-shards(--layout='by_clas'): expected one of 'by_c",
        ),
        (
            ["photos", "out", "--layout", "mixed", "--k", "4"],
            1,
            "write_shards(k=4): expected no k for layout=",
        ),
        (["photos", "out", "--k", "0"], 1, "write_shards(k=0): expected a whole number of at least 1"),
        (
            ["photos", "out", "--k", "3", "--batches", "4", "2"],
            2,
            "--k 3 and --batches 4 2: give one of them",
        ),
        (["photos", "out", "--batches", "4"], 2, "Invalid value for '--batches'"),
        (["photos", "out", "--batches", "0", "4"], 1, "predict_yield(p=0): expected a whole number of at"),
        (
            ["photos", "out", "--batches", "40", "4"],
            1,
            "0.00 of the samples would end in a batch of 40 classes",
        ),
        (
            ["photos", "out", "--images-per-shard", "0"],
            1,
            "write_shards(images_per_shard=0): expected a whole",
        ),
        (["photos", "out", "--split", "a/b"], 1, "write_shards(split='a/b'): expected letters, digits and"),
        (["photos", "out", "--workers", "0"], 1, "write_shards(workers=0): expected a whole number of at"),
        (["photos", "out", "--unreadable", "drop"], 1, "write_shards(unreadable='drop'): expected one of"),
        (["photos", "out", "--groups", "9"], 1, "make-shards(--groups='9'): expected a level of folders"),
        (["photos", "out", "--root", "x"], 2, "--root, --outside-root, --group, --path-column and --label"),
        (["t.csv", "out", "--groups", "1"], 2, "--groups is for folders; of a table, --group names the"),
        (["t.csv", "out", "--class-depth", "1"], 2, "--class-depth is for folders"),
        (["t.csv", "out"], 1, "Error: read_catalog(path='t.csv'): expected at least one row"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(tercet, photos, arguments, code, said):
    Path("t.csv").write_text("path,label\n")
    ended, out, err = tercet(
        "make-shards", *arguments, *(["--class-depth", 1] if arguments[:1] == ["photos"] else [])
    )
    assert (ended, out.strip()) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert sorted(os.listdir()) == ["photos", "t.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out", "--split", "a/b"], "write_shards(split='a/b'): expected letters, digits and"),
        (["a/b"], "write_shards(folder='a/b'): expected an existing folder above it; make a first"),
        (["t.csv"], "write_shards(folder='t.csv'): expected a folder, not a file"),
    ],
)
def test_split_and_folder_are_looked_at_before_the_images(tercet, photos, monkeypatch, arguments, said):
    Path("t.csv").write_text("path,label\n")
    monkeypatch.setattr("tercet.cli.options.scan_folder", lambda *given, **options: pytest.fail("scanned"))
    code, out, err = tercet("make-shards", "photos", *arguments)
    assert (code, out) == (1, "")
    assert said in err


def test_the_tool_is_the_same_command(photos):
    words = [
        sys.executable,
        str(ROOT / "tools/make_shards.py"),
        "photos",
        "out",
        "--quiet",
        "--class-depth",
        "2",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "", LEFT_OUT.strip())
    write_shards("expected", scan_folder(photos, class_depth=2))
    assert contents(Path("out")) == contents(Path("expected"))
    done = subprocess.run([*words, "--k", "0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: write_shards(k=0): expected a whole number")


# index-shards


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder of two tars as webdataset's own writer makes them, of 4 images each."""
    monkeypatch.chdir(tmp_path)
    Path("tars").mkdir()
    for shard in range(2):
        with tarfile.open(f"tars/{shard}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                for extension in ("jpg", "id"):
                    info = tarfile.TarInfo(f"{number}.{extension}")
                    info.size = 1
                    tar.addfile(info, io.BytesIO(b"%d" % (number if extension == "jpg" else number // 3)))
    return Path("tars")


@pytest.mark.parametrize("arguments", [["tars"], ["tars/0.tar", "tars/1.tar"]])
def test_foreign_tars_are_scanned_once(tercet, foreign, monkeypatch, arguments):
    code, out, _ = tercet("index-shards", *arguments, "--label", "id")
    assert code == 0
    assert out.startswith(" shards 2 images 8 classes 3 left out 0 seconds ")
    assert sorted(contents(Path("tars"))) == ["0.index.parquet", "0.tar", "1.index.parquet", "1.tar"]
    before = contents(Path("tars"))
    monkeypatch.setattr("tercet.data.shards.discovery.scan_tar", lambda *given: pytest.fail("scanned again"))
    index = ShardIndex("tars")
    assert index.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert index.read([5]) == [b"5"]
    assert tercet("index-shards", *arguments, "--label", "id", "--quiet") == (0, "", "")
    assert contents(Path("tars")) == before


def test_one_split_of_a_folder_is_indexed(tercet, foreign):
    splits = {f"part{shard}": {"filenames": [f"{shard}.tar"]} for shard in range(2)}
    (foreign / "info.json").write_text(json.dumps({"splits": splits}))
    code, out, err = tercet("index-shards", "tars", "--label", "id", "--quiet")
    assert (code, out) == (1, "")
    assert "ShardIndex(split=None): expected one of the splits in tars/info.json: part0, part1" in err
    assert tercet("index-shards", "tars", "--label", "id", "--split", "part1", "--quiet") == (0, "", "")
    assert sorted(contents(Path("tars"))) == ["0.tar", "1.index.parquet", "1.tar", "info.json"]


def test_a_damaged_tar_is_refused_or_its_samples_kept(tercet, foreign):
    path = foreign / "1.tar"
    path.write_bytes(path.read_bytes()[: 3 * 2048 + 600])
    code, out, err = tercet("index-shards", "tars", "--label", "id", "--quiet")
    assert (code, out) == (1, "")
    assert 'pass damaged="drop" to keep the samples before' in err
    assert tercet("index-shards", "tars", "--label", "id", "--damaged", "drop", "--quiet") == (
        0,
        "",
        "left out: 1.tar/7: the tar is cut short or damaged here ",
    )
    assert len(ShardIndex("tars", damaged="drop")) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'tars'"),
        (["gone.tar"], 1, "Error: ShardIndex(tars='gone.tar'): expected an existing tar"),
        (
            ["tars"],
            1,
            "ShardIndex(label='cls'): expected a member 0.cls in tars/0.tar; the sample has id, jpg",
        ),
        (["tars", "--label", "id", "--image", "png"], 1, "expected at least one sample with an image"),
        (["tars", "--label", "id", "--damaged", "keep"], 1, "ShardIndex(damaged='keep'): expected one of"),
    ],
)
def test_what_cannot_be_indexed_is_said(tercet, foreign, arguments, code, said):
    ended, out, err = tercet("index-shards", *arguments, "--quiet")
    assert (ended, out.strip()) == (code, "")
    assert said in err
    assert "Traceback" not in err
