"""`tercet embed`: the embeddings of a collection of images, made once and resumed after an interruption."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tercet.cli.options import (
    ClassDepth,
    Engine,
    Group,
    LabelColumn,
    OutsideRoot,
    Overwrite,
    PathColumn,
    Processes,
    Quiet,
    Root,
    opened_catalog,
    path,
    refuse_input,
    with_groups,
)
from tercet.cli.summary import SHOWN, finish, grid, tell_left_out
from tercet.core.checks import Refusal, border, escaped
from tercet.data.catalog.catalog import Catalog
from tercet.data.shards.index import ShardIndex

__all__ = ["app", "embed", "first_device", "opened_images"]

CALLER = "embed"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@border(CALLER)
def embed(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path,
            help="A folder of class folders, a .csv or .parquet table, or tars: a folder, or one.",
        ),
    ],
    output: Annotated[Path, typer.Argument(parser=path, help="The array, ending in .npy.")],
    model: Annotated[
        str,
        typer.Option(
            help="package.module:factory, a function that returns the model; or a file, TorchScript or a "
            "program of torch.export. It is code, and is run: name none that you do not trust."
        ),
    ],
    transform: Annotated[
        str,
        typer.Option(
            help="resize: the whole image as a square; crop: the central square after the shorter side was "
            "resized; both with the normalisation of ImageNet. Or package.module:factory, a function that "
            "returns a transform, which is code too."
        ),
    ] = "resize",
    size: Annotated[int | None, typer.Option(help="Height and width for resize and crop; else 224.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode; 0 for none besides this one; at most 4 if not given."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, …; if not given, the first accelerator, or the CPU."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the array: float32 or float16.")] = "float32",
    precision: Annotated[
        str, typer.Option(help="bf16 or fp16: the model runs under autocast; float32: it does not.")
    ] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Run torch.compile(model).")] = False,
    views: Annotated[
        str | None, typer.Option(help="flip: the mean over the image and its mirror image.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Divide each embedding by its length.")
    ] = False,
    hash: Annotated[
        bool,
        typer.Option(
            "--hash", help="Compare the content of the images, not their sizes and times of change."
        ),
    ] = False,
    key: Annotated[
        str, typer.Option(help="A text that is compared too, for what cannot be told of the model.")
    ] = "",
    part_size: Annotated[int, typer.Option(help="About how many images between two savings.")] = 4096,
    split: Annotated[
        str | None, typer.Option(help="Which of the splits in the folder's info.json (tars).")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Keep the camera or session of each image as the column `group`: the level of the folder "
            "that names it, or a regular expression with one group for the path (folders)."
        ),
    ] = None,
    class_depth: ClassDepth = None,
    root: Root = None,
    outside_root: OutsideRoot = False,
    group: Group = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    engine: Engine = "local",
    processes: Processes = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Embed a collection of images: an array, with its catalog and what it was made of beside it.

    Where the same embeddings are there, nothing is done; where the weights, the transform, the images or
    another option differ, the command is refused and names what differs. The same command goes on after an
    interrupted run.
    """
    from tercet.offline.embed import embed as embedded
    from tercet.offline.engines import rank_of_environment
    from tercet.offline.model_files import load_model, made_by_name

    started = time.perf_counter()
    refuse_input(output, source)
    place = first_device() if device is None else device
    options: dict[str, Any] = {
        "size": size,
        "batch_size": batch_size,
        "workers": min(4, os.cpu_count() or 1) if workers is None else workers,
        "device": place,
    }
    options |= {"dtype": dtype, "precision": precision, "compile": compile, "views": views}
    options |= {"normalize": normalize, "hash": hash, "key": key, "part_size": part_size}
    options |= {"engine": engine, "processes": processes}
    quiet = quiet or (engine == "ranks" and rank_of_environment(os.environ)[0] > 0)
    loaded = load_model(model, "cpu" if engine == "ray" else place)  # actors move it to their own device
    how: Any = transform
    if ":" in transform:
        how = made_by_name("transform", transform, "a function that returns a transform")
    of_table = {"root": root, "outside_root": outside_root, "columns": group or []}
    of_table |= {"path_column": path_column, "label_column": label_column}
    images = opened_images(source, split=split, class_depth=class_depth, quiet=quiet, **of_table)
    if groups is not None:
        if not source.is_dir() or not isinstance(images, Catalog):
            raise typer.BadParameter("--groups is for folders; of a table, --group names the column")
        images, _ = with_groups(images, groups, of_folder=True)
    try:
        found = embedded(
            loaded, images, output, transform=how, overwrite=overwrite, progress=not quiet, **options
        )
    except (RuntimeError, TypeError) as error:  # of the model or of the transform
        said = str(error).strip().partition("\n")[0]
        noted = "; ".join(getattr(error, "__notes__", ()))
        raise ValueError(f"{said} ({noted})" if noted else said) from error
    _report(found, output, getattr(images, "catalog", images).left_out, time.perf_counter() - started, quiet)


def opened_images(
    source: Path,
    *,
    split: str | None,
    class_depth: int | None,
    root: Path | None,
    outside_root: bool,
    columns: list[str],
    path_column: str,
    label_column: str,
    quiet: bool,
) -> Any:
    """The images of a folder, a table or tars: a `Catalog` or a `ShardIndex`.

    Args:
        source: the folder, the table or the tar.
        split, class_depth, root, outside_root, columns, path_column, label_column, quiet: the options of the
            same names; `columns` is `--group`.

    Raises:
        ValueError: no such source, or one without images.
        typer.BadParameter: an option for another kind of source.
    """
    if _is_of_tars(source):
        if any([class_depth, root, outside_root, columns, path_column != "path", label_column != "label"]):
            raise typer.BadParameter("of tars, --split alone says what is read")
        return ShardIndex(source, split=split, progress=not quiet)
    if split is not None:
        raise typer.BadParameter("--split is for tars")
    of_table: dict[str, Any] = {"root": root, "outside_root": outside_root, "columns": columns}
    of_table |= {"path_column": path_column, "label_column": label_column}
    return opened_catalog(source, class_depth=class_depth, verify=False, quiet=quiet, **of_table)


def first_device() -> str:
    """The first accelerator, or the CPU."""
    import torch

    return (
        str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    )


def _is_of_tars(source: Path) -> bool:
    """Whether a source is a tar, or a folder of tars; one with tars and folders is refused."""
    if not source.exists():
        raise Refusal("source", str(source), "an existing folder, table or tar")
    if not source.is_dir():
        return source.suffix == ".tar"
    entries = [entry for entry in source.iterdir() if not entry.name.startswith(".")]
    tars = any(entry.suffix == ".tar" and entry.is_file() for entry in entries)
    if tars and any(entry.is_dir() for entry in entries):
        raise Refusal("source", str(source), "class folders or tars", "it holds both; move one of them away")
    return tars


def _report(found: Any, output: Path, left_out: Any, seconds: float, quiet: bool) -> None:
    """Print the table, and on standard error what was left out and what does not decode."""
    tell_left_out(left_out)
    unreadable = found.facts["unreadable"]
    for _, name, reason in unreadable[:SHOWN]:
        typer.echo(escaped(f"unreadable: {name}: {reason}"), err=True)
    if len(unreadable) > SHOWN:
        typer.echo(f"unreadable: and {len(unreadable) - SHOWN:,} more", err=True)
    if quiet:
        return
    typer.echo(escaped(output))
    rows = {"images": [len(found)], "classes": [len(set(found.labels.tolist()))]}
    rows |= {"dimension": [found.array.shape[1]], "bytes": [found.array.nbytes]}
    rows |= {"embedded now": [found.computed], "unreadable": [len(unreadable)]}
    table = grid(rows)
    for reason, count in Counter(reason for *_, reason in unreadable).most_common():
        table.add_row(Text(escaped(f"  {reason}")), f"{count:,}")
    finish(table, left_out, seconds)


app.command()(embed)
