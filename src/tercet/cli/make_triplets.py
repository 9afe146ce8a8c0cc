"""`tercet make-triplets`: triplets of images from class folders, or from a table, into a manifest."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.catalog import Catalog, read_catalog, scan_folder
from tercet.checks import refusal
from tercet.manifest import manifest_target, write_manifest
from tercet.triplets.random import RandomTriplets

__all__ = ["app"]

SHOWN = 20  # of what was left out, by name; the table counts the rest
FOUR_FLAGS = ("input_directory", "output_directory", "num_pos_images", "num_neg_images")

app = typer.Typer(
    help="Write triplets (anchor, positive, negative) of images as a manifest.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def four_flags(
    context: typer.Context,
    input_directory: str | None = typer.Option(None, "--input_directory", help="A folder of class folders."),
    output_directory: str | None = typer.Option(None, "--output_directory", help="Where triplets.txt goes."),
    num_pos_images: int | None = typer.Option(None, "--num_pos_images", help="Positives for each query."),
    num_neg_images: int | None = typer.Option(None, "--num_neg_images", help="Negatives for each positive."),
    seed: int = typer.Option(0, help="With the four flags: another seed draws other triplets."),
    overwrite: bool = typer.Option(False, "--overwrite", help="With the four flags: replace triplets.txt."),
    quiet: bool = typer.Option(False, "--quiet", help="With the four flags: no progress bar and no table."),
) -> None:
    """Write triplets (anchor, positive, negative) of images as a manifest.

    Name a strategy, or give the four flags --input_directory, --output_directory, --num_pos_images and
    --num_neg_images of the 2018 script triplet_sampler.py: then <output_directory>/triplets.txt holds
    lines `query,positive,negative`, with the input directory in front of each path, and a class is, as
    there, a folder directly below the input directory with all that is in it.
    """
    given = {name for name in context.params if _given(context, name)}
    strategy = context.invoked_subcommand
    if strategy is not None:
        if given:
            named = ", ".join(f"--{name}" for name in sorted(given))
            raise typer.BadParameter(f"{named} before {strategy!r}: options of a strategy go behind its name")
        return
    if (
        input_directory is None
        or output_directory is None
        or num_pos_images is None
        or num_neg_images is None
    ):
        missing = ", ".join(f"--{name}" for name in FOUR_FLAGS if name not in given)
        raise typer.BadParameter(
            f"name a strategy, such as `random`, or give the four flags; missing: {missing}"
        )
    if not input_directory:
        raise refusal("make-triplets", "--input_directory", input_directory, "a folder of class folders")
    if not Path(output_directory).is_dir():
        raise refusal(
            "make-triplets", "--output_directory", output_directory, "an existing folder", "make it first"
        )
    started = time.perf_counter()
    output = manifest_target("make-triplets", Path(output_directory, "triplets.txt"), overwrite)
    catalog = scan_folder(input_directory, class_depth=1)
    triplets = RandomTriplets(catalog.labels, num_pos_images, num_neg_images, seed)
    prefix = os.path.join(input_directory, "")  # the separator is added where it is not there
    write_manifest(output, triplets, catalog, overwrite=overwrite, path_prefix=prefix, progress=not quiet)
    _report(output, triplets, catalog, time.perf_counter() - started, quiet)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was written on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@app.command("random")
def random_triplets(
    source: Path = typer.Argument(help="A folder of class folders, or a .csv or .parquet table."),
    output: Path = typer.Argument(help="The manifest: .parquet, .arrow, .csv, .jsonl or .txt."),
    positives: int = typer.Option(1, help="Positives for each query, at most all others of its class."),
    negatives: int = typer.Option(1, help="Negatives for each query and positive."),
    seed: int = typer.Option(0, help="Another seed draws other triplets."),
    class_depth: int | None = typer.Option(None, help="Name classes by their first folders only (folders)."),
    root: Path | None = typer.Option(None, help="The folder that the paths start from (tables)."),
    group: list[str] = typer.Option([], help="A column to keep as a group; may be repeated (tables)."),
    path_column: str = typer.Option("path", help="The column of image paths (tables)."),
    label_column: str = typer.Option("label", help="The column of classes (tables)."),
    verify: bool = typer.Option(False, "--verify", help="Decode every image; leave out those that fail."),
    path_prefix: str = typer.Option("", help="Put before every path in .csv, .jsonl and .txt."),
    chunk_size: int = typer.Option(1 << 16, help="Triplets drawn at a time; the result is the same."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing manifest."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bar and no table."),
) -> None:
    """Random triplets: every image a query, positives of its class, negatives of others."""
    started = time.perf_counter()
    manifest_target("make-triplets", output, overwrite)  # before the images are looked at
    if not source.exists():
        raise refusal("make-triplets", "source", str(source), "an existing folder or table")
    if source.is_dir():
        if root or group or path_column != "path" or label_column != "label":
            raise typer.BadParameter("--root, --group, --path-column and --label-column are for tables")
        catalog = scan_folder(source, class_depth=class_depth, verify=verify, progress=not quiet)
    else:
        if class_depth is not None:
            raise typer.BadParameter("--class-depth is for folders")
        catalog = read_catalog(
            source,
            root=root,
            path_column=path_column,
            label_column=label_column,
            groups=group,
            verify=verify,
            progress=not quiet,
        )
    triplets = RandomTriplets(catalog.labels, positives, negatives, seed)
    write_manifest(
        output,
        triplets,
        catalog,
        overwrite=overwrite,
        path_prefix=path_prefix,
        chunk_size=chunk_size,
        progress=not quiet,
    )
    _report(output, triplets, catalog, time.perf_counter() - started, quiet)


def _report(output: Path, triplets: Any, catalog: Catalog, seconds: float, quiet: bool) -> None:
    """The closing table: what there was, what was written; and on standard error each thing left out."""
    for item in catalog.left_out[:SHOWN]:
        typer.echo(f"left out: {item.path}: {item.reason}", err=True)
    if len(catalog.left_out) > SHOWN:
        typer.echo(f"left out: and {len(catalog.left_out) - SHOWN:,} more", err=True)
    if quiet:
        return
    typer.echo(output)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("images", f"{len(catalog):,}")
    table.add_row("classes", f"{len(catalog.classes):,}")
    table.add_row("queries", f"{triplets.queries:,}")
    table.add_row("triplets", f"{len(triplets):,}")
    if triplets.alone:
        table.add_row("no query: alone in its class", f"{triplets.alone:,}")
    table.add_row("left out", f"{len(catalog.left_out):,}")
    for reason, count in catalog.left_out_counts().items():
        table.add_row(Text(f"  {reason}"), f"{count:,}")
    table.add_row("seconds", f"{seconds:.2f}")
    Console().print(table)
