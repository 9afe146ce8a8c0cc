"""Catalogs: scanned from real folders, read from real tables, compared with plain loops."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import jaxtyping
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tercet.core.indices import Triplets
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog
from tercet.data.io.images import IMAGE_SUFFIXES
from tercet.data.io.tables import sorted_classes
from tercet.data.manifests.writing import write_manifest
from tercet.data.shards.writing import write_shards
from tests.helpers import picture, refusal_of, tree

NASTY = [
    "IMG_1.JPG",
    "a-b.jpg",
    "x y.jpg",
    "v1.2.jpg",
    "é.png",
    "a,b.jpg",
    'q"q.jpg',
    "l\nf.jpg",
    "p.webp",
    "NA",
]


def by_class(catalog):
    return list(
        zip(catalog.paths.tolist(), [catalog.classes[label] for label in catalog.labels], strict=True)
    )


# scan_folder


def test_a_flat_tree_is_ordered_as_torchvision_orders_it(tmp_path):
    tree(tmp_path, *(f"{folder}/{name}" for folder in ("b10", "B2", "b2", "é", "a b") for name in NASTY[:-1]))
    catalog = scan_folder(tmp_path)
    # ImageFolder's law: classes sorted as strings, the files of each sorted as strings.
    expected = []
    for folder in sorted(entry.name for entry in os.scandir(tmp_path)):
        for name in sorted(os.listdir(tmp_path / folder)):
            expected.append((f"{folder}/{name}", folder))
    assert by_class(catalog) == expected
    assert catalog.classes == sorted({folder for _, folder in expected})
    assert catalog.groups == {}
    assert catalog.root == tmp_path
    assert catalog.left_out == ()
    assert catalog.labels.dtype == np.int64
    assert all(catalog.file(row).is_file() for row in range(len(catalog)))


def test_deeper_classes_are_named_by_their_whole_path(tmp_path):
    names = ["x/ant/1.jpg", "x/ant/2.jpg", "x/bee/1.jpg", "y/cow/1.jpg", "y/2.jpg", "z/1.jpg"]
    catalog = scan_folder(tree(tmp_path, *names))
    assert by_class(catalog) == [
        ("x/ant/1.jpg", "x/ant"),
        ("x/ant/2.jpg", "x/ant"),
        ("x/bee/1.jpg", "x/bee"),
        ("y/2.jpg", "y"),
        ("y/cow/1.jpg", "y/cow"),
        ("z/1.jpg", "z"),
    ]
    assert catalog.groups["parent"].tolist() == ["x", "x", "x", "", "y", ""]


@pytest.mark.parametrize(
    ("depth", "classes"),
    [(1, ["x", "y"]), (2, ["x", "x/a", "y/a"]), (3, ["x", "x/a/p", "y/a/p"]), (9, ["x", "x/a/p", "y/a/p"])],
)
def test_class_depth_cuts_the_name(tmp_path, depth, classes):
    catalog = scan_folder(tree(tmp_path, "x/a/p/1.jpg", "x/2.jpg", "y/a/p/1.jpg"), class_depth=depth)
    assert catalog.classes == classes
    whole = {path: path.rpartition("/")[0] for path in catalog.paths}
    assert by_class(catalog) == [(path, "/".join(name.split("/")[:depth])) for path, name in whole.items()]
    assert ("parent" in catalog.groups) == (depth > 1)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["train/bus/1.jpg", "train/car/1.jpg", "val/bus/2.jpg", "val/car/2.jpg", "val/tram/1.jpg"],
            "scan_folder(root='photos'): 'train/bus' and 'val/bus' are two classes, and likewise "
            "folders of 1 other name; "
            "pass class_depth=1 (--class-depth 1) if a class is the folder above, as a person above cameras; "
            "scan one folder at a time if they are parts of one set, as train and val; "
            "pass class_depth=2 (--class-depth 2) if they are two",
        ),
        (
            ["x/p1/cam0/1.jpg", "x/p1/cam1/1.jpg", "x/p2/cam0/1.jpg", "y/1.jpg"],
            "scan_folder(root='photos'): 'x/p1/cam0' and 'x/p2/cam0' are two classes; "
            "pass class_depth=2 (--class-depth 2) if a class is the folder above, as a person above cameras; "
            "scan one folder at a time if they are parts of one set, as train and val; "
            "pass class_depth=3 (--class-depth 3) if they are two",
        ),
        (
            ["bus/1.jpg", "train/bus/1.jpg"],
            "scan_folder(root='photos'): 'bus' and 'train/bus' are two classes; "
            "pass class_depth=1 (--class-depth 1) if a class is the folder above, as a person above cameras; "
            "scan one folder at a time if they are parts of one set, as train and val; "
            "pass class_depth=2 (--class-depth 2) if they are two",
        ),
    ],
)
def test_one_name_under_several_folders_is_noticed(tmp_path, monkeypatch, names, said):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "photos", *names)
    with pytest.warns(UserWarning, match=r".") as told:
        catalog = scan_folder("photos")
    assert [str(one.message) for one in told] == [said]
    depths = [int(depth) for depth in re.findall(r"class_depth=(\d)", said)]
    folders = {tuple(name.split("/")[:-1]) for name in names}
    above, apart = (scan_folder("photos", class_depth=depth) for depth in depths)  # says no more
    assert above.classes == sorted({"/".join(folder[: depths[0]]) for folder in folders})
    assert apart == catalog


def test_a_tree_without_such_names_is_not_remarked(tmp_path):
    tree(tmp_path, "animals/ant/1.jpg", "animals/bee/1.jpg", "cars/bus/1.jpg", "ant.old/1.jpg")
    assert len(scan_folder(tmp_path).classes) == 4


def test_more_files_than_agreed_are_refused(tmp_path):
    tree(tmp_path, "ant/1.jpg", "bee/1.jpg")
    assert len(scan_folder(tmp_path, max_files=4)) == 2
    assert "at most so many files and folders below" in refusal_of(scan_folder, tmp_path, max_files=3)
    assert refusal_of(scan_folder, tmp_path, max_files=0).startswith(
        "scan_folder(max_files=0): expected a whole"
    )


def test_one_class_is_a_catalog(tmp_path):
    assert repr(scan_folder(tree(tmp_path, "ant/1.jpg"))) == "Catalog(1 images, 1 classes)"


def test_what_is_left_out_is_counted(tmp_path):
    tree(tmp_path, "ant/1.jpg", "ant/ok.jpg.txt", "ant/b.txt", "2.jpg")
    (tmp_path / "empty").mkdir()
    catalog = scan_folder(tmp_path)
    assert repr(catalog) == "Catalog(1 images, 1 classes, 4 left out)"
    assert catalog.left_out == (
        LeftOut("2.jpg", "image outside any class folder"),
        LeftOut("ant/b.txt", "not an image"),
        LeftOut("ant/ok.jpg.txt", "not an image"),
        LeftOut("empty", "folder without an image"),
    )
    counts = {"not an image": 2, "image outside any class folder": 1, "folder without an image": 1}
    assert list(catalog.left_out_counts().items()) == list(counts.items())


def test_no_classes_are_refused(tmp_path):
    shown = f"scan_folder(root={str(tmp_path)!r}"[:60]
    said = refusal_of(scan_folder, tmp_path)
    assert said.startswith(shown)
    assert said.endswith("expected one folder per class with images in it; found none: it is empty")
    tree(tmp_path, "1.jpg", "2.jpg", "ant/notes.txt")
    assert refusal_of(scan_folder, tmp_path).endswith(
        "found none: 2 × image outside any class folder; 1 × not an image; 1 × folder without an image"
    )


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    tree(tmp_path, "file")
    assert refusal_of(scan_folder, tmp_path / "file").endswith("expected an existing folder")
    assert refusal_of(scan_folder, "gone") == "scan_folder(root='gone'): expected an existing folder"


@pytest.mark.parametrize("depth", [0, -1, 1.5, "1", True])
def test_a_class_depth_that_is_no_depth_is_refused(tmp_path, monkeypatch, depth):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    said = f"scan_folder(class_depth={depth!r}): expected a whole number of at least 1"
    assert refusal_of(scan_folder, tree(tmp_path, "a/1.jpg"), class_depth=depth) == said


def test_other_suffixes(tmp_path):
    tree(tmp_path, "ant/1.npy", "ant/2.jpg")
    assert scan_folder(tmp_path, suffixes=[".npy"]).paths.tolist() == ["ant/1.npy"]
    assert scan_folder(tmp_path, suffixes={*IMAGE_SUFFIXES, ".npy"}).left_out == ()
    assert scan_folder(tmp_path, suffixes=".npy").paths.tolist() == ["ant/1.npy"]
    said = 'expected suffixes in lower case with their dots; such as [".jpg", ".png"]'
    for suffixes in (["jpg"], [".jpg", ".PNG"], "jpg"):
        assert refusal_of(scan_folder, tmp_path, suffixes=suffixes).endswith(said)


def test_corrupt_and_truncated_images_are_left_out_when_asked(tmp_path):
    for name in ("ant/1.jpg", "ant/2.PNG", "bee/1.webp", "cow/1.jpg"):
        picture(tmp_path / name)
    cut = tmp_path / "cow" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    tree(tmp_path, "bee/corrupt.png")
    catalog = scan_folder(tmp_path, verify=True)
    assert by_class(catalog) == [("ant/1.jpg", "ant"), ("ant/2.PNG", "ant"), ("bee/1.webp", "bee")]
    assert [item.path for item in catalog.left_out] == ["bee/corrupt.png", "cow/1.jpg"]
    assert len(scan_folder(tmp_path)) == 5  # not looked at
    shutil.rmtree(tmp_path / "ant")
    (tmp_path / "bee" / "1.webp").unlink()
    assert "found none: " in refusal_of(scan_folder, tmp_path, verify=True)


def test_images_of_too_many_pixels_are_left_out_when_asked(tmp_path):
    picture(tmp_path / "ant" / "1.png")
    picture(tmp_path / "ant" / "2.png").write_bytes(cv2.imencode(".png", np.zeros((25, 32), np.uint8))[1])
    source = table(tmp_path / "t.csv", "path,label\nant/1.png,x\nant/2.png,x\n")
    reason = LeftOut("ant/2.png", "it has more than max_pixels=768 pixels")
    for reader, place in ((scan_folder, tmp_path), (read_catalog, source)):
        catalog = reader(place, verify=True, max_pixels=24 * 32)
        assert catalog.paths.tolist() == ["ant/1.png"]
        assert reason in catalog.left_out
        assert refusal_of(reader, place, max_pixels=0).startswith(
            f"{reader.__name__}(max_pixels=0): expected a"
        )


def test_the_same_tree_gives_the_same_catalog_wherever_it_lies(tmp_path, monkeypatch):
    names = [f"{folder}/{name}" for folder in ("ant", "bee/x", "cow") for name in NASTY[:-1]]
    one = scan_folder(tree(tmp_path / "one", *names))
    other = scan_folder(tree(tmp_path / "elsewhere" / "two", *reversed(names)))
    monkeypatch.chdir(tmp_path)
    relative = scan_folder("one/../one/")
    assert one == other == relative
    assert one.fingerprint == other.fingerprint == relative.fingerprint


# Catalog


def small(**changes):
    given = {
        "paths": ["a/1", "a/2", "b/1"],
        "labels": [0, 0, 1],
        "classes": ["a", "b"],
        "groups": {"camera": [1, 2, 1]},
    }
    return Catalog(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"paths": ["a/1", "a/2", "b/2"]},
        {"labels": [0, 1, 1]},
        {"classes": ["a", "c"]},
        {"classes": ["a", "b", "c"]},
        {"groups": {}},
        {"groups": {"camera": [1, 2, 2]}},
        {"groups": {"session": [1, 2, 1]}},
    ],
)
def test_the_fingerprint_tells_catalogs_apart(changes):
    assert small(**changes) != small()
    assert small(**changes).fingerprint != small().fingerprint


def test_the_fingerprint_depends_on_the_content_alone():
    others = {"labels": np.array([0, 0, 1], dtype=np.int8), "groups": {"camera": np.array(["1", "2", "1"])}}
    assert small(**others, root=Path("/elsewhere"), left_out=[LeftOut("x", "y")]) == small()
    assert len(small().fingerprint) == 64
    assert small() != "a catalog"


def test_no_two_contents_share_a_fingerprint_by_how_they_are_joined():
    ambiguous = [
        Catalog(["a\0b"], [0], ["c"]),
        Catalog(["a"], [0], ["b\0c"]),
        Catalog(["a", "b"], [0, 1], ["c", "d"]),
        Catalog(["a,b"], [0], ["c"]),
        Catalog(['a","b'], [0], ["c"]),
        Catalog(["a"], [0], ["c", "1", "g"]),
        Catalog(["a"], [0], ["c"], {"1": ["g"]}),
        Catalog(["a"], [0], ["c"], {"g": ["1"]}),
    ]
    assert len({catalog.fingerprint for catalog in ambiguous}) == len(ambiguous)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [0, 0]}, "Catalog(labels='shape (2,)'): expected one value for each of 3 paths"),
        ({"labels": [0, 0, 2]}, "Catalog(labels=2): expected positions in 2 classes"),
        ({"labels": [0, -1, 1]}, "Catalog(labels=-1): expected positions in 2 classes"),
        ({"labels": [0.5, 0, 1]}, "Catalog(labels='array of float64'): expected positions in 2 classes"),
        ({"labels": ["a", "a", "b"]}, "Catalog(labels='array of object'): expected positions in 2 classes"),
        ({"groups": {"day": ["x"]}}, "Catalog(day='shape (1,)'): expected one value for each of 3 paths"),
        (
            {"groups": {"path": [1, 2, 3]}},
            "Catalog(groups='path'): expected another name: a table has that column already",
        ),
        (
            {"groups": {"label": [1, 2, 3]}},
            "Catalog(groups='label'): expected another name: a table has that column already",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, said):
    assert refusal_of(small, **changes) == said


def test_an_empty_catalog():
    empty = Catalog([], [], [])
    assert len(empty) == 0
    assert empty.labels.dtype == np.int64
    assert empty == Catalog([], [], [])
    assert empty.select([]) == empty


@pytest.mark.parametrize("rows", [[2, 0], np.array([2, 0], dtype=np.int8), [1, 1], [], np.arange(0)])
def test_select_gives_the_rows_in_their_order(rows):
    chosen = small(root=Path("x")).select(rows)
    assert by_class(chosen) == [by_class(small())[row] for row in rows]
    assert chosen.groups["camera"].tolist() == [[1, 2, 1][row] for row in rows]
    assert (chosen.classes, chosen.root) == (["a", "b"], Path("x"))


def test_select_takes_a_mask():
    assert by_class(small().select([True, False, True])) == [("a/1", "a"), ("b/1", "b")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([3], "Catalog.select(rows=3): expected row numbers from 0 to 2"),
        ([-1], "Catalog.select(rows=-1): expected row numbers from 0 to 2"),
        ([0.5], "Catalog.select(rows=[0.5]): expected row numbers [m] or a mask [n]"),
        ([[0]], "Catalog.select(rows=[[0]]): expected row numbers [m] or a mask [n]"),
        (["a/1"], "Catalog.select(rows=['a/1']): expected row numbers [m] or a mask [n]"),
        ([True], "Catalog.select(rows='mask of shape (1,)'): expected shape (3,)"),
    ],
)
def test_rows_that_are_not_there_are_refused(rows, said):
    assert refusal_of(small().select, rows) == said


def test_a_catalog_travels_to_a_worker():
    catalog = small(root=Path("x"), left_out=[LeftOut("y", "z")])
    again = pickle.loads(pickle.dumps(catalog))
    assert again == catalog
    assert (again.root, again.left_out) == (catalog.root, catalog.left_out)


# write and read_catalog

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(deadline=None, max_examples=40)
@given(rows=st.dictionaries(texts | st.sampled_from(NASTY), st.tuples(texts, st.integers(0, 99)), min_size=1))
@example(rows={name: (name, row) for row, name in enumerate(NASTY)})
@example(rows={"x": ("--1", 0), "y": ("2", 0), "z": ("-3", 0)})
@example(rows={"x": ("10", 0), "y": ("9", 0), "z": ("-3", 0)})
@example(rows={"x": ("01", 0), "y": ("1", 0)})
def test_a_table_is_read_as_written(tmp_path_factory, suffix, rows):
    folder = tmp_path_factory.mktemp("table")
    names = sorted({name for name, _ in rows.values()})
    labels = [names.index(name) for name, _ in rows.values()]
    catalog = Catalog(list(rows), labels, names, {"camera": [camera for _, camera in rows.values()]}, folder)
    catalog.write(folder / f"t{suffix}")
    again = read_catalog(folder / f"t{suffix}", outside_root=True)  # some names are absolute
    assert by_class(again) == by_class(catalog)
    assert again.groups["camera"].tolist() == catalog.groups["camera"].tolist()
    assert again.root == folder
    try:
        order = sorted(names, key=lambda name: (int(name), name))
        numbers = [str(int(name)) for name in names] == names
    except ValueError:
        numbers = False
    assert again.classes == (order if numbers else names)


odd = st.sampled_from(
    ["", "NA", "nan", "null", "True", "007", "1.10", "1e5", "-0", "2\n", *map(str, (2**63, 2**64 - 1))]
)
values = st.one_of(
    st.lists(texts | odd, min_size=3, max_size=3),
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=3, max_size=3).map(
        lambda n: np.array(n, dtype=object)
    ),
    st.lists(st.floats(allow_nan=False), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(deadline=None, max_examples=60)
@given(group=values, names=st.sets(texts, min_size=3, max_size=3))
def test_a_group_comes_back_as_it_was_written(tmp_path_factory, suffix, group, names):
    folder = tmp_path_factory.mktemp("table")
    catalog = Catalog(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 2], sorted_classes(names), {"g": group}, folder)
    catalog.write(folder / f"t{suffix}")
    again = read_catalog(folder / f"t{suffix}")
    assert again == catalog  # by fingerprint: paths, labels, classes and groups as Python writes them
    assert len(set(map(str, again.groups["g"].tolist()))) == len(set(map(str, catalog.groups["g"].tolist())))


def test_a_group_that_no_table_holds_is_refused_in_words(tmp_path):
    days = np.array(["2020-01-01"] * 3, dtype="M8[D]")
    assert refusal_of(small(groups={"day": days}).write, tmp_path / "t.csv").startswith(
        "Catalog.write(catalog.groups='day'): expected whole numbers, numbers, strings, or True and False"
    )
    assert "text that UTF-8 can write" in refusal_of(
        small(paths=["a/1", "a/2", "\ud800"]).write, tmp_path / "t.csv"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_written_paths_lead_to_the_images(tmp_path, monkeypatch, suffix):
    tree(tmp_path / "photos", "ant/1.jpg", "bee/x y.jpg")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    (tmp_path / "album").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    for root in (tmp_path / "photos", Path(), Path("../photos"), tmp_path / "album"):
        catalog = scan_folder(root)
        for folder in (tmp_path, tmp_path / "photos", tmp_path / "deep", tmp_path / "link", Path("..")):
            target = folder / f"t{suffix}"
            catalog.write(target, overwrite=True)
            again = read_catalog(target, outside_root=True)
            for row in range(2):
                assert again.file(row).samefile(catalog.file(row))
                assert not os.path.isabs(again.paths[row])
            target.unlink()


def test_images_and_table_move_together(tmp_path):
    catalog = scan_folder(tree(tmp_path / "one" / "photos", "ant/1.jpg"))
    catalog.write(tmp_path / "one" / "t.csv")
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_catalog(tmp_path / "two" / "t.csv").file(0) == tmp_path / "two" / "photos" / "ant" / "1.jpg"


def test_a_linked_folder_beside_the_table_keeps_its_name(tmp_path):
    tree(tmp_path / "store", "ant/1.jpg")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photos").symlink_to(tmp_path / "store")
    scan_folder(tmp_path / "home" / "photos").write(tmp_path / "home" / "t.csv")
    assert read_catalog(tmp_path / "home" / "t.csv").paths.tolist() == ["photos/ant/1.jpg"]


def test_absolute_paths_stay_absolute(tmp_path):
    tree(tmp_path / "photos", "1.jpg")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text(f"path,label\n{tmp_path}/photos/1.jpg,a\n")
    catalog = read_catalog(tmp_path / "tables" / "t.csv", outside_root=True)
    assert catalog.file(0) == tmp_path / "photos" / "1.jpg"
    catalog.write(tmp_path / "t.csv")
    assert read_catalog(tmp_path / "t.csv").file(0) == tmp_path / "photos" / "1.jpg"


def test_a_catalog_does_not_write_over_a_file(tmp_path):
    small().write(tmp_path / "t.csv")
    assert refusal_of(small().write, tmp_path / "t.csv").endswith("overwrite=True or --overwrite replaces it")
    small().select([0]).write(tmp_path / "t.csv", overwrite=True)
    assert len(read_catalog(tmp_path / "t.csv", outside_root=True)) == 1
    assert refusal_of(small().write, tmp_path / "t.txt").endswith("expected a name ending in .csv, .parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_by_other_names(tmp_path):
    source = table(
        tmp_path / "t.csv", "file,who,camera,day\nx.jpg,Ann,1,mon\ny.jpg,Bob,2,tue\nz.jpg,Ann,1,tue\n"
    )
    catalog = read_catalog(source, path_column="file", label_column="who", root="elsewhere")
    assert by_class(catalog) == [("x.jpg", "Ann"), ("y.jpg", "Bob"), ("z.jpg", "Ann")]
    assert {name: values.tolist() for name, values in catalog.groups.items()} == {
        "camera": [1, 2, 1],
        "day": ["mon", "tue", "tue"],
    }
    assert catalog.file(0) == Path("elsewhere/x.jpg")
    for groups in (["day"], [], ("camera", "day")):
        chosen = read_catalog(source, path_column="file", label_column="who", groups=groups)
        assert list(chosen.groups) == list(groups)


def test_a_group_may_not_take_the_name_of_the_path(tmp_path):
    source = table(tmp_path / "t.csv", "file,label,path\nx.jpg,a,1\n")
    assert refusal_of(read_catalog, source, path_column="file").startswith(
        "Catalog(groups='path'): expected another"
    )
    assert by_class(read_catalog(source, path_column="file", groups=[])) == [("x.jpg", "a")]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-3"], ["-3", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["01", "1"], ["01", "1"]),
        (["--1", "2"], ["--1", "2"]),
        (["-0", "1"], ["-0", "1"]),
        (["²", "1"], ["1", "²"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["NA", "null", "nan"], ["NA", "nan", "null"]),
        ([f"{2**64 - 1}", f"{2**64 - 2}"], [f"{2**64 - 2}", f"{2**64 - 1}"]),
        (["9" * 5000, "10"], ["10", "9" * 5000]),
    ],
)
def test_classes_are_sorted_as_numbers_where_all_are(tmp_path, labels, classes):
    rows = "".join(f"{row}.jpg,{label}\n" for row, label in enumerate(labels))
    catalog = read_catalog(table(tmp_path / "t.csv", "path,label\n" + rows))
    assert catalog.classes == classes
    assert by_class(catalog) == [(f"{row}.jpg", label) for row, label in enumerate(labels)]


def test_parquet_labels_may_be_numbers(tmp_path):
    frame = pd.DataFrame({"path": ["a", "b", "c"], "label": [10, 9, 10]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_catalog(tmp_path / "t.parquet").classes == ["9", "10"]
    frame.astype("category").to_parquet(tmp_path / "t.parquet")
    assert by_class(read_catalog(tmp_path / "t.parquet")) == [("a", "10"), ("b", "9"), ("c", "10")]


def test_other_columns_of_a_data_set_do_not_matter(tmp_path):
    columns = {"path": ["a"], "label": ["x"], "pixels": [[1, 2]], "note": pa.array([None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert by_class(read_catalog(tmp_path / "t.parquet", groups=[])) == [("a", "x")]
    assert "numbers, text or booleans in column 'pixels'" in refusal_of(read_catalog, tmp_path / "t.parquet")


def test_a_repeated_path_is_kept_once_and_reported(tmp_path):
    source = table(tmp_path / "t.csv", "path,label,g\na.jpg,x,1\nb.jpg,y,2\na.jpg,x,3\na.jpg,x,1\n")
    catalog = read_catalog(source)
    assert by_class(catalog) == [("a.jpg", "x"), ("b.jpg", "y")]
    assert catalog.groups["g"].tolist() == [1, 2]
    assert catalog.left_out_counts() == {"path repeated in the table": 2}


def test_a_path_that_is_repeated_in_another_spelling_is_kept_once(tmp_path):
    same = ("d/a.jpg", "./d/a.jpg", "d//a.jpg", "d/./a.jpg", ".//d/././/a.jpg")
    others = ("/d/a.jpg", "d/../d/a.jpg", ".d/a.jpg", "d/.a.jpg", "d./a.jpg")
    lines = [f"{name},x" for name in (*same, *others)]
    source = table(tmp_path / "t.csv", "\n".join(["path,label", *lines, ""]))
    catalog = read_catalog(source, outside_root=True)
    assert catalog.paths.tolist() == [same[0], *others]
    assert catalog.left_out_counts() == {"path repeated in the table": 4}
    table(source, "path,label\na.jpg,x\n./a.jpg,y\n")
    assert "one label for each path; './a.jpg' is 'x' in row 1 and 'y' in row 2" in refusal_of(
        read_catalog, source
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\n", "expected at least one row"),
        ("path\na\n", "expected one column 'label'; its columns are: path"),
        ("path,label\na,x\nb,\n", "expected a value in every row of column 'label'; row 2 of 2 has none"),
        ("path,label,g\na,x,1\nb,y,\n", "expected a value in every row of column 'g'; row 2 of 2 has none"),
        (
            "path,label\na,x\nb,y\na,y\n",
            "expected one label for each path; 'a' is 'x' in row 1 and 'y' in row 3",
        ),
    ],
)
def test_a_table_that_is_no_catalog_is_refused(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", text)
    assert refusal_of(read_catalog, "t.csv") == f"read_catalog(path='t.csv'): {said}"


def test_groups_that_are_not_there_are_refused(tmp_path):
    source = table(tmp_path / "t.csv", "path,label,camera\na,x,1\n")
    said = "expected one column 'camara'; its columns are: path, label, camera"
    assert refusal_of(read_catalog, source, groups=["camara"]).endswith(said)


def test_other_files_are_refused(tmp_path):
    assert refusal_of(read_catalog, tmp_path / "gone.csv").endswith("expected an existing file")
    assert refusal_of(read_catalog, tmp_path).endswith("expected a table ending in .csv or .parquet")


def test_a_table_is_verified_when_asked(tmp_path):
    for name in ("a.jpg", "b.png"):
        picture(tmp_path / name)
    tree(tmp_path, "bad.jpg")
    source = table(
        tmp_path / "t.csv", "path,label,g\nb.png,x,1\nbad.jpg,y,2\ngone.jpg,y,3\na.jpg,x,4\na.jpg,x,5\n"
    )
    catalog = read_catalog(source, verify=True)
    assert by_class(catalog) == [("b.png", "x"), ("a.jpg", "x")]
    assert catalog.groups["g"].tolist() == [1, 4]
    assert [item.path for item in catalog.left_out] == ["a.jpg", "bad.jpg", "gone.jpg"]
    assert len(read_catalog(source)) == 4
    bad = table(tmp_path / "bad.csv", "path,label\nbad.jpg,x\n")
    assert "expected at least one image that decodes; of the first: " in refusal_of(
        read_catalog, bad, verify=True
    )


def test_a_class_name_twice_is_refused():
    with pytest.raises(ValueError, match=r"Catalog\(classes=\['a', 'a'\]\): expected each class name once"):
        Catalog(["1.png", "2.png"], [0, 1], ["a", "a"])


# What files have no room for


WRITERS = {
    "write_shards": lambda catalog: write_shards("out", catalog),
    "write_manifest": lambda catalog: write_manifest("t.parquet", Triplets(*np.eye(3, dtype=int)), catalog),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": {"g": np.array([b"x", b"y"], dtype=object)}}, "(catalog.groups='g'): expected whole num"),
        ({"groups": {"g": np.array([b"x", b"y"])}}, "it holds bytes8; leave it out"),
        ({"groups": {"g": np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]")}}, "it holds datetime64[D]"),
        ({"groups": {"g": np.array(["2020-01-01", "2020-01-02"], dtype="M8[ns]")}}, "holds datetime64[ns]"),
        ({"groups": {"g": np.array([1, "x"], dtype=object)}}, "it holds int and str; leave it out"),
        ({"groups": {"g": np.array([True, 2], dtype=object)}}, "it holds bool and int; leave it out"),
        ({"groups": {"g": np.array(["x", None], dtype=object)}}, "it holds NoneType and str; leave it out"),
        ({"groups": {"g": ["x", "\ud800"]}}, "(catalog.groups['g']='\\ud800'): expected text that UTF-8 can"),
        (
            {"classes": ["a", "b\udcff"]},
            "(catalog.classes='b\\udcff'): expected text that UTF-8 can write; re",
        ),
        ({"paths": ["a/1.jpg", "b/\udcff.jpg"]}, "(catalog.paths='b/\\udcff.jpg'): expected text that UTF-8"),
    ],
)
def test_what_cannot_be_written_is_refused_in_words(tmp_path, monkeypatch, writer, change, said):
    monkeypatch.chdir(tmp_path)
    given = {"paths": ["a/1.jpg", "b/1.jpg"], "labels": [0, 1], "classes": ["a", "b"], **change}
    with pytest.raises(ValueError, match=r"expected") as raised:
        WRITERS[writer](Catalog(**given))
    assert str(raised.value).startswith(f"{writer}(catalog.")
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_catalog_is_refused_in_words(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"{writer}\(catalog=\['a'\]\): expected a Catalog, such as"):
        WRITERS[writer](["a"])


def test_rows_slices_and_iteration():
    catalog = Catalog(["a/1.png", "a/2.png", "b/3.png"], [0, 0, 1], ["a", "b"], {"camera": [7, 8, 9]})
    assert catalog[-1] == ("b/3.png", 1)
    assert list(catalog) == [("a/1.png", 0), ("a/2.png", 0), ("b/3.png", 1)]
    for rows in (slice(1, None), [1, 2], np.array([False, True, True])):
        part = catalog[rows]
        assert (part.paths.tolist(), part.labels.tolist()) == (["a/2.png", "b/3.png"], [0, 1])
        assert part.groups["camera"].tolist() == [8, 9]
    with pytest.raises(IndexError, match=r"^Catalog: expected a row from 0 to 2, got 3$"):
        catalog[3]


def test_a_frame_for_pandas():
    frame = Catalog(["a/1.png", "b/2.png"], [0, 1], ["ant", "bee"], {"camera": [7, 8]}).to_pandas()
    assert frame.columns.tolist() == ["path", "label", "camera"]
    assert frame.to_numpy().tolist() == [["a/1.png", "ant", 7], ["b/2.png", "bee", 8]]
