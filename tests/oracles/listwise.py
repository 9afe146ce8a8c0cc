"""Slow loops from the papers of the listwise heads and the margin loss, in float64 and without tercet.

Each takes a distance matrix and the sets of positive and negative (row, column), and gives the losses that
the mean of the head is over, in the head's order.
"""

import math


def log1p_sum(values):
    """log(1 + Σ exp), by the largest term; accurate where it is nearly 0."""
    most = max([0.0, *values])
    if not most:
        return math.log1p(sum(math.exp(v) for v in values))
    return most + math.log(math.exp(-most) + sum(math.exp(v - most) for v in values))


def of_row(pairs, a):
    """The columns that row a is paired with, in rising order."""
    return sorted(j for i, j in pairs if i == a)


def info_nce(d, positive, negative, temperature=0.07):
    """van den Oord et al. 2018: −log of the positive's share among it and all negatives, for each (a, p)."""
    return [
        log1p_sum([(d[a][p] - d[a][n]) / temperature for n in of_row(negative, a)])
        for a, p in sorted(positive)
    ]


def sup_con(d, positive, negative, temperature=0.1):
    """Khosla et al. 2020, L_out: the mean of −log shares over the positives of each anchor that has one."""
    losses = []
    for a in sorted({i for i, _ in positive}):
        mine, everyone = of_row(positive, a), of_row(positive | negative, a)
        shares = []
        for p in mine:
            others = [j for j in everyone if j != p]
            shares.append(log1p_sum([(d[a][p] - d[a][j]) / temperature for j in others]))
        losses.append(sum(shares) / len(mine))
    return losses


def n_pair(dots, pairs, sizes, l2=0.0):
    """Sohn 2016: x_iᵀx_j⁺ − x_iᵀx_i⁺ over the other pairs, and half λ of both squared lengths."""
    losses = []
    for a, p in pairs:
        others = [dots[a][q] - dots[a][p] for b, q in pairs if (b, q) != (a, p)]
        losses.append(log1p_sum(others) + l2 / 2 * (sizes[0][a] + sizes[1][p]))
    return losses


def first_pairs(labels, pairs):
    """The first pair of each class, in the order given."""
    seen, chosen = set(), []
    for a, p in pairs:
        if int(labels[a]) not in seen:
            seen.add(int(labels[a]))
            chosen.append((a, p))
    return chosen


def lifted(d, positive, negative, margin=1.0, own=True, pos_margin=0.0):
    """Song et al. 2016: ½ h(log(Σ_k exp(α − D_ik) + Σ_l exp(α − D_jl)) + D_ij)² of each positive pair."""
    losses = []
    for i, j in sorted(positive):
        terms = [margin - d[i][k] for k in of_row(negative, i)]
        if own:
            terms += [margin - d[j][k] for k in of_row(negative, j)]
        else:
            terms += [margin - d[k][j] for k, column in negative if column == j]
        total = sum(math.exp(v) for v in terms)
        losses.append(max(0.0, math.log(total) + d[i][j] - pos_margin) ** 2 / 2 if total else 0.0)
    return losses


def multi_similarity(d, positive, negative, alpha=2.0, beta=50.0, base=0.5, at_0=1.0):
    """Wang et al. 2019: of every row; a distance d is the similarity `at_0` − d."""
    losses = []
    for a in range(len(d) if d and d[0] else 0):
        near = log1p_sum([-alpha * (at_0 - d[a][p] - base) for p in of_row(positive, a)])
        far = log1p_sum([beta * (at_0 - d[a][n] - base) for n in of_row(negative, a)])
        losses.append(near / alpha + far / beta)
    return losses


def circle(d, positive, negative, m=0.4, gamma=80.0, weights_at=None):
    """Sun et al. 2020: of each row with both; d is the cosine distance, `weights_at` the one that α is of."""
    w = d if weights_at is None else weights_at
    losses = []
    for a in range(len(d)):
        ps, ns = of_row(positive, a), of_row(negative, a)
        if ps and ns:
            near = [-gamma * max(0.0, 1 + m - (1 - w[a][p])) * ((1 - d[a][p]) - (1 - m)) for p in ps]
            far = [gamma * max(0.0, (1 - w[a][n]) + m) * ((1 - d[a][n]) - m) for n in ns]
            losses.append(log1p_sum([u + v for u in near for v in far]))
    return losses


def margin(d, positive, negative, beta, alpha=0.2):
    """Wu et al. 2017: of positive and then negative pairs, lists or sets; `beta` gives that of each row."""
    near = [max(0.0, alpha + (d[i][j] - beta[i])) for i, j in sorted(positive)]
    return near + [max(0.0, alpha - (d[i][j] - beta[i])) for i, j in sorted(negative)]


def nca(d, positive, negative, temperature=1.0):
    """Goldberger et al. 2004: −log of the probability that a drawn neighbour is a positive."""
    losses = []
    for a in sorted({i for i, _ in positive}):
        weights = {j: math.exp(-d[a][j] / temperature) for j in of_row(positive | negative, a)}
        losses.append(-math.log(sum(weights[p] for p in of_row(positive, a)) / sum(weights.values())))
    return losses


def generalized_lifted(d, positive, negative, margin=1.0, pos_margin=0.0):
    """Hermans et al. 2017, eq. 6: h(log Σ exp(D_ap − α⁺) + log Σ exp(α − D_an)) of rows with both."""
    losses = []
    for a in range(len(d)):
        ps, ns = of_row(positive, a), of_row(negative, a)
        if ps and ns:
            far = math.log(sum(math.exp(d[a][p] - pos_margin) for p in ps))
            near = math.log(sum(math.exp(margin - d[a][n]) for n in ns))
            losses.append(max(0.0, far + near))
    return losses


def ranked_list(
    d, positive, negative, margin=0.4, alpha=1.2, temperature=10.0, pos_temperature=0.0, balance=0.5
):
    """Wang et al. 2019: of every row, both weighted means of how far its pairs violate."""

    def mean(excesses, t):
        excesses = [z for z in excesses if z > 0]
        weights = [math.exp(t * z) for z in excesses]
        return sum(w * z for w, z in zip(weights, excesses, strict=True)) / sum(weights) if weights else 0.0

    return [
        (1 - balance) * mean([d[a][p] - (alpha - margin) for p in of_row(positive, a)], pos_temperature)
        + balance * mean([alpha - d[a][n] for n in of_row(negative, a)], temperature)
        for a in range(len(d))
    ]


def tuplet_margin(angles, positive, negative, margin=0.1, scale=64.0):
    """Yu & Tao 2019: of each (a, p), by the angles of each row with each column."""
    losses = []
    for a, p in sorted(positive):
        relaxed = math.cos(angles[a][p] - margin)
        losses.append(log1p_sum([scale * (math.cos(angles[a][n]) - relaxed) for n in of_row(negative, a)]))
    return losses


def angular(s, between, positive, negative, alpha=0.7):
    """Wang et al. 2017, eq. 8: of each (a, p); `s` and `between` are cosines of rows and of columns."""
    square = math.tan(alpha) ** 2
    return [
        log1p_sum(
            [4 * square * (s[a][n] + between[p][n]) - 2 * (1 + square) * s[a][p] for n in of_row(negative, a)]
        )
        for a, p in sorted(positive)
    ]
