"""`tercet evaluate`: its table, JSON, picture, and two models side by side."""

import json
import re

import numpy as np
import pytest

from tercet import embed, evaluate, global_average_precision, ndcg, read_embeddings, scan_folder
from tests.helpers import picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Embeddings of 40 pictures of five classes by two models; one picture does not decode."""
    import torch

    for row in range(40):
        picture(tmp_path / "photos" / "abcde"[row % 5] / f"{row:02d}.png", row)
    (tmp_path / "photos" / "e" / "39.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    catalog, rng = scan_folder("photos"), np.random.default_rng(0)
    centers = rng.normal(size=(5, 8))
    for name, noise in (("good", 0.5), ("bad", 3.0)):
        x = (centers[catalog.labels] + noise * rng.normal(size=(40, 8))).astype(np.float32)

        def model(images, x=x):
            return torch.from_numpy(x[: len(images)])

        embed(model, catalog, f"{name}.npy", size=4, batch_size=40, workers=0)
    return tmp_path


def cells(out):
    """A table without its lines."""
    return re.sub(r"[\s┃━┏┳┓┡╇┩]+", " ", out)


def test_the_table_is_that_of_evaluate(tercet, here):
    from tercet import read_embeddings

    code, out, err = tercet("evaluate", "good.npy", "--k", 1, "--k", 3, "--worst", 2)
    assert code == 0, err
    found = read_embeddings("good.npy")
    kept = np.setdiff1d(np.arange(40), found.unreadable)
    expected = evaluate(found.array[kept], found.labels[kept], (1, 3), distance="cosine")
    for name in expected:
        assert f"{name} {expected[name]:.3f} {expected.intervals[name]}" in out
    assert "39 queries" in out
    assert "1 images left out: they do not decode" in out
    assert "class Recall@1 queries" in cells(out)


def test_json_and_a_picture(tercet, here):
    words = ("--json", "x.json", "--plot", "x.png", "--figures", "retrieval", "--figures", "clustering")
    code, _, err = tercet("evaluate", "good.npy", *words)
    assert code == 0, err
    figures = json.loads((here / "x.json").read_text("utf-8"))["figures"]
    assert {"Recall@1", "NMI", "ROC-AUC"} <= set(figures)
    assert (here / "x.png").stat().st_size > 5000
    code, _, err = tercet("evaluate", "good.npy", *words)
    assert (code, "x.json" in err) == (1, True), err
    assert tercet("evaluate", "good.npy", *words, "--overwrite", "--quiet") == (0, "", "")


def test_a_model_and_a_folder_in_one_go(tercet, here):
    (here / "brightness_model.py").write_text(
        "def factory():\n    return lambda images: images.mean((2, 3))\n"
    )
    words = (
        "photos",
        "--model",
        "brightness_model:factory",
        "--size",
        4,
        "--workers",
        0,
        "--device",
        "cpu",
        "--k",
        1,
    )
    code, out, err = tercet("evaluate", *words, "--keep", "kept.npy")
    assert code == 0, err
    assert "1 images left out: they do not decode" in out
    assert tercet("evaluate", "kept.npy", "--k", 1)[1].splitlines()[4:] == out.splitlines()[4:]
    code, again, err = tercet("evaluate", *words)
    assert code == 0, err
    assert again.splitlines()[4:] == out.splitlines()[4:]
    assert sorted(file.name for file in here.glob("*.npy")) == ["bad.npy", "good.npy", "kept.npy"]
    for option in ("--size", "--class-depth"):
        code, _, err = tercet("evaluate", "good.npy", option, 1)
        assert (code, "--keep and the options of embedding are for --model" in err) == (2, True), err


def test_cameras_of_a_folder(tercet, here):
    for row in range(24):
        picture(here / "seen" / "abc"[row % 3] / f"cam{row % 2}" / f"{row:02d}.png", row)
    (here / "model_of_cameras.py").write_text(
        "def factory():\n    return lambda images: images.mean((2, 3))\n"
    )
    words = ("--model", "model_of_cameras:factory", "--size", 4, "--workers", 0, "--device", "cpu")
    code, _, err = tercet("embed", "seen", "seen.npy", *words, "--class-depth", 1, "--groups", 2)
    assert code == 0, err
    found = read_embeddings("seen.npy")
    cameras = np.array([path.split("/")[1] for path in found.catalog.paths])
    assert found.catalog.groups["group"].tolist() == cameras.tolist()
    apart = evaluate(found, k=1, groups=cameras, distance="cosine")
    whole = evaluate(found, k=1, distance="cosine")
    assert apart["MAP@R"] != whole["MAP@R"]
    code, out, err = tercet("evaluate", "seen.npy", "--group", "group", "--k", 1)
    assert (code, f"MAP@R {apart['MAP@R']:.3f}" in cells(out)) == (0, True), (out, err)
    code, out, err = tercet("evaluate", "seen", *words, "--class-depth", 1, "--k", 1)
    assert (code, f"MAP@R {whole['MAP@R']:.3f}" in cells(out)) == (0, True), (out, err)
    found.catalog.write("seen.csv")
    code, _, err = tercet("embed", "seen.csv", "x.npy", *words, "--groups", 2)
    assert (code, "--groups is for folders; of a table, --group names the column" in err) == (2, True), err


def test_graded_relevance_is_how_far_two_classes_share_their_folders(tercet, here):
    import torch

    for row in range(24):
        picture(here / "tree" / "xxy"[row % 3] / "abc"[row % 3] / f"{row:02d}.png", row)
    picture(here / "tree" / "z" / "1.png", 1)
    catalog = scan_folder("tree")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32))
    embed(lambda images: x[: len(images)], catalog, "tree.npy", size=4, batch_size=25)
    words = ("--figures", "ndcg", "--figures", "gap", "--k", 3, "--relevance", "depth")
    code, out, err = tercet("evaluate", "tree.npy", *words, "--gain", "exponential", "--worst", 1)
    assert code == 0, err
    rows = torch.tensor(
        [{"x/a": [0, 0], "x/b": [0, 1], "y/c": [1, 2], "z": [2, 3]}[c] for c in catalog.classes]
    )
    rows = rows[torch.from_numpy(catalog.labels)]
    expected = ndcg(x, rows, 3, relevance="depth", gain="exponential", distance="cosine")
    assert f"nDCG@3 {expected:.3f}" in cells(out)
    assert f"GAP {global_average_precision(x, catalog.labels, distance='cosine'):.3f}" in cells(out)
    assert "class nDCG@3 queries" in cells(out)
    code, _, err = tercet("evaluate", "tree.npy", *words[:-1], "overlap")
    assert (code, "relevance='overlap'" in err) == (1, True), err


def test_two_models_side_by_side(tercet, here):
    code, out, err = tercet("evaluate", "good.npy", "--compare", "bad.npy", "--distance", "euclidean")
    assert code == 0, err
    assert "figure good.npy bad.npy difference p" in cells(out)
    assert "Recall@1" in out


def test_what_does_not_fit_is_refused(tercet, here):
    for words, said in (
        (("--group", "camera"), "evaluate(group='camera'): expected one of the catalog's columns: none"),
        (("--group", "camera"), "; tercet embed keeps one, of a folder by --groups, of a table by --group"),
        (("--ignore", "z"), "evaluate(ignore='z'): expected a class of the catalog"),
        (("--figures", "rank"), "evaluate(figures='rank'): expected one of"),
        (("--plot", "x.txt"), "x.txt"),
        (("--exclude", "group"), "evaluate(exclude='group'): expected groups= beside it"),
    ):
        code, _, err = tercet("evaluate", "good.npy", *words)
        assert (code, said in err) == (1, True), err
