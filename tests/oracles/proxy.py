"""Slow loops of the losses against proxies, in float64 and without tercet.

Each takes embeddings, labels and proxies as lists of rows, and gives one number.
"""

import math


def unit(v):
    """v / ‖v‖, or 0 of a zero vector."""
    length = math.sqrt(sum(u * u for u in v))
    return [u / length for u in v] if length else list(v)


def cosine(x, p):
    """cos(x, p), 0 where one is zero."""
    return sum(u * v for u, v in zip(unit(x), unit(p), strict=True))


def log_sum(values):
    """log Σ exp, by the largest term."""
    most = max(values)
    return most + math.log(sum(math.exp(v - most) for v in values))


def cross_entropy(logits, label, smoothing=0.0):
    """−log of the softmax share of the label; accurate where it is nearly 0.

    With smoothing, the mean of that over labels of which the row's own has 1 − ε, and each of all ε/C more.
    """
    if smoothing:
        every = [cross_entropy(logits, c) for c in range(len(logits))]
        return (1 - smoothing) * every[label] + smoothing / len(every) * math.fsum(every)
    others = [v - logits[label] for c, v in enumerate(logits) if c != label]
    most = max(0.0, *others)
    if not most:
        return math.log1p(sum(math.exp(v) for v in others))
    return most + math.log(math.exp(-most) + sum(math.exp(v - most) for v in others))


def mean(values):
    """The mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def proxy_nca(x, labels, proxies, temperature=None, plus_plus=False, label_smoothing=0.0):
    """Movshovitz-Attias et al. 2017, and Teh et al. 2020."""
    t = temperature or (1 / 9 if plus_plus else 1.0)
    losses = []
    for v, y in zip(x, labels, strict=True):
        near = [-sum((a - b) ** 2 for a, b in zip(unit(v), unit(p), strict=True)) / t for p in proxies]
        if plus_plus:
            losses.append(cross_entropy(near, y, label_smoothing))
        else:
            losses.append(log_sum([n for c, n in enumerate(near) if c != y]) - near[y])
    return mean(losses)


def proxy_anchor(x, labels, proxies, margin=0.1, alpha=32.0):
    """Kim et al. 2020."""
    pulled, pushed = [], []
    for c, p in enumerate(proxies):
        own = [-alpha * (cosine(v, p) - margin) for v, y in zip(x, labels, strict=True) if y == c]
        others = [alpha * (cosine(v, p) + margin) for v, y in zip(x, labels, strict=True) if y != c]
        if own:
            pulled.append(log_sum([0.0, *own]))
        pushed.append(log_sum([0.0, *others]))
    return mean(pulled) + mean(pushed)


def normalized_softmax(x, labels, proxies, temperature=0.05, label_smoothing=0.0):
    """Zhai & Wu 2019."""
    return mean(
        [
            cross_entropy([cosine(v, p) / temperature for p in proxies], y, label_smoothing)
            for v, y in zip(x, labels, strict=True)
        ]
    )


def arc_face(x, labels, proxies, margin=0.5, scale=64.0, easy_margin=False, label_smoothing=0.0):
    """Deng et al. 2019."""
    losses = []
    for v, y in zip(x, labels, strict=True):
        logits = [scale * cosine(v, p) for p in proxies]
        theta = math.acos(min(1.0, max(-1.0, cosine(v, proxies[y]))))
        if easy_margin:
            own = math.cos(theta + margin) if theta <= math.pi / 2 else math.cos(theta)
        elif theta <= math.pi - margin:
            own = math.cos(theta + margin)
        else:
            own = math.cos(theta) - margin * math.sin(margin)
        logits[y] = scale * own
        losses.append(cross_entropy(logits, y, label_smoothing))
    return mean(losses)


def cos_face(x, labels, proxies, margin=0.35, scale=64.0, label_smoothing=0.0):
    """Wang et al. 2018."""
    losses = []
    for v, y in zip(x, labels, strict=True):
        logits = [scale * (cosine(v, p) - margin * (c == y)) for c, p in enumerate(proxies)]
        losses.append(cross_entropy(logits, y, label_smoothing))
    return mean(losses)


def soft_triple(
    x, labels, proxies, centers=10, la=20.0, gamma=0.1, margin=0.01, tau=0.2, label_smoothing=0.0
):
    """Qian et al. 2019."""
    classes = [proxies[i : i + centers] for i in range(0, len(proxies), centers)]
    losses = []
    for v, y in zip(x, labels, strict=True):
        logits = []
        for c, those in enumerate(classes):
            s = [cosine(v, w) for w in those]
            shares = [math.exp(u / gamma - log_sum([q / gamma for q in s])) for u in s]
            logits.append(la * (sum(q * u for q, u in zip(shares, s, strict=True)) - margin * (c == y)))
        losses.append(cross_entropy(logits, y, label_smoothing))
    apart = 0.0
    for those in classes:
        for s in range(centers):
            for t in range(s + 1, centers):
                apart += math.dist(unit(those[s]), unit(those[t]))
    return mean(losses) + (tau * apart / (len(classes) * centers * (centers - 1)) if centers > 1 else 0.0)
