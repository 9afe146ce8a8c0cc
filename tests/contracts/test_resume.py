"""Resume equals replay: what follows a stop is, pixel for pixel, what would have followed without it.

One table of subjects × loaders × stop points × workers, this epoch and the next. By default the tests take
42 of its 1344 rows, in which any two levels of any two columns meet; `pytest -m grid` takes them all.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import TripletDataset
from tercet.data.samplers.by_anchor import AnchorSampler
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.random import RandomTriplets

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import cv2

from tests.helpers import noise

torch.set_num_threads(1)
STEPS = 7  # batches of an epoch, of every subject
ROWS_OF_7 = 7  # triplets in a batch of ShuffledSampler; the last batch has 6
CLASSES, EACH = 8, 6


# The columns of the table.


@dataclass(frozen=True)
class Data:
    """Forty-eight images as a folder and as shards."""

    catalog: Any
    shards: Any


@dataclass(frozen=True)
class Source:
    """What a loader is made of, and what keeps the position in it."""

    position: Any  # the sampler or stream
    parts: dict[str, Any]  # of the loader

    def loader(self, kind, **keywords):
        return kind(**self.parts, **keywords)

    def state_at(self, epoch, seen):
        """The state after `seen` batches, as a training loop counts them."""
        step = seen
        if "sampler" in self.parts:  # whose items are rows
            step = min(seen * self.parts["batch_size"], len(self.position))
        return self.position.state_at(epoch, step)


def pipeline():
    return A.Compose([A.RandomCrop(6, 6), A.HorizontalFlip(), A.RandomBrightnessContrast(p=1)])


def triplets_of(data):
    return RandomTriplets(data.catalog.labels, positives=1, negatives=1, seed=1)


def pk_images(data):
    sampler = PKSampler(data.catalog.labels, p=4, k=2, seed=3, epoch_length=STEPS)
    dataset = ImageDataset(data.catalog, pipeline(), return_rows=True)
    return Source(sampler, {"dataset": dataset, "batch_sampler": sampler})


def shuffled_triplets(data):
    dataset = TripletDataset(triplets_of(data), noise, catalog=data.catalog)
    sampler = ShuffledSampler(dataset, seed=3)
    return Source(sampler, {"dataset": dataset, "sampler": sampler, "batch_size": ROWS_OF_7})


def anchored_triplets(data):
    sampler = AnchorSampler(triplets_of(data), anchors=7, seed=3)
    dataset = TripletDataset(triplets_of(data), pipeline(), catalog=data.catalog)
    return Source(sampler, {"dataset": dataset, "batch_sampler": sampler})


def pk_stream(data):
    stream = PKStream(
        data.shards, 2, 3, pipeline(), steps=STEPS, lanes=2, buffer=12, seed=3, return_keys=True
    )
    return Source(stream, {"dataset": stream, "batch_size": None})


SUBJECTS = {
    "PKSampler": pk_images,
    "ShuffledSampler": shuffled_triplets,
    "AnchorSampler": anchored_triplets,
    "PKStream": pk_stream,
}
WAYS = ["stateful loader", "stateful loader, snapshot every 3", "state_at", "state_at, other workers"]
STOPS = [0, 1, STEPS // 2, STEPS - 1, STEPS, "end"]  # batches seen; "end": the loop has ended
WORKERS = [(0, False), *product((1, 2, 3), (False, True))]  # number, persistent
EPOCHS = [0, 1]  # the one that is stopped
COLUMNS = [list(SUBJECTS), WAYS, STOPS, WORKERS, EPOCHS]
GRID = list(product(*COLUMNS))


def pairwise_rows():
    """A row for each number of workers and stop point, so chosen that any two levels of two columns meet."""
    rows = []
    for w, s in product(range(len(WORKERS)), range(len(STOPS))):
        subject, epoch = (w + s) % 4, (w + s // 2) % 2
        way = (subject + s // 4 + w // 4 * 2) % 4
        rows.append((list(SUBJECTS)[subject], WAYS[way], STOPS[s], WORKERS[w], EPOCHS[epoch]))
    return rows


# Runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    for number in range(CLASSES * EACH):
        file = root / "photos" / f"class {number % CLASSES}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    catalog = scan_folder(root / "photos")
    write_shards(root / "shards", catalog, images_per_shard=12)
    return Data(catalog, root / "shards")


@pytest.fixture(scope="module")
def whole(data):
    """Epochs 0 to 2 of each subject, uninterrupted, without workers."""
    runs = {}
    for name, make in SUBJECTS.items():
        loader = make(data).loader(DataLoader)
        runs[name] = [values(loader) for _ in range(3)]
    return runs


def values(batches):
    """Batches as what compares by value: shapes, rows, labels and every pixel."""
    return [tuple(map(value, batch)) for batch in batches]


def value(part):
    if isinstance(part, torch.Tensor):
        return tuple(part.shape), part.numpy().tobytes()
    return tuple(map(value, part)) if isinstance(part, tuple) else tuple(part)


def kept(state):
    """A state as a checkpoint keeps it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stopped(source, loader, stop, epoch):
    """The batches of the epoch until the stop, and the state there."""
    for _ in range(epoch):
        assert len(values(loader)) == STEPS
    running = iter(loader)
    seen = values(islice(running, STEPS + 1 if stop == "end" else stop))
    if isinstance(loader, StatefulDataLoader):
        return seen, kept(loader.state_dict())
    at = (epoch + 1, 0) if stop == "end" else (epoch, stop)
    return seen, kept(source.state_at(*at))


def resumed(source, loader, state):
    """The two epochs that follow."""
    (loader if isinstance(loader, StatefulDataLoader) else source.position).load_state_dict(state)
    return [values(loader) for _ in range(2)]


def following(run, epoch, stop):
    """What the two epochs after a stop have to be: the rest of this one first, unless it has ended."""
    return run[epoch + 1 :][:2] if stop == "end" else [run[epoch][stop:], run[epoch + 1]]


def check(row, data, run):
    subject, way, stop, (workers, persistent), epoch = row
    keywords: dict[str, Any] = {"num_workers": workers, "persistent_workers": persistent}
    kind = DataLoader if way.startswith("state_at") else StatefulDataLoader
    if kind is StatefulDataLoader:
        keywords["snapshot_every_n_steps"] = 3 if way.endswith("3") else 1
    source = SUBJECTS[subject](data)
    seen, state = stopped(source, source.loader(kind, **keywords), stop, epoch)
    assert seen == run[epoch][: None if stop == "end" else stop]
    if way.endswith("other workers"):
        other = (workers + 2) % 4
        keywords |= {"num_workers": other, "persistent_workers": other > 0 and not persistent}
    source = SUBJECTS[subject](data)
    rest, *more = resumed(source, source.loader(kind, **keywords), state)
    expected = following(run, epoch, stop)
    assert rest == expected[0]
    assert more[: len(expected) - 1] == expected[1:]


def named(row):
    subject, way, stop, (workers, persistent), epoch = row
    return f"{subject}-{way}-{stop}-{workers}{' persistent' * persistent}-epoch {epoch}"


@pytest.mark.parametrize("row", pairwise_rows(), ids=named)
def test_resume_equals_replay(row, data, whole):
    check(row, data, whole[row[0]])


@pytest.mark.grid
@pytest.mark.parametrize("row", GRID, ids=named)
def test_resume_equals_replay_over_the_whole_grid(row, data, whole):
    check(row, data, whole[row[0]])


# That the tests above could fail.


def test_any_two_levels_of_two_columns_meet_in_the_rows_by_default():
    rows = pairwise_rows()
    assert set(rows) <= set(GRID)
    for one, two in combinations(range(len(COLUMNS)), 2):
        met = {(row[one], row[two]) for row in rows}
        assert met == set(product(COLUMNS[one], COLUMNS[two]))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_uninterrupted_epochs_are_of_different_batches_and_pixels(subject, whole):
    run = whole[subject]
    assert [len(epoch) for epoch in run] == [STEPS] * 3
    batches = [batch for epoch in run for batch in epoch]
    assert len(set(batches)) == len(batches)
    pixels = {batch[0] for batch in batches}
    assert len(pixels) == len(batches)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_position_or_a_seed_that_is_off_is_noticed(subject, data, whole):
    row = subject, "state_at", 3, (0, False), 0
    check(row, data, whole[subject])
    one_late = [[*whole[subject][0][:3], *whole[subject][0][4:], whole[subject][0][3]], *whole[subject][1:]]
    with pytest.raises(AssertionError):
        check(row, data, one_late)
    with pytest.raises(AssertionError):
        check(row, data, [whole[subject][0], *whole[subject][2:], whole[subject][1]])


# What the grid leaves out.


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_stateful_loader_goes_on_at_a_state_at_with_another_number_of_workers(subject, data, whole):
    # Its own state it takes under the same number only.
    source = SUBJECTS[subject](data)
    loader = source.loader(StatefulDataLoader, num_workers=2)
    assert values(islice(iter(loader), 3)) == whole[subject][0][:3]
    state = kept(source.state_at(0, 3))
    for workers in (0, 3):
        source = SUBJECTS[subject](data)
        source.position.load_state_dict(state)
        loader = source.loader(StatefulDataLoader, num_workers=workers)
        assert [values(loader) for _ in range(2)] == following(whole[subject], 0, 3)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_run_goes_back_to_its_own_checkpoint_in_the_same_objects(subject, persistent, data, whole):
    source = SUBJECTS[subject](data)
    loader = source.loader(StatefulDataLoader, num_workers=2, persistent_workers=persistent)
    running = iter(loader)
    assert values(islice(running, 2)) == whole[subject][0][:2]
    state = loader.state_dict()
    assert values(islice(running, 3)) == whole[subject][0][2:5]
    loader.load_state_dict(state)
    assert [values(loader) for _ in range(2)] == following(whole[subject], 0, 2)

    plain = source.loader(DataLoader, num_workers=2, persistent_workers=persistent)
    source.position.load_state_dict(source.state_at(1, 4))
    values(islice(iter(plain), 1))
    source.position.load_state_dict(source.state_at(1, 4))
    assert [values(plain) for _ in range(2)] == following(whole[subject], 1, 4)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_state_is_a_few_integers_and_strings_of_these_settings(subject, data):
    source = SUBJECTS[subject](data)
    state = source.state_at(1, 3)
    assert len(repr(state)) < 400
    assert {type(part) for part in (state["epoch"], state["step"], *state["settings"].values())} <= {int, str}
    caller = type(source.position).__name__
    with pytest.raises(ValueError, match=rf"^{caller}.load_state_dict: the state was saved with seed=4, but"):
        source.position.load_state_dict({**state, "settings": {**state["settings"], "seed": 4}})
    for edited in ({"epoch": 2}, {"step": 4}, {"crc32": state["crc32"] ^ 1}):
        with pytest.raises(ValueError, match=rf"^{caller}.load_state_dict: .* it was changed or damaged; "):
            source.position.load_state_dict(state | edited)
    source.position.load_state_dict(json.loads(json.dumps(state)))
    del state["crc32"]  # as of version 0.1
    with pytest.warns(UserWarning, match=rf"the state given to {caller}.load_state_dict has no checksum"):
        source.position.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"^{caller}.load_state_dict\(state=None\): expected what"):
        source.position.load_state_dict(None)
    with pytest.raises(ValueError, match=rf"^{caller}.state_at\(step={len(source.position) + 1}\): expected"):
        source.position.state_at(0, len(source.position) + 1)
    with pytest.raises(ValueError, match=rf"^{caller}.state_at\(epoch=-1\): expected"):
        source.position.state_at(-1, 0)


def test_one_worker_s_state_is_not_the_stream_s(data):
    stream = pk_stream(data).position
    running = iter(stream)
    running._part, running._parts = 1, 2
    next(running)
    with pytest.raises(ValueError, match=r"saved with workers=2, but here is workers=1; build stream and"):
        stream.load_state_dict(running.state_dict())


@pytest.mark.parametrize(
    ("subject", "decoder"),
    [
        ("PKSampler", "tercet.data.datasets.decoding.read_image"),
        ("PKStream", "tercet.data.streams.batches.decode_image"),
    ],
)
def test_passing_over_what_was_seen_decodes_nothing(subject, decoder, data, monkeypatch):
    module, _, name = decoder.rpartition(".")
    decode, decoded = getattr(sys.modules[module], name), []
    monkeypatch.setattr(decoder, lambda *given, **more: decoded.append(1) or decode(*given, **more))
    source = SUBJECTS[subject](data)
    source.position.load_state_dict(source.state_at(0, STEPS - 1))
    (batch,) = source.loader(DataLoader)
    assert len(decoded) == len(batch[0])
