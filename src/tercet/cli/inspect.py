"""`tercet inspect`: a page of a collection, in which one sees what is hard and what is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tercet.cli.options import Overwrite, Quiet, path, refuse_input
from tercet.core.checks import Refusal, border, escaped

__all__ = ["app", "inspect"]

CALLER = "inspect"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@border(CALLER)
def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path, help="Embeddings that `tercet embed` has written (.npy), or a manifest of triplets."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="The page, ending in .html.")],
    embeddings: Annotated[
        Path | None, typer.Option(parser=path, help="Of a manifest's images: adds scores and all views.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="COLUMN=VALUE of the catalog: these are test images, and copies of others leaks."),
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(parser=path, help="A table of verdicts, which are marked already.")
    ] = None,
    suspects: Annotated[
        Path | None, typer.Option(parser=path, help="Also write all suspects, as .csv or .parquet.")
    ] = None,
    atlas: Annotated[
        Path | None, typer.Option(parser=path, help="Also write a .parquet for Embedding Atlas.")
    ] = None,
    most: Annotated[int, typer.Option(help="How many cards a gallery has.")] = 120,
    neighbours: Annotated[int, typer.Option(help="Of each image, for suspects and confusion.")] = 10,
    layout: Annotated[str, typer.Option(help="Of the map: pca, or tsne with openTSNE.")] = "pca",
    distance: Annotated[str, typer.Option(help="cosine, euclidean or squared_euclidean.")] = "cosine",
    thumbnail: Annotated[int, typer.Option(help="Pixels of a thumbnail.")] = 96,
    embed_all: Annotated[
        bool, typer.Option("--embed-all", help="Carry a thumbnail of every image, not of galleries alone.")
    ] = False,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    shards: Annotated[
        Path | None,
        typer.Option(parser=path, help="Tar shards that hold the images: a folder of tars, or one tar."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(parser=path, help="The folder that the images' paths start from.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="MiB of each search above its inputs; if not given, 256.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML file with galleries, suspects, classes, similarities and a map; mark cards by keys.

    Exported marks are the table that `tercet mine --verdicts` reads. The page needs no network.
    """
    from tercet.data.manifests.manifest import read_manifest
    from tercet.data.shards.index import ShardIndex
    from tercet.offline.embeddings import read_embeddings
    from tercet.offline.verdict_table import read_verdicts
    from tercet.reports.page import inspect as inspected
    from tercet.reports.suspects import suspects as suspected

    started = time.perf_counter()
    refuse_input(output, source)
    mined: Any = None
    if source.suffix == ".npy":
        if embeddings is not None:
            raise typer.BadParameter("--embeddings is for a manifest")
        found: Any = read_embeddings(source, root=root)
    else:
        mined = read_manifest(source, root=root)
        found = None if embeddings is None else read_embeddings(embeddings, root=root)
        if found is not None and found.catalog.fingerprint != mined.catalog.fingerprint:
            raise Refusal("embeddings", str(embeddings), "embeddings of the manifest's images, in its order")
    catalog = found.catalog if found is not None else mined.catalog
    options = {"test": _test_of(test, catalog), "k": neighbours, "distance": distance}
    options |= {"memory": None if memory is None else memory << 20, "progress": not quiet}
    if suspects is not None:
        if found is None:
            raise Refusal("suspects", str(suspects), "embeddings: --embeddings x.npy")
        suspected(found, **options).write(suspects, overwrite=overwrite)
    inspected(
        output,
        found,
        mined=mined,
        images=None if shards is None else ShardIndex(shards, progress=not quiet),
        verdicts=None if verdicts is None else read_verdicts(verdicts, catalog),
        atlas=atlas,
        most=most,
        layout=layout,
        thumbnail=thumbnail,
        embed_all=embed_all,
        title=title or source.stem,
        overwrite=overwrite,
        **options,
    )
    if not quiet:
        for written in (output, suspects, atlas):
            if written is not None:
                typer.echo(escaped(written))
        typer.echo(f"{time.perf_counter() - started:.2f} seconds")


def _test_of(test: str | None, catalog: Any) -> np.ndarray | None:
    """Which images have a value in a column of the catalog; None where nothing is asked."""
    if test is None:
        return None
    column, _, value = test.partition("=")
    if column not in catalog.groups:
        has = ", ".join(catalog.groups) or "none"
        raise Refusal("test", test, "COLUMN=VALUE of a column of the catalog", f"its columns: {has}")
    mask = np.array([str(each) == value for each in catalog.groups[column].tolist()], dtype=bool)
    if not mask.any():
        raise Refusal("test", test, f"a value that column {column!r} has")
    return mask


app.command()(inspect)
