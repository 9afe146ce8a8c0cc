"""Beside the libraries of the bench extra: our tuples in their losses, our heads and miners against theirs.

The tables of cases and the comparison are those of tools/bench.
"""

import sys
from pathlib import Path

import pytest
import torch

import tercet
from tests.helpers import double_points as points

losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the bench extra is not installed")
miners = pytest.importorskip("pytorch_metric_learning.miners", reason="the bench extra is not installed")
reducers = pytest.importorskip("pytorch_metric_learning.reducers", reason="the bench extra is not installed")
pytest.importorskip("sentence_transformers", reason="the bench extra is not installed")
pytest.importorskip("oml", reason="make bench installs it without what it asks for")

BENCH = str(Path(__file__).parents[2] / "tools" / "bench")
sys.path.insert(0, BENCH)
try:
    from bench_definitions import SINGLE, SIZES, apart, batch, edges, farthest, shared
    from cases import CASES, OURS, PML, Case, plain, raw, triplet
finally:
    sys.path.remove(BENCH)

pytestmark = [
    pytest.mark.peers,
    # The peer's histogram loss.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning"),
]

# Their losses that read indices_tuple, by the number of tensors that they take it as.
OF_TRIPLETS = {
    "TripletMarginLoss": triplet(margin=0.2),
    "TripletMarginLoss, swap": triplet(margin=0.2, swap=True),
    "MarginLoss": losses.MarginLoss(distance=raw()),
}
OF_PAIRS = {
    "ContrastiveLoss": losses.ContrastiveLoss(distance=raw()),
    "LiftedStructureLoss": losses.LiftedStructureLoss(distance=raw()),
    "GeneralizedLiftedStructureLoss": losses.GeneralizedLiftedStructureLoss(distance=raw()),
    "MultiSimilarityLoss": losses.MultiSimilarityLoss(),
    "NTXentLoss": losses.NTXentLoss(),
    "SupConLoss": losses.SupConLoss(),
    "CircleLoss": losses.CircleLoss(),
    "SignalToNoiseRatioContrastiveLoss": losses.SignalToNoiseRatioContrastiveLoss(
        pos_margin=0.1, neg_margin=0.9
    ),
    "IntraPairVarianceLoss": losses.IntraPairVarianceLoss(),
    "TupletMarginLoss": losses.TupletMarginLoss(),
}
MINERS = {
    "BatchHard": (tercet.BatchHard(), miners.BatchHardMiner()),
    "BatchAll": (tercet.BatchAll(margin=0.2), miners.TripletMarginMiner(0.2, "all")),
    "MultiSimilarityMiner": (tercet.MultiSimilarityMiner(), miners.MultiSimilarityMiner()),
    "PairMargin": (tercet.PairMargin(1.2, 1.4), miners.PairMarginMiner(1.2, 1.4)),
}
SAME_LOSSES = [name for name, case in CASES.items() if case.kind != "miner" and not case.differs]
SAME_MINERS = [name for name, case in CASES.items() if case.kind == "miner" and not case.differs]
FEW = ["semi-hard positive, hard", "hard within ranges"]  # for which few anchors have a triplet
OTHER = [name for name, case in CASES.items() if case.differs]
every_batch = pytest.mark.parametrize("name", SIZES)


def loss_and_gradient(loss, x, labels, mined=None):
    x = x.clone().requires_grad_()
    value = loss(x, labels, mined)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


def check_same(loss, x, labels, mined, theirs):
    """The loss and its gradient of one list equal those of another, which is not trivially 0."""
    value, gradient = loss_and_gradient(loss, x, labels, mined)
    expected, expected_gradient = loss_and_gradient(loss, x, labels, theirs)
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@every_batch
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", OF_TRIPLETS | OF_PAIRS)
def test_their_loss_takes_what_our_miner_found(loss, miner, name):
    x, labels = batch(name, torch.float64)
    ours, theirs = MINERS[miner]
    check_same((OF_TRIPLETS | OF_PAIRS)[loss], x, labels, ours(x, labels), theirs(x, labels))


@pytest.mark.parametrize("options", [{}, {"swap": True}, {"smooth_loss": True}], ids=str)
def test_pairs_into_our_hinge_are_their_join_of_pairs(options):
    x, labels = points(256, 16), torch.arange(256) % 64
    x = torch.nn.functional.normalize(x + points(64, 16, seed=1)[labels])
    mined = tercet.MultiSimilarityMiner()(x, labels)
    theirs = triplet(margin=0.2, **options)
    soft = "smooth_loss" in options
    ours = tercet.TripletMargin(None if soft else 0.2, soft=soft, swap="swap" in options)
    value, gradient = loss_and_gradient(ours, x, labels, mined)
    if soft:  # their margin stands inside the softplus
        theirs = triplet(margin=0.0, **options)
    expected, expected_gradient = loss_and_gradient(theirs, x, labels, mined)
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@every_batch
@pytest.mark.parametrize("loss", OF_TRIPLETS)
def test_every_triplet_of_ours_is_their_own_enumeration(loss, name):
    x, labels = batch(name, torch.float64)
    check_same(OF_TRIPLETS[loss], x, labels, tercet.BatchAll()(x, labels), None)


@every_batch
@pytest.mark.parametrize("loss", OF_PAIRS)
def test_every_pair_of_ours_is_their_own_enumeration(loss, name):
    x, labels = batch(name, torch.float64)
    check_same(OF_PAIRS[loss], x, labels, tercet.PairMargin(-1.0, 3.0)(x, labels), None)


@every_batch
def test_a_mean_of_anchors_is_theirs_where_every_anchor_has_both(name):
    x, labels = batch(name, torch.float64)
    ours = tercet.Contrastive(1.0, power=1, two_means=True, reduction="mean_per_anchor")
    theirs = losses.ContrastiveLoss(distance=raw(), reducer=reducers.PerAnchorReducer())
    value, gradient = loss_and_gradient(ours, x, labels)
    expected, expected_gradient = loss_and_gradient(theirs, x, labels)
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@every_batch
def test_a_dynamic_margin_is_theirs_at_one_histogram(name):
    x, labels = batch(name, torch.float64)
    head, theirs = tercet.DynamicSoftMargin(20).double(), losses.DynamicSoftMarginLoss(num_bins=20)

    def ours(x, labels, mined):  # theirs divides by the length
        return head(torch.nn.functional.normalize(x), labels, mined)

    value, _ = loss_and_gradient(ours, x, labels)
    expected, _ = loss_and_gradient(theirs, x, labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    assert head.histogram[-1] == 0  # theirs ends one node before
    torch.testing.assert_close(head.histogram[:-1], theirs.hist_.detach())

    still = losses.DynamicSoftMarginLoss(num_bins=20, momentum=0.0)
    still.hist_ = head.eval().histogram[:-1].clone()
    value, gradient = loss_and_gradient(ours, x, labels)
    expected, expected_gradient = loss_and_gradient(still, x, labels)
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SAME_LOSSES)
def test_a_head_equals_the_peers(name):
    case = CASES[name]
    for peer in list(case.make(2, 2))[1:]:
        assert max(farthest(case, peer, torch.float64)) <= case.tolerance
        assert max(farthest(case, peer, torch.float32)) <= max(SINGLE, case.tolerance)


def test_smooth_ap_equals_the_peers_where_that_is_right():
    """Classes sorted and as many as images of each; the peer ranks an anchor among its own positives."""
    x = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double())
    labels = torch.arange(4).repeat_interleave(4)
    ours = loss_and_gradient(
        lambda x, labels, mined: tercet.SmoothAP()(x, labels, ref=tercet.References(x, labels)), x, labels
    )
    theirs = loss_and_gradient(losses.SmoothAPLoss(), x, labels)
    for u, v in zip(ours, theirs, strict=True):  # theirs adds up in float32
        torch.testing.assert_close(u, v, rtol=1e-5, atol=1e-6, check_dtype=False)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = loss_and_gradient(losses.SmoothAPLoss(), x[order], labels[order])[0]
    assert abs(shuffled - theirs[0]) > 0.005  # another figure of the same images
    right = tercet.SmoothAP()(x[order], labels[order])
    torch.testing.assert_close(right, tercet.SmoothAP()(x, labels))


@every_batch
@pytest.mark.parametrize("case", ["normalised softmax", "ArcFace", "CosFace", "SoftTriple", "SphereFace"])
def test_mined_rows_weigh_in_a_head_with_proxies_what_they_weigh_in_theirs(case, name):
    """Theirs divides by the rows and the largest count, ours by the sum of the counts."""
    x, labels = batch(name, torch.float64)
    ours, theirs = (side.double() for side in CASES[case].make(len(SIZES[name]), x.shape[1]).values())
    mined = tercet.BatchHard()(x, labels)
    counts = torch.cat(mined).bincount(minlength=len(x)).double()
    value, gradient = loss_and_gradient(ours, x, labels, mined)
    expected, expected_gradient = loss_and_gradient(theirs, x, labels, mined)
    share = counts.sum() / (counts.max() * len(x))
    torch.testing.assert_close(value * share, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient * share, expected_gradient, rtol=1e-9, atol=1e-12)


@every_batch
def test_p2s_grad_is_theirs_times_half_the_classes(name):
    x, labels = batch(name, torch.float64)
    ours, theirs = (side.double() for side in CASES["P2SGrad"].make(len(SIZES[name]), x.shape[1]).values())
    found, expected = (loss_and_gradient(side, x, labels) for side in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        # They divide their weights by a length to which 10⁻⁷ is added.
        torch.testing.assert_close(one * 2 / len(SIZES[name]), other, rtol=1e-5, atol=1e-8)


def test_outliers_of_sub_centers_are_theirs():
    x, labels = batch("P × K", torch.float64)
    ours, theirs = (side.double() for side in CASES["sub-center ArcFace"].make(12, x.shape[1]).values())
    rows, dominant = ours.outliers(x, labels)
    others, centers = theirs.get_outliers(x, labels)
    assert 0 < len(rows) < len(x)
    assert rows.tolist() == sorted(others.tolist())
    torch.testing.assert_close(ours.proxies[dominant], centers.T)


@pytest.mark.parametrize(
    "case", ["normalised softmax", "ArcFace", "CosFace", "sub-center ArcFace", "SphereFace"]
)
def test_logits_of_a_head_with_proxies_are_theirs(case):
    x, _ = batch("P × K", torch.float64)
    ours, theirs = (side.double() for side in CASES[case].make(12, x.shape[1]).values())
    torch.testing.assert_close(ours.logits(x), theirs.get_logits(x))


def test_vicreg_of_two_views_equals_the_peers():
    x, y = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    y.requires_grad_()
    ours = tercet.VICReg()(x, torch.arange(20), ref=tercet.References(y, torch.arange(20)))
    theirs = losses.VICRegLoss()(x, ref_emb=y)
    torch.testing.assert_close(ours, theirs)
    for u, v in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        torch.testing.assert_close(u, v)


@every_batch
@pytest.mark.parametrize("case", SAME_MINERS)
def test_a_miner_finds_what_the_peers_finds(case, name):
    for peer in list(CASES[case].make(2, 2))[1:]:
        ours, both, theirs = shared(CASES[case], name, peer, torch.float64)
        assert (ours, theirs) == (0, 0)
        assert both >= (9 if case in FEW else sum(SIZES[name]))


@pytest.mark.parametrize("name", OTHER)
def test_a_definition_that_is_said_to_differ_does(name):
    case = CASES[name]
    if case.kind == "miner":
        assert shared(case, "P × K", PML, torch.float64)[2] > 0
    else:
        assert max(farthest(case, PML, torch.float64)) > 0.01


def test_repeated_tuples_and_one_class_are_where_heads_part():
    rows = list(edges())
    assert [row[2] == row[3] for row in rows] == [False, True, False, True, False]


def test_the_comparison_sees_another_margin():
    wrong = Case(plain(tercet.TripletMargin(0.21), triplet(margin=0.2)), "loss")
    assert apart(wrong, "P × K", PML, torch.float64).value > 1e-3
    wrong = Case(plain(tercet.BatchAll(margin=0.21), miners.TripletMarginMiner(0.2, "all")), "miner")
    ours, both, theirs = shared(wrong, "P × K", PML, torch.float64)
    assert ours > 0
    assert both > 0
    assert theirs == 0


def test_the_comparison_sees_another_gradient():
    class Detached(torch.nn.Module):
        """The right value, half the gradient."""

        def forward(self, x, labels):
            loss = tercet.TripletMargin(0.2)(x, labels)
            return (loss + loss.detach()) / 2

    wrong = Case(lambda classes, dim: {OURS: Detached(), PML: triplet(margin=0.2)}, "loss")
    value, gradient = apart(wrong, "P × K", PML, torch.float64)
    assert value < 1e-9
    assert gradient > 0.4
