"""Shared counters of how often each number was requested, so that no epoch repeats another's augmentation."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from tercet.core.checks import as_int

__all__ = ["SharedCounts", "Visits", "shared"]

_LAST_EPOCH = 2**31 - 1


def shared(caller: str, tensor: torch.Tensor, what: str) -> torch.Tensor:
    """Move a tensor to shared memory.

    Args:
        caller: the dataset, for messages.
        tensor: a tensor on the CPU.
        what: what it holds, for messages.

    Returns:
        The tensor.

    Raises:
        OSError: there is not enough shared memory, or no file descriptor left.

    Example:
        >>> shared("ImageDataset", torch.zeros(3), "counters").is_shared()
        True
    """
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        hint = "enlarge it, as docker's --shm-size does"
        if os.strerror(errno.EMFILE) in reason:
            hint = "raise the limit of open files, as ulimit -n does, or keep fewer of them"
        raise OSError(
            f"{caller}: expected {tensor.nbytes} bytes of shared memory for {what}, got none ({reason}); "
            f"{hint}"
        ) from error


class SharedCounts:
    """A counter of 4 bytes for each number, shared with forked and spawned workers.

    If two processes count the same number at the same instant, one count may be lost.

    Args:
        caller: the dataset, for messages.
        size: the number of counters.

    Raises:
        OSError: no shared memory of that size.

    Example:
        >>> counts = SharedCounts("ImageDataset", 3)
        >>> counts.add(2), counts.add(2), counts.array.tolist()
        (0, 1, [0, 0, 2])
    """

    def __init__(self, caller: str, size: int) -> None:
        self._caller = caller
        self.tensor = shared(caller, torch.zeros(size, dtype=torch.int32), "counters")
        self.array: np.ndarray = self.tensor.numpy()  # the same memory
        self.is_copy = False  # whether it was unpickled or copied without its shared memory

    def __getstate__(self) -> dict[str, Any]:
        return {"caller": self._caller, "tensor": self.tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._caller = state["caller"]
        self.is_copy = not state["tensor"].is_shared()
        self.tensor = shared(self._caller, state["tensor"], "counters")
        self.array = self.tensor.numpy()

    def add(self, number: int) -> int:
        """Increment the counter of `number`, and return its value before."""
        before = int(self.array[number])
        self.array[number] = before + 1
        return before


class Visits:
    """The key of the next draw for a plain number: the epoch that was set, and the next view of the number.

    A DataLoader does not pass the epoch to a map-style dataset. A number that is requested again belongs to a
    later epoch, or is repeated within one; either way it gets its next view, and so another draw. The
    counters are shared, so persistent workers, new workers and other samplers continue from them.

    Training processes (ranks) share no memory, so the rank is part of the view.

    Args:
        caller: the dataset, for messages.
        size: the number of counters. Number n uses counter n mod size; numbers that share a counter never
            get the same view.

    Example:
        >>> visits = Visits("ImageDataset", 10)
        >>> visits.views([7, 7, 3]), visits.views([7])
        ([0, 1, 0], [2])
        >>> visits.set_epoch(4)
        >>> visits.epoch, visits.views([7])
        (4, [0])
    """

    def __init__(self, caller: str, size: int) -> None:
        self._caller = caller
        self._size = max(size, 1)
        # The epoch is stored in front of the counters, as each shared tensor takes a file descriptor.
        self._shared = SharedCounts(caller, 1 + self._size)
        self._rank = 0
        self._unpickled_in = 0  # the id of the process that unpickled it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rank": self._own_rank()}  # a spawned worker cannot find it out

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpickled_in = os.getpid()

    @property
    def epoch(self) -> int:
        """The epoch that was set last; 0 if none was."""
        return int(self._shared.array[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch and reset the views to 0, in running workers too.

        Args:
            epoch: the epoch, from 0.

        Raises:
            ValueError: not a whole number from 0 to 2³¹ − 1.
        """
        epoch = as_int(f"{self._caller}.set_epoch", "epoch", epoch, 0, _LAST_EPOCH)
        self._shared.array[:] = 0
        self._shared.array[0] = epoch

    def views(self, numbers: Iterable[int]) -> list[int]:
        """The next view of each number, another one at each call and on each rank."""
        if self._shared.is_copy and self._was_sent():
            self._warn_apart()
        first = self._own_rank() << 32
        return [first + self._shared.add(1 + number % self._size) for number in numbers]

    def _own_rank(self) -> int:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
        if self._was_sent():
            return self._rank  # the rank of the parent process; RANK may be that of the node
        rank = os.environ.get("RANK", "")  # torchrun sets it, and workers inherit it
        return int(rank) if rank.isascii() and rank.isdigit() else self._rank

    def _was_sent(self) -> bool:
        """Whether this is a worker that got the dataset as a pickle, as spawned workers do."""
        return self._unpickled_in == os.getpid() and get_worker_info() is not None

    def _warn_apart(self) -> None:
        """Warn once in a worker whose counters are a copy: no other process sees what it counts."""
        self._shared.is_copy = False
        warnings.warn(
            f"{self._caller}: this worker got a pickled copy that shares no memory with the dataset, so "
            "another epoch may repeat its augmentations; use a sampler of tercet, such as "
            "ShuffledSampler, or call set_epoch before each epoch and leave persistent_workers off",
            stacklevel=3,
        )
