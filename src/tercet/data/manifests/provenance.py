"""What a manifest records beside its triplets: how they were drawn, from which catalog, and from which split.

It travels inside .parquet and .arrow, and in a JSON file beside the text formats.
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

from tercet.core.checks import refusal
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

KEY = "tercet"  # the provenance, as JSON
CATALOG_KEY = "tercet.catalog"  # the catalog
_CALLER = "read_manifest"
_PART = ".validation"
# Catalogs were seen to unpack to 5 to 50 times their size; zeros unpack to a thousand times theirs.
_MOST_BESIDE = 1 << 32  # bytes of a JSON file: fifty million images
_FREE_BYTES, _TIMES, _BYTES_AN_IMAGE = 1 << 26, 100, 1 << 12


def provenance_of(
    told: dict[str, Any], kind: str, count: int, catalog: Catalog, path_prefix: str
) -> dict[str, Any]:
    """What makes a manifest repeatable; nothing in it depends on machine, time or place.

    Args:
        told: strategy, parameters and counts of the triplets; {} for triplets that were given.
        kind: "triplets" or "pairs".
        count: the number of them.
        catalog: what they are rows of.
        path_prefix: what stands before every path.

    Returns:
        Strings, numbers and dicts of them, as they come back from JSON.

    Raises:
        ValueError: something else in `told`.
    """
    facts = {
        "library": f"tercet {version('tercet')}",
        "strategy": "given",
        "parameters": {},
        **told,
        "kind": kind,
        "counts": {**told.get("counts", {}), kind: count},
        "catalog": {
            "fingerprint": catalog.fingerprint,
            "images": len(catalog),
            "classes": len(np.unique(catalog.labels)),
            "left out": catalog.left_out_counts(),
        },
        **({"path_prefix": path_prefix} if path_prefix else {}),
    }
    try:
        return json_round_trip(facts)
    except (TypeError, ValueError, RecursionError) as error:
        expected = "text, numbers, and lists and dicts of them"
        raise refusal("write_manifest", "provenance", told, expected, str(error)) from error


def refuse_other_catalog(caller: str, triplets: Any, catalog: Any) -> None:
    """Refuse a catalog in which the rows of a manifest are other images, or images of other classes.

    Fingerprints are compared, and where they differ the paths and classes of all rows: groups may differ. Of
    another program's manifest only the paths are, for its classes are the folders of its images.

    Args:
        caller: who asks, for the sentence.
        triplets: what knows its catalog if it is a manifest.
        catalog: a `Catalog`, a `ShardIndex`, or anything else, of which nothing is known.

    Raises:
        ValueError: as above.
    """
    told = getattr(triplets, "provenance", None)
    if not isinstance(told, Mapping) or not hasattr(catalog, "fingerprint"):
        return
    written = told.get("catalog", {}).get("fingerprint")
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
    raise refusal(caller, "catalog", catalog, expected, hint)


def _rows_of(catalog: Any, classes: bool) -> list[str]:
    """The rows of a catalog for a sentence: their paths, and their classes if asked."""
    paths = map(repr, catalog.paths.tolist())
    if not classes:
        return list(paths)
    names = [f" of class {name!r}" for name in catalog.classes]
    return [path + names[label] for path, label in zip(paths, catalog.labels.tolist(), strict=True)]


def recorded_catalog(catalog: Catalog) -> dict[str, Any]:
    """A catalog as lists of strings and whole numbers, all but its root and what it left out."""
    groups = {name: values.tolist() for name, values in catalog.groups.items()}
    labels = catalog.labels.tolist()
    return {"classes": catalog.classes, "paths": catalog.paths.tolist(), "labels": labels, "groups": groups}


def packed(record: dict[str, Any]) -> str:
    """A record as short text, for the metadata of a Parquet or Arrow file."""
    return base64.b64encode(zlib.compress(json.dumps(record, ensure_ascii=False).encode(), 6)).decode("ascii")


def sidecar(target: Path) -> Path:
    """The JSON file with the provenance of a text manifest."""
    return target.with_name(target.name + ".json")


def read_provenance(source: Path, text: str) -> tuple[dict[str, Any], bool]:
    """The provenance in the metadata of a file, and whether it had a checksum.

    Raises:
        ValueError: it is damaged, or lacks what every manifest records.
    """
    facts = JsonRecord(text, _CALLER, "path", source, "provenance", "write it again")
    return _typed(facts), facts.checked


def _typed(facts: JsonRecord) -> dict[str, Any]:
    """The provenance, refused unless all that is asked of it later is there in its type."""
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
        text: what `packed` made of its record; None where there is none.
        place: where its paths start from.
        written: what the provenance tells of it.
        checked: whether a checksum has been compared; without, its fingerprint is.

    Raises:
        ValueError: it is damaged, another one, or unpacks to far more than its images take.
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
    facts = JsonRecord(content, _CALLER, "path", source, "catalog", "write it again")
    return _catalog_from(facts, source, place, "" if checked else written.get("fingerprint", ""))


def _catalog_from(facts: JsonRecord, source: Path, place: Path, fingerprint: str) -> Catalog:
    """The catalog that `recorded_catalog` recorded; its paths may not lead out of its root."""
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
    """A group of whole numbers, numbers, strings, or True and False."""
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
    """Provenance and catalog from the JSON file beside a text manifest; None where there is none.

    Args:
        source: the text manifest.
        lines: that file, open.
        place: where the paths of the catalog start from.
        file: where the JSON file is.

    Raises:
        ValueError: that file holds something else, is damaged, or belongs to other lines.
    """
    other = sidecar(source)
    hint = f"write {source.name} again, or move {other.name} away to do without"
    try:
        facts = JsonRecord.read(_CALLER, "path", file, "provenance", hint, most=_MOST_BESIDE)
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
    """The sum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def validation_part(target: Path) -> Path:
    """The manifest for validation beside one for training: `t.validation.csv` beside `t.csv`."""
    return target.with_suffix(_PART + target.suffix)


def other_part(source: Path) -> Path:
    """The other manifest of the split that `source` would be a part of.

    Example:
        >>> other_part(Path("t.csv")), other_part(Path("t.validation.csv"))
        (PosixPath('t.validation.csv'), PosixPath('t.csv'))
    """
    stem = source.name.removesuffix(_PART + source.suffix)
    return validation_part(source) if stem == source.name else source.with_name(stem + source.suffix)


def refuse_other_split(
    caller: str, source: Path, provenance: Mapping[str, Any], place: Path, place_beside: Path
) -> None:
    """Refuse a manifest beside the part of another split: images for training would be there for validation.

    Args:
        caller: who asks, for the sentence.
        source: the manifest.
        provenance: what it records.
        place, place_beside: where `other_part(source)` is, and the JSON file beside that.

    Raises:
        ValueError: the other part is of a split with another seed, fraction, way or catalog, or one of the
            two is of no split. Files of other programs, which record nothing, are let be.
    """
    if not place.is_file():
        return
    import pyarrow as pa

    unreadable = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)
    try:
        record = _record(place, place_beside, source.suffix)
        here, there = (_law(one) for one in (provenance, record))
    except (pa.ArrowException, *unreadable):
        return  # what is no manifest of ours is no part of a split; a damaged one is refused where it is read
    if provenance and record and here != there and checksum_fits(record) is not False:
        name = other_part(source).name
        shared = f"{_difference(here, there)}, so images of one may be in the other"
        hint = f"{shared}; write both with one command, or move {name} away"
        raise refusal(caller, "path", str(source), f"the split of {name} beside it", hint)


def _law(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a manifest was split, all but which part it is; {} for one of no split."""
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
