"""`tercet evaluate`: the figures of embeddings as a table, JSON and a picture; two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.cli.options import Overwrite, Quiet, no_column, path
from tercet.core.checks import Refusal, border, escaped

__all__ = ["app", "evaluate"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@border("evaluate")
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path,
            help="Embeddings that `tercet embed` has written, ending in .npy; with --model a folder of class "
            "folders, a table, or tars.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Embed the images of SOURCE first, by package.module:factory or a file, as `tercet embed` "
            "has it. It is code, and is run: name none that you do not trust."
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(parser=path, help="With --model: keep the embeddings in this .npy.")
    ] = None,
    transform: Annotated[
        str, typer.Option(help="With --model: resize, crop, or package.module:factory.")
    ] = "resize",
    size: Annotated[int | None, typer.Option(help="With --model: height and width; else 224.")] = None,
    batch_size: Annotated[int, typer.Option(help="With --model: images at a time.")] = 64,
    workers: Annotated[int, typer.Option(help="With --model: processes that decode.")] = 4,
    device: Annotated[str | None, typer.Option(help="With --model: cpu, cuda, …")] = None,
    class_depth: Annotated[
        int | None, typer.Option(help="With --model: name classes by their first folders only (folders).")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(parser=path, help="Embeddings of the same images by another model: which is better?"),
    ] = None,
    figures: Annotated[
        list[str],
        typer.Option(
            help="retrieval, ranking, ndcg, gap, verification, similarities, clustering, geometry or few-"
            "shot; may be repeated."
        ),
    ] = ["retrieval"],  # noqa: B006
    k: Annotated[list[int], typer.Option("-k", "--k", help="Ranks of Recall@k; may be repeated.")] = [  # noqa: B006
        1,
        2,
        4,
        8,
    ],
    group: Annotated[
        str | None, typer.Option(help="A column of the catalog, such as the camera: see --exclude.")
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            help="With --group: 'group positives', images of the query's class and group are not found (the "
            "default), or 'group', no image of its group is."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A class of junk, which does not count; may be repeated.")
    ] = None,
    distractors: Annotated[
        list[str] | None, typer.Option(help="A class that nobody is to find; may be repeated.")
    ] = None,
    no_positives: Annotated[
        str, typer.Option(help="A query with nothing to find: skip, or zero to count it as 0.")
    ] = "skip",
    relevance: Annotated[
        str | None,
        typer.Option(
            help="Of nDCG: depth, the share of leading folders of their classes that two images have in "
            "common; if not given, 1 within a class and 0 else."
        ),
    ] = None,
    gain: Annotated[str, typer.Option(help="Of nDCG: linear or exponential.")] = "linear",
    distance: Annotated[str, typer.Option(help="cosine, euclidean, squared_euclidean or dot.")] = "cosine",
    seed: Annotated[int, typer.Option(help="Another seed draws other intervals.")] = 0,
    worst: Annotated[int, typer.Option(help="Show so many of the worst classes.")] = 0,
    json: Annotated[Path | None, typer.Option(parser=path, help="Write the figures into this .json.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(parser=path, help="Draw ROC, CMC, recall and similarities: .png, .pdf or .svg."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(parser=path, help="The folder that the images' paths start from.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate embeddings, or a model: figures with 95 % intervals, each image searched among all others.

    Images that do not decode are left out and counted.
    """
    from tercet.core.checks import as_choice
    from tercet.offline.embeddings import read_embeddings
    from tercet.reports.evaluation import evaluate as evaluated

    how: dict[str, Any] = {"transform": transform, "size": size, "batch_size": batch_size}
    how |= {"workers": workers, "device": device}
    if model is None:
        standard = {"transform": "resize", "size": None, "batch_size": 64, "workers": 4, "device": None}
        if keep is not None or class_depth is not None or how != standard:
            raise typer.BadParameter("--keep and the options of embedding are for --model")
        first = read_embeddings(source, root=root)
    else:
        columns = [] if group is None or source.is_dir() else [group]
        first = _embedded(source, model, keep, class_depth, root, columns, how, overwrite, quiet)
    catalog = first.catalog
    if group is not None and group not in catalog.groups:
        raise no_column(group, catalog)
    names = np.asarray(catalog.classes, dtype=object)[catalog.labels]
    for option, labels in (("ignore", ignore), ("distractors", distractors)):
        for label in labels or []:
            if label not in catalog.classes:
                raise Refusal(option, label, "a class of the catalog")
    wanted = [*figures, *(("curves", "verification", "similarities") if plot else ())]
    models = [first]
    if compare is not None:
        second = read_embeddings(compare)
        if second.catalog.fingerprint != catalog.fingerprint:
            raise Refusal("compare", str(compare), "embeddings of the same images, in the same order")
        models.append(second)
    labels: Any = names
    if relevance is not None:
        as_choice(None, "relevance", relevance, ("depth",))
        labels = _folders_of(catalog.classes)[catalog.labels]
    kept = np.ones(len(names), bool)
    for each in models:
        kept[each.unreadable] = False
    options: dict[str, Any] = {"ignore": ignore or None, "distractors": distractors or None}
    options |= {"groups": None if group is None else np.asarray(catalog.groups[group])[kept]}
    options |= {"relevance": relevance, "gain": gain}
    options |= {"exclude": exclude, "no_positives": no_positives, "distance": distance, "seed": seed}
    found = [
        evaluated(
            each.array[kept].astype(np.float32, copy=False),
            labels[kept],
            k,
            figures=list(dict.fromkeys(wanted)),
            **options,
        )
        for each in models
    ]
    for each in found:
        each.labels = names[kept]  # by name, where relevance numbers them
    if json is not None:
        found[0].write(json, overwrite=overwrite)
    if plot is not None:
        found[0].plot(plot, overwrite=overwrite)
    if quiet:
        return
    console = Console()
    console.print(_table(found, [source, *([compare] if compare else [])]))
    for note in found[0].notes():
        typer.echo(escaped(note))
    if not kept.all():
        typer.echo(f"{int((~kept).sum()):,} images left out: they do not decode")
    if worst:
        console.print(_worst(found[0], worst))


def _embedded(
    source: Path,
    model: str,
    keep: Path | None,
    class_depth: int | None,
    root: Path | None,
    columns: list[str],
    how: dict[str, Any],
    overwrite: bool,
    quiet: bool,
) -> Any:
    """The embeddings of the images of a source by a model, in memory where they are not kept."""
    from tempfile import TemporaryDirectory

    from tercet.cli.embed import first_device, opened_images
    from tercet.offline.embed import embed
    from tercet.offline.embeddings import Embeddings
    from tercet.offline.model_files import load_model, made_by_name

    place = first_device() if how["device"] is None else how["device"]
    loaded = load_model(model, place)
    if ":" in how["transform"]:
        named = made_by_name("transform", how["transform"], "a function that returns a transform")
        how = how | {"transform": named}
    of_table: dict[str, Any] = {"root": root, "outside_root": False, "columns": columns}
    of_table |= {"path_column": "path", "label_column": "label"}
    images = opened_images(source, split=None, class_depth=class_depth, quiet=quiet, **of_table)
    with TemporaryDirectory(prefix="tercet-") as folder:
        out = Path(folder, "embeddings.npy") if keep is None else keep
        options = how | {"device": place, "progress": not quiet}
        found = embed(loaded, images, out, overwrite=overwrite and keep is not None, **options)
        return Embeddings(np.array(found.array), found.catalog, found.facts)


def _folders_of(classes: list[str]) -> np.ndarray:
    """The folders of each class as whole numbers [c, depth], the coarsest first: equal where the way is."""
    ways = [name.split("/") for name in classes]
    depth = max(map(len, ways))
    number: dict[tuple[str, ...], int] = {}
    rows = []
    for way in ways:
        # A class without so many folders has one of its own at each depth below.
        prefixes = [(*way[: i + 1], *[""] * (i + 1 - len(way))) for i in range(depth)]
        rows.append([number.setdefault(prefix, len(number)) for prefix in prefixes])
    return np.array(rows)


def _table(found: list[Any], sources: list[Path]) -> Table:
    """A line for each figure; of two models, the difference and its p too."""
    table = Table("figure")
    for head in [
        *(escaped(source.name) for source in sources),
        *(["difference", "p"] if len(found) > 1 else []),
    ]:
        table.add_column(Text(head), justify="right")
    differences = found[0].compare(found[1]) if len(found) > 1 else {}
    for name in found[0]:
        cells = [_figure(model, name) for model in found]
        if len(found) > 1:
            one = differences.get(name)
            cells += ["", ""] if one is None else [f"{one.value:+.3f} {one.interval}", f"{one.p:.2g}"]
        table.add_row(Text(name), *map(Text, cells))
    return table


def _figure(found: Any, name: str) -> str:
    interval = found.intervals.get(name)
    return f"{found[name]:.3f}" + (f" {interval}" if interval else "")


def _worst(found: Any, count: int) -> Table:
    """The classes whose queries fare worst by the first figure that is a mean over queries."""
    name = next(iter(found))
    table = Table("class", name, "queries")
    for label, (mean, queries) in list(found.by_class(name).items())[:count]:
        table.add_row(Text(escaped(label)), f"{mean:.3f}", f"{queries:,}")
    return table


app.command()(evaluate)
