"""`tercet make-shards` and `index-shards`: images as tar shards, and random access to those of others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tercet.cli.options import (
    ClassDepth,
    Group,
    LabelColumn,
    OutsideRoot,
    Overwrite,
    PathColumn,
    Quiet,
    Root,
    Source,
    Verify,
    opened_catalog,
    path,
    refuse_input,
    with_groups,
)
from tercet.cli.summary import finish, grid, tell_left_out
from tercet.core.checks import Refusal, border, escaped
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.layouts import as_layout
from tercet.data.shards.writing import shards_folder, write_shards
from tercet.data.streams.yield_prediction import predict_yield

__all__ = ["app", "index_shards", "make_shards"]

CALLER = "make-shards"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@border(CALLER)
def make_shards(
    source: Source,
    folder: Annotated[
        Path, typer.Argument(parser=path, help="Where the shards go; made if the folder above exists.")
    ],
    layout: Annotated[
        str,
        typer.Option(
            help="by_class: a class in one shard, its images in groups side by side, for streams of many "
            "classes; mixed: images shuffled over all shards, for few classes or random access."
        ),
    ] = "by_class",
    k: Annotated[
        int | None,
        typer.Option("--k", help="The least size of a group (by_class); if not given, K of --batches, or 4."),
    ] = None,
    images_per_shard: Annotated[int, typer.Option(help="About how many images a shard has.")] = 5000,
    split: Annotated[str, typer.Option(help="The name of the split: train-000000.tar.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed gives another order.")] = 0,
    batches: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="P K",
            help="Lay the shards out for batches of P classes with K images each, and tell what share of the "
            "images a stream of them uses, read by one worker; where next to none, that is an error, and "
            "nothing is written.",
        ),
    ] = None,
    unreadable: Annotated[
        str, typer.Option(help="A file that is missing or empty: error, or skip to leave it out.")
    ] = "error",
    workers: Annotated[
        int | None, typer.Option(help="Threads that write; if not given, one for each processor.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Keep the camera or session of each image as its group: the level of the folder that names "
            "it, or a regular expression with one group for the path (folders)."
        ),
    ] = None,
    class_depth: ClassDepth = None,
    root: Root = None,
    outside_root: OutsideRoot = False,
    group: Group = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    verify: Verify = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write images as tar shards that webdataset and timm read, laid out for batches of P classes × K.

    The same command goes on after an interrupted run; with --overwrite it begins again.
    """
    started = time.perf_counter()
    layout = as_layout(CALLER, "--layout", layout)
    _refuse_folder(folder, source, split)  # before the images are looked at
    if batches is not None and layout == "by_class":
        if k not in (None, batches[1]):
            raise typer.BadParameter(f"--k {k} and --batches {batches[0]} {batches[1]}: give one of them")
        k = batches[1]
    if groups is not None and source.exists() and not source.is_dir():
        raise typer.BadParameter("--groups is for folders; of a table, --group names the column")
    catalog = opened_catalog(
        source,
        class_depth=class_depth,
        root=root,
        outside_root=outside_root,
        columns=group or [],
        path_column=path_column,
        label_column=label_column,
        verify=verify,
        quiet=quiet,
    )
    if groups is not None:
        catalog, _ = with_groups(catalog, groups, of_folder=True)
    expected = None
    if batches is not None:
        order = {"layout": layout, "images_per_shard": images_per_shard, "seed": seed}
        expected = predict_yield(catalog.labels, *batches, **order)
    index = write_shards(
        folder,
        catalog,
        layout=layout,
        k=k,
        images_per_shard=images_per_shard,
        split=split,
        seed=seed,
        unreadable=unreadable,
        workers=workers,
        overwrite=overwrite,
        progress=not quiet,
    )
    left_out = [*catalog.left_out, *index.catalog.left_out]
    tell_left_out(left_out)
    if quiet:
        return
    typer.echo(escaped(folder))
    table = _table(index)
    if batches is not None and expected is not None:
        table.add_row(f"predicted yield at {batches[0]} × {batches[1]}", f"{expected.share:.2f}")
        table.add_row("batches an epoch", f"{expected.batches:,}")
    finish(table, left_out, time.perf_counter() - started)


def _refuse_folder(folder: Path, source: Path, split: str) -> None:
    """Refuse a folder where the shards cannot go."""
    refuse_input(folder, source, argument="folder")
    if source.is_dir() and source.resolve() in folder.resolve().parents:
        expected = f"a folder outside {source}, which is read"
        raise Refusal("folder", str(folder), expected, "else shards and images would be mixed")
    shards_folder(folder, split)


def _table(index: ShardIndex) -> Table:
    """How many shards, images, classes and bytes were written."""
    return grid(
        {
            "shards": [len(index.tars)],
            "images": [len(index)],
            "classes": [len(set(index.labels.tolist()))],
            "bytes": [sum(tar.stat().st_size for tar in index.tars)],
        }
    )


def index_shards(
    tars: Annotated[list[Path], typer.Argument(parser=path, help="Tars, or one folder of tars.")],
    image: Annotated[
        str | None,
        typer.Option(help="The extension of the image's member; if not given, the one that is an image's."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Where the class is: the extension of a member, or a field such as json:label."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which of the splits in the folder's info.json; needed for several.")
    ] = None,
    damaged: Annotated[
        str, typer.Option(help="A tar that is cut short: error, or drop to keep the samples before that.")
    ] = "error",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read shards of make-shards whole and compare their SHA-256; scan other tars again.",
        ),
    ] = False,
    outside_root: Annotated[
        bool, typer.Option("--outside-root", help="Take tars that info.json lists outside of its folder.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write an index beside each tar of webdataset's kind, so that `ShardIndex` opens it without a scan.

    A tar that has a fitting index keeps it. Shards of make-shards have theirs from the beginning.
    """
    started = time.perf_counter()
    source = tars[0] if len(tars) == 1 else tars
    options = {"split": split, "image": image, "label": label, "damaged": damaged}
    options |= {"verify": verify, "outside_root": outside_root}
    index = ShardIndex(source, **options, write_index=True, progress=not quiet)
    tell_left_out(index.catalog.left_out)
    if quiet:
        return
    rows = {"shards": [len(index.tars)], "images": [len(index)], "classes": [len(index.classes)]}
    finish(grid(rows), index.catalog.left_out, time.perf_counter() - started)


app.command()(make_shards)
