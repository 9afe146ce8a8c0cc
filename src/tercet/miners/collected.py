"""Run a miner's rule over all rows and gather what it finds into one list, on each kind of device.

A rule is `rule(search, *lists)`: it walks `search.blocks()`, asks `search`, and adds tuples to lists. It is
the same for both kinds, save for batches whose positives the host knows: on an accelerator a miner may have a
rule of fewer launches for these (`neighbors/known_positives`).

| | processor | accelerator |
|---|---|---|
| ambiguous rows | `ExactSearch` decides them at once | `FixedShapeSearch` marks them for a second search |
| list | `Collected`: tuples that lack a row leave at once | `Deferred`: kept until all counts are read |
| host reads | cost nothing | at most one, and one more if any row was ambiguous |
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.fixed import FixedShapeSearch
from tercet.neighbors.known_positives import search_known_positives
from tercet.pairwise.budget import budget
from tercet.pairwise.inputs import check_finite, check_finite_later, raise_late
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.transfer import bits_of, number_of

__all__ = ["Collected", "Deferred", "KnownRule", "Search", "Tuples", "mined"]

Columns = tuple[Int[Tensor, " t"], ...]
Search: TypeAlias = "ExactSearch | FixedShapeSearch"
Tuples: TypeAlias = "Collected | Deferred"


class Collected:
    """Index tensors, those of one block after those of another, in a few large allocations.

    Results are copied into large blocks: small tensors kept between large temporaries fragment the allocator.

    Args:
        search: whose rows and columns are added; where they are all, in order, places are their numbers.

    Example:
        >>> found = Collected()
        >>> found.add(torch.tensor([0, 1]), torch.tensor([7, -1]))
        >>> found.add_where(torch.tensor([[False, True]]), torch.tensor([2]), torch.tensor([7, 8]))
        >>> [column.tolist() for column in found.columns()]
        [[0, 2], [7, 8]]
    """

    def __init__(self, search: ExactSearch | None = None) -> None:
        self._numbers = _taken_at if search is None else search.numbers
        self._full: list[Columns] = []
        self._block: Tensor | None = None
        self._filled = self._count = 0

    def add(self, *columns: Int[Tensor, " t"], complete: bool = False) -> None:
        """Take in tuples, a column a member; those with a missing row, −1, are left out.

        Args:
            columns: anchors first.
            complete: True if no row is missing; then an accelerator has nothing to count.
        """
        found: Any = None
        for column in columns[1:]:  # no anchor is missing
            if int(column.numpy().min(initial=0)) < 0:  # a fifth of torch's calls
                found = column >= 0 if found is None else found & (column >= 0)
        if found is None:
            self.append(columns)
            return
        self.append([column[found] for column in columns])

    def add_where(self, wanted: Bool[Tensor, "c r"], *columns: Int[Tensor, " _"]) -> None:
        """Take in a tuple for each true place: of `columns`, all but the last are [c], the last is [r]."""
        i, j = true_places(wanted)
        self.append([*(self._numbers(column, i) for column in columns[:-1]), self._numbers(columns[-1], j)])

    def columns(self) -> Columns:
        """Each column as one tensor; no column where nothing was added."""
        self._close()
        if len(self._full) == 1:
            return self._full[0]
        return tuple(map(torch.cat, zip(*self._full, strict=True)))

    def append(self, columns: Sequence[Int[Tensor, " t"]]) -> None:
        """Take in columns of one length, as many each time."""
        count = columns[0].shape[0]
        self._count += count
        if not self._full:  # mostly it is the only one
            self._full.append(tuple(columns))
            return
        if self._block is None or self._filled + count > self._block.shape[1]:
            self._close()
            width = max(budget(columns[0].device).collected_tuples, self._count)
            self._block = columns[0].new_empty((len(columns), width))
        for row, column in zip(self._block, columns, strict=True):
            row[self._filled : self._filled + count] = column
        self._filled += count

    def _close(self) -> None:
        if self._block is not None:
            self._full.append(tuple(self._block[:, : self._filled]))
        self._block, self._filled = None, 0


class KnownRule(NamedTuple):
    """A rule for batches whose positives the host knows, and what `search_known_positives` is asked for.

    Args:
        rule: called as `rule(search, *lists)`, search a `KnownPositives`, lists `Deferred`.
        listed: the most negatives of a row that it asks for.
        together: whether it measures positives and nearest negatives at once.
        padded: whether it asks for the hardest, which does so.
    """

    rule: Callable[..., None]
    listed: int = 1
    together: bool = False
    padded: bool = False


class _Part(NamedTuple):
    """Some tuples that a rule added: those where `wanted` is true, or all where it is None.

    Args:
        wanted: bool [c], [c, r] or [c, q, r].
        columns: anchors first; of `add_places` without the anchors.
        start: of `add_places`, the number of the first row; else None.
    """

    wanted: Bool[Tensor, "..."] | None
    columns: tuple[Any, ...]
    start: int | None = None

    def taken(self, count: int) -> Columns:
        """The wanted tuples, which are so many."""
        if self.wanted is None:
            return self.columns
        if self.wanted.ndim == 1 and count == len(self.wanted):  # all of them
            if self.start is None:
                return self.columns
            return torch.arange(self.start, self.start + count, device=self.wanted.device), *self.columns
        places = torch.nonzero_static(self.wanted, size=count).unbind(1)  # [count] each
        if self.start is None:
            at = [*([places[0]] * (len(self.columns) - 1)), places[-1]]
            return tuple(column[place] for column, place in zip(self.columns, at, strict=True))
        anchors = places[0] + self.start if self.start else places[0]
        others = (places[-1] if column is None else column[places[: column.ndim]] for column in self.columns)
        return anchors, *others

    def without(self, anchors: Bool[Tensor, " n"]) -> _Part:
        """Those of other anchors."""
        if self.start is None:
            kept = ~anchors[self.columns[0]]
        else:
            kept = ~anchors[self.start : self.start + len(cast(Tensor, self.wanted))]
        if self.wanted is not None:
            kept = self.wanted & kept.view(-1, *[1] * (self.wanted.ndim - 1))
        return self._replace(wanted=kept)


class Deferred:
    """What a rule added, kept whole with a mask of the tuples that are wanted, until they have been counted.

    Once the host has read the counts, the wanted tuples are taken out in shapes that are known.

    Example:
        >>> found = Deferred()
        >>> found.add(torch.tensor([0, 1]), torch.tensor([7, -1]))
        >>> found.add_where(torch.tensor([[False, True]]), torch.tensor([2]), torch.tensor([7, 8]))
        >>> counts = torch.stack(found.counts()).tolist()
        >>> [column.tolist() for column in found.columns(counts)]
        [[0, 2], [7, 8]]
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(self, *columns: Int[Tensor, " t"], complete: bool = False) -> None:
        """As `Collected.add`."""
        wanted = None if complete else functools.reduce(torch.minimum, columns[1:]) >= 0
        self._parts.append(_Part(wanted, columns))

    def add_where(self, wanted: Bool[Tensor, "c r"], *columns: Int[Tensor, " _"]) -> None:
        """As `Collected.add_where`."""
        self._parts.append(_Part(wanted, columns))

    def add_places(
        self, wanted: Bool[Tensor, "c *q"], start: int, *columns: Int[Tensor, "c *q"] | None
    ) -> None:
        """Take in a tuple for each true place, whose members stand at that place of tables.

        Args:
            wanted: a table of rows, of rows × positives, or of rows × positives × columns.
            start: the number of the first row: rows are the anchors, and follow each other.
            columns: tables of as many dimensions or fewer; None for the last number of a place itself.
        """
        self._parts.append(_Part(wanted, columns, start))

    def leave_out(self, anchors: Bool[Tensor, " n"]) -> None:
        """Leave out the tuples of these anchors, which the first column names."""
        self._parts = [part.without(anchors) for part in self._parts]

    def counts(self) -> list[Int[Tensor, ""]]:
        """How many tuples each part has, on the device; those that are complete are not counted."""
        return [part.wanted.sum() for part in self._parts if part.wanted is not None]

    def columns(self, counts: Sequence[int]) -> Columns:
        """Each column as one tensor; no column where nothing was added.

        Args:
            counts: the numbers that `counts()` names, on the host.
        """
        remaining = iter(counts)
        found = [part.taken(-1 if part.wanted is None else next(remaining)) for part in self._parts]
        if len(found) == 1:
            return found[0]
        return tuple(map(torch.cat, zip(*found, strict=True)))


def mined(
    pairwise: Pairwise,
    rule: Callable[..., None],
    lists: int = 1,
    ordered: bool = True,
    known: KnownRule | None = None,
    searches: bool = True,
) -> tuple[list[Columns], bool]:
    """Walk a rule over all rows.

    Args:
        pairwise: rows and columns; on an accelerator its checks are made here.
        rule: called as `rule(search, *lists)`.
        lists: how many lists it fills.
        ordered: whether a processor may take the rows in class order.
        known: the same rule for batches whose positives the host knows; None where there is none.
        searches: False for a rule that asks no search, and is given None for it.

    Returns:
        The columns of each list, and whether they come by anchor.

    Raises:
        ValueError: embeddings that are not finite: of this call, or of an earlier one that did not wait.
    """
    if pairwise.labels.device.type == "cpu":
        searched = ExactSearch(pairwise, ordered) if searches else None
        found = [Collected(searched) for _ in range(lists)]
        rule(searched, *found)
        return [each.columns() for each in found], searched is None or searched.in_order
    first = [Deferred() for _ in range(lists)]
    search = None if known is None else search_known_positives(pairwise, *known[1:])
    if known is not None and search is not None:
        known.rule(search, *first)
    else:
        search = FixedShapeSearch(pairwise) if searches else None
        rule(search, *first)
    doubts, unread = search.doubts() if search else [], [each.counts() for each in first]
    if not doubts and not any(unread):
        check_finite_later(pairwise.checks, pairwise.caller)
        return [each.columns([]) for each in first], True
    raise_late(pairwise.labels.device)
    sizes = [(size, check.limit) for check in pairwise.checks for size in check.sizes()]
    counts, left = _read(unread, [*doubts, *(bits_of(size) for size, _ in sizes)])
    for (size, limit), bits in zip(sizes, left[len(doubts) :], strict=True):
        if not number_of(bits, size.dtype) <= limit:
            check_finite(pairwise.checks)
    ambiguous, pairs = search.judged(left[: len(doubts)]) if search else (0, 0)
    if search is None or not ambiguous:
        return [each.columns(count) for each, count in zip(first, counts, strict=True)], True
    unsure = search.unsure
    (rows,) = torch.nonzero_static(unsure, size=ambiguous).unbind(1)
    again, second = FixedShapeSearch(pairwise, rows, exactly=True, pairs=pairs), [Deferred() for _ in first]
    rule(again, *second)
    for each in first:
        each.leave_out(unsure)
    lists_of_both = [*first, *second]
    counts, _ = _read([each.counts() for each in lists_of_both])
    both = [each.columns(count) for each, count in zip(lists_of_both, counts, strict=True)]
    return [_by_anchor(*each) for each in zip(both[:lists], both[lists:], strict=True)], True


def _read(
    unread: Sequence[Sequence[Tensor]], more: Sequence[Tensor] = ()
) -> tuple[list[list[int]], list[int]]:
    """The counts of each list, and some whole numbers more: the one time that the host waits."""
    numbers = [*itertools.chain(*unread), *more]
    read: Any = iter(torch.stack(numbers).tolist() if numbers else [])
    return [list(itertools.islice(read, len(counts))) for counts in unread], list(read)


def _by_anchor(first: Columns, second: Columns) -> Columns:
    """Two lists as one, in the order of their anchors; no anchor is in both."""
    columns = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    order = columns[0].argsort(stable=True)
    return tuple(column[order] for column in columns)


def _taken_at(numbers: Int[Tensor, " _"], places: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
    return numbers[places]
