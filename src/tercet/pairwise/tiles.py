"""Rows against columns in bounded memory: the input of every miner, loss head and metric.

Rows are the anchors of the batch. Columns are the batch itself, or `References`. `Pairwise.tiles` iterates
over anchors × columns, `Pairwise.positive_pairs` over (anchor, positive) × columns, where each entry is one
triplet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_int, border, promised, refusal
from tercet.core.indices import References
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance, exact
from tercet.pairwise.inputs import check_finite, unchecked_features, versions_of
from tercet.pairwise.known_labels import positive_pairs
from tercet.pairwise.masked import true_places
from tercet.pairwise.relations import Relation, SameLabel, whole_numbers

__all__ = ["PairTile", "Pairwise", "Tile", "tile_height"]


class Tile(NamedTuple):
    """Some anchors against all columns.

    Args:
        start: the row number of the first anchor.
        distance: float [a, r].
        positive: bool [a, r], by the relation (the same label) and not the same image.
        negative: bool [a, r], by the relation (another label) and not the same image.
        error: float [a, 1], how far `distance` may be from what `exact` gives; None where `distance` decides.
        exact: D by differences, of listed places (row of the tile, column); None where `distance` decides.
        places: how many ambiguous places of a row are resolved at most; None for all, which an accelerator
            would be read to count.
    """

    start: int
    distance: Float[Tensor, "a r"]
    positive: Bool[Tensor, "a r"]
    negative: Bool[Tensor, "a r"]
    error: Float[Tensor, "a 1"] | None = None
    exact: Callable[[Tensor, Tensor], Tensor] | None = None
    places: int | None = None

    def resolve(self, ambiguous: Bool[Tensor, "a r"]) -> None:
        """Overwrite `distance` by exact distances where a decision may depend on the error."""
        if self.places is not None and self.exact is not None:
            at = ambiguous.byte().topk(self.places, dim=1).indices  # [a, w]
            i = torch.arange(len(at), device=at.device).repeat_interleave(self.places)
            self.distance.scatter_(1, at, self.exact(i, at.flatten()).view_as(at))
            return
        i, j = true_places(ambiguous)
        if self.exact is not None and len(i):
            self.distance[i, j] = self.exact(i, j)


class PairTile(NamedTuple):
    """Some positive pairs against all columns: entry (c, j) is the triplet (a_c, p_c, j) where `negative`.

    Args:
        anchor: int64 [c], rows, in rising order.
        positive: int64 [c], columns, rising for each anchor.
        d_ap: float [c], D(a, p).
        d_an: float [c, r], D(a, j) for every column j.
        negative: bool [c, r], whether column j is a negative of the anchor.
    """

    anchor: Int[Tensor, " c"]
    positive: Int[Tensor, " c"]
    d_ap: Float[Tensor, " c"]
    d_an: Float[Tensor, "c r"]
    negative: Bool[Tensor, "c r"]


class Pairwise:
    """The batch's rows against its columns: which are positive, which negative, and at which distance.

    A column that is *the same image* as a row is neither its positive nor its negative, whatever the labels
    say. It is the same image when - the columns are the batch, and it is the same row, or another row with an
    equal id; - the columns are references that carry ids, and its id equals the row's.

    Embeddings are never normalised silently (`cosine` normalises by definition).

    Args:
        caller: the class or function that was called, for error messages.
        embeddings: [n, d] floats of any precision (integer codes for `hamming`).
        labels: [n] integers or bools, compared as int64; [n, c] where the relation takes that.
        ids: [n] integers, which image each row is; None when every row is another image. References without
            ids hold no image of the batch, by their definition.
        ref: the columns; None for the batch itself. Its precision may differ from the batch's, its dimension
            not.
        distance: a `Distance`.
        relation: which columns are positive and which negative, by their labels.
        check: look at the embeddings' numbers at once; else `checks` do so when they are asked.
        tile_rows: the anchors of a tile; None for as many as `Budget.tile_bytes` hold. It changes no result.

    Raises:
        ValueError: shapes, kinds or devices that do not fit together, or embeddings that are NaN, infinite
            or so large that their squares overflow. Checking that waits for the device once.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> from tercet.pairwise.distances import euclidean
        >>> pairwise = Pairwise("doc", x, torch.tensor([0, 0, 1]), distance=euclidean)
        >>> for tile in pairwise.tiles():
        ...     print(tile.distance, tile.positive.nonzero().tolist())
        tensor([[0., 1., 3.],
                [1., 0., 2.],
                [3., 2., 0.]]) [[0, 1], [1, 0]]
    """

    def __init__(
        self,
        caller: str,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        *,
        distance: Distance,
        relation: Relation = SameLabel(),  # noqa: B008
        ids: Shaped[Tensor, " n"] | None = None,
        ref: References | None = None,
        tile_rows: int | None = None,
        check: bool = True,
    ) -> None:
        self.distance = distance
        self.relation = relation
        self.caller = caller
        with border(caller):
            self.inputs, self.checks = unchecked_features(embeddings, distance, ref)
            if check:
                check_finite(self.checks)
            x, y = self.inputs[0], self.inputs[-1]
            n, r, device = x.shape[0], y.shape[0], x.device
            self.tile_rows = tile_height(r, x, tile_rows)
        self.labels = self.column_labels = relation.check(caller, "labels", labels, n, device)
        given_ids = ids
        if ids is not None:
            ids = whole_numbers(caller, "ids", ids, n, device)
        self.own_column = ids is None and ref is None  # each row is one column, its own, and no other
        self._ids = self._column_ids = ids
        if ref is not None:
            self.column_labels = relation.check(caller, "ref.labels", ref.labels, r, device)
            if self.column_labels.shape[1:] != self.labels.shape[1:]:
                shown = f"{self.column_labels.shape[1]} columns"
                raise refusal(caller, "ref.labels", shown, f"{self.labels.shape[1]} columns, as labels have")
            self._column_ids = None
            if ref.ids is not None:
                if ids is None:
                    raise refusal(
                        caller,
                        "ids",
                        None,
                        "the batch's ids, since ref has ids",
                        "pass ids=, or make References without ids where no column can be a row of the batch",
                    )
                self._column_ids = whole_numbers(caller, "ref.ids", ref.ids, r, device)
        others = (labels, None) if ref is None else (ref.labels, ref.ids)
        self.ref = ref
        self._embeddings = embeddings
        self._versions: list[tuple[Tensor, int]] = []
        self._given = labels, others[0], given_ids, others[1] if ref is not None else given_ids
        self.given_tile_rows = tile_rows

    @property
    def given_embeddings(self) -> Shaped[Tensor, "n d"]:
        """The embeddings of the rows as they were given."""
        return self._embeddings

    @property
    def given_labels(self) -> Shaped[Tensor, "n *c"]:
        """The labels of the rows as they were given."""
        return self._given[0]

    def shared(self) -> Pairwise:
        """These rows and columns, for others to take while their numbers do not change."""
        labels, _, ids, _ = self._given
        self._versions = versions_of(self._embeddings, labels, ids, *(self.ref or ()), self.distance)
        return self

    def taken_by(
        self,
        caller: str,
        distance: Distance,
        relation: Relation | None,
        tile_rows: int | None,
        measured: Distance | None = None,
    ) -> Pairwise:
        """The same rows and columns for another miner or head; what was computed of them is shared.

        Args:
            caller: the miner or head that was called.
            distance: its distance.
            relation: its relation; None where it does not ask for one.
            tile_rows: its height of a tile.
            measured: the distance that it computes of the same features; None for `distance`.

        Raises:
            ValueError: another distance or relation than these were made with, numbers that were changed
                since, or features without the graph that a gradient needs.
        """
        own = {"distance": (self.distance, distance), "relation": (self.relation, relation)}
        for name, (here, there) in own.items():
            if there is not None and here != there:
                hint = f"make it by a miner with {name}={there!r}, or pass embeddings and labels"
                raise refusal(
                    caller, "pairwise", f"{name}={here!r}", f"{name}={there!r}, as {caller} has", hint
                )
        hint = "make it anew, by miner.pairwise(embeddings, labels)"
        if any(tensor._version != version for tensor, version in self._versions):
            expected = "embeddings, labels and parameters that were not changed since it was made"
            raise refusal(caller, "pairwise", "numbers that were changed", expected, hint)
        if torch.is_grad_enabled() and self._embeddings.requires_grad and not self.inputs[0].requires_grad:
            expected = "embeddings with a graph, where a gradient is wanted"
            raise refusal(caller, "pairwise", "one that was made under no_grad", expected, hint)
        taken = copy(self)
        taken.caller, taken.given_tile_rows = caller, tile_rows
        taken.distance = distance if measured is None else measured
        taken.tile_rows = tile_height(len(self.inputs[-1]), self.inputs[0], tile_rows)
        return taken

    @property
    def ids(self) -> Int[Tensor, " n"] | None:
        """Which image each row is: the row numbers where each is its own column alone."""
        return self._row_numbers if self.own_column else self._ids

    @property
    def column_ids(self) -> Int[Tensor, " r"] | None:
        """Which image each column is; None where no column is a row of the batch."""
        return self._row_numbers if self.own_column else self._column_ids

    @functools.cached_property
    def _row_numbers(self) -> Int[Tensor, " n"]:
        """Made where they are asked for: on an accelerator each tensor is a launch."""
        return torch.arange(self.inputs[0].shape[0], device=self.inputs[0].device)

    def on_host(self) -> list[np.ndarray | None]:
        """Labels, column labels, ids and column ids as int64 arrays; None where there are none.

        What the caller gave on the host is taken from there, without a host read.
        """
        found: list[np.ndarray | None] = []
        here = (self.labels, self.column_labels, self._ids, self._column_ids)
        for place, (given, values) in enumerate(zip(self._given, here, strict=True)):
            if place > 1 and self.own_column:
                found.append(np.arange(len(self.inputs[0])))  # the row numbers
            elif values is None:
                found.append(None)
            else:
                if values.device.type != "cpu" and given is not None and given.device.type == "cpu":
                    values = given
                    if place < 2:
                        values = self.relation.check("", "labels", given, len(given), "cpu")
                found.append(values.cpu().to(torch.int64).numpy())
        return found

    @functools.cached_property
    def _classes_on_host(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The class of each row [n] and the size of each class; None where they would have to be read."""
        labels = self._given[0]
        if self.labels.device.type == "cpu" or labels is None or labels.device.type != "cpu":
            return None
        if not self.own_column or not promised(self.relation, "key_is_class", "sides"):
            return None
        key = self.relation.key(self.relation.check("", "labels", labels, len(labels), "cpu"))
        if key is None:
            return None
        _, of_row, sizes = np.unique(key.numpy(), return_inverse=True, return_counts=True)
        return of_row, sizes

    @property
    def positives_on_host(self) -> np.ndarray | None:
        """How many positives each row has, int64 [n], where that takes no host read; else None."""
        known = self._classes_on_host
        return None if known is None else known[1][known[0]] - 1

    @property
    def most_positives(self) -> int | None:
        """A number that no row has more positives than, where that takes no host read; else None."""
        return self._most_positives

    @functools.cached_property
    def _most_positives(self) -> int | None:
        labels = self._given[1]
        if self.labels.device.type == "cpu" or labels is None:
            return None
        if labels.device.type != "cpu" or not promised(self.relation, "key", "sides"):
            return None
        if (counts := self.positives_on_host) is not None:
            return int(counts.max(initial=0))
        key = self.relation.key(self.relation.check("", "labels", labels, len(labels), "cpu"))
        if key is None:
            return None
        return int(np.unique(key.numpy(), return_counts=True)[1].max(initial=0))

    @functools.cached_property
    def positive_pairs_on_host(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The rows and columns of all positive pairs, by row, where that takes no host read; else None."""
        if self._classes_on_host is None:
            return None
        return positive_pairs(*self._classes_on_host)

    @property
    def is_surely_complete(self) -> bool:
        """Whether the host knows that each row has a positive and a negative, as in batches of P × K."""
        counts = self.positives_on_host
        return counts is not None and len(counts) > 0 and 0 < counts.min() <= counts.max() < len(counts) - 1

    @property
    def is_symmetric(self) -> bool:
        """True only if (i, j) and (j, i) are the same two images and both positive, negative or neither."""
        return len(self.inputs) == 1 and bool(promised(self.relation, "is_symmetric", "sides"))

    def sides(self, rows: Any, columns: Any = slice(None)) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """(positive, negative): which columns are on each side of each row.

        Args:
            rows: row numbers [a], or a slice.
            columns: column numbers [r]; by default, all.
        """
        every = isinstance(columns, slice)
        positive, negative = self.relation.sides(
            self.labels[rows], self.column_labels if every else self.column_labels[columns]
        )
        if self.own_column and every and isinstance(rows, slice):
            for side in (positive, negative):
                side.diagonal(rows.start).fill_(False)
        elif self.ids is not None and self.column_ids is not None:
            other_image = self.ids[rows, None] != self.column_ids[None, columns]  # [a, r]
            positive &= other_image
            negative &= other_image
        return positive, negative

    def spans(self) -> Iterator[slice]:
        """The rows in slices of `tile_rows`; none where there are no columns."""
        n = len(self.inputs[0]) if len(self.inputs[-1]) else 0
        for start in range(0, n, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, n))

    def tiles(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[Tile]:
        """Anchors × columns, in row order.

        Args:
            inputs: features to measure instead of `self.inputs`, such as the leaves of `tiled_sum`. They are
                measured by `Distance.tile`, fast and with a gradient. `self.inputs` are measured by `exact`,
                so that no comparison depends on the tile.
        """
        measure = self._measure(*inputs)
        for rows in self.spans():
            yield Tile(rows.start, measure(rows), *self.sides(rows))

    def _measure(self, *inputs: Float[Tensor, "_ k"]) -> Callable[[Any], Float[Tensor, "a r"]]:
        """The distances of some rows to all columns."""
        if inputs:
            return lambda rows: self.distance.tile(inputs[0][rows], inputs[-1])
        return lambda rows: exact(self.distance, self.inputs[0][rows], self.inputs[-1])

    def positive_pairs(self, *inputs: Float[Tensor, "_ k"]) -> Iterator[PairTile]:
        """Positive pairs × columns, by anchor and then by positive.

        Args:
            inputs: features to measure instead of `self.inputs`, fast and with a gradient, as in `tiles`.
        """
        return pairs_of_tiles(self.spans(), self.sides, self._measure(*inputs), self.tile_rows)


def pairs_of_tiles(
    spans: Iterable[slice],
    sides: Callable[[slice], tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]],
    measure: Callable[[Any], Float[Tensor, "a r"]],
    height: int,
) -> Iterator[PairTile]:
    """Positive pairs × columns, by anchor and then by positive.

    Args:
        spans: the anchors, some at a time.
        sides: which columns are positive and which negative for some anchors.
        measure: the distances of some anchors to all columns.
        height: the most pairs of a tile.
    """
    for rows in spans:
        is_positive, negative = sides(rows)
        anchors, columns = true_places(is_positive)
        for anchor, positive in zip(anchors.split(height), columns.split(height), strict=True):
            if not len(anchor):  # `split` gives one empty part of an empty tensor
                continue
            once, again = torch.unique_consecutive(anchor, return_inverse=True)
            d_an = measure(rows.start + once)[again]  # [c, r]
            d_ap = d_an.gather(1, positive[:, None])[:, 0]
            yield PairTile(anchor + rows.start, positive, d_ap, d_an, negative[anchor])


def tile_height(width: int, like: Tensor, tile_rows: int | None) -> int:
    """The height of a tile: `tile_rows`, or as many rows as `Budget.tile_bytes` hold.

    Args:
        width: the numbers of a row.
        like: a tensor of the same dtype and device.
        tile_rows: what was asked for; None for the budget.
    """
    if tile_rows is not None:
        return as_int(None, "tile_rows", tile_rows, minimum=1)
    return max(1, budget(like.device).tile_bytes // (max(1, width) * like.dtype.itemsize))
