"""A position in an epoch of `PKStream`, in one worker: what comes there, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tercet.core.checks import as_int
from tercet.core.randomness import derive_key
from tercet.data.samplers.resumable import state_of

if TYPE_CHECKING:
    from tercet.data.streams.batches import Dealt, LaneBatches

__all__ = ["LAST_EPOCH", "PKStreamIterator", "SharedEpochs"]

_KEPT = 64  # iterations that are noted, and seeds that a worker remembers: so no name stands for two notes
_MOST_WORKERS = 1024
_STEPS = 1 << 31  # an epoch and a step share one word, which is written at once
LAST_EPOCH = _STEPS - 1


class PKStreamIterator:
    """One worker's part of an epoch, and the position in it.

    Args:
        batches: the batches of the rank.
        steps: how many an epoch has.
        settings: all that they depend on.
        epochs: which epoch the next iteration is.
        restored: (state, workers) → the position in it, if it is one of these settings.
    """

    def __init__(
        self,
        batches: LaneBatches,
        steps: int,
        settings: dict[str, int],
        epochs: SharedEpochs,
        restored: Callable[[Any, int], tuple[int, int]],
    ) -> None:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        self._offset, self._stride = (worker.id, worker.num_workers) if worker else (0, 1)
        self._batches, self._steps, self._settings = batches, steps, settings
        self._epochs, self._restored = epochs, restored
        self._ticket = epochs.ticket()
        self._position: tuple[int, int] | None = None
        self._forget_lanes()

    def __iter__(self) -> PKStreamIterator:
        return self

    def __next__(self) -> tuple[Any, ...]:
        if self._position is None:
            epoch, step = self._epochs.begin(self._ticket)
            self._position = epoch, step + self._offset
        epoch, step = self._position
        if step >= self._steps:
            self._forget_lanes()
            raise StopIteration
        turn, lane = divmod(step, self._batches.lanes.count)
        if lane not in self._lanes:
            self._lanes[lane] = self._batches.dealt(epoch, lane)
        while self._done.setdefault(lane, 0) < turn:  # steps of other workers, or from before a stop
            next(self._lanes[lane])
            self._done[lane] += 1
        batch = self._batches.made(next(self._lanes[lane])) or self._batches.instead(epoch, lane, turn)
        self._done[lane] += 1
        self._position = epoch, step + self._stride
        return batch

    def _forget_lanes(self) -> None:
        self._lanes: dict[int, Iterator[Dealt]] = {}
        self._done: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the next step of this worker, and the settings they depend on: small ints."""
        if self._position is None:
            epoch, step = self._epochs.peek(self._ticket)
            step += self._offset
        else:
            epoch, step = self._position
        return state_of((epoch, step), {**self._settings, "workers": self._stride})

    def load_state_dict(self, state: Any) -> None:
        """Goes on where `state` was saved; the iteration after this one is the epoch after that.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other batches.
        """
        self._position = self._restored(state, self._stride)
        self._forget_lanes()
        self._epochs.follow(self._position[0])


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
