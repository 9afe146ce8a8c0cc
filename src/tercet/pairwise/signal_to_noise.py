"""The signal-to-noise distance: the variance of a difference as a share of the anchor's own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tercet.pairwise.distances import squared_euclidean

__all__ = ["SignalToNoise"]


class SignalToNoise:
    """The signal-to-noise distance: what a column adds to its anchor, as a share of the anchor's variance.

    D(x, y) = var(y − x) / var(x), over the coordinates of a row

    The anchor x is the signal, y − x the noise. D is not symmetric: D(x, y) var(x) = D(y, x) var(y). It does
    not change where a constant is added to all coordinates of a row, nor where both rows are multiplied by
    one number. A row whose coordinates are all equal has no signal: its variance is then taken to be the
    precision of its numbers, so other rows are very far from it. Miners, heads and metrics take it as
    `distance=SignalToNoise()`.

    Example:
        >>> import torch
        >>> from tercet import SignalToNoise
        >>> distance = SignalToNoise()
        >>> x = distance.prepare(torch.tensor([[1.0, -1.0], [2.0, -2.0], [7.0, 5.0]]))
        >>> distance.tile(x, x)
        tensor([[0.0000, 1.0000, 0.0000],
                [0.2500, 0.0000, 0.2500],
                [0.0000, 1.0000, 0.0000]])

    Reference:
        Yuan, Deng, Tang, Tang & Chen, "Signal-to-noise ratio: a robust distance metric for deep metric
        learning", 2019.
    """

    differentiable = True
    floats_only = True

    def prepare(self, embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows less their mean.

        Args:
            embeddings: [n, d] floats.

        Returns:
            Floats [n, d] in float32, or in float64 where the embeddings are.
        """
        x = squared_euclidean.prepare(embeddings)
        return x - x.mean(1, keepdim=True)

    def tile(self, x: Float[Tensor, "a d"], y: Float[Tensor, "r d"]) -> Float[Tensor, "a r"]:
        """D of each row with each column.

        Args:
            x: [a, d], from `prepare`.
            y: [r, d], from `prepare`.

        Returns:
            Floats [a, r].
        """
        return squared_euclidean.tile(x, y) / _signal(x)[:, None]

    def paired(self, x: Float[Tensor, "t d"], y: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
        """D of each row with the column beside it.

        Args:
            x: [t, d], from `prepare`.
            y: [t, d], from `prepare`.

        Returns:
            Floats [t].
        """
        return squared_euclidean.paired(x, y) / _signal(x)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return "SignalToNoise()"


def _signal(x: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
    """Σ x² of centred rows, which is (d − 1) var(x)."""
    return x.square().sum(1).clamp(min=torch.finfo(x.dtype).eps)
