"""Several heads as one: `Sum`, and a penalty of the embeddings themselves to stand beside others in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tercet.core.checks import as_float, border, refusal
from tercet.core.indices import References
from tercet.losses.base import Head
from tercet.losses.tile_gradients import TileLoss, is_one_tile, loss_from_pair_gradients
from tercet.pairwise.distances import squared_euclidean
from tercet.pairwise.inputs import as_time, beside_pairwise, check_at, unchecked_features
from tercet.pairwise.tiles import Pairwise, Tile
from tercet.pairwise.torch_modes import full_precision, outside_graph

__all__ = ["EmbeddingPenalty", "Sum"]


class Sum(nn.Module):
    """The weighted sum of several heads, on embeddings that are prepared and compared once.

    L = Σ_i w_i L_i

    Heads with one distance and one relation share what was prepared, checked and found of the labels. Without
    `mined`, where the batch fits one tile, those whose loss is a function of the table of distances share the
    table too, and one gradient is computed of all of them. What a head needs beside, such as its proxies,
    stays its own: the parameters of all heads are parameters of the sum.

    Args:
        heads: heads, each as it stands, or `EmbeddingPenalty`.
        weights: w, one finite number a head; None for 1 each.

    Returns:
        From the call `head(embeddings, labels=None, mined=None, *, ids=None, ref=None)`, whose arguments
        `forward` lists: a scalar.

    Raises:
        ValueError: no head, what is no head, a head with `reduction="none"`, or not one weight a head; when
            called, what one of the heads refuses.

    Example:
        >>> import torch
        >>> from tercet import Contrastive, EmbeddingPenalty, Sum, TripletMargin
        >>> head = Sum([TripletMargin(0.2), Contrastive(1.0), EmbeddingPenalty()], weights=[1, 0.5, 0.01])
        >>> x, labels = torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([0, 0, 1])
        >>> round(head(x, labels).item(), 4)  # 0.2 + 0.5 · 0.25 + 0.01 · 1.25 / 3
        0.3292
    """

    def __init__(self, heads: Iterable[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        expected = "a list of one head or more"
        try:
            heads = list(heads)
        except TypeError:
            raise refusal("Sum", "heads", type(heads).__name__, expected) from None
        if not heads:
            raise refusal("Sum", "heads", heads, expected)
        for head in heads:
            if not isinstance(head, nn.Module):
                raise refusal("Sum", "heads", type(head).__name__, expected)
            if getattr(head, "reduction", None) == "none":
                hint = "choose another, or call the heads one by one"
                raise refusal("Sum", "heads", repr(head), 'heads with another reduction than "none"', hint)
        self.heads = nn.ModuleList(heads)
        given = [1.0] * len(heads) if weights is None else weights
        try:
            given = [] if isinstance(given, (str, bytes, Mapping, Set)) else list(given)
        except TypeError:  # one number, also as a tensor without dimensions
            given = []
        if len(given) != len(heads):
            raise refusal("Sum", "weights", weights, f"{len(heads)} numbers, one for each head")
        self.weights = tuple(as_float("Sum", "weights", weight) for weight in given)

    def forward(
        self,
        embeddings: Shaped[Tensor, "n d"] | Pairwise,
        labels: Shaped[Tensor, "n *c"] | None = None,
        mined: Any = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Float[Tensor, ""]:
        """The sum of the heads' losses.

        Args:
            embeddings: [n, d] floats, or what `miner.pairwise` gave, as each head takes them.
            labels: [n] integers or bools, or [n, c] where all relations take that.
            mined: `Triplets` or `Pairs`, for the heads that compare rows with columns; those with proxies
                take all rows. None for all tuples.
            ids: [n] integers, which image each row is, for the heads that compare rows with columns.
            ref: the columns, for the same heads; None for the batch itself.

        Returns:
            A scalar.

        Raises:
            ValueError: what one of the heads refuses.
        """
        total = None
        for weight, loss in self._losses(embeddings, labels, mined, ids, ref):
            part = loss if weight == 1 else weight * loss
            total = part if total is None else total + part
        assert total is not None
        return total

    def _losses(
        self, embeddings: Any, labels: Any, mined: Any, ids: Any, ref: Any
    ) -> Iterator[tuple[float, Tensor]]:
        """The losses with their weights; those of one table come as one loss, weighted already."""
        if isinstance(embeddings, Pairwise):
            rows = embeddings.given_embeddings, embeddings.given_labels
        else:
            rows = embeddings, labels
        alone = set(range(len(self.heads)))
        for group in () if torch.compiler.is_compiling() or rows[1] is None else self._groups():
            columns = ref
            if mined is not None and ids is None and ref is not None:
                columns = ref._replace(ids=None)  # a list says itself which pairs count
            pairwise = _prepared(self.heads[group[0]], embeddings, labels, ids, columns)
            joint = self._of_table(group, pairwise) if mined is None else []
            alone -= set(group)
            if joint:
                yield 1.0, _loss_of_table(pairwise, [how for _, how in joint], self.heads[group[0]])
            for i in sorted(set(group) - {i for i, _ in joint}):
                yield self.weights[i], self.heads[i](pairwise, mined=mined)
        for i in sorted(alone):
            head, weight = self.heads[i], self.weights[i]
            if isinstance(head, (Head, Sum)):
                yield weight, head(embeddings, labels, mined, ids=ids, ref=ref)
            else:
                yield weight, head(*rows)

    def _groups(self) -> list[list[int]]:
        """Which heads compare rows with columns by one distance and one relation."""
        groups: list[list[int]] = []
        for i, head in enumerate(self.heads):
            if isinstance(head, Head):
                group = next((each for each in groups if _are_alike(head, self.heads[each[0]])), None)
                if group is None:
                    groups.append([i])
                else:
                    group.append(i)
        return groups

    def _of_table(self, group: list[int], pairwise: Pairwise) -> list[tuple[int, _Weighted]]:
        """The heads of a group that may share one table of distances, with their weights; none or several."""
        found = []
        for i in group:
            head = self.heads[i]
            how = head._loss_of_tile(pairwise) if head._sums_over_anchors else None  # type: ignore[operator]
            if how is not None:
                found.append((i, (self.weights[i], *how)))
        return found if len(found) > 1 and is_one_tile(pairwise) else []

    def extra_repr(self) -> str:
        """The weights, for `print`."""
        return f"weights={self.weights}"


_Weighted: TypeAlias = tuple[float, str, Callable[[Tile, bool], TileLoss]]


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two heads compute the same table of distances, of the same pairs."""
    names = ("distance", "_measured", "relation", "tile_rows", "check_finite")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _prepared(head: Any, embeddings: Any, labels: Any, ids: Any, ref: Any) -> Pairwise:
    """What a group of heads shares, by the options of the first."""
    caller = type(head).__name__
    if isinstance(embeddings, Pairwise):
        beside_pairwise(caller, labels=labels, ids=ids, ref=ref)
        return embeddings
    options = {"distance": head.distance, "relation": head.relation, "tile_rows": head.tile_rows}
    return Pairwise(caller, embeddings, labels, ids=ids, ref=ref, check=False, **options).shared()


def _loss_of_table(pairwise: Pairwise, members: list[_Weighted], head: Any) -> Float[Tensor, ""]:
    """The weighted sum of losses of one table, with one gradient."""
    taken = pairwise.taken_by("Sum", head.distance, head.relation, head.tile_rows, head._measured)
    with border(type(head).__name__):
        head._look(taken.checks)

    def loss_of(tile: Tile, wanted: bool) -> TileLoss:
        value = weights = None
        for weight, reduction, loss_of in members:
            part = loss_of(tile._replace(distance=tile.distance.clone()), wanted)
            share: float | Tensor = weight
            if reduction != "sum":  # in the precision of the value, which an int divided by would not have
                share = part.value.new_full((), weight) / part.count.clamp(min=1)
            value = part.value * share if value is None else value + part.value * share
            if part.pair_gradients is not None:
                weighted = part.pair_gradients.mul_(share)
                weights = weighted if weights is None else weights.add_(weighted)
        assert value is not None
        return TileLoss(value, torch.ones_like(part.count), weights)

    return loss_from_pair_gradients("Sum", taken, "sum", loss_of)


class EmbeddingPenalty(nn.Module):
    """A penalty of long embeddings, and of embeddings whose mean is not zero.

    L = a (1/n) Σ_i ‖x_i‖² + b ‖(1/n) Σ_i x_i‖²

    It is meant to stand beside another head in `Sum`. Labels, mined tuples and references are not looked at.

    Args:
        length: a, at least 0.
        mean: b, at least 0.
        check_finite: when embeddings that are NaN, infinite or too large are refused. `"later"`: at once on a
            processor; an accelerator answers without being waited for, and the next call on it raises what
            was wrong. `"now"`: at once, and an accelerator is waited for. `"never"`: no check.

    Returns:
        From the call `head(embeddings)`: a scalar; 0, with a graph, of no rows.

    Raises:
        ValueError: an option out of range; when called, embeddings that are no finite floats [n, d].

    Example:
        >>> import torch
        >>> from tercet import EmbeddingPenalty
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> EmbeddingPenalty()(x).item(), EmbeddingPenalty(0.0, 1.0)(x).item()
        (5.0, 4.0)
    """

    def __init__(self, length: float = 1.0, mean: float = 0.0, *, check_finite: str = "later") -> None:
        super().__init__()
        caller = "EmbeddingPenalty"
        self.length = as_float(caller, "length", length, minimum=0)
        self.mean = as_float(caller, "mean", mean, minimum=0)
        self.check_finite = as_time(caller, check_finite)

    @outside_graph
    def forward(
        self, embeddings: Shaped[Tensor, "n d"], labels: Any = None, mined: Any = None
    ) -> Float[Tensor, ""]:
        """The penalty.

        Args:
            embeddings: [n, d] floats of any precision; computed in float32, or in float64 if they are.
            labels: not looked at.
            mined: not looked at.

        Returns:
            A scalar in float32 (float64 for float64 embeddings).

        Raises:
            ValueError: embeddings that are no floats [n, d], or NaN, infinite or too large.
        """
        (x,), checks = unchecked_features(embeddings, squared_euclidean, None)
        check_at(self.check_finite, checks, "EmbeddingPenalty")
        with full_precision(x.device):
            total = self.length * x.square().sum() / max(1, len(x))
            return total + self.mean * x.sum(0).div(max(1, len(x))).square().sum()

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"length={self.length:g}, mean={self.mean:g}"
