"""How a command ends: well, or with one sentence and a non-zero exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

__all__ = ["run"]


def run(command: Callable[[], object]) -> None:
    """Run a command; a refusal becomes its sentence on standard error and exit code 1."""
    try:
        command()
    except (ValueError, OSError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(1)
