"""Mined triplets as a wide table: a line for each pair, with its negatives, their scores and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal, as_bool, border
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.atomic import atomically_together, fresh_target
from tercet.data.io.checked_json import to_json
from tercet.data.io.parquet_files import parquet_writer
from tercet.offline.mined_triplets import MinedTriplets
from tercet.offline.verdict_table import as_catalog

__all__ = ["write_mined_table"]

SUFFIXES = (".parquet", ".csv")


def write_mined_table(
    path: str | Path, mined: MinedTriplets, catalog: Catalog, *, overwrite: bool = False
) -> None:
    """Write mined triplets as a table that pandas, Polars, DuckDB and Hugging Face datasets open as it is.

    Its columns are anchor, positive, positive_score; negative_1, negative_1_score, negative_1_rank, … for
    each negative, and reserve_1, … for the reserve list. A place without a row is empty: null in Parquet. The
    report stands in a JSON file beside it (`hard.parquet.json`).

    Args:
        path: the table, .parquet or .csv.
        mined: rows of the catalog.
        catalog: the images.
        overwrite: replace existing files.

    Raises:
        ValueError: another suffix, an existing file, or rows that the catalog has not.

    Example:
        >>> from tercet.offline.hard_negatives import mine_hard_triplets
        >>> catalog = Catalog(["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"], [0, 0, 1, 1], ["a", "b"])
        >>> x = np.array([[1.0, 0], [1, 0.1], [1, 1], [0, 1]])
        >>> write_mined_table("hard.csv", mine_hard_triplets(x, catalog.labels), catalog)
        >>> print(*Path("hard.csv").read_text().splitlines()[:2], sep="\\n")
        "anchor","positive","positive_score","negative_1","negative_1_score","negative_1_rank"
        "a/1.jpg","a/2.jpg",0.9950372,"b/1.jpg",0.70710677,1
    """
    import pyarrow as pa
    from pyarrow import csv

    with border("write_mined_table"):
        overwrite = as_bool(None, "overwrite", overwrite)
        catalog = as_catalog(catalog)
        if not isinstance(mined, MinedTriplets):
            raise Refusal("mined", type(mined).__name__, "MinedTriplets, of mine_hard_triplets")
        target = fresh_target(path, overwrite, SUFFIXES)
        for rows in (mined.anchor, mined.positive, mined.negatives, mined.reserve):
            if rows.size and int(rows.max()) >= len(catalog):
                expected = f"the catalog that row {int(rows.max())} is of"
                raise Refusal("catalog", f"{len(catalog)} images", expected)
    names = pa.array([str(name) for name in catalog.paths], pa.string())

    def paths(rows: np.ndarray) -> Any:
        return names.take(pa.array(rows, mask=rows < 0))

    named = {
        "anchor": paths(mined.anchor),
        "positive": paths(mined.positive),
        "positive_score": pa.array(mined.positive_score),
    }
    for kind, rows, scores, ranks in (
        ("negative", mined.negatives, mined.scores, mined.ranks),
        ("reserve", mined.reserve, mined.reserve_scores, mined.reserve_ranks),
    ):
        for slot in range(rows.shape[1]):
            missing = rows[:, slot] < 0
            named[f"{kind}_{slot + 1}"] = paths(rows[:, slot])
            named[f"{kind}_{slot + 1}_score"] = pa.array(scores[:, slot], mask=missing)
            named[f"{kind}_{slot + 1}_rank"] = pa.array(ranks[:, slot], mask=missing)
    columns = pa.table(named)
    with atomically_together([target, target.with_name(f"{target.name}.json")], overwrite) as (
        table,
        sidecar,
    ):
        if target.suffix == ".parquet":
            with parquet_writer(table, columns.schema) as writer:
                writer.write_table(columns)
        else:
            csv.write_csv(columns, table)
        record = {"catalog": catalog.fingerprint, "mining": mined.report.as_dict()}
        sidecar.write_text(to_json(record, indent=1) + "\n", "utf-8")
