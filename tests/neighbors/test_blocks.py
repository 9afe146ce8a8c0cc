import math

import pytest
import torch

from tercet.neighbors.blocks import Candidates, RowBlock, split_rows
from tercet.pairwise.budget import override

INF = math.inf


def candidates():
    keys = torch.tensor([[1.0, INF, -2.0, INF], [-3.0, 4.0, INF, INF], [INF, INF, INF, INF]])
    return Candidates(torch.tensor([5, 3, 3]), keys, torch.tensor([7, 8, 9]), torch.tensor([1.0, -1.0, 1.0]))


def block():
    keys = torch.tensor([[0.0, 1.0, 2.0, INF], [1.0, 0.0, 3.0, INF]])
    positive = torch.tensor([[False, True], [True, False]])
    return RowBlock(
        torch.tensor([4, 6]), keys, torch.tensor([4, 6, 8]), slice(0, 2), positive, torch.zeros(2, 2).bool()
    )


@pytest.mark.parametrize("given", [False, True])
def test_reversed_candidates_have_the_opposite_sign_and_order(given):
    some = candidates()
    out = torch.zeros(3, 4) if given else None
    turned = some.reversed(out)
    assert turned.keys.tolist() == [[-1.0, INF, 2.0, INF], [3.0, -4.0, INF, INF], [INF] * 4]
    assert turned.sign.tolist() == [-1.0, 1.0, -1.0]
    assert torch.equal(some.keys, candidates().keys)
    assert not given or turned.keys is out
    again = turned.reversed()
    assert all(torch.equal(u, v) for u, v in zip(again, some, strict=True))


def test_rows_are_taken_with_their_sign():
    taken = candidates().take(torch.tensor([1, 1, 0]))
    assert taken.rows.tolist() == [3, 3, 5]
    assert taken.sign.tolist() == [-1.0, -1.0, 1.0]
    assert taken.keys[:, 0].tolist() == [-3.0, -3.0, 1.0]


def test_some_says_which_rows_have_a_candidate():
    assert candidates().some().tolist() == [True, True, False]


def test_the_sides_of_a_block():
    near, far = block().positives(), block().positives(farthest=True)
    assert near.keys.tolist() == [[INF, 1.0], [1.0, INF]]
    assert far.keys.tolist() == [[INF, -1.0], [-1.0, INF]]
    assert (near.sign.tolist(), far.sign.tolist()) == ([1.0, 1.0], [-1.0, -1.0])
    assert near.columns.tolist() == [4, 6]
    negatives = block().negatives()
    assert negatives.keys.tolist() == [[INF, INF, 2.0, INF], [INF, INF, 3.0, INF]]
    assert negatives.columns.tolist() == [4, 6, 8]
    assert [each.tolist() for each in block().positive_pairs()] == [[0, 1], [6, 4]]


def test_anchors_without_a_candidate_have_no_pair():
    negatives = block().negatives()
    negatives.keys[0] = INF
    assert [each.tolist() for each in block().positive_pairs(having=negatives)] == [[1], [4]]


@pytest.mark.parametrize("columns", [0, 512])
def test_the_extremes_are_the_sides_whether_in_one_table_or_two(columns):
    whole = block()._replace(
        class_block=slice(0, 3),
        positive=torch.tensor([[False, True, False], [True, False, False]]),
        negative=torch.tensor([[False, False, True], [False, False, True]]),
    )
    with override(argmin_columns=columns):
        found = whole.extremes()
    assert len(found) == (1 if columns else 2)
    rows, keys, sign = (
        torch.cat([getattr(each, name)[..., :3] if name == "keys" else getattr(each, name) for each in found])
        for name in ("rows", "keys", "sign")
    )
    assert rows.tolist() == [4, 6, 4, 6]
    assert sign.tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert keys.tolist() == [[INF, -1.0, INF], [-1.0, INF, INF], [INF, INF, 2.0], [INF, INF, 3.0]]


def test_the_extremes_of_a_narrow_class_block_are_two():
    positives, negatives = block().extremes()
    assert positives.columns.tolist() == [4, 6]
    assert negatives.columns.tolist() == [4, 6, 8]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_rows_are_split_side_by_side(count):
    rows = torch.arange(count)
    with override(gathered_keys=9):
        parts = list(split_rows(3, rows, -rows))
    assert [len(part) for part, _ in parts] == {0: [], 1: [1], 7: [3, 3, 1]}[count]
    assert all(torch.equal(one, -other) for one, other in parts)
