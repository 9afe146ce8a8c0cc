"""Sources of relevance: each against plain loops, exact in any block, and bad input told in a sentence."""

from __future__ import annotations

import math
import pickle

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.core.checks import border
from tercet.data.triplets.relevance import (
    FolderRelevance,
    FunctionRelevance,
    Relevance,
    TableRelevance,
    TeacherRelevance,
    unit_rows,
)

PATHS = ["a/x/1.png", "a/x/2.png", "a/y/1.png", "a/1.png", "b/x/1.png", "1.png", "2.png", "/a/x/v/1.png", "b"]
TABLE = {(0, 1): 0.5, (1, 2): 1.0, (0, 3): 0.0, (4, 8): 0.25, (2, 2): 0.75}


def cosine(a, b):
    """By the definition, in plain floats."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return max(0.0, dot / lengths) if lengths else 0.0


def shared_folders(a, b):
    """By the definition, a folder at a time."""
    one, other = ([part for part in path.split("/")[:-1] if part] for path in (a, b))
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return common / max(len(one), len(other)) if one or other else 1.0


def embeddings(n=9, d=7, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def sources():
    """(a source of 9 images, its definition, how near they have to be)."""
    x = embeddings().tolist()
    i, j = (list(column) for column in zip(*TABLE, strict=True))
    table = list(TABLE.values())

    def one_way(a, b):
        return TABLE.get((a, b), 0.0)

    return {
        "teacher": (TeacherRelevance(x), lambda a, b: cosine(x[a], x[b]), 2e-3),
        "folder": (FolderRelevance(PATHS), lambda a, b: shared_folders(PATHS[a], PATHS[b]), 1e-15),
        "table": (TableRelevance(i, j, table), lambda a, b: max(one_way(a, b), one_way(b, a)), 0),
        "one way": (TableRelevance(i, j, table, symmetric=False), one_way, 0),
        "function": (
            FunctionRelevance(lambda a, b: (a * 3 + b) % 7 / 7),
            lambda a, b: (a * 3 + b) % 7 / 7,
            0,
        ),
    }


@pytest.mark.parametrize("name", sources())
def test_a_source_says_what_its_definition_says(name):
    source, defined, tolerance = sources()[name]
    rows = np.array([0, 4, 8, 2])
    columns = np.array([8, 7, 6, 5, 4, 3, 2, 1, 0, 0])
    r = source.of(rows, columns)
    assert isinstance(source, Relevance)
    assert r.shape == (4, 10)
    assert r.dtype in (np.float32, np.float64)
    expected = [[defined(a, b) for b in columns.tolist()] for a in rows.tolist()]
    np.testing.assert_allclose(r, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", sources())
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_two_images_have_one_relevance_whoever_else_is_asked_about(name, data):
    source = sources()[name][0]
    everything = source.of(np.arange(9), np.arange(9))
    b, a, r = (data.draw(st.integers(0, 4)) for _ in range(3))
    numbers = st.integers(0, 8)
    rows = np.array(data.draw(st.lists(numbers, min_size=b * a, max_size=b * a)), dtype=np.int64).reshape(
        b, a
    )
    columns = np.array(data.draw(st.lists(numbers, min_size=b * r, max_size=b * r)), dtype=np.int64)
    columns = columns.reshape(b, r)
    found = source.of(rows, columns)
    assert found.shape == (b, a, r)
    assert (found == everything[rows[:, :, None], columns[:, None, :]]).all()
    i, j = np.broadcast_arrays(rows[:, :, None], columns[:, None, :])
    assert (source.pairs(i.ravel(), j.ravel()) == found.ravel()).all()


@pytest.mark.parametrize("d", [1, 3, 128, 1000])
def test_case_a_teacher_gives_the_same_bits_in_any_block(d, monkeypatch):
    x = np.random.default_rng(d).standard_normal((300, d))
    teacher = TeacherRelevance(x)
    rows = np.arange(300)
    whole = teacher.of(rows, rows)
    each = np.stack([teacher.of(rows[n : n + 1], rows)[0] for n in range(300)])
    batches = teacher.of(rows.reshape(3, 100), np.stack([rows] * 3)).reshape(300, 300)
    monkeypatch.setattr("tercet.data.triplets.relevance.CELLS", 7)
    assert (whole == each).all()
    assert (whole == batches).all()
    assert (whole == TeacherRelevance(x).of(rows, rows)).all()
    assert (teacher.pairs(rows, rows[::-1]) == whole[rows, rows[::-1]]).all()
    steps = np.rint(x / np.sqrt((x**2).sum(axis=1, keepdims=True)) * 2048).astype(object)  # exact integers
    for i, j in [(0, 1), (5, 299), (17, 17)]:
        scale = 1 / math.sqrt(int(steps[i] @ steps[i])) * (1 / math.sqrt(int(steps[j] @ steps[j])))
        assert whole[i, j] == np.float32(min(1.0, max(0.0, int(steps[i] @ steps[j]) * scale)))
    assert abs(float(whole[0, 1]) - cosine(x[0], x[1])) < 2e-3


@pytest.mark.parametrize("d", [2048, 12288, 150528])
def test_a_teacher_of_long_vectors_stays_within_its_bound(d):
    noise = np.random.default_rng(d).standard_normal((4, d))
    usual = np.concatenate([np.ones((2, d)), 1 + 0.1 * noise[:2], noise[2:]])
    # all coordinates but the first are rounded away, or all of them by nearly half a step
    small = np.full((1, d), 0.499 / 2048)
    small[0, 0] = math.sqrt(max(0, 1 - (d - 1) * small[0, 1] ** 2))
    worst = np.concatenate([usual, small, 1 - small])
    unit = worst / np.sqrt((worst * worst).sum(axis=1, keepdims=True))
    rows = np.arange(len(worst))
    r = TeacherRelevance(worst).of(rows, rows)
    off = np.abs(r - np.clip(unit @ unit.T, 0, 1))
    assert (r.diagonal() == 1).all()
    assert r[0, 1] == 1
    assert (r == r.T).all()
    assert off[:6, :6].max() < 1e-3 + 2e-8 * d
    assert off.max() <= 2 * math.asin(math.sqrt(d) / 4096)
    if d > 2048:
        assert off[6].max() > 0.5 * math.asin(math.sqrt(d) / 4096)  # the bound is no idle one


def test_unit_rows_are_as_long_as_said_at_any_scale():
    rows = np.array([[3e300, 4e300], [3e-310, 4e-310], [0.0, 0.0], [-3.0, 4.0]])
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0.6, 0.8], [0, 0], [-0.6, 0.8]], rtol=1e-12)
    half = np.array([[3.0, 4.0]], dtype=np.float16) * np.float16(8000)  # its square is infinite
    np.testing.assert_allclose(unit_rows(half), [[0.6, 0.8]], rtol=1e-3)
    assert unit_rows(np.empty((2, 0))).shape == (2, 0)


def test_a_teacher_takes_any_scale_kind_and_place(tmp_path):
    x = embeddings(40, 5)
    expected = TeacherRelevance(x).of(np.arange(40), np.arange(40))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    scales = np.random.default_rng(1).uniform(1, 9, (40, 1))
    others = [
        x * 1e-300,
        x * 1e300,
        x * scales,
        torch.from_numpy(x),
        tmp_path / "x.npy",
        str(tmp_path / "f.npy"),
    ]
    for other in others:
        assert (TeacherRelevance(other).of(np.arange(40), np.arange(40)) == expected).all()
    for other in (x.astype(np.float32), x.astype(np.float16)):
        assert np.abs(TeacherRelevance(other).of(np.arange(40), np.arange(40)) - expected).max() < 3e-3
    assert TeacherRelevance(np.array([[1, 0], [0, 2], [3, 3]])).of(np.array([2]), np.arange(3)).round(
        2
    ).tolist() == [[np.float32(0.71), np.float32(0.71), 1.0]]


def test_case_a_row_of_zeros_is_relevant_to_none():
    teacher = TeacherRelevance([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert teacher.of(np.arange(4), np.arange(4)).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 1],
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_from_disk(tmp_path, suffix):
    from tercet.data.io.tables import write_columns

    i, j = (np.array(column) for column in zip(*TABLE, strict=True))
    target = tmp_path / f"r{suffix}"
    write_columns({"i": i, "j": j, "r": np.array(list(TABLE.values()))}, target)
    here = TableRelevance(i, j, list(TABLE.values()))
    assert (
        TableRelevance.read(target).of(np.arange(9), np.arange(9)) == here.of(np.arange(9), np.arange(9))
    ).all()
    assert TableRelevance.read(target, symmetric=False).pairs(np.array([1]), np.array([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("i,j\n0,1\n", "expected one column 'r'; its columns are: i, j"),
        ("i,j,r\n0,1,\n", "expected a value in every row of column 'r'; row 1 of 1 has none"),
        ("i,j,r\n0,1,nan\n", "expected a value in every row of column 'r'; row 1 of 1 has none"),
        ("i,j,r\n0,1,-0.5\n", "TableRelevance(r='-0.5 of rows 0 and 1'): expected a number from 0 to 1"),
        ("i,j,r\n0,1,much\n", "expected numbers in column 'r'; "),
        ("i,j,r\n0,1.5,0.2\n", "expected whole numbers in column 'j'; "),
    ],
)
def test_a_table_on_disk_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ValueError, match=r".") as raised:
        TableRelevance.read(tmp_path / "r.csv")
    assert said in str(raised.value)


def test_an_empty_table_relates_no_two_images():
    assert TableRelevance([], [], []).of(np.arange(3), np.arange(2)).tolist() == [[0, 0]] * 3


def give(value):
    return FunctionRelevance(lambda i, j: value).pairs(np.array([3, 4]), np.array([5, 6]))


TWO = "TableRelevance(r='0.5 and 0.25 of rows 0 and 1'): expected one relevance for each pair"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: TeacherRelevance([1.0, 2.0]),
            "'array of float64 [2]'): expected numbers [n, d], one row for each image",
        ),
        (lambda: TeacherRelevance(np.empty((0, 4))), "'array of float64 [0, 4]'): expected numbers [n, d]"),
        (lambda: TeacherRelevance([["a"]]), "expected numbers [n, d]"),
        (
            lambda: TeacherRelevance([[1.0], [np.nan]]),
            "'row 1 with NaN or infinity'): expected finite numbers",
        ),
        (lambda: TeacherRelevance([[1.0, np.inf]]), "'row 0 with NaN or infinity'): expected finite numbers"),
        (lambda: TeacherRelevance([[1.0], [1.0, 2.0]]), "expected an array [n, d]"),
        (
            lambda: TeacherRelevance(torch.ones(2, 2, requires_grad=True)),
            "convert a tensor with .detach().cpu()",
        ),
        (
            lambda: TeacherRelevance("nowhere.npy"),
            "'nowhere.npy'): expected an existing .npy file of numbers [n, d]",
        ),
        (
            lambda: FolderRelevance([]),
            "FolderRelevance(paths=[]): expected one path for each of 1 or more images",
        ),
        (lambda: FolderRelevance("a/b.png"), "expected one path for each"),
        (lambda: FolderRelevance([1, 2]), "FolderRelevance(paths=[1, 2]): expected one path for each"),
        (lambda: TableRelevance([0], [1], [1.5]), "(r='1.5 of rows 0 and 1'): expected a number from 0 to 1"),
        (
            lambda: TableRelevance([0], [1], [-0.1]),
            "(r='-0.1 of rows 0 and 1'): expected a number from 0 to 1",
        ),
        (
            lambda: TableRelevance([0], [1], [np.nan]),
            "(r='nan of rows 0 and 1'): expected a number from 0 to 1",
        ),
        (
            lambda: TableRelevance([0], [1, 2], [0.5]),
            "shapes [1], [2], [1]'): expected three columns of equal length",
        ),
        (
            lambda: TableRelevance([-1], [1], [0.5]),
            "TableRelevance(i=-1): expected row numbers from 0 to 2147483647",
        ),
        (lambda: TableRelevance([0], [2**40], [0.5]), f"TableRelevance(j={2**40}): expected row numbers"),
        (
            lambda: TableRelevance([0.0], [1], [0.5]),
            "TableRelevance(i='array of float64'): expected row numbers",
        ),
        (
            lambda: TableRelevance([0, 1], [1, 0], [0.5, 0.25]),
            TWO + "; pass symmetric=False if r_ij and r_ji differ",
        ),
        (lambda: TableRelevance([0, 0], [1, 1], [0.5, 0.25], symmetric=False), TWO),
        (
            lambda: FunctionRelevance(3),
            "FunctionRelevance(function=3): expected a function of two row arrays",
        ),
        (
            lambda: give([0.5, 1.5]),
            "'it gave 1.5 for rows 4 and 6'): expected a number from 0 to 1 for each pair",
        ),
        (
            lambda: give([np.nan, 0.5]),
            "'it gave nan for rows 3 and 5'): expected a number from 0 to 1 for each pair",
        ),
        (
            lambda: give([0.5]),
            "'it gave shape (1,) for 2 pairs'): expected a number from 0 to 1 for each pair",
        ),
        (lambda: give("often"), "expected a number from 0 to 1 for each pair"),
        (lambda: give(np.array([0.5, 0.5j])), "expected a number from 0 to 1 for each pair"),
        (lambda: give([0.5, 0.5j]), "expected a number from 0 to 1 for each pair"),
    ],
)
def test_bad_input_gets_a_sentence(monkeypatch, call, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r".") as raised:
        call()
    assert said in str(raised.value)


def test_a_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"expected an existing \.npy file of numbers"):
        TeacherRelevance(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"expected an existing \.npy file of numbers"):
        TeacherRelevance(tmp_path)


@pytest.mark.parametrize("name", ["teacher", "folder", "table", "one way"])
def test_a_row_that_is_not_there_is_refused(name):
    source = sources()[name][0]
    for bad in (-1, 2**31, 2**40):
        for ask in (source.of, source.pairs):
            with pytest.raises(ValueError, match=r"expected row numbers from 0 to "):
                ask(np.array([bad]), np.array([0]))
            with pytest.raises(ValueError, match=r"expected row numbers from 0 to "):
                ask(np.array([0]), np.array([bad]))


def test_a_source_knows_for_how_many_images_it_speaks():
    said = {}
    for name, (source, _, _) in sources().items():
        source.check(9)
        try:
            with border("T"):
                source.check(8)
        except ValueError as error:
            said[name] = str(error)
    assert said == {
        "teacher": "T(relevance=TeacherRelevance(9 images, 7 dimensions)): "
        "expected one of 8 images, as there are 8 labels",
        "folder": "T(relevance=FolderRelevance(9 images, 6 folders)): "
        "expected one of 8 images, as there are 8 labels",
        "table": "T(relevance='TableRelevance(9 pairs) with row 8'): "
        "expected row numbers from 0 to 7, as there are 8 labels",
        "one way": "T(relevance='TableRelevance(5 pairs) with row 8'): "
        "expected row numbers from 0 to 7, as there are 8 labels",
    }


def test_sources_travel_to_a_worker():
    for name in ("teacher", "folder", "table"):
        source = sources()[name][0]
        again = pickle.loads(pickle.dumps(source))
        assert (again.of(np.arange(9), np.arange(9)) == source.of(np.arange(9), np.arange(9))).all()
        assert repr(again) == repr(source)
