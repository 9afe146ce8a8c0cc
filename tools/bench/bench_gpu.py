"""Miners and heads on a CUDA card, beside the peers and the bare matrix product: time, memory, host reads.

    python tools/bench/bench_gpu.py
    python tools/bench/bench_gpu.py --sizes 64 2048 --cases "batch hard" InfoNCE --tf32
    python tools/bench/bench_gpu.py --markdown tools/bench/RESULTS.md

Time is what CUDA events measure about a step, gaps in which the card waits for the host included; the sides
take turns. A *read* is an operation after which the host waits for the card, as
`torch.cuda.set_sync_debug_mode("warn")` tells. Labels are where a loader leaves them, on the host; for peers
that need them on the card a step sends them up. Heads are run forward and backward. Without a card,
`bench_card.py` counts operations and reads on a pretended one.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from page import ratio, short, table, told, write_section
from rich.console import Console
from rich.table import Table

MATMUL, OURS = "matmul", "tercet"
HEADS = [
    "case",
    "N",
    "ms",
    "× matmul",
    "MiB",
    "reads",
    "peer",
    "peer ms",
    "× faster",
    "peer MiB",
    "peer reads",
]
SIZES = [64, 128, 512, 2048, 8192]
WARM = 3  # steps before the first that counts: they load kernels and fill the allocator


@dataclass
class Figures:
    """Of one side: milliseconds, the median of its rounds, MiB above the inputs, reads, or why none."""

    ms: float | None = None
    mib: float | None = None
    reads: int | None = None
    died: str = ""


Row = tuple[str, int, dict[str, Figures]]
"""The case, N, and the figures of each side; the matrix product is one of them."""


class Meter(Protocol):
    """What is asked of a device about one step."""

    def ms(self, step: Callable[[], Any]) -> float:
        """Milliseconds."""
        ...

    def mib(self, step: Callable[[], Any]) -> float:
        """The most memory that it takes above what is in use before."""
        ...

    def reads(self, step: Callable[[], Any]) -> int:
        """How often the host waits."""
        ...


class Cuda:
    """A CUDA card asked by its own means."""

    def ms(self, step: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def mib(self, step: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def reads(self, step: Callable[[], Any]) -> int:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(each.message) and "called" in str(each.message) for each in said)


def step_of(side: Any, x: torch.Tensor, labels: torch.Tensor, sent: bool) -> Callable[[], None]:
    """One call, and backward where there is a loss; `sent` takes the labels to the embeddings first."""

    def step() -> None:
        y = labels.to(x.device, non_blocking=True) if sent else labels
        out = side(x.clone().requires_grad_(), y)
        if isinstance(out, torch.Tensor) and out.requires_grad:
            out.backward()

    return step


def figures(
    steps: dict[str, Callable[[], Any]],
    meter: Meter,
    died: dict[str, str],
    rounds: int = 20,
    seconds: float = 20.0,
) -> dict[str, Figures]:
    """The figures of all sides, by turns.

    Args:
        steps: a step of each side, by name.
        meter: what measures it.
        died: sides that gave up at a smaller size, and why; they are not tried again.
        rounds: how many steps of each side are timed.
        seconds: a side whose step takes longer gives up.
    """
    found = {name: Figures(died=died.get(name, "")) for name in steps}
    for name, step in steps.items():
        figure = found[name]
        if figure.died:
            continue
        try:
            ms = [meter.ms(step)]
            while len(ms) < WARM and ms[-1] < 1000 * seconds:
                ms.append(meter.ms(step))
            if ms[-1] > 1000 * seconds:
                figure.died = f"over {seconds:g} s"
                continue
            figure.mib, figure.reads = meter.mib(step), meter.reads(step)
        except torch.cuda.OutOfMemoryError:
            figure.died = "over the memory"
        except Exception as error:  # what a peer cannot do on a card is a finding
            figure.died = type(error).__name__
    alive = [name for name, figure in found.items() if not figure.died]
    times: dict[str, list[float]] = {name: [] for name in alive}
    for _ in range(rounds):
        for name in alive:
            if sum(times[name]) < 1000 * seconds:
                times[name].append(meter.ms(steps[name]))
    for name, ms in times.items():
        found[name].ms = statistics.median(ms)
    return found


def lines(row: Row) -> list[list[str]]:
    """A line for each peer, or one where there is none."""
    case, n, found = row
    ours, product = found[OURS], found[MATMUL]

    def of(figure: Figures, factor: float | None) -> list[str]:
        reads = "–" if figure.reads is None else str(figure.reads)
        return [figure.died or short(figure.ms), short(factor), short(figure.mib), reads]

    start = [case, str(n), *of(ours, ratio(ours.ms, product.ms))]
    peers = [name for name in found if name not in (OURS, MATMUL)]
    if not peers:
        return [[*start, *["–"] * 5]]
    return [[*start, name, *of(found[name], ratio(found[name].ms, ours.ms))] for name in peers]


def slower(rows: Iterable[Row]) -> list[str]:
    """Where a peer is faster, takes over 1 MiB less, or waits less often."""
    out = []
    for case, n, found in rows:
        ours = found[OURS]
        if ours.died:
            out.append(f"{case}, N = {n}: ours {ours.died}")
        for name, peer in found.items():
            if name in (OURS, MATMUL) or peer.died or ours.died:
                continue
            facts = [
                (short(ours.ms), short(peer.ms), "ms", ratio(ours.ms, peer.ms), 1.0),
                (short(ours.mib), short(peer.mib), "MiB", (ours.mib or 0) - (peer.mib or 0), 1.0),
                (ours.reads, peer.reads, "reads", (ours.reads or 0) - (peer.reads or 0), 0.0),
            ]
            for mine, theirs, unit, more, allowed in facts:
                if more is not None and more > allowed:
                    out.append(f"{case}, N = {n}: {mine} {unit} against {theirs} of {name}")
    return out


def markdown(rows: list[Row], about: str, command: str) -> str:
    """The section of the results page."""
    parts = [
        "## On a card",
        f"{about} Regenerate with `{command}`.",
        "Milliseconds are medians of CUDA events about a step, the card's waiting for the host included; MiB "
        "are the peak above the inputs; reads are operations after which the host waits for the card. K = 4; "
        "labels are on the host, and a step sends them up for the peers. Heads run forward and backward.",
        table(HEADS, [line for row in rows for line in lines(row)]),
    ]
    worse = slower(rows)
    parts.append("\n".join(f"- {line}" for line in worse) if worse else "No peer is ahead anywhere.")
    return "\n\n".join(parts)


def measured(options: argparse.Namespace, meter: Meter, device: str = "cuda") -> Iterator[Row]:
    """The rows, case after case, each from its smallest N on."""
    from cases import CASES, OML, PML, ST
    from measure import batch

    names = {OURS: OURS, PML: "PML", ST: "S-T", OML: "OML"}
    for case in options.cases or CASES:
        died: dict[str, str] = {}
        for n in sorted(options.sizes):
            if n > CASES[case].largest:
                continue
            torch.manual_seed(0)  # the peers draw from the global generator
            x, labels = batch(n, 4, options.dim, "cpu")
            x = x.to(device)
            steps: dict[str, Callable[[], Any]] = {}
            for name, side in CASES[case].make(max(1, n // 4), options.dim).items():
                if isinstance(side, torch.nn.Module):
                    side.to(device)
                steps[names[name]] = step_of(side, x, labels, sent=name != OURS)
            steps[MATMUL] = lambda x=x: x @ x.T
            found = figures(steps, meter, died, options.rounds, options.seconds)
            for name, figure in found.items():
                if figure.died and name not in died:
                    died[name] = figure.died = f"{figure.died} at N = {n}"
            yield case, n, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help="names of tools/bench/cases.py; all of them"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="N")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20, help="steps of each side that are timed")
    parser.add_argument("--seconds", type=float, default=20.0, help="that one step may take")
    parser.add_argument("--tf32", action="store_true", help="let products round their factors to 10 bits")
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a CUDA card, found none; tools/bench/bench_card.py counts reads without one")
    from cases import CASES

    unknown = sorted({*(options.cases or [])} - {*CASES})
    if unknown:
        parser.error(f"--cases {shlex.join(unknown)}: expected names of {', '.join(CASES)}")
    warnings.simplefilter("ignore")  # a peer's own
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    about = f"{told('cuda')} D = {options.dim}, TF32 {'on' if options.tf32 else 'off'}."
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(about)
    rows: list[Row] = []
    try:
        for row in measured(options, Cuda()):
            rows.append(row)
            for line in lines(row):
                console.print(*line, highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: what follows is about the rows above")
    shown = Table(*HEADS[:1], title="ours and the peers on a card")
    for head in HEADS[1:]:
        shown.add_column(head, justify="right")
    for row in rows:
        for line in lines(row):
            shown.add_row(*line)
    console.print(shown)
    for line in slower(rows):
        console.print(line, highlight=False)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_gpu.py", *sys.argv[1:]])
        write_section(options.markdown, "gpu", markdown(rows, about, command))


if __name__ == "__main__":
    main()
