"""tercet decides which images meet: P×K batches, triplets, pairs and hard negatives for metric learning.

The public names load on first use (PEP 562), so `import tercet` is quick and leaves torch unloaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__: str  # stands in pyproject.toml; `__getattr__` reads it from there

if TYPE_CHECKING:
    from tercet.core.indices import Pairs as Pairs
    from tercet.core.indices import References as References
    from tercet.core.indices import Triplets as Triplets
    from tercet.data.catalog.catalog import Catalog as Catalog
    from tercet.data.catalog.catalog import read_catalog as read_catalog
    from tercet.data.catalog.catalog import scan_folder as scan_folder
    from tercet.data.catalog.split import train_validation_split as train_validation_split
    from tercet.data.datasets.image_dataset import ImageDataset as ImageDataset
    from tercet.data.datasets.triplet_dataset import PairBatch as PairBatch
    from tercet.data.datasets.triplet_dataset import PairDataset as PairDataset
    from tercet.data.datasets.triplet_dataset import TripletBatch as TripletBatch
    from tercet.data.datasets.triplet_dataset import TripletDataset as TripletDataset
    from tercet.data.manifests.manifest import Manifest as Manifest
    from tercet.data.manifests.manifest import read_manifest as read_manifest
    from tercet.data.manifests.writing import write_manifest as write_manifest
    from tercet.data.samplers.by_anchor import AnchorSampler as AnchorSampler
    from tercet.data.samplers.pk import PKSampler as PKSampler
    from tercet.data.samplers.pk import ShuffledSampler as ShuffledSampler
    from tercet.data.shards.index import ShardIndex as ShardIndex
    from tercet.data.shards.writing import write_shards as write_shards
    from tercet.data.streams.pk_stage import deep_ranking_batched as deep_ranking_batched
    from tercet.data.streams.pk_stage import pk_batched as pk_batched
    from tercet.data.streams.pk_stream import PKStream as PKStream
    from tercet.data.streams.yield_prediction import predict_yield as predict_yield
    from tercet.data.triplets.deep_ranking import DeepRankingTriplets as DeepRankingTriplets
    from tercet.data.triplets.pairs import LabeledPairs as LabeledPairs
    from tercet.data.triplets.pairs import RandomPairs as RandomPairs
    from tercet.data.triplets.random import RandomTriplets as RandomTriplets
    from tercet.data.triplets.relevance import FolderRelevance as FolderRelevance
    from tercet.data.triplets.relevance import FunctionRelevance as FunctionRelevance
    from tercet.data.triplets.relevance import TableRelevance as TableRelevance
    from tercet.data.triplets.relevance import TeacherRelevance as TeacherRelevance
    from tercet.data.triplets.reservoir import ReservoirTriplets as ReservoirTriplets
    from tercet.losses.histogram import FastAP as FastAP
    from tercet.losses.histogram import Histogram as Histogram
    from tercet.losses.listwise import InfoNCE as InfoNCE
    from tercet.losses.listwise import NPair as NPair
    from tercet.losses.listwise import SupCon as SupCon
    from tercet.losses.margin import MarginLoss as MarginLoss
    from tercet.losses.pair import Contrastive as Contrastive
    from tercet.losses.pair_weighting import Circle as Circle
    from tercet.losses.pair_weighting import LiftedStructure as LiftedStructure
    from tercet.losses.pair_weighting import MultiSimilarity as MultiSimilarity
    from tercet.losses.proxy import ProxyAnchor as ProxyAnchor
    from tercet.losses.proxy import ProxyNCA as ProxyNCA
    from tercet.losses.proxy import SoftTriple as SoftTriple
    from tercet.losses.softmax import ArcFace as ArcFace
    from tercet.losses.softmax import CosFace as CosFace
    from tercet.losses.softmax import NormalizedSoftmax as NormalizedSoftmax
    from tercet.losses.triplet import TripletMargin as TripletMargin
    from tercet.metrics.mining_stats import describe as describe
    from tercet.metrics.retrieval import map_at_r as map_at_r
    from tercet.metrics.retrieval import recall_at_k as recall_at_k
    from tercet.metrics.triplet_ranking import score_at_top_k as score_at_top_k
    from tercet.metrics.triplet_ranking import similarity_precision as similarity_precision
    from tercet.miners.distance_weighted import DistanceWeighted as DistanceWeighted
    from tercet.miners.hard import BatchAll as BatchAll
    from tercet.miners.hard import BatchHard as BatchHard
    from tercet.miners.hard import EasyPositive as EasyPositive
    from tercet.miners.hard import HardestN as HardestN
    from tercet.miners.hard import SemiHard as SemiHard
    from tercet.miners.pairs import MultiSimilarityMiner as MultiSimilarityMiner
    from tercet.miners.pairs import PairMargin as PairMargin
    from tercet.pairwise.relations import CrossGroup as CrossGroup
    from tercet.pairwise.relations import Graded as Graded
    from tercet.pairwise.relations import SameLabel as SameLabel
    from tercet.pairwise.relations import SharedLabel as SharedLabel
    from tercet.training import distributed as distributed
    from tercet.training.gradient_cache import cached_backward as cached_backward
    from tercet.training.loader import MinedBatch as MinedBatch
    from tercet.training.loader import MiningLoader as MiningLoader
    from tercet.training.memory import CrossBatchMemory as CrossBatchMemory
    from tercet.training.models import DeepRankingNet as DeepRankingNet
    from tercet.training.models import EmbeddingHead as EmbeddingHead

_HOME = {
    "AnchorSampler": "data.samplers.by_anchor",
    "Catalog": "data.catalog.catalog",
    "read_catalog": "data.catalog.catalog",
    "scan_folder": "data.catalog.catalog",
    "ImageDataset": "data.datasets.image_dataset",
    "cached_backward": "training.gradient_cache",
    "MinedBatch": "training.loader",
    "MiningLoader": "training.loader",
    "FastAP": "losses.histogram",
    "Histogram": "losses.histogram",
    "InfoNCE": "losses.listwise",
    "NPair": "losses.listwise",
    "SupCon": "losses.listwise",
    "MarginLoss": "losses.margin",
    "Contrastive": "losses.pair",
    "ProxyAnchor": "losses.proxy",
    "ProxyNCA": "losses.proxy",
    "SoftTriple": "losses.proxy",
    "ArcFace": "losses.softmax",
    "CosFace": "losses.softmax",
    "NormalizedSoftmax": "losses.softmax",
    "TripletMargin": "losses.triplet",
    "Circle": "losses.pair_weighting",
    "LiftedStructure": "losses.pair_weighting",
    "MultiSimilarity": "losses.pair_weighting",
    "Manifest": "data.manifests.manifest",
    "read_manifest": "data.manifests.manifest",
    "write_manifest": "data.manifests.writing",
    "CrossBatchMemory": "training.memory",
    "map_at_r": "metrics.retrieval",
    "recall_at_k": "metrics.retrieval",
    "BatchAll": "miners.hard",
    "BatchHard": "miners.hard",
    "EasyPositive": "miners.hard",
    "HardestN": "miners.hard",
    "SemiHard": "miners.hard",
    "DeepRankingNet": "training.models",
    "EmbeddingHead": "training.models",
    "MultiSimilarityMiner": "miners.pairs",
    "PairMargin": "miners.pairs",
    "PKStream": "data.streams.pk_stream",
    "score_at_top_k": "metrics.triplet_ranking",
    "similarity_precision": "metrics.triplet_ranking",
    "CrossGroup": "pairwise.relations",
    "Graded": "pairwise.relations",
    "SameLabel": "pairwise.relations",
    "SharedLabel": "pairwise.relations",
    "FolderRelevance": "data.triplets.relevance",
    "FunctionRelevance": "data.triplets.relevance",
    "TableRelevance": "data.triplets.relevance",
    "TeacherRelevance": "data.triplets.relevance",
    "PKSampler": "data.samplers.pk",
    "ShuffledSampler": "data.samplers.pk",
    "write_shards": "data.shards.writing",
    "ShardIndex": "data.shards.index",
    "describe": "metrics.mining_stats",
    "predict_yield": "data.streams.yield_prediction",
    "deep_ranking_batched": "data.streams.pk_stage",
    "pk_batched": "data.streams.pk_stage",
    "PairBatch": "data.datasets.triplet_dataset",
    "PairDataset": "data.datasets.triplet_dataset",
    "TripletBatch": "data.datasets.triplet_dataset",
    "TripletDataset": "data.datasets.triplet_dataset",
    "DeepRankingTriplets": "data.triplets.deep_ranking",
    "LabeledPairs": "data.triplets.pairs",
    "RandomPairs": "data.triplets.pairs",
    "RandomTriplets": "data.triplets.random",
    "ReservoirTriplets": "data.triplets.reservoir",
    "train_validation_split": "data.catalog.split",
    "Pairs": "core.indices",
    "References": "core.indices",
    "Triplets": "core.indices",
    "DistanceWeighted": "miners.distance_weighted",
}

_MODULES = ("distributed",)  # whose names are written in full, `tercet.training.distributed.gather`

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("tercet")
    if name in _MODULES:
        return import_module(f"tercet.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    value = getattr(import_module(f"tercet.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
