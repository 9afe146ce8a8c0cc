"""Miners of pairs: labels and distances in, `Pairs` of row numbers out. Else they are as `tercet.miners`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tercet.checks import real
from tercet.distances import Distance
from tercet.mining import Miner
from tercet.pairwise import Pairwise
from tercet.selection import Scan
from tercet.small_tables import true_places
from tercet.strips import Field
from tercet.tuples import Pairs

__all__ = ["MultiSimilarityMiner", "PairMargin"]


class _PairMiner(Miner):
    """A rule that says for each row from where on a positive is wanted, and up to where a negative."""

    def select(self, pairwise: Pairwise, step: int) -> Pairs:
        """Positives farther than the row's one bound and negatives nearer than its other."""
        scan = Scan(pairwise, ordered=False)
        positives: list[tuple[Tensor, ...]] = []
        negatives: list[tuple[Tensor, ...]] = []
        for strip in scan.strips():
            fields, a = scan.extremes(strip), len(strip.rows)
            bounds = torch.cat(self._bounds(scan, strip.rows, fields)).split([len(f.rows) for f in fields])
            found = [true_places(scan.within(*each)) for each in zip(fields, bounds)]
            if len(found) == 1:
                ((at, column),) = found
                first = int((at < a).sum())
                found = [(at[:first], column[:first]), (at[first:] - a, column[first:])]
            for pairs, (at, column) in zip((positives, negatives), found):
                pairs.append((at + strip.rows[0], column))
        return Pairs(
            *self._gathered(positives, pairwise, 2 * step, width=2),
            *self._gathered(negatives, pairwise, 2 * step + 1, width=2),
        )

    def _bounds(self, scan: Scan, rows: Tensor, fields: tuple[Field, ...]) -> tuple[Tensor, Tensor]:
        """From where on a positive of each row is wanted, and up to where a negative."""
        raise TypeError(f"{type(self).__name__} has no rule")


@dataclass(frozen=True)
class MultiSimilarityMiner(_PairMiner):
    """Negatives nearer than the farthest positive, and positives farther than the nearest negative.

    (a, n) : D(a,n) < max_p D(a,p) + ε and (a, p) : D(a,p) > min_n D(a,n) − ε

    With the cosine distance 1 − s it is the paper's rule on similarities s. An anchor without positives has
    no negative pair, one without negatives no positive pair.

    Args:
        epsilon: ε, in units of the distance.
        distance, relation, max_count, seed, tile_rows: as for `Miner`; the distance is the cosine's unless
            another is given, and `max_count` bounds positive and negative pairs each.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.5], [9.0]])
        >>> MultiSimilarityMiner(distance="euclidean")(x, torch.tensor([0, 0, 1, 1])).neg_anchor.tolist()
        [0, 1, 2, 2, 3]

    Reference:
        Wang, Han, Huang, Dong & Scott, "Multi-similarity loss with general pair weighting for deep metric
        learning", CVPR 2019.
    """

    epsilon: float = 0.1
    distance: Distance | str = field(default="cosine", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(epsilon=real("MultiSimilarityMiner", "epsilon", self.epsilon))

    def _bounds(self, scan: Scan, rows: Tensor, fields: tuple[Field, ...]) -> tuple[Tensor, Tensor]:
        columns = torch.stack(scan.hardest(fields))  # [2, a]
        d_ap, d_an = scan.distances(rows.repeat(2), columns.clamp(min=0).flatten()).view(columns.shape)
        d_ap.masked_fill_(columns[0] < 0, -torch.inf)
        d_an.masked_fill_(columns[1] < 0, torch.inf)
        return d_an - self.epsilon, d_ap + self.epsilon


@dataclass(frozen=True)
class PairMargin(_PairMiner):
    """Positive pairs that are too far apart, and negative pairs that are too near.

    (a, p) : D(a,p) > m⁺ and (a, n) : D(a,n) < m⁻: what a contrastive loss with these margins is not 0 for

    Args:
        pos_margin: m⁺, in units of the distance.
        neg_margin: m⁻, in units of the distance.
        distance, relation, max_count, seed, tile_rows: as for `Miner`; `max_count` bounds positive and
            negative pairs each.

    Raises:
        ValueError: an option out of range; when called, what `Pairwise` refuses.

    Example:
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
            name: real("PairMargin", name, getattr(self, name)) for name in ("pos_margin", "neg_margin")
        }
        self._settle(**margins)

    def _bounds(self, scan: Scan, rows: Tensor, fields: tuple[Field, ...]) -> tuple[Tensor, Tensor]:
        keys = fields[0].keys
        return keys.new_full(rows.shape, self.pos_margin), keys.new_full(rows.shape, self.neg_margin)
