"""Counters that workers share: how often each number was asked for, so that no epoch repeats another."""

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
    """A tensor that is moved to memory which processes share.

    Args:
        caller: whose it is, for the sentence.
        tensor: on the CPU.
        what: what it holds, for the sentence.

    Raises:
        OSError: no shared memory of that size, or no file descriptor for it.

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
    """A counter for each number, 4 bytes each, seen by forked and spawned workers alike.

    Two processes that count the same number in the same instant may count it as one.

    Args:
        caller: whose counters they are, for the sentence.
        size: how many.

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
        self.is_copy = False  # whether it was unpickled, or copied, without the memory

    def __getstate__(self) -> dict[str, Any]:
        return {"caller": self._caller, "tensor": self.tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._caller = state["caller"]
        self.is_copy = not state["tensor"].is_shared()
        self.tensor = shared(self._caller, state["tensor"], "counters")
        self.array = self.tensor.numpy()

    def add(self, number: int) -> int:
        """Count `number` once more, and return how often it was counted before."""
        before = int(self.array[number])
        self.array[number] = before + 1
        return before


class Visits:
    """Which draw comes next for a plain number: the epoch that was set, and a view that counts on.

    A loader does not tell a map-style dataset its epoch. But whoever asks for a number again is in a later
    epoch, or wants it once more in the same one: either way the next view of it is another draw. The counters
    are shared, so persistent workers, new workers and other samplers go on where the last one was.

    Processes that train together share no memory, so the rank is a part of the view.

    Args:
        caller: whose visits they are, for sentences.
        size: how many counters, of which number n has the one at n mod size; two numbers that share one
            never get one view twice either.

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
        # The epoch comes first. It lies with the counters, as each shared tensor takes a file descriptor.
        self._shared = SharedCounts(caller, 1 + self._size)
        self._rank = 0
        self._unpickled_in = 0  # the process that has unpickled it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rank": self._own_rank()}  # a spawned worker does not know it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpickled_in = os.getpid()

    @property
    def epoch(self) -> int:
        """The epoch that was set; 0 at first."""
        return int(self._shared.array[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and count views from 0 again, in running workers too."""
        epoch = as_int(f"{self._caller}.set_epoch", "epoch", epoch, 0, _LAST_EPOCH)
        self._shared.array[:] = 0
        self._shared.array[0] = epoch

    def views(self, numbers: Iterable[int]) -> list[int]:
        """The next view of each number: another one each time, on each rank."""
        if self._shared.is_copy and self._was_sent():
            self._warn_apart()
        first = self._own_rank() << 32
        return [first + self._shared.add(1 + number % self._size) for number in numbers]

    def _own_rank(self) -> int:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
        if self._was_sent():
            return self._rank  # of the process that made this worker; RANK may be that of the node
        told = os.environ.get("RANK", "")  # torchrun sets it, and workers inherit it
        return int(told) if told.isascii() and told.isdigit() else self._rank

    def _was_sent(self) -> bool:
        """Whether this is a worker that was sent a pickle, as a spawned one is."""
        return self._unpickled_in == os.getpid() and get_worker_info() is not None

    def _warn_apart(self) -> None:
        """Warn once in a worker that was sent a plain copy: what it counts, no other process sees."""
        self._shared.is_copy = False
        warnings.warn(
            f"{self._caller}: this worker got a pickled copy that shares no memory with the dataset, so "
            "another epoch may repeat its augmentations; use a sampler of tercet, such as "
            "ShuffledSampler, or call set_epoch before each epoch and leave persistent_workers off",
            stacklevel=3,
        )
