"""Embeddings that are opened again: whole and of one run, or refused with a sentence."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tercet import embed, read_embeddings, scan_folder
from tercet.data.io.checked_json import to_json
from tercet.offline import embeddings
from tests.helpers import flip, picture, refusal_of

torch.set_num_threads(1)


def mean(images):
    return images.mean((2, 3))


@pytest.fixture
def out(tmp_path):
    for row in range(6):
        picture(tmp_path / "photos" / "ab"[row % 2] / f"é, {row}.png", row)
    embed(mean, scan_folder(tmp_path / "photos"), tmp_path / "x.npy", size=8)
    return tmp_path / "x.npy"


def beside(out, name):
    return out.with_name(name)


def test_all_can_be_moved_together_and_another_root_can_be_given(out, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for name in ("x.npy", "x.npy.json", "x.catalog.parquet", "photos"):
        shutil.move(tmp_path / name, there / name)
    found = read_embeddings(there / "x.npy")
    assert found.catalog.root == there / "photos"
    assert found.catalog.file(5).is_file()
    assert read_embeddings(str(there / "x.npy"), root=tmp_path).catalog.root == tmp_path


def test_the_catalog_does_not_lead_out_of_its_root(out, tmp_path):
    found = read_embeddings(out)
    file = found.catalog.file(0)
    file.unlink()
    (tmp_path / "secret.png").write_bytes(b"")
    file.symlink_to(tmp_path / "secret.png")
    with pytest.raises(PermissionError):
        found.catalog.file(0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: out.unlink(), "expected an existing file"),
        (
            lambda out: os.truncate(out, out.stat().st_size - 4),
            "bytes of numbers, as its header tells; it has",
        ),
        (lambda out: os.truncate(out, 20), "expected an existing .npy file of numbers [n, d]"),
        (
            lambda out: flip(out, out.stat().st_size - 1),
            "it was changed, damaged or cut short, or is of another",
        ),
        (lambda out: flip(out, 60), "x.npy"),
        (
            lambda out: np.save(out, np.load(out)[:5]),
            "expected float32 [6, 3], as x.npy.json tells; it holds",
        ),
        (lambda out: np.save(out, np.load(out).astype("f2")), "expected float32 [6, 3], as x.npy.json tells"),
        (
            lambda out: np.save(out, np.load(out)[::-1].copy()),
            "expected the bytes of which x.npy.json has the",
        ),
        (
            lambda out: out.write_bytes(out.read_bytes() + b"0" * 12),
            "expected the bytes of which x.npy.json has",
        ),
        (
            lambda out: beside(out, "x.npy.json").unlink(),
            "expected x.npy.json beside it, as embed writes it; it is",
        ),
        (lambda out: flip(beside(out, "x.npy.json"), 90), "x.npy.json"),
        (
            lambda out: os.truncate(beside(out, "x.npy.json"), 90),
            "its facts of embeddings as JSON; it is damaged",
        ),
        (lambda out: beside(out, "x.npy.json").write_text("{}"), "expected 'embeddings' in its field 'kind'"),
        (
            lambda out: beside(out, "x.catalog.parquet").unlink(),
            "the catalog that it was written with; it is miss",
        ),
        (lambda out: flip(beside(out, "x.catalog.parquet"), 400), "x.catalog.parquet"),
    ],
)
def test_files_that_do_not_belong_together(out, damage, said):
    damage(out)
    found = refusal_of(read_embeddings, out)
    assert found.startswith("read_embeddings(path=")
    assert said in found


def test_a_catalog_of_other_images(out, tmp_path):
    picture(tmp_path / "photos" / "a" / "9.png")
    for rows in ([5, 4, 3, 2, 1, 0], range(5)):
        scan_folder(tmp_path / "photos").select(list(rows)).write(
            beside(out, "x.catalog.parquet"), overwrite=True
        )
        assert "another catalog has that name; embed the images again" in refusal_of(read_embeddings, out)


def test_a_json_without_its_checksum_or_with_other_rows(out):
    facts = json.loads(beside(out, "x.npy.json").read_text())
    del facts["crc32"]
    beside(out, "x.npy.json").write_text(json.dumps(facts))
    assert "expected a checksum in it" in refusal_of(read_embeddings, out)
    for wrong in ([[6, "a", "b"]], [["0", "a", "b"]], [3], [[0, "a"]]):
        beside(out, "x.npy.json").write_text(to_json({**facts, "unreadable": wrong}))
        assert "expected rows with their paths and reasons" in refusal_of(read_embeddings, out)


@pytest.mark.parametrize("path", ["x.csv", "nosuch.npy"])
def test_no_array(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert refusal_of(read_embeddings, path).startswith(f"read_embeddings(path='{path}'): expected an")


def test_of_a_large_array_some_blocks_are_compared_or_all(out, monkeypatch, tmp_path):
    monkeypatch.setattr(embeddings, "BLOCK", 16)
    catalog = scan_folder(tmp_path / "photos")
    embed(mean, catalog, out, size=8, overwrite=True)
    size = out.stat().st_size
    assert len(read_embeddings(out).facts["checksums"]) == -(-size // 16)
    monkeypatch.setattr(embeddings, "SAMPLED", 3)
    flip(out, 150)  # a block that is neither the first, the last nor the middle one
    assert len(read_embeddings(out)) == 6
    assert "it was changed" in refusal_of(read_embeddings, out, verify=True)
    flip(out, 150)
    flip(out, size - 1)
    assert "it was changed" in refusal_of(read_embeddings, out)
