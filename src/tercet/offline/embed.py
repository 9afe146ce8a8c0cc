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
from tercet.data.io.atomic import remove_leftovers
from tercet.offline.embedding_cache import Parts, differing, digests_of, images_digest, key_of, parts_of
from tercet.offline.embeddings import (
    Embeddings,
    catalog_facts,
    files_of,
    publish,
    read_embeddings,
    read_facts,
    rewrite_catalog,
)
from tercet.offline.fingerprints import modules_within
from tercet.offline.image_batches import ImageBatches, as_transform, loaded
from tercet.offline.model_run import PRECISIONS, ModelRun, as_views, device_of_modules, evaluating, fill
from tercet.pairwise.inputs import device_of

__all__ = ["embed"]

_CALLER = "embed"
_HINT = "overwrite=True or --overwrite makes all anew"
_HOW = ("batch_size", "device", "compile")  # what decides the last bits, so an unfinished run has to keep it


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

    A run that was killed is resumed by the same call, from its last whole part: every batch holds the same
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
        part_size: about how many images are embedded between two savings.
        overwrite: make the embeddings anew, whatever is there, and replace it.
        progress: show a progress bar with rate and time left.

    Returns:
        The embeddings, mapped from the file; `computed` tells how many this call has embedded.

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
        modules = modules_within(model)
        place = device_of_modules(modules) if device is None else device_of(_CALLER, device)
        seen, kind = as_views(views), np.dtype(dtype)
        plan = {
            "key": key_of(data, model, transform, seen, options, hash),
            "overwrite": overwrite,
            "batch_size": batch_size,
            "device": place.type,
            "compile": compile,
        }
        if not os.access(target.parent, os.W_OK):
            return _read_only(target, plan, catalog)
        with parts_of(target, kind) as parts:
            begun = _prepare(target, parts, plan, catalog)
            if begun is None:
                return _opened(target, catalog, 0)
            batches = ImageBatches(_CALLER, data, transform, batch_size)
            compiled = torch.compile(model) if compile else model
            run = ModelRun(compiled, seen, place, precision, normalize, kind, lambda row: str(data.file(row)))
            first = parts.rows
            try:
                with evaluating(modules), _bar(progress, len(catalog), first) as advance:
                    stream = loaded(batches, -(-first // batch_size), workers, place.type == "cuda")
                    fill(parts, run, stream, -(-part_size // batch_size), advance)
            finally:
                after = _left_by_running(model, transform, seen, plan["key"])
                if after != begun.get("after", {}):
                    begun = {**begun, "after": after}
                    parts.note(begun)
            if not parts.width:
                reason = parts.done[0].unreadable[0][1]
                parts.clear()
                raise Refusal("data", data, "at least one image that decodes", f"of the first: {reason}")
            if images_digest(data) != plan["key"]["images"]:
                text = f"embed(out={str(out)!r}): images were changed meanwhile, so a later call is refused"
                warnings.warn(escaped(f"{text}; {_HINT}"), UserWarning, stacklevel=2)
            made = {name: plan[name] for name in _HOW} | {"torch": str(torch.__version__)}
            made |= {"model": _said(model), "transform": _said(transform), "views": _said(views)}
            facts = {"kind": "embeddings", "key": begun["key"], "after": after, "made": made}
            publish(target, parts, catalog, facts, overwrite)
            parts.clear()
            return _opened(target, catalog, len(catalog) - first)


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


def _left_by_running(model: Any, transform: Any, views: Any, key: Mapping[str, Any]) -> dict[str, Any]:
    """Digests that are others once the model has run: some models keep what they computed, as Swin does."""
    try:
        found = digests_of(model, transform, views, key["key"])
    except ValueError:  # it keeps something that cannot be told
        return {}
    return {name: one for name, one in found.items() if one != key[name]}


def _is_there(target: Path, plan: Mapping[str, Any], catalog: Catalog, rewrite: bool) -> bool:
    """Whether the embeddings are there already, of the key of the plan; their catalog is brought up to date.

    Raises:
        ValueError: what is there is of another key, or of another program.
    """
    array, _, sidecar = files_of(target)
    there = [file for file in files_of(target) if os.path.lexists(file)]
    if not there or plan["overwrite"]:
        return False
    if array not in there or sidecar not in there:
        hint = f"{there[0].name} is there, and embed has not written it with these names; {_HINT}"
        raise Refusal("out", str(target), "new files, or those of an earlier call", hint)
    facts = read_facts(target, sidecar)
    _refuse_other_key(target, facts, plan["key"], "embeddings")
    if rewrite and facts["catalog"] != catalog_facts(catalog, target):
        rewrite_catalog(target, catalog, facts)
    return True


def _read_only(target: Path, plan: Mapping[str, Any], catalog: Catalog) -> Embeddings:
    """The embeddings of a folder that may not be written, where they are there."""
    if not _is_there(target, plan, catalog, rewrite=False):
        raise Refusal("out", str(target), "a folder that may be written")
    return _opened(target, catalog, 0)


def _prepare(target: Path, parts: Parts, plan: Mapping[str, Any], catalog: Catalog) -> dict[str, Any] | None:
    """The plan of the run that the parts are ready for; None where the embeddings are there already.

    An unfinished run of the same plan is resumed. With `overwrite` it is if it was begun with it: so the same
    call goes on, wherever it was killed.

    Raises:
        ValueError: what is there, or an unfinished run, is of another key.
    """
    remove_leftovers(target.parent)
    if _is_there(target, plan, catalog, rewrite=True):
        parts.clear()
        return None
    begun = parts.plan()
    how = [name for name in _HOW if begun.get(name) != plan[name]]
    other = _differing(begun, plan["key"]) if begun else ""
    if begun and not other and not how and begun.get("overwrite") in (True, plan["overwrite"]):
        parts.resume()
        return begun
    if begun and not plan["overwrite"] and parts.exist():
        _refuse_other_key(target, begun, plan["key"], "an unfinished run")
        hint = f"with {begun.get(how[0])!r} the unfinished run goes on; {_HINT}"
        raise Refusal(how[0], plan[how[0]], f"that of an unfinished run, {begun.get(how[0])!r}", hint)
    parts.begin(plan)
    return dict(plan)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """How a key differs from that of a run, before or after its model had run, whichever is nearer."""
    before = there.get("key", {})
    return min((differing(key, here) for key in (before, {**before, **there.get("after", {})})), key=len)


def _refuse_other_key(target: Path, there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    if other := _differing(there, here):
        expected = f"{what} of the same model, images and options"
        raise Refusal("out", str(target), expected, f"what differs: {other}; {_HINT}")


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
