"""Groups of k images of a class out of a stream, held until p classes have one: bounded, and keyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import as_batch_size, as_choice, as_int, refusal
from tercet.core.randomness import derive_key, keyed_bits, keyed_integers, permute

__all__ = ["ON_SHORT", "Group", "GroupBuffer", "sized"]

ON_SHORT = ("repeat", "drop", "error")


class Group(NamedTuple):
    """The k items of a class in a batch, and how often each was in a batch before."""

    label: Any
    items: list[Any]
    views: list[int]


class _Held:
    """An item that waits, and how often it was in a batch."""

    __slots__ = ("item", "uses")

    def __init__(self, item: Any) -> None:
        self.item, self.uses = item, 0


def sized(caller: str, p: Any, k: Any, buffer: Any, cap: Any) -> tuple[int, int, int, int]:
    """p, k and the bounds of a buffer for them: 4 · p · k items, and of one class an equal share for p.

    Raises:
        ValueError: not whole numbers, or bounds that p classes with k items each do not fit in.

    Example:
        >>> sized("pk_batched", 32, 4, None, None)
        (32, 4, 512, 16)
    """
    p, k = as_batch_size(caller, p, k)
    if buffer is None:
        buffer = 4 * p * k
    buffer = as_int(caller, "buffer", buffer, 1)
    if buffer < p * k:
        raise refusal(caller, "buffer", buffer, f"at least p · k = {p * k} images")
    if cap is None:
        cap = buffer // p
    return p, k, buffer, as_int(caller, "cap", cap, k, buffer // p)


class GroupBuffer:
    """Takes items one by one, holds at most `buffer`, and gives batches of p classes with k items each.

    A batch is drawn when the buffer is full: p of the classes that have k items, and k items of each, keyed.
    Where fewer than p classes have k, the class that has waited longest for an item makes room; with
    "repeat" it counts as having k if it has two. A class holds at most `cap` items: for one more, batches are
    drawn as long as the buffer is half full, and if that makes no room a keyed one goes.

    Args:
        p: classes in a batch.
        k: items of each class in a batch, at least 2.
        buffer: items held at most; by default 4 · p · k.
        cap: items of a class held at most; by default buffer / p.
        on_short: what happens to fewer than k items that have to go: "repeat", "drop" or "error".
        key: names the draws.
        caller: who is told of in an error.

    Attributes:
        seen: how many items came.
        used: how many of them were in a batch.
        batches: how many batches were given.
        dropped: why items were in no batch → how many.
        most: the most items held at a time.

    Example:
        >>> buffer = GroupBuffer(2, 2, buffer=4)
        >>> [len(batch) for item in range(4) for batch in buffer.put(item // 2, item)]
        [2]
    """

    def __init__(
        self,
        p: int,
        k: int,
        *,
        buffer: int | None = None,
        cap: int | None = None,
        on_short: str = "repeat",
        key: int = 0,
        caller: str = "GroupBuffer",
    ) -> None:
        self.p, self.k, self.buffer, self.cap = sized(caller, p, k, buffer, cap)
        self.on_short = as_choice(caller, "on_short", on_short, ON_SHORT)
        self._owner, self._key = caller, key
        self._fresh: dict[Any, list[_Held]] = {}  # by class: in no batch yet
        self._spare: dict[Any, list[_Held]] = {}  # by class: to fill up what is left of it
        self._waiting: dict[Any, None] = {}  # classes of fewer than k, the one with the latest item last
        self._ready: dict[Any, None] = {}
        self._held = 0
        self._word: int | str = 0
        self.seen = self.used = self.batches = self.most = 0
        self.dropped: Counter[str] = Counter()

    def put(self, label: Any, item: Any, word: int | str = 0) -> Iterator[list[Group]]:
        """Takes an item; the batches that make room where it filled the buffer.

        Args:
            label: its class, anything that can be a key.
            item: what is held.
            word: its name: a batch is keyed by that of the last item before it.
        """
        self.seen += 1
        self._word = word
        # Of about p classes none may ever fill the buffer alone: rather than drop, take a batch early.
        while self._crowded(label) and 2 * self._held >= self.buffer and len(self._ready) >= self.p:
            yield self._batch(list(self._ready))
        fresh = self._fresh.setdefault(label, [])
        if self._crowded(label) and not self._unspare(label):
            place = int(keyed_integers(self._key, self.seen, high=len(fresh) + 1)[0])
            self.dropped["more than cap of its class"] += 1
            if place < len(fresh):
                fresh[place] = _Held(item)
            return
        fresh.append(_Held(item))
        self._held += 1
        self._place(label)
        self.most = max(self.most, self._held)
        while self._held >= self.buffer:
            if len(self._ready) >= self.p:
                yield self._batch(list(self._ready))
            else:
                self._retire(next(iter(self._waiting)))

    def flush(self) -> Iterator[list[Group]]:
        """The batches that what is left is enough for; afterwards the buffer is empty."""
        while True:
            for label in list(self._waiting):
                self._retire(label)
            if len(self._ready) < self.p:
                break
            # The classes with the most first: so the most batches come of them.
            yield self._batch(sorted(self._ready, key=lambda label: -len(self._fresh[label])), by_size=True)
        for label in list(self._ready):
            self.dropped["fewer than p classes at the end"] += len(self._fresh[label])
            self._forget(label)

    def held(self, label: Any = None) -> dict[Any, list[Any]]:
        """The items held, by class, or those of one class: what may stand in for one that fails."""
        labels = self._fresh if label is None else [label] * (label in self._fresh)
        return {
            name: [one.item for one in (*self._fresh[name], *self._spare.get(name, ()))] for name in labels
        }

    def _crowded(self, label: Any) -> bool:
        """Whether a class has as many items as it may."""
        return len(self._fresh.get(label, ())) + len(self._spare.get(label, ())) >= self.cap

    def _place(self, label: Any) -> None:
        """Puts a class with the ready ones or, as the latest, with the waiting ones."""
        fresh = len(self._fresh[label])
        while fresh + len(self._spare.get(label, ())) > self.k and self._unspare(label):
            pass
        if label in self._ready:
            return
        self._waiting.pop(label, None)
        (self._ready if fresh >= self.k else self._waiting)[label] = None

    def _unspare(self, label: Any) -> bool:
        spare = self._spare.get(label)
        if not spare:
            return False
        spare.pop()
        self._held -= 1
        return True

    def _retire(self, label: Any) -> None:
        """Lets a waiting class be drawn as it is, or go."""
        fresh = len(self._fresh[label])
        if self.on_short == "error":
            raise ValueError(
                f'{self._owner}(k={self.k}, on_short="error"): class {label!r} leaves the buffer with '
                f"{fresh} of {self.k} images; raise buffer={self.buffer} if more of it follow, "
                'or pass on_short="repeat" or "drop"'
            )
        if self.on_short == "repeat" and fresh + len(self._spare.get(label, ())) >= 2:
            del self._waiting[label]
            self._ready[label] = None
            return
        self.dropped[f"fewer than {self.k if self.on_short == 'drop' else 2} of its class"] += fresh
        self._forget(label)

    def _forget(self, label: Any) -> None:
        self._held -= len(self._fresh.pop(label)) + len(self._spare.pop(label, ()))
        self._waiting.pop(label, None)
        self._ready.pop(label, None)

    def _batch(self, ready: list[Any], by_size: bool = False) -> list[Group]:
        key = derive_key("batch", self._key, self.batches, self._word)
        places = np.arange(self.p)
        if not by_size:
            places = permute(places, len(ready), key)
        labels = [ready[place] for place in places.tolist()]
        sizes = np.array([len(self._fresh[label]) for label in labels])
        which = permute(
            np.arange(self.k) % np.minimum(sizes, self.k)[:, None],  # [p, k]
            sizes[:, None],
            keyed_bits(key, np.arange(self.p))[:, None],
        )
        self.batches += 1
        return [self._group(label, row) for label, row in zip(labels, which.tolist())]

    def _group(self, label: Any, which: list[int]) -> Group:
        """Takes k of a class out; what is left, if fewer, keeps as many as fill it up again."""
        fresh, spare = self._fresh[label], self._spare.pop(label, [])
        taken = list(dict.fromkeys(which))
        group = [fresh[place] for place in taken]
        rest = [one for place, one in enumerate(fresh) if place not in set(taken)]
        self.used += len(group)
        distinct = group + spare[: self.k - len(group)]
        filled = [distinct[turn % len(distinct)] for turn in range(self.k)]
        views = []
        for one in filled:
            views.append(one.uses)
            one.uses += 1
        keep = distinct[: self.k - len(rest)] if self.on_short == "repeat" and 0 < len(rest) < self.k else []
        self._held += len(keep) - len(group) - len(spare)
        self._ready.pop(label)
        if rest:
            self._fresh[label] = rest
            if keep:
                self._spare[label] = keep
            self._place(label)
        else:
            del self._fresh[label]
        return Group(label, [one.item for one in filled], views)
