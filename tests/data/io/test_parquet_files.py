"""Parquet files with checksums: a damaged byte anywhere gives what was written, or an ArrowInvalid."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.data.io import parquet_files
from tercet.data.io.parquet_files import KEY, opened_parquet, parquet_writer

ROWS = random.Random(0).choices([f"class {n}/image {n}.jpg" for n in range(40)], k=500)
TABLE = pa.table({"path": ROWS, "n": range(500)})


def written(target, table=TABLE, **options):
    with parquet_writer(target, table.schema, {"told": "ü" * 40}, **options) as writer:
        writer.write_table(table, row_group_size=200)
    return target


def read(source):
    with opened_parquet(source) as (file, checked):
        return file.read(), file.metadata.metadata[b"told"], checked


def test_what_is_written_is_read_and_by_other_programs_too(tmp_path):
    source = written(tmp_path / "t.parquet")
    table, told, checked = read(source)
    assert table.equals(TABLE)
    assert told.decode() == "ü" * 40
    assert checked
    assert pq.read_table(source, page_checksum_verification=True).equals(TABLE)
    assert pq.read_table(source).to_pandas()["n"].tolist() == list(range(500))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    one, two = written(tmp_path / "1.parquet"), written(tmp_path / "2.parquet")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("flips", [400, pytest.param(4_000, marks=pytest.mark.campaign)])
def test_a_flipped_bit_gives_what_was_written_or_is_noticed(tmp_path, flips):
    source = written(tmp_path / "t.parquet")
    content = source.read_bytes()
    rng = random.Random(flips)
    passed = 0
    # The footer, where page checksums do not reach, is flipped as often as all the rest.
    footer = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    for n in range(flips):
        at = rng.randrange(footer if n % 2 else 0, len(content))
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        source.write_bytes(changed)
        try:
            table, told, checked = read(source)
        except (pa.ArrowException, OSError, KeyError):
            continue
        passed += 1
        assert not checked  # its size or the name of its checksum were flipped
        assert table.equals(TABLE)
        assert told.decode() == "ü" * 40
    assert passed < flips / 8


def test_a_file_cut_anywhere_is_noticed(tmp_path):
    source = written(tmp_path / "t.parquet")
    content = source.read_bytes()
    for end in range(0, len(content), 37):
        source.write_bytes(content[:end])
        with pytest.raises(pa.ArrowInvalid, match="it does not end as a Parquet file does"):
            read(source)


def test_a_file_of_another_program_is_read_as_it_is(tmp_path):
    pq.write_table(TABLE.replace_schema_metadata({"told": "x"}), tmp_path / "t.parquet")
    table, told, checked = read(tmp_path / "t.parquet")
    assert table.equals(TABLE)
    assert (told, checked) == (b"x", False)


def test_a_file_that_another_program_wrote_again_has_no_checksum_of_its_own(tmp_path):
    source = written(tmp_path / "t.parquet")
    table = pq.read_table(source)
    metadata = {b"told": b"x", KEY: pq.read_metadata(source).metadata[KEY.encode()]}
    pq.write_table(table[:300].replace_schema_metadata(metadata), source)
    table, told, checked = read(source)
    assert table.equals(TABLE[:300])
    assert (told, checked) == (b"x", False)


def test_a_file_written_to_while_it_is_read_is_noticed(tmp_path):
    source = written(tmp_path / "t.parquet")
    opened = opened_parquet(source)
    file, _ = opened.__enter__()
    file.read()
    with open(source, "ab") as again:
        again.write(b"x")
    with pytest.raises(pa.ArrowInvalid, match="written to while"):
        opened.__exit__(None, None, None)


def test_a_file_replaced_while_it_is_open_stays_the_old_one(tmp_path):
    source = written(tmp_path / "t.parquet")
    with opened_parquet(source) as (file, _):
        written(tmp_path / "other.parquet", TABLE[:10]).rename(source)
        assert file.read().equals(TABLE)


def test_more_rows_than_the_bytes_can_hold_are_refused_before_they_are_read(tmp_path, monkeypatch):
    table = pa.table({"n": pa.array([0] * 100_000, pa.int8())})
    source = written(tmp_path / "t.parquet", table)
    monkeypatch.setattr(parquet_files, "FREE_ROWS", 1000)
    monkeypatch.setattr(parquet_files, "ROWS_A_BYTE", 0)
    with pytest.raises(pa.ArrowInvalid, match="tells of 100,000 rows"):
        read(source)
    monkeypatch.setattr(parquet_files, "FREE_ROWS", 1 << 24)
    monkeypatch.setattr(parquet_files, "FREE_BYTES", 0)
    monkeypatch.setattr(parquet_files, "TIMES", 0)
    with pytest.raises(pa.ArrowInvalid, match="bytes unpacked"):
        read(source)


def test_no_file_and_no_plain_file(tmp_path):
    for name in ("none.parquet", "."):
        with pytest.raises(OSError, match=r"No such file|Not a plain file"):
            read(tmp_path / name)
