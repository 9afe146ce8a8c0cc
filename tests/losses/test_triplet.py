import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tercet.core.indices import Pairs, References, Triplets
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.miners.batch_all import BatchAll
from tercet.pairwise.budget import override
from tercet.pairwise.distances import Mahalanobis, as_distance
from tercet.pairwise.tiles import Pairwise
from tests.contracts.heads import (
    BATCHES,
    DISTANCES,
    HEADS,
    Largest,
    check_equal,
    check_gradient,
    check_zero,
    gradient_of,
)
from tests.helpers import double_points as points
from tests.helpers import unchecked
from tests.oracles import triplets as reference

FORMS = [name for name in HEADS if HEADS[name].make in (TripletMargin, Contrastive)]
TRIPLETS = [name for name in FORMS if HEADS[name].make is TripletMargin]
REDUCTIONS = ["mean_active", "mean", "sum"]
every_head = pytest.mark.parametrize("name", FORMS)


@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_a_head_equals_the_loop_under_every_distance(name, distance):
    x, labels = BATCHES["P ≠ K, shuffled"]
    expected = HEADS[name].expected(x, labels, distance=distance)
    check_equal(HEADS[name].head(distance=distance)(x, labels), expected)


@every_head
def test_coincident_positives_do_not_hide_the_others(name):
    x, labels = BATCHES["two identical images"]
    for v in (x, x.float()):
        _, grad = gradient_of(HEADS[name].head(), v, labels)
        assert torch.isfinite(grad).all()
        assert grad[2:].abs().sum() > 0


def test_a_triplet_exactly_at_the_margin_is_satisfied():
    x, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 2])
    for swap in (False, True):
        mined = Triplets(*torch.tensor([[0], [1], [3 if swap else 2]]))
        check_zero(TripletMargin(margin=1.0, swap=swap), x, labels, mined=mined)
    check_zero(TripletMargin(margin=1.0), x[[0, 1, 3]], torch.tensor([0, 0, 1]))


@every_head
def test_a_misspelt_option_is_refused(name):
    kind = HEADS[name].make
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}\(reduction='mean-active'\).*did you mean 'mean_active'\?"
    ):
        kind(reduction="mean-active")
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(distance='cosin'\).*did you mean 'cosine'\?"):
        kind(distance="cosin")
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}\(distance=hamming\): expected a distance with a gradient"
    ):
        kind(distance="hamming")


@every_head
def test_losses_one_by_one_need_a_list(name):
    with pytest.raises(
        ValueError, match=r"\(mined=None\): expected mined (triplets|pairs) with reduction=.none.; pass"
    ):
        HEADS[name].head(reduction="none")(*BATCHES["P × K"])


@every_head
def test_a_head_keeps_no_parameters_but_the_distance_s(name):
    assert not list(HEADS[name].head().parameters())
    head = HEADS[name].head(distance=Mahalanobis(nn.Parameter(torch.eye(4, dtype=torch.float64))))
    assert [key for key, _ in head.named_parameters()] == ["distance.L"]
    x, labels = BATCHES["P × K"]
    head(x, labels).backward()
    assert head.distance.L.grad.abs().sum() > 0
    check_equal(head(x, labels), HEADS[name].expected(x, labels))


def triplets_of(x, labels):
    return sorted(zip(*(index.tolist() for index in BatchAll()(x, labels)), strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", TRIPLETS)
def test_the_list_of_all_triplets_gives_the_loss_of_all_triplets(name, reduction):
    x, labels = BATCHES["uneven positives per anchor"]
    mined = BatchAll()(x, labels)
    for height in (None, 3):
        head = HEADS[name].head(reduction=reduction, tile_rows=height)
        loss, grad = gradient_of(head, x, labels)
        listed, listed_grad = gradient_of(head, x, labels, mined=mined)
        torch.testing.assert_close(listed, loss)
        torch.testing.assert_close(listed_grad, grad)
    check_gradient(HEADS[name].head(reduction=reduction), x, labels, mined=mined)


@given(
    places=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    labels=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    margin=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    power=st.sampled_from([1, 2]),
    height=st.sampled_from([None, 1, 3]),
    few=st.sampled_from([0, 32]),
)
@example([0, 0, 0, 0, 1, 2, 2, 4, 3], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 0.0, 1, 1, 0)
@settings(max_examples=100, deadline=None)
def test_sums_equal_the_list_even_where_triplets_stand_exactly_at_the_margin(
    places, labels, margin, power, height, few
):
    x, labels = torch.tensor(places, dtype=torch.float64)[:, None], torch.tensor(labels[: len(places)])
    head = TripletMargin(margin, power=power, tile_rows=height)
    with override(positive_passes=few):
        loss, grad = gradient_of(head, x, labels)
    listed, listed_grad = gradient_of(head, x, labels, mined=BatchAll()(x, labels))
    torch.testing.assert_close(loss, listed)
    torch.testing.assert_close(grad, listed_grad)


@pytest.mark.parametrize("few", [0, 32, 100])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("sizes", [[2] * 6, [41, 9, 1], [50, 1], [3, 33, 20]])
def test_few_and_many_positives_are_summed_alike(sizes, power, few):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    x = points(len(labels), seed=3)
    for reduction in REDUCTIONS:
        head, whole = (TripletMargin(0.5, power=power, reduction=reduction, tile_rows=h) for h in (16, None))
        listed, listed_grad = gradient_of(whole, x, labels, mined=BatchAll()(x, labels))
        with override(positive_passes=few):
            loss, grad = gradient_of(head, x, labels)
            single, single_grad = gradient_of(head, x.float(), labels)
        torch.testing.assert_close(loss, listed, rtol=1e-9, atol=0)
        torch.testing.assert_close(grad, listed_grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(single.double(), listed, rtol=1e-5, atol=0)
        assert (single_grad - listed_grad).norm() <= 1e-5 * listed_grad.norm()


@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_a_gradient_in_float32_keeps_its_digits_even_between_near_duplicates(name, distance):
    x = nn.functional.normalize(points(48, 16)).float()
    x[1::2] = x[::2] + 1e-4 * points(24, 16, seed=1).float()
    labels = torch.arange(48) // 3
    loss, grad = gradient_of(HEADS[name].head(distance=distance, reduction="sum"), x, labels)
    exact, exact_grad = gradient_of(HEADS[name].head(distance=distance, reduction="sum"), x.double(), labels)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert (grad - exact_grad).norm() <= 1e-5 * exact_grad.norm()


class Foreign:
    """A distance of somebody else's, which the heads can only differentiate."""

    differentiable = True

    def __init__(self, name):
        self.own = as_distance("Foreign", name)
        self.prepare, self.tile, self.paired = self.own.prepare, self.own.tile, self.own.paired


@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_a_foreign_distance_has_the_loss_and_the_gradient_of_the_named_one(name, distance):
    x, labels = BATCHES["uneven positives per anchor"]
    y, ref_labels = points(7, seed=7), torch.arange(7) % 3
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        found = []
        for kind in (distance, Foreign(distance)):
            inputs = [v.clone().requires_grad_(w) for v, w in zip((x, y), wanted, strict=True)]
            loss = HEADS[name].head(distance=kind, tile_rows=4)(
                inputs[0], labels, ref=References(inputs[1], ref_labels)
            )
            if any(wanted):
                loss.backward()
            found.append((loss.detach(), *(v.grad for v in inputs if v.requires_grad)))
        torch.testing.assert_close(found[0], found[1])
    loss, grad = gradient_of(HEADS[name].head(distance=distance), x, labels)
    foreign, foreign_grad = gradient_of(HEADS[name].head(distance=Foreign(distance)), x, labels)
    torch.testing.assert_close(foreign, loss)
    torch.testing.assert_close(foreign_grad, grad)


@pytest.mark.parametrize("name", ["hinge", "squared hinge", "soft", "contrastive"])
def test_tiles_of_the_head_s_own_height_change_nothing(name):
    x, labels = points(600, 8, dtype=torch.float32), torch.arange(600) // 4
    loss, grad = gradient_of(HEADS[name].head(), x, labels)
    whole, whole_grad = gradient_of(HEADS[name].head(tile_rows=600), x, labels)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-5, atol=1e-7)


def test_a_zero_embedding_has_no_cosine_gradient():
    x, labels = points(6), torch.arange(6) % 2
    x[2] = 0
    for name in FORMS:
        _, grad = gradient_of(HEADS[name].head(distance="cosine"), x, labels)
        assert torch.equal(grad[2], torch.zeros(4, dtype=torch.float64))
        check_equal(
            HEADS[name].head(distance="cosine")(x, labels), HEADS[name].expected(x, labels, distance="cosine")
        )


@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_the_mean_over_active_triplets_is_over_those_that_batch_all_finds(margin):
    x, labels = points(40, dtype=torch.float32), torch.arange(40) % 8
    mined = BatchAll(margin=margin)(x, labels)
    total = TripletMargin(margin, reduction="sum")(x, labels)
    torch.testing.assert_close(TripletMargin(margin)(x, labels), total / mined.count)
    torch.testing.assert_close(TripletMargin(margin, reduction="mean")(x, labels, mined), total / mined.count)


def some_pairs(columns, share, seed=0):
    """Pairs of ten rows of four classes, drawn with repetition, in no order."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(10), torch.arange(columns)
    same = rows[:, None] % 4 == columns % 4
    sides = [(mask & (rows[:, None] != columns)).nonzero() for mask in (same, ~same)]
    drawn = [side[torch.randint(len(side), (int(share * len(side)),), generator=generator)] for side in sides]
    return Pairs(*drawn[0].T, *drawn[1].T)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", TRIPLETS)
@settings(max_examples=20, deadline=None)
@given(
    columns=st.sampled_from([None, 3, 17]),
    share=st.sampled_from([0.1, 0.7, 2.0]),
    height=st.sampled_from([None, 3]),
    few=st.sampled_from([0, 32]),
    seed=st.integers(0, 9),
)
def test_pairs_give_the_loss_of_the_triplets_that_they_join_to(
    name, reduction, columns, share, height, few, seed
):
    x, mined = points(10, seed=1), some_pairs(columns or 10, share, seed)
    ref = None if columns is None else References(points(columns, seed=2), torch.arange(columns) % 4)
    triplets = reference.joined(*(index.tolist() for index in mined))
    options = {key: value for key, value in HEADS[name].options.items() if key != "swap"}
    y = x if ref is None else ref.embeddings
    between = reference.distances("euclidean", y) if "swap" in name else None
    d = reference.distances("euclidean", x, y)
    losses = reference.triplet_losses(d, triplets, between=between, **options)
    head = HEADS[name].head(reduction=reduction, tile_rows=height)
    with override(positive_passes=few):
        loss, grad = gradient_of(head, x, None, mined=mined, ref=ref)
    check_equal(loss, reference.reduced(losses, reduction))
    listed = Triplets(*torch.tensor(triplets, dtype=torch.int64).view(-1, 3).T)
    torch.testing.assert_close(grad, gradient_of(head, x, None, mined=listed, ref=ref)[1])
    one_by_one = HEADS[name].head(reduction="none", tile_rows=height)(x, mined=mined, ref=ref)
    torch.testing.assert_close(one_by_one, torch.tensor(losses, dtype=torch.float64))


@pytest.mark.parametrize("name", TRIPLETS)
def test_no_list_of_the_triplets_of_pairs_is_made(name):
    x, labels = points(64, dtype=torch.float32), torch.arange(64) % 4
    mined = Pairs(*HEADS[name].lists_of_all(labels)[1])  # 64 · 15 · 48 triplets
    with Largest() as largest:
        HEADS[name].head(tile_rows=8).float()(x.requires_grad_(), labels, mined).backward()
    assert largest.numbers <= 64 * 64  # a mark for each possible pair


@pytest.mark.parametrize("name", TRIPLETS)
def test_losses_of_triplets_one_by_one(name):
    x, labels = BATCHES["P × K"]
    options = {key: value for key, value in HEADS[name].options.items() if key != "swap"}
    d = reference.distances("euclidean", x)
    losses = HEADS[name].head(reduction="none")(x, mined=BatchAll()(x, labels))
    between = d if "swap" in name else None
    expected = reference.triplet_losses(d, triplets_of(x, labels), between=between, **options)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_the_soft_margin_of_one_triplet_is_the_paper_s():
    x = torch.tensor([[0.0], [3.0], [1.0]])
    loss = TripletMargin(soft=True)(x, mined=Triplets(*torch.tensor([[0], [1], [2]])))
    check_equal(loss, math.log(1 + math.exp(3 - 1)), rel=1e-6)


def test_swap_with_references_measures_between_references():
    x, y = torch.tensor([[0.0]]), torch.tensor([[1.0], [1.5], [50.0]])
    ref = References(y, torch.tensor([0, 1, 0]))
    # D(a,p) = 1, D(a,n) = 1.5, D(p,n) = 0.5: the loss is 1 + 1 − 1.5, and 1 + 1 − 0.5 with the swap
    mined = Triplets(*torch.tensor([[0], [0], [1]]))
    assert TripletMargin(1.0)(x, mined=mined, ref=ref).item() == 0.5
    assert TripletMargin(1.0, swap=True)(x, mined=mined, ref=ref).item() == 1.5
    # of all: (0, 0, 1) at 1.5, and (0, 2, 1), D(a,p) = 50 and min(1.5, 48.5)
    assert TripletMargin(1.0, swap=True, reduction="sum")(x, torch.tensor([0]), ref=ref).item() == 1.5 + 49.5


def test_the_hinge_is_taken_for_each_triplet_and_then_averaged():
    x = torch.tensor([[0.0], [1.0], [1.0], [5.0]])
    mined = Triplets(*torch.tensor([[0, 0], [1, 1], [2, 3]]))  # 1 − 1 + 0.2 and 1 − 5 + 0.2
    check_equal(TripletMargin(0.2, reduction="mean")(x, mined=mined), 0.1, rel=1e-6)
    check_equal(TripletMargin(0.2)(x, mined=mined), 0.2, rel=1e-6)


def test_a_large_sum_of_hinges_keeps_its_digits():
    x = nn.functional.normalize(points(300, 16)).float()
    labels = torch.arange(300) % 4
    for power in (1, 2):
        head = TripletMargin(0.01, power=power, reduction="sum")
        torch.testing.assert_close(head(x, labels).double(), head(x.double(), labels), rtol=1e-6, atol=0)


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"TripletMargin\(power=2\): expected 1 with soft=True; leave one"):
        TripletMargin(power=2, soft=True)
    with pytest.raises(ValueError, match=r"TripletMargin\(power=3\): expected a whole number from 1 to 2"):
        TripletMargin(power=3)
    with pytest.raises(
        ValueError, match=r"TripletMargin\(margin=-1.0\): expected a finite number of at least 0"
    ):
        TripletMargin(-1.0)
    with unchecked(), pytest.raises(ValueError, match=r"Contrastive\(margin='1'\): expected a finite number"):
        Contrastive("1")


def test_contrastive_takes_pairs_and_each_distinct_pair_of_triplets_once():
    x, labels = BATCHES["P × K"]
    triplets = BatchAll()(x, labels)
    assert triplets.count > len(set(zip(triplets.anchor.tolist(), triplets.positive.tolist(), strict=True)))
    positive, negative = reference.relation(labels)
    pairs = Pairs(*torch.tensor(sorted(positive)).T, *torch.tensor(sorted(negative)).T)
    for reduction in REDUCTIONS:
        for height in (None, 2):
            head = HEADS["contrastive"].head(reduction=reduction, tile_rows=height)
            for mined in (None, triplets, pairs):
                check_equal(
                    head(x, labels, mined), HEADS["contrastive"].expected(x, labels, reduction=reduction)
                )
            check_gradient(head, x, labels, mined=pairs)


def test_contrastive_losses_one_by_one_are_positives_and_then_negatives():
    x = torch.tensor([[0.0], [0.5], [1.0]])
    pairs = Pairs(*(torch.tensor(rows) for rows in ([0], [2], [0, 1], [1, 2])))
    losses = Contrastive(2.0, reduction="none")(x, mined=pairs)
    assert losses.tolist() == [1.0, 2.25, 2.25]


def test_options_show_when_printed():
    options = "margin=0.3, distance=euclidean, power=1, soft=False, swap=True, reduction='mean_active'"
    assert repr(TripletMargin(0.3, swap=True)) == f"TripletMargin({options})"
    assert "soft=True" in repr(TripletMargin(soft=True))
    assert "pos_margin=0.1, distance=cosine" in repr(Contrastive(pos_margin=0.1, distance="cosine"))


@pytest.mark.parametrize("count", [0, 3, 2000])
@pytest.mark.parametrize("head", [TripletMargin(1.0), Contrastive(1.0)], ids=["triplets", "pairs"])
def test_a_second_derivative_is_refused_of_a_list_of_any_length(head, count):
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mined = Triplets(*torch.randint(0, 16, (3, count), generator=torch.Generator().manual_seed(1)))
    with pytest.raises(
        ValueError, match=rf"{type(head).__name__}\(create_graph=True\): expected False, since"
    ):
        torch.autograd.grad(head(x, None, mined), x, create_graph=True)


@pytest.mark.parametrize("option", ["soft", "swap"])
def test_a_word_is_no_flag(option):
    text = rf"TripletMargin\({option}='no'\): expected True or False"
    with unchecked(), pytest.raises(ValueError, match=text):
        TripletMargin(**{option: "no"})


@pytest.mark.parametrize(
    "options", [{}, {"soft": True}, {"power": 2}, {"reduction": "mean"}, {"reduction": "sum"}]
)
@pytest.mark.parametrize("tile_rows", [None, 1, 5])
@pytest.mark.parametrize("columns", [None, 9])
def test_swap_positive_by_positive_equals_swap_by_lists_of_pairs(options, tile_rows, columns):
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4, 4])
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ref = None if columns is None else References(x.flip(0)[:columns] + 0.1, labels.flip(0)[:columns])
    head = TripletMargin(swap=True, tile_rows=tile_rows, **options)

    def result(of_all):
        pairwise = Pairwise("test", x, labels, ref=ref, distance=head.distance, tile_rows=tile_rows)
        loss = of_all(pairwise)
        return loss, *torch.autograd.grad(loss, x)

    expected = result(head._of_all)
    for most in (4, 5):  # at least as many as a row has
        torch.testing.assert_close(result(lambda pairwise: head._of_all_swapped(pairwise, most)), expected)  # noqa: B023
