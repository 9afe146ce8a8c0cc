import copy
import math
import pickle

import pytest
import torch
from torch import nn

from tercet.core.indices import Pairs, References, Triplets
from tercet.losses.margin import MarginLoss
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.pairwise.distances import Mahalanobis
from tests.contracts.heads import (
    BATCHES,
    ONE_SIDED,
    Largest,
    check_equal,
    check_gradient,
    check_zero,
    gradient_of,
)
from tests.helpers import double_points as points
from tests.helpers import unchecked
from tests.oracles import listwise as loops
from tests.oracles import triplets as reference

BETAS = [1.5, 2.5, 0.5, 3.0]  # of classes 0 to 3
DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot"]
REDUCTIONS = ["mean_active", "mean", "sum"]


def make(name="global", **options):
    """A head with one β, or with BETAS."""
    if name == "global":
        return MarginLoss(**{"margin": 0.7, "beta": 2.0, **options}).double()
    head = MarginLoss(**{"margin": 0.7, "num_classes": len(BETAS), **options}).double()
    with torch.no_grad():
        head.beta.copy_(torch.tensor(BETAS))
    return head


def boundaries(name, labels):
    return [2.0 if name == "global" else BETAS[int(label)] for label in labels]


def losses_of(name, x, labels, distance="euclidean", ids=None, ref=None, sides=None):
    d = reference.distances(distance, x, None if ref is None else ref.embeddings)
    sides = sides or reference.relation(labels, ref and ref.labels, ids, ref and ref.ids)
    return loops.margin(d, *sides, boundaries(name, labels), 0.7)


def expected_of(name, *given, reduction="mean_active", nu=0.0, **more):
    _, labels = given
    pull = nu * sum(boundaries(name, labels)) / max(1, len(labels))
    return reference.reduced(losses_of(name, *given, **more), reduction) + pull


every_form = pytest.mark.parametrize("name", ["global", "per class"])


@pytest.mark.parametrize("distance", DISTANCES)
@every_form
def test_the_head_equals_the_loop_under_every_distance(name, distance):
    x, labels = BATCHES["P ≠ K, shuffled"]
    expected = expected_of(name, x, labels, distance=distance, nu=0.3)
    check_equal(make(name, distance=distance, nu=0.3)(x, labels), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("nu", [0.0, 0.3])
@every_form
def test_the_gradient_by_embeddings_and_by_beta_is_that_of_finite_differences(name, nu, reduction):
    x, labels = BATCHES["uneven positives per anchor"]
    for mined in (None, BatchHard()(x, labels)):
        for height in (None, 2):
            head = make(name, nu=nu, reduction=reduction, tile_rows=height)

            def loss(x, beta, head=head, mined=mined):
                return torch.func.functional_call(head, {"beta": beta}, (x, labels, mined))

            inputs = x.clone().requires_grad_(), head.beta.detach().clone().requires_grad_()
            assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_the_gradient_by_beta_is_negatives_less_positives_over_those_that_count():
    x, labels = BATCHES["P ≠ K, shuffled"]
    for name in ("global", "per class"):
        head = make(name)
        head(x, labels).backward()
        positive, negative = reference.relation(labels)
        d, beta = reference.distances("euclidean", x), boundaries(name, labels)
        near = [i for i, j in positive if 0.7 + d[i][j] - beta[i] > 0]
        far = [i for i, j in negative if 0.7 - d[i][j] + beta[i] > 0]
        slopes = [(far.count(i) - near.count(i)) / len(near + far) for i in range(len(x))]
        if name == "global":
            expected = [sum(slopes)]
        else:
            expected = [
                sum(s for s, label in zip(slopes, labels.tolist(), strict=True) if label == c)
                for c in range(4)
            ]
        assert head.beta.grad.reshape(-1).tolist() == pytest.approx(expected)


def test_beta_learns_and_is_saved():
    x, labels = BATCHES["P × K"]
    head = make()
    assert [key for key, _ in head.named_parameters()] == ["beta"]
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    before = head(x, labels)
    before.backward()
    optimizer.step()
    assert head.beta.item() != 2.0
    assert head(x, labels) < before
    again = make()
    again.load_state_dict(head.state_dict())
    for other in (again, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(x, labels), head(x, labels))


def test_beta_held_still_gets_no_gradient():
    x, labels = BATCHES["P × K"]
    head = make("per class", nu=0.1)
    head.beta.requires_grad_(False)
    _, grad = gradient_of(head, x, labels)
    assert head.beta.grad is None
    assert grad.abs().sum() > 0


def test_classes_that_are_not_in_the_batch_get_no_gradient():
    x, labels = points(6), torch.tensor([0, 0, 3, 3, 0, 3])
    head = make("per class", nu=0.3)
    head(x, labels).backward()
    assert head.beta.grad[[1, 2]].tolist() == [0, 0]
    assert head.beta.grad[[0, 3]].abs().min() > 0


def test_labels_without_a_beta_are_refused():
    x, head = points(3), make("per class")
    for labels, shown in (([0, 4, 1], "4 in row 1"), ([0, 1, -1], "-1 in row 2")):
        with pytest.raises(
            ValueError,
            match=rf"MarginLoss\(labels='{shown}'\): expected classes from 0 to 3; num_classes=4 is how many",
        ):
            head(x, torch.tensor(labels))
    rows = torch.tensor([0])
    mined = Triplets(rows, rows + 1, rows + 2)
    with pytest.raises(ValueError, match=r"MarginLoss\(labels=None\): expected labels, beside mined pairs"):
        head(x, None, mined)
    with pytest.raises(ValueError, match=r"'9 in row 0'\): expected classes from 0 to 3"):
        head(x, torch.tensor([9, 0, 1]), mined)
    assert MarginLoss()(x, torch.tensor([9, 10**12, -1])).isfinite()  # one β: labels are only compared
    # references have no β of their own
    assert head(x, torch.tensor([0, 0, 1]), ref=References(x, torch.tensor([7, 8, 9]))).isfinite()


@every_form
def test_mined_pairs_count_as_often_as_they_are_listed(name):
    x, labels = BATCHES["uneven positives per anchor"]
    triplets = BatchAll()(x, labels)
    a, p, n = (index.tolist() for index in triplets)
    losses = losses_of(name, x, labels, sides=(list(zip(a, p, strict=True)), list(zip(a, n, strict=True))))
    as_pairs = Pairs(triplets.anchor, triplets.positive, triplets.anchor, triplets.negative)
    for reduction in REDUCTIONS:
        for height in (None, 2):
            head = make(name, reduction=reduction, tile_rows=height)
            for mined in (triplets, as_pairs):
                check_equal(head(x, labels, mined), reference.reduced(losses, reduction))
    check_gradient(make(name), x, labels, mined=triplets)


def test_losses_one_by_one_are_positives_and_then_negatives():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    head = MarginLoss(margin=0.5, beta=1.0, reduction="none")
    pairs = Pairs(*(torch.tensor(rows) for rows in ([0], [2], [0, 1, 2], [1, 2, 1])))
    for height in (None, 1):
        head.tile_rows = height
        assert head(x, mined=pairs).tolist() == [2.5, 0.5, 0.0, 0.0]
    head(x, mined=pairs).sum().backward()
    assert head.beta.grad.item() == 0.0  # −1 of the positive, +1 of the first negative
    rows = torch.tensor([0, 0])
    assert head(x, mined=Triplets(rows, rows + 1, rows + 2)).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_a_satisfied_head_is_0_with_gradient_0():
    x, labels = torch.tensor([[0.0], [0.1], [100.0], [100.1]]), torch.tensor([0, 0, 1, 1])
    head = MarginLoss(margin=0.2, beta=1.2)
    check_zero(head, x, labels)
    assert head.beta.grad.item() == 0
    edge = torch.tensor([[0.0], [1.0], [1.5]])  # both pairs exactly at the margin
    check_zero(MarginLoss(0.25, 1.25), edge, mined=Triplets(*torch.tensor([[0], [1], [2]])), labels=None)


@pytest.mark.parametrize("case", ONE_SIDED)
@every_form
def test_the_pull_of_nu_is_there_without_pairs_too(name, case):
    x, labels = ONE_SIDED[case]
    for head in (make(name, nu=0.3), make(name, nu=0.3, tile_rows=2)):
        check_equal(head(x, labels), expected_of(name, x, labels, nu=0.3))
    head = make(name)
    check_zero(head, x, labels, ref=References(points(0), torch.zeros(0).long()))
    assert not head.beta.grad.any()


@every_form
def test_a_head_of_16_bits_compares_in_float32(name):
    x, labels = BATCHES["P × K"]
    for kind in (torch.float16, torch.bfloat16):
        head = make(name).to(kind)
        loss, _ = gradient_of(head, x.float(), labels)
        check_equal(loss, expected_of(name, x, labels), rel=1e-5)
        assert head.beta.grad.dtype == kind


@every_form
def test_rows_shuffled_give_the_same_loss_and_the_shuffled_gradient(name):
    x, labels = BATCHES["uneven positives per anchor"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    loss, grad = gradient_of(make(name, nu=0.2), x, labels)
    shuffled, shuffled_grad = gradient_of(make(name, nu=0.2), x[order], labels[order])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


def test_a_distance_learns_with_the_head():
    x, labels = BATCHES["P × K"]
    head = make(distance=Mahalanobis(nn.Parameter(torch.eye(4, dtype=torch.float64))))
    loss = head(x, labels)
    loss.backward()
    assert head.distance.L.grad.abs().sum() > 0
    check_equal(loss, expected_of("global", x, labels))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"MarginLoss\(margin=-0.1\): expected a finite number of at least"):
        MarginLoss(-0.1)
    with pytest.raises(ValueError, match=r"MarginLoss\(beta=inf\): expected a finite number"):
        MarginLoss(beta=math.inf)
    with pytest.raises(ValueError, match=r"MarginLoss\(nu=-1.0\): expected a finite number of at least 0"):
        MarginLoss(nu=-1.0)
    with pytest.raises(ValueError, match=r"MarginLoss\(num_classes=0\): expected a whole number of at least"):
        MarginLoss(num_classes=0)
    with unchecked(), pytest.raises(ValueError, match=r"MarginLoss\(num_classes=2.5\): expected a whole num"):
        MarginLoss(num_classes=2.5)
    with pytest.raises(ValueError, match=r"MarginLoss\(reduction='avg'\): expected one of 'mean_active'"):
        MarginLoss(reduction="avg")
    with pytest.raises(ValueError, match=r"MarginLoss\(distance='cosin'\).*did you mean 'cosine'\?"):
        MarginLoss(distance="cosin")
    with pytest.raises(ValueError, match=r"MarginLoss\(nu=0.1\): expected 0 with reduction=.none., for it"):
        MarginLoss(nu=0.1, reduction="none")


def test_what_the_call_lacks_is_refused():
    x, labels, rows = points(4), torch.arange(4) // 2, torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"MarginLoss\(labels=None\): expected labels, or mined pairs"):
        make()(x)
    with pytest.raises(ValueError, match=r"\(mined=None\): expected mined pairs with reduction=.none.; pass"):
        make(reduction="none")(x, labels)
    with pytest.raises(ValueError, match=r"MarginLoss\(mined='tuple of 2'\): expected Triplets .* or Pairs"):
        make()(x, labels, (rows, rows))
    with pytest.raises(ValueError, match=r"MarginLoss\(mined='row 4'\): expected rows below 4"):
        make()(x, labels, (rows, rows, rows + 3))


def test_options_show_when_printed():
    options = "one β, margin=0.2, nu=0, of_triplets=False, distance=euclidean, reduction='mean_active'"
    assert repr(MarginLoss()) == f"MarginLoss({options})"
    assert "num_classes=5, margin=0.2, nu=0.1" in repr(MarginLoss(num_classes=5, nu=0.1))


def test_the_loop_differs_from_a_wrong_head():
    x, labels = BATCHES["P × K"]
    for name in ("global", "per class"):
        wrong = make(name)
        with torch.no_grad():
            wrong.beta.mul_(1.001)
        for head in (wrong, make(name, margin=0.701), make(name, nu=0.001)):
            with pytest.raises(AssertionError):
                check_equal(head(x, labels), expected_of(name, x, labels))


@every_form
def test_no_tensor_is_larger_than_a_tile(name):
    n, height = 96, 8
    x, labels = points(n, dtype=torch.float32), torch.arange(n) % 3
    with Largest() as largest:
        gradient_of(make(name, tile_rows=height), x, labels)
    assert largest.numbers == height * n


def test_beta_learns_where_the_embeddings_are_frozen():
    x, labels = BATCHES["P × K"]
    learned, frozen = make(), make()
    learned(x.clone().requires_grad_(), labels).backward()
    frozen(x, labels).backward()
    assert frozen.beta.grad.item() == learned.beta.grad.item() != 0
