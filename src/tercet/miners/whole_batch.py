"""Miners of pairs that see all pairs of a batch at once: the hardest share of them, or even histograms."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tercet.core.checks import as_float, as_int
from tercet.core.indices import Pairs
from tercet.core.randomness import keyed_bits, permute
from tercet.miners.base import Miner
from tercet.miners.collected import Tuples, mined
from tercet.miners.draws import batch_key
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.transfer import sent_up

__all__ = ["HDC", "UniformHistogram"]


class _WholeBatch(Miner):
    """A miner whose rule sees the distances of all pairs at once."""

    def select(self, pairwise: Pairwise, step: int) -> Pairs:
        def rule(search: None, *lists: Tuples) -> None:
            tiles = [(tile.distance, tile.positive, tile.negative) for tile in pairwise.tiles()]
            if tiles:
                d, *sides = map(torch.cat, zip(*tiles, strict=True))
                self._add(pairwise, step, d, sides, lists)

        found, in_order = mined(pairwise, rule, lists=2, searches=False)
        return self._pairs(found, pairwise, step, in_order)

    @abstractmethod
    def _add(
        self,
        pairwise: Pairwise,
        step: int,
        d: Float[Tensor, "n r"],
        sides: Sequence[Bool[Tensor, "n r"]],
        lists: Sequence[Tuples],
    ) -> None:
        """Add the selected pairs of each side, positive and negative, to its list."""


@dataclass(frozen=True)
class HDC(_WholeBatch):
    """The hardest share of all positive pairs, and of all negative pairs, of the batch.

    The ⌈q·|S⁺|⌉ positive pairs with the largest D, and the ⌈q·|S⁻|⌉ negative pairs with the smallest

    The shares are of the batch as a whole, so an anchor may have many of them or none. A cascade of models,
    as in the paper, gives each next model the pairs of a smaller share. Pairs are ordered: where the columns
    are the batch, (i, j) and (j, i) are two. The distances of all pairs are held at once.

    Args:
        share: q, above 0 and at most 1.
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
        rows of the batch; positives and negatives are too, or rows of `ref` where the call has it. Among
        equal distances the lower anchor, then the lower column, comes first. Nothing to mine gives empty
        tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import HDC
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> [index.tolist() for index in HDC(0.5)(x, torch.tensor([0, 0, 1, 1]))]
        [[2, 3], [3, 2], [0, 1, 2, 2], [2, 2, 0, 1]]

    Reference:
        Yuan, Yang & Zhang, "Hard-aware deeply cascaded embedding", ICCV 2017.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(share=as_float("HDC", "share", self.share, maximum=1, above=0))

    def _add(self, pairwise: Any, step: int, d: Tensor, sides: Any, lists: Any) -> None:
        rows, columns = (torch.arange(size, device=d.device) for size in d.shape)
        for found, side, first in zip(lists, sides, (-d, d), strict=True):
            found.add_where(_first_share(first, side, self.share), rows, columns)


def _first_share(d: Float[Tensor, "n r"], among: Bool[Tensor, "n r"], share: float) -> Bool[Tensor, "n r"]:
    """Which entries of a mask are the first share of them, by number and then by place."""
    # Whole numbers, the same on every device: ⌈q · count⌉ for q in steps of 2⁻³⁰.
    parts, whole = max(1, math.floor(share * (1 << 30))), 1 << 30
    if d.device.type == "cpu":
        numbers = d[among].numpy()
        count = -(-len(numbers) * parts // whole)
        if not count:
            return among
        wanted = torch.tensor(count)
        last = torch.from_numpy(np.partition(numbers, count - 1)[count - 1 : count])
    else:  # in shapes that the data do not change
        wanted = -torch.div(-among.sum() * parts, whole, rounding_mode="floor")
        ordered = d.masked_fill(~among, math.inf).flatten().sort().values
        last = ordered.gather(0, (wanted - 1).clamp(min=0)[None])
    below, equal = (d < last) & among, (d == last) & among
    left = wanted - below.sum()  # of the equal ones, so many are in
    return below | (equal & (equal.flatten().cumsum(0).view_as(equal) <= left))


@dataclass(frozen=True)
class UniformHistogram(_WholeBatch):
    """Positive and negative pairs drawn so that all distances between the least and the largest are as many.

    The distances of a side, from its least to its largest, are divided into bins of equal width. From each
    bin a number of different pairs is drawn uniformly; a bin that has no more gives all of its own. So pairs
    of rare distances, hard and easy ones, stand beside the many in the middle. Pairs are ordered: where the
    columns are the batch, (i, j) and (j, i) are two. The distances of all pairs are held at once.

    The draw is a pure function of the seed, the step, and the batch's labels and ids.

    Args:
        bins: how many, from 1 to 100,000.
        pos_per_bin: the most positive pairs of a bin, at least 1.
        neg_per_bin: the most negative pairs of a bin, at least 1.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most positive pairs, and the most negative pairs, to return, drawn uniformly from all
            that the rule gives; None for all.
        seed: a whole number from 0. It decides all draws, with the `step` of the call and the batch's labels
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
        >>> from tercet import UniformHistogram
        >>> x = torch.tensor([[0.0], [1.0], [1.1], [1.2], [9.0]])
        >>> pairs = UniformHistogram(bins=2, neg_per_bin=1)(x, torch.tensor([0, 0, 1, 1, 1]))
        >>> len(pairs.negative), sorted((x[pairs.neg_anchor] - x[pairs.negative]).abs().flatten() > 4)
        (2, [tensor(False), tensor(True)])

    Reference:
        Musgrave, Belongie & Lim, "PyTorch Metric Learning", 2020, `UniformHistogramMiner`.
    """

    bins: int = 100
    pos_per_bin: int = 10
    neg_per_bin: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        caller, per_bin = "UniformHistogram", {}
        for name in ("pos_per_bin", "neg_per_bin"):
            per_bin[name] = as_int(caller, name, getattr(self, name), minimum=1, maximum=2**31)
        self._set(bins=as_int(caller, "bins", self.bins, minimum=1, maximum=100_000), **per_bin)

    def _add(self, pairwise: Any, step: int, d: Tensor, sides: Any, lists: Any) -> None:
        key = batch_key("UniformHistogram", self.seed, step, pairwise)
        bins = [_bins(d, side, self.bins) for side in sides]
        read = torch.stack([_counts(of, self.bins) for of in bins]).cpu().numpy()  # here alone the host waits
        for side, most in enumerate((self.pos_per_bin, self.neg_per_bin)):
            ranks = _drawn_ranks(read[side], most, keyed_bits(key, side, np.arange(self.bins)))
            place = _in_order_of(bins[side], self.bins)[sent_up(ranks, d.device)].sort().values
            lists[side].add(place // d.shape[1], place % d.shape[1], complete=True)


def _bins(d: Float[Tensor, "n r"], among: Bool[Tensor, "n r"], bins: int) -> Int[Tensor, " n·r"]:
    """The bin of each entry of a mask between their least and their largest number; `bins` of the others."""
    low = d.masked_fill(~among, math.inf).amin()
    width = d.masked_fill(~among, -math.inf).amax() - low
    place = ((d - low) / width * bins).nan_to_num_(0.0).clamp_(0, bins - 1).long()
    return place.masked_fill_(~among, bins).flatten()


def _counts(of: Int[Tensor, " t"], bins: int) -> Int[Tensor, " bins"]:
    """How many entries each bin has; `bincount` would read an accelerator."""
    return of.new_zeros(bins + 1).scatter_add_(0, of, torch.ones_like(of))[:bins]


def _in_order_of(of: Int[Tensor, " t"], bins: int) -> Int[Tensor, " t"]:
    """The places of the entries by bin, and by place within one."""
    if of.device.type != "cpu":
        return of.sort(stable=True).indices
    short = of.numpy().astype(np.uint16 if bins < 2**16 else np.int32)  # 16 bits are sorted by radix
    return torch.from_numpy(short.argsort(kind="stable"))


def _drawn_ranks(counts: np.ndarray, most: int, keys: np.ndarray) -> np.ndarray:
    """The places, in the order of the bins, of the pairs that are drawn: `most` of each bin, or all of it.

    Args:
        counts: how many pairs each bin has.
        most: how many are drawn.
        keys: uint64, a key for each bin.
    """
    drawn = np.minimum(counts, most)
    of = np.repeat(np.arange(len(counts)), drawn)
    place = np.arange(len(of)) - np.repeat(drawn.cumsum() - drawn, drawn)
    rank = permute(place, counts[of], keys[of]) if len(of) else place
    return rank + (counts.cumsum() - counts)[of]
