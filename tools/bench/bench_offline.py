#!/usr/bin/env python
"""Hard negatives of a whole collection beside those of sentence-transformers, on the same embeddings.

    python tools/bench/bench_offline.py
    python tools/bench/bench_offline.py --sizes 5000 --repeats 1

The peer takes (anchor, positive) pairs of texts, each a number here, and a model that looks embeddings up. It
is asked twice: with one positive for each anchor, as its data sets have, and with all of the anchor's class,
the anchor among them. All sides run by turns in one process; each peak is that of a process of its own.
`--markdown` puts the table into the results page.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_nearest import Peak, apart, made
from page import table, told, write_section
from torch import Tensor

K, DEPTH, PER_CLASS, GROUPS = 5, 50, 8, 4
SIDES = ("tercet", "tercet, every positive", "S-T, one positive", "S-T, told the class")
WRONGS = ("anchor", "class", "group", "duplicate")
ABOUT = """
Five negatives of each anchor among its 50 nearest, {dim} float32 numbers a row, normalised, eight rows of a
class and a camera of four for each row; one row in a hundred has a copy in another class. Seconds of the
processor, medians of rounds by turns in one process, with embeddings given; MiB above the inputs, most of a
process of its own. The other columns count negatives that are the anchor itself, of its class, of its camera,
and its duplicates. *S-T* is `sentence_transformers.util.mine_hard_negatives` on (anchor, positive) pairs:
with one positive for each anchor, and with all of its class, itself among them; its corpus is all rows.
*Same* is the share of anchors with the negatives of tercet without cameras, of the anchors for which the peer
mined nothing wrong. Times were taken while other work ran on the machine.
"""


class Lookup:
    """A model, as the peer takes one, that looks the embedding of each number up."""

    device = torch.device("cpu")

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        """The rows whose numbers stand in the texts, after a letter."""
        return self._x[[int(text[1:]) for text in texts]]

    encode_query = encode_document

    def get_embedding_dimension(self) -> int:
        """d."""
        return self._x.shape[1]

    def similarity(self, x: Any, y: Any) -> Tensor:
        """Cosines, since the rows are normalised."""
        return torch.as_tensor(x) @ torch.as_tensor(y).T

    def similarity_pairwise(self, x: Any, y: Any) -> Tensor:
        """Cosines of rows."""
        return (torch.as_tensor(x) * torch.as_tensor(y)).sum(1)


def collection(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, classes and cameras."""
    x, labels = made(n, PER_CLASS)
    rng = np.random.default_rng(1)
    copies = rng.choice(n, n // 50, replace=False).reshape(2, -1)
    copies = copies[:, labels[copies[0]] != labels[copies[1]]]
    x[copies[0]] = x[copies[1]]
    return x, labels, rng.integers(0, GROUPS, n)


def pairs_of(labels: np.ndarray, every: bool) -> tuple[np.ndarray, np.ndarray]:
    """(anchor, positive): the next of the class, or where `every` all of it and the anchor itself."""
    order = np.argsort(labels, kind="stable")
    anchors, positives = [], []
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(rows) < 2:
            continue
        anchors.append(np.repeat(rows, len(rows)) if every else rows)
        positives.append(np.tile(rows, len(rows)) if every else np.roll(rows, -1))
    return np.concatenate(anchors), np.concatenate(positives)


def theirs(x: np.ndarray, labels: np.ndarray, every: bool, **options: Any) -> dict[int, list[int]]:
    """The peer's negatives of each anchor, in its order; none is left out where a list is short."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    anchors, positives = pairs_of(labels, every)
    columns = {"anchor": [f"q{row}" for row in anchors], "positive": [f"d{row}" for row in positives]}
    corpus = [f"d{row}" for row in range(len(x))]  # else rows that are nobody's positives are not mined
    options = {"num_negatives": K, "range_max": DEPTH, "corpus": corpus, "verbose": False} | options
    found = mine_hard_negatives(Dataset.from_dict(columns), Lookup(x), **options)
    negatives: dict[int, list[int]] = {int(row): [] for row in anchors}
    seen = set()
    for anchor, negative in zip(found["anchor"], found["negative"], strict=True):
        if (anchor, negative) not in seen:  # the list of an anchor is repeated for each positive
            seen.add((anchor, negative))
            negatives[int(anchor[1:])].append(int(negative[1:]))
    return negatives


def ours(
    x: np.ndarray, labels: np.ndarray, positives: str = "easiest", **options: Any
) -> dict[int, list[int]]:
    """Our negatives of each anchor."""
    from tercet import mine_hard_triplets

    options = {"negatives": K, "ranks": (1, DEPTH)} | options
    found = mine_hard_triplets(x, labels, positives=positives, **options)
    rows = zip(found.anchor.tolist(), found.negatives, strict=True)
    return {anchor: negatives[negatives >= 0].tolist() for anchor, negatives in rows}


def wrongs(
    found: dict[int, list[int]], x: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Of each negative whether it is wrong, by `WRONGS`, and its anchor under `"of"`."""
    a = np.array([anchor for anchor, negatives in found.items() for _ in negatives], dtype=np.int64)
    n = np.array([row for negatives in found.values() for row in negatives], dtype=np.int64)
    return {
        "of": a,
        "anchor": a == n,
        "class": (a != n) & (labels[a] == labels[n]),
        "group": (labels[a] != labels[n]) & (groups[a] == groups[n]),
        "duplicate": (labels[a] != labels[n]) & (x[a] == x[n]).all(1),
    }


def same_share(
    theirs: dict[int, list[int]], ours: dict[int, list[int]], wrong: dict[str, np.ndarray], x: np.ndarray
) -> float | None:
    """The share of anchors with the same negatives, of those for which the peer mined nothing wrong.

    Of rows with one embedding either is right, where a list ends between them.
    """
    code = np.unique(x, axis=0, return_inverse=True)[1]
    bad = set(wrong["of"][wrong["anchor"] | wrong["class"] | wrong["duplicate"]].tolist())
    both = [anchor for anchor in theirs if anchor in ours and anchor not in bad]
    same = [sorted(code[theirs[anchor]]) == sorted(code[ours[anchor]]) for anchor in both]
    return statistics.fmean(same) if same else None


def call_of(side: str, x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Callable[[], Any]:
    """One side."""
    if side.startswith("S-T"):
        return lambda: theirs(x, labels, side == "S-T, told the class")
    positives = "all" if side == "tercet, every positive" else "easiest"
    return lambda: ours(x, labels, positives, groups=groups)


def turns(n: int, threads: int, repeats: int) -> dict[str, tuple[float, dict[str, int], float | None]]:
    """Of each side the seconds, what it mined wrong, and how often it agrees."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    random.seed(0)
    given = collection(n)
    small = collection(500)
    for side in SIDES:
        call_of(side, *small)()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, dict[int, list[int]]] = {}
    for _ in range(repeats):
        for side in SIDES:
            start = time.process_time()
            found[side] = call_of(side, *given)()
            seconds[side].append(time.process_time() - start)
    alone, out = ours(*given[:2]), {}
    for side in SIDES:
        wrong = wrongs(found[side], *given)
        same = same_share(found[side], alone, wrong, given[0]) if side.startswith("S-T") else None
        out[side] = statistics.median(seconds[side]), {name: int(wrong[name].sum()) for name in WRONGS}, same
    return out


def peak(n: int, threads: int, side: str) -> float:
    """MiB that one call of a side takes above its inputs, after a small one that loads its code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    given = collection(n)
    call_of(side, *collection(500))()
    with Peak() as held:
        call_of(side, *given)()
    return held.mib


def main() -> None:
    parser = argparse.ArgumentParser(description="Hard negatives of a whole collection.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000], help="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    heads, lines = ["N", "side", "s", "MiB", *WRONGS, "same"], []
    for n in options.sizes:
        for side, (seconds, wrong, same) in apart(turns, n, options.threads, options.repeats).items():
            mib = apart(peak, n, options.threads, side)
            counts = [f"{count:,}" for count in wrong.values()]
            shown = "" if same is None else f"{same:.4f}"
            lines.append([f"{n:,}", side, f"{seconds:.3g}", f"{mib:.0f}", *counts, shown])
            print(*(f"{field:>12}" for field in lines[-1]), flush=True)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_offline.py", *sys.argv[1:]])
        text = [
            "## Hard negatives of a collection",
            f"{told()} Threads: {options.threads}. Regenerate with `{command}`.",
            " ".join(ABOUT.format(dim=128).split()),
            table(heads, lines, left=2),
        ]
        write_section(options.markdown, "offline", "\n\n".join(text))


if __name__ == "__main__":
    main()
