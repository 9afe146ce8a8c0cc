"""Our figures beside those of pytorch-metric-learning, torchmetrics and scikit-learn, as the guide has it."""

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


@pytest.fixture(scope="module")
def collection():
    """Embeddings, labels, and what torchmetrics takes: each query against each other image."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 12, (120,), generator=random)
    labels[:3] = torch.arange(12, 15)  # alone in their classes
    x = torch.randn(15, 6, generator=random)[labels] + torch.randn(120, 6, generator=random)
    return x, labels, flat(x, labels)


def flat(x, labels, negated=False):
    """(scores, whether positive, query) of all pairs of two images."""
    apart = torch.cdist(x.double(), x.double())
    others = ~torch.eye(len(x), dtype=torch.bool)
    scores = -apart if negated else 1 + apart.max() - apart
    rows = torch.arange(len(x))[:, None].expand(len(x), len(x))
    return scores[others], (labels[:, None] == labels)[others], rows[others]


def theirs(name, pairs, **options):
    retrieval = pytest.importorskip("torchmetrics.retrieval", reason="the bench extra is not installed")
    scores, positive, rows = pairs
    return float(getattr(retrieval, name)(**options)(scores, positive, indexes=rows))


TORCHMETRICS = {
    "RetrievalHitRate": (5, lambda x, y, **o: tercet.recall_at_k(x, y, 5, **o)),
    "RetrievalRecall": (5, lambda x, y, **o: tercet.recall_at_k(x, y, 5, of="positives", **o)),
    "RetrievalPrecision": (5, lambda x, y, **o: tercet.precision_at_k(x, y, 5, **o)),
    "RetrievalRPrecision": (None, tercet.r_precision),
    "RetrievalMAP": (None, tercet.mean_average_precision),
    "RetrievalMRR": (None, tercet.mrr),
    "RetrievalNormalizedDCG": (5, lambda x, y, **o: tercet.ndcg(x, y, 5, **o)),
}


@pytest.mark.parametrize("name", TORCHMETRICS)
@pytest.mark.parametrize(("action", "no_positives"), [("skip", "skip"), ("neg", "zero")])
def test_a_figure_equals_that_of_torchmetrics(name, action, no_positives, collection):
    x, labels, pairs = collection
    k, ours = TORCHMETRICS[name]
    options = {"empty_target_action": action} | ({"top_k": k} if k else {})
    assert ours(x, labels, no_positives=no_positives) == pytest.approx(
        theirs(name, pairs, **options), abs=1e-6
    )


def test_where_torchmetrics_means_something_else(collection):
    x, labels, pairs = collection
    # Of the k nearest: the mean over those that are right, neither over R nor over min(k, R).
    cut = theirs("RetrievalMAP", pairs, top_k=5, empty_target_action="skip")
    values = []
    for row, own in enumerate(labels):
        order = torch.cdist(x[row : row + 1].double(), x.double())[0].argsort()
        hits = (labels[order[order != row][:5]] == own).double()
        precise = hits.cumsum(0) / torch.arange(1, 6)
        if (labels == own).sum() > 1:
            values.append(float((hits * precise).sum() / hits.sum().clamp(min=1)))
    assert cut == pytest.approx(sum(values) / len(values), abs=1e-6)
    for over in ("R", "min(k, R)"):
        assert abs(cut - tercet.mean_average_precision(x, labels, 5, over=over)) > 0.1
    # Scores of 0 or less are no results: negated distances give 0, but for hit rate, R-precision and nDCG.
    negated = flat(x, labels, negated=True)
    for name in ("RetrievalRecall", "RetrievalPrecision", "RetrievalMAP", "RetrievalMRR"):
        assert theirs(name, negated) == 0
    for name in ("RetrievalHitRate", "RetrievalRPrecision", "RetrievalNormalizedDCG"):
        assert theirs(name, negated) == theirs(name, pairs) > 0


def test_ties_are_averaged_by_ndcg_of_torchmetrics_and_scikit_learn_alone(collection):
    metrics = pytest.importorskip("sklearn.metrics")
    x, labels, _ = collection
    x = (x > 0).float()  # 64 places for 120 images
    pairs = flat(x, labels)
    assert tercet.ndcg(x, labels, 5) == pytest.approx(
        theirs("RetrievalNormalizedDCG", pairs, top_k=5, empty_target_action="skip"), abs=1e-6
    )
    assert tercet.mean_average_precision(x, labels).tied > 0.5
    assert (
        abs(
            theirs("RetrievalMAP", pairs, empty_target_action="skip")
            - tercet.mean_average_precision(x, labels)
        )
        > 1e-4
    )
    scores, positive, _ = (each.view(120, 119) for each in pairs)
    asks = positive.any(1)
    gains = [
        metrics.ndcg_score([p], [s], k=5)
        for p, s in zip(positive[asks].numpy(), scores[asks].numpy(), strict=True)
    ]
    assert tercet.ndcg(x, labels, 5) == pytest.approx(sum(gains) / len(gains))
    average = [
        metrics.average_precision_score(p, s)
        for p, s in zip(positive[asks].numpy(), scores[asks].numpy(), strict=True)
    ]
    assert sum(average) / len(average) < tercet.mean_average_precision(x, labels) - 0.01


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_pairs_and_clusters_equal_those_of_torchmetrics_and_scikit_learn(collection):
    classification = pytest.importorskip("torchmetrics.functional.classification")
    clusters = pytest.importorskip("torchmetrics.functional.clustering")
    metrics = pytest.importorskip("sklearn.metrics")
    x, labels, _ = collection
    unit = torch.nn.functional.normalize(x.double())
    i, j = torch.triu_indices(120, 120, 1)
    similar, same = (unit @ unit.T)[i, j], (labels[i] == labels[j]).long()
    found = tercet.verification(x, labels)
    assert found.auc == pytest.approx(float(classification.binary_auroc(similar, same)), abs=1e-6)
    assert found.auc == pytest.approx(metrics.roc_auc_score(same.numpy(), similar.numpy()), abs=1e-6)
    # Theirs is the mean of both rates at the nearest threshold, ours is on the line between two.
    assert found.eer == pytest.approx(
        float(classification.binary_eer(similar, same)), abs=1 / int(same.sum())
    )
    own = (
        pytest.importorskip("sklearn.cluster").KMeans(15, n_init=10, random_state=0).fit_predict(unit.numpy())
    )
    ours, given = tercet.clustering(x, labels), (torch.from_numpy(own), labels)
    assert ours.nmi == pytest.approx(float(clusters.normalized_mutual_info_score(*given)), abs=1e-5)
    assert ours.ami == pytest.approx(float(clusters.adjusted_mutual_info_score(*given)), abs=1e-4)
    assert ours.ari == pytest.approx(float(clusters.adjusted_rand_score(*given)), abs=1e-5)
