"""Our figures beside pytorch-metric-learning's where the definitions agree."""

import pytest
import torch

import tercet

calculators = pytest.importorskip(
    "pytorch_metric_learning.utils.accuracy_calculator", reason="the bench extra is not installed"
)
distances = pytest.importorskip(
    "pytorch_metric_learning.distances", reason="the bench extra is not installed"
)
inference = pytest.importorskip(
    "pytorch_metric_learning.utils.inference", reason="the bench extra is not installed"
)

pytestmark = pytest.mark.peers

N, CLASSES = 400, 30
AGREE = {
    "precision_at_1": lambda x, y: tercet.recall_at_k(x, y),
    "r_precision": tercet.r_precision,
    "mean_average_precision_at_r": tercet.map_at_r,
    "mean_average_precision": lambda x, y: tercet.mean_average_precision(x, y, k=N - 1),
    "mean_reciprocal_rank": tercet.mrr,
}


@pytest.mark.parametrize("name", AGREE)
def test_a_figure_equals_the_peers(name):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (N,), generator=random)
    labels[:3] = torch.arange(CLASSES, CLASSES + 3)  # alone in their classes
    x = torch.randn(CLASSES + 3, 8, generator=random)[labels] + torch.randn(N, 8, generator=random)
    search = inference.CustomKNN(distances.LpDistance(normalize_embeddings=False))
    peer = calculators.AccuracyCalculator(
        tuple({"precision_at_1", name}), k=N - 1, knn_func=search, device=torch.device("cpu")
    )
    theirs = peer.get_accuracy(x, labels)[name]
    assert AGREE[name](x, labels) == pytest.approx(theirs, rel=1e-6)
