"""Heads that hold a positive against all negatives of its anchor at once: InfoNCE, SupCon and N-pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import softplus

from tercet.checks import choice, real, refusal, whole
from tercet.distances import Distance, as_distance, dot
from tercet.pairwise import (
    REDUCTIONS,
    Pairwise,
    Tile,
    features,
    mined_rows,
    summed,
    tile_height,
    tiled_mean,
    whole_numbers,
)
from tercet.tuples import References

__all__ = ["InfoNCE", "ListwiseHead", "MinedPairs", "NPair", "SupCon", "above_zero", "log_sum"]


class ListwiseHead(nn.Module):
    """The call that listwise heads share: what is compared, tile by tile, and one number made of it.

    A head adds its options and `losses_of(tile)`. Everything it needs of an anchor stands in one row of a
    tile, so the memory is that of a few tiles, never positives × negatives.
    """

    def __init__(self, distance: Distance | str, reduction: str, tile_rows: int | None) -> None:
        super().__init__()
        owner = type(self).__name__
        self.distance = as_distance(owner, distance, gradient=True)
        self.reduction = choice(owner, "reduction", reduction, REDUCTIONS)
        self.tile_rows = None if tile_rows is None else whole(owner, "tile_rows", tile_rows, minimum=1)

    def losses_of(self, tile: Tile) -> Float[Tensor, " u"]:
        """The losses of a tile that the mean is over, by anchor."""
        raise TypeError(f"{type(self).__name__} has no losses_of(tile)")

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, " n"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of the mined pairs, or of all.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools; read only without `mined`.
            mined: `Pairs`, or any four index tensors like them; or `Triplets`, or any three: their pairs
                (a, p) and (a, n). Each distinct pair counts once. None for all pairs.
            ids: [n] integers, which image each row is; read only without `mined`.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            A scalar in float32 (float64 for float64 embeddings): 0, with a graph whose gradient is 0, where
            there is nothing to compare. With `reduction="none"` one loss for each that the mean is over, by
            anchor and then by positive; its graph holds all tiles.

        Raises:
            ValueError: neither labels nor pairs, what `Pairwise` refuses, or rows that do not exist.
        """
        owner = type(self).__name__
        if mined is not None:
            return self.loss_of(MinedPairs(owner, embeddings, mined, self.distance, ref, self.tile_rows))
        if labels is None:
            raise refusal(owner, "labels", None, "labels, or mined pairs")
        pairwise = Pairwise(
            owner,
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,
            tile_rows=self.tile_rows,
        )
        return self.loss_of(pairwise)

    def loss_of(self, compared: Pairwise | MinedPairs) -> Float[Tensor, "..."]:
        """The loss of rows against columns."""

        def losses(*inputs: Tensor) -> Iterator[Tensor]:
            for tile in compared.tiles(*inputs):
                yield self.losses_of(tile)

        return _reduced(self.reduction, losses, *compared.inputs)


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
            mined: `Pairs` or `Triplets`, or index tensors like them, whose positive pairs to choose from; None
                for all positive pairs.
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
            anchor, positive = _first_positives(embeddings, labels, ids, ref)
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

        return _reduced(self.reduction, losses, *pairwise.inputs)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"l2={self.l2:g}, reduction={self.reduction!r}"


class MinedPairs:
    """Mined tuples as `Pairwise` shows a batch: tiles whose positives and negatives are those of the list.

    Args are those of `Pairwise`, and `mined` those of `mined_rows`. Triplets are their pairs (a, p), (a, n).

    Example:
        >>> from tercet.distances import euclidean
        >>> mined = ([0, 0], [1, 1], [2, 3])
        >>> pairs = MinedPairs("doc", torch.eye(4), [torch.tensor(v) for v in mined], euclidean)
        >>> [(tile.positive.nonzero().tolist(), tile.negative.nonzero().tolist()) for tile in pairs.tiles()]
        [([[0, 1]], [[0, 2], [0, 3]])]
    """

    def __init__(
        self,
        owner: str,
        embeddings: Shaped[Tensor, "n d"],
        mined: Any,
        distance: Distance,
        ref: References | None = None,
        tile_rows: int | None = None,
    ) -> None:
        self.distance = distance
        self.inputs = features(owner, embeddings, distance, ref)
        n, r, device = len(self.inputs[0]), len(self.inputs[-1]), self.inputs[0].device
        rows = mined_rows(owner, mined, n, r, device)
        self._sides = (rows[0], rows[1]), (rows[-2] if len(rows) == 4 else rows[0], rows[-1])
        self.tile_rows = tile_height(owner, r, self.inputs[0].dtype, tile_rows)

    def tiles(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[Tile]:
        """Anchors × columns, in row order; `inputs` as `Pairwise.tiles` takes them."""
        x, y = (inputs or self.inputs)[0], (inputs or self.inputs)[-1]
        for start in range(0, len(x) if len(y) else 0, self.tile_rows):
            distance = self.distance.tile(x[start : start + self.tile_rows], y)
            masks = []
            for anchor, column in self._sides:
                here = (anchor >= start) & (anchor < start + len(distance))
                mask = torch.zeros_like(distance, dtype=torch.bool)
                mask[anchor[here] - start, column[here]] = True
                masks.append(mask)
            yield Tile(start, distance, *masks)


def above_zero(owner: str, argument: str, value: Any) -> float:
    """`value` as a float, refused unless it is finite and above 0."""
    number = real(owner, argument, value)
    if number <= 0:
        raise refusal(owner, argument, value, "a finite number above 0")
    return number


def log_sum(logits: Float[Tensor, "a r"], mask: Bool[Tensor, "a r"], dim: int = 1) -> Float[Tensor, " _"]:
    """log Σ exp over the masked entries along `dim`; over none the lowest number of the kind, no gradient."""
    # Not −∞: the derivative of a sum over nothing but −∞ is NaN.
    return torch.logsumexp(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=dim)


def _against_negatives(logits: Float[Tensor, "a r"], tile: Tile) -> Float[Tensor, " u"]:
    """−log( exp(s_ap) / (exp(s_ap) + Σ_n exp(s_an)) ) of each positive pair of a tile."""
    negatives = log_sum(logits, tile.negative)
    row, column = tile.positive.nonzero(as_tuple=True)
    return softplus(negatives[row] - logits[row, column])


def _reduced(
    reduction: str, losses: Callable[..., Iterator[Tensor]], *inputs: Float[Tensor, "_ k"]
) -> Float[Tensor, "..."]:
    """The losses that a generator makes of tensors like `inputs`, a tile at a time, as `reduction` says."""
    if reduction == "none":
        return torch.cat([inputs[0].sum(1)[:0], *losses(*inputs)])

    def terms(*inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in losses(*inputs):
            yield summed(part, reduction)

    return tiled_mean(reduction, terms, *inputs)


def _first_positives(
    embeddings: Tensor, labels: Tensor, ids: Tensor | None, ref: References | None
) -> tuple[Int[Tensor, " u"], Int[Tensor, " u"]]:
    """Each row that has a positive, and the first column that is one."""
    # Without a coordinate: who is whose positive is wanted, not how far.
    bare = None if ref is None else ref._replace(embeddings=ref.embeddings[:, :0])
    pairwise = Pairwise("NPair", embeddings[:, :0], labels, ids=ids, ref=bare, distance=dot)
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
