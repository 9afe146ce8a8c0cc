"""Manifests on real files: round trips, same bytes, provenance, and nothing half-written."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tercet.core.indices import LabeledPairs, Pairs, Triplets, TripletSequence
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.triplet_dataset import TripletDataset
from tercet.data.manifests import formats
from tercet.data.manifests import writing as manifest_writing
from tercet.data.manifests.formats import FORMATS, TEXT_FORMATS
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import ManifestPart, write_manifest, write_manifests
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tests.helpers import contents, listed, refusal_of

COLUMNS = formats.COLUMNS["triplets"]
NASTY = [
    "IMG_1.JPG",
    "a-b.jpg",
    "x y.jpg",
    "v1.2.jpg",
    "é.png",
    "e\u0301.png",
    "a,b",
    'q"q',
    '"',
    "l\nf",
    "c\rr",
]
NASTY += [
    "cr\r\nlf",
    " lead",
    "trail ",
    "NA",
    "null",
    "#",
    "'",
    "\\",
    "1",
    "01",
    "日本",
    "😀",
    "\ufeff",
    "x" * 5000,
]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def given_triplets(rows):
    return Triplets(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)


CATALOG = Catalog(
    ["ant/1.png", "ant/2.png", "ant/3.png", "bee/1.png", "bee/x, y.png", "cow/1.png"],
    [0, 0, 0, 1, 1, 2],
    ["ant", "bee", "cow"],
    {
        "camera": np.array([1, 2, 1, 2, 1, 2]),
        "day": np.array(["mon", "tue", "mon", "é", "", "NA"], dtype=object),
    },
    Path("elsewhere"),
    [LeftOut("ant/a.txt", "not an image"), LeftOut("b.txt", "not an image"), LeftOut("x", "hidden folder")],
)
DRAWN = RandomTriplets(CATALOG.labels, positives=2, negatives=2, seed=7)
ROWS = listed(DRAWN[:])


@pytest.fixture
def small_blocks(monkeypatch):
    """A few triplets already fill several row groups and record batches."""
    monkeypatch.setattr(formats, "BLOCK", 4)
    monkeypatch.setattr(manifest_writing, "BLOCK", 4)


# Round trips


@pytest.mark.parametrize("suffix", FORMATS)
@settings(deadline=None, max_examples=20)
@given(names=st.lists(texts | st.sampled_from(NASTY), min_size=1, max_size=8, unique=True), data=st.data())
@example(names=NASTY, data=None)
def test_what_is_written_is_read(tmp_path_factory, suffix, names, data):
    folder, n = tmp_path_factory.mktemp("m"), len(names)
    rows = [(i, (i + 1) % n, (i + 2) % n) for i in range(n)]
    prefix = ""
    if data:
        number = st.integers(0, n - 1)
        rows = data.draw(st.lists(st.tuples(number, number, number), max_size=9))
        prefix = data.draw(texts) if suffix in TEXT_FORMATS else ""
    groups = {"name": np.array(names, dtype=object), "number": np.arange(n) - 1}
    catalog = Catalog(names, np.arange(n) % 2, ["é,\n", "x"], groups, Path("somewhere"))
    write_manifest(folder / f"t{suffix}", given_triplets(rows), catalog, path_prefix=prefix)
    found = read_manifest(folder / f"t{suffix}", outside_root=True)  # some names are absolute
    assert listed(found.triplets) == rows
    assert found.catalog == catalog
    assert found.catalog.groups["name"].tolist() == names
    assert found.catalog.root == (Path(prefix) if prefix.endswith("/") else folder)


def test_a_prefix_that_is_a_folder_is_where_the_images_are(tmp_path):
    write_manifest(tmp_path / "t.txt", DRAWN, CATALOG, path_prefix="photos/")
    assert read_manifest(tmp_path / "t.txt").catalog.file(0) == Path("photos") / CATALOG.paths[0]
    assert read_manifest(tmp_path / "t.txt", root="here").catalog.root == Path("here")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_is_its_triplets_and_its_catalog(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    found = read_manifest(tmp_path / f"t{suffix}", root="/photos")
    assert isinstance(found, TripletSequence)
    assert repr(found) == f"Manifest({len(ROWS)} triplets, strategy='random')"
    assert listed(found.triplets) == ROWS
    assert found.catalog == CATALOG
    assert found.catalog.paths.tolist() == CATALOG.paths.tolist()
    assert found.catalog.labels.tolist() == CATALOG.labels.tolist()
    assert found.catalog.classes == CATALOG.classes
    assert {name: values.tolist() for name, values in found.catalog.groups.items()} == {
        "camera": [1, 2, 1, 2, 1, 2],
        "day": ["mon", "tue", "mon", "é", "", "NA"],
    }
    assert found.catalog.file(0) == Path("/photos/ant/1.png")


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_triplets_are_a_manifest(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", given_triplets([]), CATALOG)
    found = read_manifest(tmp_path / f"t{suffix}")
    assert len(found) == found.triplets.count == found[:].count == 0
    assert found.catalog == CATALOG
    with pytest.raises(IndexError, match="expected "):
        found[0]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", FORMATS)
def test_access_in_any_order_across_blocks(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    found, n = read_manifest(tmp_path / f"t{suffix}"), len(ROWS)
    for number in range(-n, n):
        assert listed(found[number]) == [ROWS[number]]
    numbers = np.random.default_rng(0).integers(-n, n, 50)
    assert listed(found[numbers]) == [ROWS[number] for number in numbers]
    assert listed(found[torch.tensor([3, 4, 3])]) == [ROWS[3], ROWS[4], ROWS[3]]
    for part in (slice(2, 9), slice(None, None, -3), slice(4, 4), slice(-5, None), slice(3, 5)):
        assert listed(found[part]) == ROWS[part]
    assert all(column.dtype == np.int64 for column in found[3:6])
    assert [listed(one)[0] for one in found] == ROWS
    for number in (n, -n - 1, [0, n], 0.5, "0"):
        with pytest.raises(IndexError, match="expected "):
            found[number]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("again", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_is_written_again_in_any_format(tmp_path, suffix, again):
    catalog = CATALOG.select(np.arange(6))  # what was left out is told in the first manifest alone
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_manifest(tmp_path / f"t{suffix}", DRAWN, catalog, path_prefix="p/" if suffix == ".txt" else "")
    found = read_manifest(tmp_path / f"t{suffix}")
    write_manifest(tmp_path / "one" / f"t{again}", found, found.catalog)
    write_manifest(tmp_path / "two" / f"t{again}", DRAWN, catalog)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_manifest_is_written_over_itself(tmp_path):
    write_manifest(tmp_path / "t.arrow", DRAWN, CATALOG)
    found = read_manifest(tmp_path / "t.arrow")
    write_manifest(tmp_path / "t.arrow", found[2:5], CATALOG, overwrite=True)
    assert listed(found[:]) == ROWS  # the old file stays open
    assert listed(read_manifest(tmp_path / "t.arrow")[:]) == ROWS[2:5]


def test_triplets_of_torch_and_of_small_integers(tmp_path):
    for number, kind in enumerate((torch.tensor, np.int8, np.uint32)):
        rows = Triplets(*(kind(column) for column in zip(*ROWS, strict=True)))
        write_manifest(tmp_path / f"{number}.csv", rows, CATALOG)
        assert listed(read_manifest(tmp_path / f"{number}.csv").triplets) == ROWS


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_travels_to_a_worker(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    found = read_manifest(tmp_path / f"t{suffix}", root="photos")
    for _ in range(2):
        again = pickle.loads(pickle.dumps(found))
        assert listed(again[:]) == ROWS
        assert again.catalog == found.catalog
        assert again.catalog.root == Path("photos")
        assert again.provenance == found.provenance


def test_a_manifest_on_disk_is_opened_again_and_not_copied(tmp_path):
    rows = np.zeros((3, 100_000), dtype=np.int64)
    write_manifest(tmp_path / "t.arrow", Triplets(*rows), CATALOG)
    before = pa.total_allocated_bytes()
    found = read_manifest(tmp_path / "t.arrow")
    assert pa.total_allocated_bytes() - before < 100_000  # of 1.2 MB
    assert len(pickle.dumps(found)) < 1_000
    found.triplets  # noqa: B018
    assert len(pickle.dumps(found)) < 1_000


def test_a_manifest_cut_short_while_it_is_open_is_noticed(tmp_path):
    write_manifest(tmp_path / "t.arrow", Triplets(*np.zeros((3, 100_000), dtype=np.int64)), CATALOG)
    found = read_manifest(tmp_path / "t.arrow")
    os.truncate(tmp_path / "t.arrow", 200_000)
    assert "expected the file as it was; it was cut short" in refusal_of(found.__getitem__, 99_999)


def test_a_manifest_that_has_become_another_is_not_unpickled(tmp_path):
    path = tmp_path / "t.arrow"
    rows = np.random.default_rng(0).integers(0, len(CATALOG), (3, 5000))
    write_manifest(path, Triplets(*rows), CATALOG)
    found = read_manifest(path)
    sent, content, there = pickle.dumps(found), path.read_bytes(), listed(found[:])
    os.utime(path, (0, 0))  # as a copy on another machine has
    assert listed(pickle.loads(sent)[:]) == there
    others = {
        "as many other rows": (Triplets(*rows[:, ::-1]), CATALOG),
        "fewer": (Triplets(*rows[:, 1:]), CATALOG),
        "none": (given_triplets([]), CATALOG),
        "another catalog": (Triplets(*rows), CATALOG.select(range(6)).select([1, 0, 2, 3, 4, 5])),
    }
    for triplets, catalog in others.values():
        write_manifest(path, triplets, catalog, overwrite=True)
        said = refusal_of(pickle.loads, sent)
        assert "expected the file as it was when it was pickled; read it anew, with read_manifest" in said
    path.write_bytes(content)
    assert listed(pickle.loads(sent)[:]) == there


# The same bytes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", FORMATS)
def test_bytes_do_not_depend_on_the_chunk_size(tmp_path, suffix):
    for chunk_size in (1, 2, 3, 4, 5, 7, 1 << 16):
        (tmp_path / str(chunk_size)).mkdir()
        write_manifest(tmp_path / str(chunk_size) / f"t{suffix}", DRAWN, CATALOG, chunk_size=chunk_size)
    found = [contents(tmp_path / folder) for folder in os.listdir(tmp_path)]
    assert len(found) == 7
    assert all(content == found[0] for content in found)
    assert listed(read_manifest(tmp_path / "3" / f"t{suffix}").triplets) == ROWS


MACHINE = """
import sys
from tercet.data.catalog.scan import scan_folder
from tercet.data.manifests.writing import write_manifest
from tercet.data.triplets.random import RandomTriplets
images, out, chunk_size = sys.argv[1:]
catalog = scan_folder(images)
for suffix in ("parquet", "arrow", "csv", "jsonl", "txt"):
    triplets = RandomTriplets(catalog.labels, 3, 4, seed=11)
    write_manifest(f"{out}/t.{suffix}", triplets, catalog, chunk_size=int(chunk_size))
"""


def test_same_seed_same_bytes_on_two_machines(tmp_path):
    names = [f"{folder}/{name}" for folder in ("é", "b c", "a/b") for name in (*NASTY[:12], "x.txt", ".h")]
    found = []
    for number, (images, chunk_size) in enumerate([("one", "65536"), ("deep/er", "17"), ("one", "1000")]):
        for name in names[:: -1 if number else 1]:
            (tmp_path / images / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / images / name).write_bytes(name.encode())
        for name in ("1.jpg", "2.webp", "3.JPG"):
            (tmp_path / images / "b c" / name).write_bytes(b"")
        out = tmp_path / f"out{number}"
        out.mkdir()
        root = os.path.relpath(tmp_path / images, out) if number == 2 else tmp_path / images
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1), "TZ": "UTC", "LC_ALL": "C"}
        command = [sys.executable, "-c", MACHINE, str(root), str(out), chunk_size]
        subprocess.run(command, cwd=out, env=environment, check=True)
        found.append(contents(out))
    assert len(found[0]) == 8
    assert found[0] == found[1] == found[2]


# Provenance


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_provenance_is_complete(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    told = read_manifest(tmp_path / f"t{suffix}").provenance
    assert told == {
        "library": f"tercet {version('tercet')}",
        "strategy": "random",
        "kind": "triplets",
        "parameters": {"positives": 2, "negatives": 2, "seed": 7, "negatives_from": "images", "limit": None},
        "counts": {"queries": 5, "images alone in their class": 1, "triplets": len(ROWS)},
        "catalog": {
            "fingerprint": CATALOG.fingerprint,
            "images": 6,
            "classes": 3,
            "left out": {"not an image": 2, "hidden folder": 1},
        },
    }
    again = RandomTriplets(read_manifest(tmp_path / f"t{suffix}").catalog.labels, **told["parameters"])
    assert listed(again[:]) == ROWS
    assert contents(tmp_path).keys() == {
        f"t{suffix}",
        *([f"t{suffix}.json"] if suffix in TEXT_FORMATS else []),
    }


def test_triplets_that_were_given_say_so(tmp_path):
    write_manifest(tmp_path / "t.txt", given_triplets(ROWS), CATALOG, path_prefix="/photos/")
    told = json.loads((tmp_path / "t.txt.json").read_text("utf-8"))
    assert (told["strategy"], told["parameters"]) == ("given", {})
    assert told["counts"] == {"triplets": len(ROWS)}
    assert told["path_prefix"] == "/photos/"


def test_a_sequence_may_tell_more(tmp_path):
    class Told(list):
        def __getitem__(self, index):
            return given_triplets(list.__getitem__(self, index))

        def provenance(self):
            return {"strategy": "mine", "model": "m", "counts": {"given up": 3}}

    write_manifest(tmp_path / "t.parquet", Told(ROWS), CATALOG)
    told = read_manifest(tmp_path / "t.parquet").provenance
    assert (told["strategy"], told["parameters"], told["model"]) == ("mine", {}, "m")
    assert told["counts"] == {"given up": 3, "triplets": len(ROWS)}


def test_the_prefix_stands_before_every_path(tmp_path):
    for suffix in TEXT_FORMATS:
        write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG, path_prefix="/my photos, all/")
    for suffix in TEXT_FORMATS:
        found = read_manifest(tmp_path / f"t{suffix}")
        assert listed(found.triplets) == ROWS
        assert found.catalog == CATALOG
        (tmp_path / f"t{suffix}.json").unlink()
        plain = read_manifest(tmp_path / f"t{suffix}", root="/my photos, all")
        assert {Path(path).parent.parent for path in plain.catalog.paths} == {Path("/my photos, all")}
    said = "write_manifest(path_prefix='/x/'): expected no prefix for .arrow; give it to a text format"
    assert refusal_of(write_manifest, tmp_path / "t.arrow", DRAWN, CATALOG, path_prefix="/x/") == said


# Files of other programs


def triplets_by_name(found):
    return found.catalog.paths[np.stack(found.triplets, axis=1)].tolist()


FOREIGN = [
    ["b/2.png", "b/10.png", "a/1.png"],
    ["a/1.png", "a/3.png", "b/2.png"],
    ["x.png", "x.png", "c/d/1.png"],
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_provenance(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    frame, target = pd.DataFrame(FOREIGN, columns=list(COLUMNS)), f"deep/t{suffix}"
    (tmp_path / "deep").mkdir()
    if suffix == ".parquet":
        frame.to_parquet(target)
    elif suffix == ".arrow":
        frame.to_feather(target)
    elif suffix == ".jsonl":
        frame.to_json(target, orient="records", lines=True)
    else:
        frame.to_csv(target, index=False, header=suffix == ".csv")
    found = read_manifest(target)
    assert triplets_by_name(found) == FOREIGN
    assert found.provenance == {}
    assert found.catalog.paths.tolist() == ["a/1.png", "a/3.png", "b/10.png", "b/2.png", "c/d/1.png", "x.png"]
    assert [found.catalog.classes[label] for label in found.catalog.labels] == ["a", "a", "b", "b", "c/d", ""]
    assert found.catalog.classes == ["", "a", "b", "c/d"]
    assert found.catalog.file(0) == Path("a/1.png")
    assert read_manifest(target, root="photos").catalog.file(0) == Path("photos/a/1.png")
    assert repr(found) == "Manifest(3 triplets, strategy=None)"
    assert triplets_by_name(pickle.loads(pickle.dumps(found))) == FOREIGN
    write_manifest("again.parquet", found, found.catalog)
    assert read_manifest("again.parquet").provenance["strategy"] == "given"


@pytest.mark.usefixtures("small_blocks")
def test_an_arrow_file_in_batches_of_any_size_is_read_right(tmp_path):
    write_manifest(tmp_path / "t.arrow", DRAWN, CATALOG)
    metadata = formats.read_paths(tmp_path / "t.arrow", ".arrow")[3]
    rows = np.array(ROWS, dtype=np.int32).T
    parts = [rows[:, :3], rows[:, 3:3], rows[:, 3:12], rows[:, 12:]]
    formats.write_paths(tmp_path / "u.arrow", ".arrow", parts, CATALOG.paths.tolist(), metadata)
    found = read_manifest(tmp_path / "u.arrow")
    assert listed(found[:]) == ROWS
    assert [listed(found[number])[0] for number in range(len(ROWS))] == ROWS


def test_an_arrow_file_that_was_rewritten_is_read_by_names(tmp_path):
    write_manifest(tmp_path / "t.arrow", DRAWN, CATALOG)
    with pa.OSFile(str(tmp_path / "t.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    plain = table.cast(pa.schema([(name, pa.string()) for name in COLUMNS], metadata=table.schema.metadata))
    for number, changed in enumerate((plain, plain.slice(1))):
        target = tmp_path / f"{number}.arrow"
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
            writer.write_table(changed)
    assert listed(read_manifest(tmp_path / "0.arrow").triplets) == ROWS
    assert "it was cut short or changed" in refusal_of(read_manifest, tmp_path / "1.arrow")


@pytest.mark.parametrize("kind", ["triplets", "pairs"])
@pytest.mark.parametrize("columns", [[0], [1], [0, 1, 2]])
def test_an_arrow_file_that_was_encoded_anew_gives_the_same_rows(tmp_path, kind, columns):
    given = map(np.array, ([5, 0, 3], [2, 1, 4], [False, True, False]))
    drawn = DRAWN if kind == "triplets" else LabeledPairs(*given)
    write_manifest(tmp_path / "t.arrow", drawn, CATALOG)
    expected = read_manifest(tmp_path / "t.arrow")[:]
    with pa.OSFile(str(tmp_path / "t.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    for number in columns:
        if number == 2 and kind == "pairs":
            continue
        encoded = table[number].cast(pa.string()).combine_chunks().dictionary_encode()
        table = table.set_column(number, table.field(number), pa.chunked_array([encoded]))
    with pa.OSFile(str(tmp_path / "u.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = read_manifest(tmp_path / "u.arrow")
    assert found.kind == kind
    for column, same in zip(found[:], expected, strict=True):
        assert column.tolist() == same.tolist()


def test_an_arrow_file_with_a_row_left_empty_is_refused_in_words(tmp_path):
    write_manifest(tmp_path / "t.arrow", DRAWN, CATALOG)
    with pa.OSFile(str(tmp_path / "t.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    names = table[1].cast(pa.string()).to_pylist()
    gap = pa.array([None, *names[1:]]).dictionary_encode()
    table = table.set_column(1, table.field(1), pa.chunked_array([gap]))
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert refusal_of(read_manifest, tmp_path / "t.arrow").endswith("; a line without a path")


# Refusals of reading


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, suffix, share):
    target = tmp_path / f"t{suffix}"
    write_manifest(target, DRAWN, CATALOG)
    whole = target.read_bytes()
    target.write_bytes(whole[: int(share * len(whole))])
    assert refusal_of(read_manifest, target).startswith("read_manifest(path=")


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
def test_a_file_with_lines_missing_is_refused(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    write_manifest(target, DRAWN, CATALOG)
    lines = target.read_text("utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[:-1]), "utf-8")
    assert refusal_of(read_manifest, target).endswith(
        f"expected the {len(ROWS)} triplets it was written with; it was cut short or changed; "
        f"write it again, or move t{suffix}.json away to do without"
    )


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
def test_a_text_file_and_a_provenance_of_two_runs_are_refused(tmp_path, suffix):
    target, other = tmp_path / f"t{suffix}", tmp_path / f"u{suffix}"
    write_manifest(target, DRAWN, CATALOG)
    write_manifest(other, RandomTriplets(CATALOG.labels, 2, 2, seed=8), CATALOG)
    other.replace(target)  # as many triplets, of the same paths
    assert "it was cut short or changed" in refusal_of(read_manifest, target)


def rewritten(target, change):
    """The .parquet manifest after another program has changed its rows and kept its metadata."""
    write_manifest(target, DRAWN, CATALOG)
    pq.write_table(change(pq.read_table(target)), target)
    return target


def test_a_parquet_file_with_rows_missing_is_refused(tmp_path):
    target = rewritten(tmp_path / "t.parquet", lambda table: table[:-1])
    expected, got = len(ROWS), len(ROWS) - 1
    assert refusal_of(read_manifest, target).endswith(
        f"expected the {expected} triplets it was written with; "
        f"it holds {got}: it was cut short or changed; write it again"
    )


def test_a_path_that_the_catalog_does_not_have_is_refused(tmp_path):
    def change(table):
        others = [name.replace("cow/1.png", "cow/9.png") for name in table["negative"].to_pylist()]
        return table.set_column(2, "negative", pa.array(others))

    assert refusal_of(read_manifest, rewritten(tmp_path / "t.parquet", change)).endswith(
        "expected paths of its own catalog; 'cow/9.png' is not one of them; it was changed; write it again"
    )


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 9, b"\n\n", b"PAR1", b"ARROW1\0\0"])
def test_an_empty_or_garbage_file_is_refused(tmp_path, suffix, content):
    target = tmp_path / f"t{suffix}"
    target.write_bytes(content)
    said = refusal_of(read_manifest, target)
    assert said.startswith("read_manifest(path=")
    assert "expected columns anchor, positive, negative of paths, or first, second, same; " in said or (
        said.endswith("expected at least one triplet or pair; the file is empty")
    )


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("anchor,positive,negative\n")
    pd.DataFrame({name: pd.Series(dtype="str") for name in COLUMNS}).to_parquet(tmp_path / "t.parquet")
    for suffix in ("csv", "parquet"):
        said = "expected at least one triplet or pair; the file is empty"
        assert refusal_of(read_manifest, tmp_path / f"t.{suffix}").endswith(said)


def test_columns_that_are_no_paths_are_refused(tmp_path):
    pd.DataFrame({name: [1, 2] for name in COLUMNS}).to_parquet(tmp_path / "t.parquet")
    said = "expected columns anchor, positive, negative of paths, or first, second, same; Unsupported cast "
    assert said in refusal_of(read_manifest, tmp_path / "t.parquet")
    pd.DataFrame({"a": ["x"]}).to_parquet(tmp_path / "u.parquet")
    said = "expected columns anchor, positive, negative of paths, or first, second, same; it has others"
    assert refusal_of(read_manifest, tmp_path / "u.parquet").endswith(said)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'"x"',
        b"3",
        b"\xff\xfe",
        b'{"tercet.catalog": 1}',
        b'{"tercet.catalog": "xx"}',
    ],
)
def test_something_else_beside_a_text_manifest_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("a/1,a/2,b/1\n")
    (tmp_path / "t.txt.json").write_bytes(content)
    said = refusal_of(read_manifest, "t.txt")
    assert said.startswith("read_manifest(path='t.txt.json'): expected ")
    assert said.endswith("; write t.txt again, or move t.txt.json away to do without")
    (tmp_path / "t.txt.json").unlink()
    assert len(read_manifest(tmp_path / "t.txt")) == 1


def test_files_that_are_no_manifests_are_refused(tmp_path):
    said = "read_manifest(path='t.xlsx'): expected a name ending in .parquet, .arrow, .csv, .jsonl, .txt"
    assert refusal_of(read_manifest, "t.xlsx") == said
    assert (
        refusal_of(read_manifest, "gone.txt") == "read_manifest(path='gone.txt'): expected an existing file"
    )
    (tmp_path / "d.txt").mkdir()
    assert refusal_of(read_manifest, tmp_path / "d.txt").endswith("expected an existing file")


# Refusals of writing


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (([0], [1], [6]), "6"),
        (([-1], [1], [3]), "-1"),
        (([0, 1], [1], [3, 3]), "'array of int64, shape (1,)'"),
        (([0], [1, 2], [3]), "'array of int64, shape (1, 2)'"),
        (([0.0], [1.5], [3.0]), "'array of float64, shape (1,)'"),
        (([True], [False], [True]), "'array of bool, shape (1,)'"),
    ],
)
def test_rows_that_the_catalog_does_not_have_are_refused(tmp_path, suffix, rows, got):
    columns = [np.array(column) for column in rows]
    if got.endswith("(1, 2)'"):
        columns[1] = columns[1][None]
    said = (
        f"write_manifest(triplets={got}): expected catalog rows from 0 to 5, "
        "as many anchors as positives and negatives"
    )
    assert refusal_of(write_manifest, tmp_path / f"t{suffix}", Triplets(*columns), CATALOG) == said
    assert not list(tmp_path.iterdir())


def test_columns_longer_than_the_anchors_are_refused(tmp_path):
    rows = Triplets(np.array([0]), np.array([1, 2]), np.array([3, 3]))
    said = refusal_of(write_manifest, tmp_path / "t.csv", rows, CATALOG)
    assert said.startswith("write_manifest(triplets='array of int64, shape (2,)'): expected catalog rows")


def test_a_sequence_shorter_than_it_says_is_refused(tmp_path):
    class Liar(list):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return given_triplets(ROWS[:2])

    said = refusal_of(write_manifest, tmp_path / "t.csv", Liar(), CATALOG)
    assert said.startswith("write_manifest(triplets='array of int64, shape (2,)'): expected catalog rows")


def test_a_catalog_that_names_a_path_twice_is_refused(tmp_path):
    catalog = CATALOG.select([0, 1, 1, 3])
    said = refusal_of(write_manifest, tmp_path / "t.csv", given_triplets([(0, 1, 3)]), catalog)
    assert said.endswith("expected each path once; 'ant/2.png' is there 2 times")


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_size_that_is_no_size_is_refused(tmp_path, chunk_size):
    said = f"write_manifest(chunk_size={chunk_size}): expected a whole number of at least 1"
    assert refusal_of(write_manifest, tmp_path / "t.csv", DRAWN, CATALOG, chunk_size=chunk_size) == said


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_existing_file_is_not_replaced_unasked(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    target.write_text("mine")
    said = refusal_of(write_manifest, target, DRAWN, CATALOG)
    assert said.endswith("expected a new file; it exists; overwrite=True or --overwrite replaces it")
    assert contents(tmp_path) == {f"t{suffix}": b"mine"}
    write_manifest(target, DRAWN, CATALOG, overwrite=True)
    write_manifest(target, given_triplets(ROWS[:1]), CATALOG, overwrite=True)
    assert listed(read_manifest(target).triplets) == ROWS[:1]


def test_an_existing_file_beside_it_is_not_replaced_unasked(tmp_path):
    (tmp_path / "t.txt.json").write_text("mine")
    said = f"expected no file {tmp_path}/t.txt.json; it exists; overwrite=True or --overwrite replaces it"
    assert refusal_of(write_manifest, tmp_path / "t.txt", DRAWN, CATALOG).endswith(said)
    assert contents(tmp_path) == {"t.txt.json": b"mine"}
    write_manifest(tmp_path / "t.parquet", DRAWN, CATALOG)  # writes nothing beside it


def test_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    said = refusal_of(write_manifest, tmp_path / "no" / "t.csv", DRAWN, CATALOG)
    assert said.endswith(f"expected an existing folder to write in; make {tmp_path}/no first")
    assert refusal_of(write_manifest, tmp_path / "t.doc", DRAWN, CATALOG).endswith(
        "expected a name ending in .parquet, .arrow, .csv, .jsonl, .txt"
    )
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert refusal_of(write_manifest, tmp_path / "t.csv", DRAWN, CATALOG).endswith(
        "expected a folder that may be written"
    )


# Interruptions


class Interrupted:
    """Triplets whose second chunk never comes."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index.start > 0:
            self.interrupt()
        return given_triplets(ROWS[:10])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("block", [10, 1 << 20])
def test_interrupted_half_way_leaves_nothing(tmp_path, monkeypatch, suffix, error, block):
    monkeypatch.setattr(formats, "BLOCK", block)
    monkeypatch.setattr(manifest_writing, "BLOCK", block)

    def interrupt():
        assert all(file.name.endswith(".unfinished") for file in tmp_path.iterdir())  # under other names
        assert not (tmp_path / f"t{suffix}").exists()
        raise error

    with pytest.raises(error):
        write_manifest(tmp_path / f"t{suffix}", Interrupted(interrupt), CATALOG, chunk_size=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_interrupted_half_way_keeps_the_old_file(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    before = contents(tmp_path)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(
            tmp_path / f"t{suffix}", Interrupted(interrupt), CATALOG, chunk_size=10, overwrite=True
        )
    assert contents(tmp_path) == before
    assert listed(read_manifest(tmp_path / f"t{suffix}").triplets) == ROWS


KILLED = """
import os, signal, sys
import numpy as np
from tercet.data.manifests import formats
from tercet.data.manifests import writing as manifest_writing
from tercet.data.catalog.catalog import Catalog
from tercet.core.indices import Triplets

formats.BLOCK = manifest_writing.BLOCK = 1000
class Killed:
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        if index.start > 5_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return Triplets(*np.zeros((3, index.stop - index.start), dtype=np.int64))

catalog = Catalog(["a/1.png"], [0], ["a"])
manifest_writing.write_manifest(sys.argv[1], Killed(), catalog, chunk_size=1000, overwrite=True)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".txt"])
def test_killed_half_way_leaves_nothing_under_the_name(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    command = [sys.executable, "-c", KILLED, str(target)]
    assert subprocess.run(command).returncode == -9
    assert not target.exists()
    assert not (tmp_path / f"t{suffix}.json").exists()
    write_manifest(target, DRAWN, CATALOG)  # nothing stands in the way
    whole = target.read_bytes()
    assert subprocess.run(command).returncode == -9
    assert target.read_bytes() == whole
    assert listed(read_manifest(target).triplets) == ROWS


FULL = """
import resource, sys
from tercet.data.catalog.catalog import Catalog
from tercet.data.manifests.writing import write_manifest
from tercet.data.triplets.random import RandomTriplets
labels = [n % 7 for n in range(5000)]
catalog = Catalog([f"{n % 7}/{n * n}.png" for n in range(5000)], labels, list("0123456"))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_manifest(sys.argv[1], RandomTriplets(catalog.labels, 4, 4), catalog)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", FULL, str(tmp_path / f"t{suffix}")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "OSError\n"
    assert not list(tmp_path.iterdir())


# Size


def test_memory_does_not_grow_with_the_count(tmp_path):
    """The blocks that are alive at once, whatever their number, are few."""
    alive, most = [], 0

    def watched(blocks):
        nonlocal most
        for block in blocks:
            alive.append(weakref.ref(block))
            most = max(most, sum(reference() is not None for reference in alive))
            yield block

    drawn = manifest_writing.drawn_blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writing, "BLOCK", 100)
        patch.setattr(manifest_writing, "drawn_blocks", lambda *given: watched(drawn(*given)))
        for suffix in FORMATS:
            rows = np.zeros((3, 3000), dtype=np.int64)
            write_manifest(tmp_path / f"t{suffix}", Triplets(*rows), CATALOG)
    assert len(alive) == 30 * len(FORMATS)
    assert most <= 3


def test_a_real_tree_end_to_end(tmp_path, capfd):
    for name in NASTY[:12]:
        for folder in ("ant", "bee/x", "é"):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / folder / f"{name}.jpg").write_bytes(b"")
    catalog = scan_folder(tmp_path / "photos")
    triplets = RandomTriplets(catalog.labels, 3, 3, seed=1)
    digests = set()
    for suffix in FORMATS:
        write_manifest(tmp_path / f"t{suffix}", triplets, catalog, progress=True)
        found = read_manifest(tmp_path / f"t{suffix}", root=tmp_path / "photos")
        digests.add(hashlib.sha256(np.stack(found.triplets).tobytes()).hexdigest())
        assert found.catalog == catalog
        for anchor, positive, negative in listed(found[::50]):
            assert all(found.catalog.file(row).is_file() for row in (anchor, positive, negative))
            assert catalog.labels[anchor] == catalog.labels[positive] != catalog.labels[negative]
    assert len(digests) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "writing triplets" in shown.err


# Pairs


PAIRS = RandomPairs(CATALOG.labels, positives=2, negatives=2, seed=7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_of_pairs(tmp_path, suffix):
    rows = listed(PAIRS[:])
    write_manifest(tmp_path / f"t{suffix}", PAIRS, CATALOG, chunk_size=3, provenance={"groups": "camera"})
    found = read_manifest(tmp_path / f"t{suffix}", root="photos")
    assert (found.kind, len(found), found.catalog) == ("pairs", len(rows), CATALOG)
    assert repr(found) == f"Manifest({len(rows)} pairs, strategy='random')"
    assert isinstance(found.pairs, LabeledPairs)
    assert listed(found.pairs) == rows
    assert [column.dtype for column in found.pairs] == [np.int64, np.int64, bool]
    assert listed(found[[5, -1, 5]]) == [rows[5], rows[-1], rows[5]]
    assert listed(found[3:9]) == rows[3:9]
    assert listed(pickle.loads(pickle.dumps(found))[:]) == rows
    told = found.provenance
    assert (told["kind"], told["strategy"], told["groups"]) == ("pairs", "random", "camera")
    assert told["counts"] == {"queries": 5, "images alone in their class": 1, "pairs": len(rows)}
    said = f"Manifest.triplets(manifest={found!r}): expected a manifest of triplets; take .pairs"
    assert refusal_of(lambda: found.triplets) == said
    write_manifest(tmp_path / "u.arrow", found, found.catalog)
    again = read_manifest(tmp_path / "u.arrow")
    assert listed(again[:]) == rows
    assert again.provenance["counts"] == told["counts"]


def test_triplets_are_no_pairs(tmp_path):
    write_manifest(tmp_path / "t.parquet", DRAWN, CATALOG)
    found = read_manifest(tmp_path / "t.parquet")
    said = f"Manifest.pairs(manifest={found!r}): expected a manifest of pairs; take .triplets"
    assert found.kind == "triplets"
    assert refusal_of(lambda: found.pairs) == said


def test_triplets_are_not_made_of_pairs(tmp_path):
    write_manifest(tmp_path / "t.parquet", PAIRS, CATALOG)
    found = read_manifest(tmp_path / "t.parquet")
    for pairs in (found, PAIRS, PAIRS[:]):
        said = refusal_of(TripletDataset, pairs, catalog=CATALOG)
        assert said.startswith("TripletDataset(manifest=")
        assert "expected a manifest or another sequence of triplets" in said


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_pairs_are_a_manifest_too(tmp_path, suffix):
    write_manifest(tmp_path / f"t{suffix}", PAIRS[:0], CATALOG)
    found = read_manifest(tmp_path / f"t{suffix}")
    assert (found.kind, found.pairs.count, found.provenance["strategy"]) == ("pairs", 0, "given")


def test_pairs_of_a_miner_are_written_positive_ones_first(tmp_path):
    mined = Pairs(*map(torch.tensor, ([0, 1], [1, 2], [0], [3])))
    write_manifest(tmp_path / "t.csv", LabeledPairs.of(mined), CATALOG)
    assert listed(read_manifest(tmp_path / "t.csv").pairs) == [(0, 1, True), (1, 2, True), (0, 3, False)]


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (([0], [6], [1]), "6"),
        (([0], [1], [2]), "2"),
        (([0], [1], [0.5]), "'array of float64, shape (1,)'"),
        (([True], [1], [1]), "'array of bool, shape (1,)'"),
        (([0, 1], [1], [1, 0]), "'array of int64, shape (1,)'"),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path, rows, got):
    pairs = LabeledPairs(*map(np.array, rows))
    said = (
        f"write_manifest(triplets={got}): expected catalog rows from 0 to 5, "
        "and for each pair of them whether they are of one class"
    )
    assert refusal_of(write_manifest, tmp_path / "t.csv", pairs, CATALOG) == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_pairs_of_another_program(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    write_manifest(f"t{suffix}", PAIRS, CATALOG)
    Path(f"t{suffix}.json").unlink(missing_ok=True)
    if suffix in (".parquet", ".arrow"):
        _, paths, rows, _ = formats.read_paths(Path(f"t{suffix}"), suffix)
        frame = pd.DataFrame(
            dict(zip(formats.COLUMNS["pairs"], [*paths[rows[:2]], rows[2].astype("int8")], strict=True))
        )
        (frame.to_parquet if suffix == ".parquet" else frame.to_feather)(f"t{suffix}")
    found = read_manifest(f"t{suffix}")
    assert (found.kind, found.provenance) == ("pairs", {})
    named = [(found.catalog.paths[a], found.catalog.paths[b], same) for a, b, same in listed(found[:])]
    assert named == [(CATALOG.paths[a], CATALOG.paths[b], same) for a, b, same in listed(PAIRS[:])]


# Files of version 0.1.0, which have no checksums

OLD = Path(__file__).parent / "old_files"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_version_0_1_is_read_with_a_word(tmp_path, suffix):
    for file in OLD.glob(f"*{suffix}*"):
        shutil.copy(file, tmp_path)
    named = f"t{suffix}.json" if suffix in TEXT_FORMATS else f"t{suffix}"
    with pytest.warns(UserWarning, match=rf"{named} has no checksum, so damage in it may pass") as told:
        found = read_manifest(tmp_path / f"t{suffix}")
    assert len(told) == 1
    assert listed(found[:]) == ROWS
    assert found.catalog == CATALOG
    assert found.provenance["parameters"] == DRAWN.provenance()["parameters"]
    write_manifest(tmp_path / f"new{suffix}", found, found.catalog)
    assert listed(read_manifest(tmp_path / f"new{suffix}")[:]) == ROWS


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
@pytest.mark.parametrize("old", [True, False])
def test_an_edited_label_in_the_json_of_a_text_manifest_is_noticed(tmp_path, suffix, old):
    write_manifest(tmp_path / f"t{suffix}", DRAWN, CATALOG)
    other = tmp_path / f"t{suffix}.json"
    record = json.loads(other.read_text("utf-8"))
    assert record["tercet.catalog"]["labels"][2] == 0
    record["tercet.catalog"]["labels"][2] = 1
    if old:
        del record["crc32"]
    other.write_text(json.dumps(record), "utf-8")
    with pytest.warns(UserWarning, match="no checksum") if old else nullcontext():
        said = refusal_of(read_manifest, tmp_path / f"t{suffix}")
    expected = (
        "expected the catalog it was written with" if old else "expected its provenance to fit its checksum"
    )
    assert expected in said


def test_a_manifest_from_before_kinds_is_one_of_triplets(tmp_path):
    write_manifest(tmp_path / "t.txt", DRAWN, CATALOG)
    record = json.loads((tmp_path / "t.txt.json").read_text("utf-8"))
    del record["kind"], record["crc32"]
    (tmp_path / "t.txt.json").write_text(json.dumps(record), "utf-8")
    with pytest.warns(UserWarning, match="no checksum"):
        assert listed(read_manifest(tmp_path / "t.txt").triplets) == ROWS


# Several manifests at once


@pytest.mark.parametrize("suffix", FORMATS)
def test_two_manifests_appear_together_or_not_at_all(tmp_path, suffix):
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"

    def fail():
        raise KeyboardInterrupt

    first = ManifestPart(one, DRAWN, CATALOG, {})
    for second, error in ((Interrupted(fail), KeyboardInterrupt), (given_triplets([(0, 1, 9)]), ValueError)):
        with pytest.raises(error):
            write_manifests([first, ManifestPart(two, second, CATALOG, {})], chunk_size=10)
        assert not list(tmp_path.iterdir())
    write_manifests([first, ManifestPart(two, PAIRS, CATALOG, {})])
    assert listed(read_manifest(one).triplets) == ROWS
    assert listed(read_manifest(two).pairs) == listed(PAIRS[:])
    assert len(list(tmp_path.iterdir())) == (4 if suffix in TEXT_FORMATS else 2)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_may_be_called_like_an_address(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    Path("run:3").mkdir()
    write_manifest(f"run:3/t{suffix}", DRAWN, CATALOG)
    assert listed(read_manifest(f"run:3/t{suffix}").triplets) == ROWS


@pytest.mark.parametrize("suffix", FORMATS)
def test_groups_of_a_catalog_keep_their_kind(tmp_path, suffix):
    groups = {
        "flag": [True, False] * 3,
        "score": [0.5, 1.0, 0.25] * 2,
        "size": range(6),
        "named": list("abcdef"),
    }
    given = Catalog(CATALOG.paths, CATALOG.labels, CATALOG.classes, groups)
    write_manifest(tmp_path / f"t{suffix}", DRAWN, given)
    found = read_manifest(tmp_path / f"t{suffix}").catalog
    assert [found.groups[name].dtype.kind for name in groups] == ["b", "f", "i", "O"]
    assert found.fingerprint == given.fingerprint


def test_a_manifest_is_not_written_with_another_catalog(tmp_path):
    write_manifest(tmp_path / "t.arrow", DRAWN, CATALOG)
    found = read_manifest(tmp_path / "t.arrow")
    other = CATALOG.select([1, 0, 2, 3, 4, 5])
    said = refusal_of(write_manifest, tmp_path / "u.csv", found, other)
    assert "write_manifest(catalog=Catalog(6 images" in said
    assert (
        "expected the images and classes that the manifest was made of, in their order; its row 0 is" in said
    )
    assert not (tmp_path / "u.csv").exists()
    with_groups = Catalog(CATALOG.paths, CATALOG.labels, CATALOG.classes, {"n": range(6)})
    write_manifest(tmp_path / "u.csv", found, with_groups)
    assert listed(read_manifest(tmp_path / "u.csv").triplets) == ROWS


# Spreadsheets

FORMULAS = ["=1+1.jpg", "+1.jpg", "-2.jpg", "@SUM(A1).jpg", "\t=1.jpg", "\r=1.jpg", "\n=1.jpg", "＝1.jpg"]
FORMULAS += ["'=1+1.jpg", "'x.jpg", "''=1+1.jpg", "ant/=1.jpg", "a=1.jpg", 'say "=1".jpg', "=a,b.jpg"]


def test_no_cell_of_a_csv_is_run_by_a_spreadsheet_when_asked(tmp_path):
    catalog = Catalog(FORMULAS, np.arange(len(FORMULAS)) % 2, ["a", "b"])
    triplets = RandomTriplets(catalog.labels)
    write_manifest(tmp_path / "plain.csv", triplets, catalog)
    write_manifest(tmp_path / "t.csv", triplets, catalog, csv_safe=True)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        cells = {cell for line in list(csv.reader(file))[1:] for cell in line}
    assert not {cell[0] for cell in cells} & set("=+-@\t\r\n＝＋－＠")
    assert cells == {"'" * (name[0] not in "as") + name for name in FORMULAS}
    safe, plain = read_manifest(tmp_path / "t.csv"), read_manifest(tmp_path / "plain.csv")
    assert safe.catalog == plain.catalog == catalog
    assert listed(safe.triplets) == listed(plain.triplets)
    assert (safe.provenance["csv_safe"], "csv_safe" in plain.provenance) == (True, False)
    write_manifest(tmp_path / "again.csv", safe, catalog)  # how it was written is no fact of the triplets
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert listed(read_manifest(tmp_path / "again.csv").triplets) == listed(safe.triplets)


def test_the_prefix_counts_for_a_spreadsheet(tmp_path):
    write_manifest(tmp_path / "t.csv", DRAWN, CATALOG, path_prefix="-photos/", csv_safe=True)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert all(cell.startswith("'-photos/") for line in list(csv.reader(file))[1:] for cell in line)
    found = read_manifest(tmp_path / "t.csv")
    assert (listed(found.triplets), found.catalog) == (ROWS, CATALOG)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".arrow"])
def test_only_a_csv_is_made_safe_for_a_spreadsheet(tmp_path, suffix):
    said = f"write_manifest(csv_safe=True): expected False for {suffix}; only .csv has cells"
    assert refusal_of(write_manifest, tmp_path / f"t{suffix}", DRAWN, CATALOG, csv_safe=True) == said
    assert list(tmp_path.iterdir()) == []
