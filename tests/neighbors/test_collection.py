import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tercet import CrossGroup, Graded, Mahalanobis, SameLabel, SharedLabel, nearest
from tercet.neighbors.candidate_pool import slots_of
from tercet.neighbors.search_plan import plan_search
from tercet.pairwise.budget import override
from tests.helpers import grid, laws, points, refusal_of, unchecked

DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot", "hamming"]


def plain(name, x, y):
    """Every distance from its definition, in the precision that decides: differences of float32."""
    if name == "euclidean":
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if name == "hamming":
        return ((x > 0)[:, None] != (y > 0)).sum(-1).float()
    if name == "dot":
        return -(x[:, None] * y).sum(-1)
    if name == "cosine":
        x, y = (v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-30) for v in (x, y))
        x, y = (torch.cat([v, (~v.any(1, keepdim=True)).to(v.dtype)], 1) for v in (x, y))
    return (x[:, None] - y).square().sum(-1) * (0.5 if name == "cosine" else 1.0)


def brute(distance, barred, k):
    """The first k columns of each row of a table that are not barred, by a full sort."""
    d = np.where(barred, math.inf, distance.double().numpy())
    order = np.argsort(d, axis=1, kind="stable")
    d = np.take_along_axis(d, order, 1)
    missing = ((0, 0), (0, max(0, k - d.shape[1])))
    rows = np.pad(np.where(d == math.inf, -1, order), missing, constant_values=-1)[:, :k]
    return rows, np.pad(d, missing, constant_values=math.inf)[:, :k]


def same(found, expected):
    np.testing.assert_array_equal(found.rows, expected[0])
    np.testing.assert_array_equal(found.distances, expected[1].astype(found.distances.dtype))


def drawn(kind, n, seed):
    """Rows on a grid, all equal, or some equal, some nearly equal and some apart."""
    if kind == "grid":
        return grid(n, 3, seed)
    if kind == "equal":
        return torch.ones(n, 3) / 3
    x, g = points(n, 6, seed), torch.Generator().manual_seed(seed + 1)
    return x[torch.randint(0, n, (n,), generator=g)] + 1e-4 * torch.randint(
        0, 2, (n, 1), generator=g
    ) * points(n, 6, seed + 2)


@laws
@given(
    kind=st.sampled_from(["grid", "equal", "near"]),
    n=st.integers(1, 25),
    k=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    distance=st.sampled_from(DISTANCES),
    exclude=st.sets(st.sampled_from(["self", "class", "other classes", "group", "id", "duplicates"])),
    classes=st.sampled_from([1, 2, 5, 40]),
    tile=st.sampled_from([60, 400, 2000, 8 * 2**20]),
    few=st.booleans(),
    own=st.booleans(),
)
def test_it_is_brute_force(kind, n, k, seed, distance, exclude, classes, tile, few, own):
    g = torch.Generator().manual_seed(seed)
    if {"class", "other classes"} <= exclude or not own:
        exclude -= {"class", "self"}
    if distance == "dot":
        exclude -= {"duplicates"}
    x = drawn(kind, n, seed)
    y = x if own else torch.cat([x[: n // 2], drawn(kind, 1 + n // 2, seed + 9)])
    some = torch.randint(0, n, (n // 2 + 1,), generator=g) if own and few else torch.arange(n)
    numbers = {
        name: [torch.randint(0, count, (len(v),), generator=g) for v in (x, y)]
        for name, count in (("labels", classes), ("groups", 3), ("ids", 20))
    }
    if own:
        numbers = {name: [values[0]] * 2 for name, values in numbers.items()}
    d = plain(distance, x[some], y)
    barred = torch.zeros_like(d, dtype=torch.bool)
    given = {}
    for what, name in (("class", "labels"), ("other classes", "labels"), ("group", "groups"), ("id", "ids")):
        if what in exclude:
            equal = numbers[name][0][some, None] == numbers[name][1]
            barred |= ~equal if what == "other classes" else equal
            given[name] = numbers[name][0]
            if not own:
                given[f"column_{name}"] = numbers[name][1]
    if "self" in exclude:
        barred |= some[:, None] == torch.arange(len(y))
    if "duplicates" in exclude:
        barred |= d == 0
    if own and few:
        given["rows"] = some
    with override(tile_bytes=tile, gathered_keys=100 if few else 2**20, gathered_numbers=300):
        found = nearest(x, None if own else y, k, exclude=exclude, distance=distance, **given)
    same(found, brute(d, barred, k))


@pytest.mark.parametrize(
    ("distance", "kind", "exclude"),
    [
        ("euclidean", "near", ["self", "class"]),
        ("euclidean", "apart", ["self", "class"]),
        ("euclidean", "grid", ["duplicates"]),
        ("squared_euclidean", "grid", ["self", "other classes"]),
        ("cosine", "near", ["duplicates"]),
        ("cosine", "apart", []),
        ("dot", "apart", ["self", "class"]),
        ("hamming", "near", ["self", "class"]),
        (Mahalanobis(points(6, 4, 1)), "near", ["self", "other classes"]),
    ],
)
def test_many_tiles_with_chunks_are_brute_force(distance, kind, exclude):
    n, k = 500, 4
    x = points(n, 6) if kind == "apart" else drawn(kind, n, 3)
    x = torch.nn.functional.pad(x, (0, 6 - x.shape[1]))
    labels = torch.arange(n) % 7
    d = plain(distance, x, x) if isinstance(distance, str) else plain("euclidean", *[distance.prepare(x)] * 2)
    equal = labels[:, None] == labels
    barred = {"self": torch.eye(n).bool(), "class": equal, "other classes": ~equal, "duplicates": d == 0}
    expected = brute(d, sum((barred[name] for name in exclude), torch.zeros(n, n).bool()), k)
    asked = {"labels": labels} if len(exclude) > 1 else {}
    for tile in (2**16, 8 * 2**20):
        with override(tile_bytes=tile):
            same(nearest(x, k=k, exclude=exclude, distance=distance, **asked), expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("exclude", [("self", "class"), ("self", "duplicates"), ("group",)])
def test_rows_of_one_length_are_brute_force(distance, exclude):
    """One product then serves both its rows and its columns."""
    if distance == "dot" and "duplicates" in exclude:
        return
    n, k = 600, 2
    x = torch.nn.functional.normalize(points(n, 5))
    x[300:500], x[590] = x[:200], x[1]  # duplicates far apart, and one row thrice
    labels = torch.arange(n) % 7
    d = plain(distance, x, x)
    barred = d == 0 if "duplicates" in exclude else labels[:, None] == labels
    barred |= torch.eye(n).bool()
    asked = {"class": {"labels": labels}, "group": {"groups": labels}}.get(exclude[-1], {})
    broken, bad = x.clone(), torch.zeros(n, dtype=torch.bool)
    broken[[5, 450]] = math.nan
    bad[[5, 450]] = True
    for tile in (2**16, 2**15):
        with override(tile_bytes=tile):
            same(nearest(x, k=k, exclude=exclude, distance=distance, **asked), brute(d, barred, k))
            found = nearest(broken, k=k, exclude=exclude, distance=distance, nan="skip", **asked)
        same(found, brute(d, barred | bad | bad[:, None], k))


def test_less_memory_is_more_passes_and_the_same_result():
    x, labels = points(1500, 8), torch.arange(1500) % 50
    found = []
    passes = set()
    with override(tile_bytes=2**16, gathered_keys=2**12, gathered_numbers=2**12):
        for memory in (None, 700_000, 1_000_000):
            found.append(nearest(x, k=5, labels=labels, exclude=("self", "class"), memory=memory))
            plan = plan_search(1500, 1500, 5, 8, torch.float32, torch.device("cpu"), memory)
            passes.add(plan.passes)
            assert memory is None or plan.bytes <= memory
        said = refusal_of(nearest, x, k=5, memory=10_000)
    assert len(passes) == 3
    assert all(np.array_equal(one.rows, found[0].rows) for one in found)
    assert "nearest(memory=10000): expected " in said
    assert " bytes or more for this search" in said


def test_the_number_of_threads_changes_nothing():
    x, before = points(2000, 16), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(nearest(x, k=7))
    finally:
        torch.set_num_threads(before)
    same(found[0], found[1])
    same(found[0], found[2])


@pytest.mark.parametrize(
    ("distance", "tile"),
    [("euclidean", 2**15), ("cosine", 2**13), ("dot", 2**15), ("squared_euclidean", 2**13)],
)
def test_collapsed_embeddings_give_the_lowest_rows(distance, tile):
    n = 25 * slots_of(2)
    x = torch.full((n, 4), 0.3)
    with override(tile_bytes=tile):
        found = nearest(x, k=2, distance=distance).rows
        classes = nearest(x, k=2, labels=torch.arange(n) % 2, exclude="class", distance=distance).rows
    assert found[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert (found[3:] == [0, 1]).all()
    assert (classes[::2] == [1, 3]).all()
    assert (classes[1::2] == [0, 2]).all()


def test_a_duplicate_in_another_class_is_left_out_on_request():
    x = torch.cat([points(5, 3), points(5, 3)])
    labels = [0] * 5 + [1] * 5
    with_it = nearest(x, k=1, labels=labels, exclude="class")
    assert with_it.rows[:, 0].tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert not with_it.distances.any()
    without = nearest(x, k=5, labels=labels, exclude=("class", "duplicates"))
    assert (without.rows[:, :4] % 5 != np.arange(10)[:, None] % 5).all()
    assert (without.distances[:, :4] > 0).all()
    assert (without.rows[:, 4] == -1).all()


def test_nothing_left_is_no_error():
    x = points(4)
    for found in (
        nearest(x, k=2, labels=[1] * 4, exclude="class"),
        nearest(x[:1], k=2),
        nearest(x, x[:0], k=2),
        nearest(torch.ones(4, 2), k=2, exclude="duplicates"),
    ):
        assert (found.rows == -1).all()
        assert (found.distances == math.inf).all()
        assert found.rows.shape == found.distances.shape == (len(found.rows), 2)
    assert nearest(x[:0], x, k=3).rows.shape == (0, 3)
    assert nearest(x, k=3, rows=[]).rows.shape == (0, 3)
    assert nearest(x, k=1000).rows[:, 3:].max() == -1


# ── what it takes ────────────────────────────────────────────────────────────────────────────────────────


def stored(values, tmp_path):
    """One matrix in every form."""
    np.save(tmp_path / "x.npy", values)
    flat = pa.array(values.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return {
        "numpy": values,
        "Fortran order": np.asfortranarray(values),
        "big-endian": values.astype(values.dtype.newbyteorder(">")),
        "a view": np.repeat(values, 2, 0)[::2],
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "Arrow": lists,
        "an Arrow slice": pa.concat_arrays([lists[:3], lists]).slice(3),
        "Arrow chunks": pa.chunked_array([lists[:5], lists[5:5], lists[5:20], lists[20:]]),
        "torch": torch.from_numpy(values),
        "with a gradient": torch.from_numpy(values.copy()).requires_grad_(),
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_kind_of_storage_gives_the_same(dtype, tmp_path):
    x = points(60, 5).numpy().astype(dtype)
    expected = nearest(torch.from_numpy(x.astype(np.float32) if dtype == np.float16 else x), k=4)
    positives = nearest(x, k=4, labels=np.arange(60) % 5, exclude=("self", "other classes"))
    assert expected.rows.dtype == np.int64
    assert expected.distances.dtype == (np.float64 if dtype == np.float64 else np.float32)
    with override(tile_bytes=4000):
        for values in stored(x, tmp_path).values():
            same(nearest(values, k=4), expected)
            same(nearest(x[:7], values, k=4), nearest(x[:7], x, k=4))
            found = nearest(values, k=4, labels=np.arange(60) % 5, exclude=("self", "other classes"))
            same(found, positives)


def test_half_and_single_precision_meet_in_single():
    x = points(9, 4).half()
    found = nearest(x, x.float(), k=1, distance="cosine")
    assert found.rows[:, 0].tolist() == list(range(9))
    assert not found.distances.any()
    assert nearest(x, x.double(), k=1).distances.dtype == np.float64
    assert nearest(x.bfloat16(), k=1).distances.dtype == np.float32


def test_labels_are_names_or_numbers_of_any_size():
    x = points(8, 3)
    names = np.array(list("abcdabcd"))
    large = torch.arange(8) % 4 + 2**60
    found = nearest(x, k=7, labels=names, exclude="class").rows
    for labels in (list(names), large, large.tolist(), names.astype(object)):
        assert np.array_equal(found, nearest(x, k=7, labels=labels, exclude="class").rows)
    crossed = nearest(x, x, k=8, labels=names, column_labels=names[::-1], exclude="other classes").rows
    assert [set(row) - {-1} for row in crossed.tolist()] == [{3 - i % 4, 7 - i % 4} for i in range(8)]


class Own(SameLabel):
    """A relation of one's own, which is asked for every pair."""

    def sides(self, rows, columns):
        positive, _ = super().sides(rows, columns)
        return positive, rows[:, None] + 1 == columns


@pytest.mark.parametrize(
    ("relation", "labels"),
    [
        (SharedLabel(), torch.randint(0, 2, (30, 3), generator=torch.Generator().manual_seed(1))),
        (CrossGroup(), torch.randint(0, 3, (30, 2), generator=torch.Generator().manual_seed(1))),
        (Graded(0.6, 0.2), torch.randint(0, 2, (30, 4), generator=torch.Generator().manual_seed(1))),
        (Own(), torch.arange(30) % 4),
        (SameLabel(), torch.arange(30) % 4),
    ],
)
def test_relations_say_what_is_positive_and_negative(relation, labels):
    x, rows = points(30, 3), torch.tensor([3, 1, 29])
    d = plain("euclidean", x[rows], x)
    positive, negative = relation.sides(labels[rows], labels)
    own = rows[:, None] == torch.arange(30)
    for what, side in (("class", negative), ("other classes", positive)):
        with override(tile_bytes=200):
            asked = {"exclude": ("self", what), "relation": relation, "labels": labels, "rows": rows}
            found = nearest(x, k=9, **asked)
            two = nearest(
                x[rows], x, k=9, exclude=what, relation=relation, labels=labels[rows], column_labels=labels
            )
        same(found, brute(d, ~side | own, 9))
        same(two, brute(d, ~side, 9))


# ── rows of NaN ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("distance", [d for d in DISTANCES if d != "hamming"])
def test_rows_of_nan_find_nothing_and_are_not_found(distance):
    x = points(50, 4)
    bad = torch.tensor([0, 7, 31, 49])
    good = torch.tensor([i for i in range(50) if i not in bad.tolist()])
    broken = x.clone()
    broken[bad[:2]] = math.nan
    broken[bad[2:], 1] = math.nan
    expected = nearest(x[good], k=3, distance=distance)
    with override(tile_bytes=300, gathered_numbers=40):
        found = nearest(broken, k=3, distance=distance, nan="skip")
        two = nearest(broken[[7, 8]], broken, k=3, distance=distance, nan="skip", exclude=())
    np.testing.assert_array_equal(found.rows[good], good.numpy()[expected.rows])
    np.testing.assert_array_equal(found.distances[good], expected.distances)
    assert (found.rows[bad] == -1).all()
    assert (two.rows[0] == -1).all()
    assert not set(two.rows[1].tolist()) & set(bad.tolist())
    assert (nearest(broken[bad], k=2, nan="skip").rows == -1).all()


def test_nan_and_infinite_rows_are_refused_with_their_number():
    x = points(50, 4)
    x[[7, 31]] = math.nan
    with override(gathered_numbers=40):
        said = refusal_of(nearest, x)
        others = refusal_of(nearest, points(3, 4), x)
        x[20, 2] = math.inf
        infinite = refusal_of(nearest, x, nan="skip")
    tail = "expected finite embeddings, none larger than 2e+18; rows of NaN, as of images that do not decode"
    assert (
        said == f"nearest(queries='2 of 50 rows, the first is row 7'): {tail}, are left out with nan=\"skip\""
    )
    assert others.startswith("nearest(columns='2 of 50 rows, the first is row 7'): ")
    assert infinite.startswith("nearest(queries='1 of 50 rows, the first is row 20'): expected finite")
    assert infinite.endswith("look for infinite values in what the model gives")


# ── sentences ────────────────────────────────────────────────────────────────────────────────────────────


X = points(6, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 0}, "nearest(k=0): expected a whole number of at least 1"),
        ({"exclude": "clas"}, "did you mean 'class'?"),
        ({"exclude": 3}, "nearest(exclude=3): expected strings"),
        ({"exclude": ("class", "other classes"), "labels": [1] * 6}, "both leave nothing"),
        ({"exclude": "class"}, "nearest(labels=None): expected one for each row, since exclude= has "),
        ({"exclude": "id"}, "nearest(ids=None): expected one for each row, since exclude= has "),
        ({"labels": [1] * 6}, "nearest(labels='given'): expected exclude= with "),
        ({"groups": [1] * 6}, "nearest(groups='given'): expected exclude= with "),
        ({"exclude": "class", "labels": [1] * 5}, "nearest(labels='shape (5,)'): expected shape (6,)"),
        ({"exclude": "class", "labels": [1.5] * 6}, "expected whole numbers or strings"),
        ({"exclude": "class", "labels": [1] * 6, "column_labels": [1] * 6}, "nearest(column_labels='given')"),
        ({"columns": X, "exclude": "self"}, 'pass ids=, column_ids= and exclude="id"'),
        ({"columns": X, "exclude": "id", "ids": range(6)}, "nearest(column_ids=None): expected one for each"),
        ({"columns": X, "rows": [1]}, "nearest(rows='given beside columns'): expected rows of a collection"),
        ({"columns": X[:, :2]}, "nearest(columns='2 dimensions'): expected 3 dimensions, as queries have"),
        ({"columns": X[0]}, "nearest(columns='shape (3,)'): expected shape [n, d]"),
        ({"columns": X.tolist()}, "nearest(columns='list'): expected a numpy array, a tensor or an Arrow"),
        ({"columns": np.array([["a"]])}, "nearest(columns='an array of <U1'): expected a numpy array"),
        ({"columns": pa.array([[1.0]])}, "cast lists of one length with .cast(pa.list_("),
        ({"columns": pa.array([[1.0] * 3, None], pa.list_(pa.float32(), 3))}, "'rows that are null'"),
        ({"rows": [6]}, "nearest(rows=6): expected rows from 0 to 5, as there are 6"),
        ({"rows": [-1]}, "nearest(rows=-1): expected rows from 0 to 5"),
        ({"rows": torch.ones(6).bool()}, "expected whole row numbers [q]; of a mask take mask.nonzero()[0]"),
        ({"rows": [[0], [1, 2]]}, "expected whole row numbers [q]"),
        ({"k": 2**21}, "nearest(k=2097152): expected at most 1048576, as there are 6 columns"),
        ({"rows": [0.5]}, "nearest(rows='float64 of shape (1,)'): expected whole row numbers [q]"),
        ({"nan": "drop"}, "nearest(nan='drop'): expected one of 'error', 'skip'"),
        ({"memory": 0}, "nearest(memory=0): expected a whole number of at least 1"),
        ({"distance": "dot", "exclude": "duplicates"}, "expected a distance that is 0 for equal rows"),
        ({"distance": "l1"}, "nearest(distance='l1'): expected one of"),
        ({"relation": SameLabel}, "expected a relation: SameLabel()"),
        ({"device": "nowhere"}, "nearest(device='nowhere'): expected a device"),
        (
            {"backend": "faiss"},
            "nearest(backend='faiss'): expected one of 'exact', 'faiss-ivf', 'faiss-hnsw'",
        ),
        ({"min_recall": 0.9}, "expected a backend of FAISS: the exact search has recall 1"),
        ({"backend": "faiss-ivf", "min_recall": 2}, "nearest(min_recall=2): expected a finite number from 0"),
        ({"backend": "faiss-ivf", "progress": True}, 'expected backend="exact": FAISS does not tell how far'),
        ({"progress": "no"}, "nearest(progress='no'): expected True or False"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(options, expected):
    with unchecked():
        assert expected in refusal_of(nearest, X, **options)


def test_progress_goes_to_standard_error(capfd):
    nearest(X, k=1, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert "nearest" in err
