"""Every triplet of a batch: counted first, then listed or drawn, without a longer list in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_float
from tercet.core.indices import References, Triplets
from tercet.miners.base import Miner, is_moderate
from tercet.miners.collected import Deferred, KnownRule, Search, Tuples
from tercet.miners.draws import batch_key, drawn_places
from tercet.neighbors.blocks import RowBlock, split_rows
from tercet.neighbors.exact import ExactSearch
from tercet.neighbors.known_positives import KnownPositives
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import outside_graph

__all__ = ["BatchAll", "Part", "listed_parts"]


class Part(NamedTuple):
    """Some (anchor, positive) pairs and the columns that make a triplet with each.

    Args:
        anchor: int64 [c], row numbers.
        positive: int64 [c], column numbers.
        columns: int64 [r], the column number of each place in `wanted`.
        wanted: bool [c, r].
    """

    anchor: Int[Tensor, " c"]
    positive: Int[Tensor, " c"]
    columns: Int[Tensor, " r"]
    wanted: Bool[Tensor, "c r"]


@dataclass(frozen=True)
class BatchAll(Miner):
    """Every triplet of the batch, or every one whose hinge loss is not yet 0.

    {(a, p, n) : y_a = y_p ≠ y_n, a ≠ p, and, with a margin m, D(a,p) − D(a,n) + m > 0}

    In a batch of N rows with K a class there are N (K − 1)(N − K), so a list is long: called without mined
    tuples, `TripletMargin` sums the loss over all of them and makes no list. Here they are counted first;
    then the list is written once, into its final place, or `max_count` of them are drawn without it.

    Args:
        margin: m, in units of the distance; None for every triplet. Below 0 for those alone whose positive is
            more than −m farther than the negative.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most triplets to return, drawn uniformly from all that the rule gives; None for all.
        seed: a whole number from 0. It decides that draw, with the `step` of the call and the batch's labels
            and ids.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes no result.

    Returns:
        When called as `miner(embeddings, labels, ids=, ref=, step=)`, whose arguments `__call__` lists:
        `Triplets(anchor, positive, negative)`, int64 [t] each, by anchor, then by positive, then by negative,
        without gradient. Anchors are rows of the batch; positives and negatives are too, or rows of `ref`
        where the call has it. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import BatchAll
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> triplets = BatchAll(margin=1.0)(x, torch.tensor([0, 0, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 1, 2], [1, 0, 2], [2, 3, 0], [2, 3, 1], [3, 2, 1]]
        >>> BatchAll(margin=1.0).count(x, torch.tensor([0, 0, 1, 1]))
        5

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    margin: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin is not None:
            self._set(margin=as_float("BatchAll", "margin", self.margin))

    @outside_graph
    @torch.no_grad()
    def count(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> int:
        """How many triplets the rule gives, whatever `max_count` is, without a list; it waits for the device.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools, or what `relation` takes.
            ids: [n] integers, which image each row is; equal ids are one image.
            ref: columns to mine positives and negatives from; None for the batch itself.

        Returns:
            The number of triplets.

        Raises:
            ValueError: as a call of the miner.

        Example:
            >>> BatchAll().count(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([0, 0, 1]))
            2
        """
        pairwise = self._pairwise(embeddings, labels, ids, ref)
        return sum(int(part.wanted.sum()) for part in self._parts(pairwise))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        if pairwise.labels.device.type != "cpu":
            known = KnownRule(self._known_rule) if is_moderate(self.margin) else None
            return Triplets(*self._listed(pairwise, step, self._rule, known=known))
        return listed_parts(self, pairwise, step, self._parts)

    def _parts(self, pairwise: Pairwise) -> Iterator[Part]:
        """All (anchor, positive) with the columns wanted of each, some at a time, by anchor."""
        if self.margin is None:
            for rows in pairwise.spans():
                positive, negative = pairwise.sides(rows)
                at, column = true_places(positive)
                every = torch.arange(negative.shape[1], device=at.device)
                for i, p in split_rows(negative.shape[1], at, column):
                    yield Part(i + rows.start, p, every, negative[i])
            return
        search = ExactSearch(pairwise, ordered=False)
        for block in search.blocks():
            yield from self._parts_of(search, block)

    def _known_rule(self, search: KnownPositives, found: Deferred) -> None:
        margin = search.keys.scaled(cast(float, self.margin))
        for block in search.blocks():
            bound = block.distances + margin
            wanted = block.only_positives(block.nearer_than(bound if margin >= 0 else bound.clamp_(min=0)))
            found.add_places(wanted, block.start, block.positives, None)

    def _rule(self, search: Search, found: Tuples) -> None:
        for block in search.blocks():
            for part in self._parts_of(search, block):
                found.add_where(part.wanted, part.anchor, part.positive, part.columns)

    def _parts_of(self, search: Search, block: RowBlock) -> Iterator[Part]:
        """What `_parts` gives, of one block."""
        if self.margin is None:
            at, column = search.positive_pairs(block)
            for i, p in split_rows(block.negative.shape[1], at, column):
                yield Part(block.rows[i], p, block.columns, block.negative[i])
            return
        negatives = block.negatives(consume=True)
        at, column = search.positive_pairs(block, having=negatives)
        for i, p in split_rows(block.keys.shape[1], at, column):
            some = negatives.take(i)
            bound = search.distances(some.rows, p) + self.margin
            yield Part(some.rows, p, block.columns, search.closer_than(some, bound))


def listed_parts(
    miner: Miner, pairwise: Pairwise, step: int, parts_of: Callable[[Pairwise], Iterator[Part]]
) -> Triplets:
    """The triplets of all parts, or `max_count` of them, on a processor.

    Args:
        miner: whose options decide the draw.
        pairwise: rows and columns.
        step: the number of the training step.
        parts_of: makes the parts, by anchor; it is called twice where they take more than a tile.
    """
    # The triplets of each (a, p) are counted first, then written to their places.
    sizes, kept, room = [], [], budget(pairwise.labels.device).tile_bytes
    for part in parts_of(pairwise):
        sizes.append(int(part.wanted.sum()))
        room -= sum(column.nbytes for column in part)
        kept.append(part)
        if room < 0:  # then all parts are made once more below
            kept.clear()
    total, places = sum(sizes), None
    if miner.max_count is not None and total > miner.max_count:
        key = batch_key(type(miner).__name__, miner.seed, step, pairwise)
        places = drawn_places(miner.max_count, total, key, pairwise.labels.device)
    out = pairwise.labels.new_empty((3, total if places is None else len(places)), dtype=torch.int64)
    first = done = 0
    parts = kept if room >= 0 else parts_of(pairwise)
    for size, part in zip(sizes, parts, strict=True):
        if places is None:
            pair, at = true_places(part.wanted)
        else:
            low, high = torch.searchsorted(places, places.new_tensor([first, first + size])).tolist()
            pair, at = _ranked_places(part.wanted, places[low:high] - first)
        sides = (part.anchor, pair), (part.positive, pair), (part.columns, at)
        for row, (numbers, index) in zip(out, sides, strict=True):
            torch.index_select(numbers, 0, index, out=row[done : done + len(index)])
        first, done = first + size, done + len(pair)
    return Triplets(*out)


def _ranked_places(mask: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of the true entries of these ranks, row by row."""
    row, column = true_places(mask) if len(ranks) else (ranks, ranks)
    return row[ranks], column[ranks]
