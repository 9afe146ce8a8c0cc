"""What a P×K epoch costs: 1 M images of 50 k classes, p = 32, k = 4; medians over repeats.

    python tools/bench/bench_samplers.py

The budget: a whole epoch planned, construction included, in at most 1 s, and the first batch as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler


def labels_of(images: int, classes: int) -> np.ndarray:
    """Each class twice at least, all else by chance, in mixed order."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes).repeat(2), rng.integers(0, classes, images - 2 * classes)])
    return rng.permutation(labels)


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def seconds(make: Callable[[], PKSampler]) -> dict[str, float]:
    """Seconds of each part of two epochs: the first iterated, of the second the plan and a batch."""
    construct, sampler = clocked(make)
    batches = iter(sampler)
    first, _ = clocked(lambda: next(batches))
    rest, _ = clocked(lambda: deque(batches, maxlen=0))
    plan, _ = clocked(lambda: sampler.batch(epoch=1, step=0))
    return {
        "construction": construct,
        "plan of an epoch": plan,
        "construction and plan": construct + plan,
        "time to first batch": construct + first,
        "whole epoch iterated": first + rest,
    }


def peak_mib(make: Callable[[], PKSampler]) -> float:
    """The most memory held at a time up to the first batch, numpy's arrays included, the labels not."""
    tracemalloc.start()
    next(iter(make()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    labels = labels_of(options.images, options.classes)
    kinds: dict[str, dict[str, Any]] = {
        "PKSampler": {},
        "PKSampler, 1000 super-labels, 4 a batch": {"super_labels": labels % 1000, "supers_per_batch": 4},
    }
    print(f"{options.images:,} images, {options.classes:,} classes, p=32, k=4, {options.repeats} repeats")
    for name, more in kinds.items():

        def make(more: dict[str, Any] = more) -> PKSampler:
            return PKSampler(labels, p=32, k=4, **more)

        runs = [seconds(make) for _ in range(options.repeats)]
        sampler = make()
        print(f"{name}: {len(sampler)} steps")
        for part in runs[0]:
            print(f"  {part:<24}{statistics.median(run[part] for run in runs):8.3f} s")
        print(f"  {'peak memory':<24}{peak_mib(make):8.1f} MiB")
        print(f"  {'state':<24}{len(json.dumps(sampler.state_dict())):8d} bytes")

    shuffled = ShuffledSampler(options.images)
    runs = [clocked(lambda: deque(shuffled, maxlen=0))[0] for _ in range(options.repeats)]
    print(f"ShuffledSampler\n  {'whole epoch iterated':<24}{statistics.median(runs):8.3f} s")


if __name__ == "__main__":
    main()
