"""`Manifest`: triplets or pairs read from disk, with their catalog and provenance."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import as_bool, as_path, refusal
from tercet.core.indices import LabeledPairs, Triplets, rows_at
from tercet.data.catalog.catalog import Catalog
from tercet.data.manifests.columns import InMemoryColumns, OnDiskColumns
from tercet.data.manifests.reading import read_rows

__all__ = ["Manifest", "read_manifest"]

_SAMPLED = 256  # rows of a file that enter its identity


class Manifest:
    """Triplets or pairs read from disk, as rows of `catalog`; `read_manifest` creates it.

    `len(manifest)` is the number of triplets; `manifest[i]`, `manifest[a:b]` and `manifest[array]` give
    `Triplets` of int64 catalog rows; or, in a manifest of pairs, `LabeledPairs`. An .arrow manifest stays on
    disk, and rows are read on demand. Unpickling it opens the file again; if the file was replaced, that is a
    ValueError.

    Args:
        columns: the columns of row numbers.
        catalog: the catalog, or a function that reads it when it is first asked for.
        provenance: as the attribute.
        reopen: what `read_manifest` was called with, for unpickling an .arrow manifest; None for the others.
        kind: as the attribute.

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
        columns: InMemoryColumns | OnDiskColumns,
        catalog: Catalog | Callable[[], Catalog],
        provenance: dict[str, Any],
        reopen: tuple[str, str | None, bool] | None = None,
        kind: str = "triplets",
    ) -> None:
        self.kind = kind
        self.provenance = provenance
        self._columns = columns
        self._catalog = catalog
        self._reopen = reopen

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog whose rows the triplets or pairs are."""
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
        """The count and a CRC, which distinguish this file from another of its name.

        The CRC covers the provenance, which contains the catalog's fingerprint, and a sample of rows: reading
        all rows would take long, and the modification time of a copy on another machine differs.
        """
        some = np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64)) if len(self) else []
        rows = self._columns.take(np.asarray(some, dtype=np.int64))
        provenance = json.dumps(self.provenance, sort_keys=True).encode()
        return len(self), zlib.crc32(rows.astype("<i8").tobytes(), zlib.crc32(provenance))


def read_manifest(
    path: str | Path, root: str | Path | None = None, *, outside_root: bool = False
) -> Manifest:
    """Read a manifest: triplets or pairs with their catalog and provenance.

    A file of another program has no catalog. It gets one of the paths that it names, sorted, with the folder
    of each path as its class.

    Args:
        path: a .parquet, .arrow, .csv, .jsonl or .txt file of anchor, positive and negative paths, or of
            first and second paths with same, 1 or 0. A .txt file of another program holds pairs if all its
            lines end in 1 or 0.
        root: the folder that the paths start from. A manifest does not record it, so that it is the same on
            every machine. By default it is the folder of the manifest, or the path prefix that it was
            written with; for a file of another program, the working directory.
        outside_root: allow paths that lead out of the root: by `..`, by a link, or as absolute paths. By
            default such paths are refused (for an .arrow manifest, when its catalog is first used), and
            links when an image is opened.

    Returns:
        The `Manifest`: a sequence of triplets or pairs with `catalog` and `provenance`.

    Raises:
        ValueError: the file does not exist, is not a manifest, is empty or cut short, or has a path that is
            not in its catalog or leads out of the root.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("old.txt").write_text("ant/1.png,ant/2.png,bee/1.png\\n")
        >>> manifest = read_manifest("old.txt")
        >>> len(manifest), manifest.catalog.paths[manifest[0].negative].tolist()
        (1, ['bee/1.png'])
    """
    outside_root = as_bool("read_manifest", "outside_root", outside_root)
    place = None if root is None else str(as_path("read_manifest", "root", root))
    found = read_rows(as_path("read_manifest", "path", path), place, outside_root)
    return Manifest(found.columns, found.catalog, found.provenance, found.reopen, found.kind)


def _reopened(path: str, root: str | None, outside_root: bool, identity: tuple[int, int]) -> Manifest:
    """The manifest that was pickled; a ValueError where its file was replaced since."""
    manifest = read_manifest(path, root, outside_root=outside_root)
    if manifest._identity != identity:
        hint = "read it anew, with read_manifest, in the process that sends it"
        raise refusal("Manifest", "path", path, "the file as it was when it was pickled", hint)
    return manifest
