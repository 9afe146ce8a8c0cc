"""The console script itself: every command under one name."""

from __future__ import annotations

from importlib.metadata import version

import typer

from tercet.cli import make_triplets
from tercet.cli.index_shards import index_shards
from tercet.cli.run import run
from tercet.cli.shards import make_shards

__all__ = ["main"]


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
