"""`tercet mine`: what it writes, what it says, and how it is refused."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from tercet import embed, read_manifest, read_verdicts, scan_folder
from tests.helpers import names, picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Embeddings of 24 pictures of four classes, one with the label of another class."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 8)) * 3
    for row in range(24):
        picture(tmp_path / "photos" / "abcd"[row % 4] / f"{row:02d}.png", row)
    monkeypatch.chdir(tmp_path)
    catalog = scan_folder("photos")
    kinds = np.array(["abcd".index(path[0]) for path in catalog.paths])
    kinds[0] = 1  # shows what b shows
    x = (centers[kinds] + 0.3 * rng.normal(size=(24, 8))).astype(np.float32)
    place = iter(range(0, 24, 24))

    def model(images):
        import torch

        first = next(place)
        return torch.from_numpy(x[first : first + len(images)])

    embed(model, catalog, "x.npy", size=4, batch_size=24, workers=0)
    return tmp_path


def test_a_manifest_with_its_account(tercet, here):
    code, out, err = tercet("mine", "x.npy", "hard.parquet", "--negatives", 2, "--max-quantile", 0.2)
    assert code == 0, err
    assert "chosen" in out
    assert "of the anchor's class" in out
    manifest = read_manifest("hard.parquet")
    labels = manifest.catalog.labels
    anchor, positive, negative = manifest.triplets[:]
    assert (labels[anchor] == labels[positive]).all()
    assert (labels[anchor] != labels[negative]).all()
    counts = manifest.provenance["mining"]["counts"]
    assert counts["chosen"] == len(anchor)
    assert sum(counts.values()) == manifest.provenance["mining"]["pairs"] * 24


def test_make_triplets_hard_is_the_same_command(tercet, here):
    assert tercet("mine", "x.npy", "one.csv", "--strategy", "softmax", "--seed", 3, "--quiet")[0] == 0
    assert tercet("make-triplets", "hard", "x.npy", "two.csv", "--strategy", "softmax", "--seed", 3)[0] == 0
    assert (here / "one.csv").read_bytes() == (here / "two.csv").read_bytes()


def test_wide_columns(tercet, here):
    words = ("--columns", "wide", "--negatives", 2, "--reserve", 3)
    assert tercet("mine", "x.npy", "wide.parquet", *words)[0] == 0
    table = pq.read_table("wide.parquet")
    assert {"anchor", "negative_2_score", "reserve_3_rank"} <= set(table.column_names)


def test_suspects_are_written_edited_and_read_back(tercet, here):
    words = ("mine", "x.npy", "hard.csv", "--verdicts", "suspects.csv", "--suspects", 0.05, "--overwrite")
    assert tercet(*words)[0] == 0
    catalog = scan_folder("photos")
    found = read_verdicts("suspects.csv", catalog)
    assert found.image.tolist()[0] == 0
    assert catalog.paths[found.other[0]].startswith("b/")
    mined = (here / "hard.csv").read_bytes()
    assert tercet(*words)[0] == 0  # with the table as it is: the same suspects, set aside again
    assert read_verdicts("suspects.csv", catalog).image.tolist() == found.image.tolist()
    assert (here / "hard.csv").read_bytes() == mined
    text = (here / "suspects.csv").read_text()
    (here / "suspects.csv").write_text(re.sub(r'"\?"', '"skip"', text))
    assert tercet(*words)[0] == 0
    again = read_verdicts("suspects.csv", catalog)
    assert again.verdict[0] == "skip"  # what a person wrote stays
    assert catalog.paths[0] not in (here / "hard.csv").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("no.npy", "t.csv"), "no.npy"),
        (("x.npy", "t.png"), "t.png"),
        (("x.npy", "t.csv", "--reserve", 2), "--reserve=2|reserve=2"),
        (("x.npy", "t.txt", "--columns", "wide"), "ending in .parquet or .csv"),
        (("x.npy", "t.csv", "--columns", "long"), "columns='long'"),
        (("x.npy", "t.csv", "--group", "camera"), "group='camera'"),
        (("x.npy", "t.csv", "--positives", "nearest"), "positives='nearest'"),
        (("x.npy", "t.csv", "--ranks", 9, 2), "ranks="),
        (("x.npy", "t.csv", "--max-score", -2, "--on-short", "error"), "on_short='error'"),
        (("x.npy", "t.csv", "--teacher", "t.npy"), "t.npy"),
        (("x.npy", "t.csv", "--columns", "wide", "--csv-safe"), "--csv-safe"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(tercet, here, words, sentence):
    before = names(here)
    code, _, err = tercet("mine", *words)
    assert code != 0
    assert re.search(sentence, err)
    assert names(here) == before


def test_the_memory_is_told_before_and_the_backend_is_kept(tercet, here):
    pytest.importorskip("faiss")
    words = ("--backend", "faiss-ivf", "--min-recall", 1, "--ranks", 1, 5)
    code, out, err = tercet("mine", "x.npy", "hard.parquet", *words)
    assert code == 0
    assert re.match(
        r"at most [\d,]+ MiB above the inputs: search \d+, index 1, judging 1, 120 pairs 1; 1 pass", err
    )
    assert "faiss-ivf found 100.00% of the nearest candidates" in out
    mining = read_manifest("hard.parquet").provenance["mining"]
    assert (mining["backend"], mining["recall"]) == ("faiss-ivf", 1.0)
    assert mining["options"]["min_recall"] == 1.0
    assert mining["plan"]["index"] == 24 * (8 * 4 + 8)
    assert not tercet("mine", "x.npy", "exact.csv", "--quiet")[2]
    code, _, err = tercet("mine", "x.npy", "t.csv", "--min-recall", 0.9)
    assert code != 0
    assert "mine_hard_triplets(min_recall=0.9): expected a backend of FAISS" in err
