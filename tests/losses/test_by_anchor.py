"""The mean over anchors of each anchor's mean: lists with repetition, long rows, other heads."""

import pytest
import torch

import tercet
from tercet.core.indices import Pairs, References, Triplets
from tercet.losses.base import Head
from tercet.pairwise.budget import override
from tests.contracts.heads import BATCHES, HEADS, check_equal, check_gradient
from tests.helpers import unchecked
from tests.oracles import listwise
from tests.oracles import triplets as reference

BY_ANCHOR = {"reduction": "mean_per_anchor"}
X, LABELS = BATCHES["uneven positives per anchor"]
REPEATED = [(0, 1, 5), (0, 1, 5), (0, 2, 7), (3, 1, 8), (5, 6, 0), (5, 6, 0), (5, 6, 2)]
LISTED = Triplets(*torch.tensor(REPEATED).T)
TRIPLET_HEADS = {
    "hinge": {"margin": 1.0},
    "squared": {"margin": 1.0, "power": 2},
    "soft": {"soft": True},
    "swap": {"margin": 1.0, "swap": True},
    "soft swap": {"soft": True, "swap": True},
}


def mean_of_means(anchors, losses):
    own = {}
    for a, loss in zip(anchors, losses, strict=True):
        own.setdefault(a, []).append(loss)
    return sum(sum(v) / len(v) for v in own.values()) / len(own)


def of_triplets(triplets, swap=False, **options):
    d = reference.distances("euclidean", X)
    losses = reference.triplet_losses(d, triplets, between=d if swap else None, **options)
    return mean_of_means([a for a, _, _ in triplets], losses)


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", TRIPLET_HEADS)
def test_listed_triplets_count_as_often_as_they_are_listed(name, height):
    head = tercet.TripletMargin(**TRIPLET_HEADS[name], **BY_ANCHOR, tile_rows=height)
    check_equal(head(X, LABELS, LISTED), of_triplets(REPEATED, **TRIPLET_HEADS[name]))
    check_gradient(head, X, LABELS, mined=LISTED)


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", TRIPLET_HEADS)
def test_pairs_are_joined_to_distinct_triplets(name, height):
    a, p, n = LISTED
    head = tercet.TripletMargin(**TRIPLET_HEADS[name], **BY_ANCHOR, tile_rows=height)
    joined = reference.joined(*(v.tolist() for v in (a, p, a, n)))
    check_equal(head(X, LABELS, Pairs(a, p, a, n)), of_triplets(joined, **TRIPLET_HEADS[name]))


@pytest.mark.parametrize("height", [None, 2])
@pytest.mark.parametrize("name", TRIPLET_HEADS)
def test_many_positives_an_anchor_are_averaged_alike(name, height):
    head = tercet.TripletMargin(**TRIPLET_HEADS[name], **BY_ANCHOR, tile_rows=height)
    every = reference.all_triplets(*reference.relation(LABELS))
    expected = of_triplets(every, **TRIPLET_HEADS[name])
    for passes in (0, 1, 64):  # sorted, or positive by positive
        with override(positive_passes=passes):
            check_equal(head(X, LABELS), expected)
            check_gradient(head, X, LABELS)
            ref = References(X, LABELS, torch.arange(9))
            check_equal(head(X, LABELS, ids=torch.arange(9), ref=ref), expected)


@pytest.mark.parametrize("height", [None, 2])
def test_listed_pairs_count_as_often_as_they_are_listed(height):
    a, p, n = LISTED
    rows = a.tolist(), p.tolist(), n.tolist()
    near, far = list(zip(rows[0], rows[1], strict=True)), list(zip(rows[0], rows[2], strict=True))
    d, anchors = reference.distances("euclidean", X), 2 * sorted(rows[0])
    pairs = Pairs(a, p, a, n)

    losses = reference.contrastive_losses(d, sorted(near), sorted(far), margin=3.0)
    head = tercet.Contrastive(3.0, **BY_ANCHOR, tile_rows=height)
    check_equal(head(X, mined=pairs), mean_of_means(anchors, losses))
    check_gradient(head, X, None, mined=pairs)

    losses = listwise.margin(d, near, far, [1.5] * 9, 0.5)
    head = tercet.MarginLoss(0.5, 1.5, nu=0.3, **BY_ANCHOR, tile_rows=height).double()
    check_equal(head(X, mined=pairs), mean_of_means(anchors, losses) + 0.3 * 1.5)
    check_gradient(head, X, None, mined=pairs)
    beta = head.beta.detach().clone().requires_grad_()
    for mined in (None, pairs):

        def of_beta(beta, mined=mined):
            return torch.func.functional_call(head, {"beta": beta}, (X, LABELS, mined))

        assert torch.autograd.gradcheck(of_beta, beta)


def test_distinct_pairs_of_triplets_count_once_in_the_contrastive_loss():
    near, far = sorted({(a, p) for a, p, _ in REPEATED}), sorted({(a, n) for a, _, n in REPEATED})
    losses = reference.contrastive_losses(reference.distances("euclidean", X), near, far, margin=3.0)
    expected = mean_of_means([a for a, _ in [*near, *far]], losses)
    check_equal(tercet.Contrastive(3.0, **BY_ANCHOR)(X, LABELS, LISTED), expected)


def test_one_table_is_shared_and_a_graph_is_left():
    heads = [tercet.TripletMargin(1.0, **BY_ANCHOR), tercet.Contrastive(3.0, **BY_ANCHOR)]
    expected = sum(float(head(X, LABELS)) for head in heads)
    check_equal(tercet.Sum(heads)(X, LABELS), expected)
    check_gradient(tercet.Sum(heads), X, LABELS)
    compiled = torch.compile(lambda x: heads[0](x, LABELS) + heads[1](x, LABELS), backend="eager")
    with unchecked():  # the checker's own code is not to be compiled
        check_equal(compiled(X), expected)


def test_heads_whose_anchors_have_one_loss_refuse_it():
    kinds = {type(row.head()) for row in HEADS.values()}
    able = {tercet.TripletMargin, tercet.Contrastive, tercet.MarginLoss}
    assert able < kinds
    for kind in kinds - able:
        if issubclass(kind, Head) and "reduction" in kind.__init__.__annotations__:
            hint = "TripletMargin, Contrastive and MarginLoss average the losses of an anchor first"
            with pytest.raises(ValueError, match=rf"reduction='mean_per_anchor'\): expected one of .*{hint}"):
                kind(**BY_ANCHOR)
