"""One epoch counter for all workers of a loader, whether they live on from epoch to epoch or not."""

from __future__ import annotations

from typing import Any

from tercet.core.checks import as_int
from tercet.core.randomness import derive_key

__all__ = ["LAST_EPOCH", "SharedEpochs"]

_KEPT = 64  # iterations that are noted, and seeds that a worker remembers: so no name stands for two notes
_MOST_WORKERS = 1024
_STEPS = 1 << 31  # an epoch and a step share one word, which is written at once
LAST_EPOCH = _STEPS - 1


class SharedEpochs:
    """Epochs that follow each other, in shared memory: the workers of one iteration agree on theirs.

    A loader tells its workers no number of the iteration. But they share the seed that the loader drew,
    and each of them starts once an iteration. So (seed, workers, how many starts) names the iteration: the
    first worker to begin it takes the next epoch, and the others find it noted, however late they are. No
    lock is needed, for whoever notes the same iteration notes the same.

    Example:
        >>> epochs = SharedEpochs()
        >>> epochs.begin(epochs.ticket()), epochs.begin(epochs.ticket())
        ((0, 0), (1, 0))
    """

    def __init__(self) -> None:
        import torch

        # Of each worker, the seeds it started with, the latest first, and how many times with each; then
        # the iterations that have begun, ticket and word; then the next one. All in one tensor, as each
        # shared one takes a file descriptor.
        self._memory = torch.full((_MOST_WORKERS + 2, _KEPT, 2), -1, dtype=torch.int64)
        self._memory[-1] = 0
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._memory = state["memory"]
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {"memory": self._memory}

    def _share(self) -> None:
        from tercet.data.datasets.visits import shared

        shared("PKStream", self._memory, "epochs")  # a plain copy of a shared tensor is not shared
        self._starts, self._begun = self._memory[:_MOST_WORKERS], self._memory[_MOST_WORKERS]
        self._next = self._memory[_MOST_WORKERS + 1, 0]

    def set(self, epoch: int, step: int = 0) -> None:
        """Lets the next iteration be `epoch` from `step` on."""
        self._next[0] = as_int("set_epoch", "epoch", epoch, maximum=LAST_EPOCH) * _STEPS + step

    def ticket(self) -> int | None:
        """The name of the iteration that starts here; None outside of workers, where each start is one."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        if worker is None:
            return None
        number = as_int("DataLoader", "num_workers", worker.num_workers, 1, _MOST_WORKERS)
        loader = derive_key("loader", worker.seed - worker.id, number) >> 1
        starts = self._starts[worker.id].tolist()
        times = next((times + 1 for seed, times in starts if seed == loader), 0)
        starts = [[loader, times], *(start for start in starts if start[0] != loader)]
        self._starts[worker.id] = self._starts.new_tensor(starts[:_KEPT])
        return derive_key(loader, times) >> 1

    def peek(self, ticket: int | None) -> tuple[int, int]:
        """The epoch and the first step of an iteration, as long as nothing else begins."""
        upcoming = int(self._next[0])  # read before the notes: who writes does so the other way round
        noted = None if ticket is None else self._noted(ticket)
        return divmod(upcoming if noted is None else noted, _STEPS)

    def begin(self, ticket: int | None) -> tuple[int, int]:
        """The epoch and the first step of an iteration, which is noted; the next one is the epoch after."""
        epoch, step = self.peek(ticket)
        if ticket is None or self._noted(ticket) is None:
            if ticket is not None:
                row = self._begun[epoch % _KEPT]
                row[0] = -1
                row[1] = epoch * _STEPS + step
                row[0] = ticket
            self.follow(epoch)
        return epoch, step

    def follow(self, epoch: int) -> None:
        """Lets the epoch after `epoch` be the next."""
        self._next[0] = (epoch + 1) * _STEPS

    def _noted(self, ticket: int) -> int | None:
        for name, word in self._begun.tolist():
            if name == ticket:
                return word
        return None
