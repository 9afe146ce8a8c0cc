"""`tercet inspect`: of embeddings and of a manifest, with tables beside the page, and how it is refused."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from tercet import embed, read_catalog, read_verdicts, write_shards
from tercet.data.io.tables import read_columns
from tests.helpers import picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Embeddings of 24 pictures of four classes, of two parts, one a copy of another's file."""
    monkeypatch.chdir(tmp_path)
    lines = ["path,label,part"]
    for row in range(24):
        name = f"photos/{'abcd'[row % 4]}/{row:02d}.png"
        picture(tmp_path / name, 3 if row == 23 else row)
        lines.append(f"{name},{'abcd'[row % 4]},{'test' if row > 19 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    catalog = read_catalog("t.csv")
    x = (rng.normal(size=(4, 8))[catalog.labels] * 3 + rng.normal(size=(24, 8))).astype(np.float32)

    def model(images):
        import torch

        return torch.from_numpy(x[: len(images)])

    embed(model, catalog, "x.npy", size=4, batch_size=24, workers=0)
    return tmp_path


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def test_of_embeddings_with_all_tables(tercet, here):
    more = ["--suspects", "s.csv", "--atlas", "a.parquet", "--test", "part=test", "--title", "Twenty-four"]
    code, out, err = tercet("inspect", "x.npy", "-o", "page.html", *more)
    assert code == 0, err
    assert out.split()[:3] == ["page.html", "s.csv", "a.parquet"]
    data = data_of(here / "page.html")
    assert data["map"] is not None
    assert "<h1>Twenty-four</h1>" in (here / "page.html").read_text()
    table = read_columns("s.csv")
    (leak,) = np.flatnonzero(table["kind"] == "leak")
    assert (table["image"][leak][-6:], table["other"][leak][-6:]) == ("23.png", "03.png")
    assert "the same bytes" in table["reason"][leak]
    (here / "s.csv").write_text((here / "s.csv").read_text().replace('"?"', '"skip"', 1))
    catalog = read_catalog("t.csv")
    said = read_verdicts("s.csv", catalog)
    code, _, err = tercet("inspect", "x.npy", "-o", "page.html", "--verdicts", "s.csv", "--overwrite")
    assert code == 0, err
    assert data_of(here / "page.html")["marks"] == [[f"{said.image[0]},{said.other[0]}", "skip"]]


def test_of_a_manifest_with_and_without_embeddings(tercet, here):
    assert tercet("mine", "x.npy", "hard.parquet", "--quiet")[0] == 0
    assert tercet("inspect", "hard.parquet", "-o", "alone.html", "--quiet") == (0, "", "")
    assert list(data_of(here / "alone.html")["galleries"]) == ["triplets"]
    code, _, err = tercet(
        "inspect", "hard.parquet", "-o", "both.html", "--embeddings", "x.npy", "--embed-all"
    )
    assert code == 0, err
    data = data_of(here / "both.html")
    assert {text for text, _ in data["filters"]["rows"]} >= {"chosen", "the anchor itself"}
    assert sorted(data["cells"]) == list(range(24))
    titles = [title for title, _ in data["provenance"]]
    assert titles == ["Page", "Triplets", "Embeddings"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["no.npy"], 1, "no.npy"),
        (["x.npy", "--embeddings", "x.npy"], 2, "--embeddings is for a manifest"),
        (
            ["x.npy", "--test", "camera=1"],
            1,
            "expected COLUMN=VALUE of a column of the catalog; its columns: part",
        ),
        (["x.npy", "--test", "part=none"], 1, "expected a value that column 'part' has"),
        (["x.npy", "--layout", "umap"], 1, "inspect(layout='umap')"),
        (["m.csv", "--suspects", "s.csv"], 1, "expected embeddings: --embeddings x.npy"),
        (["m.csv", "--atlas", "a.parquet"], 1, "expected embeddings, which its places are of"),
    ],
)
def test_what_does_not_fit_is_refused(tercet, here, words, code, sentence):
    (here / "m.csv").write_text("anchor,positive,negative\nphotos/a/00.png,photos/a/04.png,photos/b/01.png\n")
    ended, _, err = tercet("inspect", *words, "-o", "page.html")
    assert ended == code
    assert sentence in re.sub(r"[│\s]+", " ", err)
    assert not (here / "page.html").exists()


def test_images_are_read_from_shards(tercet, here):
    catalog = read_catalog("t.csv")
    write_shards("shards", catalog, k=2)
    code, _, err = tercet("inspect", "x.npy", "-o", "files.html", "--embed-all")
    assert code == 0, err
    expected = data_of(here / "files.html")
    (here / "photos").rename(here / "gone")
    words = ("--embed-all", "--shards", "shards", "--atlas", "a.parquet")
    code, _, err = tercet("inspect", "x.npy", "-o", "shards.html", *words)
    assert code == 0, err
    found = data_of(here / "shards.html")
    assert found["cells"] == expected["cells"]
    assert min(found["cells"]) == 0
    pages = [(here / f"{each}.html").read_text() for each in ("files", "shards")]
    sheets = [re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", page) for page in pages]
    assert sheets[0] == sheets[1] != []
    assert (found["root"], expected["root"]) == (None, "./")
    assert all(row["image"] for row in pq.read_table("a.parquet").to_pylist())
    (here / "gone").rename(here / "photos")
    write_shards("half", catalog.select(range(12)), k=2)
    code, _, err = tercet("inspect", "x.npy", "-o", "half.html", "--shards", "half")
    assert (code, "shards of the images of the catalog" in err) == (1, True), err
