"""What all miners share: their options, their call, and one sorted list from the tuples of all blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from tercet.core.checks import as_float, as_int, as_seed, refusal
from tercet.core.indices import Pairs, References, Triplets
from tercet.miners.collected import KnownRule, mined
from tercet.miners.draws import batch_key, drawn_places
from tercet.pairwise.distances import Distance, as_distance
from tercet.pairwise.inputs import beside_pairwise, check_finite
from tercet.pairwise.mined import remember
from tercet.pairwise.relations import Relation, SameLabel, as_relation
from tercet.pairwise.tiles import Pairwise
from tercet.pairwise.torch_modes import outside_graph

__all__ = ["Miner", "is_moderate", "margin_of", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Miner:
    """The options that every miner has, and the call. A rule of one's own is a subclass with `select`.

    Args:
        distance: D: `"euclidean"` ‖x − y‖, `"squared_euclidean"` ‖x − y‖², `"cosine"` 1 − cos(x, y), `"dot"`
            −x·y, `"hamming"` the number of differing positions, or a `Distance`. Embeddings are not
            normalised, save by `"cosine"`.
        relation: which rows are positive and which negative to an anchor. By `SameLabel()`, those of its
            label and all others; else `SharedLabel()` for several labels an image, `CrossGroup()`,
            `Graded(positive, negative)`, or a `Relation` of your own.
        max_count: the most tuples to return, drawn uniformly from all that the rule gives; None for all. A
            subclass applies it by `_drawn`.
        seed: a whole number from 0. It decides that draw, with the `step` of the call and the batch's labels
            and ids.
        tile_rows: the anchors compared at once, at least 1; None for as many as fit one table of distances.
            It changes no result.

    Raises:
        ValueError: an option out of range; when called, embeddings, labels, ids or ref that do not fit
            together or are not finite.

    Example:
        >>> class NearPairs(Miner):
        ...     def select(self, pairwise, step):
        ...         sides = [], []
        ...         for tile in pairwise.tiles():
        ...             for side, of in zip(sides, (tile.positive, tile.negative), strict=True):
        ...                 near = (of & (tile.distance < 1)).nonzero()
        ...                 side.append(near + torch.tensor([tile.start, 0]))
        ...         positive, negative = map(torch.cat, sides)
        ...         return Pairs(*positive.T, *negative.T)
        >>> NearPairs()(torch.tensor([[0.0], [0.5], [1.2]]), torch.tensor([0, 0, 1])).negative.tolist()
        [2, 1]
    """

    distance: Distance | str = "euclidean"
    relation: Relation = SameLabel()  # noqa: RUF009
    max_count: int | None = None
    seed: int = 0
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        caller = type(self).__name__
        checked: dict[str, Any] = {
            "distance": as_distance(caller, self.distance),
            "relation": as_relation(caller, self.relation),
            "seed": as_seed(caller, self.seed),
        }
        for name in ("max_count", "tile_rows"):
            if getattr(self, name) is not None:
                checked[name] = as_int(caller, name, getattr(self, name), minimum=1)
        self._set(**checked)

    def _set(self, **options: Any) -> None:
        """Set options to their checked values, which a frozen dataclass allows no other way."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

    @outside_graph
    def pairwise(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
    ) -> Pairwise:
        """One look at a batch, which this miner and heads with the same distance share.

        Embeddings are checked and prepared once (for `"cosine"` divided by their lengths), and so are labels
        and ids, instead of once in the miner and once in each head. On an accelerator one check is made.

        Args:
            embeddings: [n, d] floats of any precision, with the graph that a head's gradient goes through.
            labels: [n] integers or bools, or what `relation` takes.
            ids: [n] integers, which image each row is; None where every row is another image.
            ref: `References`, the columns; None for the batch itself.

        Returns:
            What `miner(pairwise)` and `head(pairwise, mined=…)` take in place of embeddings, labels, ids and
            references. Results are those of passing them. Another distance or relation is refused, and so are
            embeddings that were changed in between.

        Raises:
            ValueError: shapes, kinds or devices that do not fit together, or embeddings that are not finite.

        Example:
            >>> from tercet import BatchHard, TripletMargin
            >>> miner, head = BatchHard(), TripletMargin(margin=1.0)
            >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]], requires_grad=True)
            >>> pairwise = miner.pairwise(x, torch.tensor([0, 0, 1, 1]))
            >>> head(pairwise, mined=miner(pairwise)).item()
            2.625
        """
        return self._pairwise(embeddings, labels, ids, ref).shared()

    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"] | Pairwise,
        labels: Shaped[Tensor, "n *c"] | None = None,
        *,
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
        step: int = 0,
    ) -> Triplets | Pairs:
        """The mined tuples, by anchor. They are found without a graph: no gradient flows through a miner.

        Args:
            embeddings: [n, d] floats of any precision; they are compared in float32 or float64. Or what
                `pairwise` gave, in place of the next three arguments too.
            labels: [n] integers or bools, or what `relation` takes.
            ids: [n] integers, which image each row is; equal ids are one image, which is never paired with
                itself. None where every row is another image.
            ref: `References`, rows to mine positives and negatives from; None for the batch itself.
            step: the number of the training step. A miner keeps no state, so batches of equal labels and ids
                draw the same unless their steps differ; a miner that does not draw ignores it.

        Returns:
            `Triplets`, or `Pairs`, of int64 row numbers. Their number follows from the data, so a call waits
            for an accelerator, once, and `torch.compile` leaves it out of its graph. A batch of P × K, of up
            to 256 rows with labels on the host, gives one triplet a row without waiting; so does
            `BatchHard(complete=True)`, which is then traced into the graph too.

        Raises:
            ValueError: shapes, kinds or devices that do not fit together, or embeddings that are not finite.
                Where a call does not wait, those are refused by the next call on that device, by name.
        """
        if torch.compiler.is_compiling() and ids is None and ref is None:
            traced = self._traced(embeddings, labels)
            if traced is not None:
                return traced
        return self._called(embeddings, labels, ids, ref, step)

    def _traced(self, embeddings: Any, labels: Any) -> Triplets | Pairs | None:
        """The tuples of a call in a graph of `torch.compile`; None where it has to stay outside."""
        return None

    @outside_graph
    @torch.no_grad()
    def _called(self, embeddings: Any, labels: Any, ids: Any, ref: Any, step: Any) -> Triplets | Pairs:
        caller = type(self).__name__
        if isinstance(embeddings, Pairwise):
            beside_pairwise(caller, labels=labels, ids=ids, ref=ref)
            options: Any = self.distance, self.relation, self.tile_rows
            pairwise = embeddings.taken_by(caller, *options)
        elif labels is None:
            raise refusal(caller, "labels", None, "labels")
        else:
            pairwise = self._pairwise(embeddings, labels, ids, ref)
        step = as_int(caller, "step", step)
        own = type(self).select.__module__.startswith("tercet.miners.")
        if not own and pairwise.labels.device.type != "cpu":
            check_finite(pairwise.checks)  # a rule of one's own does not look
        found = self.select(pairwise, step)
        pairwise.checks.clear()  # of all who share it
        if own:  # a rule of one's own may be wrong
            remember(found, pairwise.inputs[0].shape[0], pairwise.inputs[-1].shape[0])
        return found

    def select(self, pairwise: Pairwise, step: int) -> Triplets | Pairs:
        """The rule: what a subclass defines and a call runs, without a graph, on inputs that are checked.

        Args:
            pairwise: the batch's rows against its columns; `pairwise.tiles()` gives them some anchors at a
                time, with distances and with who is positive and who negative.
            step: the `step` of the call, for draws.

        Returns:
            `Triplets` or `Pairs` of int64 row numbers, by anchor.

        Raises:
            TypeError: a miner without a rule.
        """
        raise TypeError(f"{type(self).__name__} has no rule; a subclass defines select(pairwise, step)")

    def _pairwise(self, embeddings: Tensor, labels: Tensor, ids: Any, ref: Any) -> Pairwise:
        caller = type(self).__name__
        return Pairwise(
            caller,
            embeddings,
            labels,
            ids=ids,
            ref=ref,
            distance=self.distance,  # type: ignore[arg-type]
            relation=self.relation,
            tile_rows=self.tile_rows,
            check=embeddings.device.type == "cpu" if isinstance(embeddings, Tensor) else True,
        )

    def _listed(
        self,
        pairwise: Pairwise,
        step: int,
        rule: Callable[..., None],
        *,
        ordered: bool = True,
        known: KnownRule | None = None,
    ) -> tuple[Tensor, ...]:
        """The triplets that a rule finds, by anchor, or `max_count` of them.

        Args:
            pairwise: rows and columns.
            step: the number of the training step.
            rule: called as `rule(search, found)`.
            ordered: whether a processor may search the rows in class order.
            known: the rule for batches whose positives the host knows; None where there is none.
        """
        (columns,), in_order = mined(pairwise, rule, ordered=ordered, known=known)
        return self._drawn(columns or nothing(pairwise, 3), pairwise, step, in_order)

    def _pairs(
        self, found: Sequence[tuple[Tensor, ...]], pairwise: Pairwise, step: int, in_order: bool = True
    ) -> Pairs:
        """The positive and the negative pairs that a rule found, by anchor, or `max_count` of each."""
        sides = [columns or nothing(pairwise, 2) for columns in found]
        return Pairs(
            *self._drawn(sides[0], pairwise, 2 * step, in_order),
            *self._drawn(sides[1], pairwise, 2 * step + 1, in_order),
        )

    def _drawn(
        self, columns: tuple[Tensor, ...], pairwise: Pairwise, step: int, in_order: bool = True
    ) -> tuple[Tensor, ...]:
        """Tuples by anchor, or `max_count` of them.

        Args:
            columns: one index tensor a member.
            pairwise: rows and columns.
            step: the number of the training step.
            in_order: whether the tuples come in the order of the anchors.
        """
        if not in_order:
            order = columns[0].argsort(stable=True)
            columns = tuple(column[order] for column in columns)
        if self.max_count is not None and len(columns[0]) > self.max_count:
            key = batch_key(type(self).__name__, self.seed, step, pairwise)
            drawn = drawn_places(self.max_count, len(columns[0]), key, columns[0].device)
            columns = tuple(column[drawn] for column in columns)
        return columns


def nothing(pairwise: Pairwise, width: int) -> tuple[Tensor, ...]:
    """No tuples, for batches without columns to stand against."""
    return (pairwise.labels.new_empty(0, dtype=torch.int64),) * width


def margin_of(miner: Miner, value: float | None) -> float | None:
    """A margin of at least 0, or None."""
    return None if value is None else as_float(type(miner).__name__, "margin", value, minimum=0)


def is_moderate(*bounds: float | None) -> bool:
    """Whether bounds are so small that their squares and their sums with distances never overflow."""
    return all(bound is not None and abs(bound) <= 1e15 for bound in bounds)
