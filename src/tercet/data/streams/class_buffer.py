"""A bounded buffer of the samples of a stream, by class, from which P×K batches are drawn by a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import Refusal, as_batch_size, as_choice, as_int, border
from tercet.core.randomness import derive_key, keyed_bits, keyed_integers, permute

__all__ = ["ON_SHORT", "ClassBuffer", "Group", "checked_sizes"]

ON_SHORT = ("repeat", "drop", "error")


class Group(NamedTuple):
    """The k items of a class in a batch, and how often each was in a batch before."""

    label: Any
    items: list[Any]
    views: list[int]


class _Buffered:
    """An item in the buffer, and how often it was in a batch."""

    __slots__ = ("item", "uses")

    def __init__(self, item: Any) -> None:
        self.item, self.uses = item, 0


def checked_sizes(p: Any, k: Any, buffer: Any, cap: Any) -> tuple[int, int, int, int]:
    """p, k, and the bounds of a buffer for them: by default 4 · p · k items, and buffer / p of one class.

    Args:
        p: classes in a batch.
        k: items of each class in a batch.
        buffer: the most items in the buffer; None for the default.
        cap: the most items of one class; None for the default.

    Raises:
        ValueError: not whole numbers, or bounds too small for p classes of k items each.

    Example:
        >>> checked_sizes(32, 4, None, None)
        (32, 4, 512, 16)
    """
    p, k = as_batch_size(None, p, k)
    if buffer is None:
        buffer = 4 * p * k
    buffer = as_int(None, "buffer", buffer, 1)
    if buffer < p * k:
        raise Refusal("buffer", buffer, f"at least p · k = {p * k} images")
    if cap is None:
        cap = buffer // p
    return p, k, buffer, as_int(None, "cap", cap, k, buffer // p)


class ClassBuffer:
    """A buffer that takes items one by one and gives batches of p classes with k items each.

    Each class has unused items, which were in no batch yet, and with "repeat" reusable ones, kept from its
    last batch to fill up what is left of it. A class is ready when it has k unused items, else it waits.

    - A batch is drawn when the buffer is full: p of the ready classes, and k items of each, by the key.
    - Where fewer than p classes are ready, the waiting class whose last item came longest ago is evicted:
      with "repeat" it becomes ready if it has two items, otherwise its items are dropped.
    - A class has at most `cap` items. For one more, batches are drawn as long as the buffer is half full; if
      that makes no room, one item of the class is dropped, drawn by the key.

    Args:
        p: classes in a batch.
        k: items of each class in a batch, at least 2.
        buffer: the most items in the buffer; by default 4 · p · k.
        cap: the most items of one class; by default buffer / p.
        on_short: what happens to fewer than k items of a class that is evicted: "repeat", "drop" or "error".
        key: names the draws.
        caller: who is named in an error.

    Attributes:
        size: the most items in the buffer.
        seen: how many items came.
        used: how many of them were in a batch.
        batches: how many batches were given.
        dropped: how many items were in no batch, by reason.
        peak: the most items that were in the buffer at a time.

    Example:
        >>> buffer = ClassBuffer(2, 2, buffer=4)
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
        caller: str = "ClassBuffer",
    ) -> None:
        with border(caller):
            self.p, self.k, self.size, self.cap = checked_sizes(p, k, buffer, cap)
        self.on_short = as_choice(caller, "on_short", on_short, ON_SHORT)
        self._caller, self._key = caller, key
        self._unused: dict[Any, list[_Buffered]] = {}  # by class
        self._reusable: dict[Any, list[_Buffered]] = {}  # by class
        # Dicts as ordered sets: the class with the latest item is the last of those that wait.
        self._waiting: dict[Any, None] = {}
        self._ready: dict[Any, None] = {}
        self._count = 0  # items in the buffer
        self._word: int | str = 0
        self.seen = self.used = self.batches = self.peak = 0
        self.dropped: Counter[str] = Counter()

    def put(self, label: Any, item: Any, word: int | str = 0) -> Iterator[list[Group]]:
        """Take an item, and give the batches that make room where it filled the buffer.

        Args:
            label: its class, anything hashable.
            item: the item.
            word: its name. The last name before a batch is part of the key of its draws.
        """
        self.seen += 1
        self._word = word
        # Of about p classes, none may ever fill the buffer: draw a batch early rather than drop an item.
        while self._is_full(label) and 2 * self._count >= self.size and len(self._ready) >= self.p:
            yield self._batch(list(self._ready))
        unused = self._unused.setdefault(label, [])
        if self._is_full(label) and not self._drop_reusable(label):
            # Each of the unused items and the new one is the one that is dropped, with equal chance.
            place = int(keyed_integers(self._key, self.seen, high=len(unused) + 1)[0])
            self.dropped["more than cap of its class"] += 1
            if place < len(unused):
                unused[place] = _Buffered(item)
            return
        unused.append(_Buffered(item))
        self._count += 1
        self._sort_in(label)
        self.peak = max(self.peak, self._count)
        while self._count >= self.size:
            if len(self._ready) >= self.p:
                yield self._batch(list(self._ready))
            else:
                self._evict(next(iter(self._waiting)))

    def flush(self) -> Iterator[list[Group]]:
        """Give the batches that the rest is enough for; afterwards the buffer is empty."""
        while True:
            for label in list(self._waiting):
                self._evict(label)
            if len(self._ready) < self.p:
                break
            # The largest classes first: that gives the most batches.
            yield self._batch(sorted(self._ready, key=lambda label: -len(self._unused[label])), by_size=True)
        for label in list(self._ready):
            self.dropped["fewer than p classes at the end"] += len(self._unused[label])
            self._remove(label)

    def buffered(self, label: Any = None) -> dict[Any, list[Any]]:
        """The items in the buffer by class, or those of one class: candidates to replace one that fails."""
        labels = self._unused if label is None else [label] * (label in self._unused)
        return {
            name: [one.item for one in (*self._unused[name], *self._reusable.get(name, ()))]
            for name in labels
        }

    def _is_full(self, label: Any) -> bool:
        """Whether a class has `cap` items."""
        return len(self._unused.get(label, ())) + len(self._reusable.get(label, ())) >= self.cap

    def _sort_in(self, label: Any) -> None:
        """Put a class with the ready ones or, as the latest, with those that wait."""
        unused = len(self._unused[label])
        while unused + len(self._reusable.get(label, ())) > self.k and self._drop_reusable(label):
            pass
        if label in self._ready:
            return
        self._waiting.pop(label, None)
        (self._ready if unused >= self.k else self._waiting)[label] = None

    def _drop_reusable(self, label: Any) -> bool:
        """Drop a reusable item of a class; False where it has none."""
        reusable = self._reusable.get(label)
        if not reusable:
            return False
        reusable.pop()
        self._count -= 1
        return True

    def _evict(self, label: Any) -> None:
        """Make a class that waits ready as it is, or drop its items."""
        unused = len(self._unused[label])
        if self.on_short == "error":
            raise ValueError(
                f'{self._caller}(k={self.k}, on_short="error"): class {label!r} leaves the buffer with '
                f"{unused} of {self.k} images; raise buffer={self.size} if more of it follow, "
                'or pass on_short="repeat" or "drop"'
            )
        if self.on_short == "repeat" and unused + len(self._reusable.get(label, ())) >= 2:
            del self._waiting[label]
            self._ready[label] = None
            return
        self.dropped[f"fewer than {self.k if self.on_short == 'drop' else 2} of its class"] += unused
        self._remove(label)

    def _remove(self, label: Any) -> None:
        self._count -= len(self._unused.pop(label)) + len(self._reusable.pop(label, ()))
        self._waiting.pop(label, None)
        self._ready.pop(label, None)

    def _batch(self, ready: list[Any], by_size: bool = False) -> list[Group]:
        """Draw a batch.

        Args:
            ready: classes to draw from, at least p.
            by_size: take the first p of them instead of p drawn ones.
        """
        key = derive_key("batch", self._key, self.batches, self._word)
        places = np.arange(self.p)
        if not by_size:
            places = permute(places, len(ready), key)
        labels = [ready[place] for place in places.tolist()]
        sizes = np.array([len(self._unused[label]) for label in labels])
        which = permute(
            np.arange(self.k) % np.minimum(sizes, self.k)[:, None],  # [p, k]; a short class repeats items
            sizes[:, None],
            keyed_bits(key, np.arange(self.p))[:, None],
        )
        self.batches += 1
        return [self._group(label, row) for label, row in zip(labels, which.tolist(), strict=True)]

    def _group(self, label: Any, which: list[int]) -> Group:
        """Take k items of a class out of the buffer, filled up with reusable ones or by repeating.

        With "repeat", a rest of fewer than k unused items keeps as many of the group as reusable ones as
        fill it up to k again.
        """
        unused, reusable = self._unused[label], self._reusable.pop(label, [])
        taken = list(dict.fromkeys(which))
        group = [unused[place] for place in taken]
        rest = [one for place, one in enumerate(unused) if place not in set(taken)]
        self.used += len(group)
        distinct = group + reusable[: self.k - len(group)]
        filled = [distinct[place % len(distinct)] for place in range(self.k)]
        views = []
        for one in filled:
            views.append(one.uses)
            one.uses += 1
        keep = distinct[: self.k - len(rest)] if self.on_short == "repeat" and 0 < len(rest) < self.k else []
        self._count += len(keep) - len(group) - len(reusable)
        self._ready.pop(label)
        if rest:
            self._unused[label] = rest
            if keep:
                self._reusable[label] = keep
            self._sort_in(label)
        else:
            del self._unused[label]
        return Group(label, [one.item for one in filled], views)
