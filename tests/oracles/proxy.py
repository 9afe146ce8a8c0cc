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


def with_own(x, labels, proxies, own, scale, label_smoothing, others=None):
    """The mean cross-entropy of scaled cosines, of which the own one is what `own(row number, θ)` gives."""
    losses = []
    for i, (v, y) in enumerate(zip(x, labels, strict=True)):
        cosines = [cosine(v, p) for p in proxies]
        turned = own(i, math.acos(min(1.0, max(-1.0, cosines[y]))))
        logits = [scale * (others(s, turned) if others else s) for s in cosines]
        logits[y] = scale * turned
        losses.append(cross_entropy(logits, y, label_smoothing))
    return mean(losses)


def angular(theta, margin):
    """ψ of ArcFace."""
    return (
        math.cos(theta + margin) if theta <= math.pi - margin else math.cos(theta) - margin * math.sin(margin)
    )


def sub_center(x, labels, proxies, sub_centers=3, margin=0.5, scale=64.0, label_smoothing=0.0):
    """Deng et al. 2020."""
    classes = [proxies[i : i + sub_centers] for i in range(0, len(proxies), sub_centers)]
    losses = []
    for v, y in zip(x, labels, strict=True):
        cosines = [max(cosine(v, w) for w in those) for those in classes]
        logits = [scale * s for s in cosines]
        logits[y] = scale * angular(math.acos(min(1.0, max(-1.0, cosines[y]))), margin)
        losses.append(cross_entropy(logits, y, label_smoothing))
    return mean(losses)


def outliers(x, labels, proxies, sub_centers, angle):
    """The rows far from the dominant center of their class, and that center's row of each class, or −1."""
    dominant = []
    for c in range(len(proxies) // sub_centers):
        votes = [0] * sub_centers
        for v, y in zip(x, labels, strict=True):
            if y == c:
                near = [cosine(v, proxies[c * sub_centers + k]) for k in range(sub_centers)]
                votes[near.index(max(near))] += 1
        dominant.append(c * sub_centers + votes.index(max(votes)) if any(votes) else -1)
    far = [
        i
        for i, (v, y) in enumerate(zip(x, labels, strict=True))
        if math.acos(min(1.0, max(-1.0, cosine(v, proxies[dominant[y]])))) > angle
    ]
    return far, dominant


def sphere_face(x, labels, proxies, margin=4, scale=1.0, label_smoothing=0.0):
    """Liu et al. 2017."""
    losses = []
    for v, y in zip(x, labels, strict=True):
        length = scale * math.sqrt(sum(u * u for u in v))
        logits = [length * cosine(v, p) for p in proxies]
        theta = math.acos(min(1.0, max(-1.0, cosine(v, proxies[y]))))
        k = next(k for k in range(margin) if theta <= (k + 1) * math.pi / margin + 1e-15)
        logits[y] = length * ((-1) ** k * math.cos(margin * theta) - 2 * k)
        losses.append(cross_entropy(logits, y, label_smoothing))
    return mean(losses)


def ada_face(x, labels, proxies, mean, deviation, margin=0.4, scale=64.0, h=1 / 3, label_smoothing=0.0):
    """Kim et al. 2022, with the mean and deviation of lengths that are known."""

    def own(i, theta):
        length = math.sqrt(sum(u * u for u in x[i]))
        z = min(1.0, max(-1.0, h * (length - mean) / (deviation + 1e-3)))
        return math.cos(min(math.pi, max(0.0, theta - margin * z))) - (margin * z + margin)

    return with_own(x, labels, proxies, own, scale, label_smoothing)


def curricular_face(x, labels, proxies, t, margin=0.5, scale=64.0, label_smoothing=0.0):
    """Huang et al. 2020, with the t that is known."""
    return with_own(
        x,
        labels,
        proxies,
        lambda i, theta: angular(theta, margin),
        scale,
        label_smoothing,
        lambda s, own: s * (t + s) if s > own else s,
    )


def p2s_grad(x, labels, proxies):
    """Zhang et al. 2019: half the squares, whose gradient by a cosine is the difference."""
    return mean(
        [
            sum((cosine(v, p) - (c == y)) ** 2 for c, p in enumerate(proxies)) / 2
            for v, y in zip(x, labels, strict=True)
        ]
    )
