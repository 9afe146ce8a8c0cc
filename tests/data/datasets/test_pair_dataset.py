"""Manifests of pairs train: each image of a batch once, and the pairs that heads take."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from tercet.core.indices import Pairs
from tercet.core.randomness import KeyedRow
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import PairBatch, PairDataset, TripletDataset
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.by_anchor import AnchorSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.writing import write_shards
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tercet.losses.pair import Contrastive
from tests.helpers import noise, unchecked

torch.set_num_threads(1)
COUNT, EACH = 12, 4


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for row in range(COUNT):
        (root / str(row // EACH)).mkdir(exist_ok=True)
        image = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        cv2.imwrite(str(root / str(row // EACH) / f"{row:02d}.png"), image)
    return scan_folder(root)


@pytest.fixture(scope="module", params=[".parquet", ".arrow", ".csv", ".txt"])
def manifest(request, catalog, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifests") / f"pairs{request.param}"
    write_manifest(path, RandomPairs(catalog.labels, 2, 3, seed=1), catalog)
    return read_manifest(path, root=catalog.root)


def pairs_of(batch):
    """The pairs of a batch as catalog rows, each with whether it is positive, in any order."""
    first, second, third, fourth = (batch.rows[column].tolist() for column in batch.pairs)
    return sorted(
        [
            *zip(first, second, [True] * len(first), strict=True),
            *zip(third, fourth, [False] * len(third), strict=True),
        ]
    )


def listed(pairs, numbers):
    return sorted(zip(*(column.tolist() for column in pairs[np.array(numbers)]), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_case_a_manifest_of_pairs_trains(manifest, catalog, workers):
    dataset = PairDataset(manifest)
    sampler = ShuffledSampler(dataset, seed=2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    seen = []
    for images, pairs, labels, rows in DataLoader(dataset, 16, sampler=sampler, num_workers=workers):
        assert type(pairs) is Pairs
        assert {column.dtype for column in (*pairs, labels, rows)} == {torch.int64}
        assert len(images) == len(rows) == len(set(rows.tolist())) <= COUNT
        assert torch.equal(labels, rows // EACH)
        seen += pairs_of(PairBatch(images, pairs, labels, rows))
        Contrastive()(model(images), labels, pairs).backward()
    assert sorted(seen) == listed(manifest, range(len(manifest)))
    assert model[1].weight.grad.abs().sum() > 0


def test_a_batch_equals_its_pairs_one_at_a_time(catalog):
    sequence = RandomPairs(catalog.labels, 2, 3)
    dataset = PairDataset(sequence, noise, catalog=catalog, seed=4)
    images = ImageDataset(catalog, noise, seed=4)
    numbers = [7, 0, 33, 7, len(dataset) - 1]
    batch = dataset[[KeyedRow(number, epoch=2) for number in numbers]]
    assert pairs_of(batch) == listed(sequence, numbers)
    for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
        assert torch.equal(image, images[KeyedRow(row, 2)][0])


@pytest.mark.parametrize("numbers", [[0, 1], [2, 3, 4], slice(0, 5), 3, np.array([4])])
def test_positive_and_negative_pairs_alone_or_together(catalog, numbers):
    sequence = RandomPairs(catalog.labels, 2, 3)
    batch = PairDataset(sequence, catalog=catalog)[numbers]
    found = sequence[numbers]
    assert (len(batch.pairs.positive), len(batch.pairs.negative)) == (found.same.sum(), (~found.same).sum())
    assert batch.pairs.count == found.count


def test_batches_move_pin_and_join(catalog, monkeypatch):
    sequence = RandomPairs(catalog.labels, 1, 1)
    dataset = PairDataset(sequence, catalog=catalog)
    moved = dataset[:4].to("meta")
    assert {t.device.type for t in (moved.images, moved.labels, moved.rows, *moved.pairs)} == {"meta"}
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(1) or self)
    dataset[:4].pin_memory()
    assert len(pinned) == 7
    joined = next(iter(DataLoader(ConcatDataset([dataset, dataset]), batch_size=2 * len(dataset))))
    assert pairs_of(joined) == sorted(2 * listed(sequence, range(len(sequence))))


def test_shards_give_the_pairs_of_the_folder(catalog, tmp_path):
    index = write_shards(tmp_path / "shards", catalog, images_per_shard=4)
    sequence = RandomPairs(catalog.labels)
    own, read = (PairDataset(sequence, catalog=source)[:] for source in (catalog, index))
    assert torch.equal(own.images, read.images)
    assert pairs_of(own) == pairs_of(read)


@pytest.mark.parametrize(
    "of", [lambda given: Subset(given, [0, 1]), lambda given: [(0, 1, 2)], lambda given: np.zeros((4, 3))]
)
def test_what_is_no_sequence_of_triplets_is_refused_when_it_is_given(catalog, of):
    given = of(RandomTriplets(catalog.labels))
    for call in (lambda: TripletDataset(given, catalog=catalog), lambda: AnchorSampler(given)):
        with pytest.raises(
            ValueError, match=r"expected a Manifest or another sequence of triplets or pairs$"
        ):
            call()


def test_columns_are_refused_with_the_way_to_a_sequence_of_them(catalog):
    triplets, pairs = RandomTriplets(catalog.labels)[:5], RandomPairs(catalog.labels)[:5]
    hint = "not their columns; write them with tercet.write_manifest, and pass what read_manifest gives$"
    for kind, given in ((TripletDataset, triplets), (PairDataset, pairs)):
        with pytest.raises(ValueError, match=rf"^{kind.__name__}\(manifest=.*{hint}"):
            kind(given, catalog=catalog)


def test_the_damage_of_a_manifest_is_told_and_no_other_reason(catalog):
    class Damaged:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            raise ValueError("m.parquet: damaged")

    for call in (lambda given: TripletDataset(given, catalog=catalog), AnchorSampler):
        with unchecked(), pytest.raises(ValueError, match=r"^m.parquet: damaged$"):
            call(Damaged())


def test_pairs_and_triplets_are_not_mistaken_for_each_other(catalog, manifest):
    hint = r"; TripletDataset takes triplets, and PairDataset pairs$"
    with pytest.raises(ValueError, match=r"^PairDataset\(manifest=.* another sequence of pairs" + hint):
        PairDataset(RandomTriplets(catalog.labels), catalog=catalog)
    with pytest.raises(ValueError, match=r"^TripletDataset\(manifest=Manifest\(60 pairs.*triplets" + hint):
        TripletDataset(manifest)
    with pytest.raises(ValueError, match=r"^PairDataset\(catalog=None\): expected the Catalog that the"):
        PairDataset(RandomPairs(catalog.labels))
    with pytest.raises(ValueError, match=r"^PairDataset\(index=\[\]\): expected at least one pair$"):
        PairDataset(manifest)[[]]
    with pytest.raises(IndexError, match=r"^PairDataset: expected numbers from -60 to 59, got 60$"):
        PairDataset(manifest)[60]
    with pytest.raises(ValueError, match=r"^PairDataset\(manifest='a pair with row \d+'\): expected rows"):
        PairDataset(RandomPairs(catalog.labels), catalog=catalog.select(range(5)))[:]
