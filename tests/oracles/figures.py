"""Metrics as loops over queries, triplets and pairs, in float64: what the tiled forms must equal."""

import math


def precision_by_loop(d, triplets):
    """(correct, triplets)"""
    rows = list(zip(*(corner.tolist() for corner in triplets), strict=True))
    return sum(d[q][p] < d[q][n] for q, p, n in rows), len(rows)


def score_by_loop(d, triplets, k, candidates):
    """(correct, counted): candidates[q] are the columns of the list of q."""
    correct = counted = 0
    for q, p, n in zip(*(corner.tolist() for corner in triplets), strict=True):
        first = sorted(candidates[q], key=lambda j: (d[q][j], j))[:k]
        if p in first or n in first:
            counted += 1
            correct += d[q][p] < d[q][n]
    return correct, counted


def by_row(pairs, n):
    """The columns of each of n rows in a set of (row, column)."""
    columns = [[] for _ in range(n)]
    for i, j in pairs:
        columns[i].append(j)
    return columns


def ranked_hits(d, positive, negative):
    """For each query with something to find, whether each result in turn is a positive; ties by column."""
    seen = by_row(positive | negative, len(d))
    lists = [sorted(columns, key=lambda j, a=a: (d[a][j], j)) for a, columns in enumerate(seen)]
    hits = [[(a, j) in positive for j in ranked] for a, ranked in enumerate(lists)]
    return [each for each in hits if any(each)]


def recall(hits, k):
    """1 or 0 for each query: whether there is a hit among the first k."""
    return [float(any(each[:k])) for each in hits]


def r_precision(hits):
    """The share of hits among the first R for each query."""
    return [sum(each[: sum(each)]) / sum(each) for each in hits]


def map_at_r(hits):
    """(1/R) Σ_{i ≤ R} P(i) · 1[the i-th is a hit] for each query."""
    values = []
    for each in hits:
        r = sum(each)
        values.append(sum(sum(each[:i]) / i for i in range(1, r + 1) if each[i - 1]) / r)
    return values


def mean(values):
    """NaN of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def mined_means(d, triplets, margin):
    """(anchors, mean D(a,p), mean D(a,n), share with D(a,p) − D(a,n) + margin > 0)"""
    rows = list(zip(*(corner.tolist() for corner in triplets), strict=True))
    anchors = len({a for a, _, _ in rows})
    near, far = mean(d[a][p] for a, p, _ in rows), mean(d[a][n] for a, _, n in rows)
    return anchors, near, far, mean(d[a][p] - d[a][n] + margin > 0 for a, p, n in rows)


def collapse(rows):
    """‖x̄‖² / mean ‖x‖² of lists of numbers; 1 where every number is 0, NaN of no rows."""
    if not rows:
        return math.nan
    centre = [mean(column) for column in zip(*rows, strict=True)]
    energy = mean(sum(v * v for v in row) for row in rows)
    return sum(v * v for v in centre) / energy if energy else 1.0
