import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tercet.core.indices import Pairs, References, Triplets
from tercet.losses.angles import Angular, TupletMargin
from tercet.losses.listwise import NCA, InfoNCE, NPair, SupCon
from tercet.losses.pair_weighting import Circle, GeneralizedLifted, LiftedStructure, MultiSimilarity
from tercet.losses.ranked_list import RankedList
from tercet.losses.ranking import RecallSurrogate, SmoothAP
from tercet.miners.hard import BatchHard
from tercet.pairwise.distances import Mahalanobis, cosine, euclidean
from tests.contracts.heads import (
    BATCHES,
    HEADS,
    Largest,
    as_pairs,
    check_equal,
    check_finite,
    check_gradient,
    gradient_of,
)
from tests.helpers import double_points as points
from tests.helpers import unchecked
from tests.oracles import listwise as loops
from tests.oracles import triplets as reference

RANKED = (SmoothAP, RecallSurrogate)
LISTWISE = (
    *(InfoNCE, SupCon, NCA, MultiSimilarity, Circle, LiftedStructure, GeneralizedLifted, RankedList, NPair),
    *(TupletMargin, Angular, SmoothAP, RecallSurrogate),
)
NAMES = [name for name in HEADS if HEADS[name].make in LISTWISE]
WITH_DISTANCE = [
    name for name in NAMES if HEADS[name].make not in (NPair, Circle, MultiSimilarity, TupletMargin, Angular)
]
OF_TUPLES = [name for name in NAMES if HEADS[name].make is not NPair]
REDUCTIONS = ["mean_active", "mean", "sum"]
every_head = pytest.mark.parametrize("name", NAMES)


def some_of(pairs, seed):
    """About half of a set, in no order that means anything."""
    keep = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < 0.5
    return {pair for pair, kept in zip(sorted(pairs), keep.tolist(), strict=True) if kept}


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine", "dot"])
@pytest.mark.parametrize("name", WITH_DISTANCE)
def test_a_head_equals_the_loop_under_every_distance(name, distance):
    x, labels = BATCHES["P ≠ K, shuffled"]
    check_equal(
        HEADS[name].head(distance=distance)(x, labels), HEADS[name].expected(x, labels, distance=distance)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", [name for name in NAMES if HEADS[name].make is not Circle])
def test_the_gradient_is_that_of_finite_differences(name, reduction):
    for height in (None, 2):
        head = HEADS[name].head(reduction=reduction, tile_rows=height)
        check_gradient(head, *BATCHES["uneven positives per anchor"])


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", ["circle", "circle, faces"])
def test_the_gradient_of_circle_is_that_of_finite_differences_with_the_weights_held(name, height):
    x, labels = BATCHES["uneven positives per anchor"]
    _, grad = gradient_of(HEADS[name].head(tile_rows=height), x, labels)
    held, sides = reference.distances("cosine", x), reference.relation(labels)
    step = 1e-6
    for i, k in ((0, 0), (3, 2), (6, 1), (8, 3)):
        sums = []
        for sign in (1, -1):
            moved = x.clone()
            moved[i, k] += sign * step
            d = reference.distances("cosine", moved)
            losses = loops.circle(d, *sides, weights_at=held, **HEADS[name].options)
            sums.append(reference.reduced(losses, "mean"))
        assert grad[i, k].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1e3])
@every_head
def test_no_logit_is_too_large(name, size):
    x, labels = BATCHES["uneven positives per anchor"]
    heads = [HEADS[name].head(), HEADS[name].head(reduction="none")]
    if HEADS[name].make in (InfoNCE, SupCon):
        heads.append(HEADS[name].head(temperature=0.001))
    if HEADS[name].make is Circle:
        heads.append(HEADS[name].head(gamma=1e5))
    for head in heads:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            v = (x * size).to(dtype).requires_grad_()
            loss = head(v, labels)
            loss.sum().backward()
            assert torch.isfinite(loss).all()
            assert torch.isfinite(v.grad).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("InfoNCE", {"temperature": 0.01}), ("SupCon", {"temperature": 0.01}), ("circle", {"gamma": 256.0})],
)
def test_large_logits_equal_the_loop_in_float32(name, options):
    x, labels = nn.functional.normalize(points(12, 8, seed=3)).float(), torch.arange(12) % 4
    row = replace(HEADS[name], options=options)
    check_equal(row.head()(x, labels), row.expected(x, labels), rel=1e-5)


def test_an_image_of_two_classes_is_no_negative_of_itself_in_n_pair():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels, ids = torch.tensor([0, 0, 1, 1]), torch.tensor([7, 8, 9, 7])
    # the pairs are (0, 1) and (2, 3); column 3 is row 0 again, column 1 is another image than row 2
    losses = NPair(reduction="none")(x, labels, ids=ids)
    assert losses.tolist() == pytest.approx([0.0, math.log(2)])
    assert NPair(reduction="none")(x, labels).tolist() == pytest.approx([math.log(2), math.log(2)])


def test_n_pair_takes_the_first_row_that_has_a_positive():
    ref = References(points(3, seed=1), torch.tensor([0, 1, 0]), torch.tensor([10, 11, 12]))
    x, labels = points(3), torch.tensor([1, 0, 1])
    # row 0 is column 1 itself, so row 2 stands for class 1
    chosen = Pairs(*torch.tensor([[1, 2], [0, 1]]), *torch.zeros(2, 0).long())
    ids = torch.tensor([11, 20, 21])
    for v in (NPair()(x, labels, ids=ids, ref=ref), NPair()(x, labels, chosen, ref=ref)):
        check_equal(v, HEADS["N-pair"].expected(x, labels, ids=ids, ref=ref))


@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("name", OF_TUPLES)
def test_a_list_of_some_pairs_gives_the_loop_s_loss_of_them(name, with_ref):
    x, labels = BATCHES["uneven positives per anchor"]
    ref = References(points(7, seed=4), torch.arange(7) % 3) if with_ref else None
    for seed in range(2):
        sides = reference.relation(labels, ref and ref.labels)
        sides = some_of(sides[0], seed), some_of(sides[1], seed)
        losses = HEADS[name].losses(x, labels, ref=ref, sides=sides)
        for height in (None, 4):
            head = HEADS[name].head(tile_rows=height)
            check_equal(head(x, None, as_pairs(*sides), ref=ref), reference.reduced(losses, "mean"))
        if HEADS[name].make is not Circle:
            check_gradient(head, x, None, mined=as_pairs(*sides), ref=ref)


@pytest.mark.parametrize("name", OF_TUPLES)
def test_triplets_are_their_pairs(name):
    x, labels = BATCHES["uneven positives per anchor"]
    mined = BatchHard()(x, labels)
    a, p, n = (index.tolist() for index in mined)
    sides = set(zip(a, p, strict=True)), set(zip(a, n, strict=True))
    check_equal(
        HEADS[name].head()(x, None, mined),
        reference.reduced(HEADS[name].losses(x, labels, sides=sides), "mean"),
    )


@pytest.mark.parametrize("name", ["N-pair", "N-pair, L2"])
def test_n_pair_takes_the_first_listed_pair_of_each_class(name):
    x, labels = BATCHES["P × K"]
    listed = [(4, 3), (0, 2), (3, 5), (1, 0), (8, 6)]
    rows = torch.tensor(listed).T
    chosen = [(4, 3), (0, 2), (8, 6)]
    sizes = [[sum(v * v for v in row) for row in x.tolist()]] * 2
    dots = [[-v for v in row] for row in reference.distances("dot", x)]
    expected = loops.n_pair(dots, chosen, sizes, **HEADS[name].options)
    for mined in (Pairs(*rows, *rows[:, :0]), Triplets(*rows, torch.tensor([0, 3, 0, 3, 0]))):
        losses = HEADS[name].head(reduction="none", tile_rows=2)(x, labels, mined)
        assert losses.tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"NPair\(labels=None\): expected labels, beside mined pairs too"):
        HEADS[name].head()(x, None, Pairs(*rows, *rows[:, :0]))


@every_head
def test_losses_one_by_one_are_the_loop_s(name):
    for batch in ("P ≠ K, shuffled", "uneven positives per anchor"):
        x, labels = BATCHES[batch]
        for height in (None, 3):
            losses = HEADS[name].head(reduction="none", tile_rows=height)(x, labels)
            expected = torch.tensor(HEADS[name].losses(x, labels), dtype=torch.float64)
            torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mined", [False, True])
@every_head
def test_no_tensor_is_larger_than_a_tile(name, mined):
    n, height = 96, 8
    x, labels = points(n, dtype=torch.float32), torch.arange(n) % 6
    pairs = BatchHard()(x, labels) if mined else None
    head = HEADS[name].head(tile_rows=height)
    with Largest() as largest:
        gradient_of(head, x, labels, mined=pairs)
    assert largest.numbers <= height * n
    # of one class all pairs of a tile are positive, and each has two row numbers
    with Largest() as largest:
        gradient_of(head, x, torch.zeros(n).long())
    assert largest.numbers <= 2 * height * n


def test_the_largest_tensor_is_seen():
    with Largest() as largest:
        gradient_of(lambda x, _: (x[:, None] * x[None]).sum(), points(5, 3), None)
    assert largest.numbers == 75


@every_head
def test_a_misspelt_option_is_refused(name):
    caller = HEADS[name].make.__name__
    with pytest.raises(ValueError, match=rf"{caller}\(reduction='means'\).*did you mean 'mean'\?"):
        HEADS[name].head(reduction="means")
    with pytest.raises(ValueError, match=rf"{caller}\(tile_rows=0\): expected a whole number of at least 1"):
        HEADS[name].head(tile_rows=0)
    if name in WITH_DISTANCE:
        with pytest.raises(ValueError, match=rf"{caller}\(distance='cosin'\).*did you mean 'cosine'\?"):
            HEADS[name].head(distance="cosin")
        with pytest.raises(
            ValueError, match=rf"{caller}\(distance=hamming\): expected a distance with a gradient"
        ):
            HEADS[name].head(distance="hamming")


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (InfoNCE, "temperature"),
        (SupCon, "temperature"),
        (MultiSimilarity, "alpha"),
        (MultiSimilarity, "beta"),
        (Circle, "gamma"),
    ],
)
def test_what_must_be_above_0_is_refused_otherwise(kind, option):
    for value in (0.0, -1.0):
        with pytest.raises(
            ValueError, match=rf"{kind.__name__}\({option}={value}\): expected a finite number above 0"
        ):
            kind(**{option: value})
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{kind.__name__}\({option}='1'\): expected a finite number"),
    ):
        kind(**{option: "1"})


def test_other_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"NPair\(l2=-1.0\): expected a finite number of at least 0"):
        NPair(-1.0)
    with pytest.raises(ValueError, match=r"LiftedStructure\(margin=nan\): expected a finite number"):
        LiftedStructure(math.nan)
    with pytest.raises(ValueError, match=r"MultiSimilarity\(base=inf\): expected a finite number"):
        MultiSimilarity(base=math.inf)
    with pytest.raises(ValueError, match=r"Circle\(m=inf\): expected a finite number"):
        Circle(math.inf)


@pytest.mark.parametrize("name", WITH_DISTANCE)
def test_a_distance_learns_with_the_head(name):
    x, labels = BATCHES["P × K"]
    head = HEADS[name].head(distance=Mahalanobis(nn.Parameter(torch.eye(4, dtype=torch.float64))))
    assert [key for key, _ in head.named_parameters()] == ["distance.L"]
    loss = head(x, labels)
    loss.backward()
    assert head.distance.L.grad.abs().sum() > 0
    check_equal(loss, HEADS[name].expected(x, labels, distance="euclidean"))


def test_options_show_when_printed():
    assert repr(InfoNCE()) == "InfoNCE(temperature=0.07, distance=cosine, reduction='mean')"
    assert repr(SupCon(distance="dot")) == "SupCon(temperature=0.1, distance=dot, reduction='mean')"
    assert repr(NPair(0.02)) == "NPair(l2=0.02, reduction='mean')"
    assert (
        repr(LiftedStructure())
        == "LiftedStructure(margin=1, pos_margin=0, distance=euclidean, reduction='mean')"
    )
    shown = "MultiSimilarity(alpha=2, beta=50, base=0.5, distance=cosine, reduction='mean')"
    assert repr(MultiSimilarity()) == shown
    assert repr(Circle(reduction="sum")) == "Circle(m=0.4, gamma=80, reduction='sum')"


@given(
    places=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8),
    labels=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    name=st.sampled_from(NAMES),
    height=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=80, deadline=None)
def test_a_head_equals_the_loop_on_any_batch(places, labels, name, height):
    x, labels = torch.tensor(places, dtype=torch.float64), torch.tensor(labels[: len(places)])
    head = HEADS[name].head(tile_rows=height)
    check_equal(head(x, labels), HEADS[name].expected(x, labels))
    check_finite(head, x, labels)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (InfoNCE(0.5), math.log(1 + math.exp((0.0 - 1.0) / 0.5))),
        (SupCon(0.5), math.log(1 + math.exp((0.0 - 1.0) / 0.5))),
        (NPair(), 0.0),
        (LiftedStructure(2.0), 0.5 * math.log(2 * math.exp(2 - math.sqrt(2))) ** 2),
        (Circle(0.5, 1.0), math.log(1 + math.exp(-0.25) * math.exp(-0.25))),
    ],
)
def test_two_alike_and_one_at_right_angles_by_hand(head, expected):
    x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    check_equal(head(x, labels), expected, rel=1e-6)


def test_the_loops_differ_from_a_wrong_head():
    x, labels = BATCHES["uneven positives per anchor"]
    wrong = {  # the same pairs, with one option off
        "InfoNCE": {"temperature": 0.071},
        "SupCon": {"temperature": 0.101},
        "multi-similarity": {"base": 0.51},
        "circle": {"m": 0.41},
        "lifted": {"margin": 1.01},
        "N-pair, L2": {"l2": 0.301},
    }
    for name, option in wrong.items():
        with pytest.raises(AssertionError):
            check_equal(HEADS[name].head(**option)(x, labels), HEADS[name].expected(x, labels))
    with pytest.raises(AssertionError):  # whether other positives stand in the denominator
        check_equal(InfoNCE(0.5)(x, labels), HEADS["SupCon"].expected(x, labels))


@pytest.mark.parametrize("name", OF_TUPLES)
def test_no_rows_and_no_losses_still_have_the_graph_of_the_columns(name):
    columns = points(5).requires_grad_()
    ref = References(columns, torch.zeros(5).long())
    losses = HEADS[name].head(reduction="none")(points(1)[:0], torch.zeros(0).long(), ref=ref)
    assert losses.shape == (0,)
    (gradient,) = torch.autograd.grad(losses.sum(), columns)
    assert not gradient.any()


def test_a_row_without_columns_is_still_a_row_of_multi_similarity():
    x = points(3).requires_grad_()
    ref = References(points(0), torch.zeros(0).long())
    losses = MultiSimilarity(reduction="none")(x, torch.arange(3), ref=ref)
    assert losses.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert not gradient.any()
    for head in (
        InfoNCE,
        SupCon,
        Circle,
        LiftedStructure,
    ):  # one loss a pair, or an anchor that has one
        assert head(reduction="none")(x, torch.arange(3), ref=ref).shape == (0,)


def test_the_distance_of_a_head_is_the_one_it_was_given():
    assert InfoNCE().distance is SupCon().distance is MultiSimilarity().distance is cosine
    assert InfoNCE(distance="euclidean").distance is euclidean
