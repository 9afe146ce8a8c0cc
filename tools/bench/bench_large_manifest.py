#!/usr/bin/env python
"""A manifest of 100 M triplets on disk: what opening it costs, a shuffled batch, and a thousand of them.

    python tools/bench/bench_large_manifest.py [--quick] [--folder .] [--markdown tools/bench/RESULTS.md]

The catalog is synthetic: 1 M images in 10 k classes. The .arrow file, 1.3 GB, is written to a folder that is
removed at the end. A fresh process opens it and draws batches of 256 triplets by `ShuffledSampler`, cold
(the system was told to forget the file) and warm. The opening counts after pyarrow has been loaded. Memory is
all that is resident in the process, Python and its libraries included.

The budget: opened in under 50 ms, a batch in under 5 ms, under 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from bench_manifest import synthetic

from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.triplets.random import RandomTriplets

FULL = (1_000_000, 10_000)
QUICK = (100_000, 1_000)
EACH = 10  # positives of a query, and negatives of a positive: 100 triplets of each image
BATCH, WARM, COLD = 256, 1_000, 20
MEGABYTE = 1 << 20
ROWS = {  # what is measured: what a person reads, and the limit
    "opened, cold": ("opened, cold, ms", None),
    "opened": ("opened, ms", 50),
    "batch, cold": (f"batch of {BATCH}, cold, ms", None),
    "batch": (f"batch of {BATCH}, ms", 5),
    "batch, CPU": ("and of the CPU, ms", None),
    "batch, slow": ("the slowest but 1 of 100, ms", None),
    "before": ("memory before, MB", None),
    "memory": (f"memory after {WARM:,} batches, MB", 300),
    "memory, catalog": ("and with the catalog's paths and classes, MB", 300),
}


def resident() -> float:
    """MB of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / MEGABYTE


def forget(path: Path) -> None:
    """Have the system drop what it holds of the file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(path: Path) -> None:
    """Have the system hold the file."""
    with open(path, "rb", buffering=0) as file:
        while file.read(MEGABYTE):
            pass


def measure(path: Path) -> dict[str, float]:
    """Opening, batches and memory, in this process."""
    import pyarrow.ipc  # noqa: F401  its loading is not the opening

    found = {"before": resident()}
    forget(path)
    openings = []
    for _ in range(12):
        start = time.perf_counter()
        manifest = read_manifest(path)
        openings.append(1e3 * (time.perf_counter() - start))
        recall(path)
    found["opened, cold"], found["opened"] = openings[0], statistics.median(openings[1:])

    drawn = iter(ShuffledSampler(manifest))

    def batches(count: int) -> tuple[list[float], list[float]]:
        """Milliseconds by the clock and of the CPU, each from the fastest on."""
        spent, worked = [], []
        for _ in range(count):
            rows = list(islice(drawn, BATCH))
            start, begun = time.perf_counter(), time.process_time()
            manifest[rows]
            spent.append(1e3 * (time.perf_counter() - start))
            worked.append(1e3 * (time.process_time() - begun))
        return sorted(spent), sorted(worked)

    forget(path)
    found["batch, cold"] = statistics.median(batches(COLD)[0])
    recall(path)
    warm, worked = batches(WARM)
    found["batch"], found["batch, CPU"] = statistics.median(warm), statistics.median(worked)
    found["batch, slow"] = warm[WARM * 99 // 100]
    found["memory"] = resident()
    manifest.catalog  # noqa: B018
    found["memory, catalog"] = resident()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A manifest of 100 M triplets on disk.")
    parser.add_argument("--quick", action="store_true", help="10 M triplets")
    parser.add_argument("--folder", type=Path, help="where to put the file; by default the system's own")
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    from page import table, told, write_section  # it loads torch, which is not what the manifest takes

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "triplets.arrow")
        catalog = synthetic(*(QUICK if options.quick else FULL))
        triplets = RandomTriplets(catalog.labels, EACH, EACH)
        start = time.perf_counter()
        write_manifest(path, triplets, catalog)
        seconds, size = time.perf_counter() - start, path.stat().st_size
        about = f"{len(triplets):,} triplets of {len(catalog):,} images, {size / MEGABYTE:,.0f} MB of .arrow"
        about += f", drawn and written in {seconds:.0f} s"
        print(about, flush=True)
        command = [sys.executable, __file__, "--one", str(path)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    lines = []
    for name, (shown, limit) in ROWS.items():
        digits = 0 if "MB" in shown else 2
        lines.append([shown, f"{found[name]:,.{digits}f}", "" if limit is None else f"< {limit}"])
        print(f"{lines[-1][0]:48}{lines[-1][1]:>10}{lines[-1][2]:>10}")
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_large_manifest.py", *sys.argv[1:]])
        text = [
            "## A large manifest on disk",
            f"{told()} Regenerate with `{command}`. {about}. A fresh process; medians; cold is after the "
            "system was told to forget the file; memory is all that is resident, Python included.",
            table(["", "", "limit"], lines),
        ]
        write_section(options.markdown, "large manifest", "\n\n".join(text))


if __name__ == "__main__":
    main()
