#!/usr/bin/env python
"""Random P×K reads from tar shards by offset, beside webdataset reading the same shards from front to back.

    python tools/bench/bench_shards.py [--quick] [--folder .]

The images are random bytes of a JPEG's size and are not decoded; each side hands out the bytes of every
image about once, ours in the batches of `PKSampler`. Cold: the system is told to forget the tars before
(what a disk or a host behind it remembers is out of reach, on both sides alike). The sides take turns; every
figure is the median of the rounds, and the ratio that of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset as wds

from tercet.catalog import Catalog, scan_folder
from tercet.samplers import PKSampler
from tercet.sharding import write_shards
from tercet.shards import ShardIndex

FULL = {"classes": 1_000, "each": 20, "mean": 30_000, "rounds": 5}
QUICK = {"classes": 200, "each": 20, "mean": 30_000, "rounds": 3}
P, K = 16, 4
MEGABYTE = 1e6


def made(folder: Path, classes: int, each: int, mean: int) -> Catalog:
    """Class folders of files of random bytes, half the mean to one and a half times as large."""
    draw = np.random.default_rng(0)
    for number in range(classes):
        here = folder / f"class_{number:04d}"
        here.mkdir(parents=True)
        for image in range(each):
            size = int(draw.integers(mean // 2, mean * 3 // 2))
            (here / f"{image:03d}.jpg").write_bytes(draw.bytes(size))
    return scan_folder(folder)


def forget(tars: list[Path]) -> None:
    """Have the system drop what it holds of the files."""
    for tar in tars:
        with open(tar, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(tars: list[Path]) -> tuple[int, int]:
    """Images and bytes of one epoch of P×K batches."""
    index = ShardIndex(tars[0].parent)
    count = size = 0
    for batch in PKSampler(index.labels, p=P, k=K, seed=0):
        contents = index.read(batch)
        count, size = count + len(contents), size + sum(map(len, contents))
    return count, size


def theirs(tars: list[Path]) -> tuple[int, int]:
    """Images and bytes of one pass of webdataset's own reader."""
    count = size = 0
    for sample in wds.WebDataset([str(tar) for tar in tars], shardshuffle=False):
        count, size = count + 1, size + len(sample["jpg"])
    return count, size


def rates(read: Callable[[list[Path]], tuple[int, int]], tars: list[Path]) -> tuple[float, float]:
    """Images and megabytes a second, the opening of the index included."""
    started = time.perf_counter()
    count, size = read(tars)
    seconds = time.perf_counter() - started
    return count / seconds, size / MEGABYTE / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Random reads from shards beside a sequential reader.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the images, fewer rounds")
    parser.add_argument("--folder", type=Path, help="where to put the files; by default the system's own")
    arguments = parser.parse_args()
    setting = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        top = Path(place)
        catalog = made(top / "photos", setting["classes"], setting["each"], setting["mean"])
        print(f"{len(catalog):,} images, {setting['classes']:,} classes, P = {P}, K = {K}", end="; ")
        print(f"{setting['rounds']} rounds\n")
        heads = ("shards", "", "images/s", "MB/s", "wds images/s", "wds MB/s", "ratio", "least")
        print(f"{heads[0]:10}{heads[1]:6}", *(f"{head:>13}" for head in heads[2:]), sep="")
        for layout in ("identity", "mixed"):
            folder = top / layout
            tars = write_shards(folder, catalog, layout=layout, images_per_shard=2000).tars
            found: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for turn in range(setting["rounds"]):
                for state in ("cold", "warm"):
                    sides = {"ours": ours, "theirs": theirs}
                    for name in sorted(sides, reverse=bool(turn % 2)):
                        if state == "cold":
                            forget(tars)
                        found.setdefault((state, name), []).append(rates(sides[name], tars))
            for state in ("cold", "warm"):
                one, other = found[state, "ours"], found[state, "theirs"]
                mine, peer = (tuple(map(statistics.median, zip(*side))) for side in (one, other))
                least = min(a[1] / b[1] for a, b in zip(one, other))
                print(
                    f"{layout:10}{state:6}{mine[0]:13,.0f}{mine[1]:13,.0f}{peer[0]:13,.0f}{peer[1]:13,.0f}"
                    f"{mine[1] / peer[1]:13.2f}{least:13.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
