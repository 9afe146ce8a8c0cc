"""Slow loops of the smooth rankings, in float64 and without tercet: the loss of each anchor in order."""

import math

from tests.oracles.listwise import of_row


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def smooth_ap(d, positive, negative, rank_temperature=0.01):
    """Brown et al. 2020: 1 − mean of rank among positives over rank among all, of anchors with a positive."""
    losses = []
    for a in sorted({i for i, _ in positive}):
        mine, others = of_row(positive, a), of_row(negative, a)
        precisions = []
        for p in mine:
            before = {j: sigmoid((d[a][p] - d[a][j]) / rank_temperature) for j in [*mine, *others] if j != p}
            among_mine = 1 + sum(before[j] for j in mine if j != p)
            precisions.append(among_mine / (1 + sum(before.values())))
        losses.append(1 - sum(precisions) / len(mine))
    return losses


def recall_surrogate(d, positive, negative, k=(1, 2, 4, 8, 16), temperature=1.0, rank_temperature=0.01):
    """Patel et al. 2022: 1 − mean over k of the smooth share of positives within k."""
    losses = []
    for a in sorted({i for i, _ in positive}):
        mine, others = of_row(positive, a), of_row(negative, a)
        ranks = [
            1 + sum(sigmoid((d[a][p] - d[a][j]) / rank_temperature) for j in [*mine, *others] if j != p)
            for p in mine
        ]
        recalls = [
            min(each, sum(sigmoid((each - rank) / temperature) for rank in ranks)) / min(each, len(mine))
            for each in k
        ]
        losses.append(1 - sum(recalls) / len(recalls))
    return losses
