import math
from unittest import mock

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import unchecked
from torch import nn

from tercet.distances import Mahalanobis, as_distance
from tercet.losses import triplet
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.miners import BatchAll, BatchHard
from tercet.tuples import Pairs, References, Triplets


def triplet_oracle(d, positive, negative, between=None, swap=False, reduction="mean_active", **options):
    triplets = reference.all_triplets(positive, negative)
    losses = reference.triplet_losses(d, triplets, between=between if swap else None, **options)
    return reference.reduced(losses, reduction)


def contrastive_oracle(d, positive, negative, between=None, reduction="mean_active", **options):
    losses = reference.contrastive_losses(d, sorted(positive), sorted(negative), **options)
    return reference.reduced(losses, reduction)


# One row a form of a head: how to make it, and the loop it must equal.
HEADS = {
    "hinge": (TripletMargin, triplet_oracle, {"margin": 0.2}),
    "squared hinge": (TripletMargin, triplet_oracle, {"margin": 0.5, "power": 2}),
    "soft": (TripletMargin, triplet_oracle, {"soft": True}),
    "swap": (TripletMargin, triplet_oracle, {"margin": 0.2, "swap": True}),
    "squared swap": (TripletMargin, triplet_oracle, {"margin": 0.5, "power": 2, "swap": True}),
    "soft swap": (TripletMargin, triplet_oracle, {"soft": True, "swap": True}),
    "contrastive": (Contrastive, contrastive_oracle, {"margin": 2.0}),
    "contrastive, slack": (Contrastive, contrastive_oracle, {"margin": 3.0, "pos_margin": 0.5}),
}
SATISFIED = [name for name in HEADS if "soft" not in name]
DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot"]
REDUCTIONS = ["mean_active", "mean", "sum"]
every_head = pytest.mark.parametrize("name", HEADS)


def points(n, d=4, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


BATCHES = {
    "P × K": (points(9), torch.arange(3).repeat_interleave(3)),
    "P ≠ K, shuffled": (points(10, seed=1), torch.arange(10) % 4),
    "uneven positives per anchor": (points(9, seed=2), torch.tensor([0] * 5 + [1] * 2 + [2, 3])),
    "one positive pair and one negative pair": (points(3), torch.tensor([0, 0, 1])),
    "two identical images": (points(5)[[0, 0, 1, 2, 3]], torch.tensor([0, 0, 1, 1, 0])),
    "identical images of two classes": (points(5)[[0, 1, 0, 2]], torch.tensor([0, 0, 1, 1])),
    "collapsed": (torch.ones(6, 3, dtype=torch.float64), torch.arange(6) % 2),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)
EMPTY = {
    "empty": (points(0), torch.zeros(0).long()),
    "one row": (points(1), torch.zeros(1).long()),
    "all different": (points(4), torch.arange(4)),
    "one class only": (points(4), torch.zeros(4).long()),
}


def make(name, **more):
    kind, _, options = HEADS[name]
    return kind(**{**options, **more})


def expected_of(name, x, labels, distance="euclidean", ids=None, ref=None, reduction="mean_active"):
    _, oracle, options = HEADS[name]
    y = None if ref is None else ref.embeddings
    d, between = reference.distances(distance, x, y), reference.distances(distance, x if y is None else y)
    sides = reference.relation(labels, ref and ref.labels, ids, ref and ref.ids)
    return oracle(d, *sides, between=between, reduction=reduction, **options)


def check_equal(loss, expected, rel=1e-9):
    """A scalar with this value."""
    assert loss.shape == ()
    assert math.isclose(loss.item(), expected, rel_tol=rel, abs_tol=rel)


def check_gradient(head, x, labels, **call):
    """The gradient is that of finite differences."""
    x = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head(x, labels, **call), x, fast_mode=True)


def gradient_of(head, x, labels, **call):
    x = x.clone().requires_grad_()
    loss = head(x, labels, **call)
    loss.backward()
    return loss, x.grad


def check_finite(head, x, labels, **call):
    """Loss and gradient are finite."""
    loss, grad = gradient_of(head, x, labels, **call)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


def check_zero(head, x, labels, **call):
    """The loss is 0, and backward gives a gradient of 0."""
    loss, grad = gradient_of(head, x, labels, **call)
    assert loss.item() == 0
    assert loss.dtype == x.dtype
    assert torch.equal(grad, torch.zeros_like(x))


def check_half_precision(head, x, labels):
    """16-bit embeddings give the float32 loss of the same numbers, and a gradient of their own kind."""
    for dtype in (torch.bfloat16, torch.float16):
        loss, grad = gradient_of(head, x.to(dtype), labels)
        exact, exact_grad = gradient_of(head, x.to(dtype).float(), labels)
        assert loss.dtype == torch.float32
        assert grad.dtype == dtype
        assert loss.item() == exact.item()
        assert torch.equal(grad, exact_grad.to(dtype))


@every_batch
@every_head
def test_a_head_equals_the_loop_at_every_tile_height(name, batch):
    x, labels = BATCHES[batch]
    expected = expected_of(name, x, labels)
    for height in (None, 1, 2, 3, 100):
        head = make(name, tile_rows=height)
        check_equal(head(x, labels), expected)
        check_equal(head(x.float(), labels), expected, rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_a_head_equals_the_loop_under_every_distance_and_reduction(name, distance, reduction):
    x, labels = BATCHES["P ≠ K, shuffled"]
    head = make(name, distance=distance, reduction=reduction)
    expected = expected_of(name, x, labels, distance, reduction=reduction)
    check_equal(head(x, labels), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@every_head
def test_the_gradient_is_that_of_finite_differences(name, reduction):
    for batch in ("P × K", "uneven positives per anchor"):
        for height in (None, 2):
            check_gradient(make(name, reduction=reduction, tile_rows=height), *BATCHES[batch])


@every_head
def test_the_gradient_flows_to_references_too(name):
    x, labels = BATCHES["P × K"]
    y, ref_labels = points(5, seed=7).requires_grad_(), torch.arange(5) % 4
    x = x.clone().requires_grad_()
    head = make(name, tile_rows=2)
    assert torch.autograd.gradcheck(lambda x, y: head(x, labels, ref=References(y, ref_labels)), (x, y))


@pytest.mark.parametrize("batch", ["two identical images", "identical images of two classes", "collapsed"])
@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_coincident_points_have_a_finite_gradient(name, distance, batch):
    x, labels = BATCHES[batch]
    check_finite(make(name, distance=distance), x, labels)
    check_finite(make(name, distance=distance), torch.zeros_like(x), labels)
    if issubclass(HEADS[name][0], TripletMargin):
        check_finite(make(name, distance=distance), x, labels, mined=BatchAll()(x, labels))


@every_head
def test_coincident_positives_do_not_hide_the_others(name):
    x, labels = BATCHES["two identical images"]
    for v in (x, x.float()):
        _, grad = gradient_of(make(name), v, labels)
        assert torch.isfinite(grad).all()
        assert grad[2:].abs().sum() > 0


@pytest.mark.parametrize("name", SATISFIED)
def test_a_satisfied_head_is_0_with_gradient_0(name):
    x = torch.tensor([[0.0], [0.0], [100.0], [100.0]]) + torch.tensor([[0.0], [0.1], [0.0], [0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    head = make(name) if HEADS[name][0] is TripletMargin else make(name, pos_margin=0.2)
    check_zero(head, x, labels)


def test_a_triplet_exactly_at_the_margin_is_satisfied():
    x, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 2])
    for swap in (False, True):
        mined = Triplets(*torch.tensor([[0], [1], [3 if swap else 2]]))
        check_zero(TripletMargin(margin=1.0, swap=swap), x, labels, mined=mined)
    check_zero(TripletMargin(margin=1.0), x[[0, 1, 3]], torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("case", EMPTY)
@every_head
def test_nothing_to_compare_is_0_with_a_graph(name, case):
    x, labels = EMPTY[case]
    if HEADS[name][0] is Contrastive and case in ("all different", "one class only"):
        labels, x = labels[:1], x[:1]
    for v in (x, x.float()):
        for reduction in REDUCTIONS:
            check_zero(make(name, reduction=reduction), v, labels)


@every_head
def test_empty_tuples_are_0_with_a_graph(name):
    x, labels = BATCHES["P × K"]
    none = torch.zeros(0).long()
    for mined in ((none, none, none), Triplets(none, none, none)):
        check_zero(make(name), x, labels, mined=mined)
        check_zero(make(name), x[:0], labels[:0], mined=mined)
    if HEADS[name][0] is Contrastive:
        check_zero(make(name), x, labels, mined=Pairs(none, none, none, none))


def test_a_contrastive_batch_of_one_side_only_has_that_side_s_loss():
    x = points(4)
    for labels in (torch.arange(4), torch.zeros(4).long()):
        check_equal(Contrastive(margin=2.0)(x, labels), expected_of("contrastive", x, labels))


@every_head
def test_fp16_and_bf16_embeddings_are_compared_in_float32(name):
    check_half_precision(make(name), *BATCHES["P × K"])


@pytest.mark.parametrize("distance", DISTANCES)
@every_head
def test_autocast_changes_nothing(name, distance):
    x, labels = BATCHES["P × K"][0].float(), BATCHES["P × K"][1]
    head = make(name, distance=distance)
    mined = BatchHard()(x, labels)
    outside = [gradient_of(head, x, labels), gradient_of(head, x, labels, mined=mined)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [gradient_of(head, x, labels), gradient_of(head, x, labels, mined=mined)]
    for (loss, grad), (expected, expected_grad) in zip(inside, outside):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert torch.equal(grad, expected_grad)


@every_head
def test_rows_shuffled_give_the_same_loss_and_the_shuffled_gradient(name):
    x, labels = BATCHES["uneven positives per anchor"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    loss, grad = gradient_of(make(name), x, labels)
    shuffled, shuffled_grad = gradient_of(make(name), x[order], labels[order])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.bool])
@every_head
def test_labels_of_every_whole_kind_and_above_2_to_the_24(name, kind):
    x, labels = points(6), torch.arange(6) % 2
    expected = make(name)(x, labels)
    assert torch.equal(make(name)(x, labels.to(kind)), expected)
    assert torch.equal(make(name)(x, labels + 2**53), expected)


@pytest.mark.parametrize("r", [0, 1, 4, 20])
@every_head
def test_references_of_another_size_than_the_batch(name, r):
    x, labels = BATCHES["P × K"]
    ref = References(points(r, seed=5), torch.arange(r) % 4)
    for height in (None, 1, 2):
        check_equal(make(name, tile_rows=height)(x, labels, ref=ref), expected_of(name, x, labels, ref=ref))


@every_head
def test_an_image_does_not_meet_itself_among_references_or_in_the_batch(name):
    x, labels = BATCHES["P × K"]
    ids = torch.arange(9)
    ref = References(
        torch.cat([x, points(4, seed=6)]), torch.cat([labels, torch.arange(4)]), torch.arange(13)
    )
    expected = expected_of(name, x, labels, ids=ids, ref=ref)
    check_equal(make(name)(x, labels, ids=ids, ref=ref), expected)
    twice = torch.tensor([0, 0, 1, 2, 3, 0, 4, 5, 6])
    check_equal(make(name)(x, labels, ids=twice), expected_of(name, x, labels, ids=twice))


@every_head
def test_nan_or_infinite_embeddings_are_a_clear_error(name):
    x, labels = BATCHES["P × K"]
    none = torch.zeros(0).long()
    for mined in (None, (none, none, none)):
        broken = x.clone()
        broken[3, 0] = math.nan
        owner = HEADS[name][0].__name__
        with pytest.raises(
            ValueError, match=rf"{owner}\(embeddings='1 of 9 rows, the first is row 3'\): expected fin"
        ):
            make(name)(broken, labels, mined)


@every_head
def test_a_misspelt_option_is_refused(name):
    kind = HEADS[name][0]
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
def test_neither_labels_nor_tuples_is_refused(name):
    with pytest.raises(ValueError, match=r"\(labels=None\): expected labels, or mined (triplets|pairs)"):
        make(name)(points(4))


@every_head
def test_losses_one_by_one_need_a_list(name):
    with pytest.raises(
        ValueError, match=r"\(mined=None\): expected mined (triplets|pairs) with reduction=.none.; pass"
    ):
        make(name, reduction="none")(*BATCHES["P × K"])


@every_head
def test_a_head_keeps_no_parameters_but_the_distance_s(name):
    assert not list(make(name).parameters())
    head = make(name, distance=Mahalanobis(nn.Parameter(torch.eye(4, dtype=torch.float64))))
    assert [key for key, _ in head.named_parameters()] == ["distance.L"]
    x, labels = BATCHES["P × K"]
    head(x, labels).backward()
    assert head.distance.L.grad.abs().sum() > 0
    check_equal(head(x, labels), expected_of(name, x, labels))


def triplets_of(x, labels):
    return sorted(zip(*(index.tolist() for index in BatchAll()(x, labels))))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name][0] is TripletMargin])
def test_the_list_of_all_triplets_gives_the_loss_of_all_triplets(name, reduction):
    x, labels = BATCHES["uneven positives per anchor"]
    mined = BatchAll()(x, labels)
    for height in (None, 1, 3):
        head = make(name, reduction=reduction, tile_rows=height)
        loss, grad = gradient_of(head, x, labels)
        listed, listed_grad = gradient_of(head, x, labels, mined=mined)
        torch.testing.assert_close(listed, loss)
        torch.testing.assert_close(listed_grad, grad)
    check_gradient(make(name, reduction=reduction), x, labels, mined=mined)


@given(
    places=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    labels=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    margin=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    power=st.sampled_from([1, 2]),
    height=st.sampled_from([None, 1, 3]),
    few=st.sampled_from([0, 32]),
)
@settings(max_examples=100, deadline=None)
def test_sums_equal_the_list_even_where_triplets_stand_exactly_at_the_margin(
    places, labels, margin, power, height, few
):
    x, labels = torch.tensor(places, dtype=torch.float64)[:, None], torch.tensor(labels[: len(places)])
    head = TripletMargin(margin, power=power, tile_rows=height)
    with mock.patch.object(triplet, "FEW_POSITIVES", few):
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
        with mock.patch.object(triplet, "FEW_POSITIVES", few):
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
    loss, grad = gradient_of(make(name, distance=distance, reduction="sum"), x, labels)
    exact, exact_grad = gradient_of(make(name, distance=distance, reduction="sum"), x.double(), labels)
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
            inputs = [v.clone().requires_grad_(w) for v, w in zip((x, y), wanted)]
            loss = make(name, distance=kind, tile_rows=4)(
                inputs[0], labels, ref=References(inputs[1], ref_labels)
            )
            if any(wanted):
                loss.backward()
            found.append((loss.detach(), *(v.grad for v in inputs if v.requires_grad)))
        torch.testing.assert_close(found[0], found[1])
    loss, grad = gradient_of(make(name, distance=distance), x, labels)
    foreign, foreign_grad = gradient_of(make(name, distance=Foreign(distance)), x, labels)
    torch.testing.assert_close(foreign, loss)
    torch.testing.assert_close(foreign_grad, grad)


@pytest.mark.parametrize("name", ["hinge", "squared hinge", "soft", "contrastive"])
def test_tiles_of_the_head_s_own_height_change_nothing(name):
    x, labels = points(600, 8, dtype=torch.float32), torch.arange(600) // 4
    loss, grad = gradient_of(make(name), x, labels)
    whole, whole_grad = gradient_of(make(name, tile_rows=600), x, labels)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-5, atol=1e-7)


def test_a_zero_embedding_has_no_cosine_gradient():
    x, labels = points(6), torch.arange(6) % 2
    x[2] = 0
    for name in HEADS:
        _, grad = gradient_of(make(name, distance="cosine"), x, labels)
        assert torch.equal(grad[2], torch.zeros(4, dtype=torch.float64))
        check_equal(make(name, distance="cosine")(x, labels), expected_of(name, x, labels, "cosine"))


@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_the_mean_over_active_triplets_is_over_those_that_batch_all_finds(margin):
    x, labels = points(40, dtype=torch.float32), torch.arange(40) % 8
    mined = BatchAll(margin=margin)(x, labels)
    total = TripletMargin(margin, reduction="sum")(x, labels)
    torch.testing.assert_close(TripletMargin(margin)(x, labels), total / mined.count)
    torch.testing.assert_close(TripletMargin(margin, reduction="mean")(x, labels, mined), total / mined.count)


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name][0] is TripletMargin])
def test_losses_of_triplets_one_by_one(name):
    x, labels = BATCHES["P × K"]
    options = {key: value for key, value in HEADS[name][2].items() if key != "swap"}
    d = reference.distances("euclidean", x)
    losses = make(name, reduction="none")(x, mined=BatchAll()(x, labels))
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


@pytest.mark.parametrize("library_form", [tuple, list, lambda mined: Triplets(*(v.int() for v in mined))])
def test_any_three_index_tensors_are_triplets(library_form):
    x, labels = BATCHES["P × K"]
    mined = BatchHard()(x, labels)
    assert torch.equal(TripletMargin()(x, mined=library_form(mined)), TripletMargin()(x, mined=mined))
    arrays = Triplets(*(index.numpy() for index in mined))
    assert torch.equal(TripletMargin()(x, mined=arrays), TripletMargin()(x, mined=mined))


def test_what_is_no_list_of_rows_of_the_batch_is_refused():
    x, rows = points(4), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"TripletMargin\(mined='Pairs of 4'\): expected Triplets \(three index"
    ):
        TripletMargin()(x, mined=Pairs(rows, rows, rows, rows))
    with pytest.raises(ValueError, match=r"Contrastive\(mined='tuple of 2'\): expected Triplets .* or Pairs"):
        Contrastive()(x, mined=(rows, rows))
    for head in (TripletMargin(), Contrastive()):
        with pytest.raises(
            ValueError, match=r"mined='row 4'\): expected rows below 4; pass the embeddings, and"
        ):
            head(x, mined=(rows, rows, rows + 3))


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(
        ValueError, match=r"TripletMargin\(margin=0.2\): expected no margin with soft=True; leave one"
    ):
        TripletMargin(0.2, soft=True)
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
    assert triplets.count > len(set(zip(triplets.anchor.tolist(), triplets.positive.tolist())))
    positive, negative = reference.relation(labels)
    pairs = Pairs(*torch.tensor(sorted(positive)).T, *torch.tensor(sorted(negative)).T)
    for reduction in REDUCTIONS:
        for height in (None, 2):
            head = make("contrastive", reduction=reduction, tile_rows=height)
            for mined in (None, triplets, pairs):
                check_equal(
                    head(x, labels, mined), expected_of("contrastive", x, labels, reduction=reduction)
                )
            check_gradient(head, x, labels, mined=pairs)


def test_contrastive_losses_one_by_one_are_positives_and_then_negatives():
    x = torch.tensor([[0.0], [0.5], [1.0]])
    pairs = Pairs(*(torch.tensor(rows) for rows in ([0], [2], [0, 1], [1, 2])))
    losses = Contrastive(2.0, reduction="none")(x, mined=pairs)
    assert losses.tolist() == [1.0, 2.25, 2.25]


def test_one_positive_and_one_negative_pair_have_a_loss_in_every_head():
    x, labels = BATCHES["one positive pair and one negative pair"]
    for name in HEADS:
        loss, grad = gradient_of(make(name, reduction="sum"), x * 0.1, labels)
        assert loss.item() > 0
        assert grad.abs().sum() > 0


def test_options_show_when_printed():
    assert repr(TripletMargin(0.3, swap=True)) == (
        "TripletMargin(margin=0.3, power=1, swap=True, distance=euclidean, reduction='mean_active')"
    )
    assert "soft" in repr(TripletMargin(soft=True))
    assert "pos_margin=0.1, distance=cosine" in repr(Contrastive(pos_margin=0.1, distance="cosine"))


class Spoiled(nn.Module):
    """A hinge that is wrong in one way, to see that each check can fail."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def forward(self, embeddings, labels, mined=None):
        return self.spoil(TripletMargin(0.2)(embeddings, labels, mined), embeddings)


def test_the_checks_of_heads_can_fail():
    x, labels = BATCHES["P × K"]
    expected = expected_of("hinge", x, labels)
    for wrong in (expected * 1.001, expected + 0.01):
        with pytest.raises(AssertionError):
            check_equal(torch.tensor(wrong, dtype=torch.float64), expected)
    with pytest.raises(AssertionError):
        check_equal(torch.tensor([expected]), expected)
    with pytest.raises((AssertionError, RuntimeError)):
        check_gradient(Spoiled(lambda loss, x: loss + 0.1 * (x.sum() - x.sum().detach())), x, labels)
    with pytest.raises(AssertionError):
        check_finite(Spoiled(lambda loss, x: loss + 0 * (x - x).sum().sqrt()), x, labels)
    with pytest.raises(AssertionError):
        check_finite(Spoiled(lambda loss, x: loss + math.inf), x, labels)
    for spoil in (lambda loss, x: loss + 1, lambda loss, x: loss + x.sum() - x.sum().detach()):
        with pytest.raises(AssertionError):
            check_zero(Spoiled(spoil), torch.tensor([[0.0], [0.0], [9.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(AssertionError):
        check_half_precision(Spoiled(lambda loss, x: loss.to(x.dtype)), x, labels)
    with pytest.raises(AssertionError):
        check_half_precision(Spoiled(lambda loss, x: loss + (x.dtype != torch.float32)), x, labels)
