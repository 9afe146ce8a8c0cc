"""The two manifests of a split: their names, and whether they belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.core.checks import refusal
from tercet.data.io.facts import checksum_fits, read_bounded
from tercet.data.manifests.formats import TEXT_FORMATS
from tercet.data.manifests.provenance import KEY

__all__ = ["other_part", "refuse_other_split", "validation_part"]

_PART = ".validation"


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
