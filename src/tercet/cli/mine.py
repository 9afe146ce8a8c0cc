"""`tercet mine`, also `tercet make-triplets hard`: hard negatives of a whole collection, as a manifest."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tercet.cli.options import (
    CsvSafe,
    Engine,
    Output,
    Overwrite,
    PathPrefix,
    Processes,
    Quiet,
    Work,
    no_column,
    path,
    refuse_input,
)
from tercet.core.checks import Refusal, as_choice, border, escaped
from tercet.data.manifests.writing import manifest_target, write_manifest

__all__ = ["app", "mine"]

CALLER = "mine"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@border(CALLER)
def mine(
    source: Annotated[
        Path, typer.Argument(parser=path, help="Embeddings that `tercet embed` has written, ending in .npy.")
    ],
    output: Output,
    negatives: Annotated[int, typer.Option(help="Negatives for each anchor and positive.")] = 1,
    positives: Annotated[
        str, typer.Option(help="all of the anchor's class, hardest, easiest, or k for the k-th nearest.")
    ] = "all",
    strategy: Annotated[
        str, typer.Option(help="hardest, semi-hard, random (in the ranks), softmax or simans.")
    ] = "hardest",
    ranks: Annotated[
        tuple[int, int],
        typer.Option(help="First and last rank among all images of other classes, before any filter."),
    ] = (1, 100),
    margin: Annotated[
        float | None, typer.Option(help="A negative's score is at most the positive's, less this.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="At most s − |s| · this of the positive's score s.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Whose score s: the own positive's, or min, mean or max of the anchor's.")
    ] = "own",
    max_score: Annotated[float | None, typer.Option(help="A negative's score is at most this.")] = None,
    min_score: Annotated[float | None, typer.Option(help="And at least this.")] = None,
    max_quantile: Annotated[
        float | None,
        typer.Option(help="At most this quantile of the scores of positives: 0.05 fits every model."),
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="At most so many negatives of one class.")] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Count --per-class by so many k-means clusters instead.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(parser=path, help="Embeddings of these images by another model: a second opinion."),
    ] = None,
    teacher_margin: Annotated[
        float, typer.Option(help="The teacher's score of a negative is at most its positive's, less this.")
    ] = 0.0,
    suspects: Annotated[
        float, typer.Option(help="Set aside at most this share of images as wrongly labelled.")
    ] = 0.0,
    verdicts: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="A table of suspects: read where it exists, with what a person wrote into it; new suspects "
            "are added to it.",
        ),
    ] = None,
    uniform: Annotated[
        float, typer.Option(help="The share of negatives drawn from the whole collection.")
    ] = 0.0,
    reserve: Annotated[int, typer.Option(help="Further candidates for each pair (--columns wide).")] = 0,
    on_short: Annotated[
        str, typer.Option(help="A pair with too few negatives: keep, drop, relax, random or error.")
    ] = "keep",
    columns: Annotated[
        str,
        typer.Option(help="triplets: a manifest; wide: a line for each pair, with its scores."),
    ] = "triplets",
    group: Annotated[
        str | None,
        typer.Option(help="A column of the catalog: positives and negatives are of another group."),
    ] = None,
    group_negatives: Annotated[
        bool, typer.Option("--group-negatives", help="Negatives may be of the anchor's group.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Of softmax; else 0.05.")] = None,
    sharpness: Annotated[float | None, typer.Option(help="a of simans; else 100.")] = None,
    shift: Annotated[float | None, typer.Option(help="b of simans; else 0.")] = None,
    distance: Annotated[
        str, typer.Option(help="cosine (score 1 − D), euclidean, squared_euclidean or dot (score −D).")
    ] = "cosine",
    seed: Annotated[int, typer.Option(help="Another seed draws other negatives.")] = 0,
    memory: Annotated[
        int | None, typer.Option(help="MiB of the search above its inputs; if not given, 256.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="exact, or an index of FAISS: faiss-ivf or faiss-hnsw (the extra `faiss`).")
    ] = "exact",
    min_recall: Annotated[
        float | None,
        typer.Option(help="Of FAISS: the least measured share of the nearest candidates; else 0.95."),
    ] = None,
    work: Work = None,
    engine: Engine = "local",
    processes: Processes = None,
    root: Annotated[
        Path | None, typer.Option(parser=path, help="The folder that the images' paths start from.")
    ] = None,
    path_prefix: PathPrefix = "",
    csv_safe: CsvSafe = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Mine hard negatives from embeddings of a whole collection, and account for every candidate.

    Before it starts it tells how much memory it takes. The closing table says for each candidate why it is,
    or is not, a negative; it is kept in the manifest.
    """
    from tercet.offline.embeddings import read_embeddings
    from tercet.offline.engines import rank_of_environment
    from tercet.offline.hard_negatives import mine_hard_triplets
    from tercet.offline.mined_table import SUFFIXES, write_mined_table

    started = time.perf_counter()
    wide = as_choice(None, "columns", columns, ("triplets", "wide")) == "wide"
    if reserve and not wide:
        raise Refusal("reserve", reserve, "0: a manifest of triplets has no reserve list; add --columns wide")
    if wide and (path_prefix or csv_safe):
        raise typer.BadParameter("--path-prefix and --csv-safe are for --columns triplets")
    if wide and output.suffix not in SUFFIXES:
        raise Refusal("output", str(output), "a file ending in .parquet or .csv, for --columns wide")
    writes = engine != "ranks" or rank_of_environment(os.environ)[0] == 0
    if not wide and writes:  # another rank may start when the first has written already
        manifest_target(output, overwrite)
    refuse_input(output, source)
    embeddings = read_embeddings(source, root=root)
    catalog = embeddings.catalog
    if group is not None and group not in catalog.groups:
        raise no_column(group, catalog)
    said = _read(verdicts, catalog)
    options: dict[str, Any] = {
        "negatives": negatives,
        "positives": int(positives) if positives.isdecimal() else positives,
        "strategy": strategy,
        "ranks": ranks,
        "margin": margin,
        "relative_margin": relative_margin,
        "reference": reference,
        "max_score": max_score,
        "min_score": min_score,
        "max_quantile": max_quantile,
        "per_class": per_class,
        "clusters": clusters,
        "teacher_margin": teacher_margin,
        "suspects": suspects,
        "uniform": uniform,
        "reserve": reserve,
        "on_short": on_short,
        "group_negatives": group_negatives,
        "temperature": temperature,
        "sharpness": sharpness,
        "shift": shift,
        "distance": distance,
        "backend": backend,
        "min_recall": min_recall,
        "seed": seed,
    }
    mined = mine_hard_triplets(
        embeddings,
        teacher=None if teacher is None else _teacher(teacher, catalog),
        verdicts=said,
        groups=None if group is None else catalog.groups[group],
        memory=None if memory is None else memory << 20,
        work=work,
        engine=engine,
        processes=processes,
        progress=writes and not quiet,
        **options,
    )
    if not writes:
        return
    if wide:
        write_mined_table(output, mined, catalog, overwrite=overwrite)
    else:
        write_manifest(
            output,
            mined.triplets,
            catalog,
            overwrite=overwrite,
            path_prefix=path_prefix,
            csv_safe=csv_safe,
            provenance={
                "mining": {**mined.report.as_dict(), "options": options, "group": group},
                "embeddings": embeddings.facts["key"],
            },
        )
    if verdicts is not None:
        _add(verdicts, said, mined.suspects, catalog)
    if not quiet:
        typer.echo(escaped(output))
        typer.echo(str(mined.report))
        typer.echo(f"{time.perf_counter() - started:.2f} seconds")


def _read(verdicts: Path | None, catalog: Any) -> Any:
    """What stands in the table of suspects; None where there is none yet."""
    from tercet.offline.verdict_table import read_verdicts

    return read_verdicts(verdicts, catalog) if verdicts is not None and verdicts.exists() else None


def _add(verdicts: Path, said: Any, suspects: Any, catalog: Any) -> None:
    """Write the table with what stands in it, as it is, and new suspects behind."""
    from tercet.offline.verdict_table import write_verdicts
    from tercet.offline.verdicts import joined, without

    if said is not None:
        if not len(suspects.image):
            return
        suspects = joined(said, without(suspects, said.image))
    write_verdicts(verdicts, suspects, catalog, overwrite=True)


def _teacher(teacher: Path, catalog: Any) -> np.ndarray:
    from tercet.offline.embeddings import read_embeddings

    found = read_embeddings(teacher)
    if found.catalog.fingerprint != catalog.fingerprint:
        raise Refusal("teacher", str(teacher), "embeddings of the same images, in the same order")
    return found.array


app.command()(mine)
