"""`write_manifest`: triplets or pairs as paths, drawn in blocks, with their catalog and provenance."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import Refusal, as_array, as_bool, as_int, as_path, as_string, border, refusal
from tercet.core.indices import LabeledPairs, PairSequence, Triplets, TripletSequence
from tercet.data.catalog.catalog import Catalog, refuse_unwritable
from tercet.data.io.atomic import atomically_together, fresh_target
from tercet.data.io.checked_json import to_json
from tercet.data.manifests.formats import BLOCK, FORMATS, TEXT_FORMATS, spreadsheet_safe, write_paths
from tercet.data.manifests.provenance import (
    CATALOG_KEY,
    KEY,
    other_part,
    packed,
    provenance_of,
    recorded_catalog,
    refuse_other_catalog,
    refuse_other_split,
    sha256,
    sidecar,
)

__all__ = [
    "ManifestPart",
    "drawn_blocks",
    "kind_and_count",
    "manifest_target",
    "write_manifest",
    "write_manifests",
]


def write_manifest(
    path: str | Path,
    triplets: Triplets | LabeledPairs | TripletSequence | PairSequence,
    catalog: Catalog,
    *,
    overwrite: bool = False,
    path_prefix: str = "",
    csv_safe: bool = False,
    chunk_size: int = 1 << 16,
    progress: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write triplets or pairs of catalog rows as paths, with their provenance.

    The suffix names the format: .parquet (zstd, dictionary-encoded strings, as pandas, DuckDB and Hugging
    Face datasets read them), .arrow (uncompressed, for random access without loading), .csv (with a
    header), .jsonl, .txt (lines `query,positive,negative`, or `first,second,same` with 1 for two of a class
    and 0 for two of different classes). Provenance and catalog are stored inside .parquet and .arrow files,
    and in a sidecar of the text formats (`triplets.txt.json`). The same triplets give the same bytes on every
    machine, under the same version of this library (and, for .parquet and .arrow, of pyarrow). The files are
    renamed as one set once they are on the disk: a killed run leaves the old files or a complete new set.

    Args:
        path: the file to write.
        triplets: `Triplets` of int [t], or any sequence of them, such as `RandomTriplets`; for pairs
            `LabeledPairs`, or a sequence such as `RandomPairs`.
        catalog: the catalog whose rows they are; paths are written relative to its root.
        overwrite: replace an existing file.
        path_prefix: a text put before every path in the text formats, for programs that do not know the root.
        csv_safe: for .csv alone, which people open in spreadsheets: put an apostrophe before a path (with its
            prefix) that begins with = + - @, a tab, a line break or an apostrophe, so that it is not run as a
            formula. `read_manifest` removes it; other programs see it.
        chunk_size: triplets drawn at a time; it changes memory and speed, not the result.
        progress: show a progress bar.
        provenance: further facts to record, by name.

    Raises:
        ValueError: another suffix, an existing file, no such folder, a row outside the catalog, columns of
            unequal length, a catalog with a path that occurs twice or with names or groups that cannot be
            written, triplets from a manifest of another catalog, or the part of another split next to it.
        OSError: the disk is full, or another run has written the file meanwhile.

    Example:
        >>> from tercet.data.triplets.random import RandomTriplets
        >>> catalog = Catalog(["ant/1.png", "ant/2.png", "bee/1.png"], [0, 0, 1], ["ant", "bee"])
        >>> write_manifest("triplets.txt", RandomTriplets(catalog.labels), catalog)
        >>> print(Path("triplets.txt").read_text().rstrip())
        ant/1.png,ant/2.png,bee/1.png
        ant/2.png,ant/1.png,bee/1.png
    """
    caller = "write_manifest"
    if not isinstance(provenance, (Mapping, type(None))):
        raise refusal(caller, "provenance", provenance, "facts by name, a dict")
    part = ManifestPart(as_path(caller, "path", path), triplets, catalog, provenance or {})
    options: dict[str, Any] = {"chunk_size": chunk_size, "progress": progress}
    write_manifests([part], overwrite=overwrite, path_prefix=path_prefix, csv_safe=csv_safe, **options)


class ManifestPart(NamedTuple):
    """One of the manifests for `write_manifests`.

    Args:
        path: the file to write.
        triplets: triplets or pairs of catalog rows.
        catalog: the catalog whose rows they are.
        provenance: further facts to record, by name.
    """

    path: Path
    triplets: Any
    catalog: Any
    provenance: Mapping[str, Any]


def write_manifests(
    parts: Sequence[ManifestPart],
    *,
    overwrite: bool = False,
    path_prefix: str = "",
    csv_safe: bool = False,
    chunk_size: int = 1 << 16,
    progress: bool = False,
) -> None:
    """Write manifests of one folder as one set: `read_manifest` sees all new files or all old ones.

    Args:
        parts: the manifests; nothing is written if one of them is refused.
        overwrite: replace existing files.
        path_prefix: a text put before every path in the text formats.
        csv_safe: mark paths that a spreadsheet would run as a formula (.csv).
        chunk_size: triplets drawn at a time.
        progress: show progress bars.

    Raises:
        ValueError, OSError: as by `write_manifest`.
    """
    with border("write_manifest"):
        targets = [manifest_target(part.path, overwrite) for part in parts]
        path_prefix = as_string(None, "path_prefix", path_prefix)
        progress, csv_safe = as_bool(None, "progress", progress), as_bool(None, "csv_safe", csv_safe)
        chunk_size = as_int(None, "chunk_size", chunk_size, 1)
        records = [
            _record_of(target, part, path_prefix, csv_safe)
            for target, part in zip(targets, parts, strict=True)
        ]
        for target, record in zip(targets, records, strict=True):
            other = other_part(target)
            if other not in targets:
                refuse_other_split(target, record, other, sidecar(other))
    names = [name for target in targets for name in _names(target)]
    with atomically_together(names, overwrite) as unfinished:
        files = dict(zip(names, unfinished, strict=True))
        for target, part, record in zip(targets, parts, records, strict=True):
            images, metadata = recorded_catalog(part.catalog), {}
            if target.suffix not in TEXT_FORMATS:
                metadata = {KEY: to_json(record), CATALOG_KEY: packed(images)}
            paths = [path_prefix + name for name in part.catalog.paths]
            paths = list(map(spreadsheet_safe, paths)) if csv_safe else paths
            blocks = drawn_blocks(part.triplets, len(part.catalog), chunk_size, progress)
            write_paths(files[target], target.suffix, blocks, paths, metadata, record["kind"])
            if target.suffix in TEXT_FORMATS:
                # The checksum of the one file in the other reveals two files of different runs.
                facts = {**record, "sha256": sha256(files[target]), CATALOG_KEY: images}
                files[sidecar(target)].write_text(to_json(facts, indent=1) + "\n", "utf-8")


def _record_of(target: Path, part: ManifestPart, path_prefix: str, csv_safe: bool) -> dict[str, Any]:
    """The provenance of a manifest that can be written, refused where it cannot."""
    if csv_safe and target.suffix != ".csv":
        raise Refusal("csv_safe", csv_safe, f"False for {target.suffix}", "only .csv has cells")
    if path_prefix and target.suffix not in TEXT_FORMATS:
        expected = f"no prefix for {target.suffix}"
        raise Refusal("path_prefix", path_prefix, expected, "give it to a text format")
    catalog = part.catalog
    refuse_unwritable(catalog)
    refuse_other_catalog(part.triplets, catalog)
    if len(set(catalog.paths)) < len(catalog):
        name, count = Counter(catalog.paths).most_common(1)[0]
        raise Refusal("catalog", catalog, "each path once", f"{name!r} is there {count} times")
    facts = {**_facts_of(part.triplets), **part.provenance, "csv_safe": csv_safe}
    if not csv_safe:
        del facts["csv_safe"]
    return provenance_of(facts, *kind_and_count(part.triplets), catalog, path_prefix)


def _names(target: Path) -> list[Path]:
    """The files of a manifest."""
    return [target, sidecar(target)] if target.suffix in TEXT_FORMATS else [target]


def manifest_target(path: str | Path, overwrite: bool) -> Path:
    """`path`, refused before any work is done for it if no manifest could be written there.

    Args:
        path: the manifest to be written.
        overwrite: whether an existing one may be replaced.

    Raises:
        ValueError: another suffix, an existing file or sidecar, or no such folder.
    """
    target = fresh_target(path, overwrite, FORMATS)
    other = sidecar(target)
    if target.suffix in TEXT_FORMATS and other.is_dir():
        raise Refusal("path", str(path), f"no folder {other}", "move it away")
    if target.suffix in TEXT_FORMATS and os.path.lexists(other) and not overwrite:
        hint = "it exists; overwrite=True or --overwrite replaces it"
        raise Refusal("path", str(path), f"no file {other}", hint)
    return target


def _facts_of(triplets: Any) -> dict[str, Any]:
    """The provenance of triplets; those of a manifest keep the manifest's."""
    provenance = getattr(triplets, "provenance", {})
    if isinstance(provenance, Mapping):
        return {
            name: fact
            for name, fact in provenance.items()
            if name not in ("library", "path_prefix", "csv_safe")
        }
    return provenance()


def kind_and_count(triplets: Any) -> tuple[str, int]:
    """The kind, "triplets" or "pairs", and the count of `write_manifest`'s triplets."""
    kind = getattr(triplets, "kind", "triplets")
    if isinstance(triplets, (Triplets, LabeledPairs)):
        anchors = as_array("write_manifest", "triplets", triplets[0], "columns of catalog rows")
        return kind, anchors.shape[0] if anchors.ndim else 0
    try:
        return kind, len(triplets)
    except Exception:
        expected = "Triplets, LabeledPairs, or a sequence of either such as RandomTriplets"
        raise refusal("write_manifest", "triplets", triplets, expected) from None


def drawn_blocks(triplets: Any, rows: int, chunk_size: int, progress: bool) -> Iterator[np.ndarray]:
    """int32 [3, b] blocks of row numbers, b = BLOCK but for the last, drawn `chunk_size` at a time."""
    from rich.console import Console
    from rich.progress import track

    given = isinstance(triplets, (Triplets, LabeledPairs))
    kind, count = kind_and_count(triplets)
    if given:
        _checked(triplets, kind, count, rows)  # checked as a whole, since slices would cut a longer column
    console = Console(stderr=True)
    starts = track(range(0, count, BLOCK), f"writing {kind}", console=console, disable=not progress)
    for start in starts:
        block = np.empty((3, min(BLOCK, count - start)), dtype=np.int32)
        for a in range(0, block.shape[1], chunk_size):
            b = min(a + chunk_size, block.shape[1])
            chunk = slice(start + a, start + b)
            columns = [column[chunk] for column in triplets] if given else triplets[chunk]
            block[:, a:b] = _checked(columns, kind, b - a, rows)
        yield block


def _checked(columns: Any, kind: str, count: int, rows: int) -> list[np.ndarray]:
    """The columns as arrays, refused unless each has `count` rows below `rows`; `same` of pairs is 0 or 1."""
    together = "as many anchors as positives and negatives"
    if kind == "pairs":
        together = "and for each pair of them whether they are of one class"
    expected = f"catalog rows from 0 to {rows - 1}, {together}"
    arrays = [as_array("write_manifest", "triplets", column, expected) for column in columns]
    for nth, values in enumerate(arrays):
        numbers, high = "iu", rows
        if kind == "pairs" and nth == 2:
            numbers, high = "iub", 2
        if values.shape != (count,) or (count and values.dtype.kind not in numbers):
            got = f"array of {values.dtype}, shape {values.shape}"
            raise refusal("write_manifest", "triplets", got, expected)
        if count and not 0 <= values.min() <= values.max() < high:
            worst = values.max() if values.max() >= high else values.min()
            raise refusal("write_manifest", "triplets", int(worst), expected)
    return arrays
