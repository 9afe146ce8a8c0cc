"""Roots: no path of a table or manifest leads out of the folder it starts from, unless that is asked for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import TripletDataset
from tercet.data.io.path_traversal import inside, leads_out
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.shards.writing import write_shards
from tercet.data.triplets.random import RandomTriplets

PGM = b"P5 2 1 255 ab"
FORMATS = [".parquet", ".arrow", ".csv", ".jsonl", ".txt"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """photos/ant and photos/bee with links out of photos, and secret.pgm beside it; the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("secret.pgm", "store/s.pgm", "photos/ant/1.pgm", "photos/ant/2.pgm", "photos/bee/1.pgm"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(PGM)
    Path("photos/ant/link.pgm").symlink_to("../../secret.pgm")
    Path("photos/ant/chain.pgm").symlink_to("link.pgm")
    Path("photos/out").symlink_to(tmp_path / "store")
    Path("photos/bee/same.pgm").symlink_to("1.pgm")
    Path("photos/alias").symlink_to("bee")
    return tmp_path


BY_NAME = ["../secret.pgm", "ant/../../secret.pgm", "/etc/passwd", "{}/secret.pgm", "ant/../../photos2/1.pgm"]
BY_LINK = ["ant/link.pgm", "ant/chain.pgm", "out/s.pgm", "out/../secret.pgm", "out/gone.pgm"]
WITHIN = [
    "ant/1.pgm",
    "bee/same.pgm",
    "alias/1.pgm",
    "ant/../bee/1.pgm",
    "./ant/1.pgm",
    "{}/photos/ant/1.pgm",
]
WITHIN += ["..1.pgm", "ant/..", "ant/a..b.pgm", "gone/1.pgm"]


def written(name, *more):
    """A table of one more image than `more`."""
    name = name.format(os.getcwd())
    lines = "".join(f"{one},x{row}\n" for row, one in enumerate([*more, name]))
    Path("photos/t.csv").write_text("path,label\n" + lines)
    return "photos/t.csv", name


@pytest.mark.parametrize("name", BY_NAME)
def test_a_table_whose_path_leads_out_by_its_name_is_refused(place, name):
    table, name = written(name, "ant/1.pgm", "ant/2.pgm")
    with pytest.raises(ValueError, match=r"read_catalog\(path='photos/t.csv'\): expected paths that") as said:
        read_catalog(table)
    hint = "pass outside_root=True (--outside-root) if that is meant"
    assert str(said.value).endswith(
        f"expected paths that stay in the root photos; row 3 names {name!r}; {hint}"
    )
    assert read_catalog(table, outside_root=True).file(2) == Path("photos", name)


@pytest.mark.parametrize("name", BY_LINK)
def test_an_image_behind_a_link_out_of_the_root_is_refused_where_it_is_opened(place, name):
    catalog = read_catalog(written(name)[0])
    said = "Catalog.file(row={!r}): expected a path that stays in the root photos; read table or manifest"
    for opening in (
        lambda: catalog.file(0),
        lambda: ImageDataset(catalog)[0],
        lambda: ImageDataset(catalog, on_unreadable="skip")[0],
        lambda: write_shards("shards", catalog, unreadable="skip"),
        lambda: read_catalog("photos/t.csv", verify=True),
        lambda: catalog.select([0]).file(0),
        lambda: pickle.loads(pickle.dumps(catalog)).file(0),
    ):
        with pytest.raises(PermissionError) as raised:
            opening()
        assert str(raised.value).startswith(said.format(name))
    assert not Path("shards").exists()
    assert read_catalog("photos/t.csv", outside_root=True).file(0) == Path("photos", name)


@pytest.mark.parametrize("name", WITHIN)
def test_a_path_that_stays_is_taken(place, name):
    table, name = written(name)
    for root in (None, "photos", place / "photos", Path("photos/../photos")):
        catalog = read_catalog(table, root=root)
        assert catalog.file(0) == Path(root or "photos", name)
    assert not leads_out("photos", name)


def test_the_root_may_be_a_link_and_have_two_names(place):
    Path("album").symlink_to("photos")
    table, _ = written(f"{place}/photos/ant/1.pgm", f"{place}/album/ant/2.pgm", "bee/1.pgm")
    for root in ("album", "photos", place / "album"):
        catalog = read_catalog(table, root=root)
        assert [catalog.file(row).read_bytes() for row in range(3)] == [PGM] * 3


def test_absolute_paths_are_refused_with_the_root_that_has_them(place):
    table, _ = written("{}/photos/bee/1.pgm", f"{place}/photos/ant/1.pgm")
    Path("tables").mkdir()
    table = Path(table).rename("tables/t.csv")
    with pytest.raises(ValueError, match=r"row 1 names ") as said:
        read_catalog(table)
    hint = f"pass root='{place}/photos', the folder above them, or outside_root=True (--outside-root)"
    assert str(said.value).endswith(f"and 1 more that do not; {hint}")
    catalog = read_catalog(table, root=place / "photos")
    assert [catalog.file(row).read_bytes() for row in range(2)] == [PGM, PGM]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_manifest_whose_path_leads_out_by_its_name_is_refused(place, suffix, name):
    name = name.format(place)
    catalog = Catalog(["ant/1.pgm", "ant/2.pgm", name], [0, 0, 1], ["a", "b"], root=Path("photos"))
    write_manifest(f"photos/t{suffix}", RandomTriplets(catalog.labels), catalog)
    with pytest.raises(ValueError, match=r"read_manifest\(path='photos/t") as said:
        read_manifest(f"photos/t{suffix}").catalog  # noqa: B018
    assert f"expected paths that stay in the root photos; it names {name!r}; pass outside_root=True" in str(
        said.value
    )
    assert read_manifest(f"photos/t{suffix}", outside_root=True).catalog == catalog


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_leads_to_no_image_behind_a_link(place, suffix):
    catalog = Catalog(["ant/link.pgm", "ant/2.pgm", "out/s.pgm"], [0, 0, 1], ["a", "b"], root=Path("photos"))
    write_manifest(f"t{suffix}", RandomTriplets(catalog.labels), catalog)
    for manifest in (
        read_manifest(f"t{suffix}", root="photos"),
        pickle.loads(pickle.dumps(read_manifest(f"t{suffix}", root="photos"))),
    ):
        with pytest.raises(
            PermissionError, match=r"Catalog.file\(row='ant/link.pgm'\): expected a path that"
        ):
            TripletDataset(manifest)[0]
    taken = pickle.loads(pickle.dumps(read_manifest(f"t{suffix}", root="photos", outside_root=True)))
    assert TripletDataset(taken)[0].images.shape == (3, 3, 1, 2)


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".jsonl"])
@pytest.mark.parametrize("name", ["../secret.pgm", "/etc/passwd"])
def test_a_manifest_of_another_program_is_held_to_its_root(place, suffix, name):
    names = ["ant/1.pgm", "ant/2.pgm", name]
    line = ",".join(names) + "\n"
    header = "anchor,positive,negative\n" if suffix == ".csv" else ""
    if suffix == ".jsonl":
        line = '{{"anchor": "{}", "positive": "{}", "negative": "{}"}}\n'.format(*names)
    Path(f"t{suffix}").write_text(header + line)
    for root in (None, "photos"):
        with pytest.raises(
            ValueError, match=f"stay in the root {root or '.'}; it names '{name}'; pass outside"
        ):
            read_manifest(f"t{suffix}", root)
    assert len(read_manifest(f"t{suffix}", outside_root=True)) == 1


def test_a_tree_of_links_is_followed_where_a_folder_is_scanned(place):
    catalog = scan_folder("photos")
    assert "out/s.pgm" in catalog.paths
    assert [catalog.file(row).read_bytes() for row in range(len(catalog))] == [PGM] * len(catalog)
    assert len(write_shards("shards", catalog)) == len(catalog)


def test_a_link_planted_after_reading_is_noticed(place):
    catalog = read_catalog(written("ant/1.pgm")[0])
    assert catalog.file(0).read_bytes() == PGM
    Path("photos/ant").rename("gone")
    Path("photos/ant").symlink_to("../gone")
    with pytest.raises(PermissionError):
        catalog.file(0)


@pytest.mark.parametrize("reader", [read_catalog, read_manifest])
def test_the_option_is_true_or_false(place, reader, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"{reader.__name__}\(outside_root='no'\): expected True or False"):
        reader(written("ant/1.pgm")[0], outside_root="no")


@pytest.mark.parametrize("name", ["/a\0.pgm", "../\ud800.pgm", "ant/../\0.pgm"])
def test_a_name_that_no_file_can_have_is_inside_of_nothing(place, name):
    assert leads_out("photos", name)
    with pytest.raises(PermissionError, match=r"Catalog.file\(row='.*'\): expected a path that stays"):
        Catalog([name], [0], ["a"], root=Path("photos"), outside_root=False).file(0)


def test_a_loop_of_links_stays_nowhere(place):
    Path("photos/loop").symlink_to("loop")
    assert not leads_out("photos", "loop/1.pgm")  # and opening it says why it cannot be
    assert inside("photos", "photos/loop")


def test_many_rows_are_compared_without_a_look_at_the_disk(place, monkeypatch):
    names = np.array([f"c{row % 7}/{row}.pgm" for row in range(2000)])
    Path("photos/t.csv").write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    monkeypatch.setattr("tercet.data.io.path_traversal.os.path.realpath", lambda place: pytest.fail("looked"))
    monkeypatch.setattr("tercet.data.io.path_traversal.os.path.islink", lambda place: pytest.fail("looked"))
    assert len(read_catalog("photos/t.csv")) == 2000
