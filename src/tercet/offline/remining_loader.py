"""A DataLoader of one round of triplets, started at any step of any epoch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from tercet.core.checks import Refusal
from tercet.core.randomness import derive_key

__all__ = ["started"]


def started(loader: Any, epoch: int, step: int, seed: int) -> Iterator[Any]:
    """The batches of a loader from `step` of `epoch` on.

    Args:
        loader: what the user's function gave: a DataLoader whose sampler can start at any step, or another
            iterable with `set_epoch(epoch, step)`.
        epoch: its pass.
        step: how many of its batches to skip.
        seed: of the workers' generators, which no sampler or dataset of this library asks.

    Raises:
        ValueError: a loader that cannot start at any step.

    Example:
        >>> from tercet.data.samplers.shuffled import ShuffledSampler
        >>> loader = DataLoader(range(5), batch_size=2, sampler=ShuffledSampler(5))
        >>> whole = [batch.tolist() for batch in started(loader, 0, 0, 0)]
        >>> [batch.tolist() for batch in started(loader, 0, 1, 0)] == whole[1:]
        True
    """
    if not hasattr(loader, "__iter__"):
        raise Refusal("loader", type(loader).__name__, "a function of triplets that gives a DataLoader")
    batches: Any = getattr(loader, "batch_sampler", None)
    rows: Any = getattr(loader, "sampler", None)
    if _starts_anywhere(loader):
        loader.set_epoch(epoch, step)
    elif _starts_anywhere(batches):
        batches.set_epoch(epoch, step)
    elif _starts_anywhere(rows):
        rows.set_epoch(epoch, min(step * loader.batch_size, len(rows)))
    else:
        hint = "give it batch_sampler=tercet.AnchorSampler(...) or sampler=tercet.ShuffledSampler(...)"
        kind = type(loader).__name__
        raise Refusal("loader", kind, "a DataLoader whose sampler can start at any step", hint)
    if isinstance(loader, DataLoader) and loader.generator is None:
        # Otherwise each iteration advances the global generator, and a resumed run drops out other units.
        loader.generator = torch.Generator().manual_seed(derive_key("remining loader", seed, epoch) >> 1)
    return iter(loader)


def _starts_anywhere(part: Any) -> bool:
    """Whether it has `set_epoch(epoch, step)`; of other libraries' samplers it takes the epoch alone."""
    method = getattr(part, "set_epoch", None)
    return callable(method) and "step" in inspect.signature(method).parameters
