"""Few-shot episodes: is an image nearest to the mean of its class, where classes have a few images each?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tercet.core.checks import as_int, as_seed, label_codes, refusal
from tercet.core.randomness import derive_key, keyed_uniform
from tercet.metrics.inputs import unit_rows
from tercet.metrics.scores import Score

__all__ = ["few_shot", "played"]


def few_shot(
    embeddings: Any,
    labels: Any,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> Score:
    """The accuracy of the nearest class mean over random N-way K-shot episodes.

    Each episode draws N classes, and of each K images to average and others to ask. An image is assigned to
    the mean of unit vectors that is nearest; where t are equally near, a right one counts 1/t.

    Args:
        embeddings: float [n, d] of any length, torch or numpy.
        labels: [n] whole numbers, bools or strings.
        ways: N, classes of an episode.
        shots: K, images of a class that its mean is of.
        queries: images of a class that are asked.
        episodes: how many; episode e is a function of the seed and e.
        seed: another seed draws other episodes.

    Returns:
        A `Score` over episodes: `values` has the accuracy of each, `left_out` counts classes with fewer than
        K + queries images.

    Raises:
        ValueError: fewer than N classes with K + queries images, numbers below 1, or shapes that do not fit.

    Example:
        >>> x = np.repeat(np.eye(3), 4, axis=0)
        >>> few_shot(x, np.repeat([0, 1, 2], 4), ways=3, shots=2, queries=2, episodes=10)
        1.0

    Reference:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, "Matching networks for one shot learning", 2016;
        class means: Snell, Swersky & Zemel, "Prototypical networks for few-shot learning", 2017.
    """
    return played(embeddings, labels, ways, shots, queries, episodes, seed)[0]


def played(
    embeddings: Any,
    labels: Any,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> tuple[Score, Float[np.ndarray, " c"]]:
    """`few_shot`, and its value without each class that has images enough."""
    caller = "few_shot"
    ways, shots, queries, episodes = (
        as_int(caller, name, value, 1, 2**20)
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries), ("episodes", episodes))
    )
    key = derive_key("few-shot", as_seed(caller, seed))
    rows = unit_rows(caller, embeddings).numpy()
    codes, classes = label_codes(caller, labels)
    if len(codes) != len(rows):
        raise refusal(caller, "labels", f"shape {codes.shape}", f"shape ({len(rows)},)")
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(classes))
    members = np.split(order, np.cumsum(sizes)[:-1])
    members = [each for each in members if len(each) >= shots + queries]
    if len(members) < ways:
        expected = f"at most {len(members)}, the classes with {shots + queries} images or more"
        raise refusal(caller, "ways", ways, expected, "lower ways, shots or queries")
    found = [_episode(rows, members, ways, shots, queries, key, episode) for episode in range(episodes)]
    values, drawn = np.array([value for value, _ in found]), np.stack([classes for _, classes in found])
    score = Score(float(values.mean()), episodes, len(classes) - len(members), values=values)
    return score, _without(values, drawn, len(members))


def _without(
    values: Float[np.ndarray, " e"], drawn: Int[np.ndarray, "e ways"], classes: int
) -> Float[np.ndarray, " c"]:
    """The mean over the episodes that a class is not in, for each class."""
    sums = np.bincount(drawn.ravel(), values.repeat(drawn.shape[1]), classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values.sum() - sums) / (len(values) - np.bincount(drawn.ravel(), minlength=classes))


def _episode(
    rows: Float[np.ndarray, "n d"],
    members: list[Int[np.ndarray, " m"]],
    ways: int,
    shots: int,
    queries: int,
    key: int,
    episode: int,
) -> tuple[float, Int[np.ndarray, " ways"]]:
    """The accuracy of one episode, and the classes that it drew."""
    drawn = np.argsort(keyed_uniform(key, episode, 0, np.arange(len(members))), kind="stable")[:ways]
    means, asked = [], []
    for number in drawn.tolist():
        own = members[number]
        mixed = np.argsort(keyed_uniform(key, episode, 1 + number, np.arange(len(own))), kind="stable")
        mixed = own[mixed[: shots + queries]]
        means.append(rows[mixed[:shots]].mean(0))
        asked.append(rows[mixed[shots:]])
    centres, points = np.stack(means), np.stack(asked)  # [N, d], [N, q, d]
    distance = (centres**2).sum(1) - 2 * points @ centres.T  # [N, q, N], less ‖x‖²
    least = distance.min(2, keepdims=True)
    near = distance <= least + 8 * np.finfo(np.float64).eps * (1 + np.abs(least))
    own = near[np.arange(ways), :, np.arange(ways)]  # [N, q]
    return float((own / near.sum(2)).mean()), drawn
