"""Heads that compare a batch with a sample of the classes, in one process and shared by two."""

import copy
import datetime
import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tercet.losses.class_shares import drawn_classes
from tercet.losses.softmax import ArcFace
from tercet.losses.softmax_head import SoftmaxHead
from tests.contracts.heads import PROXIED, check_equal, gradient_of
from tests.contracts.proxies import BATCHES, make
from tests.helpers import double_points as points
from tests.helpers import refusal_of, unchecked

WORLD, CLASSES = 2, 11
HEADS = [name for name, row in PROXIED.items() if isinstance(row.head(), SoftmaxHead)]
X, LABELS = points(12, seed=4), torch.arange(12) * 5 % CLASSES
SPLITS = {"even": [6, 6], "uneven": [7, 5], "an empty rank": [12, 0]}
every_head = pytest.mark.parametrize("name", HEADS)


def sampled(name, sample, **more):
    """A head of eleven classes in training mode, whatever the table's is in."""
    return make(name, num_classes=CLASSES, sample=sample, **more).train()


def fresh(name, **more):
    return make(name, num_classes=CLASSES, **more).train()


def dense(grad):
    return grad.to_dense() if grad.is_sparse else grad


@every_head
def test_a_sample_of_all_classes_is_the_whole_loss_with_a_sparse_gradient(name):
    for sample in (1.0, CLASSES, 10**9):
        head, whole = sampled(name, sample), fresh(name)
        for found, expected in zip(gradient_of(head, X, LABELS), gradient_of(whole, X, LABELS), strict=True):
            torch.testing.assert_close(found, expected)
        assert head.proxies.grad.is_sparse
        torch.testing.assert_close(dense(head.proxies.grad), whole.proxies.grad)


@every_head
def test_a_sample_is_the_loss_against_the_drawn_classes_and_those_of_the_batch(name):
    x, labels = X[:3], torch.tensor([7, 2, 7])
    head = sampled(name, 4, seed=3)
    for step in range(3):
        chosen = sorted({7, 2, *drawn_classes(3, step, CLASSES, 4).tolist()})
        assert len(chosen) <= 6
        few = make(name, num_classes=len(chosen), seed=3).train()
        few.load_state_dict(
            {k: v for k, v in head.state_dict().items() if k not in ("proxies", "step")}, False
        )
        k = len(head.proxies) // CLASSES
        with torch.no_grad():
            few.proxies.copy_(head.proxies.unflatten(0, (CLASSES, k))[chosen].flatten(0, 1))
        places = torch.tensor([chosen.index(c) for c in labels.tolist()])
        head.zero_grad()
        for found, expected in zip(gradient_of(head, x, labels), gradient_of(few, x, places), strict=True):
            torch.testing.assert_close(found, expected)
        grad = dense(head.proxies.grad).unflatten(0, (CLASSES, k))
        torch.testing.assert_close(grad[chosen].flatten(0, 1), few.proxies.grad)
        others = [c for c in range(CLASSES) if c not in chosen]
        assert not grad[others].any()
        assert head.proxies.grad.coalesce().indices().shape[1] == k * len(chosen)


def test_what_is_drawn_is_a_function_of_seed_and_step():
    state, python_state = torch.get_rng_state(), random.getstate()
    seen = np.zeros(40, int)
    for step in range(2000):
        drawn = drawn_classes(1, step, 40, 0.2)
        assert len(set(drawn.tolist())) == 8
        seen[drawn] += 1
    assert abs(seen - 400).max() < 90  # five deviations of √(2000 · 0.2 · 0.8)
    assert drawn_classes(1, 5, 40, 0.2).tolist() == drawn_classes(1, 5, 40, 8).tolist()
    assert drawn_classes(1, 5, 40, 0.2).tolist() != drawn_classes(2, 5, 40, 0.2).tolist()
    assert drawn_classes(1, 5, 40, 1e-9).tolist() == drawn_classes(1, 5, 40, 1).tolist()
    with unchecked():  # checks of types draw items of lists
        sampled("ArcFace", 0.3)(X, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def test_a_resumed_head_draws_what_it_would_have_drawn():
    head = sampled("CosFace", 3)
    losses = [head(X[:2], LABELS[:2]).item() for _ in range(6)]
    assert len(set(losses)) > 3
    again = sampled("CosFace", 3)
    [again(X[:2], LABELS[:2]) for _ in range(2)]
    resumed = sampled("CosFace", 3, seed=0)
    resumed.load_state_dict(again.state_dict())
    assert resumed.step == 2
    assert [resumed(X[:2], LABELS[:2]).item() for _ in range(4)] == losses[2:]


def test_in_evaluation_mode_all_classes_are_compared():
    head, whole = sampled("ArcFace", 1).eval(), fresh("ArcFace").eval()
    check_equal(head(X, LABELS), whole(X, LABELS).item())
    assert head.step == 0
    assert head.logits(X).shape == (12, CLASSES)
    assert head.train()(X[:0], LABELS[:0]) == 0
    assert head.step == 0


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.SparseAdam])
def test_optimisers_of_sparse_gradients_move_the_compared_proxies_alone(optimiser):
    head = sampled("NormalizedSoftmax, warm", 2)
    steps, before = optimiser(head.parameters(), lr=0.1), head.proxies.detach().clone()
    head(X[:1], LABELS[:1]).backward()
    steps.step()
    moved = (head.proxies != before).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted({int(LABELS[0]), *drawn_classes(0, 0, CLASSES, 2).tolist()})


def test_weights_classes_and_new_classes_are_those_of_all_numbers():
    shares = torch.arange(1.0, CLASSES + 1)
    for option in ({"class_weight": shares}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        head, whole = sampled("ArcFace", 1.0, **option), fresh("ArcFace", **option)
        torch.testing.assert_close(head(X, LABELS), whole(X, LABELS))
    head, whole = sampled("ArcFace", 1.0), fresh("ArcFace")
    head.add_classes(2)
    whole.add_classes(2)
    torch.testing.assert_close(head(X, LABELS + 2), whole(X, LABELS + 2))


@pytest.mark.parametrize("sample", [0, -1, 0.0, 1.5, True, "all", float("nan")])
def test_what_is_no_share_is_refused(sample):
    with unchecked(), pytest.raises(ValueError, match=r"ArcFace\(sample="):
        ArcFace(4, 4, sample=sample)


def test_one_process_holds_all_classes():
    head = ArcFace(4, 4, sharded=True)
    assert torch.equal(
        head(BATCHES["all classes"][0], BATCHES["all classes"][1]), ArcFace(4, 4)(*BATCHES["all classes"])
    )
    text = refusal_of(ArcFace, 4, 4, sharded=True, reduction="none")
    assert text.startswith('ArcFace(reduction=\'none\'): expected "mean" or "sum" beside sharded=True')


# Two processes against one.

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "smoothed": {"label_smoothing": 0.2},
    "weighted classes": {"class_weight": [0.5 + c for c in range(CLASSES)]},
}
SCENARIOS = [
    (name, sample, split, "mean") for name in HEADS for sample in (None, 0.3) for split in ("uneven",)
]
SCENARIOS += [("ArcFace", 1.0, split, "mean") for split in SPLITS]
SCENARIOS += [("CosFace", 1, "even", "mean")]  # a rank that has none of the classes
SCENARIOS += [("CosFace", 0.3, "an empty rank", option) for option in OPTIONS]
WEIGHTS = torch.arange(12) % 3 + 0.5


def network():
    """A small model with fixed weights."""
    model = nn.Linear(4, 4).double()
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.copy_(torch.sin(torch.arange(weight.numel()) * 1.7 + i).view_as(weight))
    return model


def labels_of(sample):
    return torch.full_like(LABELS, 4) if sample == 1 and isinstance(sample, int) else LABELS


def trained(head, model, rows, labels):
    """Two steps of a head: losses, gradients of the model by the second, of the proxies, and the state."""
    for _ in range(2):
        model.zero_grad()
        head.zero_grad()
        loss = head(model(X[rows]), labels[rows], weight=WEIGHTS[rows])
        loss.backward()
    grads = [weight.grad.clone() for weight in model.parameters()]
    state = {name: v for name, v in head.state_dict().items() if name != "proxies"}
    return loss.detach(), grads, dense(head.proxies.grad), state, head.proxies.detach()


def own_rows(r, split):
    start = sum(SPLITS[split][:r])
    return slice(start, start + SPLITS[split][r])


def shared(r, name, sample, split, option):
    head = sampled(name, sample, sharded=True, **OPTIONS[option])
    return trained(head, DistributedDataParallel(network()), own_rows(r, split), labels_of(sample))


def grown(r):
    """The proxies of a head that got classes, and what it refuses."""
    head = sampled("ArcFace", None, sharded=True)
    head.add_classes(3)
    head.add_classes(2, points(2, seed=8))
    return head.proxies.detach(), refusal_of(head.logits, X)


def worker(r, folder):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=r, world_size=WORLD, timeout=limit
    )
    seen = {"scenarios": [shared(r, *scenario) for scenario in SCENARIOS], "grown": grown(r)}
    torch.save(seen, f"{folder}/{r}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(os.path.join(folder, f"{r}.pt"), weights_only=False) for r in range(WORLD)]


def by_class(parts, k):
    """The rows of all classes, of the parts that ranks hold."""
    rows = parts[0].new_zeros(CLASSES, k, 4)
    for r, part in enumerate(parts):
        rows[r::WORLD] = part.unflatten(0, (-1, k))
    return rows.flatten(0, 1)


def check_equal_to_one_process(scenario, parts):
    """Losses, gradients and states of ranks are those of one process with all rows."""
    name, sample, _, option = scenario
    head = sampled(name, sample, **OPTIONS[option])
    loss, grads, proxies_grad, state, proxies = trained(head, network(), slice(0, 12), labels_of(sample))
    k = len(proxies) // CLASSES
    for part in parts:
        torch.testing.assert_close(part[0], loss)
        for found, expected in zip(part[1], grads, strict=True):  # which DDP has averaged
            torch.testing.assert_close(found, expected)
        for key, value in state.items():
            torch.testing.assert_close(part[3][key], value)
    assert torch.equal(by_class([part[4] for part in parts], k), proxies)
    torch.testing.assert_close(by_class([part[2] for part in parts], k), proxies_grad)
    assert proxies_grad.any()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_two_ranks_that_share_the_classes_equal_one_process(ranks, scenario):
    check_equal_to_one_process(scenario, [seen["scenarios"][SCENARIOS.index(scenario)] for seen in ranks])


def test_classes_are_added_to_the_ranks_in_turn(ranks):
    whole = fresh("ArcFace")
    whole.add_classes(3)
    whole.add_classes(2, points(2, seed=8))
    for r, seen in enumerate(ranks):
        proxies, text = seen["grown"]
        assert torch.equal(proxies, whole.proxies[r::WORLD])
        expected = "ArcFace.logits(sharded=True): expected False, since this rank holds a part of the classes"
        assert text.startswith(expected)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_comparison_can_fail(ranks, place):
    """Of a loss, a gradient of the model, or one of proxies on one rank that is wrong."""
    parts = [copy.deepcopy(seen["scenarios"][0]) for seen in ranks]
    wrong = parts[1][place]
    (wrong[0] if isinstance(wrong, list) else wrong).mul_(1.01)
    with pytest.raises(AssertionError):
        check_equal_to_one_process(SCENARIOS[0], parts)
