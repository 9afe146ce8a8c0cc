"""The last steps of a run as a table in the terminal that is drawn anew in its place."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LiveTable"]

_ROWS = 8


class LiveTable:
    """A table of the last eight logged steps, the newest below, with the alarms in force beneath it.

    What is printed meanwhile appears above it. Where the output is no terminal, it is printed once, when
    it is closed.

    Args:
        console: a `rich.console.Console`, or None for standard output.

    Example:
        >>> from rich.console import Console
        >>> table = LiveTable(Console(width=40))
        >>> table.add({"step": 10, "loss": 0.25}, ["collapse"]); table.close()
         step   loss
           10   0.25
        alarm: collapse
    """

    def __init__(self, console: Any = None) -> None:
        self._console, self._rows = console, deque[Mapping[str, float]](maxlen=_ROWS)
        self._live: Any = None

    def add(self, figures: Mapping[str, float], alarms: Sequence[str]) -> None:
        """Show one more step.

        Args:
            figures: its figures by name; all steps have the same.
            alarms: the kinds of alarms in force.
        """
        from rich.live import Live
        from rich.table import Table

        self._rows.append(figures)
        table = Table(box=None, caption="alarm: " + ", ".join(alarms) if alarms else None)
        table.caption_style, table.caption_justify = "bold red", "left"
        for name in figures:
            table.add_column(name, justify="right")
        for row in self._rows:
            table.add_row(*(f"{value:.4g}" if name != "step" else str(value) for name, value in row.items()))
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            self._stop = weakref.finalize(self, _end, self._live)  # else a terminal stays without its cursor
        self._live.update(table, refresh=True)

    def close(self) -> None:
        """Leave the table as it is; a later step begins another."""
        if self._live is not None:
            self._stop()
            self._live = None


def _end(live: Any) -> None:
    live.stop()
    if not live.console.is_terminal:
        live.console.line()
