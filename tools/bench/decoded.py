"""Images a second with decoding and augmentation, workers busy: ours and webdataset's own pipeline.

The same JPEGs, crops and flips on every side, 224 × 224 floats in batches of 64; one epoch by workers that
already run, shards warm. webdataset decodes with Pillow by itself; with OpenCV, as we do, it is the same
decoder under both.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import cv2
import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.decoding import image_tensor
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.io.images import decode_image
from tercet.data.samplers.pk import PKSampler
from tercet.data.shards.index import ShardIndex
from tercet.data.streams.pk_stream import PKStream

P, K = 16, 4
RANDOM, STREAM = "tercet, P×K at random", "tercet, PKStream"
PILLOW, OPENCV = "webdataset, its own decoding", "webdataset, OpenCV"
SIDES = [RANDOM, STREAM, PILLOW, OPENCV]
TRANSFORM = A.Compose([A.RandomResizedCrop((224, 224), scale=(0.5, 1.0)), A.HorizontalFlip(p=0.5)])


def photos(folder: Path, classes: int, each: int) -> Catalog:
    """Class folders of JPEGs of 320 × 240: large shapes, some grain."""
    draw = np.random.default_rng(0)
    for number in range(classes):
        here = folder / f"class_{number:04d}"
        here.mkdir(parents=True)
        for image in range(each):
            shapes = cv2.resize(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), (320, 240))
            grain = draw.normal(0, 6, shapes.shape)
            picture = np.clip(shapes + grain, 0, 255).astype(np.uint8)
            cv2.imwrite(str(here / f"{image:03d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return scan_folder(folder)


def augmented(image: np.ndarray) -> torch.Tensor:
    return image_tensor(TRANSFORM(image=image)["image"])


def with_opencv(samples: Iterable[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, int]]:
    """What webdataset's decode, map and to_tuple do, with the decoder of tercet."""
    for sample in samples:
        yield augmented(decode_image(sample["jpg"], sample["__key__"])), int(sample["cls"])


def loader(side: str, tars: list[Path], workers: int) -> DataLoader:
    """Batches of 64 images and labels, about every image once an epoch."""
    running: dict[str, Any] = {"num_workers": workers, "persistent_workers": True}
    if side == RANDOM:
        index = ShardIndex(tars[0].parent)
        sampler = PKSampler(index.labels, P, K)
        return DataLoader(ImageDataset(index, TRANSFORM), batch_sampler=sampler, **running)
    if side == STREAM:
        return DataLoader(PKStream(tars, P, K, TRANSFORM, lanes=min(workers, 2)), batch_size=None, **running)
    stream = wds.WebDataset([str(tar) for tar in tars], shardshuffle=len(tars), seed=0).shuffle(4 * P * K)
    if side == PILLOW:
        stream = stream.decode("rgb8").map_dict(jpg=augmented).to_tuple("jpg", "cls")
    else:
        stream = stream.compose(with_opencv)
    return DataLoader(stream.batched(P * K), batch_size=None, **running)


def rates(tars: list[Path], workers: int, rounds: int = 3) -> dict[str, float]:
    """Images a second of each side, the median of rounds in which they take turns."""
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    cv2.setNumThreads(1)  # as many threads as workers, on every side
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES if turn % 2 else SIDES[::-1]:
            batches = loader(side, tars, workers)
            for _ in batches:  # an epoch in which the workers start
                pass
            start, count = time.perf_counter(), 0
            for images, _ in batches:
                count += len(images)
            found[side].append(count / (time.perf_counter() - start))
            del batches
    return {side: statistics.median(some) for side, some in found.items()}
