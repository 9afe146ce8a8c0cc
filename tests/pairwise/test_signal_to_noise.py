import numpy as np
import pytest
import torch

from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.metrics.retrieval import recall_at_k
from tercet.miners.hard import BatchHard
from tercet.pairwise.distances import Distance
from tercet.pairwise.signal_to_noise import SignalToNoise
from tests.helpers import double_points as points
from tests.oracles import triplets as reference


def loop(x, y):
    """The variance of the difference over that of the anchor."""
    return [[np.var(v - u) / np.var(u) for v in np.asarray(y)] for u in np.asarray(x)]


def test_it_is_the_variance_of_the_noise_over_that_of_the_signal():
    distance, x, y = SignalToNoise(), points(6), points(5, seed=1)
    u, v = distance.prepare(x), distance.prepare(y)
    expected = torch.tensor(loop(x, y))
    torch.testing.assert_close(distance.tile(u, v), expected)
    torch.testing.assert_close(distance.paired(u[:5], v), expected.diagonal())
    torch.testing.assert_close(distance.tile(u.float(), v.float()).double(), expected, rtol=1e-4, atol=1e-5)
    assert not distance.tile(u, u).diagonal().any()
    assert isinstance(distance, Distance)
    assert distance == SignalToNoise()
    assert len({distance, SignalToNoise()}) == 1
    assert repr(distance) == "SignalToNoise()"


def test_heads_miners_and_metrics_take_it():
    x, labels = points(9), torch.arange(9) // 3
    d = loop(x, x)
    sides = reference.relation(labels)
    a, p, n = BatchHard(distance=SignalToNoise())(x, labels)
    found = set(zip(a.tolist(), p.tolist(), n.tolist(), strict=True))
    assert found == reference.batch_hard(d, *sides)
    losses = reference.triplet_losses(d, reference.all_triplets(*sides), margin=0.5)
    for height in (None, 1, 4):
        head = TripletMargin(0.5, distance=SignalToNoise(), tile_rows=height)
        assert head(x, labels).item() == pytest.approx(reference.reduced(losses, "mean_active"))
        head = Contrastive(0.9, 0.1, distance=SignalToNoise(), tile_rows=height)
        leaf = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, head=head: head(x, labels), leaf, fast_mode=True)
    nearest = [min((v, j) for j, v in enumerate(row) if j != i)[1] for i, row in enumerate(d)]
    expected = sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / 9
    assert recall_at_k(x, labels, k=1, distance=SignalToNoise()) == pytest.approx(float(expected))


def test_rows_without_a_signal_have_a_finite_loss_and_gradient():
    x = torch.ones(4, 3)
    x[3, 0] = 2
    for v in (x, x.double(), torch.zeros(4, 3)):
        v = v.clone().requires_grad_()
        loss = Contrastive(distance=SignalToNoise(), reduction="sum")(v, torch.tensor([0, 0, 1, 1]))
        loss.backward()
        assert loss.isfinite()
        assert v.grad.isfinite().all()


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="expected floating-point embeddings"):
        BatchHard(distance=SignalToNoise())(torch.arange(6).view(3, 2), torch.tensor([0, 0, 1]))
