"""Triplets, Pairs and References: plain tuples of row numbers, of numpy or of torch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tercet.core.indices import Pairs, References, Triplets, TripletSequence, rows_at

KINDS = [np.array, torch.tensor]


@pytest.mark.parametrize("array", KINDS)
def test_triplets_count_and_unpack(array):
    triplets = Triplets(array([0, 1]), array([1, 0]), array([2, 2]))
    assert type(triplets.count) is int
    assert triplets.count == 2
    anchor, positive, negative = triplets
    assert (anchor.tolist(), positive.tolist(), negative.tolist()) == ([0, 1], [1, 0], [2, 2])
    assert isinstance(triplets, tuple)
    assert len(triplets) == 3
    assert Triplets._fields == ("anchor", "positive", "negative")


@pytest.mark.parametrize("array", KINDS)
def test_pairs_count_both_kinds_and_unpack(array):
    pairs = Pairs(array([0, 1, 2]), array([1, 0, 3]), array([0]), array([2]))
    assert type(pairs.count) is int
    assert pairs.count == 4
    pos_anchor, positive, neg_anchor, negative = pairs
    assert (pos_anchor.tolist(), positive.tolist()) == ([0, 1, 2], [1, 0, 3])
    assert (neg_anchor.tolist(), negative.tolist()) == ([0], [2])
    assert len(pairs) == 4
    assert Pairs._fields == ("pos_anchor", "positive", "neg_anchor", "negative")


@pytest.mark.parametrize("empty", [np.empty(0, dtype=np.int64), torch.empty(0, dtype=torch.int64)])
def test_nothing_mined_counts_nothing(empty):
    assert Triplets(empty, empty, empty).count == 0
    assert Pairs(empty, empty, empty, empty).count == 0


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_interleaved_names_every_row_of_the_batch_once(count):
    triplets = Triplets.interleaved(count)
    assert triplets.count == count
    assert all(rows.dtype == np.int64 for rows in triplets)
    assert np.stack(triplets, axis=1).ravel().tolist() == list(range(3 * count))  # q p n q p n …


def test_interleaved_rows_index_numpy_and_torch():
    q, p, n = Triplets.interleaved(2)
    rows = ["q0", "p0", "n0", "q1", "p1", "n1"]
    assert np.array(rows)[q].tolist() == ["q0", "q1"]
    assert torch.arange(6)[p].tolist() == [1, 4]
    assert torch.arange(6)[n].tolist() == [2, 5]


def test_a_negative_count_of_triplets_is_refused():
    with pytest.raises(ValueError, match=r"^Triplets.interleaved\(count=-1\): expected a whole number of at"):
        Triplets.interleaved(-1)


def test_references_need_no_ids():
    embeddings, labels, ids = References(torch.eye(2), torch.tensor([0, 1]))
    assert embeddings.shape == (2, 2)
    assert labels.tolist() == [0, 1]
    assert ids is None
    assert References(torch.eye(2), labels, ids=torch.tensor([5, 6])).ids.tolist() == [5, 6]


def test_tuples_survive_pickle():
    triplets = pickle.loads(pickle.dumps(Triplets.interleaved(2)))
    assert type(triplets) is Triplets
    assert triplets.negative.tolist() == [2, 5]


class Computed:
    """Triplets by their number, as `TripletSequence` describes them."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        row = np.atleast_1d(np.arange(5)[index])
        return Triplets(row, row + 1, row + 2)


def test_a_triplet_sequence_is_known_by_its_two_methods():
    assert isinstance(Computed(), TripletSequence)
    assert not isinstance(iter([]), TripletSequence)
    assert not isinstance(5, TripletSequence)


@pytest.mark.parametrize(
    ("index", "anchor"), [(3, [3]), (-1, [4]), (slice(1, 3), [1, 2]), (np.array([4, 0]), [4, 0])]
)
def test_a_triplet_sequence_gives_triplets_for_a_number_a_slice_and_an_array(index, anchor):
    sequence: TripletSequence = Computed()
    assert type(sequence[index]) is Triplets
    assert sequence[index].anchor.tolist() == anchor


@pytest.mark.parametrize(
    "index",
    [
        *[0, 4, -1, -5, np.int64(3), np.array(3), torch.tensor(3)],
        *[slice(None), slice(1, 4), slice(None, None, -2), slice(9, 20), slice(-2, None)],
        *[[1, -1, 1], np.array([4, 0], dtype=np.uint8), torch.tensor([2, -2]), np.arange(0), []],
    ],
    ids=repr,
)
def test_rows_at_are_what_numpy_finds_there(index):
    rows = rows_at(index, 5)
    assert rows.dtype == np.int64
    place = np.asarray(index, dtype=np.int64) if not isinstance(index, slice) else index
    assert rows.tolist() == np.atleast_1d(np.arange(5)[place]).tolist()


@pytest.mark.parametrize(("index", "worst"), [(5, 5), (-6, -6), ([0, 7], 7), (np.array([-9, 0]), -9)])
def test_a_row_outside_is_an_index_error(index, worst):
    with pytest.raises(IndexError, match=f"^expected numbers from -5 to 4, got {worst}$"):
        rows_at(index, 5)


@pytest.mark.parametrize("index", [1.0, "1", True, None, [True, False], [[0, 1]]])
def test_what_names_no_rows_is_an_index_error(index):
    with pytest.raises(IndexError, match=r"^expected a whole number, a slice or whole numbers \[t\], got "):
        rows_at(index, 5)
