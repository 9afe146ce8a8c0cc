"""Tars, indexes and info.json that are damaged, exchanged or lie: right data or a sentence, within bounds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tercet.data.catalog.scan import scan_folder
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.tar_members import BLOCK, DamagedTar, members, sample_name
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tests.helpers import flip, refusal_of, tar_of_images, write_tar


def pictures(root, pixel=0):
    """A catalog of 24 images, which differ, of 3 classes."""
    for number in range(24):
        file = root / str(number // 8) / f"{number:02}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P5 2 1 255 " + bytes([number, pixel]))
    return scan_folder(root)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A catalog of 24 images of 3 classes, and a folder of its two shards."""
    top = tmp_path_factory.mktemp("packed")
    catalog = pictures(top / "photos")
    write_shards(top / "out", catalog, images_per_shard=12)
    return catalog, top / "out"


@pytest.fixture
def ours(packed, tmp_path):
    return Path(shutil.copytree(packed[1], tmp_path / "copy"))


def streamed(source, **options):
    return list(PKStream(source, 2, 4, **options))


# Tars of other programs: size, time of change, headers


def test_a_foreign_tar_replaced_before_its_first_read_is_refused(tmp_path):
    tar, other = tar_of_images(tmp_path / "a.tar"), tar_of_images(tmp_path / "b.tar", start=1)
    times = tar.stat()
    for write_index in (False, True):
        tar_of_images(tar)
        index = ShardIndex(tar, write_index=write_index)
        other.replace(tar)
        said = refusal_of(index.read, [0])
        assert "expected the time of change that it had when it was " in said
        tar_of_images(tmp_path / "b.tar", start=1)
    index = ShardIndex(tar)
    os.utime(other, ns=(times.st_atime_ns, tar.stat().st_mtime_ns))
    tar_of_images(tmp_path / "c.tar").replace(tar)
    os.utime(tar, ns=(times.st_atime_ns, index._states[0].time))
    said = refusal_of(index.read, [0])
    assert "that it had when it was indexed; another stands there; delete a.index.parquet to index" in said


def test_a_foreign_tar_written_over_in_place_while_it_is_open_is_refused(tmp_path):
    index = ShardIndex(tar_of_images(tmp_path / "a.tar"))
    before = index.read([0])
    flip(tmp_path / "a.tar", int(index._offset[0]))
    assert "expected the time of change that it had, but it was written since" in refusal_of(index.read, [0])
    assert ShardIndex(tmp_path / "a.tar").read([0]) != before


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_foreign_tar_replaced_before_it_is_streamed_is_refused(tmp_path, steps, indexed):
    tar = tar_of_images(tmp_path / "a.tar")
    ShardIndex(tar, write_index=indexed)
    stream, told = PKStream(tar, 2, 4, steps=steps), []
    going_on = PKStream(tar, 2, 4, steps=steps, handler=lambda error: told.append(str(error)) or True)
    tar_of_images(tmp_path / "b.tar", start=1).replace(tar)
    said = refusal_of(list, stream)
    assert "a.tar'): expected the time of change that it had when it was " in said
    assert list(going_on)
    assert told[0] == said


@pytest.mark.parametrize("indexed", [False, True])
def test_a_changed_class_of_a_foreign_tar_is_told_at_the_end_of_the_shard(tmp_path, indexed):
    tar = tar_of_images(tmp_path / "a.tar")
    ShardIndex(tar, write_index=indexed)
    time, whole = tar.stat().st_mtime_ns, tar.read_bytes()
    with tarfile.open(tar) as archive:
        places = [member.offset_data for member in archive if member.name.endswith(".cls")]
    for place in places:
        tar.write_bytes(whole)
        os.utime(tar, ns=(time, time))
        stream = PKStream(tar, 2, 4, steps=3 if indexed else None)
        flip(tar, place)
        os.utime(tar, ns=(time, time))
        said = refusal_of(list, stream)
        assert said.endswith("index or a scan has, and others came; it is damaged; restore it")


# Shards of write_shards: digests


def test_info_json_has_the_sha256_of_each_shard(ours):
    info = json.loads((ours / "info.json").read_text())
    found = [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in sorted(ours.glob("*.tar"))]
    assert info["tercet"]["train"]["sha256"] == found


@pytest.mark.parametrize("steps", [None, 6])
def test_a_changed_byte_anywhere_in_our_shard_is_told_by_the_stream_and_by_verify(ours, steps):
    tar = ours / "train-000000.tar"
    whole, draw = tar.read_bytes(), random.Random(0)
    with tarfile.open(tar) as archive:
        found = list(archive)
    contents = [member.offset_data + member.size - 1 for member in found]  # of images, classes and JSON
    headers = [member.offset + draw.randrange(BLOCK) for member in found]
    for place in draw.sample(contents, 20) + draw.sample(headers, 10):
        tar.write_bytes(whole)
        flip(tar, place)
        said = refusal_of(streamed, ours, steps=steps)
        words = ("checksum differs", "damaged", "another stands there", "half a sample", "whole number")
        assert any(word in said for word in words), said
        assert "train-000000.tar" in refusal_of(ShardIndex, ours, verify=True)
    tar.write_bytes(whole)
    assert len(ShardIndex(ours, verify=True)) == 24


def test_shards_exchanged_for_others_as_large_are_refused(ours, tmp_path):
    write_shards(tmp_path / "other", pictures(tmp_path / "photos", pixel=1), images_per_shard=12)
    name = "train-000000.tar"
    assert (tmp_path / "other" / name).stat().st_size == (ours / name).stat().st_size
    shutil.copy(tmp_path / "other" / name, ours)
    index = ShardIndex(ours)  # sizes and headers are the same
    assert "its content is another" in refusal_of(index.read, range(24))
    assert "checksum differs" in refusal_of(streamed, ours)
    shutil.copy(tmp_path / "other" / "train-000000.index.parquet", ours)  # and the index with it
    for call in (ShardIndex, streamed):
        said = refusal_of(call, ours)
        assert (
            f"'{name}'): expected the shard that info.json tells of, by its SHA-256; it was exchanged" in said
        )


def test_the_command_verifies_shards(ours, tercet):
    assert tercet("index-shards", ours, "--verify")[0] == 0
    flip(ours / "train-000001.tar", (ours / "train-000001.tar").stat().st_size - 1)
    assert tercet("index-shards", ours)[0] == 0
    code, _, said = tercet("index-shards", ours, "--verify")
    assert code == 1
    assert "expected the bytes that write_shards wrote, by their SHA-256; it has changed" in said


def test_shards_of_version_01_are_read_with_a_warning_and_written_again(ours, packed):
    for source in ours.glob("*.index.parquet"):
        table = pq.read_table(source)
        told = json.loads(table.schema.metadata[b"tercet.shard"])
        for name in ("sha256", "members", "headers", "samples"):
            del told[name]
        pq.write_table(table.replace_schema_metadata({"tercet.shard": json.dumps(told)}), source)
    info = json.loads((ours / "info.json").read_text())
    for name in ("sha256", "filenames", "crc32"):
        del info["tercet"]["train"][name]
    (ours / "info.json").write_text(json.dumps(info))
    for call in (ShardIndex, streamed):
        with pytest.warns(
            UserWarning, match=r"index.parquet' and 1 more have no checksums, so damage may pass"
        ):
            call(ours)
    assert "(verify=True): expected shards with digests" in refusal_of(ShardIndex, ours, verify=True)
    write_shards(ours, packed[0], images_per_shard=12)
    assert len(ShardIndex(ours, verify=True)) == 24


# Indexes and info.json


def damaged_copies(file, count, seed):
    """The content of a file with one bit flipped, or cut, so many times."""
    draw, whole = random.Random(seed), file.read_bytes()
    for number in range(count):
        content = bytearray(whole)
        if number % 5:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        yield bytes(content)


@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", ["train-000000.index.parquet", "info.json"])
def test_a_damaged_index_or_info_gives_the_right_rows_or_a_sentence(ours, name, count):
    def found(index):
        return index.labels.tolist(), index.paths.tolist(), index.classes, index.read(range(len(index)))

    right = found(ShardIndex(ours))
    refused = 0
    for content in damaged_copies(ours / name, count, seed=count):
        (ours / name).write_bytes(content)
        try:
            said, given = "", found(ShardIndex(ours))
        except ValueError as error:
            said, given = str(error), right
            refused += 1
        assert given == right
        assert not said or said.startswith(("ShardIndex(tars=", "ShardIndex(index=", "ShardIndex(split="))
    assert refused > count * 0.7


@pytest.mark.parametrize(
    "facts",
    [
        *[
            {"headers": 5},
            {"headers": [[1, "a"]]},
            {"headers": [[-5, 1]]},
            {"left_out": 3},
            {"left_out": [1]},
        ],
        *[{"tar_size": "x"}, {"tar_size": -1}, {"format": 2}, {"plan": 3}, {"mtime_ns": "x"}, {"label": [1]}],
        *[{"image": 3}, {"contents": "x"}, {"samples": 7}, {"tar": 5}, {"sha256": 5}, {"members": -1}],
    ],
)
def test_an_index_with_odd_facts_is_refused(tmp_path, facts):
    tar = tar_of_images(tmp_path / "a.tar")
    ShardIndex(tar, write_index=True)
    source = tmp_path / "a.index.parquet"
    table = pq.read_table(source)
    told = json.loads(table.schema.metadata[b"tercet.shard"]) | facts
    if "samples" not in facts:
        del told["samples"]  # as in version 0.1, which had no checksums
    pq.write_table(table.replace_schema_metadata({"tercet.shard": json.dumps(told)}), source)
    for call in (ShardIndex, streamed):
        assert "a.index.parquet'): expected " in refusal_of(call, tar)


@pytest.mark.parametrize(
    "text",
    [
        *[
            "[" * 100_000,
            '{"splits":' * 50_000,
            "9" * 5000,
            "\\xff",
            '{"a": NaN}',
            '{"splits": {"train": 3}}',
        ],
        '{"splits": {"train": {"filenames": ["a.tar"]}}, "tercet": 3}',
        '{"splits": {"train": {"filenames": {"a": 1}}}}',
        '{"splits": {"a": {"filenames": []}}, "tercet": {"a": {"plan": 5, "classes": []}}}',
    ],
)
def test_an_odd_info_json_is_refused(tmp_path, text):
    tar_of_images(tmp_path / "a.tar")
    (tmp_path / "info.json").write_bytes(text.encode("latin-1"))
    for call in (ShardIndex, streamed):
        said = refusal_of(call, tmp_path)
        assert "info.json'): expected splits with their filenames; pass a list of tars to do without" in said


# Headers that lie


def header(name, size, kind=b"0"):
    """512 bytes with a right sum, and whatever size."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = name[:100].ljust(100, b"\0") + b"0000644\0" * 3 + field + b"%011o\0" % 0
    block += b" " * 8 + kind + bytes(100) + b"ustar\00000"
    block = bytearray(block.ljust(BLOCK, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % BLOCK)


def based(number):
    return b"\x80" + number.to_bytes(11, "big")


END = bytes(2 * BLOCK)
IMAGE = header(b"1.pgm", 13) + padded(b"P5 2 1 255 ab")
CLASS = header(b"1.cls", 1) + padded(b"0")
NINES = b"9" * 5002
DEEP = b"a/" * 60_000 + b"1.pgm"
LIES = {
    "a long name of 60,000 folders": header(b"@", len(DEEP), b"L") + padded(DEEP) + IMAGE,
    "a long name of 2⁴⁰ bytes": header(b"@", based(1 << 40), b"L") + IMAGE,
    "a long name of 2⁶³ bytes": header(b"@", based(1 << 63), b"L") + IMAGE,
    "a pax header of 2⁴⁰ bytes": header(b"@", based(1 << 40), b"x") + IMAGE,
    "a pax header of 2⁶³ bytes": header(b"@", based(1 << 63), b"x") + IMAGE,
    "a pax header for all of 2⁶³ bytes": header(b"@", based(1 << 63), b"g") + IMAGE,
    "a pax size of 5,000 digits": header(b"@", 5013, b"x")
    + padded(b"5013 size=" + b"9" * 5002 + b"\n")
    + IMAGE,
    "a pax record longer than the header": header(b"@", 12, b"x") + padded(b"99 path=abc\n") + IMAGE,
    "a pax record without a length": header(b"@", 12, b"x") + padded(b"path=abcdef\n") + IMAGE,
    "a size below 0": header(b"1.pgm", b"\xff" * 12) + END,
    "a size that is no number": header(b"1.pgm", b"0000000zzzz\0") + END,
    "a member larger than the file": header(b"1.pgm", 1 << 30) + END,
    "a member of 2⁶³ bytes": header(b"1.pgm", based(1 << 63)) + END,
    "a member of 2⁸⁸ bytes": header(b"1.pgm", based((1 << 88) - 1)) + END,
    "a header without a member": IMAGE
    + header(b"1.cls", 1)
    + padded(b"0")
    + header(b"@", 6, b"L")
    + padded(b"1.cls\0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_at_once(tmp_path, lie):
    first = header(b"0.pgm", 13) + padded(b"P5 2 1 255 ab") + header(b"0.cls", 1) + padded(b"0")
    (tmp_path / "a.tar").write_bytes(first + LIES[lie] + END)
    for call, options in ((ShardIndex, {}), (streamed, {"steps": 1}), (streamed, {})):
        said = refusal_of(call, tmp_path / "a.tar", **options)
        assert "a.tar'): expected a whole tar, and the tar is cut short or damaged here" in said


@pytest.mark.parametrize(
    ("label", "suffix", "content"),
    [
        ("json:id", "json", b"[" * 100_000),
        ("json:id", "json", b'{"id":' * 100_000),
        ("json:id", "json", b'{"id": %s}' % (b"9" * 5000)),
        ("json:id", "json", b'{"id": "%s"}' % (b"9" * 5000)),
        ("cls", "cls", b"9" * 5000),
        ("cls", "cls", b"x" * 5000),
        ("cls", "cls", b"\xff\xfe"),
    ],
)
def test_a_label_without_bounds_is_refused(tmp_path, label, suffix, content):
    parts = [
        (f"{n}.{end}", one) for n in range(8) for end, one in (("pgm", b"P5 2 1 255 ab"), (suffix, content))
    ]
    tar = write_tar(tmp_path / "a.tar", *parts)
    for call, options in ((ShardIndex, {}), (streamed, {"steps": 1}), (streamed, {})):
        assert "expected a whole number or a name " in refusal_of(call, tar, label=label, **options)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
@pytest.mark.parametrize("call", [ShardIndex, lambda tars: PKStream(tars, 2, 4, steps=1)])
def test_a_pipe_a_device_or_a_folder_is_no_tar(tmp_path, make, call):
    make(tmp_path / "a.tar")
    for tars in (tmp_path, [tmp_path / "a.tar"], str(tmp_path / "a.tar")):
        assert "expected a" in refusal_of(call, tars)


def test_a_tar_that_becomes_a_pipe_before_it_is_read_is_refused(tmp_path):
    tar = tar_of_images(tmp_path / "a.tar")
    index, stream = ShardIndex(tar), PKStream(tar, 2, 4)
    tar.unlink()
    os.mkfifo(tar)
    for call, argument in ((index.read, [0]), (list, stream)):
        assert "a.tar'): expected a tar " in refusal_of(call, argument)


def test_members_behind_the_end_are_told(tmp_path):
    tar = tar_of_images(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(tar.read_bytes() * 2)
    for call, options in ((ShardIndex, {}), (streamed, {"steps": 1})):
        said = refusal_of(call, tmp_path / "b.tar", **options)
        assert "more follows behind its end" in said


# The reader of headers itself


def read(content):
    return [(one.name, one.kind, one.offset, one.size) for one in members(lambda at, n: content[at : at + n])]


def as_tarfile(content):
    found = []
    for info in tarfile.TarFile(fileobj=io.BytesIO(content)):
        kind = "plain" if info.isreg() and not info.issparse() else "folder" if info.isdir() else "other"
        found.append((info.name, kind, info.offset_data, 0 if kind == "folder" else info.size))
    return found


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(format, count):
    draw = random.Random(format)
    for _ in range(count):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            for _ in range(draw.randrange(6)):
                longest = 60 if format == tarfile.USTAR_FORMAT else 400
                name = "".join(draw.choices("ab.é x/", k=draw.randrange(1, longest))).strip("/ ") or "q"
                info = tarfile.TarInfo(name)
                info.type = draw.choice([b"0", b"0", b"0", b"5", b"2", b"1", b"6", b"7"])
                info.linkname = "y" * draw.randrange(1, 90) if info.type in b"12" else ""
                content = draw.randbytes(draw.randrange(1500)) if info.isreg() else b""
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        assert read(file.getvalue()) == as_tarfile(file.getvalue())
        broken = bytearray(file.getvalue())
        if any(broken):
            broken[draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
            with suppress(DamagedTar):  # or what ends a number became another end
                assert read(bytes(broken)) == read(file.getvalue())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[("a.jpg", ("a", "jpg")), ("b.c/a.seg.png", ("b.c/a", "seg.png")), ("a", None), ("a.b/c", None)],
        *[
            (".jpg", None),
            ("a/.jpg", ("a/", "jpg")),
            ("a.b/.jpg", None),
            ("a.", ("a", "")),
            ("é/ü.x", ("é/ü", "x")),
        ],
        ("x" * 9 + "/" * 60_000 + "a.jpg", ("x" * 9 + "/" * 60_000 + "a", "jpg")),
    ],
)
def test_a_name_is_split_as_webdataset_does(name, expected):
    from webdataset.tariterators import base_plus_ext

    assert sample_name(name) == expected
    if len(name) < 100:  # its regular expression takes the square of the length
        assert base_plus_ext(name) == (expected or (None, None))


def test_a_chain_of_pax_headers_is_read_in_a_time_that_grows_with_its_length():
    """Each had all records of those before it: 9 MB took a minute."""
    parts = []
    for number in range(300):
        header = tarfile.TarInfo("pax")
        content = b"".join(b"20 k%05d.%05d=vvv\n" % (number, n) for n in range(1500))
        header.type, header.size = tarfile.XHDTYPE, len(content)
        parts.append(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK))
    data = b"".join(parts)
    before = time.process_time()
    with pytest.raises(DamagedTar, match="without a header"):
        list(members(lambda at, length: data[at : at + length], len(data)))
    assert time.process_time() - before < 10
