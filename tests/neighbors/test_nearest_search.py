"""A search that is prepared once gives in parts what it gives at once."""

import math

import numpy as np
import pytest
import torch

from tercet.core.checks import Refusal
from tercet.neighbors.nearest_search import NearestSearch, as_backend
from tercet.pairwise.budget import override
from tests.helpers import points

N = 300
LABELS = torch.arange(N) % 9


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"exclude": ("self", "class"), "labels": LABELS},
        {"exclude": ("self", "other classes"), "labels": LABELS},
        {"exclude": ("self", "duplicates", "group"), "groups": LABELS},
        {"rows": np.arange(N)[::-3].copy()},
        {"distance": "cosine", "nan": "skip"},
        {"backend": "faiss-ivf", "min_recall": 1.0, "exclude": "class", "labels": LABELS},
    ],
)
def test_parts_are_the_whole(asked):
    if "backend" in asked:
        pytest.importorskip("faiss")
    x = points(N, 5).repeat(2, 1)[:N]
    x[150:200] = x[:50]
    if "nan" in asked:
        x[[3, 290]] = math.nan
    with override(tile_bytes=2**13):
        whole = NearestSearch(x, k=4, **asked).found()
        search = NearestSearch(x, k=4, at_once=64, **asked)
        count = len(whole.rows)
        parts = [search.found(slice(first, first + 64)) for first in range(0, count, 64)]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
    np.testing.assert_array_equal(np.concatenate([part.distances for part in parts]), whole.distances)
    assert {part.recall for part in parts} == {search.recall} == {1.0}


def test_the_plan_is_that_of_as_many_queries_as_are_asked_for_at_once():
    x = points(N, 5)
    few, every = NearestSearch(x, k=4, at_once=10).plan, NearestSearch(x, k=4).plan
    assert few.block == 10
    assert few.bytes < every.bytes


def test_a_refusal_names_the_argument_and_no_caller():
    x = points(N, 5)
    x[7] = math.nan
    with pytest.raises(Refusal, match=r"^embeddings='1 of 300 rows, the first is row 7': expected finite"):
        NearestSearch(x, argument="embeddings")
    with pytest.raises(Refusal, match=r"^min_recall=0.5: expected a backend of FAISS"):
        as_backend("exact", 0.5)
    assert as_backend("faiss-hnsw", None) == ("faiss-hnsw", 0.95)
