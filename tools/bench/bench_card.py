"""What each miner and head asks of an accelerator, beside pytorch-metric-learning's: counts, and a model.

    python tools/bench/bench_card.py
    python tools/bench/bench_card.py --sizes 64 512 --cases "batch hard" InfoNCE

No card is needed, and none is used: `tests/pretended_card.py` gives torch a device that holds the processor's
tensors and logs each operation that would launch a kernel, and each *read*, where the host would wait for the
device. Labels are where a loader leaves them, on the host; heads are run forward and backward. A count is no
time: what a kernel costs, only a card can tell. Of miners the milliseconds that `card_model` makes of these
operations are shown too: an estimate, no measurement.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import card_model
import torch
from cases import HEADS, MINERS, OURS, PML, STEPS, Case
from measure import batch
from page import table, versions, write_section
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import pretended_card as card

# Theirs lists all triplets first: 10 GB of row numbers at N = 8192.
LARGEST_OF_PEER = {"semi-hard": 2048}


class Asked(NamedTuple):
    """What one call with its backward asked of the card."""

    reads: int
    operations: int
    seconds: float


def asked(side: Any, n: int) -> Asked | str:
    """What a side asks, or the name of its error: what a peer cannot do on an accelerator is a finding."""
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
    except Exception as error:
        return type(error).__name__
    return Asked(log.reads, log.operations, card_model.seconds(log.events))


def rows(
    cases: dict[str, Case], sizes: list[int]
) -> Iterator[tuple[str, dict[tuple[int, str], Asked | str]]]:
    """The name of each case, and what its sides ask at each N where they can."""
    for name, case in cases.items():
        found: dict[tuple[int, str], Asked | str] = {}
        for n in sizes:
            sides = case.make(n // 4, 128)
            for kind in (OURS, PML):
                if (
                    kind in sides
                    and n <= case.largest
                    and not (kind == PML and n > LARGEST_OF_PEER.get(name, n))
                ):
                    found[n, kind] = asked(sides[kind], n)
        yield name, found


def cells(found: dict[tuple[int, str], Asked | str], sizes: list[int], shown: Callable[[Asked], str]) -> Any:
    """A cell for each N and side; a dash where a side has none."""
    sides = [found.get((n, kind), "–") for n in sizes for kind in (OURS, PML)]
    return [each if isinstance(each, str) else shown(each) for each in sides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cases = MINERS | HEADS | STEPS
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases), metavar="CASE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument(
        "--modelled", type=int, nargs="*", default=[64, 512, 2048, 8192], help="the N of the model's table"
    )
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    if not card.is_offered():
        parser.error("this torch does not let Python register a device")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    card.register()
    found = {}
    for kind, sizes in ((MINERS, [*options.sizes, *options.modelled]), (HEADS | STEPS, options.sizes)):
        chosen = {name: cases[name] for name in options.cases if name in kind}
        found |= dict(rows(chosen, sorted(set(sizes))))
    sections = []
    for title, sizes, names, shown in (
        ("reads / operations", options.sizes, found, lambda each: f"{each.reads} / {each.operations}"),
        (
            "milliseconds by a model",
            options.modelled,
            [name for name in found if name in MINERS],
            lambda each: f"{1e3 * each.seconds:.2f}",
        ),
    ):
        heads = ["case", *(f"{kind}, {n}" for n in sizes for kind in ("tercet", "PML"))]
        lines = [[name, *cells(found[name], sizes, shown)] for name in names]
        onscreen = Table(*heads, title=title)
        for line in lines:
            onscreen.add_row(*line)
        Console(width=160).print(onscreen)
        sections.append(table(heads, lines))
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_card.py", *sys.argv[1:]])
        about = (
            "Counts, no times: nothing was run on a card. A pretended device (PrivateUse1, registered from "
            "Python) held the processor's tensors and logged what was asked of it: *reads*, where the host "
            "waits for the device, then operations that launch a kernel. Labels are on the host; heads run "
            "forward and backward; K = 4, D = 128. Where a side raised an error, its name is shown. "
            f"{versions()}."
        )
        model = (
            "Milliseconds of the same calls of miners **by a model, an estimate and no measurement**: 5 µs a "
            "kernel, 20 µs a read, 50 TFLOP/s, 4 TB/s, host and device joined at each read "
            "(`tools/bench/card_model.py`). Python's own time is not in it. A dash where a list would not "
            "fit into memory, or where there is no such miner."
        )
        text = f"{about}\n\n{sections[0]}\n\n{model}\n\n{sections[1]}\n\n`{command}`"
        write_section(options.markdown, "card", text)
    sys.stdout.flush()
    os._exit(0)  # the card's autograd thread has no way to end


if __name__ == "__main__":
    main()
