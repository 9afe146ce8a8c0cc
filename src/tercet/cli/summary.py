"""The final tables of the commands: what was read, written and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.core.checks import escaped
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.manifests.writing import kind_and_count

__all__ = ["Part", "finish", "grid", "report", "tell_left_out"]

SHOWN = 20  # files listed that were left out; the table counts them all
REASONS = {  # attributes of strategies, and their text in the table; shown where they are not 0
    "alone": "no query: alone in its class",
    "same_group": "no query: its class is of one group",
    "over_limit": "no query: over the limit of its class",
    "irrelevant": "no query: relevant to none of its class",
    "unserved": "query without an in-class negative",
}


class Part(NamedTuple):
    """A manifest that was written: of all images, or of a part of a split."""

    name: str
    output: Path
    catalog: Catalog
    triplets: Any


def report(parts: list[Part], seconds: float, quiet: bool) -> None:
    """Print the manifests and a table with a column for each, and on standard error what was left out."""
    left_out = parts[0].catalog.left_out
    tell_left_out(left_out)
    if quiet:
        return
    for part in parts:
        typer.echo(escaped(part.output))
    sequences = [part.triplets for part in parts]
    rows = {
        "images": [len(part.catalog) for part in parts],
        "classes": [len(np.unique(part.catalog.labels)) for part in parts],
        "queries": [sequence.queries for sequence in sequences],
        kind_and_count(sequences[0])[0]: [len(sequence) for sequence in sequences],
    }
    for name, reason in REASONS.items():
        counts = [getattr(sequence, name, 0) for sequence in sequences]
        if any(counts):
            rows[reason] = counts
    finish(grid(rows, [part.name for part in parts]), left_out, seconds)


def grid(rows: Mapping[str, Sequence[int]], heads: Sequence[str] = ("",)) -> Table:
    """A table of counts by name with a column for each head; a single head is not shown."""
    table = Table("", *heads, show_header=len(heads) > 1)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def tell_left_out(left_out: Sequence[LeftOut]) -> None:
    """Print on standard error what was left out, and why."""
    for item in left_out[:SHOWN]:
        typer.echo(escaped(f"left out: {item.path}: {item.reason}"), err=True)
    if len(left_out) > SHOWN:
        typer.echo(f"left out: and {len(left_out) - SHOWN:,} more", err=True)


def finish(table: Table, left_out: Sequence[LeftOut], seconds: float) -> None:
    """Add the number left out, by reason, and the time to the table, and print it."""
    table.add_row("left out", f"{len(left_out):,}")
    for reason, count in Counter(item.reason for item in left_out).most_common():
        table.add_row(Text(escaped(f"  {reason}")), f"{count:,}")
    table.add_row("seconds", f"{seconds:.2f}")
    Console().print(table)
