"""One miner for any choice of easy, semi-hard, hard or all positives and negatives, within ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.core.checks import as_choice, as_float, as_int, refusal
from tercet.core.indices import Triplets
from tercet.miners.base import Miner, margin_of
from tercet.miners.batch_all import BatchAll
from tercet.miners.collected import Search, Tuples
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.neighbors.blocks import Candidates, RowBlock, split_rows
from tercet.pairwise.tiles import Pairwise

__all__ = ["EasyHard"]

_CHOICES = ["easy", "semi_hard", "hard", "all"]
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class EasyHard(Miner):
    """For each anchor its easy, semi-hard, hard or all positives, each with negatives of such a choice.

    | choice | positives | negatives |
    |---|---|---|
    | `"easy"` | the nearest | the farthest |
    | `"hard"` | the farthest | the nearest |
    | `"semi_hard"` | for each chosen negative the farthest of the nearer ones | for each chosen positive the
    nearest of the farther ones |
    | `"all"` | all | all |

    Every chosen positive gives a triplet with every chosen negative; a semi-hard side is chosen for each
    member of the other side. Other miners are cases of it:

    | miner | case |
    |---|---|
    | `BatchHard()` | `EasyHard("hard", "hard")` |
    | `HardestN(k)` | `EasyHard("hard", "hard", negative_k=k)` |
    | `EasyPositive(negative)` | `EasyHard("easy", negative)` |
    | `SemiHard(margin)` | `EasyHard("all", "semi_hard", margin=margin)` |
    | `BatchAll()` | `EasyHard("all", "all")` |

    Args:
        positives: one of the choices.
        negatives: one of the choices; `"semi_hard"` for one of the two sides alone, and not for positives
            beside all negatives.
        positive_k: how many positives are chosen, at least 1: of an anchor, or for each negative where they
            are semi-hard; 1 with `"all"`.
        negative_k: how many negatives are chosen, in the same way.
        margin: m, at least 0, in units of the distance: semi-hard ones have D(a,n) < D(a,p) + m; None for no
            such bound.
        positive_range: (low, high), in units of the distance: no positives nearer than low or farther than
            high are chosen; None for either for no bound; None for all positives.
        negative_range: the same for negatives.
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
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
        `Triplets(anchor, positive, negative)`, int64 [t] each, in the order of the anchors, without gradient.
        Anchors are rows of the batch; positives and negatives are too, or rows of `ref` where the call has
        it. Among equal distances the lower row number comes first. Nothing to mine gives empty tensors.

    Raises:
        ValueError: an option out of range, or two that contradict each other; when called, embeddings,
            labels, ids or ref that do not fit together or are not finite.

    Example:
        >>> import torch
        >>> from tercet import EasyHard
        >>> x, labels = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]]), torch.tensor([0, 0, 0, 1, 1])
        >>> torch.stack(EasyHard("easy", "hard", negative_range=(2, None))(x, labels)).T.tolist()
        [[0, 1, 3], [1, 0, 3], [2, 1, 4], [3, 4, 1], [4, 3, 2]]

    Reference:
        Xuan, Stylianou & Pless, "Improved embeddings with easy positive triplet mining", WACV 2020.
    """

    positives: str = "easy"
    negatives: str = "semi_hard"
    positive_k: int = 1
    negative_k: int = 1
    margin: float | None = None
    positive_range: Bounds | None = None
    negative_range: Bounds | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        caller, checked = "EasyHard", {"margin": margin_of(self, self.margin)}
        for side in ("positive", "negative"):
            choice = as_choice(caller, f"{side}s", getattr(self, f"{side}s"), _CHOICES)
            k = as_int(caller, f"{side}_k", getattr(self, f"{side}_k"), minimum=1)
            if choice == "all" and k > 1:
                hint = "leave one of the two away"
                raise refusal(caller, f"{side}_k", k, f'1 with {side}s="all"', hint)
            bounds = _as_bounds(f"{side}_range", getattr(self, f"{side}_range"))
            checked |= {f"{side}s": choice, f"{side}_k": k, f"{side}_range": bounds}
        self._set(**checked)
        if self.positives == "semi_hard" and self.negatives in ("semi_hard", "all"):
            expected = '"easy" or "hard" with positives="semi_hard", which are chosen for each negative'
            hint = 'positives="all", negatives="semi_hard" takes each positive'
            raise refusal(caller, "negatives", self.negatives, expected, hint)
        if self.margin is not None and "semi_hard" not in (self.positives, self.negatives):
            raise refusal(caller, "margin", self.margin, 'None without a side that is "semi_hard"')

    def select(self, pairwise: Pairwise, step: int) -> Triplets:
        if (named := self._named()) is not None:
            return named.select(pairwise, step)
        ordered = self.negatives != "all"
        return Triplets(*self._listed(pairwise, step, self._rule, ordered=ordered))

    def _named(self) -> BatchAll | BatchHard | EasyPositive | HardestN | SemiHard | None:
        """The miner that this is a case of, which searches in fewer steps; None where it is none."""
        if self.positive_range or self.negative_range or self.positive_k > 1:
            return None
        options: Any = {name: getattr(self, name) for name in ("distance", "relation", "tile_rows")}
        options |= {"max_count": self.max_count, "seed": self.seed}
        match self.positives, self.negatives, self.negative_k:
            case "hard", "hard", 1:
                return BatchHard(**options)
            case "hard", "hard", k:
                return HardestN(k, **options)
            case "easy", "hard" | "semi_hard", 1 if self.margin is None:
                return EasyPositive(self.negatives, **options)
            case "all", "semi_hard", 1:
                return SemiHard(self.margin, **options)
            case "all", "all", _:
                return BatchAll(**options)
        return None

    def _rule(self, search: Search, found: Tuples) -> None:
        for block in search.blocks():
            positives = self._positives(search, block)
            negatives = _allowed(search, block.negatives(consume=True), self.negative_range)
            if self.negatives == "easy":
                negatives = negatives.reversed()
            if self.positives == "semi_hard":
                at, n = _first_of_each(search, negatives, self.negative_k)
                p = self._semi_hard(search, positives, at, n, self.positive_k)
                a, n = (v[:, None].expand_as(p).flatten() for v in (_at(at, block.rows), n))
                found.add(a, p.flatten(), n)
                continue
            if self.positives == "all":
                at, p = self._all_positives(search, block)
            else:
                at, p = _first_of_each(search, positives, self.positive_k)
            if self.negatives == "all":
                at = torch.arange(len(p), device=p.device) if at is None else at
                wanted = negatives.keys[:, : len(negatives.columns)] < torch.inf
                for i, some in split_rows(block.keys.shape[1], at, p):
                    found.add_where(wanted[i] & (some >= 0)[:, None], block.rows[i], some, block.columns)
                continue
            if self.negatives == "semi_hard":
                n = self._semi_hard(search, negatives, at, p, self.negative_k)
            else:
                n = _at(at, _first(search, negatives, self.negative_k))
            a, p = (v[:, None].expand_as(n).flatten() for v in (_at(at, block.rows), p))
            found.add(a, p, n.flatten())

    def _positives(self, search: Search, block: RowBlock) -> Candidates:
        """The allowed positives of each row, in the order of the choice."""
        farthest = self.positives in ("hard", "semi_hard")
        if self.positive_range is None or self.positives == "all":
            return block.positives(farthest)
        allowed = _allowed(search, block.positives(), self.positive_range)
        return allowed.reversed() if farthest else allowed

    def _all_positives(self, search: Search, block: RowBlock) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Each (anchor, positive) as (place in the block, column number), −1 where it is not allowed."""
        at, p = search.positive_pairs(block)
        if self.positive_range is not None:
            low, high = self.positive_range
            d = search.distances(block.rows[at], p)
            for beyond in (None if low is None else d < low, None if high is None else d > high):
                p = p if beyond is None else p.masked_fill(beyond, -1)
        return at, p

    def _semi_hard(
        self,
        search: Search,
        candidates: Candidates,
        at: Int[Tensor, " t"] | None,
        other: Int[Tensor, " t"],
        k: int,
    ) -> Int[Tensor, "t k"]:
        """The first k candidates beyond a chosen column of each row, within the margin; −1 where none is.

        Args:
            search: what the candidates are of.
            candidates: [a] rows: negatives, nearest first, or positives, farthest first; used up.
            at: places in `candidates.rows`, in rising order; None for each row once.
            other: the columns that were chosen on the other side; −1 for none.
            k: how many.
        """
        rows, k = _at(at, candidates.rows), min(k, len(candidates.columns))
        bound = search.distances(rows, other.clamp(min=0))
        if at is None:
            chosen = search.nearest(candidates, k, above=bound, consume=True)
        elif k == 1:
            chosen = search.nearest_above(candidates, at, bound)[:, None]
        else:
            parts = split_rows(candidates.keys.shape[1], at, bound)
            found = [search.nearest(candidates.take(i), k, above=some) for i, some in parts]
            chosen = torch.cat(found) if found else at.new_empty(0, k)
        if self.margin is None or not chosen.numel():
            return chosen
        every = rows[:, None].expand_as(chosen).flatten()
        d = search.distances(every, chosen.clamp(min=0).flatten()).view_as(chosen)
        d_ap, d_an = (bound[:, None], d) if self.positives != "semi_hard" else (d, bound[:, None])
        return chosen.masked_fill(d_an >= d_ap + self.margin, -1)


def _as_bounds(name: str, bounds: Any) -> Bounds | None:
    """(low, high), each a number or None; None for no range."""
    if bounds is None:
        return None
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        raise refusal("EasyHard", name, bounds, "(low, high), each a distance or None, or None")
    low, high = (None if bound is None else as_float("EasyHard", name, bound) for bound in bounds)
    if low is not None and high is not None and low > high:
        raise refusal("EasyHard", name, bounds, "(low, high) with low at most high")
    return low, high


def _allowed(search: Search, candidates: Candidates, bounds: Bounds | None) -> Candidates:
    """The candidates, nearest first, without those that are nearer or farther than allowed."""
    if bounds is None:
        return candidates
    out: Bool[Tensor, "a c"] = torch.zeros_like(
        candidates.keys[:, : len(candidates.columns)], dtype=torch.bool
    )
    low, high = (None if bound is None else torch.full_like(candidates.sign, bound) for bound in bounds)
    if low is not None:
        out |= search.closer_than(candidates, low)
    if high is not None:
        out |= ~search.closer_than(candidates, high, equal=True)
    keys = candidates.keys.clone()
    keys[:, : out.shape[1]].masked_fill_(out, torch.inf)
    return candidates._replace(keys=keys)


def _first(search: Search, candidates: Candidates, k: int) -> Int[Tensor, "a k"]:
    """The first k candidates of each row, −1 where there are fewer; no more than there are columns."""
    return search.nearest(candidates, min(k, len(candidates.columns)))


def _first_of_each(
    search: Search, candidates: Candidates, k: int
) -> tuple[Int[Tensor, " t"] | None, Int[Tensor, " t"]]:
    """The first k of each row as (place in `candidates.rows`, column number), −1 where there are fewer.

    Where that is one of each row, the places are None.
    """
    chosen = _first(search, candidates, k)
    if chosen.shape[1] == 1:
        return None, chosen[:, 0]
    at = torch.arange(len(chosen), device=chosen.device)
    return at[:, None].expand_as(chosen).flatten(), chosen.flatten()


def _at(at: Int[Tensor, " t"] | None, values: Int[Tensor, "a *k"]) -> Int[Tensor, "t *k"]:
    """The values of the rows at these places; None for each row once."""
    return values if at is None else values[at]
