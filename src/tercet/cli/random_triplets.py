"""`tercet make-triplets random`: positives of the query's class, negatives of others."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.cli.options import (
    ChunkSize,
    ClassDepth,
    CsvSafe,
    Group,
    LabelColumn,
    Output,
    OutsideRoot,
    Overwrite,
    PathColumn,
    PathPrefix,
    Quiet,
    Root,
    Seed,
    Source,
    Verify,
    opened_catalog,
    refuse_input,
    with_groups,
)
from tercet.cli.summary import Part, report
from tercet.core.checks import as_choice, border
from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.split import train_validation_split
from tercet.data.manifests.provenance import validation_part
from tercet.data.manifests.writing import ManifestPart, manifest_target, write_manifests
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets

__all__ = ["random_triplets"]

KINDS = {"triplets": RandomTriplets, "pairs": RandomPairs}


@border("make-triplets")
def random_triplets(
    source: Source,
    output: Output,
    positives: Annotated[
        int, typer.Option(help="Positives for each query, at most all others of its class.")
    ] = 1,
    negatives: Annotated[
        int, typer.Option(help="Negatives for each query and positive; of pairs, for each query.")
    ] = 1,
    seed: Seed = 0,
    negatives_from: Annotated[
        str, typer.Option(help="images: uniform over images of other classes; classes: over those classes.")
    ] = "images",
    groups: Annotated[
        str | None,
        typer.Option(
            help="Positives are of another group (a camera, a session) than their query: a column of the "
            "table; of a folder, the level of the folder that names it, or a regular expression with one "
            "group for the path."
        ),
    ] = None,
    limit_per_class: Annotated[int | None, typer.Option(help="At most so many queries of a class.")] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Keep this share apart, in a second manifest: t.validation.parquet.")
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="image: part of every class; class: whole classes; if not given, image."),
    ] = None,
    output_kind: Annotated[
        str, typer.Option(help="triplets, or pairs with whether they match.")
    ] = "triplets",
    class_depth: ClassDepth = None,
    root: Root = None,
    outside_root: OutsideRoot = False,
    group: Group = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    verify: Verify = False,
    path_prefix: PathPrefix = "",
    csv_safe: CsvSafe = False,
    chunk_size: ChunkSize = 1 << 16,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Random triplets or pairs: every image a query, positives of its class, negatives of others."""
    started = time.perf_counter()
    strategy = KINDS[as_choice(None, "--output-kind", output_kind, KINDS)]
    if split_by is not None and validation_fraction is None:
        raise typer.BadParameter("--split-by says how --validation-fraction is kept apart; give that too")
    outputs = _targets(source, output, validation_fraction is not None, overwrite)

    columns = group or []
    if groups is not None and groups not in columns and not source.is_dir():
        columns = [*columns, groups]
    catalog = opened_catalog(
        source,
        class_depth=class_depth,
        root=root,
        outside_root=outside_root,
        columns=columns,
        path_column=path_column,
        label_column=label_column,
        verify=verify,
        quiet=quiet,
    )
    values = None
    if groups is not None:
        catalog, values = with_groups(catalog, groups, source.is_dir())
    law = {"by": split_by or "image", "fraction": validation_fraction, "seed": seed}
    options: dict[str, Any] = {"negatives_from": negatives_from, "limit": limit_per_class}
    parts, records = [], []
    for name, rows in _split(catalog, validation_fraction, seed, split_by or "image"):
        images = catalog if rows is None else replace(catalog.select(rows), left_out=catalog.left_out)
        of_rows = values if values is None or rows is None else values[rows]
        try:
            triplets = strategy(images.labels, positives, negatives, seed, groups=of_rows, **options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from error
        parts.append(Part(name, outputs[name], images, triplets))
        record: dict[str, Any] = {} if groups is None else {"groups": groups}
        if name:
            record["split"] = {"part": name, **law, "of": catalog.fingerprint}
        records.append(record)
    write_manifests(  # both manifests appear, or none
        [
            ManifestPart(part.output, part.triplets, part.catalog, record)
            for part, record in zip(parts, records, strict=True)
        ],
        overwrite=overwrite,
        path_prefix=path_prefix,
        csv_safe=csv_safe,
        chunk_size=chunk_size,
        progress=not quiet,
    )
    report(parts, time.perf_counter() - started, quiet)


def _targets(source: Path, output: Path, split: bool, overwrite: bool) -> dict[str, Path]:
    """The manifests to write, by the part of the split; refused before the images are looked at."""
    outputs = {"train": output, "validation": validation_part(output)} if split else {"": output}
    for target in outputs.values():
        manifest_target(target, overwrite)
        refuse_input(target, source)
    return outputs


def _split(catalog: Catalog, fraction: float | None, seed: int, by: str) -> list[tuple[str, Any]]:
    """The name and the rows of each manifest's images; None for all rows."""
    if fraction is None:
        return [("", None)]
    parts = train_validation_split(catalog.labels, fraction, seed, by)
    return list(zip(("train", "validation"), parts, strict=True))
