"""Whether ours and the peers' miners and losses are the same functions: values, gradients, mined tuples.

    python tools/bench/bench_definitions.py [--markdown tools/bench/RESULTS.md]

Two batches, one P × K and one of uneven classes. The distance of two values is a share of the larger, that of
two gradients (by the embeddings, the proxies and β) the largest difference as a share of the largest entry.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from cases import CASES, OURS, PML, Case, Side
from page import table, told, write_section
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

import tercet

SINGLE = 1e-5  # how far float32 may be apart
DIM = 16
SIZES = {"P × K": [4] * 12, "uneven": [7, 5, 3, 2, 2]}
HEADS = ["case", "peer", "value, float64", "gradient", "value, float32", "gradient", "same", "what differs"]
EDGES = ["case", "input", "tercet", "pytorch-metric-learning", "why"]


class Apart(NamedTuple):
    """How far ours is from a peer's."""

    value: float
    gradient: float


def batch(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit vectors in mixed order, of the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(SIZES[name])).repeat_interleave(torch.tensor(SIZES[name]))
    centres = torch.randn(len(SIZES[name]), DIM, generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    x = torch.randn(len(labels), DIM, generator=generator) + 0.5 * centres[labels]
    return normalize(x.double())[order].to(dtype), labels[order]


def of_loss(side: Side, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients by the embeddings and by the side's own parameters."""
    x = x.clone().requires_grad_()
    own = []
    if isinstance(side, nn.Module):
        own = list(side.to(x.dtype).parameters())
    loss = side(x, labels)
    return loss.detach(), list(torch.autograd.grad(loss, [x, *own]))


def apart(case: Case, name: str, peer: str, dtype: torch.dtype) -> Apart:
    """Ours and a peer's loss of one batch. Their proxies may stand in columns, and β in a vector of one."""
    x, labels = batch(name, dtype)
    sides = case.make(len(SIZES[name]), DIM)
    value, gradients = of_loss(sides[OURS], x, labels)
    other, others = of_loss(sides[peer], x, labels)
    worst = 0.0
    for ours, theirs in zip(gradients, others, strict=True):
        turned = ours.ndim == 2 and theirs.shape != ours.shape
        theirs = theirs.T if turned else theirs.reshape(ours.shape)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return Apart(float((value - other).abs() / torch.maximum(value.abs(), other.abs())), worst)


def farthest(case: Case, peer: str, dtype: torch.dtype) -> Apart:
    """The larger distances of the two batches."""
    found = [apart(case, each, peer, dtype) for each in SIZES]
    return Apart(*(max(some) for some in zip(*found, strict=True)))


def shared(case: Case, name: str, peer: str, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tuples that only ours mines, that both do, and that only the peer does."""
    torch.manual_seed(0)
    x, labels = batch(name, dtype)
    sides = case.make(len(SIZES[name]), DIM)
    ours, theirs = (tuples(sides[side](x, labels)) for side in (OURS, peer))
    return len(ours - theirs), len(ours & theirs), len(theirs - ours)


def tuples(mined: tuple[Tensor, ...]) -> set[tuple[int, ...]]:
    """Mined rows as a set; of four, the pairs with what they are. (a, p, a, n) side by side is a triplet."""
    if len(mined) == 4 and len(mined[0]) == len(mined[2]) and torch.equal(mined[0], mined[2]):
        mined = (mined[0], mined[1], mined[3])
    if len(mined) == 3:
        return set(zip(*(row.tolist() for row in mined), strict=True))
    sides = ((1, *mined[:2]), (0, *mined[2:]))
    return {(side, i, j) for side, a, b in sides for i, j in zip(a.tolist(), b.tolist(), strict=True)}


def lines() -> Iterator[list[str]]:
    """The table, a line for each case and peer."""
    for name, case in CASES.items():
        for peer in list(case.make(2, 2))[1:]:
            if case.kind == "miner":
                counts = [shared(case, each, peer, torch.float64) for each in SIZES]
                ours, both, theirs = (sum(some) for some in zip(*counts, strict=True))
                same = "yes" if not ours and not theirs else "no"
                what = f"{both} tuples in both, {ours} in ours alone, {theirs} in theirs alone"
                yield [name, peer, "", "", "", "", same, "; ".join(filter(None, [what, case.differs]))]
                continue
            double, single = (farthest(case, peer, dtype) for dtype in (torch.float64, torch.float32))
            same = max(double) <= case.tolerance and max(single) <= max(SINGLE, case.tolerance)
            shown = [f"{v:.0e}" for v in (*double, *single)]
            yield [name, peer, *shown, "yes" if same else "no", case.differs]


def edges() -> Iterator[list[str]]:
    """Inputs on which heads that agree otherwise do not: what, ours, theirs, why."""
    x, labels = batch("P × K", torch.float64)
    once = tercet.BatchHard()(x, labels)
    twice = tercet.Triplets(*(torch.cat([row, row[:5]]) for row in once))
    one = torch.zeros_like(labels)
    why = "ours is the mean over distinct pairs, theirs counts a pair as often as it is listed"
    rows = [
        ("SupCon", "one class only", (one,), "theirs is 0 without negatives; in L_out positives compete"),
        ("InfoNCE", "batch-hard triplets", (labels, once), "each pair is listed once"),
        ("InfoNCE", "the same, five of them repeated", (labels, twice), why),
        ("lifted structure", "batch-hard triplets", (labels, once), "each pair is listed once"),
        ("lifted structure", "the same, five of them repeated", (labels, twice), why),
    ]
    for name, what, call, reason in rows:
        sides = CASES[name].make(2, 2)
        values = [f"{float(sides[side](x, *call)):.6f}" for side in (OURS, PML)]
        yield [name, what, *values, reason]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    rows = list(lines())
    shown = Table(*HEADS, title="distances between ours and the peers'")
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    more = list(edges())
    shown = Table(*EDGES, title="the losses at the edges")
    for row in more:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    wrong = [row[0] for row in rows if row[1] == PML and (row[6] == "yes") == bool(CASES[row[0]].differs)]
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_definitions.py", *sys.argv[1:]])
        about = (__doc__ or "").strip().split("\n\n")[-1].replace("\n", " ")
        text = f"## Definitions\n\n{told()} Regenerate with `{command}`.\n\n{about}\n\n"
        text += f"{table(HEADS, rows, left=8)}\n\n{table(EDGES, more, left=5)}"
        write_section(options.markdown, "definitions", text)
    if wrong:
        raise SystemExit(f"the table of cases says otherwise of: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
