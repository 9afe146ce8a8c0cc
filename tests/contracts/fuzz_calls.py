"""Valid calls of every public callable, to put odd values into: one row a callable.

A row gives the callable with valid arguments, made anew each time; the kind of each argument follows from its
name, or stands in the row. What a constructor took is then used, so that nothing odd waits inside.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tercet
from tests.contracts.fuzz_values import N

LABELS = torch.arange(N) // 2
POINTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
MINED = (torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 4]))
NUMBERS = itertools.count()

COUNTS = """
    seed p k rank world_size epoch step anchors per_class num_classes dim max_count tile_rows size
    label_columns embedding_size channels filters backbone_features positives negatives limit count
    capacity tries every warmup buffer images_per_shard workers ranks image_bytes lanes steps bins
    centers skip views max_open chunk_size class_depth images max_files max_pixels in_features out_features
    sub_centers supers_per_batch total n batch_size part_size positive_k negative_k pos_per_bin neg_per_bin
""".split()
REALS = """
    margin scale alpha beta gamma m base temperature epsilon cutoff nonzero_loss_cutoff nu l2 la tau
    cap gap out_of_class fraction least pos_margin neg_margin label_smoothing h momentum
    pos_temperature rank_temperature balance pos_epsilon neg_epsilon invariance variance covariance
    length mean share angle span
""".split()
FLAGS = """
    easy_margin plus_plus normalize soft swap overwrite progress verify describe return_rows
    two_means of_triplets
    return_keys sharded symmetric write_index csv_safe outside_root urls non_blocking hash complete
""".split()
CHOICES = """
    reduction fallback negatives_from short_classes on_short layout unreadable on_unreadable damaged
    by negative check_finite
""".split()
_PROTOCOL = {
    **dict.fromkeys(("exclude", "no_positives", "of", "rule", "over", "gain", "figures"), "choice"),
    **dict.fromkeys(("ignore", "distractors", "relevance", "far"), "anything"),
    **dict.fromkeys(("restarts", "clusters", "ways", "shots", "queries", "episodes"), "count"),
    "labels": "labels of rows",
}
_REALS_OF_MINING = """
    relative_margin max_score min_score max_quantile teacher_margin suspects uniform temperature
    sharpness shift min_recall
""".split()
_MINED_FIELDS = """
    anchor positive positive_score negatives scores ranks reserve reserve_scores reserve_ranks suspects report
""".split()
_SUSPECT_FIELDS = "kind image other score own_score reason unread catalog".split()
_VERDICT_FIELDS = "image other score own_score verdict".split()
KIND_OF = {
    **dict.fromkeys(COUNTS, "count"),
    **dict.fromkeys(REALS, "real"),
    **dict.fromkeys(FLAGS, "flag"),
    **dict.fromkeys(CHOICES, "choice"),
    **{name: name for name in "distance relation embeddings ids ref mined index row state".split()},
    **dict.fromkeys(("positive_range", "negative_range"), "range"),
    "weight": "weights",
    "sample": "sample",
    "class_weight": "class weights",
    "labels": "labels",
    "groups": "groups",
    "super_labels": "groups",
    "rows": "index",
    "triplets": "mined",
    "transform": "callable or None",
    "handler": "callable or None",
    "decode": "callable or None",
    "root": "folder or None",
    "path": "source",
}


@dataclass(frozen=True)
class Row:
    """A callable with valid arguments, how its result is used, and the kinds of its arguments."""

    make: Callable[[], tuple[Callable[..., Any], dict[str, Any]]]
    use: Callable[[Any], Any] = lambda result: None
    kinds: dict[str, str] = field(default_factory=dict)
    dear: int = 1  # of so many calls it gets one

    def kind(self, name: str) -> str:
        """The kind of an argument."""
        return self.kinds.get(name) or KIND_OF[name]


def arguments(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a callable, without those that take any number."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in inspect.signature(call).parameters.items() if one.kind not in several}


def may_be_none(parameter: inspect.Parameter) -> bool:
    """Whether None says "left away"."""
    return parameter.default is None or "None" in str(parameter.annotation)


_NET = tercet.DeepRankingNet(
    torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
    image_size=32,
    embedding_size=4,
    filters=2,
    backbone_features=3,
)


def _mine(miner: Any) -> Any:
    return miner(POINTS, LABELS)


def _train(head: Any) -> Any:
    loss = head(POINTS.clone().requires_grad_(), LABELS)
    return loss.backward() if loss.requires_grad and not loss.ndim else loss


def _train_listed(head: Any) -> Any:
    return head(POINTS.clone().requires_grad_(), LABELS, MINED)


def _read(sequence: Any) -> Any:
    return len(sequence), sequence[0], sequence[-1], sequence[:3]


def _deal(sampler: Any) -> Any:
    sampler.set_epoch(1, 0)
    return len(sampler), sampler.batch(0, 0), sampler.state_at(0, 0)


def _samples() -> list[dict[str, Any]]:
    return [{"__key__": str(n), "cls": b"%d" % (n // 4), "pgm": b"P5 1 1 255 a"} for n in range(2 * N)]


def _row(name: str, use: Any = None, kinds: Any = None, dear: int = 1, **given: Any) -> Row:
    """The class or function of a public name with these arguments."""
    return Row(lambda: (getattr(tercet, name), dict(given)), use or (lambda result: None), kinds or {}, dear)


def _method(
    make: Callable[[], Any], name: str, use: Any = None, kinds: Any = None, dear: int = 1, **given: Any
) -> Row:
    """A method of an object made anew."""
    return Row(lambda: (getattr(make(), name), dict(given)), use or (lambda result: None), kinds or {}, dear)


def _new(suffix: str = "") -> str:
    return f"new/{next(NUMBERS)}{suffix}"


MINERS = {
    "AngularMiner": {"angle": 0.4},
    "BatchAll": {"margin": 0.2},
    "BatchHard": {},
    "DistanceWeighted": {},
    "EasyHard": {"negatives": "hard", "negative_k": 2, "negative_range": (0.1, None)},
    "EasyPositive": {},
    "HDC": {"share": 0.3},
    "HardestN": {"k": 2},
    "MultiSimilarityMiner": {},
    "PairMargin": {},
    "SemiHard": {"margin": 0.2},
    "UniformHistogram": {"bins": 7},
}
HEADS = {
    "Angular": {},
    "Circle": {},
    "Contrastive": {},
    "DynamicSoftMargin": {},
    "FastAP": {},
    "GeneralizedLifted": {},
    "Histogram": {},
    "InfoNCE": {},
    "IntraPairVariance": {},
    "LiftedStructure": {},
    "MarginLoss": {},
    "MultiSimilarity": {},
    "NCA": {},
    "NPair": {},
    "RankedList": {},
    "RecallSurrogate": {},
    "SmoothAP": {},
    "SupCon": {},
    "TripletMargin": {"margin": 0.2},
    "TupletMargin": {},
    "VICReg": {},
}
PROXIES = """
    AdaFace ArcFace CosFace CurricularFace NormalizedSoftmax P2SGrad ProxyAnchor ProxyNCA SoftTriple
    SphereFace SubCenterArcFace
""".split()
SIZES = {"num_classes": 4, "dim": 4}


def rows() -> dict[str, Row]:
    """Every row, by the name of its callable: a public name, or one with a method's behind a dot.

    They read files of the working directory, which `world` makes.
    """
    batch = {"embeddings": POINTS, "labels": LABELS}
    reference = tercet.References(POINTS, LABELS, torch.arange(N))
    tensors = {"labels": "tensor labels"}
    proxies = {"labels": "class numbers", "ids": "anything", "ref": "anything"}
    table: dict[str, Row] = {}
    chosen = dict.fromkeys(("positives", "negatives"), "choice")
    for name, options in MINERS.items():
        table[name] = _row(name, _mine, chosen if name in ("SemiHard", "EasyHard") else None, **options)
        miner = getattr(tercet, name)(**options)
        table[f"{name}.__call__"] = _method(lambda miner=miner: miner, "__call__", None, tensors, **batch)
    table["Miner.pairwise"] = _method(tercet.BatchHard, "pairwise", None, tensors, **batch)
    table["BatchAll.count"] = _method(lambda: tercet.BatchAll(0.2), "count", None, tensors, **batch)
    for name, options in HEADS.items():
        listed = name in ("Contrastive", "TripletMargin", "MarginLoss", "Circle")
        kinds = {"power": "count", "k": "counts"}
        table[name] = _row(name, _train_listed if listed else _train, kinds, **options)
        head = getattr(tercet, name)(**options)
        table[f"{name}.forward"] = Row(lambda head=head: (head.forward, dict(batch)), kinds=tensors)
    for name in PROXIES:
        table[name] = _row(name, _train, {"margin": "count"} if name == "SphereFace" else None, **SIZES)
        head = getattr(tercet, name)(**SIZES)
        table[f"{name}.forward"] = Row(lambda head=head: (head.forward, dict(batch)), kinds=proxies)
        table[f"{name}.logits"] = Row(
            lambda head=head: (head.logits, {"embeddings": POINTS}), kinds={"embeddings": "points"}
        )
        table[f"{name}.add_classes"] = _method(
            lambda name=name: getattr(tercet, name)(**SIZES),
            "add_classes",
            None,
            {"embeddings": "new proxies"},
            n=1,
        )
    head = tercet.SubCenterArcFace(**SIZES)
    table["SubCenterArcFace.outliers"] = Row(
        lambda: (head.outliers, dict(batch)), kinds={"labels": "class numbers", "angle": "real"}
    )
    table |= {
        "describe": _row("describe", None, {**tensors, "ref": "columns"}, **batch, mined=MINED),
        "evaluate": _row(
            "evaluate",
            str,
            {**_PROTOCOL, "k": "counts", **dict.fromkeys(("catalog", "out", "embedding"), "anything")},
            **batch,
            k=[1, 2],
        ),
        **{
            name: _row(name, None, _PROTOCOL, **batch)
            for name in ("map_at_r", "r_precision", "mrr", "mean_inp", "global_average_precision")
        },
        **{
            name: _row(name, None, {**_PROTOCOL, "k": "counts"}, **batch, k=[1, 2])
            for name in ("recall_at_k", "precision_at_k", "mean_average_precision", "ndcg")
        },
        "verification": _row("verification", str, _PROTOCOL, embeddings=POINTS, labels=LABELS, far=0.5),
        "clustering": _row(
            "clustering",
            str,
            _PROTOCOL,
            embeddings=POINTS,
            labels=LABELS,
            clusters=2,
            restarts=1,
        ),
        "geometry": _row(
            "geometry", str, {"labels": "labels of rows"}, embeddings=POINTS, labels=LABELS, k=1
        ),
        "few_shot": _row(
            "few_shot",
            None,
            _PROTOCOL,
            embeddings=POINTS,
            labels=LABELS,
            ways=2,
            queries=1,
            episodes=2,
        ),
        "cmc": _row("cmc", None, {**_PROTOCOL, "k": "count"}, **batch, k=2),
        "nearest": _row(
            "nearest",
            None,
            {
                **dict.fromkeys(("queries", "columns"), "points"),
                **dict.fromkeys(("column_labels", "column_groups", "column_ids", "ids"), "labels of rows"),
                **dict.fromkeys(("exclude", "nan", "backend"), "choice"),
                "labels": "labels of rows",
                "memory": "count",
                "device": "object",
                "min_recall": "real",
            },
            queries=POINTS,
            k=2,
            labels=LABELS,
            groups=LABELS,
            ids=LABELS,
            exclude=("class", "group", "id"),
        ),
        "Neighbors": _row(
            "Neighbors",
            kinds=dict.fromkeys(("rows", "distances", "recall"), "anything"),
            rows=LABELS.numpy()[:, None],
            distances=POINTS.numpy()[:, :1],
        ),
        "score_at_top_k": _row(
            "score_at_top_k",
            None,
            {"ref": "columns", "embeddings": "points"},
            embeddings=POINTS,
            triplets=MINED,
        ),
        "similarity_precision": _row(
            "similarity_precision",
            None,
            {"embeddings": "points", "ref": "columns"},
            embeddings=POINTS,
            triplets=MINED,
        ),
        "SignalToNoise": _row("SignalToNoise"),
        "EmbeddingPenalty": _row("EmbeddingPenalty", _train),
        "EmbeddingPenalty.forward": _method(
            tercet.EmbeddingPenalty, "forward", None, {"labels": "anything", "mined": "anything"}, **batch
        ),
        "Sum": _row(
            "Sum",
            _train,
            {"heads": "anything", "weights": "anything"},
            heads=[tercet.SupCon(), tercet.InfoNCE()],
            weights=[1.0, 2.0],
        ),
        "Sum.forward": _method(
            lambda: tercet.Sum([tercet.SupCon(), tercet.InfoNCE()]), "forward", None, tensors, **batch
        ),
        "Mahalanobis": _row("Mahalanobis", kinds={"L": "object"}, L=torch.eye(4)),
        "Miner": _row("Miner"),
        "CrossGroup": _row("CrossGroup"),
        "SameLabel": _row("SameLabel"),
        "Ignore": _row(
            "Ignore",
            kinds={"negatives": "choice", "positives": "choice"},
            negatives="same",
            positives="other",
        ),
        "PairTable": _row(
            "PairTable",
            kinds=dict.fromkeys(("positive", "negative"), "object"),
            positive=~torch.eye(N).bool(),
        ),
        "PairFunction": _row(
            "PairFunction", kinds={"function": "callable"}, function=tercet.SameLabel().sides
        ),
        "SharedLabel": _row("SharedLabel"),
        "Graded": _row(
            "Graded",
            kinds={"positive": "real", "negative": "real", "relevance": "choice"},
            positive=0.5,
            negative=0.1,
        ),
        "CrossBatchMemory": _row(
            "CrossBatchMemory",
            lambda memory: memory.update(POINTS, LABELS),
            {"dtype": "object"},
            size=16,
            dim=4,
        ),
        "CrossBatchMemory.update": _method(
            lambda: tercet.CrossBatchMemory(16, 4), "update", None, tensors, **batch
        ),
        "CrossBatchMemory.columns": _method(
            lambda: tercet.CrossBatchMemory(16, 4), "columns", None, {"batch": "ref"}, batch=reference
        ),
        "References": _row(
            "References", kinds=dict.fromkeys(("embeddings", "labels", "ids"), "anything"), **batch
        ),
        "Triplets": _row(
            "Triplets",
            kinds=dict.fromkeys(("anchor", "positive", "negative"), "anything"),
            anchor=MINED[0],
            positive=MINED[1],
            negative=MINED[2],
        ),
        "Triplets.interleaved": Row(lambda: (tercet.Triplets.interleaved, {"count": 3})),
        "Pairs": _row(
            "Pairs",
            kinds=dict.fromkeys(("pos_anchor", "positive", "neg_anchor", "negative"), "anything"),
            pos_anchor=MINED[0],
            positive=MINED[1],
            neg_anchor=MINED[0],
            negative=MINED[2],
        ),
        "LabeledPairs": _row(
            "LabeledPairs",
            kinds=dict.fromkeys(("first", "second", "same"), "anything"),
            first=MINED[0],
            second=MINED[1],
            same=MINED[0],
        ),
        "LabeledPairs.of": Row(
            lambda: (
                tercet.LabeledPairs.of,
                {"pairs": tercet.Pairs(*(m.numpy() for m in (*MINED, MINED[0])))},
            ),
            kinds={"pairs": "object"},
        ),
        "MinedBatch": _row(
            "MinedBatch",
            kinds=dict.fromkeys(("embeddings", "labels", "mined", "stats"), "anything"),
            **batch,
            mined=MINED,
            stats={},
        ),
        "TripletBatch": _row(
            "TripletBatch",
            kinds=dict.fromkeys(("images", "triplets", "labels", "rows"), "anything"),
            images=POINTS,
            triplets=tercet.Triplets(*MINED),
            labels=LABELS,
            rows=LABELS,
        ),
        "TripletBatch.to": _method(
            lambda: tercet.TripletBatch(POINTS, tercet.Triplets(*MINED), LABELS, LABELS),
            "to",
            None,
            {"device": "object"},
            device="cpu",
        ),
        "Manifest": Row(lambda: (lambda: tercet.read_manifest("m.parquet", "photos"), {})),
        "Manifest.__getitem__": _method(
            lambda: tercet.read_manifest("m.parquet", "photos"), "__getitem__", index=0
        ),
        "read_manifest": _row("read_manifest", len, path="m.parquet"),
        "write_manifest": Row(
            lambda: (
                tercet.write_manifest,
                {
                    "path": _new(".parquet"),
                    "triplets": tercet.Triplets(*(m.numpy() for m in MINED)),
                    "catalog": tercet.scan_folder("photos"),
                },
            ),
            kinds={
                "path": "target",
                "triplets": "mined",
                "catalog": "object",
                "path_prefix": "text",
                "provenance": "mapping",
            },
            dear=4,
        ),
        "read_catalog": _row(
            "read_catalog",
            len,
            {"path_column": "text", "label_column": "text", "groups": "texts"},
            path="t.csv",
        ),
        "scan_folder": _row("scan_folder", len, {"root": "source", "suffixes": "texts"}, root="photos"),
        "Catalog": _row(
            "Catalog",
            len,
            {
                "paths": "object",
                "labels": "labels of rows",
                "classes": "object",
                "groups": "object",
                "root": "folder or None",
                "left_out": "anything",
            },
            paths=[f"{n}.jpg" for n in range(N)],
            labels=LABELS.numpy(),
            classes=[*"abcd"],
        ),
        "Catalog.file": _method(lambda: tercet.scan_folder("photos"), "file", row=0),
        "Catalog.select": _method(lambda: tercet.scan_folder("photos"), "select", len, rows=[0, 1]),
        "Catalog.to_pandas": _method(lambda: tercet.scan_folder("photos"), "to_pandas", len),
        "Catalog.write": Row(
            lambda: (tercet.scan_folder("photos").write, {"path": _new(".csv")}),
            kinds={"path": "target"},
            dear=2,
        ),
        "RandomTriplets": _row("RandomTriplets", _read, labels=LABELS),
        "RandomTriplets.__getitem__": _method(lambda: tercet.RandomTriplets(LABELS), "__getitem__", index=0),
        "RandomPairs": _row("RandomPairs", _read, labels=LABELS),
        "RandomPairs.__getitem__": _method(lambda: tercet.RandomPairs(LABELS), "__getitem__", index=0),
        "DeepRankingTriplets": _row(
            "DeepRankingTriplets",
            _read,
            {"relevance": "object"},
            labels=np.arange(N) // 4,
            relevance=tercet.TeacherRelevance(POINTS.numpy()),
            count=5,
        ),
        "DeepRankingTriplets.__getitem__": _method(
            lambda: tercet.DeepRankingTriplets(np.arange(N) // 4, tercet.TeacherRelevance(POINTS.numpy()), 5),
            "__getitem__",
            index=0,
        ),
        "TeacherRelevance": _row(
            "TeacherRelevance", len, {"embeddings": "points"}, embeddings=POINTS.numpy()
        ),
        "FolderRelevance": _row(
            "FolderRelevance", len, {"paths": "object"}, paths=["a/b/c.jpg", "a/d/c.jpg"]
        ),
        "FunctionRelevance": _row(
            "FunctionRelevance", None, {"function": "callable"}, function=lambda i, j: 0.5
        ),
        "TableRelevance": _row(
            "TableRelevance", None, {"i": "object", "j": "object", "r": "object"}, i=[0], j=[1], r=[0.5]
        ),
        "TableRelevance.read": Row(lambda: (tercet.TableRelevance.read, {"path": "relevance.csv"})),
        "ReservoirTriplets": _row(
            "ReservoirTriplets",
            lambda r: r.add(7, 0, POINTS[0].numpy()),
            {"relevance": "callable or None"},
            capacity=4,
        ),
        "ReservoirTriplets.add": _method(
            _reservoir,
            "add",
            lambda kept: None,
            {"key": "count", "label": "anything", "features": "points", "total": "real"},
            key=99,
            label=0,
            features=np.ones(4),
        ),
        "ReservoirTriplets.triplets": _method(_reservoir, "triplets", n=3),
        "train_validation_split": _row("train_validation_split", labels=LABELS, fraction=0.5),
        "PKSampler": _row(
            "PKSampler",
            _deal,
            {
                "epoch_length": "epoch length",
                "short_supers": "choice",
                "pure_groups": "groups",
                "spread_pairs": "anything",
                **dict.fromkeys(
                    ("class_weights", "group_shares", "confusion", "confusion_share"), "anything"
                ),
            },
            labels=LABELS,
            p=2,
            k=2,
        ),
        "ShuffledSampler": _row(
            "ShuffledSampler", lambda s: (len(s), s.state_at(0, 0), next(iter(s), None)), {"n": "size"}, n=N
        ),
        "AnchorSampler": _row(
            "AnchorSampler",
            _deal,
            {"triplets": "object"},
            triplets=tercet.RandomTriplets(LABELS),
            anchors=4,
            per_class=2,
            labels=LABELS,
        ),
        "predict_yield": _row(
            "predict_yield", None, None, 3, labels=np.arange(64) // 8, p=2, k=2, images_per_shard=16
        ),
        "pk_batched": _row(
            "pk_batched", lambda stage: list(stage(_samples())), {"label": "text", "cap": "count"}, p=2, k=2
        ),
        "deep_ranking_batched": _row(
            "deep_ranking_batched",
            lambda stage: list(stage(_samples())),
            {"features": "callable", "label": "text", "cap": "real"},
            count=2,
            features=lambda sample: np.ones(2),
            capacity=4,
        ),
        "KeyedTransform": _row(
            "KeyedTransform",
            lambda augment: augment(np.zeros((4, 4, 3), np.uint8), epoch=0, sample=0),
            {"transform": "callable"},
            transform=lambda image, rng: image,
        ),
        "ImageDataset": _row(
            "ImageDataset", lambda data: data[0], {"catalog": "object"}, catalog=tercet.scan_folder("photos")
        ),
        "ImageDataset.__getitem__": _method(
            lambda: tercet.ImageDataset(tercet.scan_folder("photos")), "__getitem__", row=0
        ),
        "ImageDataset.set_epoch": _method(
            lambda: tercet.ImageDataset(tercet.scan_folder("photos")), "set_epoch", epoch=0
        ),
        "TripletDataset": _row(
            "TripletDataset",
            lambda data: data[0],
            {"manifest": "object", "catalog": "object"},
            manifest=tercet.read_manifest("m.parquet", "photos"),
        ),
        "TripletDataset.__getitem__": _method(
            lambda: tercet.TripletDataset(tercet.read_manifest("m.parquet", "photos")), "__getitem__", index=0
        ),
        "TripletDataset.set_epoch": _method(
            lambda: tercet.TripletDataset(tercet.read_manifest("m.parquet", "photos")), "set_epoch", epoch=0
        ),
        "PairBatch": _row(
            "PairBatch",
            kinds=dict.fromkeys(("images", "pairs", "labels", "rows"), "anything"),
            images=POINTS,
            pairs=tercet.Pairs(*MINED, MINED[0]),
            labels=LABELS,
            rows=LABELS,
        ),
        "PairDataset": _row(
            "PairDataset",
            lambda data: data[0],
            {"manifest": "object", "catalog": "object"},
            manifest=tercet.RandomPairs(np.arange(N) // 2),
            catalog=tercet.scan_folder("photos"),
        ),
        "PairDataset.__getitem__": _method(
            lambda: tercet.PairDataset(
                tercet.RandomPairs(np.arange(N) // 2), catalog=tercet.scan_folder("photos")
            ),
            "__getitem__",
            index=0,
        ),
        "write_shards": Row(
            lambda: (
                tercet.write_shards,
                {"folder": _new(), "catalog": tercet.scan_folder("photos"), "workers": 1},
            ),
            kinds={"folder": "target", "catalog": "object", "split": "text"},
            dear=8,
        ),
        "ShardIndex": _row(
            "ShardIndex",
            len,
            {"tars": "source", "split": "text", "image": "text", "label": "text"},
            2,
            tars="shards",
        ),
        "ShardIndex.read": _method(lambda: tercet.ShardIndex("shards"), "read", dear=2, rows=[0]),
        "ShardIndex.file": _method(lambda: tercet.ShardIndex("shards"), "file", dear=2, row=0),
        "PKStream": _row(
            "PKStream",
            lambda stream: next(iter(stream)),
            {"shards": "source", "label": "text", "image": "text", "split": "text", "cap": "count"},
            8,
            shards="shards",
            p=2,
            k=2,
            label="cls",
            steps=2,
        ),
        "EmbeddingHead.forward": Row(
            lambda: (tercet.EmbeddingHead(4, 2).forward, {"features": POINTS}), kinds={"features": "floats"}
        ),
        "DeepRankingNet.forward": Row(
            lambda: (_NET.forward, {"images": torch.ones(2, 3, 32, 32)}), kinds={"images": "floats"}, dear=4
        ),
        "EmbeddingHead": _row(
            "EmbeddingHead", lambda head: head(torch.ones(2, 4)), in_features=4, out_features=2
        ),
        "DeepRankingNet": _row(
            "DeepRankingNet",
            None,
            {"backbone": "object", "image_size": "count"},
            8,
            backbone=torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
            image_size=32,
            embedding_size=4,
            filters=2,
            backbone_features=3,
        ),
        "MiningLoader": _row(
            "MiningLoader",
            lambda loader: list(loader),
            {"loader": "batches", "model": "callable", "miner": "callable", "device": "object"},
            loader=[(POINTS, LABELS)],
            model=torch.nn.Identity(),
            miner=tercet.BatchHard(),
        ),
        "MiningLoader.load_state_dict": _method(
            lambda: tercet.MiningLoader(_Stateful(), torch.nn.Identity(), tercet.BatchHard()),
            "load_state_dict",
            state={"loader": {}, "step": 0},
        ),
        "MiningLoader.set_epoch": _method(
            lambda: tercet.MiningLoader(
                tercet.PKSampler(LABELS, 2, 2), torch.nn.Identity(), tercet.BatchHard()
            ),
            "set_epoch",
            epoch=0,
        ),
        "Monitor": _row(
            "Monitor",
            lambda monitor: monitor(POINTS, LABELS, MINED),
            {
                "to": "target",
                **dict.fromkeys(("collapse", "active", "growth"), "real"),
                "patience": "count",
                "table": "flag",
            },
        ),
        "Monitor.__call__": _method(
            tercet.Monitor,
            "__call__",
            None,
            {**tensors, "ref": "columns", "loss": "loss"},
            **batch,
            mined=MINED,
        ),
        "Monitor.load_state_dict": _method(
            tercet.Monitor, "load_state_dict", state=tercet.Monitor().state_dict()
        ),
        "Monitor.callback": _method(tercet.Monitor, "callback"),
        "Monitor.close": _method(tercet.Monitor, "close"),
        "gather": _row("gather", None, {**tensors, "embeddings": "points"}, **batch),
        "plot_similarities": Row(
            lambda: (
                tercet.plot_similarities,
                {"path": _new(".png"), "embeddings": {"random": POINTS}, "labels": LABELS},
            ),
            kinds={"path": "target", "embeddings": "object", "labels": "labels of rows"},
            dear=20,
        ),
        "embed": Row(
            lambda: (
                tercet.embed,
                {"model": _embedder, "data": tercet.scan_folder("photos"), "out": _new(".npy"), "size": 4},
            ),
            len,
            {
                "model": "callable",
                "data": "object",
                "out": "target",
                "device": "object",
                "dtype": "choice",
                "precision": "choice",
                "compile": "dear flag",
                "engine": "choice",
                "processes": "count",
                "views": "object",
                "key": "text",
            },
            dear=20,
        ),
        "read_embeddings": _row("read_embeddings", len, path="e.npy"),
        "Embeddings": _row(
            "Embeddings",
            kinds=dict.fromkeys(("array", "catalog", "facts", "computed"), "anything"),
            array=POINTS.numpy(),
            catalog=None,
            facts={},
        ),
        "mine_hard_triplets": _row(
            "mine_hard_triplets",
            lambda mined: (mined.triplets, str(mined.report)),
            {
                "embeddings": "object",
                "labels": "labels of rows",
                "ids": "groups",
                **dict.fromkeys(("positives", "ranks", "clusters", "teacher", "verdicts"), "object"),
                **dict.fromkeys(("strategy", "reference", "backend", "engine"), "choice"),
                **dict.fromkeys(_REALS_OF_MINING, "real"),
                **dict.fromkeys(("per_class", "reserve", "memory", "processes"), "count"),
                "work": "target",
                "anchors": "index",
                "group_negatives": "flag",
            },
            dear=4,
            embeddings=POINTS,
            labels=LABELS,
        ),
        "Remining": Row(
            lambda: (tercet.Remining, {**_remined(), "folder": _new()}),
            lambda remining: remining.state_dict(),
            {
                "model": "callable",
                "data": "object",
                "folder": "target",
                **dict.fromkeys(("parts", "keep"), "count"),
                **dict.fromkeys(("stale", "patience"), "real"),
                **dict.fromkeys(("embedding", "mining"), "object"),
                "beside": "choice",
            },
        ),
        "Remining.batches": _method(
            lambda: tercet.Remining(**_remined(), folder=_new()),
            "batches",
            len,
            {"loader": "callable"},
            loader=list,
        ),
        "Remining.serve": _method(_served, "serve", steps=2),
        "Remining.load_state_dict": Row(
            lambda: (
                (remining := tercet.Remining(**_remined(), folder=_new())).load_state_dict,
                {"state": remining.state_dict()},
            )
        ),
        "Remining.callback": _method(lambda: tercet.Remining(**_remined(), folder=_new()), "callback"),
        "suspected_labels": _row(
            "suspected_labels",
            None,
            {
                "embeddings": "object",
                "labels": "labels of rows",
                "ids": "groups",
                "share": "real",
                "memory": "count",
            },
            dear=4,
            embeddings=POINTS,
            labels=LABELS,
        ),
        "suspects": _row(
            "suspects",
            lambda found: (found.verdicts, found.of("label").reason, repr(found)),
            {
                "embeddings": "object",
                "labels": "labels of rows",
                "catalog": "object",
                "test": "index",
                "copy_share": "real",
                "isolated": "real",
                "distance": "choice",
                "memory": "count",
            },
            dear=8,
            embeddings=POINTS,
            labels=LABELS,
        ),
        "Suspects": _row(
            "Suspects", kinds=dict.fromkeys(_SUSPECT_FIELDS, "anything"), **dict.fromkeys(_SUSPECT_FIELDS[:6])
        ),
        "Suspects.of": _method(_suspects, "of", None, {"kind": "choice"}, kind="label"),
        "Suspects.write": Row(lambda: (_suspects().write, {"path": _new(".csv")}), kinds={"path": "target"}),
        "inspect": Row(
            lambda: (
                tercet.inspect,
                {"path": _new(".html"), "embeddings": POINTS, "catalog": tercet.scan_folder("photos")},
            ),
            kinds={
                "path": "target",
                "embeddings": "object",
                "labels": "labels of rows",
                "catalog": "object",
                "mined": "object",
                "verdicts": "object",
                "test": "index",
                "images": "callable or None",
                "most": "count",
                "layout": "choice",
                "thumbnail": "count",
                "embed_all": "flag",
                "title": "text",
                "distance": "choice",
                "atlas": "target",
                "memory": "count",
            },
            dear=20,
        ),
        "MinedTriplets": _row(
            "MinedTriplets",
            kinds=dict.fromkeys(_MINED_FIELDS, "anything"),
            **dict.fromkeys(_MINED_FIELDS),
        ),
        "Verdicts": _row(
            "Verdicts", kinds=dict.fromkeys(_VERDICT_FIELDS, "anything"), **dict.fromkeys(_VERDICT_FIELDS)
        ),
        "write_verdicts": Row(
            lambda: (
                tercet.write_verdicts,
                {"path": _new(".csv"), "verdicts": _verdicts(), "catalog": tercet.scan_folder("photos")},
            ),
            kinds={"path": "target", "verdicts": "object", "catalog": "object"},
        ),
        "read_verdicts": Row(
            lambda: (tercet.read_verdicts, {"path": "v.csv", "catalog": tercet.scan_folder("photos")}),
            kinds={"catalog": "object"},
        ),
        "write_mined_table": Row(
            lambda: (
                tercet.write_mined_table,
                {
                    "path": _new(".csv"),
                    "mined": tercet.mine_hard_triplets(POINTS, LABELS),
                    "catalog": tercet.scan_folder("photos"),
                },
            ),
            kinds={"path": "target", "mined": "object", "catalog": "object"},
        ),
        "cached_backward": _row(
            "cached_backward",
            None,
            {
                "ref": "gathered",
                "model": "callable",
                "chunks": "object",
                "head": "callable",
                "miner": "callable or None",
                "backward": "callable",
                "device": "object",
            },
            model=torch.nn.Linear(4, 2),
            chunks=[(POINTS, LABELS)],
            head=tercet.Contrastive(),
        ),
    }
    samplers = {
        "PKSampler": lambda: tercet.PKSampler(LABELS, 2, 2),
        "ShuffledSampler": lambda: tercet.ShuffledSampler(N),
        "AnchorSampler": lambda: tercet.AnchorSampler(tercet.RandomTriplets(LABELS), 2),
        "PKStream": lambda: tercet.PKStream("shards", 2, 2, steps=2),
    }
    for name, make in samplers.items():
        dear = 8 if name == "PKStream" else 1
        table[f"{name}.set_epoch"] = _method(make, "set_epoch", dear=dear, epoch=0, step=0)
        table[f"{name}.state_at"] = _method(make, "state_at", dear=dear, epoch=0, step=0)
        table[f"{name}.load_state_dict"] = _method(
            make, "load_state_dict", dear=dear, state=make().state_at(0, 0)
        )
        if hasattr(getattr(tercet, name), "batch"):
            table[f"{name}.batch"] = _method(make, "batch", dear=dear, epoch=0, step=0)
    for name in ("SameLabel", "SharedLabel", "CrossGroup", "Graded", "Ignore", "PairTable", "PairFunction"):
        table[f"{name}.check"] = _checked_labels(name)
    return table


class _Stateful(list):
    """A loader with a state, as torchdata's has."""

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def _checked_labels(name: str) -> Row:
    """How a relation reads labels; the other arguments only our own code gives."""
    made = {
        "Graded": lambda: tercet.Graded(0.5, 0.1),
        "Ignore": lambda: tercet.Ignore(negatives="same"),
        "PairTable": lambda: tercet.PairTable(torch.eye(N).bool()),
        "PairFunction": lambda: tercet.PairFunction(tercet.SameLabel().sides),
    }
    relation = made.get(name, getattr(tercet, name))()
    several = name not in ("SameLabel", "PairTable", "PairFunction")

    def check(labels: Any) -> torch.Tensor:
        return relation.check(name, "labels", labels, N, torch.device("cpu"))

    kinds = {"labels": "several labels" if several else "tensor labels"}
    if name == "PairFunction":
        kinds = {"labels": "one or several labels"}
    return Row(lambda: (check, {"labels": torch.ones(N, 2).long() if several else LABELS}), kinds=kinds)


def _verdicts() -> Any:
    return tercet.Verdicts(np.array([0]), np.array([2]), np.array([0.5]), np.array([0.1]), ["?"])


def _suspects() -> Any:
    catalog = tercet.scan_folder("photos")
    return tercet.suspects(POINTS, catalog=catalog)


def _embedder(images: Any) -> Any:
    return images.mean((2, 3))


def _remined() -> dict[str, Any]:
    return {"model": torch.nn.Identity(), "data": tercet.scan_folder("photos"), "every": 2}


def _served() -> tercet.Remining:
    """One that has nothing to mine: its only round is there."""
    remining = tercet.Remining(**_remined(), folder=(folder := _new()), beside="wait", patience=0)
    Path(folder, "000000.npz").touch()
    return remining


def _reservoir() -> Any:
    reservoir = tercet.ReservoirTriplets(4)
    for n in range(N):
        reservoir.add(n, n // 4, POINTS[n].numpy())
    return reservoir


def world(folder: Path) -> None:
    """The files that the rows read, and some that hold something else than their suffix says."""
    import os

    for n in range(N):
        file = folder / "photos" / str(n // 2) / f"{n}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P5 2 1 255 " + bytes([n, 255]))
    before = os.getcwd()
    os.chdir(folder)
    try:
        catalog = tercet.scan_folder("photos")
        catalog.write("t.csv")
        tercet.write_manifest("m.parquet", tercet.RandomTriplets(catalog.labels)[:], catalog)
        tercet.write_shards("shards", catalog, k=2, workers=1)
        tercet.embed(_embedder, catalog, "e.npy", size=4)
        tercet.write_verdicts("v.csv", _verdicts(), catalog)
    finally:
        os.chdir(before)
    (folder / "relevance.csv").write_text("i,j,r\n0,1,0.5\n")
    (folder / "new").mkdir()
    (folder / "empty").mkdir()
    for suffix in ("csv", "parquet", "txt", "arrow", "jsonl", "tar", "npy"):
        (folder / f"odd.{suffix}").write_bytes(bytes(range(256)) * 8)
