#!/usr/bin/env python
"""Random P×K reads from tar shards by offset, beside webdataset reading the same shards from front to back.

    python tools/bench/bench_shards.py [--quick] [--workers 2] [--markdown tools/bench/RESULTS.md]

The images are random bytes of a JPEG's size and are not decoded; each side hands out the bytes of every
image about once, ours in the batches of `PKSampler`. Cold: the system is told to forget the tars before
(what a disk or a host behind it remembers is out of reach, on both sides alike). The sides take turns; every
figure is the median of the rounds, and the ratio that of the medians. Then real JPEGs, decoded and augmented
by workers: `decoded.py`.

The budget: random reads at twice the rate of webdataset's reader.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset as wds
from decoded import SIDES, photos
from decoded import rates as decoded_rates
from page import table, told, write_section

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.samplers.pk import PKSampler
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards

FULL = {"classes": 1_000, "each": 20, "mean": 30_000, "rounds": 5, "photos": 200}
QUICK = {"classes": 200, "each": 20, "mean": 30_000, "rounds": 3, "photos": 80}
P, K = 16, 4
MEGABYTE = 1e6
HEADS = ["shards", "", "images/s", "MB/s", "wds images/s", "wds MB/s", "ratio", "least"]


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


def raw(top: Path, setting: dict[str, int]) -> list[list[str]]:
    """A line for each layout, cold and warm: ours, theirs, and how many times theirs ours is."""
    catalog = made(top / "files", setting["classes"], setting["each"], setting["mean"])
    print(f"{len(catalog):,} images, {setting['classes']:,} classes, P = {P}, K = {K}", end="; ")
    print(f"{setting['rounds']} rounds\n")
    print(f"{HEADS[0]:10}{HEADS[1]:6}", *(f"{head:>13}" for head in HEADS[2:]), sep="")
    lines = []
    for layout in ("by_class", "mixed"):
        tars = write_shards(top / layout, catalog, layout=layout, images_per_shard=2000).tars
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
            mine, peer = (tuple(map(statistics.median, zip(*side, strict=True))) for side in (one, other))
            least = min(a[1] / b[1] for a, b in zip(one, other, strict=True))
            fields = [f"{each:,.0f}" for each in (*mine, *peer)]
            lines.append([layout, state, *fields, f"{mine[1] / peer[1]:.2f}", f"{least:.2f}"])
            print(f"{layout:10}{state:6}", *(f"{field:>13}" for field in lines[-1][2:]), sep="", flush=True)
    return lines


def decoded(top: Path, setting: dict[str, int], workers: int) -> tuple[str, list[list[str]]]:
    """What was decoded, and a line for each side: images a second, and times webdataset's own pipeline."""
    catalog = photos(top / "photos", setting["photos"], setting["each"] // 2)
    tars = write_shards(top / "decoded", catalog, images_per_shard=len(catalog) // (2 * workers)).tars
    size = sum(catalog.file(row).stat().st_size for row in range(len(catalog))) / len(catalog)
    about = f"{len(catalog):,} JPEGs of 320 × 240, {size / 1000:.0f} kB each, {workers} workers"
    print(f"\n{about}")
    found = decoded_rates(tars, workers)
    peer = found["webdataset, its own decoding"]
    lines = [[side, f"{found[side]:,.0f}", f"{found[side] / peer:.2f}"] for side in SIDES]
    for line in lines:
        print(f"{line[0]:32}{line[1]:>10}{line[2]:>10}", flush=True)
    return about, lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Random reads from shards beside a sequential reader.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the images, fewer rounds")
    parser.add_argument("--folder", type=Path, help="where to put the files; by default the system's own")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="that decode")
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        lines = raw(Path(place), setting)
        about, others = decoded(Path(place), setting, options.workers)
    if not options.markdown:
        return
    command = shlex.join(["python", "tools/bench/bench_shards.py", *sys.argv[1:]])
    text = [
        "## Shards",
        f"{told()} Regenerate with `{command}`. {setting['classes'] * setting['each']:,} images of about "
        f"{setting['mean'] / 1000:.0f} kB in tars of 2000, not decoded: ours read by offset in batches of "
        f"P = {P} classes × K = {K}, webdataset's reader (wds) from front to back. Cold is after the system "
        "was told to forget the tars. Medians of rounds in which the sides take turns; ratio is ours over "
        "theirs, and least that of the worst round.",
        table(HEADS, lines, left=2),
        f"Decoded and augmented, {about}: crops and flips to 224 × 224 in batches of {P * K}.",
        table(["", "images/s", "× webdataset"], others),
    ]
    write_section(options.markdown, "shards", "\n\n".join(text))


if __name__ == "__main__":
    main()
