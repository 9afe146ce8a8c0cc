"""What the loss of all triplets, and of all pairs, costs: forward and backward, d = 128, K = 8; medians.

    python tools/bench/bench_all_triplets.py

The budget: the hinge at N = 1024 at least 25 × faster than pytorch-metric-learning, in at most 1/20 of its
memory, and the contrastive loss never slower and never larger. Ours, theirs and the bare matrix product run
by turns in one process. Times are processor time, all threads together, which a busy machine distorts least;
`--wall` takes the clock instead. Each peak is that of a process of its own (VmHWM, so on Linux only), above
what it held before the step; ru_maxrss would start from the peak of the process that started it.
Without pytorch-metric-learning the column of the peer stays empty.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin

Head = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LARGEST_OF_PEER = 2048


def heads() -> dict[str, Head]:
    return {
        "hinge": TripletMargin(0.2),
        "squared hinge": TripletMargin(0.2, power=2),
        "soft margin": TripletMargin(soft=True),
        "contrastive": Contrastive(),
    }


def peers() -> dict[str, Head]:
    """The library's heads by the names of ours; it has no squared hinge."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return {}
    from pytorch_metric_learning import losses, reducers

    return {
        "hinge": losses.TripletMarginLoss(margin=0.2, reducer=reducers.AvgNonZeroReducer()),
        "soft margin": losses.TripletMarginLoss(margin=0, smooth_loss=True),
        "contrastive": losses.ContrastiveLoss(pos_margin=0, neg_margin=1),
    }


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 128, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x), torch.arange(n) // 8


def step(head: Head, x: torch.Tensor, labels: torch.Tensor) -> None:
    head(x.clone().requires_grad_(), labels).backward()


def ms(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return 1000 * (clock() - start)


def held_mib() -> float:
    """The most memory that this process has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_mib(side: str, name: str, n: int, threads: int) -> float:
    """The most memory of a process that takes one step, above that of one which has taken a tiny step."""
    call = [sys.executable, __file__, "--threads", str(threads), "--one", side, name, str(n)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def one(side: str, name: str, n: int) -> None:
    head = (heads() if side == "ours" else peers())[name]
    step(head, *batch(16))
    x, labels = batch(n)
    x @ x[:64].T  # the workspace of matrix products is nobody's
    before = held_mib()
    step(head, x, labels)
    print(held_mib() - before)


def row(name: str, n: int, repeats: int, threads: int, clock: Callable[[], float]) -> str:
    x, labels = batch(n)
    ours = heads()[name]
    works = {"ours": lambda: step(ours, x, labels), "matmul": lambda: x @ x.T}
    theirs = peers().get(name) if n <= LARGEST_OF_PEER else None
    if theirs is not None:
        works["peer"] = lambda: step(theirs, x, labels)
    times: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(repeats):
        for side, work in works.items():
            times[side].append(ms(work, clock))
    median = {side: statistics.median(values) for side, values in times.items()}
    memory = {side: peak_mib(side, name, n, threads) for side in works if side != "matmul"}
    shown = [median["ours"], median["ours"] / median["matmul"], memory["ours"]]
    if theirs is not None:
        shown += [median["peer"], median["peer"] / median["ours"], memory["peer"]]
    return f"{name:<14}{n:>6}" + "".join(f"{value:>11.1f}" for value in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1024, 2048, 8192])
    parser.add_argument("--heads", nargs="+", choices=list(heads()), default=list(heads()))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wall", action="store_true", help="wall-clock time instead of processor time")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "HEAD", "N"), help="print one peak and leave")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        one(options.one[0], options.one[1], int(options.one[2]))
        return
    clock = time.perf_counter if options.wall else time.process_time
    columns = ("ms", "× matmul", "MiB", "peer ms", "× faster", "peer MiB")
    print(f"{'head':<14}{'N':>6}" + "".join(f"{column:>11}" for column in columns))
    for name in options.heads:
        for n in options.sizes:
            repeats = options.repeats if n <= LARGEST_OF_PEER else 1
            print(row(name, n, repeats, options.threads, clock), flush=True)


if __name__ == "__main__":
    main()
