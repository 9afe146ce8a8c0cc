#!/usr/bin/env python
"""What Recall@1, MAP@R and Deep Ranking's metrics cost beside a peer and beside the bare matrix product.

    python tools/bench/bench_metrics.py
    python tools/bench/bench_metrics.py --sizes 5000 --repeats 3
    python tools/bench/bench_metrics.py --sizes 20000 --alone 200000

The peer is pytorch-metric-learning's AccuracyCalculator with k="max_bin_count". It searches by FAISS where
that is installed, else by its own search in batches. All sides and the product x @ x.T run by turns in one
process; each peak is that of a process of its own. Both must give the same figures. `--alone` adds sizes at
which `evaluate` runs once, without a peer. `--markdown` puts the table into the results page.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import product as product_of
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from measure import batch, held_mib
from page import table, told, write_section
from torch import Tensor

PEER = "pytorch-metric-learning"
BOTH = ("precision_at_1", "mean_average_precision_at_r")
ROWS = 1024  # of a batch of the peer's search, and of the bare product
TRIPLETS = 100_000
DIM = 128
ALL = "Recall@1 and MAP@R"
OWN_SEARCH = "its own search in batches of 1,024 queries (FAISS is not installed)"
ABOUT = """
Seconds of the processor, medians of rounds in which all sides and the bare product `x @ x.T` run by turns
in one process. MiB is the peak of one call above its inputs in a process of its own. The peer is
pytorch-metric-learning's AccuracyCalculator with `k="max_bin_count"` and {search}; *apart* is the largest
difference of a figure. Recall@1 and MAP@R together are one search on either side, ours by `evaluate`, which
gives R-precision too. Deep Ranking's metrics take {triplets:,} triplets and
have no peer. Unit vectors of {dim} float32 numbers, K images of a class.
"""


def calculator(*include: str) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """The peer's figures."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    search = {} if with_faiss() else {"knn_func": CustomKNN(LpDistance(normalize_embeddings=False), ROWS)}
    peer = AccuracyCalculator(include, k="max_bin_count", device=torch.device("cpu"), **search)
    return lambda x, labels: peer.get_accuracy(x, labels)


def with_faiss(threads: int | None = None) -> str:
    """The peer's search by FAISS, in so many threads; empty where FAISS is not installed."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ""
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    return f"IndexFlatL2 of FAISS {faiss.__version__}"


def drawn(n: int) -> tuple[Tensor, ...]:
    """Triplets of any rows."""
    return tuple(torch.randint(0, n, (3, TRIPLETS), generator=torch.Generator().manual_seed(1)))


def product(x: Tensor, labels: Tensor) -> None:
    """The bare matrix product, in the memory of a tile."""
    out = x.new_empty(ROWS, len(x))
    for part in x.split(ROWS):
        torch.mm(part, x.T, out=out[: len(part)])


def sides() -> dict[str, dict[str, Callable[[Tensor, Tensor], Any]]]:
    """Ours and the peer's by the case; each gives its figures in the same order."""
    from tercet.metrics.precision import map_at_r
    from tercet.metrics.retrieval import recall_at_k
    from tercet.metrics.triplet_ranking import score_at_top_k, similarity_precision
    from tercet.reports.evaluation import evaluate

    return {
        "Recall@1": {"tercet": lambda x, y: [recall_at_k(x, y)], PEER: calculator(BOTH[0])},
        "MAP@R": {"tercet": lambda x, y: [map_at_r(x, y)], PEER: calculator(BOTH[1])},
        ALL: {
            "tercet": lambda x, y: itemgetter("Recall@1", "MAP@R")(evaluate(x, y, 1)),
            PEER: calculator(*BOTH),
        },
        "similarity precision": {"tercet": lambda x, y: [similarity_precision(x, drawn(len(x)))]},
        "score at top 30": {"tercet": lambda x, y: [score_at_top_k(x, drawn(len(x)), 30)]},
    }


def figures_of(out: Any) -> list[float]:
    return [float(out[name]) for name in BOTH if name in out] if isinstance(out, dict) else list(out)


def prepared(n: int, k: int, threads: int) -> tuple[Tensor, Tensor]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    with_faiss(threads)
    return batch(n, k, DIM, "cpu")


def peak(case: str, side: str, n: int, k: int, threads: int) -> float:
    """MiB that a call takes above its inputs, after a small one that loads its code."""
    x, labels = prepared(n, k, threads)
    call = sides()[case][side]
    order = labels.argsort(stable=True)[: 4 * k]
    call(x[order], labels[order])
    product(x[:ROWS], labels)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = held_mib()
    call(x, labels)
    return held_mib() - before


def once(n: int, k: int, threads: int) -> float:
    """Seconds of the processor of one call of ours."""
    x, labels = prepared(n, k, threads)
    start = time.process_time()
    sides()[ALL]["tercet"](x, labels)
    return time.process_time() - start


def turns(n: int, k: int, threads: int, repeats: int) -> dict[tuple[str, str], tuple[float, list[float]]]:
    """Seconds, the median over rounds by turns, and the figures, by (case, side).

    Seconds are of the processor: other work on the machine does not count.
    """
    x, labels = prepared(n, k, threads)
    calls = {(case, side): call for case, found in sides().items() for side, call in found.items()}
    calls["", "product"] = product
    order = labels.argsort(stable=True)[: 4 * k]
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    out: dict[tuple[str, str], Any] = {}
    for call in calls.values():
        call(x[order], labels[order])
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.process_time()
            out[key] = call(x, labels)
            seconds[key].append(time.process_time() - start)
    return {key: (statistics.median(found), figures_of(out[key] or [])) for key, found in seconds.items()}


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What a function gives in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def main() -> None:
    parser = argparse.ArgumentParser(description="Metrics beside a peer and the bare product.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 20_000], help="N")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 100], help="images of a class")
    parser.add_argument("--alone", type=int, nargs="*", default=[], help="N at which evaluate runs once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    heads = ["metric", "N", "K", "s", "× product", "MiB", "peer s", "× faster", "peer MiB", "apart"]
    lines, slower = [], []
    for n in options.sizes:
        for k in options.k:
            found = apart(turns, n, k, options.threads, options.repeats)
            bare = found["", "product"][0]
            for case in sides():
                ours, values = found[case, "tercet"]
                mib = apart(peak, case, "tercet", n, k, options.threads)
                line = [case, f"{n:,}", str(k), f"{ours:.3g}", f"{ours / bare:.2f}", f"{mib:.0f}"]
                if (case, PEER) in found:
                    theirs, others = found[case, PEER]
                    most = max(abs(a - b) for a, b in zip(values, others, strict=True))
                    their_mib = apart(peak, case, PEER, n, k, options.threads)
                    line += [f"{theirs:.3g}", f"{theirs / ours:.2f}", f"{their_mib:.0f}", f"{most:.0e}"]
                    if ours > theirs:
                        slower.append(f"- {case}, N={n:,}, K={k}: {ours / theirs:.2f} × the time of the peer")
                lines.append([*line, *[""] * (len(heads) - len(line))])
                print(*(f"{field:>12}" for field in lines[-1]), flush=True)
    for n, k in product_of(options.alone, options.k):
        mib = apart(peak, ALL, "tercet", n, k, options.threads)
        line = [ALL, f"{n:,}", str(k), f"{apart(once, n, k, options.threads):.3g}", "", f"{mib:.0f}"]
        lines.append([*line, *[""] * (len(heads) - len(line))])
        print(*(f"{field:>12}" for field in lines[-1]), flush=True)
    print("\n".join(slower) or "nowhere slower")
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_metrics.py", *sys.argv[1:]])
        search = with_faiss() or OWN_SEARCH
        text = [
            "## Metrics",
            f"{told()} Threads: {options.threads}. Regenerate with `{command}`.",
            " ".join(ABOUT.format(search=search, triplets=TRIPLETS, dim=DIM).split()),
            "**Where ours is slower**\n\n" + ("\n".join(slower) or "Nowhere."),
            table(heads, lines),
        ]
        write_section(options.markdown, "metrics", "\n\n".join(text))


if __name__ == "__main__":
    main()
