"""Time and peak memory of the sides of a case, each in a process that may be killed.

On the CPU every process is forked from one server that has loaded the libraries and done nothing else: so
none inherits another's peak or its warm caches, and none loads the libraries again.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

MATMUL = "matmul"
PRELOADED = [
    "torch._dynamo",  # whoever loads it first would pay for it
    "tercet.metrics.retrieval",
    "tercet.metrics.mining_stats",
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
    "sentence_transformers.sentence_transformer.losses",
    "oml.miners",
]
AT_LEAST = 0.4  # seconds of rounds, all sides together
LONG = 4.0  # seconds after which one side has no more rounds


@dataclass(frozen=True)
class Setting:
    """What one row of the table is about, and under which limits."""

    case: str
    n: int
    k: int = 8
    dim: int = 128
    device: str = "cpu"
    threads: int = 2
    repeats: int = 7
    gib: float = 8.0
    seconds: float = 40.0


@dataclass
class Figures:
    """Of one side: milliseconds over its rounds, MiB above the inputs, or why there are none."""

    rounds: int = 0
    median: float | None = None
    least: float | None = None
    mib: float | None = None
    died: str = ""


def batch(n: int, k: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, dim], k of a class about a common direction, as a network gives them early on."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // k
    centres = torch.randn(int(labels[-1]) + 1, dim, generator=generator)
    x = torch.randn(n, dim, generator=generator) + 0.5 * centres[labels]
    order = torch.randperm(n, generator=generator)
    return normalize(x)[order].to(device), labels[order].to(device)


def step(side: Any, x: Tensor, labels: Tensor) -> None:
    """One call, and backward where there is a loss."""
    out = side(x.clone().requires_grad_(), labels)
    if isinstance(out, Tensor) and out.requires_grad:
        out.backward()


def made(setting: Setting) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The sides and the batch."""
    from cases import CASES

    warnings.simplefilter("ignore")  # a peer's own, in every process anew
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)  # the peers draw from the global generator
    x, labels = batch(setting.n, setting.k, setting.dim, setting.device)
    sides = CASES[setting.case].make(setting.n // setting.k, setting.dim)
    for side in sides.values():
        if isinstance(side, torch.nn.Module):
            side.to(setting.device)
    sides[MATMUL] = lambda x, labels: x.detach() @ x.detach().T
    return sides, x, labels


def held_mib() -> float:
    """The most memory that this process has held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def limit(gib: float, device: str) -> None:
    """No more than so much beyond what is in use now: an allocation that asks for more fails."""
    if device != "cpu":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        )
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def peak(setting: Setting, name: str) -> float:
    """MiB that one step of one side takes above its inputs, after a tiny step that loads its code."""
    sides, x, labels = made(setting)
    side, tiny = sides[name], 4 * setting.k
    order = labels.argsort(stable=True)[:tiny]
    step(side, x[order], labels[order])
    x @ x[:64].T  # the workspace of matrix products is nobody's
    limit(setting.gib, setting.device)
    if setting.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(side, x, labels)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = held_mib()
    step(side, x, labels)
    return held_mib() - before


def times(setting: Setting, names: list[str]) -> dict[str, list[float]]:
    """Milliseconds of each round of the sides by turns.

    The first round is not counted, unless it was long, and a side that has had its seconds sits out.
    """
    sides, x, labels = made(setting)
    limit(3 * setting.gib, setting.device)

    def one(side: Any) -> float:
        start = time.perf_counter()
        step(side, x, labels)
        if setting.device != "cpu":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    first = {name: one(sides[name]) for name in names}
    found = {name: [ms] if ms > 1000 * LONG else [] for name, ms in first.items()}
    for number in range(20 * setting.repeats):
        spent = {name: sum(ms) / 1000 for name, ms in found.items()}
        if number >= setting.repeats and sum(spent.values()) > AT_LEAST:
            break
        for name in names:
            if spent[name] < LONG:
                found[name].append(one(sides[name]))
    return found


def figures(setting: Setting, dead: dict[str, str]) -> dict[str, Figures]:
    """The figures of all sides and of the bare matrix product; those that died at a smaller size, by `dead`,
    are not tried again.
    """
    from cases import CASES

    found = {name: Figures(died=dead.get(name, "")) for name in CASES[setting.case].make(2, 2)}
    alive = []
    for name, figure in found.items():
        if figure.died:
            continue
        out, died = _apart(peak, setting, name)
        if died:
            figure.died = f"{died} at N = {setting.n}"
        else:
            figure.mib = out
            alive.append(name)
    found[MATMUL] = Figures()
    out, died = _apart(times, setting, [*alive, MATMUL])
    if died:  # each side came through alone, so one of them is at the edge of its limits
        for name in alive[1:]:
            found[name].died = f"{died} by turns at N = {setting.n}"
        out, died = _apart(times, setting, [*alive[:1], MATMUL])
    if died:
        raise RuntimeError(f"{setting}: timing {died}")
    for name, ms in out.items():
        found[name].rounds, found[name].median, found[name].least = len(ms), statistics.median(ms), min(ms)
    return found


def _apart(work: Callable[..., Any], setting: Setting, *more: Any) -> tuple[Any, str]:
    """What a function gives in a process of its own, or why it gave nothing."""
    # A process forked from one that has asked for the card cannot use it, and loading a library may ask.
    context: Any = multiprocessing.get_context("forkserver" if setting.device == "cpu" else "spawn")
    if setting.device == "cpu":
        context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, setting, *more))
    process.start()
    there.close()
    allowed = setting.seconds if work is peak else 20 * setting.seconds
    try:
        if not here.poll(allowed):
            return None, f"over {allowed:g} s"
        return here.recv()
    except EOFError:
        return None, f"killed (exit code {process.exitcode})"
    finally:
        process.kill()
        process.join()


def _send(there: Connection, work: Callable[..., Any], setting: Setting, *more: Any) -> None:
    try:
        there.send((work(setting, *more), ""))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            there.send((None, f"{type(error).__name__}: {str(error).splitlines()[0]}"))
        else:
            there.send((None, f"over {setting.gib:g} GiB"))
