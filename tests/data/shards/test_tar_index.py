"""Tars of other programs: scanned by their headers, cut at every place, damaged, indexed and kept."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tercet.data.shards import discovery
from tercet.data.shards.index import ShardIndex
from tercet.data.streams.pk_stream import PKStream
from tests.helpers import flip, refusal_of, write_tar

LONG = "folder/" * 30 + "é" * 60


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_foreign_tar_is_scanned(tmp_path, format):
    first = "short" if format == tarfile.USTAR_FORMAT else LONG
    tar = write_tar(
        tmp_path / "a.tar",
        *[(f"{first}.JPG", b"one"), (f"{first}.cls", b"10\n"), (f"{first}.json", b'{"name": "zebra"}')],
        *[("b/1.v2.txt", b"?"), ("b/1.cls", b"9"), ("b/1.json", b'{"name": "ant"}'), ("b/1.png", b"two")],
        *[("c.json", b'{"name": "ant"}'), ("c.webp", b""), ("c.cls", b"9")],
        format=format,
    )
    index = ShardIndex(tar)
    assert index.paths.tolist() == [f"{first}.JPG", "b/1.png", "c.webp"]
    assert index.classes == ["9", "10"]  # as numbers
    assert index.labels.tolist() == [1, 0, 0]
    assert index.read([2, 1, 0]) == [b"", b"two", b"one"]
    assert not (tmp_path / "a.index.parquet").exists()
    named = ShardIndex([tar], label="json:name")
    assert [named.classes[label] for label in named.labels] == ["zebra", "ant", "ant"]


def test_several_foreign_tars_follow_each_other(tmp_path):
    for number in (1, 0):
        write_tar(tmp_path / f"{number}.tar", (f"{number}.jpg", bytes([number])), (f"{number}.cls", b"cat"))
    assert ShardIndex(tmp_path).read([0, 1]) == [b"\0", b"\1"]
    assert ShardIndex([tmp_path / "1.tar", tmp_path / "0.tar"]).read([0, 1]) == [b"\1", b"\0"]
    filenames = {"splits": {"train": {"filenames": ["1.tar"]}, "val": {"filenames": ["0.tar"]}}}
    (tmp_path / "info.json").write_text(json.dumps(filenames))  # another program's, as timm reads it
    assert ShardIndex(tmp_path, split="train").read([0]) == [b"\1"]
    assert "one of the splits" in refusal_of(ShardIndex, tmp_path, split="test")
    assert "a folder of shards" in refusal_of(ShardIndex, tmp_path / "1.tar", split="train")


def test_what_is_no_sample_is_reported(tmp_path):
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for name in ("__meta__/x.json", "noextension", "1.jpg", "1.cls", "2.cls", ".hidden"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"7"))
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    index = ShardIndex(tar)
    assert index.paths.tolist() == ["1.jpg"]
    assert {item.path: item.reason for item in index.catalog.left_out} == {
        "a.tar/__meta__/x.json": "webdataset's own metadata",
        "a.tar/noextension": "name without an extension",
        "a.tar/.hidden": "name without an extension",
        "a.tar/2": "sample without an image",
        "a.tar/3.jpg": "not a plain file",
    }
    assert "5 left out" in repr(index)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_is_refused_or_gives_whole_samples_alone(tmp_path, format):
    samples = {f"{'k' * 120}{row}": bytes([row]) * (300 + 200 * row) for row in range(4)}
    members = [(f"{key}.{suffix}", content if suffix == "jpg" else b"5") for key, content in samples.items()
               for suffix in ("jpg", "cls")]  # fmt: skip
    whole = write_tar(tmp_path / "whole.tar", *members, format=format).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512 + 512  # the last content and one block of the end
    with tarfile.open(tmp_path / "whole.tar") as archive:  # where it is certain that the first is whole
        info = archive.getmembers()[2]
        second = info.offset_data + info.size
    tar, seen = tmp_path / "a.tar", set()
    for cut in range(0, end, 512 - 64):
        tar.write_bytes(whole[:cut])
        assert "expected" in refusal_of(ShardIndex, tar)
        if cut < second:
            said = refusal_of(ShardIndex, tar, damaged="drop")
            assert "an uncompressed tar" in said or "at least one sample" in said
            continue
        index = ShardIndex(tar, damaged="drop")
        kept = list(samples.values())[: len(index)]
        assert index.read(range(len(index))) == kept
        assert "cut short" in index.catalog.left_out[-1].reason
        seen.add(len(kept))
    assert seen == {1, 2, 3}
    tar.write_bytes(whole[:end])
    assert ShardIndex(tar).read(range(4)) == list(samples.values())


def test_a_broken_header_in_the_middle_is_refused_or_ends_the_tar(tmp_path):
    tar = write_tar(tmp_path / "a.tar", *[(f"{n}.{s}", b"1") for n in range(3) for s in ("jpg", "cls")])
    flip(tar, 4 * 1024)  # the name in the header of the third image
    said = refusal_of(ShardIndex, tar)
    assert "the tar is cut short or damaged here after '1'" in said
    assert 'damaged="drop"' in said
    index = ShardIndex(tar, damaged="drop")
    assert index.paths.tolist() == ["0.jpg"]
    assert index.catalog.left_out == (("a.tar/1", "the tar is cut short or damaged here"),)


def test_a_compressed_tar_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", ("1.jpg", b"1"), ("1.cls", b"1"))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(tmp_path / "a.tar", "a.tar")
    said = refusal_of(ShardIndex, tmp_path / "b.tar")
    assert "an uncompressed tar; decompress it first" in said


def test_a_file_shorter_than_a_header_ends_within_one(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"GIF89a")
    assert refusal_of(ShardIndex, tmp_path / "a.tar").endswith("(it ends within a header)")


def test_an_empty_file_is_refused_as_one(tmp_path):
    (tmp_path / "a.tar").touch()
    assert refusal_of(ShardIndex, tmp_path / "a.tar").endswith("expected an uncompressed tar; it is empty")


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        (
            {"1.jpg": b"", "1.txt": b""},
            {},
            "the sample has jpg, txt; name another with label=",
        ),
        ({"1.jpg": b"", "1.cls": b""}, {}, "a whole number or a name in 1.cls"),
        ({"1.jpg": b"", "1.cls": b"\xff"}, {}, "a whole number or a name in 1.cls"),
        ({"1.jpg": b"", "1.json": b"{"}, {"label": "json:id"}, "a whole number or a name in 1.json"),
        ({"1.jpg": b"", "1.json": b"{}"}, {"label": "json:id"}, "KeyError: 'id'"),
        ({"1.jpg": b"", "1.json": b"[1]"}, {"label": "json:id"}, "TypeError"),
        ({"1.jpg": b"", "1.json": b'{"id": 1.5}'}, {"label": "json:id"}, "it is 1.5"),
        ({"1.jpg": b"", "1.json": b'{"id": true}'}, {"label": "json:id"}, "it is True"),
        ({"1.jpg": b"", "1.png": b"", "1.cls": b"1"}, {}, "one image a sample, and '1' has jpg and png"),
        ({"1.cls": b"1"}, {}, "at least one sample with an image"),
        ({"1.jpg": b"", "1.JPG": b"", "1.cls": b"1"}, {}, "each member once, not '1.JPG' twice"),
        ({"1.jpg": b"", "1.cls": b"1"}, {"damaged": "keep"}, "expected one of 'error', 'drop'"),
        ({"1.jpg": b"", "1.cls": b"1"}, {"max_open": 0}, "ShardIndex(max_open=0)"),
    ],
)
def test_what_cannot_be_indexed_is_refused(tmp_path, members, options, said):
    tar = write_tar(tmp_path / "a.tar", *members.items())
    assert said in refusal_of(ShardIndex, tar, **options)


def test_of_two_images_the_one_that_is_named_counts(tmp_path):
    members = {"1.jpg": b"photo", "1.seg.png": b"mask", "1.cls": b"1"}
    tar = write_tar(tmp_path / "a.tar", *members.items())
    assert ShardIndex(tar).read([0]) == [b"photo"]
    assert ShardIndex(tar, image=".seg.PNG").read([0]) == [b"mask"]


def test_a_kept_index_is_used_until_the_tar_or_what_is_asked_changes(tmp_path, monkeypatch):
    members = [("1.jpg", b"photo"), ("1.json", b'{"id": 4}'), ("1.cls", b"1")]
    tar = write_tar(tmp_path / "a.tar", *members)
    scans, real = [], discovery.scan_tar
    monkeypatch.setattr(discovery, "scan_tar", lambda *args: (scans.append(args), real(*args))[1])
    assert ShardIndex(tar, write_index=True).classes == ["1"]
    assert (tmp_path / "a.index.parquet").is_file()
    index = ShardIndex(tar)
    assert index.read([0]) == [b"photo"]
    assert len(scans) == 1
    assert ShardIndex(tar, label="json:id").classes == ["4"]
    assert ShardIndex(tar, label="json:id", write_index=True).classes == ["4"]
    assert ShardIndex(tar).classes == ["4"]
    assert len(scans) == 3
    flip(tar, int(index._offset[0]) - 512 + 136)  # the header's time
    assert "another header stands in its place" in refusal_of(index.read, [0])
    before = tar.stat()
    write_tar(tar, *members, ("2.jpg", b"more" * 5000), ("2.json", b'{"id": 5}'))
    os.utime(tar, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert tar.stat().st_size != before.st_size
    assert ShardIndex(tar).classes == ["4", "5"]  # the label that the index was made with, as it is now
    assert ShardIndex(tar, write_index=True).read([1]) == [b"more" * 5000]
    assert len(scans) == 5
    assert ShardIndex(tar).classes == ["4", "5"]
    assert len(scans) == 5
    with open(tar, "r+b") as file:
        file.truncate(700)
    assert "expected a whole tar" in refusal_of(ShardIndex, tar)


def test_a_tar_of_the_same_size_that_was_changed_is_scanned_again(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", ("1.jpg", b"photo"), ("1.json", b'{"id": 4}'))
    ShardIndex(tar, label="json:id", write_index=True)
    kept = (tmp_path / "a.index.parquet").read_bytes()
    before = tar.stat()
    write_tar(tar, ("1.jpg", b"photo"), ("1.json", b'{"id": 7}'))
    assert tar.stat().st_size == before.st_size
    os.utime(tar, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))
    assert ShardIndex(tar).classes == ["7"]  # the label that the index was made with, as it is now
    assert (tmp_path / "a.index.parquet").read_bytes() == kept
    assert ShardIndex(tar, write_index=True).classes == ["7"]
    monkeypatch.setattr(discovery, "scan_tar", lambda *given: pytest.fail("scanned again"))
    assert ShardIndex(tar).classes == ["7"]


def test_an_index_that_cannot_be_kept_is_refused_before_the_scan(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", ("1.jpg", b"photo"), ("1.cls", b"1"))
    ShardIndex(tar, write_index=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    monkeypatch.setattr(discovery, "scan_tar", lambda *given: pytest.fail("scanned"))
    assert len(ShardIndex(tar, write_index=True)) == 1  # nothing is to be written
    (tmp_path / "a.index.parquet").unlink()
    said = refusal_of(ShardIndex, tar, write_index=True)
    assert "ShardIndex(write_index=True): expected a folder that may be written, and " in said
    assert said.endswith(" may not; leave it out: the tars are scanned")


# Which tars


@pytest.mark.parametrize("call", [ShardIndex, lambda tars: PKStream(tars, 1, 2, steps=1)])
def test_a_tar_that_is_there_twice_is_refused(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    tar = write_tar(Path("a.tar"), ("1.jpg", b"photo"), ("1.cls", b"1"))
    assert "(" in refusal_of(call, [tar, tar])
    assert "expected each tar once; it is there twice" in refusal_of(call, [tar, tar])
    assert "expected each tar once; it is a.tar too" in refusal_of(call, [tar, tmp_path / "a.tar"])
    Path("link.tar").symlink_to("a.tar")
    assert "expected each tar once; it is a.tar too" in refusal_of(call, [tar, Path("link.tar")])
    assert "expected each tar once; it is a.tar too" in refusal_of(call, ".")
    listed = {"splits": {"train": {"filenames": ["a.tar", "a.tar"]}}}
    Path("info.json").write_text(json.dumps(listed))
    assert "expected each tar once; it is there twice" in refusal_of(call, ".")


@pytest.mark.parametrize("call", [ShardIndex, lambda tars: PKStream(tars, 1, 2, steps=1)])
@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a", "b"], None),
        (["ant-000", "bee-000", "training_set"], "others and train"),
        (["train-000", "train-001"], None),
        (["train-000", "val-000"], "train and val"),
        (["photos_Validation.0", "photos_test.0"], "test and val"),
        (["val-0", "validation-1", "dev2"], None),
        (["trained", "valley"], None),
        (["trainset-0", "valset-0"], None),
        (["cars_test", "planes"], "others and test"),
    ],
)
def test_a_folder_without_info_holds_one_split(tmp_path, call, names, splits):
    for name in names:
        write_tar(tmp_path / f"{name}.tar", (f"{name[:1]}.jpg", b"photo"), (f"{name[:1]}.cls", b"1"))
    if splits is None:
        call(tmp_path)
        return
    said = refusal_of(call, tmp_path)
    assert said.endswith(f"tars of one split, and by their names there are {splits}; pass a list of tars")
    call(sorted(tmp_path.glob("*.tar")))


def test_indexes_that_disagree_are_refused_unless_one_is_asked_for(tmp_path):
    for number in range(3):
        members = [(f"{number}.jpg", b"photo"), (f"{number}.json", b'{"id": 4}'), (f"{number}.cls", b"1")]
        write_tar(tmp_path / f"{number}.tar", *members)
    ShardIndex(tmp_path / "0.tar", label="json:id", write_index=True)
    assert ShardIndex(tmp_path).classes == ["4"]  # those without an index too: never half of each
    ShardIndex(tmp_path / "1.tar", label="cls", write_index=True)
    said = refusal_of(ShardIndex, tmp_path)
    assert "ShardIndex(label=None): expected one that all indexes beside the tars are made with" in said
    assert "and they are with 'cls' and 'json:id'; pass label=" in said
    assert ShardIndex(tmp_path, label="cls").classes == ["1"]
    assert ShardIndex(tmp_path, label=".CLS", write_index=True).classes == ["1"]
    ShardIndex(tmp_path / "2.tar", image="jpg", write_index=True)
    assert "ShardIndex(image=None): expected one that all indexes" in refusal_of(ShardIndex, tmp_path)


def test_tars_of_one_stem_have_an_index_each(tmp_path):
    named = [(f"part.{n}", (f"{n}.jpg", b"photo"), (f"{n}.cls", b"%d" % n)) for n in range(2)]
    tars = [write_tar(tmp_path / name, *members) for name, *members in named]
    for tar in tars:
        ShardIndex(tar, write_index=True)
    names = ["part.0", "part.0.index.parquet", "part.1", "part.1.index.parquet"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert ShardIndex(tars).classes == ["0", "1"]


def test_the_index_of_another_tar_is_refused_and_one_without_a_name_taken(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", ("1.jpg", name.encode()), ("1.cls", name.encode()))
    ShardIndex(tmp_path / "a.tar", write_index=True)
    source, other = tmp_path / "a.index.parquet", tmp_path / "b.index.parquet"
    other.write_bytes(source.read_bytes())
    said = refusal_of(ShardIndex, tmp_path / "b.tar")
    assert "b.index.parquet'): expected the index of b.tar; it is that of a.tar; rename both" in said
    table = pq.read_table(source)
    told = json.loads(table.schema.metadata[b"tercet.shard"])
    for name in ("tar", "contents", "samples", "headers"):
        del told[name]  # as the first indexes were
    os.utime(tmp_path / "b.tar", ns=(told["mtime_ns"], told["mtime_ns"]))
    pq.write_table(table.replace_schema_metadata({"tercet.shard": json.dumps(told)}), other)
    with pytest.warns(UserWarning, match="b.index.parquet' has no checksums, so damage may pass; write the"):
        assert ShardIndex(tmp_path / "b.tar").classes == ["a"]
    ShardIndex(tmp_path / "b.tar", write_index=True)  # writes it again
    assert ShardIndex(tmp_path / "b.tar").classes == ["b"]


def test_notes_of_the_system_are_no_tars(tmp_path):
    write_tar(tmp_path / "a.tar", ("1.jpg", b"1"), ("1.cls", b"1"))
    (tmp_path / "._a.tar").write_bytes(b"note")
    assert len(ShardIndex(tmp_path)) == 1


def test_a_kept_index_of_a_damaged_tar_does_not_hide_the_damage(tmp_path):
    tar = write_tar(tmp_path / "a.tar", *[(f"{n}.{s}", b"1") for n in range(3) for s in ("jpg", "cls")])
    os.truncate(tar, 5 * 1024)
    assert len(ShardIndex(tar, damaged="drop", write_index=True)) == 2
    assert len(ShardIndex(tar, damaged="drop")) == 2
    assert "cut short" in refusal_of(ShardIndex, tar)


def test_progress_is_shown_only_when_asked_for(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", ("1.jpg", b"1"), ("1.cls", b"1"))
    ShardIndex(tar)
    assert capsys.readouterr() == ("", "")
    ShardIndex(tar, progress=True)
    assert "indexing shards" in capsys.readouterr().err
