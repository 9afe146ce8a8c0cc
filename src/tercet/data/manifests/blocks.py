"""Triplets or pairs of any kind as blocks of row numbers of one size, each checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tercet.core.checks import array_of, refusal
from tercet.core.indices import Triplets
from tercet.data.manifests.formats import BLOCK
from tercet.data.triplets.pairs import LabeledPairs

__all__ = ["drawn_blocks", "kind_and_count"]


def kind_and_count(triplets: Any) -> tuple[str, int]:
    """The kind, "triplets" or "pairs", and how many."""
    kind = getattr(triplets, "kind", "triplets")
    if isinstance(triplets, (Triplets, LabeledPairs)):
        anchors = array_of("write_manifest", "triplets", triplets[0], "columns of catalog rows")
        return kind, anchors.shape[0] if anchors.ndim else 0
    try:
        return kind, len(triplets)
    except Exception:
        expected = "Triplets, LabeledPairs, or a sequence of either such as RandomTriplets"
        raise refusal("write_manifest", "triplets", triplets, expected) from None


def drawn_blocks(triplets: Any, rows: int, chunk_size: int, progress: bool) -> Iterator[np.ndarray]:
    """int32 [3, b] blocks of row numbers, b = BLOCK but for the last, drawn `chunk_size` at a time."""
    from rich.console import Console
    from rich.progress import track

    given = isinstance(triplets, (Triplets, LabeledPairs))
    kind, count = kind_and_count(triplets)
    if given:
        _checked(triplets, kind, count, rows)  # below, a slice would cut a longer column
    console = Console(stderr=True)
    starts = track(range(0, count, BLOCK), f"writing {kind}", console=console, disable=not progress)
    for start in starts:
        block = np.empty((3, min(BLOCK, count - start)), dtype=np.int32)
        for a in range(0, block.shape[1], chunk_size):
            b = min(a + chunk_size, block.shape[1])
            chunk = slice(start + a, start + b)
            columns = [column[chunk] for column in triplets] if given else triplets[chunk]
            block[:, a:b] = _checked(columns, kind, b - a, rows)
        yield block


def _checked(columns: Any, kind: str, count: int, rows: int) -> list[np.ndarray]:
    """As arrays, refused unless they are `count` row numbers below `rows`, of pairs the last 0 or 1."""
    together = "as many anchors as positives and negatives"
    if kind == "pairs":
        together = "and for each pair of them whether they are of one class"
    expected = f"catalog rows from 0 to {rows - 1}, {together}"
    arrays = [array_of("write_manifest", "triplets", column, expected) for column in columns]
    for nth, values in enumerate(arrays):
        numbers, high = "iu", rows
        if kind == "pairs" and nth == 2:
            numbers, high = "iub", 2
        if values.shape != (count,) or (count and values.dtype.kind not in numbers):
            got = f"array of {values.dtype}, shape {values.shape}"
            raise refusal("write_manifest", "triplets", got, expected)
        if count and not 0 <= values.min() <= values.max() < high:
            worst = values.max() if values.max() >= high else values.min()
            raise refusal("write_manifest", "triplets", int(worst), expected)
    return arrays
