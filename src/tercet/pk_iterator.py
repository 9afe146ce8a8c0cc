"""A position in an epoch of `PKStream`, in one worker: what comes there, and what is saved of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["PKStreamIterator"]


class PKStreamIterator:
    """One worker's part of an epoch, and the position in it."""

    def __init__(self, stream: Any) -> None:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        self._stream = stream
        self._offset, self._stride = (worker.id, worker.num_workers) if worker else (0, 1)
        self._ticket = stream._epochs.ticket()
        self._position: tuple[int, int] | None = None
        self._forget_lanes()

    def __iter__(self) -> PKStreamIterator:
        return self

    def __next__(self) -> tuple[Any, ...]:
        stream = self._stream
        if self._position is None:
            epoch, step = stream._epochs.begin(self._ticket)
            self._position = epoch, step + self._offset
        epoch, step = self._position
        if step >= stream.steps:
            self._forget_lanes()
            raise StopIteration
        index, lane = divmod(step, stream.lanes)
        if lane not in self._lanes:
            self._lanes[lane] = stream._lane(epoch, lane)
        while self._done.setdefault(lane, 0) < index:  # steps of other workers, or from before a stop
            next(self._lanes[lane])
            self._done[lane] += 1
        batch = stream._batch(*next(self._lanes[lane])) or stream._instead(epoch, lane, index)
        self._done[lane] += 1
        self._position = epoch, step + self._stride
        return batch

    def _forget_lanes(self) -> None:
        self._lanes: dict[int, Iterator[Any]] = {}
        self._done: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the next step of this worker, and the settings they depend on: small ints."""
        if self._position is None:
            epoch, step = self._stream._epochs.peek(self._ticket)
            step += self._offset
        else:
            epoch, step = self._position
        settings = {**self._stream._settings, "workers": self._stride}
        return {"epoch": epoch, "step": step, "settings": settings}

    def load_state_dict(self, state: Any) -> None:
        """Goes on where `state` was saved; the iteration after this one is the epoch after that.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other batches.
        """
        position: tuple[int, int] = self._stream._restored(state, self._stride)
        self._position = position
        self._forget_lanes()
        self._stream._epochs.follow(position[0])
