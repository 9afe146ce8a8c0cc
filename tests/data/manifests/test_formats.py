"""Triplets of paths in five formats: exact lines, and read back by other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tercet.data.manifests import formats
from tercet.data.manifests.arrow_layout import open_arrow
from tercet.data.manifests.formats import BLOCK, FORMATS, read_paths, write_paths

COLUMNS = formats.COLUMNS["triplets"]
NASTY = ["IMG_1.JPG", "x y.jpg", "é.png", "e\u0301.png", "a,b", 'q"q', '"', '""', "l\nf", "c\rr", "cr\r\nlf"]
NASTY += [" lead", "trail ", "NA", "null", "nan", "", "#", "'", "\\", "\\n", "1", "01", "true", "日本", "😀"]
NASTY += ["\ufeffmark", "\x1c", "\x85", "\u2028", "%s", "{}", "\t", "/abs", "x" * 5000]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
some_paths = st.lists(texts | st.sampled_from(NASTY), min_size=1, max_size=12, unique=True)


def blocks(rows, size):
    return [rows[:, a : a + size] for a in range(0, rows.shape[1], size)]


def write(folder, suffix, paths, rows, size=BLOCK, metadata=None):
    target = folder / f"t{suffix}"
    write_paths(target, suffix, blocks(np.array(rows, dtype=np.int32), size), paths, metadata or {})
    return target


def read(target):
    """[t, 3] paths."""
    kind, paths, rows, _ = read_paths(target, target.suffix, "triplets")
    assert kind == "triplets"
    assert rows.dtype == np.int32
    return paths[rows].T.tolist()


def cyclic(paths):
    """[3, n] rows in which every path is once an anchor, a positive and a negative."""
    return np.stack([np.roll(np.arange(len(paths)), shift) for shift in range(3)])


def named(paths, rows):
    """[t, 3] paths by a plain loop."""
    return [[paths[row] for row in triplet] for triplet in zip(*np.array(rows).tolist(), strict=True)]


@pytest.mark.parametrize("suffix", FORMATS)
@settings(deadline=None, max_examples=30)
@given(paths=some_paths, data=st.data())
@example(paths=NASTY, data=None)
def test_what_is_written_is_read(tmp_path_factory, suffix, paths, data):
    rows, size = cyclic(paths), 4
    if data:
        number = st.integers(0, len(paths) - 1)
        drawn = data.draw(st.lists(st.tuples(number, number, number), max_size=10))
        rows, size = np.array(drawn, dtype=np.int32).reshape(-1, 3).T, data.draw(st.integers(1, 11))
    target = write(tmp_path_factory.mktemp("t"), suffix, paths, rows, size)
    assert read(target) == named(paths, rows)


ROWS = [[0, 1, 0], [1, 0, 1], [2, 2, 3]]
PATHS = ["a/1.png", 'a/2,"x".png', "b/é.png", "l\nf"]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (
            ".txt",
            'a/1.png,"a/2,""x"".png",b/é.png\n"a/2,""x"".png",a/1.png,b/é.png\n'
            'a/1.png,"a/2,""x"".png","l\nf"\n',
        ),
        (
            ".csv",
            'anchor,positive,negative\na/1.png,"a/2,""x"".png",b/é.png\n'
            '"a/2,""x"".png",a/1.png,b/é.png\na/1.png,"a/2,""x"".png","l\nf"\n',
        ),
        (
            ".jsonl",
            r'{"anchor": "a/1.png", "positive": "a/2,\"x\".png", "negative": "b/é.png"}'
            "\n"
            r'{"anchor": "a/2,\"x\".png", "positive": "a/1.png", "negative": "b/é.png"}'
            "\n"
            r'{"anchor": "a/1.png", "positive": "a/2,\"x\".png", "negative": "l\nf"}'
            "\n",
        ),
    ],
)
def test_the_lines_of_the_text_formats(tmp_path, suffix, text):
    assert write(tmp_path, suffix, PATHS, ROWS, size=2).read_bytes().decode() == text


def test_python_reads_the_text_formats(tmp_path):
    rows = cyclic(NASTY)
    with open(write(tmp_path, ".txt", NASTY, rows), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == named(NASTY, rows)
    with open(write(tmp_path, ".csv", NASTY, rows), newline="", encoding="utf-8") as file:
        assert [list(line.values()) for line in csv.DictReader(file)] == named(NASTY, rows)
    lines = write(tmp_path, ".jsonl", NASTY, rows).read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert [list(json.loads(line).values()) for line in lines] == named(NASTY, rows)
    assert all(list(json.loads(line)) == list(COLUMNS) for line in lines)


@pytest.mark.parametrize("size", [3, BLOCK])
def test_pandas_reads_parquet_as_plain_strings(tmp_path, size):
    rows = cyclic(NASTY)
    target = write(tmp_path, ".parquet", NASTY, rows, size)
    frame = pd.read_parquet(target)
    assert list(frame.columns) == list(COLUMNS)
    assert frame.to_numpy().tolist() == named(NASTY, rows)
    assert all(isinstance(kind, pd.StringDtype) for kind in frame.dtypes)
    assert pq.read_schema(target).types == [pa.string()] * 3


def test_parquet_is_dictionary_encoded_in_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK", 500)
    paths = [f"{'x' * 200}/{number}" for number in range(20_000)]  # 4 MB: above the usual limit
    rows = np.random.default_rng(0).integers(0, len(paths), (3, 1_200))
    target = write(tmp_path, ".parquet", paths, rows, size=500)
    told = pq.ParquetFile(target).metadata
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    assert [group.num_rows for group in groups] == [500, 500, 200]
    for group in groups:
        for number in range(3):
            column = group.column(number)
            assert column.physical_type == "BYTE_ARRAY"
            assert column.compression == "ZSTD"
            assert column.has_dictionary_page
            assert set(column.encodings) <= {"PLAIN", "RLE", "RLE_DICTIONARY"}
    assert read(target) == named(paths, rows)


def test_a_large_dictionary_stays_a_dictionary(tmp_path):
    paths = [f"{'x' * 200}/{number}" for number in range(20_000)]  # 4 MB: four times the usual limit
    rows = np.stack([np.random.default_rng(0).permutation(20_000) for _ in range(3)]).repeat(3, axis=1)
    plain = sum(len(paths[row]) for row in rows[0])
    column = pq.ParquetFile(write(tmp_path, ".parquet", paths, rows)).metadata.row_group(0).column(0)
    assert column.total_uncompressed_size < 0.5 * plain


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_metadata_travels_inside(tmp_path, suffix):
    metadata = {"tercet": '{"é": 1}', "other": "x" * 100_000}
    target = write(tmp_path, suffix, PATHS, ROWS, 2, metadata)
    assert read_paths(target, suffix)[3].items() >= metadata.items()


def test_arrow_is_found_and_not_loaded(tmp_path):
    paths = [f"a/{number}" for number in range(1000)]
    rows = np.random.default_rng(0).integers(0, 1000, (3, 500_000), dtype=np.int32)
    target = write(tmp_path, ".arrow", paths, rows, 200_000, {"key": "1"})
    before = pa.total_allocated_bytes()
    found, metadata, checked = open_arrow(target, "key")
    assert checked
    assert pa.total_allocated_bytes() - before < 100_000
    assert metadata == {"key": "1"}
    assert len(found) == 500_000
    np.testing.assert_array_equal(found.take(np.arange(500_000)), rows)
    if Path("/proc/self/maps").exists():  # what is mapped counts as memory as soon as it is read
        assert str(target) not in Path("/proc/self/maps").read_text()


def test_a_compressed_arrow_file_is_read_whole(tmp_path):
    target = write(tmp_path, ".arrow", PATHS, ROWS, metadata={"key": ""})
    table = pa.ipc.open_file(pa.OSFile(str(target))).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(tmp_path / "z.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    assert open_arrow(target, "key") is not None
    assert open_arrow(tmp_path / "z.arrow", "key") is None
    _, paths, rows, metadata = read_paths(tmp_path / "z.arrow", ".arrow")
    assert paths[rows].tolist() == np.array(PATHS, dtype=object)[ROWS].tolist()
    assert metadata.keys() >= {"key"}


def test_arrow_of_others_is_not_taken_for_ours(tmp_path):
    target = write(tmp_path, ".arrow", PATHS, ROWS, metadata={"other": ""})
    with pytest.raises(pa.ArrowInvalid, match="headers are damaged"):
        open_arrow(target, "key")
    table = pa.table({name: ["a"] for name in COLUMNS}).replace_schema_metadata({"key": ""})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert open_arrow(tmp_path / "t.arrow", "key") is None


def test_arrow_is_read_by_others(tmp_path):
    target = write(tmp_path, ".arrow", NASTY, cyclic(NASTY), size=7)
    with pa.memory_map(str(target)) as source:
        frame = pa.ipc.open_file(source).read_all().to_pandas()
    assert frame.to_numpy().tolist() == named(NASTY, cyclic(NASTY))


# Files of other programs

FRAME = pd.DataFrame(
    {"score": [0.5, 1.0], "negative": ["b/1", "c/1"], "anchor": ["a/1", "a/2"], "positive": ["a/2", "a/1"]}
)
KINDS = ["str", "object", "category", "large_string", "string_view"]


def of_kind(kind):
    if kind in ("large_string", "string_view"):
        types = {"large_string": pa.large_string(), "string_view": pa.string_view()}
        return pa.table(
            {name: pa.array(FRAME[name].tolist(), types[kind]) for name in FRAME if name != "score"}
        )
    return pa.Table.from_pandas(FRAME.astype(dict.fromkeys(COLUMNS, kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_of_others_in_any_string_type(tmp_path, suffix, kind):
    table, target = of_kind(kind), tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, target, row_group_size=1)
    else:
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1 if kind != "category" else None)
    assert read(target) == [["a/1", "a/2", "b/1"], ["a/2", "a/1", "c/1"]]


def test_three_columns_of_three_types_and_small_dictionaries(tmp_path):
    names = [f"a/{number}" for number in range(120)]
    small = pa.dictionary(pa.int8(), pa.string())
    table = pa.table(
        {
            "anchor": pa.array(names).dictionary_encode().cast(small),
            "positive": pa.array([name + "x" for name in names]).dictionary_encode().cast(small),
            "negative": pa.array([name + "y" for name in names], pa.large_string()),
        }
    )
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "t.arrow") == [[name, name + "x", name + "y"] for name in names]


def test_feather_of_pandas(tmp_path):
    FRAME.to_feather(tmp_path / "t.arrow", compression="lz4")
    assert read(tmp_path / "t.arrow") == [["a/1", "a/2", "b/1"], ["a/2", "a/1", "c/1"]]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "a/1,a/2,b/1\na/2,a/1,c/1"),
        (".txt", "a/1,a/2,b/1\r\na/2,a/1,c/1\r\n"),
        (".txt", '"a/1","a/2","b/1"\n\n"a/2","a/1","c/1"\n'),
        (".csv", "score,negative,anchor,positive\n1,b/1,a/1,a/2\n2,c/1,a/2,a/1\n"),
        (".csv", "\ufeffnegative,anchor,positive\nb/1,a/1,a/2\nc/1,a/2,a/1\n"),
        (
            ".jsonl",
            '{"positive":"a/2","x":[1],"anchor":"a/1","negative":"b/1"}\n'
            '{"anchor":"a/2","positive":"a/1","negative":"c/1"}',
        ),
        (
            ".jsonl",
            '{"anchor":"a/1","positive":"a/2","negative":"b/1","x":1}\n'
            '{"x":"y","anchor":"a/2","positive":"a/1","negative":"c/1"}\n',
        ),
    ],
)
def test_text_of_others(tmp_path, suffix, text):
    (tmp_path / f"t{suffix}").write_text(text, encoding="utf-8", newline="")
    assert read(tmp_path / f"t{suffix}") == [["a/1", "a/2", "b/1"], ["a/2", "a/1", "c/1"]]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_triplets_are_read_as_none(tmp_path, suffix):
    _, paths, rows, _ = read_paths(write(tmp_path, suffix, PATHS, np.empty((3, 0))), suffix)
    assert (len(paths), rows.shape) == (0, (3, 0))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        *[(suffix, b"") for suffix in (".parquet", ".arrow", ".csv")],
        *[(suffix, bytes(range(256)) * 5) for suffix in FORMATS],
        (".txt", b"a,b\n"),
        (".txt", b"a,b,c,d\n"),
        (".txt", b"a,b,c\nd,e\n"),
        (".txt", b"a,b,\xff\n"),
        (".csv", b"anchor,positive\na,b\n"),
        (".csv", b"a,b,c\na,b,c\n"),
        (".jsonl", b'{"anchor": "a", "positive": "b"}\n'),
        (".jsonl", b'{"anchor": "a", "positive": "b", "negative": "c"}\n{"anchor": "a"}\n'),
        (".jsonl", b'{"anchor": "a", "positive": "b", "negative": 3}\n'),
        (".jsonl", b'{"anchor": "a", "positive": "b", "nega'),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, suffix, content):
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises((pa.ArrowException, KeyError)):
        read_paths(tmp_path / f"t{suffix}", suffix)


@pytest.mark.parametrize("values", [[1], [0.5], [["a"]], [None], [b"\xff"]])
def test_columns_that_are_no_paths_are_refused(tmp_path, values):
    pq.write_table(pa.table({"anchor": ["a"], "positive": values, "negative": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises((pa.ArrowException, KeyError)):
        read_paths(tmp_path / "t.parquet", ".parquet")


# Pairs


def of_pairs(paths, rows):
    """[t] (first, second, same) by a plain loop."""
    return [
        (paths[first], paths[second], same)
        for first, second, same in zip(*np.array(rows).tolist(), strict=True)
    ]


def read_pairs(target, kind=None):
    found, paths, rows, _ = read_paths(target, target.suffix, kind)
    assert (found, rows.dtype) == ("pairs", np.int32)
    return of_pairs(paths, rows)


def write_pairs(folder, suffix, paths, rows, size=BLOCK):
    target = folder / f"t{suffix}"
    write_paths(target, suffix, blocks(np.array(rows, dtype=np.int32), size), paths, {}, "pairs")
    return target


@pytest.mark.parametrize("suffix", FORMATS)
@settings(deadline=None, max_examples=30)
@given(paths=some_paths, data=st.data())
@example(paths=NASTY, data=None)
def test_pairs_that_are_written_are_read(tmp_path_factory, suffix, paths, data):
    rows, size = np.stack([*cyclic(paths)[:2], np.arange(len(paths)) % 2]), 4
    if data:
        number = st.integers(0, len(paths) - 1)
        drawn = data.draw(st.lists(st.tuples(number, number, st.integers(0, 1)), min_size=1, max_size=10))
        rows, size = np.array(drawn, dtype=np.int32).T, data.draw(st.integers(1, 11))
    target = write_pairs(tmp_path_factory.mktemp("t"), suffix, paths, rows, size)
    assert read_pairs(target) == read_pairs(target, "pairs") == of_pairs(paths, rows)


PAIR_ROWS = [[0, 1, 3], [1, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", 'a/1.png,"a/2,""x"".png",1\n"a/2,""x"".png",b/é.png,0\n"l\nf",a/1.png,0\n'),
        (
            ".csv",
            'first,second,same\na/1.png,"a/2,""x"".png",1\n"a/2,""x"".png",b/é.png,0\n"l\nf",a/1.png,0\n',
        ),
        (
            ".jsonl",
            r'{"first": "a/1.png", "second": "a/2,\"x\".png", "same": 1}'
            "\n"
            r'{"first": "a/2,\"x\".png", "second": "b/é.png", "same": 0}'
            "\n"
            r'{"first": "l\nf", "second": "a/1.png", "same": 0}'
            "\n",
        ),
    ],
)
def test_the_lines_of_pairs(tmp_path, suffix, text):
    assert write_pairs(tmp_path, suffix, PATHS, PAIR_ROWS, size=2).read_bytes().decode() == text


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_pandas_reads_pairs_as_strings_and_whole_numbers(tmp_path, suffix):
    target = write_pairs(tmp_path, suffix, PATHS, PAIR_ROWS, size=2)
    frame = pd.read_parquet(target) if suffix == ".parquet" else pd.read_feather(target)
    assert list(frame.columns) == ["first", "second", "same"]
    assert list(map(tuple, frame.to_numpy().tolist())) == of_pairs(PATHS, PAIR_ROWS)
    assert frame["same"].dtype == np.int8


def test_arrow_of_pairs_is_found_and_not_loaded(tmp_path):
    target = tmp_path / "t.arrow"
    write_paths(target, ".arrow", blocks(np.array(PAIR_ROWS, np.int32), 2), PATHS, {"key": ""}, "pairs")
    found, *_ = open_arrow(target, "key")
    np.testing.assert_array_equal(found.take(np.arange(len(found))), PAIR_ROWS)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "score,same,second,first\nx,1,a/2,a/1\ny,0,b/1,a/1\n"),
        (".csv", "first,second,same,anchor\na/1,a/2,true,\na/1,b/1,false,\n"),
        (
            ".jsonl",
            '{"same": 1, "first": "a/1", "x": [], "second": "a/2"}\n{"first":"a/1","second":"b/1","same":0}',
        ),
        (".txt", '"a/1",a/2,1\r\n\r\na/1,b/1,0'),
    ],
)
def test_pairs_of_others(tmp_path, suffix, text):
    (tmp_path / f"t{suffix}").write_text(text, encoding="utf-8", newline="")
    assert read_pairs(tmp_path / f"t{suffix}") == [("a/1", "a/2", 1), ("a/1", "b/1", 0)]


def test_pairs_with_flags_of_pandas(tmp_path):
    frame = pd.DataFrame({"first": ["a/1"] * 2, "second": ["a/2", "b/1"], "same": [True, False]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_pairs(tmp_path / "t.parquet") == [("a/1", "a/2", 1), ("a/1", "b/1", 0)]


@pytest.mark.parametrize("same", ["x,y,z", 7])
def test_triplets_may_have_another_column_named_same(tmp_path, same):
    text = f"anchor,positive,negative,same\na/1,a/2,b/1,{str(same)[0]}\n"
    (tmp_path / "t.csv").write_text(text)
    assert read(tmp_path / "t.csv") == [["a/1", "a/2", "b/1"]]
    pd.DataFrame({**FRAME, "first": 1, "second": 2, "same": same}).to_parquet(tmp_path / "t.parquet")
    kind, paths, rows, _ = read_paths(tmp_path / "t.parquet", ".parquet")
    assert (kind, paths[rows].T.tolist()) == ("triplets", [["a/1", "a/2", "b/1"], ["a/2", "a/1", "c/1"]])


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", "first,second,same\na,b,2\n"),
        (".csv", "first,second,same\na,b,yes\n"),
        (".csv", "first,second,same\na,b,\n"),
        (".csv", "first,second\na,b\n"),
        (".jsonl", '{"first": "a", "second": "b", "same": 1}\n{"first": "a", "second": "b"}\n'),
        (".jsonl", '{"first": "a", "second": "b", "same": 300}\n'),
        (".jsonl", '{"first": "a", "second": "b", "same": -1}\n'),
        (".jsonl", "[" * 100_000),
    ],
)
def test_what_is_no_manifest_of_pairs_is_refused(tmp_path, suffix, content):
    (tmp_path / f"t{suffix}").write_text(content)
    with pytest.raises((pa.ArrowException, KeyError)):
        read_paths(tmp_path / f"t{suffix}", suffix)


def test_a_jsonl_of_pairs_may_say_true_and_false(tmp_path):
    lines = [{"first": "a", "second": "b", "same": True}, {"first": "a", "second": "c", "same": False}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kind, paths, rows, _ = read_paths(file, ".jsonl")
    assert kind == "pairs"
    assert [(paths[i], paths[j], same) for i, j, same in rows.T.tolist()] == [("a", "b", 1), ("a", "c", 0)]
