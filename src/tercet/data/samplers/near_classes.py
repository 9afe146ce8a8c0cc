"""Batches of classes that are easily confused, each class in exactly as many batches as it is due."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tercet.core.checks import as_array, refusal
from tercet.core.randomness import keyed_uniform
from tercet.data.samplers.class_table import Labels

__all__ = ["assign_near", "class_directions", "near_items"]

BLOCK_NUMBERS = 1 << 24  # products at a time: 64 MiB
LEAST_LISTED = 64  # neighbours listed of each class: several times the near places, since some are not due


def class_directions(values: Any, given: Labels, within: Labels) -> Float[np.ndarray, "c d"]:
    """Unit vectors of classes: the means of their images' embeddings, or vectors given for each label.

    Args:
        values: [n, d] an embedding for each image, or [labels, d] one for each label in sorted order.
        given: the labels.
        within: the classes, which are the labels, or those of each group by itself.

    Returns:
        float32 [c, d], each of length 1; of length 0 where a mean is 0.

    Raises:
        ValueError: another shape, not numbers, or numbers that are not finite.
    """
    codes, classes, labels = within.codes, len(within.names), len(given.names)
    expected = f"an array of floats [{len(codes)}, d], one row an image, or [{labels}, d], one row a class"
    array = as_array("PKSampler", "confusion", values, expected)
    if array.ndim != 2 or len(array) not in (len(codes), labels) or array.shape[1] < 1:
        raise refusal("PKSampler", "confusion", f"array of shape {array.shape}", expected)
    if array.dtype.kind not in "fiu":
        raise refusal("PKSampler", "confusion", f"array of {array.dtype}", expected)
    sums = np.zeros((classes, array.shape[1]))
    if len(array) == len(codes):
        for start in range(0, len(array), 1 << 14):  # an array on disk is read a part at a time
            part = np.asarray(array[start : start + (1 << 14)], dtype=np.float64)
            order = np.argsort(codes[start : start + len(part)], kind="stable")
            found, first = np.unique(codes[start : start + len(part)][order], return_index=True)
            sums[found] += np.add.reduceat(part[order], first)
    else:
        label_of = np.arange(labels) if within.label_of is None else within.label_of
        sums = np.asarray(array, dtype=np.float64)[label_of]
    bad = np.flatnonzero(~np.isfinite(sums).all(axis=1))
    if bad.size:
        got = f"NaN or infinite numbers in {bad.size} of {classes} classes"
        raise refusal("PKSampler", "confusion", got, "finite numbers")
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def near_items(
    directions: Float[np.ndarray, "i d"], group: Int[np.ndarray, " i"], near: int
) -> Int[np.ndarray, "i m"]:
    """The items of its group nearest to each item, itself first.

    Args:
        directions: [i, d] unit vectors; items of a large product are near.
        group: [i] the group of each item.
        near: how many of a batch are to be near each other.

    Returns:
        int64 [i, m], m of at least `near` and at most the number of items; an item of a smaller group is
        listed again instead of what it lacks.
    """
    count = min(len(directions), max(LEAST_LISTED, 4 * near))
    found = np.repeat(np.arange(len(directions))[:, None], count, axis=1)
    for members in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        kept = min(count, len(members))
        height = max(1, BLOCK_NUMBERS // max(1, len(members)))
        for start in range(0, len(members), height):
            rows = members[start : start + height]
            products = directions[rows] @ directions[members].T  # [a, g]
            products[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
            first = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
            order = np.argsort(-np.take_along_axis(products, first, 1), axis=1, kind="stable")
            found[rows, :kept] = members[np.take_along_axis(first, order, 1)]
    return found


def assign_near(
    counts: Int[np.ndarray, " i"],
    steps: int,
    ranks: int,
    width: int,
    near: int,
    neighbors: Int[np.ndarray, "i m"],
    key: int,
) -> Int[np.ndarray, "s w"]:
    """Assign items to batches like `balanced_plan.assign`, `near` of each batch near each other.

    Item i is due at the times (j + u_i) · S / m_i, j = 0 … m_i − 1, with a keyed u_i and m_i its count. A
    batch begins with the item due first; `near` − 1 others are its nearest that are less than one turn
    ahead of their time; the rest are those due first. An item that has to be in all steps to come is taken
    in any case, so the counts come out exactly.

    Args:
        counts: [i] from `water_fill`: at most `steps` each, steps · ranks · width in sum.
        steps: S, the number of steps.
        ranks: batches in a step.
        width: the number of items in a batch.
        near: how many of these are near each other, at least 1.
        neighbors: [i, m] the nearest items of each, itself first.
        key: names all draws.

    Returns:
        int64 [S, ranks · width], distinct within a step, the items of a batch side by side.
    """
    deck = _Deck(counts, steps, key)
    plan = np.empty((steps, ranks, width), dtype=np.int64)
    for step in range(steps):
        deck.begin(step)
        for rank in range(ranks):
            batch: list[int] = []
            places_after = (ranks - rank - 1) * width
            must = min(width, deck.unavoidable(places_after))
            batch += deck.take(deck.first_unavoidable(1) if must else deck.due_first(1))
            listed = neighbors[batch[0]]
            batch += deck.take(listed[deck.ready(listed)][: max(0, min(near, width - must + 1) - 1)].tolist())
            must = min(width - len(batch), deck.unavoidable(places_after))
            batch += deck.take(deck.first_unavoidable(must))
            batch += deck.take(deck.due_first(width - len(batch)))
            plan[step, rank] = batch
    return plan.reshape(steps, ranks * width)


class _Deck:
    """Items with the number of steps in which each still has to be, and when it is due next.

    Args:
        counts: [i] the number of steps of each item.
        steps: the number of all steps.
        key: names when each item is due.
    """

    def __init__(self, counts: Int[np.ndarray, " i"], steps: int, key: int) -> None:
        self._steps, self._step = steps, -1
        self._remaining = counts.copy()
        self._period = steps / np.maximum(counts, 1)
        self._due = keyed_uniform(key, np.arange(len(counts))) * self._period
        self._last = np.full(len(counts), -1)  # the last step that has the item
        # (due, item); an entry is void once its item is due at another time.
        self._queue = [(self._due[i], i) for i in np.flatnonzero(counts).tolist()]
        heapq.heapify(self._queue)
        self._again: list[tuple[float, int]] = []  # of items of this step, for the queue of the next one
        self._unavoidable: list[int] = []

    def begin(self, step: int) -> None:
        """Go to the next step."""
        for entry in self._again:
            heapq.heappush(self._queue, entry)
        self._again, self._step = [], step
        self._unavoidable = np.flatnonzero(self._remaining == self._steps - step).tolist()

    def unavoidable(self, places: int) -> int:
        """How many items that have to be in this step do not fit into so many places."""
        self._unavoidable = [item for item in self._unavoidable if self._last[item] != self._step]
        return max(0, len(self._unavoidable) - places)

    def first_unavoidable(self, number: int) -> list[int]:
        """So many of the items that have to be in this step."""
        return self._unavoidable[:number]

    def due_first(self, number: int) -> list[int]:
        """The items not in this step that are due first."""
        found: list[int] = []
        while len(found) < number:
            due, item = heapq.heappop(self._queue)
            if due == self._due[item] and self._last[item] != self._step and self._remaining[item]:
                found.append(item)
        return found

    def ready(self, items: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
        """Which items this step may have: not in it yet, and less than a turn ahead of their time."""
        early = self._due[items] - self._period[items] <= self._step
        return early & (self._remaining[items] > 0) & (self._last[items] != self._step)

    def take(self, items: list[int]) -> list[int]:
        """The items, now in this step."""
        for item in items:
            self._last[item] = self._step
            self._remaining[item] -= 1
            self._due[item] += self._period[item]
            if self._remaining[item]:
                self._again.append((self._due[item], item))
        return items
