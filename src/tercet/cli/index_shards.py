"""`tercet index-shards`: random access to the images in tars that another program wrote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import Quiet, path
from tercet.cli.summary import finish, grid, tell_left_out
from tercet.data.shards.index import ShardIndex

__all__ = ["index_shards"]


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
