"""Slow loops of the heads of variances, in float64 and without tercet: the whole loss, of no reduction."""

import math


def intra_pair_variance(d, positive, negative, pos_epsilon=0.01, neg_epsilon=0.01):
    """Yu & Tao 2019: d is the cosine distance."""
    near = [1 - d[a][p] for a, p in sorted(positive)]
    far = [1 - d[a][n] for a, n in sorted(negative)]
    loss = 0.0
    if near:
        bound = (1 - pos_epsilon) * sum(near) / len(near)
        loss += sum(max(0.0, bound - s) ** 2 for s in near) / len(near)
    if far:
        bound = (1 + neg_epsilon) * sum(far) / len(far)
        loss += sum(max(0.0, s - bound) ** 2 for s in far) / len(far)
    return loss


def spread(z, epsilon):
    """(v(Z), c(Z)) of Bardes et al. 2022."""
    if not z:
        return 0.0, 0.0
    n, d = len(z), len(z[0])
    means = [sum(row[k] for row in z) / n for k in range(d)]
    covariance = [
        [sum((row[k] - means[k]) * (row[m] - means[m]) for row in z) / max(1, n - 1) for m in range(d)]
        for k in range(d)
    ]
    variance = sum(max(0.0, 1 - math.sqrt(covariance[k][k] + epsilon)) for k in range(d)) / d
    return variance, sum(covariance[k][m] ** 2 for k in range(d) for m in range(d) if k != m) / d


def vicreg(x, y, positive, invariance=25.0, variance=25.0, covariance=1.0, epsilon=1e-4):
    """Bardes et al. 2022, eq. 6, the variance halved as in the authors' code."""
    near = [sum((u - v) ** 2 for u, v in zip(x[a], y[p], strict=True)) / len(x[a]) for a, p in positive]
    (v_x, c_x), (v_y, c_y) = spread(x, epsilon), spread(y, epsilon)
    loss = invariance * sum(near) / len(near) if near else 0.0
    return loss + variance * (v_x + v_y) / 2 + covariance * (c_x + c_y)
