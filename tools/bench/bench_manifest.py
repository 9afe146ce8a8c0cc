#!/usr/bin/env python
"""Random triplets per second on one core, drawn and written, and the memory that takes at two counts.

    python tools/bench/bench_manifest.py [--quick]

The catalog is synthetic: 1 M images in 10 k classes. Every figure is the median of three processes, each
pinned to one core; where other work shares that core, the clock shows more seconds than the CPU spent.
Memory is the peak above what the catalog alone holds; it should not grow with the count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tercet.data.catalog.catalog import Catalog
from tercet.data.manifests.writing import write_manifest
from tercet.data.triplets.random import RandomTriplets

FULL = {"images": 1_000_000, "classes": 10_000, "laws": [(2, 1), (4, 5)], "repeats": 3}
QUICK = {"images": 100_000, "classes": 1_000, "laws": [(4, 5), (12, 5)], "repeats": 1}
DRAWN = "drawn only"  # not written
WAYS = (DRAWN, ".parquet", ".arrow", ".txt")
CHUNK = 1 << 16
MEGABYTE = 1 << 20


def synthetic(images: int, classes: int) -> Catalog:
    """A catalog of equal classes."""
    labels = np.arange(images) * classes // images
    paths = [f"class_{label:05d}/image_{row:07d}.jpg" for row, label in enumerate(labels.tolist())]
    return Catalog(paths, labels, [f"class_{label:05d}" for label in range(classes)])


def peak() -> int:
    """The most resident memory since `forget_peak`, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Start the peak again from what is resident now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak cannot be reset here: it includes the making of the catalog", file=sys.stderr)


def measure(images: int, classes: int, law: tuple[int, int], way: str, folder: Path) -> dict[str, float]:
    """Draw and write the triplets of one law once, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    catalog = synthetic(images, classes)
    import pyarrow.parquet  # noqa: F401  its loading is neither drawing nor writing

    forget_peak()
    before, started, worked = peak(), time.perf_counter(), time.process_time()
    triplets = RandomTriplets(catalog.labels, *law, seed=0)
    if way == DRAWN:
        for first in range(0, len(triplets), CHUNK):
            triplets[first : first + CHUNK]
    else:
        write_manifest(folder / f"triplets{way}", triplets, catalog, chunk_size=CHUNK)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    size = sum(file.stat().st_size for file in folder.iterdir())
    told = {"count": len(triplets), "seconds": seconds, "worked": worked}
    return {**told, "before": before, "peak": peak(), "size": size}


def measured(setting: dict, law: tuple[int, int], way: str) -> dict[str, float]:
    """The medians of `measure`, each time in a fresh process and an empty folder."""
    found = []
    for _ in range(setting["repeats"]):
        with tempfile.TemporaryDirectory() as folder:
            asked = {"images": setting["images"], "classes": setting["classes"], "law": law, "way": way}
            command = [sys.executable, __file__, "--one", json.dumps({**asked, "folder": folder})]
            found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Random triplets per second, and their memory.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, each figure once")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        asked = json.loads(arguments.one)
        print(json.dumps(measure(**{**asked, "folder": Path(asked["folder"])})))
        return
    setting = QUICK if arguments.quick else FULL
    print(f"{setting['images']:,} images, {setting['classes']:,} classes; one core; {setting['repeats']} ×\n")
    heads = ("triplets", "clock s", "CPU s", "per clock s", "per CPU s", "peak MB", "above cat.", "file MB")
    print(" " * 12, *(f"{head:>13}" for head in heads), sep="")
    for way in WAYS:
        above = []
        for law in setting["laws"]:
            one = measured(setting, law, way)
            above.append((one["peak"] - one["before"]) / MEGABYTE)
            seconds, worked = one["seconds"], one["worked"]
            print(
                f"{way:12}{one['count']:13,}{seconds:13.2f}{worked:13.2f}"
                f"{one['count'] / seconds:13,.0f}{one['count'] / worked:13,.0f}"
                f"{one['peak'] / MEGABYTE:13.0f}{above[-1]:13.0f}{one['size'] / MEGABYTE:13.0f}",
                flush=True,
            )
        print(f"{'':12}memory above the catalog, larger count / smaller: {above[1] / max(above[0], 1):.2f}")


if __name__ == "__main__":
    main()
