"""What all miners share: their options, their call, and how the parts become one sorted list."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tercet.core.checks import as_float, as_int, as_seed
from tercet.core.indices import Pairs, References, Triplets
from tercet.miners.draws import batch_key, drawn_places
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance, as_distance
from tercet.pairwise.relations import Relation, SameLabel, as_relation
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import outside_graph

__all__ = ["Collected", "Miner", "margin_of", "whole_tuples"]


@dataclass(frozen=True, kw_only=True)
class Miner:
    """The options that every miner has, and the call. A rule of one's own is a subclass with `select`.

    Args:
        distance: a `Distance` or its name.
        relation: which columns are positive and which negative, by their labels.
        max_count: at most so many tuples, drawn uniformly from all that the rule gives; None for all.
        seed: names the draw.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> class NearPairs(Miner):
        ...     def select(self, pairwise, step):
        ...         sides = [], []
        ...         for tile in pairwise.tiles():
        ...             for side, of in zip(sides, (tile.positive, tile.negative)):
        ...                 near = (of & (tile.distance < 1)).nonzero()
        ...                 side.append(near + torch.tensor([tile.start, 0]))
        ...         positive, negative = map(torch.cat, sides)
        ...         return Pairs(*positive.T, *negative.T)
        >>> NearPairs()(torch.tensor([[0.0], [0.5], [1.2]]), torch.tensor([0, 0, 1])).negative.tolist()
        [2, 1]
    """

    distance: Distance | str = "euclidean"
    relation: Relation = SameLabel()  # noqa: RUF009
    max_count: int | None = None
    seed: int = 0
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        caller = type(self).__name__
        settled: dict[str, Any] = {
            "distance": as_distance(caller, self.distance),
            "relation": as_relation(caller, self.relation),
            "seed": as_seed(caller, self.seed),
        }
        for name in ("max_count", "tile_rows"):
            if getattr(self, name) is not None:
                settled[name] = as_int(caller, name, getattr(self, name), minimum=1)
        self._settle(**settled)

    def _settle(self, **options: Any) -> None:
        """Write checked options back into a frozen dataclass."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

    @outside_graph
    @torch.no_grad()
    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
        step: int = 0,
    ) -> Triplets | Pairs:
        """The mined tuples by anchor, and then in the order that the rule names them.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools, or what `relation` takes.
            ids: [n] integers, which image each row is; equal ids are one image.
            ref: columns to mine `positive` and `negative` from; None for the batch itself.
            step: names the draw, with the seed and the batch's labels and ids; read only where one is made.
                A miner keeps no state: pass the step where batches of the same labels and ids come again.

        Returns:
            `Triplets`, or `Pairs`, of int64. Their number follows from the data, so a call waits for the
            device, and stands outside the graph of something compiled.
        """
        pairwise = self._pairwise(embeddings, labels, ids, ref)
        step = as_int(type(self).__name__, "step", step)
        return self.select(pairwise, step)

    def select(self, pairwise: Pairwise, step: int) -> Triplets | Pairs:
        """The rule."""
        raise TypeError(f"{type(self).__name__} has no rule; a subclass defines select(pairwise, step)")

    def _pairwise(self, embeddings: Tensor, labels: Tensor, ids: Any, ref: Any) -> Pairwise:
        caller = type(self).__name__
        return Pairwise(
            caller,
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,  # type: ignore[arg-type]
            relation=self.relation,
            tile_rows=self.tile_rows,
        )

    def _gathered(
        self,
        found: Collected,
        pairwise: Pairwise,
        step: int,
        *,
        width: int = 3,
        in_order: bool = True,
    ) -> tuple[Tensor, ...]:
        """What the strips gave, by anchor, `max_count` of it; empty where there was nothing.

        `in_order` says that it came by anchor.
        """
        columns = found.columns() or (pairwise.labels.new_empty(0, dtype=torch.int64),) * width
        if not in_order:
            order = columns[0].argsort(stable=True)
            columns = tuple(column[order] for column in columns)
        if self.max_count is not None and len(columns[0]) > self.max_count:
            key = batch_key(type(self).__name__, self.seed, step, pairwise)
            drawn = drawn_places(self.max_count, len(columns[0]), key, columns[0].device)
            columns = tuple(column[drawn] for column in columns)
        return columns


class Collected:
    """Index tensors, those of one strip after those of another, in a few large blocks.

    A small tensor kept of each strip would lie between the strip's tables once they are freed, where the next
    ones then find no room: memory would grow by a table a strip.

    Example:
        >>> found = Collected()
        >>> for first in (0, 2):
        ...     found.append((torch.tensor([first, first + 1]), torch.tensor([7, 8])))
        >>> [column.tolist() for column in found.columns()]
        [[0, 1, 2, 3], [7, 8, 7, 8]]
    """

    def __init__(self) -> None:
        self._full: list[tuple[Tensor, ...]] = []
        self._block: Tensor | None = None
        self._filled = self._count = 0

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
        for row, column in zip(self._block, columns):
            row[self._filled : self._filled + count] = column
        self._filled += count

    def columns(self) -> tuple[Int[Tensor, " t"], ...]:
        """All of them, each as one; none where nothing came."""
        self._close()
        return self._full[0] if len(self._full) == 1 else tuple(map(torch.cat, zip(*self._full)))

    def _close(self) -> None:
        if self._block is not None:
            self._full.append(tuple(self._block[:, : self._filled]))
        self._block, self._filled = None, 0


def margin_of(miner: Miner, value: float | None) -> float | None:
    """A margin of at least 0, or None."""
    return None if value is None else as_float(type(miner).__name__, "margin", value, minimum=0)


def whole_tuples(*columns: Int[Tensor, " t"]) -> tuple[Tensor, ...]:
    """Those tuples that lack nothing: a missing row is −1."""
    found = functools.reduce(torch.minimum, columns) >= 0
    return columns if bool(found.all()) else tuple(column[found] for column in columns)
