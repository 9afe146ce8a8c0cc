"""Verification without each class, for intervals: from histograms of similarity by class."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from tercet.metrics.binned_pairs import BinnedPairs
from tercet.metrics.compared import ComparedPairs, PairBlock

__all__ = ["RocTables"]

_BINS, _NUMBERS = 512, 2**20  # at most; C × bins numbers are held twice
_CELLS = 2**14
_AT_ONCE = 2**20


class RocTables:
    """The pairs of each class in bins that hold about as many positive pairs each.

    Args:
        pairs: the pairs.
        similar: float32 [p], the similarity of each positive pair, in steps of 2⁻²⁴; p ≥ 1.
    """

    def __init__(self, pairs: ComparedPairs, similar: Float32[np.ndarray, " p"]) -> None:
        self._low = float(similar.min())
        self._scale = (_CELLS - 2) / max(float(similar.max()) - self._low, 1.0)
        cells = self._cells(torch.from_numpy(similar)).numpy()
        bins = min(_BINS, max(16, _NUMBERS // (int(pairs.classes.max()) + 1)))
        ends = np.unique(np.quantile(cells, np.linspace(0, 1, bins), method="nearest"))
        # Bins are runs of cells: a look-up takes a tenth of the time of bisection.
        self._bin = torch.from_numpy(np.searchsorted(ends, np.arange(_CELLS), "right"))
        self._counts = BinnedPairs(pairs, len(ends) + 1)

    def _cells(self, steps: Float32[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Cells of equal width: 0 below all positives, 1 to 2¹⁴ − 1 from the least of them to the largest."""
        return ((steps - self._low) * self._scale).floor_().add_(1).clamp_(0, _CELLS - 1).to(torch.int64)

    def add(self, block: PairBlock, steps: Float32[Tensor, "a r"]) -> None:
        """Count the pairs of a block.

        Args:
            block: some pairs.
            steps: their similarities in steps of 2⁻²⁴.
        """
        self._counts.add(block, self._bin.index_select(0, self._cells(steps).view(-1)).view(steps.shape))

    def without(self, rates: list[float]) -> Float[np.ndarray, "c f"]:
        """AUC, EER, TAR at each rate and P(negative ≥ positive) without each class.

        Args:
            rates: false accept rates.
        """
        positive, negative = self._counts.positive.numpy(), self._counts.negative.numpy()
        every = positive.sum(0), self._counts.negatives.numpy()
        step, found = max(1, _AT_ONCE // negative.shape[1]), []
        for start in range(0, len(positive), step):
            some = slice(start, start + step)
            found.append(_figures(every[0] - positive[some], every[1] - negative[some], rates))
        return np.concatenate(found)


def _figures(
    positive: Int[np.ndarray, "c b"], negative: Int[np.ndarray, "c b"], rates: list[float]
) -> Float[np.ndarray, "c f"]:
    """AUC, EER, TAR at each rate and P(negative ≥ positive), the ROC a line within a bin."""
    tar, far = (_shares_above(each) for each in (positive, negative))  # [c, b + 1], from the highest
    auc = np.trapezoid(tar, far, axis=1)
    gap = far + tar - 1  # rises from −1 to 1
    found = [auc, _at(gap, far, 0.0), *(_at(far, tar, rate) for rate in rates), 1 - auc]
    return np.stack(found, 1)


def _shares_above(counts: Int[np.ndarray, "c b"]) -> Float[np.ndarray, "c points"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.cumsum(counts[:, ::-1], axis=1) / counts.sum(1, keepdims=True)
    return np.concatenate([np.zeros((len(sums), 1)), sums], 1)


def _at(x: Float[np.ndarray, "c points"], y: Float[np.ndarray, "c points"], where: float) -> np.ndarray:
    """y on the lines between points where rising x first passes `where`."""
    i = np.maximum((x > where).argmax(1), 1)[:, None]
    (x0, x1), (y0, y1) = ([np.take_along_axis(each, at, 1)[:, 0] for at in (i - 1, i)] for each in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return y0 + np.clip((where - x0) / (x1 - x0), 0, 1) * (y1 - y0)
