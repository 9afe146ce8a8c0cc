"""A position in an epoch of `PKStream`, in one worker: what comes there, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tercet.data.samplers.resumable import state_of
from tercet.data.streams.shared_epochs import SharedEpochs

if TYPE_CHECKING:
    from tercet.data.streams.batches import Dealt, LaneBatches

__all__ = ["PKStreamIterator"]


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
