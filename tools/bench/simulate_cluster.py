#!/usr/bin/env python
"""A search of a whole collection on many machines, on paper and simulated: no machine is needed for either.

    python tools/bench/simulate_cluster.py
    python tools/bench/simulate_cluster.py --images 100000000 --workers 64 --page docs/scale.md

The blocks are those of `tercet.offline.work`; times are assumed, jittered and lost by a seed. Processes take
blocks that nobody has claimed, one after the other. A process that is lost takes its block with it, which
others may claim once the file system has noticed. `--page` puts both tables into the page.
"""

from __future__ import annotations

import argparse
import heapq
import math
import shlex
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
from page import table, write_section

from tercet.core.randomness import derive_key, keyed_uniform
from tercet.offline.work import Block, plan_blocks

DIM, K = 128, 100
HEIGHT, WIDTH = 2**17, 2**24  # anchors and columns of a block
PRODUCT = 20e12  # floating-point operations a second of a card's products in float32
SEARCH = 1.5  # times as long as the product alone, exclusions and choice of candidates in it
READ = 1e9  # bytes a second that one process reads from the common store
START = 0.5  # seconds of a block for its claim and its file
NOTICED = 90.0  # seconds until the lock of a lost machine is free
SLOW, SLOWER = 0.05, 2.0  # the share of machines that are slower, and how much
EMBEDDED, DECODED, CORES = 2500.0, 500.0, 16  # images a second of a card, of a core, and cores beside a card
IMAGE = 50e3  # bytes of a compressed image
PROBED = 64  # lists of IVF that a query looks through, of 4·√n


class Cluster(NamedTuple):
    """What happens to the machines of a run.

    Args:
        workers: how many processes, each with a card.
        slow: the share that is `SLOWER` times as slow.
        lost: how many are lost, each at some time of the first nine tenths of the run.
        jitter: the logarithm of a block's time has this standard deviation.
        seed: of all that is random.
    """

    workers: int
    slow: float = 0.0
    lost: int = 0
    jitter: float = 0.0
    seed: int = 0


class Run(NamedTuple):
    """What a simulated run came to.

    Args:
        seconds: until the last block was done.
        repeated: blocks that were begun and lost.
        read: bytes that all processes read.
        idle: the share of the time of living processes without a block.
    """

    seconds: float
    repeated: int
    read: float
    idle: float


def seconds_of(block: Block) -> float:
    """Computing a block: (stop − first)(end − start) · 2 · d operations, at the assumed rate."""
    return (block.stop - block.first) * (block.end - block.start) * 2 * DIM * SEARCH / PRODUCT


def bytes_of(rows: int) -> int:
    """Of the embeddings of so many rows."""
    return rows * DIM * 4


def simulated(blocks: list[Block], cluster: Cluster) -> Run:
    """Run the blocks: each process takes the next unclaimed one as soon as it is free.

    Raises:
        ValueError: no process is left.
    """
    draw = derive_key("cluster", cluster.seed)
    uniform = keyed_uniform(derive_key("machines", cluster.seed), np.arange(3 * cluster.workers))
    order = np.argsort(uniform[: cluster.workers], kind="stable")
    speed = np.ones(cluster.workers)
    speed[order[: round(cluster.slow * cluster.workers)]] = SLOWER
    about = sum(map(seconds_of, blocks)) / cluster.workers
    dies = np.full(cluster.workers, math.inf)
    victims = np.argsort(uniform[cluster.workers : 2 * cluster.workers], kind="stable")[: cluster.lost]
    dies[victims] = 0.9 * about * uniform[2 * cluster.workers + victims]

    waiting, attempts = deque(range(len(blocks))), np.zeros(len(blocks), dtype=np.int64)
    columns: list[int | None] = [None] * cluster.workers
    events: list[tuple[float, int, int]] = [(0.0, 1, worker) for worker in range(cluster.workers)]
    idle: list[int] = []
    busy, done, repeated, read, last = np.zeros(cluster.workers), 0, 0, 0.0, 0.0
    while events and done < len(blocks):
        now, kind, number = heapq.heappop(events)
        if kind == 0:  # the lock of a lost block is free
            waiting.appendleft(number)
            for worker in idle:
                heapq.heappush(events, (now, 1, worker))
            idle.clear()
            continue
        if kind == 2:  # a block is done
            done, last = done + 1, now
            continue
        if not waiting:
            idle.append(number)
            continue
        item = waiting.popleft()
        block, attempt = blocks[item], int(attempts[item])
        attempts[item] += 1
        normal = statistics.NormalDist().inv_cdf(min(max(_uniform(draw, item, attempt), 1e-9), 1 - 1e-9))
        seconds = START + seconds_of(block) * speed[number] * math.exp(cluster.jitter * normal)
        needed = bytes_of(block.stop - block.first)
        if columns[number] != block.start:  # those of the same columns follow each other
            needed, columns[number] = needed + bytes_of(block.end - block.start), block.start
        seconds, read = seconds + needed / READ, read + needed
        if now + seconds > dies[number]:
            end = max(now, dies[number])
            busy[number] += end - now
            repeated += 1
            heapq.heappush(events, (end + NOTICED, 0, item))
            continue
        busy[number] += seconds
        heapq.heappush(events, (now + seconds, 2, item))
        heapq.heappush(events, (now + seconds, 1, number))
    if done < len(blocks):
        raise ValueError(f"expected a process that is left, and all {cluster.workers} are lost")
    alive = np.minimum(dies, last).sum()
    return Run(last, repeated, read, 1 - busy.sum() / alive)


def _uniform(key: int, item: int, attempt: int) -> float:
    return float(keyed_uniform(key, np.array([item * 64 + attempt]))[0])


def duration(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def size(count: float) -> str:
    """Bytes in their largest unit."""
    for unit, each in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if count >= each:
            return f"{count / each:,.3g} {unit}"
    return f"{count / 1e6:,.3g} MB"


def on_paper(images: int) -> dict[str, str]:
    """What each stage takes on one card, by the assumptions."""
    embeddings = bytes_of(images)
    lists = 4 * math.sqrt(images)
    looked_at = images * PROBED / lists
    parts = -(-images // WIDTH)
    return {
        "images, compressed": size(images * IMAGE),
        "decoding, the cores of one card": duration(images / (DECODED * CORES)),
        "embedding, one card": duration(images / EMBEDDED),
        "embeddings": size(embeddings),
        "exact search, one card": duration(images * images * 2 * DIM * SEARCH / PRODUCT),
        "bytes read, one process": size(
            -(-images // HEIGHT) * parts * bytes_of(min(HEIGHT, images)) + embeddings
        ),
        "candidates on disk": size(images * parts * K * 8),
        "IVF search, one card": duration(images * (lists + looked_at) * 2 * DIM * SEARCH / PRODUCT),
        "IVF index": size(images * (DIM * 4 + 8)),
    }


def tables(images: int, workers: int, height: int, width: int, seed: int) -> tuple[str, str]:
    """Both tables of the page: on paper, and simulated."""
    counts = [10**6, 10**8, 10**9]
    columns = [on_paper(count) for count in counts]
    lines = [[name, *(column[name] for column in columns)] for name in columns[0]]
    paper = table(["", *(f"{count:,} images" for count in counts)], lines)
    blocks = plan_blocks(images, images, height, width)
    ideal = sum(map(seconds_of, blocks)) / workers
    one, ten = math.ceil(workers / 100), math.ceil(workers / 10)
    runs = {
        "equal machines": Cluster(workers),
        f"times that vary by 10 %, {SLOW:.0%} of machines {SLOWER:g} × slower": Cluster(
            workers, SLOW, 0, 0.1, seed
        ),
        f"and 1 % lost ({one} of {workers})": Cluster(workers, SLOW, one, 0.1, seed),
        f"and 10 % lost ({ten} of {workers})": Cluster(workers, SLOW, ten, 0.1, seed),
    }
    lines = []
    for name, cluster in runs.items():
        run = simulated(blocks, cluster)
        share = f"{run.seconds / ideal:.3f}"
        lines.append(
            [name, duration(run.seconds), share, str(run.repeated), f"{run.idle:.1%}", size(run.read)]
        )
    told = (
        f"{images:,} images, {workers} workers, {len(blocks):,} blocks of {height:,} × {width:,}; "
        f"work alone, divided by the workers: {duration(ideal)}."
    )
    heads = ["run", "until the last block", "× work alone", "blocks repeated", "idle", "bytes read"]
    return paper, f"{told}\n\n{table(heads, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A search of a collection on many machines, simulated.")
    parser.add_argument("--images", type=int, default=10**8)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--height", type=int, default=HEIGHT, help="anchors of a block")
    parser.add_argument("--width", type=int, default=WIDTH, help="columns of a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="the page to write both tables into")
    options = parser.parse_args()
    given = options.images, options.workers, options.height, options.width, options.seed
    paper, runs = tables(*given)
    print(f"{paper}\n\n{runs}")
    if options.page:
        command = shlex.join(["python", "tools/bench/simulate_cluster.py", *sys.argv[1:]])
        write_section(options.page, "paper", paper)
        write_section(options.page, "simulation", f"`{command}`\n\n{runs}")


if __name__ == "__main__":
    main()
