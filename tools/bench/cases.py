"""Ours and the peers' miners and losses, side by side, with the options under which their definitions meet.

A case makes its sides for a number of classes and a dimension. A side is called with (embeddings, labels);
what it returns is a loss or tuples of row numbers. Heads with proxies start from the same proxies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from oml import miners as oml
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer import losses as sentence
from torch import Tensor, nn

import tercet

Side = Callable[[Tensor, Tensor], Any]
OURS, PML, ST, OML = "tercet", "pytorch-metric-learning", "sentence-transformers", "open-metric-learning"


@dataclass(frozen=True)
class Case:
    """One miner or loss, ours and theirs.

    Args:
        make: (classes, dim) → the sides by name; the first is ours.
        kind: "miner", "loss", or "both" for a miner with the loss of what it found.
        differs: why the definitions are not the same; empty where they are.
        tolerance: how far value and gradient may be apart in float64, as shares.
        largest: no larger N is measured unless it is asked for.
    """

    make: Callable[[int, int], dict[str, Side]]
    kind: str
    differs: str = ""
    tolerance: float = 1e-9
    largest: int = 8192


class Mined(nn.Module):
    """A miner and the loss of what it found, as one step."""

    def __init__(self, miner: Any, head: nn.Module) -> None:
        super().__init__()
        self.miner = miner
        self.head = head

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.head(embeddings, labels, self.miner(embeddings, labels))


def raw(power: int = 1) -> distances.LpDistance:
    """The Euclidean distance of embeddings as they are; by default theirs are normalised on the way."""
    return distances.LpDistance(normalize_embeddings=False, power=power)


def plain(
    ours: Side, theirs: Side, more: Side | None = None, listed: Any = None
) -> Callable[[int, int], dict[str, Side]]:
    """Sides that depend on neither the number of classes nor the dimension; `listed` is a miner of OML's."""
    sides = {OURS: ours, PML: theirs} | ({ST: more} if more else {})
    if listed is not None:
        sides[OML] = of_list(listed)
    return lambda classes, dim: dict(sides)


def with_proxies(
    ours: Callable[[int, int], Any], theirs: Callable[[int, int], Any], name: str, turned: bool
) -> Callable[[int, int], dict[str, Side]]:
    """Heads with proxies: theirs, in the parameter `name`, are a copy of ours; `turned` if in columns."""

    def make(classes: int, dim: int) -> dict[str, Side]:
        head, peer = ours(classes, dim), theirs(classes, dim)
        start = head.proxies.detach().clone()
        getattr(peer, name).data = (start.T if turned else start).contiguous()
        return {OURS: head, PML: peer}

    return make


def triplet(reducer: Any = None, **options: Any) -> losses.TripletMarginLoss:
    return losses.TripletMarginLoss(distance=raw(), reducer=reducer, **options)


def easy_hard(positive: str, negative: str, **more: Any) -> miners.BatchEasyHardMiner:
    return miners.BatchEasyHardMiner(pos_strategy=positive, neg_strategy=negative, **more)


def of_labels(call: Callable[[Tensor, Tensor], Tensor]) -> Side:
    """A function of (labels, embeddings)."""
    return lambda embeddings, labels: call(labels, embeddings)


def of_list(miner: Any) -> Side:
    """A miner of open-metric-learning, which takes the labels as a list."""
    return lambda embeddings, labels: [
        torch.as_tensor(rows) for rows in miner._sample(embeddings, labels=labels.tolist())
    ]


def sphere_face(classes: int, dim: int) -> losses.SphereFaceLoss:
    """Theirs, without what it makes numpy warn of."""
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        return losses.SphereFaceLoss(classes, dim)


MARGIN = 0.2
NEAR, FAR = 1.2, 1.4  # margins of pairs that cut both the positives and the negatives of the bench's batches
SOFT_ST = sentence.BatchHardSoftMarginTripletLoss(None).batch_hard_triplet_soft_margin_loss
NOT_SQUARED = (
    "theirs is h(D − α⁺) and h(α − D), not squared, and adds the mean of active positives to that of active "
    "negatives; ours is the paper's D² and h(α − D)², one mean; power=1, two_means=True is theirs"
)

MINERS: dict[str, Case] = {
    "batch hard": Case(
        plain(tercet.BatchHard(), miners.BatchHardMiner(), listed=oml.HardTripletsMiner()), "miner"
    ),
    "semi-hard": Case(
        plain(tercet.SemiHard(margin=MARGIN), miners.TripletMarginMiner(MARGIN, "semihard")),
        "miner",
        "theirs lists every negative between D(a,p) and D(a,p) + m, ours the nearest of them, as FaceNet; "
        'negatives="all" is theirs',
    ),
    "semi-hard, all": Case(
        plain(tercet.SemiHard(margin=MARGIN, negatives="all"), miners.TripletMarginMiner(MARGIN, "semihard")),
        "miner",
        largest=2048,
    ),
    # At 8192 the list alone is 10 GB of row numbers.
    "batch all": Case(
        plain(tercet.BatchAll(margin=MARGIN), miners.TripletMarginMiner(MARGIN, "all")),
        "miner",
        largest=2048,
    ),
    "batch all, no margin": Case(
        lambda classes, dim: {OURS: tercet.BatchAll(), OML: of_list(oml.AllTripletsMiner(2**62))},
        "miner",
        largest=512,  # theirs is a loop over triplets
    ),
    "three hardest": Case(
        lambda classes, dim: {
            OURS: tercet.HardestN(k=3),
            OML: of_list(oml.NHardTripletsMiner(n_positive=1, n_negative=3)),
        },
        "miner",
    ),
    "easy positive": Case(plain(tercet.EasyPositive(), easy_hard("easy", "semihard")), "miner"),
    "easy positive, hard": Case(plain(tercet.EasyPositive("hard"), easy_hard("easy", "hard")), "miner"),
    "hard, easy negative": Case(plain(tercet.EasyHard("hard", "easy"), easy_hard("hard", "easy")), "miner"),
    "hard, semi-hard negative": Case(
        plain(tercet.EasyHard("hard", "semi_hard"), easy_hard("hard", "semihard")), "miner"
    ),
    "semi-hard positive, hard": Case(
        plain(tercet.EasyHard("semi_hard", "hard"), easy_hard("semihard", "hard")), "miner"
    ),
    "hard within ranges": Case(
        plain(
            tercet.EasyHard("hard", "hard", positive_range=(1.0, FAR), negative_range=(NEAR, 2.0)),
            easy_hard("hard", "hard", allowed_pos_range=(1.0, FAR), allowed_neg_range=(NEAR, 2.0)),
        ),
        "miner",
    ),
    "hardest half": Case(plain(tercet.HDC(), miners.HDCMiner()), "miner"),
    "uniform histogram": Case(
        plain(tercet.UniformHistogram(), miners.UniformHistogramMiner()),
        "miner",
        "both draw; a bin of theirs gives as many pairs, with repetition, ours each once",
        largest=2048,
    ),
    # Theirs lists every triplet with its features.
    "angular": Case(
        plain(tercet.AngularMiner(), miners.AngularMiner(math.degrees(math.pi / 9))), "miner", largest=512
    ),
    "distance-weighted": Case(
        plain(tercet.DistanceWeighted(), miners.DistanceWeightedMiner()),
        "miner",
        "both draw; theirs draws K positives an anchor too, with repetition, ours takes each once",
    ),
    "multi-similarity": Case(plain(tercet.MultiSimilarityMiner(), miners.MultiSimilarityMiner()), "miner"),
    "pair margin": Case(plain(tercet.PairMargin(NEAR, FAR), miners.PairMarginMiner(NEAR, FAR)), "miner"),
}

HEADS: dict[str, Case] = {
    "hinge, all triplets": Case(
        plain(
            tercet.TripletMargin(MARGIN),
            triplet(margin=MARGIN),
            of_labels(sentence.BatchAllTripletLoss(None, margin=MARGIN).batch_all_triplet_loss),
        ),
        "loss",
    ),
    "soft margin, all triplets": Case(
        plain(tercet.TripletMargin(soft=True), triplet(margin=0, smooth_loss=True)), "loss"
    ),
    "soft margin with a margin, all triplets": Case(
        plain(tercet.TripletMargin(MARGIN, soft=True), triplet(margin=MARGIN, smooth_loss=True)), "loss"
    ),
    "hinge with swap, all triplets": Case(
        plain(tercet.TripletMargin(MARGIN, swap=True), triplet(margin=MARGIN, swap=True)), "loss"
    ),
    "contrastive": Case(
        plain(tercet.Contrastive(), losses.ContrastiveLoss(distance=raw())), "loss", NOT_SQUARED
    ),
    "contrastive, hinges of two means": Case(
        plain(tercet.Contrastive(power=1, two_means=True), losses.ContrastiveLoss(distance=raw())), "loss"
    ),
    "N-pair": Case(
        plain(
            tercet.NPair(),
            losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
        ),
        "loss",
    ),
    # The peer computes the bin of a similarity, and its share, from float32.
    "histogram": Case(plain(tercet.Histogram(100), losses.HistogramLoss(n_bins=100)), "loss", "", 1e-5),
    "multi-similarity loss": Case(plain(tercet.MultiSimilarity(), losses.MultiSimilarityLoss()), "loss"),
    "NCA": Case(
        plain(tercet.NCA(), losses.NCALoss(distance=raw(2), reducer=reducers.MeanReducer())),
        "loss",
    ),
    "generalized lifted": Case(
        plain(tercet.GeneralizedLifted(), losses.GeneralizedLiftedStructureLoss(distance=raw())), "loss"
    ),
    # Theirs adds 10⁻⁵ for each column below the line.
    "ranked list": Case(
        plain(tercet.RankedList(temperature=5.0), losses.RankedListLoss(0.4, 5, distance=raw())),
        "loss",
        "",
        1e-3,
    ),
    "tuplet margin": Case(
        plain(tercet.TupletMargin(), losses.TupletMarginLoss(margin=math.degrees(0.1))),
        "loss",
        largest=2048,
    ),
    "angular": Case(
        plain(tercet.Angular(math.radians(40)), losses.AngularLoss(40)),
        "loss",
        "theirs divides anchors and positives by their length, and negatives not: the value of unit vectors "
        "is the same, the gradient is not; from a list, theirs takes all negatives, ours the listed ones",
        largest=512,
    ),
    "intra-pair variance": Case(plain(tercet.IntraPairVariance(), losses.IntraPairVarianceLoss()), "loss"),
    "contrastive, signal to noise": Case(
        plain(
            tercet.Contrastive(0.9, 0.1, distance=tercet.SignalToNoise(), power=1, two_means=True),
            losses.SignalToNoiseRatioContrastiveLoss(
                pos_margin=0.1, neg_margin=0.9, distance=distances.SNRDistance(normalize_embeddings=False)
            ),
        ),
        "loss",
        largest=512,
    ),
    "multi-similarity loss, distances": Case(
        plain(
            tercet.MultiSimilarity(2.0, 5.0, 1.2, distance="euclidean"),
            losses.MultiSimilarityLoss(2, 5, 1.2, distance=raw()),
        ),
        "loss",
    ),
    "lifted structure": Case(
        plain(tercet.LiftedStructure(), losses.LiftedStructureLoss(distance=raw())), "loss"
    ),
    "lifted structure, slack": Case(
        plain(tercet.LiftedStructure(1.0, 0.3), losses.LiftedStructureLoss(1, 0.3, distance=raw())), "loss"
    ),
    "margin loss, triplets": Case(
        plain(tercet.MarginLoss(of_triplets=True), losses.MarginLoss(learn_beta=True, distance=raw())),
        "loss",
    ),
    "margin loss": Case(
        plain(tercet.MarginLoss(), losses.MarginLoss(learn_beta=True, distance=raw())),
        "loss",
        "without mined pairs ours takes every pair once, theirs the two pairs of every triplet, as "
        "of_triplets=True does; equal on mined triplets. With a β for each class, their ν pulls at each "
        "listed anchor, ours at each row",
    ),
    "SupCon": Case(plain(tercet.SupCon(), losses.SupConLoss()), "loss"),
    "InfoNCE": Case(plain(tercet.InfoNCE(), losses.NTXentLoss()), "loss"),
    "circle": Case(plain(tercet.Circle(), losses.CircleLoss()), "loss"),
    "FastAP": Case(plain(tercet.FastAP(), losses.FastAPLoss()), "loss"),
    "ProxyNCA": Case(
        with_proxies(tercet.ProxyNCA, losses.ProxyNCALoss, "proxies", False),
        "loss",
        "theirs keeps the class's own proxy below the line; the paper's sum, and ours, leaves it out",
    ),
    "ProxyNCA++": Case(
        with_proxies(
            lambda c, d: tercet.ProxyNCA(c, d, plus_plus=True),
            lambda c, d: losses.ProxyNCALoss(c, d, softmax_scale=9),
            "proxies",
            False,
        ),
        "loss",
    ),
    # PyTorch's softplus(x) is x beyond 20, which leaves out exp(−20), 2·10⁻⁹.
    "ProxyAnchor": Case(
        with_proxies(tercet.ProxyAnchor, losses.ProxyAnchorLoss, "proxies", False), "loss", "", 3e-9
    ),
    "normalised softmax": Case(
        with_proxies(tercet.NormalizedSoftmax, losses.NormalizedSoftmaxLoss, "W", True), "loss"
    ),
    # Ours takes radians, theirs degrees.
    "ArcFace": Case(
        with_proxies(
            tercet.ArcFace, lambda c, d: losses.ArcFaceLoss(c, d, margin=math.degrees(0.5)), "W", True
        ),
        "loss",
    ),
    "CosFace": Case(with_proxies(tercet.CosFace, losses.CosFaceLoss, "W", True), "loss"),
    "sub-center ArcFace": Case(
        with_proxies(
            tercet.SubCenterArcFace,
            lambda c, d: losses.SubCenterArcFaceLoss(
                num_classes=c, embedding_size=d, margin=math.degrees(0.5)
            ),
            "W",
            True,
        ),
        "loss",
    ),
    "SphereFace": Case(with_proxies(tercet.SphereFace, sphere_face, "W", True), "loss"),
    "P2SGrad": Case(
        with_proxies(tercet.P2SGrad, lambda c, d: losses.P2SGradLoss(d, c), "weight", True),
        "loss",
        "theirs is the mean of squares over the C classes, 2/C of ours, of which the gradient by a cosine is "
        "the paper's",
    ),
    # The pull between the centers is an option here, and there a regulariser of one's own.
    "SoftTriple": Case(
        with_proxies(lambda c, d: tercet.SoftTriple(c, d, tau=0), losses.SoftTripleLoss, "fc", True), "loss"
    ),
}

STEPS: dict[str, Case] = {
    "batch hard + hinge": Case(
        plain(
            Mined(tercet.BatchHard(), tercet.TripletMargin(MARGIN, reduction="mean")),
            Mined(miners.BatchHardMiner(), triplet(reducers.MeanReducer(), margin=MARGIN)),
            of_labels(sentence.BatchHardTripletLoss(None, margin=MARGIN).batch_hard_triplet_loss),
        ),
        "both",
    ),
    "batch hard + soft margin": Case(
        plain(
            Mined(tercet.BatchHard(), tercet.TripletMargin(soft=True, reduction="mean")),
            Mined(miners.BatchHardMiner(), triplet(reducers.MeanReducer(), margin=0, smooth_loss=True)),
            of_labels(SOFT_ST),
        ),
        "both",
    ),
    "semi-hard or easiest + hinge": Case(
        lambda classes, dim: {
            OURS: Mined(
                tercet.SemiHard(margin=None, fallback="easiest"),
                tercet.TripletMargin(MARGIN, reduction="mean"),
            ),
            ST: of_labels(
                sentence.BatchSemiHardTripletLoss(None, margin=MARGIN).batch_semi_hard_triplet_loss
            ),
        },
        "both",
    ),
    "semi-hard, all + hinge": Case(
        plain(
            Mined(tercet.SemiHard(margin=MARGIN, negatives="all"), tercet.TripletMargin(MARGIN)),
            Mined(miners.TripletMarginMiner(MARGIN, "semihard"), triplet(margin=MARGIN)),
        ),
        "both",
        largest=2048,
    ),
    "multi-similarity, mined + hinge": Case(
        plain(
            Mined(tercet.MultiSimilarityMiner(), tercet.TripletMargin(MARGIN)),
            Mined(miners.MultiSimilarityMiner(), triplet(margin=MARGIN)),
        ),
        "both",
    ),
    "multi-similarity, mined + loss": Case(
        plain(
            Mined(tercet.MultiSimilarityMiner(), tercet.MultiSimilarity()),
            Mined(miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()),
        ),
        "both",
    ),
    "batch hard + margin loss": Case(
        plain(
            Mined(tercet.BatchHard(), tercet.MarginLoss()),
            Mined(miners.BatchHardMiner(), losses.MarginLoss(learn_beta=True, distance=raw())),
        ),
        "both",
    ),
}

CASES = MINERS | HEADS | STEPS
MAIN = ["batch hard", "batch all", "hinge, all triplets", "multi-similarity loss", "InfoNCE", "ProxyAnchor"]
"""The cases that are measured over dimensions and class sizes too."""
