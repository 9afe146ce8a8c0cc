"""Manifests: triplets on disk as paths, with their catalog and where they came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from tercet.catalog import Catalog
from tercet.checks import refusal, whole
from tercet.formats import BLOCK, FORMATS, TEXT_FORMATS, open_arrow, read_paths, write_paths
from tercet.provenance import catalog_from, compressed, decompressed, provenance_of, recorded_catalog
from tercet.tables import atomically, fresh_target
from tercet.tuples import Triplets, TripletSequence, rows_at

__all__ = ["Manifest", "manifest_target", "read_manifest", "write_manifest"]

_KEY = "tercet"  # the provenance, as JSON
_CATALOG_KEY = "tercet.catalog"  # the catalog


class Manifest:
    """Triplets read from disk: a sequence of rows of `catalog`. Made by `read_manifest`.

    `len(manifest)` is the number of triplets; `manifest[i]`, `manifest[a:b]` and `manifest[array]` give
    `Triplets` of int64 catalog rows. An .arrow manifest stays on disk and is read where it is asked for.

    Attributes:
        provenance: strategy, parameters, seed, counts, catalog fingerprint and library version; {} for a
            file that another program wrote.

    Example:
        >>> _ = Path("old.csv").write_text("anchor,positive,negative\\na/1.png,a/2.png,b/1.png\\n")
        >>> manifest = read_manifest("old.csv")
        >>> manifest, manifest[0].anchor.tolist(), manifest.catalog.classes
        (Manifest(1 triplets, strategy=None), [0], ['a', 'b'])
    """

    def __init__(
        self,
        blocks: list[Any],
        catalog: Catalog | Callable[[], Catalog],
        provenance: dict[str, Any],
        reopen: tuple[str, str | None] | None = None,
    ) -> None:
        self.provenance = provenance
        self._blocks = blocks  # each three arrays [b]
        self._ends = np.cumsum([0, *(len(block[0]) for block in blocks)])  # the last is the length
        self._catalog = catalog
        self._reopen = reopen

    @cached_property
    def catalog(self) -> Catalog:
        """The images that the triplets are rows of."""
        return self._catalog if isinstance(self._catalog, Catalog) else self._catalog()

    @cached_property
    def triplets(self) -> Triplets:
        """All triplets at once, int64 [t] each: 24 bytes a triplet."""
        return self[:]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Triplets:
        """The triplets at an int, a slice or an int array [t], as int64 [t] catalog rows.

        Raises:
            IndexError: a number outside the manifest.
        """
        rows = rows_at(index, len(self))
        block = np.searchsorted(self._ends, rows, side="right") - 1
        out = np.empty((3, len(rows)), dtype=np.int64)
        for number in np.unique(block):
            here = np.flatnonzero(block == number)
            within = rows[here] - self._ends[number]
            for column, values in zip(out, self._blocks[number]):
                column[here] = values[within]
        return Triplets(*out)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} triplets, strategy={self.provenance.get('strategy')!r})"

    def __reduce__(self) -> Any:
        # A worker process maps the file again instead of receiving what is mapped.
        return (read_manifest, self._reopen) if self._reopen else super().__reduce__()


def write_manifest(
    path: str | Path,
    triplets: Triplets | TripletSequence,
    catalog: Catalog,
    *,
    overwrite: bool = False,
    path_prefix: str = "",
    chunk_size: int = 1 << 16,
    progress: bool = False,
) -> None:
    """Write triplets of catalog rows as triplets of paths, with their provenance.

    The suffix names the format: .parquet (zstd, dictionary-encoded strings, as pandas, DuckDB and Hugging
    Face datasets read them), .arrow (uncompressed, for random access without loading), .csv (with a
    header), .jsonl, .txt (lines `query,positive,negative`). Provenance and catalog travel inside .parquet
    and .arrow, and in a JSON file beside the others (`triplets.txt.json`). The same triplets give the same
    bytes on every machine, under the same version of this library (and, for .parquet and .arrow, of
    pyarrow). The file appears when it is whole; an interrupted run leaves nothing under its name.

    Args:
        path: where to.
        triplets: `Triplets` of int [t], or any sequence of them, such as `RandomTriplets`.
        catalog: what the rows are rows of; paths are written relative to its root.
        overwrite: replace an existing file.
        path_prefix: is put before every path in the text formats, for a program that does not know the root.
        chunk_size: triplets drawn at a time; it changes memory and speed, never the result.
        progress: show a progress bar.

    Raises:
        ValueError: another suffix, an existing file, no such folder, a row outside the catalog, columns of
            unequal length, or a catalog that names a path twice, so that a path would not name its row.

    Example:
        >>> from tercet.triplets.random import RandomTriplets
        >>> catalog = Catalog(["ant/1.png", "ant/2.png", "bee/1.png"], [0, 0, 1], ["ant", "bee"])
        >>> write_manifest("triplets.txt", RandomTriplets(catalog.labels), catalog)
        >>> print(Path("triplets.txt").read_text().rstrip())
        ant/1.png,ant/2.png,bee/1.png
        ant/2.png,ant/1.png,bee/1.png
    """
    owner = "write_manifest"
    target = manifest_target(owner, path, overwrite)
    chunk_size = whole(owner, "chunk_size", chunk_size, minimum=1)
    text = target.suffix in TEXT_FORMATS
    if path_prefix and not text:
        raise refusal(
            owner, "path_prefix", path_prefix, f"no prefix for {target.suffix}", "give it to a text format"
        )
    if len(set(catalog.paths)) < len(catalog):
        name, count = Counter(catalog.paths).most_common(1)[0]
        raise refusal(owner, "catalog", catalog, "each path once", f"{name!r} is there {count} times")
    count = triplets.count if isinstance(triplets, Triplets) else len(triplets)
    provenance = provenance_of(_told(triplets), count, catalog, path_prefix)
    rows = recorded_catalog(catalog)
    metadata = {}
    if not text:
        metadata = {_KEY: json.dumps(provenance, ensure_ascii=False), _CATALOG_KEY: compressed(rows)}
    paths = [path_prefix + name for name in catalog.paths] if path_prefix else catalog.paths.tolist()
    with atomically(target) as unfinished:
        blocks = _blocks(triplets, len(catalog), chunk_size, progress)
        write_paths(unfinished, target.suffix, blocks, paths, metadata)
        if text:
            # The sum binds the two files: one of them from another run is noticed.
            record = {**provenance, "sha256": _sha256(unfinished), _CATALOG_KEY: rows}
            with atomically(_beside(target)) as unfinished_beside:
                unfinished_beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest_target(owner: str, path: str | Path, overwrite: bool) -> Path:
    """`path`, refused before any work is done for it if no manifest could be written there.

    Args:
        owner: who asks, for the sentence.
        path: the manifest to be written.
        overwrite: whether an existing one may be replaced.

    Raises:
        ValueError: another suffix, an existing file there or beside it, or no such folder.
    """
    target = fresh_target(owner, path, overwrite, FORMATS)
    beside = _beside(target)
    if target.suffix in TEXT_FORMATS and beside.exists() and not overwrite:
        way_out = "it exists; overwrite=True or --overwrite replaces it"
        raise refusal(owner, "path", str(path), f"no file {beside}", way_out)
    return target


def _beside(target: Path) -> Path:
    """The JSON file with the provenance of a text manifest."""
    return target.with_name(target.name + ".json")


def _told(triplets: Any) -> dict[str, Any]:
    """What triplets say of themselves; a manifest that is written again keeps its strategy."""
    if isinstance(triplets, Manifest):
        of_the_file = ("library", "path_prefix")
        return {name: fact for name, fact in triplets.provenance.items() if name not in of_the_file}
    return triplets.provenance() if hasattr(triplets, "provenance") else {}


def _blocks(triplets: Any, rows: int, chunk_size: int, progress: bool) -> Iterator[np.ndarray]:
    """int32 [3, b] blocks of row numbers, b = BLOCK but for the last, drawn `chunk_size` at a time."""
    from rich.console import Console
    from rich.progress import track

    given = isinstance(triplets, Triplets)
    count = triplets.count if given else len(triplets)
    if given:
        for column in triplets:  # below, a slice would cut a longer one
            _checked(np.asarray(column), count, rows)
    console = Console(stderr=True)
    starts = track(range(0, count, BLOCK), "writing triplets", console=console, disable=not progress)
    for start in starts:
        block = np.empty((3, min(BLOCK, count - start)), dtype=np.int32)
        for a in range(0, block.shape[1], chunk_size):
            b = min(a + chunk_size, block.shape[1])
            chunk = slice(start + a, start + b)
            columns = [column[chunk] for column in triplets] if given else triplets[chunk]
            for column, values in zip(block, columns):
                column[a:b] = _checked(np.asarray(values), b - a, rows)
        yield block


def _checked(values: np.ndarray, count: int, rows: int) -> np.ndarray:
    """`values`, refused unless they are `count` row numbers below `rows`."""
    expected = f"catalog rows from 0 to {rows - 1}, as many anchors as positives and negatives"
    if values.shape != (count,) or (count and values.dtype.kind not in "iu"):
        got = f"array of {values.dtype}, shape {values.shape}"
        raise refusal("write_manifest", "triplets", got, expected)
    if count and not 0 <= values.min() <= values.max() < rows:
        worst = values.max() if values.max() >= rows else values.min()
        raise refusal("write_manifest", "triplets", int(worst), expected)
    return values


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """The manifest at `path`: triplets, catalog and provenance.

    A file without provenance, from another program, gives a catalog of the paths that it names, sorted,
    each of the class that its folder is.

    Args:
        path: a .parquet, .arrow, .csv, .jsonl or .txt file of anchor, positive and negative paths.
        root: the folder that the paths start from, which the manifest does not record, so that it is the
            same on every machine; by default the folder of the manifest, or the path prefix that it was
            written with, and for a file of another program the working directory.

    Raises:
        ValueError: no such file, not a manifest, empty, cut short, or a path that its catalog does not have.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("old.txt").write_text("ant/1.png,ant/2.png,bee/1.png\\n")
        >>> manifest = read_manifest("old.txt")
        >>> len(manifest), manifest.catalog.paths[manifest[0].negative].tolist()
        (1, ['bee/1.png'])
    """
    source = Path(path)
    if source.suffix not in FORMATS:
        raise refusal("read_manifest", "path", str(path), "a name ending in " + ", ".join(FORMATS))
    if not source.is_file():
        raise refusal("read_manifest", "path", str(path), "an existing file")
    import pyarrow as pa

    try:
        return _read(source, None if root is None else str(root))
    except (pa.ArrowException, KeyError, OSError) as error:
        way_out = "it has others" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        expected = "columns anchor, positive, negative of paths"
        raise refusal("read_manifest", "path", str(path), expected, way_out) from error


def _read(source: Path, root: str | None) -> Manifest:
    place = source.parent if root is None else Path(root)
    mapped = open_arrow(source, _KEY) if source.suffix == ".arrow" else None
    if mapped:
        blocks, metadata = mapped
        provenance = json.loads(metadata[_KEY])
        manifest = Manifest(
            blocks, partial(_unpacked, metadata[_CATALOG_KEY], place), provenance, (str(source), root)
        )
        _refuse_other_count(source, len(manifest), provenance)
        return manifest

    paths, rows, metadata = read_paths(source, source.suffix)
    beside = _beside(source)
    if source.suffix in TEXT_FORMATS and beside.is_file():
        provenance, catalog = _read_beside(source, beside, place)
        if root is None and provenance.get("path_prefix", "").endswith("/"):  # the folder of the images
            catalog = replace(catalog, root=Path(provenance["path_prefix"]))
    elif _KEY in metadata:
        provenance, catalog = json.loads(metadata[_KEY]), _unpacked(metadata[_CATALOG_KEY], place)
    elif paths.size:
        if "" in paths:
            raise refusal("read_manifest", "path", str(source), "three paths on every line", "one is empty")
        provenance, catalog = {}, _catalog_of(paths, Path(root or ""))
    else:
        raise refusal("read_manifest", "path", str(source), "at least one triplet", "the file is empty")
    _refuse_other_count(source, rows.shape[1], provenance)
    prefix = provenance.get("path_prefix", "")
    row_of = {prefix + name: row for row, name in enumerate(catalog.paths)}
    unknown = [name for name in paths if name not in row_of]
    if unknown:
        way_out = f"{unknown[0]!r} is not one of them; it was changed; write it again"
        raise refusal("read_manifest", "path", str(source), "paths of its own catalog", way_out)
    translate = np.array([row_of[name] for name in paths], dtype=np.int32)
    return Manifest([list(translate[rows])], catalog, provenance)


def _unpacked(text: str, place: Path) -> Catalog:
    return catalog_from(decompressed(text), place)


def _read_beside(source: Path, beside: Path, place: Path) -> tuple[dict[str, Any], Catalog]:
    """Provenance and catalog from the JSON file beside a text manifest."""
    try:
        record = json.loads(beside.read_text("utf-8"))
        catalog = catalog_from(record.pop(_CATALOG_KEY), place)
        written = record.pop("sha256"), whole("read_manifest", "counts", record["counts"]["triplets"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        expected = f"its provenance in {beside.name} beside it"
        way_out = f"that file holds something else ({type(error).__name__}); move it away to do without"
        raise refusal("read_manifest", "path", str(source), expected, way_out) from error
    if written[0] != _sha256(source):
        expected = f"the {written[1]} triplets it was written with"
        way_out = f"it was cut short or changed; write it again, or move {beside.name} away to do without"
        raise refusal("read_manifest", "path", str(source), expected, way_out)
    return record, catalog


def _catalog_of(paths: np.ndarray, root: Path) -> Catalog:
    """The catalog of the paths that another program's file names, each of the class that its folder is."""
    paths = np.sort(paths)
    classes, labels = np.unique([os.path.dirname(name) for name in paths], return_inverse=True)
    return Catalog(paths, labels, classes.tolist(), root=root)


def _refuse_other_count(source: Path, got: int, provenance: dict[str, Any]) -> None:
    expected = provenance["counts"]["triplets"] if provenance else got
    if expected != got:
        way_out = f"it holds {got}: it was cut short or changed; write it again"
        raise refusal(
            "read_manifest", "path", str(source), f"the {expected} triplets it was written with", way_out
        )
