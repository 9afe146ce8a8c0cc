"""Blocks of a search as tasks of Ray, which are given the number of a block and never embeddings.

A task opens the embeddings where they lie on a disk that all nodes share, and its result is a file there too.
Ray repeats the task of a worker that dies. Ray is imported only here and by `require_ray`, when it is asked
for.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tercet.core.checks import Refusal, border
from tercet.data.io.atomic import lock_file, locked
from tercet.offline.work import SearchWork

__all__ = ["connected", "processors", "raised_by_tasks", "require_ray", "search_with_ray"]


def require_ray() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        expected, hint = "an installed Ray", 'pip install "tercet[ray]"'
        raise Refusal("engine", "ray", expected, f"{hint} ({error})") from None


@contextmanager
def connected(processes: int | None) -> Iterator[Any]:
    """Ray, connected: as the caller has done, else to RAY_ADDRESS, else to one that runs in the block alone.

    Args:
        processes: processors of the one that is started; None for those of this machine.

    Yields:
        The module.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    local: dict[str, Any] = {"address": "local", "num_cpus": processes, "include_dashboard": False}
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(logging_level="warning", log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def raised_by_tasks(ray: Any) -> Iterator[None]:
    """Raise the error of a task as it was raised there, without Ray's report around it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def processors(ray: Any, kind: str) -> int:
    """How many processors, or GPUs for a device of type "cuda", Ray has; at least 1."""
    return max(1, int(ray.cluster_resources().get("GPU" if kind == "cuda" else "CPU", 1)))


def search_with_ray(work: SearchWork, processes: int | None, done: Callable[[int], Any]) -> None:
    """Search the blocks that are not done.

    Args:
        work: the blocks.
        processes: tasks at a time; None for as many as Ray has processors.
        done: is called with the number of blocks that are done.
    """
    left = [number for number in range(len(work.blocks)) if not work.is_done(number)]
    kind = torch.device(work.search["device"]).type
    with connected(processes) as ray, raised_by_tasks(ray):
        job = ray.put(work.portable())
        task = ray.remote(num_cpus=1, num_gpus=int(kind == "cuda"), max_retries=3)(_search)
        most, running = processes or processors(ray, kind), []
        while left or running:
            while left and len(running) < most:
                running.append(task.remote(job, left.pop(0)))
            done(len(work.blocks) - len(left) - len(running))
            ready, running = ray.wait(running)
            ray.get(ready)
        done(len(work.blocks))


def _search(work: SearchWork, number: int) -> None:
    """Search a block, unless it is done by now, as where the task of a worker that died is repeated."""
    with border("mine_hard_triplets"), locked(lock_file(work.folder, work.names[number])):
        if not work.is_done(number):
            work.compute(number)
