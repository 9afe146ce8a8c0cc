"""`tercet make-triplets deep-ranking`: triplets by how relevant images of a class are to each other."""

from __future__ import annotations

import time
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
)
from tercet.cli.summary import Part, report
from tercet.core.checks import Refusal, border
from tercet.data.manifests.provenance import sha256
from tercet.data.manifests.writing import manifest_target, write_manifest
from tercet.data.triplets.deep_ranking import DeepRankingTriplets
from tercet.data.triplets.relevance import FolderRelevance, TableRelevance, TeacherRelevance

__all__ = ["deep_ranking_triplets"]

TABLES = (".csv", ".parquet")


@border("make-triplets")
def deep_ranking_triplets(
    source: Source,
    output: Output,
    relevance: Annotated[
        str,
        typer.Option(
            help="How relevant two images of a class are: a teacher's embeddings (.npy, a row for each image "
            "in the order of the catalog), their common folders below the class (`folders`, with "
            "--class-depth), or a table with columns i, j, r (.csv, .parquet) of catalog rows and numbers "
            "from 0 to 1."
        ),
    ],
    count: Annotated[int, typer.Option(help="The number of triplets.")],
    seed: Seed = 0,
    cap: Annotated[float, typer.Option(help="T_p: above it all positives are equally likely.")] = 1.0,
    gap: Annotated[
        float, typer.Option(help="T_r: by how much a positive is more relevant than an in-class negative.")
    ] = 0.1,
    out_of_class: Annotated[
        float, typer.Option(help="The share of triplets with a negative of another class.")
    ] = 0.2,
    one_way: Annotated[
        bool, typer.Option("--one-way", help="The table's r is that of j to i, and not of i to j.")
    ] = False,
    class_depth: ClassDepth = None,
    root: Root = None,
    outside_root: OutsideRoot = False,
    group: Group = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    verify: Verify = False,
    path_prefix: PathPrefix = "",
    csv_safe: CsvSafe = False,
    chunk_size: ChunkSize = 1 << 18,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Deep Ranking's triplets (Wang et al. 2014): relevant queries and positives, negatives less relevant."""
    started = time.perf_counter()
    manifest_target(output, overwrite)  # before the images are looked at
    file = Path(relevance)
    refuse_input(output, source, file)
    if one_way and file.suffix not in TABLES:
        raise typer.BadParameter("--one-way is for a --relevance table")
    known: Any = None
    if file.suffix == ".npy":
        known = TeacherRelevance(file)
    elif file.suffix in TABLES:
        known = TableRelevance.read(file, symmetric=not one_way)
    elif relevance != "folders":
        expected = "folders, or a file ending in .npy, .csv, .parquet"
        raise Refusal("--relevance", relevance, expected)
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
    facts: dict[str, Any] = {}
    if known is None:
        known = FolderRelevance(catalog.paths)
    else:
        way = {"symmetric": not one_way} if file.suffix in TABLES else {}
        facts["relevance file"] = {"name": file.name, "sha256": sha256(file), **way}
    options = {"cap": cap, "gap": gap, "out_of_class": out_of_class}
    triplets = DeepRankingTriplets(catalog.labels, known, count, seed, **options)
    write_manifest(
        output,
        triplets,
        catalog,
        overwrite=overwrite,
        path_prefix=path_prefix,
        csv_safe=csv_safe,
        chunk_size=chunk_size,
        progress=not quiet,
        provenance=facts,
    )
    report([Part("", output, catalog, triplets)], time.perf_counter() - started, quiet)
