"""P×K streams: exact resume in every loader, equal ranks, epochs that differ, and shards that are broken."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
import random
import tarfile
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tercet import sharding
from tercet.catalog import scan_folder
from tercet.pk_stream import PKStream

torch.set_num_threads(1)


def picture(number):
    """A grey image of 2 × 1 that says its number."""
    return b"P5 2 1 255 " + bytes(divmod(number, 256))


def write_shards(folder, labels, images_per_shard, suffix="pgm"):
    """Tars of images in the order of `labels`."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(labels), images_per_shard):
        with tarfile.open(folder / f"train-{start // images_per_shard:06}.tar", "w") as tar:
            for number in range(start, min(start + images_per_shard, len(labels))):
                parts = {suffix: picture(number), "cls": b"%d" % labels[number]}
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"{number:06}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def numbers(images):
    """The numbers that images say; [n]."""
    high, low = (images[:, 0, 0, :] * 255).round().long().T
    return (high * 256 + low).tolist()


def listed(batches):
    return [tuple(zip(numbers(images), labels.tolist())) for images, labels in batches]


def refusal_of(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


LABELS = [n // 5 for n in range(240)]  # 48 classes


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards") / "a", LABELS, 20)


def epochs_of(stream, count):
    return [listed(stream) for _ in range(count)]


def faults(batches, p, k):
    found = []
    for place, batch in enumerate(batches):
        counts = Counter(label for _, label in batch)
        if len(counts) != p or set(counts.values()) != {k}:
            found.append(f"batch {place}: {dict(counts)}")
        found += [f"{number} is no {label}" for number, label in batch if LABELS[number] != label]
    return found


def test_an_epoch_is_p_times_k_and_nearly_every_image(shards):
    stream = PKStream(shards, 4, 4)
    assert stream.predicted.share > 0.9
    first, second, third = epochs_of(stream, 3)
    assert not faults(first + second + third, 4, 4)
    assert len(first) == len(second) == len(stream) == stream.predicted.batches
    for epoch in (first, second, third):
        assert len({number for batch in epoch for number, _ in batch}) > 0.9 * len(LABELS)
    assert faults([first[0][:-1]], 4, 4)
    assert faults([[(0, 1)] * 4], 1, 4)


def test_the_shard_order_does_not_repeat_every_epoch(shards):
    stream = PKStream(shards, 4, 4, seed=1)
    orders = [tuple(stream._order(epoch, 0, 0)) for epoch in range(20)]
    assert len(set(orders)) == 20
    assert all(sorted(order) == stream.shards for order in orders)
    assert len({order[0] for order in orders}) > 5
    first, second = epochs_of(stream, 2)
    together = [{frozenset(label for _, label in batch) for batch in epoch} for epoch in (first, second)]
    assert not together[0] & together[1]
    assert epochs_of(PKStream(shards, 4, 4, seed=1), 2) == [first, second]
    assert epochs_of(PKStream(shards, 4, 4, seed=2), 1) != [first]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(shards, lanes):
    alone = epochs_of(PKStream(shards, 4, 4, lanes=lanes), 2)
    for workers in (2, 3):
        loader = DataLoader(PKStream(shards, 4, 4, lanes=lanes), batch_size=None, num_workers=workers)
        assert [listed(loader) for _ in range(2)] == alone


def test_a_worker_reads_the_shards_of_its_lanes_only(shards, monkeypatch):
    read = []
    samples = PKStream._samples
    monkeypatch.setattr(PKStream, "_samples", lambda self, order: read.append(order) or samples(self, order))
    stream = PKStream(shards, 2, 4, lanes=2, steps=8)
    iterator = iter(stream)
    iterator._offset, iterator._stride = 1, 2
    assert len(list(iterator)) == 4
    assert {shard for order in read for shard in order} == set(stream._order(0, 0, 1))


def test_ranks_get_the_same_number_of_batches_and_disjoint_shards(tmp_path):
    # 7 shards for 3 ranks, and the last shard is short.
    folder = write_shards(tmp_path / "a", LABELS[:-15], 35)
    streams = [PKStream(folder, 4, 4, rank=rank, world_size=3) for rank in range(3)]
    steps = {len(stream) for stream in streams}
    assert len(steps) == 1
    for epoch in range(3):
        batches = [listed(stream) for stream in streams]
        assert {len(each) for each in batches} == steps
        assert not faults([batch for each in batches for batch in each], 4, 4)
        orders = [set(stream._order(epoch, stream.rank, 0)) for stream in streams]
        assert set.union(*orders) == set(streams[0].shards)
        assert sum(map(len, orders)) == 7
        drawn = [{number for batch in each for number, _ in batch} for each in batches]
        assert sum(map(len, drawn)) == len(set.union(*drawn))


def test_a_lane_that_has_read_its_shards_begins_again(shards):
    stream = PKStream(shards, 4, 4, steps=100)
    batches = listed(stream)
    assert len(batches) == 100
    assert not faults(batches, 4, 4)
    assert len(set(batches)) == 100


@pytest.mark.parametrize(("lanes", "low", "high"), [(1, 0.98, 1), (8, 0.95, 1), (16, 0.75, 0.9)])
def test_the_prediction_counts_what_lanes_of_more_shards_leave_unread(tmp_path, lanes, low, high):
    # 24 shards: of 16 lanes half have two and half have one, and each gives as many batches.
    labels = [n // 5 for n in range(2400)]
    stream = PKStream(write_shards(tmp_path / "a", labels, 100), 4, 4, lanes=lanes)
    used = {number for batch in listed(stream) for number, _ in batch}
    assert abs(len(used) / len(labels) - stream.predicted.share) <= 0.05
    assert low <= stream.predicted.share <= high


# Resume; the grid is in test_resume.py.


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_set_epoch_resumes_a_plain_loader(shards, workers, persistent):
    def make():
        return PKStream(shards, 4, 4, steps=7, buffer=32)

    whole = epochs_of(make(), 6)
    stream = make()
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, persistent_workers=persistent and workers > 0
    )
    assert listed(loader) == whole[0]
    stream.set_epoch(3, 5)
    assert listed(loader) == whole[3][5:]
    assert listed(loader) == whole[4]
    stream.set_epoch(1)
    assert listed(loader) == whole[1]
    stream.set_epoch(1, 7)
    assert listed(loader) == []
    assert listed(loader) == whole[2]


@pytest.mark.parametrize("persistent", [False, True])
def test_after_a_loop_that_breaks_off_comes_the_next_epoch(shards, persistent):
    stream = PKStream(shards, 4, 4, steps=7, buffer=32)
    whole = epochs_of(PKStream(shards, 4, 4, steps=7, buffer=32), 4)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        torch.manual_seed(0)  # else the loaders would differ by their seed
        assert listed(islice(iter(loader), 2)) == whole[epoch][:2]
    assert listed(loader) == whole[3]


def test_set_epoch_while_a_worker_has_not_begun_yet(shards):
    whole = epochs_of(PKStream(shards, 4, 4, steps=7, buffer=32), 5)
    stream, gate = PKStream(shards, 4, 4, steps=7, buffer=32), multiprocessing.Event()
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        worker_init_fn=lambda worker: gate.wait() if worker else None,
        multiprocessing_context="fork",
    )
    assert listed(islice(iter(loader), 1)) == whole[0][:1]  # worker 0's
    stream.set_epoch(3)
    gate.set()
    assert listed(loader) == whole[3]
    assert listed(loader) == whole[4]


def test_a_state_is_small_ints_and_fits_one_setting_only(shards):
    iterator = iter(PKStream(shards, 4, 4, steps=7))
    next(iterator), next(iterator)
    state = iterator.state_dict()
    assert (state["epoch"], state["step"]) == (0, 2)
    assert all(type(value) is int for value in state["settings"].values())
    assert len(json.dumps(state)) < 300
    for keywords, name in [({"seed": 1}, "seed"), ({"buffer": 20}, "buffer"), ({"steps": 6}, "steps")]:
        other = iter(PKStream(shards, 4, 4, **{"steps": 7, **keywords}))
        assert f"the state was saved with {name}=" in refusal_of(other.load_state_dict, state)
    assert "expected what state_at() or an iterator's state_dict() returned" in refusal_of(
        iterator.load_state_dict, {}
    )
    iterator.load_state_dict({**state, "step": 1})
    assert iterator.state_dict()["step"] == 1


def test_passing_over_decodes_nothing(shards, monkeypatch):
    stream = PKStream(shards, 4, 4, steps=7)
    whole = listed(stream)
    decoded = []
    one = PKStream._decoded
    monkeypatch.setattr(
        PKStream, "_decoded", lambda self, sample, **keys: decoded.append(1) or one(self, sample, **keys)
    )
    stream.set_epoch(0, 6)
    assert listed(stream) == whole[6:]
    assert len(decoded) == 16


# Augmentation.


def noisy(image, rng):
    return torch.tensor([int(rng.integers(1 << 62))])


def test_augmentations_are_keyed_by_epoch_image_and_view(shards):
    stream = PKStream(shards, 4, 4, noisy, return_keys=True, seed=3, steps=40)  # more than a pass
    drawn = [[(key, int(x)) for x, key in zip(images, keys)] for images, _, keys in stream]
    flat = [pair for batch in drawn for pair in batch]
    assert len({x for _, x in flat}) == len(flat)  # also of images that come again
    assert len({key for key, _ in flat}) < len(flat)
    again = [[int(x) for x in images] for images, _, _ in stream]
    assert not {x for _, x in flat} & {x for batch in again for x in batch}
    loader = DataLoader(
        PKStream(shards, 4, 4, noisy, return_keys=True, seed=3, steps=40), None, num_workers=2
    )
    assert [[(key, int(x)) for x, key in zip(images, keys)] for images, _, keys in loader] == drawn
    assert flat[0][0].startswith("train-0000")


def test_global_generators_are_left_alone(shards, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # beartype draws the items it checks
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    list(PKStream(shards, 4, 4, noisy))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


# Broken shards.


class Continue:
    def __init__(self):
        self.told = []

    def __call__(self, error):
        self.told.append(str(error))
        return True


def test_a_truncated_tar_gives_no_half_sample(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[: 19 * 2048 + 516])  # within the image of the last sample
    handler = Continue()
    stream = PKStream(folder, 2, 4, handler=handler)
    assert stream.predicted.share > 0.9
    batches = listed(stream)
    assert len(batches) == len(stream)
    assert not faults(batches, 2, 4)
    assert handler.told
    assert 19 not in {number for batch in batches for number, _ in batch}
    with pytest.raises((ValueError, tarfile.ReadError, OSError)):
        list(PKStream(folder, 2, 4, steps=20))


def test_an_image_that_does_not_decode_is_replaced_by_one_of_its_class(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:60], 20)
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes().replace(picture(23), b"P5 2 1 nonsense"[: len(picture(23))]))
    handler = Continue()
    bad, good = (
        PKStream(folder, 3, 4, handler=handler),
        PKStream(write_shards(tmp_path / "b", LABELS[:60], 20), 3, 4),
    )
    for _ in range(2):
        broken, sound = listed(bad), listed(good)
        assert len(broken) == len(sound)
        assert not faults(broken, 3, 4)
        differ = [(b, s) for one, two in zip(broken, sound) for b, s in zip(one, two) if b != s]
        assert {s for _, s in differ} == {(23, 4)}
    assert all("000023" in told for told in handler.told)
    assert "000023" in refusal_of(list, PKStream(folder, 3, 4))


def test_resume_past_a_bad_image_equals_replay(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:60], 20)
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes().replace(picture(23), b"P5 2 1 nonsense"[: len(picture(23))]))
    stream = PKStream(folder, 3, 4, noisy, handler=Continue(), return_keys=True)
    whole = [keys for _, _, keys in stream]
    for step in range(len(whole)):
        stream.set_epoch(0, step)
        assert [keys for _, _, keys in stream] == whole[step:]


# What is refused.


def test_shards_without_a_batch_are_refused(tmp_path, shards):
    striped = write_shards(tmp_path / "striped", [n % 60 for n in range(240)], 60)
    said = refusal_of(PKStream, striped, 8, 4, lanes=4)
    assert said.startswith(
        "PKStream(p=8, k=4, buffer=128, lanes=4): 0.00 of the samples would end in a batch; "
    )
    assert 'layout="identity"' in said
    # Of one lane the same shards give batches.
    assert PKStream(striped, 8, 4, buffer=240).predicted.share > 0.9
    said = refusal_of(list, PKStream(striped, 8, 4, lanes=4, steps=3))
    assert "a pass over the 1 shards of a lane gave no batch of 60 samples" in said


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"p": 0}, "(p=0): expected a whole number of at least 1"),
        ({"lanes": 13}, "PKStream(lanes=13): expected at most as many as shards, and there are 12;"),
        ({"lanes": 7, "world_size": 2}, "and there are 12 on 2 ranks"),
        ({"rank": 1}, "PKStream(rank=1): expected a whole number from 0 to 0"),
        ({"steps": 0}, "PKStream(steps=0): expected a whole number from 1"),
        ({"label": len}, "expected local files and the name of a field"),
        ({"shards": "s3://bucket/{0..12}.tar"}, "expected local files and the name of a field"),
        ({"shards": []}, "expected a folder of tars, or different tars"),
        ({"shards": ["a.tar", "a.tar"]}, "PKStream(shards='1 twice')"),
        ({"buffer": 3}, "(buffer=3): expected at least p · k = 16 images"),
    ],
)
def test_bad_arguments_get_a_sentence(shards, keywords, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(PKStream, **{"shards": shards, "p": 4, "k": 4, **keywords})


def test_splits_are_not_mixed(shards, tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    os.rename(folder / "train-000001.tar", folder / "test-000001.tar")
    assert "tars of one split, and there are test-, train-; pass a list of tars" in refusal_of(
        PKStream, folder, 2, 4
    )
    given = [folder / "train-000000.tar"]
    assert len(PKStream(given, 2, 4)) == len(PKStream(str(given[0]), 2, 4)) == len(PKStream(given[0], 2, 4))
    pattern = str(shards / "train-{000000..000011}.tar")
    assert listed(PKStream(pattern, 4, 4)) == listed(PKStream(shards, 4, 4))


def test_bad_batches_get_a_sentence(tmp_path, shards):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    growing = PKStream(folder, 2, 4, lambda image: torch.zeros(int(image[0, 1, 0]) + 1))
    assert "images of one batch have different sizes" in refusal_of(list, growing)
    wordy = PKStream(folder, 2, 4, lambda image: "word")
    assert "PKStream: the transform gives str" in refusal_of(list, wordy)
    named = PKStream(folder, 2, 4, steps=1, label=lambda sample: f"class {int(sample['cls']) // 4}")
    assert "expected a whole number as the class of train-00000" in refusal_of(list, named)
    other = write_shards(tmp_path / "b", LABELS[:40], 20, suffix="picture")
    assert "has not one image, only cls, picture" in refusal_of(list, PKStream(other, 2, 4, steps=1))
    assert len(list(PKStream(other, 2, 4, steps=1, image="picture"))) == 1
    ending = PKStream(folder, 2, 4, steps=1, image="picture", handler=lambda error: False)
    assert "the handler ends the stream, which each rank needs whole" in refusal_of(list, ending)


def test_a_stream_can_be_pickled_and_copied(shards):
    stream = PKStream(shards, 4, 4)
    first, second = epochs_of(PKStream(shards, 4, 4), 2)
    assert listed(stream) == first
    for twin in (pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)):
        assert listed(twin) == second


def test_a_tar_cut_between_two_samples_since_it_was_indexed_is_told(tmp_path):
    root = tmp_path / "photos"
    for name in ("ant", "bee", "cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            (root / name / f"{number}.pgm").write_bytes(picture(number))
    tar = sharding.write_shards(tmp_path / "shards", scan_folder(root), k=4).tars[0]
    content = tar.read_bytes()
    tar.write_bytes(content[: (len(content) // 2) // 3072 * 3072])
    with pytest.raises(
        ValueError, match=r"PKStream\(shards=.*\): expected \d+ bytes, as when it was indexed"
    ):
        PKStream(tar.parent, 2, 4)
    handler = Continue()
    assert len(PKStream(tar.parent, 2, 4, handler=handler)) >= 1
    assert "as when it was indexed" in handler.told[0]
