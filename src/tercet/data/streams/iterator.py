"""One worker's iteration over `PKStream`, and the epoch counter that the workers of a loader share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tercet.core.checks import as_int
from tercet.core.randomness import derive_key
from tercet.data.samplers.resumable import EpochCounter, EpochIterator, Resumable

if TYPE_CHECKING:
    from tercet.data.streams.batches import PartitionBatches, RawBatch

__all__ = ["LAST_EPOCH", "PKStreamIterator", "SharedEpochs"]

# Iterations whose start is recorded, and seeds that a worker remembers. As many of both: a seed that was
# forgotten and comes again finds no record of its first iteration, whose id it gets anew.
_KEPT = 64
_MOST_WORKERS = 1024
_STEPS = 1 << 31  # an epoch and a step share one int64, which is written at once
LAST_EPOCH = _STEPS - 1


class PKStreamIterator(EpochIterator):
    """The batches of an epoch that one worker makes, and the position among them.

    Args:
        stream: what is iterated.
        batches: the batches of the rank.
    """

    def __init__(self, stream: Resumable, batches: PartitionBatches) -> None:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        super().__init__(stream, *((worker.id, worker.num_workers) if worker else (0, 1)))
        self._batches = batches
        self._forget_partitions()

    def _item(self, epoch: int, step: int) -> tuple[Any, ...]:
        # Step s is batch ⌊s / count⌋, its round, of partition s mod count.
        round_, partition = divmod(step, self._batches.partitions.count)
        if partition not in self._raw:
            self._raw[partition], self._done[partition] = self._batches.raw(epoch, partition), 0
        raw = self._raw[partition]
        while self._done[partition] < round_:  # batches of other workers, or from before a stop: not decoded
            next(raw)
            self._done[partition] += 1
        batch = self._batches.decoded(next(raw))
        if batch is None:
            batch = self._batches.replacement(epoch, partition, round_)
        self._done[partition] += 1
        return batch

    def _moved(self) -> None:
        self._forget_partitions()

    def _ended(self) -> None:
        self._forget_partitions()

    def _forget_partitions(self) -> None:
        self._raw: dict[int, Iterator[RawBatch]] = {}  # by partition, its batches from here on
        self._done: dict[int, int] = {}  # by partition, how many batches came


class SharedEpochs(EpochCounter):
    """An epoch counter in shared memory, on which the workers of a loader agree.

    A loader does not tell its workers the number of the iteration. But they share the seed that the loader
    drew, and each of them starts once an iteration. So a hash of (seed, workers, number of starts) is an id
    of the iteration that all workers compute alike. The first worker to begin an iteration takes the next
    epoch and records it under the id; the others find that record, however late they are. No lock is needed:
    two workers that record an iteration at once write the same.

    Workers may be started for each epoch, or persist.

    Example:
        >>> epochs = SharedEpochs()
        >>> epochs.begin(epochs.iteration_id()), epochs.begin(epochs.iteration_id())
        ((0, 0), (1, 0))
    """

    def __init__(self) -> None:
        import torch

        # Row w, below _MOST_WORKERS: the seeds that worker w started with, the latest first, and how many
        # times with each. The last row but one: the iterations that have begun, as (id, position). The last
        # row: the position where the next one begins. A position is epoch · _STEPS + step. All is in one
        # tensor, because each shared tensor takes a file descriptor.
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
        """Start the next iteration at (epoch, step)."""
        self._next[0] = as_int("set_epoch", "epoch", epoch, maximum=LAST_EPOCH) * _STEPS + step

    def iteration_id(self) -> int | None:
        """The id of the iteration that this worker starts; None outside of workers."""
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

    def peek(self, iteration_id: int | None = None) -> tuple[int, int]:
        """(epoch, step) where this iteration starts, if no other one begins before it."""
        upcoming = int(self._next[0])  # read before the records: `begin` writes them in the other order
        recorded = None if iteration_id is None else self._recorded(iteration_id)
        return divmod(upcoming if recorded is None else recorded, _STEPS)

    def begin(self, iteration_id: int | None = None) -> tuple[int, int]:
        """(epoch, step) where this iteration starts; the one after it is the next epoch."""
        epoch, step = self.peek(iteration_id)
        if iteration_id is None or self._recorded(iteration_id) is None:
            if iteration_id is not None:
                row = self._begun[epoch % _KEPT]
                row[0] = -1  # no reader may find the new position under the old id
                row[1] = epoch * _STEPS + step
                row[0] = iteration_id
            self.follow(epoch)
        return epoch, step

    def follow(self, epoch: int) -> None:
        """Make `epoch` + 1 the next epoch."""
        self._next[0] = (epoch + 1) * _STEPS

    def _recorded(self, iteration_id: int) -> int | None:
        """The position that is recorded for an iteration; None where there is no record."""
        for recorded_id, position in self._begun.tolist():
            if recorded_id == iteration_id:
                return position
        return None
