"""Provenance of a manifest: how its triplets were drawn, from which catalog, and as which part of a split.

It is stored in the metadata of .parquet and .arrow files, and in a sidecar of the text formats.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tercet.core.checks import Refusal, refusal
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.checked_json import (
    JsonRecord,
    checksum_fits,
    json_round_trip,
    read_bounded,
    warn_unchecked,
)
from tercet.data.manifests.formats import TEXT_FORMATS

__all__ = [
    "CATALOG_KEY",
    "KEY",
    "other_part",
    "packed",
    "provenance_of",
    "read_provenance",
    "read_sidecar",
    "recorded_catalog",
    "refuse_other_catalog",
    "refuse_other_split",
    "sha256",
    "sidecar",
    "unpacked_catalog",
    "validation_part",
]

KEY = "tercet"  # the metadata key of the provenance, as JSON
CATALOG_KEY = "tercet.catalog"  # the metadata key of the catalog
_CALLER = "read_manifest"
_PART = ".validation"
# Limits against decompression bombs: catalogs unpack to 5 to 50 times their size, zeros to 1,000 times.
_MOST_SIDECAR = 1 << 32  # bytes of a sidecar: fifty million images
_FREE_BYTES, _TIMES, _BYTES_AN_IMAGE = 1 << 26, 100, 1 << 12


def provenance_of(
    facts: dict[str, Any], kind: str, count: int, catalog: Catalog, path_prefix: str
) -> dict[str, Any]:
    """The provenance of a manifest, from which it can be made again; the same on every machine.

    Args:
        facts: strategy, parameters and counts of the triplets; {} for triplets given as arrays.
        kind: "triplets" or "pairs".
        count: the number of them.
        catalog: the catalog whose rows they are.
        path_prefix: the text before every path.

    Returns:
        Strings, numbers and dicts of them, as they come back from JSON.

    Raises:
        ValueError: a value in `facts` that JSON cannot represent.
    """
    record = {
        "library": f"tercet {version('tercet')}",
        "strategy": "given",
        "parameters": {},
        **facts,
        "kind": kind,
        "counts": {**facts.get("counts", {}), kind: count},
        "catalog": {
            "fingerprint": catalog.fingerprint,
            "images": len(catalog),
            "classes": len(np.unique(catalog.labels)),
            "left out": catalog.left_out_counts(),
        },
        **({"path_prefix": path_prefix} if path_prefix else {}),
    }
    try:
        return json_round_trip(record)
    except (TypeError, ValueError, RecursionError) as error:
        expected = "text, numbers, and lists and dicts of them"
        raise refusal("write_manifest", "provenance", facts, expected, str(error)) from error


def refuse_other_catalog(triplets: Any, catalog: Any) -> None:
    """Refuse a catalog in which the rows of a manifest are other images, or have other classes.

    Fingerprints are compared. Where they differ, paths and classes of all rows are compared, since groups may
    differ. For a manifest of another program only paths are compared, as its classes are folders.

    Args:
        triplets: the triplets or pairs; only those of a manifest are checked.
        catalog: a `Catalog`, a `ShardIndex`, or another object, which is not checked.

    Raises:
        ValueError: a row is another image, or has another class.
    """
    provenance = getattr(triplets, "provenance", None)
    if not isinstance(provenance, Mapping) or not hasattr(catalog, "fingerprint"):
        return
    written = provenance.get("catalog", {}).get("fingerprint")
    if catalog.fingerprint == written:
        return
    there, here = (_rows_of(one, classes=written is not None) for one in (triplets.catalog, catalog))
    if there == here:
        return
    hint = f"it has {len(here)} images and that one {len(there)}"
    if len(there) == len(here):
        row = next(row for row in range(len(here)) if there[row] != here[row])
        hint = f"its row {row} is {here[row]}, and there {there[row]}"
    expected = "the images and classes that the manifest was made of, in their order"
    hint += "; leave catalog out to take the manifest's, or make a manifest of this one"
    raise Refusal("catalog", catalog, expected, hint)


def _rows_of(catalog: Any, classes: bool) -> list[str]:
    """The rows of a catalog for a message: their paths and, if asked for, classes."""
    paths = map(repr, catalog.paths.tolist())
    if not classes:
        return list(paths)
    names = [f" of class {name!r}" for name in catalog.classes]
    return [path + names[label] for path, label in zip(paths, catalog.labels.tolist(), strict=True)]


def recorded_catalog(catalog: Catalog) -> dict[str, Any]:
    """A catalog as lists of strings and numbers, without its root and `left_out`."""
    groups = {name: values.tolist() for name, values in catalog.groups.items()}
    labels = catalog.labels.tolist()
    return {"classes": catalog.classes, "paths": catalog.paths.tolist(), "labels": labels, "groups": groups}


def packed(record: dict[str, Any]) -> str:
    """A record as short text, for the metadata of a Parquet or Arrow file."""
    return base64.b64encode(zlib.compress(json.dumps(record, ensure_ascii=False).encode(), 6)).decode("ascii")


def sidecar(target: Path) -> Path:
    """The sidecar of a text manifest: the JSON file with its provenance and catalog."""
    return target.with_name(target.name + ".json")


def read_provenance(source: Path, text: str) -> tuple[dict[str, Any], bool]:
    """The provenance in the metadata of a file, and whether it has a checksum.

    Raises:
        ValueError: it is damaged, or lacks a required field.
    """
    facts = JsonRecord(text, source, "provenance", "write it again")
    return _typed(facts), facts.checked


def _typed(facts: JsonRecord) -> dict[str, Any]:
    """The fields of a provenance, refused unless each that is used later has its type."""
    if facts.string("kind", "triplets") not in ("triplets", "pairs"):
        raise facts.wrong("kind", '"triplets" or "pairs"')
    facts.part("counts").integer(facts.string("kind", "triplets"))
    catalog = facts.part("catalog", {})
    catalog.string("fingerprint", "")
    catalog.integer("images", default=0)
    facts.part("parameters", {})
    for name in ("strategy", "library", "path_prefix"):
        facts.string(name, "")
    facts.fields.setdefault("kind", "triplets")
    return facts.fields


def unpacked_catalog(
    source: Path, text: str | None, place: Path, written: Mapping[str, Any], checked: bool
) -> Catalog:
    """The catalog in the metadata of a file.

    Args:
        source: the file.
        text: the record as packed by `packed`; None where there is none.
        place: the folder that its paths start from.
        written: the entry "catalog" of the provenance.
        checked: whether a checksum was verified; otherwise the fingerprint is compared.

    Raises:
        ValueError: it is damaged, does not have its fingerprint, or unpacks to an impossible size.
    """
    try:
        packed = base64.b64decode(text or "", validate=True)
        most = _FREE_BYTES + min(_TIMES * len(packed), _BYTES_AN_IMAGE * written.get("images", 0))
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(packed, most + 1)
        if len(content) > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
        if not unpacking.eof:
            raise ValueError("it is cut short" if text else "there is none")
    except (zlib.error, ValueError) as error:
        hint = f"it is damaged ({error}); write it again"
        raise refusal(_CALLER, "path", str(source), "its catalog in it", hint) from error
    facts = JsonRecord(content, source, "catalog", "write it again")
    return _catalog_from(facts, source, place, "" if checked else written.get("fingerprint", ""))


def _catalog_from(facts: JsonRecord, source: Path, place: Path, fingerprint: str) -> Catalog:
    """The catalog from the record of `recorded_catalog`, with `outside_root` False."""
    classes = facts.strings("classes")
    labels = facts.integers("labels", 0, len(classes) - 1)
    groups = facts.part("groups")
    columns, paths = {name: _group(groups, name) for name in groups}, facts.strings("paths")
    try:
        catalog = Catalog(paths, labels, classes, columns, place, outside_root=False)
    except ValueError as error:  # columns of unequal length, a class name twice
        hint = f"it is damaged ({error}); write it again"
        raise refusal(_CALLER, "path", str(source), "its catalog", hint) from error
    if fingerprint and catalog.fingerprint != fingerprint:
        hint = "paths, labels, classes or groups were changed; write it again"
        raise refusal(_CALLER, "path", str(source), "the catalog it was written with", hint)
    return catalog


def _group(groups: JsonRecord, name: str) -> np.ndarray:
    """A group as an array: of whole numbers, floats, strings or booleans."""
    values = groups.items(name)
    kinds = set(map(type, values))
    if kinds == {int}:
        return np.array(groups.integers(name, -(2**63)), dtype=np.int64)
    if not (kinds in ({bool}, {float}, {int, float}) or kinds <= {str}):
        raise groups.wrong(name, "whole numbers, numbers, strings, or True and False")
    return np.array(values, dtype=object if kinds <= {str} else None)


def read_sidecar(
    source: Path, lines: BinaryIO, place: Path, file: Path
) -> tuple[dict[str, Any], Catalog] | None:
    """Provenance and catalog from the sidecar of a text manifest; None where there is no sidecar.

    Args:
        source: the text manifest.
        lines: that file, open.
        place: the folder that the paths of the catalog start from.
        file: where the sidecar is.

    Raises:
        ValueError: the sidecar is damaged, holds something else, or belongs to other lines.
    """
    other = sidecar(source)
    hint = f"write {source.name} again, or move {other.name} away to do without"
    try:
        facts = JsonRecord.read(file, "provenance", hint, most=_MOST_SIDECAR)
    except FileNotFoundError:
        return None
    written, record = facts.string("sha256"), facts.part(CATALOG_KEY)
    provenance = _typed(facts)
    fingerprint = provenance.get("catalog", {}).get("fingerprint", "")
    if written != hashlib.file_digest(lines, "sha256").hexdigest():  # pyright: ignore[reportArgumentType]
        expected = f"the {provenance['counts'][provenance['kind']]} {provenance['kind']} it was written with"
        hint = f"it was cut short or changed; write it again, or move {other.name} away to do without"
        raise refusal(_CALLER, "path", str(source), expected, hint)
    lines.seek(0)
    if not facts.checked:
        warn_unchecked(other)
    catalog = _catalog_from(record, other, place, "" if facts.checked else fingerprint)
    return {name: fact for name, fact in provenance.items() if name not in ("sha256", CATALOG_KEY)}, catalog


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def validation_part(target: Path) -> Path:
    """The path of the validation part of a split: `t.validation.csv` for the training part `t.csv`."""
    return target.with_suffix(_PART + target.suffix)


def other_part(source: Path) -> Path:
    """The path of the other part of the split: of training for validation, and the reverse.

    Example:
        >>> other_part(Path("t.csv")), other_part(Path("t.validation.csv"))
        (PosixPath('t.validation.csv'), PosixPath('t.csv'))
    """
    stem = source.name.removesuffix(_PART + source.suffix)
    return validation_part(source) if stem == source.name else source.with_name(stem + source.suffix)


def refuse_other_split(source: Path, provenance: Mapping[str, Any], place: Path, place_sidecar: Path) -> None:
    """Refuse a manifest next to the part of another split: training images could be in the validation part.

    Args:
        source: the manifest.
        provenance: its provenance.
        place, place_sidecar: where `other_part(source)` and its sidecar are.

    Raises:
        ValueError: the other part is of a split with another seed, fraction, `by` or catalog, or one of the
            two is of no split. Files of other programs, which have no provenance, pass.
    """
    if not place.is_file():
        return
    import pyarrow as pa

    unreadable = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)
    try:
        record = _record(place, place_sidecar, source.suffix)
        here, there = (_split_of(one) for one in (provenance, record))
    except (pa.ArrowException, *unreadable):
        return  # not a manifest, or a damaged one, which is refused when it is read
    if provenance and record and here != there and checksum_fits(record) is not False:
        name = other_part(source).name
        shared = f"{_difference(here, there)}, so images of one may be in the other"
        hint = f"{shared}; write both with one command, or move {name} away"
        raise Refusal("path", str(source), f"the split of {name} beside it", hint)


def _split_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a manifest was split, without the part that it is; {} for one of no split."""
    return {name: fact for name, fact in record.get("split", {}).items() if name != "part"}


def _difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    if not here or not there:
        return "that is of a split, and this is not" if there else "this is of a split, and that is not"
    name = next(name for name in (*here, *there) if here.get(name) != there.get(name))
    if name == "of":
        return "that is of another catalog"
    return f"that is of {name} {there.get(name)}, this of {name} {here.get(name)}"


def _record(place: Path, other: Path, suffix: str) -> Mapping[str, Any]:
    """The provenance of a manifest, without its rows; {} where it has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if suffix in TEXT_FORMATS:
        return json.loads(read_bounded(other)) if other.is_file() else {}
    with pa.OSFile(str(place)) as file:
        schema = pq.read_schema(file) if suffix == ".parquet" else pa.ipc.open_file(file).schema
    return json.loads((schema.metadata or {}).get(KEY.encode(), "{}"))
