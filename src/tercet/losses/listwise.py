"""Heads that hold a positive against all negatives of its anchor at once: InfoNCE, SupCon and N-pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import softplus

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, dot
from tercet.losses.rowwise import ListwiseHead, above_zero, log_sum, reduced
from tercet.pairwise import REDUCTIONS, Pairwise, Tile, features, mined_rows, whole_numbers
from tercet.tuples import References

__all__ = ["InfoNCE", "NPair", "SupCon"]


class InfoNCE(ListwiseHead):
    """How well each positive is told from all negatives of its anchor: a cross-entropy for each (a, p).

    ℓ_ap = −log( exp(s_ap/τ) / (exp(s_ap/τ) + Σ_n exp(s_an/τ)) ), s = −D

    The other positives of the anchor stand in no denominator. A shift of s cancels, so cosine similarity is
    `distance="cosine"`. A pair whose anchor has no negative loses 0. It is the NT-Xent loss of SimCLR when
    each image comes in two views of one label.

    Args:
        temperature: τ, above 0.
        distance: a `Distance` or its name.
        reduction: `"mean"` over the positive pairs, `"mean_active"` over those with ℓ > 0, `"sum"`, or
            `"none"` for one loss a positive pair.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = InfoNCE(temperature=1.0)(x, torch.tensor([0, 0, 1]))  # log(1 + exp(0 − 1))
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.3133

    Reference:
        Sohn, "Improved deep metric learning with multi-class N-pair loss objective", 2016. van den Oord, Li
        & Vinyals, "Representation learning with contrastive predictive coding", 2018.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: Distance | str = "cosine",
        reduction: str = "mean",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__(distance, reduction, tile_rows)
        self.temperature = above_zero("InfoNCE", "temperature", temperature)

    def losses_of(self, tile: Tile) -> Float[Tensor, " u"]:
        """ℓ of each positive pair."""
        return _against_negatives(-tile.distance / self.temperature, tile)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"temperature={self.temperature:g}, distance={self.distance}, reduction={self.reduction!r}"


class SupCon(ListwiseHead):
    """How far the positives of each anchor are from sharing its whole softmax: the L_out form.

    ℓ_a = (1/|P(a)|) Σ_{p ∈ P(a)} −log( exp(s_ap/τ) / Σ_{j ∈ A(a)} exp(s_aj/τ) ), s = −D

    A(a) is every positive and negative of a, so positives compete with each other too: with three or more of
    a class the loss is above 0 even where there is no negative. A shift of s cancels, so cosine similarity is
    `distance="cosine"`.

    Args:
        temperature: τ, above 0.
        distance: a `Distance` or its name.
        reduction: `"mean"` over the anchors that have a positive, `"mean_active"` over those with ℓ > 0,
            `"sum"`, or `"none"` for one loss an anchor that has a positive.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = SupCon(temperature=1.0)(x, torch.tensor([0, 0, 0, 1]))  # log(2 + exp(0 − 1))
        >>> round(loss.item(), 4)
        0.862

    Reference:
        Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu & Krishnan, "Supervised contrastive
        learning", 2020.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: Distance | str = "cosine",
        reduction: str = "mean",
        tile_rows: int | None = None,
    ) -> None:
        super().__init__(distance, reduction, tile_rows)
        self.temperature = above_zero("SupCon", "temperature", temperature)

    def losses_of(self, tile: Tile) -> Float[Tensor, " u"]:
        """ℓ of each anchor that has a positive."""
        logits = -tile.distance / self.temperature  # [a, r]
        count = tile.positive.sum(1)
        everyone = log_sum(logits, tile.positive | tile.negative)
        mean = (logits * tile.positive).sum(1) / count.clamp(min=1)
        return (everyone - mean)[count > 0]

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"temperature={self.temperature:g}, distance={self.distance}, reduction={self.reduction!r}"


class NPair(nn.Module):
    """How well each anchor tells its positive from the positives of all other classes, a pair a class.

    ℓ_i = log(1 + Σ_{j≠i} exp(x_iᵀx_j⁺ − x_iᵀx_i⁺)) + (λ/2)(‖x_i‖² + ‖x_i⁺‖²)

    One pair (x_i, x_i⁺) stands for each class: without `mined`, its first row that has a positive and the
    first column that is one, in a P × K batch the first two rows of the class; with `mined`, the first
    positive pair of the class in the list. What else the batch holds is not looked at, so K = 2 is the batch
    for it. The negatives are the other classes' positives, never mined ones.

    Embeddings are taken as they are, and the paper's are not normalised: λ keeps them from growing.

    Args:
        l2: λ, at least 0.
        reduction: `"mean"` over the pairs, `"mean_active"` over those with ℓ > 0, `"sum"`, or `"none"` for
            one loss a pair, in the order of the batch or of the list.
        tile_rows: rows computed at once; None for as many as fit the memory of a tile. It changes no result.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = NPair(reduction="none")(x, torch.tensor([0, 1, 0, 1]))  # log(1 + exp(0 − 1)), … (0 − 2)
        >>> [round(v, 4) for v in loss.tolist()]
        [0.3133, 0.1269]

    Reference:
        Sohn, "Improved deep metric learning with multi-class N-pair loss objective", 2016.
    """

    def __init__(self, l2: float = 0.0, *, reduction: str = "mean", tile_rows: int | None = None) -> None:
        super().__init__()
        self.l2 = real("NPair", "l2", l2, minimum=0)
        self.reduction = choice("NPair", "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else whole("NPair", "tile_rows", tile_rows, minimum=1)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of one pair a class.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools.
            mined: `Pairs` or `Triplets`, or index tensors like them, to choose from their positive pairs;
                None for all positive pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there are no pairs; [pairs] with `reduction="none"`.

        Raises:
            ValueError: no labels, what `Pairwise` refuses, or rows that do not exist.
        """
        if labels is None:
            expected = "labels, beside mined pairs too, since one pair of each class is taken"
            raise refusal("NPair", "labels", None, expected)
        inputs = features("NPair", embeddings, dot, ref)
        n, r, device = len(inputs[0]), len(inputs[-1]), inputs[0].device
        if mined is None:
            anchor, positive = _first_positives(embeddings, labels, ids, ref, self.tile_rows)
        else:
            anchor, positive = mined_rows("NPair", mined, n, r, device)[:2]
            ids = None
        first = _first_of_each(whole_numbers("NPair", "labels", labels, n, device)[anchor])
        anchor, positive = anchor[first], positive[first]
        columns = References(embeddings, None, ids) if ref is None else ref
        classes = torch.arange(len(first), device=device)
        pairwise = Pairwise(
            "NPair",
            embeddings[anchor],
            classes,
            ids=None if ids is None else ids.to(device)[anchor],
            ref=References(
                columns.embeddings[positive],
                classes,
                None if ids is None or columns.ids is None else columns.ids.to(device)[positive],
            ),
            distance=dot,
            tile_rows=self.tile_rows,
        )

        def losses(x: Tensor, y: Tensor) -> Iterator[Tensor]:
            for tile in pairwise.tiles(x, y):
                rows = slice(tile.start, tile.start + len(tile.distance))
                size = x[rows].square().sum(1) + y[rows].square().sum(1)
                yield _against_negatives(-tile.distance, tile) + self.l2 / 2 * size

        return reduced(self.reduction, losses, *pairwise.inputs)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"l2={self.l2:g}, reduction={self.reduction!r}"


def _against_negatives(logits: Float[Tensor, "a r"], tile: Tile) -> Float[Tensor, " u"]:
    """−log( exp(s_ap) / (exp(s_ap) + Σ_n exp(s_an)) ) of each positive pair of a tile."""
    negatives = log_sum(logits, tile.negative)
    row, column = tile.positive.nonzero(as_tuple=True)
    return softplus(negatives[row] - logits[row, column])


def _first_positives(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref: References | None,
    tile_rows: int | None,
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Each row that has a positive, and the first column that is one."""
    # Without a coordinate: who is whose positive is wanted, not how far.
    bare = None if ref is None else ref._replace(embeddings=ref.embeddings[:, :0])
    pairwise = Pairwise(
        "NPair",
        embeddings[:, :0],
        labels,
        ids=ids,
        ref=bare,
        distance=dot,
        tile_rows=tile_rows,
    )
    rows, columns = [], []
    for tile in pairwise.tiles():
        row = tile.positive.any(1).nonzero()[:, 0]
        rows.append(row + tile.start)
        columns.append(tile.positive[row].byte().argmax(1))
    nothing = torch.empty(0, dtype=torch.int64, device=embeddings.device)
    return torch.cat([nothing, *rows]), torch.cat([nothing, *columns])


def _first_of_each(values: Int[Tensor, " t"]) -> Int[Tensor, " u"]:
    """Where each distinct value stands for the first time, in rising order."""
    order = values.argsort(stable=True)
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = values[order][1:] != values[order][:-1]
    return order[new].sort().values
