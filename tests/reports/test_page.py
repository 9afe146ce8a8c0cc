"""The page without a browser: what is in it, that names are text in it, and what is refused."""

import base64
import hashlib
import json
import re
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from tercet import Catalog, RandomPairs, Triplets, Verdicts, mine_hard_triplets, read_manifest, scan_folder
from tercet import write_manifest as written
from tercet.neighbors.collection import nearest
from tercet.offline.neighbor_graph import neighbor_graph
from tercet.reports.map import layout_of
from tercet.reports.page import inspect
from tercet.reports.sprites import COLUMNS, sprites, thumbnail
from tests.helpers import picture, refusal_of, unchecked


def collection(folder, n=24, classes="abcd"):
    for row in range(n):
        picture(folder / classes[row % len(classes)] / f"{row:02d}.png", row)
    catalog = scan_folder(folder)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(classes), 6))[catalog.labels] + 0.5 * rng.normal(size=(n, 6))
    return catalog, x.astype(np.float32)


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def test_galleries_hold_the_hardest_of_plain_loops(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    inspect(tmp_path / "page.html", x, catalog=catalog)
    data = data_of(tmp_path / "page.html")
    assert list(data["galleries"]) == ["triplets", "positives", "negatives", "suspects"]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    score = unit @ unit.T
    same = catalog.labels[:, None] == catalog.labels
    hardest = {}
    for i in range(24):
        p = min((j for j in range(24) if same[i, j] and j != i), key=lambda j: score[i, j])
        n = max((j for j in range(24) if not same[i, j]), key=lambda j: score[i, j])
        hardest[i] = p, n, score[i, p], score[i, n]
    found = data["galleries"]["triplets"]["items"]
    order = sorted(hardest, key=lambda i: hardest[i][2] - hardest[i][3])
    assert [item["image"] for item in found] == order
    for item in found:
        p, n, own, other = hardest[item["image"]]
        assert (item["positive"], item["other"]) == (p, n)
        assert (item["own"], item["score"]) == (pytest.approx(own, abs=1e-4), pytest.approx(other, abs=1e-4))
    negatives = data["galleries"]["negatives"]["items"]
    pairs = [tuple(sorted((item["image"], item["other"]))) for item in negatives]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == {tuple(sorted((i, n))) for i, (_, n, _, _) in hardest.items()}
    scores = [item["score"] for item in negatives]
    assert scores == sorted(scores, reverse=True)
    positives = [item["score"] for item in data["galleries"]["positives"]["items"]]
    assert positives == sorted(positives)


def test_classes_confusion_and_the_map(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    inspect(tmp_path / "page.html", x, catalog=catalog, k=5)
    data = data_of(tmp_path / "page.html")
    heads = [head["name"] for head in data["hardness"]["heads"]]
    first = nearest(x, k=1, distance="cosine").rows[:, 0]
    for row in data["hardness"]["rows"]:
        fact = dict(zip(heads, row, strict=True))
        members = np.flatnonzero(catalog.labels == fact["class"])
        assert fact["images"] == fact["triplets"] == len(members)
        away = (catalog.labels[first[members]] != fact["class"]).mean()
        assert fact["other nearest"] == pytest.approx(away, abs=1e-4)
    assert sum(cell[2] for cell in data["confusion"]["cells"]) <= 24
    places = np.frombuffer(base64.b64decode(data["map"]["places"]), "<u2").reshape(24, 2)
    assert places.min() == 0 or places.max() == 65535
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    left = np.linalg.svd(unit - unit.mean(0), full_matrices=False)[0][:, 0]
    assert abs(np.corrcoef(left, places[:, 0])[0, 1]) > 0.999
    assert data["histograms"] is not None
    assert data["filters"] is None


def test_the_account_of_mining_and_the_provenance(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    mined = mine_hard_triplets(x, catalog.labels, max_quantile=0.5)
    inspect(tmp_path / "page.html", x, catalog=catalog, mined=mined)
    rows = dict(data_of(tmp_path / "page.html")["filters"]["rows"])
    assert rows["chosen"] == len(mined)
    assert sum(rows.values()) == mined.report.pairs * 24
    facts = {"mining": {**mined.report.as_dict(), "options": {"seed": 3}}}
    written(tmp_path / "hard.parquet", mined.triplets, catalog, provenance=facts)
    manifest = read_manifest(tmp_path / "hard.parquet")
    inspect(tmp_path / "both.html", x, mined=manifest)
    both = data_of(tmp_path / "both.html")
    assert dict(both["filters"]["rows"]) == rows
    said = {name: value for _, facts in both["provenance"] for name, value in facts}
    assert said["mining.options.seed"] == "3"
    assert said["images"] == "24"


def test_a_manifest_alone_shows_its_triplets(tmp_path):
    catalog, _ = collection(tmp_path / "photos")
    triplets = Triplets(np.array([0, 1, 6]), np.array([1, 2, 7]), np.array([6, 7, 0]))
    written(tmp_path / "t.csv", triplets, catalog)
    inspect(tmp_path / "page.html", mined=read_manifest(tmp_path / "t.csv"))
    data = data_of(tmp_path / "page.html")
    assert list(data["galleries"]) == ["triplets"]
    items = data["galleries"]["triplets"]["items"]
    assert [(data["paths"][item["image"]], data["paths"][item["other"]]) for item in items] == [
        (catalog.paths[a], catalog.paths[n]) for a, n in ((0, 6), (1, 7), (6, 0))
    ]
    assert "score" not in items[0]


NASTY = "</script><script>window.hacked=1</script>\"'`<img src=x onerror=window.hacked=1>&amp;\x1b[2J\n\u202e"


def test_names_are_text(tmp_path):
    names = [f"{NASTY}{row}" for row in range(8)]
    catalog = Catalog(names, [0, 1] * 4, [f"a{NASTY}", f"b{NASTY}"])
    x = np.random.default_rng(0).normal(size=(8, 3))
    page = tmp_path / "page.html"
    inspect(page, x, catalog=catalog, title=NASTY)
    text = page.read_text()
    assert text.count("</script>") == 2  # of the data and of the script, both ours
    assert "<img" not in text.replace('el("img"', "")
    data = data_of(page)
    assert data["paths"] == names
    assert data["classes"] == catalog.classes
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text


def test_images_that_do_not_decode_are_told(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    catalog.file(3).write_bytes(b"no image")
    inspect(tmp_path / "page.html", x, catalog=catalog, embed_all=True)
    data = data_of(tmp_path / "page.html")
    assert data["cells"][3] == -1
    assert sorted(data["cells"])[1:] == list(range(23))
    title, ((name, why),) = data["provenance"][-1]
    assert (title, name) == ("Images that do not decode", catalog.paths[3])
    assert "does not decode" in why


def test_marks_that_are_there_and_images_of_ones_own(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    said = Verdicts(np.array([1, 2]), np.array([5, 7]), np.zeros(2), np.zeros(2), ["skip", "?"])
    asked = []

    def images(row):
        asked.append(row)
        return np.full((4, 4, 3), row, np.uint8)

    inspect(tmp_path / "page.html", x, catalog=catalog, verdicts=said, images=images, embed_all=True)
    assert data_of(tmp_path / "page.html")["marks"] == [["1,5", "skip"]]
    assert sorted(asked) == list(range(24))


def test_a_sheet_shows_each_image_in_its_cell():
    n = COLUMNS * COLUMNS + 3
    found = sprites(np.arange(n), n, lambda row: np.full((5, 5, 3), row % 251, np.uint8), 8)
    assert len(found.sheets) == 2
    for number, sheet in enumerate(found.sheets):
        content = base64.b64decode(sheet.removeprefix("data:image/webp;base64,"))
        shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        for row in np.flatnonzero(found.cell // (COLUMNS * COLUMNS) == number)[::37]:
            top, left = divmod(int(found.cell[row]) % (COLUMNS * COLUMNS), COLUMNS)
            assert np.abs(shown[top * 8 + 4, left * 8 + 4, :3].astype(int) - row % 251).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(3, 9), (9, 3), (400, 100), (1, 1)])
def test_a_thumbnail_keeps_the_shape(height, width):
    small = thumbnail(np.full((height, width, 3), 9, np.uint8), 32)
    filled = small[..., 3] > 0
    shape = filled.any(1).sum(), filled.any(0).sum()
    assert max(shape) == 32
    assert shape[0] / shape[1] == pytest.approx(height / width, rel=0.15)


def test_the_table_for_embedding_atlas(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    x[5] = np.nan
    catalog.file(3).write_bytes(b"")
    inspect(tmp_path / "page.html", x, catalog=catalog, atlas=tmp_path / "atlas.parquet", k=4)
    table = pq.read_table(tmp_path / "atlas.parquet").to_pylist()
    expected = nearest(x, k=4, distance="cosine", nan="skip").rows
    kept = [row for row in range(len(x)) if row != 5]  # one without neighbours would be one too short
    assert [row["row"] for row in table] == kept
    found = [[kept[j] for j in row["neighbors"]["ids"]] for row in table]
    assert found == expected[kept].tolist()
    assert {len(row["neighbors"]["distances"]) for row in table} == {4}
    assert [row["path"] for row in table] == catalog.paths[kept].tolist()
    assert table[3]["image"] is None
    assert cv2.imdecode(np.frombuffer(table[0]["image"]["bytes"], np.uint8), -1).shape == (96, 96, 4)
    assert all(0 <= row["x"] <= 1 and 0 <= row["y"] <= 1 for row in table)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"embeddings": None}, "inspect(embeddings=None): expected embeddings, or mined= triplets"),
        ({"path": "page.pdf"}, "a name ending in .html"),
        ({"most": 0}, "inspect(most=0): expected a whole number from 1 to 2000"),
        ({"layout": "umap"}, "inspect(layout='umap'): expected one of 'pca', 'tsne'"),
        ({"catalog": None}, "inspect(catalog='NoneType'): expected a Catalog"),
        ({"mined": 3}, "inspect(mined='int'): expected MinedTriplets, a Manifest of triplets or Triplets"),
        ({"mined": ([0], [1], [99])}, "inspect(mined='tuple'): expected MinedTriplets"),
        ({"mined": Triplets([0], [1], [99])}, "expected MinedTriplets, a Manifest of triplets or Triplets"),
        ({"mined": RandomPairs([0, 0, 1, 1], 3)}, "expected MinedTriplets, a Manifest of triplets or"),
        ({"mined": np.datetime64("2026-01-01")}, "inspect(mined='datetime64'): expected MinedTriplets"),
        (
            {"images": 3},
            "inspect(images=3): expected a ShardIndex, or a function of a row that gives its image",
        ),
        ({"title": None}, "inspect(title=None): expected a string"),
        ({"labels": [0]}, "inspect(labels='1 rows'): expected one for each of the 6 images"),
        ({"atlas": "a.csv"}, "a name ending in .parquet"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    catalog = Catalog([f"{i}.png" for i in range(6)], [0, 0, 0, 1, 1, 1], ["a", "b"])
    x = np.random.default_rng(0).normal(size=(6, 2))
    given = {"path": "page.html", "embeddings": x, "catalog": catalog, **options}
    with unchecked():
        assert sentence in refusal_of(lambda: inspect(**given))
    assert not list(tmp_path.iterdir())


def test_a_page_is_not_written_over(tmp_path):
    catalog, x = collection(tmp_path / "photos")
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "expected a new file" in refusal_of(lambda: inspect(page, x, catalog=catalog))
    inspect(page, x, catalog=catalog, overwrite=True)
    assert data_of(page)["paths"] == catalog.paths.tolist()


def test_tsne_on_the_graph_keeps_neighbours_near(tmp_path):
    pytest.importorskip("openTSNE", reason="needs openTSNE: pip install tercet[report]")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    x = rng.normal(size=(4, 8))[labels] * 4 + rng.normal(size=(120, 8))
    x[7] = np.nan
    usable = ~np.isnan(x).any(1)
    graph = neighbor_graph(x, 15, "euclidean")
    places = layout_of("tsne", x, usable, False, graph)
    assert np.isnan(places[7]).all()
    near = nearest(places, k=5, nan="skip").rows[usable]
    assert (labels[near] == labels[usable][:, None]).mean() > 0.95
    assert np.array_equal(layout_of("tsne", x, usable, False, graph), places, equal_nan=True)


def test_tsne_without_its_library_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    catalog, x = collection(tmp_path / "photos")
    said = refusal_of(lambda: inspect(tmp_path / "page.html", x, catalog=catalog, layout="tsne"))
    assert said.startswith("inspect(layout='tsne'): expected openTSNE: pip install")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (np.full((4, 3), np.nan), [0, 0, 1, 1]),
        (np.zeros((6, 3)), [0, 0, 0, 1, 1, 1]),
        (np.arange(3.0).reshape(1, 3), [0]),
        (np.eye(4), [0, 0, 0, 0]),
        (np.eye(4), [0, 1, 2, 3]),
    ],
    ids=["NaN", "all the same", "one image", "one class", "classes of one image"],
)
def test_poor_collections_have_a_page_too(tmp_path, x, labels):
    catalog = Catalog([f"{row}.png" for row in range(len(x))], labels, list("abcd"), root=tmp_path)
    inspect(tmp_path / "page.html", x, catalog=catalog, atlas=tmp_path / "atlas.parquet")
    assert len(data_of(tmp_path / "page.html")["paths"]) == len(x)
    usable = np.isfinite(x).all(1).sum()
    assert pq.read_table(tmp_path / "atlas.parquet").num_rows == usable
