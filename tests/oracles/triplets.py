"""Slow loops straight from the papers, in float64 and without tercet: what the fast forms must equal."""

import math

import numpy as np


def rows_of(values):
    """A tensor of any precision, an array or a list as an array of float64."""
    return np.asarray(
        values.detach().double().cpu() if hasattr(values, "detach") else values, dtype=np.float64
    )


def distance(name, x, y):
    """D(x, y) of two vectors."""
    if name == "euclidean":
        return math.sqrt(sum((u - v) ** 2 for u, v in zip(x, y, strict=True)))
    if name == "squared_euclidean":
        return sum((u - v) ** 2 for u, v in zip(x, y, strict=True))
    if name == "cosine":
        lengths = math.sqrt(sum(u * u for u in x)) * math.sqrt(sum(v * v for v in y))
        return 1 - sum(u * v for u, v in zip(x, y, strict=True)) / lengths if lengths else 1.0
    if name == "dot":
        return -sum(u * v for u, v in zip(x, y, strict=True))
    if name == "hamming":
        return float(sum(u != v for u, v in zip(x, y, strict=True)))
    raise ValueError(name)


def distances(name, x, y=None):
    """D of every row with every column, as lists of lists."""
    x = rows_of(x)
    y = x if y is None else rows_of(y)
    return [[distance(name, u, v) for v in y.tolist()] for u in x.tolist()]


def same_label(a, b):
    """(positive, negative) of two labels."""
    return a == b, a != b


def relation(labels, column_labels=None, ids=None, column_ids=None, says=same_label):
    """(positive, negative): sets of (row, column); the same image is in neither.

    `says(a, b)` tells (positive, negative) of two labels, numbers or rows of numbers.
    """
    own = column_labels is None
    rows = labels.tolist()
    columns = rows if own else column_labels.tolist()
    column_ids = ids if own else column_ids
    positive, negative = set(), set()
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            same_row = own and i == j
            same_id = ids is not None and column_ids is not None and int(ids[i]) == int(column_ids[j])
            if not same_row and not same_id:
                for side, belongs in zip((positive, negative), says(a, b), strict=True):
                    if belongs:
                        side.add((i, j))
    return positive, negative


def all_triplets(positive, negative):
    """Every (a, p, n), sorted."""
    return sorted((a, p, n) for a, p in positive for b, n in negative if a == b)


def joined(pos_anchor, positive, neg_anchor, negative):
    """Every (a, p) with every (a, n) of two lists of pairs: (a, p, n), sorted, each once."""
    pulled, pushed = set(zip(pos_anchor, positive, strict=True)), set(zip(neg_anchor, negative, strict=True))
    return all_triplets(pulled, pushed)


def batch_all(d, positive, negative, margin=None):
    """Hermans et al. 2017: every triplet, or every one that violates the margin."""
    triplets = all_triplets(positive, negative)
    return {(a, p, n) for a, p, n in triplets if margin is None or d[a][p] - d[a][n] + margin > 0}


def batch_hard(d, positive, negative):
    """Hermans et al. 2017: the farthest positive and the nearest negative; ties to the lower column."""
    found = set()
    for a in range(len(d)):
        p = [j for i, j in sorted(positive) if i == a]
        n = [j for i, j in sorted(negative) if i == a]
        if p and n:
            found.add((a, max(p, key=lambda j: (d[a][j], -j)), min(n, key=lambda j: (d[a][j], j))))
    return found


def semi_hard(d, positive, negative, margin=0.2, fallback=None, negatives="nearest"):
    """Schroff et al. 2015: for each (a, p) the nearest negative beyond it (ties: lower column), or all."""
    found = set()
    for a, p in sorted(positive):
        all_n = [j for i, j in sorted(negative) if i == a]
        window = [j for j in all_n if d[a][j] > d[a][p] and (margin is None or d[a][j] < d[a][p] + margin)]
        if window and negatives == "all":
            found |= {(a, p, j) for j in window}
        elif window:
            found.add((a, p, min(window, key=lambda j: (d[a][j], j))))
        elif fallback == "easiest" and all_n:
            found.add((a, p, max(all_n, key=lambda j: (d[a][j], -j))))
    return found


def nearest(d, candidates, a, sign=1):
    """The candidates of row a, nearest first (farthest with −1), ties to the lower column."""
    return sorted((j for i, j in candidates if i == a), key=lambda j: (sign * d[a][j], j))


def easy_positive(d, positives, negatives, negative="semi_hard"):
    """Xuan et al. 2020: the nearest positive, and the nearest negative, if asked beyond it."""
    found = set()
    for a in range(len(d)):
        for p in nearest(d, positives, a)[:1]:
            n = [j for j in nearest(d, negatives, a) if negative == "hard" or d[a][j] > d[a][p]]
            found |= {(a, p, j) for j in n[:1]}
    return found


def hardest_n(d, positive, negative, k, skip=0):
    """The farthest positive with each of the k nearest negatives after the first `skip`."""
    return {
        (a, p, n)
        for a in range(len(d))
        for p in nearest(d, positive, a, -1)[:1]
        for n in nearest(d, negative, a)[skip : skip + k]
    }


def easy_hard(
    d,
    positive,
    negative,
    positives="easy",
    negatives="semi_hard",
    positive_k=1,
    negative_k=1,
    margin=None,
    positive_range=None,
    negative_range=None,
):
    """Every choice of positives with every choice of negatives, within ranges of distances."""

    def allowed(side, bounds):
        low, high = bounds or (None, None)
        return {
            (a, j) for a, j in side if (low is None or d[a][j] >= low) and (high is None or d[a][j] <= high)
        }

    def chosen(side, a, choice, k, nearest_is):
        ordered = nearest(d, side, a, 1 if choice == nearest_is else -1)
        return ordered if choice == "all" else ordered[:k]

    positive, negative = allowed(positive, positive_range), allowed(negative, negative_range)
    found = set()
    for a in range(len(d)):
        between = [
            (p, n)
            for p in nearest(d, positive, a, -1)
            for n in nearest(d, negative, a)
            if d[a][n] > d[a][p] and (margin is None or d[a][n] < d[a][p] + margin)
        ]
        if positives == "semi_hard":
            for n in chosen(negative, a, negatives, negative_k, "hard"):
                found |= {(a, p, n) for p in [p for p, m in between if m == n][:positive_k]}
            continue
        for p in chosen(positive, a, positives, positive_k, "easy"):
            if negatives == "semi_hard":
                ns = [n for q, n in between if q == p][:negative_k]
            else:
                ns = chosen(negative, a, negatives, negative_k, "hard")
            found |= {(a, p, n) for n in ns}
    return found


def multi_similarity(d, positive, negative, epsilon):
    """Wang et al. 2019 on distances: (positive pairs, negative pairs)."""
    pulled = {(a, p) for a, p in positive if any(d[a][p] > d[a][j] - epsilon for i, j in negative if i == a)}
    pushed = {(a, n) for a, n in negative if any(d[a][n] < d[a][j] + epsilon for i, j in positive if i == a)}
    return pulled, pushed


def angular(x, positive, negative, angle):
    """Wang et al. 2017: the triplets whose angle at the negative is above this, from centers."""

    def unit(v):
        size = math.sqrt(sum(u * u for u in v))
        return [u / size if size else 0.0 for u in v]

    x, found = [unit(v) for v in rows_of(x).tolist()], set()
    for a, p, n in all_triplets(positive, negative):
        center = [(u + v) / 2 for u, v in zip(x[a], x[p], strict=True)]
        apart, away = distance("euclidean", x[a], x[p]), distance("euclidean", x[n], center)
        if apart > 2 * away * math.tan(angle) + 1e-9:
            found.add((a, p, n))
    return found


def hardest_share(d, positive, negative, share):
    """Yuan et al. 2017: the farthest share of the positive pairs, and the nearest of the negative pairs."""
    sides = []
    for side, sign in ((positive, -1), (negative, 1)):
        ordered = sorted(side, key=lambda pair: (sign * d[pair[0]][pair[1]], pair))
        sides.append(set(ordered[: math.ceil(share * len(side))]))
    return tuple(sides)


def bins_of(d, side, bins):
    """The pairs of each bin of equal width between the least and the largest distance of a side."""
    if not side:
        return []
    numbers = [d[i][j] for i, j in side]
    low, width, found = min(numbers), max(numbers) - min(numbers), [set() for _ in range(bins)]
    for i, j in side:
        found[min(bins - 1, int((d[i][j] - low) / width * bins)) if width else 0].add((i, j))
    return found


def pair_margin(d, positive, negative, pos_margin, neg_margin):
    """(positive pairs, negative pairs) that a contrastive loss is not 0 for."""
    return {(a, p) for a, p in positive if d[a][p] > pos_margin}, {
        (a, n) for a, n in negative if d[a][n] < neg_margin
    }


def distance_weights(d, dimensions, cutoff, far):
    """Wu et al. 2017: the probabilities of one anchor's negatives at these distances; 0 from `far` on."""
    weights = []
    for each in d:
        u = max(each, cutoff)
        q = u ** (dimensions - 2) * (1 - u * u / 4) ** ((dimensions - 3) / 2)
        weights.append(1 / q if each < far else 0.0)
    return [w / sum(weights) for w in weights] if any(weights) else weights


def reduced(losses, reduction):
    """mean_active, mean or sum of a list of numbers; the mean of nothing is 0."""
    if reduction == "sum":
        return sum(losses)
    counted = [v for v in losses if v > 0] if reduction == "mean_active" else losses
    return sum(losses) / len(counted) if counted else 0.0


def triplet_losses(d, triplets, margin=None, power=1, soft=False, between=None):
    """ℓ of each triplet; `between` holds the columns' distances to each other and asks for the swap."""
    losses, margin = [], (0.0 if soft else 0.2) if margin is None else margin
    for a, p, n in triplets:
        d_an = d[a][n] if between is None else min(d[a][n], between[p][n])
        z = d[a][p] - d_an
        z += margin
        losses.append(math.log1p(math.exp(z)) if soft else max(0.0, z) ** power)
    return losses


def contrastive_losses(d, positive, negative, margin=1.0, pos_margin=0.0, power=2):
    """Hadsell et al. 2006: ℓ of each positive and then of each negative pair, in the order given."""
    apart = [max(0.0, d[i][j] - pos_margin) ** power for i, j in positive]
    return apart + [max(0.0, margin - d[i][j]) ** power for i, j in negative]
