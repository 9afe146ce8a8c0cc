"""Epochs that follow each other, and positions in them to save and restore, for samplers and streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tercet.core.checks import as_int, as_seed, refusal
from tercet.data.io.checked_json import checksum_fits, warn_unchecked, with_checksum

__all__ = ["EpochCounter", "EpochIterator", "EpochSampler", "Resumable", "state_of"]


class EpochCounter:
    """Where the next iteration starts: at the position that was set, otherwise at the next epoch.

    Example:
        >>> epochs = EpochCounter()
        >>> epochs.begin(), epochs.begin()
        ((0, 0), (1, 0))
    """

    def __init__(self) -> None:
        self._start = (0, 0)
        self.running: EpochIterator | None = None  # the iteration whose position is the sampler's

    def set(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at (epoch, step)."""
        self._start, self.running = (epoch, step), None

    def iteration_id(self) -> int | None:
        """A number for the iteration that starts now, the same in all workers; None in a single process."""
        return None

    def peek(self, iteration_id: int | None = None) -> tuple[int, int]:
        """(epoch, step) where this iteration starts, if no other one begins before it."""
        return self._start

    def begin(self, iteration_id: int | None = None) -> tuple[int, int]:
        """(epoch, step) where this iteration starts; the one after it is the next epoch."""
        epoch, step = self.peek(iteration_id)
        self.follow(epoch)
        return epoch, step

    def follow(self, epoch: int) -> None:
        """Make `epoch` + 1 the next epoch."""
        self._start = (epoch + 1, 0)


class EpochIterator(ABC):
    """The items `part`, `part + parts`, … of one epoch, and the position among them.

    The epoch is decided at the first `next`, not at `iter`: a DataLoader with workers calls `iter` twice and
    draws from the second iterator only, and the first must not cost an epoch.

    Args:
        source: what is iterated.
        part: the worker, from 0.
        parts: the number of workers.
    """

    def __init__(self, source: Resumable, part: int = 0, parts: int = 1) -> None:
        self._source, self._part, self._parts = source, part, parts
        self._iteration_id = source._epochs.iteration_id()
        self._position: tuple[int, int] | None = None

    @abstractmethod
    def _item(self, epoch: int, step: int) -> Any:
        """The item at a position; the positions of an epoch come in order."""

    @abstractmethod
    def _moved(self) -> None:
        """Called when the iterator has moved to another position: what it computed ahead is void."""

    @abstractmethod
    def _ended(self) -> None:
        """Called when the epoch has ended."""

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> Any:
        if self._position is None:
            epoch, step = self._source._epochs.begin(self._iteration_id)
            self._position = epoch, step + self._part
            self._moved()
        epoch, step = self._position
        if step >= len(self._source):
            self._ended()
            raise StopIteration
        item = self._item(epoch, step)
        self._position = epoch, step + self._parts
        return item

    def state_dict(self) -> dict[str, Any]:
        """Where the next item comes from, and the settings it depends on: a few ints and strings."""
        if self._position is None:
            epoch, step = self._source._epochs.peek(self._iteration_id)
            return self._source._state((epoch, step + self._part), self._parts)
        return self._source._state(self._position, self._parts)

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state` was saved; the iteration after this one is the epoch after that.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other items.
        """
        self._position = self._source._restored(state, self._parts)
        self._source._epochs.follow(self._position[0])
        self._moved()


_SHOWN = ("n", "p", "k", "anchors", "images", "lanes", "seed", "world_size")  # of the settings, in a repr


class Resumable(ABC):
    """Epochs that follow each other, and a position in them to save and restore.

    A subclass sets the attributes below, and is iterated by an `EpochIterator`.
    """

    _epochs: EpochCounter
    _settings: Mapping[str, int | str]  # all that the items depend on, save the rank
    _checksums: Mapping[str, str] = MappingProxyType({})  # settings that are checksums: what another means
    _last_epoch: int | None = None
    _place = "this sampler has"
    _state_source = "a sampler's state_dict() returned"
    _hint = "build the sampler as it was, or start anew with set_epoch"

    @abstractmethod
    def __len__(self) -> int:
        """How many items an epoch has: the positions in it are 0 to this number − 1."""

    def __repr__(self) -> str:
        shown = [f"{name}={self._settings[name]}" for name in _SHOWN if name in self._settings]
        return f"{type(self).__name__}({', '.join(shown)}: {len(self):,} steps an epoch)"

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at (epoch, step); otherwise each iteration is the next epoch.

        Persistent workers follow too.

        Args:
            epoch: the epoch, from 0.
            step: how many of its items to skip: those that the training loop has seen, to resume there.

        Raises:
            ValueError: not whole numbers, or a step beyond the end.
        """
        self._epochs.set(*self._whole_position("set_epoch", epoch, step))

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        """The state at `step` of `epoch`, however far a loader has drawn ahead: a few ints and strings.

        A training loop that counts its batches saves it. `load_state_dict` takes it, under any loader and
        with any number of workers.

        Args:
            epoch: the epoch, from 0.
            step: how many of its items the training loop has seen: batches of what yields batches; of a
                sampler that yields rows, `min(batches · batch_size, len(sampler))` rows.

        Returns:
            A dict that `json` and `torch.save` can write: epoch, step, the settings and a checksum.

        Raises:
            ValueError: not whole numbers, or a step beyond the end.

        Example:
            >>> from tercet.data.samplers.pk import PKSampler
            >>> sampler = PKSampler([0, 0, 1, 1, 2, 2], p=2, k=2)
            >>> drawn_ahead = list(sampler)
            >>> sampler.load_state_dict(sampler.state_at(epoch=0, step=1))
            >>> list(sampler) == drawn_ahead[1:]
            True
        """
        return self._state(self._whole_position("state_at", epoch, step))

    def load_state_dict(self, state: Any) -> None:
        """Start the next iteration where `state` was saved, on this rank or another.

        Persistent workers follow too.

        Args:
            state: from `state_at` or `state_dict`.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other items.
        """
        self._epochs.set(*self._restored(state))

    def _whole_position(self, method: str, epoch: Any, step: Any, parts: int = 1) -> tuple[int, int]:
        """(epoch, step), refused in the method's name where that is no position."""
        caller = f"{type(self).__name__}.{method}"
        # A worker whose part has ended stands up to parts − 1 steps beyond the end.
        last_step = len(self) + parts - 1
        return as_int(caller, "epoch", epoch, 0, self._last_epoch), as_int(caller, "step", step, 0, last_step)

    def _all_settings(self, parts: int) -> Mapping[str, int | str]:
        """The settings of a state that one of `parts` workers saves."""
        return self._settings

    def _state(self, position: tuple[int, int], parts: int = 1) -> dict[str, Any]:
        return state_of(position, self._all_settings(parts))

    def _restored(self, state: Any, parts: int = 1) -> tuple[int, int]:
        """The position in `state`, refused unless it was saved under the same settings."""
        caller = f"{type(self).__name__}.load_state_dict"
        is_state = isinstance(state, dict) and {"epoch", "step", "settings"} <= state.keys()
        if not is_state or not isinstance(state["settings"], dict):
            raise refusal(caller, "state", state, f"what {self._state_source}")
        here, saved = self._all_settings(parts), state["settings"]
        for name in sorted({*here, *saved}):
            if not self._agree(name, saved.get(name), here.get(name)):
                other = f"{name}={saved.get(name)!r}, but {self._place} {name}={here.get(name)!r}"
                other = self._checksums.get(name, other)
                raise ValueError(f"{caller}: the state was saved with {other}; {self._hint}")
        fits = checksum_fits(state)
        if fits is False:
            damage = "the state does not fit its checksum: it was changed or damaged"
            raise ValueError(f"{caller}: {damage}; {self._hint}")
        if fits is None:
            warn_unchecked(f"the state given to {caller}")
        epoch, step = as_int(caller, "epoch", state["epoch"]), as_int(caller, "step", state["step"])
        return self._whole_position("load_state_dict", epoch, step, parts)

    def _agree(self, name: str, saved: Any, here: Any) -> bool:
        """Whether a setting is as it was; a checksum of 0 is not known, and agrees with any."""
        unknown = name in self._checksums and 0 in (saved, here)
        return isinstance(saved, (int, str)) and (saved == here or unknown)


class _SamplerIterator(EpochIterator):
    """The items of a sampler, computed in blocks."""

    _source: EpochSampler

    def __init__(self, source: EpochSampler) -> None:
        super().__init__(source)
        self._ready: list[Any] = []  # items computed ahead, the next one last

    def _item(self, epoch: int, step: int) -> Any:
        if not self._ready:
            source = self._source
            self._ready = source._items(epoch, step, min(step + source._block, len(source)))[::-1]
        return self._ready.pop()

    def _moved(self) -> None:
        self._ready = []
        self._source._epochs.running = self

    def _ended(self) -> None:
        if self._source._epochs.running is self:
            self._source._epochs.running = None


class EpochSampler(Resumable):
    """A sampler whose items are a pure function of (seed, epoch, step), on one of several ranks.

    Args:
        seed: the seed.
        rank: the part of the items that this process takes, from 0.
        world_size: the number of processes.
    """

    _length: int  # items an epoch
    _block: int  # items computed at a time

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        caller = type(self).__name__
        self.seed = as_seed(caller, seed)
        self.world_size = as_int(caller, "world_size", world_size, 1)
        self.rank = as_int(caller, "rank", rank, 0, self.world_size - 1)
        self._epochs = EpochCounter()

    @abstractmethod
    def _items(self, epoch: int, start: int, stop: int) -> list[Any]:
        """Items start … stop − 1 of an epoch, as a pure function."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> EpochIterator:
        return _SamplerIterator(self)

    def state_dict(self) -> dict[str, Any]:
        """The position of the running iteration, or where the next one begins: a few ints and strings.

        A DataLoader with workers draws ahead of the training loop, and this position moves with the loader.
        torchdata's StatefulDataLoader asks for it at the right moment. With a plain loader, count the batches
        and save `state_at(epoch, step)`.
        """
        running = self._epochs.running
        return running.state_dict() if running else self._state(self._epochs.peek())


def state_of(position: tuple[int, int], settings: Mapping[str, int | str]) -> dict[str, Any]:
    """A position as a state to save, with a checksum.

    Args:
        position: (epoch, step).
        settings: all that the items depend on, by name.

    Example:
        >>> state_of((2, 5), {"seed": 0})
        {'epoch': 2, 'step': 5, 'settings': {'seed': 0}, 'crc32': 607655873}
    """
    epoch, step = position
    return with_checksum({"epoch": epoch, "step": step, "settings": dict(settings)})
