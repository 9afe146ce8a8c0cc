"""Metrics as loops over queries, triplets and pairs, in float64: what the tiled forms must equal."""

import math
from itertools import combinations, groupby


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


def ranked_ties(d, positive, negative):
    """For each query with something to find, its results as ties: (positives, negatives) at each distance."""
    seen, found = by_row(positive | negative, len(d)), []
    for a, columns in enumerate(seen):
        if not any((a, j) in positive for j in columns):
            continue
        ties = []
        for _, tied in groupby(sorted(columns, key=lambda j, a=a: d[a][j]), key=lambda j, a=a: d[a][j]):
            hits = [(a, j) in positive for j in tied]
            ties.append((sum(hits), len(hits) - sum(hits)))
        found.append(ties)
    return found


def orders(ties):
    """Every order of the results that ties allow, as lists of 1 and 0, each as often as it comes about."""
    found = [()]
    for m, n in ties:
        arrangements = [
            tuple(1 if i in chosen else 0 for i in range(m + n)) for chosen in combinations(range(m + n), m)
        ]
        found = [head + tail for head in found for tail in arrangements]
    return found


def expected(figure, ties):
    """The mean of a figure of one query over all orders, one by one."""
    return mean(figure(hits) for hits in orders(ties))


def expected_precision_sum(ties, cut, trapezoid=False):
    """E Σ_{i ≤ cut} P(i) · 1[the i-th is a positive]."""
    total, place, ahead = 0.0, 0, 0
    for m, n in ties:
        for u in range(m + n):
            if place == cut:
                return total
            place += 1
            here = m / (m + n)  # the chance that this one is a positive, and of each earlier of the tie too
            earlier = here * (ahead + (u * (m - 1) / (m + n - 1) if u else 0))
            value = (here + earlier) / place
            if trapezoid:
                value = (value + (here if place == 1 else earlier / (place - 1))) / 2
            total += value
        ahead += m
    return total


def expected_hits(ties, cut):
    """E #{positives among the first cut}."""
    total = 0.0
    for m, n in ties:
        total += m * max(0, min(m + n, cut)) / (m + n)
        cut -= m + n
    return total


def chance_of_hit(ties, cut):
    """P(any positive is among the first cut)."""
    none = 1.0
    for m, n in ties:
        for u in range(m + n):
            if cut > 0:
                none *= max(0, n - u) / (m + n - u)
                cut -= 1
    return 1 - none


def expected_first(ties):
    """E 1/(the rank of the first positive)."""
    none, rank, value = 1.0, 1, 0.0
    for m, n in ties:
        for u in range(m + n):
            here = m / (m + n - u) if n - u >= 0 else 0.0
            value += none * min(1.0, here) / rank
            none *= 1 - min(1.0, here)
            rank += 1
        if m:
            return value
    return value


def expected_last(ties):
    """E R/(the rank of the last positive)."""
    total, rank, none, value = sum(m for m, _ in ties), sum(m + n for m, n in ties), 1.0, 0.0
    for m, n in reversed(ties):
        for u in range(m + n):
            here = min(1.0, m / (m + n - u)) if n - u >= 0 else 0.0
            value += none * here * total / rank
            none *= 1 - here
            rank -= 1
        if m:
            return value
    return value


def mixed_before(ties, cut):
    """Whether a positive is tied with a negative, with fewer than cut results strictly nearer."""
    start = 0
    for m, n in ties:
        if start < cut and m and n:
            return True
        start += m + n
    return False


def ranked_gains(d, positive, negative, gain):
    """For each query with something to find, the gains of its results as ties: a list at each distance."""
    seen, found = by_row(positive | negative, len(d)), []
    for a, columns in enumerate(seen):
        if any((a, j) in positive for j in columns):
            order = sorted(columns, key=lambda j, a=a: d[a][j])
            ties = [list(tied) for _, tied in groupby(order, key=lambda j, a=a: d[a][j])]
            found.append([[gain(a, j) for j in tied] for tied in ties])
    return found


def ndcg(ties, k):
    """E DCG@k over its largest value."""
    place, got = 0, 0.0
    for gains in ties:
        gain = mean(gains)
        for _ in gains:
            place += 1
            got += gain / math.log2(1 + place) if place <= k else 0.0
    best = sorted((gain for gains in ties for gain in gains), reverse=True)[:k]
    return got / sum(gain / math.log2(1 + i) for i, gain in enumerate(best, 1))


def gains_differ(ties, k):
    """Whether results of unequal gains are tied, with fewer than k results strictly nearer."""
    start = 0
    for gains in ties:
        if start < k and len(set(gains)) > 1:
            return True
        start += len(gains)
    return False


def pooled(d, positive, negative):
    """(GAP, queries with something to find, the share of them whose answer or place is a matter of ties)."""
    answers, asked, unsure = [], set(), set()
    for a, columns in enumerate(by_row(positive | negative, len(d))):
        if not columns:
            continue
        least = min(d[a][j] for j in columns)
        right = [(a, j) in positive for j in columns if d[a][j] == least]
        if any((a, j) in positive for j in columns):
            asked.add(a)
        if 0 < sum(right) < len(right):
            unsure.add(a)
        answers.append((least, a, sum(right) / len(right)))
    value, ahead, rank = 0.0, 0.0, 0
    for distance in sorted({v for v, _, _ in answers}):
        start = rank
        tie = [(a, p) for v, a, p in answers if v == distance]
        if len({p for _, p in tie}) > 1:
            unsure |= {a for a, _ in tie}
        for _ in tie:  # each place in turn, each answer with equal chance at it
            rank += 1
            for a, p in tie:
                others = sum(q for b, q in tie if b != a)
                earlier = (rank - 1 - start) / max(1, len(tie) - 1)
                value += p * (1 + ahead + others * earlier) / len(tie) / rank
        ahead += sum(p for _, p in tie)
    return (
        (value / len(asked) if asked else math.nan),
        len(asked),
        (len(unsure & asked) / len(asked) if asked else 0.0),
    )


def market(d, query, query_camera, identity, camera, trapezoid):
    """Market-1501's evaluation (Zheng et al. 2015), one query after the other, distances without ties.

    Images of the query's identity and camera, and those of identity −1, are taken out of the ranking; those
    of identity 0 stay.

    Returns:
        (AP, the rank of the first good image, R over that of the last) of each query that has good images.
    """
    average, first, last = [], [], []
    for row, who, where in zip(d, query, query_camera, strict=True):
        ranking = sorted(range(len(row)), key=lambda j, row=row: row[j])
        ranking = [j for j in ranking if identity[j] != -1 and (identity[j], camera[j]) != (who, where)]
        good = [place for place, j in enumerate(ranking) if identity[j] == who]
        if not good:
            continue
        ap = 0.0
        for hit, place in enumerate(good):
            precision = (hit + 1) / (place + 1)
            old = hit / place if place else 1.0
            ap += ((old + precision) / 2 if trapezoid else precision) / len(good)
        average.append(ap)
        first.append(good[0] + 1)
        last.append(len(good) / (good[-1] + 1))
    return average, first, last


def compared_pairs(labels, gallery, ids, groups, exclude, junk, distractors):
    """(positive pairs, negative pairs) of rows and columns; without a gallery all pairs of the rows, once.

    Args:
        labels, gallery: the class of each row, and of each column or None.
        ids, groups: (of the rows, of the columns) each, or None.
        exclude: "group positives" or "group", which pairs of one group are left out.
        junk, distractors: lists of labels.
    """
    columns = labels if gallery is None else gallery
    sides = [], []
    for i, own in enumerate(labels):
        for j, other in enumerate(columns):
            if own in junk or other in junk:
                continue
            if gallery is None:
                if i >= j or (own in distractors and other in distractors):
                    continue
            elif own in distractors:
                continue
            if ids is not None and ids[0][i] == ids[1][j]:
                continue
            same = own == other and other not in distractors
            alike = groups is not None and groups[0][i] == groups[1][j]
            if alike and (same or exclude == "group"):
                continue
            sides[not same].append((i, j))
    return sides


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
