"""What it saves to embed each image of a batch of triplets once: images and seconds for 10,000 triplets.

    python tools/bench/bench_dedup.py [TREE] [--positives 10] [--negatives 5]

TREE is a folder of class folders, nested or not, such as Omniglot's; without it, the digits of scikit-learn.
Each way decodes, embeds and backpropagates batches of as many triplets of one sequence, all ways in turn,
several times over; the fastest time of each batch counts. The loss of both layouts of the same batches is
compared as well. A row's ratio is its seconds beside those of three images a triplet, in the same run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import tercet

SIZE = 32
ANCHORS = 16


def small(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def write_digits(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        (root / str(digit)).mkdir(exist_ok=True)
        cv2.imwrite(str(root / str(digit) / f"{number}.png"), (image * 15.9).astype("uint8"))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(wide, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64))


class Ways:
    """The ways to come from triplet numbers to (images, triplets), of which each is timed."""

    def __init__(self, triplets: Any, catalog: Any) -> None:
        self.triplets = triplets
        self.images = tercet.ImageDataset(catalog, small)
        self.once = tercet.TripletDataset(triplets, small, catalog=catalog)

    def three_each(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Any]:
        """q p n q p n …, each decoded where it stands: what a data set of triplets does one at a time."""
        rows = np.stack(self.triplets[np.array(numbers)], axis=1).ravel().tolist()
        images = torch.stack([self.images[row][0] for row in rows])
        return images, tercet.Triplets(*map(torch.from_numpy, tercet.Triplets.interleaved(len(numbers))))

    def each_once(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Any]:
        batch = self.once[list(numbers)]
        return batch.images, batch.triplets


def shuffled(triplets: Any, size: int, count: int) -> list[list[int]]:
    drawn = iter(tercet.ShuffledSampler(len(triplets)))
    return [list(islice(drawn, size)) for _ in range(count)]


def grouped(triplets: Any, labels: Any, per_class: int, count: int) -> list[list[int]]:
    sampler = tercet.AnchorSampler(triplets, ANCHORS, per_class=per_class, labels=labels)
    return list(islice(iter(sampler), count))


def step(model: nn.Module, head: nn.Module, images: torch.Tensor, triplets: Any) -> float:
    model.zero_grad()
    loss = head(model(images), mined=triplets)
    loss.backward()
    return loss.item()


def timed(
    ways: dict[str, tuple[Callable, list[list[int]]]], repeats: int, model: nn.Module, head: nn.Module
) -> Iterator[tuple[str, float, float, float]]:
    """Each way's name, images, seconds of data and seconds of the model, a triplet each."""
    best = {name: np.full((len(batches), 2), np.inf) for name, (_, batches) in ways.items()}
    images = dict.fromkeys(ways, 0)
    for repeat in range(repeats):
        for nth in range(max(len(batches) for _, batches in ways.values())):
            for name, (load, batches) in ways.items():
                if nth >= len(batches):
                    continue
                begin = time.perf_counter()
                pictures, mined = load(batches[nth])
                middle = time.perf_counter()
                step(model, head, pictures, mined)
                spent = middle - begin, time.perf_counter() - middle
                best[name][nth] = np.minimum(best[name][nth], spent)
                images[name] += len(pictures) if repeat == 0 else 0
    for name, (_, batches) in ways.items():
        count = sum(map(len, batches))
        yield name, images[name] / count, *(best[name].sum(axis=0) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", nargs="?", help="a folder of class folders; the digits without it")
    parser.add_argument("--positives", type=int, default=10)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="of each way")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not options.tree:
            write_digits(Path(folder))
        catalog = tercet.scan_folder(options.tree or folder)
        compare(catalog, options)


def compare(catalog: Any, options: argparse.Namespace) -> None:
    triplets = tercet.RandomTriplets(catalog.labels, options.positives, options.negatives)
    model, head = network(), tercet.TripletMargin(margin=1.0, distance="squared_euclidean")
    ways = Ways(triplets, catalog)
    by_class = {
        per_class: grouped(triplets, catalog.labels, per_class, options.batches) for per_class in (1, 4, 16)
    }
    size = len(by_class[1][0])
    drawn = shuffled(triplets, size, options.batches)
    print(f"{catalog}: {triplets}\n{size} triplets a batch, images of {SIZE}×{SIZE}, one thread\n")
    table = {
        "three images a triplet": (ways.three_each, drawn),
        "shuffled triplets, each image of a batch once": (ways.each_once, drawn),
        **{
            f"AnchorSampler({ANCHORS}" + (f", per_class={per_class})" if per_class > 1 else ")"): (
                ways.each_once,
                batches,
            )
            for per_class, batches in by_class.items()
        },
    }
    print(f"{'':46}{'images':>10}{'data s':>10}{'model s':>10}{'both s':>10}{'ratio':>8}")
    print(f"{'':46}{'a triplet':>10}{'for 10,000 triplets':>30}")
    whole = None
    for name, images, data, network_time in timed(table, options.repeats, model, head):
        seconds = 1e4 * np.array([data, network_time, data + network_time])
        whole = whole or seconds[2]
        shown = "".join(f"{each:10.2f}" for each in (images, *seconds))
        print(f"{name:46}{shown}{seconds[2] / whole:8.2f}")
    differences = [
        abs(step(model, head, *ways.each_once(batch)) / step(model, head, *ways.three_each(batch)) - 1)
        for batch in by_class[4]
    ]
    print(f"\nlargest relative difference of the loss of the same triplets: {max(differences):.1e}")
    if max(differences) > 1e-6:
        sys.exit("the two layouts do not have the same loss")


if __name__ == "__main__":
    main()
