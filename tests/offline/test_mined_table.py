import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from tercet.data.catalog.catalog import Catalog
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.mined_table import write_mined_table


def collection():
    labels = np.arange(12) % 3
    names = [f"{'abc'[label]}/{row}.jpg" for row, label in enumerate(labels)]
    x = np.random.default_rng(0).normal(size=(12, 4))
    return x, Catalog(names, labels, ["a", "b", "c"])


@pytest.mark.parametrize(("suffix", "read"), [(".parquet", pq.read_table), (".csv", csv.read_csv)])
def test_a_wide_table_has_paths_scores_and_ranks(tmp_path, suffix, read):
    x, catalog = collection()
    mined = mine_hard_triplets(x, catalog.labels, negatives=2, reserve=1, ranks=(1, 2), margin=0.3)
    path = tmp_path / f"hard{suffix}"
    write_mined_table(path, mined, catalog)
    table = read(path).to_pydict()
    assert list(table)[:6] == [
        "anchor",
        "positive",
        "positive_score",
        "negative_1",
        "negative_1_score",
        "negative_1_rank",
    ]
    assert list(table)[-3:] == ["reserve_1", "reserve_1_score", "reserve_1_rank"]
    assert table["anchor"] == [catalog.paths[row] for row in mined.anchor]
    for slot in range(2):
        empty = mined.negatives[:, slot] < 0
        assert empty.any()
        for k, row in enumerate(mined.negatives[:, slot]):
            found = [table[f"negative_{slot + 1}{name}"][k] for name in ("", "_score", "_rank")]
            if row < 0:
                assert all(value in (None, "") for value in found)
            else:
                assert found[0] == catalog.paths[row]
                assert found[1] == pytest.approx(mined.scores[k, slot], rel=1e-6)
                assert found[2] == mined.ranks[k, slot]
    record = json.loads((tmp_path / f"hard{suffix}.json").read_text("utf-8"))
    assert record["mining"]["triplets"] == len(mined)


def test_a_table_of_another_catalog_or_suffix_is_refused(tmp_path):
    x, catalog = collection()
    mined = mine_hard_triplets(x, catalog.labels)
    with pytest.raises(ValueError, match=r"write_mined_table\(catalog='3 images'\)"):
        write_mined_table(tmp_path / "hard.csv", mined, catalog.select([0, 1, 2]))
    with pytest.raises(ValueError, match=r"write_mined_table\(path="):
        write_mined_table(tmp_path / "hard.txt", mined, catalog)
    assert not list(tmp_path.iterdir())
