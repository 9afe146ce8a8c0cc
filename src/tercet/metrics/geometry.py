"""The shape of a cloud of embeddings: how much of its space it uses, and what is wrong with its rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tercet.core.checks import as_int, border, label_codes, refusal
from tercet.metrics.inputs import finite_rows
from tercet.neighbors.collection import nearest
from tercet.pairwise.budget import budget

__all__ = ["Geometry", "geometry"]


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
    k = as_int("geometry", "k", k, minimum=1)
    rows, kept = finite_rows("geometry", embeddings)
    lacking = 1 - len(rows) / max(1, len(kept))
    if labels is not None and len(kept):
        codes, _ = label_codes("geometry", labels)
        if len(codes) != len(kept):
            raise refusal("geometry", "labels", f"shape {codes.shape}", f"shape ({len(kept)},)")
        codes = codes[kept]
    else:
        codes = np.arange(len(rows))
    if len(rows) < 2:
        nan = math.nan
        return Geometry(nan, nan, nan, nan, nan, lacking)
    _, counts = np.unique(rows.numpy(), axis=0, return_counts=True)
    units = torch.nn.functional.normalize(rows)
    with border("geometry"):
        found = nearest(rows, k=min(k, len(rows) - 1)).rows
    times = np.bincount(found.ravel(), minlength=len(rows)).astype(np.float64)
    spread = times.std()
    return Geometry(
        _effective_rank(rows),
        _uniformity(units),
        _alignment(units, torch.from_numpy(codes)),
        float(((times - times.mean()) ** 3).mean() / spread**3) if spread else 0.0,
        float(counts[counts > 1].sum() / len(rows)),
        lacking,
    )


def _effective_rank(rows: Float[Tensor, "n d"]) -> float:
    sigma = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0).sqrt()
    total = float(sigma.sum())
    if not total:
        return math.nan
    return float(torch.special.entr(sigma / total).sum().exp())


def _uniformity(units: Float[Tensor, "n d"]) -> float:
    total, n, start = 0.0, len(units), 0
    while start < n:
        stop = start + max(1, budget(units.device).tile_bytes // (8 * (n - start)))
        similar = units[start:stop] @ units[start:].T  # [a, n − start]
        total += float((4 * similar - 4).exp_().triu(1).sum())  # −2 ‖u − v‖² = 4 u·v − 4
        start = stop
    return math.log(total / (n * (n - 1) / 2)) if total else -math.inf


def _alignment(units: Float[Tensor, "n d"], codes: Tensor) -> float:
    """The mean over positive pairs, by Σ_{i<j} ‖u_i − u_j‖² = m Σ ‖u‖² − ‖Σ u‖² of a class of m."""
    sizes = torch.bincount(codes)
    squares = torch.zeros(len(sizes), dtype=units.dtype).index_add_(0, codes, units.square().sum(1))
    sums = torch.zeros(len(sizes), units.shape[1], dtype=units.dtype).index_add_(0, codes, units)
    pairs = int((sizes * (sizes - 1)).sum()) // 2
    return float((sizes * squares - sums.square().sum(1)).sum() / pairs) if pairs else math.nan
