#!/usr/bin/env python
"""What the exact search of a whole collection costs beside the bare product and FAISS.

    python tools/bench/bench_nearest.py
    python tools/bench/bench_nearest.py --sizes 20000 --large 0 --repeats 3

Every image looks for its k nearest images of other classes. FAISS knows no classes: its flat index finds k
images of any class, or so many that k are left once those of the own class are dropped. All sides and the
bare product run by turns in one process; each peak is that of a process of its own. `--large` searches a
memory-mapped file of so many rows by a part of them. `--markdown` puts the tables into the results page.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page import table, told, write_section

DIM, K, ROWS, WIDE = 128, 16, 1024, 4096
SIDES = ("product", "tercet", "FAISS flat", "FAISS flat, classes dropped", "FAISS IVF", "FAISS HNSW")
BACKENDS = {"FAISS IVF": "faiss-ivf", "FAISS HNSW": "faiss-hnsw"}
ABOUT = """
Seconds of the processor, medians of rounds by turns in one process, and as shares of the bare product
`x @ x.T` in tiles. MiB is the most memory that is not a file's, above the inputs, in a process of its own.
*FAISS flat* finds {k} images of any class; *classes dropped* finds as many more as the largest class has
images, and keeps {k} of other classes. IVF and HNSW are tercet's `backend=` with `min_recall=0.95`, built
and tuned within the time. Rows of {dim} float32 numbers, normalised, about class centres; k = {k}. *Same* is
the share of queries with the very rows of `tercet`.
"""


def made(n: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised rows about class centres, and their classes."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, max(1, n // per_class), (n,), generator=g)
    centres = torch.randn(int(labels.max()) + 1, DIM, generator=g)
    x = torch.empty(n, DIM)
    for part in torch.arange(n).split(2**16):
        rows = centres[labels[part]] + 0.7 * torch.randn(len(part), DIM, generator=g)
        x[part] = torch.nn.functional.normalize(rows)
    return x.numpy(), labels.numpy()


def call_of(side: str, x: np.ndarray, labels: np.ndarray, rows: Any = None) -> Callable[[], Any]:
    """One side, which gives rows [q, k] or nothing."""
    from tercet import nearest

    queries = x if rows is None else x[rows]
    if side == "product":

        def product() -> None:
            out = torch.empty(ROWS, WIDE)
            for start in range(0, len(x), WIDE):
                columns = torch.from_numpy(np.array(x[start : start + WIDE]))  # a mapped file is read here
                for part in torch.from_numpy(queries).split(ROWS):
                    torch.mm(part, columns.T, out=out[: len(part), : len(columns)])

        return product
    if side in ("tercet", *BACKENDS):
        backend = BACKENDS.get(side, "exact")
        asked = {"k": K, "rows": rows, "labels": labels, "exclude": ("self", "class"), "backend": backend}
        return lambda: nearest(x, **asked)

    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(DIM)
    index.add(x)
    more = int(np.bincount(labels).max())

    def flat() -> np.ndarray:
        if side == "FAISS flat":
            return index.search(queries, K)[1]
        found = []
        for first in range(0, len(queries), ROWS):
            some = index.search(queries[first : first + ROWS], K + more)[1]
            other = labels[some] != labels[first : first + ROWS, None]
            order = np.argsort(~other, axis=1, kind="stable")[:, :K]
            found.append(np.take_along_axis(some, order, 1))
        return np.concatenate(found)

    return flat


def turns(n: int, per_class: int, threads: int, repeats: int, sides: list[str]) -> dict[str, Any]:
    """Seconds of each side, their median over rounds by turns, and what it found."""
    torch.set_num_threads(threads)
    x, labels = made(n, per_class)
    calls = {side: call_of(side, x, labels) for side in sides}
    for side in sides:
        call_of(side, x[:2000], labels[:2000])()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found = {}
    for _ in range(repeats):
        for side, call in calls.items():
            start = time.process_time()
            found[side] = call()
            seconds[side].append(time.process_time() - start)
    ours, out = found["tercet"].rows, {}
    for side in sides:
        rows = found[side].rows if hasattr(found[side], "rows") else found[side]
        same = None if rows is None else float((np.sort(rows, 1) == np.sort(ours, 1)).all(1).mean())
        out[side] = statistics.median(seconds[side]), same, getattr(found[side], "recall", None)
    return out


class Peak:
    """The most memory that belongs to no file, looked at a hundred times a second."""

    def __enter__(self) -> Peak:
        self.before = self.most = self.now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        return self.most - self.before

    @staticmethod
    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self.now())


def peak(n: int, per_class: int, threads: int, side: str) -> float:
    """MiB that one call of a side takes above its inputs, after a small one that loads its code."""
    torch.set_num_threads(threads)
    x, labels = made(n, per_class)
    call_of(side, x[:2000], labels[:2000])()
    call = call_of(side, x, labels)
    with Peak() as held:
        call()
    return held.mib


def large(path: str, n: int, queries: int, threads: int) -> dict[str, float]:
    """A memory-mapped file searched by some of its rows."""
    from tercet.neighbors.search_plan import plan_search

    torch.set_num_threads(threads)
    labels = np.load(path + ".labels.npy")
    x = np.load(path, mmap_mode="r")
    rows = np.linspace(0, n - 1, queries).astype(np.int64)
    call_of("tercet", np.array(x[:2000]), labels[:2000])()
    plan = plan_search(queries, n, K, DIM, torch.float32, torch.device("cpu"), None)
    out: dict[str, float] = {"planned MiB": plan.bytes / 2**20}
    for side in ("product", "tercet"):
        call = call_of(side, x, labels, rows)
        with Peak() as held:
            start = time.process_time()
            call()
            out[side] = time.process_time() - start
        out["MiB"] = held.mib
    return out


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What a function gives in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def main() -> None:
    parser = argparse.ArgumentParser(description="Nearest columns of a whole collection.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000], help="N")
    parser.add_argument("--per-class", type=int, default=100, help="images of a class")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the mapped file; 0 for none")
    parser.add_argument("--queries", type=int, default=20_000, help="queries of the mapped file")
    parser.add_argument("--indexed", type=int, default=20_000, help="the largest N for IVF and HNSW")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    heads, lines = ["N", "side", "s", "× product", "MiB", "same", "recall"], []
    for n in options.sizes:
        sides = [side for side in SIDES if side not in BACKENDS or n <= options.indexed]
        found = apart(turns, n, options.per_class, options.threads, options.repeats, sides)
        for side, (seconds, same, recall) in found.items():
            mib = apart(peak, n, options.per_class, options.threads, side) if side == "tercet" else None
            share = seconds / found["product"][0]
            shown = [f"{v:.{p}f}" if v is not None else "" for v, p in ((mib, 0), (same, 4), (recall, 3))]
            lines.append([f"{n:,}", side, f"{seconds:.3g}", f"{share:.2f}", *shown])
            print(*(f"{field:>12}" for field in lines[-1]), flush=True)
    told_large = ""
    if options.large:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x.npy"
            x, labels = made(options.large, options.per_class)
            np.save(path, x)
            np.save(path + ".labels.npy", labels)
            del x
            out = apart(large, path, options.large, options.queries, options.threads)
        share = out["tercet"] / out["product"]
        told_large = (
            f"{options.queries:,} rows of a memory-mapped file of {options.large:,}: {out['tercet']:.3g} s, "
            f"{share:.2f} × the product of the same tiles, {out['MiB']:.0f} MiB; planned were at most "
            f"{out['planned MiB']:.0f} MiB."
        )
        print(told_large)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_nearest.py", *sys.argv[1:]])
        text = [
            "## Nearest of a collection",
            f"{told()} Threads: {options.threads}. Regenerate with `{command}`.",
            " ".join(ABOUT.format(k=K, dim=DIM).split()),
            table(heads, lines, left=2),
            told_large,
        ]
        write_section(options.markdown, "nearest", "\n\n".join(filter(None, text)))


if __name__ == "__main__":
    main()
