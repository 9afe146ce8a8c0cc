"""Tables: read as written, refused with a sentence, written whole or not at all."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tercet.core.checks import border
from tercet.data.io.tables import read_columns, write_columns

TABLES = (".csv", ".parquet")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
NASTY = [
    "a,b",
    'q"q',
    '"',
    "l\nf",
    "c\rr",
    "cr\r\nlf",
    " lead",
    "trail ",
    "NA",
    "null",
    "nan",
    "#",
    "'",
    "\\",
]
NASTY += ["1", "01", "1.50", "true", "é", "e\u0301", "日本", "😀", "\ufeffmark", "\x1c", "\u2028", "x" * 5000]


# write_columns, read_columns


FULL = """
import resource, sys
from pathlib import Path
from tercet.data.io.tables import write_columns
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_columns({"path": [f"{i * i}.jpg" for i in range(20_000)]}, Path(sys.argv[1]))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("suffix", TABLES)
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", FULL, str(tmp_path / f"t{suffix}")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "OSError\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", TABLES)
@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(texts | st.sampled_from(NASTY), st.integers(-(2**63), 2**63 - 1)), min_size=1))
@example(rows=[(name, number) for number, name in enumerate(NASTY)])
@example(rows=[("NA", 0)])
def test_text_and_numbers_are_read_as_written(tmp_path_factory, suffix, rows):
    target = tmp_path_factory.mktemp("table") / f"t{suffix}"
    names, numbers = zip(*rows, strict=True)
    write_columns(
        {"name": np.array(names, dtype=object), "number": np.array(numbers, dtype=np.int64)}, target
    )
    columns = read_columns(target, ["name"])
    assert list(columns) == ["name", "number"]
    assert columns["name"].tolist() == list(names)
    assert columns["number"].dtype == np.int64
    assert columns["number"].tolist() == list(numbers)


def test_other_programs_read_what_is_written(tmp_path):
    write_columns({"name": NASTY, "number": np.arange(len(NASTY))}, tmp_path / "t.csv")
    write_columns({"name": NASTY, "number": np.arange(len(NASTY))}, tmp_path / "t.parquet")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "number"]
    assert [row[0] for row in rows] == NASTY
    assert pd.read_parquet(tmp_path / "t.parquet")["name"].tolist() == NASTY


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1.1", "1.10"], ["1.1", "1.10"]),
        (["007", "7"], ["007", "7"]),
        (["1e5", "10e4"], ["1e5", "10e4"]),
        (["True", "true"], ["True", "true"]),
        ([f"{2**64 - 1}", f"{2**64 - 2}"], ["18446744073709551615", "18446744073709551614"]),
        ([f"{2**63 - 1}", f"{-(2**63)}"], [2**63 - 1, -(2**63)]),
        (["1", f"{2**63}"], ["1", "9223372036854775808"]),
        (["-0", "0"], ["-0", "0"]),
        (["+1", "1"], ["+1", "1"]),
        ([" 1", "1"], [" 1", "1"]),
        (['"1\n"', "1"], ["1\n", "1"]),
        (["1_0", "10"], ["1_0", "10"]),
        (["٣", "3"], ["٣", "3"]),
        (["0x10", "16"], ["0x10", "16"]),
        (["7", "8"], [7, 8]),
        (["NA", "null"], ["NA", "null"]),
        (["nan", "NaN"], ["nan", "NaN"]),
        (["#N/A", "None"], ["#N/A", "None"]),
        (['""', "x"], ["", "x"]),
        (['""', "1"], ["", "1"]),
        (["2020-01-02", "2020-01-02 00:00"], ["2020-01-02", "2020-01-02 00:00"]),
        (["9" * 5000, "9" * 5000], ["9" * 5000] * 2),
    ],
)
def test_values_of_a_csv_stay_what_was_written(tmp_path, written, read):
    lines = "".join(f"{row}.jpg,{value},{value}\n" for row, value in enumerate(written))
    (tmp_path / "t.csv").write_text("path,label,g\n" + lines)
    columns = read_columns(tmp_path / "t.csv", ["path"])
    assert columns["g"].tolist() == read
    assert columns["path"].tolist() == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (
            pa.array([2**64 - 1, 2**64 - 2, 1], pa.uint64()),
            ["18446744073709551615", "18446744073709551614", "1"],
        ),
        (pa.array([1, 2, 3], pa.uint64()), [1, 2, 3]),
        (pa.array([1.1, 1.25, 1e300]), [1.1, 1.25, 1e300]),
        (pa.array([0.5, 0.25, 2], pa.float16()), [0.5, 0.25, 2.0]),
        (pa.array([True, False, True]), [True, False, True]),
        (pa.array(["1", "2", "3"]), ["1", "2", "3"]),
        (pa.array(["7", "007", "x"], pa.large_string()), ["7", "007", "x"]),
        (pa.array(["7", "8", "7"]).dictionary_encode(), ["7", "8", "7"]),
        (pa.array([7, 8, 7]).dictionary_encode(), [7, 8, 7]),
    ],
)
def test_values_of_a_parquet_keep_their_type(tmp_path, values, read):
    pq.write_table(pa.table({"path": ["a", "b", "c"], "g": values}), tmp_path / "t.parquet")
    columns = read_columns(tmp_path / "t.parquet", ["path"])
    assert columns["g"].tolist() == read
    assert [type(value) for value in columns["g"].tolist()] == [type(value) for value in read]


@pytest.mark.parametrize(
    "values", [pa.array([1.5, float("nan")]), pa.array([1.5, None]), pa.array([True, None])]
)
def test_a_number_that_is_missing_is_refused_with_its_row(tmp_path, values):
    pq.write_table(pa.table({"path": ["a", "b"], "g": values}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="a value in every row of column 'g'; row 2 of 2 has none"):
        read_columns(tmp_path / "t.parquet", ["path"])


def test_numbers_may_stand_behind_a_space(tmp_path):
    (tmp_path / "t.csv").write_text("i,r\n 12, 0.5\n3 ,1e-3\n")
    columns = read_columns(tmp_path / "t.csv", others=(), numbers=["r"], integers=["i"])
    assert columns["r"].tolist() == [0.5, 0.001]
    assert columns["i"].tolist() == [12, 3]
    assert columns["i"].dtype == np.int64


@pytest.mark.parametrize("value", ["1.5", "x", f"{2**63}", "9" * 5000, "NA"])
def test_what_is_no_whole_number_is_refused(tmp_path, value):
    (tmp_path / "t.csv").write_text(f"i\n1\n{value}\n")
    with pytest.raises(ValueError, match="expected whole numbers in column 'i'; ") as raised:
        read_columns(tmp_path / "t.csv", others=(), integers=["i"])
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("suffix", TABLES)
def test_columns_of_numbers(tmp_path, suffix):
    wanted = [0.1, 1 / 3, 1e-300, -2.0, 5.0]
    frame = pd.DataFrame({"path": list("abcde"), "r": wanted, "n": range(5)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    columns = read_columns(tmp_path / f"t{suffix}", others=(), numbers=("r", "n"))
    assert list(columns) == ["r", "n"]
    assert columns["r"].dtype == columns["n"].dtype == np.float64
    assert columns["r"].tolist() == wanted
    assert columns["n"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("r\nmuch\n", "expected numbers in column 'r'; Failed to parse string: 'much'"),
        ("r,x\n1,2\n,3\n", "expected a value in every row of column 'r'; row 2 of 2 has none"),
        ("x\n1\n", "expected one column 'r'; its columns are: x"),
    ],
)
def test_columns_that_are_no_numbers_are_refused(tmp_path, content, said):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=r".") as raised:
        read_columns(tmp_path / "t.csv", others=(), numbers=("r",))
    assert said in str(raised.value)


@pytest.mark.parametrize("kind", ["category", "string", "Int16", "UInt8", "bool"])
def test_columns_of_other_types(tmp_path, kind):
    values = {"category": ["a", "b"], "string": ["a", "b"], "bool": [True, False]}.get(kind, [3, 4])
    frame = pd.DataFrame(
        {"path": pd.Series(["x", "y"], dtype="category"), "g": pd.Series(values, dtype=kind)}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    columns = read_columns(tmp_path / "t.parquet", ["path"])
    assert columns["path"].tolist() == ["x", "y"]
    assert columns["g"].tolist() == values


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffpath,label\r\né.jpg,1\r\n".encode())
    assert read_columns(tmp_path / "t.csv", ["path"])["path"].tolist() == ["é.jpg"]


def test_columns_that_nobody_asked_for_do_not_matter(tmp_path):
    columns = {"path": ["x", "y"], "note": [None, "z"], "pixels": [[1], [2, 3]]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet", ["path"], []).keys() == {"path"}
    (tmp_path / "t.csv").write_text("path,x,x,n\na,1,2,\nb,1,2,3\n")
    assert read_columns(tmp_path / "t.csv", ["path"], []).keys() == {"path"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path\n\x00\xff", "expected a readable table; "),
        ("", "expected a readable table; Empty CSV file"),
        (
            "path,label\na,1\nb\n",
            "Expected 2 columns, got 1",  # pyarrow does not always say in which row
        ),
        ("file,label\na,1\n", "expected one column 'path'; its columns are: file, label"),
        ("path,path\na,1\n", "expected one column 'path'; its columns are: path, path"),
        ("path,g,g\na,1,2\n", "expected one column 'g'; its columns are: path, g, g"),
        ('path,g\na,1\n"",2\n', "expected a value in every row of column 'path'; row 2 of 2 has none"),
        ("path,g\na,1\n,2\n", "expected a value in every row of column 'path'; row 2 of 2 has none"),
        ("path,g\na,1\nb,\n", "expected a value in every row of column 'g'; row 2 of 2 has none"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r".") as raised, border("f"):
        read_columns(path, ["path"])
    assert str(raised.value).startswith(f"f(path={str(path)!r}"[:70])
    assert said in str(raised.value)


@pytest.mark.parametrize("column", ["path", "g"])
@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [b"\xff"]])
def test_columns_that_are_neither_numbers_nor_text_are_refused(tmp_path, column, values):
    pq.write_table(pa.table({"path": ["x"], column: values}), tmp_path / "t.parquet")
    with pytest.raises(
        ValueError, match=f"expected numbers, text or booleans in column '{column}'; it holds "
    ):
        read_columns(tmp_path / "t.parquet", ["path"])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="expected a readable table; "):
        read_columns(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"expected a table ending in .csv or .parquet$"):
        read_columns(tmp_path / "t.xlsx")
    with pytest.raises(ValueError, match=r"expected an existing file$"):
        read_columns(tmp_path / "gone.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_folder_may_be_called_like_an_address(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    Path("run:3").mkdir()
    target = Path(f"run:3/t{suffix}")
    write_columns({"path": ["a"], "n": [3]}, target)
    assert {name: values.tolist() for name, values in read_columns(target).items()} == {
        "path": ["a"],
        "n": [3],
    }
