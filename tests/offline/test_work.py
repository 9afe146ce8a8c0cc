"""A search in blocks: every pair once, merged in any order, and bit-equal to the search in one piece."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.neighbors.nearest_search import Neighbors
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.work import SearchWork, merged, plan_blocks, work_of
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tests.helpers import names, refusal_of


@given(*[st.integers(0, 30)] * 2, *[st.integers(1, 12)] * 2)
def test_blocks_cover_every_pair_once(anchors, columns, height, width):
    seen = np.zeros((anchors, columns), dtype=int)
    for block in plan_blocks(anchors, columns, height, width):
        assert 0 < block.stop - block.first <= height
        assert 0 < block.end - block.start <= width
        seen[block.first : block.stop, block.start : block.end] += 1
    assert (seen == 1).all()


def top(rows, distances, k):
    """The k least of one list by (distance, row), by Python's own sort."""
    found = sorted(zip(distances, rows, strict=True))[:k]
    lacking = k - len(found)
    return [row for _, row in found] + [-1] * lacking, [d for d, _ in found] + [math.inf] * lacking


LISTS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=9)


@settings(max_examples=200)
@given(LISTS, st.lists(st.integers(0, 9), min_size=2, max_size=2), st.integers(1, 6))
def test_merging_is_that_of_one_list_in_any_order_and_grouping(distances, cuts, k):
    first, second = sorted(min(cut, len(distances)) for cut in cuts)
    spans = [range(first), range(first, second), range(second, len(distances))]
    parts = []
    for span in spans:
        rows, d = top(list(span), [distances[row] for row in span], k)
        parts.append(Neighbors(np.array([rows]), np.array([d])))
    expected = top(list(range(len(distances))), distances, k)
    for a, b, c in itertools.permutations(parts):
        for found in (merged([a, b, c], k), merged([merged([a, b], k), c], k)):
            assert (found.rows[0].tolist(), found.distances[0].tolist()) == expected


def check_equal(found, expected):
    """All arrays to the bit, suspects and the report."""
    for name in expected.__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        if name == "suspects":
            assert one.verdict == other.verdict
            columns = zip(one[:4], other[:4], strict=True)
        elif name == "report":
            assert one == other
            continue
        else:
            columns = [(one, other)]
        for a, b in columns:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from(["cosine", "euclidean", "squared_euclidean", "dot"]),
    *[st.integers(4, 50)] * 2,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
)
def test_blocks_of_any_size_give_what_one_piece_gives(
    tmp_path_factory, n, classes, seed, distance, height, width, grouped, named, holes, suspects
):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (n, 3)).astype(np.float32)  # many ties and duplicates
    if holes:
        x[rng.random(n) < 0.3] = math.nan
    options = {
        "ranks": (1, int(rng.integers(1, 20))),
        "groups": rng.integers(0, 3, n) if grouped else None,
        "ids": rng.integers(0, n, n) if named else None,
        "suspects": suspects,
        "distance": distance,
        "reserve": min(2, max(1, n - 1)),
    }
    labels = rng.integers(0, classes, n)
    expected = mine_hard_triplets(x, labels, **options)
    with override(work_anchors=height, work_columns=width):
        found = mine_hard_triplets(x, labels, **options, work=tmp_path_factory.mktemp("work"))
    check_equal(found, expected)


def collection(n=60, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype(dtype), np.arange(n) % 12


def mined(work, x, labels, **options):
    with override(work_anchors=16, work_columns=25):
        return mine_hard_triplets(x, labels, work=work, **options)


@pytest.fixture
def computed(monkeypatch):
    """The numbers of the blocks that were searched."""
    seen, compute = [], SearchWork.compute

    def noted(self, number):
        seen.append(number)
        return compute(self, number)

    monkeypatch.setattr(SearchWork, "compute", noted)
    return seen


def test_done_blocks_serve_other_filters_and_no_other_inputs(tmp_path, computed):
    x, labels = collection()
    work = tmp_path / "work"
    first = mined(work, x, labels)
    assert sorted(computed) == list(range(12))  # 4 blocks of anchors × 3 of columns
    kept = {file.name: file.stat().st_ino for file in work.iterdir()}
    assert len(kept) == 12
    computed.clear()
    check_equal(mined(work, x, labels), first)
    for options in ({"margin": 0.1}, {"strategy": "random", "seed": 3}, {"negatives": 4, "memory": 2**28}):
        check_equal(mined(work, x, labels, **options), mine_hard_triplets(x, labels, **options))
    assert not computed
    assert {file.name: file.stat().st_ino for file in work.iterdir()} == kept
    other = x.copy()
    other[3, 1] = np.nextafter(other[3, 1], np.float32(9))
    changed = labels.copy()
    changed[7] = 5
    for more in (
        (other, labels, {}),
        (x, changed, {}),
        (x, labels, {"ranks": (1, 7)}),
        (x, labels, {"distance": "euclidean"}),
        (x, labels, {"ids": np.arange(60)}),
        (x.astype(np.float64), labels, {}),
    ):
        computed.clear()
        check_equal(mined(work, *more[:2], **more[2]), mine_hard_triplets(*more[:2], **more[2]))
        assert sorted(computed) == list(range(12))
    computed.clear()
    mined(work, x, labels, anchors=range(16))  # of the first block of anchors before
    assert computed == []


def test_a_block_that_is_damaged_missing_or_of_another_name_is_searched_again(tmp_path, computed):
    x, labels = collection()
    work = tmp_path / "work"
    first = mined(work, x, labels)
    whole = {file: file.read_bytes() for file in sorted(work.iterdir())}
    files = list(whole)
    files[0].write_bytes(whole[files[1]])
    files[2].write_bytes(whole[files[2]][:-1])
    files[5].unlink()
    computed.clear()
    check_equal(mined(work, x, labels), first)
    assert len(computed) == 3
    assert {file: file.read_bytes() for file in sorted(work.iterdir())} == whole


def test_a_block_that_is_removed_while_it_is_merged_is_searched_again(tmp_path, computed):
    x, labels = collection()
    codes = {"labels": labels}
    with override(work_anchors=16, work_columns=25):
        work = work_of(tmp_path, x, np.arange(60), 5, as_distance("", "cosine"), codes, ["class"], None)
    for number in range(12):
        work.compute(number)
    whole = work.found(slice(None))
    for file in tmp_path.iterdir():
        file.unlink()
    for some in (slice(16, 32), slice(20, 50), slice(59, 60), slice(3, 3)):  # also across blocks
        found = work.found(some)
        for one, other in zip(found, whole, strict=True):
            assert np.array_equal(one, other[some])
    assert len(computed) == 12 + 12 - 3
    assert len(names(tmp_path)) == 9


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "map"])
def test_every_kind_of_matrix_gives_what_it_gives_in_one_piece(tmp_path, kind):
    x, labels = collection()
    np.save(tmp_path / "x.npy", x)
    given = {
        "half": x.astype(np.float16),
        "bfloat16": torch.from_numpy(x).bfloat16(),
        "double": x.astype(np.float64),
        "map": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }[kind]
    check_equal(mined(tmp_path / "work", given, labels), mine_hard_triplets(given, labels))


def test_memory_that_no_block_fits_into_is_refused(tmp_path):
    x, labels = collection()
    said = refusal_of(mined, tmp_path / "work", x, labels, memory=1000)
    assert said.startswith("mine_hard_triplets(memory=1000): expected ")
    assert said.endswith(" bytes or more for this search")


class Odd:
    """A distance that holds something of which nothing tells what it is."""

    differentiable = False

    def __init__(self):
        self.lock = open(__file__)  # noqa: SIM115

    def prepare(self, embeddings):
        return embeddings

    def tile(self, x, y):
        return torch.cdist(x, y)

    def paired(self, x, y):
        return (x - y).norm(dim=1)


def test_a_distance_that_cannot_be_told_is_refused(tmp_path):
    x, labels = collection()
    odd = Odd()
    said = refusal_of(mined, tmp_path / "work", x, labels, distance=odd)
    odd.lock.close()
    assert "distance=" in said
    assert "expected one whose changes can be told, since blocks are found again by it" in said
