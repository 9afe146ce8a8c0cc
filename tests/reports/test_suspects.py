"""`suspects`: what was planted is found, each with its reason, and the table goes back into mining."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tercet import Catalog, embed, mine_hard_triplets, read_verdicts, scan_folder
from tercet.data.io.tables import read_columns
from tercet.reports.suspects import KINDS, suspects
from tests.helpers import refusal_of


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_are_among_the_first(digits, seed):
    x, y = digits
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(y), 10, replace=False)
    labels = y.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 10)) % 10
    found = suspects(x, labels).of("label")
    assert np.isin(found.image[:20], wrong).sum() >= 8
    assert (found.score > found.own_score).all()
    for i, reason in zip(found.image, found.reason, strict=True):
        assert f"its own class '{labels[i]}'" in reason or "none of them is of its own class" in reason


def pixels(images):
    import torch

    return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)


@pytest.fixture
def planted(tmp_path, digits):
    """200 digits as PNG, with copies of 15: the same bytes, or written again as JPEG."""
    x, y = digits
    rng = np.random.default_rng(0)
    copied = rng.choice(200, 15, replace=False)
    for row in range(200):
        image = cv2.resize((x[row].reshape(8, 8) * 15.9).astype(np.uint8), (32, 32))
        path = tmp_path / "photos" / str(y[row]) / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        if row not in copied:
            continue
        if row % 2:
            path.with_name(f"{row:03d}-copy.png").write_bytes(path.read_bytes())
        else:
            cv2.imwrite(str(path.with_name(f"{row:03d}-copy.jpg")), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    catalog = scan_folder(tmp_path / "photos")
    return embed(pixels, catalog, tmp_path / "x.npy", size=32, workers=0), copied


def names_of(found):
    """The numbers of the images of each pair."""
    paths = found.catalog.paths
    return [{paths[i].split("/")[1][:3] for i in pair} for pair in zip(found.image, found.other, strict=True)]


def test_copies_and_leaks_are_found_and_nothing_else(planted):
    embeddings, copied = planted
    is_copy = np.array(["copy" in path for path in embeddings.catalog.paths])
    leaked = np.flatnonzero(is_copy)[:5]
    found = suspects(embeddings, test=leaked)
    assert [len(found.of(kind)) for kind in ("leak", "duplicate")] == [5, 10]
    assert found.of("leak").image.tolist() == sorted(
        leaked.tolist(), key=lambda i: found.of("leak").image.tolist().index(i)
    )
    pairs = names_of(found.of("leak")) + names_of(found.of("duplicate"))
    assert sorted(next(iter(pair)) for pair in pairs) == sorted(f"{row:03d}" for row in copied)
    assert all(len(pair) == 1 for pair in pairs)
    said = [reason for kind in ("leak", "duplicate") for reason in found.of(kind).reason]
    assert sum("same bytes" in reason for reason in said) == sum(copied % 2)
    assert sum("of the median length" in reason for reason in said) == sum(copied % 2 == 0)
    mask = np.zeros(len(is_copy), dtype=bool)
    mask[leaked] = True
    assert suspects(embeddings, test=mask).reason == found.reason


def test_copies_without_files_are_told_by_their_embeddings_alone(planted):
    embeddings, _ = planted
    paths = [f"gone/{path}" for path in embeddings.catalog.paths]
    catalog = Catalog(paths, embeddings.labels, embeddings.catalog.classes)
    found = suspects(embeddings, catalog=catalog)
    assert len(found.of("duplicate")) == 15
    assert found.unread == list(range(215))
    assert not any("bytes" in reason for reason in found.reason)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_is_the_table_of_verdicts_with_reasons(planted, tmp_path, suffix):
    embeddings, _ = planted
    found = suspects(embeddings)
    path = tmp_path / f"suspects{suffix}"
    found.write(path)
    columns = read_columns(path)
    assert list(columns)[:2] == ["kind", "reason"]
    assert columns["kind"].tolist() == list(found.kind)
    assert columns["reason"].tolist() == list(found.reason)
    back = read_verdicts(path, embeddings.catalog)
    assert np.array_equal(back.image, found.image)
    assert np.array_equal(back.other, found.other)
    assert "expected a new file" in refusal_of(found.write, path)


def test_what_a_person_writes_into_the_table_changes_what_is_mined(planted, tmp_path):
    embeddings, _ = planted
    path = tmp_path / "suspects.csv"
    found = suspects(embeddings)
    assert len(found.of("label"))
    found.write(path)
    path.write_text(path.read_text().replace('"?"', '"skip"', 1))
    said = read_verdicts(path, embeddings.catalog)
    assert said.verdict[0] == "skip"
    mined = mine_hard_triplets(embeddings, verdicts=said)
    assert found.image[0] not in mined.anchor
    assert found.image[0] in mine_hard_triplets(embeddings).anchor


def test_kinds_stand_in_their_order_and_the_far_image_is_isolated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) * 0.1
    x[20:] += 5
    x[39] = [50, 50]
    labels = np.arange(40) // 20
    labels[:2] = 1
    found = suspects(x, labels, distance="euclidean", k=5)
    assert [KINDS.index(kind) for kind in found.kind] == sorted(KINDS.index(kind) for kind in found.kind)
    assert 39 in found.of("isolated").image
    assert "times as far as in the median; no images have it" in found.of("isolated").reason[0]
    assert found.of("label").image.tolist() == [0, 1] or found.of("label").image.tolist() == [1, 0]
    (reason,) = found.of("confused").reason
    assert reason == "2 of the 22 images of '1' look like '0', and 0 of its 18 the other way round"
    assert repr(found).startswith("Suspects(2 label, ")


def test_rows_of_nan_are_no_suspects():
    x = np.random.default_rng(0).normal(size=(12, 3))
    x[[3, 4]] = np.nan
    found = suspects(x, [0, 1] * 6)
    assert not np.isin([3, 4], [found.image, found.other]).any()


def test_names_of_classes_are_escaped():
    x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [0.3]])
    labels = ["a\x1b[2J"] * 3 + ["b\n"] * 4
    found = suspects(x, labels, distance="euclidean")
    assert all(reason.isprintable() for reason in found.reason)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "suspects(k=0): expected a whole number of at least 1"),
        ({"copy_share": 2}, "suspects(copy_share=2): expected a finite number from 0 to 1"),
        ({"isolated": 0.5}, "suspects(isolated=0.5): expected a finite number of at least 1"),
        ({"distance": "dot"}, "suspects(distance='dot'): expected one of 'cosine', 'euclidean'"),
        (
            {"test": [9]},
            "suspects(test='int64 of shape (1,)'): expected bool [6], or row numbers from 0 to 5",
        ),
        ({"labels": [0]}, "suspects(labels='1 values'): expected one for each of the 6 embeddings"),
        ({"catalog": Catalog(["a"], [0], ["a"])}, "suspects(catalog='1 images'): expected one for each of"),
        ({"catalog": 3}, "suspects(catalog='int'): expected a Catalog"),
    ],
)
def test_what_does_not_fit_is_refused(options, sentence):
    given = {"labels": [0, 0, 0, 1, 1, 1], **options}
    assert sentence in refusal_of(suspects, np.random.default_rng(0).normal(size=(6, 2)), **given)


def test_suspects_of_no_catalog_are_not_written(tmp_path):
    found = suspects(np.random.default_rng(0).normal(size=(6, 2)), [0, 1] * 3)
    assert "expected suspects of a catalog" in refusal_of(found.write, tmp_path / "s.csv")


def test_another_kind_is_refused():
    found = suspects(np.random.default_rng(0).normal(size=(6, 2)), [0, 1] * 3)
    assert "Suspects.of(kind='labels'): expected one of 'label'" in refusal_of(found.of, "labels")


def test_only_images_of_their_class_come_after_doubtful_labels():
    x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [0.3], [0.15]])
    found = suspects(x, list("aaabbbbc"), distance="euclidean", k=3).of("label")
    assert (found.image[0], found.image[-1]) == (6, 7)
    assert "it is the only one of its class" in found.reason[-1]
    assert "none of them is of its own class" in found.reason[0]
