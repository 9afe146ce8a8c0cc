"""In which order allowed candidates become negatives: hardest first, at random, or by a density of scores.

The random orders are exponential races: candidate j comes first with probability w_j / Σ w, and so on without
replacement (Efraimidis & Spirakis, 2006). The race is keyed by anchor, positive and candidate: it depends
neither on the block nor on other candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import Refusal, as_choice, as_float
from tercet.core.randomness import derive_key, keyed_bits, keyed_uniform

__all__ = ["STRATEGIES", "Strategy", "as_strategy", "first_of_each_class", "selection_order"]

STRATEGIES = ("hardest", "semi-hard", "random", "softmax", "simans")


class Strategy(NamedTuple):
    """How negatives are chosen from the allowed candidates.

    Args:
        name: one of `STRATEGIES`.
        temperature: of `"softmax"`, where candidate j has weight exp(s_j / temperature).
        sharpness: a of `"simans"`, where it has weight exp(−a (s_j − s_p − shift)²).
        shift: b of `"simans"`.
        seed: of the random orders.
    """

    name: str
    temperature: float
    sharpness: float
    shift: float
    seed: int


def as_strategy(name: Any, temperature: Any, sharpness: Any, shift: Any, seed: int) -> Strategy:
    """A checked strategy.

    Raises:
        ValueError: an unknown name, a number out of range, or an option of another strategy.
    """
    name = as_choice(None, "strategy", name, STRATEGIES)
    for option, value, of in (
        ("temperature", temperature, "softmax"),
        ("sharpness", sharpness, "simans"),
        ("shift", shift, "simans"),
    ):
        if value is not None and name != of:
            raise Refusal(option, value, f"None: it is an option of strategy={of!r}")
    return Strategy(
        name,
        as_float(None, "temperature", 0.05 if temperature is None else temperature, above=0),
        as_float(None, "sharpness", 100.0 if sharpness is None else sharpness, 0),
        as_float(None, "shift", 0.0 if shift is None else shift),
        seed,
    )


def selection_order(
    strategy: Strategy,
    anchor: Int64[np.ndarray, " t"],
    positive: Int64[np.ndarray, " t"],
    rows: Int64[np.ndarray, "t m"],
    scores: Float[np.ndarray, "t m"],
    own: Float[np.ndarray, " t"],
    allowed: Bool[np.ndarray, "t m"],
) -> Int64[np.ndarray, "t m"]:
    """The candidates of each pair in the order in which they are chosen.

    Args:
        strategy: how.
        anchor: row of each pair.
        positive: row of each pair.
        rows: candidates, nearest first.
        scores: of the candidates.
        own: the score of each pair's positive.
        allowed: which may be chosen.

    Returns:
        Places of candidates, the allowed first.
    """
    if strategy.name in ("hardest", "semi-hard"):
        time = np.broadcast_to(np.arange(rows.shape[1], dtype=np.float64), rows.shape)
    else:
        key = keyed_bits(keyed_bits(derive_key("hard negatives", strategy.seed), anchor), positive)
        uniform = keyed_uniform(key[:, None], rows)
        # The log of an exponential time, −log(u) / w: a sum, so that the smallest weights keep their order.
        time = np.log(-np.log(uniform + 2.0**-54)) - _log_weights(strategy, scores, own)
    time = np.where(allowed, time, np.inf)
    return np.argsort(time, axis=1, kind="stable")


def _log_weights(
    strategy: Strategy, scores: Float[np.ndarray, "t m"], own: Float[np.ndarray, " t"]
) -> Float[np.ndarray, "t m"] | float:
    if strategy.name == "softmax":
        return scores / strategy.temperature
    if strategy.name == "simans":
        return -strategy.sharpness * (scores - own[:, None] - strategy.shift) ** 2
    return 0.0


def first_of_each_class(
    classes: Int64[np.ndarray, "t m"],
    order: Int64[np.ndarray, "t m"],
    allowed: Bool[np.ndarray, "t m"],
    most: int,
) -> Bool[np.ndarray, "t m"]:
    """Which allowed candidates are among the first `most` of their class, in the order of each row.

    Args:
        classes: the class of each candidate.
        order: places of candidates, as `selection_order` gives them.
        allowed: which may be chosen; others do not count.
        most: how many of a class.

    Example:
        >>> order = np.array([[2, 0, 1, 3]])
        >>> first_of_each_class(np.array([[7, 7, 7, 8]]), order, np.ones((1, 4), bool), 2).tolist()
        [[True, False, True, True]]
    """
    t, m = classes.shape
    places = np.arange(m)
    ordered = np.take_along_axis(np.where(allowed, classes, -1 - places), order, 1)
    by_class = np.argsort(ordered, axis=1, kind="stable")
    grouped = np.take_along_axis(ordered, by_class, 1)
    starts = np.where(np.diff(grouped, axis=1, prepend=grouped[:, :1] - 1) != 0, places, 0)
    nth = places - np.maximum.accumulate(starts, axis=1)  # how many of its class come before
    kept = np.empty((t, m), dtype=bool)
    np.put_along_axis(kept, np.take_along_axis(order, by_class, 1), nth < most, 1)
    return kept & allowed
