"""`tercet examples`: the examples that come with the package, to list and to copy."""

from __future__ import annotations

import ast
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import Overwrite, path
from tercet.core.checks import Refusal, border, escaped

__all__ = ["examples"]


@border("examples")
def examples(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=path, help="The folder to copy all of them into.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """List the examples, or copy them into a folder: each runs offline, on a processor.

    Example: tercet examples --output examples; python examples/quickstart.py
    """
    files = sorted(_folder().glob("*.py"))
    if output is None:
        for file in files:
            title = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0]
            typer.echo(f"{file.stem:<20}{title}")
        typer.echo("\ntercet examples --output FOLDER copies them.")
        return
    if output.exists() and not output.is_dir():
        raise Refusal("output", str(output), "a folder")
    output.mkdir(parents=True, exist_ok=True)
    targets = [output / file.name for file in files]
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise Refusal("output", str(there[0]), "a folder without these files", "pass --overwrite")
    with tempfile.TemporaryDirectory(dir=output) as unfinished:
        copies = [Path(shutil.copyfile(file, Path(unfinished) / file.name)) for file in files]
        for copy, target in zip(copies, targets, strict=True):
            copy.replace(target)
    typer.echo(f"{len(files)} examples in {escaped(output)}")


def _folder() -> Path:
    """Where the examples are: in the package as it is installed, else beside it in the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "examples"
    return inside if inside.is_dir() else package.parents[1] / "examples"
