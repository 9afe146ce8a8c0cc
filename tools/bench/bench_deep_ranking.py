#!/usr/bin/env python
"""Deep Ranking's triplets by a teacher's cosines: seconds of set-up, triplets per second, peak memory.

    python tools/bench/bench_deep_ranking.py [--quick] [--slice 65536]

1 M images in 10 k classes, a teacher of 128 dimensions, made up: a centre for each class and noise. Each
measurement is a fresh process on one core; where other work shares that core, the clock shows more seconds
than the CPU spent. "drawn" is the fastest of the slices, as every other is slowed by something else.

The budget: at least 200 k triplets/s after set-up, in memory that does not grow with the count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTE = 1 << 20
SLICES = 10
SOURCES = ("teacher", "teacher, mapped", "folders")


def peak() -> int:
    """The most resident memory since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def forget_peak() -> None:
    """Start the peak again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def clocked(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of the CPU, and the result."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - clock, time.process_time() - cpu, result


def write_teacher(path: Path, images: int, classes: int, dimensions: int) -> None:
    """Embeddings in blocks, so that making them is not what takes the memory."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, dimensions), dtype=np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (images, dimensions))
    for first in range(0, images, 1 << 16):
        rows = np.arange(first, min(images, first + (1 << 16)))
        noise = rng.standard_normal((len(rows), dimensions), dtype=np.float32)
        out[rows] = centres[rows * classes // images] + noise


def measure(source: str, images: int, classes: int, size: int, path: str) -> dict[str, float]:
    """Set-up and some slices of one sequence, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from tercet.data.triplets.deep_ranking import DeepRankingTriplets
    from tercet.data.triplets.relevance import FolderRelevance, TeacherRelevance

    labels = np.arange(images) * classes // images
    given: Any = path
    if source == "teacher":
        given = np.load(path)
    elif source == "folders":
        given = [f"{label}/{row % 5}/{row % 3}/{row}.jpg" for row, label in enumerate(labels.tolist())]
    forget_peak()
    before = peak()
    kind = FolderRelevance if source == "folders" else TeacherRelevance
    opening, opening_cpu, relevance = clocked(lambda: kind(given))
    survey, survey_cpu, triplets = clocked(lambda: DeepRankingTriplets(labels, relevance, 10**9, gap=0.1))
    after = peak()
    runs = [clocked(lambda n=n: triplets[n * size : (n + 1) * size])[:2] for n in range(SLICES)]
    return {
        "opened s": opening,
        "opened CPU s": opening_cpu,
        "surveyed s": survey,
        "surveyed CPU s": survey_cpu,
        "drawn per s": size / min(clock for clock, _ in runs),
        "drawn per CPU s": size / min(cpu for _, cpu in runs),
        "input MB": before / MEGABYTE,
        "peak at set-up MB": after / MEGABYTE,
        "peak MB": peak() / MEGABYTE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Deep Ranking's triplets per second, and their memory.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images and classes")
    parser.add_argument("--slice", type=int, default=1 << 16, help="triplets drawn at a time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    images, classes = (100_000, 1_000) if options.quick else (1_000_000, 10_000)
    print(f"{images:,} images, {classes:,} classes, 128 dimensions; slices of {options.slice:,}; one core\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "teacher.npy")
        write_teacher(path, images, classes, 128)
        found = {}
        for source in SOURCES:
            asked = {"source": source, "images": images, "classes": classes, "size": options.slice}
            command = [sys.executable, __file__, "--one", json.dumps({**asked, "path": str(path)})]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
            found[source] = json.loads(done.stdout)
    print(" " * 20, *(f"{source:>18}" for source in SOURCES), sep="")
    for row in next(iter(found.values())):
        digits = 2 if row.endswith(" s") and "per" not in row else 0
        print(f"{row:20}", *(f"{found[source][row]:18,.{digits}f}" for source in SOURCES), sep="")


if __name__ == "__main__":
    main()
