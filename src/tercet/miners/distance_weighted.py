"""A miner that draws negatives evenly over distances instead of taking the nearest."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from tercet.core.checks import as_float, refusal
from tercet.core.indices import Triplets
from tercet.core.randomness import keyed_uniform
from tercet.miners.base import Miner, nothing
from tercet.miners.collected import Collected, Tuples
from tercet.miners.draws import batch_key, keyed
from tercet.pairwise.distances import Distance
from tercet.pairwise.masked import true_places
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import widest_float
from tercet.pairwise.transfer import sent_up

__all__ = ["DistanceWeighted"]


@dataclass(frozen=True)
class DistanceWeighted(Miner):
    """For each anchor and positive one negative, drawn so that all distances are about equally likely.

    P(n | a) ∝ min(λ, 1/q(D(a,n))), q(d) ∝ d^(D−2) (1 − d²/4)^((D−3)/2)

    q is the density of distances between random points of the unit sphere in D dimensions; d is the
    Euclidean distance of the two directions, √(2 − 2 cos). Below 1.4 or so 1/q falls with d, so clipping d at
    `cutoff` is the λ of the paper: λ = 1/q(cutoff). Weights are computed as logarithms: at D = 128 they span
    10³⁰ and more.

    The draw is a pure function of the seed, the step, and the batch's labels and ids.

    Args:
        cutoff: d below it counts as `cutoff`: λ is the weight there.
        nonzero_loss_cutoff: negatives this far away or farther are never drawn; an anchor with no others
            gives no triplet.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most triplets to return, drawn uniformly from all that the rule gives; None for all.
        seed: a whole number from 0. It decides all draws, with the `step` of the call and the batch's labels
            and ids.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes no result.

    Returns:
        When called as `miner(embeddings, labels, ids=, ref=, step=)`, whose arguments `__call__` lists:
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import DistanceWeighted
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [-1.0, 0.0, 0.1]])
        >>> torch.stack(DistanceWeighted()(x, torch.tensor([0, 0, 1, 2]))).T.tolist()
        [[0, 1, 2], [1, 0, 2]]

    Reference:
        Wu, Manmatha, Smola & Krähenbühl, "Sampling matters in deep embedding learning", ICCV 2017.
    """

    cutoff: float = 0.5
    nonzero_loss_cutoff: float = 1.4
    distance: Distance | str = field(default="cosine", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        caller = "DistanceWeighted"
        cutoff = as_float(caller, "cutoff", self.cutoff, 0, 2)
        far = as_float(caller, "nonzero_loss_cutoff", self.nonzero_loss_cutoff, 0, 2)
        if not 0 < cutoff < far:
            raise refusal(caller, "cutoff", cutoff, f"more than 0 and less than nonzero_loss_cutoff={far:g}")
        self._set(cutoff=cutoff, nonzero_loss_cutoff=far)

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        device = pairwise.labels.device
        if widest_float(device) != torch.float64:
            expected = "a device with float64, in which it draws the same everywhere"
            hint = "mine embeddings.cpu() with labels.cpu(), and send the triplets up"
            raise refusal("DistanceWeighted", "embeddings", str(device), expected, hint)
        key = batch_key("DistanceWeighted", self.seed, step, pairwise)
        rule = functools.partial(self._rule, pairwise, key)
        if pairwise.labels.device.type != "cpu":
            return Triplets(*self._listed(pairwise, step, lambda search, found: rule(found)))
        found = Collected()  # no search: this rule draws
        rule(found)
        return Triplets(*self._drawn(found.columns() or nothing(pairwise, 3), pairwise, step))

    def _rule(self, pairwise: Pairwise, key: int, found: Tuples) -> None:
        """Add a triplet for each anchor and positive."""
        # A product loses the digits of small distances, but those below the cutoff count as the cutoff. Taken
        # in float64 and rounded to float32, it is the same however rows are cut into tiles, at bounds too.
        units = [normalize(v.detach().double()) for v in pairwise.inputs]
        x, y, two = units[0], units[-1], units[0].new_full((1, 1), 2.0)
        dimensions = x.shape[1]
        height = self.tile_rows or max(1, pairwise.tile_rows // 4)  # four tables of that size at once
        # One table for all tiles: fresh memory costs a pass of its own.
        room = x.new_empty(min(height, len(x)), len(y))
        for rows in (slice(i, i + height) for i in range(0, len(x) if len(y) else 0, height)):
            is_positive, is_negative = pairwise.sides(rows)
            table = room[: len(is_positive)]
            square = torch.addmm(two, x[rows], y.T, alpha=-2, out=table).float()  # [a, r]
            wanted = is_negative.logical_and_(square < self.nonzero_loss_cutoff**2)
            weights = _weights(square, wanted, dimensions, self.cutoff)
            cumulative = torch.cumsum(weights, 1, dtype=torch.float64, out=table)  # [a, r]
            total = cumulative[:, -1:]
            at, positive, place, width, uniform = _keyed_pairs(pairwise, rows, is_positive, key)
            drawn = cumulative.new_zeros(len(cumulative), width)  # [a, q]
            drawn[at, place] = uniform
            # A draw must stay below the total: rounded up to it, it would lie behind the last column.
            drawn = torch.minimum(drawn * total, torch.nextafter(total, total.new_zeros(())))
            negative = torch.searchsorted(cumulative, drawn, right=True)[at, place]
            negative = negative.masked_fill(total[at, 0] == 0, -1)
            found.add(at + rows.start, positive, negative)


def _keyed_pairs(
    pairwise: Pairwise, rows: slice, is_positive: Bool[Tensor, "a r"], key: int
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The positive pairs of a tile, each with a keyed number in [0, 1).

    Returns:
        Places of anchors in the tile and columns, int64 [t]; the place of each among its anchor's positives,
        int64 [t]; the most positives of an anchor, at least 1; the numbers, float64 [t].
    """
    device, count = is_positive.device, len(is_positive)
    if pairwise.positive_pairs_on_host is None:
        at, positive = true_places(is_positive)
        every = torch.arange(max(len(at), count), device=device)
        place = every[: len(at)] - torch.searchsorted(at, every[:count])[at]
        width = int(place.max()) + 1 if len(place) else 1
        return at, positive, place, width, keyed(key, at + rows.start, positive)
    row, column = pairwise.positive_pairs_on_host  # nothing has to be read
    here = slice(*np.searchsorted(row, (rows.start, rows.start + count)))
    row, column = row[here], column[here]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    uniform = sent_up(keyed_uniform(key, row, column), device)
    at, positive, places = (sent_up(each, device) for each in (row - rows.start, column, place))
    return at, positive, places, int(place.max(initial=0)) + 1, uniform


def _weights(
    square: Float[Tensor, "a r"], wanted: Bool[Tensor, "a r"], dimensions: int, cutoff: float
) -> Float[Tensor, "a r"]:
    """1/q(d) of each row's wanted columns, given d², divided by the row's largest; 0 elsewhere.

    `square` is overwritten.
    """
    square.clamp_(cutoff**2, 4 - 1e-6)
    log = (square / -4).log1p_().mul_((3 - dimensions) / 2)
    log += square.log_().mul_((2 - dimensions) / 2)
    ceiling = square.copy_(wanted).sub_(0.5).mul_(torch.inf)  # ±inf floats are branch-free
    torch.minimum(log, ceiling, out=log)
    largest = log.amax(1, keepdim=True)
    return log.sub_(largest.masked_fill_(largest == -torch.inf, 0.0)).exp_()
