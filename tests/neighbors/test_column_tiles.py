import math

import pytest
import torch

from tercet.neighbors.column_tiles import ColumnTiles
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise import products
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tercet.pairwise.tiles import Pairwise
from tests.helpers import points

N = 640  # above the size from which a search is in class order
SIZES = {"plain": {}, "small tiles": {"key_tile_numbers": 4096}, "few sampled": {"sampled_columns": 40}}


def opened(x, labels, distance="euclidean", **more):
    pairwise = Pairwise("test", x, labels, distance=as_distance("test", distance), **more)
    search = ExactSearch(pairwise)
    return pairwise, search, ColumnTiles.of(pairwise, search)


def check(x, labels, count, **more):
    """The lists of rows that were not missed are those of all keys; gives how many rows were missed."""
    pairwise, _, tiles = opened(x, labels, **more)
    features = pairwise.inputs[0].double()
    exact = pairwise.distance.tile(features, features)
    seen, lost = [], 0
    for block in tiles.blocks():
        keys, columns, missed = tiles.least(block, count)
        seen.append(block.rows)
        whole = list(tiles.whole_rows(block, missed))
        assert torch.equal(
            torch.cat([each.rows for each in whole]) if whole else block.rows[:0], block.rows[missed]
        )
        for each in whole:
            inside = each.columns[each.class_block]
            assert torch.equal(
                labels[inside][None] == labels[each.rows][:, None],
                each.positive | (inside == each.rows[:, None]),
            )
        lost += int(missed.sum())
        kept = ~missed
        rows = block.rows[kept]
        if not len(rows):
            continue
        allowed = exact[rows].clone()
        allowed[torch.arange(len(rows)), rows] = math.inf
        expected = allowed.sort(1).values[:, :count]
        found = allowed.gather(1, columns[kept])
        real = keys[kept] < math.inf
        assert torch.equal(real, expected < math.inf)
        assert torch.allclose(found[real], expected[real], atol=1e-5)
        assert (keys[kept][:, 1:] >= keys[kept][:, :-1]).all()
        for row, some in zip(columns[kept], real, strict=True):
            assert len(set(row[some].tolist())) == int(some.sum())
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(len(x)))
    return lost


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("count", [1, 9])
def test_the_lists_are_those_of_a_sort(count, distance, sizes):
    with override(**SIZES[sizes]):
        lost = check(points(N, d=8), torch.arange(N) % 80, count, distance=distance)
    assert lost < N // 20


@pytest.mark.parametrize("tile_rows", [1, 77, 10_000])
def test_the_height_of_tiles_changes_nothing(tile_rows):
    check(points(N, d=8), torch.arange(N) % 5, 12, tile_rows=tile_rows)


def test_equal_columns_are_all_missed_and_all_there():
    x = torch.ones(N, 3)
    with override(gathered_keys=0):
        assert check(x, torch.arange(N) % 4, 5) == N


def test_a_list_that_is_longer_than_a_sample_promises_is_left_to_whole_rows():
    assert check(points(N, d=8), torch.arange(N) % 4, N // 2 + 1) == N


def test_no_tiles_of_small_batches_and_of_double_precision():
    assert opened(points(20), torch.arange(20) % 4)[2] is None
    assert opened(points(N).double(), torch.arange(N) % 4)[2] is None
    with override(sampled_share=0):
        assert opened(points(N), torch.arange(N) % 4)[2] is None


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_keys_of_a_tile_are_within_the_error_of_their_rows(monkeypatch, distance, wide):
    monkeypatch.setattr(products, "_has_wide_units", lambda: wide)
    x = points(N, d=64) * 10.0 ** torch.linspace(-2, 1, N)[:, None] + 3
    _, search, _ = opened(x, torch.arange(N) % 80, distance)
    keys, places = search.keys, slice(5, 70)
    found = keys.tile(keys.side(places), keys.columns(slice(100, N)), x.new_empty(N * N))
    rows, columns = search.order[0][places], search.order[1][100:]
    u = search.exact.x.double()
    u = u - u.float().mean(0)
    true = torch.cdist(u[rows], u[columns]).square() - u[rows].square().sum(1, keepdim=True)
    assert ((found.double() - true).abs() <= keys.error[rows, None]).all()
    assert found.shape == (65, N - 100)
