"""Items of work that processes share through a folder: each is claimed by one of them, by a lock file.

The system takes the locks of a process that dies, so what a dead process had claimed is claimed again. On a
file system without locks two processes may do the same item; both then write the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tercet.data.io.atomic import lock_file, locked

__all__ = ["Claims"]


class Claims:
    """The items of some work, claimed one after the other by the processes that share it.

    Args:
        folder: where the lock files are.
        names: the name of each item, the same in every process.
        is_done: whether an item is done; asked again for an item until it is.
        first: the item to begin with; processes that begin at different ones meet less often.

    Example:
        >>> done = set()
        >>> claims = Claims(Path("."), ["a", "b", "c"], lambda item: item in done, first=2)
        >>> for item in claims.available():
        ...     done.add(item)
        ...     claims.finish(item)
        >>> sorted(done), claims.wait()
        ([0, 1, 2], False)
    """

    def __init__(
        self, folder: Path, names: Sequence[str], is_done: Callable[[int], bool], first: int = 0
    ) -> None:
        self._folder, self._names, self._is_done = folder, names, is_done
        self._left = dict.fromkeys([*range(first, len(names)), *range(first)])
        self._held: dict[int, ExitStack] = {}

    @property
    def left(self) -> int:
        """How many items this process does not know to be done."""
        return len(self._left)

    def available(self) -> Iterator[int]:
        """Claim the items that are neither done nor claimed by others, each when it is asked for."""
        for item in list(self._left):
            if self._seen_done(item):
                continue
            with ExitStack() as stack:
                if not stack.enter_context(locked(self._lock(item), wait=False)) or self._seen_done(item):
                    continue
                self._held[item] = stack.pop_all()
            yield item

    def finish(self, item: int) -> None:
        """Let go of an item that is done now."""
        self._left.pop(item, None)
        self._held.pop(item).close()

    def wait(self) -> bool:
        """Wait until an item that another process has claimed is let go; False where all items are done."""
        for item in list(self._left):
            if not self._seen_done(item):
                with locked(self._lock(item)):
                    return True
        return False

    def close(self) -> None:
        """Let go of all items."""
        while self._held:
            self._held.popitem()[1].close()

    def _lock(self, item: int) -> Path:
        return lock_file(self._folder, self._names[item])

    def _seen_done(self, item: int) -> bool:
        if done := self._is_done(item):
            self._left.pop(item, None)
        return done
