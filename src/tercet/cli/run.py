"""How a command ends: well, or with one sentence and a non-zero exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer

from tercet.checks import escaped

__all__ = ["run"]

_UsageError: Any = typer.BadParameter.__base__  # click's own, which some versions of typer bring along


def run(app: typer.Typer) -> None:
    """Run the command of the command line, and exit.

    A refusal becomes its sentence on standard error and exit code 1; a wrong command line, exit code 2.
    Names in the sentence are escaped, whoever wrote it.
    """
    try:
        code = app(standalone_mode=False)  # else typer shows a wrong command line as it was written
    except (ValueError, OSError) as error:
        typer.secho(f"Error: {escaped(error)}", fg="red", err=True)
        code = 1
    except _UsageError as error:
        error.message = escaped(error.message)
        error.show()
        code = error.exit_code
    sys.exit(code)
