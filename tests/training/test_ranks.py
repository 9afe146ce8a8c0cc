"""Samplers, streams and memory on two ranks: real processes that meet at every step, as a training loop's do.

Each step ends in an all-reduce, as DDP's backward does: ranks with different numbers of steps would wait for
each other until the group's timeout, and fail.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.utils.data import DataLoader

from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.datasets.triplet_dataset import TripletDataset
from tercet.data.samplers.by_anchor import AnchorSampler
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.random import RandomTriplets
from tercet.training.distributed import gather, rank, world_size
from tercet.training.memory import CrossBatchMemory

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import cv2

WORLD, EPOCHS = 2, 2
CLASSES, EACH = 10, 5
COUNT = CLASSES * EACH
P, K = 3, 2
MEMORY = 20
STOP = 1, 2  # the epoch, and the step of it that the resumed runs begin at


def flat(image):
    return torch.from_numpy(image.copy()).reshape(-1)[:4].float()


def parts(folder, r, world):
    """Of each kind: what keeps the position, and a loader of (values, labels, rows)."""
    catalog = scan_folder(folder / "photos")
    ranks = {"rank": r, "world_size": world, "seed": 1}
    images = ImageDataset(catalog, flat, return_rows=True)
    manifest = RandomTriplets(catalog.labels, positives=2, negatives=1, seed=0)
    triplets = TripletDataset(manifest, flat, catalog=catalog)
    pk = PKSampler(catalog.labels, P, K, **ranks)
    shuffled = ShuffledSampler(images, **ranks)
    anchored = AnchorSampler(manifest, anchors=7, **ranks)
    stream = PKStream(folder / "shards", P, K, flat, buffer=30, return_keys=True, **ranks)
    return {
        "PKSampler": (pk, DataLoader(images, batch_sampler=pk)),
        "ShuffledSampler": (shuffled, DataLoader(images, batch_size=8, sampler=shuffled)),
        "AnchorSampler": (anchored, DataLoader(triplets, batch_sampler=anchored, collate_fn=anchors)),
        "PKStream": (stream, DataLoader(stream, None, num_workers=1, persistent_workers=True)),
    }


def anchors(batch):
    """The rows of a batch's triplets, not its images: those of two ranks may have some in common."""
    _, triplets, labels, rows = batch[0]
    corners = [tuple(rows[corner].tolist() for corner in each) for each in zip(*triplets, strict=True)]
    return torch.zeros(len(corners), 4), labels[triplets.anchor], corners


def run(loader, epochs=EPOCHS):
    """[epoch][step] of a rank as (labels, rows), each step waiting for the other rank."""
    seen = []
    for _ in range(epochs):
        steps = []
        for _, labels, rows in loader:
            here = torch.ones(1)
            dist.all_reduce(here)
            assert here.item() == WORLD
            steps.append((labels.tolist(), rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)))
        seen.append(steps)
    return seen


def remembered(folder, r):
    """The memory after each step, fed with what all ranks gathered."""
    _, loader = parts(folder, r, WORLD)["PKSampler"]
    memory, states = CrossBatchMemory(MEMORY, 4), []
    for images, labels, rows in loader:
        _, batch = gather(images, labels, rows)
        memory.update(*batch)
        states.append({name: part.clone() for name, part in memory.state_dict().items()})
    return states


def worker(r, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=r,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )
    seen = {}
    for name, (position, loader) in parts(folder, rank(), world_size()).items():
        seen[name] = run(loader)
        # What rank 0 saves serves every rank, though each has batches of its own.
        step = STOP[1] * 8 if name == "ShuffledSampler" else STOP[1]
        saved = [position.state_at(STOP[0], step) if r == 0 else None]
        dist.broadcast_object_list(saved)
        position.load_state_dict(saved[0])
        seen[f"{name} resumed"] = run(loader, 1)[0]
    seen["memory"] = remembered(folder, r)
    torch.save(seen, folder / f"{r}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        file = folder / "photos" / f"{number % CLASSES}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    write_shards(folder / "shards", scan_folder(folder / "photos"), images_per_shard=7)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each of two processes saw."""
    torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(WORLD)]


@pytest.fixture(scope="module")
def alone(folder):
    """What they would have seen if each did not know its rank."""
    found = {}
    for name, (_, loader) in parts(folder, 0, 1).items():
        found[name] = [
            [(y.tolist(), r.tolist() if torch.is_tensor(r) else list(r)) for _, y, r in loader]
            for _ in range(EPOCHS)
        ]
    return found


def faults(epoch, least, p=None):
    """What is wrong with an epoch, given as [rank][step] of (labels, rows); by plain counting.

    Args:
        epoch: of each rank its steps.
        least: how many different rows the ranks have to see together.
        p: the classes in a batch, on each rank, where it is one of p classes with K rows each.
    """
    found = []
    if len({len(steps) for steps in epoch}) > 1:
        found.append(f"steps {[len(steps) for steps in epoch]}")
    for number, step in enumerate(zip(*epoch, strict=False)):  # the lengths are compared above
        rows = [row for _, rows in step for row in set(rows)]
        if len(set(rows)) < len(rows):
            found.append(f"step {number}: the ranks share rows")
        if p is None:
            continue
        for labels, _ in step:
            if sorted(Counter(labels).values()) != [K] * p:
                found.append(f"step {number}: not P×K")
    every = {row for steps in epoch for _, rows in steps for row in rows}
    return found + [f"{len(every)} rows"] * (len(every) < least)


def epochs_of(ranks, name):
    return zip(*(seen[name] for seen in ranks), strict=True)


def test_pk_sampler_gives_ranks_other_classes_of_each_step_and_every_image(ranks):
    for epoch in epochs_of(ranks, "PKSampler"):
        assert not faults(epoch, COUNT, P)
        for step in zip(*epoch, strict=True):  # the classes too are those of one rank only
            assert len({label for labels, _ in step for label in labels}) == P * WORLD


def test_shuffled_sampler_gives_ranks_disjoint_rows_that_cover(ranks):
    for epoch in epochs_of(ranks, "ShuffledSampler"):
        assert not faults(epoch, COUNT)
        drawn = [row for steps in epoch for _, rows in steps for row in rows]
        assert len(drawn) == COUNT


def test_anchor_sampler_gives_each_triplet_to_one_rank(ranks):
    for epoch in epochs_of(ranks, "AnchorSampler"):
        assert not faults(epoch, 2 * COUNT)
        drawn = [row for steps in epoch for _, rows in steps for row in rows]
        assert len(drawn) == 2 * COUNT


def test_streams_have_equally_many_steps_of_p_times_k_from_shards_of_their_own(ranks):
    for epoch in epochs_of(ranks, "PKStream"):
        assert not faults(epoch, COUNT // 2, P)
        keys = [{key for _, keys in steps for key in keys} for steps in epoch]
        assert not {key.split("/")[0] for key in keys[0]} & {key.split("/")[0] for key in keys[1]}


@pytest.mark.parametrize("name", ["PKSampler", "ShuffledSampler", "AnchorSampler", "PKStream"])
def test_epochs_differ_and_every_rank_resumes_from_one_state(ranks, name):
    for seen in ranks:
        assert len({str(epoch) for epoch in seen[name]}) == EPOCHS
        epoch, step = STOP
        assert seen[f"{name} resumed"] == seen[name][epoch][step:]
        assert seen[f"{name} resumed"]


def test_a_memory_of_gathered_columns_is_the_same_on_all_ranks_at_every_step(ranks):
    states = [seen["memory"] for seen in ranks]
    assert len(states[0]) == len(states[1]) == len(ranks[0]["PKSampler"][0])
    for step, both in enumerate(zip(*states, strict=True)):
        for name in both[0]:
            assert torch.equal(both[0][name], both[1][name])
        # It holds the last rows of all ranks: of each step rank 0's, then rank 1's.
        drawn = [row for s in range(step + 1) for seen in ranks for row in seen["PKSampler"][0][s][1]]
        kept = both[0]["ids"].roll(-(len(drawn) % MEMORY) if len(drawn) >= MEMORY else 0)
        assert kept[: len(drawn)].tolist() == drawn[-MEMORY:]


def test_ranks_that_do_not_know_theirs_see_the_same_batches(alone):
    # Which is the harm, and what the check has to see.
    for name, p in (("PKSampler", P), ("ShuffledSampler", None), ("AnchorSampler", None), ("PKStream", P)):
        for epoch in alone[name]:
            assert "step 0: the ranks share rows" in faults([epoch, epoch], 0, p)


def test_the_check_of_ranks_names_every_fault(ranks):
    epoch = [list(seen["PKSampler"][0]) for seen in ranks]
    assert not faults(epoch, COUNT, P)
    labels, rows = epoch[1][0]
    assert faults([epoch[0], epoch[1][:-1]], 0, P)[0].startswith("steps [")
    assert "step 0: not P×K" in faults([epoch[0], [(labels[1:], rows[1:]), *epoch[1][1:]]], 0, P)
    assert faults([epoch[0]], COUNT, P) == [f"{len({r for _, rows in epoch[0] for r in rows})} rows"]
