"""Offline mining as loops over pairs and rows: what `mine_hard_triplets` must equal."""

from collections import Counter


def window(d, labels, a, groups=None, ids=None):
    """Rows that may be candidates of an anchor, nearest first, ties to the lower row."""
    same = [column for column in (groups, ids) if column is not None]
    others = [j for j in range(len(labels)) if labels[j] != labels[a] and all(c[j] != c[a] for c in same)]
    return sorted(others, key=lambda j: (d[a][j], j))


def positives_of(d, labels, a, which, groups=None, ids=None):
    """The positives that an anchor is mined with, by row."""
    same = [column for column in (groups, ids) if column is not None]
    own = [
        j for j in range(len(labels)) if j != a and labels[j] == labels[a] and all(c[j] != c[a] for c in same)
    ]
    ranked = sorted(own, key=lambda j: (d[a][j], j))
    if which == "all" or not own:
        return own, own
    if which == "hardest":
        return [min(own, key=lambda j: (-d[a][j], j))], own
    return [ranked[0] if which == "easiest" else ranked[min(which, len(ranked)) - 1]], own


def mine(
    d,
    labels,
    *,
    negatives=1,
    positives="all",
    semi_hard=False,
    ranks=(1, 100),
    margin=None,
    relative_margin=None,
    reference="own",
    max_score=None,
    min_score=None,
    per_class=None,
    reserve=0,
    groups=None,
    ids=None,
    aside=(),
):
    """Hardest first: {(a, p): (negatives, reserve)}, and a count of (pair, row) by the name of its reason.

    Args:
        d: distances as lists of lists; a score is −D.
        labels: a list.
        aside: pairs (row, row) that a verdict excludes.
    """
    mined, counts = {}, Counter()
    for a in range(len(labels)):
        chosen, own = positives_of(d, labels, a, positives, groups, ids)
        ranked = window(d, labels, a, groups, ids)
        for p in chosen:
            s_p = -d[a][p]
            scores = [-d[a][j] for j in own]
            s = {"own": s_p, "min": min(scores), "max": max(scores), "mean": sum(scores) / len(scores)}[
                reference
            ]
            used, taken, spare = Counter(), [], []
            for j in range(len(labels)):
                if j == a:
                    counts["SELF"] += 1
                elif labels[j] == labels[a]:
                    counts["CLASS"] += 1
                elif j not in ranked:
                    counts["GROUP"] += 1
            for rank, j in enumerate(ranked, 1):
                s_n = -d[a][j]
                if rank > ranks[1]:
                    reason = "BEHIND_WINDOW"
                elif d[a][j] == 0:
                    reason = "DUPLICATE"
                elif (a, j) in aside or (j, a) in aside:
                    reason = "VERDICT"
                elif rank < ranks[0]:
                    reason = "BEFORE_WINDOW"
                elif max_score is not None and s_n > max_score:
                    reason = "MAX_SCORE"
                elif min_score is not None and s_n < min_score:
                    reason = "MIN_SCORE"
                elif semi_hard and not s_n < s_p:
                    reason = "HARDER_THAN_POSITIVE"
                elif margin is not None and s_n > s - margin:
                    reason = "MARGIN"
                elif relative_margin is not None and s_n > s - abs(s) * relative_margin:
                    reason = "RELATIVE_MARGIN"
                elif per_class is not None and used[labels[j]] >= per_class:
                    reason = "CLASS_USED"
                elif len(taken) < negatives:
                    reason = "CHOSEN"
                    taken.append(j)
                elif len(spare) < reserve:
                    reason = "RESERVE"
                    spare.append(j)
                else:
                    reason = "NOT_NEEDED"
                if reason in ("CHOSEN", "RESERVE", "NOT_NEEDED"):
                    used[labels[j]] += 1
                counts[reason] += 1
            mined[a, p] = taken, spare
    return mined, counts
