"""`tercet embed`: what it writes, what it says, and how it is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tercet as tercet_package
from tercet import embed, read_embeddings, scan_folder, write_shards
from tests.helpers import names, picture, write_tar

torch.set_num_threads(1)
MODEL = "embedders_of_a_test:mean"
CODE = """
import numpy as np
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
    def forward(self, images):
        return images.mean((2, 3)) * self.weight

def mean(): return Mean()
def other(): return Mean(2.0)
def flat(): return lambda images: images.mean((1, 2, 3))
def fails():
    def model(images):
        raise RuntimeError("no such\\nlayer")
    return model

def unit():
    return lambda image: image.astype(np.float32) / 255
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with five pictures, one that is none, a note, and a module with models."""
    for row in range(5):
        picture(tmp_path / "photos" / "ab"[row % 2] / f"{row}.png", row)
    (tmp_path / "photos" / "b" / "[red]9.png").write_bytes(b"no image")
    (tmp_path / "photos" / "b" / "note.txt").write_bytes(b"")
    (tmp_path / "embedders_of_a_test.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "embedders_of_a_test", raising=False)
    return tmp_path


def call(tercet, *words, model=MODEL):
    return tercet("embed", "photos", "x.npy", "--model", model, "--size", 8, "--workers", 0, *words)


def test_it_writes_the_embeddings_of_the_library(tercet, here):
    words = (
        "--dtype",
        "float16",
        "--precision",
        "bf16",
        "--views",
        "flip",
        "--normalize",
        "--hash",
        "--quiet",
    )
    code, out, err = call(tercet, *words, "--batch-size", 2, "--key", "v1", "--part-size", 2)
    assert (code, out) == (0, "")
    assert "left out: b/note.txt: not an image unreadable: b/[red]9.png: OpenCV does not decode it" in err
    from embedders_of_a_test import mean

    options = {"dtype": "float16", "precision": "bf16", "views": "flip", "normalize": True, "hash": True}
    catalog = scan_folder("photos")
    found = embed(mean(), catalog, "x.npy", size=8, batch_size=2, key="v1", **options)
    assert found.computed == 0  # the key of the library is that of the command
    assert found.array.dtype == np.float16
    assert found.unreadable.tolist() == [5]
    again = embed(mean(), catalog, "y.npy", size=8, batch_size=2, key="v1", **options)
    assert again.array.tobytes() == found.array.tobytes()


def test_it_ends_with_a_table_and_does_nothing_twice(tercet, here):
    code, out, err = call(tercet)
    assert code == 0
    assert re.sub(r"[\d.]+ $", "… ", out) == (
        "x.npy images 6 classes 2 dimension 3 bytes 72 embedded now 6 unreadable 1 OpenCV does not decode "
        "it: cut short, damaged, or no image of 8 or 16 bits 1 left out 1 not an image 1 seconds … "
    )
    assert "6/6" in err
    before = (here / "x.npy").stat()
    code, out, _ = call(tercet)
    assert code == 0
    assert "embedded now 0 " in out
    assert (here / "x.npy").stat() == before


def test_a_stale_one_is_refused_by_name_and_replaced_on_request(tercet, here):
    call(tercet)
    code, _, err = call(tercet, model="embedders_of_a_test:other")
    assert code == 1
    assert (
        "Error: embed(out='x.npy'): expected embeddings of the same model, images and options; what " in err
    )
    assert "what differs: weights; overwrite=True or --overwrite makes all anew" in err
    code, out, _ = call(tercet, "--overwrite", model="embedders_of_a_test:other")
    assert code == 0
    assert "embedded now 6 " in out


def test_a_transform_of_ones_own(tercet, here):
    words = ("--model", MODEL, "--transform", "embedders_of_a_test:unit", "--workers", 0, "--quiet")
    assert tercet("embed", "photos", "x.npy", *words)[0] == 0
    found = read_embeddings("x.npy")
    assert np.nanmax(found.array) < 0.6
    assert np.nanmin(found.array) > 0.4


def test_tables_and_shards(tercet, here):
    (here / "photos" / "b" / "[red]9.png").unlink()
    catalog = scan_folder("photos")
    catalog.write("t.csv")
    write_shards("shards", catalog)
    options = ("--model", MODEL, "--size", 8, "--workers", 1, "--quiet")
    for name, source in (("a", "photos"), ("b", "t.csv"), ("c", "shards"), ("d", "shards/train-000000.tar")):
        more = ("--split", "train") if name == "c" else ()
        assert tercet("embed", source, f"{name}.npy", *options, *more)[0] == 0
    found = [read_embeddings(f"{name}.npy") for name in "abcd"]
    assert len({each.array.tobytes() for each in found}) == 1
    assert len({tuple(each.labels.tolist()) for each in found}) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("photos", "x.npy"), 2, "Missing option '--model'"),
        (
            ("nosuch", "x.npy", "--model", MODEL),
            1,
            "embed(source='nosuch'): expected an existing folder, table or",
        ),
        (("photos", "x.csv", "--model", MODEL), 1, "expected a name ending in .npy"),
        (("photos", "photos", "--model", MODEL), 1, "expected another folder than what is read"),
        (
            ("photos", "x.npy", "--model", "nosuch"),
            1,
            "expected package.module:factory, a function that returns",
        ),
        (
            ("photos", "x.npy", "--model", MODEL, "--device", "tpu9"),
            1,
            "embed(device='tpu9'): expected a device",
        ),
        (("photos", "x.npy", "--model", MODEL, "--dtype", "int8"), 1, "expected one of 'float32', 'float16'"),
        (("photos", "x.npy", "--model", MODEL, "--split", "train"), 2, "--split is for tars"),
        (("photos", "x.npy", "--model", MODEL, "--transform", "resise"), 1, "did you mean 'resize'?"),
        (
            ("photos", "x.npy", "--model", "embedders_of_a_test:flat"),
            1,
            "expected a model that gives a tensor of",
        ),
        (
            ("photos", "x.npy", "--model", "embedders_of_a_test:fails"),
            1,
            "Error: no such (embed: in the model, for images [5, 3, 224, 224] of rows 0 to 4)",
        ),
        (
            ("photos", "x.npy", "--model", MODEL, "--transform", "embedders_of_a_test:unit", "--size", "8"),
            1,
            "size",
        ),
    ],
)
def test_what_is_refused(tercet, here, words, code, said):
    found, out, err = tercet("embed", *words, "--workers", 0, "--quiet")
    assert (found, out) == (code, "")
    assert said in err
    assert not (here / "x.npy").exists()


def test_options_of_folders_are_refused_for_tars(tercet, here):
    write_shards("shards", scan_folder("photos"))
    found, _, err = tercet("embed", "shards", "x.npy", "--model", MODEL, "--class-depth", 1)
    assert found == 2
    assert "of tars, --split alone says what is read" in err


def test_tars_beside_class_folders_are_refused(tercet, here):
    write_tar(here / "photos" / "a.tar", ("0.pgm", b"P5 2 1 255 ab"), ("0.cls", b"1"))
    found, _, err = tercet("embed", "photos", "x.npy", "--model", MODEL)
    assert found == 1
    assert (
        "embed(source='photos'): expected class folders or tars; it holds both; move one of them away" in err
    )


def test_the_tool_is_the_command(here):
    tool = Path(__file__).parents[2] / "tools" / "embed.py"
    assert len(tool.read_text().splitlines()) <= 10
    words = ["photos", "x.npy", "--model", MODEL, "--size", "8", "--workers", "2", "--quiet"]
    env = {**os.environ, "PYTHONPATH": str(Path(tercet_package.__file__).parents[1])}
    done = subprocess.run([sys.executable, tool, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert names(here)[-3:] == ["x.catalog.parquet", "x.npy", "x.npy.json"]
