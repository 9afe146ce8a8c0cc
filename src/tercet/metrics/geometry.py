"""The shape of a cloud of embeddings: how much of its space it uses, and what is wrong with its rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import as_int, border, label_codes, refusal
from tercet.metrics.inputs import finite_rows
from tercet.neighbors.collection import nearest
from tercet.pairwise.budget import budget

__all__ = ["Geometry", "geometry", "shape_of"]


class Geometry(NamedTuple):
    """The shape of a cloud of embeddings.

    Args:
        effective_rank: from 1, all on a line, to d, spread evenly.
        uniformity: 0 where all directions are one; −4 at most for directions spread over a sphere of many
            dimensions.
        alignment: the mean squared distance of positive pairs of unit vectors; NaN without such pairs.
        hubness: the skewness of how often a row is among the k nearest of others; 0 is even.
        tied: the share of rows that another row equals.
        not_finite: the share of rows with NaN or infinite numbers; all other figures leave them out.

    Example:
        >>> print(Geometry(40.0, -3.5, 0.6, 1.2, 0.0, 0.01))
        effective rank  40.000
        uniformity      -3.500
        alignment       0.600
        hubness         1.200
        tied rows       0.000
        rows of NaN     0.010
    """

    effective_rank: float
    uniformity: float
    alignment: float
    hubness: float
    tied: float
    not_finite: float

    def figures(self) -> dict[str, float]:
        """The figures by name.

        Returns:
            A dict of floats.
        """
        names = ("effective rank", "uniformity", "alignment", "hubness", "tied rows", "rows of NaN")
        return dict(zip(names, self, strict=True))

    def __str__(self) -> str:
        return "\n".join(f"{name:<14}  {value:.3f}" for name, value in self.figures().items())


@torch.no_grad()
def geometry(embeddings: Any, labels: Any = None, *, k: int = 10) -> Geometry:
    """Effective rank, uniformity, alignment, hubness, and the shares of tied rows and of rows with NaN.

    effective rank = exp(−Σ p_i ln p_i), p_i = σ_i / Σ σ of the singular values σ
    uniformity = ln mean exp(−2 ‖u_i − u_j‖²) over all pairs
    alignment = mean ‖u_i − u_j‖² over positive pairs
    hubness = mean (N_k(j) − k)³ / std³, N_k(j) how many rows have j among their k nearest

    Args:
        embeddings: float [n, d] of any length, torch or numpy; u are the unit vectors.
        labels: [n] whole numbers, bools or strings; None for no alignment.
        k: neighbours that are counted; at most n − 1 of them.

    Returns:
        A `Geometry`; figures are NaN where fewer than two rows are finite.

    Raises:
        ValueError: k below 1, or shapes that do not fit.

    Example:
        >>> square = geometry(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), [0, 0, 1, 1], k=1)
        >>> round(square.effective_rank, 3), square.alignment
        (2.0, 2.0)

    Reference:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007; Wang & Isola,
        "Understanding contrastive representation learning through alignment and uniformity on the
        hypersphere", 2020; Radovanović, Nanopoulos & Ivanović, "Hubs in space", 2010.
    """
    return shape_of(embeddings, labels, k)[0]


def shape_of(
    embeddings: Any, labels: Any, k: int = 10
) -> tuple[Geometry, dict[str, Float[np.ndarray, " c"]]]:
    """`geometry`, and each figure without each class; none without labels.

    The neighbours that are counted, and the directions that the singular values are of, stay those of all
    classes.
    """
    k = as_int("geometry", "k", k, minimum=1)
    rows, kept = finite_rows("geometry", embeddings)
    lacking = 1 - len(rows) / max(1, len(kept))
    every = np.arange(len(kept))
    if labels is not None and len(kept):
        every, _ = label_codes("geometry", labels)
        if len(every) != len(kept):
            raise refusal("geometry", "labels", f"shape {every.shape}", f"shape ({len(kept)},)")
    codes = every[kept]
    if len(rows) < 2:
        nan = math.nan
        return Geometry(nan, nan, nan, nan, nan, lacking), {}
    _, which, counts = np.unique(rows.numpy(), axis=0, return_inverse=True, return_counts=True)
    units = torch.nn.functional.normalize(rows)
    with border("geometry"):
        found = nearest(rows, k=min(k, len(rows) - 1)).rows
    times = np.bincount(found.ravel(), minlength=len(rows)).astype(np.float64)
    tied = (counts > 1)[which.reshape(-1)].astype(np.float64)
    sums = ClassSums(codes, len(np.bincount(every)))
    parts = (
        _effective_rank(rows, sums),
        _uniformity(units, torch.from_numpy(codes), sums),
        _alignment(units, torch.from_numpy(codes), sums.classes),
        _skewness(times, sums),
        _mean(tied, sums),
        _mean((~kept).astype(np.float64), ClassSums(every, sums.classes)),
    )
    shape = Geometry(*(value for value, _ in parts))
    without = [each for _, each in parts]
    return shape, {} if labels is None else dict(zip(shape.figures(), without, strict=True))


class ClassSums(NamedTuple):
    """Sums over the rows of each class, and of all rows.

    Args:
        codes: int64 [n], the class of each row.
        classes: c, how many there are.
    """

    codes: Int[np.ndarray, " n"]
    classes: int

    def without(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
        """The sum of all rows but those of a class, for each class.

        Args:
            values: [n].
        """
        return values.sum() - np.bincount(self.codes, values, self.classes)


Parts = tuple[float, Float[np.ndarray, " c"]]  # a figure, and the figure without each class


def _mean(values: Float[np.ndarray, " n"], sums: ClassSums) -> Parts:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(values.mean()), sums.without(values) / sums.without(np.ones_like(values))


def _skewness(values: Float[np.ndarray, " n"], sums: ClassSums) -> Parts:
    """mean (v − mean)³ / std³; 0 where all are equal."""
    values = values - values.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        m1, m2, m3 = (sums.without(values**i) / sums.without(np.ones_like(values)) for i in (1, 2, 3))
        without = (m3 - 3 * m1 * m2 + 2 * m1**3) / (m2 - m1**2) ** 1.5
    spread = values.std()
    return (float((values**3).mean() / spread**3), without) if spread else (0.0, np.zeros(sums.classes))


def _effective_rank(rows: Float[Tensor, "n d"], sums: ClassSums) -> Parts:
    """Without a class its rows are taken from the variance along each direction."""
    squares, directions = torch.linalg.eigh(rows.T @ rows)
    along = (rows @ directions).square()  # [n, d]
    of_class = torch.zeros(sums.classes, rows.shape[1], dtype=rows.dtype)
    of_class.index_add_(0, torch.from_numpy(sums.codes), along)
    every = torch.cat([squares[None], squares - of_class]).clamp(min=0).sqrt()  # [1 + c, d]
    found = torch.special.entr(every / every.sum(1, keepdim=True)).sum(1).exp().numpy()
    return float(found[0]), found[1:]


def _uniformity(units: Float[Tensor, "n d"], codes: Int[Tensor, " n"], sums: ClassSums) -> Parts:
    touching, within = (torch.zeros(len(units), dtype=units.dtype) for _ in range(2))
    n, start = len(units), 0
    while start < n:
        stop = start + max(1, budget(units.device).tile_bytes // (8 * (n - start)))
        similar = units[start:stop] @ units[start:].T  # [a, n − start]
        near = (4 * similar - 4).exp_().triu(1)  # −2 ‖u − v‖² = 4 u·v − 4
        touching[start:stop] += near.sum(1)
        touching[start:] += near.sum(0)
        within[start:stop] += near.masked_fill_(codes[start:stop, None] != codes[start:], 0.0).sum(1)
        start = stop
    total, left = float(touching.sum()) / 2, sums.without(np.ones(n))
    # A class takes out the pairs that it is in; those within it touch it at both ends.
    taken = np.bincount(sums.codes, (touching - within).numpy(), sums.classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = np.log((total - taken) / (left * (left - 1) / 2))
    return (math.log(total / (n * (n - 1) / 2)) if total else -math.inf), without


def _alignment(units: Float[Tensor, "n d"], codes: Int[Tensor, " n"], classes: int) -> Parts:
    """The mean over positive pairs, by Σ_{i<j} ‖u_i − u_j‖² = m Σ ‖u‖² − ‖Σ u‖² of a class of m."""
    sizes = torch.bincount(codes, minlength=classes)
    squares = torch.zeros(len(sizes), dtype=units.dtype).index_add_(0, codes, units.square().sum(1))
    sums = torch.zeros(len(sizes), units.shape[1], dtype=units.dtype).index_add_(0, codes, units)
    pairs = (sizes * (sizes - 1)) // 2
    spread, total = (sizes * squares - sums.square().sum(1)), int(pairs.sum())
    without = ((spread.sum() - spread) / (total - pairs)).numpy()
    return (float(spread.sum() / total) if total else math.nan), without
