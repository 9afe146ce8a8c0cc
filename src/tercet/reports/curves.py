"""Pictures of an evaluation: ROC, CMC, recall curve and histograms of similarity, a panel each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import Refusal, border
from tercet.data.io.atomic import atomically, fresh_target
from tercet.reports.similarities import draw_similarities

__all__ = ["draw_curves"]

PANELS = ("roc", "cmc", "recall", "similarities")


@border("plot")
def draw_curves(path: str | Path, curves: Mapping[str, np.ndarray], overwrite: bool) -> None:
    """Draw the curves that there are into one picture.

    Args:
        path: where to, ending in .png, .pdf or .svg.
        curves: "roc" [m, 2], FAR and TAR; "cmc" [k] and "recall" [k] by rank; "similarities" [2, b].
        overwrite: replace an existing picture.

    Raises:
        ValueError: another suffix, an existing file, or no curve.

    Example:
        >>> draw_curves("cmc.png", {"cmc": np.array([0.5, 0.75, 1.0])}, overwrite=False)
    """
    target = fresh_target(path, overwrite, (".png", ".pdf", ".svg"))
    names = [name for name in PANELS if name in curves]
    if not names:
        hint = 'evaluate with figures=("retrieval", "curves", "verification", "similarities")'
        raise Refusal("path", str(path), "an evaluation that has curves", hint)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _DRAWN[name](panel, curves[name])
        panel.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    with atomically(target, overwrite) as unfinished:
        figure.savefig(unfinished, dpi=120, format=target.suffix[1:])


def _roc(panel: Any, points: np.ndarray) -> None:
    """TAR against FAR on a logarithmic axis, where the rates that matter lie."""
    seen = points[:, 0] > 0
    least = points[seen, 0].min(initial=1.0)
    panel.plot(points[seen, 0], points[seen, 1], color="tab:blue")
    if least < 1:
        panel.set_xscale("log")
        panel.set_xlim(least, 1)
    panel.set(ylim=(0, 1.02), title="ROC", xlabel="false accept rate", ylabel="true accept rate")


def _cmc(panel: Any, values: np.ndarray) -> None:
    panel.plot(np.arange(1, len(values) + 1), values, color="tab:blue")
    panel.set(xlim=(1, len(values)), ylim=(min(0.95 * values.min(), 0.98), 1.005), title="CMC")
    panel.set(xlabel="rank k", ylabel="queries with a hit")


def _recall(panel: Any, values: np.ndarray) -> None:
    panel.plot(np.arange(1, len(values) + 1), values, color="tab:blue")
    panel.set(xlim=(1, len(values)), ylim=(0, 1.02), title="Recall")
    panel.set(xlabel="rank k", ylabel="share of positives found")


def _similarities(panel: Any, both: np.ndarray) -> None:
    draw_similarities(panel, *both)
    panel.legend(loc="upper left", frameon=False)
    panel.set_ylabel("share of pairs")


_DRAWN = {"roc": _roc, "cmc": _cmc, "recall": _recall, "similarities": _similarities}
