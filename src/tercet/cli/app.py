"""The console script `tercet`: its commands, and how they end: with exit code 0, or with one line."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

import typer

from tercet.cli import make_triplets
from tercet.cli.embed import embed
from tercet.cli.evaluate import evaluate
from tercet.cli.examples import examples
from tercet.cli.inspect import inspect
from tercet.cli.mine import mine
from tercet.cli.shards import index_shards, make_shards
from tercet.core.checks import escaped

__all__ = ["main", "run"]

_UsageError: Any = typer.BadParameter.__base__  # click's class, of which some versions of typer have a copy
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """The console script."""
    app = typer.Typer(
        name="tercet",
        help="Decides which images meet: triplets, pairs and hard negatives for metric learning.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.add_typer(make_triplets.app, name="make-triplets")
    app.command("make-shards")(make_shards)
    app.command("index-shards")(index_shards)
    app.command("embed")(embed)
    app.command("mine")(mine)
    app.command("evaluate")(evaluate)
    app.command("inspect")(inspect)
    app.command("examples")(examples)
    run(app)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"tercet {version('tercet')}")
        raise typer.Exit
    return wanted


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options of the console script itself."""


class _Ended(BaseException):
    """Raised by a signal that ends the command; a BaseException, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(app: typer.Typer) -> None:
    """Run the command of the command line, and exit.

    A ValueError or OSError becomes one line on standard error and exit code 1, a wrong command line exit code
    2. A signal (SIGINT, SIGTERM, SIGHUP) becomes one line and exit code 128 + its number, after threads have
    stopped and temporary files are removed. A warning becomes one line. All messages are escaped.
    """
    try:
        with _ended_by_signals(), _warnings_in_a_line():
            code = app(standalone_mode=False)  # otherwise typer prints a wrong command line without escaping
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
    """Show warnings of the block as one line, without the place in the code."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        typer.secho(f"Warning: {escaped(message)}", fg="yellow", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        # Of an option that was renamed, whoever called the function that warns.
        warnings.filterwarnings("always", r".* goes with version 0\.\d+$", DeprecationWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make signals raise `_Ended` in the block; signals that the parent process ignores stay ignored."""

    before = {one: signal.getsignal(one) for one in _ENDING}
    taken = [one for one, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def end(number: int, frame: FrameType | None) -> None:
        for one in taken:  # a second signal would interrupt the removal of temporary files
            signal.signal(one, signal.SIG_IGN)
        raise _Ended(number)

    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, before[one])
