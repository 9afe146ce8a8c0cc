"""The search inside of mining: FAISS, memory that is told before, and refusals under the miner's own name."""

import math

import numpy as np
import pytest
import torch

from tercet import Mahalanobis, mine_hard_triplets, suspected_labels
from tercet.offline.filters import Reason
from tercet.offline.mining_plan import plan_mining
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance
from tests.helpers import refusal_of, unchecked
from tests.offline.test_hard_negatives import check_whole, clustered

KINDS = ["faiss-ivf", "faiss-hnsw"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"memory": 1000}, "(memory=1000): expected "),
        ({"memory": 1000, "suspects": 0.1}, "(memory=1000): expected "),
        ({"memory": 0}, "(memory=0): expected a whole number of at least 1"),
        ({"distance": "euclidian"}, "(distance='euclidian'): expected one of "),
        ({"backend": "faiss"}, "(backend='faiss'): expected one of 'exact', 'faiss-ivf', 'faiss-hnsw'"),
        ({"min_recall": 0.9}, "(min_recall=0.9): expected a backend of FAISS: the exact search has recall 1"),
        ({"backend": "faiss-ivf", "min_recall": 2}, "(min_recall=2): expected a finite number from 0 to 1"),
    ],
)
def test_what_the_search_refuses_is_told_of_the_miner(options, sentence):
    x, labels = clustered()
    with unchecked():
        assert refusal_of(mine_hard_triplets, x, labels, **options).startswith(
            f"mine_hard_triplets{sentence}"
        )


def test_numbers_too_large_to_be_squared_are_told_of_the_embeddings():
    x, labels = clustered()
    x[17] = 1e30
    for call in (mine_hard_triplets, suspected_labels):
        said = refusal_of(call, x, labels, distance="euclidean")
        assert said.startswith(f"{call.__name__}(embeddings='1 of 240 rows, the first is row 17'): expected")
        assert "memory=1000" in refusal_of(call, clustered()[0], labels, memory=1000)


@pytest.mark.parametrize("last", [240, 10**6, 2**40])
def test_a_window_longer_than_the_collection_is_the_whole_of_it(last):
    x, labels = clustered()
    expected = mine_hard_triplets(x, labels, ranks=(1, 239), negatives=2)
    found = mine_hard_triplets(x, labels, ranks=(1, last), negatives=2)
    assert np.array_equal(found.negatives, expected.negatives)
    assert found.report.counts == expected.report.counts


def test_the_plan_is_told_before_and_kept_in_the_report(capfd):
    x, labels = clustered()
    report = mine_hard_triplets(x, labels, negatives=2, reserve=1, progress=True).report
    first = capfd.readouterr().err.splitlines()[0]
    assert first == str(report.plan)
    assert report.plan.pairs == report.pairs == 240 * 9
    assert report.as_dict()["plan"]["bytes"] == report.plan.bytes == sum(report.plan[3:])
    assert f"planned: {report.plan}" in str(report)
    few = mine_hard_triplets(x, labels, positives="hardest", anchors=[0, 1]).report.plan
    assert (few.pairs, few.searches, few.passes) == (2, 1, 1)
    mine_hard_triplets(x, labels)
    assert not capfd.readouterr().err


def test_a_plan_is_within_the_memory_that_the_search_may_take():
    x, classes = np.zeros((20_000, 128), np.float32), np.arange(20_000) // 8
    asked = {"depth": 100, "every_positive": True, "slots": 1}
    given = x, classes, np.arange(20_000), as_distance(None, "cosine")
    free = plan_mining(*given, **asked)
    tight = plan_mining(*given, **asked, memory=150 << 20)
    scores = 20_000 * 100 * 9
    assert tight.search <= (150 << 20) + scores
    assert tight.bytes < free.bytes
    assert tight.passes > free.passes
    indexed = plan_mining(*given, **asked, backend="faiss-ivf")
    assert indexed.index == 20_000 * (128 * 4 + 8)
    assert str(indexed).startswith(f"at most {sum(-(-size >> 20) for size in indexed[3:])} MiB")
    one = plan_mining(x[:1], classes[:1], np.arange(1), Mahalanobis(torch.eye(128)), **asked | {"depth": 1})
    assert (one.pairs, one.searches, one.result) == (0, 0, 0)


@pytest.mark.parametrize("depth", [3, 40])
def test_with_less_memory_the_collection_is_read_more_often_and_the_result_is_the_same(depth):
    x, labels = clustered(3000, 300)
    with override(tile_bytes=2**16, gathered_keys=2**12, gathered_numbers=2**12):
        free = mine_hard_triplets(x, labels, ranks=(1, depth))
        tight = mine_hard_triplets(x, labels, ranks=(1, depth), memory=900_000)
    assert tight.report.plan.passes > free.report.plan.passes == 1
    assert (tight.report.plan.searches > 1) == (depth == 40)  # else their result fits
    assert np.array_equal(tight.negatives, free.negatives)
    assert tight.report.counts == free.report.counts


class TestWithFaiss:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("faiss")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("distance", ["cosine", "euclidean"])
    def test_with_full_recall_it_is_the_exact_search(self, kind, distance):
        x, labels = clustered(600, 60)
        x[5] = math.nan
        options = {"negatives": 3, "margin": 0.01, "suspects": 0.05, "ranks": (1, 20), "distance": distance}
        exact = mine_hard_triplets(x, labels, **options)
        found = mine_hard_triplets(x, labels, **options, backend=kind, min_recall=1.0)
        assert np.array_equal(found.negatives, exact.negatives)
        assert np.array_equal(found.suspects.image, exact.suspects.image)
        assert found.report.counts == exact.report.counts
        assert (found.report.backend, found.report.recall) == (kind, 1.0)
        assert exact.report.backend == "exact"

    @pytest.mark.parametrize("kind", KINDS)
    def test_less_recall_is_told_and_no_law_is_broken(self, kind):
        """Every candidate is of another class, group and image, and each pair has all that it asks for."""
        x, labels = clustered(3000, 30, noise=2.0)
        groups, ids = np.arange(3000) % 7, np.arange(3000) // 2
        options = {"negatives": 5, "groups": groups, "ids": ids, "positives": "hardest", "ranks": (1, 30)}
        with override(found_candidates=30 * 800):
            found = mine_hard_triplets(x, labels, **options, backend=kind, min_recall=0.5)
        check_whole(found, labels)
        a, _, n = found.triplets
        assert (groups[a] != groups[n]).all()
        assert (ids[a] != ids[n]).all()
        assert len(found) == 5 * found.report.pairs
        assert (
            found.report.counts[Reason.BEHIND_WINDOW]
            == mine_hard_triplets(x, labels, **options).report.counts[Reason.BEHIND_WINDOW]
        )  # 30 candidates of each anchor, as many as of the exact search
        assert 0.5 <= found.report.recall <= 1.0
        assert f"{kind} found {found.report.recall:.2%} of the nearest" in str(found.report)
        assert found.report.as_dict()["recall"] == found.report.recall

    def test_the_index_is_built_once_for_all_blocks(self, monkeypatch):
        from tercet.neighbors import faiss

        built = []

        class Counted(faiss.FaissIndex):
            def __init__(self, *given):
                built.append(self)
                super().__init__(*given)

        monkeypatch.setattr(faiss, "FaissIndex", Counted)
        x, labels = clustered(600, 60)
        whole = mine_hard_triplets(x, labels, ranks=(1, 10), backend="faiss-ivf")
        with override(found_candidates=10 * 50):
            parts = mine_hard_triplets(x, labels, ranks=(1, 10), backend="faiss-ivf")
        assert len(built) == 2
        assert np.array_equal(whole.negatives, parts.negatives)

    def test_a_recall_that_is_not_reached_is_refused(self, monkeypatch):
        from tercet.neighbors import faiss

        class Blind(faiss.FaissIndex):
            """Finds every second column alone."""

            def fetch(self, features, count, effort):
                found = super().fetch(features, count, effort)
                return found.masked_fill(found % 2 == 1, -1)

        monkeypatch.setattr(faiss, "FaissIndex", Blind)
        x, labels = clustered(3000, 30, noise=2.0)
        said = refusal_of(mine_hard_triplets, x, labels, ranks=(1, 10), backend="faiss-ivf")
        assert said.startswith("mine_hard_triplets(min_recall=0.95): expected at most 0.")
        assert said.endswith('take backend="exact"')

    def test_a_distance_that_faiss_lacks_is_refused(self):
        x, labels = clustered()
        said = refusal_of(mine_hard_triplets, x, labels, distance="hamming", backend="faiss-ivf")
        assert said.startswith("mine_hard_triplets(distance=hamming): expected a Euclidean distance")
