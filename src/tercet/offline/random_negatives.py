"""Negatives drawn at random from a whole collection, each a function of a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from tercet.core.randomness import derive_key, keyed_bits, keyed_integers

__all__ = ["Forbidden", "draw_negatives"]

_TRIES = 32  # draws of a slot before the rows that remain are listed


class Forbidden:
    """Which rows may not be a negative of an anchor: those of its class, group or image, or set aside.

    Args:
        classes: [n] class numbers; −1 for a row that is no candidate.
        same: columns [n] of numbers; rows of the anchor's number are forbidden, such as its group.
        set_aside: functions (anchors, rows) → bool that forbid further rows.

    Example:
        >>> forbidden = Forbidden(np.array([0, 0, 1, -1]))
        >>> forbidden(np.zeros(4, np.int64), np.arange(4)).tolist()
        [True, True, False, True]
    """

    def __init__(
        self,
        classes: Int64[np.ndarray, " n"],
        same: Sequence[np.ndarray] = (),
        set_aside: Sequence[Callable[[Any, Any], Any]] = (),
    ) -> None:
        self._classes, self._same, self._set_aside = classes, same, set_aside

    def __len__(self) -> int:
        return len(self._classes)

    def __call__(
        self, anchors: Int64[np.ndarray, " s"], rows: Int64[np.ndarray, " s"]
    ) -> Bool[np.ndarray, " s"]:
        """Whether each row is forbidden for its anchor."""
        forbidden = (self._classes[rows] == self._classes[anchors]) | (self._classes[rows] < 0)
        for column in self._same:
            forbidden |= column[rows] == column[anchors]
        for is_aside in self._set_aside:
            forbidden |= is_aside(anchors, rows)
        return forbidden


def draw_negatives(
    seed: int,
    anchor: Int64[np.ndarray, " t"],
    positive: Int64[np.ndarray, " t"],
    negatives: Int64[np.ndarray, "t k"],
    empty: Bool[np.ndarray, "t k"],
    refused: Int64[np.ndarray, "t m"],
    forbidden: Forbidden,
) -> Int64[np.ndarray, "t k"]:
    """The negatives with empty places filled by rows drawn uniformly, none twice for a pair.

    Args:
        seed: of the draws.
        anchor: row of each pair.
        positive: row of each pair.
        negatives: rows so far; −1 where there is none.
        empty: which places to fill.
        refused: further rows that may not be drawn for a pair; −1 for none.
        forbidden: which rows may not be drawn for an anchor.

    Returns:
        A new array; −1 where the collection has no further row for the pair.
    """
    n = len(forbidden)
    filled = np.where(empty, -1, negatives)
    key = keyed_bits(keyed_bits(derive_key("random negatives", seed), anchor), positive)
    for place in range(filled.shape[1]):
        todo = np.flatnonzero(empty[:, place])
        for attempt in range(_TRIES):
            if not len(todo):
                break
            row = keyed_integers(key[todo], place, attempt, high=n)
            taken = np.concatenate([filled[todo], refused[todo]], axis=1)
            good = ~forbidden(anchor[todo], row) & (taken != row[:, None]).all(1)
            filled[todo[good], place] = row[good]
            todo = todo[~good]
        of, allowed = -1, np.empty(0, dtype=np.int64)
        for t in todo.tolist():  # almost every row is forbidden: list those that are not, once an anchor
            if anchor[t] != of:
                of, allowed = anchor[t], np.flatnonzero(~forbidden(np.full(n, anchor[t]), np.arange(n)))
            rows = np.setdiff1d(allowed, np.concatenate([filled[t], refused[t]])) if len(allowed) else allowed
            if len(rows):
                filled[t, place] = rows[keyed_integers(key[t : t + 1], place, _TRIES, high=len(rows))[0]]
    return filled
