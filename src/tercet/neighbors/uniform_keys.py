"""Rank keys with one error bound for all rows, and distances of listed columns, in few launches.

As in `neighbors/keys`, but for an accelerator, where a launch takes longer than what is computed in it up to
about 2000 rows:

- The keys of a table are negated, 2 u·v − ‖v‖² of centred rows: the largest is the nearest.
- ε = share · 4 max ‖u‖², at least the bound of each row by itself.
- Distances are q = ‖x − y‖² where the distance is a multiple of it by a power of two, and ‖x − y‖ otherwise.
  Bounds that a caller gives are brought to the same scale by `scaled`.
- A float that is not negative is ordered as its bits are. So the least bits · 2³² + column is the nearest
  column, and of equally near ones the lowest; both are read off it without a launch.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from tercet.neighbors.keys import square_share
from tercet.pairwise.budget import budget
from tercet.pairwise.closed_forms import EuclideanForm
from tercet.pairwise.differences import by_differences, row_sums, squares_by_differences
from tercet.pairwise.torch_modes import full_precision, widest_float

__all__ = ["HIGH_WORD", "UniformKeys", "first_listed"]

HIGH_WORD = 2**32  # the place of a distance's bits above a column


class UniformKeys:
    """A batch against itself: negated rank keys, bounds of their error, and exact distances.

    Args:
        form: of the distance.
        embeddings: features [n, k].

    Attributes:
        x: [n, s], the rows; their differences are the distances.
        beyond: more than any distance between accepted rows; its negated key is above the lowest number.

    Example:
        >>> keys = UniformKeys(EuclideanForm(root=True), torch.tensor([[0.0], [1.0], [3.0]]))
        >>> keys.table(slice(0, 3)).argsort(1, descending=True)
        tensor([[0, 1, 2],
                [1, 0, 2],
                [2, 1, 0]])
        >>> keys.listed(torch.tensor([[1, 2]]), slice(0, 1))
        tensor([[1., 3.]])
    """

    def __init__(self, form: EuclideanForm, embeddings: Float[Tensor, "n k"]) -> None:
        self.form, self.x = form, form.space(embeddings)
        limits = torch.finfo(self.x.dtype)
        self.beyond = 0.95 * (math.sqrt(limits.max) if form.root else limits.max)
        self._wide = widest_float(self.x.device)
        share, tiny = square_share(self.x, self._wide)
        self._share = 4 * (share + 6 * limits.eps)  # with room for `tiny`, and for what rounds bounds
        self._floor = tiny * 2**14 / self._share
        self._gathered = budget(self.x.device).gathered_numbers

    @functools.cached_property
    def _centred(self) -> Float[Tensor, "n s"]:
        return self.x - self.x.mean(0)

    @functools.cached_property
    def squares(self) -> Float[Tensor, " n"]:
        """‖u‖², taken in float64 where the device has it."""
        lengths = torch.linalg.vector_norm(self._centred, dim=1, dtype=self._wide)
        return torch.mul(lengths, lengths, out=self.x.new_empty(len(lengths)))

    @functools.cached_property
    def reach(self) -> Float[Tensor, ""]:
        """max ‖u‖², which ε is a share of."""
        return self.squares.amax()

    @functools.cached_property
    def beyond_all(self) -> Float[Tensor, ""]:
        """A square above that of any distance, which is at most 4 max ‖u‖²; what rounds it is within ε."""
        return self.reach * 5

    @functools.cached_property
    def error(self) -> Float[Tensor, ""]:
        """ε."""
        return self.reach * self._share

    @functools.cached_property
    def low(self) -> Float[Tensor, " n"]:
        """‖u‖² − ε."""
        return torch.add(self.squares, self.reach, alpha=-self._share)

    def underflows(self, reach: float) -> bool:
        """Whether the rows are so near each other that products underflow, so that keys tell nothing."""
        return reach < self._floor

    def scaled(self, distance: float) -> float:
        """A distance as the caller knows it in the scale of this file."""
        return distance if self.form.root else distance / self.form.scale

    def table(self, rows: slice) -> Float[Tensor, "a n"]:
        """The negated keys of some rows to all columns."""
        with full_precision(self.x.device):
            return torch.addmm(self.squares, self._centred[rows], self._centred.T, beta=-1, alpha=2)

    def exact_table(self, rows: slice) -> Float[Tensor, "a n"]:
        """The distances of some rows to all columns."""
        return (by_differences if self.form.root else squares_by_differences)(self.x[rows], self.x)

    def low_edge(self, distance: Float[Tensor, "a *q"], rows: slice) -> Float[Tensor, "a *q"]:
        """The negated key of distances from these rows, less ε: keys below it are of farther columns."""
        side = self.low[rows] if distance.ndim == 1 else self.low[rows, None]
        if self.form.root:
            return torch.addcmul(side, distance, distance, value=-1)
        return side - distance

    def edges(
        self, distance: Float[Tensor, "a *q"], rows: slice
    ) -> tuple[Float[Tensor, "a *q"], Float[Tensor, "a *q"]]:
        """`low_edge`, and the negated key plus ε: keys above that are of nearer columns."""
        low = self.low_edge(distance, rows)
        return low, torch.add(low, self.reach, alpha=2 * self._share)

    def listed(self, at: Int[Tensor, "a *q w"], rows: slice) -> Float[Tensor, "a *q w"]:
        """The distance of each row to its listed columns."""
        x, columns = self.x[rows], at.flatten(1)  # [a, s], [a, w]
        step = max(1, self._gathered // max(1, columns.shape[1] * x.shape[1]))
        if step >= len(at):
            return self._listed(x, columns).view(at.shape)
        parts = zip(x.split(step), columns.split(step), strict=True)
        return torch.cat([self._listed(*part) for part in parts]).view(at.shape)

    def _listed(self, x: Float[Tensor, "a s"], at: Int[Tensor, "a w"]) -> Float[Tensor, "a w"]:
        y = self.x.index_select(0, at.flatten()).view(*at.shape, -1)  # [a, w, s]
        if self.form.root:
            return by_differences(x[:, None], y)[:, 0]
        squares = mse_loss(x[:, None].expand_as(y), y, reduction="none")  # (x − y)² in one launch
        return row_sums(squares.flatten(0, 1)).view(at.shape)


def first_listed(
    at: Int[Tensor, "a w"], distance: Float[Tensor, "a w"], k: int
) -> tuple[Int[Tensor, "a k"], Float[Tensor, "a k"]]:
    """The first k listed columns by distance, of equally near ones the lower first, and their distances.

    Example:
        >>> first_listed(torch.tensor([[7, 2, 5]]), torch.tensor([[1.0, 1.0, 0.5]]), 2)
        (tensor([[5, 2]]), tensor([[0.5000, 1.0000]]))
    """
    if distance.dtype != torch.float32:
        at, order = at.sort(dim=1)
        distance, order = distance.gather(1, order).sort(dim=1, stable=True)
        return at.gather(1, order)[:, :k], distance[:, :k]
    both = torch.add(at, distance.view(torch.int32), alpha=HIGH_WORD)
    both = both.amin(1, keepdim=True) if k == 1 else both.sort(dim=1).values
    words = both.view(torch.int32).view(len(at), -1, 2)[:, :k]
    return words[:, :, 0].to(torch.int64), words[:, :, 1].view(torch.float32)
