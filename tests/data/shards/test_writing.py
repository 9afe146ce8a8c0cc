"""Tar shards written from real files: read back by tarfile and webdataset, byte for byte."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.catalog.table import read_catalog
from tercet.data.shards import shard_file, shard_info
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tests.helpers import photos, refusal_of


def sums(folder):
    """SHA-256 of each file by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def members(tar):
    """(name, content) of each member, as tarfile has it."""
    with tarfile.open(tar) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


@pytest.fixture
def catalog(tmp_path):
    return photos(tmp_path / "photos")


# What is written


@pytest.mark.parametrize("layout", ["by_class", "mixed"])
def test_every_image_is_there_as_it_is_with_its_class_and_its_facts(catalog, tmp_path, layout):
    write_shards(tmp_path / "out", catalog, layout=layout, images_per_shard=7)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert len(tars) > 1
    found = dict(pair for tar in tars for pair in members(tar))
    assert len(found) == 3 * len(catalog)
    for row in range(len(catalog)):
        key, path = f"{row:09d}", catalog.paths[row]
        suffix = path.rpartition(".")[2].lower().replace("jpeg", "jpg")
        assert found[f"{key}.{suffix}"] == catalog.file(row).read_bytes()
        assert int(found[f"{key}.cls"]) == catalog.labels[row]
        assert json.loads(found[f"{key}.json"]) == {
            "path": path,
            "label": catalog.labels[row],
            "class": catalog.classes[catalog.labels[row]],
            "parent": catalog.groups["parent"][row],
        }


def test_headers_tell_nothing_of_machine_or_time(catalog, tmp_path):
    write_shards(tmp_path / "out", catalog)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        for info in archive:
            told = (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode, info.pax_headers)
            assert told == (0, 0, 0, "", "", 0o644, {})
    assert (tmp_path / "out" / "train-000000.tar").stat().st_size % 10240 == 0


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_webdataset_reads_the_shards(catalog, tmp_path):
    index = write_shards(tmp_path / "out", catalog, images_per_shard=7)
    seen = {}
    for sample in wds.WebDataset([str(tar) for tar in index.tars], shardshuffle=False):
        (image,) = sample.keys() - {"__key__", "__url__", "__local_path__", "cls", "json"}
        seen[int(sample["__key__"])] = sample[image], int(sample["cls"]), json.loads(sample["json"])["path"]
    gc.collect()
    assert sorted(seen) == list(range(len(catalog)))
    for row, (content, label, path) in seen.items():
        assert (content, label, path) == (
            catalog.file(row).read_bytes(),
            catalog.labels[row],
            catalog.paths[row],
        )


def test_info_json_has_what_timm_reads(catalog, tmp_path):
    write_shards(tmp_path / "out", catalog, images_per_shard=7, split="val")
    split = json.loads((tmp_path / "out" / "info.json").read_text())["splits"]["val"]
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert split == {
        "name": "val",
        "num_samples": len(catalog),
        "filenames": [tar.name for tar in tars],
        "shard_lengths": [len(members(tar)) // 3 for tar in tars],
    }


def test_the_index_is_a_table_that_other_programs_read(catalog, tmp_path):
    write_shards(tmp_path / "out", catalog)
    table = pq.read_table(tmp_path / "out" / "train-000000.index.parquet").to_pylist()
    content = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert {row["path"] for row in table} == set(catalog.paths)
    for row in table:
        start, name = row["offset"], f"{row['key']}.{row['suffix']}"
        assert content[start : start + row["size"]] == (catalog.root / row["path"]).read_bytes()
        assert tarfile.TarInfo.frombuf(content[start - 512 : start], "utf-8", "strict").name == name


# The same bytes


@pytest.mark.parametrize("layout", ["by_class", "mixed"])
def test_same_bytes_with_any_number_of_workers_and_from_another_place(tmp_path, layout):
    first, second = photos(tmp_path / "here"), photos(tmp_path / "there" / "deeper")
    options = {"layout": layout, "images_per_shard": 5, "seed": 3}
    write_shards(tmp_path / "one", first, workers=1, **options)
    write_shards(tmp_path / "three", second, workers=3, **options)
    assert sums(tmp_path / "one") == sums(tmp_path / "three")
    write_shards(tmp_path / "other", first, **{**options, "seed": 4})
    assert sums(tmp_path / "one") != sums(tmp_path / "other")


def test_the_bytes_are_these(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"content")
    index = write_shards(tmp_path / "out", scan_folder(tmp_path))
    content = index.tars[0].read_bytes()
    assert len(content) == 10240
    # What every machine and every version of Python has to give.
    expected = "b64d548b29c80c521ad5b4fff3011614dd7ae1c710841489da93e7ea6dbdc1ff"
    assert hashlib.sha256(content).hexdigest() == expected


def test_global_random_state_is_left_alone(catalog, tmp_path):
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    write_shards(tmp_path / "out", catalog)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# Interruptions


@pytest.mark.parametrize("survived", [0, 1, 2, 3])
def test_an_interrupted_run_goes_on_where_it_ended(catalog, tmp_path, monkeypatch, survived):
    options = {"images_per_shard": 5, "layout": "mixed", "workers": 1}
    write_shards(tmp_path / "whole", catalog, **options)
    real, written = shard_file._add_sample, []

    def failing(file, job, row, content):
        written.append(row)
        if len(written) == 5 * survived + 3:
            raise OSError("no space left on device")
        return real(file, job, row, content)

    monkeypatch.setattr(shard_file, "_add_sample", failing)
    with pytest.raises(OSError, match="no space"):
        write_shards(tmp_path / "out", catalog, **options)
    if survived:
        names = {file.name for file in (tmp_path / "out").iterdir()}
        assert names == {
            f"train-{shard:06d}{suffix}" for shard in range(survived) for suffix in (".tar", ".index.parquet")
        }
        assert "run write_shards again" in refusal_of(ShardIndex, tmp_path / "out")
    else:  # nothing is left behind, not even the folder
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
    for name in (".train-000002.tar.0123456789abcdef.unfinished", ".info.json.0123456789abcdef.unfinished"):
        (tmp_path / "out" / name).write_bytes(b"of a killed run")
    written.clear()
    monkeypatch.setattr(shard_file, "_add_sample", lambda *args: (written.append(args[2]), real(*args))[1])
    write_shards(tmp_path / "out", catalog, **options)
    assert len(written) == len(catalog) - 5 * survived  # the shards that were finished are kept
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")


def test_a_finished_run_is_kept_and_what_is_missing_or_changed_is_written_anew(
    catalog, tmp_path, monkeypatch
):
    write_shards(tmp_path / "out", catalog, images_per_shard=5, layout="mixed")
    before, real, written = sums(tmp_path / "out"), shard_file.write_shard, []
    monkeypatch.setattr(
        "tercet.data.shards.writing.write_shard", lambda *args: (written.append(args[1]), real(*args))[1]
    )

    def again():
        written.clear()
        write_shards(tmp_path / "out", catalog, images_per_shard=5, layout="mixed")
        return sorted(written)

    assert again() == []
    (tmp_path / "out" / "train-000001.tar").unlink()
    with open(tmp_path / "out" / "train-000002.tar", "ab") as tar:
        tar.write(b"more")
    assert again() == [1, 2]
    (tmp_path / "out" / "train-000000.index.parquet").write_bytes(b"PAR1 damaged")
    assert "overwrite=True" in refusal_of(again)  # a tar without a readable index may be anyone's
    (tmp_path / "out" / "train-000000.tar").unlink()
    (tmp_path / "out" / "train-000000.index.parquet").unlink()
    assert again() == [0]
    assert sums(tmp_path / "out") == before
    row = int(members(tmp_path / "out" / "train-000003.tar")[0][0].partition(".")[0])
    catalog.file(row).write_bytes(b"longer than any" * 1000)
    assert again() == [3]
    assert ShardIndex(tmp_path / "out").read([row]) == [catalog.file(row).read_bytes()]


def test_the_old_name_of_the_layout_writes_and_resumes_the_same_shards(catalog, tmp_path):
    out, options = tmp_path / "out", {"images_per_shard": 7, "seed": 2}
    write_shards(out, catalog, **options)
    written = sums(out)
    info = json.loads((out / "info.json").read_text())["tercet"]["train"]
    # The name of the run that version 0.1 gave it: its shards are resumed.
    facts = {"layout": "identity", "k": 4, **options, "split": "train", "format": 1}
    facts["fingerprint"] = catalog.fingerprint
    plan = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert (info["layout"], info["plan"]) == ("by_class", plan)

    (out / "train-000001.tar").unlink()  # as if it had been interrupted
    (out / "info.json").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.warns(DeprecationWarning, match="'identity' is now called 'by_class'"):
        write_shards(out, catalog, layout="identity", **options)
    assert sums(out) == written
    rewritten = {name for name in times if (out / name).stat().st_mtime_ns != times[name]}
    assert rewritten == {"train-000001.index.parquet"}


def test_an_error_in_one_thread_ends_the_others_and_is_the_one_told(catalog, tmp_path, monkeypatch):
    first, real = threading.Event(), shard_file._add_sample

    def failing(file, job, row, content):
        if not first.is_set():
            first.set()
            raise OSError("no space left on device")
        return real(file, job, row, content)

    monkeypatch.setattr(shard_file, "_add_sample", failing)
    with pytest.raises(OSError, match="no space"):
        write_shards(tmp_path / "out", catalog, images_per_shard=2, workers=3)
    assert not [file for file in (tmp_path / "out").glob(".*")]
    assert not (tmp_path / "out" / "info.json").exists()


def test_overwrite_writes_everything_anew(catalog, tmp_path):
    index = write_shards(tmp_path / "out", catalog, images_per_shard=5)
    before = sums(tmp_path / "out")
    tar, place = index.file(3).parent, int(index._offset[3])
    with open(tar, "r+b") as file:
        file.seek(place)
        file.write(bytes([index.read([3])[0][0] ^ 1]))
    assert "write the shards again with overwrite=True or --overwrite" in refusal_of(index.read, [3])
    write_shards(tmp_path / "out", catalog, images_per_shard=5, overwrite=True)
    assert sums(tmp_path / "out") == before
    edited = catalog.file(7).read_bytes()[::-1]
    catalog.file(7).write_bytes(edited)
    index = write_shards(tmp_path / "out", catalog, images_per_shard=5, overwrite=True)
    assert index.read([7]) == [edited]


@pytest.mark.parametrize("other", [{}, {"seed": 1}])
def test_an_overwriting_that_was_interrupted_goes_on_without_overwrite(catalog, tmp_path, monkeypatch, other):
    options = {"images_per_shard": 5, "layout": "mixed", "workers": 1}
    write_shards(tmp_path / "out", catalog, **options)
    write_shards(tmp_path / "out", catalog, split="val")
    edited = catalog.file(7).read_bytes()[::-1]
    catalog.file(7).write_bytes(edited)
    real, written = shard_file._add_sample, []

    def failing(file, job, row, content):
        written.append(row)
        if len(written) == 8:
            raise OSError("no space left on device")
        return real(file, job, row, content)

    monkeypatch.setattr(shard_file, "_add_sample", failing)
    with pytest.raises(OSError, match="no space"):
        write_shards(tmp_path / "out", catalog, **options, **other, overwrite=True)
    assert "one of the splits in" in refusal_of(ShardIndex, tmp_path / "out", split="train")
    assert ShardIndex(tmp_path / "out", split="val").catalog == catalog
    index = write_shards(tmp_path / "out", catalog, **options, **other)
    assert len(written) == len(catalog) + 3  # what the interrupted run finished is kept
    assert index.read([7]) == [edited]


@pytest.mark.parametrize("other", [{}, {"seed": 1}])
@pytest.mark.parametrize("removed", range(10))
def test_an_overwriting_that_was_interrupted_while_it_removes_leaves_no_old_image(
    catalog, tmp_path, monkeypatch, other, removed
):
    options = {"images_per_shard": 5, "layout": "mixed", "workers": 1}
    write_shards(tmp_path / "out", catalog, **options)
    write_shards(tmp_path / "out", catalog, split="val")
    for row in range(len(catalog)):  # all are other images, as large as before
        catalog.file(row).write_bytes(bytes(byte ^ 1 for byte in catalog.file(row).read_bytes()))
    real, gone = Path.unlink, []

    def failing(path, *args, **kwargs):
        if "train" in path.name and not path.name.endswith(".lock"):
            if len(gone) == removed:
                raise KeyboardInterrupt
            gone.append(path.name)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        with pytest.raises(KeyboardInterrupt):
            write_shards(tmp_path / "out", catalog, **options, **other, overwrite=True)
    if 0 < removed < 8:  # after those the split is no longer listed
        assert "run write_shards again" in refusal_of(ShardIndex, tmp_path / "out", split="train")
    index = write_shards(tmp_path / "out", catalog, **options, **other)
    assert index.read(range(len(catalog))) == [catalog.file(row).read_bytes() for row in range(len(catalog))]
    assert len(ShardIndex(tmp_path / "out", split="val")) == len(catalog)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("made", [True, False])
def test_a_full_disk_is_told_with_the_file_and_leaves_no_empty_folder(catalog, tmp_path, monkeypatch, made):
    if made:
        (tmp_path / "out").mkdir()

    def full(file, header, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_file.Digested, "put", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_shards(tmp_path / "out", catalog)
    assert raised.value.filename == str(tmp_path / "out" / "train-000000.tar")
    assert (tmp_path / "out").exists() == made


# Two runs at once


def during(monkeypatch, act):
    """Have `act` run once, in the middle of the next run of write_shards."""
    real, done = shard_file._add_sample, []

    def acting(*given):
        if not done:
            done.append(True)
            act()
        return real(*given)

    monkeypatch.setattr(shard_file, "_add_sample", acting)
    return done


def test_two_splits_may_be_written_at_once(catalog, tmp_path, monkeypatch):
    other = photos(tmp_path / "others", sizes=(3, 2), seed=1)
    done = during(monkeypatch, lambda: write_shards(tmp_path / "out", other, split="val"))
    write_shards(tmp_path / "out", catalog, split="train")
    assert done
    assert ShardIndex(tmp_path / "out", split="train").catalog == catalog
    assert ShardIndex(tmp_path / "out", split="val").catalog == other
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_of_one_split_is_refused_and_the_first_goes_on(
    catalog, tmp_path, monkeypatch, overwrite
):
    said = []

    def second():
        options = {"overwrite": overwrite, "images_per_shard": 5}
        said.append(refusal_of(write_shards, tmp_path / "out", catalog, **options))

    during(monkeypatch, second)
    index = write_shards(tmp_path / "out", catalog, images_per_shard=5)
    assert "in which no other run writes the split 'train'; wait for it to end, or stop it" in said[0]
    assert index.catalog == catalog
    assert not list((tmp_path / "out").glob(".*"))


# Shards of others


def test_shards_of_another_plan_are_refused_or_replaced(catalog, tmp_path):
    write_shards(tmp_path / "out", catalog, images_per_shard=3)
    (tmp_path / "out" / "README").write_text("mine")
    before = sums(tmp_path / "out")
    for options in ({"seed": 1}, {"k": 5}, {"layout": "mixed"}, {"images_per_shard": 100}):
        said = refusal_of(write_shards, tmp_path / "out", catalog, **{"images_per_shard": 3, **options})
        assert "without shards of another catalog or other options" in said
        assert "overwrite=True or --overwrite replaces them" in said
    assert "other options" in refusal_of(write_shards, tmp_path / "out", catalog.select([0, 1]))
    assert sums(tmp_path / "out") == before
    index = write_shards(tmp_path / "out", catalog, images_per_shard=100, overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README",
        "info.json",
        "train-000000.index.parquet",
        "train-000000.tar",
    ]
    assert index.catalog == catalog


def test_a_foreign_tar_or_info_is_not_taken_for_ours(catalog, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"precious")
    assert "train-000000.tar is of others" in refusal_of(write_shards, tmp_path / "out", catalog)
    assert (tmp_path / "out" / "train-000000.tar").read_bytes() == b"precious"
    (tmp_path / "out" / "train-000000.tar").unlink()
    (tmp_path / "out" / "info.json").write_text('{"splits": {"train": {}}}')
    assert "info.json is of others" in refusal_of(write_shards, tmp_path / "out", catalog)
    write_shards(tmp_path / "out", catalog, overwrite=True)
    assert ShardIndex(tmp_path / "out").catalog == catalog


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected splits with their filenames in its info.json; restore it, or move it away ("),
        ("[]", "restore it, or move it away"),
        ('{"description": "mine"}', "restore it, or move it away (KeyError"),
        ('{"splits": {"val": []}}', "restore it, or move it away"),
        ('{"splits": {"train": {"filenames": ["train-0000.tar"]}}}', "it lists train-0000.tar; take another"),
        (None, "restore it, or move it away ("),
    ],
)
def test_an_info_of_something_else_is_refused_and_stays(catalog, tmp_path, overwrite, text, said):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"precious")
    info = tmp_path / "out" / "info.json"
    info.write_text(text) if text else info.mkdir()
    assert said in refusal_of(write_shards, tmp_path / "out", catalog, overwrite=overwrite)
    assert text is None or info.read_text() == text
    assert sorted(file.name for file in info.parent.iterdir()) == ["info.json", "train-000000.tar"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["train-000000.tar", "train-000007.index.parquet"])
def test_a_folder_in_the_place_of_a_shard_is_refused(catalog, tmp_path, overwrite, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    said = refusal_of(write_shards, tmp_path / "out", catalog, overwrite=overwrite)
    assert f"expected a file {name} or none; it is a folder; move it away" in said


def test_an_info_that_cannot_be_read_at_the_end_keeps_the_other_splits(catalog, tmp_path, monkeypatch):
    write_shards(tmp_path / "out", catalog, split="val")
    real, read = shard_info.JsonRecord.read, []

    def failing(*given):
        read.append(given)
        if len(read) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(shard_info.JsonRecord, "read", failing)
        assert "Input/output error" in refusal_of(write_shards, tmp_path / "out", catalog)
    write_shards(tmp_path / "out", catalog)
    assert sorted(json.loads((tmp_path / "out" / "info.json").read_text())["splits"]) == ["train", "val"]


def test_two_splits_share_a_folder(catalog, tmp_path):
    other = photos(tmp_path / "others", sizes=(3, 2), seed=1)
    write_shards(tmp_path / "out", catalog, split="train")
    write_shards(tmp_path / "out", other, split="val")
    assert sorted(json.loads((tmp_path / "out" / "info.json").read_text())["splits"]) == ["train", "val"]
    assert ShardIndex(tmp_path / "out", split="train").catalog == catalog
    assert ShardIndex(tmp_path / "out", split="val").catalog == other
    assert "one of the splits" in refusal_of(ShardIndex, tmp_path / "out")


# Bad input


@pytest.mark.parametrize("fault", ["missing", "empty", "folder", "pipe", "sparse"])
def test_an_unreadable_image_is_refused_before_anything_is_written_or_skipped(catalog, tmp_path, fault):
    bad = catalog.file(4)
    bad.unlink()
    if fault == "empty":
        bad.write_bytes(b"")
    if fault == "folder":
        bad.mkdir()
    if fault == "pipe":
        os.mkfifo(bad)
    if fault == "sparse":
        with open(bad, "wb") as file:
            file.truncate(1 << 40)
    said = refusal_of(write_shards, tmp_path / "out", catalog)
    assert bad.name in said or "..." in said
    assert 'pass unreadable="skip" to leave it out' in said
    assert not (tmp_path / "out").exists()

    index = write_shards(tmp_path / "out", catalog, unreadable="skip", images_per_shard=5)
    kept = [row for row in range(len(catalog)) if row != 4]
    assert [item.path for item in index.catalog.left_out] == [catalog.paths[4]]
    assert index.catalog == catalog.select(kept)
    assert index.read(range(len(index))) == [catalog.file(row).read_bytes() for row in kept]
    info = json.loads((tmp_path / "out" / "info.json").read_text())
    assert info["splits"]["train"]["num_samples"] == len(kept)
    assert info["tercet"]["train"]["left_out"][0][0] == catalog.paths[4]
    if fault != "missing":
        bad.rmdir() if bad.is_dir() else bad.unlink()
    bad.write_bytes(b"restored")
    assert write_shards(tmp_path / "out", catalog, images_per_shard=5).catalog == catalog


def test_a_name_that_no_file_can_have_is_refused_or_skipped(catalog, tmp_path):
    odd = Catalog([*catalog.paths, "a\0b.jpg"], [*catalog.labels, 0], catalog.classes, root=catalog.root)
    said = refusal_of(write_shards, tmp_path / "out", odd)
    assert "expected files that can be read; file cannot be read: embedded null byte" in said
    index = write_shards(tmp_path / "out", odd, unreadable="skip")
    assert [item.path for item in index.catalog.left_out] == ["a\0b.jpg"]
    assert len(index) == len(catalog)


def test_nothing_to_read_at_all_is_refused(tmp_path):
    lost = Catalog(["a/1.jpg"], [0], ["a"], root=tmp_path)
    assert "No such file" in refusal_of(write_shards, tmp_path / "out", lost, unreadable="skip")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "by_clas"}, "did you mean 'by_class'?"),
        ({"layout": "mixed", "k": 4}, "write_shards(k=4): expected no k for layout="),
        ({"k": 0}, "write_shards(k=0): expected a whole number of at least 1"),
        ({"images_per_shard": 0}, "write_shards(images_per_shard=0)"),
        ({"workers": 0}, "write_shards(workers=0)"),
        ({"seed": -1}, "write_shards(seed=-1)"),
        ({"unreadable": "ignore"}, "expected one of 'error', 'skip'"),
        ({"split": "a/b"}, "expected letters, digits and underscores"),
        ({"split": "start"}, "without 'tar'"),
        ({"overwrite": "no"}, "write_shards(overwrite='no'): expected True or False"),
        ({"progress": 1}, "write_shards(progress=1): expected True or False"),
    ],
)
def test_options_out_of_range_are_refused(catalog, tmp_path, options, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(write_shards, tmp_path / "out", catalog, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["a/plain", "a/1.json", "a/1.cls", "a/1.j pg", "a/.hidden"])
def test_a_path_that_makes_no_member_is_refused(tmp_path, path):
    said = refusal_of(write_shards, tmp_path / "out", Catalog([path], [0], ["a"], root=tmp_path))
    assert "expected the name of an image" in said


def test_a_catalog_that_makes_no_shard_is_refused(catalog, tmp_path):
    assert "at least one image" in refusal_of(write_shards, tmp_path / "out", catalog.select([]))
    taken = Catalog(["a/1.jpg"], [0], ["a"], {"class": [1]}, tmp_path)
    assert "rename it" in refusal_of(write_shards, tmp_path / "out", taken)


def test_a_folder_that_cannot_be_made_is_refused(catalog, tmp_path):
    assert "an existing" in refusal_of(write_shards, tmp_path / "no" / "out", catalog)
    (tmp_path / "file").write_text("")
    assert "a folder, not a file" in refusal_of(write_shards, tmp_path / "file", catalog)


@pytest.mark.parametrize("folder", [None, b"out", 3])
def test_a_folder_that_is_no_path_is_refused(catalog, folder, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    said = f"write_shards(folder={folder!r}): expected a path: "
    assert said in refusal_of(write_shards, folder, catalog)


def test_groups_of_any_name_come_back(tmp_path):
    photos(tmp_path / "photos", sizes=(2,))
    lines = [
        f"photos/{path},Ann,{row},s{row}" for row, path in enumerate(scan_folder(tmp_path / "photos").paths)
    ]
    quoted = [f'"{line.rsplit(",", 3)[0]}",' + ",".join(line.rsplit(",", 3)[1:]) for line in lines]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,size,key", *quoted]) + "\n")
    catalog = read_catalog(tmp_path / "t.csv")
    index = write_shards(tmp_path / "out", catalog)
    assert index.catalog == catalog
    assert index.groups["size"].tolist() == [0, 1]
    assert index.groups["size"].dtype == np.int64
    assert index.groups["key"].tolist() == ["s0", "s1"]


def test_groups_keep_their_kind(catalog, tmp_path):
    count = len(catalog)
    groups = {
        "flag": np.arange(count) % 2 == 0,
        "score": np.linspace(0, 1, count),
        "big": np.full(count, 2**64 - 1, dtype=np.uint64),
        "small": np.arange(count, dtype=np.int16),
        "named": np.array([f"s{row}" for row in range(count)]),
    }
    given = Catalog(catalog.paths, catalog.labels, catalog.classes, groups, catalog.root)
    index = write_shards(tmp_path / "out", given)
    assert [index.groups[name].dtype.kind for name in groups] == ["b", "f", "u", "i", "O"]
    assert index.catalog.fingerprint == given.fingerprint
