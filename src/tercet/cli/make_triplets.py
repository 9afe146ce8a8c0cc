"""`tercet make-triplets`: its strategies under one name, and the four flags of an older script."""

from __future__ import annotations

import os
import time
from pathlib import Path

import typer

from tercet.cli.deep_ranking import deep_ranking_triplets
from tercet.cli.mine import mine
from tercet.cli.random_triplets import random_triplets
from tercet.cli.summary import Part, report
from tercet.core.checks import Refusal, border
from tercet.data.catalog.scan import scan_folder
from tercet.data.manifests.writing import manifest_target, write_manifest
from tercet.data.triplets.random import RandomTriplets

__all__ = ["app"]

FOUR_FLAGS = ("input_directory", "output_directory", "num_pos_images", "num_neg_images")

app = typer.Typer(
    help="Write triplets (anchor, positive, negative) or pairs of images as a manifest.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
@border("make-triplets")
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
        raise Refusal("--input_directory", input_directory, "a folder of class folders")
    if not output_directory or not Path(output_directory).is_dir():
        raise Refusal("--output_directory", output_directory, "an existing folder", "make it first")
    started = time.perf_counter()
    output = manifest_target(Path(output_directory, "triplets.txt"), overwrite)
    catalog = scan_folder(input_directory, class_depth=1)
    triplets = RandomTriplets(catalog.labels, num_pos_images, num_neg_images, seed)
    prefix = os.path.join(input_directory, "")  # the separator is added where it is not there
    write_manifest(output, triplets, catalog, overwrite=overwrite, path_prefix=prefix, progress=not quiet)
    report([Part("", output, catalog, triplets)], time.perf_counter() - started, quiet)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was written on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


app.command("random")(random_triplets)
app.command("deep-ranking")(deep_ranking_triplets)
app.command("hard")(mine)
