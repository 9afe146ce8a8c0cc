"""What each miner and head asks of an accelerator, beside pytorch-metric-learning's: counts, no times.

    python tools/bench/bench_card.py
    python tools/bench/bench_card.py --sizes 64 512 --cases "batch hard" InfoNCE

No card is needed, and none is used: `tests/pretended_card.py` gives torch a device that holds the processor's
tensors and logs each operation that would launch a kernel, and each *read*, where the host would wait for the
device. Labels are where a loader leaves them, on the host; heads are run forward and backward. A count is no
time: what a kernel costs, only a card can tell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import HEADS, MINERS, OURS, PML, STEPS, Case
from measure import batch
from page import table, versions, write_section
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import pretended_card as card


def counted(side: Any, n: int) -> str:
    """Reads and operations of one call with its backward, as text."""
    x, labels = batch(n, 4, 128, "cpu")
    with card.census():
        if isinstance(side, torch.nn.Module):
            side.to(card.CARD)
        leaf = card.up(x.requires_grad_())
    try:
        with card.census() as log:
            out = side(leaf, labels)
            if isinstance(out, torch.Tensor) and out.requires_grad:
                out.backward()
    except Exception as error:  # what a peer cannot do on an accelerator is a finding
        return type(error).__name__
    return f"{log.reads} / {log.operations}"


def rows(cases: dict[str, Case], sizes: list[int]) -> list[list[str]]:
    """A row a case: its name, then for each size what ours and the peer's ask."""
    found = []
    for name, case in cases.items():
        row = [name]
        for n in sizes:
            sides = case.make(n // 4, 128)
            for kind in (OURS, PML):
                skipped = kind not in sides or n > case.largest
                row.append("–" if skipped else counted(sides[kind], n))
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cases = MINERS | HEADS | STEPS
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases), metavar="CASE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    if not card.is_offered():
        parser.error("this torch does not let Python register a device")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    card.register()
    found = rows({name: cases[name] for name in options.cases}, options.sizes)
    heads = ["case", *(f"{kind}, {n}" for n in options.sizes for kind in ("tercet", "PML"))]
    shown = Table(*heads, title="reads / operations")
    for row in found:
        shown.add_row(*row)
    Console(width=160).print(shown)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_card.py", *sys.argv[1:]])
        about = (
            "Counts, no times: nothing was run on a card. A pretended device (PrivateUse1, registered from "
            "Python) held the processor's tensors and logged what was asked of it: *reads*, where the host "
            "waits for the device, then operations that launch a kernel. Labels are on the host; heads run "
            "forward and backward; K = 4, D = 128. Where a side raised an error, its name is shown. "
            f"{versions()}."
        )
        text = f"{about}\n\n{table(heads, found)}\n\n`{command}`"
        write_section(options.markdown, "card", text)
    sys.stdout.flush()
    os._exit(0)  # the card's autograd thread has no way to end


if __name__ == "__main__":
    main()
