"""Slow loops of the histogram losses, in float64 and without tercet: every node meets every number."""


def soft_counts(values, low, high, bins):
    """How much of the values each of the `bins + 1` nodes on [low, high] gets, by the triangle around it."""
    width = (high - low) / bins
    counts = []
    for r in range(bins + 1):
        node, total = low + r * width, 0.0
        for value in values:
            value = min(max(value, low), high)
            total += max(0.0, 1 - abs(value - node) / width)
        counts.append(total)
    return counts


def once(pairs, unordered):
    """The set of pairs, (i, j) and (j, i) being one where they are unordered, in rising order."""
    return sorted({(min(pair), max(pair)) if unordered else pair for pair in pairs})


def histogram_loss(d, positive, negative, bins=100, unordered=True):
    """Ustinova & Lempitsky 2016, of cosine distances; nothing where a side is empty."""
    sides = [[1 - d[i][j] for i, j in once(pairs, unordered)] for pairs in (positive, negative)]
    if not all(sides):
        return 0.0
    h_pos, h_neg = ([c / len(s) for c in soft_counts(s, -1.0, 1.0, bins)] for s in sides)
    return sum(h_neg[r] * sum(h_pos[: r + 1]) for r in range(bins + 1))


def fast_ap(d, positive, negative, bins=10, unordered=True):
    """Cakir et al. 2019, of cosine distances: the mean of 1 − AP over the rows with a positive."""
    losses = []
    for a in sorted({i for i, _ in positive}):
        h_pos = soft_counts([2 * d[a][j] for i, j in sorted(positive) if i == a], 0.0, 4.0, bins)
        h_all = soft_counts([2 * d[a][j] for i, j in sorted(positive | negative) if i == a], 0.0, 4.0, bins)
        total = 0.0
        for j in range(bins + 1):
            if h_pos[j] > 0:
                total += h_pos[j] * sum(h_pos[: j + 1]) / sum(h_all[: j + 1])
        losses.append(1 - total / sum(h_pos))
    return sum(losses) / len(losses) if losses else 0.0
