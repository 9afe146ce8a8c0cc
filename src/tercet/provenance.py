"""What a manifest records beside its triplets: how they were drawn, and from which catalog.

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
from typing import Any

import numpy as np

from tercet.catalog import Catalog
from tercet.checks import refusal, whole

__all__ = [
    "CATALOG_KEY",
    "KEY",
    "beside",
    "catalog_from",
    "compressed",
    "decompressed",
    "provenance_of",
    "read_beside",
    "recorded_catalog",
    "refuse_other_catalog",
    "sha256",
]

KEY = "tercet"  # the provenance, as JSON
CATALOG_KEY = "tercet.catalog"  # the catalog


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
        Strings, numbers and dicts of them.
    """
    return {
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


def refuse_other_catalog(owner: str, triplets: Any, catalog: Any) -> None:
    """Refuse a catalog in which the rows of a manifest are other images, or images of other classes.

    Fingerprints are compared, and where they differ the paths and classes of all rows: groups may differ. Of
    another program's manifest only the paths are, for its classes are the folders of its images.

    Args:
        owner: who asks, for the sentence.
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
    way_out = f"it has {len(here)} images and that one {len(there)}"
    if len(there) == len(here):
        row = next(row for row in range(len(here)) if there[row] != here[row])
        way_out = f"its row {row} is {here[row]}, and there {there[row]}"
    expected = "the images and classes that the manifest was made of, in their order"
    way_out += "; leave catalog out to take the manifest's, or make a manifest of this one"
    raise refusal(owner, "catalog", catalog, expected, way_out)


def _rows_of(catalog: Any, classes: bool) -> list[str]:
    """The rows of a catalog for a sentence: their paths, and their classes if asked."""
    paths = map(repr, catalog.paths.tolist())
    if not classes:
        return list(paths)
    names = [f" of class {name!r}" for name in catalog.classes]
    return [path + names[label] for path, label in zip(paths, catalog.labels.tolist())]


def recorded_catalog(catalog: Catalog) -> dict[str, Any]:
    """A catalog as lists of strings and whole numbers, all but its root and what it left out."""
    groups = {name: values.tolist() for name, values in catalog.groups.items()}
    labels = catalog.labels.tolist()
    return {"classes": catalog.classes, "paths": catalog.paths.tolist(), "labels": labels, "groups": groups}


def catalog_from(record: dict[str, Any], root: Path) -> Catalog:
    """The catalog that `recorded_catalog` recorded, its paths starting from `root`."""
    groups = {}
    for name, values in record["groups"].items():
        numbers = bool(values) and isinstance(values[0], (int, float))  # bool is one
        groups[name] = np.array(values, dtype=None if numbers else object)
    return Catalog(record["paths"], record["labels"], record["classes"], groups, root)


def compressed(record: dict[str, Any]) -> str:
    """A record as short text, for the metadata of a Parquet or Arrow file."""
    return base64.b64encode(zlib.compress(json.dumps(record, ensure_ascii=False).encode(), 6)).decode("ascii")


def decompressed(text: str) -> dict[str, Any]:
    """The record that `compressed` made into text."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def beside(target: Path) -> Path:
    """The JSON file with the provenance of a text manifest."""
    return target.with_name(target.name + ".json")


def read_beside(source: Path, place: Path) -> tuple[dict[str, Any], Catalog]:
    """Provenance and catalog from the JSON file beside a text manifest, its paths starting from `place`.

    Raises:
        ValueError: that file holds something else, or belongs to other lines.
    """
    other = beside(source)
    try:
        record = json.loads(other.read_text("utf-8"))
        catalog = catalog_from(record.pop(CATALOG_KEY), place)
        kind = record.setdefault("kind", "triplets")
        written = record.pop("sha256"), whole("read_manifest", "counts", record["counts"][kind])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        expected = f"its provenance in {other.name} beside it"
        way_out = f"that file holds something else ({type(error).__name__}); move it away to do without"
        raise refusal("read_manifest", "path", str(source), expected, way_out) from error
    if written[0] != sha256(source):
        expected = f"the {written[1]} {kind} it was written with"
        way_out = f"it was cut short or changed; write it again, or move {other.name} away to do without"
        raise refusal("read_manifest", "path", str(source), expected, way_out)
    return record, catalog


def sha256(path: Path) -> str:
    """The sum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
