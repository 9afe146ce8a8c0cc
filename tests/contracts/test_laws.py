"""Laws that every miner, head and metric keeps, as one table of subjects and one of laws, on random cases.

On a grid of small whole numbers squared distances are exact and ties many, so what is chosen, counted or
ranked must be the same to the last tuple. Losses and gradients are sums of floats, whose order a law may
change: they agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tercet
from tercet.core.indices import References, Triplets
from tercet.pairwise.distances import Mahalanobis, as_distance
from tercet.pairwise.pair_relations import Ignore
from tercet.pairwise.relations import CrossGroup, Graded, SameLabel, SharedLabel

F64, F32 = torch.float64, torch.float32
# Of float64 sums of some thousand terms of size 1 to 100, and of the same in float32.
ROUNDING = {F64: 1e-9, F32: 2e-4}


@dataclass(frozen=True)
class Batch:
    """Rows to compare, on a grid or in general position, with all that a subject may be given.

    Args:
        x: [n, d] whole numbers, or float64.
        labels: [n], or [n, 2] for a relation that takes two.
        ids: [n], all different; None for none.
        ref: columns as (x, labels, ids); None for the batch itself.
        triplets: rows that metrics of given triplets ask about.
    """

    x: Tensor
    labels: Tensor
    ids: Tensor | None = None
    ref: tuple[Tensor, Tensor, Tensor | None] | None = None
    triplets: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a law may vary of a call, beside the batch.

    Args:
        distance: a name or a `Distance`.
        relation: who is positive and who negative.
        unit: what margins are multiplied with.
        tile_rows: rows computed at once.
        dtype: of the embeddings.
    """

    distance: Any = "euclidean"
    relation: Any = field(default_factory=SameLabel)
    unit: float = 1.0
    tile_rows: int | None = None
    dtype: torch.dtype = F64

    @property
    def options(self):
        return {"distance": self.distance, "relation": self.relation, "tile_rows": self.tile_rows}


@dataclass(frozen=True)
class Subject:
    """A miner, a head or a metric.

    Args:
        make: the callable, of a `Setting`.
        kind: "miner", "head" or "metric".
        distances: the names that it takes; one alone is its own and no option.
        ties: chooses one of equals by their row numbers.
        units: the power of the scale that its loss grows with; None where margins have no unit.
        lists: how all tuples are listed, where the head of that list is the head without one.
        proxies: embeddings meet proxies, not each other.
        without: names of laws that do not hold of it by definition.
    """

    make: Callable[[Setting], Any]
    kind: str
    distances: tuple[str, ...] = ("euclidean", "squared_euclidean", "cosine", "dot", "mahalanobis")
    ties: bool = False
    units: int | None = None
    lists: str = ""
    proxies: bool = False
    without: tuple[str, ...] = ()


def miner(kind, *, ties=False, hamming=True, without=(), **options):
    """A miner; options that are margins stand as strings of their size in units."""

    def make(s):
        sizes = {name: float(v) * s.unit if isinstance(v, str) else v for name, v in options.items()}
        return kind(**sizes, **s.options)

    names = ("euclidean", "squared_euclidean", "cosine", "dot", "mahalanobis", "hamming")
    return Subject(make, "miner", names, ties, without=without)


def named(kind, name):
    """An option that is a choice of words, beside margins that stand as strings."""
    return lambda **options: kind(**options, **name)


def hinge(power=1, **options):
    return Subject(
        lambda s: tercet.TripletMargin(s.unit, power=power, **options, **s.options),
        "head",
        units=power,
        lists="triplets",
    )


def at_cosines(kind, *, lists="pairs", without=(), relation=True, **options):
    def make(s):
        more = {"relation": s.relation} if relation else {}
        return kind(**options, **more, tile_rows=s.tile_rows)

    return Subject(make, "head", ("cosine",), lists=lists, without=without)


def sum_of_three(**options):
    return tercet.Sum(
        [kind(**options) for kind in (tercet.SupCon, tercet.InfoNCE, tercet.Angular)], [1, 2, 3]
    )


def of_distances(kind, **options):
    return Subject(lambda s: kind(**options, **s.options), "head", lists="pairs", without=(FAR,))


def of_proxies(kind, *, without=(), **options):
    def make(s):
        head = kind(5, 3, **options)
        with torch.no_grad():
            head.proxies.copy_(torch.randn(head.proxies.shape, generator=torch.Generator().manual_seed(0)))
        return head.to(s.dtype)

    no_columns = ("references are the batch", "tile height", "subclass is class")
    return Subject(make, "head", ("cosine",), proxies=True, without=(*no_columns, *without))


def ranked(metric, *, without=(), **options):
    def make(s):
        return partial(metric, **options, distance=s.distance, tile_rows=s.tile_rows)

    return Subject(make, "metric", ties=True, without=without)


FAR = "a far class changes nothing"
SUBJECTS = {
    "BatchAll": miner(tercet.BatchAll, margin="1"),
    "BatchAll, half": miner(tercet.BatchAll, margin="0.5"),
    "BatchAll, below 0": miner(tercet.BatchAll, margin="-0.5"),
    "BatchAll, no margin": miner(tercet.BatchAll),
    "BatchHard": miner(tercet.BatchHard, ties=True),
    "SemiHard": miner(tercet.SemiHard, margin="1", ties=True),
    "SemiHard, no margin": miner(tercet.SemiHard, margin=None, ties=True),
    "SemiHard, all": miner(named(tercet.SemiHard, {"negatives": "all"}), margin="2"),
    "SemiHard, easiest": miner(
        named(tercet.SemiHard, {"fallback": "easiest"}), margin="1", ties=True, without=(FAR,)
    ),
    "EasyPositive": miner(tercet.EasyPositive, ties=True),
    "EasyPositive, hard": miner(named(tercet.EasyPositive, {"negative": "hard"}), ties=True),
    "EasyHard": miner(tercet.EasyHard, ties=True),
    "EasyHard, semi-hard positives": miner(
        named(tercet.EasyHard, {"positives": "semi_hard", "negatives": "hard"}),
        margin="1.5",
        negative_k=2,
        ties=True,
    ),
    "EasyHard, all": miner(named(tercet.EasyHard, {"positives": "all", "negatives": "all"})),
    "HardestN": miner(tercet.HardestN, k=2, skip=1, ties=True),
    "MultiSimilarityMiner": miner(tercet.MultiSimilarityMiner, epsilon="1"),
    "MultiSimilarityMiner, strict": miner(tercet.MultiSimilarityMiner, epsilon="0"),
    "PairMargin": miner(tercet.PairMargin, pos_margin="1", neg_margin="2"),
    # A share of all pairs, and bins over all distances, change with a class that comes. Where a share ends
    # between (i, j) and (j, i), which are equally far, the row numbers choose.
    "HDC": miner(tercet.HDC, share=0.3, ties=True, without=(FAR, "permutation")),
    "UniformHistogram": miner(
        tercet.UniformHistogram,
        bins=4,
        neg_per_bin=5,
        # Which pair is drawn is a function of the rows' numbers and ids.
        without=(FAR, "permutation", "ids are names", "references are the batch"),
    ),
    "AngularMiner": Subject(
        lambda s: tercet.AngularMiner(0.6, relation=s.relation, tile_rows=s.tile_rows), "miner", ("cosine",)
    ),
    "DistanceWeighted": Subject(
        lambda s: tercet.DistanceWeighted(relation=s.relation, tile_rows=s.tile_rows),
        "miner",
        ("cosine",),
        # Which negative is drawn is a function of the rows' numbers and ids.
        without=("permutation", "ids are names", "references are the batch"),
    ),
    "TripletMargin": hinge(),
    "TripletMargin, squared": hinge(power=2),
    "TripletMargin, swap": hinge(swap=True),
    "TripletMargin, soft": Subject(
        lambda s: tercet.TripletMargin(soft=True, reduction="mean", **s.options), "head", lists="triplets"
    ),
    "Contrastive": Subject(
        lambda s: tercet.Contrastive(2 * s.unit, s.unit, **s.options), "head", units=2, lists="pairs"
    ),
    "MarginLoss": Subject(
        lambda s: tercet.MarginLoss(s.unit, 2 * s.unit, **s.options).to(s.dtype),
        "head",
        units=1,
        lists="pairs",
    ),
    "LiftedStructure": Subject(
        lambda s: tercet.LiftedStructure(**s.options), "head", lists="pairs", without=(FAR,)
    ),
    "InfoNCE": at_cosines(tercet.InfoNCE),
    "SupCon": at_cosines(tercet.SupCon),
    "MultiSimilarity": at_cosines(tercet.MultiSimilarity),
    "MultiSimilarity, distances": of_distances(tercet.MultiSimilarity, beta=5.0, base=1.3),
    "NCA": of_distances(tercet.NCA, temperature=2.0),
    "GeneralizedLifted": of_distances(tercet.GeneralizedLifted),
    "RankedList": of_distances(tercet.RankedList, margin=0.9, alpha=2.3, temperature=1.0),
    "TupletMargin": at_cosines(tercet.TupletMargin, scale=8.0),
    "Angular": at_cosines(tercet.Angular),
    "IntraPairVariance": at_cosines(tercet.IntraPairVariance, without=(FAR,)),
    "VICReg": replace(at_cosines(tercet.VICReg, without=(FAR,)), distances=("squared_euclidean",)),
    "Sum": at_cosines(sum_of_three),
    "SmoothAP": at_cosines(tercet.SmoothAP, rank_temperature=0.2),
    "RecallSurrogate": at_cosines(tercet.RecallSurrogate, k=[1, 2], rank_temperature=0.2),
    "Circle": at_cosines(tercet.Circle, gamma=8.0),
    "NPair": replace(
        at_cosines(tercet.NPair), distances=("dot",), without=("permutation", FAR)
    ),  # the first pair of a class
    "DynamicSoftMargin": Subject(  # a class that comes changes the histogram
        lambda s: tercet.DynamicSoftMargin(33, **s.options), "head", lists="triplets", without=(FAR,)
    ),
    "Histogram": at_cosines(tercet.Histogram, bins=16),
    "FastAP": at_cosines(tercet.FastAP, lists=""),
    "ProxyNCA": of_proxies(tercet.ProxyNCA),
    "ProxyAnchor": of_proxies(tercet.ProxyAnchor),
    "NormalizedSoftmax": of_proxies(tercet.NormalizedSoftmax),
    "ArcFace": of_proxies(tercet.ArcFace),
    "CosFace": of_proxies(tercet.CosFace),
    "SoftTriple": of_proxies(tercet.SoftTriple, centers=2),
    "SubCenterArcFace": of_proxies(tercet.SubCenterArcFace, sub_centers=2),
    "SphereFace": of_proxies(tercet.SphereFace, without=("scaling with the margin",)),  # lengths count
    "AdaFace": of_proxies(tercet.AdaFace, without=("scaling with the margin",)),
    "CurricularFace": of_proxies(tercet.CurricularFace),
    "P2SGrad": of_proxies(tercet.P2SGrad),
    "recall_at_k": ranked(tercet.recall_at_k, k=(1, 2, 4)),
    "evaluate": ranked(tercet.evaluate, k=(1, 2, 4)),
    "map_at_r": ranked(tercet.map_at_r),
    "precision_at_k": ranked(tercet.precision_at_k, k=(1, 2, 4), without=(FAR,)),  # where k is clipped
    "r_precision": ranked(tercet.r_precision),
    "mean_average_precision": ranked(tercet.mean_average_precision),
    "mrr": ranked(tercet.mrr),
    "ndcg": ranked(tercet.ndcg, k=(1, 4)),
    "cmc": ranked(tercet.cmc, k=4),
    "mean_inp": ranked(tercet.mean_inp),
    "global_average_precision": ranked(tercet.global_average_precision),
    "similarity_precision": Subject(
        lambda s: partial(tercet.similarity_precision, distance=s.distance), "metric"
    ),
    "score_at_top_k": Subject(
        lambda s: partial(tercet.score_at_top_k, k=2, distance=s.distance, tile_rows=s.tile_rows),
        "metric",
        ties=True,
    ),
    "describe": Subject(
        lambda s: partial(tercet.describe, margin=s.unit, distance=s.distance),
        "metric",
        without=(FAR, "scaling with the margin"),  # it counts rows and classes, and tells distances
    ),
}


def outcome(subject: Subject, setting: Setting, batch: Batch, mined: Any = None) -> dict[str, Any]:
    """What a subject gives: tuples as a sorted list, a loss with its gradients, or figures."""
    x = batch.x.to(setting.dtype)
    codes = getattr(setting.distance, "name", setting.distance) == "hamming"
    ref = None
    if batch.ref is not None:
        y = batch.ref[0] if codes else batch.ref[0].to(setting.dtype)
        ref = References(y.clone().requires_grad_(subject.kind == "head"), *batch.ref[1:])
    call = subject.make(setting)
    if subject.kind == "miner":
        found = call(batch.x if codes else x, batch.labels, ids=batch.ids, ref=ref)
        if isinstance(found, Triplets):
            return {"triplets": sorted(zip(*(index.tolist() for index in found), strict=True))}
        sides = found[:2], found[2:]
        return {
            name: sorted(zip(*(index.tolist() for index in side), strict=True))
            for name, side in zip(("positive pairs", "negative pairs"), sides, strict=True)
        }
    if subject.kind == "head":
        x.requires_grad_()
        more = {} if mined is not None else {"ids": batch.ids}
        loss = call(x, batch.labels, mined, ref=ref, **more)
        loss.backward()
        y = None if ref is None else ref.embeddings
        return {"loss": loss.detach(), "gradient": x.grad, "of columns": None if y is None else y.grad}
    more = {} if ref is None else {"ref": ref}
    function = call.func.__name__
    if function == "describe":
        return dict(call(x, batch.labels, Triplets(*batch.triplets), **more))
    if function == "similarity_precision":
        return {"figure": float(call(x, batch.triplets, **more))}
    more["ids"] = batch.ids
    if function == "score_at_top_k":
        return {"figure": float(call(x, batch.triplets, **more))}
    found = call(x, batch.labels, **more)
    if not isinstance(found, Mapping):
        found = dict(enumerate(np.ravel(found)))
    return {str(k): float(v) for k, v in found.items()}


def agree(one: dict[str, Any], other: dict[str, Any], rounding: float = 0.0) -> None:
    """The same tuples; figures, losses and gradients as far apart as `rounding` of their size, at most."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, list):
            assert value == other[name], name
        elif name == "of columns" and (value is None or other[name] is None):
            continue  # only one of the two has columns of their own
        else:
            u, v = (torch.as_tensor(each, dtype=F64) for each in (value, other[name]))
            size = max(1.0, float(u.nan_to_num().abs().max()))
            torch.testing.assert_close(u, v, rtol=0, atol=rounding * size, equal_nan=True, msg=name)


@dataclass(frozen=True)
class Case:
    """One subject in one setting on one batch, with what else a law draws."""

    subject: Subject
    setting: Setting
    batch: Batch
    random: torch.Generator

    def outcome(self, *, batch: Batch | None = None, mined: Any = None, **setting: Any) -> dict[str, Any]:
        return outcome(self.subject, replace(self.setting, **setting), batch or self.batch, mined)

    @property
    def rounding(self):
        return ROUNDING[self.setting.dtype] if self.subject.kind != "miner" else 0.0

    def draw(self, *choices):
        return choices[int(torch.randint(0, len(choices), (), generator=self.random))]


def renamed(found: dict[str, Any], names: list[int]) -> dict[str, Any]:
    """The same tuples of rows that bear other numbers."""
    return {
        key: sorted(tuple(names[i] for i in each) for each in value) if isinstance(value, list) else value
        for key, value in found.items()
    }


def permutation(case: Case) -> None:
    """Rows in another order are the same rows."""
    batch = case.batch
    order = torch.randperm(len(batch.x), generator=case.random)
    place = order.argsort()
    moved = Batch(
        batch.x[order],
        batch.labels[order],
        None if batch.ids is None else batch.ids[order],
        triplets=tuple(place[rows] for rows in batch.triplets),
    )
    found = case.outcome(batch=moved)
    if case.subject.kind == "head":
        found["gradient"] = found["gradient"][place]
    agree(case.outcome(), renamed(found, order.tolist()), case.rounding)


def tile_height(case: Case) -> None:
    """Rows are computed some at a time."""
    whole = case.outcome(tile_rows=None)
    for height in (1, case.draw(2, 3, 5)):
        agree(whole, case.outcome(tile_rows=height), case.rounding)


def precision(case: Case) -> None:
    """On a grid float32 gives what float64 does: the same tuples and figures, losses to its own rounding."""
    exact = case.subject.kind == "miner"
    agree(case.outcome(dtype=F32), case.outcome(dtype=F64), 0.0 if exact else ROUNDING[F32])


def listed_is_all(case: Case) -> None:
    """A head of the list of all, or of all that its margins leave a loss to, is the head without a list."""
    setting, batch = case.setting, case.batch
    x, options = batch.x.to(setting.dtype), {"relation": setting.relation}
    ref = None if batch.ref is None else References(batch.ref[0].to(setting.dtype), *batch.ref[1:])
    if case.subject.lists == "triplets":
        miners = [tercet.BatchAll(**options)]
        if case.subject.units and case.subject is not SUBJECTS["TripletMargin, swap"]:
            miners.append(tercet.BatchAll(setting.unit, distance=setting.distance, **options))
    else:
        miners = [tercet.PairMargin(-1e9, 1e9, **options)]
        if case.subject is SUBJECTS["Contrastive"]:
            bounds = setting.unit, 2 * setting.unit
            miners.append(tercet.PairMargin(*bounds, distance=setting.distance, **options))
    whole = case.outcome()
    for each in miners:
        mined = each(x, batch.labels, ids=batch.ids, ref=ref)
        agree(whole, case.outcome(mined=mined), case.rounding)


def references_are_the_batch(case: Case) -> None:
    """The batch as its own references, under ids, is the batch alone."""
    batch = replace(case.batch, ids=torch.arange(len(case.batch.x)))
    beside = case.outcome(batch=replace(batch, ref=(batch.x, batch.labels, batch.ids)))
    if case.subject.kind == "head":
        beside["gradient"] = beside["gradient"] + beside["of columns"]
    agree(case.outcome(batch=batch), beside, case.rounding)


def far_class(case: Case) -> None:
    """One more row, of a class of its own and far from all: nothing among the others changes."""
    batch, n = case.batch, len(case.batch.x)
    x = torch.cat([batch.x, batch.x.new_full((1, batch.x.shape[1]), 40)])
    label = torch.full_like(batch.labels[:1], int(batch.labels.max()) + 1)
    ids = None if batch.ids is None else torch.cat([batch.ids, batch.ids.max()[None] + 1])
    found = case.outcome(batch=replace(batch, x=x, labels=torch.cat([batch.labels, label]), ids=ids))
    if case.subject.kind == "head":
        assert not found["gradient"][n:].any()
        found["gradient"] = found["gradient"][:n]
    kept = {k: [t for t in v if n not in t] if isinstance(v, list) else v for k, v in found.items()}
    agree(case.outcome(), kept, case.rounding)


def ids_are_names(case: Case) -> None:
    """Ids that are all different change nothing, whatever they are; none is the same as row numbers."""
    n = len(case.batch.x)
    named = torch.randperm(10 * n, generator=case.random)[:n] - 5 * n
    agree(
        case.outcome(batch=replace(case.batch, ids=None)),
        case.outcome(batch=replace(case.batch, ids=named)),
        case.rounding,
    )


def scaling(case: Case) -> None:
    """Embeddings and margins in other units: the same tuples and figures, the loss in those units."""
    power = {"euclidean": 1, "mahalanobis": 1, "squared_euclidean": 2, "dot": 2, "cosine": 0}
    name = case.setting.distance if isinstance(case.setting.distance, str) else "mahalanobis"
    scale = case.draw(0.25, 2.0, 8.0)
    unit = scale ** power[name]
    found = case.outcome(batch=replace(case.batch, x=scale * case.batch.x), unit=unit)
    if case.subject.kind == "head":
        loss = unit ** (case.subject.units or 0)
        found["loss"], found["gradient"] = found["loss"] / loss, found["gradient"] * scale / loss
    agree(case.outcome(), found, case.rounding)


class EmptyRelation(SameLabel):
    pass


class EqualRelation(SameLabel):
    def sides(self, rows, columns):
        same = rows[:, None] == columns[None]
        return same, ~same


class EmptyMahalanobis(Mahalanobis):
    pass


class EqualMahalanobis(Mahalanobis):
    def tile(self, x, y):
        return super().tile(x, y)

    def paired(self, x, y):
        return super().paired(x, y)


def subclass_is_class(case: Case) -> None:
    """A subclass that overrides nothing, or overrides with equal code, is as its class."""
    whole = case.outcome()
    if isinstance(case.setting.relation, SameLabel) and case.subject.kind != "metric":
        for relation in (EmptyRelation(), EqualRelation()):
            agree(whole, case.outcome(relation=relation), case.rounding)
    distance = case.setting.distance
    if isinstance(distance, Mahalanobis):
        others = [kind(distance.L) for kind in (EmptyMahalanobis, EqualMahalanobis)]
    elif len(case.subject.distances) > 1:
        own = type(as_distance("test", distance))
        equal = {"tile": lambda *args: own.tile(*args), "paired": lambda *args: own.paired(*args)}
        others = [type(f"Empty{own.__name__}", (own,), {})(), type(f"Equal{own.__name__}", (own,), equal)()]
    else:
        others = []
    for other in others:
        agree(whole, case.outcome(distance=other), case.rounding)


@dataclass(frozen=True)
class Law:
    """What must not change.

    Args:
        check: asserts it of a case.
        kinds: of subjects.
        holds: whether it is one of a subject at all.
        distances: under which it holds.
        relations: whether it is one of every relation, or of the same label alone.
        floats: whether rows are in general position, where a subject chooses among equals by row numbers.
    """

    check: Callable[[Case], None]
    kinds: tuple[str, ...] = ("miner", "head", "metric")
    holds: Callable[[Subject], bool] = lambda subject: True
    distances: tuple[str, ...] = ("euclidean", "squared_euclidean", "cosine", "dot", "mahalanobis", "hamming")
    relations: bool = True
    floats: Callable[[Subject], bool] = lambda subject: False
    refs: bool = False


LAWS = {
    "permutation": Law(permutation, floats=lambda subject: subject.ties),
    "tile height": Law(tile_height, refs=True),
    "float32 is float64 on a grid": Law(precision, refs=True),
    "listed is all": Law(listed_is_all, ("head",), lambda subject: bool(subject.lists), refs=True),
    "references are the batch": Law(references_are_the_batch),
    FAR: Law(
        far_class,
        holds=lambda subject: subject.units is not None or subject.kind != "head",
        distances=("euclidean", "squared_euclidean", "mahalanobis"),
        relations=False,
    ),
    "ids are names": Law(ids_are_names),
    "scaling with the margin": Law(
        scaling,
        holds=lambda subject: (
            subject.units is not None or subject.kind != "head" or subject.distances == ("cosine",)
        ),
        distances=("euclidean", "squared_euclidean", "cosine", "dot", "mahalanobis"),
    ),
    "subclass is class": Law(subclass_is_class),
}
PAIRS = [
    (law, subject)
    for law, rule in LAWS.items()
    for subject, each in SUBJECTS.items()
    if each.kind in rule.kinds
    and rule.holds(each)
    and law not in each.without
    and set(each.distances) & set(rule.distances)
]


def batch_of(g, distance, relation, floats, n_labels, with_ref):
    """A batch of 4 to 16 rows in 3 dimensions; for cosines on a grid, of multiples of unit vectors."""

    def rows(n):
        if floats:
            return torch.randn(n, 3, generator=g, dtype=F64)
        if distance == "cosine":
            sizes = torch.randint(1, 4, (n, 1), generator=g) * (
                1 - 2 * torch.randint(0, 2, (n, 1), generator=g)
            )
            return torch.zeros(n, 3).long().scatter_(1, torch.randint(0, 3, (n, 1), generator=g), sizes)
        return torch.randint(0, 4, (n, 3), generator=g)

    def labels(n):
        values = torch.randint(0, n_labels, (n, 2), generator=g)
        if isinstance(relation, SharedLabel):
            values = values.clamp(max=1)  # one column a label
        return values[:, 0] if isinstance(relation, SameLabel) else values

    n = int(torch.randint(4, 17, (), generator=g))
    ids = torch.randperm(3 * n, generator=g) if with_ref or n % 2 else None
    ref = None
    if with_ref:
        r = int(torch.randint(3, 17, (), generator=g))
        ref = rows(r), labels(r), ids[n : n + r] if len(ids) >= n + r else torch.arange(r) + 3 * n
    size = n if ref is None else len(ref[0])
    triplets = torch.randint(0, n, (6,), generator=g), *torch.randint(0, size, (2, 6), generator=g)
    return Batch(rows(n), labels(n), None if ids is None else ids[:n], ref, triplets)


def case_of(seed: int, law: str, name: str) -> Case:
    """The case that a seed draws for a law and a subject."""
    g = torch.Generator().manual_seed(seed)
    rule, subject = LAWS[law], SUBJECTS[name]

    def draw(*choices):
        return choices[int(torch.randint(0, len(choices), (), generator=g))]

    floats = rule.floats(subject)
    names = [
        each for each in subject.distances if each in rule.distances and not (floats and each == "hamming")
    ]
    distance, relation = draw(*names), SameLabel()
    if rule.relations and subject.kind != "metric" and not subject.proxies:
        relation = draw(
            SameLabel(), SameLabel(), CrossGroup(), SharedLabel(), Graded(1.0, 0.0, "depth"), Ignore("same")
        )
    if name == "NPair" and isinstance(relation, (SharedLabel, Graded, Ignore)):  # by which a row has no class
        relation = SameLabel()
    with_ref = rule.refs and not subject.proxies and draw(True, False)
    batch = batch_of(g, distance, relation, floats, draw(2, 3, 4), with_ref)
    measure = distance
    if distance == "mahalanobis":
        measure = Mahalanobis(torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]], dtype=F64))
    dtype = F64 if subject.kind == "head" else draw(F32, F64)
    return Case(subject, Setting(measure, relation, dtype=dtype), batch, g)


def cases(count: int, first: int = 0):
    """So many cases: every law with every subject in turn, before any comes again."""
    order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(first)).tolist()
    return [(i, *PAIRS[order[i % len(PAIRS)]]) for i in range(count)]


@pytest.mark.parametrize(("seed", "law", "subject"), cases(60))
def test_a_law_holds(seed, law, subject):
    case = case_of(seed, law, subject)
    LAWS[law].check(case)


@pytest.mark.campaign
@pytest.mark.parametrize(("seed", "law", "subject"), cases(2_000, first=1))
def test_laws_hold_of_two_thousand_cases(seed, law, subject):
    case = case_of(1_000 + seed, law, subject)
    LAWS[law].check(case)


def test_every_miner_head_and_metric_is_in_the_table():
    table = {repr(subject.make(Setting("cosine"))).split("(")[0] for subject in SUBJECTS.values()}
    text = " ".join(repr(subject.make(Setting("cosine"))) for subject in SUBJECTS.values())
    homes = ("tercet.losses.", "tercet.miners.", "tercet.metrics.")
    modules = {name: getattr(tercet, name).__module__ for name in tercet.__all__}
    # A miner without a rule, a penalty that compares no rows; figures of all pairs, of clusters and of
    # episodes, which rank no columns.
    others = {"Miner", "EmbeddingPenalty", "verification", "clustering", "geometry", "few_shot"}
    public = {name for name, home in modules.items() if home.startswith(homes)} - others
    assert len(public) > 25
    assert {name for name in public if name not in table and f"function {name} " not in text} == set()
    assert {subject for _, subject in PAIRS} == set(SUBJECTS)
    assert {(law, subject) for _, law, subject in cases(len(PAIRS))} == set(PAIRS)


class Spoiled:
    """A subject with a fault: what it is asked, what it gives."""

    def __init__(self, inner, before=lambda *args: args, after=lambda found, *args: found):
        self.inner, self.before, self.after = inner, before, after

    def __call__(self, x, labels, mined=None, **more):
        if mined is None:
            return self.after(self.inner(*self.before(x, labels), **more), x, labels, mined, more)
        return self.after(self.inner(x, labels, mined, **more), x, labels, mined, more)


def one_less(found, x, labels, mined, more):
    """Without the first triplet."""
    return Triplets(*(index[1:] for index in found))


def spoiled_when(wrong, after=one_less):
    """A `BatchAll` that loses a triplet where `wrong(setting, x, ids, ref)` says so."""

    def make(s):
        def fault(found, x, labels, mined, more):
            return after(found, x, labels, mined, more) if wrong(s, x, more["ids"], more["ref"]) else found

        return Spoiled(tercet.BatchAll(**s.options), after=fault)

    return Subject(make, "miner")


# For each law a subject that breaks it, and no other fault.
WRONG = {
    "permutation": spoiled_when(lambda s, x, ids, ref: True),
    "tile height": spoiled_when(lambda s, x, ids, ref: s.tile_rows == 1),
    "float32 is float64 on a grid": spoiled_when(lambda s, x, ids, ref: s.dtype == F32),
    "listed is all": Subject(
        lambda s: Spoiled(
            tercet.SupCon(tile_rows=s.tile_rows),
            after=lambda loss, x, labels, mined, more: loss if mined is None else 1.001 * loss,
        ),
        "head",
        ("cosine",),
        lists="pairs",
    ),
    "references are the batch": spoiled_when(lambda s, x, ids, ref: ref is not None),
    FAR: spoiled_when(lambda s, x, ids, ref: bool((x == 40).all(1).any())),
    "ids are names": spoiled_when(lambda s, x, ids, ref: ids is not None),
    "scaling with the margin": spoiled_when(lambda s, x, ids, ref: s.unit != 1),
    "subclass is class": spoiled_when(
        lambda s, x, ids, ref: type(s.relation) is EqualRelation or "Equal" in type(s.distance).__name__
    ),
}
PLAIN = Batch(
    torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 2], [3, 0, 1], [2, 2, 2], [3, 3, 0]]),
    torch.tensor([0, 1, 0, 1, 0, 1]),
)


@pytest.mark.parametrize("law", LAWS)
def test_each_law_fails_of_a_wrong_answer(law):
    batch = PLAIN if law != "listed is all" else replace(PLAIN, x=PLAIN.x + 1)
    setting = Setting("cosine" if law == "listed is all" else "squared_euclidean")
    case = Case(WRONG[law], setting, batch, torch.Generator().manual_seed(1))
    right = SUBJECTS["SupCon" if law == "listed is all" else "BatchAll, no margin"]
    LAWS[law].check(replace(case, subject=right))
    with pytest.raises(AssertionError):
        LAWS[law].check(case)


@pytest.mark.parametrize("law", ["permutation", "tile height", "references are the batch", "ids are names"])
def test_a_law_fails_of_a_wrong_loss_or_gradient(law):
    """A loss that depends on which row stands first, on the tile, on columns or on ids."""

    class Wrong(torch.nn.Module):
        def __init__(self, s):
            super().__init__()
            self.inner, self.height = tercet.Contrastive(2.0, 1.0, **s.options), s.tile_rows

        def forward(self, x, labels, mined=None, *, ids=None, ref=None):
            loss = self.inner(x, labels, mined, ids=ids, ref=ref)
            wrong = {
                "permutation": x[0].sum(),
                "tile height": x.sum() * (self.height == 1),
                "references are the batch": x.sum() * (ref is not None),
                "ids are names": x.sum() * (ids is not None),
            }[law]
            return loss + 1e-3 * (wrong - wrong.detach())  # the value is right, the gradient is not

    case = Case(Subject(Wrong, "head"), Setting(), PLAIN, torch.Generator().manual_seed(1))
    LAWS[law].check(replace(case, subject=SUBJECTS["Contrastive"]))
    with pytest.raises(AssertionError):
        LAWS[law].check(case)


def test_figures_that_differ_by_more_than_rounding_fail():
    agree({"a": 1.0, "b": float("nan")}, {"a": 1.0 + 1e-10, "b": float("nan")}, 1e-9)
    for other in ({"a": 1.0 + 1e-8}, {"b": 1.0}, {"a": float("nan")}):
        with pytest.raises(AssertionError):
            agree({"a": 1.0}, other, 1e-9)
