"""Miners of hard and semi-hard triplets, an exact search for each anchor, or for each anchor and positive.

A miner is a frozen dataclass of its options, called as `miner(embeddings, labels, ids=None, ref=None,
step=0)`. It computes no gradient and never pairs an image with itself. Its tuples are int64 tensors on the
embeddings' device, sorted by anchor; nothing to mine gives empty ones. Among equal distances the lower row
number comes first, so no result depends on `tile_rows`, and what is drawn follows from the seed, the step and
the batch's labels and ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.core.checks import as_bool, as_choice, as_int, refusal
from tercet.core.indices import Triplets
from tercet.miners.base import Miner, is_moderate, margin_of
from tercet.miners.collected import Deferred, KnownRule, Search, Tuples
from tercet.neighbors.blocks import Candidates, split_rows
from tercet.neighbors.fixed import FixedShapeSearch
from tercet.neighbors.known_positives import KnownPositives
from tercet.pairwise.budget import budget
from tercet.pairwise.inputs import answer_later
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.traced import hardest_in_graph, incomplete, is_traced

__all__ = ["BatchHard", "EasyPositive", "HardestN", "SemiHard"]


@dataclass(frozen=True)
class BatchHard(Miner):
    """For each anchor its farthest positive and its nearest negative.

    p = argmax D(a, ·) over positives, n = argmin D(a, ·) over negatives

    Every row is an anchor once; one without a positive or without a negative gives no triplet.

    Args:
        complete: True promises that each row of a batch has a positive and a negative, as in batches of
            P × K; a batch that breaks the promise is refused. An accelerator is then not waited for where up
            to 256 rows are compared with each other, wherever the labels are, and refuses at the next call.
            So many rows, by a named distance and a usual relation, are traced into the graph of
            `torch.compile`.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Among equal distances the lower row number comes first. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import BatchHard
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]])
        >>> triplets = BatchHard()(x, torch.tensor([0, 0, 0, 1, 1]))
        >>> torch.stack(triplets).T.tolist()
        [[0, 2, 3], [1, 2, 3], [2, 0, 3], [3, 4, 2], [4, 3, 2]]

    Reference:
        Hermans, Beyer & Leibe, "In defense of the triplet loss for person re-identification", 2017.
    """

    complete: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(complete=as_bool("BatchHard", "complete", self.complete))
        if self.complete and self.max_count is not None:
            hint = "leave one of the two away"
            raise refusal("BatchHard", "max_count", self.max_count, "None with complete=True", hint)

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        known = KnownRule(self._known_rule, together=True, padded=True)
        found, rows = Triplets(*self._listed(pairwise, step, self._rule, known=known)), len(pairwise.labels)
        if self.complete and found.count < rows:
            shown = f"{rows - found.count} of {rows} rows lack one of them"
            raise refusal("BatchHard", *incomplete(shown))
        late = found.anchor.device.type != "cpu" and not pairwise.is_surely_complete
        if self.complete and late and rows:
            every = torch.minimum(found.positive, found.negative).amin() >= 0  # −1 where there is none
            answer_later(every, refusal("BatchHard", *incomplete("those of an earlier call")))
            found = Triplets(found.anchor, found.positive.clamp(min=0), found.negative.clamp(min=0))
        return found

    def _traced(self, embeddings: Any, labels: Any) -> Triplets | None:
        known = self.complete and type(self) is BatchHard and isinstance(labels, Tensor)
        if not (known and is_traced(self.distance, self.relation, embeddings)):
            return None
        if not 0 < len(embeddings) ** 2 <= budget(embeddings.device).traced_distances:
            return None
        return Triplets(*hardest_in_graph("BatchHard", self.distance, self.relation, embeddings, labels))

    def _known_rule(self, search: KnownPositives, found: Deferred) -> None:
        for block in search.blocks():
            found.add(block.rows, *block.hardest(), complete=True)

    def _rule(self, search: Search, found: Tuples) -> None:
        for block in search.blocks():
            hardest = search.hardest(block.extremes(consume=True))
            promised = self.complete and isinstance(search, FixedShapeSearch) and search.decides
            found.add(block.rows, *hardest, complete=search.complete or promised)


@dataclass(frozen=True)
class SemiHard(Miner):
    """For each anchor and positive the nearest negative that is farther, or all of those within a margin.

    n = argmin D(a, ·) over negatives with D(a,p) < D(a,n), and D(a,n) < D(a,p) + m where there is a margin

    Such a negative is farther than the positive, and with the margin of a hinge loss it still has a loss.

    Args:
        margin: m, at least 0, in units of the distance; None for no upper bound. 0.2 is for unit vectors.
        fallback: what an (anchor, positive) without such a negative gives: None for no triplet, `"easiest"`
            for one with the anchor's farthest negative.
        negatives: `"nearest"`, FaceNet's choice, gives at most one triplet for each (anchor, positive);
            `"all"` gives one for each negative that lies there, several times as many.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Among equal distances the lower row number comes first. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import SemiHard
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
        self._set(margin=margin_of(self, self.margin))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        every = self.negatives == "all"
        known = None
        if is_moderate(self.margin) and not (every and self.fallback):
            known = KnownRule(self._known_all if every else self._known_rule)
        return Triplets(*self._listed(pairwise, step, self._rule, ordered=not every, known=known))

    def _known_rule(self, search: KnownPositives, found: Deferred) -> None:
        margin = search.keys.scaled(cast(float, self.margin))
        for block in search.blocks():
            d_ap = block.distances
            n, d_an = block.nearest_above(d_ap)
            wanted = d_an < d_ap + margin
            if self.fallback == "easiest":
                n, wanted = torch.where(wanted, n, block.farthest()[:, None]), block.is_positive
            if wanted is None:  # then every positive gives a triplet
                a = block.rows[:, None].expand_as(n).flatten()
                found.add(a, block.positives.flatten(), n.flatten(), complete=True)
            else:
                found.add_places(block.only_positives(wanted), block.start, block.positives, n)

    def _known_all(self, search: KnownPositives, found: Deferred) -> None:
        margin = search.keys.scaled(cast(float, self.margin))
        for block in search.blocks():
            d_ap = block.distances
            wanted = block.only_positives(block.between(d_ap, d_ap + margin))
            found.add_places(wanted, block.start, block.positives, None)

    def _rule(self, search: Search, found: Tuples) -> None:
        for block in search.blocks():
            negatives = block.negatives(consume=True)
            at, column = search.positive_pairs(block, having=negatives)
            easiest = search.farthest(negatives) if self.fallback == "easiest" else None
            if self.negatives == "all":
                for i, p in split_rows(block.keys.shape[1], at, column):
                    fallback = None if easiest is None else easiest[i]
                    some = negatives.take(i)
                    found.add_where(self._all(search, some, p, fallback), some.rows, p, some.columns)
                continue
            rows = block.rows[at]
            d_ap = search.distances(rows, column)
            n = search.nearest_above(negatives, at, d_ap)
            if self.margin is not None:
                d_an = search.distances(rows, n.clamp(min=0))
                n = n.masked_fill(d_an >= d_ap + self.margin, -1)
            if easiest is not None:
                n = torch.where(n < 0, easiest[at], n)
            found.add(rows, column, n)

    def _all(
        self,
        search: Search,
        negatives: Candidates,
        positive: Int[Tensor, " c"],
        easiest: Int[Tensor, " c"] | None,
    ) -> Bool[Tensor, "c r"]:
        """Which negatives are selected for each (anchor, positive): the semi-hard ones, else the easiest."""
        d_ap = search.distances(negatives.rows, positive)
        wanted = ~search.closer_than(negatives, d_ap, equal=True)  # [c, r]
        if self.margin is None:
            wanted &= negatives.keys[:, : len(negatives.columns)] < torch.inf
        else:
            wanted &= search.closer_than(negatives, d_ap + self.margin)
        if easiest is not None:
            place = easiest.clamp(min=0)[:, None]
            lacking = ~wanted.any(1, keepdim=True) & (easiest >= 0)[:, None]
            wanted.scatter_(1, place, wanted.gather(1, place) | lacking)
        return wanted


@dataclass(frozen=True)
class EasyPositive(Miner):
    """For each anchor its nearest positive and a negative that is hard, or semi-hard, against it.

    p = argmin D(a, ·) over positives; n = argmin D(a, ·) over negatives, with `"semi_hard"` over those with
    D(a,n) > D(a,p)

    No loss pulls the farthest members of a class together, so a class may lie in several clusters. An anchor
    without a positive or without such a negative gives no triplet.

    Args:
        negative: `"semi_hard"` for the nearest negative that is farther than the positive, `"hard"` for the
            nearest of all.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Among equal distances the lower row number comes first. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import EasyPositive
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
        known = KnownRule(self._known_rule)
        return Triplets(*self._listed(pairwise, step, self._rule, known=known))

    def _known_rule(self, search: KnownPositives, found: Deferred) -> None:
        for block in search.blocks():
            p, d_ap = block.nearest_positive()
            if self.negative == "hard":
                found.add(block.rows, p, block.nearest(1)[:, 0], complete=True)
            else:
                n, d_an = block.nearest_above(d_ap[:, None])
                found.add_places(d_an[:, 0] < search.keys.beyond, block.start, p, n[:, 0])

    def _rule(self, search: Search, found: Tuples) -> None:
        hard = self.negative == "hard"
        for block in search.blocks():
            p = search.first(block.positives())
            d_ap = None if hard else search.distances(block.rows, p.clamp(min=0))
            n = search.first(block.negatives(consume=True), above=d_ap, consume=True)
            found.add(block.rows, p, n, complete=hard and search.complete)


@dataclass(frozen=True)
class HardestN(Miner):
    """For each anchor its farthest positive with each of its k nearest negatives, the first few left out.

    {(a, p, n_j) : skip < j ≤ skip + k}, where D(a, n_1) ≤ D(a, n_2) ≤ … over all negatives

    The nearest negatives of a large, imperfectly labelled collection are often positives with a wrong label:
    `skip` leaves them out. An anchor with fewer than skip + k negatives gives fewer triplets.

    Args:
        k: the negatives of an anchor, at least 1.
        skip: the nearest negatives that are left out, at least 0.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Among equal distances the lower row number comes first. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import HardestN
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
        self._set(k=as_int("HardestN", "k", self.k, minimum=1), skip=as_int("HardestN", "skip", self.skip))

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        known = KnownRule(self._known_rule, listed=self.skip + self.k)
        return Triplets(*self._listed(pairwise, step, self._rule, known=known))

    def _known_rule(self, search: KnownPositives, found: Deferred) -> None:
        for block in search.blocks():
            n = block.nearest(self.skip + self.k)[:, self.skip :]
            a, p = (each[:, None].expand_as(n).flatten() for each in (block.rows, block.farthest_positive()))
            found.add(a, p, n.flatten(), complete=True)

    def _rule(self, search: Search, found: Tuples) -> None:
        for block in search.blocks():
            skip = min(self.skip, len(block.columns))
            k = min(self.k, len(block.columns) - skip)
            p = search.nearest(block.positives(farthest=True)).expand(-1, k)
            n = search.nearest(block.negatives(consume=True), skip + k)[:, skip:]
            a = block.rows[:, None].expand(-1, k)
            found.add(a.flatten(), p.flatten(), n.flatten())
