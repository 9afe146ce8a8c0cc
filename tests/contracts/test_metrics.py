"""What every metric must do, one function a demand, and for each demand a metric that breaks it.

Adding a metric is adding a row to `METRICS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.metrics.mining_stats import describe
from tercet.metrics.retrieval import evaluate, map_at_r, recall_at_k
from tercet.metrics.triplet_ranking import score_at_top_k, similarity_precision
from tests.helpers import grid, points
from tests.oracles import figures
from tests.oracles import triplets as reference

DISTANCES = ("euclidean", "squared_euclidean", "cosine", "dot", "hamming")
HEIGHTS = (1, 7, 100)


@dataclass(frozen=True)
class Case:
    """Embeddings, and what a metric may ask about them.

    Args:
        x: float [n, d].
        labels: int64 [n].
        ids: int64 [n], which image each row is, or None.
        ref: the columns; None for the rows themselves.
        count: how many triplets are drawn.
    """

    x: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor | None = None
    ref: References | None = None
    count: int = 60

    @property
    def y(self):
        return self.x if self.ref is None else self.ref.embeddings

    @property
    def triplets(self):
        """Rows and columns at random; three different images where the columns are the rows."""
        rng, n, r = np.random.default_rng(0), len(self.x), len(self.y)
        if not n or not r:
            return Triplets(*np.empty((3, 0), dtype=np.int64))
        rows = np.stack([rng.integers(0, n, self.count), *rng.integers(0, r, (2, self.count))])
        if self.ref is None:
            rows = rows[:, (rows[0] != rows[1]) & (rows[0] != rows[2]) & (rows[1] != rows[2])]
        return Triplets(*np.ascontiguousarray(rows))

    @property
    def sides(self):
        """(positive, negative) pairs (row, column), without the same image."""
        if self.ref is None:
            return reference.relation(self.labels, ids=self.ids)
        return reference.relation(self.labels, self.ref.labels, self.ids, self.ref.ids)

    def to(self, dtype):
        ref = self.ref and self.ref._replace(embeddings=self.ref.embeddings.to(dtype))
        return replace(self, x=self.x.to(dtype), ref=ref)


def own(x, labels, **more):
    return Case(x, torch.as_tensor(labels), **more)


def against(x, labels, y, y_labels, ids=None, y_ids=None):
    return Case(x, labels, ids, References(y, y_labels, y_ids))


CASES = {
    "P × K, shuffled": own(points(20), torch.arange(20) % 5),
    "uneven, with singletons": own(points(17, seed=1), [0] * 7 + [1] * 5 + [2, 2, 3, 4, 5]),
    "ties": own(grid(25), torch.arange(25) % 3),
    "collapsed": own(torch.ones(9, 2), torch.arange(9) % 3),
    "duplicates": own(points(6, seed=2)[torch.arange(24) % 6], torch.arange(24) % 4),
    "near duplicates": own(points(6, seed=2)[torch.arange(24) % 6] + 1e-4 * points(24), torch.arange(24) % 4),
    "one class": own(points(5), torch.zeros(5).long()),
    "one row": own(points(1), torch.zeros(1).long()),
    "images that are there twice": own(points(16), torch.arange(16) % 4, ids=torch.arange(16) // 2),
    "references": against(points(8), torch.arange(8) % 3, points(15, seed=2), torch.arange(15) % 4),
    "references with ids": against(
        points(8),
        torch.arange(8) % 3,
        torch.cat([points(15, seed=2), points(8)]),
        torch.cat([torch.arange(15) % 2, torch.arange(8) % 3]),
        torch.arange(8),
        torch.arange(23) - 15,
    ),
    "no columns": against(points(3), torch.arange(3), points(0), torch.zeros(0).long()),
    "empty": own(points(0), torch.zeros(0).long()),
}
# Above these sizes the engine goes through classes in order, and keeps shortlists.
LARGE = {
    "ties of many rows": own(grid(520, 3), torch.arange(520) % 130),
    "few classes of many rows": own(points(520), torch.arange(520) % 3),
}
PLAIN = CASES["P × K, shuffled"]


@dataclass(frozen=True)
class Row:
    """A metric.

    Args:
        call: its figures, a dict of floats, of a case and the options `distance` and `tile_rows` if it has
            such.
        loop: the same figures by a loop, of a case, the distances as lists of lists, and `sides`.
        tiled: whether it takes `tile_rows`.
        rel: how near the loop it must come.
    """

    call: Callable
    loop: Callable
    tiled: bool = True
    rel: float = 1e-12

    def expected(self, case, distance="euclidean"):
        y = None if case.ref is None else case.y
        return self.loop(case, reference.distances(distance, case.x, y), case.sides)

    def heights(self):
        return [{}, *({"tile_rows": height} for height in HEIGHTS if self.tiled)]


def score_figures(score, name="value"):
    return {name: float(score), "queries": score.queries, "left out": score.left_out}


def triplet_figures(score):
    return {
        "value": float(score),
        "correct": score.correct,
        "counted": score.counted,
        "triplets": score.triplets,
    }


def of_queries(values, case, name="value"):
    return {name: figures.mean(values), "queries": len(values), "left out": len(case.x) - len(values)}


def recall_row(*ks):
    def call(case, **options):
        scores = recall_at_k(case.x, case.labels, ks, ids=case.ids, ref=case.ref, **options)
        return {key: v for k in ks for key, v in score_figures(scores[k], f"k = {k}").items()}

    def loop(case, d, sides):
        hits = figures.ranked_hits(d, *sides)
        found = {k: of_queries(figures.recall(hits, k), case, f"k = {k}") for k in ks}
        return {key: v for k in ks for key, v in found[k].items()}

    return Row(call, loop)


def evaluation_row(*ks):
    """Every figure of `evaluate`."""

    def call(case, **options):
        found = evaluate(case.x, case.labels, ks, ids=case.ids, ref=case.ref, **options)
        return {key: v for name, score in found.items() for key, v in score_figures(score, name).items()}

    def loop(case, d, sides):
        hits = figures.ranked_hits(d, *sides)
        values = {f"Recall@{k}": figures.recall(hits, k) for k in ks}
        values |= {"R-precision": figures.r_precision(hits), "MAP@R": figures.map_at_r(hits)}
        found = [of_queries(each, case, name) for name, each in values.items()]
        return {key: v for each in found for key, v in each.items()}

    return Row(call, loop)


def list_row(k, with_groups):
    """`score_at_top_k`, whose candidates are the images of the query's group, or all others."""

    def call(case, **options):
        ref = case.ref if case.ref is None or with_groups else case.ref._replace(labels=None)
        groups = case.labels if with_groups else None
        score = score_at_top_k(case.x, case.triplets, k, groups=groups, ids=case.ids, ref=ref, **options)
        return triplet_figures(score)

    def loop(case, d, sides):
        listed = sides[0] if with_groups else sides[0] | sides[1]
        lists = figures.by_row(listed, len(case.x))
        correct, counted = figures.score_by_loop(d, case.triplets, k, lists)
        total = case.triplets.count
        return {
            "value": 2 * correct - counted,
            "correct": correct,
            "counted": counted,
            "triplets": total,
        }

    return Row(call, loop)


def precision_loop(case, d, sides):
    correct, count = figures.precision_by_loop(d, case.triplets)
    share = correct / count if count else math.nan
    return {"value": share, "correct": correct, "counted": count, "triplets": count}


def described(case, **options):
    return describe(case.x, case.labels, case.triplets, ref=case.ref, margin=0.3, **options)


def describe_loop(case, d, sides):
    anchors, near, far, active = figures.mined_means(d, case.triplets, 0.3)
    return {
        "rows": len(case.x),
        "classes": len(set(case.labels.tolist())),
        "mined": case.triplets.count,
        "anchors": anchors / max(1, len(case.x)),
        "d_ap": near,
        "d_an": far,
        "active": active,
        "collapse": figures.collapse(reference.rows_of(case.x).tolist()),
    }


METRICS = {
    "Recall@1": recall_row(1),
    "Recall@k": recall_row(1, 2, 5, 1000),
    "MAP@R": Row(
        lambda case, **options: score_figures(
            map_at_r(case.x, case.labels, ids=case.ids, ref=case.ref, **options)
        ),
        lambda case, d, sides: of_queries(figures.map_at_r(figures.ranked_hits(d, *sides)), case),
    ),
    "evaluate, k of 1": evaluation_row(1),
    "evaluate, several k": evaluation_row(1, 2, 5, 30, 1000),
    "similarity precision": Row(
        lambda case, **options: triplet_figures(
            similarity_precision(case.x, case.triplets, ref=case.ref, **options)
        ),
        precision_loop,
        tiled=False,
    ),
    "score at top 3": list_row(3, with_groups=False),
    "score at top 3 of groups": list_row(3, with_groups=True),
    "describe": Row(described, describe_loop, tiled=False, rel=1e-5),
}


def check_equal(found, expected, rel=1e-12):
    """The same figures under the same names; NaN equals NaN."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        same = found[name] == value or (math.isnan(value) and math.isnan(found[name]))
        assert same or math.isclose(found[name], value, rel_tol=rel, abs_tol=rel), (name, found[name], value)


def equals_the_loop_at_every_tile_height(row):
    for case in CASES.values():
        for options in row.heights():
            check_equal(row.call(case, **options), row.expected(case), row.rel)


def equals_the_loop_on_many_rows(row):
    for case in LARGE.values():
        check_equal(row.call(case), row.expected(case), row.rel)


def equals_the_loop_under_every_distance(row):
    for distance in DISTANCES:
        case = replace(PLAIN, x=(PLAIN.x > 0).float() if distance == "hamming" else PLAIN.x)
        check_equal(row.call(case, distance=distance), row.expected(case, distance), row.rel)


def equals_the_loop_in_every_precision(row):
    for case in (PLAIN, CASES["references with ids"]):
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            rounded = case.to(dtype)
            check_equal(row.call(rounded), row.expected(rounded), row.rel)
            with torch.autocast("cpu", torch.bfloat16):
                check_equal(row.call(rounded), row.expected(rounded), row.rel)


def depends_on_no_order_of_rows(row):
    """Where no two distances are equal, so that no tie is broken by the row."""
    order = torch.randperm(len(PLAIN.x), generator=torch.Generator().manual_seed(1))
    place = order.argsort().numpy()

    class Moved(Case):
        @property
        def triplets(self):
            return Triplets(*(place[corner] for corner in PLAIN.triplets))

    check_equal(row.call(Moved(PLAIN.x[order], PLAIN.labels[order])), row.call(PLAIN), max(row.rel, 1e-12))


def leaves_the_embeddings_and_their_graph_alone(row):
    x = PLAIN.x.clone().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        found = row.call(replace(PLAIN, x=x))
    assert not saved  # no graph was built
    assert all(isinstance(value, (int, float)) for value in found.values())
    assert torch.equal(x.detach(), PLAIN.x)
    assert x.grad is None


DEMANDS = [
    equals_the_loop_at_every_tile_height,
    equals_the_loop_on_many_rows,
    equals_the_loop_under_every_distance,
    equals_the_loop_in_every_precision,
    depends_on_no_order_of_rows,
    leaves_the_embeddings_and_their_graph_alone,
]


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda demand: demand.__name__)
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric, demand):
    demand(METRICS[metric])


def broken(change):
    """Recall@1 and its counts, changed by a function of (figures, case, options)."""
    row = METRICS["Recall@1"]
    return replace(row, call=lambda case, **options: change(row.call(case, **options), case, options))


def graph_kept(found, case, options):
    with torch.enable_grad():
        return {**found, "kept": float((case.x * case.x).sum().detach())}


def scaled(found, case, options):
    case.x.data.mul_(1.5) if case.x.requires_grad else None
    return found


BY_HEIGHT, BY_PRECISION = equals_the_loop_at_every_tile_height, equals_the_loop_in_every_precision
UNTOUCHED = leaves_the_embeddings_and_their_graph_alone
WRONG = [
    (BY_HEIGHT, lambda f, c, o: {**f, "queries": f["queries"] + (c.ids is not None)}),
    (BY_HEIGHT, lambda f, c, o: {**f, "k = 1": f["k = 1"] + ("tile_rows" in o)}),
    (BY_HEIGHT, lambda f, c, o: {**f, "left out": 0}),
    (BY_HEIGHT, lambda f, c, o: f if len(c.x) else {**f, "k = 1": 0.0}),
    (equals_the_loop_on_many_rows, lambda f, c, o: {**f, "k = 1": f["k = 1"] + 1 / 520}),
    (equals_the_loop_under_every_distance, lambda f, c, o: METRICS["Recall@1"].call(c)),
    (BY_PRECISION, lambda f, c, o: {**f, "k = 1": f["k = 1"] + (c.x.dtype.itemsize == 2)}),
    (depends_on_no_order_of_rows, lambda f, c, o: {**f, "k = 1": f["k = 1"] + float(c.x[0, 0])}),
    (UNTOUCHED, graph_kept),
    (UNTOUCHED, scaled),
    (UNTOUCHED, lambda f, c, o: {**f, "k = 1": torch.tensor(f["k = 1"])}),
]


@pytest.mark.parametrize(("demand", "change"), WRONG)
def test_a_metric_that_breaks_a_demand_fails_it(demand, change):
    demand(METRICS["Recall@1"])
    with pytest.raises(AssertionError):
        demand(broken(change))


def test_the_check_of_figures_can_fail():
    check_equal({"value": math.nan, "queries": 2}, {"value": math.nan, "queries": 2})
    for wrong in ({"value": 0.0, "queries": 2}, {"queries": 2, "value": math.nan}, {"value": math.nan}):
        with pytest.raises(AssertionError):
            check_equal(wrong, {"value": math.nan, "queries": 2})
