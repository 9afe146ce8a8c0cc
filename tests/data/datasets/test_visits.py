"""Augmentation is fresh each epoch, whatever sampler asks for the rows, and whatever workers answer."""

from __future__ import annotations

import copy
import os
import pickle
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler, Subset, random_split

import tercet.data.datasets.visits
from tercet.core.randomness import KeyedRow
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import PairDataset, TripletDataset
from tercet.data.datasets.visits import Visits
from tercet.data.samplers.by_anchor import AnchorSampler
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.writing import write_shards
from tercet.data.streams.iterator import SharedEpochs
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets

torch.set_num_threads(1)
COUNT = 12
WORKERS = pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), (2, False), (2, True)], ids=["0", "2", "2 persistent"]
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for row in range(COUNT):
        (root / str(row // 4)).mkdir(exist_ok=True)
        cv2.imwrite(str(root / str(row // 4) / f"{row:02d}.png"), np.full((2, 2, 3), row, dtype=np.uint8))
    return scan_folder(root)


def noise(image, rng):
    """Numbers of 52 bits: that two draws agree by chance has no chance."""
    return image + rng.random(image.shape)


def images_of(catalog, **options):
    return ImageDataset(catalog, noise, return_rows=True, **options)


def pixels(batches):
    """Every image of an epoch, as bytes."""
    return [image.numpy().tobytes() for images, *_ in batches for image in images]


def plain_loader(kind, catalog, generator=None, **options):
    """A loader of plain rows, shuffled by torch: with a generator of its own, in the same way again."""
    torch.manual_seed(0)
    dataset = images_of(catalog)
    if kind == "Subset":
        dataset = Subset(dataset, [1, 2, 5, 7])
    elif kind == "Subset of a Subset":
        dataset = Subset(Subset(dataset, range(1, 9)), [0, 3, 4])
    elif kind == "random_split":
        dataset = random_split(dataset, [7, 5])[0]
    elif kind == "ConcatDataset":
        dataset = ConcatDataset([dataset, images_of(catalog, seed=1)])
    elif kind == "triplets":
        dataset = TripletDataset(RandomTriplets(catalog.labels, 2, 2), noise, catalog=catalog)
    elif kind == "triplets, Subset":
        dataset = Subset(TripletDataset(RandomTriplets(catalog.labels), noise, catalog=catalog), range(5))
    elif kind == "pairs":
        dataset = PairDataset(RandomPairs(catalog.labels, 2, 2), noise, catalog=catalog)
    elif kind == "PKSampler, Subset":
        rows = range(2, 11)
        sampler = PKSampler(catalog.labels[rows], p=2, k=2)
        return DataLoader(Subset(dataset, rows), batch_sampler=sampler, **options)
    if generator is not None and kind != "in order":
        return DataLoader(dataset, 3, sampler=RandomSampler(dataset, generator=generator), **options)
    return DataLoader(dataset, 3, shuffle=kind != "in order", **options)


KINDS = ["shuffle", "Subset", "random_split", "ConcatDataset"]
MORE_KINDS = ["Subset of a Subset", "in order", "PKSampler, Subset", "triplets", "triplets, Subset", "pairs"]


@WORKERS
@pytest.mark.parametrize("kind", KINDS)
def test_case_augmentation_frozen_under_a_plain_sampler(catalog, kind, workers, persistent):
    loader = plain_loader(kind, catalog, num_workers=workers, persistent_workers=persistent)
    first, second = pixels(loader), pixels(loader)
    assert first
    assert len(first) == len(set(first))
    assert not set(first) & set(second)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_any_other_way_to_ask_for_plain_rows_is_fresh_too(catalog, kind, workers):
    loader = plain_loader(kind, catalog, num_workers=workers)
    first, second = pixels(loader), pixels(loader)
    assert len(first) == len(set(first)) > 0
    assert not set(first) & set(second)


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_the_same_order_of_requests_gives_the_same_draws(catalog, kind):
    def epochs(**options):
        generator = torch.Generator().manual_seed(1)
        loader = plain_loader(kind, catalog, generator, **options)
        return [pixels(loader) for _ in range(2)]

    alone = epochs()
    assert epochs() == alone
    if kind != "PKSampler, Subset":  # else a row can come twice an epoch, and to two workers at once
        assert epochs(num_workers=2, persistent_workers=True) == alone


def test_a_row_drawn_with_replacement_is_drawn_anew_within_the_epoch(catalog):
    def epoch():
        dataset = images_of(catalog)
        generator = torch.Generator().manual_seed(0)
        sampler = RandomSampler(dataset, replacement=True, num_samples=3 * COUNT, generator=generator)
        return pixels(DataLoader(dataset, 3, sampler=sampler))

    assert len(set(epoch())) == 3 * COUNT
    assert epoch() == epoch()


def test_other_loaders_of_a_dataset_go_on_where_the_first_was(catalog):
    dataset, seen = images_of(catalog), []
    for workers in (0, 2, 0):
        seen += pixels(DataLoader(dataset, 4, num_workers=workers))
    assert len(set(seen)) == 3 * COUNT


def test_spawned_workers_count_in_the_same_memory(catalog):
    dataset, seen = images_of(catalog), []
    for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn"}, {}):
        seen += pixels(DataLoader(dataset, 4, **options))
    assert len(set(seen)) == 3 * COUNT


def test_a_row_is_drawn_as_the_view_that_it_is_asked_for(catalog):
    dataset = images_of(catalog)
    seen = [dataset[4][0] for _ in range(3)]
    for view, image in enumerate(seen):
        assert torch.equal(image, dataset[KeyedRow(4, 0, view)][0])
    dataset.set_epoch(7)
    assert torch.equal(dataset[4][0], dataset[KeyedRow(4, 7)][0])
    assert torch.equal(dataset[4][0], dataset[KeyedRow(4, 7, view=1)][0])
    pair = ImageDataset(catalog, noise, views=2)
    assert len({image.numpy().tobytes() for _ in range(3) for image in pair[4][0]}) == 6


@pytest.mark.parametrize("kind", ["images", "triplets", "pairs"])
def test_an_epoch_that_was_set_is_the_same_again_and_moves_on_when_it_was_not_set_anew(catalog, kind):
    dataset = {
        "images": images_of(catalog),
        "triplets": TripletDataset(RandomTriplets(catalog.labels), noise, catalog=catalog),
        "pairs": PairDataset(RandomPairs(catalog.labels), noise, catalog=catalog),
    }[kind]
    loaders = [DataLoader(dataset, 5), DataLoader(dataset, 5, num_workers=2)]
    runs = []
    for loader in loaders:
        dataset.set_epoch(3)
        runs.append([pixels(loader), pixels(loader)])
    assert runs[0] == runs[1]
    dataset.set_epoch(4)
    epochs = [*runs[0], pixels(loaders[0])]
    assert not any(set(a) & set(b) for a, b in pairwise([*epochs, epochs[0]]))


def test_a_batch_of_plain_numbers_holds_each_image_once_after_dropped_batches(catalog):
    triplets = RandomTriplets(catalog.labels, 2, 2)
    dataset = TripletDataset(triplets, noise, catalog=catalog)
    torch.manual_seed(0)
    sampler = RandomSampler(dataset, num_samples=20)
    for _ in range(3):
        for batch in DataLoader(dataset, 10, sampler=sampler):
            assert len(batch.rows) == len(set(batch.rows.tolist()))


def test_a_sequence_longer_than_its_counters_is_fresh_too(catalog, monkeypatch):
    monkeypatch.setattr("tercet.data.datasets.triplet_dataset.MOST_COUNTERS", 2)
    loader = plain_loader("triplets", catalog)
    seen = [image for _ in range(3) for image in pixels(loader)]
    assert len(seen) == len(set(seen))


def test_numbers_that_share_a_counter_never_get_one_view_twice():
    visits = Visits("ImageDataset", 2)
    numbers = [0, 2, 4, 1]
    seen = [pair for _ in range(3) for pair in zip(numbers, visits.views(numbers), strict=True)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("how", ["RANK", "torch.distributed", "spawned"])
def test_processes_that_train_together_draw_apart(catalog, how, monkeypatch):
    # As DistributedSampler does: what rank 0 takes in one epoch, rank 1 takes in another.
    def on_rank(rank):
        with monkeypatch.context() as patch:
            if how == "RANK":
                patch.setenv("RANK", str(rank))
            if how != "RANK":
                told = SimpleNamespace(
                    is_available=lambda: True, is_initialized=lambda: True, get_rank=lambda: rank
                )
                patch.setattr(tercet.data.datasets.visits, "dist", told)
            dataset = images_of(catalog)
            if how == "spawned":  # its workers have joined no process group
                dataset = pickle.loads(pickle.dumps(dataset))
                patch.setattr(told, "is_initialized", lambda: False)
            return dataset[4][0].numpy().tobytes()

    assert len({on_rank(rank) for rank in range(3)}) == 3


def test_spawned_workers_of_two_ranks_draw_apart_where_RANK_is_that_of_the_node(catalog, monkeypatch):
    monkeypatch.setenv("RANK", "0")

    def on_rank(rank):
        with monkeypatch.context() as patch:
            joined = {"is_available": lambda: True, "is_initialized": lambda: True, "get_rank": lambda: rank}
            patch.setattr(tercet.data.datasets.visits, "dist", SimpleNamespace(**joined))
            sent = pickle.dumps(images_of(catalog))
            patch.setattr(tercet.data.datasets.visits.dist, "is_initialized", lambda: False)
            worker = pickle.loads(sent)
            in_a_worker(patch)
            with pytest.warns(UserWarning, match="shares no memory"):
                return worker[4][0].numpy().tobytes()

    assert on_rank(0) != on_rank(1)


def test_a_rank_that_is_no_number_is_passed_over(catalog, monkeypatch):
    expected = images_of(catalog)[4][0]
    monkeypatch.setenv("RANK", "first")
    assert torch.equal(images_of(catalog)[4][0], expected)


# Rows of our samplers


def test_rows_of_a_sampler_stay_keyed_in_a_concat_dataset(catalog):
    # They resume exactly, so nothing may be counted.
    joined = ConcatDataset([images_of(catalog), images_of(catalog, seed=1)])
    expected = pixels(DataLoader(joined, 6, sampler=ShuffledSampler(joined)))
    sampler = ShuffledSampler(joined)
    sampler.set_epoch(0, step=6)
    again = DataLoader(ConcatDataset(joined.datasets), 6, sampler=sampler, num_workers=1)
    assert pixels(again) == expected[6:]
    assert not set(pixels(again)) & set(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_subset_resumes_exactly_where_set_epoch_is_called_before_each_epoch(catalog, workers):
    def epoch(number, step, rows=range(1, 11)):
        dataset = images_of(catalog)
        sampler = ShuffledSampler(rows)
        dataset.set_epoch(number)
        sampler.set_epoch(number, step)
        return pixels(DataLoader(Subset(dataset, rows), 2, sampler=sampler, num_workers=workers))

    assert epoch(3, step=4) == epoch(3, step=0)[4:]
    assert not set(epoch(3, step=0)) & set(epoch(4, step=0))


def test_a_keyed_row_less_an_offset_is_keyed():
    row = KeyedRow(9, epoch=3, view=2) - 4
    assert (row, row.epoch, row.view) == (5, 3, 2)
    with pytest.raises(TypeError, match="unsupported operand"):
        KeyedRow(9) - "4"


def test_keyed_rows_are_not_counted(catalog):
    dataset = images_of(catalog)
    loader = DataLoader(dataset, batch_sampler=PKSampler(catalog.labels, p=2, k=2))
    list(loader)
    triplets = RandomTriplets(catalog.labels)
    listed = TripletDataset(triplets, noise, catalog=catalog)
    list(DataLoader(listed, batch_sampler=AnchorSampler(triplets, 3)))
    for counted in (dataset, listed):
        assert not counted._decoder.visits._shared.array.any()


@WORKERS
def test_a_stream_is_fresh_each_epoch(catalog, tmp_path, workers, persistent):
    write_shards(tmp_path / "shards", catalog)
    stream = PKStream(tmp_path / "shards", 2, 2, noise, steps=3)
    loader = DataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=persistent)
    first, second = pixels(loader), pixels(loader)
    assert len(first) == len(set(first)) == 12
    assert not set(first) & set(second)


# Copies


@pytest.mark.parametrize("clone", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_a_copy_goes_on_and_counts_for_itself(catalog, clone):
    dataset = images_of(catalog)
    first = dataset[4][0]
    other = clone(dataset)
    assert torch.equal(other[4][0], dataset[4][0])
    assert not torch.equal(other[4][0], first)
    loader = DataLoader(other, 4, num_workers=2)
    assert not set(pixels(loader)) & set(pixels(loader))


def in_a_worker(monkeypatch):
    monkeypatch.setattr(tercet.data.datasets.visits, "get_worker_info", lambda: SimpleNamespace(id=0))


def test_case_a_copy_that_a_worker_unpickled_warns_once_with_the_way_out(catalog, monkeypatch):
    copied = pickle.loads(pickle.dumps(images_of(catalog)))
    in_a_worker(monkeypatch)
    said = "may repeat its augmentations; use a sampler of tercet, such as ShuffledSampler, or call set_epoch"
    with pytest.warns(UserWarning, match=said) as caught:
        copied[0], copied[1]
    assert len(caught) == 1


def test_a_copy_made_before_the_worker_was_forked_is_shared_and_does_not_warn(catalog, monkeypatch, recwarn):
    copied = pickle.loads(pickle.dumps(images_of(catalog)))
    in_a_worker(monkeypatch)
    parent = os.getpid()
    monkeypatch.setattr(tercet.data.datasets.visits.os, "getpid", lambda: parent + 1)
    copied[0]
    keyed = pickle.loads(pickle.dumps(images_of(catalog)))
    keyed[KeyedRow(0)]
    assert not list(recwarn)


def test_without_shared_memory_the_sentence_says_what_to_enlarge(catalog, monkeypatch):
    def fails(tensor):
        raise RuntimeError("unable to allocate shared memory(shm)\nat line 7")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fails)
    with pytest.raises(OSError, match=r"^ImageDataset: expected 48 bytes of shared memory .*; enlarge it, "):
        tercet.data.datasets.visits.SharedCounts("ImageDataset", COUNT)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
@pytest.mark.parametrize("make", [images_of, lambda _: SharedEpochs()], ids=["dataset", "stream"])
def test_a_dataset_takes_one_file_descriptor(catalog, make):
    before = len(os.listdir("/proc/self/fd"))
    many = [make(catalog) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) - before == len(many)


def test_where_file_descriptors_run_out_the_sentence_names_their_limit(catalog):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    many = []
    try:
        with pytest.raises(
            OSError, match=r"^ImageDataset: .*Too many open files.*; raise the limit of open "
        ):
            many += [images_of(catalog) for _ in range(100)]
        with pytest.raises(OSError, match=r"^PKStream: .* for epochs, .*; raise the limit of open files"):
            many += [SharedEpochs() for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dataset_without_transform_needs_one_counter(catalog):
    dataset = ImageDataset(catalog)
    assert len(dataset._decoder.visits._shared.array) == 2  # one, and the epoch
    assert torch.equal(dataset[3][0], dataset[3][0])
