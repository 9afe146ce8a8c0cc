"""Who computes the blocks of a job: this process and others beside it, ranks that share a folder, or Ray.

Each process takes blocks that are neither done nor claimed, one after the other, so no engine plans who does
what. Whoever asked for the result waits for the last blocks, merges them and has the same bits as from one
process.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from tercet.core.checks import Refusal, as_choice, as_int, as_path, escaped
from tercet.data.io.atomic import remove_leftovers
from tercet.neighbors.nearest_search import NearestSearch, Neighbors
from tercet.offline.claims import Claims
from tercet.offline.ray_engine import require_ray, search_with_ray
from tercet.offline.work import SearchWork, work_of
from tercet.pairwise.distances import Distance

__all__ = [
    "ENGINES",
    "BlockSearch",
    "Engine",
    "as_engine",
    "collection_search",
    "help_parent",
    "rank_of_environment",
    "share",
]

ENGINES = ("local", "ranks", "ray")
_MOST = 1 << 10  # processes
_HELPER = "from tercet.offline.engines import help_parent; help_parent()"


class Engine(NamedTuple):
    """Who computes.

    Args:
        name: one of `ENGINES`.
        folder: the work folder.
        processes: how many; None for as many as Ray has processors.
        rank: the number of this process, from 0.
        world: how many there are.
    """

    name: str
    folder: Path
    processes: int | None = None
    rank: int = 0
    world: int = 1


def as_engine(work: Any, engine: Any, processes: Any) -> Engine | None:
    """The engine that the options name; None for this process alone, without a work folder.

    Args:
        work: the work folder, or None.
        engine: one of `ENGINES`.
        processes: how many, or None.

    Raises:
        ValueError: an option that does not fit, no work folder where one is needed, no rank in the
            environment, or Ray that is not installed.
    """
    engine = as_choice(None, "engine", engine, ENGINES)
    if processes is not None:
        processes = as_int(None, "processes", processes, 1, _MOST)
        if engine == "ranks":
            raise Refusal("processes", processes, "None: with engine='ranks' torchrun or SLURM starts them")
    if work is None:
        if engine != "local" or (processes or 1) > 1:
            raise Refusal("work", None, "a folder, which the processes share")
        return None
    folder = as_path(None, "work", work, new=True).absolute()
    if os.path.lexists(folder) and not folder.is_dir():
        raise Refusal("work", str(work), "a folder, or a new name")
    if not folder.parent.is_dir():
        raise Refusal("work", str(work), "an existing folder to make it in", f"make {folder.parent} first")
    rank, world = rank_of_environment(os.environ) if engine == "ranks" else (0, 1)
    if engine == "ray":
        require_ray()
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    return Engine(engine, folder, processes, rank, world)


def rank_of_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """The number of this process and how many there are, as torchrun or a SLURM array tells them.

    Args:
        environment: with RANK and WORLD_SIZE; or SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, and the
            array's SLURM_ARRAY_TASK_MIN and SLURM_ARRAY_TASK_STEP where it does not number from 0 by 1.

    Raises:
        ValueError: neither is there, or they are no numbers that fit.

    Example:
        >>> rank_of_environment({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4",
        ...                      "SLURM_ARRAY_TASK_MIN": "1"})
        (2, 4)
    """
    for number, count in (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")):
        if number not in environment or count not in environment:
            continue
        try:
            rank, world = int(environment[number]), int(environment[count])
            if count != "WORLD_SIZE":
                rank -= int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
                rank //= int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        except (ValueError, ZeroDivisionError):
            rank, world = -1, 0
        if 0 <= rank < world:
            return rank, world
        told = f"{number}={environment[number]!r} with {count}={environment[count]!r}"
        raise Refusal("engine", "ranks", f"a rank from 0 up to the number of ranks, not {told}")
    expected = "RANK and WORLD_SIZE, as torchrun sets them, or the variables of a SLURM array"
    raise Refusal("engine", "ranks", expected, "engine='local' needs neither")


def collection_search(
    x: Any, *, engine: Engine | None, backend: str = "exact", **search: Any
) -> NearestSearch | BlockSearch:
    """A search of a collection by itself, whoever computes it; rows of NaN are left out.

    Args:
        x: the embeddings [n, d].
        engine: who computes; None for this process, without a work folder.
        backend: as for `nearest`; with an engine, "exact".
        search: further arguments of `NearestSearch`.

    Raises:
        ValueError: as for `NearestSearch`: a `Refusal`.
    """
    if engine is None:
        return NearestSearch(x, nan="skip", argument="embeddings", backend=backend, **search)
    if backend != "exact":
        raise Refusal("backend", backend, "'exact', as blocks in a work folder are searched exactly")
    return BlockSearch(engine, x, **search)


class BlockSearch:
    """A search of a collection by itself in blocks, which is through when this is made.

    Args:
        engine: who searches.
        x: the embeddings [n, d].
        k: how many nearest rows.
        exclude: what a query does not find, as for `nearest`.
        distance: a `Distance`.
        rows: int64 [q], the queries; None for all.
        labels, groups, ids: numbers [n], as far as `exclude` needs them, or None.
        memory: bytes of each process, as for `nearest`.
        progress: show a progress bar.
        at_once, min_recall: taken as `NearestSearch` takes them, and of no effect on an exact search.

    Attributes:
        recall: 1.
    """

    recall = 1.0

    def __init__(
        self,
        engine: Engine,
        x: Any,
        *,
        k: int,
        exclude: Sequence[str],
        distance: Distance,
        rows: Int64[np.ndarray, " q"] | None = None,
        labels: Int64[np.ndarray, " n"] | None = None,
        groups: Int64[np.ndarray, " n"] | None = None,
        ids: Int64[np.ndarray, " n"] | None = None,
        memory: int | None = None,
        progress: bool = False,
        at_once: int | None = None,
        min_recall: float | None = None,
    ) -> None:
        if "self" in exclude:  # a block has two matrices, where a row is known by its id alone
            ids = np.arange(len(x)) if ids is None else ids
            exclude = [*(name for name in exclude if name not in ("self", "id")), "id"]
        given = {"labels": labels, "groups": groups, "ids": ids}
        codes = {name: values for name, values in given.items() if values is not None}
        anchors = np.arange(len(x)) if rows is None else rows
        self._work = work = work_of(engine.folder, x, anchors, k, distance, codes, exclude, memory)
        with _bar(progress, len(work.blocks)) as done:
            if engine.name == "ray":
                search_with_ray(work, engine.processes, done)
            else:
                first = engine.rank * len(work.blocks) // engine.world
                with _helpers(work, engine.processes or 1):
                    share(work, first, done)

    def found(self, some: slice | None = None) -> Neighbors:
        """The nearest rows of some of the queries; of all for None."""
        return self._work.found(some or slice(None))


def share(
    work: SearchWork, first: int, done: Callable[[int], Any], is_over: Callable[[], bool] = lambda: False
) -> None:
    """Compute blocks, beside other processes that do the same, until all are done.

    Args:
        work: the blocks.
        first: the block to begin with.
        done: is called with the number of blocks that are done.
        is_over: tells after each block whether to stop early.
    """
    claims = Claims(work.folder, work.names, work.is_done, first)
    try:
        while True:
            for number in claims.available():
                work.compute(number)
                claims.finish(number)
                done(len(work.blocks) - claims.left)
                if is_over():
                    return
            done(len(work.blocks) - claims.left)
            if not claims.wait():
                return
    finally:
        claims.close()


@contextmanager
def _helpers(work: SearchWork, processes: int) -> Iterator[None]:
    """Other processes that share the work during the block; each has its share of the threads.

    A process that dies costs its block, which others take; at the end a warning tells of it.
    """
    processes = min(processes, len(work.blocks))
    if processes < 2:
        yield
        return
    threads = torch.get_num_threads()
    each = max(1, threads // processes)
    firsts = [number * len(work.blocks) // processes for number in range(1, processes)]
    _refuse_unportable(work.search["distance"])
    job = pickle.dumps(work.portable())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command, started = [sys.executable, "-c", _HELPER], []
    with tempfile.TemporaryFile() as log:
        try:
            torch.set_num_threads(each)
            for first in firsts:
                pipes: Any = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
                started.append(subprocess.Popen(command, env=environment, **pipes))
                with suppress(BrokenPipeError), started[-1].stdin as pipe:  # a death is told at the end
                    pipe.write(pickle.dumps((first, each, os.getpid())) + job)
            yield
        finally:
            torch.set_num_threads(threads)
            codes = [process.poll() for process in started]
            for process in started:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
    failed = [code for code in codes if code]
    if failed:
        text = f"{len(failed)} of {processes} processes ended early (exit code {failed[0]}) {said}"
        warnings.warn(escaped(text + "; the others did their blocks"), UserWarning, stacklevel=2)


def _refuse_unportable(distance: Distance) -> None:
    try:
        if b"__main__" not in pickle.dumps(distance):
            return
    except (AttributeError, TypeError, pickle.PicklingError):
        pass
    expected = "a distance of a module, which other processes can import"
    raise Refusal("distance", distance, expected, "or pass processes=1")


def help_parent() -> None:
    """Share the work that the parent process sends, until it is done or the parent is gone."""
    first, threads, parent = pickle.load(sys.stdin.buffer)
    work = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    share(work, first, lambda count: None, lambda: os.getppid() != parent)


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar, and what to call with the number of blocks that are done."""
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("blocks", total=total)
        yield lambda count: bar.update(task, completed=count)
