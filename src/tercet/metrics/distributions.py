"""Distributions of similarities over positive and negative pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from tercet.core.checks import as_int, label_codes, refusal
from tercet.metrics.inputs import unit_rows
from tercet.pairwise.budget import budget

__all__ = ["similarity_histograms"]


def similarity_histograms(
    embeddings: Any, labels: Any, bins: int = 100
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]]:
    """The histograms of cosine similarity over all positive and all negative pairs, each pair once.

    Args:
        embeddings: float [n, d] of any length, n ≥ 1; torch or numpy.
        labels: [n], whole numbers or strings.
        bins: b, the number of bins of equal width from −1 to 1.

    Returns:
        Two float64 [b] that each sum to 1, or to 0 where there is no such pair. Memory is O(n), not O(n²).

    Raises:
        ValueError: shapes that do not match, no rows, embeddings that are not finite, or bins < 1.

    Example:
        >>> points = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
        >>> positive, negative = similarity_histograms(points, [0, 0, 1], bins=4)
        >>> positive.tolist(), negative.tolist()
        ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0])
    """
    bins = as_int("similarity_histograms", "bins", bins, minimum=1)
    caller = "similarity_histograms"
    rows = unit_rows(caller, embeddings)
    classes = torch.from_numpy(label_codes(caller, labels)[0])
    if classes.shape != rows.shape[:1]:
        shapes = f"embeddings {tuple(rows.shape)}, labels {tuple(classes.shape)}"
        raise refusal(caller, "embeddings, labels", shapes, "shapes [n, d] and [n]")
    counts = torch.zeros(2, bins, dtype=torch.float64)
    height = max(1, budget(rows.device).tile_bytes // (8 * len(rows)))
    for start in range(0, len(rows), height):
        tile = rows[start : start + height] @ rows[start:].T  # [a, n − start]
        later = torch.ones_like(tile, dtype=torch.bool).triu(1)
        same = classes[start : start + height, None] == classes[start:]
        for i, chosen in enumerate((later & same, later & ~same)):
            counts[i] += torch.histc(tile[chosen].clamp(-1, 1), bins, -1, 1)
    positive, negative = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    return positive, negative
