"""What every metric must do, one function a demand, and for each demand a metric that breaks it.

Adding a metric is adding a row to `METRICS`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.metrics.graded import ndcg
from tercet.metrics.mining_stats import describe
from tercet.metrics.pooled import global_average_precision
from tercet.metrics.precision import map_at_r, mean_average_precision, mean_inp, mrr, r_precision
from tercet.metrics.retrieval import cmc, precision_at_k, recall_at_k
from tercet.metrics.triplet_ranking import score_at_top_k, similarity_precision
from tercet.reports.evaluation import evaluate
from tests.helpers import grid, points
from tests.oracles import figures
from tests.oracles import triplets as reference

DISTANCES = ("euclidean", "squared_euclidean", "cosine", "dot", "hamming")
HEIGHTS = (1, 7, 100)


@dataclass(frozen=True, eq=False)
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
    # In float64, as the loop: of 520 distances some are equal in float32 alone.
    "few classes of many rows": own(points(520).double(), torch.arange(520) % 3),
}
PLAIN = CASES["P × K, shuffled"]


@functools.cache  # by the case itself: loops over 520 × 520 distances are made once
def measured(case, distance):
    return reference.distances(distance, case.x, None if case.ref is None else case.y), case.sides


@dataclass(frozen=True, eq=False)
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
        return self.loop(case, *measured(case, distance))

    def heights(self):
        return [{}, *({"tile_rows": height} for height in HEIGHTS if self.tiled)]


def score_figures(score, name="value"):
    return {
        name: float(score),
        f"{name}, queries": score.queries,
        f"{name}, left out": score.left_out,
        f"{name}, tied": score.tied,
    }


def triplet_figures(score):
    return {
        "value": float(score),
        "correct": score.correct,
        "counted": score.counted,
        "triplets": score.triplets,
    }


def of_queries(values, touched, case, name="value"):
    """What a score must say, from the value of each query with something to find, and whether ties decide."""
    return {
        name: figures.mean(values),
        f"{name}, queries": len(values),
        f"{name}, left out": len(case.x) - len(values),
        f"{name}, tied": figures.mean(touched) if values else 0.0,
    }


def looped(case, d, sides, one, touched, name="value"):
    """A figure of each query's ties, in a loop."""
    ties = figures.ranked_ties(d, *sides)
    return of_queries([one(each) for each in ties], [touched(each) for each in ties], case, name)


def total(ties):
    """R, and how many images there are."""
    return sum(m for m, _ in ties), sum(m + n for m, n in ties)


def cut_figure(of_cut, k):
    """A figure of the first k results, k at most the images there are; None for R."""

    def one(ties):
        r, seen = total(ties)
        return of_cut(ties, r if k is None else min(k, seen), r)

    return one, lambda ties: figures.mixed_before(
        ties, total(ties)[0] if k is None else min(k, total(ties)[1])
    )


def first_mixed(cut):
    """Whether the first positive is tied with a negative, with fewer than cut results nearer."""

    def touched(ties):
        start = 0
        for m, n in ties:
            if m:
                return bool(n) and start < min(cut, total(ties)[1])
            start += n
        return False

    return touched


def last_mixed(ties):
    return bool([n for m, n in ties if m][-1])


def hit(ties, cut, r):
    return figures.chance_of_hit(ties, cut)


def share(ties, cut, r):
    return figures.expected_hits(ties, cut) / r


def precise(ties, cut, r):
    return figures.expected_hits(ties, cut) / cut


def average(ties, cut, r):
    return figures.expected_precision_sum(ties, cut) / r


RECALL = {k: (cut_figure(hit, k)[0], first_mixed(k)) for k in (1, 2, 3, 5, 30, 1000)}
R_PRECISION, MAP_AT_R = cut_figure(share, None), cut_figure(average, None)
EVERY = 10**6


def by_k(metric, ks, loops):
    """A metric with several k, and a loop for each."""

    def call(case, **options):
        scores = metric(case.x, case.labels, ks, ids=case.ids, ref=case.ref, **options)
        return {key: v for k in ks for key, v in score_figures(scores[k], f"k = {k}").items()}

    def loop(case, d, sides):
        found = [looped(case, d, sides, *loops[k], f"k = {k}") for k in ks]
        return {key: v for each in found for key, v in each.items()}

    return Row(call, loop)


def plain(metric, one, touched, **more):
    """A metric without k."""
    return Row(
        lambda case, **options: score_figures(
            metric(case.x, case.labels, ids=case.ids, ref=case.ref, **more, **options)
        ),
        lambda case, d, sides: looped(case, d, sides, one, touched),
    )


def recall_row(*ks):
    return by_k(recall_at_k, ks, RECALL)


def evaluation_row(*ks):
    """Every figure of `evaluate`."""

    def call(case, **options):
        found = evaluate(case.x, case.labels, ks, ids=case.ids, ref=case.ref, **options)
        return {key: v for name, score in found.items() for key, v in score_figures(score, name).items()}

    def loop(case, d, sides):
        loops = {f"Recall@{k}": RECALL[k] for k in ks} | {"R-precision": R_PRECISION, "MAP@R": MAP_AT_R}
        found = [looped(case, d, sides, *pair, name) for name, pair in loops.items()]
        return {key: v for each in found for key, v in each.items()}

    return Row(call, loop)


def curve(case, **options):
    values = cmc(case.x, case.labels, 5, ids=case.ids, ref=case.ref, **options)
    return {f"rank {k}": float(value) for k, value in enumerate(values, 1)}


def curve_loop(case, d, sides):
    ties = figures.ranked_ties(d, *sides)
    return {
        f"rank {k}": figures.mean(figures.chance_of_hit(each, min(k, total(each)[1])) for each in ties)
        for k in range(1, 6)
    }


def pooled_loop(case, d, sides):
    value, asked, touched = figures.pooled(d, *sides)
    return {
        "value": value,
        "value, queries": asked,
        "value, left out": len(case.x) - asked,
        "value, tied": touched,
    }


def gain_figure(k, gain=lambda r: r):
    def loop(case, d, sides):
        every = figures.ranked_gains(d, *sides, lambda a, j: gain(1.0) if (a, j) in sides[0] else 0.0)
        values = [figures.ndcg(ties, k) for ties in every]
        touched = [figures.gains_differ(ties, k) for ties in every]
        return of_queries(values, touched, case)

    return Row(
        lambda case, **options: score_figures(
            ndcg(case.x, case.labels, k, ids=case.ids, ref=case.ref, gain="exponential", **options)
        ),
        loop,
    )


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
    "true recall": by_k(
        lambda *given, **options: recall_at_k(*given, of="positives", **options),
        (1, 3, 1000),
        {k: cut_figure(share, k) for k in (1, 3, 1000)},
    ),
    "Precision@k": by_k(precision_at_k, (1, 3, 30), {k: cut_figure(precise, k) for k in (1, 3, 30)}),
    "CMC": Row(curve, curve_loop),
    "R-precision": plain(r_precision, *R_PRECISION),
    "MAP@R": plain(map_at_r, *MAP_AT_R),
    "MAP": plain(mean_average_precision, *cut_figure(average, EVERY)),
    "MAP, trapezoid": plain(
        mean_average_precision,
        lambda ties: figures.expected_precision_sum(ties, EVERY, trapezoid=True) / total(ties)[0],
        cut_figure(average, EVERY)[1],
        rule="trapezoid",
    ),
    "mAP@k over R": by_k(mean_average_precision, (1, 4), {k: cut_figure(average, k) for k in (1, 4)}),
    "mAP@k over min(k, R)": by_k(
        lambda *given, **options: mean_average_precision(*given, over="min(k, R)", **options),
        (1, 4, 1000),
        {
            k: cut_figure(lambda ties, cut, r: figures.expected_precision_sum(ties, cut) / min(cut, r), k)
            for k in (1, 4, 1000)
        },
    ),
    "MRR": plain(mrr, figures.expected_first, first_mixed(EVERY)),
    "mINP": plain(mean_inp, figures.expected_last, last_mixed),
    "nDCG@3": gain_figure(3),
    "nDCG@1000": gain_figure(1000),
    "GAP": replace(plain(global_average_precision, None, None), loop=pooled_loop),
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
    (BY_HEIGHT, lambda f, c, o: {**f, "k = 1, queries": f["k = 1, queries"] + (c.ids is not None)}),
    (BY_HEIGHT, lambda f, c, o: {**f, "k = 1": f["k = 1"] + ("tile_rows" in o)}),
    (BY_HEIGHT, lambda f, c, o: {**f, "k = 1, left out": 0}),
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
