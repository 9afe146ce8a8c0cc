#!/usr/bin/env python
"""What memory training on 10⁶ classes takes, with a sample of them a step and with all.

    python tools/bench/bench_many_classes.py [--classes 1000000] [--markdown tools/bench/RESULTS.md]

CosFace against class centers of 128 numbers, batches of 128 rows. A row is a process of its own on two
threads: its peak is the largest resident set of a few steps, less that after the same steps of a small head.
The limit of a sampled row is the centers, what the optimiser keeps, twelve tables of the compared centers
(as they are, divided by their lengths, scaled, the logits of the batch, their gradients) and 64 MiB.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from page import short, table, told, write_section

import tercet

DIM, BATCH, STEPS = 128, 128, 3
TABLES, MORE = 12, 64  # MiB that the allocator keeps, and blocks of first centers
OPTIMISERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "SparseAdam": lambda weights: torch.optim.SparseAdam(weights),
    "Adam": lambda weights: torch.optim.Adam(weights),
}
KEPT = {"SGD": 0, "SparseAdam": 2, "Adam": 2}  # tables as large as the centers
CASES = [
    ("SGD", 0.01),
    ("SGD", 0.1),
    ("SparseAdam", 0.01),
    ("SparseAdam", 0.1),
    ("SGD", None),
    ("Adam", None),
]
HEADS = ["optimiser", "sample", "centers", "limit", "peak"]


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(optimiser: str, sample: float | None, classes: int) -> float:
    """MiB above those that a small head leaves."""
    torch.set_num_threads(2)
    trained(optimiser, sample, 1000)  # what libraries load and keep for themselves
    before = peak()
    trained(optimiser, sample, classes)
    return peak() - before


def trained(optimiser: str, sample: float | None, classes: int) -> None:
    """A few steps of a head."""
    generator = torch.Generator().manual_seed(0)
    head = tercet.CosFace(classes, DIM, sample=sample)
    steps = OPTIMISERS[optimiser](head.parameters())
    for _ in range(STEPS):
        x = torch.randn(BATCH, DIM, generator=generator, requires_grad=True)
        labels = torch.randint(classes, (BATCH,), generator=generator)
        steps.zero_grad()
        head(x, labels).backward()
        steps.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    if options.one:
        optimiser, sample = options.one
        print(one(optimiser, None if sample == "None" else float(sample), options.classes))
        return
    centers, rows, over = options.classes * DIM * 4 / 2**20, [], []
    for optimiser, sample in CASES:
        call = [sys.executable, __file__, "--classes", str(options.classes), "--one", optimiser, str(sample)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        most = float(done.stdout)
        limit = None if sample is None else centers * (1 + KEPT[optimiser] + TABLES * sample) + MORE
        if limit is not None and most > limit:
            over.append(f"{optimiser}, {sample}: {most:.0f} MiB, {limit:.0f} allowed")
        shown = "all" if sample is None else f"{sample:g}"
        rows.append([optimiser, shown, short(centers), short(limit), short(most)])
        print(*rows[-1], sep=" · ", flush=True)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_many_classes.py", *sys.argv[1:]])
        text = (
            f"## Many classes\n\n`{command}`\n\n{told()}\n\n{options.classes:,} classes × {DIM}, batches of "
        )
        text += f"{BATCH}, two threads; MiB above the process without the head.\n\n"
        write_section(options.markdown, "many classes", text + table(HEADS, rows, left=2))
    print(*over or ["every sampled row is within its limit"], sep="\n")
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
