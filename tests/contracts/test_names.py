"""No name is a command or a pattern, and none leads out of its folder."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tercet import read_manifest, write_manifest
from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog
from tercet.data.io.path_traversal import inside
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.random import RandomTriplets
from tests.helpers import photos, refusal_of, tar_of_images, write_tar

COMMANDS = ("pipe:touch ran #.tar", "file:a.tar", "https:a.tar")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory, so that a command that runs leaves its mark in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(name):
    """The working directory, where info.json lists a tar."""
    Path("info.json").write_text(json.dumps({"splits": {"train": {"filenames": [name]}}}))
    return "."


@pytest.mark.parametrize(("steps", "urls"), [(None, False), (1, True)])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "shards",
    [
        pytest.param(lambda name: ".", id="in a folder"),
        pytest.param(lambda name: [name], id="in a list of strings"),
        pytest.param(lambda name: [Path(name)], id="in a list of paths"),
        pytest.param(lambda name: name.replace("a", "{a..a}"), id="by a pattern"),
        pytest.param(lambda name: listed(name), id="in info.json"),
        pytest.param(lambda name: name, id="as a string"),
    ],
)
def test_a_tar_named_like_a_command_is_a_file(here, shards, name, steps, urls):
    tar_of_images(here / name)
    stream = PKStream(shards(name), 2, 4, steps=steps, urls=urls)
    ((_, labels),) = stream
    assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not (here / "ran").exists()


ASKED = [["pipe:touch ran"], "pipe:touch ran", "PIPE:touch ran", "pipe:touch {a,b}"]


@pytest.mark.parametrize("urls", [False, True])
@pytest.mark.parametrize("shards", ASKED)
def test_a_command_is_refused_with_urls_too(here, shards, urls):
    said = refusal_of(PKStream, shards, 2, 4, steps=1, urls=urls)
    assert "expected an existing tar; a URL begins with one of " in said
    assert "commands are not run: read them with webdataset.WebDataset(…).compose(pk_batched(p, k))" in said
    assert os.listdir() == []


def test_a_listed_url_is_a_file_that_is_missing(here):
    said = refusal_of(PKStream, listed("https://host/a.tar"), 2, 4, steps=1, urls=True)
    assert "expected every tar that info.json lists; restore it" in said


def test_an_index_of_a_tar_named_like_a_command_is_a_file(here):
    for name in COMMANDS:
        tar = tar_of_images(here / name)
        index = ShardIndex([name], write_index=True)
        assert len(ShardIndex([tar]).read(range(8))) == 8
        assert index.tars[0].with_name(name.removesuffix(".tar") + ".index.parquet").is_file()
    assert not (here / "ran").exists()


# Names that are patterns, addresses, options or markup elsewhere.
ODD = ["[a]", "a*?", "{1..3}", "%(x)s", "[red]b", "$HOME", "`touch ran`", "s3:c", "~", "-k", "a'b\"c"]


@pytest.mark.parametrize("odd", ODD)
def test_a_folder_of_any_name_is_scanned_packed_listed_and_read(here, odd, tercet):
    photos(here / odd, sizes=(3, 2))
    catalog = scan_folder(odd)
    catalog.write(f"{odd}.csv")
    assert all(read_catalog(f"{odd}.csv").file(row).is_file() for row in range(5))
    for suffix in (".parquet", ".arrow", ".csv", ".txt"):
        write_manifest(f"{odd}.list{suffix}", RandomTriplets(catalog.labels)[:4], catalog)
        assert read_manifest(f"{odd}.list{suffix}").triplets.anchor.tolist()
    write_shards(f"{odd}.shards", catalog)
    assert len(ShardIndex(f"{odd}.shards").read([0, 1])) == 2
    code, out, _ = tercet("make-shards", f"./{odd}", f"./{odd}.more")
    assert code == 0
    assert out.startswith(f"{odd}.more ")
    assert not (here / "ran").exists()


# Roots.


def streamed(source, **options):
    return PKStream(source, 2, 4, steps=1, **options)


@pytest.mark.parametrize("how", ["..", "absolute", "link", "link of a folder"])
@pytest.mark.parametrize("call", [ShardIndex, streamed])
def test_info_json_does_not_lead_out_of_its_folder(here, call, how):
    (here / "out").mkdir()
    (here / "in").mkdir()
    tar = tar_of_images(here / "out" / "a.tar")
    names = {"..": "../out/a.tar", "absolute": str(tar), "link": "a.tar", "link of a folder": "deep/a.tar"}
    if how == "link":
        Path("in/a.tar").symlink_to(tar)
    if how == "link of a folder":
        Path("in/deep").symlink_to(here / "out")
    Path("in/info.json").write_text(json.dumps({"splits": {"train": {"filenames": [names[how]]}}}))
    said = refusal_of(call, "in")
    assert "expected tars in in, and in/info.json lists one outside of it; pass outside_root=True if" in said
    assert call("in", outside_root=True)
    if call is ShardIndex and how != "link":  # the index of a link lies beside the link
        said = refusal_of(ShardIndex, "in", outside_root=True, write_index=True)
        assert "ShardIndex(write_index=True): expected tars in in, and " in said
        assert "lies outside of it; leave it out: the tars are scanned" in said
    assert os.listdir("out") == ["a.tar"]


@pytest.mark.parametrize("how", ["..", "absolute", "link"])
@pytest.mark.parametrize("unreadable", ["error", "skip"])
def test_shards_are_not_packed_of_files_outside_of_a_tables_root(here, how, unreadable):
    photos(here / "photos", sizes=(3, 2))
    (here / "secret.jpg").write_bytes(b"secret")
    os.symlink(here / "secret.jpg", here / "photos" / "link.jpg")
    name = {"..": "../secret.jpg", "absolute": str(here / "secret.jpg"), "link": "link.jpg"}[how]
    Path("photos/table.csv").write_text(f"path,label\n{name},a\n")
    asked = replace(read_catalog("photos/table.csv", outside_root=True), outside_root=False)
    for read in (lambda: read_catalog("photos/table.csv"), lambda: asked):
        with pytest.raises((PermissionError, ValueError), match="outside_root=True"):
            write_shards("out", read(), unreadable=unreadable)
    assert not Path("out").exists()
    index = write_shards("out", read_catalog("photos/table.csv", outside_root=True))
    assert index.read([0]) == [b"secret"]


def test_the_name_of_a_member_leads_nowhere(here):
    (here / "secret.jpg").write_bytes(b"secret")
    (here / "in").mkdir()
    index = ShardIndex(write_tar(here / "in" / "a.tar", ("../secret.jpg", b"photo"), ("../secret.cls", b"1")))
    assert index.read([0]) == [b"photo"]
    with pytest.raises(PermissionError, match="a path that stays in the root"):
        index.catalog.file(0)


def test_nothing_is_written_through_links_that_stand_at_the_names_of_shards(here):
    catalog = scan_folder(photos(here / "photos", sizes=(3, 2)).root)
    (here / "out").mkdir()
    names = ["train-000000.tar", "train-000000.index.parquet", "info.json"]
    for name in names[:2]:
        os.symlink(here / f"outside {name}", here / "out" / name)
    write_shards("out", catalog, overwrite=True)
    tar_of_images(here / "tars.tar")
    os.symlink(here / "outside.parquet", here / "tars.index.parquet")
    ShardIndex("tars.tar", write_index=True)
    assert not list(here.glob("outside*"))
    assert not any(Path("out", name).is_symlink() for name in names)


def test_inside_follows_dots_and_links(here):
    Path("a/b").mkdir(parents=True)
    Path("a/out").symlink_to(here)
    Path("a/in").symlink_to("b")
    assert inside("a", "a/b/c")
    assert inside("a", "a/in/c")
    assert inside("a", "a/b/../c")
    assert inside("/", "/etc")
    assert not inside("a", "a/../ab")
    assert not inside("a", "a/out/c")
    assert not inside("a", here / "a2")
