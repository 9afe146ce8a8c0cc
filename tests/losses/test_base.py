"""Lists of mined tuples that heads are given: what is one, and the ways of summing over it."""

import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.losses.base import rows_of_table
from tercet.losses.histogram import Histogram
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.pairwise.budget import budget, override
from tests.contracts.heads import (
    BATCHES,
    DISTANCES,
    Counted,
    Largest,
    check_alike,
    gradient_of,
)
from tests.helpers import double_points as points


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    "make",
    [
        TripletMargin,
        lambda **options: TripletMargin(swap=True, power=2, **options),
        lambda **options: TripletMargin(soft=True, **options),
        Contrastive,
        lambda **options: MarginLoss(num_classes=7, **options),
        lambda distance, **options: Histogram(**options),
    ],
    ids=["hinge", "squared, with swap", "soft", "contrastive", "margin loss", "histogram"],
)
def test_a_list_is_measured_by_a_table_or_pair_by_pair_alike(make, distance, in_order):
    x, labels = points(40, 6, seed=1), torch.arange(40) % 7
    x[1], x[7], x[9] = x[0] + 1e-9, x[0] + 1e-6, x[2]  # of other classes and of the same
    ref = References(points(30, 6, seed=2), torch.arange(30) % 7)
    for columns in (None, ref):
        mined = BatchAll()(x, labels, ref=columns)
        order = torch.arange(len(mined[0]))[::3]
        if not in_order:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
        mined = Triplets(*(index[order] for index in mined))
        for tile_rows in (None, 50):
            found = []
            for entries, way in ((0, "paired"), (10**9, "entries")):
                head = make(distance=distance, tile_rows=tile_rows).double()
                head.distance = Counted(head.distance)
                with override(table_numbers=0, table_share=entries):
                    found.append(gradient_of(head, x, labels, mined=mined, ref=columns))
                assert head.distance.calls == {way}
            check_alike(*found)


def test_a_table_is_taken_for_a_list_that_is_long_for_its_rows():
    x, labels = points(128, 128, dtype=torch.float32), torch.arange(128) % 16
    for miner, reduction, way in (
        (BatchAll(), "mean", "entries"),
        (BatchAll(), "none", "paired"),
        (BatchHard(), "mean", "paired"),
    ):
        head = TripletMargin(reduction=reduction)
        head.distance = Counted(head.distance)
        head(x, labels, mined=miner(x, labels))
        assert head.distance.calls == {way}


def test_a_table_has_few_entries_to_a_pair_and_fits_a_tile():
    x, y = torch.zeros(3000, 512), torch.zeros(100, 512)
    rows = torch.arange(16) % 2 + 70
    assert rows_of_table(x, y[:8], rows) is None  # too few pairs
    rows = rows.repeat(32)  # 512
    assert rows_of_table(x, y, rows) == slice(70, 72)
    rows[5] = 110  # 41 rows × 100 columns
    assert rows_of_table(x, y, rows) is None
    assert rows_of_table(x, y[:99], rows) == slice(70, 111)  # 4,059 entries for 512 pairs
    everywhere = (torch.arange(10**6) * 7919) % 3000
    assert rows_of_table(x, x[:700], everywhere) is None  # 2.1 million entries, 8.4 MB
    assert rows_of_table(x, x[:699], everywhere) == slice(0, 3000)
    assert rows_of_table(x.double(), x[:699].double(), everywhere) is None


@pytest.mark.parametrize("long", [1, 20_000])
def test_a_list_of_all_triplets_in_long_parts_gives_the_loss_of_all(long):
    x, labels = points(128, 128), torch.arange(128) % 16
    mined = BatchAll()(x, labels)
    head = TripletMargin(reduction="mean")
    with override(table_tuples=long):
        parts = [len(a) for a, *_ in head._chunks(x, x, *mined)]
        listed = gradient_of(head, x, labels, mined=mined)
    assert len(parts) > 1
    assert max(parts) == max(long, 2**23 // (128 * 8))
    check_alike(listed, gradient_of(head, x, labels))


def test_parts_of_a_list_are_long_for_a_table_alone():
    x, shuffled = torch.zeros(4000, 128), torch.randperm(40_000) % 4000
    sorted_rows, head = shuffled.sort().values, TripletMargin()
    height = 2**23 // (128 * 4)
    for rows, y, options, most in (
        (sorted_rows, x[:10], {}, budget(x.device).table_tuples),
        (sorted_rows, x[:10], {"tables": False}, height),
        (shuffled, x, {}, height),
    ):
        parts = list(head._chunks(x, y, rows, rows, **options))
        assert max(len(a) for a, _ in parts) == most
        assert torch.equal(torch.cat([a for a, _ in parts]), rows)
    parts = list(TripletMargin(tile_rows=7)._chunks(x, x[:10], sorted_rows, sorted_rows))
    assert max(len(a) for a, _ in parts) == 7


def test_a_long_list_with_swap_takes_the_memory_of_parts():
    """Between (p, n), of 3000 rows each, no table serves."""
    x, ref = points(4, 128, dtype=torch.float32), points(3000, 128, seed=1, dtype=torch.float32)
    mined = Triplets(torch.arange(80_000) % 4, *torch.randperm(160_000).view(2, -1) % 3000)
    for swap in (False, True):
        head = TripletMargin(swap=swap)
        head.distance = Counted(head.distance)
        with Largest() as seen:
            gradient_of(head, x, None, mined=mined, ref=References(ref, torch.zeros(3000).long()))
        assert seen.numbers <= 2**23 // 4 * 2  # both columns of a part, as features
        assert head.distance.calls == ({"entries", "paired"} if swap else {"entries"})


@pytest.mark.parametrize("library_form", [tuple, list, lambda mined: Triplets(*(v.int() for v in mined))])
def test_any_three_index_tensors_are_triplets(library_form):
    x, labels = BATCHES["P × K"]
    mined = BatchHard()(x, labels)
    assert torch.equal(TripletMargin()(x, mined=library_form(mined)), TripletMargin()(x, mined=mined))
    arrays = Triplets(*(index.numpy() for index in mined))
    assert torch.equal(TripletMargin()(x, mined=arrays), TripletMargin()(x, mined=mined))


def test_what_is_no_list_of_rows_of_the_batch_is_refused():
    x, rows = points(4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"Contrastive\(mined='tuple of 2'\): expected Triplets .* or Pairs"):
        Contrastive()(x, mined=(rows, rows))
    for head in (TripletMargin(), Contrastive()):
        with pytest.raises(
            ValueError, match=r"mined='row 4'\): expected rows below 4; pass the embeddings, and"
        ):
            head(x, mined=(rows, rows, rows + 3))


@pytest.mark.parametrize("mined", [("a", "b", "c"), (None, [0], [0]), ([[0], [1, 2]], [0], [0])])
def test_what_is_no_list_of_rows_gets_a_sentence(mined):
    with pytest.raises(
        ValueError, match=r"TripletMargin\(mined=.*\): expected one-dimensional tensors of row"
    ):
        TripletMargin()(torch.eye(3), None, mined)


def test_empty_lists_are_a_list():
    assert TripletMargin()(torch.eye(3), None, ([], [], [])) == 0
