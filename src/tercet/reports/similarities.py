"""Pictures: what an embedding does to positive and negative pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import as_int, border
from tercet.data.io.atomic import atomically, fresh_target
from tercet.metrics.distributions import similarity_histograms

__all__ = ["draw_similarities", "plot_similarities"]


def plot_similarities(
    path: str | Path, embeddings: Mapping[str, Any], labels: Any, *, bins: int = 100, overwrite: bool = False
) -> None:
    """Draw the histograms of positive and negative similarities, one panel an embedding, into a picture.

    The less the two overlap, the better the embedding separates classes; the overlap is written above.

    Args:
        path: where to, ending in .png, .pdf or .svg.
        embeddings: float [n, d] by title, for instance {"before": …, "after": …}.
        labels: int [n], the same for all.
        bins: the number of bins.
        overwrite: replace an existing picture.

    Raises:
        ValueError: another suffix, an existing file, or shapes that do not match.

    Example:
        >>> points = np.eye(4)[[0, 0, 1, 1]]
        >>> plot_similarities("similarities.png", {"perfect": points}, [0, 0, 1, 1])
    """
    with border("plot_similarities"):
        bins = as_int(None, "bins", bins, minimum=1)
        target = fresh_target(path, overwrite, (".png", ".pdf", ".svg"))
    # The object interface: no window, no global state of pyplot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(embeddings), 3.2), layout="constrained")
    panels = figure.subplots(1, len(embeddings), sharex=True, squeeze=False)[0]
    for panel, (title, points) in zip(panels, embeddings.items(), strict=True):
        positive, negative = similarity_histograms(points, labels, bins)
        both = positive.any() and negative.any()
        overlap = f"{np.minimum(positive, negative).sum():.2f}" if both else "none to measure"
        draw_similarities(panel, positive, negative)
        panel.set_title(f"{title}: overlap {overlap}", parse_math=False)  # a name with two $ is no formula
    panels[0].set_ylabel("share of pairs")
    panels[0].legend(loc="upper left", frameon=False)
    with atomically(target, overwrite) as unfinished:
        figure.savefig(unfinished, dpi=120, format=target.suffix[1:])


def draw_similarities(panel: Any, positive: np.ndarray, negative: np.ndarray) -> None:
    """Draw two histograms over [−1, 1] into a panel."""
    edges = np.linspace(-1, 1, len(positive) + 1)
    panel.stairs(negative, edges, fill=True, alpha=0.6, color="tab:orange", label="different class")
    panel.stairs(positive, edges, fill=True, alpha=0.6, color="tab:blue", label="same class")
    panel.set_xlabel("cosine similarity")
    panel.set_yticks([])
