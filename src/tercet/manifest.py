"""Manifests: triplets or pairs on disk as paths, with their catalog and where they came from."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tercet.atomic import atomically, fresh_target
from tercet.blocks import drawn_blocks, kind_and_count
from tercet.catalog import Catalog, refuse_unwritable
from tercet.checks import refusal, whole
from tercet.columns import HeldColumns, StoredColumns
from tercet.facts import as_json
from tercet.formats import FORMATS, TEXT_FORMATS, write_paths
from tercet.manifest_reading import read_rows
from tercet.provenance import (
    CATALOG_KEY,
    KEY,
    beside,
    compressed,
    provenance_of,
    recorded_catalog,
    refuse_other_catalog,
    sha256,
)
from tercet.triplets.pairs import LabeledPairs, PairSequence
from tercet.tuples import Triplets, TripletSequence, rows_at

__all__ = ["Manifest", "manifest_target", "read_manifest", "unfinished_manifest", "write_manifest"]

_SAMPLED = 256  # rows that stand for all of a file


class Manifest:
    """Triplets or pairs read from disk: a sequence of rows of `catalog`. Made by `read_manifest`.

    `len(manifest)` is the number of triplets; `manifest[i]`, `manifest[a:b]` and `manifest[array]` give
    `Triplets` of int64 catalog rows; or, in a manifest of pairs, `LabeledPairs`. An .arrow manifest stays on
    disk and is read where it is asked for; a pickle of it opens the file again, and is refused if that has
    become another.

    Attributes:
        kind: "triplets" or "pairs".
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
        columns: HeldColumns | StoredColumns,
        catalog: Catalog | Callable[[], Catalog],
        provenance: dict[str, Any],
        reopen: tuple[str, str | None] | None = None,
        kind: str = "triplets",
    ) -> None:
        self.kind = kind
        self.provenance = provenance
        self._columns = columns  # three
        self._catalog = catalog
        self._reopen = reopen

    @cached_property
    def catalog(self) -> Catalog:
        """The images that the triplets or pairs are rows of."""
        return self._catalog if isinstance(self._catalog, Catalog) else self._catalog()

    @cached_property
    def triplets(self) -> Triplets:
        """All triplets at once, int64 [t] each: 24 bytes a triplet.

        Raises:
            ValueError: it is a manifest of pairs.
        """
        if self.kind != "triplets":
            raise refusal("Manifest.triplets", "manifest", self, "a manifest of triplets", "take .pairs")
        return self[:]

    @cached_property
    def pairs(self) -> LabeledPairs:
        """All pairs at once: first and second int64 [t], same bool [t]; `.as_pairs()` is for heads.

        Raises:
            ValueError: it is a manifest of triplets.
        """
        if self.kind != "pairs":
            raise refusal("Manifest.pairs", "manifest", self, "a manifest of pairs", "take .triplets")
        return self[:]

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: Any) -> Any:
        """The triplets or pairs at an int, a slice or an int array [t], as int64 [t] catalog rows.

        Raises:
            IndexError: a number outside the manifest.
            ValueError: an .arrow file that has been written to since it was opened, or holds a row outside
                its catalog.
        """
        out = self._columns.take(rows_at(index, len(self)))
        if self.kind == "pairs":
            return LabeledPairs(out[0], out[1], out[2] == 1)
        return Triplets(*out)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} {self.kind}, strategy={self.provenance.get('strategy')!r})"

    def __reduce__(self) -> Any:
        # A worker process opens the file again: an open file cannot be sent.
        return (_reopened, (*self._reopen, self._identity)) if self._reopen else super().__reduce__()

    @cached_property
    def _identity(self) -> tuple[int, int]:
        """What tells this file from another that takes its name: the count, and a CRC.

        The CRC is of provenance, which has the catalog's fingerprint, and of some rows: for a copy on another
        machine has another time of change, and reading all rows would take long.
        """
        some = np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64)) if len(self) else []
        rows = self._columns.take(np.asarray(some, dtype=np.int64))
        told = json.dumps(self.provenance, sort_keys=True).encode()
        return len(self), zlib.crc32(rows.astype("<i8").tobytes(), zlib.crc32(told))


def write_manifest(
    path: str | Path,
    triplets: Triplets | LabeledPairs | TripletSequence | PairSequence,
    catalog: Catalog,
    *,
    overwrite: bool = False,
    path_prefix: str = "",
    chunk_size: int = 1 << 16,
    progress: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write triplets or pairs of catalog rows as paths, with their provenance.

    The suffix names the format: .parquet (zstd, dictionary-encoded strings, as pandas, DuckDB and Hugging
    Face datasets read them), .arrow (uncompressed, for random access without loading), .csv (with a
    header), .jsonl, .txt (lines `query,positive,negative`, or `first,second,same` with 1 for two of a class
    and 0 for two of different classes). Provenance and catalog travel inside .parquet and .arrow, and in a
    JSON file beside the others (`triplets.txt.json`). The same triplets give the same bytes on every machine,
    under the same version of this library (and, for .parquet and .arrow, of pyarrow). The file appears when
    it is whole; an interrupted run leaves nothing under its name.

    Args:
        path: where to.
        triplets: `Triplets` of int [t], or any sequence of them, such as `RandomTriplets`; for pairs
            `LabeledPairs`, or a sequence such as `RandomPairs`.
        catalog: what the rows are rows of; paths are written relative to its root.
        overwrite: replace an existing file.
        path_prefix: is put before every path in the text formats, for a program that does not know the root.
        chunk_size: triplets drawn at a time; it changes memory and speed, never the result.
        progress: show a progress bar.
        provenance: what to record beside the facts that triplets and catalog tell, by name.

    Raises:
        ValueError: another suffix, an existing file, no such folder, a row outside the catalog, columns of
            unequal length, a catalog that names a path twice, so that a path would not name its row, one with
            names or groups that cannot be written, or triplets of a manifest of another catalog.

    Example:
        >>> from tercet.triplets.random import RandomTriplets
        >>> catalog = Catalog(["ant/1.png", "ant/2.png", "bee/1.png"], [0, 0, 1], ["ant", "bee"])
        >>> write_manifest("triplets.txt", RandomTriplets(catalog.labels), catalog)
        >>> print(Path("triplets.txt").read_text().rstrip())
        ant/1.png,ant/2.png,bee/1.png
        ant/2.png,ant/1.png,bee/1.png
    """
    options: dict[str, Any] = {"overwrite": overwrite, "path_prefix": path_prefix, "provenance": provenance}
    with unfinished_manifest(path, triplets, catalog, chunk_size=chunk_size, progress=progress, **options):
        pass


@contextmanager
def unfinished_manifest(
    path: str | Path,
    triplets: Any,
    catalog: Catalog,
    *,
    overwrite: bool = False,
    path_prefix: str = "",
    chunk_size: int = 1 << 16,
    progress: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """A manifest, written by other names: it gets its own when the block ends well, and vanishes when not.

    So several manifests appear together. Arguments and refusals are those of `write_manifest`.
    """
    owner = "write_manifest"
    target = manifest_target(owner, path, overwrite)
    chunk_size = whole(owner, "chunk_size", chunk_size, minimum=1)
    text = target.suffix in TEXT_FORMATS
    if path_prefix and not text:
        raise refusal(
            owner, "path_prefix", path_prefix, f"no prefix for {target.suffix}", "give it to a text format"
        )
    refuse_unwritable(owner, catalog)
    refuse_other_catalog(owner, triplets, catalog)
    if len(set(catalog.paths)) < len(catalog):
        name, count = Counter(catalog.paths).most_common(1)[0]
        raise refusal(owner, "catalog", catalog, "each path once", f"{name!r} is there {count} times")
    kind, count = kind_and_count(triplets)
    told = provenance_of({**_told(triplets), **(provenance or {})}, kind, count, catalog, path_prefix)
    rows = recorded_catalog(catalog)
    metadata = {}
    if not text:
        metadata = {KEY: as_json(told), CATALOG_KEY: compressed(rows)}
    paths = [path_prefix + name for name in catalog.paths] if path_prefix else catalog.paths.tolist()
    with ExitStack() as stack:
        unfinished = stack.enter_context(atomically(target))
        blocks = drawn_blocks(triplets, len(catalog), chunk_size, progress)
        write_paths(unfinished, target.suffix, blocks, paths, metadata, kind)
        if text:
            # The sum binds the two files: one of them from another run is noticed.
            record = {**told, "sha256": sha256(unfinished), CATALOG_KEY: rows}
            other = stack.enter_context(atomically(beside(target)))
            other.write_text(as_json(record, indent=1) + "\n", "utf-8")
        yield


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
    other = beside(target)
    if target.suffix in TEXT_FORMATS and other.exists() and not overwrite:
        way_out = "it exists; overwrite=True or --overwrite replaces it"
        raise refusal(owner, "path", str(path), f"no file {other}", way_out)
    return target


def _told(triplets: Any) -> dict[str, Any]:
    """What triplets say of themselves; a manifest that is written again keeps its strategy."""
    if isinstance(triplets, Manifest):
        of_the_file = ("library", "path_prefix")
        return {name: fact for name, fact in triplets.provenance.items() if name not in of_the_file}
    return triplets.provenance() if hasattr(triplets, "provenance") else {}


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """The manifest at `path`: triplets or pairs, catalog and provenance.

    A file without provenance, from another program, gives a catalog of the paths that it names, sorted,
    each of the class that its folder is.

    Args:
        path: a .parquet, .arrow, .csv, .jsonl or .txt file of anchor, positive and negative paths, or of
            first and second paths with same, 1 or 0. Lines of a .txt file of another program are pairs if all
            of them end in 1 or 0.
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
    found = read_rows(Path(path), None if root is None else str(root))
    return Manifest(found.columns, found.catalog, found.provenance, found.reopen, found.kind)


def _reopened(path: str, root: str | None, identity: tuple[int, int]) -> Manifest:
    """The manifest that was pickled, refused where its file has become another."""
    manifest = read_manifest(path, root)
    if manifest._identity != identity:
        way_out = "read it anew, with read_manifest, in the process that sends it"
        raise refusal("Manifest", "path", path, "the file as it was when it was pickled", way_out)
    return manifest
