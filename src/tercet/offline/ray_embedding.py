"""Embeddings by a pool of Ray's actors: each holds the model, is given numbers of parts, and writes these.

The checkpoints of Ray Data are not used: they hold all ids in memory and read the input again. The parts that
are done are files, and only the others are asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tercet.core.checks import Refusal, border
from tercet.offline.embedding_parts import Parts
from tercet.offline.embedding_work import EmbeddingWork, PartEmbedder
from tercet.offline.fingerprints import modules_within
from tercet.offline.model_run import evaluating
from tercet.offline.ray_engine import connected, processors

__all__ = ["embed_with_ray"]

_MOST_BLOCKS = 1000  # that Ray keeps account of


def embed_with_ray(
    work: EmbeddingWork, parts: Parts, processes: int | None, advance: Callable[[int], Any]
) -> int:
    """Embed the parts that are not done.

    Args:
        work: what embeds.
        parts: in a folder that all nodes see.
        processes: actors; None for one on each processor, or on each GPU where the device is one.
        advance: is called with the number of images of each part.

    Returns:
        How many images were embedded.

    Raises:
        ValueError: a model that cannot be sent, a folder that other nodes do not see, or as
            `ModelRun.embedded`.
    """
    left = [number for number in range(len(parts)) if not parts.is_done(number)]
    count = 0
    if not left:
        return count
    with connected(processes) as ray, _quiet() as data:
        try:
            sent = ray.put((os.getcwd(), work, parts))
        except (TypeError, RuntimeError, AttributeError, pickle.PickleError) as error:
            expected = "a model, transform and data that can be sent to other processes"
            raise Refusal("engine", "ray", expected, str(error).partition("\n")[0]) from None
        on_gpu = work.device.type == "cuda"
        most = min(processes or processors(ray, work.device.type), len(left))
        rows = data.from_items(left, override_num_blocks=min(len(left), _MOST_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=([sent],),  # in a list, so that each actor fetches it, also one started anew
            batch_size=1,
            compute=data.ActorPoolStrategy(size=most),
            num_cpus=1,
            num_gpus=int(on_gpu),
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            count += row["count"]
            advance(row["count"])
    lacking = sum(not parts.is_done(number) for number in left)
    if lacking:
        hint = f"{lacking} of {len(left)} parts that were embedded are not in {parts.folder}"
        raise Refusal("out", str(parts.folder.parent), "a folder that all nodes of Ray see", hint)
    return count


class _Actor:
    """Embeds parts; made once in each process of the pool."""

    def __init__(self, sent: list[Any]) -> None:
        place, self._work, self._parts = importlib.import_module("ray").get(sent[0])
        os.chdir(place)  # paths may start from there
        self._modules = modules_within(self._work.model)
        for module in self._modules:
            module.to(self._work.device)
        self._embedder = PartEmbedder(self._work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        count, error = 0, b""
        try:
            with border("embed", "out"), evaluating(self._modules):
                for part in self._embedder.embedded(self._parts, batch["item"].tolist(), lambda images: None):
                    self._parts.add(*part)
                    count += len(part.numbers)
        except Exception as raised:  # Ray would repeat the part, and show a report around it
            error = _pickled(raised)
        return {"count": [count], "error": [error]}


def _pickled(error: Exception) -> bytes:
    try:
        found = pickle.dumps(error)
        pickle.loads(found)
    except Exception:  # one that cannot be sent
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return found


@contextmanager
def _quiet() -> Iterator[Any]:
    """The module ray.data, which draws no bars and logs no progress in the block."""
    data = importlib.import_module("ray.data")
    context, logger = data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield data
    finally:
        context.enable_progress_bars = before
        logger.setLevel(level)
