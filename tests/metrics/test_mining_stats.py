import math
import pickle

import pytest
import torch

from tercet.core.indices import Pairs, References, Triplets
from tercet.metrics.mining_stats import describe, describe_later
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.miners.pairs import PairMargin
from tercet.pairwise.distances import cosine
from tests.helpers import points, unchecked
from tests.oracles import triplets as reference

KEYS = ["rows", "classes", "mined", "anchors", "d_ap", "d_an", "active", "collapse"]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("miner", [BatchAll(), BatchHard()])
def test_triplets_are_described_as_a_loop_would(miner, distance):
    x, labels = points(12, 5), torch.arange(12) % 5
    mined = miner(x, labels)
    stats = describe(x, labels, mined, margin=0.3, distance=distance)
    d = reference.distances(distance, x)
    rows = list(zip(*(index.tolist() for index in mined), strict=True))
    assert list(stats) == KEYS
    assert all(type(value) is float for value in stats.values())
    assert (stats["rows"], stats["classes"], stats["mined"]) == (12, 5, len(rows))
    assert stats["anchors"] == len({a for a, _, _ in rows}) / 12
    assert math.isclose(stats["d_ap"], mean([d[a][p] for a, p, _ in rows]), rel_tol=1e-6)
    assert math.isclose(stats["d_an"], mean([d[a][n] for a, _, n in rows]), rel_tol=1e-6)
    assert math.isclose(stats["active"], mean([d[a][p] - d[a][n] + 0.3 > 0 for a, p, n in rows]))


def test_pairs_are_described_as_a_loop_would():
    x, labels = points(8, 5), torch.arange(8) % 2
    pairs = Pairs(*(torch.tensor(rows) for rows in ([0, 2], [2, 4], [0, 0, 3], [1, 3, 0])))
    stats, d = describe(x, labels, pairs, margin=0.1), reference.distances("euclidean", x)
    near = (d[0][2] + d[2][4]) / 2
    negatives = [d[0][1], d[0][3], d[3][0]]
    assert (stats["mined"], stats["anchors"]) == (5, 3 / 8)
    assert math.isclose(stats["d_ap"], near, rel_tol=1e-6)
    assert math.isclose(stats["d_an"], mean(negatives), rel_tol=1e-6)
    assert math.isclose(stats["active"], mean([v < near + 0.1 for v in negatives]))


def test_rows_that_agree_in_all_labels_are_one_class():
    none = Triplets(*[torch.zeros(0).long()] * 3)
    labels = torch.randint(-1, 2, (40, 3), generator=torch.Generator().manual_seed(0))
    for columns in (labels, labels[:, :1], labels[:, :0], labels[:, 1], labels[:1], labels[:0]):
        expected = len({tuple(row.flatten().tolist()) for row in columns})
        assert describe(points(len(columns), 5), columns, none)["classes"] == expected


def test_nothing_mined_is_described_with_nan_means():
    none = torch.zeros(0).long()
    for mined in (Triplets(none, none, none), Pairs(none, none, none, none)):
        stats = describe(points(3, 5), torch.arange(3), mined)
        assert (stats["mined"], stats["anchors"], stats["classes"]) == (0, 0, 3)
        assert all(math.isnan(stats[key]) for key in ("d_ap", "d_an", "active"))
        assert math.isfinite(stats["collapse"])
    assert math.isnan(describe(points(0, 5), none, Triplets(none, none, none))["collapse"])


def test_negative_pairs_without_positive_ones_have_no_active_share():
    none, row = torch.zeros(0).long(), torch.tensor([0])
    stats = describe(points(3, 5), torch.arange(3), Pairs(none, none, row, row + 1))
    assert math.isnan(stats["active"])
    assert stats["d_an"] > 0


def test_collapse_is_1_for_one_point_0_for_opposite_ones_and_the_mean_cosine_between():
    none = Triplets(*[torch.zeros(0).long()] * 3)
    collapse = lambda x: describe(x, torch.arange(len(x)), none)["collapse"]  # noqa: E731
    assert collapse(torch.ones(5, 3)) == 1
    assert collapse(torch.zeros(5, 3)) == 1
    assert collapse(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 0
    x = torch.nn.functional.normalize(points(20, 5).double() + 0.5)
    assert math.isclose(collapse(x), (x @ x.T).mean().item())


def test_references_and_half_precision():
    x, ref = points(2, 5).bfloat16(), References(points(6, 5, seed=1), torch.arange(6) % 2, torch.arange(6))
    mined = Triplets(*torch.tensor([[0, 1], [4, 5], [5, 4]]))
    d = reference.distances("euclidean", x, ref.embeddings)
    stats = describe(x, torch.tensor([0, 1]), mined, ref=ref)
    assert math.isclose(stats["d_ap"], mean([d[0][4], d[1][5]]), rel_tol=1e-6)


def test_a_graph_is_left_alone():
    x = points(4, 5).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        describe(x, torch.arange(4) % 2, BatchHard()(x, torch.arange(4) % 2))
        assert not saved  # no graph was built
        (x * x).sum()
    assert saved  # as one would have been


def test_what_cannot_be_described_is_refused():
    x, labels, row = points(3, 5), torch.arange(3), torch.tensor([0])
    with pytest.raises(ValueError, match=r"describe\(mined='tuple of 2'\): expected Triplets .* or Pairs"):
        describe(x, labels, (row, row))
    with pytest.raises(ValueError, match=r"describe\(mined='row 3'\): expected rows below 3"):
        describe(x, labels, (row, row, row + 3))
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"describe\(labels='shape \(2,\)'\): expected shape \(3,\)"),
    ):
        describe(x, labels[:2], (row, row, row))
    with unchecked(), pytest.raises(ValueError, match=r"describe\(margin='wide'\): expected a finite number"):
        describe(x, labels, (row, row, row), margin="wide")


@pytest.mark.parametrize("miner", [BatchHard(), PairMargin(0.5, 2.0)])
def test_figures_that_are_read_later_are_the_same(miner):
    x, labels = points(12, 5), torch.arange(12) % 5
    mined = miner(x, labels)
    later = describe_later(x, labels, mined, 0.3, cosine)
    stats = describe(x, labels, mined, margin=0.3, distance="cosine")
    assert later == stats
    assert (dict(later), len(later), repr(later)) == (stats, 8, repr(stats))
    assert type(pickle.loads(pickle.dumps(later))) is dict
    with pytest.raises(KeyError):
        later["loss"]
