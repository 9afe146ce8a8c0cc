"""Miners: which rows of a batch meet. Labels and distances in, `Triplets` of row numbers out.

A miner is a frozen dataclass of its options, called as `miner(embeddings, labels, *, ids=None, ref=None)`.
It computes no gradient, never pairs an image with itself, and returns int64 tensors on the embeddings'
device, sorted by anchor. Nothing to mine gives empty tensors, never an error. Among equal distances the
lower row number wins, so no result depends on the height of a tile.

What is drawn at random is a pure function of the seed, the step and the batch's labels and ids.
Embeddings are taken as they are: a margin of 0.2 presumes unit vectors, or `distance="cosine"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tercet.core.checks import as_choice, as_int
from tercet.core.indices import References, Triplets
from tercet.miners.base import Collected, Miner, margin_of, whole_tuples
from tercet.miners.draws import batch_key, drawn_places
from tercet.neighbors.blocks import Candidates, split_rows
from tercet.neighbors.exact import ExactSearch
from tercet.pairwise.budget import budget
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import outside_graph

__all__ = ["BatchAll", "BatchHard", "EasyPositive", "HardestN", "SemiHard"]


@dataclass(frozen=True)
class BatchAll(Miner):
    """Every triplet of the batch, or every one whose hinge loss is not yet 0.

    {(a, p, n) : y_a = y_p ≠ y_n, a ≠ p, and, with a margin m, D(a,p) − D(a,n) + m > 0}

    There are about N²K of them; a head without `mined` gives their loss without a list. They are counted
    before they are listed: the list is written once, in place, and `max_count` of them are drawn without it.

    Args:
        margin: m, in units of the distance; None for every triplet.
        distance, relation, max_count, seed, tile_rows: as for `Miner`.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
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
        self._settle(margin=margin_of(self, self.margin))

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
        """How many triplets there are, without a list and whatever `max_count`; it waits for the device.

        Args are those of the call.
        """
        pairwise = self._pairwise(embeddings, labels, ids, ref)
        return sum(int(mask.sum()) for *_, mask in self._masks(pairwise))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        """Count the triplets of each (a, p), then write those wanted in their places."""
        sizes, held, room = [], [], budget(pairwise.labels.device).tile_bytes
        for part in self._masks(pairwise):
            sizes.append(int(part[-1].sum()))
            room -= sum(column.nbytes for column in part)
            held.append(part)
            if room < 0:
                held.clear()
        total, places = sum(sizes), None
        if self.max_count is not None and total > self.max_count:
            key = batch_key("BatchAll", self.seed, step, pairwise)
            places = drawn_places(self.max_count, total, key, pairwise.labels.device)
        out = pairwise.labels.new_empty((3, total if places is None else len(places)), dtype=torch.int64)
        first = done = 0
        again = held if room >= 0 else self._masks(pairwise)
        for size, (anchor, positive, columns, mask) in zip(sizes, again):
            if places is None:
                pair, at = true_places(mask)
            else:
                low, high = torch.searchsorted(places, places.new_tensor([first, first + size])).tolist()
                pair, at = _ranked_places(mask, places[low:high] - first)
            for row, of, index in zip(out, (anchor, positive, columns), (pair, pair, at)):
                torch.index_select(of, 0, index, out=row[done : done + len(index)])
            first, done = first + size, done + len(pair)
        return Triplets(*out)

    def _masks(self, pairwise: Pairwise) -> Any:
        """(anchor [c], positive [c], columns [r], wanted [c, r]) for some pairs at a time, by anchor."""
        if self.margin is None:
            for rows in pairwise.spans():
                positive, negative = pairwise.sides(rows)
                at, column = true_places(positive)
                every = torch.arange(negative.shape[1], device=at.device)
                for i, p in split_rows(negative.shape[1], at, column):
                    yield i + rows.start, p, every, negative[i]
            return
        search = ExactSearch(pairwise, ordered=False)
        for block in search.blocks():
            negatives = block.negatives(consume=True)
            at, column = block.positive_pairs(having=negatives)
            for i, p in split_rows(block.keys.shape[1], at, column):
                some = negatives.take(i)
                bound = search.distances(some.rows, p) + self.margin
                yield some.rows, p, block.columns, search.closer_than(some, bound)


def _ranked_places(mask: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of the true entries of these ranks, row by row."""
    row, column = true_places(mask) if len(ranks) else (ranks, ranks)
    return row[ranks], column[ranks]


@dataclass(frozen=True)
class BatchHard(Miner):
    """For each anchor its farthest positive and its nearest negative.

    p = argmax D(a, ·) over positives, n = argmin D(a, ·) over negatives

    Args:
        distance, relation, max_count, seed, tile_rows: as for `Miner`.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]])
        >>> triplets = BatchHard()(x, torch.tensor([0, 0, 0, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 2, 3], [1, 2, 3], [2, 0, 3], [3, 4, 2], [4, 3, 2]]

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        """One triplet for each anchor that has a positive and a negative."""
        search, found = ExactSearch(pairwise), Collected()
        for block in search.blocks():
            found.append(whole_tuples(block.rows, *search.hardest(block.extremes(consume=True))))
        return Triplets(*self._gathered(found, pairwise, step, in_order=search.in_order))


@dataclass(frozen=True)
class SemiHard(Miner):
    """For each anchor and positive the nearest negative beyond the positive, or all within a margin.

    n = argmin D(a, ·) over negatives with D(a,p) < D(a,n), and D(a,n) < D(a,p) + m where there is a margin

    Args:
        margin: m, in units of the distance; None for no upper bound.
        negatives: `"nearest"`, FaceNet's choice, or `"all"` that lie there: several times as many triplets.
        fallback: what an (a, p) without such a negative gives: None for no triplet, `"easiest"` for the
            farthest negative of all.
        distance, relation, max_count, seed, tile_rows: as for `Miner`.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [1.1], [9.0]])
        >>> triplets = SemiHard(margin=0.2)(x, torch.tensor([0, 0, 1, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 1, 3], [4, 3, 1]]

    Reference:
        Schroff, Kalenichenko & Philbin, "FaceNet: a unified embedding for face recognition and
        clustering", 2015.
    """

    margin: float | None = 0.2
    fallback: str | None = None
    negatives: str = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        as_choice("SemiHard", "negatives", self.negatives, ["nearest", "all"])
        if self.fallback is not None:
            as_choice("SemiHard", "fallback", self.fallback, ["easiest"])
        self._settle(margin=margin_of(self, self.margin))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        """At most one triplet for each anchor and positive, unless all negatives are asked for."""
        every = self.negatives == "all"
        search, found = ExactSearch(pairwise, ordered=not every), Collected()
        for block in search.blocks():
            negatives = block.negatives(consume=True)
            at, column = block.positive_pairs(having=negatives)
            easiest = search.farthest(negatives) if self.fallback == "easiest" else None
            if every:
                for i, p in split_rows(block.keys.shape[1], at, column):
                    instead = None if easiest is None else easiest[i]
                    found.append(self._all(search, negatives.take(i), p, instead))
                continue
            rows, d_ap = block.rows[at], search.distances(block.rows[at], column)
            n = search.nearest_above(negatives, at, d_ap)
            if self.margin is not None:
                d_an = search.distances(rows, n.clamp(min=0))
                n = n.masked_fill(d_an >= d_ap + self.margin, -1)
            if easiest is not None:
                n = torch.where(n < 0, easiest[at], n)
            found.append(whole_tuples(rows, column, n))
        return Triplets(*self._gathered(found, pairwise, step, in_order=search.in_order))

    def _all(
        self,
        search: ExactSearch,
        negatives: Candidates,
        positive: Int[Tensor, " c"],
        easiest: Int[Tensor, " c"] | None,
    ) -> tuple[Tensor, ...]:
        """Every negative of each (anchor, positive) that lies where one is wanted; columns are in order."""
        d_ap = search.distances(negatives.rows, positive)
        wanted = ~search.closer_than(negatives, d_ap, equal=True)  # [c, r]
        if self.margin is None:
            wanted &= negatives.keys[:, : len(negatives.columns)] < torch.inf
        else:
            wanted &= search.closer_than(negatives, d_ap + self.margin)
        if easiest is not None:
            (none,) = (~wanted.any(1)).nonzero(as_tuple=True)
            wanted[none, easiest[none]] = True
        pair, negative = true_places(wanted)
        return negatives.rows[pair], positive[pair], negative


@dataclass(frozen=True)
class EasyPositive(Miner):
    """For each anchor its nearest positive and a negative that is hard, or semi-hard, against it.

    p = argmin D(a, ·) over positives; n = argmin D(a, ·) over negatives, with `"semi_hard"` over those with
    D(a,n) > D(a,p)

    A class may then lie in several clusters: nobody pulls its farthest members together.

    Args:
        negative: `"semi_hard"`, where an anchor without such a negative gives no triplet, or `"hard"`.
        distance, relation, max_count, seed, tile_rows: as for `Miner`.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [0.5], [9.0]])
        >>> torch.stack(EasyPositive()(x, torch.tensor([0, 0, 0, 1, 1]))).T.tolist()
        [[0, 1, 4], [1, 0, 4], [2, 1, 3], [4, 3, 0]]

    Reference:
        Xuan, Stylianou & Pless, "Improved embeddings with easy positive triplet mining", WACV 2020.
    """

    negative: str = "semi_hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        as_choice("EasyPositive", "negative", self.negative, ["semi_hard", "hard"])

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        """At most one triplet for each anchor."""
        search, found = ExactSearch(pairwise), Collected()
        for block in search.blocks():
            p = search.nearest(block.positives())[:, 0]
            d_ap = search.distances(block.rows, p.clamp(min=0)) if self.negative == "semi_hard" else None
            n = search.nearest(block.negatives(consume=True), above=d_ap, consume=True)[:, 0]
            found.append(whole_tuples(block.rows, p, n))
        return Triplets(*self._gathered(found, pairwise, step, in_order=search.in_order))


@dataclass(frozen=True)
class HardestN(Miner):
    """For each anchor its farthest positive with each of its k nearest negatives, the first few left out.

    {(a, p, n_j) : skip < j ≤ skip + k}, where D(a, n_1) ≤ D(a, n_2) ≤ … over all negatives

    The very nearest "negatives" of a large, imperfectly labelled collection are often positives with a wrong
    label: `skip` leaves them out. An anchor with fewer negatives gives the fewer triplets.

    Args:
        k: how many negatives an anchor gives.
        skip: how many of the nearest are left out.
        distance, relation, max_count, seed, tile_rows: as for `Miner`.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]])
        >>> torch.stack(HardestN(k=2)(x, torch.tensor([0, 0, 1, 1, 1]))).T.tolist()[:4]
        [[0, 1, 2], [0, 1, 3], [1, 0, 2], [1, 0, 3]]

    Reference:
        Xuan, Stylianou, Liu & Pless, "Hard negative examples are hard, but useful", ECCV 2020.
    """

    k: int = 1
    skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(k=as_int("HardestN", "k", self.k, minimum=1), skip=as_int("HardestN", "skip", self.skip))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        """At most k triplets for each anchor."""
        search, found = ExactSearch(pairwise), Collected()
        skip = min(self.skip, len(pairwise.column_labels))
        k = min(self.k, len(pairwise.column_labels) - skip)
        for block in search.blocks():
            p = search.nearest(block.positives(farthest=True)).expand(-1, k)
            n = search.nearest(block.negatives(consume=True), skip + k)[:, skip:]
            a = block.rows[:, None].expand(-1, k)
            found.append(whole_tuples(a.flatten(), p.flatten(), n.flatten()))
        return Triplets(*self._gathered(found, pairwise, step, in_order=search.in_order))
