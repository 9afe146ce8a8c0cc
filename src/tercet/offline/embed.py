"""`embed`: the embeddings of a collection, written part by part, resumed after a kill, and made once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tercet.core.checks import (
    Refusal,
    as_bool,
    as_choice,
    as_int,
    as_path,
    as_string,
    border,
    escaped,
    shown,
)
from tercet.data.catalog.catalog import Catalog, refuse_unwritable
from tercet.offline.embedding_cache import images_digest, key_of
from tercet.offline.embedding_parts import HOW, Parts, parts_of
from tercet.offline.embedding_plan import HINT, claims_of, is_there, noted_in, planning, prepare
from tercet.offline.embedding_work import EmbeddingWork, fill
from tercet.offline.embeddings import (
    Embeddings,
    files_of,
    publish,
    read_embeddings,
)
from tercet.offline.engines import ENGINES, rank_of_environment
from tercet.offline.fingerprints import modules_within
from tercet.offline.image_batches import as_transform
from tercet.offline.model_run import PRECISIONS, as_views, device_of_modules
from tercet.offline.ray_embedding import embed_with_ray
from tercet.pairwise.inputs import device_of

__all__ = ["embed"]

_CALLER = "embed"


def embed(
    model: Any,
    data: Any,
    out: str | Path,
    *,
    transform: Any = "resize",
    size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: Any = None,
    dtype: str = "float32",
    precision: str = "float32",
    compile: bool = False,
    views: Any = None,
    normalize: bool = False,
    hash: bool = False,
    key: str = "",
    part_size: int = 4096,
    overwrite: bool = False,
    engine: str = "local",
    processes: int | None = None,
    progress: bool = False,
) -> Embeddings:
    """The embeddings of all images of a collection, in a file that is made once.

        x_i = mean over views v of model(v(transform(image_i))),  if asked for divided by ‖x_i‖

    Three files appear as one set: the array `out`, its catalog (`photos.catalog.parquet` beside
    `photos.npy`) and what it was made of (`photos.npy.json`). A second call with the same model, transform,
    images and options returns them without loading an image. Where anything differs that the embeddings
    depend on, the call is refused and names what differs: the weights, the layers or code of the model, the
    transform, views, precision, dtype, the paths of the images, their sizes and times of change or their
    content, the version of tercet. Batch size, workers, device and `compile` are not compared, as they change
    the last bits at most. Other labels or groups of the same images replace the catalog alone.

    A run that was killed is resumed by the same call, with its whole parts: every batch holds the same
    images wherever the run began, so the files are those of an undisturbed run, to the bit, if the model
    computes the same twice.

    An image that does not decode has a row of NaN and is never given to the model. Such images are counted
    and listed with their reasons in `facts["unreadable"]`.

    Args:
        model: a `torch.nn.Module`, or another callable, that gives [b, d] for images [b, c, h, w]. A module
            runs in eval mode, and has its modes back afterwards. No gradient is kept.
        data: a `Catalog`, or a `ShardIndex`, which reads the shards of a `PKStream` too.
        out: the array, ending in .npy.
        transform: "resize" for a square of `size` pixels, or "crop" for the central square after the shorter
            side was resized to it, both with the normalisation of ImageNet; an albumentations transform or
            another callable, as for `ImageDataset`; or None for pixels from 0 to 1. Random draws are keyed by
            the row, so they are the same in every run.
        size: height and width of the named transforms, 224 if not given.
        batch_size: b, images at a time.
        workers: processes that decode; 0 for this one.
        device: where images are moved to; by default where the parameters of the model are. The model is not
            moved.
        dtype: "float32" or "float16", of the array.
        precision: "bf16" or "fp16" run the model under autocast; "float32" does not.
        compile: run `torch.compile(model)`.
        views: "flip" for the mean over the image and its mirror image; or a list of callables, each of which
            gives a view of a batch of images; None for the image alone.
        normalize: divide each embedding by its length, after the mean.
        hash: compare the content of the images, which reads all of them at each call, instead of sizes and
            times of change, which a copy may not keep.
        key: a text of yours that is compared too, and stands for what cannot be told of a model or transform,
            such as a service behind a function.
        part_size: about how many images are embedded between two savings; a run that goes on keeps the parts
            that it was begun with.
        overwrite: make the embeddings anew, whatever is there, and replace it.
        engine: who embeds: "local", this process; "ranks", every process that torchrun or a SLURM array
            starts with this call, which share the parts through the folder of `out`, and each of which
            returns the embeddings; or "ray", a pool of actors of Ray (`pip install "tercet[ray]"`), each on a
            GPU if `device` is "cuda", on nodes that all see the images and the folder. All give the same
            bits, if the model computes the same in each process.
        processes: of "ray", how many actors; None for one on each processor or GPU.
        progress: show a progress bar with rate and time left.

    Returns:
        The embeddings, mapped from the file; `computed` tells how many this call has embedded, in this
        process or by Ray.

    Raises:
        ValueError: an option out of range, embeddings of other things or another file at `out`, another run
            that writes it now, a model that does not give finite numbers [b, d], or always the same d, or no
            image that decodes.
        RuntimeError: the transform fails.
        OSError: the files do not fit on the disk.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> for name in ("ant/1.pgm", "ant/2.pgm", "bee/1.pgm"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
        >>> embeddings = embed(model, scan_folder("photos"), "photos.npy", size=32, views="flip")
        >>> embeddings, embeddings.labels.tolist(), embeddings.computed
        (Embeddings(3 × 5, float32), [0, 0, 1], 3)
        >>> embed(model, scan_folder("photos"), "photos.npy", size=32, views="flip").computed
        0
        >>> with torch.no_grad():
        ...     _ = model[2].weight.mul_(2)
        >>> embed(model, scan_folder("photos"), "photos.npy", size=32, views="flip")
        Traceback (most recent call last):
        ValueError: embed(out='photos.npy'): expected embeddings of the same model, images and options; what \
differs: weights; overwrite=True or --overwrite makes all anew
    """
    with border(_CALLER, "out"):
        target = _target(out)
        if not callable(model):
            raise Refusal("model", model, "a torch.nn.Module or another callable")
        catalog = _catalog_of(data)
        transform = as_transform(None, transform, size)
        batch_size = as_int(None, "batch_size", batch_size, 1, 1 << 20)
        part_size = as_int(None, "part_size", part_size, 1)
        workers = as_int(None, "workers", workers, 0, 1 << 10)
        options = {
            "normalize": as_bool(None, "normalize", normalize),
            "precision": as_choice(None, "precision", precision, PRECISIONS),
            "dtype": as_choice(None, "dtype", dtype, ("float32", "float16")),
            "key": _as_key(key),
        }
        flags = {"compile": compile, "hash": hash, "overwrite": overwrite, "progress": progress}
        compile, hash, overwrite, progress = (as_bool(None, name, flag) for name, flag in flags.items())
        way = as_choice(None, "engine", engine, ENGINES)
        processes = _as_processes(way, processes)
        rank, world = rank_of_environment(os.environ) if way == "ranks" else (0, 1)
        if way == "ranks" and overwrite:
            hint = "remove the files before the ranks start"
            raise Refusal("overwrite", True, "False, as one rank would replace what another has made", hint)
        place, seen, kind = _as_place(way, model, device), as_views(views), np.dtype(dtype)
        made = key_of(data, model, transform, seen, options, hash)
        settings = (model, seen, place, precision, normalize, kind, compile, made)
        task = EmbeddingWork(data, transform, batch_size, workers, *settings)
        plan = {"key": made, "overwrite": overwrite, "batch_size": batch_size, "device": place.type}
        plan |= {"compile": compile, "height": -(-part_size // batch_size) * batch_size}
        if not os.access(target.parent, os.W_OK):
            return _read_only(target, plan, catalog)
        with parts_of(target, kind, len(catalog), shared=way == "ranks") as parts:
            with planning(target):
                begun = prepare(target, parts, plan, catalog)
            if begun is None:
                return _opened(target, catalog, 0)
            try:
                with _bar(progress, len(catalog), parts.rows) as advance:
                    if way == "ray":
                        computed = embed_with_ray(task, parts, processes, advance)
                    else:
                        claims = claims_of(target, parts, plan, catalog, rank, world)
                        computed = fill(task, parts, claims, advance)
            finally:
                with planning(target):
                    begun = noted_in(parts, begun, task.left_by_running())
            if images_digest(data) != made["images"]:
                text = f"embed(out={str(out)!r}): images were changed meanwhile, so a later call is refused"
                warnings.warn(escaped(f"{text}; {HINT}"), UserWarning, stacklevel=2)
            with planning(target):
                if world == 1 or not is_there(target, plan, catalog, rewrite=False):
                    _publish(target, parts, begun, task, catalog, views)
                parts.clear()
            return _opened(target, catalog, computed)


def _as_processes(engine: str, processes: Any) -> int | None:
    """How many actors of Ray, or None."""
    if processes is None:
        return None
    if engine != "ray":
        expected = "None, or engine='ray', of which it is the number of actors"
        raise Refusal("processes", processes, expected, "workers= are processes that decode")
    return as_int(None, "processes", processes, 1, 1 << 10)


def _as_place(engine: str, model: Any, device: Any) -> torch.device:
    """Where to embed; with Ray the machine that asks may not have such a device."""
    if device is None:
        return device_of_modules(modules_within(model))
    if engine != "ray":
        return device_of(_CALLER, device)
    try:
        return torch.device(torch.device(device).type)  # Ray tells each actor which one
    except (RuntimeError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise Refusal("device", device, 'a device, such as "cpu" or "cuda"', said) from None


def _publish(
    target: Path,
    parts: Parts,
    begun: Mapping[str, Any],
    task: EmbeddingWork,
    catalog: Catalog,
    views: Any,
) -> None:
    """Put the parts together, with the facts of the run beside them.

    Raises:
        ValueError: no image decodes, or the parts have different widths.
    """
    if not parts.width:
        reason = parts.done[0].unreadable[0][1]
        parts.clear()
        raise Refusal("data", task.data, "at least one image that decodes", f"of the first: {reason}")
    made = {name: begun[name] for name in HOW} | {"torch": str(torch.__version__)}
    made |= {"model": _said(task.model), "transform": _said(task.transform), "views": _said(views)}
    facts = {"kind": "embeddings", "key": begun["key"], "after": begun["after"]}
    publish(target, parts, catalog, {**facts, "made": made}, begun["overwrite"])


def _target(out: Any) -> Path:
    """The array to write, refused where it could not be written."""
    target = as_path(None, "out", out, new=True)
    if target.suffix != ".npy":
        raise Refusal("out", str(out), "a name ending in .npy")
    if not target.parent.is_dir():
        raise Refusal("out", str(out), "an existing folder to write in", f"make {target.parent} first")
    for file in files_of(target):
        if file.is_dir():
            raise Refusal("out", str(out), "no folder at the name of a file", f"move {file.name} away")
    return target


def _catalog_of(data: Any) -> Catalog:
    """The catalog of the images, refused where it cannot be kept beside the array."""
    catalog = data.catalog if hasattr(data, "tars") and hasattr(data, "read") else data
    if not isinstance(catalog, Catalog):
        hint = "tercet.ShardIndex opens the shards of a stream" if hasattr(data, "set_epoch") else ""
        raise Refusal("data", data, "a Catalog, such as tercet.scan_folder gives, or a ShardIndex", hint)
    refuse_unwritable(catalog)
    if not len(catalog):
        raise Refusal("data", data, "at least one image")
    for name, values in (("paths", catalog.paths.tolist()), ("classes", catalog.classes)):
        if "" in values:
            raise Refusal(f"data.{name}", "", "names that are not empty")
    return catalog


def _as_key(key: Any) -> str:
    text = as_string(None, "key", key)
    if text != text.encode(errors="ignore").decode():
        raise Refusal("key", text, "text that UTF-8 can write")
    return text


def _said(value: Any) -> str:
    """A model or a transform in words that are the same in every run."""
    text = shown(value)
    name = getattr(value, "__qualname__", type(value).__name__)
    return name if " at 0x" in text or isinstance(value, nn.Module) else text


def _read_only(target: Path, plan: Mapping[str, Any], catalog: Catalog) -> Embeddings:
    """The embeddings of a folder that may not be written, where they are there."""
    if not is_there(target, plan, catalog, rewrite=False):
        raise Refusal("out", str(target), "a folder that may be written")
    return _opened(target, catalog, 0)


def _opened(target: Path, catalog: Catalog, computed: int) -> Embeddings:
    """What was written, with the catalog as it was given."""
    found = read_embeddings(target)
    return Embeddings(found.array, catalog, found.facts, computed)


@contextmanager
def _bar(progress: bool, total: int, done: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar with rate and time left; yields what moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.0f} images/s" if task.speed else "")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("embedding", total=total, completed=done)
        yield lambda count: bar.advance(task, count)
