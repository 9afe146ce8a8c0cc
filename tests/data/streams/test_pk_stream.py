"""P×K streams: exact resume in every loader, equal ranks, epochs that differ, and shards that are broken."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
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
import webdataset
from torch.utils.data import DataLoader
from webdataset.gopen import Pipe, gopen_schemes

from tercet.core.checks import Refusal
from tercet.data.catalog.scan import scan_folder
from tercet.data.io.checked_json import with_checksum
from tercet.data.io.positional import PositionalFile
from tercet.data.shards import writing as shard_writing
from tercet.data.shards.index import ShardIndex
from tercet.data.streams import shard_bytes
from tercet.data.streams.batches import PartitionBatches
from tercet.data.streams.lanes import Partitions
from tercet.data.streams.pk_stream import PKStream
from tests.helpers import Continue, refusal_of

torch.set_num_threads(1)


def picture(number):
    """A grey image of 2 × 1 that says its number."""
    return b"P5 2 1 255 " + bytes(divmod(number, 256))


def write_tar(path, samples):
    """A tar of samples by number: a dict of extensions and contents each."""
    with tarfile.open(path, "w") as tar:
        for number, parts in samples.items():
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder, labels, images_per_shard, suffix="pgm"):
    """Tars of images in the order of `labels`."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(labels), images_per_shard):
        some = range(start, min(start + images_per_shard, len(labels)))
        samples = {number: {suffix: picture(number), "cls": b"%d" % labels[number]} for number in some}
        write_tar(folder / f"train-{start // images_per_shard:06}.tar", samples)
    return folder


def numbers(images):
    """The numbers that images say; [n]."""
    high, low = (images[:, 0, 0, :] * 255).round().long().T
    return (high * 256 + low).tolist()


def listed(batches):
    return [tuple(zip(numbers(images), labels.tolist(), strict=True)) for images, labels in batches]


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


def faults_of_labels(batches, p, k):
    counts = [Counter(label for _, label in batch) for batch in batches]
    return [each for each in counts if len(each) != p or set(each.values()) != {k}]


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
    orders = [tuple(stream._batches.partitions.order(epoch, 0, 0)) for epoch in range(20)]
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
    samples = PartitionBatches._samples
    monkeypatch.setattr(
        PartitionBatches, "_samples", lambda self, order: read.append(order) or samples(self, order)
    )
    stream = PKStream(shards, 2, 4, lanes=2, steps=8)
    iterator = iter(stream)
    iterator._part, iterator._parts = 1, 2
    assert len(list(iterator)) == 4
    assert {shard for order in read for shard in order} == set(stream._batches.partitions.order(0, 0, 1))


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
        orders = [set(stream._batches.partitions.order(epoch, stream.rank, 0)) for stream in streams]
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


@pytest.mark.parametrize(("ranks", "lanes"), [(2, 2), (1, 3)])
def test_a_lane_whose_shards_give_no_batch_goes_on_over_those_of_others(tmp_path, ranks, lanes):
    # Some lanes of some epochs get shards of the three large classes only.
    labels = [label for label, size in enumerate([100] * 3 + [5] * 60) for _ in range(size)]
    folder = write_shards(tmp_path / "a", labels, 50)
    alone = 0
    for rank in range(ranks):
        at = {"lanes": lanes, "rank": rank, "world_size": ranks}
        stream = PKStream(folder, 8, 4, **at)
        for epoch in range(7):
            batches = listed(stream)
            assert len(batches) == len(stream)
            assert not faults_of_labels(batches, 8, 4)
            for lane in range(lanes):
                alone += not list(stream._batches._pass(epoch, lane, 0, 0)[1])
    assert alone
    loader = DataLoader(PKStream(folder, 8, 4, **at), batch_size=None, num_workers=2)
    assert listed(loader) == listed(PKStream(folder, 8, 4, **at))


def test_shards_that_give_no_batch_in_the_order_of_last_resort_are_refused(tmp_path):
    # Alone the second gives a batch; after the first, which keeps half of the buffer, it does not.
    write_shards(tmp_path / "a", [0, 0], 2)
    (tmp_path / "a" / "train-000000.tar").rename(tmp_path / "0.tar")
    write_shards(tmp_path / "a", [1, 2, 1, 2], 4)
    (tmp_path / "a" / "train-000000.tar").rename(tmp_path / "1.tar")
    made = {"lanes": 2, "buffer": 4, "on_short": "drop"}
    said = [refusal_of(PKStream, tmp_path, 2, 2, **made, seed=seed) for seed in range(6)]
    assert any(
        one.endswith("over all shards, by name, gives no batch; raise buffer or lower p or k") for one in said
    )


def test_where_lanes_end_depends_on_what_they_read_only():
    lanes = Partitions([f"{n:02}" for n in range(24)], count=3, world_size=2, seed=0)
    orders = [[lanes.order(4, rank, lane, 1, 1) for lane in range(3)] for rank in range(2)]
    of_rank = [set().union(*(lanes.order(4, rank, lane) for lane in range(3))) for rank in range(2)]
    assert [set(order) for order in (*orders[0], *orders[1])] == [of_rank[0]] * 3 + [of_rank[1]] * 3
    assert len({tuple(order) for order in (*orders[0], *orders[1])}) == 6
    assert sorted(lanes.order(4, 1, 2, 1, 2)) == lanes.order(4, 0, 0, 7, 3) == lanes.shards


@pytest.mark.parametrize(("ranks", "lanes"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_what_is_predicted_is_what_the_ranks_give_together(tmp_path, ranks, lanes):
    labels = [n // 7 for n in range(260)]
    folder = write_shards(tmp_path / "a", labels, 23)
    streams = [PKStream(folder, 4, 3, lanes=lanes, rank=rank, world_size=ranks) for rank in range(ranks)]
    predicted = streams[0].predicted
    epochs = [listed(stream) for stream in streams]
    assert predicted.batches == sum(map(len, epochs)) == len(streams[0]) * ranks
    used = {number for epoch in epochs for batch in epoch for number, _ in batch}
    assert abs(len(used) / len(labels) - predicted.share) <= 0.03
    assert predicted.memory == predicted.held * len(picture(0)) * lanes


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
    stream = PKStream(shards, 4, 4, steps=7)
    iterator = iter(stream)
    next(iterator), next(iterator)
    state = iterator.state_dict()
    assert (state["epoch"], state["step"]) == (0, 2)
    assert all(type(value) is int for value in state["settings"].values())
    assert len(json.dumps(state)) < 300
    for keywords, name in [({"seed": 1}, "seed"), ({"buffer": 20}, "buffer"), ({"steps": 6}, "steps")]:
        other = iter(PKStream(shards, 4, 4, **{"steps": 7, **keywords}))
        assert f"the state was saved with {name}=" in refusal_of(other.load_state_dict, state)
    for broken in ({}, {**state, "settings": None}, {**state, "settings": []}):
        assert "expected what state_at() or an iterator's state_dict() returned" in refusal_of(
            iterator.load_state_dict, broken
        )
    for load in (iterator.load_state_dict, stream.load_state_dict):
        assert "(step=8): expected a whole number from 0 to 7" in refusal_of(
            load, with_checksum({**state, "step": 8})
        )
    iterator.load_state_dict(with_checksum({**state, "step": 1}))
    assert iterator.state_dict()["step"] == 1


def test_passing_over_decodes_nothing(shards, monkeypatch):
    stream = PKStream(shards, 4, 4, steps=7)
    whole = listed(stream)
    decoded = []
    one = PartitionBatches._image
    monkeypatch.setattr(
        PartitionBatches,
        "_image",
        lambda self, sample, **keys: decoded.append(1) or one(self, sample, **keys),
    )
    stream.set_epoch(0, 6)
    assert listed(stream) == whole[6:]
    assert len(decoded) == 16


# Augmentation.


def noisy(image, rng):
    return torch.tensor([int(rng.integers(1 << 62))])


def test_augmentations_are_keyed_by_epoch_image_and_view(shards):
    stream = PKStream(shards, 4, 4, noisy, return_keys=True, seed=3, steps=40)  # more than a pass
    drawn = [[(key, int(x)) for x, key in zip(images, keys, strict=True)] for images, _, keys in stream]
    flat = [pair for batch in drawn for pair in batch]
    assert len({x for _, x in flat}) == len(flat)  # also of images that come again
    assert len({key for key, _ in flat}) < len(flat)
    again = [[int(x) for x in images] for images, _, _ in stream]
    assert not {x for _, x in flat} & {x for batch in again for x in batch}
    loader = DataLoader(
        PKStream(shards, 4, 4, noisy, return_keys=True, seed=3, steps=40), None, num_workers=2
    )
    assert [
        [(key, int(x)) for x, key in zip(images, keys, strict=True)] for images, _, keys in loader
    ] == drawn
    assert flat[0][0].startswith("train-0000")


def test_global_generators_are_left_alone(shards, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # beartype draws the items it checks
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    list(PKStream(shards, 4, 4, noisy))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


# Broken shards.


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
        differ = [
            (b, s)
            for one, two in zip(broken, sound, strict=True)
            for b, s in zip(one, two, strict=True)
            if b != s
        ]
        assert {s for _, s in differ} == {(23, 4)}
    assert all("000023" in told for told in handler.told)
    assert "000023" in refusal_of(list, PKStream(folder, 3, 4))


def with_a_broken_header(tar, number):
    """The tar, of the same size, in which the header of a member does not fit its check sum."""
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as file:
        content[file.getmembers()[number].offset + 148] ^= 0xFF
    tar.write_bytes(content)
    return tar


def images_of(stream):
    return {number for batch in listed(stream) for number, _ in batch}


@pytest.mark.parametrize("cut", [False, True])
def test_a_tar_damaged_before_it_is_scanned_is_refused(tmp_path, cut):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    tar = folder / "train-000001.tar"
    if cut:
        tar.write_bytes(tar.read_bytes()[: 9 * 2048])
    else:
        with_a_broken_header(tar, 18)
    said = refusal_of(PKStream, folder, 2, 4)
    assert (
        "train-000001.tar'): expected a whole tar, and the tar is cut short or damaged here, after " in said
    )
    assert said.endswith(
        "train-000001.tar/000028; restore it, or pass a handler that returns true to go on without the rest"
    )
    assert refusal_of(PKStream, folder, 2, 4, handler=lambda error: False) == said
    handler = Continue()
    stream = PKStream(folder, 2, 4, handler=handler)
    assert handler.told == [said]
    assert max(images_of(stream)) in (27, 28)
    ShardIndex(folder, damaged="drop", write_index=True)
    for steps in (None, 3):
        assert refusal_of(PKStream, folder, 2, 4, steps=steps) == said


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("images", [40, 400])
def test_a_damaged_tar_that_nothing_is_known_of_is_told_when_it_is_read(tmp_path, images, cut):
    folder = write_shards(tmp_path / "a", [n // 5 for n in range(images)], images)
    tar = folder / "train-000000.tar"
    list(PKStream(folder, 2, 4, steps=2 * images // 8))
    if cut:
        tar.write_bytes(tar.read_bytes()[: (images // 2 + 5) * 2048])
    else:
        with_a_broken_header(tar, images + 10)
    named = "train-000000.tar'): expected a whole tar, and the tar is cut short or damaged here; restore it"
    assert named in refusal_of(list, PKStream(folder, 2, 4, steps=images))
    handler = Continue()
    assert len(images_of(PKStream(folder, 2, 4, steps=images, handler=handler))) == images // 2 + 4
    assert named in handler.told[0]


def test_a_compressed_tar_is_read_as_before(tmp_path):
    tar = write_shards(tmp_path / "a", LABELS[:40], 40) / "train-000000.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    assert len(images_of(PKStream(tar, 2, 4, steps=40))) == 40


def test_the_batches_of_a_compressed_tar_are_counted_by_who_calls(tmp_path):
    tar = write_shards(tmp_path / "a", LABELS[:40], 40) / "train-000000.tar"
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    said = "expected a tar that is not compressed, to count the batches of an epoch; .* or pass steps=$"
    with pytest.raises(ValueError, match=said):
        PKStream(packed, 2, 4)


@pytest.mark.parametrize("steps", [None, 2])
def test_a_tar_packed_by_zstd_is_named_as_what_it_is(tmp_path, steps):
    packed = tmp_path / "packed.tar.zst"
    packed.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    with pytest.raises(ValueError, match="it is packed by zstd; unpack it first"):
        PKStream(packed, 2, 4, steps=steps)


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_header_that_breaks_after_it_was_indexed_is_told(ours, steps, foreign):
    tar = ours / "train-000000.tar"
    if foreign:
        (ours / "info.json").unlink()
        for table in ours.glob("*.parquet"):
            table.unlink()
        ShardIndex(ours, write_index=True)
    handler, times = Continue(), tar.stat()
    with_a_broken_header(tar, 30)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = refusal_of(list, PKStream(ours, 2, 4, steps=steps))
    assert "train-000000.tar'): expected a whole tar, and the tar is cut short or damaged here; " in said
    assert said.endswith(" to go on without the rest (a header is broken)")
    going_on = PKStream(ours, 2, 4, steps=steps, handler=handler)
    assert len(listed(going_on)) == len(going_on)
    assert set(handler.told) == {said}


def test_an_index_of_other_images_tells_no_number_of_samples(tmp_path):
    tar = tar_of_json(tmp_path / "a.tar", LABELS[:40])
    ShardIndex(tar, label="json:id", image="json", write_index=True)

    def label(sample):
        return json.loads(sample["json"])["id"]

    assert len(images_of(PKStream(tar, 2, 4, label=label, image="pgm", steps=20))) == 40


def test_samples_without_an_image_are_not_counted(tmp_path):
    tar = write_shards(tmp_path / "a", LABELS[:40], 40) / "train-000000.tar"
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        for number in range(5):
            info = tarfile.TarInfo(f"none{number}.cls")
            info.size = 1
            file.addfile(info, io.BytesIO(b"9"))
    tar.write_bytes((tmp_path / "b.tar").read_bytes()[: 5 * 1024] + tar.read_bytes())
    ShardIndex(tar, write_index=True)
    times, handler = tar.stat(), Continue()
    list(PKStream(tar, 2, 4, handler=handler, steps=20))
    assert all("has not one image, only cls; " in told or "passed over" in told for told in handler.told)
    with_a_broken_header(tar, 5 + 2 * 38)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    list(PKStream(tar, 2, 4, handler=handler, steps=20))
    assert any(told.endswith("(a header is broken)") for told in handler.told)


def opens(monkeypatch, command):
    """Have webdataset open any https URL by running a command, as it runs curl."""
    monkeypatch.setitem(gopen_schemes, "https", lambda url, mode: Pipe(command, mode=mode, shell=True))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat {}/nope.tar 2>/dev/null", "(exit 1)"),
        ("head -c 29188 {}/a/train-000000.tar", "(it ends in a member)"),
        ("cat {}/a/train-000000.tar; exit 3", "(exit 3)"),
    ],
)
def test_a_url_that_breaks_off_is_told(tmp_path, monkeypatch, command, reason):
    write_shards(tmp_path / "a", LABELS[:40], 40)
    opens(monkeypatch, command.format(tmp_path))
    address, options = "https://host/a.tar", {"steps": 40, "urls": True}
    start = f"PKStream(shards={address!r}): expected "
    ends = ("a tar that can be read to its end; restore it, or ", "a URL that can be opened; ")
    said = [start + one + f"see whether its address is right {reason}" for one in ends]
    assert refusal_of(list, PKStream(address, 2, 4, **options)) in said
    with pytest.raises(ValueError, match="that can be"):
        list(PKStream(address, 2, 4, handler=webdataset.reraise_exception, **options))
    handler = Continue()
    going_on = PKStream(address, 2, 4, handler=handler, **options)
    if "a/train" in command:
        assert len(list(going_on)) == 40
    else:
        lacks = "PKStream: no shard gave a sample; see what they hold, and what the handler was told"
        assert refusal_of(list, going_on) == lacks
    assert handler.told[0] in said


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_url_is_read_where_it_is_asked_for(tmp_path, monkeypatch, packed):
    tar = write_shards(tmp_path / "a", LABELS[:40], 40) / "train-000000.tar"
    tar.write_bytes(packed(tar.read_bytes()))
    opens(monkeypatch, f"cat {tar}")
    for shards in ("https://host/a.tar", ["https://host/a.tar"], "https://host/{a..a}.tar"):
        assert len(images_of(PKStream(shards, 2, 4, steps=40, urls=True))) == 40
        said = refusal_of(PKStream, shards, 2, 4, steps=40)
        assert said.endswith("expected an existing tar; pass urls=True to have it read as a URL")


def test_an_empty_file_is_told(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 40)
    (folder / "train-000001.tar").touch()
    for steps in (None, 3):
        handler = Continue()
        stream = PKStream(folder, 2, 4, steps=steps, handler=handler)
        assert len(listed(stream)) == len(stream)
        (said,) = set(handler.told)
        assert said.endswith("train-000001.tar'): expected a tar that can be read; it is empty")
        assert refusal_of(PKStream, folder, 2, 4, steps=steps) == said


def test_sentences_name_the_arguments_there_are(tmp_path):
    tar = tmp_path / "a.tar"
    tar.write_bytes(bytes(10240))
    assert refusal_of(list, PKStream(tar, 2, 4, steps=2)) == (
        "PKStream: no shard gave a sample; see what they hold"
    )
    tar.write_bytes(b"x" * 5000)
    assert "PKStream(shards='" in refusal_of(PKStream, tar, 2, 4)
    tar = write_shards(tmp_path / "a", LABELS[:40], 40) / "train-000000.tar"
    said = refusal_of(list, PKStream(tar, 2, 4, steps=1, image="jpg"))
    assert "has no field image='jpg', only cls, pgm; " in said
    assert said.endswith("else name the one that holds the image")
    tar.with_name("train-000000.index.parquet").write_bytes(b"nonsense")
    assert "PKStream(shards='" in refusal_of(PKStream, tar, 2, 4)


def spoiled(folder, number):
    """The folder, in which an image is none."""
    for tar in folder.glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(picture(number), b"P5 2 1 nonsense"[: len(picture(number))]))
    return folder


def test_a_batch_that_nothing_can_stand_in_for_has_another_in_its_place(tmp_path):
    # The last batch of a pass finds an empty buffer; of two images of a class one does not decode.
    folder = spoiled(write_shards(tmp_path / "a", [n // 2 for n in range(120)], 20), 15)
    sound = write_shards(tmp_path / "b", [n // 2 for n in range(120)], 20)
    handler, differ = Continue(), Counter()
    stream, whole = PKStream(folder, 4, 2, handler=handler), PKStream(sound, 4, 2)
    for _ in range(10):
        batches = listed(stream)
        assert len(batches) == len(stream)
        assert not faults_of_labels(batches, 4, 2)
        for batch, other in zip(batches, listed(whole), strict=True):
            differ[batch != other, (15, 7) in other] += 1
            assert (15, 7) not in batch
    assert set(differ) == {(True, True), (False, False)}  # the batches around it are the same
    assert any("a batch is passed over" in told for told in handler.told)
    epochs = [listed(stream) for stream in [PKStream(folder, 4, 2, handler=handler)] for _ in range(10)]
    loader = DataLoader(PKStream(folder, 4, 2, handler=lambda error: True), batch_size=None, num_workers=2)
    assert [listed(loader) for _ in range(3)] == epochs[:3]
    stream.set_epoch(7, 5)
    assert listed(stream) == epochs[7][5:]
    with pytest.raises(ValueError, match="000015"):
        [listed(stream) for stream in [PKStream(folder, 4, 2)] for _ in range(2)]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_no_class_of_a_batch_is_one_image(tmp_path, share):
    folder = write_shards(tmp_path / "a", [n // 3 for n in range(240)], 24)
    bad = np.random.default_rng(0).permutation(240)[: int(240 * share)].tolist()
    for number in bad:
        spoiled(folder, number)
    stream = PKStream(folder, 4, 2, handler=Continue())
    batches = [batch for epoch in epochs_of(stream, 3) for batch in epoch]
    assert not faults_of_labels(batches, 4, 2)
    assert not {number for batch in batches for number, _ in batch} & set(bad)
    assert all(len(set(batch)) == 8 for batch in batches)


def test_images_none_of_which_decode_end_the_stream(tmp_path):
    handler = Continue()
    bad = write_shards(tmp_path / "a", LABELS[:40], 20)
    for number in range(40):
        spoiled(bad, number)
    said = refusal_of(list, PKStream(bad, 2, 4, handler=handler))
    assert said == "PKStream: too many images fail to decode, and all shards give no batch of others"


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
    assert 'layout="by_class"' in said
    # Of one lane the same shards give batches.
    assert PKStream(striped, 8, 4, buffer=240).predicted.share > 0.9
    # A lane that alone gives none goes on over all shards; where that gives none either, the stream ends.
    assert not faults_of_labels(listed(PKStream(striped, 8, 4, lanes=4, steps=3)), 8, 4)
    said = refusal_of(list, PKStream(striped, 61, 4, steps=3))
    assert "(p=61, k=4, buffer=976): a pass over all 4 shards gave no batch of 240 samples (" in said
    assert said.endswith("fewer than p classes at the end); lower p or k, or raise buffer")


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"p": 0}, "(p=0): expected a whole number of at least 1"),
        ({"lanes": 13}, "PKStream(lanes=13): expected at most as many as shards, and there are 12;"),
        ({"lanes": 7, "world_size": 2}, "and there are 12 on 2 ranks"),
        ({"rank": 1}, "PKStream(rank=1): expected a whole number from 0 to 0"),
        ({"steps": 0}, "PKStream(steps=0): expected a whole number from 1"),
        ({"label": len}, "expected local files and the name of a field"),
        ({"shards": "gs://bucket/{0..12}.tar", "urls": True}, "expected local files and the name of a field"),
        (
            {"shards": "s3://bucket/0.tar", "steps": 2, "urls": True},
            "a URL begins with one of ais, ftps, gs, ",
        ),
        ({"shards": "{{{", "steps": 2}, "a tar, or webdataset's notation for several; "),
        ({"urls": 1}, "PKStream(urls=1): expected True or False"),
        ({"shards": []}, "PKStream(shards=[]): expected a folder of shards, a tar, or a list of tars"),
        ({"shards": 5}, "PKStream(shards=5): expected a folder of shards, a tar, or a list of tars"),
        ({"shards": [5]}, "PKStream(shards=[5]): expected a folder of shards, a tar, or a list of tars"),
        ({"shards": "nope", "steps": 2}, "PKStream(shards='nope'): expected an existing tar"),
        (
            {"shards": ["gs://bucket/0.tar"] * 2, "steps": 2, "urls": True},
            "and there is 'gs://bucket/0.tar' too",
        ),
        (
            {"shards": ["gs://a/0.tar", "gs://b/0.tar"], "steps": 2, "urls": True},
            "PKStream(shards='gs://b/0.tar'): expected shards of different names, which key their images, "
            "and there is 'gs://a/0.tar' too; rename one, or leave it out if it is the same",
        ),
        (
            {"world_size": 13},
            "PKStream(world_size=13): expected at most as many as shards, and there are 12;",
        ),
        ({"image": 3, "steps": 2}, "PKStream(image=3): expected the extension of a member"),
        ({"label": 3, "steps": 2}, "(label=3): expected the name of a field or a function"),
        ({"label": "json:", "steps": 2}, "PKStream(label='json:'): expected the extension of a member"),
        ({"return_keys": 3}, "PKStream(return_keys=3): expected True or False"),
        ({"split": "train"}, "PKStream(split='train'): expected info.json in "),
        (
            {"shards": ["gs://bucket/0.tar"], "split": "train", "steps": 2, "urls": True},
            "PKStream(split='train'): expected",
        ),
        ({"buffer": 3}, "(buffer=3): expected at least p · k = 16 images"),
    ],
)
def test_bad_arguments_get_a_sentence(shards, keywords, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(PKStream, **{"shards": shards, "p": 4, "k": 4, **keywords})


def test_splits_are_not_mixed(shards, tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    os.rename(folder / "train-000001.tar", folder / "test-000001.tar")
    said = refusal_of(PKStream, folder, 2, 4)
    assert "tars of one split, and by their names there are test and train; pass a list of tars" in said
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
    tar = shard_writing.write_shards(tmp_path / "shards", scan_folder(root), k=4).tars[0]
    content = tar.read_bytes()
    tar.write_bytes(content[: (len(content) // 2) // 3072 * 3072])
    with pytest.raises(
        ValueError, match=r"PKStream\(shards=.*\): expected \d+ bytes, as when it was indexed"
    ):
        PKStream(tar.parent, 2, 4)
    handler = Continue()
    assert len(PKStream(tar.parent, 2, 4, handler=handler)) >= 1
    assert "as when it was indexed" in handler.told[0]


# Shards of write_shards, and tars with an index.


@pytest.fixture
def ours(tmp_path):
    """The folder of two shards of write_shards, of 8 classes of 8 images."""
    for number in range(64):
        file = tmp_path / "photos" / f"class {number // 8}" / f"{number:02}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    catalog = scan_folder(tmp_path / "photos")
    shard_writing.write_shards(tmp_path / "shards", catalog, images_per_shard=32)
    return tmp_path / "shards"


@pytest.mark.parametrize("steps", [None, 2])
def test_shards_that_are_not_all_there_are_refused(ours, steps):
    (ours / "train-000001.tar").rename(ours / "elsewhere")
    said = refusal_of(PKStream, ours, 2, 4, steps=steps)
    assert "expected every tar that" in said
    assert "run write_shards again, which writes what is missing" in said
    (ours / "info.json").unlink()  # as an interrupted run leaves it
    said = refusal_of(PKStream, ours, 2, 4, steps=steps)
    assert "expected all shards and info.json; the writing was interrupted; run write_shards again" in said
    assert len(list(PKStream([ours / "train-000000.tar"], 2, 4, steps=steps)))
    (ours / "train-000000.index.parquet").unlink()
    assert len(list(PKStream(ours, 2, 4, steps=steps)))  # tars of another program, as far as one can tell


def test_a_stream_does_without_the_indexes(ours):
    whole = listed(PKStream(ours, 2, 4))
    (ours / "train-000001.index.parquet").unlink()
    assert listed(PKStream(ours, 2, 4)) == whole


def test_shards_of_two_runs_are_refused(ours, tmp_path):
    catalog = scan_folder(tmp_path / "photos")
    shard_writing.write_shards(tmp_path / "other", catalog, images_per_shard=32, seed=1)
    for name in ("train-000000.tar", "train-000000.index.parquet"):
        os.replace(tmp_path / "other" / name, ours / name)
    assert "expected shards and info.json of one run of write_shards" in refusal_of(PKStream, ours, 2, 4)


def test_a_list_of_tars_of_two_runs_is_of_one_list_of_classes(ours, tmp_path):
    catalog = scan_folder(tmp_path / "photos")
    shard_writing.write_shards(ours, catalog.select(range(16)), split="val")
    mixed = sorted(ours.glob("*.tar"))
    assert len(PKStream(mixed, 2, 4).shards) == len(mixed)
    first = next((tmp_path / "photos").iterdir())
    first.rename(tmp_path / "photos" / "zz")  # so that the same numbers are of other classes
    shard_writing.write_shards(tmp_path / "other", scan_folder(tmp_path / "photos"), split="test")
    mixed += sorted((tmp_path / "other").glob("*.tar"))
    said = refusal_of(PKStream, mixed, 2, 4, steps=3)
    assert "expected shards of one list of classes; by others the same number is another class" in said


def test_one_split_of_a_folder_is_streamed(ours, tmp_path):
    catalog = scan_folder(tmp_path / "photos").select(range(16))
    shard_writing.write_shards(ours, catalog, split="val")
    said = refusal_of(PKStream, ours, 2, 4)
    assert "PKStream(split=None): expected one of the splits in" in said
    assert said.endswith("train, val")
    stream = PKStream(ours, 2, 4, split="val")
    assert [os.path.basename(shard) for shard in stream.shards] == ["val-000000.tar"]
    assert len(listed(stream)) == 2


def test_notes_of_the_system_are_no_shards(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    (folder / "._train-000000.tar").write_bytes(b"note")
    (folder / "b.tar").mkdir()
    assert "expected an existing tar; it is a folder" in refusal_of(PKStream, folder, 2, 4)
    (folder / "b.tar").rmdir()
    assert len(PKStream(folder, 2, 4).shards) == 2


def relabelled(labels):
    """The same number of images in the same classes, of which some have changed places."""
    return [*labels[:5], *labels[10:15], *labels[5:10], *labels[15:]]


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_state_does_not_fit_another_data_set_of_the_same_names(tmp_path, steps, indexed):
    labels = LABELS[50:90]
    folders = [write_shards(tmp_path / "a", labels, 20), write_shards(tmp_path / "b", relabelled(labels), 20)]
    names = {tar.name: tar.stat().st_size for tar in folders[0].glob("*.tar")}
    assert names == {tar.name: tar.stat().st_size for tar in folders[1].glob("*.tar")}
    if indexed:
        for folder in folders:
            ShardIndex(folder, write_index=True)
    state, other = (PKStream(folder, 2, 4, steps=steps) for folder in folders)
    state = state.state_at(0, 1)
    assert all(type(value) is int for value in state["settings"].values())
    if steps and not indexed:  # nothing is known of the labels before they are read
        other.load_state_dict(state)
    else:
        assert "the state was saved with shards of other contents;" in refusal_of(
            other.load_state_dict, state
        )


def test_a_state_does_not_fit_another_label_or_image(shards):
    state = PKStream(shards, 4, 4, steps=7).state_at(0, 1)
    for other, name in [({"label": "id"}, "label"), ({"image": "pgm"}, "image"), ({"label": len}, "label")]:
        stream = PKStream(shards, 4, 4, steps=7, **other)
        assert f"the state was saved with another {name}=;" in refusal_of(stream.load_state_dict, state)
    PKStream(shards, 4, 4, steps=7, label=".CLS").load_state_dict(state)


def test_what_is_not_known_of_the_shards_is_not_compared(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    counted = PKStream(folder, 2, 4)  # the labels; with steps= they are known by an index only
    given, rest = PKStream(folder, 2, 4, steps=len(counted)), listed(counted)[1:]
    states = [given.state_at(0, 1), counted.state_at(0, 1)]
    for indexed in (False, True):
        if indexed:
            ShardIndex(folder, write_index=True)
        for state in states:
            for steps in (None, len(counted)):
                stream = PKStream(folder, 2, 4, steps=steps)
                stream.load_state_dict(state)
                assert listed(stream) == rest


def test_a_state_does_not_fit_shards_of_other_sizes_or_names(tmp_path):
    folder, larger = (
        write_shards(tmp_path / "a", LABELS[:80], 40),
        write_shards(tmp_path / "b", LABELS[:120], 60),
    )
    state = PKStream(folder, 2, 4, steps=5).state_at(0, 1)
    for other, said in [(larger, "shards of other sizes"), ([folder / "train-000000.tar"], "other shards")]:
        assert refusal_of(PKStream(other, 2, 4, steps=5).load_state_dict, state) == (
            f"PKStream.load_state_dict: the state was saved with {said}; "
            "build stream and loader as they were, or use set_epoch(epoch, step)"
        )


def test_the_place_of_the_shards_changes_nothing(tmp_path, monkeypatch):
    for name in "ab":
        write_shards(tmp_path / name, LABELS[:80], 20)
    tars = [tmp_path / ("a" if n % 2 else "b") / f"train-{n:06}.tar" for n in range(4)]
    monkeypatch.chdir(tmp_path)
    here, whole = PKStream("./a", 2, 4), PKStream(tmp_path / "a", 2, 4)
    spread = PKStream(tars, 2, 4)
    monkeypatch.chdir("/")
    assert listed(here) == listed(whole) == listed(spread)
    spread.load_state_dict(whole.state_at(0, 1))


def test_two_tars_of_one_name_are_refused(tmp_path):
    tars = [
        write_shards(tmp_path / name, labels, 20) / "train-000000.tar"
        for name, labels in (("a", LABELS[:20]), ("b", LABELS[20:40]))
    ]
    for steps in (None, 3):
        said = refusal_of(PKStream, tars[::-1], 2, 4, steps=steps)
        assert "b/train-000000.tar'): expected shards of different names" in said
    tars.append(tars.pop().rename(tmp_path / "b" / "other.tar"))
    assert len(PKStream(tars, 2, 4).shards) == 2


def test_an_epoch_beyond_the_last_is_refused_in_the_name_of_what_was_called(shards):
    stream = PKStream(shards, 4, 4, steps=7)
    state = with_checksum({**stream.state_at(0, 1), "epoch": 1 << 31})
    expected = f"(epoch={1 << 31}): expected a whole number from 0 to {(1 << 31) - 1}"
    assert refusal_of(stream.load_state_dict, state) == f"PKStream.load_state_dict{expected}"
    assert refusal_of(iter(stream).load_state_dict, state) == f"PKStream.load_state_dict{expected}"
    assert refusal_of(stream.set_epoch, 1 << 31) == f"PKStream.set_epoch{expected}"
    assert refusal_of(stream.state_at, 1 << 31, 0) == f"PKStream.state_at{expected}"


def test_a_tar_that_cannot_be_opened_is_named(tmp_path):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    handler = Continue()
    stream, going_on = PKStream(folder, 2, 4), PKStream(folder, 2, 4, handler=handler)
    gone = folder / "train-000001.tar"
    gone.rename(tmp_path / "elsewhere")
    named = "train-000001.tar'): expected a tar that can be read; No such file or directory"
    assert named in refusal_of(list, stream)
    assert len(listed(going_on)) == len(going_on)
    assert named in handler.told[0]
    (folder / "train-000000.tar").rename(tmp_path / "elsewhere too")
    assert "no shard gave a sample; see what they hold, and what the handler was told" in refusal_of(
        list, going_on
    )


def test_a_tar_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "a", LABELS[:40], 20)
    named = "train-000001.tar'): expected a tar that can be read; Permission denied"

    def opened(path, kind):
        if path.name.endswith("1.tar"):
            raise Refusal(None, str(path), kind, "Permission denied")
        return PositionalFile(path, kind)

    monkeypatch.setattr(shard_bytes, "PositionalFile", opened)
    assert named in refusal_of(PKStream, folder, 2, 4)
    assert named in refusal_of(PKStream, folder, 2, 4, steps=2)
    handler = Continue()
    alone = PKStream([folder / "train-000000.tar"], 2, 4)
    assert PKStream(folder, 2, 4, handler=handler).predicted == alone.predicted
    assert named in handler.told[0]


def test_names_for_labels_are_refused_before_they_are_read(tmp_path, ours):
    tar = tar_of_json(tmp_path / "a.tar", [f"class {n // 5}" for n in range(40)])
    for _ in range(2):
        said = refusal_of(PKStream, tar, 2, 4, label="json:id")
        assert (
            "PKStream(label='json:id'): expected a field of whole numbers, and in a.tar it has 'class" in said
        )
        assert said.endswith("a function of a sample that gives them, and steps=")
        ShardIndex(tar, label="json:id", write_index=True)
    assert "expected a field of whole numbers" in refusal_of(PKStream, ours, 2, 4, label="json:class")
    assert len(PKStream(ours, 2, 4, label="json:label")) == len(PKStream(ours, 2, 4))


def cut(tar):
    """A tar cut between two samples: one that reads without complaint."""
    content = tar.read_bytes()
    tar.write_bytes(content[: (len(content) // 2) // 3072 * 3072])


def test_a_tar_cut_since_it_was_indexed_is_told_with_steps_too(ours):
    cut(ours / "train-000000.tar")
    assert "bytes, as when it was indexed; it has changed to" in refusal_of(PKStream, ours, 2, 4, steps=3)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("steps", [None, 5])
def test_a_tar_cut_since_the_stream_was_made_is_told(ours, steps, index):
    if not index:
        for table in ours.glob("*.parquet"):
            table.unlink()
    handler = Continue()
    stream, going_on = PKStream(ours, 2, 4, steps=steps), PKStream(ours, 2, 4, steps=steps, handler=handler)
    cut(ours / "train-000000.tar")
    when = "indexed" if index else "opened"
    assert f"bytes, as when it was {when}; it has changed to" in refusal_of(list, stream)
    assert len(listed(going_on)) == len(going_on)
    assert f"as when it was {when}" in handler.told[0]


# Labels in JSON.


def tar_of_json(path, names, first=0):
    samples = {}
    for number, name in enumerate(names, first):
        told = json.dumps({"id": name, "other": number % 2}).encode()
        samples[number] = {"pgm": picture(number), "json": told}
    return write_tar(path, samples)


def test_a_label_in_json_is_streamed(tmp_path):
    tar = tar_of_json(tmp_path / "a.tar", LABELS[:40])
    batches = listed(PKStream(tar, 2, 4, label="json:id"))
    assert not faults(batches, 2, 4)
    assert len({number for batch in batches for number, _ in batch}) > 36
    ShardIndex(tar, label="json:id", write_index=True)
    assert listed(PKStream(tar, 2, 4, label="json:id")) == batches
    assert "expected a member 000000.cls in" in refusal_of(PKStream, tar, 2, 4)
    assert "KeyError: 'name'" in refusal_of(list, PKStream(tar, 2, 4, label="json:name", steps=1))


def test_a_table_made_for_another_label_or_image_is_not_trusted(tmp_path):
    tar = tar_of_json(tmp_path / "a.tar", LABELS[:40])
    ShardIndex(tar, label="json:other", write_index=True)
    few = "of the samples would end in a batch"
    assert PKStream(tar, 4, 4, label="json:id").predicted.share > 0.9
    assert few in refusal_of(PKStream, tar, 4, 4, label="json:other")
    said = refusal_of(PKStream, tar, 2, 4, label="json:id", image="jpg")
    assert "expected samples with an image and a label" in said
    assert listed(PKStream(tar, 2, 4, label="json:id", image=".PGM"))
