"""A cache is used again where nothing changed, and refused by the name of what did."""

from __future__ import annotations

import os
from dataclasses import replace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch import nn

from tercet import ShardIndex, embed, read_embeddings, scan_folder, write_shards
from tercet.offline.embedding_cache import FIELDS, differing
from tests.helpers import picture, refusal_of, write_tar

torch.set_num_threads(1)
OPTIONS = {"transform": A.Compose([A.Resize(8, 8), A.Normalize()]), "batch_size": 3}


class Net(nn.Module):
    """A network with a buffer that no state dict has, and a number that is none of its weights."""

    def __init__(self, scale=1.0, width=4):
        super().__init__()
        self.layer = nn.Linear(3, width)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.25)
        self.register_buffer("shift", torch.zeros(3), persistent=False)
        self.scale = scale

    def forward(self, images):
        return self.layer(images.mean((2, 3)) + self.shift) * self.scale


class Halved(Net):
    def forward(self, images):
        return super().forward(images) / 2


@pytest.fixture
def photos(tmp_path):
    for row in range(5):
        picture(tmp_path / "photos" / "ab"[row % 2] / f"{row}.png", row)
    return tmp_path / "photos"


@pytest.fixture
def out(photos, tmp_path):
    """Embeddings of the photos, made once."""
    path = tmp_path / "x.npy"
    assert embed(Net(), scan_folder(photos), path, **OPTIONS).computed == 5
    return path


def said(out, photos, model=None, **options):
    """What differs, as the refusal names it."""
    found = refusal_of(embed, model or Net(), scan_folder(photos), out, **{**OPTIONS, **options})
    start = "expected embeddings of the same model, images and options; what differs: "
    end = "; overwrite=True or --overwrite makes all anew"
    assert start in found
    assert found.endswith(end)
    return found.partition(start)[2].removesuffix(end)


def one_weight(model):
    with torch.no_grad():
        model.layer.weight[2, 1] = float(np.nextafter(np.float32(0.5), np.float32(1)))
    return model


def one_buffer(model):
    model.shift[1] = 1e-30
    return model


def test_equal_things_made_anew_are_the_same(out, photos):
    options = {"transform": A.Compose([A.Resize(8, 8), A.Normalize()])}
    assert embed(Net(), scan_folder(photos), out, **{**OPTIONS, **options}).computed == 0
    assert embed(Net().eval(), scan_folder(photos), out, **OPTIONS).computed == 0
    compiled = torch.compile(Net(), backend="eager")
    assert embed(compiled, scan_folder(photos), out, **OPTIONS).computed == 0
    compiled._orig_mod._compile_kwargs = {"backend": "eager"}  # as Lightning notes them
    assert embed(compiled, scan_folder(photos), out, **OPTIONS).computed == 0


def test_case_a_cache_is_refused_after_the_weights_changed(out, photos):
    assert said(out, photos, one_weight(Net())) == "weights"
    assert said(out, photos, one_buffer(Net())) == "weights"
    assert said(out, photos, Net().double()) == "weights"


def test_a_model_with_the_same_weights_and_other_code(out, photos):
    assert said(out, photos, Net(scale=2.0)) == "model (its layers or code)"
    assert said(out, photos, Halved()) == "model (its layers or code)"
    assert said(out, photos, Net(width=5)) == "model (its layers or code), weights"


def test_weights_in_a_closure_are_weights(tmp_path, photos):
    def around(net):
        return lambda images: net(images)

    out = tmp_path / "y.npy"
    catalog = scan_folder(photos)
    assert embed(around(Net()), catalog, out, **OPTIONS).computed == 5
    assert embed(around(Net()), catalog, out, **OPTIONS).computed == 0
    assert said(out, photos, around(one_weight(Net()))) == "weights"


def test_case_a_cache_is_refused_after_the_transform_changed(out, photos):
    other = A.Compose([A.Resize(8, 9), A.Normalize()])
    assert said(out, photos, transform=other) == "transform"
    assert said(out, photos, transform="resize", size=8) == "transform"
    assert said(out, photos, transform=None) == "transform"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "dtype ('float32' there, 'float16' here)"),
        ({"precision": "bf16"}, "precision ('float32' there, 'bf16' here)"),
        ({"normalize": True}, "normalize (False there, True here)"),
        ({"views": "flip"}, "views"),
        ({"key": "v2"}, "key ('' there, 'v2' here)"),
        (
            {"dtype": "float16", "key": "v2"},
            "dtype ('float32' there, 'float16' here), key ('' there, 'v2' here)",
        ),
    ],
)
def test_options_that_the_embeddings_depend_on(out, photos, options, words):
    assert said(out, photos, **options) == words


def test_another_version_of_the_library(out, photos, monkeypatch):
    monkeypatch.setattr("tercet.offline.embedding_cache.version", lambda name: "9.9.9")
    assert said(out, photos) == "version of tercet ('0.1.0' there, '9.9.9' here)"


def test_case_a_cache_is_refused_after_an_image_changed(out, photos):
    file = photos / "a" / "2.png"
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert said(out, photos) == "images (size or time of change)"
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert embed(Net(), scan_folder(photos), out, **OPTIONS).computed == 0
    file.write_bytes(file.read_bytes() + b"0")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert said(out, photos) == "images (size or time of change)"


def test_case_a_cache_is_not_checked_by_its_row_count_alone(out, photos):
    picture(photos / "b" / "9.png", 9)
    assert said(out, photos) == "paths of the images, images (size or time of change)"
    (photos / "b" / "9.png").unlink()
    (photos / "a" / "4.png").rename(photos / "a" / "7.png")
    assert said(out, photos) == "paths of the images"


def test_by_content_a_copy_is_the_same_and_a_bit_is_not(photos, tmp_path):
    out = tmp_path / "h.npy"
    assert embed(Net(), scan_folder(photos), out, hash=True, **OPTIONS).computed == 5
    for file in photos.rglob("*.png"):
        os.utime(file, (1, 1))
    assert embed(Net(), scan_folder(photos), out, hash=True, **OPTIONS).computed == 0
    assert said(out, photos) == "images (size or time of change)"
    file = photos / "a" / "2.png"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (1, 1))
    assert said(out, photos, hash=True) == "images (content)"


def test_without_a_digest_of_contents_none_can_be_compared(out, photos):
    assert said(out, photos, hash=True) == "images (content), of which no digest was kept"


def test_shards_by_time_and_by_content(photos, tmp_path):
    write_shards(tmp_path / "shards", scan_folder(photos))
    (tar,) = (tmp_path / "shards").glob("*.tar")
    for name, options in (("stat", {}), ("content", {"hash": True})):
        out, same = tmp_path / f"{name}.npy", ShardIndex(tmp_path / "shards")
        options = {**OPTIONS, **options}
        assert embed(Net(), same, out, **options).computed == 5
        assert embed(Net(), same, out, **options).computed == 0
    os.utime(tar, (1, 1))
    index = ShardIndex(tmp_path / "shards")
    assert embed(Net(), index, tmp_path / "content.npy", hash=True, **OPTIONS).computed == 0
    assert "what differs: images (size" in refusal_of(embed, Net(), index, tmp_path / "stat.npy", **OPTIONS)


def test_tars_of_another_program(tmp_path):
    parts = [
        (f"{n}.{s}", c) for n in range(3) for s, c in (("pgm", b"P5 2 1 255 " + bytes([n, 9])), ("cls", b"1"))
    ]
    tar = write_tar(tmp_path / "a.tar", *parts)
    found = embed(Net(), ShardIndex(tar), tmp_path / "x.npy", **OPTIONS)
    assert found.array.shape == (3, 4)
    assert len({row.tobytes() for row in found.array}) == 3


def test_other_labels_replace_the_catalog_alone(out, photos, monkeypatch):
    before = out.read_bytes()
    monkeypatch.setattr("cv2.imdecode", None)
    catalog = scan_folder(photos)
    other = replace(catalog, labels=1 - catalog.labels, groups={"day": np.arange(5)})
    found = embed(Net(), other, out, **OPTIONS)
    assert (found.computed, found.labels.tolist()) == (0, other.labels.tolist())
    again = read_embeddings(out)
    assert again.catalog == other
    assert again.catalog.groups["day"].tolist() == list(range(5))
    assert out.read_bytes() == before


def test_moved_images_are_found_where_they_are(out, photos, tmp_path):
    photos.rename(tmp_path / "moved")
    found = embed(Net(), scan_folder(tmp_path / "moved"), out, **OPTIONS)
    assert found.computed == 0
    assert read_embeddings(out).catalog.file(0).is_file()


def test_what_cannot_be_told_needs_a_key(photos, tmp_path):
    class Service:
        def __init__(self):
            self.socket = open(os.devnull)  # noqa: SIM115

        def __call__(self, images):
            return images.mean((2, 3))

    service, out = Service(), tmp_path / "s.npy"
    found = refusal_of(embed, service, scan_folder(photos), out, **OPTIONS)
    assert "expected one whose changes can be told; it holds a TextIOWrapper, of which nothing tells" in found
    assert found.endswith('pass key="v1" (--key v1), and another one whenever it changes')
    assert found.startswith("embed(model=")
    assert embed(service, scan_folder(photos), out, key="v1", **OPTIONS).computed == 5
    assert embed(service, scan_folder(photos), out, key="v1", **OPTIONS).computed == 0
    assert said(out, photos, service, key="v2") == "key ('v1' there, 'v2' here)"
    service.socket.close()


def test_every_field_of_a_key_is_compared_and_named(out):
    key = read_embeddings(out).facts["key"]
    assert set(key) == set(FIELDS) - {"content"}
    for name in key:
        assert differing({**key, name: "other"}, key).startswith(FIELDS[name])
        assert differing({one: key[one] for one in key if one != name}, key).startswith(FIELDS[name])
    assert differing(key, key) == ""


def test_images_that_are_upside_down_are_another_content(tmp_path):
    """The check of the checks: embeddings tell the images apart at all."""
    picture(tmp_path / "p" / "a" / "0.png", 0)
    first = embed(Net(), scan_folder(tmp_path / "p"), tmp_path / "1.npy", transform=None)
    image = cv2.imread(str(tmp_path / "p" / "a" / "0.png"))
    cv2.imwrite(str(tmp_path / "p" / "a" / "0.png"), 255 - image)
    second = embed(Net(), scan_folder(tmp_path / "p"), tmp_path / "2.npy", transform=None)
    assert not np.allclose(first.array, second.array)
