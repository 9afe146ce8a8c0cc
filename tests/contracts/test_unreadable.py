"""Images that do not decode: an error, another of the class in their place, or a gap; always counted."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from tercet.core.randomness import KeyedRow
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import PairDataset, TripletDataset
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.writing import write_shards
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets

torch.set_num_threads(1)
CLASSES, EACH = 3, 4
COUNT = CLASSES * EACH
BAD = [1, 6]  # of classes 0 and 1
quiet = pytest.mark.filterwarnings("ignore:.*tells of all:UserWarning")


def make(root, bad=BAD):
    """Image n is grey n; those that are bad are cut short."""
    for row in range(COUNT):
        file = root / str(row // EACH) / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((4, 4, 3), row, dtype=np.uint8))
    catalog = scan_folder(root)
    for row in bad:
        catalog.file(row).write_bytes(catalog.file(row).read_bytes()[:40])
    return catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return make(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", params=["folder", "shards"])
def source(request, catalog, tmp_path_factory):
    if request.param == "folder":
        return catalog
    return write_shards(tmp_path_factory.mktemp("tars") / "shards", catalog, images_per_shard=4)


def small_noise(image, rng):
    """Noise below 0.5: the whole part of a pixel still says its image."""
    return (image + rng.random(image.shape) / 2).astype(np.float32)


def identity(image):
    return image.astype(np.float32)


def shown(images):
    """Which image each is, told by its grey."""
    return images[:, 0, 0, 0].long().tolist()


def reading(dataset, rows):
    """(rows, labels) of a batch, whose images are those of the rows."""
    images, labels, found = next(iter(DataLoader(dataset, batch_sampler=[rows])))
    assert shown(images) == found.tolist()
    return found.tolist(), labels.tolist()


# One image a row


@quiet
@pytest.mark.parametrize("workers", [0, 2])
def test_case_another_image_of_the_class_stands_in(source, workers):
    def epoch(workers):
        dataset = ImageDataset(source, small_noise, return_rows=True, on_unreadable="replace")
        sampler = PKSampler(source.labels, p=3, k=2, seed=1)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
        batches = [batch for _ in range(3) for batch in loader]
        return batches, dataset.unreadable()

    batches, report = epoch(workers)
    for images, labels, rows in batches:
        assert labels.unique(return_counts=True)[1].tolist() == [2, 2, 2]
        assert torch.equal(labels, rows // EACH)
        assert not set(rows.tolist()) & set(BAD)
        assert len(set(rows.tolist())) == 6  # none of the batch stands in, as there are others
        assert shown(images) == rows.tolist()
    assert report.keys() == {str(source.file(row)) for row in BAD}
    assert [times for times, _ in report.values()] == [3, 3]
    for again, batch in zip(epoch(2 - workers)[0], batches, strict=True):
        assert all(map(torch.equal, again, batch))


@quiet
def test_what_stands_in_is_drawn_by_epoch_and_named_by_its_row(catalog):
    dataset = ImageDataset(catalog, small_noise, return_rows=True, on_unreadable="replace")
    drawn = [dataset[KeyedRow(1, epoch)] for epoch in range(20)]
    assert {row for *_, row in drawn} == {0, 2, 3}
    for epoch, (image, label, row) in enumerate(drawn):
        again = dataset[KeyedRow(1, epoch)]
        assert (label, row) == (0, again[2])
        assert torch.equal(image, again[0])
        assert not torch.equal(image, dataset[KeyedRow(row, epoch)][0])  # drawn as the one asked for


@quiet
def test_an_image_of_the_batch_stands_in_where_there_is_no_other(catalog):
    dataset = ImageDataset(catalog, identity, return_rows=True, on_unreadable="replace")
    rows, labels = reading(dataset, [0, 1, 2, 3])
    assert labels == [0] * 4
    assert rows[0] == 0
    assert rows[1] in (0, 2, 3)
    assert rows[2:] == [2, 3]


@quiet
@pytest.mark.parametrize("workers", [0, 2])
def test_case_an_unreadable_image_is_skipped_and_its_batch_is_shorter(source, workers):
    dataset = ImageDataset(source, identity, return_rows=True, on_unreadable="skip")
    loader = DataLoader(dataset, 3, sampler=ShuffledSampler(COUNT), num_workers=workers)
    batches = list(loader)
    assert len(batches) == 4
    found = [row for images, _, rows in batches for row in rows.tolist()]
    assert sorted(found) == [row for row in range(COUNT) if row not in BAD]
    assert [row for images, *_ in batches for row in shown(images)] == found
    assert [times for times, _ in dataset.unreadable().values()] == [1, 1]


@quiet
def test_a_batch_of_which_nothing_is_left_is_a_sentence(catalog):
    dataset = ImageDataset(catalog, on_unreadable="skip")
    said = r'^ImageDataset\(on_unreadable="skip"\): nothing is left of a batch, as .*01.png '
    with pytest.raises(
        ValueError,
        match=said + r"and the others of its 2 images do not decode; .* on_unreadable=\"replace\"$",
    ):
        next(iter(DataLoader(dataset, batch_sampler=[[1, 6, 1]])))
    with pytest.raises(ValueError, match=said + "does not decode; .*a ConcatDataset asks for one image at"):
        ConcatDataset([dataset])[1]


@quiet
def test_a_class_that_does_not_decode_at_all_is_a_sentence(tmp_path):
    dataset = ImageDataset(make(tmp_path, bad=range(EACH)), on_unreadable="replace")
    with pytest.raises(ValueError, match=r'"replace"\): no image of the class of .*02.png decodes; '):
        dataset[2]
    assert len(dataset.unreadable()) == EACH


def test_the_first_one_is_warned_of_and_all_are_told_with_their_reasons(tmp_path):
    catalog = make(tmp_path)
    dataset = ImageDataset(catalog, on_unreadable="skip")
    assert dataset.unreadable() == {}
    with pytest.warns(UserWarning, match=r"01\.png: .*batch is shorter; ImageDataset.unreadable\(\) tells"):
        dataset.__getitems__([0, 1])
    catalog.file(6).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            dataset.__getitems__([5, 6])
    report = dataset.unreadable()
    assert list(report) == [str(catalog.file(row)) for row in BAD]
    assert [times for times, _ in report.values()] == [1, 2]
    assert [reason for _, reason in report.values()] == [
        next(reason for _, reason in report.values()),
        f"read_image: {catalog.file(6)}: the file is empty; restore the file, or leave it out with "
        "tercet.scan_folder(root, verify=True)",
    ]
    assert "does not decode" in report[str(catalog.file(1))][1]
    catalog.file(6).write_bytes(catalog.file(5).read_bytes())
    assert dataset.unreadable()[str(catalog.file(6))] == (2, "it is readable by now")


@pytest.mark.parametrize("kind", [ImageDataset, TripletDataset, PairDataset])
def test_an_option_that_is_none_is_refused(catalog, kind):
    given = {TripletDataset: RandomTriplets, PairDataset: RandomPairs}.get(kind)
    given = (given(catalog.labels), None) if given else (catalog, None)
    options = {} if kind is ImageDataset else {"catalog": catalog}
    said = rf"^{kind.__name__}\(on_unreadable='skipp'\): expected one of 'error', 'replace', 'skip'; did you"
    with pytest.raises(ValueError, match=said):
        kind(*given, on_unreadable="skipp", **options)
    with pytest.raises(ValueError, match=r"^(read|decode)_image: .*01.png: "):
        kind(*given, **options)[slice(None) if options else 1]


# Triplets and pairs


def listed(kind, catalog, mode, **options):
    sequence = (RandomTriplets if kind is TripletDataset else RandomPairs)(catalog.labels, 2, 2, seed=1)
    dataset = kind(sequence, identity, catalog=catalog, on_unreadable=mode, **options)
    return sequence, dataset


@quiet
@pytest.mark.parametrize("layout", ["unique", "interleaved"])
def test_triplets_of_a_skipped_image_are_left_out(source, layout):
    triplets, dataset = listed(TripletDataset, source, "skip", layout=layout)
    rows = np.stack(triplets[:20], axis=1)
    good = ~np.isin(rows, BAD).any(axis=1)
    assert 0 < good.sum() < 20
    batch = dataset[:20]
    found = torch.stack([batch.rows[corner] for corner in batch.triplets], dim=1)
    assert found.tolist() == rows[good].tolist()
    assert shown(batch.images) == batch.rows.tolist()
    if layout == "unique":
        assert sorted(batch.rows.tolist()) == np.unique(rows[good]).tolist()


@quiet
def test_pairs_of_a_skipped_image_are_left_out(catalog):
    pairs, dataset = listed(PairDataset, catalog, "skip")
    rows, same = np.stack(pairs[:][:2], axis=1), pairs[:].same
    good = ~np.isin(rows, BAD).any(axis=1)
    batch = dataset[:]
    found = [
        torch.stack([batch.rows[c] for c in side], 1).tolist() for side in (batch.pairs[:2], batch.pairs[2:])
    ]
    assert found == [rows[good & same].tolist(), rows[good & ~same].tolist()]


@quiet
@pytest.mark.parametrize("kind", [TripletDataset, PairDataset])
def test_what_stands_in_is_of_the_class_and_not_in_the_batch(source, kind):
    sequence, dataset = listed(kind, source, "replace")
    for number in range(len(sequence)):
        batch = dataset[[number]]
        columns = sequence[number][: 3 if kind is TripletDataset else 2]
        asked = {int(column[0]) for column in columns}
        assert len(batch.rows) == len(asked)
        assert not set(batch.rows.tolist()) & set(BAD)
        assert set(batch.rows.tolist()) >= asked - set(BAD)
        assert sorted(batch.labels.tolist()) == sorted(row // EACH for row in asked)
        assert shown(batch.images) == batch.rows.tolist()
    assert len(dataset.unreadable()) == 2


@quiet
def test_triplets_for_which_nothing_can_stand_in_are_left_out(catalog):
    triplets, dataset = listed(TripletDataset, catalog, "replace")
    batch = dataset[:]  # which holds every image
    rows = np.stack(triplets[:], axis=1)
    assert batch.triplets.count == (~np.isin(rows, BAD).any(axis=1)).sum()
    assert sorted(batch.rows.tolist()) == [row for row in range(COUNT) if row not in BAD]


@quiet
def test_a_batch_of_triplets_of_which_nothing_is_left_is_a_sentence(catalog):
    triplets, dataset = listed(TripletDataset, catalog, "skip")
    number = next(n for n in range(len(triplets)) if BAD[0] in [int(c[0]) for c in triplets[n]])
    with pytest.raises(ValueError, match=r'^TripletDataset\(on_unreadable="skip"\): nothing is left of a'):
        dataset[number]


@quiet
def test_workers_count_together_and_the_parent_reads_it(catalog):
    _, dataset = listed(TripletDataset, catalog, "replace")
    loader = DataLoader(dataset, 4, sampler=ShuffledSampler(dataset), num_workers=2, persistent_workers=True)
    counts = []
    for _ in range(2):
        batches = list(loader)
        assert sum(batch.triplets.count for batch in batches) > len(dataset) / 2
        counts.append(sum(times for times, _ in dataset.unreadable().values()))
    assert 0 < counts[0] < counts[1]
