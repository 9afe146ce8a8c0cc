"""The heads of the contract, one row a form of a head: how to make it, and the loop it must equal."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tercet.core.indices import Pairs, Triplets
from tercet.losses.angles import Angular, TupletMargin
from tercet.losses.angular_margins import AdaFace, CurricularFace, SphereFace
from tercet.losses.cosine_regression import P2SGrad
from tercet.losses.dynamic_margin import DynamicSoftMargin
from tercet.losses.histogram import FastAP, Histogram
from tercet.losses.listwise import NCA, InfoNCE, NPair, SupCon
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.pair_weighting import Circle, GeneralizedLifted, LiftedStructure, MultiSimilarity
from tercet.losses.proxy import ProxyAnchor, ProxyNCA, SoftTriple
from tercet.losses.ranked_list import RankedList
from tercet.losses.ranking import RecallSurrogate, SmoothAP
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tercet.losses.sub_centers import SubCenterArcFace
from tercet.losses.triplet import TripletMargin
from tercet.losses.variance import IntraPairVariance, VICReg
from tests.helpers import double_points as points
from tests.oracles import dynamic_margin, listwise, proxy, ranking, variance
from tests.oracles import histogram as reference_histogram
from tests.oracles import triplets as reference

BATCHES = {
    "P × K": (points(9), torch.arange(3).repeat_interleave(3)),
    "P ≠ K, shuffled": (points(10, seed=1), torch.arange(10) % 4),
    "uneven positives per anchor": (points(9, seed=2), torch.tensor([0] * 5 + [1] * 2 + [2, 3])),
    "one positive pair and one negative pair": (points(3), torch.tensor([0, 0, 1])),
    "two identical images": (points(5)[[0, 0, 1, 2, 3]], torch.tensor([0, 0, 1, 1, 0])),
    "identical images of two classes": (points(5)[[0, 1, 0, 2]], torch.tensor([0, 0, 1, 1])),
    "collapsed": (torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 2),
}
COINCIDENT = ["two identical images", "identical images of two classes", "collapsed"]
ONE_SIDED = {
    "empty": (points(0), torch.zeros(0).long()),
    "one row": (points(1), torch.zeros(1).long()),
    "no positives": (points(4), torch.arange(4)),
    "no negatives, one class only": (points(4), torch.zeros(4).long()),
}


@dataclass(frozen=True)
class Row:
    """A form of a head.

    Args:
        make: the head, of its options.
        loop: what it must equal: of a `Seen` call and the options, the losses that the mean is over; the loss
            itself where there is no reduction to choose.
        options: of the head and of the loop.
        distance: the one that the loop is shown.
        reduction: the usual one; None where there is none to choose.
        lists: what it takes a list of: "triplets" that pairs are joined to, "triplets only" where pairs stay
            pairs, "pairs", or "" for none.
        satisfied: options with which it can be 0; None where it cannot.
        smooth: whether its gradient is the derivative of its value.
    """

    make: Callable
    loop: Callable
    options: dict = field(default_factory=dict)
    distance: str = "euclidean"
    reduction: str | None = "mean"
    lists: str = "pairs"
    satisfied: dict | None = None
    smooth: bool = True

    def head(self, **more):
        return self.make(**{**self.options, **more}).double()

    def heights(self, *heights):
        """Heads that compute so many rows at once; one head where there are no tiles."""
        return [self.head(tile_rows=height) for height in heights] if self.tiled else [self.head()]

    @property
    def tiled(self):
        return not hasattr(self.head(), "proxies")

    def losses(self, x, labels, *, head=None, distance=None, **call):
        """What the loop gives for a call."""
        given = seen(x, labels, distance or self.distance, head or self.head(), **call)
        return self.loop(given, **self.options)

    def expected(self, x, labels, *, reduction=None, **call):
        """The loss that the loop gives for a call."""
        found = self.losses(x, labels, **call)
        return found if self.reduction is None else reference.reduced(found, reduction or self.reduction)

    def everything(self, labels, ref=None, ids=None, says=reference.same_label):
        """The list of all tuples."""
        return self.lists_of_all(labels, ref, ids, says)[0]

    def lists_of_all(self, labels, ref=None, ids=None, says=reference.same_label):
        """Each list of which the loss is that of all tuples."""
        sides = reference.relation(labels, ref and ref.labels, ids, ref and ref.ids, says)
        triplets = [as_triplets(reference.all_triplets(*sides))] if "triplets" in self.lists else []
        return triplets if self.lists == "triplets only" else [*triplets, as_pairs(*sides)]


def as_pairs(positive, negative):
    columns = [
        torch.tensor(sorted(side), dtype=torch.int64).reshape(-1, 2).T for side in (positive, negative)
    ]
    return Pairs(*columns[0], *columns[1])


def as_triplets(triplets):
    return Triplets(*torch.tensor(triplets, dtype=torch.int64).reshape(-1, 3).T)


def seen(x, labels, distance, head, ids=None, ref=None, sides=None, says=reference.same_label):
    """What a loop is shown: distances, sorted pairs of both sides, and who is compared with whom."""
    y = x if ref is None else ref.embeddings
    if sides is None:
        sides = reference.relation(labels, ref and ref.labels, ids, ref and ref.ids, says)
    return SimpleNamespace(
        x=reference.rows_of(x).tolist(),
        y=reference.rows_of(y).tolist(),
        d=reference.distances(distance, x, y),
        between=lambda: reference.distances(distance, y),
        classes=(labels if labels.ndim == 1 else labels[:, 0]).tolist(),
        positive=sorted(sides[0]),
        negative=sorted(sides[1]),
        own=ref is None,
        head=head,
    )


def of_triplets(given, swap=False, **options):
    triplets = reference.all_triplets(given.positive, given.negative)
    return reference.triplet_losses(given.d, triplets, between=given.between() if swap else None, **options)


def of_pairs(loop):
    return lambda given, **options: loop(given.d, set(given.positive), set(given.negative), **options)


def contrastive(given, **options):
    return reference.contrastive_losses(given.d, given.positive, given.negative, **options)


def two_means(given, reduction, **options):
    """The mean of the positive pairs and that of the negative ones."""
    sides = (given.positive, []), ([], given.negative)
    return sum(
        reference.reduced(reference.contrastive_losses(given.d, *side, **options), reduction)
        for side in sides
    )


def n_pair(given, **options):
    pairs = listwise.first_pairs(given.classes, given.positive)
    sizes = [[sum(v * v for v in row) for row in side] for side in (given.x, given.y)]
    return listwise.n_pair([[-v for v in row] for row in given.d], pairs, sizes, **options)


def lifted(given, **options):
    return listwise.lifted(given.d, set(given.positive), set(given.negative), own=given.own, **options)


def margin_loss(given, margin, beta=None):
    betas = given.head.beta.detach().double()
    beta = [float(betas if betas.ndim == 0 else betas[c]) for c in given.classes]
    return listwise.margin(given.d, given.positive, given.negative, beta, margin)


def margin_loss_of_triplets(given, **options):
    """Of all triplets as two pairs each."""
    triplets = reference.all_triplets(given.positive, given.negative)
    given.positive, given.negative = [(a, p) for a, p, _ in triplets], [(a, n) for a, _, n in triplets]
    return margin_loss(given, **options)


def per_anchor(loop, anchors_of):
    """The mean over anchors of the mean of each one's losses."""

    def mean(given, **options):
        own = {}
        for a, loss in zip(anchors_of(given), loop(given, **options), strict=True):
            own.setdefault(a, []).append(loss)
        return sum(sum(losses) / len(losses) for losses in own.values()) / max(1, len(own))

    return mean


def anchors_of_triplets(given):
    return [a for a, _, _ in reference.all_triplets(given.positive, given.negative)]


def anchors_of_pairs(given):
    return [a for a, _ in [*given.positive, *given.negative]]


def anchors_of_both_pairs(given):
    return 2 * anchors_of_triplets(given)


def per_anchor_two_means(given, **options):
    """Of the positive pairs, and of the negative ones."""
    mean, sides = per_anchor(contrastive, anchors_of_pairs), ((given.positive, []), ([], given.negative))
    return sum(mean(SimpleNamespace(d=given.d, positive=p, negative=n), **options) for p, n in sides)


def multi_similarity_at(given, base, **options):
    """λ − D for s − λ."""
    sides = set(given.positive), set(given.negative)
    return listwise.multi_similarity(given.d, *sides, base=-base, at_0=0.0, **options)


def tuplet_margin(given, **options):
    """By angles of unit vectors, which tell small ones as precisely as large ones."""

    def angle(u, v):
        if not any(u) or not any(v):
            return math.pi / 2 if any(u) or any(v) else 0.0
        u, v = ([c / math.hypot(*each) for c in each] for each in (u, v))
        apart, along = (math.hypot(*(a + sign * b for a, b in zip(u, v, strict=True))) for sign in (-1, 1))
        return 2 * math.atan2(apart, along)

    angles = [[angle(u, v) for v in given.y] for u in given.x]
    return listwise.tuplet_margin(angles, set(given.positive), set(given.negative), **options)


def angular(given, **options):
    cosines, between = ([[1 - v for v in row] for row in d] for d in (given.d, given.between()))
    return listwise.angular(cosines, between, set(given.positive), set(given.negative), **options)


def vicreg(given, **options):
    return variance.vicreg(given.x, given.y, given.positive, **options)


def of_histogram(loop):
    return lambda given, **options: loop(
        given.d, set(given.positive), set(given.negative), unordered=given.own, **options
    )


def of_proxies(loop):
    def called(given, **options):
        return (
            loop(given.x, given.classes, given.head.proxies.double().tolist(), **options) if given.x else 0.0
        )

    return called


def margins_of_classes(**options):
    """A margin loss with a β of its own for each of four classes."""
    head = MarginLoss(num_classes=4, **options)
    with torch.no_grad():
        head.beta.copy_(torch.tensor([1.5, 2.5, 0.5, 3.0]))
    return head


def dynamic_margins(**options):
    """A head in evaluation mode, whose histogram stays."""
    head = DynamicSoftMargin(**options)
    head.histogram.copy_(torch.arange(1.0, len(head.histogram) + 1) / 64)
    return head.eval()


def dynamic_soft_margin(given, bins, span=2.0):
    triplets, histogram = reference.all_triplets(given.positive, given.negative), given.head.histogram
    assert len(histogram) == bins + 1
    return dynamic_margin.dynamic_soft_margin(given.d, triplets, histogram.tolist(), span)


def proxied(kind, **state):
    """A head for four classes in four dimensions; one with a state is in evaluation mode, where it stays."""

    def make(num_classes=4, dim=4, **options):
        head = kind(num_classes, dim, **options)
        for name, value in state.items():
            getattr(head, name).copy_(torch.tensor(value))
        return head.eval() if state else head

    return make


def hinge(**options):
    return Row(TripletMargin, of_triplets, options, reduction="mean_active", lists="triplets")


def by_anchor(kind, loop, anchors_of=anchors_of_pairs, fixed=None, **options):
    """A row of which an anchor's losses are averaged first."""
    make = partial(kind, reduction="mean_per_anchor", **fixed or {})
    lists = "pairs" if anchors_of is anchors_of_pairs else "triplets"
    lists += " only" if anchors_of is anchors_of_both_pairs else ""
    return Row(make, per_anchor(loop, anchors_of), options, reduction=None, lists=lists)


def at_cosines(make, loop, **options):
    return Row(make, of_pairs(loop), options, "cosine")


def counted(make, loop, bins, lists):
    return Row(make, of_histogram(loop), {"bins": bins}, "cosine", None, lists)


def against_proxies(kind, loop, **options):
    return Row(proxied(kind), of_proxies(loop), options, reduction=None, lists="")


def by_quality(**options):
    loop = of_proxies(partial(proxy.ada_face, mean=2.0, deviation=0.75))
    make = proxied(AdaFace, statistics=[2.0, 0.75], batches=9)
    return Row(make, loop, options, reduction=None, lists="", smooth=False)


def by_progress(t, **options):
    loop = of_proxies(partial(proxy.curricular_face, t=t))
    return Row(proxied(CurricularFace, t=t), loop, options, reduction=None, lists="")


PAIRED = {
    "hinge": replace(hinge(margin=0.2), satisfied={}),
    "squared hinge": replace(hinge(margin=0.5, power=2), satisfied={}),
    "soft": hinge(soft=True),
    "soft, margin": hinge(margin=0.7, soft=True),
    "swap": replace(hinge(margin=0.2, swap=True), satisfied={}),
    "squared swap": replace(hinge(margin=0.5, power=2, swap=True), satisfied={}),
    "soft swap": hinge(soft=True, swap=True),
    "contrastive": Row(
        Contrastive, contrastive, {"margin": 2.0}, reduction="mean_active", satisfied={"pos_margin": 0.2}
    ),
    "contrastive, slack": Row(
        Contrastive, contrastive, {"margin": 3.0, "pos_margin": 0.5}, reduction="mean_active", satisfied={}
    ),
    "contrastive, hinge": Row(
        Contrastive,
        contrastive,
        {"margin": 3.0, "pos_margin": 0.5, "power": 1},
        reduction="mean_active",
        satisfied={},
    ),
    "contrastive, two means": Row(
        partial(Contrastive, two_means=True),
        two_means,
        {"margin": 3.0, "pos_margin": 0.2, "reduction": "mean"},
        reduction=None,
        satisfied={},
    ),
    "contrastive, two active means": Row(
        partial(Contrastive, two_means=True),
        two_means,
        {"margin": 3.0, "pos_margin": 1.0, "power": 1, "reduction": "mean_active"},
        reduction=None,
        satisfied={},
    ),
    "margin loss": Row(
        MarginLoss, margin_loss, {"margin": 0.7, "beta": 2.0}, reduction="mean_active", satisfied={}
    ),
    "margin loss, triplets": Row(
        partial(MarginLoss, of_triplets=True),
        margin_loss_of_triplets,
        {"margin": 0.7, "beta": 2.0},
        reduction="mean_active",
        lists="triplets only",
        satisfied={},
    ),
    "margin loss, β a class": Row(
        margins_of_classes, margin_loss, {"margin": 0.3}, reduction="mean_active", satisfied={"margin": 0.1}
    ),
    "hinge, by anchor": by_anchor(TripletMargin, of_triplets, anchors_of_triplets, margin=0.2),
    "squared hinge, by anchor": by_anchor(
        TripletMargin, of_triplets, anchors_of_triplets, margin=0.5, power=2
    ),
    "soft, by anchor": by_anchor(TripletMargin, of_triplets, anchors_of_triplets, soft=True),
    "swap, by anchor": by_anchor(TripletMargin, of_triplets, anchors_of_triplets, margin=0.2, swap=True),
    "contrastive, by anchor": by_anchor(Contrastive, contrastive, margin=3.0, pos_margin=0.5),
    "contrastive, two means by anchor": replace(
        by_anchor(Contrastive, contrastive, fixed={"two_means": True}, margin=3.0, power=1),
        loop=per_anchor_two_means,
    ),
    "margin loss, by anchor": by_anchor(MarginLoss, margin_loss, margin=0.7, beta=2.0),
    "margin loss, triplets by anchor": by_anchor(
        MarginLoss,
        margin_loss_of_triplets,
        anchors_of_both_pairs,
        fixed={"of_triplets": True},
        margin=0.7,
        beta=2.0,
    ),
    "margin loss, β a class by anchor": by_anchor(margins_of_classes, margin_loss, margin=0.3),
    "InfoNCE": at_cosines(InfoNCE, listwise.info_nce),
    "SupCon": at_cosines(SupCon, listwise.sup_con, temperature=0.5),
    "multi-similarity": at_cosines(MultiSimilarity, listwise.multi_similarity),
    "multi-similarity, wide": at_cosines(
        MultiSimilarity, listwise.multi_similarity, alpha=1.0, beta=5.0, base=0.1
    ),
    "multi-similarity, distances": Row(
        partial(MultiSimilarity, distance="euclidean"),
        multi_similarity_at,
        {"alpha": 1.0, "beta": 2.0, "base": 1.5},
    ),
    "circle": replace(at_cosines(Circle, listwise.circle), smooth=False),
    "circle, faces": replace(at_cosines(Circle, listwise.circle, m=0.25, gamma=256.0), smooth=False),
    "lifted": Row(LiftedStructure, lifted, satisfied={}),
    "lifted, far": Row(LiftedStructure, lifted, {"margin": 3.0}, satisfied={}),
    "lifted, slack": Row(LiftedStructure, lifted, {"margin": 3.0, "pos_margin": 0.4}, satisfied={}),
    "N-pair": Row(NPair, n_pair, {}, "dot"),
    "N-pair, L2": Row(NPair, n_pair, {"l2": 0.3}, "dot"),
    "NCA": Row(NCA, of_pairs(listwise.nca), {}, "squared_euclidean"),
    "NCA, warm": Row(NCA, of_pairs(listwise.nca), {"temperature": 5.0}, "squared_euclidean"),
    "generalized lifted": Row(GeneralizedLifted, of_pairs(listwise.generalized_lifted), satisfied={}),
    "generalized lifted, slack": Row(
        GeneralizedLifted,
        of_pairs(listwise.generalized_lifted),
        {"margin": 2.0, "pos_margin": 0.5},
        satisfied={},
    ),
    "ranked list": Row(RankedList, of_pairs(listwise.ranked_list), {"alpha": 3.0}, satisfied={"alpha": 1.2}),
    "ranked list, weighted": Row(
        RankedList,
        of_pairs(listwise.ranked_list),
        {"margin": 1.5, "alpha": 3.0, "temperature": 2.0, "pos_temperature": 1.0, "balance": 0.2},
        satisfied={},
    ),
    "tuplet margin": Row(TupletMargin, tuplet_margin, {}, "cosine"),
    "tuplet margin, wide": Row(TupletMargin, tuplet_margin, {"margin": 0.5, "scale": 5.0}, "cosine"),
    "angular": Row(Angular, angular, {}, "cosine"),
    "angular, wide": Row(Angular, angular, {"alpha": 1.1}, "cosine"),
    "intra-pair variance": Row(
        IntraPairVariance, of_pairs(variance.intra_pair_variance), {}, "cosine", reduction=None
    ),
    "intra-pair variance, wide": Row(
        IntraPairVariance,
        of_pairs(variance.intra_pair_variance),
        {"pos_epsilon": 0.2, "neg_epsilon": 0.5},
        "cosine",
        reduction=None,
    ),
    "VICReg": Row(VICReg, vicreg, {}, "squared_euclidean", reduction=None),
    "VICReg, even": Row(
        VICReg,
        vicreg,
        {"invariance": 1.0, "variance": 2.0, "covariance": 3.0, "epsilon": 0.1},
        "squared_euclidean",
        reduction=None,
    ),
    "SmoothAP": at_cosines(SmoothAP, ranking.smooth_ap, rank_temperature=0.1),
    "SmoothAP, soft": at_cosines(SmoothAP, ranking.smooth_ap, rank_temperature=0.5),
    "Recall@k": at_cosines(RecallSurrogate, ranking.recall_surrogate, rank_temperature=0.1),
    "Recall@k, two": at_cosines(
        RecallSurrogate, ranking.recall_surrogate, k=[1, 3], temperature=0.5, rank_temperature=0.3
    ),
    "histogram": counted(Histogram, reference_histogram.histogram_loss, 100, "pairs"),
    "histogram, 7 bins": counted(Histogram, reference_histogram.histogram_loss, 7, "pairs"),
    "histogram, 1 bin": counted(Histogram, reference_histogram.histogram_loss, 1, "pairs"),
    "dynamic margin": Row(
        dynamic_margins, dynamic_soft_margin, {"bins": 7}, reduction=None, lists="triplets", smooth=False
    ),
    "dynamic margin, wide": Row(
        dynamic_margins,
        dynamic_soft_margin,
        {"bins": 9, "span": 5.0},
        reduction=None,
        lists="triplets",
        smooth=False,
    ),
    "FastAP": counted(FastAP, reference_histogram.fast_ap, 10, ""),
    "FastAP, 3 bins": counted(FastAP, reference_histogram.fast_ap, 3, ""),
}
PROXIED = {
    "ProxyNCA": against_proxies(ProxyNCA, proxy.proxy_nca),
    "ProxyNCA, cold": against_proxies(ProxyNCA, proxy.proxy_nca, temperature=0.2),
    "ProxyNCA++": against_proxies(ProxyNCA, proxy.proxy_nca, plus_plus=True),
    "ProxyNCA++, warm": against_proxies(ProxyNCA, proxy.proxy_nca, plus_plus=True, temperature=2.0),
    "ProxyNCA++, smoothed": against_proxies(
        ProxyNCA, proxy.proxy_nca, plus_plus=True, temperature=0.5, label_smoothing=0.1
    ),
    "ProxyAnchor": against_proxies(ProxyAnchor, proxy.proxy_anchor),
    "ProxyAnchor, soft": against_proxies(ProxyAnchor, proxy.proxy_anchor, margin=0.3, alpha=2.0),
    "NormalizedSoftmax": against_proxies(NormalizedSoftmax, proxy.normalized_softmax),
    "NormalizedSoftmax, warm": against_proxies(NormalizedSoftmax, proxy.normalized_softmax, temperature=1.5),
    "NormalizedSoftmax, smoothed": against_proxies(
        NormalizedSoftmax, proxy.normalized_softmax, label_smoothing=0.2
    ),
    "ArcFace": against_proxies(ArcFace, proxy.arc_face),
    "ArcFace, wide": against_proxies(ArcFace, proxy.arc_face, margin=1.2, scale=3.0),
    "ArcFace, easy": against_proxies(ArcFace, proxy.arc_face, scale=8.0, easy_margin=True),
    "ArcFace, smoothed": against_proxies(ArcFace, proxy.arc_face, scale=8.0, label_smoothing=0.1),
    "CosFace": against_proxies(CosFace, proxy.cos_face),
    "CosFace, soft": against_proxies(CosFace, proxy.cos_face, margin=0.1, scale=4.0),
    "CosFace, smoothed": against_proxies(CosFace, proxy.cos_face, scale=8.0, label_smoothing=0.1),
    "sub-centers": against_proxies(SubCenterArcFace, proxy.sub_center, scale=16.0),
    "sub-centers, two": against_proxies(
        SubCenterArcFace, proxy.sub_center, sub_centers=2, margin=1.2, scale=3.0
    ),
    "SphereFace": against_proxies(SphereFace, proxy.sphere_face),
    "SphereFace, m = 3": against_proxies(SphereFace, proxy.sphere_face, margin=3, scale=2.0),
    "SphereFace, smoothed": against_proxies(SphereFace, proxy.sphere_face, margin=2, label_smoothing=0.1),
    "AdaFace": by_quality(),
    "AdaFace, sharp": by_quality(margin=0.7, scale=8.0, h=1.0, label_smoothing=0.1),
    "CurricularFace": by_progress(0.25, scale=16.0),
    "CurricularFace, late": by_progress(0.875, scale=4.0, margin=0.8, label_smoothing=0.2),
    "P2SGrad": against_proxies(P2SGrad, proxy.p2s_grad),
    "SoftTriple": against_proxies(SoftTriple, proxy.soft_triple, centers=3),
    "SoftTriple, one center": against_proxies(SoftTriple, proxy.soft_triple, centers=1),
    "SoftTriple, smoothed": against_proxies(SoftTriple, proxy.soft_triple, centers=3, label_smoothing=0.3),
    "SoftTriple, free": against_proxies(SoftTriple, proxy.soft_triple, centers=2, la=5.0, gamma=0.5, tau=0.0),
}
HEADS = PAIRED | PROXIED


def gradient_of(head, x, labels, **call):
    x = x.detach().clone().requires_grad_()
    loss = head(x, labels, **call)
    loss.backward()
    return loss, x.grad


def check_equal(loss, expected, rel=1e-9):
    """A scalar with this value."""
    assert loss.shape == ()
    assert math.isclose(loss.item(), expected, rel_tol=rel, abs_tol=rel)


def check_gradient(head, x, labels, **call):
    """The gradient is that of finite differences."""
    x = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head(x, labels, **call), x, fast_mode=True)


def check_second_derivative(head, x, labels, mined=None):
    """The second derivative is that of finite differences, by embeddings and parameters, or it is refused."""
    given = x.clone().requires_grad_(), *head.parameters()
    try:
        assert torch.autograd.gradgradcheck(lambda x, *_: head(x, labels, mined), given, fast_mode=True)
    except ValueError as error:
        text = f"{type(head).__name__}(create_graph=True): expected False, since this loss can be "
        assert str(error).startswith(text)  # noqa: PT017
        return False
    return True


def check_finite(head, x, labels, **call):
    """Loss and gradient are finite."""
    loss, grad = gradient_of(head, x, labels, **call)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


def check_zero(head, x, labels, **call):
    """The loss is 0, and backward gives a gradient of 0."""
    loss, grad = gradient_of(head, x, labels, **call)
    assert loss.item() == 0
    assert loss.dtype == x.dtype
    assert torch.equal(grad, torch.zeros_like(x))


def check_alike(one, other):
    """Two pairs of a loss and a gradient."""
    for u, v in zip(one, other, strict=True):
        torch.testing.assert_close(u, v)


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


DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot"]


class Counted:
    """A distance, and in which of its ways it was taken."""

    differentiable = True

    def __init__(self, distance):
        self.prepare, self.calls = distance.prepare, set()
        for way in ("tile", "paired", "entries"):
            setattr(self, way, self._counted(way, getattr(distance, way)))

    def _counted(self, way, function):
        return lambda *given: self.calls.add(way) or function(*given)
