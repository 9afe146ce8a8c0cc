"""The dynamic soft margin by loops."""

import math


def soft_histogram(numbers, bins, span):
    """Each number shared between the two nodes next to it; their sum is 1."""
    counts = [0.0] * (bins + 1)
    for z in numbers:
        place = min(max((z + span) * bins / (2 * span), 0.0), float(bins))
        left = min(math.floor(place), bins - 1)
        counts[left] += left + 1 - place
        counts[left + 1] += place - left
    return [v / len(numbers) for v in counts] if numbers else counts


def weights(numbers, histogram, span):
    """F of each number: the share of the histogram at the nodes up to it."""
    bins = len(histogram) - 1
    places = [min(max((z + span) * bins / (2 * span), 0.0), float(bins)) for z in numbers]
    return [sum(histogram[: min(math.floor(place + bins * 2**-50), bins) + 1]) for place in places]


def dynamic_soft_margin(d, triplets, histogram, span=2.0):
    """Zhang & Rusinkiewicz 2019: the mean of F(z) z under a histogram."""
    numbers = [d[a][p] - d[a][n] for a, p, n in triplets]
    losses = [w * z for w, z in zip(weights(numbers, histogram, span), numbers, strict=True)]
    return sum(losses) / max(1, len(losses))
