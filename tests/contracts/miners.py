"""The miners of the contract: how to make each, the loop it must equal, batches, and checks of the mined."""

import pytest
import torch

from tercet.core.indices import Triplets
from tercet.miners.batch_all import BatchAll
from tercet.miners.easy_hard import EasyHard
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tests.helpers import as_set, grid, points
from tests.oracles import triplets as reference

# One row an algorithm: how to make it, and the loop it must equal.
TRIPLET_MINERS = {
    "all": (BatchAll, reference.batch_all, {}),
    "all within a margin": (BatchAll, reference.batch_all, {"margin": 0.5}),
    "all, far beyond": (BatchAll, reference.batch_all, {"margin": -0.4}),
    "hard": (BatchHard, reference.batch_hard, {}),
    "semi-hard": (SemiHard, reference.semi_hard, {}),
    "semi-hard, wide": (SemiHard, reference.semi_hard, {"margin": 1.0}),
    "semi-hard, unbounded": (SemiHard, reference.semi_hard, {"margin": None}),
    "semi-hard or easiest": (SemiHard, reference.semi_hard, {"fallback": "easiest"}),
    "semi-hard, all": (SemiHard, reference.semi_hard, {"margin": 0.5, "negatives": "all"}),
    "semi-hard, all, unbounded": (SemiHard, reference.semi_hard, {"margin": None, "negatives": "all"}),
    "semi-hard, all, or easiest": (
        SemiHard,
        reference.semi_hard,
        {"margin": 0.3, "fallback": "easiest", "negatives": "all"},
    ),
    "easy positive": (EasyPositive, reference.easy_positive, {}),
    "easy positive, hard negative": (EasyPositive, reference.easy_positive, {"negative": "hard"}),
    "easy-hard": (EasyHard, reference.easy_hard, {}),
    "hard-easy": (EasyHard, reference.easy_hard, {"positives": "hard", "negatives": "easy"}),
    "semi-hard positive": (
        EasyHard,
        reference.easy_hard,
        {"positives": "semi_hard", "negatives": "hard", "negative_k": 2, "positive_k": 2, "margin": 0.8},
    ),
    "all-hard within ranges": (
        EasyHard,
        reference.easy_hard,
        {"positives": "all", "negatives": "hard", "negative_k": 2, "positive_range": (0.3, 1.45)}
        | {"negative_range": (0.25, None)},
    ),
    "two easy with all": (
        EasyHard,
        reference.easy_hard,
        {"positives": "easy", "negatives": "all", "positive_k": 2, "negative_range": (None, 1.3)},
    ),
    "hard-semi-hard, several": (
        EasyHard,
        reference.easy_hard,
        {"positives": "hard", "positive_k": 2, "negative_k": 3, "positive_range": (None, 1.4)},
    ),
    "three hardest": (HardestN, reference.hardest_n, {"k": 3}),
    "hardest but two": (HardestN, reference.hardest_n, {"k": 2, "skip": 2}),
}
PAIR_MINERS = {
    "multi-similarity": (MultiSimilarityMiner, reference.multi_similarity, {"epsilon": 0.1}),
    "multi-similarity, apart": (MultiSimilarityMiner, reference.multi_similarity, {"epsilon": -0.3}),
    "pair margin": (PairMargin, reference.pair_margin, {"pos_margin": 0.25, "neg_margin": 0.75}),
    "pair margin, all": (PairMargin, reference.pair_margin, {"pos_margin": -1.0, "neg_margin": 1e3}),
}
MINERS = {**TRIPLET_MINERS, **PAIR_MINERS}
DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_miner = pytest.mark.parametrize("name", TRIPLET_MINERS)


BATCHES = {
    "P × K": (points(12, 6), torch.arange(4).repeat_interleave(3)),
    "P ≠ K, shuffled": (points(15, 6, seed=1), torch.arange(15) % 5),
    "uneven positives per anchor": (points(11, 6, seed=2), torch.tensor([0] * 6 + [1] * 3 + [2, 3])),
    "singletons": (points(5, 6), torch.arange(5)),
    "one class only": (points(5, 6), torch.zeros(5).long()),
    "one positive pair and one negative pair": (points(3, 6), torch.tensor([0, 0, 1])),
    "one row": (points(1, 6), torch.zeros(1).long()),
    "empty": (points(0, 6), torch.zeros(0).long()),
    "two identical images": (points(6, 6)[[0, 0, 1, 2, 3, 4]], torch.tensor([0, 0, 1, 1, 0, 1])),
    "identical images of two classes": (points(6, 6)[[0, 1, 2, 0, 3, 4]], torch.tensor([0, 0, 0, 1, 1, 1])),
    "collapsed": (torch.ones(8, 3), torch.arange(8) % 2),
    "ties": (grid(14, 3), torch.arange(14) % 3),
    "near duplicates": (points(1, 6).repeat(8, 1) + 1e-3 * points(8, 6, seed=3), torch.arange(8) % 2),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


def check_valid(mined, labels, ref_labels=None):
    """int64 rows without gradient, sorted by anchor, none twice; right labels; no anchor with itself."""
    columns = labels if ref_labels is None else ref_labels
    a, p, n = mined
    assert isinstance(mined, Triplets)
    assert all(index.dtype == torch.int64 and not index.requires_grad for index in mined)
    assert len(a) == len(p) == len(n) == mined.count == len(as_set(mined))
    assert torch.equal(a, a.sort().values)
    assert (labels[a] == columns[p]).all()
    assert (labels[a] != columns[n]).all()
    assert ref_labels is not None or ((a != p) & (a != n)).all()


def check_equal(mined, expected):
    """The same set of tuples."""
    assert as_set(mined) == expected


def check_tile_invariant(mine, heights=(1, 2, 3, 5, 100)):
    """The same tensors, in the same order, at every tile height."""
    whole = mine(None)
    for height in heights:
        assert all(torch.equal(u, v) for u, v in zip(whole, mine(height), strict=True))


def check_permutation_equivariant(mine, embeddings, labels):
    """Mining shuffled rows and renaming them is mining the rows."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = mine(embeddings[order], labels[order])
    check_equal(Triplets(*(order[index] for index in shuffled)), as_set(mine(embeddings, labels)))


def expected_of(name, x, labels, distance="euclidean", ids=None, ref=None):
    _, oracle, options = MINERS[name]
    d = reference.distances(distance, x, None if ref is None else ref.embeddings)
    return oracle(d, *reference.relation(labels, ref and ref.labels, ids, ref and ref.ids), **options)


def make(name, **more):
    kind, _, options = MINERS[name]
    return kind(**options, **more)


def mined_on_a_card(miner, x, labels):
    """What a miner gives on a CUDA device, brought back."""
    mined = miner(x.cuda(), labels.cuda())
    assert all(index.is_cuda for index in mined)
    return type(mined)(*(index.cpu() for index in mined))


def as_sets(pairs):
    return tuple({(int(i), int(j)) for i, j in zip(a, b, strict=True)} for a, b in (pairs[:2], pairs[2:]))
