"""What a manifest records beside its triplets: how they were drawn, and from which catalog."""

from __future__ import annotations

import base64
import json
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tercet.catalog import Catalog

__all__ = ["catalog_from", "compressed", "decompressed", "provenance_of", "recorded_catalog"]


def provenance_of(told: dict[str, Any], count: int, catalog: Catalog, path_prefix: str) -> dict[str, Any]:
    """What makes a manifest repeatable; nothing in it depends on machine, time or place.

    Args:
        told: strategy, parameters and counts of the triplets; {} for triplets that were given.
        count: the number of triplets.
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
        "counts": {**told.get("counts", {}), "triplets": count},
        "catalog": {
            "fingerprint": catalog.fingerprint,
            "images": len(catalog),
            "classes": len(catalog.classes),
            "left out": catalog.left_out_counts(),
        },
        **({"path_prefix": path_prefix} if path_prefix else {}),
    }


def recorded_catalog(catalog: Catalog) -> dict[str, Any]:
    """A catalog as lists of strings and whole numbers, all but its root and what it left out."""
    groups = {name: values.tolist() for name, values in catalog.groups.items()}
    labels = catalog.labels.tolist()
    return {"classes": catalog.classes, "paths": catalog.paths.tolist(), "labels": labels, "groups": groups}


def catalog_from(record: dict[str, Any], root: Path) -> Catalog:
    """The catalog that `recorded_catalog` recorded, its paths starting from `root`."""
    groups = {}
    for name, values in record["groups"].items():
        whole_numbers = bool(values) and isinstance(values[0], int)
        groups[name] = np.array(values, dtype=np.int64 if whole_numbers else object)
    return Catalog(record["paths"], record["labels"], record["classes"], groups, root)


def compressed(record: dict[str, Any]) -> str:
    """A record as short text, for the metadata of a Parquet or Arrow file."""
    return base64.b64encode(zlib.compress(json.dumps(record, ensure_ascii=False).encode(), 6)).decode("ascii")


def decompressed(text: str) -> dict[str, Any]:
    """The record that `compressed` made into text."""
    return json.loads(zlib.decompress(base64.b64decode(text)))
