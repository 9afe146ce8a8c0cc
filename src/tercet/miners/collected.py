"""Run a miner's rule over all rows and gather what it finds into one list, on each kind of device.

A rule is `rule(search, *lists)`: it walks `search.blocks()`, asks `search`, and adds tuples to lists. It is
the same for both kinds:

| | processor | accelerator |
|---|---|---|
| ambiguous rows | `ExactSearch` decides them at once | `FixedShapeSearch` marks them for a second search |
| list | `Collected`: tuples that lack a row leave at once | `Deferred`: kept until all counts are read |
| host reads | cost nothing | at most one, and one more if any row was ambiguous |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.fixed import FixedShapeSearch
from tercet.pairwise.budget import budget
from tercet.pairwise.inputs import all_hold, check_finite, check_finite_later, raise_late
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise

__all__ = ["Collected", "Deferred", "Search", "Tuples", "mined"]

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
        if all(int(column.numpy().min(initial=0)) >= 0 for column in columns):  # a fifth of torch's calls
            self.append(columns)
            return
        found = functools.reduce(torch.minimum, columns) >= 0
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
        count = len(columns[0])
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
        self._parts: list[tuple[Bool[Tensor, "..."] | None, Columns]] = []  # None where all are wanted

    def add(self, *columns: Int[Tensor, " t"], complete: bool = False) -> None:
        """As `Collected.add`."""
        wanted = None if complete else functools.reduce(torch.minimum, columns[1:]) >= 0
        self._parts.append((wanted, columns))

    def add_where(self, wanted: Bool[Tensor, "c r"], *columns: Int[Tensor, " _"]) -> None:
        """As `Collected.add_where`."""
        self._parts.append((wanted, columns))

    def leave_out(self, anchors: Bool[Tensor, " n"]) -> None:
        """Leave out the tuples of these anchors, which the first column names."""
        for place, (wanted, columns) in enumerate(self._parts):
            kept = ~anchors[columns[0]]
            if wanted is not None:
                kept = wanted & (kept if wanted.ndim == 1 else kept[:, None])
            self._parts[place] = kept, columns

    def counts(self) -> list[Int[Tensor, ""]]:
        """How many tuples each part has, on the device; those that are complete are not counted."""
        return [wanted.sum() for wanted, _ in self._parts if wanted is not None]

    def columns(self, counts: Sequence[int]) -> Columns:
        """Each column as one tensor; no column where nothing was added.

        Args:
            counts: the numbers that `counts()` names, on the host.
        """
        found: list[Columns] = []
        remaining = iter(counts)
        for wanted, columns in self._parts:
            count = -1 if wanted is None else next(remaining)
            if wanted is None or (wanted.ndim == 1 and count == len(wanted)):
                found.append(columns)
                continue
            places = torch.nonzero_static(wanted, size=count).unbind(1)  # [count] each
            at = [*([places[0]] * (len(columns) - 1)), places[-1]]
            found.append(tuple(column[place] for column, place in zip(columns, at, strict=True)))
        if len(found) == 1:
            return found[0]
        return tuple(map(torch.cat, zip(*found, strict=True)))


def mined(
    pairwise: Pairwise, rule: Callable[..., None], lists: int = 1, ordered: bool = True
) -> tuple[list[Columns], bool]:
    """Walk a rule over all rows.

    Args:
        pairwise: rows and columns; on an accelerator its checks are made here.
        rule: called as `rule(search, *lists)`.
        lists: how many lists it fills.
        ordered: whether a processor may take the rows in class order.

    Returns:
        The columns of each list, and whether they come by anchor.

    Raises:
        ValueError: embeddings that are not finite: of this call, or of an earlier one that did not wait.
    """
    if pairwise.labels.device.type == "cpu":
        search = ExactSearch(pairwise, ordered)
        found = [Collected(search) for _ in range(lists)]
        rule(search, *found)
        return [each.columns() for each in found], search.in_order
    search, first = FixedShapeSearch(pairwise), [Deferred() for _ in range(lists)]
    rule(search, *first)
    if search.complete and not any(each.counts() for each in first):
        check_finite_later(pairwise.checks, pairwise.caller)
        return _taken(first, []), True
    raise_late(pairwise.labels.device)
    counts, (finite, *left) = _read(
        first, [all_hold(pairwise.checks, pairwise.labels.device), *search.doubts()]
    )
    if not finite:
        check_finite(pairwise.checks)
    ambiguous, pairs = (*left, 0, 0)[:2]
    if not ambiguous:
        return _taken(first, counts), True
    searched_again = search.ambiguous > 0  # [n]
    (rows,) = torch.nonzero_static(searched_again, size=ambiguous).unbind(1)
    again, second = FixedShapeSearch(pairwise, rows, exactly=True, pairs=pairs), [Deferred() for _ in first]
    rule(again, *second)
    for each in first:
        each.leave_out(searched_again)
    both = _taken([*first, *second], _read([*first, *second])[0])
    return [_by_anchor(*each) for each in zip(both[:lists], both[lists:], strict=True)], True


def _read(lists: Sequence[Deferred], more: Sequence[Tensor] = ()) -> tuple[list[int], list[int]]:
    """The counts of all parts of all lists, and some numbers more: the one time that the host waits."""
    counts = [count for each in lists for count in each.counts()]
    numbers = torch.stack([number.to(torch.int64) for number in (*counts, *more)]).tolist()
    return numbers[: len(counts)], numbers[len(counts) :]


def _taken(lists: Sequence[Deferred], counts: Sequence[int]) -> list[Columns]:
    """The columns of each list, given the counts of their parts one after the other."""
    remaining: Any = iter(counts)
    return [each.columns([next(remaining) for _ in each.counts()]) for each in lists]


def _by_anchor(first: Columns, second: Columns) -> Columns:
    """Two lists as one, in the order of their anchors; no anchor is in both."""
    columns = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    order = columns[0].argsort(stable=True)
    return tuple(column[order] for column in columns)


def _taken_at(numbers: Int[Tensor, " _"], places: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
    return numbers[places]
