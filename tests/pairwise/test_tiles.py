import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.core.checks import border
from tercet.core.indices import Pairs, References
from tercet.metrics.mining_stats import describe
from tercet.pairwise import mined as module
from tercet.pairwise.budget import budget, override
from tercet.pairwise.distances import euclidean
from tercet.pairwise.mined import mined_rows
from tercet.pairwise.tiles import Pairwise, tile_height
from tests.contracts.heads import PAIRED
from tests.helpers import points, unchecked
from tests.oracles import triplets as reference

HEIGHTS = [1, 2, 3, 7, 100]


def whole_relation(pairwise):
    tiles = list(pairwise.tiles())
    join = lambda field: torch.cat([getattr(tile, field) for tile in tiles])  # noqa: E731
    return join("distance"), join("positive"), join("negative")


def as_mask(pairs, n, r):
    mask = torch.zeros(n, r, dtype=torch.bool)
    for i, j in pairs:
        mask[i, j] = True
    return mask


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    ids=st.none() | st.lists(st.integers(0, 4), min_size=9, max_size=9),
    ref_labels=st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=6),
    ref_ids=st.none() | st.lists(st.integers(0, 4), min_size=6, max_size=6),
    height=st.sampled_from([None, *HEIGHTS]),
)
@settings(max_examples=80, deadline=None)
def test_positives_and_negatives_equal_the_loop_at_every_tile_height(
    labels, ids, ref_labels, ref_ids, height
):
    n = len(labels)
    y, ids = torch.tensor(labels), None if ids is None else torch.tensor(ids[:n])
    ref = None
    if ref_labels is not None:
        r = len(ref_labels)
        ref_ids = None if ids is None or ref_ids is None else torch.tensor(ref_ids[:r])
        ref = References(points(r, seed=1), torch.tensor(ref_labels), ref_ids)
    else:
        r = n
    pairwise = Pairwise("test", points(n), y, ids=ids, ref=ref, distance=euclidean, tile_rows=height)
    distance, positive, negative = whole_relation(pairwise)
    expected = reference.relation(y, ref and ref.labels, ids, ref and ref.ids)
    assert torch.equal(positive, as_mask(expected[0], n, r))
    assert torch.equal(negative, as_mask(expected[1], n, r))
    loop = reference.distances("euclidean", points(n), points(r, seed=1) if ref else None)
    torch.testing.assert_close(distance, torch.tensor(loop, dtype=torch.float32))


@pytest.mark.parametrize("height", [None, *HEIGHTS])
def test_positive_pairs_are_all_pairs_in_order_and_their_rows_are_the_tiles_rows(height):
    y = torch.tensor([0, 1, 0, 0, 1, 2, 0])
    pairwise = Pairwise("test", points(7), y, distance=euclidean, tile_rows=height)
    distance, positive, negative = whole_relation(pairwise)
    chunks = list(pairwise.positive_pairs())
    a, p = torch.cat([c.anchor for c in chunks]), torch.cat([c.positive for c in chunks])
    assert torch.equal(torch.stack([a, p], 1), positive.nonzero())
    assert torch.equal(torch.cat([c.d_ap for c in chunks]), distance[a, p])
    assert torch.equal(torch.cat([c.d_an for c in chunks]), distance[a])
    assert torch.equal(torch.cat([c.negative for c in chunks]), negative[a])
    assert all(len(c.anchor) <= pairwise.tile_rows for c in chunks)


def test_no_row_and_no_column_give_no_tile():
    nobody, nothing = points(0), torch.zeros(0, dtype=torch.int64)
    assert not list(Pairwise("test", nobody, nothing, distance=euclidean).tiles())
    empty = Pairwise(
        "test", points(3), torch.zeros(3).long(), ref=References(nobody, nothing), distance=euclidean
    )
    assert not list(empty.tiles())
    assert not list(empty.positive_pairs())


def test_a_tile_fits_the_budget():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    tile_bytes = budget(single.device).tile_bytes
    assert tile_height(1024, single, None) * 1024 * 4 == tile_bytes
    assert tile_height(1024, double, None) * 1024 * 8 == tile_bytes
    assert tile_height(10**9, single, None) == 1
    assert tile_height(1024, single, 3) == 3
    with override(tile_bytes=4 * 10 * 3):
        pairwise = Pairwise("test", points(10), torch.zeros(10).long(), distance=euclidean)
    assert [len(tile.distance) for tile in pairwise.tiles()] == [3, 3, 3, 1]
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"tile_rows=0\): expected a whole number of at least 1"),
        border("test"),
    ):
        tile_height(1, single, 0)


def test_references_may_have_another_precision():
    ref = References(points(3, seed=1).double(), torch.zeros(3).long())
    pairwise = Pairwise("test", points(2).bfloat16(), torch.zeros(2).long(), ref=ref, distance=euclidean)
    assert next(pairwise.tiles()).distance.dtype == torch.float64


def check_refused(text, embeddings, labels, **options):
    with unchecked(), pytest.raises(ValueError, match=text):
        Pairwise("Miner", embeddings, labels, distance=euclidean, **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_nan_infinite_or_overflowing_embeddings_are_a_clear_error(bad):
    x, y = points(4), torch.zeros(4).long()
    x[2, 1] = bad
    text = (
        r"embeddings='1 of 4 rows, the first is row 2'\): expected finite embeddings, none larger than 2e\+18"
    )
    check_refused(rf"Miner\({text}; look for NaN", x, y)
    check_refused(rf"Miner\(ref\.{text}", points(4), y, ref=References(x, y))


def test_the_largest_embeddings_let_through_have_finite_distances():
    x = torch.full((2, 16), (torch.finfo(torch.float32).max / 256) ** 0.5 * 0.999)
    x[1] *= -1
    pairwise = Pairwise("test", x, torch.zeros(2).long(), distance=euclidean)
    assert torch.isfinite(next(pairwise.tiles()).distance.square()).all()


def test_shapes_and_kinds_that_do_not_fit_are_refused_with_a_sentence():
    x, y = points(3), torch.zeros(3).long()
    check_refused(r"Miner\(embeddings='shape \(3,\)'\): expected a tensor \[n, d\]", x[:, 0], y)
    check_refused(r"Miner\(embeddings='list'\): expected a tensor", [1.0], y)
    check_refused(r"Miner\(labels='shape \(2,\)'\): expected shape \(3,\), one for each embedding", x, y[:2])
    check_refused(
        r"Miner\(labels='torch.float32'\): expected a tensor of whole numbers or bools; convert", x, y.float()
    )
    check_refused(r"Miner\(labels='list'\): expected a tensor of whole numbers", x, [0, 0, 0])
    check_refused(r"Miner\(ids='shape \(4,\)'\): expected shape \(3,\)", x, y, ids=torch.arange(4))
    check_refused(r"Miner\(ref='tuple'\): expected References", x, y, ref=(x, y))
    check_refused(
        r"Miner\(ref.labels='shape \(2,\)'\): expected shape \(3,\)", x, y, ref=References(x, y[:2])
    )
    check_refused(r"Miner\(ref.ids='shape \(2,\)'\)", x, y, ids=y, ref=References(x, y, y[:2]))
    check_refused(
        r"Miner\(ref.embeddings='5 dimensions'\): expected 4 dimensions, as the batch has",
        x,
        y,
        ref=References(points(3, 5), y),
    )


def test_references_with_ids_need_the_batch_s_ids():
    y = torch.zeros(3).long()
    text = r"Miner\(ids=None\): expected the batch's ids, since ref has ids; pass ids=, or make References"
    check_refused(text, points(3), y, ref=References(points(3), y, y))


def rows(*values):
    return tuple(torch.tensor(v, dtype=torch.int64) for v in values)


def test_mined_rows_become_int64():
    given = (torch.tensor([0, 2], dtype=torch.int32), [1, 0], np.array([1, 1]))
    out = mined_rows(given, 3, 2, torch.device("cpu"))
    assert [index.tolist() for index in out] == [[0, 2], [1, 0], [1, 1]]
    assert {index.dtype for index in out} == {torch.int64}
    assert len(mined_rows(Pairs(*rows([2], [1], [], [])), 3, 2, torch.device("cpu"))) == 4


@pytest.mark.parametrize(
    ("mined", "text"),
    [
        (
            rows([0], [1]),
            r"mined='tuple of 2'\): expected Triplets \(three index tensors\) or Pairs \(four index",
        ),
        (torch.tensor([0, 1, 2]), r"mined='Tensor of 3'\): expected Triplets"),
        (7, r"mined=7\): expected Triplets"),
        (
            rows([0], [1, 1], [1]),
            r"mined='index tensors of 1, 2, 1'\): expected as many positives, and as many neg",
        ),
        (rows([0], [1], [1, 1]), r"mined='index tensors of 1, 1, 2'\): expected as many positives"),
        (rows([0], [1], [1, 1], [0]), r"mined='index tensors of 1, 1, 2, 1'\): expected as many positives"),
        (
            rows([3], [1], [1]),
            r"mined='row 3'\): expected rows below 3; pass the embeddings, and the ref, that were",
        ),
        (rows([0], [2], [1]), r"mined='row 2'\): expected rows below 2"),
        (rows([0], [1], [-1]), r"mined='row -1'\): expected rows below 2"),
        (rows([0], [1], [3], [1]), r"mined='row 3'\): expected rows below 3"),
        (
            (torch.ones(1), *rows([1], [1])),
            r"'torch.float32 of shape \(1,\)'\): expected one-dimensional tensors",
        ),
        ((torch.ones(1, 1).long(), *rows([1], [1])), r"expected one-dimensional tensors of row numbers"),
        (
            (torch.ones(1).bool(), *rows([1], [1])),
            r"'torch.bool of shape \(1,\)'\): expected one-dimensional",
        ),
    ],
)
def test_what_is_no_list_of_rows_is_refused(mined, text):
    with pytest.raises(ValueError, match=rf"Head\(.*{text}"), border("Head"):
        mined_rows(mined, 3, 2, torch.device("cpu"))


BOTH = Pairs(*(torch.tensor(each) for each in ([0, 2, 1], [1, 3, 4], [3, 2, 2], [0, 0, 3])))  # (2, 3) twice


@pytest.mark.parametrize("name", [name for name, row in PAIRED.items() if row.lists == "pairs"])
def test_a_pair_listed_both_positive_and_negative_is_refused_by_every_head(name):
    row, x, labels = PAIRED[name], points(5).double(), torch.tensor([0, 0, 1, 1, 2])
    head = row.head()
    sentence = (
        r"\(mined='pair \(2, 3\)'\): expected pairs \(anchor, column\) listed as positive or as negative"
    )
    with pytest.raises(ValueError, match=type(head).__name__ + sentence):
        head(x, labels, BOTH)
    assert head(x, labels, Pairs(*BOTH[:2], BOTH[3], BOTH[2])).isfinite()  # (3, 2) is another pair


def test_a_pair_listed_both_positive_and_negative_is_refused_by_describe():
    with pytest.raises(ValueError, match=r"describe\(mined='pair \(2, 3\)'\).*take it out of one of the two"):
        describe(points(5), torch.tensor([0, 0, 1, 1, 2]), BOTH)


@pytest.mark.parametrize("n", [6, 10_000])
def test_pairs_on_both_sides_are_found_by_marks_and_by_sorting(n):
    """Among so many rows that marks for all pairs would be too many, and among few."""
    g = torch.Generator().manual_seed(0)
    for positives, negatives in ((3, 40), (40, 3)):
        sides = [torch.randint(0, 6, (2, count), generator=g) for count in (positives, negatives)]
        pairs, which = module._of_both_sides(*sides[0], *sides[1], n, n)
        found = pairs[which]
        expected = set.intersection(*(set(map(tuple, side.T.tolist())) for side in sides))
        assert expected
        assert {(int(key) // n, int(key) % n) for key in found} == expected
    apart = torch.tensor([[0], [1]]), torch.tensor([[1, 0, 5], [0, 0, 5]])
    assert not module._of_both_sides(*apart[0], *apart[1], n, n)[1].any()
