"""The ranked list loss, and the weighted mean of what violates a bound, with its gradient in one table."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tercet.core.checks import as_float
from tercet.losses.rowwise import ListwiseHead
from tercet.pairwise.distances import Distance
from tercet.pairwise.relations import Relation, SameLabel
from tercet.pairwise.tiles import Tile
from tercet.pairwise.torch_modes import has_fixed_shapes

__all__ = ["RankedList"]


class RankedList(ListwiseHead):
    """The ranked list loss: an anchor's positives within a sphere, its negatives outside a larger one.

    ℓ_a = (1 − λ) Σ_p w_ap (D_ap − (α − m)) / Σ_p w_ap + λ Σ_n w_an (α − D_an) / Σ_n w_an,
    w_ap = exp(T⁺ (D_ap − (α − m))), w_an = exp(T (α − D_an))

    The sums are over the pairs that violate: positives with D > α − m, and negatives with D < α. Without one
    the term is 0. The weights have a gradient too. Embeddings are not normalised, save by `"cosine"`: α and m
    are meant for unit vectors.

    Args:
        margin: m, at least 0, in units of the distance: how far the spheres are apart.
        alpha: α, in units of the distance: the radius outside of which negatives lose nothing.
        temperature: T, at least 0, by which nearer negatives weigh more; 0 for equal weights.
        pos_temperature: T⁺, at least 0, by which farther positives weigh more; the paper takes 0.
        balance: λ, from 0 to 1, the share of the negatives.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, or a `Distance` with a gradient, such as `Mahalanobis`.
        relation: which columns are positive and which negative for a row, by the labels: `SameLabel()`,
            `SharedLabel()`, `CrossGroup()`, `Graded(positive, negative)`, or a `Relation`.
        reduction: `"mean"` over all rows of the batch, as in the paper, `"mean_active"` over those with
            ℓ > 0, `"sum"`, or `"none"` for one loss for each row.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes the result by rounding alone.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar, 0 where there is nothing to compare; or [t] losses with `reduction="none"`.

    Raises:
        ValueError: an option out of range; when called, what `forward` lists.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.1]])
        >>> loss = RankedList(reduction="none")(x, torch.tensor([0, 0, 1]))  # ½ · 0.2 + ½ · 0.1, …
        >>> [round(v, 4) for v in loss.tolist()]
        [0.15, 0.65, 0.55]

    Reference:
        Wang, Hua, Kodirov, Hu, Garnier & Robertson, "Ranked list loss for deep metric learning", 2019.
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float = 1.2,
        temperature: float = 10.0,
        pos_temperature: float = 0.0,
        balance: float = 0.5,
        *,
        distance: Distance | str = "euclidean",
        relation: Relation = SameLabel(),  # noqa: B008
        reduction: str = "mean",
        tile_rows: int | None = None,
        check_finite: str = "later",
    ) -> None:
        super().__init__(distance, relation, reduction, tile_rows, check_finite)
        caller = "RankedList"
        self.margin = as_float(caller, "margin", margin, minimum=0)
        self.alpha = as_float(caller, "alpha", alpha)
        self.temperature = as_float(caller, "temperature", temperature, minimum=0)
        self.pos_temperature = as_float(caller, "pos_temperature", pos_temperature, minimum=0)
        self.balance = as_float(caller, "balance", balance, minimum=0, maximum=1)

    @property
    def _measured(self) -> Distance:
        """Of `cosine` itself, since α is no difference of two distances."""
        return self.distance

    def _losses_of(self, tile: Tile) -> Float[Tensor, " a"]:
        """ℓ of each row."""
        far = tile.distance - (self.alpha - self.margin)  # [a, r]
        near = self.alpha - tile.distance
        apart = _weighted_mean(far, tile.positive, self.pos_temperature)
        inside = _weighted_mean(near, tile.negative, self.temperature)
        return (1 - self.balance) * apart + self.balance * inside


def _weighted_mean(
    excess: Float[Tensor, "a r"], side: Bool[Tensor, "a r"], temperature: float
) -> Float[Tensor, " a"]:
    """Σ w z / Σ w, w = exp(T z), over the entries z above 0 of a side, by row; 0 where there are none."""
    if has_fixed_shapes(excess):
        return _weighted_mean_by_softmax(excess, side, temperature)
    return _WeightedMean.apply(excess, side, temperature)  # type: ignore[return-value]


def _weighted_mean_by_softmax(
    excess: Float[Tensor, "a r"], side: Bool[Tensor, "a r"], temperature: float
) -> Float[Tensor, " a"]:
    others = ~side | (excess <= 0)  # NaN is no such number, and stays
    # Not −∞: a softmax of −∞ alone is NaN.
    shares = torch.softmax((excess * temperature).masked_fill(others, torch.finfo(excess.dtype).min), dim=1)
    return (shares * excess).masked_fill(others, 0.0).sum(1)


class _WeightedMean(torch.autograd.Function):
    """The same, of which one table is kept, its gradient w (1 + T (z − mean)) / Σ w."""

    @staticmethod
    def forward(ctx: Any, excess: Any, side: Any, temperature: Any) -> Any:
        others = ~side
        others |= excess <= 0
        shares = (excess * temperature).masked_fill_(others, torch.finfo(excess.dtype).min)
        shares = torch.softmax(shares, dim=1).masked_fill_(others, 0.0)
        mean = (shares * excess).sum(1)
        ctx.save_for_backward(excess, side)
        ctx.temperature = temperature
        ctx.slopes = shares.addcmul_(shares, excess - mean[:, None], value=temperature)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if torch.is_grad_enabled():  # the same by operations that have a derivative themselves
            excess, side = ctx.saved_tensors
            mean = _weighted_mean_by_softmax(excess, side, ctx.temperature)
            return *torch.autograd.grad(mean, excess, grad, create_graph=True), None, None
        return grad[:, None] * ctx.slopes, None, None
