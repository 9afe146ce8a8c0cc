"""Epochs that follow each other, and a position in them to save and restore: what every sampler shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from tercet.core.checks import as_int, as_seed, refusal
from tercet.data.io.checked_json import checksum_fits, warn_unchecked, with_checksum

__all__ = ["EpochIterator", "EpochSampler", "saved_position", "state_of"]


class EpochIterator:
    """One epoch of a sampler, and the position in it.

    Which epoch is settled at the first `next`, not at `iter`: a DataLoader with workers calls `iter` twice
    and draws from the second only, which must not cost an epoch.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler
        self._position: tuple[int, int] | None = None
        self._ready: list[Any] = []  # items computed ahead, the next one last

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> Any:
        sampler = self._sampler
        epoch, step = self._position or self._begin(*sampler._start)
        if step >= len(sampler):
            if sampler._running is self:
                sampler._running = None
            raise StopIteration
        if not self._ready:
            self._ready = sampler._items(epoch, step, min(step + sampler._block, len(sampler)))[::-1]
        self._position = epoch, step + 1
        return self._ready.pop()

    def _begin(self, epoch: int, step: int) -> tuple[int, int]:
        self._position, self._ready = (epoch, step), []
        self._sampler._start, self._sampler._running = (epoch + 1, 0), self
        return epoch, step

    def state_dict(self) -> dict[str, Any]:
        """Where the next item comes from, and the settings it depends on."""
        return self._sampler._state(self._position or self._sampler._start)

    def load_state_dict(self, state: Any) -> None:
        """Goes on where `state` was saved; the iteration after this one is the epoch after that."""
        self._begin(*self._sampler._restored(state))


class EpochSampler(ABC):
    """What both samplers share: ranks, epochs that follow each other, a position to save and restore."""

    _length: int  # items an epoch
    _block: int  # items computed at a time
    _settings: dict[str, int | str]  # all that the items depend on, save the rank

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        caller = type(self).__name__
        self.seed = as_seed(caller, seed)
        self.world_size = as_int(caller, "world_size", world_size, 1)
        self.rank = as_int(caller, "rank", rank, 0, self.world_size - 1)
        self._start = (0, 0)  # (epoch, step) from which the next iteration begins
        self._running: EpochIterator | None = None

    @abstractmethod
    def _items(self, epoch: int, start: int, stop: int) -> list[Any]:
        """Items start … stop − 1 of an epoch, as a pure function."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return EpochIterator(self)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Lets the next iteration be epoch `epoch` from `step` on; without it epochs follow each other.

        Args:
            epoch: the epoch, from 0.
            step: the number of its items to pass over: those the training loop has seen, to resume there.

        Raises:
            ValueError: not whole numbers, or a step beyond the end.
        """
        self._start, self._running = self._whole_position("set_epoch", epoch, step), None

    def state_dict(self) -> dict[str, Any]:
        """The position of the running iteration, or where the next one begins: a few ints and strings.

        A DataLoader with workers draws ahead of the training loop, and moves this position with it.
        torchdata's StatefulDataLoader asks at the right moment; with a plain one, count the batches and
        take `state_at(epoch, step)`.
        """
        return self._running.state_dict() if self._running else self._state(self._start)

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        """The state at `step` of `epoch`, whatever was drawn: what a loop that counts its batches saves.

        `load_state_dict` takes it, under any loader and any number of workers.

        Args:
            epoch: the epoch, from 0.
            step: the number of its items that the training loop has seen, as in `set_epoch`: batches of a
                batch sampler; of one that yields rows, `min(batches · batch_size, len(sampler))` rows.

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

    def _whole_position(self, method: str, epoch: Any, step: Any) -> tuple[int, int]:
        """(epoch, step), refused in the method's name where that is no position."""
        caller = f"{type(self).__name__}.{method}"
        return as_int(caller, "epoch", epoch), as_int(caller, "step", step, 0, len(self))

    def load_state_dict(self, state: Any) -> None:
        """Lets the next iteration go on where `state` was saved, on this rank or another.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other batches.
        """
        self._start, self._running = self._restored(state), None

    def _state(self, position: tuple[int, int]) -> dict[str, Any]:
        return state_of(position, self._settings)

    def _restored(self, state: Any) -> tuple[int, int]:
        """The position in `state`, refused unless it was saved under the same settings."""
        caller = f"{type(self).__name__}.load_state_dict"
        here = "this sampler has", "build the sampler as it was, or start anew with set_epoch"
        position = saved_position(caller, state, self._settings, "a sampler's state_dict() returned", *here)
        return self._whole_position("load_state_dict", *position)


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


def saved_position(
    caller: str,
    state: Any,
    settings: Mapping[str, Any],
    source: str,
    here: str,
    hint: str,
    sums: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, int]:
    """The epoch and step in `state`, refused unless it was saved under these settings.

    Args:
        caller: the method that was called, for the sentence.
        state: what came.
        settings: all that the items depend on, by name.
        source: what a state is, as in "what {source}".
        here: the words before the setting as it is here.
        hint: what to do about another setting.
        sums: of the settings those that are check sums, by name: what another one means. One that is 0 is
            not known, and not compared.

    Returns:
        (epoch, step), whole numbers.

    Raises:
        ValueError: not a state, one saved under other settings, which give other items, or one that was
            changed or damaged since.

    Example:
        >>> state = state_of((2, 5), {"seed": 0})
        >>> saved_position("load", state, {"seed": 0}, "state_dict() gave", "here is", "keep the seed")
        (2, 5)
    """
    is_state = isinstance(state, dict) and {"epoch", "step", "settings"} <= state.keys()
    if not is_state or not isinstance(state["settings"], dict):
        raise refusal(caller, "state", state, f"what {source}")
    for name in sorted({*settings, *state["settings"]}):
        saved, now = state["settings"].get(name), settings.get(name)
        known = isinstance(saved, (int, str))
        if known and (saved == now or (name in sums and 0 in (saved, now))):
            continue
        if name in sums:
            raise ValueError(f"{caller}: the state was saved with {sums[name]}; {hint}")
        raise ValueError(
            f"{caller}: the state was saved with {name}={saved!r}, but {here} {name}={now!r}; {hint}"
        )
    fits = checksum_fits(state)
    if fits is False:
        raise ValueError(f"{caller}: the state does not fit its checksum: it was changed or damaged; {hint}")
    if fits is None:
        warn_unchecked(f"the state given to {caller}")
    return as_int(caller, "epoch", state["epoch"]), as_int(caller, "step", state["step"])
