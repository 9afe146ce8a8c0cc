import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tercet.core.indices import Pairs, References, Triplets
from tercet.losses.histogram import FastAP, Histogram
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.pairwise.budget import budget
from tests.contracts.heads import (
    BATCHES,
    HEADS,
    Largest,
    check_equal,
    check_finite,
    check_gradient,
    check_zero,
    gradient_of,
)
from tests.helpers import double_points as points
from tests.helpers import unchecked
from tests.oracles import histogram as loops
from tests.oracles import triplets as reference

NAMES = [name for name in HEADS if HEADS[name].make in (Histogram, FastAP)]
every_head = pytest.mark.parametrize("name", NAMES)


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    ids=st.none() | st.lists(st.integers(0, 5), min_size=8, max_size=8),
    ref_labels=st.none() | st.lists(st.integers(0, 2), max_size=6),
    ref_ids=st.none() | st.lists(st.integers(0, 5), min_size=6, max_size=6),
    height=st.sampled_from([None, 1, 3]),
    name=st.sampled_from(NAMES),
)
@settings(max_examples=60, deadline=None)
def test_a_head_equals_the_loop_for_any_labels_ids_and_references(
    labels, ids, ref_labels, ref_ids, height, name
):
    x, y = points(len(labels)), torch.tensor(labels)
    ids = None if ids is None else torch.tensor(ids[: len(labels)])
    ref = None
    if ref_labels is not None:
        r = len(ref_labels)
        ref_ids = None if ids is None or ref_ids is None else torch.tensor(ref_ids[:r]).long()
        ref = References(points(r, seed=1), torch.tensor(ref_labels, dtype=torch.int64), ref_ids)
    loss = HEADS[name].head(tile_rows=height)(x, y, ids=ids, ref=ref)
    check_equal(loss, HEADS[name].expected(x, y, ids=ids, ref=ref))


def test_a_pair_is_pulled_or_pushed_by_the_other_histogram_in_its_bin():
    # Unit vectors at angles, so that each similarity is known: S⁺ = {0.3}, S⁻ = {0.1, −0.35}, bins of 1/2.
    angles = torch.tensor([0.0, math.acos(0.3), -math.acos(0.1)], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    s_neg = [0.1, math.cos(math.acos(0.3) + math.acos(0.1))]
    h_neg = [c / 2 for c in loops.soft_counts(s_neg, -1.0, 1.0, 4)]
    h_pos = loops.soft_counts([0.3], -1.0, 1.0, 4)
    by_s = {(0, 1): -h_neg[2] / 0.5}  # the positive lies in bin 2, [0, 1/2]
    by_s[0, 2], by_s[1, 2] = (h_pos[math.floor((s + 1) * 2) + 1] / 2 / 0.5 for s in s_neg)
    expected = torch.zeros_like(x)
    for (i, j), slope in by_s.items():
        for a, b in ((i, j), (j, i)):
            expected[a] += slope * (x[b] - (x[a] @ x[b]) * x[a])
    _, grad = gradient_of(Histogram(4), x, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(grad, expected)
    assert by_s[0, 1] < 0 < by_s[0, 2]


def test_a_hand_made_histogram():
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    # Nodes −1, −½, 0, ½, 1: 0.8 gives 0.4 and 0.6 to the last two; {0, 0.6} give ½ to 0, 0.4 to ½, 0.1 to 1.
    check_equal(Histogram(4)(x, torch.tensor([0, 0, 1])), 0.4 * 0.4 + 0.1 * 1.0, rel=1e-6)


def test_the_loss_tends_to_the_share_of_negatives_above_positives():
    x, labels = nn.functional.normalize(points(40, 3)), torch.arange(40) % 4
    positive, negative = (loops.once(pairs, True) for pairs in reference.relation(labels))
    s = 1 - torch.tensor(reference.distances("cosine", x))
    above = sum(float(s[n] > s[p]) for p in positive for n in negative) / len(positive) / len(negative)
    assert abs(Histogram(100_000)(x, labels).item() - above) < 1e-3


@every_head
def test_a_similarity_of_1_falls_on_the_last_node_and_of_minus_1_on_the_first(name):
    x = points(40, 8, dtype=torch.float32)
    x, labels = torch.cat([x, x, -x]), torch.arange(120) % 5
    unit = nn.functional.normalize(x)
    assert (unit @ unit.T).max() > 1  # by rounding, where there is no node
    check_equal(HEADS[name].head()(x, labels), HEADS[name].expected(x, labels), rel=1e-5)
    check_finite(HEADS[name].head(), x, labels)
    line = torch.tensor([[1.0], [2.0], [-1.0], [-3.0]])
    for labels in (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])):
        check_equal(HEADS[name].head()(line, labels), HEADS[name].expected(line, labels), rel=1e-6)
        check_finite(HEADS[name].head(), line, labels)


def at_nodes(dtype):
    """Rows of 100 signs among 128 numbers, divided by 10: each cosine is a multiple of 1/50, to rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(64, 128, dtype=dtype)
    for row in x:
        signs = torch.randint(0, 2, (100,), generator=generator)
        row[torch.randperm(128, generator=generator)[:100]] = 2 * signs.to(dtype) - 1
    return x, torch.arange(64) % 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Histogram, FastAP])
def test_the_gradient_at_a_node_is_one_whatever_the_tile_the_list_or_the_references(kind, dtype):
    x, labels = at_nodes(dtype)
    expected = gradient_of(kind(100), x, labels)
    found = [gradient_of(kind(100, tile_rows=height), x, labels) for height in (1, 3, 64)]
    x, ids = x.clone().requires_grad_(), torch.arange(64)
    loss = kind(100)(x, labels, ids=ids, ref=References(x, labels, ids))
    found.append((loss, *torch.autograd.grad(loss, x)))
    if kind is Histogram:
        upper = torch.ones(64, 64).triu(1) > 0
        same = labels[:, None] == labels
        pairs = Pairs(*(upper & same).nonzero().T, *(upper & ~same).nonzero().T)
        found += [gradient_of(kind(100, tile_rows=height), x, None, mined=pairs) for height in (None, 3)]
    for one in found:
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("kind", [Histogram, FastAP])
def test_the_gradient_at_a_node_is_that_of_the_bin_of_lower_similarities(kind):
    def gradient(s):
        angles = torch.tensor([0.0, math.acos(s), 1.2, -1.9], dtype=torch.float64)
        x = torch.stack([angles.cos(), angles.sin()], 1)
        return gradient_of(kind(4), x, torch.tensor([0, 0, 1, 1]))[1]

    torch.testing.assert_close(gradient(0.5), gradient(0.5 - 1e-9))
    assert not torch.allclose(gradient(0.5), gradient(0.5 + 1e-9), rtol=1e-3)


def test_coincident_positives_do_not_hide_the_others():
    x, labels = BATCHES["two identical images"]
    for name in ("histogram, 7 bins", "FastAP"):
        _, grad = gradient_of(HEADS[name].head(), x, labels)
        assert grad[2:].abs().sum() > 0


@every_head
def test_a_zero_embedding_is_orthogonal_to_all_and_has_no_gradient(name):
    x, labels = BATCHES["P × K"]
    x = x.clone()
    x[4] = 0
    check_equal(HEADS[name].head()(x, labels), HEADS[name].expected(x, labels))
    _, grad = gradient_of(HEADS[name].head(), x, labels)
    assert torch.equal(grad[4], torch.zeros(4, dtype=torch.float64))


@every_head
def test_the_length_of_an_embedding_counts_for_nothing(name):
    x, labels = BATCHES["P × K"]
    scaled = x * torch.logspace(-8, 8, len(x), dtype=torch.float64)[:, None]
    torch.testing.assert_close(HEADS[name].head()(scaled, labels), HEADS[name].head()(x, labels))
    _, grad = gradient_of(HEADS[name].head(), x, labels)
    torch.testing.assert_close((grad * x).sum(1), torch.zeros(len(x), dtype=torch.float64))


def test_a_query_without_negatives_is_averaged_as_0():
    x, labels, ids = points(3), torch.tensor([0, 0, 1]), torch.tensor([5, 6, 5])  # row 0 meets row 1 alone
    loss = FastAP()(x, labels, ids=ids)
    check_equal(loss, HEADS["FastAP"].expected(x, labels, ids=ids))
    assert loss > 0


def test_millions_of_pairs_in_few_bins_keep_their_digits():
    x, labels = points(1500, 64), torch.arange(1500) % 5
    for head in (Histogram(10), FastAP(4)):
        torch.testing.assert_close(head(x.float(), labels).double(), head(x, labels), rtol=1e-6, atol=0)


def test_classes_apart_by_more_than_a_bin_have_no_loss():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]])
    for name in NAMES:
        if "1 bin" not in name:
            check_equal(HEADS[name].head()(x, torch.tensor([0, 0, 1, 1])), 0.0, rel=1e-6)


def test_empty_tuples_are_0_with_a_graph():
    x, labels = BATCHES["P × K"]
    none, some = torch.zeros(0).long(), torch.tensor([0, 1])
    for mined in ((none,) * 3, Triplets(none, none, none), Pairs(none, none, none, none)):
        check_zero(Histogram(), x, labels, mined=mined)
        check_zero(Histogram(), x[:0], labels[:0], mined=mined)
    check_zero(Histogram(), x, labels, mined=Pairs(some, some + 1, none, none))
    check_zero(Histogram(), x, labels, mined=Pairs(none, none, some, some + 1))


def test_one_positive_and_one_negative_pair_have_a_loss():
    x, labels = torch.tensor([[1.0, 0.1], [0.8, 0.8], [1.0, 0.8]]), torch.tensor([0, 0, 1])
    mined = Pairs(*torch.tensor([[0], [1], [0], [2]]))
    for name in NAMES:
        for call in ({}, {"mined": mined} if HEADS[name].make is Histogram else {}):
            loss, grad = gradient_of(HEADS[name].head(), x, labels, **call)
            assert loss.item() > 0.1
            # In bins of 1/50 the two pairs do not meet: no small step changes which is more similar.
            assert (grad.abs().sum() > 0) == (name != "histogram")


@every_head
def test_the_gradient_is_the_same_at_every_tile_height(name):
    x, labels = points(30, 6, seed=3, dtype=torch.float32), torch.arange(30) % 7
    loss, grad = gradient_of(HEADS[name].head(), x, labels)
    for height in (1, 7, 29, 30):
        tiled, tiled_grad = gradient_of(HEADS[name].head(tile_rows=height), x, labels)
        torch.testing.assert_close(tiled, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tiled_grad, grad, rtol=1e-4, atol=1e-5)


def histogram_of_pairs(x, positive, negative, ref=None, bins=100):
    d = reference.distances("cosine", x, None if ref is None else ref.embeddings)
    return loops.histogram_loss(d, positive, negative, bins=bins, unordered=ref is None)


@pytest.mark.parametrize("height", [None, 1, 3])
def test_each_distinct_mined_pair_counts_once(height):
    x, labels = BATCHES["uneven positives per anchor"]
    head = Histogram(7, tile_rows=height)
    triplets = BatchAll()(x, labels)
    anchors, positives, negatives = (index.tolist() for index in triplets)
    sides = [set(zip(anchors, others, strict=True)) for others in (positives, negatives)]
    assert len(anchors) > len(sides[0])
    check_equal(head(x, mined=triplets), histogram_of_pairs(x, *sides, bins=7))
    check_gradient(head, x, labels, mined=triplets)
    pairs = Pairs(*(torch.tensor(v) for v in ([0, 1, 0, 2], [1, 0, 1, 3], [0, 5, 0], [5, 0, 8])))
    check_equal(head(x, mined=pairs), histogram_of_pairs(x, {(0, 1), (2, 3)}, {(0, 5), (0, 8)}, bins=7))
    check_gradient(head, x, labels, mined=pairs)


def test_the_negative_of_a_mined_triplet_meets_the_anchor():
    x = points(3)
    expected = histogram_of_pairs(x, {(0, 1)}, {(0, 2)}, bins=3)
    assert expected != histogram_of_pairs(x, {(0, 1)}, {(1, 2)}, bins=3)
    check_equal(Histogram(3)(x, mined=Triplets(*torch.tensor([[0], [1], [2]]))), expected)


def test_all_pairs_listed_give_the_loss_and_gradient_of_all_pairs():
    x, labels = BATCHES["P ≠ K, shuffled"]
    positive, negative = (loops.once(pairs, True) for pairs in reference.relation(labels))
    mined = Pairs(*torch.tensor(positive).T, *torch.tensor(negative).T)
    for height in (None, 2):
        head = Histogram(tile_rows=height)
        loss, grad = gradient_of(head, x, labels)
        for form in (mined, tuple(mined), Pairs(*(index.numpy() for index in mined))):
            listed, listed_grad = gradient_of(head, x, None, mined=form)
            torch.testing.assert_close(listed, loss)
            torch.testing.assert_close(listed_grad, grad)


def test_a_mined_pair_of_references_is_a_row_and_a_column():
    x, ref = points(3), References(points(4, seed=1), torch.arange(4))
    pairs = Pairs(*(torch.tensor(v) for v in ([0, 1], [1, 0], [2, 0], [3, 2])))  # (0, 1) is not (1, 0)
    expected = histogram_of_pairs(x, {(0, 1), (1, 0)}, {(2, 3), (0, 2)}, ref=ref)
    check_equal(Histogram()(x, mined=pairs, ref=ref), expected)


@every_head
def test_no_tensor_holds_bins_times_pairs_and_tiles_hold_less_than_all_pairs(name):
    kind, x, labels = HEADS[name].make, points(96, 8), torch.arange(96) % 6
    with Largest() as whole:
        gradient_of(kind(200), x, labels)
    assert whole.numbers <= 96 * max(96, 3 * 201)  # FastAP keeps three histograms a row
    with Largest() as tiled:
        gradient_of(kind(200, tile_rows=8), x, labels)
    assert tiled.numbers <= max(96 * 8, 8 * 3 * 201)


def test_a_tile_of_wide_histograms_has_few_rows():
    with Largest() as seen:
        loss = FastAP(100_000)(*BATCHES["P × K"])
    assert seen.numbers <= budget(torch.device("cpu")).tile_bytes // 8
    assert loss > 0


def test_the_probe_sees_a_tensor_of_bins_times_pairs():
    with Largest() as seen:
        (points(96)[:, :1] - points(96)[:, 0]).sub(torch.linspace(-1, 1, 201)[:, None, None]).abs().sum()
    assert seen.numbers == 96 * 96 * 201


@every_head
def test_a_second_derivative_is_refused(name):
    x, labels = BATCHES["P × K"]
    x = x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"(Histogram|FastAP)\(create_graph=True\): expected False, since"):
        torch.autograd.grad(HEADS[name].head()(x, labels), x, create_graph=True)


@pytest.mark.parametrize("kind", [Histogram, FastAP])
@pytest.mark.parametrize("bins", [0, -1, 2.5, "100", True, None, 100_001])
def test_bins_out_of_range_are_refused(kind, bins):
    text = rf"{kind.__name__}\(bins={bins!r}\): expected a whole number from 1 to 100000"
    with unchecked(), pytest.raises(ValueError, match=text):
        kind(bins)


@pytest.mark.parametrize("kind", [Histogram, FastAP])
def test_a_misspelt_option_and_a_wrong_height_are_refused(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_bins'"):
        kind(n_bins=10)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(tile_rows=0\): expected a whole number of at l"):
        kind(tile_rows=0)


def test_fast_ap_refuses_mined_rows():
    x, labels = BATCHES["P × K"]
    text = r"FastAP\(mined='Triplets'\): expected None: a row ranks all columns; call it with embeddings"
    with pytest.raises(ValueError, match=text):
        FastAP()(x, labels, BatchHard()(x, labels))


def test_options_show_when_printed_and_nothing_is_stored():
    assert repr(Histogram(50)) == "Histogram(bins=50)"
    assert repr(FastAP()) == "FastAP(bins=10)"
    assert not Histogram().state_dict()
