"""What each miner and loss costs beside the peers' and beside the bare matrix product: time and peak memory.

    python tools/bench/bench_peers.py
    python tools/bench/bench_peers.py --cases "batch hard" InfoNCE --sizes 128 512 --repeats 21

Ours, the peers and x @ x.T run by turns in one process a row; each peak is that of a process of its own. A
side that runs out of its seconds or its memory is shown as such. The table is on the terminal, and as a CSV
and a plot in out/bench; `--markdown` puts it into the results page too.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import CASES, MAIN
from measure import Setting, figures
from page import machine, told, versions, write_section
from rich.console import Console
from rich.table import Table
from show import HEADS, Row, defeats, growth, lines, markdown, plot, read_csv, write_csv

SIZES = [128, 512, 2048, 8192]
MIDDLE = 1024  # a size more for the cases whose growth is shown, and the one at which K and D vary


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """The rows, case after case, each from its smallest N on."""
    usual = {
        "device": options.device,
        "threads": options.threads,
        "repeats": options.repeats,
        "gib": options.memory,
        "seconds": options.seconds,
    }
    for case in options.cases or CASES:
        usual_sizes = [*SIZES, *([MIDDLE] if case in MAIN else [])]
        sizes = options.sizes or sorted(n for n in usual_sizes if n <= CASES[case].largest)
        for n in sizes:
            yield Setting(case, n, options.k, options.dim, **usual)
    if options.cases or options.sizes:
        return
    for case in MAIN:
        for k, dim in ((4, options.dim), (32, options.dim), (options.k, 32), (options.k, 512)):
            yield Setting(case, MIDDLE, k, dim, **usual)


def measured(options: argparse.Namespace, rows: list[Row]) -> Iterator[Row]:
    """Each row that `rows` lacks, which it is then added to."""
    kept = {(s.case, s.n, s.k, s.dim, s.device, s.threads) for s, _ in rows}
    for s in settings(options):
        if (s.case, s.n, s.k, s.dim, s.device, s.threads) in kept:
            continue
        smaller = [f for t, f in rows if (t.case, t.k, t.dim) == (s.case, s.k, s.dim) and t.n < s.n]
        dead = {side: figure.died for found in smaller for side, figure in found.items() if figure.died}
        row = (s, figures(s, dead))
        rows.append(row)
        write_csv(options.output / "peers.csv", rows)  # what is measured stays, whatever comes
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--sizes", type=int, nargs="+", help="N; by default 128 to 8192")
    parser.add_argument("--k", type=int, default=8, help="images of a class")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    # More than one, and the OpenMP runtimes that several libraries bring spin against each other.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that one step may take")
    parser.add_argument("--seconds", type=float, default=40.0, help="that one step may take")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV, measure the others")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a CUDA device, found none; leave it away for the processor")

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{machine(options.device)}\n{versions()}")
    started = time.perf_counter()
    rows = read_csv(options.output / "peers.csv") if options.resume else []
    try:
        for row in measured(options, rows):
            console.print(f"{time.perf_counter() - started:6.0f} s", *lines(row)[-1], highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: what follows is about the rows above, and --resume goes on from here")
    order = list(CASES)
    rows.sort(key=lambda row: (order.index(row[0].case), row[0].k, row[0].dim, row[0].n))
    shown = Table(*HEADS[:1], title="ours and the peers")
    for head in HEADS[1:]:
        shown.add_column(head, justify="right")
    for row in rows:
        for line in lines(row):
            shown.add_row(*line)
    console.print(shown)
    for line in [*defeats(rows), *growth(rows)]:
        console.print(line, highlight=False)

    about = told(options.device)
    plot(options.output / "peers.png", rows, f"{machine(options.device)}, threads: {options.threads}")
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_peers.py", *sys.argv[1:]])
        picture = options.markdown.with_name("peers.png")
        picture.write_bytes((options.output / "peers.png").read_bytes())
        kept = " Rows may be kept from earlier runs, under other limits." if options.resume else ""
        text = markdown(rows, f"{about} Threads: {options.threads}.{kept}", command)
        text += f"\n\n![time against N, a panel a case]({picture.name})"
        write_section(options.markdown, "peers", text)
    console.print(f"{options.output}/peers.csv, peers.png; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
