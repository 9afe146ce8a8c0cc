"""Read manifest files: rows, catalog and provenance, by one descriptor a file, checksums verified."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import border, refusal
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.checked_json import warn_unchecked
from tercet.data.io.journal import read_consistently
from tercet.data.io.parquet_files import KEY as CHECKSUM_KEY
from tercet.data.io.path_traversal import refuse_outside
from tercet.data.io.positional import open_plain
from tercet.data.manifests.arrow_layout import open_arrow
from tercet.data.manifests.columns import InMemoryColumns, OnDiskColumns
from tercet.data.manifests.formats import FORMATS, TEXT_FORMATS, read_paths, spreadsheet_safe
from tercet.data.manifests.provenance import (
    CATALOG_KEY,
    KEY,
    other_part,
    read_provenance,
    read_sidecar,
    refuse_other_split,
    sidecar,
    unpacked_catalog,
)

__all__ = ["Found", "read_rows"]

_CALLER = "read_manifest"


class Found(NamedTuple):
    """What `read_rows` found.

    Attributes:
        columns: three columns, of rows of the catalog; of pairs the last is 0 or 1.
        catalog: the catalog, or a function that reads it.
        provenance: {} for a file of another program.
        kind: "triplets" or "pairs".
        reopen: path, root and outside_root, to open it in another process; None where all is in memory.
    """

    columns: InMemoryColumns | OnDiskColumns
    catalog: Catalog | Callable[[], Catalog]
    provenance: dict[str, Any]
    kind: str
    reopen: tuple[str, str | None, bool] | None = None


def read_rows(source: Path, root: str | None, outside_root: bool) -> Found:
    """Read the rows of a manifest, its catalog and its provenance.

    Args:
        source: the file.
        root: the folder that the paths start from; None for the default of `read_manifest`.
        outside_root: whether paths may lead out of it.

    Raises:
        ValueError: the file does not exist, is not a manifest, is empty, cut short or damaged, has a path
            that is not in its catalog, or lies next to the part of another split.
    """
    if source.suffix not in FORMATS:
        raise refusal(_CALLER, "path", str(source), "a name ending in " + ", ".join(FORMATS))
    other = other_part(source)
    names = [source, sidecar(source), other, sidecar(other)]
    with border(_CALLER, "path"):
        found = read_consistently(names, partial(_read, source, root))
    if found.reopen:
        found = found._replace(reopen=(*found.reopen[:2], outside_root))
    if isinstance(found.catalog, Catalog):
        return found._replace(catalog=_in_its_root(source, outside_root, found.catalog))
    return found._replace(catalog=partial(_in_its_root, source, outside_root, found.catalog))


def _in_its_root(source: Path, outside_root: bool, catalog: Catalog | Callable[[], Catalog]) -> Catalog:
    """The catalog of a manifest, refused if a path leads out of its root and `outside_root` is False."""
    with border(_CALLER, "path"):
        catalog = catalog if isinstance(catalog, Catalog) else catalog()
        if outside_root:
            return replace(catalog, outside_root=True)
        refuse_outside(source, catalog.root, catalog.paths, rows=False)
    return catalog


def _read(source: Path, root: str | None, places: list[Path]) -> Found:
    """`read_rows`, given where the manifest, its sidecar, and both of the other part of its split are."""
    file, sidecar_file, *other = places
    if not file.is_file():
        raise refusal(_CALLER, "path", str(source), "an existing file")
    import pyarrow as pa

    place = source.parent if root is None else Path(root)
    try:
        if source.suffix in TEXT_FORMATS:
            found = _of_text(source, root, place, file, sidecar_file)
        else:
            found = _stored(source, root, place, file) or _of_paths(source, root, place, file)
        refuse_other_split(source, found.provenance, *other)
        return found
    except UnicodeDecodeError as error:
        raise refusal(_CALLER, "path", str(source), "text in UTF-8", f"it is damaged ({error})") from error
    except (pa.ArrowException, KeyError, OSError) as error:
        hint = "it has others" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        expected = "columns anchor, positive, negative of paths, or first, second, same"
        raise refusal(_CALLER, "path", str(source), expected, hint) from error


def _stored(source: Path, root: str | None, place: Path, file: Path) -> Found | None:
    """An .arrow manifest, left on disk; None for another format or a file that another program rewrote."""
    stored = open_arrow(file, KEY) if source.suffix == ".arrow" else None
    if not stored:
        return None
    columns, metadata, checked = stored
    provenance, facts_checked = read_provenance(source, metadata[KEY])
    if not (checked and facts_checked):
        warn_unchecked(source)
    _refuse_other_count(source, len(columns), provenance)
    recorded = provenance.get("catalog", {})
    catalog = partial(unpacked_catalog, source, metadata.get(CATALOG_KEY), place, recorded, facts_checked)
    return Found(columns, catalog, provenance, provenance["kind"], (str(source), root, False))


def _of_text(source: Path, root: str | None, place: Path, file: Path, sidecar_file: Path) -> Found:
    """A text manifest, with its sidecar if there is one."""
    with open_plain(file) as lines:
        written = read_sidecar(source, lines, place, sidecar_file)
        kind, paths, rows, _ = read_paths(lines, source.suffix, written[0]["kind"] if written else None)
    if not written:
        return _foreign(source, root, kind, paths, rows)
    provenance, catalog = written
    if root is None and provenance.get("path_prefix", "").endswith("/"):  # the folder of the images
        catalog = replace(catalog, root=Path(provenance["path_prefix"]))
    return _by_names(source, catalog, provenance, paths, rows)


def _of_paths(source: Path, root: str | None, place: Path, file: Path) -> Found:
    """A .parquet manifest, or an .arrow one of another program, read into memory."""
    kind, paths, rows, metadata = read_paths(file, source.suffix)
    if KEY not in metadata:
        return _foreign(source, root, kind, paths, rows)
    provenance, _ = read_provenance(source, metadata[KEY])
    checksum = metadata.get(CHECKSUM_KEY)
    if source.suffix == ".parquet" and checksum is None:
        warn_unchecked(source)
    recorded = provenance.get("catalog", {})
    catalog = unpacked_catalog(source, metadata.get(CATALOG_KEY), place, recorded, bool(checksum))
    return _by_names(source, catalog, provenance, paths, rows)


def _foreign(source: Path, root: str | None, kind: str, paths: np.ndarray, rows: np.ndarray) -> Found:
    """A file of another program; its catalog has the paths that it names, with their folders as classes."""
    if not paths.size:
        expected = "at least one triplet or pair"
        raise refusal(_CALLER, "path", str(source), expected, "the file is empty")
    if "" in paths:
        raise refusal(_CALLER, "path", str(source), "paths on every line", "one is empty")
    names = np.sort(paths)
    classes, labels = np.unique([os.path.dirname(name) for name in names], return_inverse=True)
    catalog = Catalog(names, labels, classes.tolist(), root=Path(root or ""), outside_root=False)
    return _by_names(source, catalog, {"kind": kind}, paths, rows)._replace(provenance={})


def _by_names(
    source: Path, catalog: Catalog, provenance: dict[str, Any], paths: np.ndarray, rows: np.ndarray
) -> Found:
    """Rows into distinct paths, translated to rows of the catalog by path."""
    kind = provenance["kind"]
    _refuse_other_count(source, rows.shape[1], provenance)
    prefix = provenance.get("path_prefix", "")
    names = catalog.paths.tolist()
    names = [prefix + name for name in names] if prefix else names
    names = list(map(spreadsheet_safe, names)) if provenance.get("csv_safe") is True else names
    row_of = {name: row for row, name in enumerate(names)}
    found = list(map(row_of.get, paths.tolist()))
    if None in found:
        hint = f"{paths[found.index(None)]!r} is not one of them; it was changed; write it again"
        raise refusal(_CALLER, "path", str(source), "paths of its own catalog", hint)
    translate = np.array(found, dtype=np.int32)
    named = 2 if kind == "pairs" else 3
    return Found(InMemoryColumns([*translate[rows[:named]], *rows[named:]]), catalog, provenance, kind)


def _refuse_other_count(source: Path, got: int, provenance: dict[str, Any]) -> None:
    kind = provenance["kind"]
    expected = provenance.get("counts", {}).get(kind, got)
    if expected != got:
        hint = f"it holds {got}: it was cut short or changed; write it again"
        written = f"the {expected} {kind} it was written with"
        raise refusal(_CALLER, "path", str(source), written, hint)
