import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from tercet import CrossGroup, nearest
from tercet.neighbors.faiss import recall_of
from tests.helpers import points, refusal_of

KINDS = ["faiss-ivf", "faiss-hnsw"]


def test_it_is_not_imported_without_being_asked_for():
    code = "import sys, tercet; tercet.nearest; print('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    said = refusal_of(nearest, points(9), k=1, backend="faiss-ivf")
    assert said == (
        "nearest(backend='faiss-ivf'): expected FAISS, which is not installed; pip install 'tercet[faiss]'"
    )


def test_recall_counts_what_is_as_near():
    none = math.inf
    exact = np.array([[1.0, 2.0, 2.0], [3.0, none, none], [none, none, none]])
    assert recall_of(exact, exact) == 1.0
    assert recall_of(exact, np.array([[1.0, 2.0, 2.5], [3.0, none, none], [none, none, none]])) == 0.75
    assert recall_of(exact, np.full((3, 3), none)) == 0.0
    assert recall_of(exact[2:], exact[2:]) == 1.0


class TestWithTheLibrary:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("faiss")

    @pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_recall_is_measured_and_reached(self, kind, distance):
        x, labels = points(3000, 16), torch.arange(3000) % 300
        asked = {"k": 5, "labels": labels, "exclude": ("self", "class"), "distance": distance}
        exact = nearest(x, **asked)
        assert exact.recall == 1.0
        before = 0.0
        for least in (0.5, 0.99):
            found = nearest(x, **asked, backend=kind, min_recall=least)
            true = recall_of(exact.distances, found.distances)
            assert found.recall >= max(least, before)
            assert abs(found.recall - true) < 0.03  # of 1,000 queries, and of all
            assert (labels[found.rows] != labels[:, None]).all()
            assert (np.diff(found.distances) >= 0).all()
            before = found.recall
        shared = found.rows == exact.rows
        np.testing.assert_array_equal(found.distances[shared], exact.distances[shared])

    @pytest.mark.parametrize("kind", KINDS)
    def test_queries_whose_nearest_are_left_out_are_searched_for_more(self, kind):
        """All but a few columns are of the class of the queries, or nearer duplicates of theirs."""
        x = torch.cat([points(2400, 8) / 100, points(30, 8, 1) + 5])
        labels = torch.cat([torch.zeros(2400), torch.arange(1, 31)]).long()
        asked = {"k": 40, "labels": labels, "exclude": "class", "rows": range(0, 2400, 300)}
        exact, found = nearest(x, **asked), nearest(x, **asked, backend=kind, min_recall=1.0)
        np.testing.assert_array_equal(exact.rows, found.rows)
        np.testing.assert_array_equal(exact.distances, found.distances)
        assert (found.rows[:, :30] >= 2400).all()
        assert (found.rows[:, 30:] == -1).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_duplicates_ids_groups_and_rows_of_nan(self, kind):
        x = points(200, 4).repeat(2, 1)
        x[[3, 203, 50]] = math.nan
        asked = {"k": 3, "exclude": ("self", "duplicates", "group", "id"), "nan": "skip"}
        asked |= {"groups": torch.arange(400) // 3, "ids": np.arange(400) % 100}
        exact, found = nearest(x, **asked), nearest(x, **asked, backend=kind, min_recall=1.0)
        np.testing.assert_array_equal(exact.distances, found.distances)
        assert (found.rows[3] == -1).all()
        assert not {3, 203, 50} & set(found.rows.ravel().tolist())

    def test_other_columns_and_few_of_them(self):
        x, y = points(5, 3), points(7, 3, 1).numpy().astype(np.float64)
        for kind in KINDS:
            found, exact = nearest(x, y, k=9, backend=kind, min_recall=1.0), nearest(x, y, k=9)
            np.testing.assert_array_equal(exact.rows, found.rows)
            assert found.distances.dtype == np.float64
            assert nearest(x, y[:0], k=2, backend=kind).rows.tolist() == [[-1, -1]] * 5

    def test_the_measured_recall_is_pickled_with_the_result(self):
        found = nearest(points(3000, 16), k=5, backend="faiss-ivf", min_recall=0.3)
        again = pickle.loads(pickle.dumps(found))
        assert again.recall == found.recall < 1.0
        rows, distances = again
        np.testing.assert_array_equal(rows, found.rows)
        np.testing.assert_array_equal(distances, found.distances)

    def test_a_recall_that_is_not_reached_is_refused_with_what_was(self, monkeypatch):
        from tercet.neighbors import faiss

        class Blind(faiss.FaissIndex):
            """Finds every second column alone."""

            def fetch(self, features, count, effort):
                found = super().fetch(features, count, effort)
                return found.masked_fill(found % 2 == 1, -1)

        monkeypatch.setattr(faiss, "FaissIndex", Blind)
        said = refusal_of(nearest, points(2000, 8), points(2000, 8, 1), k=1, backend="faiss-ivf")
        assert said.startswith(
            "nearest(min_recall=0.95): expected at most 0.4990, the recall of 1000 queries"
        )
        assert said.endswith('with effort 64; take backend="exact"')

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"distance": "hamming"}, "expected a Euclidean distance, cosine or dot for FAISS"),
            ({"memory": 100}, "nearest(memory=100): expected "),
            (
                {
                    "relation": CrossGroup(),
                    "exclude": "class",
                    "labels": torch.zeros(50, 2, dtype=torch.int64),
                },
                'expected exclude= of "self", "class" by equal labels',
            ),
            ({"exclude": "other classes", "labels": [1] * 50}, 'take backend="exact"'),
        ],
    )
    def test_what_the_index_cannot_do_is_refused(self, options, expected):
        assert expected in refusal_of(nearest, points(50), k=1, backend="faiss-ivf", **options)
