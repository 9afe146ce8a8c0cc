"""`Embeddings`: those of a collection on disk, with their catalog and what they were made of."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal, as_bool, as_path, border
from tercet.data.catalog.catalog import Catalog, root_prefix, table_columns
from tercet.data.io.atomic import atomically_together
from tercet.data.io.checked_json import JsonRecord, to_json
from tercet.data.io.journal import read_consistently
from tercet.data.io.positional import NpyFile, PositionalFile
from tercet.data.io.tables import fill_table, read_columns
from tercet.offline.embedding_parts import Part, Parts

__all__ = [
    "Embeddings",
    "catalog_facts",
    "files_of",
    "publish",
    "read_embeddings",
    "read_facts",
    "rewrite_catalog",
]

BLOCK = 1 << 20  # bytes of the array that have a checksum
SAMPLED = 256  # blocks that are compared when the array is opened; of a longer one they are spread over it
_HINT = "embed the images again with overwrite=True or --overwrite"


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """The embeddings of a collection, a row for each row of its catalog.

    Args:
        array: float32 or float16 [n, d], mapped from the file and read when it is used; rows of NaN for
            images that do not decode.
        catalog: the images, n rows.
        facts: what the embeddings were made of, from the JSON file beside them: `facts["key"]` decides
            whether they can be used again, `facts["made"]` tells of model, transform and devices in words,
            and `facts["unreadable"]` has row, path and reason of each image that does not decode.
        computed: how many images this call of `embed` has embedded; 0 for embeddings that were there.

    Example:
        >>> from tercet.data.catalog.catalog import Catalog
        >>> catalog = Catalog(["a.jpg", "b.jpg"], [0, 1], ["ant", "bee"])
        >>> facts = {"unreadable": [[1, "b.jpg", "the file is empty"]]}
        >>> embeddings = Embeddings(np.zeros((2, 3), np.float32), catalog, facts)
        >>> embeddings, embeddings.labels.tolist(), embeddings.unreadable.tolist()
        (Embeddings(2 × 3, float32, 1 unreadable), [0, 1], [1])
    """

    array: np.ndarray
    catalog: Catalog
    facts: Mapping[str, Any]
    computed: int = 0

    @property
    def labels(self) -> np.ndarray:
        """int64 [n], the class of each image."""
        return self.catalog.labels

    @property
    def unreadable(self) -> np.ndarray:
        """int64 [m], the rows of the images that do not decode, whose embeddings are NaN."""
        return np.array([row for row, *_ in self.facts["unreadable"]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        n, d = self.array.shape
        tail = f", {len(self.unreadable)} unreadable" if len(self.unreadable) else ""
        return f"Embeddings({n} × {d}, {self.array.dtype}{tail})"


def files_of(target: Path) -> list[Path]:
    """The three files of embeddings: the array, its catalog, and the JSON with what they were made of.

    Example:
        >>> [file.name for file in files_of(Path("photos.npy"))]
        ['photos.npy', 'photos.catalog.parquet', 'photos.npy.json']
    """
    return [
        target,
        target.with_name(f"{target.stem}.catalog.parquet"),
        target.with_name(f"{target.name}.json"),
    ]


def publish(target: Path, parts: Parts, catalog: Catalog, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Put the parts together: array, catalog and JSON appear as one set.

    Args:
        target: the array.
        parts: of all rows; at least one of them with numbers.
        catalog: the images.
        facts: for the JSON.
        overwrite: replace files of these names.
    """
    unreadable = [[row, catalog.paths[row], why] for part in parts.done for row, why in part.unreadable]
    shape = len(catalog), parts.width
    with atomically_together(files_of(target), overwrite) as (array, table, sidecar):
        sums = _write_array(array, parts, shape)
        fill_table(table_columns(catalog, target.parent), table, ".parquet")
        record = {
            **facts,
            "shape": list(shape),
            "counts": {"images": len(catalog), "unreadable": len(unreadable)},
            "unreadable": unreadable,
            "catalog": catalog_facts(catalog, target),
            "checksums": sums,
        }
        sidecar.write_text(to_json(record, indent=1) + "\n", "utf-8")


def rewrite_catalog(target: Path, catalog: Catalog, facts: Mapping[str, Any]) -> None:
    """Replace the catalog beside an array whose images have other labels or groups by now."""
    with atomically_together(files_of(target)[1:]) as (table, sidecar):
        fill_table(table_columns(catalog, target.parent), table, ".parquet")
        record = {**facts, "catalog": catalog_facts(catalog, target)}
        sidecar.write_text(to_json(record, indent=1) + "\n", "utf-8")


def catalog_facts(catalog: Catalog, target: Path) -> dict[str, Any]:
    """What the JSON file keeps of a catalog, besides the table: the way to its root, and its classes."""
    prefix = root_prefix(catalog, target.parent)
    return {"fingerprint": catalog.fingerprint, "classes": catalog.classes, "root": prefix}


def _write_array(file: Path, parts: Parts, shape: tuple[int, int]) -> list[int]:
    """Write the .npy file; the CRC of each block of it."""
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(parts.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    sums: list[int] = []
    last, length = 0, 0  # CRC and length of the block that is not full
    with open(file, "wb") as opened:
        for content in chain(
            [head.getbuffer()], (_content(part, parts.dtype, shape[1]) for part in parts.done)
        ):
            opened.write(content)
            place = 0
            while place < len(content):
                piece = content[place : place + BLOCK - length]
                last, length = zlib.crc32(piece, last), length + len(piece)
                place += len(piece)
                if length == BLOCK:
                    sums.append(last)
                    last, length = 0, 0
    return [*sums, last] if length else sums


def _content(part: Part, dtype: np.dtype, width: int) -> memoryview:
    """The bytes of the rows of a part."""
    numbers = part.numbers(dtype) if part.width else np.full((part.count, width), np.nan, dtype)
    return numbers.data.cast("B")


def read_embeddings(path: str | Path, *, root: str | Path | None = None, verify: bool = False) -> Embeddings:
    """Open embeddings that `embed` has written; the array is mapped, not read.

    Checksums of the array are compared: all of one up to 256 MB, and of a larger one 256 MB spread over it.

    Args:
        path: the array, ending in .npy, with its catalog and its JSON file beside it.
        root: the folder that the paths of the images start from; by default the one that `embed` was given,
            found from the folder of the array, so all can be moved together.
        verify: compare the checksums of the whole array.

    Returns:
        The embeddings. Paths of the catalog do not lead out of its root.

    Raises:
        ValueError: a file is missing, damaged or cut short, or of another run than the others.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> from tercet.offline.embed import embed
        >>> for name in ("ant/1.pgm", "bee/1.pgm"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> _ = embed(lambda images: images.mean((2, 3)), scan_folder("photos"), "photos.npy", size=4)
        >>> embeddings = read_embeddings("photos.npy")
        >>> embeddings, embeddings.catalog.paths.tolist()
        (Embeddings(2 × 3, float32), ['ant/1.pgm', 'bee/1.pgm'])
    """
    verify = as_bool("read_embeddings", "verify", verify)
    with border("read_embeddings", "path"):
        target = as_path(None, "path", path)
        given = None if root is None else as_path(None, "root", root)
        if target.suffix != ".npy":
            hint = "of images, make them first by embed, or tercet embed"
            raise Refusal("path", str(path), "an array that embed has written, ending in .npy", hint)
        return read_consistently(files_of(target), lambda places: _opened(target, places, given, verify))


def read_facts(target: Path, place: Path) -> dict[str, Any]:
    """What the JSON file of embeddings says.

    Args:
        target: the array, for messages.
        place: the JSON file.

    Raises:
        ValueError: it is missing, damaged, or of something else.
    """
    try:
        record = JsonRecord.read(place, "facts of embeddings", _HINT)
    except FileNotFoundError:
        name = files_of(target)[2].name
        raise Refusal(None, str(target), f"{name} beside it, as embed writes it", "it is missing") from None
    except OSError as error:
        raise Refusal(None, str(place), "a JSON file to read", str(error)) from error
    if record.string("kind", "") != "embeddings":
        raise record.wrong("kind", "'embeddings'")
    if not record.checked:
        raise Refusal(None, str(place), "a checksum in it", f"it was changed or damaged; {_HINT}")
    record.part("key")
    record.part("made")
    record.part("after", {})
    record.integers("shape", low=1)
    record.integers("checksums")
    n = record.part("counts").integer("images")
    for item in record.items("unreadable"):
        if not (isinstance(item, list) and len(item) == 3 and type(item[0]) is int and 0 <= item[0] < n):
            raise record.wrong("unreadable", "rows with their paths and reasons")
    return record.fields


def _opened(target: Path, places: list[Path], root: Path | None, verify: bool) -> Embeddings:
    array, table, sidecar = places
    if not os.path.lexists(array):
        raise Refusal(None, str(target), "an existing file")
    facts = read_facts(target, sidecar)
    file = NpyFile(array)
    found, wanted = [file.dtype.name, *file.shape], [facts["key"].get("dtype"), *facts["shape"]]
    if found != wanted:
        hint = f"it holds {found[0]} {found[1:]}, so they are not of one run"
        raise Refusal(None, str(target), f"{wanted[0]} {wanted[1:]}, as {sidecar.name} tells", hint)
    _refuse_other_bytes(target, array, facts["checksums"], verify)
    return Embeddings(np.load(array, mmap_mode="r"), _catalog(target, table, facts, root), facts)


def _refuse_other_bytes(target: Path, place: Path, sums: list[int], verify: bool) -> None:
    """Refuse an array whose blocks have other checksums than they had when it was written."""
    file = PositionalFile(place, "a .npy file to read")
    count = -(-file.size // BLOCK)
    blocks = np.arange(count)
    if count > SAMPLED and not verify:
        blocks = np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int))
    if count != len(sums) or any(
        zlib.crc32(file.pread(i * BLOCK, BLOCK)) != sums[i] for i in blocks.tolist()
    ):
        hint = f"it was changed, damaged or cut short, or is of another run; {_HINT}"
        raise Refusal(
            None, str(target), f"the bytes of which {files_of(target)[2].name} has the checksums", hint
        )


def _catalog(target: Path, place: Path, facts: Mapping[str, Any], root: Path | None) -> Catalog:
    """The catalog beside an array, as it was given to `embed`."""
    name = files_of(target)[1].name
    expected = f"{name} beside it, the catalog that it was written with"
    if not place.is_file():
        raise Refusal(None, str(target), expected, "it is missing")
    record = JsonRecord(to_json(facts["catalog"]), files_of(target)[2])
    prefix, classes = record.string("root"), record.strings("classes")
    columns = read_columns(place, ("path", "label"), suffix=".parquet")
    number = {label: code for code, label in enumerate(classes)}
    paths = [path.removeprefix(prefix) for path in columns.pop("path")]
    labels = [number.get(label, -1) for label in columns.pop("label")]
    catalog = None
    if len(paths) == facts["shape"][0] and -1 not in labels:
        top = target.parent / prefix if root is None else root
        catalog = Catalog(paths, labels, classes, columns, top, outside_root=False)
    if catalog is None or catalog.fingerprint != record.string("fingerprint"):
        raise Refusal(None, str(target), expected, f"another catalog has that name; {_HINT}")
    return catalog
