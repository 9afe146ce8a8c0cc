"""Columns held in memory and stored in a file: the same values at any rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tercet.core.checks import border
from tercet.data.io.positional import PositionalFile
from tercet.data.manifests import columns
from tercet.data.manifests.columns import InMemoryColumns, OnDiskColumns, block_count, block_sums

TYPES = [np.dtype(np.int32), np.dtype(np.int32), np.dtype(np.int8)]


def opened(path):
    with border("read_manifest", "path"):
        return PositionalFile(path, "a file to read")


def stored(path, values, counts, limits=(1 << 31,) * 3, sums=None):
    """`values` [c, n] written in parts, each column at a multiple of 8 bytes with something before it."""
    content, starts = b"", []
    for part in np.split(values, np.cumsum(counts)[:-1], axis=1):
        starts.append([])
        for column, kind in zip(part, TYPES, strict=True):
            content += b"\xff" * (8 + -len(content) % 8)
            starts[-1].append(len(content))
            content += column.astype(kind).tobytes()
    path.write_bytes(content)
    return OnDiskColumns(opened(path), np.array(starts), np.array(counts), TYPES, limits, sums)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_rows_in_any_order_however_much_is_read_at_once(tmp_path_factory, data):
    counts = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    total = sum(counts)
    assume(total)
    values = np.random.default_rng(total).integers(0, 128, (3, total))
    rows = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=50)), dtype=np.int64)
    one = stored(tmp_path_factory.mktemp("columns") / "c", values, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "AT_ONCE", data.draw(st.sampled_from([1, 7, 1 << 16])))
        patch.setattr(columns, "GAP", data.draw(st.sampled_from([0, 4, 512])))
        found = one.take(rows)
    assert found.dtype == np.int64
    first, stop = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    assert one.take(np.arange(first, stop)).tolist() == values[:, first:stop].tolist()
    assert found.tolist() == values[:, rows].tolist()
    assert InMemoryColumns(list(values)).take(rows).tolist() == found.tolist()
    assert len(one) == len(InMemoryColumns(list(values))) == total


def test_neighbours_are_read_at_once_and_far_values_alone(tmp_path, monkeypatch):
    values = np.arange(30_000).reshape(3, 10_000) % 100
    one = stored(tmp_path / "c", values, [10_000])
    reads = []
    gather = PositionalFile.gather
    monkeypatch.setattr(
        PositionalFile, "gather", lambda self, some: reads.append(list(some)) or gather(self, some)
    )
    assert one.take(np.arange(2000, 3000)).tolist() == values[:, 2000:3000].tolist()
    assert [[length for _, length in some] for some in reads] == [[4000], [4000], [1000]]
    reads.clear()
    one.take(np.array([9000, 5, 7, 5]))
    assert [[length for _, length in some] for some in reads] == [[12, 4], [12, 4], [3, 1]]


def test_what_is_read_is_announced_before(tmp_path, monkeypatch):
    one = stored(tmp_path / "c", np.zeros((3, 10_000), dtype=int), [10_000])
    calls = []
    monkeypatch.setattr(PositionalFile, "prefetch", lambda self, some: calls.extend(some))
    gather = PositionalFile.gather
    monkeypatch.setattr(
        PositionalFile, "gather", lambda self, some: calls.append("read") or gather(self, some)
    )
    one.take(np.array([9000, 5]))
    assert len(calls) == 9
    assert calls[6:] == ["read"] * 3


def test_a_file_that_is_replaced_stays_the_old_one(tmp_path):
    values = np.arange(30).reshape(3, 10)
    one = stored(tmp_path / "c", values, [10])
    (tmp_path / "other").write_bytes(bytes(1000))
    os.replace(tmp_path / "other", tmp_path / "c")
    assert one.take(np.array([3])).T.tolist() == [[3, 13, 23]]


def test_a_file_cut_short_is_noticed(tmp_path):
    one = stored(tmp_path / "c", np.zeros((3, 10), dtype=int), [10])
    os.truncate(tmp_path / "c", 60)
    with pytest.raises(
        ValueError, match=r"expected the file as it was; it was cut short since it was opened"
    ):
        one.take(np.array([9]))


@pytest.mark.parametrize("change", ["content", "length"])
def test_a_file_written_to_in_its_place_is_noticed(tmp_path, change):
    one = stored(tmp_path / "c", np.zeros((3, 10), dtype=int), [10])
    assert one.take(np.array([9])).T.tolist() == [[0, 0, 0]]
    told = os.stat(tmp_path / "c")
    with open(tmp_path / "c", "r+b") as file:
        file.seek(0, os.SEEK_SET if change == "content" else os.SEEK_END)
        file.write(bytes(8))
    os.utime(tmp_path / "c", ns=(0, told.st_mtime_ns + (change == "content")))
    said = r"expected the file as it was; it was written to since it was opened; read it anew"
    with pytest.raises(ValueError, match=said):
        one.take(np.array([9]))


@pytest.mark.parametrize(("column", "value"), [(0, 7), (1, -1), (2, 2)])
def test_a_value_out_of_range_is_noticed(tmp_path, column, value):
    values = np.ones((3, 10), dtype=int)
    values[column, 4] = value
    one = stored(tmp_path / "c", values, [3, 7], limits=(7, 7, 2))
    assert one.take(np.array([3, 5])).tolist() == [[1, 1]] * 3
    said = rf"c'\): expected whole numbers below \d, and row 4 holds {value}; it is damaged; write it again"
    with pytest.raises(ValueError, match=said):
        one.take(np.array([5, 4]))


def sums_of(values, counts):
    parts = np.split(values, np.cumsum(counts)[:-1], axis=1)
    columns_of_parts = [(column, kind) for part in parts for column, kind in zip(part, TYPES, strict=True)]
    sums = [block_sums(column.astype(kind)) for column, kind in columns_of_parts]
    for one, (column, kind) in zip(sums, columns_of_parts, strict=True):
        assert len(one) == block_count(len(column), kind)
    return np.array([crc for one in sums for crc in one], dtype=np.uint32)


COUNTS = [5_000, 1, 9_000, 4_096]
VALUES = np.random.default_rng(0).integers(0, 100, (3, sum(COUNTS)))


def test_a_flipped_bit_is_noticed_at_the_rows_of_its_block_and_only_there(tmp_path):
    source = tmp_path / "c"
    stored(source, VALUES, COUNTS)
    content, sums, seen = source.read_bytes(), sums_of(VALUES, COUNTS), 0
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(content), 60).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        source.write_bytes(changed)
        one, wrong = OnDiskColumns(opened(source), *layout(source), TYPES, (1 << 31,) * 3, sums), 0
        for row in range(0, VALUES.shape[1], 501):
            try:
                assert one.take(np.array([row])).T.tolist() == VALUES[:, [row]].T.tolist()
            except ValueError as error:
                wrong += 1
                seen += "expected values that fit their checksums; bytes" in str(error)
        assert wrong <= 33  # the most rows asked for that a block of one byte each has
    assert seen > 60


def layout(path):
    one = stored(path.with_name("other"), VALUES, COUNTS)
    return one._starts, np.array(COUNTS)


def test_a_column_in_the_place_of_another_is_noticed(tmp_path):
    stored(tmp_path / "c", VALUES, COUNTS)
    starts, counts = layout(tmp_path / "c")
    starts[:, [0, 1]] = starts[:, [1, 0]]
    sums = sums_of(VALUES, COUNTS)
    one = OnDiskColumns(opened(tmp_path / "c"), starts, counts, TYPES, (1 << 31,) * 3, sums)
    with pytest.raises(ValueError, match="expected values that fit their checksums"):
        one.take(np.array([0]))


def test_a_block_is_compared_once(tmp_path, monkeypatch):
    one = stored(tmp_path / "c", VALUES, COUNTS, sums=sums_of(VALUES, COUNTS))
    reads = []
    pread = PositionalFile.pread
    monkeypatch.setattr(
        PositionalFile, "pread", lambda self, *some: reads.append(some[1]) or pread(self, *some)
    )
    for rows in ([0, 1], [4_000], [4_999]):
        one.take(np.array(rows))
    assert reads == [16384, 16384, 5000, 3616, 3616]
    reads.clear()
    assert one.take(np.arange(5_000)).tolist() == VALUES[:, :5_000].tolist()
    assert reads == []


def test_no_such_file():
    with pytest.raises(
        ValueError, match=r"read_manifest\(path='gone'\): expected a file to read; No such file"
    ):
        opened(Path("gone"))
