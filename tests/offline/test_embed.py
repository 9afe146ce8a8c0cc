"""`embed`: the array is what the model gives for each image; made once, resumed, or refused with a reason."""

from __future__ import annotations

import os

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch import nn

from tercet import Catalog, PKStream, embed, read_embeddings, scan_folder, write_shards
from tercet.data.io.images import read_image
from tercet.offline.image_batches import Resize
from tests.helpers import contents, names, refusal_of, unchecked

torch.set_num_threads(1)
N = 23
BAD = [4, 21]


def network(seed=0, d=6):
    """A small network with a layer that differs between its modes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ReLU(),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        ]
        return nn.Sequential(*layers, nn.Linear(16, d))


def pictures(top, bad=()):
    """The catalog of N digits of scikit-learn as images, of which some are cut short."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(N):
        file = top / str(digits.target[row]) / f"{row:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), (digits.images[row] * 15).astype(np.uint8))
    catalog = scan_folder(top)
    for row in bad:
        catalog.file(row).write_bytes(catalog.file(row).read_bytes()[:40])
    return catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "photos.npy"


def expected(model, catalog, transform):
    """The embedding of each image, one at a time."""
    model = model.eval()
    with torch.no_grad():
        found = [model(transform(read_image(catalog.file(row)))[None])[0] for row in range(len(catalog))]
    return torch.stack(found).numpy()


def test_the_array_is_what_the_model_gives_for_each_image(catalog, out):
    model = network()
    found = embed(model, catalog, out, size=8, batch_size=5, part_size=7)
    assert isinstance(found.array, np.memmap)
    assert (found.array.dtype, found.array.shape, len(found), found.computed) == ("float32", (N, 6), N, N)
    np.testing.assert_allclose(found.array, expected(network(), catalog, Resize(8)), rtol=1e-5, atol=1e-6)
    assert found.labels.tolist() == catalog.labels.tolist()
    assert found.catalog is catalog
    assert found.unreadable.tolist() == []
    assert names(out.parent) == ["photos.catalog.parquet", "photos.npy", "photos.npy.json"]
    np.testing.assert_array_equal(np.load(out), found.array)  # any program reads it


def test_opened_again_it_is_the_same(catalog, out):
    found = embed(network(), catalog, out, size=8)
    again = read_embeddings(out)
    assert again.catalog == catalog
    assert again.catalog.classes == catalog.classes
    assert os.path.samefile(again.catalog.file(3), catalog.file(3))
    assert again.array.tobytes() == found.array.tobytes()
    assert again.facts == found.facts
    assert again.facts["counts"] == {"images": N, "unreadable": 0}
    assert again.facts["made"]["model"] == "Sequential"
    assert again.facts["made"]["transform"] == "Resize(size=8, crop=False)"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_parts_and_shards_change_no_bit(catalog, out, workers, tmp_path):
    first = embed(network(), catalog, out, size=8, batch_size=4)
    options = {"size": 8, "batch_size": 4, "workers": workers}
    again = embed(network(), catalog, tmp_path / "again.npy", part_size=1, **options)
    assert again.array.tobytes() == first.array.tobytes()
    index = write_shards(tmp_path / "shards", catalog, images_per_shard=6)
    shards = embed(network(), index, tmp_path / "shards.npy", **options)
    assert shards.array.tobytes() == first.array.tobytes()
    assert shards.labels.tolist() == catalog.labels.tolist()
    assert read_embeddings(tmp_path / "shards.npy").catalog == index.catalog


def test_an_unchanged_one_is_returned_without_an_image_being_decoded(catalog, out, monkeypatch):
    first = embed(network(), catalog, out, size=8)
    before = contents(out.parent)
    monkeypatch.setattr("cv2.imdecode", None)  # whoever decodes fails
    again = embed(network(), catalog, out, size=8, batch_size=3, workers=2, part_size=1)
    assert again.computed == 0
    assert again.array.tobytes() == first.array.tobytes()
    assert contents(out.parent) == before


def test_each_image_is_decoded_once_and_the_views_are_averaged(catalog, out, monkeypatch):
    decoded = []
    decode = cv2.imdecode
    monkeypatch.setattr("cv2.imdecode", lambda *args: decoded.append(1) or decode(*args))
    found = embed(network(), catalog, out, size=8, views="flip")
    assert len(decoded) == N
    plain = expected(network(), catalog, Resize(8))
    mirrored = expected(network(), catalog, lambda image: Resize(8)(image).flip(-1))
    assert not np.allclose(plain, mirrored, atol=1e-3)
    np.testing.assert_allclose(found.array, (plain + mirrored) / 2, rtol=1e-4, atol=1e-6)


def test_views_of_ones_own_and_normalised_after_the_mean(catalog, out):
    views = [lambda images: images, lambda images: images * 2, lambda images: -images]
    found = embed(network(), catalog, out, size=8, views=views, normalize=True)
    each = [expected(network(), catalog, lambda image, s=s: Resize(8)(image) * s) for s in (1, 2, -1)]
    mean = np.mean(each, axis=0)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found.array, wanted, rtol=1e-4, atol=1e-6)


def test_a_row_of_zeros_stays_zero_where_lengths_are_divided_by(catalog, out):
    found = embed(lambda images: images.new_zeros(len(images), 3), catalog, out, size=8, normalize=True)
    assert not found.array.any()


def as_tensor(image):
    return torch.from_numpy(image.transpose(2, 0, 1).copy()).float()


@pytest.mark.parametrize(
    ("transform", "same"),
    [
        (None, lambda image: as_tensor(image) / 255),
        (as_tensor, as_tensor),
        (A.Compose([A.Resize(6, 6), A.ToFloat(255)]), None),
        ("crop", Resize(8, crop=True)),
    ],
)
def test_transforms(catalog, out, transform, same):
    found = embed(network(), catalog, out, transform=transform, size=8 if transform == "crop" else None)
    if same is None:
        pipeline = transform

        def same(image):
            return as_tensor(pipeline(image=image)["image"])

    np.testing.assert_allclose(found.array, expected(network(), catalog, same), rtol=1e-4, atol=1e-5)


def test_a_random_transform_draws_the_same_in_every_run(catalog, out, tmp_path):
    transform = A.Compose([A.RandomCrop(6, 6), A.HorizontalFlip(p=0.5)], seed=None)
    first = embed(network(), catalog, out, transform=transform, batch_size=4)
    again = embed(network(), catalog, tmp_path / "b.npy", transform=transform, batch_size=4, workers=2)
    assert again.array.tobytes() == first.array.tobytes()


def test_resized_and_cropped_images_have_the_size():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 255
    whole, middle = Resize(4)(image), Resize(4, crop=True)(image)
    assert whole.shape == middle.shape == (3, 4, 4)
    black, white = (-np.array([0.485, 0.456, 0.406]) + (0, 1)[k] for k in (0, 1))
    std = np.array([0.229, 0.224, 0.225])
    for found in (whole, middle):
        np.testing.assert_allclose(found[:, 0, 0], black / std, rtol=1e-5)
        np.testing.assert_allclose(found[:, 3, 3], white / std, rtol=1e-5)
    assert Resize(40)(image).shape == (3, 40, 40)
    assert Resize(40, crop=True)(image[:, :3]).shape == (3, 40, 40)


def test_modes_gradients_and_generators_are_as_before(catalog, out):
    model = network()
    model[2].eval()
    state = torch.get_rng_state()
    embed(model, catalog, out, size=8, workers=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, False, True, True, True]
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "lower"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision_runs_under_autocast(catalog, out, precision, lower):
    seen = []

    def model(images):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return nn.functional.linear(images.flatten(1), torch.ones(4, 192))

    embed(model, catalog, out, size=8, precision=precision, key="1")
    assert set(seen) == {lower}
    embed(model, catalog, out, size=8, precision="float32", key="1", overwrite=True)
    assert seen[-1] is None


def test_half_the_bytes(catalog, out):
    full = embed(network(), catalog, out, size=8)
    half = embed(network(), catalog, out.with_name("half.npy"), size=8, dtype="float16")
    assert half.array.dtype == np.float16
    np.testing.assert_array_equal(half.array, full.array.astype(np.float16))


def test_compiled_on_request(catalog, out, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda model: asked.append(model) or (lambda images: model(images) + 1)
    )
    plain, model = embed(network(), catalog, out, size=8), network()
    found = embed(model, catalog, out.with_name("b.npy"), size=8, compile=True)
    assert asked == [model]
    np.testing.assert_allclose(found.array, plain.array + 1, rtol=1e-5, atol=1e-6)


# Images that do not decode


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shards", [False, True])
def test_what_does_not_decode_is_a_row_of_nan_that_the_model_never_sees(tmp_path, out, workers, shards):
    catalog = pictures(tmp_path / "photos", BAD)
    data = write_shards(tmp_path / "shards", catalog, images_per_shard=6) if shards else catalog
    seen = []

    def model(images):
        seen.append(len(images))
        return images.mean((2, 3))

    found = embed(model, data, out, size=8, batch_size=4, workers=workers, key="1")
    assert sum(seen) == N - len(BAD)
    assert found.unreadable.tolist() == BAD
    assert np.flatnonzero(np.isnan(found.array).any(1)).tolist() == BAD
    assert np.isnan(found.array[BAD]).all()
    listed = found.facts["unreadable"]
    assert [(row, path) for row, path, _ in listed] == [(row, catalog.paths[row]) for row in BAD]
    assert all("does not decode" in reason for *_, reason in listed)
    assert found.facts["counts"]["unreadable"] == 2
    assert repr(found) == "Embeddings(23 × 3, float32, 2 unreadable)"
    whole = pictures(tmp_path / "whole")
    rest = [row for row in range(N) if row not in BAD]
    wanted = embed(model, whole, tmp_path / "whole.npy", size=8, batch_size=4, key="1").array[rest]
    np.testing.assert_allclose(found.array[rest], wanted, rtol=1e-5, atol=1e-6)


def test_a_missing_file_is_listed_and_parts_without_an_image_are_nan(tmp_path, out):
    catalog = pictures(tmp_path / "photos")
    for row in range(9):
        catalog.file(row).unlink()
    found = embed(network(), catalog, out, size=8, batch_size=2, part_size=2)
    assert found.unreadable.tolist() == list(range(9))
    assert found.facts["unreadable"][0][2] == "the file cannot be read: No such file or directory"
    assert np.isfinite(found.array[9:]).all()


def test_no_image_that_decodes(tmp_path, out):
    catalog = pictures(tmp_path / "photos", range(N))
    said = refusal_of(embed, network(), catalog, out)
    assert (
        "embed(data=Catalog(23 images, 10 classes)): expected at least one image that decodes; of the "
        in said
    )
    assert names(tmp_path) == ["photos"]


# Models that are refused


def shaped(*shape, **options):
    return lambda images: torch.ones(len(images), *shape, **options)


def growing(images, calls=[]):  # noqa: B006
    calls.append(1)
    return torch.ones(len(images), 3 if len(calls) < 2 else 4)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (shaped(), "expected a model that gives a tensor of floats [8, d] for 8 images"),
        (shaped(3, 2), "[8, d] for 8 images; flatten what it gives, or take the mean over the other axes"),
        (shaped(0), "model='it gives float32 [8, 0]'"),
        (lambda images: torch.ones(2, 3), "model='it gives float32 [2, 3]'"),
        (shaped(3, dtype=torch.int64), "model='it gives int64 [8, 3]'"),
        (lambda images: (images, images), "model='it gives a tuple'"),
        (lambda images: {"x": images}, "wrap it in a function that takes the embeddings out of it"),
        (growing, "model='it gives [8, 4]'): expected 3 numbers an image, as of earlier ones"),
        (
            lambda images: images.mean((2, 3)) * float("nan"),
            "expected finite numbers; NaN is among those for ",
        ),
        (lambda images: images.mean((2, 3)) / 0, "expected finite numbers; infinity is among those for "),
    ],
)
def test_a_model_that_gives_something_else_is_refused(catalog, out, model, said):
    found = refusal_of(embed, model, catalog, out, transform=as_tensor, batch_size=8, key="1")
    assert found.startswith("embed(model=")
    assert said in found.replace('"', "'")
    assert not out.exists()


def test_nan_names_the_image_and_half_precision_the_way_out(catalog, out):
    def model(images):
        y = images.mean((2, 3))
        y[3] = 70_000.0
        return y

    said = refusal_of(embed, model, catalog, out, size=8, dtype="float16", key="1")
    assert (
        "embed(dtype='float16'): expected numbers up to 65504, the largest of float16; 70000 is one for "
        in said
    )
    assert catalog.paths[3] in said
    assert said.endswith('; pass dtype="float32"')


def test_an_error_of_the_model_passes_with_a_note(catalog, out):
    with pytest.raises(RuntimeError, match="shape") as raised:
        embed(nn.Linear(5, 2), catalog, out, size=8, batch_size=8)
    assert raised.value.__notes__ == ["embed: in the model, for images [8, 3, 8, 8] of rows 0 to 7"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "photos.csv"}, "embed(out='photos.csv'): expected a name ending in .npy"),
        ({"out": "no/photos.npy"}, "expected an existing folder to write in; make no first"),
        ({"model": 3}, "embed(model=3): expected a torch.nn.Module or another callable"),
        ({"data": ["a.jpg"]}, "expected a Catalog, such as tercet.scan_folder gives, or a ShardIndex"),
        ({"data": Catalog([], [], [])}, "expected at least one image"),
        (
            {"data": Catalog(["a.jpg"], [0], [""])},
            "embed(data.classes=''): expected names that are not empty",
        ),
        ({"transform": "resise"}, "did you mean 'resize'?"),
        (
            {"transform": 3},
            'expected "resize", "crop", an albumentations transform or another callable, or None',
        ),
        ({"transform": None, "size": 8}, 'a size with transform="resize" or "crop" alone'),
        ({"size": 0}, "embed(size=0): expected a whole number from 1 to 16384"),
        ({"batch_size": 0}, "embed(batch_size=0)"),
        ({"workers": -1}, "embed(workers=-1)"),
        ({"part_size": 0}, "embed(part_size=0)"),
        ({"dtype": "bf16"}, "embed(dtype='bf16'): expected one of 'float32', 'float16'"),
        ({"precision": "float16"}, "embed(precision='float16'): expected one of 'float32', 'bf16', 'fp16'"),
        ({"views": "flop"}, "did you mean 'flip'?"),
        ({"views": []}, 'expected "flip", a list of callables, or None'),
        ({"views": ["flip"]}, 'expected "flip", a list of callables, or None'),
        ({"device": "nosuch"}, "embed(device='nosuch'): expected a device"),
        ({"key": 3}, "embed(key=3): expected a string"),
        ({"key": "\udcff"}, "expected text that UTF-8 can write"),
        *[
            ({name: "no"}, f"embed({name}='no'): expected True or False")
            for name in ("hash", "compile", "overwrite")
        ],
    ],
)
def test_what_is_refused_before_anything_is_done(catalog, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with unchecked():
        assert said in refusal_of(
            embed, **{"model": network(), "data": catalog, "out": "photos.npy", **options}
        )
    assert names(tmp_path) == []


def test_a_stream_is_told_how_its_shards_are_read(catalog, tmp_path, out):
    write_shards(tmp_path / "shards", catalog)
    stream = PKStream(tmp_path / "shards", 2, 2, steps=1)
    assert refusal_of(embed, network(), stream, out).endswith(
        "tercet.ShardIndex opens the shards of a stream"
    )


# Other files, other runs


def test_a_file_that_embed_has_not_written_is_not_replaced(catalog, out):
    np.save(out, np.ones(3))
    said = refusal_of(embed, network(), catalog, out, size=8)
    assert "expected new files, or those of an earlier call; photos.npy is there, and embed has not" in said
    assert np.load(out).tolist() == [1, 1, 1]
    assert embed(network(), catalog, out, size=8, overwrite=True).computed == N
    out.unlink()
    assert "photos.catalog.parquet is there" in refusal_of(embed, network(), catalog, out, size=8)


def test_of_two_runs_at_once_the_second_is_refused(catalog, out):
    def model(images):
        said = refusal_of(embed, network(), catalog, out, size=8, overwrite=True)
        assert said.endswith("expected a file that no other run is writing; wait for it to end")
        return images.mean((2, 3))

    assert embed(model, catalog, out, size=8, key="1").computed == N


def test_nothing_is_written_through_a_link_at_the_name_of_the_parts(catalog, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / ".photos.npy.parts").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="expected a folder that tercet made there, or none"):
        embed(network(), catalog, tmp_path / "photos.npy", size=8)
    assert names(tmp_path / "outside") == []


# Resuming


OPTIONS = {"size": 8, "batch_size": 2, "part_size": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A catalog with two bad images, and the bytes of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs")
    catalog = pictures(folder / "photos", BAD)
    (folder / "whole").mkdir()
    embed(network(), catalog, folder / "whole" / "photos.npy", **OPTIONS)
    return catalog, contents(folder / "whole")


@pytest.fixture
def again(undisturbed, tmp_path):
    """The array of another run, in a folder from which the way to the images is the same."""
    folder = undisturbed[0].root.parent / tmp_path.name
    folder.mkdir()
    return folder / "photos.npy"


def interrupted(monkeypatch, image, *args, **options):
    """A run that fails when it decodes its image of this number."""
    count, decode = [image], cv2.imdecode

    def counted(*args):
        count[0] -= 1
        if not count[0]:
            raise RuntimeError("interrupted")
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr("cv2.imdecode", counted)
        with pytest.raises(RuntimeError, match="interrupted"):
            embed(*args, **options)


@pytest.mark.parametrize("image", [1, 2, 5, 9, 10, 16, 17, 23])
def test_interrupted_at_any_image_it_goes_on_bit_equal_from_its_last_part(
    undisturbed, again, monkeypatch, image
):
    catalog, wanted = undisturbed
    interrupted(monkeypatch, image, network(), catalog, again, **OPTIONS)
    assert not again.exists()
    found = embed(network(), catalog, again, **OPTIONS)
    assert found.computed == N - (image - 1) // 4 * 4
    assert contents(again.parent) == wanted


def test_other_part_sizes_and_workers_go_on_with_the_same_parts(undisturbed, again, monkeypatch):
    catalog, wanted = undisturbed
    interrupted(monkeypatch, 10, network(), catalog, again, **OPTIONS)
    interrupted(monkeypatch, 7, network(), catalog, again, **{**OPTIONS, "part_size": 1})
    assert embed(network(), catalog, again, **{**OPTIONS, "part_size": 100, "workers": 2}).computed == N - 12
    assert contents(again.parent) == wanted


def test_a_part_that_is_damaged_is_made_again(undisturbed, again, monkeypatch):
    catalog, wanted = undisturbed
    for damage in (lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[3:], lambda b: b""):
        interrupted(monkeypatch, 14, network(), catalog, again, **OPTIONS)
        parts = sorted((again.parent / ".photos.npy.parts").glob("*.part"))
        assert len(parts) == 3
        parts[1].write_bytes(damage(parts[1].read_bytes()))
        assert embed(network(), catalog, again, **OPTIONS).computed == N - 8
        assert contents(again.parent) == wanted
        for file in again.parent.iterdir():
            file.unlink()


def test_an_unfinished_run_of_other_things_is_refused_by_name(undisturbed, again, monkeypatch):
    catalog, wanted = undisturbed
    interrupted(monkeypatch, 10, network(), catalog, again, **OPTIONS)
    said = refusal_of(embed, network(1), catalog, again, **OPTIONS)
    assert "expected an unfinished run of the same model, images and options; what differs: weights;" in said
    said = refusal_of(embed, network(), catalog, again, **{**OPTIONS, "batch_size": 4})
    assert (
        "embed(batch_size=4): expected that of an unfinished run, 2; with 2 the unfinished run goes on"
        in said
    )
    assert embed(network(), catalog, again, **{**OPTIONS, "overwrite": True}).computed == N
    assert contents(again.parent) == wanted


def test_without_a_whole_part_another_run_begins_without_a_word(undisturbed, again, monkeypatch):
    catalog, wanted = undisturbed
    interrupted(monkeypatch, 2, network(1), catalog, again, **OPTIONS)
    assert embed(network(), catalog, again, **OPTIONS).computed == N
    assert contents(again.parent) == wanted


def test_what_is_made_anew_goes_on_too_and_the_old_stays_until_then(undisturbed, again, monkeypatch):
    catalog, wanted = undisturbed
    anew = {**OPTIONS, "overwrite": True}
    old = embed(network(1), catalog, again, **OPTIONS).array.tobytes()
    interrupted(monkeypatch, 10, network(), catalog, again, **anew)
    assert read_embeddings(again).array.tobytes() == old
    assert embed(network(), catalog, again, **anew).computed == N - 8
    assert contents(again.parent) == wanted
    assert embed(network(), catalog, again, **anew).computed == N  # and when all is done, anew again


def test_images_that_change_meanwhile_are_told_and_a_later_call_is_refused(tmp_path, out):
    catalog = pictures(tmp_path / "photos")

    def model(images):
        os.utime(catalog.file(5), (1, 1))
        return images.mean((2, 3))

    with pytest.warns(
        UserWarning, match="images were changed meanwhile, so a later call is refused; overwrite=True"
    ):
        found = embed(model, catalog, out, size=8, key="1")
    assert found.computed == N
    assert "what differs: images (size or time of change)" in refusal_of(
        embed, model, catalog, out, size=8, key="1"
    )


# Models with a state


class Keeping(nn.Module):
    """Keeps what it computed, as windowed transformers keep their masks."""

    def __init__(self):
        super().__init__()
        self.net, self.mask = network(), None

    def forward(self, images):
        self.mask = torch.ones(images.shape[2:])
        return self.net(images)


def test_a_model_that_keeps_what_it_computed_is_the_same_before_and_after(catalog, out, monkeypatch):
    model = Keeping()
    first = embed(model, catalog, out, size=8)
    assert embed(model, catalog, out, size=8).computed == 0
    assert embed(Keeping(), catalog, out, size=8).computed == 0
    assert read_embeddings(out).array.tobytes() == first.array.tobytes()
    model.mask = None
    with torch.no_grad():
        model.net[0].weight[0, 0, 0, 0] += 1
    assert "what differs: weights" in refusal_of(embed, model, catalog, out, size=8)


def test_such_a_model_goes_on_after_an_error_too(undisturbed, again, monkeypatch):
    catalog, _ = undisturbed
    model = Keeping()
    interrupted(monkeypatch, 10, model, catalog, again, **OPTIONS)
    assert model.mask is not None
    assert embed(model, catalog, again, **OPTIONS).computed == N - 8
    assert embed(Keeping(), catalog, again, **OPTIONS).computed == 0


class Encoder(nn.Module):
    """A module of which a method embeds."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def encode(self, images):
        assert not self.net[2].training
        return self.net(images)


@pytest.mark.parametrize("around", [lambda m: m.encode, lambda m: lambda x: m.encode(x)])
def test_modules_within_a_function_run_in_eval_mode_too(catalog, out, around):
    model = Encoder()
    found = embed(around(model), catalog, out, size=8)
    np.testing.assert_allclose(found.array, expected(network(), catalog, Resize(8)), rtol=1e-5, atol=1e-6)
    assert all(module.training for module in model.modules())


def test_a_folder_that_may_not_be_written_gives_what_is_there(catalog, out, monkeypatch):
    first = embed(network(), catalog, out, size=8).array.tobytes()
    before = contents(out.parent)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert embed(network(), catalog, out, size=8).array.tobytes() == first
    assert contents(out.parent) == before
    assert "what differs: weights" in refusal_of(embed, network(1), catalog, out, size=8)
    said = refusal_of(embed, network(), catalog, out.with_name("b.npy"), size=8)
    assert said.endswith("expected a folder that may be written")


# Errors of workers


class Odd(Exception):
    """An error that cannot be sent from one process to another."""

    def __init__(self, one, two):
        super().__init__(one + two)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_are_sentences(catalog, out, workers):
    said = refusal_of(embed, network(), catalog, out, transform=lambda image: "text", workers=workers)
    assert (
        said
        == "embed: the transform gives str; expected a tensor, or a numpy array of uint8 or floats, [h, w] "
        "or [h, w, c] with c up to 4"
    )

    def fails(image):
        raise Odd("no ", "luck")

    with pytest.raises(RuntimeError, match=r"^embed: the transform fails on .*0/00.png: Odd: no luck$"):
        embed(network(), catalog, out, transform=fails, workers=workers)
    sizes = [lambda image: image[: 4 + image[0, 2, 0] % 4]]
    said = refusal_of(embed, network(), catalog, out, transform=sizes[0], workers=workers)
    assert said.startswith("embed: images of one batch have different sizes, ")


def test_an_error_that_cannot_be_sent_is_told_by_its_text(catalog, out, monkeypatch):
    def fails(self, row):
        raise Odd("no ", "luck")

    monkeypatch.setattr(Catalog, "file", fails)
    monkeypatch.setattr("tercet.offline.embedding_cache.images_digest", lambda data: "")
    monkeypatch.setattr("tercet.offline.embed.images_digest", lambda data: "")
    with pytest.raises(RuntimeError, match=r"^Odd: no luck$"):
        embed(network(), catalog, out, size=8, workers=1)
