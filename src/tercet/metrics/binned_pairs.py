"""How many positive and negative pairs of each class are in each bin of similarity.

A negative pair goes with either of its classes, so that taking out a class takes out all pairs that it is in.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.metrics.compared import ComparedPairs, PairBlock

__all__ = ["BinnedPairs"]


class BinnedPairs:
    """Counts of pairs by class and bin, summed over blocks.

    Args:
        pairs: the pairs.
        bins: b, how many bins there are.

    Attributes:
        positive: int64 [c, b], the positive pairs of each class.
        negative: int64 [c, b], the negative pairs that an image of the class is in.
        negatives: int64 [b], all negative pairs, each once.
    """

    def __init__(self, pairs: ComparedPairs, bins: int) -> None:
        self._pairs, self._width = pairs, bins + 1  # one for no pair
        self._classes = int(pairs.classes.max()) + 1 if len(pairs.classes) else 0
        self._positive = torch.zeros(self._classes, self._width, dtype=torch.int64)
        self._negative = torch.zeros(self._classes + 1, self._width, dtype=torch.int64)  # one for no class
        self._negatives = torch.zeros(self._width, dtype=torch.int64)

    @property
    def positive(self) -> Int[Tensor, "c b"]:
        return self._positive[:, :-1]

    @property
    def negative(self) -> Int[Tensor, "c b"]:
        return self._negative[:-1, :-1]

    @property
    def negatives(self) -> Int[Tensor, " b"]:
        return self._negatives[:-1]

    def add(self, block: PairBlock, bins: Int[Tensor, "a r"]) -> None:
        """Count the pairs of a block.

        Args:
            block: some pairs.
            bins: the bin of each.
        """
        own, theirs = self._pairs.classes[block.rows], self._pairs.column_classes[block.columns]
        positive, _ = self._by_row_class(own, block.positive, bins)
        negative, places = self._by_row_class(own, block.negative, bins)
        some = slice(int(own[0]), int(own[-1]) + 1)  # rows are in order of class
        self._positive[some] += positive
        self._negative[some] += negative
        self._negatives += negative.sum(0)
        theirs = torch.where(theirs < 0, self._classes, theirs) * self._width
        places = (places + theirs).view(-1)
        self._negative.view(-1).scatter_add_(0, places, torch.ones_like(places))

    def _by_row_class(
        self, own: Int[Tensor, " a"], side: Bool[Tensor, "a r"], bins: Int[Tensor, "a r"]
    ) -> tuple[Int[Tensor, "c b"], Int[Tensor, "a r"]]:
        """The counts of the classes of the rows, and the bins, the last one for what is on the other side."""
        bins = torch.where(side, bins, self._width - 1)
        first, count = int(own[0]), int(own[-1] - own[0]) + 1
        places = bins + (own - first)[:, None] * self._width
        counts = torch.bincount(places.view(-1), minlength=count * self._width)
        return counts.view(count, self._width), bins
