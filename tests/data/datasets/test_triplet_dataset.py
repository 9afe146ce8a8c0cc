"""Datasets: the same images whatever loads them, and triplet batches against one triplet at a time."""

import copy
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset

import tercet.data.datasets.decoding
from tercet.core.indices import Triplets
from tercet.core.randomness import KeyedRow
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import PairDataset, TripletBatch, TripletDataset
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from tests.helpers import noise

torch.set_num_threads(1)
CLASSES, EACH = 4, 5
COUNT = CLASSES * EACH


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    import cv2

    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for code in range(CLASSES):
        (root / f"class {code}").mkdir()
        for number in range(EACH):
            image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
            data = cv2.imencode(".png", image)[1].tobytes()
            (root / f"class {code}" / f"IMG,{number}.v1.PNG").write_bytes(data)
    return scan_folder(root)


def pipeline(seed=None):
    return A.Compose([A.RandomCrop(8, 8), A.HorizontalFlip(), A.RandomBrightnessContrast(p=1)], seed=seed)


def global_noise(image):
    offset = np.random.normal(size=3) + random.random() + torch.rand(1).numpy()  # noqa: NPY002
    return torch.as_tensor(image + offset).permute(2, 0, 1)


TRANSFORMS = {
    "albumentations": pipeline,
    "seeded": lambda: pipeline(seed=0),
    "globals": lambda: global_noise,
    "rng": lambda: noise,
}
EVERY = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())


def epoch_of(loader):
    """{row: image} of one pass."""
    return {int(row): image for images, _, rows in loader for row, image in zip(rows, images, strict=True)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[row], b[row]) for row in a)


# ── ImageDataset ─────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_transform_the_image_is_float_in_zero_one(catalog):
    from PIL import Image

    dataset = ImageDataset(catalog)
    assert len(dataset) == COUNT
    for row in (0, 7, COUNT - 1):
        image, label = dataset[row]
        expected = np.asarray(Image.open(catalog.file(row)).convert("RGB"))
        assert image.dtype == torch.float32
        assert image.shape == (3, 12, 16)
        assert torch.equal(image, torch.tensor(expected.transpose(2, 0, 1) / np.float32(255)))
        assert type(label) is int
        assert label == row // EACH


def test_rows_come_along_when_asked_for(catalog):
    dataset = ImageDataset(catalog, return_rows=True)
    for row in (np.int64(3), torch.tensor(3), KeyedRow(3), 3, 3 - COUNT):
        _, label, number = dataset[row]
        assert (label, number, type(number)) == (0, 3, int)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.full((2, 3), 51, np.uint8), torch.full((1, 2, 3), 0.2)),
        (np.full((2, 3, 1), 255, np.uint8), torch.ones(1, 2, 3)),
        (np.full((2, 3, 4), 300.0), torch.full((4, 2, 3), 300.0)),
        (np.full((2, 3), 2, np.float16), torch.full((1, 2, 3), 2.0)),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
    ],
)
def test_what_the_transform_gives_becomes_a_tensor(catalog, result, expected):
    image, _ = ImageDataset(catalog, lambda image: result)[0]
    assert image.dtype == expected.dtype
    assert torch.equal(image, expected)


def test_channels_go_first():
    height_width_channel = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = tercet.data.datasets.decoding.image_tensor(height_width_channel)
    for y in range(2):
        for x in range(4):
            for c in range(3):
                assert image[c, y, x] == np.float32(height_width_channel[y, x, c]) / np.float32(255)


def test_totensorv2_is_taken_as_it_is(catalog):
    image, _ = ImageDataset(catalog, A.Compose([A.Resize(4, 6), A.ToTensorV2()]))[0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 4, 6))


def test_an_array_that_cannot_be_written_to_is_fine(catalog):
    def frozen(image):
        image.setflags(write=False)
        return image

    assert ImageDataset(catalog, frozen)[0][0].shape == (3, 12, 16)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (None, "NoneType"),
        ({"image": 0}, "dict"),
        (np.zeros((3, 12, 16), np.uint8), r"an array of uint8 \[3, 12, 16\]"),
        (np.zeros((2, 2, 2, 2)), r"an array of float64 \[2, 2, 2, 2\]"),
        (np.zeros((2, 2), np.int64), r"an array of int64 \[2, 2, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(catalog, result, got):
    sentence = (
        rf"^ImageDataset: the transform gives {got}; expected a tensor, or a numpy array of uint8 or floats, "
    )
    with pytest.raises(ValueError, match=sentence):
        ImageDataset(catalog, lambda image: result)[0]


def test_a_failing_transform_names_the_file(catalog):
    def fails(image):
        raise IndexError("list index out of range")

    with pytest.raises(RuntimeError) as caught:
        ImageDataset(catalog, fails)[6]
    sentence = f"ImageDataset: the transform fails on {catalog.file(6)}: IndexError: list index out of range"
    assert str(caught.value) == sentence


@pytest.mark.parametrize("row", [COUNT, -COUNT - 1, 10**12])
def test_a_row_out_of_range(catalog, row):
    with pytest.raises(IndexError, match=rf"^ImageDataset: expected a row from 0 to 19, got {row}$"):
        ImageDataset(catalog)[row]


def test_a_row_that_is_none(catalog):
    with pytest.raises(TypeError, match=r"^ImageDataset: expected a row number, got 'a.png'$"):
        ImageDataset(catalog)["a.png"]
    with pytest.raises(TypeError, match=r"^ImageDataset: expected a row number, got 1.0$"):
        ImageDataset(catalog)[1.0]


def test_a_for_loop_ends(catalog):
    assert [label for _, label in ImageDataset(catalog)] == catalog.labels.tolist()


def test_arguments_are_refused_with_a_sentence(catalog):
    with pytest.raises(
        ValueError, match=r"^ImageDataset\(catalog=\['a.png'\]\): expected a Catalog, such as tercet"
    ):
        ImageDataset(["a.png"])
    with pytest.raises(
        ValueError, match=r"^ImageDataset\(transform=224\): expected an albumentations transform or"
    ):
        ImageDataset(catalog, 224)
    with pytest.raises(ValueError, match=r"^ImageDataset\(views=0\): expected a whole number of at least 1"):
        ImageDataset(catalog, views=0)
    with pytest.raises(ValueError, match=r"^ImageDataset\(seed=-1\): expected a whole number of at least 0"):
        ImageDataset(catalog, seed=-1)
    with pytest.raises(ValueError, match=r"^ImageDataset.set_epoch\(epoch=-1\): expected a whole number"):
        ImageDataset(catalog).set_epoch(-1)


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff", None])
def test_an_unreadable_file_is_named(catalog, tmp_path, damage):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b c.jpg").write_bytes(catalog.file(0).read_bytes())
    dataset = ImageDataset(scan_folder(tmp_path))
    path = tmp_path / "a" / "b c.jpg"
    path.unlink() if damage is None else path.write_bytes(damage)
    sentence = r"^read_image: .*b c\.jpg: .*; (restore the file, or leave it out|is the root of the catalog)"
    with pytest.raises(ValueError, match=sentence):
        dataset[0]


def test_an_unreadable_file_is_named_by_a_worker_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b c.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b c\.jpg: the file is empty; restore the file"):
        list(DataLoader(ImageDataset(scan_folder(tmp_path)), num_workers=1))


# ── views ────────────────────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_views_are_stacked_differ_and_decode_once(catalog, make, decoded):
    image, label = ImageDataset(catalog, make(), views=3)[6]
    assert decoded == [catalog.file(6)]
    assert image.shape[0] == 3
    assert label == 1
    assert not any(torch.equal(image[a], image[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    assert torch.equal(image[0], ImageDataset(catalog, make())[6][0])


def test_a_row_drawn_again_continues_the_views(catalog):
    one, two = ImageDataset(catalog, pipeline()), ImageDataset(catalog, pipeline(), views=2)
    drawn = [one[KeyedRow(4, epoch=1, view=view)][0] for view in range(4)]
    for view in range(2):
        expected = torch.stack(drawn[2 * view : 2 * view + 2])
        assert torch.equal(two[KeyedRow(4, epoch=1, view=view)][0], expected)


def test_a_view_does_not_see_what_another_wrote(catalog):
    def blacken(image):
        before = image.copy()
        image[:] = 0
        return before

    image, _ = ImageDataset(catalog, blacken, views=2)[0]
    assert torch.equal(image[0], image[1])
    assert ImageDataset(catalog, views=2)[0][0].shape == (2, 3, 12, 16)


def test_views_of_different_sizes_are_refused(catalog):
    def shrink(image, rng):
        return image[: rng.integers(1, 12)]

    with pytest.raises(
        ValueError, match=r"ImageDataset: images of one batch have different sizes, \[3, \d+, 16\] of"
    ):
        ImageDataset(catalog, shrink, views=8)[0]


# ── augmentation and workers ─────────────────────────────────────────────────────────────────────────────


@EVERY
@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (2, False), (2, True)])
def test_workers_change_nothing(catalog, make, workers, persistent):
    def epochs(**options):
        dataset = ImageDataset(catalog, make(), seed=3, return_rows=True)
        loader = DataLoader(dataset, batch_size=3, **options)
        out = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            out.append(epoch_of(loader))
        return out

    alone = epochs(num_workers=0)
    together = epochs(num_workers=workers, persistent_workers=persistent)
    assert all(map(equal, alone, together))
    assert not any(torch.equal(alone[0][row], alone[1][row]) for row in range(COUNT))


class SameImage:
    """A catalog of one image many times, so that only the draws differ."""

    def __init__(self, catalog, count):
        self.labels = np.zeros(count, dtype=np.int64)
        self.path = catalog.file(0)

    def __len__(self):
        return len(self.labels)

    def file(self, row):
        return self.path


@EVERY
def test_case_all_workers_draw_the_same_augmentations(catalog, make):
    dataset = ImageDataset(SameImage(catalog, 12), make(), return_rows=True)
    images = epoch_of(DataLoader(dataset, batch_size=2, num_workers=2))
    assert not any(torch.equal(images[a], images[b]) for a in range(12) for b in range(a))


@EVERY
def test_case_every_epoch_repeats_them_with_non_persistent_workers(catalog, make):
    dataset = ImageDataset(catalog, make(), return_rows=True)
    sampler = ShuffledSampler(COUNT)  # its rows know their epoch
    loader = DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=2)
    first, second = epoch_of(loader), epoch_of(loader)
    assert first.keys() == second.keys() == set(range(COUNT))
    assert not any(torch.equal(first[row], second[row]) for row in first)


@EVERY
def test_case_resuming_changes_them(catalog, make):
    def loader(sampler):
        return DataLoader(
            ImageDataset(catalog, make(), return_rows=True), batch_sampler=sampler, num_workers=1
        )

    through = PKSampler(catalog.labels, p=2, k=3, seed=1)
    batches = [batch for _ in range(2) for batch in loader(through)]
    steps = len(through)
    resumed = PKSampler(catalog.labels, p=2, k=3, seed=1)
    resumed.set_epoch(1, step=1)
    again = list(loader(resumed))
    assert len(again) == steps - 1
    for (images, _, rows), (images_again, _, rows_again) in zip(batches[steps + 1 :], again, strict=True):
        assert torch.equal(rows, rows_again)
        assert torch.equal(images, images_again)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_no_key_reaches_is_refused_with_the_way_out(catalog, workers):
    hidden = pipeline()
    dataset = ImageDataset(catalog, lambda image: hidden(image=image)["image"])
    with pytest.raises(RuntimeError, match="or pass the albumentations pipeline itself"):
        next(iter(DataLoader(dataset, num_workers=workers)))


def test_an_image_drawn_twice_in_an_epoch_is_augmented_twice(catalog):
    dataset = ImageDataset(catalog, pipeline(), return_rows=True)
    batches = [[KeyedRow(4, 0, 0), KeyedRow(4, 0, 1)], [KeyedRow(4, 1, 0), KeyedRow(4, 0, 0)]]
    (a, b), (c, d) = (images for images, _, _ in DataLoader(dataset, batch_sampler=batches, num_workers=1))
    assert torch.equal(a, d)
    assert not any(torch.equal(x, y) for x, y in [(a, b), (a, c), (b, c)])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, COUNT - 1), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5
    )
)
def test_an_image_is_a_function_of_seed_epoch_row_and_view(catalog, drawn):
    dataset = ImageDataset(catalog, pipeline(), seed=9)
    images = [dataset[KeyedRow(*key)][0] for key in drawn]
    for key, image in reversed(list(zip(drawn, images, strict=True))):
        assert torch.equal(dataset[KeyedRow(*key)][0], image)
        fresh = ImageDataset(catalog, pipeline(), seed=9)
        fresh.set_epoch(key[1])
        assert key[2] or torch.equal(fresh[key[0]][0], image)


def test_spawned_persistent_workers_see_the_epoch(catalog):
    dataset = ImageDataset(catalog, pipeline(), return_rows=True)
    options = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader = DataLoader(dataset, batch_size=10, **options)
    for epoch in (5, 6):
        dataset.set_epoch(epoch)
        alone = {row: dataset[KeyedRow(row, epoch)][0] for row in range(COUNT)}
        assert equal(epoch_of(loader), alone)


@pytest.mark.parametrize("clone", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_a_copy_has_an_epoch_of_its_own_that_its_workers_see(catalog, clone):
    dataset = ImageDataset(catalog, pipeline(), return_rows=True)
    dataset.set_epoch(2)
    other = clone(dataset)
    assert torch.equal(other[3][0], dataset[3][0])
    loader = DataLoader(other, batch_size=10, num_workers=1, persistent_workers=True)
    epoch_of(loader)
    other.set_epoch(3)
    assert equal(epoch_of(loader), {row: other[KeyedRow(row, 3)][0] for row in range(COUNT)})
    assert torch.equal(dataset[3][0], dataset[KeyedRow(3, 2, view=1)][0])  # nobody else has counted


def test_the_global_generators_are_untouched(catalog):
    # In a process without the checks of annotations, which draw from `random` themselves.
    code = f"""
import random, sys, numpy as np, torch
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import TripletDataset
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
def now():
    _, words, *rest = np.random.get_state()
    return random.getstate(), words.tobytes(), rest, torch.get_rng_state().numpy().tobytes()
def draw(image):
    return image * random.random() + np.random.random() + torch.rand(1).numpy()
catalog = scan_folder({str(catalog.root)!r})
before = now()
ImageDataset(catalog, draw, views=2)[3]
TripletDataset(RandomTriplets(catalog.labels), draw, catalog=catalog)[:4]
sys.exit(now() != before)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── TripletDataset ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded, in order."""
    paths = []
    read = tercet.data.datasets.decoding.read_image

    def reading(path, **options):
        paths.append(path)
        return read(path, **options)

    monkeypatch.setattr(tercet.data.datasets.decoding, "read_image", reading)
    return paths


def triplet_images(batch, number):
    """The three images of a triplet, and the catalog rows that the batch says they are."""
    corners = [int(corner[number]) for corner in batch.triplets]
    return batch.images[corners], batch.rows[corners].tolist(), batch.labels[corners].tolist()


@EVERY
@pytest.mark.parametrize("layout", ["unique", "interleaved"])
def test_a_batch_equals_its_triplets_one_at_a_time(catalog, make, layout, decoded):
    triplets = RandomTriplets(catalog.labels, positives=2, negatives=2, seed=4)
    dataset = TripletDataset(triplets, make(), catalog=catalog, seed=6, layout=layout)
    images = ImageDataset(catalog, make(), seed=6)
    numbers = [KeyedRow(number) for number in (5, 0, 40, 5, len(dataset) - 1, -1)]
    batch = dataset[numbers]
    wanted = [[int(corner[0]) for corner in triplets[number]] for number in numbers]
    assert sorted(decoded) == sorted({catalog.file(row) for rows in wanted for row in rows})
    for place, rows in enumerate(wanted):
        pictures, found, labels = triplet_images(batch, place)
        assert found == rows
        assert labels == [row // EACH for row in rows]
        for picture, row in zip(pictures, rows, strict=True):
            assert torch.equal(picture, images[KeyedRow(row)][0])
        alone = triplet_images(dataset[numbers[place]], 0)
        assert torch.equal(alone[0], pictures)
        assert alone[1:] == (found, labels)


def test_the_unique_layout_holds_each_image_once(catalog):
    dataset = TripletDataset(RandomTriplets(catalog.labels, 4, 3), catalog=catalog)
    batch = dataset[:48]
    assert batch.rows.tolist() == sorted(set(batch.rows.tolist()))
    assert len(batch.images) == len(batch.rows) == len(batch.labels) < 3 * 48
    assert batch.triplets.count == 48
    assert batch.triplets.anchor.dtype == batch.labels.dtype == batch.rows.dtype == torch.int64
    assert (batch.labels[batch.triplets.anchor] == batch.labels[batch.triplets.positive]).all()
    assert (batch.labels[batch.triplets.anchor] != batch.labels[batch.triplets.negative]).all()


def test_the_interleaved_layout_is_q_p_n_q_p_n(catalog, decoded):
    triplets = RandomTriplets(catalog.labels, 4, 3)
    batch = TripletDataset(triplets, catalog=catalog, layout="interleaved")[:6]
    assert len(decoded) == len(set(decoded)) < 18
    assert batch.images.shape == (18, 3, 12, 16)
    for found, expected in zip(batch.triplets, Triplets.interleaved(6), strict=True):
        assert found.tolist() == expected.tolist()
    expected = [int(corner[number]) for number in range(6) for corner in triplets[:6]]
    assert batch.rows.tolist() == expected
    assert batch.labels.tolist() == catalog.labels[expected].tolist()
    plain = ImageDataset(catalog)
    assert all(torch.equal(image, plain[row][0]) for image, row in zip(batch.images, expected, strict=True))


@pytest.mark.parametrize("layout", ["unique", "interleaved"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_plain_dataloader_gives_whole_batches(catalog, layout, workers):
    triplets = RandomTriplets(catalog.labels, 2, 2)
    loaded, dataset = (TripletDataset(triplets, pipeline(), catalog=catalog, layout=layout) for _ in range(2))
    loader = DataLoader(loaded, batch_size=16, num_workers=workers)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(dataset) // 16)
    for number, batch in enumerate(batches):
        expected = dataset[16 * number : 16 * number + 16]
        assert isinstance(batch, TripletBatch)
        for found, wanted in zip([*batch.triplets, *batch], [*expected.triplets, *expected], strict=True):
            assert isinstance(found, Triplets) or torch.equal(found, wanted)


def test_a_shuffled_dataloader_covers_every_triplet(catalog):
    triplets = RandomTriplets(catalog.labels, 2, 2)
    dataset = TripletDataset(triplets, catalog=catalog)
    loader = DataLoader(dataset, 7, shuffle=True, generator=torch.Generator().manual_seed(0))
    found = sorted(
        tuple(batch.rows[list(corners)].tolist())
        for batch in loader
        for corners in zip(*map(torch.Tensor.tolist, batch.triplets), strict=True)
    )
    assert found == sorted(zip(*(corner.tolist() for corner in triplets[:]), strict=True))


def test_each_epoch_augments_anew_and_rows_of_a_sampler_carry_it(catalog):
    def dataset():
        return TripletDataset(RandomTriplets(catalog.labels), pipeline(), catalog=catalog)

    keyed = dataset()
    sampler = ShuffledSampler(len(keyed), seed=1)
    previous = None
    for epoch in range(2):
        batch = next(iter(DataLoader(keyed, len(keyed), sampler=sampler, num_workers=epoch)))
        sampler.set_epoch(epoch + 1)
        everything = dataset()[[KeyedRow(number, epoch) for number in range(len(keyed))]]
        assert torch.equal(batch.images, everything.images)
        assert previous is None or not torch.equal(previous, batch.images)
        previous = batch.images


def test_triplets_of_several_epochs_in_one_batch_keep_their_images_apart(catalog):
    dataset = TripletDataset(RandomTriplets(catalog.labels), pipeline(), catalog=catalog)
    batch = dataset[[KeyedRow(0, 0), KeyedRow(0, 1), KeyedRow(0, 1, view=1), KeyedRow(0, 0)]]
    assert len(batch.rows) == 9
    images = ImageDataset(catalog, pipeline())
    for place, occasion in enumerate([(0, 0), (1, 0), (1, 1), (0, 0)]):
        pictures, rows, _ = triplet_images(batch, place)
        for picture, row in zip(pictures, rows, strict=True):
            assert torch.equal(picture, images[KeyedRow(row, *occasion)][0])


@pytest.mark.parametrize(
    "index", [2, np.int64(2), torch.tensor(2), KeyedRow(2), [2], (2,), np.array([2]), slice(2, 3)]
)
def test_every_kind_of_index(catalog, index):
    triplets = RandomTriplets(catalog.labels)
    batch = TripletDataset(triplets, catalog=catalog)[index]
    assert triplet_images(batch, 0)[1] == [int(corner[0]) for corner in triplets[2]]


def test_a_manifest_brings_its_catalog(catalog, tmp_path):
    triplets = RandomTriplets(catalog.labels, seed=2)
    write_manifest(tmp_path / "triplets.parquet", triplets, catalog)
    manifest = read_manifest(tmp_path / "triplets.parquet", root=catalog.root)
    dataset = TripletDataset(manifest)
    expected = TripletDataset(triplets, catalog=catalog)
    assert len(dataset) == len(expected)
    assert torch.equal(dataset[:9].images, expected[:9].images)
    loader = DataLoader(dataset, 9, num_workers=1)
    assert torch.equal(next(iter(loader)).images, expected[:9].images)


def test_several_batches_are_collated_end_to_end(catalog):
    a = TripletDataset(RandomTriplets(catalog.labels, seed=1), catalog=catalog)
    b = TripletDataset(RandomTriplets(catalog.labels, seed=2), catalog=catalog)
    batch = next(iter(DataLoader(ConcatDataset([a, b]), batch_size=len(a) + len(b))))
    assert batch.triplets.count == len(a) + len(b)
    for place in range(batch.triplets.count):
        part = a if place < len(a) else b
        expected = triplet_images(part[place % len(a)], 0)
        found = triplet_images(batch, place)
        assert torch.equal(found[0], expected[0])
        assert found[1:] == expected[1:]
    interleaved = TripletDataset(RandomTriplets(catalog.labels), catalog=catalog, layout="interleaved")
    batch = next(iter(DataLoader(ConcatDataset([interleaved, interleaved]), batch_size=4)))
    assert [corner.tolist() for corner in batch.triplets] == [c.tolist() for c in Triplets.interleaved(4)]


def test_a_subset_decodes_each_image_once_too(catalog, decoded):
    dataset = TripletDataset(RandomTriplets(catalog.labels, 4, 3), catalog=catalog)
    batch = next(iter(DataLoader(Subset(dataset, range(100, 130)), batch_size=30)))
    assert batch.triplets.count == 30
    assert len(decoded) == len(set(decoded)) == len(batch.rows)


def test_a_batch_unpacks_and_moves(catalog):
    batch = TripletDataset(RandomTriplets(catalog.labels), catalog=catalog)[:3]
    images, triplets, labels, rows = batch
    assert images is batch.images
    assert isinstance(triplets, Triplets)
    assert labels.tolist() == (rows // EACH).tolist()
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.images, moved.labels, moved.rows, *moved.triplets)} == {"meta"}
    assert moved.images.shape == images.shape


def test_a_loader_that_pins_memory_asks_the_batch(catalog, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    batch = TripletDataset(RandomTriplets(catalog.labels), catalog=catalog)[:3].pin_memory()
    assert len(pinned) == 6
    assert batch.triplets.count == 3


@pytest.mark.cuda
def test_pinned_batches_reach_the_device(catalog):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dataset = TripletDataset(RandomTriplets(catalog.labels), catalog=catalog)
    batch = next(iter(DataLoader(dataset, 8, num_workers=1, pin_memory=True)))
    assert batch.images.is_pinned()
    assert batch.triplets.anchor.is_pinned()
    assert batch.to("cuda", non_blocking=True).triplets.negative.device.type == "cuda"


def test_what_a_triplet_dataset_refuses(catalog):
    triplets = RandomTriplets(catalog.labels)
    with pytest.raises(
        ValueError, match=r"^TripletDataset\(catalog=None\): expected the Catalog that the triplets are"
    ):
        TripletDataset(triplets)
    with pytest.raises(
        ValueError, match=r"^TripletDataset\(layout='interleave'\): .*did you mean 'interleaved'\?$"
    ):
        TripletDataset(triplets, catalog=catalog, layout="interleave")
    with pytest.raises(
        ValueError, match=r"^TripletDataset\(transform=1\): expected an albumentations transform or"
    ):
        TripletDataset(triplets, 1, catalog=catalog)
    with pytest.raises(ValueError, match=r"^TripletDataset\(seed=-2\): expected a whole number"):
        TripletDataset(triplets, catalog=catalog, seed=-2)
    dataset = TripletDataset(triplets, catalog=catalog)
    with pytest.raises(IndexError, match=r"^TripletDataset: expected numbers from -20 to 19, got 20$"):
        dataset[[0, 20]]
    with pytest.raises(
        IndexError, match=r"^TripletDataset: expected a whole number, a slice or whole numbers"
    ):
        dataset["q"]
    for nothing in ([], slice(3, 3)):
        with pytest.raises(ValueError, match=r"^TripletDataset\(index=.*\): expected at least one triplet$"):
            dataset[nothing]
    with pytest.raises(
        ValueError, match=r"a triplet with row 1[5-9].*: expected rows of the catalog, from 0 to 9"
    ):
        TripletDataset(triplets, catalog=catalog.select(range(10)))[:]


def test_images_of_different_sizes_are_refused_by_name(catalog):
    def shrink(image):
        return image[: 3 + int(image[0, 0, 0]) % 9]

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        TripletDataset(RandomTriplets(catalog.labels), shrink, catalog=catalog)[:]
    sentence = str(caught.value)
    assert sentence.startswith("TripletDataset: images of one batch have different sizes, [3, ")
    assert str(catalog.file(0)) in sentence
    assert sentence.endswith(
        "give a transform that resizes or crops, such as albumentations.Resize(224, 224)"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_batches_of_the_folder(catalog, tmp_path, workers):
    index = write_shards(tmp_path / "shards", catalog, images_per_shard=5)
    assert len(index.tars) > 1
    triplets = RandomTriplets(catalog.labels, positives=2, negatives=2, seed=0)

    def batches(source):
        sampler = PKSampler(source.labels, p=2, k=2, seed=3)
        images = ImageDataset(source, noise, return_rows=True)
        listed = TripletDataset(triplets, noise, catalog=source)
        yield from DataLoader(images, batch_sampler=sampler, num_workers=workers)
        for batch in DataLoader(listed, batch_size=4, num_workers=workers):
            yield batch.images, batch.labels, batch.rows

    pairs = list(zip(batches(catalog), batches(index), strict=True))
    assert len(pairs) > 3
    for own, read in pairs:
        assert all(torch.equal(u, v) for u, v in zip(own, read, strict=True))


def test_a_batch_from_shards_is_one_read(catalog, tmp_path, monkeypatch):
    index, asked = write_shards(tmp_path / "shards", catalog), []
    read = type(index).read
    monkeypatch.setattr(type(index), "read", lambda self, rows: asked.append(list(rows)) or read(self, rows))
    next(iter(DataLoader(ImageDataset(index), batch_size=4)))
    assert asked == [[0, 1, 2, 3]]


# Triplets of a manifest, images of another catalog


def test_a_catalog_with_other_rows_than_the_manifest_has_is_refused(tmp_path):
    for row in range(12):
        file = tmp_path / "photos" / str(row // 4) / f"{row:02d}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P5 2 1 255 " + bytes([row, 255]))
    catalog = scan_folder(tmp_path / "photos")
    write_manifest(tmp_path / "t.arrow", RandomTriplets(catalog.labels), catalog)
    manifest = read_manifest(tmp_path / "t.arrow")
    index = write_shards(tmp_path / "all", catalog, images_per_shard=4)
    dataset = TripletDataset(manifest, catalog=index)
    assert len(dataset[:].images) == 12
    with_groups = replace(catalog, groups={"n": range(12)}, classes=["0", "1", "2", "none has it"])
    for same in (catalog, with_groups):  # the images and their classes are the same
        assert len(TripletDataset(manifest, catalog=same)[:].images) == 12
    said = "expected the images and classes that the manifest was made of, in their order; "

    def refused(catalog):
        with pytest.raises(ValueError, match=r"^TripletDataset\(catalog=") as raised:
            TripletDataset(manifest, catalog=catalog)
        assert said in str(raised.value)
        return str(raised.value)

    some = ShardIndex(index.tars[:2])
    assert "it has 8 images and that one 12; leave catalog out to take the manifest's" in refused(some)
    catalog.file(5).write_bytes(b"")
    skipped = write_shards(tmp_path / "skipped", catalog, unreadable="skip")
    assert "it has 11 images and that one 12" in refused(skipped)
    other = refused(replace(catalog, labels=catalog.labels[::-1].copy()))
    assert "its row 0 is '0/00.pgm' of class '2', and there '0/00.pgm' of class '0'" in other
    refused(catalog.select(np.arange(12)[::-1]))


def test_a_catalog_with_other_rows_than_a_manifest_of_another_program_has_is_refused(tmp_path):
    for row in range(12):
        file = tmp_path / "photos" / str(row // 4) / f"{row:02d}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P5 2 1 255 " + bytes([row, 255]))
    names = ["1/04.pgm", "1/06.pgm", "2/09.pgm"]
    (tmp_path / "old.csv").write_text("anchor,positive,negative\n" + ",".join(names) + "\n")
    manifest = read_manifest(tmp_path / "old.csv", root=tmp_path / "photos")
    index = write_shards(tmp_path / "shards", scan_folder(tmp_path / "photos"))
    said = "expected the images and classes that the manifest was made of, in their order; it has 12 images"
    for call in (
        lambda: TripletDataset(manifest, catalog=index),
        lambda: write_manifest(tmp_path / "new.parquet", manifest, index.catalog),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert not (tmp_path / "new.parquet").exists()
    same = replace(manifest.catalog, classes=["a", "b"])  # its classes were guessed from the folders
    assert TripletDataset(manifest, catalog=same)[:].images[:, 0, 0, 0].mul(255).round().tolist() == [4, 6, 9]
    write_manifest(tmp_path / "new.parquet", manifest, same)
    with pytest.raises(ValueError, match=r"its row 1 is '1/05.pgm', and there '1/06.pgm'; leave"):
        TripletDataset(manifest, catalog=scan_folder(tmp_path / "photos").select([4, 5, 9]))


# Images that are too large


def test_an_image_of_too_many_pixels_is_not_decoded(catalog):
    assert ImageDataset(catalog, max_pixels=12 * 16)[0][0].shape == (3, 12, 16)
    triplets, pairs = RandomTriplets(catalog.labels), RandomPairs(catalog.labels)
    for make in (
        partial(ImageDataset, catalog),
        partial(TripletDataset, triplets, catalog=catalog),
        partial(PairDataset, pairs, catalog=catalog),
    ):
        make(max_pixels=192)[0]
        with pytest.raises(ValueError, match=r"it has more than max_pixels=191 pixels; restore"):
            make(max_pixels=191)[0]
        with pytest.raises(
            ValueError, match=r"Dataset\(max_pixels=0\): expected a whole number of at least 1"
        ):
            make(max_pixels=0)
