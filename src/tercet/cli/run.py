"""How a command ends: well, or with one sentence and a non-zero exit code."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from tercet.core.checks import escaped

__all__ = ["run"]

_UsageError: Any = typer.BadParameter.__base__  # click's own, which some versions of typer bring along
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(BaseException):
    """A signal that asks the command to end; no `except Exception` stops it on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(app: typer.Typer) -> None:
    """Run the command of the command line, and exit.

    A refusal becomes its sentence on standard error and exit code 1; a wrong command line, exit code 2. A
    signal that asks to end (SIGINT, SIGTERM, SIGHUP) becomes one line and exit code 128 + its number, after
    threads have stopped and temporary files are removed. A warning becomes one line. Names in the sentences
    are escaped, whoever wrote them.
    """
    try:
        with _ended_by_signals(), _warnings_in_a_line():
            code = app(standalone_mode=False)  # else typer shows a wrong command line as it was written
    except _Ended as ended:
        name = signal.Signals(ended.number).name
        typer.secho(f"Ended by {name}: nothing unfinished is left under a final name.", fg="red", err=True)
        code = 128 + ended.number
    except (ValueError, OSError) as error:
        typer.secho(f"Error: {escaped(error)}", fg="red", err=True)
        code = 1
    except _UsageError as error:
        error.message = escaped(error.message)
        error.show()
        code = error.exit_code
    sys.exit(code)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show what the block warns of without the place in our code."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        typer.secho(f"Warning: {escaped(message)}", fg="yellow", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have a signal that asks to end raise `_Ended` in the block; one that the caller ignores stays so."""

    before = {one: signal.getsignal(one) for one in _ENDING}
    taken = [one for one, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def end(number: int, frame: FrameType | None) -> None:
        for one in taken:  # a second one would break off the removing of temporary files
            signal.signal(one, signal.SIG_IGN)
        raise _Ended(number)

    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, before[one])
