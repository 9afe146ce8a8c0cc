import copy
import math
import pickle

import pytest
import reference
import reference_listwise as loops
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import unchecked
from test_losses import (
    BATCHES,
    EMPTY,
    REDUCTIONS,
    check_equal,
    check_finite,
    check_gradient,
    check_half_precision,
    check_zero,
    every_batch,
    gradient_of,
    points,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tercet.distances import Mahalanobis
from tercet.losses.listwise import InfoNCE, NPair, SupCon
from tercet.losses.weighted import Circle, LiftedStructure, MultiSimilarity
from tercet.miners import BatchAll, BatchHard
from tercet.tuples import Pairs, References, Triplets

# One row a form of a head: how to make it, the loop it must equal, and the distance that the loop is given.
HEADS = {
    "InfoNCE": (InfoNCE, loops.info_nce, "cosine", {}),
    "SupCon": (SupCon, loops.sup_con, "cosine", {"temperature": 0.5}),
    "multi-similarity": (MultiSimilarity, loops.multi_similarity, "cosine", {}),
    "multi-similarity, wide": (
        MultiSimilarity,
        loops.multi_similarity,
        "cosine",
        {"alpha": 1.0, "beta": 5.0, "base": 0.1},
    ),
    "circle": (Circle, loops.circle, "cosine", {}),
    "circle, faces": (Circle, loops.circle, "cosine", {"m": 0.25, "gamma": 256.0}),
    "lifted": (LiftedStructure, loops.lifted, "euclidean", {}),
    "lifted, far": (LiftedStructure, loops.lifted, "euclidean", {"margin": 3.0}),
    "N-pair": (NPair, loops.n_pair, "dot", {}),
    "N-pair, L2": (NPair, loops.n_pair, "dot", {"l2": 0.3}),
}
WITH_DISTANCE = [name for name in HEADS if HEADS[name][0] in (InfoNCE, SupCon, LiftedStructure)]
OF_TUPLES = [name for name in HEADS if HEADS[name][0] is not NPair]
every_head = pytest.mark.parametrize("name", HEADS)


def make(name, **more):
    kind, _, _, options = HEADS[name]
    return kind(**{**options, **more})


def losses_of(name, x, labels, ids=None, ref=None, sides=None, distance=None):
    """What the loop gives: of all pairs, or of `sides`, sets of positive and negative (row, column)."""
    kind, loop, usual, options = HEADS[name]
    y = x if ref is None else ref.embeddings
    d = reference.distances(distance or usual, x, y)
    positive, negative = sides or reference.relation(labels, ref and ref.labels, ids, ref and ref.ids)
    if kind is NPair:
        pairs = loops.first_pairs(labels, sorted(positive))
        sizes = [[sum(v * v for v in row) for row in reference.rows_of(side).tolist()] for side in (x, y)]
        return loop([[-v for v in row] for row in d], pairs, sizes, **options)
    more = {"own": ref is None} if kind is LiftedStructure else {}
    return loop(d, positive, negative, **options, **more)


def expected_of(name, *given, reduction="mean", **more):
    return reference.reduced(losses_of(name, *given, **more), reduction)


def as_pairs(positive, negative):
    columns = [torch.tensor(sorted(side)).reshape(-1, 2).T for side in (positive, negative)]
    return Pairs(*columns[0], *columns[1])


def some_of(pairs, seed):
    """About half of a set, in no order that means anything."""
    keep = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < 0.5
    return {pair for pair, kept in zip(sorted(pairs), keep.tolist()) if kept}


@every_batch
@every_head
def test_a_head_equals_the_loop_at_every_tile_height(name, batch):
    x, labels = BATCHES[batch]
    expected = expected_of(name, x, labels)
    for height in (None, 1, 2, 100):
        check_equal(make(name, tile_rows=height)(x, labels), expected)
    check_equal(make(name)(x.float(), labels), expected, rel=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@every_head
def test_a_head_equals_the_loop_under_every_reduction(name, reduction):
    for batch in ("P ≠ K, shuffled", "uneven positives per anchor"):
        x, labels = BATCHES[batch]
        expected = expected_of(name, x, labels, reduction=reduction)
        check_equal(make(name, reduction=reduction, tile_rows=4)(x, labels), expected)


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine", "dot"])
@pytest.mark.parametrize("name", WITH_DISTANCE)
def test_a_head_equals_the_loop_under_every_distance(name, distance):
    x, labels = BATCHES["P ≠ K, shuffled"]
    check_equal(make(name, distance=distance)(x, labels), expected_of(name, x, labels, distance=distance))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name][0] is not Circle])
def test_the_gradient_is_that_of_finite_differences(name, reduction):
    for height in (None, 2):
        head = make(name, reduction=reduction, tile_rows=height)
        check_gradient(head, *BATCHES["uneven positives per anchor"])


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", ["circle", "circle, faces"])
def test_the_gradient_of_circle_is_that_of_finite_differences_with_the_weights_held(name, height):
    x, labels = BATCHES["uneven positives per anchor"]
    _, grad = gradient_of(make(name, tile_rows=height), x, labels)
    held, sides = reference.distances("cosine", x), reference.relation(labels)
    step = 1e-6
    for i, k in ((0, 0), (3, 2), (6, 1), (8, 3)):
        sums = []
        for sign in (1, -1):
            moved = x.clone()
            moved[i, k] += sign * step
            d = reference.distances("cosine", moved)
            losses = loops.circle(d, *sides, weights_at=held, **HEADS[name][3])
            sums.append(reference.reduced(losses, "mean"))
        assert grad[i, k].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name][0] is not Circle])
def test_the_gradient_flows_to_references_too(name, height):
    (x, labels), head = BATCHES["P × K"], make(name, tile_rows=height)

    def loss(x, y):
        return head(x, labels, ref=References(y, torch.arange(5) % 4))

    inputs = x.clone().requires_grad_(), points(5, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("batch", ["two identical images", "identical images of two classes", "collapsed"])
@every_head
def test_coincident_points_have_a_finite_gradient(name, batch):
    x, labels = BATCHES[batch]
    for v in (x, torch.zeros_like(x), x.float()):
        for mined in (None, BatchAll()(v, labels)):
            check_finite(make(name), v, labels, mined=mined)


@pytest.mark.parametrize("size", [1e-3, 1e3])
@every_head
def test_no_logit_is_too_large(name, size):
    x, labels = BATCHES["uneven positives per anchor"]
    heads = [make(name), make(name, reduction="none")]
    if HEADS[name][0] in (InfoNCE, SupCon):
        heads.append(make(name, temperature=0.001))
    if HEADS[name][0] is Circle:
        heads.append(make(name, gamma=1e5))
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
    sides = reference.relation(labels)
    losses = HEADS[name][1](reference.distances("cosine", x), *sides, **options)
    check_equal(make(name, **options)(x, labels), reference.reduced(losses, "mean"), rel=1e-5)


# Heads that have a loss of one side alone: the loop has it too.
ONE_SIDED = {
    ("SupCon", "one class only"),
    ("N-pair, L2", "one class only"),
    *((name, case) for name in HEADS for case in ("all different", "one class only") if "multi" in name),
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in HEADS for case in EMPTY if (name, case) not in ONE_SIDED]
)
def test_nothing_to_compare_is_0_with_a_graph(name, case):
    x, labels = EMPTY[case]
    for v in (x, x.float()):
        for reduction, height in zip(REDUCTIONS, (None, 1, 2)):
            check_zero(make(name, reduction=reduction, tile_rows=height), v, labels)
        assert make(name, reduction="none")(v, labels).sum() == 0


@pytest.mark.parametrize(("name", "case"), sorted(ONE_SIDED))
def test_one_side_alone_has_the_loop_s_loss(name, case):
    x, labels = EMPTY[case]
    loss = make(name)(x, labels)
    assert loss > 0
    check_equal(loss, expected_of(name, x, labels))


@every_head
def test_empty_tuples_are_0_with_a_graph(name):
    x, labels = BATCHES["P × K"]
    none = torch.zeros(0).long()
    for mined in ((none, none, none), Triplets(none, none, none), Pairs(none, none, none, none)):
        check_zero(make(name), x, labels, mined=mined)
        check_zero(make(name), x[:0], labels[:0], mined=mined)
        check_zero(make(name), x, labels, mined=mined, ref=References(x[:0], labels[:0]))


@every_head
def test_fp16_and_bf16_embeddings_are_compared_in_float32(name):
    check_half_precision(make(name), *BATCHES["P × K"])


@every_head
def test_autocast_changes_nothing(name):
    x, labels = BATCHES["P × K"][0].float(), BATCHES["P × K"][1]
    for reduction in ("mean", "none"):
        head = make(name, reduction=reduction)
        for mined in (None, BatchHard()(x, labels)):
            v = x.clone().requires_grad_()
            outside = head(v, labels, mined)
            (expected,) = torch.autograd.grad(outside.sum(), v)
            with torch.autocast("cpu", torch.bfloat16):
                inside = head(v, labels, mined)
            assert inside.dtype == torch.float32
            assert torch.equal(inside, outside)
            assert torch.equal(torch.autograd.grad(inside.sum(), v)[0], expected)


@every_head
def test_rows_shuffled_give_the_same_loss_and_the_shuffled_gradient(name):
    x, labels = BATCHES["uneven positives per anchor"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    if HEADS[name][0] is NPair:  # takes the first rows of a class, so only classes are shuffled
        order = torch.tensor([7, 5, 8, 0, 1, 6, 2, 3, 4])
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
    for height in (None, 2):
        check_equal(make(name, tile_rows=height)(x, labels, ids=ids, ref=ref), expected)
    twice = torch.tensor([0, 0, 1, 2, 3, 0, 4, 5, 6])
    check_equal(make(name)(x, labels, ids=twice), expected_of(name, x, labels, ids=twice))


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
        check_equal(v, expected_of("N-pair", x, labels, ids=ids, ref=ref))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", OF_TUPLES)
def test_the_list_of_all_pairs_gives_the_loss_of_all_pairs(name, reduction):
    x, labels = BATCHES["P × K"]  # where each pair is in a triplet
    pairs = as_pairs(*reference.relation(labels))
    for height in (None, 2):
        head = make(name, reduction=reduction, tile_rows=height)
        loss, grad = gradient_of(head, x, labels)
        for mined in (pairs, BatchAll()(x, labels), tuple(torch.cat([v, v]) for v in pairs)):
            listed, listed_grad = gradient_of(head, x, None, mined=mined)
            torch.testing.assert_close(listed, loss)
            torch.testing.assert_close(listed_grad, grad)


@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("name", OF_TUPLES)
def test_a_list_of_some_pairs_gives_the_loop_s_loss_of_them(name, with_ref):
    x, labels = BATCHES["uneven positives per anchor"]
    ref = References(points(7, seed=4), torch.arange(7) % 3) if with_ref else None
    for seed in range(2):
        sides = reference.relation(labels, ref and ref.labels)
        sides = some_of(sides[0], seed), some_of(sides[1], seed)
        losses = losses_of(name, x, labels, ref=ref, sides=sides)
        for height in (None, 4):
            head = make(name, tile_rows=height)
            check_equal(head(x, None, as_pairs(*sides), ref=ref), reference.reduced(losses, "mean"))
        if HEADS[name][0] is not Circle:
            check_gradient(head, x, None, mined=as_pairs(*sides), ref=ref)


@pytest.mark.parametrize("name", OF_TUPLES)
def test_triplets_are_their_pairs(name):
    x, labels = BATCHES["uneven positives per anchor"]
    mined = BatchHard()(x, labels)
    a, p, n = (index.tolist() for index in mined)
    sides = set(zip(a, p)), set(zip(a, n))
    check_equal(
        make(name)(x, None, mined), reference.reduced(losses_of(name, x, labels, sides=sides), "mean")
    )


@pytest.mark.parametrize("name", ["N-pair", "N-pair, L2"])
def test_n_pair_takes_the_first_listed_pair_of_each_class(name):
    x, labels = BATCHES["P × K"]
    listed = [(4, 3), (0, 2), (3, 5), (1, 0), (8, 6)]
    rows = torch.tensor(listed).T
    chosen = [(4, 3), (0, 2), (8, 6)]
    sizes = [[sum(v * v for v in row) for row in x.tolist()]] * 2
    dots = [[-v for v in row] for row in reference.distances("dot", x)]
    expected = loops.n_pair(dots, chosen, sizes, **HEADS[name][3])
    for mined in (Pairs(*rows, *rows[:, :0]), Triplets(*rows, torch.tensor([0, 3, 0, 3, 0]))):
        losses = make(name, reduction="none", tile_rows=2)(x, labels, mined)
        assert losses.tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"NPair\(labels=None\): expected labels, beside mined pairs too"):
        make(name)(x, None, Pairs(*rows, *rows[:, :0]))


@every_head
def test_losses_one_by_one_are_the_loop_s(name):
    for batch in ("P ≠ K, shuffled", "uneven positives per anchor"):
        x, labels = BATCHES[batch]
        for height in (None, 3):
            losses = make(name, reduction="none", tile_rows=height)(x, labels)
            expected = torch.tensor(losses_of(name, x, labels), dtype=torch.float64)
            torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-9)


class Largest(TorchDispatchMode):
    """The size in numbers of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for v in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(v, torch.Tensor):
                self.numbers = max(self.numbers, v.numel())
        return out


@pytest.mark.parametrize("mined", [False, True])
@every_head
def test_no_tensor_is_larger_than_a_tile(name, mined):
    n, height = 96, 8
    x, labels = points(n, dtype=torch.float32), torch.arange(n) % 6
    pairs = BatchHard()(x, labels) if mined else None
    head = make(name, tile_rows=height)
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
    owner = HEADS[name][0].__name__
    with pytest.raises(ValueError, match=rf"{owner}\(reduction='means'\).*did you mean 'mean'\?"):
        make(name, reduction="means")
    with pytest.raises(ValueError, match=rf"{owner}\(tile_rows=0\): expected a whole number of at least 1"):
        make(name, tile_rows=0)
    if name in WITH_DISTANCE:
        with pytest.raises(ValueError, match=rf"{owner}\(distance='cosin'\).*did you mean 'cosine'\?"):
            make(name, distance="cosin")
        with pytest.raises(
            ValueError, match=rf"{owner}\(distance=hamming\): expected a distance with a gradient"
        ):
            make(name, distance="hamming")


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


@every_head
def test_neither_labels_nor_tuples_is_refused(name):
    with pytest.raises(ValueError, match=r"\(labels=None\): expected labels, "):
        make(name)(points(4))


@every_head
def test_what_is_no_list_of_rows_of_the_batch_is_refused(name):
    x, labels, rows = points(4), torch.arange(4) // 2, torch.tensor([0, 1])
    owner = HEADS[name][0].__name__
    with pytest.raises(
        ValueError, match=rf"{owner}\(mined='tuple of 2'\): expected Triplets .* or Pairs \(four"
    ):
        make(name)(x, labels, (rows, rows))
    with pytest.raises(ValueError, match=rf"{owner}\(mined='row 4'\): expected rows below 4; pass the emb"):
        make(name)(x, labels, (rows, rows, rows + 3))


@every_head
def test_a_head_is_copied_and_pickled_with_the_same_loss(name):
    head = make(name)
    x, labels = BATCHES["P × K"]
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(x, labels), head(x, labels))
        assert repr(other) == repr(head)
    assert not list(head.parameters())


@pytest.mark.parametrize("name", WITH_DISTANCE)
def test_a_distance_learns_with_the_head(name):
    x, labels = BATCHES["P × K"]
    head = make(name, distance=Mahalanobis(nn.Parameter(torch.eye(4, dtype=torch.float64))))
    assert [key for key, _ in head.named_parameters()] == ["distance.L"]
    loss = head(x, labels)
    loss.backward()
    assert head.distance.L.grad.abs().sum() > 0
    check_equal(loss, expected_of(name, x, labels, distance="euclidean"))


def test_options_show_when_printed():
    assert repr(InfoNCE()) == "InfoNCE(temperature=0.07, distance=cosine, reduction='mean')"
    assert repr(SupCon(distance="dot")) == "SupCon(temperature=0.1, distance=dot, reduction='mean')"
    assert repr(NPair(0.02)) == "NPair(l2=0.02, reduction='mean')"
    assert repr(LiftedStructure()) == "LiftedStructure(margin=1, distance=euclidean, reduction='mean')"
    assert repr(MultiSimilarity()) == "MultiSimilarity(alpha=2, beta=50, base=0.5, reduction='mean')"
    assert repr(Circle(reduction="sum")) == "Circle(m=0.4, gamma=80, reduction='sum')"


@given(
    places=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8),
    labels=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    name=st.sampled_from(sorted(HEADS)),
    height=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=80, deadline=None)
def test_a_head_equals_the_loop_on_any_batch(places, labels, name, height):
    x, labels = torch.tensor(places, dtype=torch.float64), torch.tensor(labels[: len(places)])
    head = make(name, tile_rows=height)
    check_equal(head(x, labels), expected_of(name, x, labels))
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
            check_equal(make(name, **option)(x, labels), expected_of(name, x, labels))
    with pytest.raises(AssertionError):  # whether other positives stand in the denominator
        check_equal(InfoNCE(0.5)(x, labels), expected_of("SupCon", x, labels))
