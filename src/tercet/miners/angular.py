"""A miner of triplets by the angle that anchor and positive have at the negative."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tercet.core.checks import as_float, refusal
from tercet.core.indices import Triplets
from tercet.miners.base import Miner, nothing
from tercet.miners.batch_all import Part, listed_parts
from tercet.miners.collected import Tuples, mined
from tercet.neighbors.blocks import split_rows
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import widest_float
from tercet.pairwise.transfer import sent_up

__all__ = ["AngularMiner"]


@dataclass(frozen=True)
class AngularMiner(Miner):
    """Every triplet whose anchor and positive are seen from the negative under more than an angle.

    {(a, p, n) : tan⁻¹(‖x_a − x_p‖ / (2 ‖x_n − c‖)) > α}, c = (x_a + x_p)/2, of unit vectors

    The angle is half of that which a circle about c through both has at the negative. It grows with the
    distance of the positive, and where the negative comes near to both. As
    ‖x_n − c‖² = (‖x_n − x_a‖² + ‖x_n − x_p‖²)/2 − ‖x_a − x_p‖²/4, it is above α where

    2 sin² α · (‖x_a − x_n‖² + ‖x_p − x_n‖²) < ‖x_a − x_p‖²

    which takes three distances and no centers.

    Args:
        angle: α in radians, above 0 and below π/2: the larger, the fewer triplets. π/9 is 20°.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, by anchor, then by positive, then by negative,
        without gradient. Anchors are rows of the batch; positives and negatives are too, or rows of `ref`
        where the call has it. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import AngularMiner
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
        >>> torch.stack(AngularMiner(0.8)(x, torch.tensor([0, 0, 1, 2]))).T.tolist()
        [[0, 1, 2], [1, 0, 2]]

    Reference:
        Wang, Zhou, Wen, Liu & Lin, "Deep metric learning with angular loss", ICCV 2017.
    """

    angle: float = math.pi / 9
    distance: Distance | str = field(default="cosine", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        angle = as_float("AngularMiner", "angle", self.angle, above=0)
        if angle >= math.pi / 2:
            raise refusal("AngularMiner", "angle", angle, "radians below π/2")
        self._set(angle=angle)

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        device = pairwise.labels.device
        if widest_float(device) != torch.float64:
            expected = "a device with float64, in which angles are compared"
            hint = "mine embeddings.cpu() with labels.cpu(), and send the triplets up"
            raise refusal("AngularMiner", "embeddings", str(device), expected, hint)
        if pairwise.labels.device.type == "cpu":
            return listed_parts(self, pairwise, step, self._parts)

        def rule(search: None, found: Tuples) -> None:
            for part in self._parts(pairwise):
                found.add_where(part.wanted, part.anchor, part.positive, part.columns)

        (columns,), in_order = mined(pairwise, rule, searches=False)
        return Triplets(*self._drawn(columns or nothing(pairwise, 3), pairwise, step, in_order))

    def _parts(self, pairwise: Pairwise) -> Iterator[Part]:
        """All (anchor, positive) with the columns wanted of each, some at a time, by anchor."""
        # Products in float64 round so little that one bound serves for all: nearer to α is not above it.
        units = [_units(v) for v in pairwise.inputs]
        x, y, r = units[0], units[-1], len(units[-1])
        rounding = 4 * (x.shape[1] + 8) * torch.finfo(torch.float64).eps
        rate = 2 * math.sin(self.angle) ** 2
        every = torch.arange(r, device=y.device)
        between = _squares(y, y) if r * r * y.itemsize <= budget(y.device).tile_bytes else None
        for rows in pairwise.spans():
            is_positive, is_negative = pairwise.sides(rows)
            at, positive = _positive_pairs(pairwise, rows.start, is_positive)
            table = _squares(x[rows], y)  # [a, r]
            for i, p in split_rows(2 * r, at, positive):
                squares = table[i]  # [c, r]
                bound = squares.gather(1, p[:, None]) - rounding
                squares += _squares(y[p], y) if between is None else between[p]
                yield Part(
                    i + rows.start, p, every, (squares.mul_(rate) < bound).logical_and_(is_negative[i])
                )


def _positive_pairs(
    pairwise: Pairwise, start: int, is_positive: Bool[Tensor, "a r"]
) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """Each (anchor, positive) of a tile as (place in the tile, column), by anchor."""
    if pairwise.positive_pairs_on_host is None:
        return true_places(is_positive)
    row, column = pairwise.positive_pairs_on_host  # an accelerator is not read
    here = slice(*np.searchsorted(row, (start, start + len(is_positive))))
    at, positive = (sent_up(each[here], is_positive.device) for each in (row - start, column))
    return at, positive


def _units(x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """Unit vectors; those of zero rows are equal to each other and √2 from all others."""
    x = normalize(x.detach().double())
    return torch.cat([x, ~x.any(1, keepdim=True)], dim=1)  # false and true become 0 and 1


def _squares(x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
    """‖x_i − y_j‖² of unit vectors."""
    return torch.addmm(x.new_full((1, 1), 2.0), x, y.T, alpha=-2)
