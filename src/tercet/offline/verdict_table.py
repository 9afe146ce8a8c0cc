"""The table in which a person says what suspected images are: written once, edited, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal, as_bool, as_choice, border
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.atomic import fresh_target
from tercet.data.io.tables import read_columns, write_columns
from tercet.offline.verdicts import UNDECIDED, VERDICTS, Verdicts, as_verdicts

__all__ = ["as_catalog", "read_verdicts", "verdict_columns", "write_verdicts"]

_SUFFIXES = (".csv", ".parquet")


def write_verdicts(
    path: str | Path, verdicts: Verdicts, catalog: Catalog, *, overwrite: bool = False
) -> None:
    """Write suspects as a table with a column `verdict`, in which a person replaces `?`.

    The columns are image, class, other, other_class, score, own_score and verdict: paths of the catalog, the
    most doubtful image first.

    Args:
        path: the table, .csv or .parquet.
        verdicts: rows of the catalog, as `suspected_labels` gives them.
        catalog: the images.
        overwrite: replace an existing table, with all that was written into it.

    Raises:
        ValueError: another suffix, an existing file, or rows that the catalog has not.

    Example:
        >>> catalog = Catalog(["a/1.jpg", "b/1.jpg"], [0, 1], ["a", "b"])
        >>> found = Verdicts(np.array([0]), np.array([1]), np.array([0.9]), np.array([0.1]), ["?"])
        >>> write_verdicts("suspects.csv", found, catalog)
        >>> print(Path("suspects.csv").read_text())
        "image","class","other","other_class","score","own_score","verdict"
        "a/1.jpg","a","b/1.jpg","b","0.9","0.1","?"
        <BLANKLINE>
    """
    with border("write_verdicts"):
        overwrite = as_bool(None, "overwrite", overwrite)
        catalog = as_catalog(catalog)
        verdicts = as_verdicts(verdicts, len(catalog))
        target = fresh_target(path, overwrite, _SUFFIXES)
    write_columns(verdict_columns(verdicts, catalog), target, overwrite)


def verdict_columns(verdicts: Verdicts, catalog: Catalog) -> dict[str, Any]:
    """The columns of the table of verdicts by name.

    Args:
        verdicts: rows of the catalog.
        catalog: the images.
    """
    names = np.asarray(catalog.classes, dtype=object)
    paths = np.asarray(catalog.paths, dtype=object)
    columns: dict[str, Any] = {}
    for name, rows in (("image", verdicts.image), ("other", verdicts.other)):
        columns[name] = paths[rows].tolist()
        columns["class" if name == "image" else "other_class"] = names[catalog.labels[rows]].tolist()
    return {
        **columns,
        "score": verdicts.score,
        "own_score": verdicts.own_score,
        "verdict": list(verdicts.verdict),
    }


def read_verdicts(path: str | Path, catalog: Catalog) -> Verdicts:
    """Read the table of `write_verdicts`, with what a person has put into its column `verdict`.

    Args:
        path: the table.
        catalog: the images. Their labels may have been corrected since.

    Returns:
        `Verdicts` over rows of the catalog.

    Raises:
        ValueError: no such table, columns missing, an image that the catalog has not, or a word that is no
            verdict: ?, same, different, duplicate or skip.

    Example:
        >>> catalog = Catalog(["a/1.jpg", "b/1.jpg"], [0, 1], ["a", "b"])
        >>> _ = Path("edited.csv").write_text(
        ...     "image,other,score,own_score,verdict\\na/1.jpg,b/1.jpg,0.9,0.1,same\\n"
        ... )
        >>> read_verdicts("edited.csv", catalog).verdict
        ['same']
    """
    with border("read_verdicts"):
        catalog = as_catalog(catalog)
        found = read_columns(path, ("image", "other", "verdict"), (), ("score", "own_score"))
        row_of = {name: row for row, name in enumerate(catalog.paths)}
        rows = {}
        for column in ("image", "other"):
            unknown = [name for name in found[column] if name not in row_of]
            if unknown:
                hint = f"{len(unknown)} images of its column {column!r} are not; is it of another collection?"
                raise Refusal("path", str(path), f"images of the catalog, and {unknown[0]!r} is none", hint)
            rows[column] = np.array([row_of[name] for name in found[column]], dtype=np.int64)
        words = [word.strip().lower() or UNDECIDED for word in found["verdict"]]
        for word in words:
            as_choice(None, "verdict", word, VERDICTS)
        return Verdicts(rows["image"], rows["other"], found["score"], found["own_score"], words)


def as_catalog(catalog: Any) -> Catalog:
    """A `Catalog`.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(catalog, Catalog):
        raise Refusal("catalog", type(catalog).__name__, "a Catalog, of scan_folder or read_catalog")
    return catalog
