"""Miners of pairs: for each anchor the positives and the negatives that a rule selects."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tercet.core.checks import as_float
from tercet.core.indices import Pairs
from tercet.miners.base import Miner, is_moderate
from tercet.miners.collected import Deferred, KnownRule, Search, Tuples, mined
from tercet.neighbors.known_positives import KnownPositives
from tercet.pairwise.distances import Distance
from tercet.pairwise.tiles import Pairwise

__all__ = ["MultiSimilarityMiner", "PairMargin"]


class _PairMiner(Miner):
    """A miner whose rule selects positive pairs and negative pairs of each row."""

    _together: ClassVar[bool] = False  # as `KnownRule` has it

    def select(self, pairwise: Pairwise, step: int) -> Pairs:
        known = KnownRule(self._known_rule, together=self._together) if is_moderate(*self._bounds()) else None
        found, in_order = mined(pairwise, self._rule, lists=2, ordered=False, known=known)
        return self._pairs(found, pairwise, step, in_order)

    @abstractmethod
    def _rule(self, search: Search, positives: Tuples, negatives: Tuples) -> None:
        """Add the selected positive pairs to one list and the selected negative pairs to the other."""

    @abstractmethod
    def _known_rule(self, search: KnownPositives, positives: Deferred, negatives: Deferred) -> None:
        """`_rule` for batches whose positives the host knows."""

    @abstractmethod
    def _bounds(self) -> tuple[float, ...]:
        """What it compares distances with, or adds to them."""


@dataclass(frozen=True)
class MultiSimilarityMiner(_PairMiner):
    """Negatives nearer than the farthest positive, and positives farther than the nearest negative.

    {(a, n) : D(a,n) < max_p D(a,p) + ε} and {(a, p) : D(a,p) > min_n D(a,n) − ε}

    With the cosine distance 1 − s it is the paper's rule on similarities s. An anchor without positives has
    no negative pair, one without negatives no positive pair.

    Args:
        epsilon: ε, any finite number, in units of the distance: the larger, the more pairs.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most positive pairs, and the most negative pairs, to return, drawn uniformly from all
            that the rule gives; None for all.
        seed: a whole number from 0. It decides that draw, with the `step` of the call and the batch's labels
            and ids.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes no result.

    Returns:
        When called as `miner(embeddings, labels, ids=, ref=, step=)`, whose arguments `__call__` lists:
        `Pairs(pos_anchor, positive, neg_anchor, negative)`, int64 without gradient: the positive pairs in the
        first two [p] and the negative pairs in the others [q], each in the order of the anchors. Anchors are
        rows of the batch; positives and negatives are too, or rows of `ref` where the call has it. Nothing to
        mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import MultiSimilarityMiner
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [9.0]])
        >>> MultiSimilarityMiner(distance="euclidean")(x, torch.tensor([0, 0, 1, 1])).neg_anchor.tolist()
        [0, 1, 2, 2, 3]

    Reference:
        Wang, Han, Huang, Dong & Scott, "Multi-similarity loss with general pair weighting for deep metric
        learning", CVPR 2019.
    """

    _together = True
    epsilon: float = 0.1
    distance: Distance | str = field(default="cosine", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(epsilon=as_float("MultiSimilarityMiner", "epsilon", self.epsilon))

    def _bounds(self) -> tuple[float, ...]:
        return (self.epsilon,)

    def _known_rule(self, search: KnownPositives, positives: Deferred, negatives: Deferred) -> None:
        epsilon = search.keys.scaled(self.epsilon)
        for block in search.blocks():
            least = block.nearest_distance() - epsilon
            d_ap = block.distances
            wanted = block.only_positives(d_ap > least[:, None])
            positives.add_places(wanted, block.start, block.positives)
            bound = d_ap.amax(1, keepdim=True) + epsilon
            nearer = block.nearer_than(bound if epsilon >= 0 else bound.clamp_(min=0))[:, 0]
            negatives.add_places(nearer, block.start, None)

    def _rule(self, search: Search, positives: Tuples, negatives: Tuples) -> None:
        for block in search.blocks():
            sides, a = block.extremes(consume=True), len(block.rows)
            columns = torch.stack(search.hardest(sides))  # [2, a]
            rows = block.rows.repeat(2)
            d_ap, d_an = search.distances(rows, columns.clamp(min=0).flatten()).view(columns.shape)
            d_ap = d_ap.masked_fill(columns[0] < 0, -torch.inf)
            d_an = d_an.masked_fill(columns[1] < 0, torch.inf)
            bounds = torch.cat([d_an - self.epsilon, d_ap + self.epsilon]).split([len(s.rows) for s in sides])
            found = [search.closer_than(*each) for each in zip(sides, bounds, strict=True)]
            wanted = found if len(found) == 2 else found[0].split(a)
            for pairs, each, side in zip((positives, negatives), wanted, (sides[0], sides[-1]), strict=True):
                pairs.add_where(each, block.rows, side.columns)


@dataclass(frozen=True)
class PairMargin(_PairMiner):
    """Positive pairs that are too far apart, and negative pairs that are too near.

    {(a, p) : D(a,p) > m⁺} and {(a, n) : D(a,n) < m⁻}

    These are the pairs for which a contrastive loss with these margins is not 0.

    Args:
        pos_margin: m⁺, any finite number, in units of the distance.
        neg_margin: m⁻, any finite number, in units of the distance.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most positive pairs, and the most negative pairs, to return, drawn uniformly from all
            that the rule gives; None for all.
        seed: a whole number from 0. It decides that draw, with the `step` of the call and the batch's labels
            and ids.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes no result.

    Returns:
        When called as `miner(embeddings, labels, ids=, ref=, step=)`, whose arguments `__call__` lists:
        `Pairs(pos_anchor, positive, neg_anchor, negative)`, int64 without gradient: the positive pairs in the
        first two [p] and the negative pairs in the others [q], each in the order of the anchors. Anchors are
        rows of the batch; positives and negatives are too, or rows of `ref` where the call has it. Nothing to
        mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import PairMargin
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [9.0]])
        >>> pairs = PairMargin(pos_margin=2.0, neg_margin=0.8)(x, torch.tensor([0, 0, 1, 1]))
        >>> [index.tolist() for index in pairs]
        [[2, 3], [3, 2], [0, 1, 2, 2], [2, 2, 0, 1]]

    Reference:
        Hadsell, Chopra & LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006.
    """

    pos_margin: float = 0.2
    neg_margin: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        margins = {
            name: as_float("PairMargin", name, getattr(self, name)) for name in ("pos_margin", "neg_margin")
        }
        self._set(**margins)

    def _bounds(self) -> tuple[float, ...]:
        return self.pos_margin, self.neg_margin

    def _known_rule(self, search: KnownPositives, positives: Deferred, negatives: Deferred) -> None:
        far, near = search.keys.scaled(self.pos_margin), max(0.0, search.keys.scaled(self.neg_margin))
        for block in search.blocks():
            wanted = block.only_positives(block.distances > far)
            positives.add_places(wanted, block.start, block.positives)
            nearer = block.nearer_than(block.distances.new_full((len(block.rows), 1), near))[:, 0]
            negatives.add_places(nearer, block.start, None)

    def _rule(self, search: Search, positives: Tuples, negatives: Tuples) -> None:
        for block in search.blocks():
            every = block.all_columns()
            far, near = (torch.full_like(every.sign, margin) for margin in (self.pos_margin, self.neg_margin))
            too_near = search.closer_than(every, far, equal=True, among=block.positive)
            positives.add_where(block.positive & ~too_near, block.rows, block.columns)
            wanted = search.closer_than(every, near, among=block.negative)
            negatives.add_where(wanted, block.rows, block.columns)
