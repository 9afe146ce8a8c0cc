"""What mining did, as floats for any logger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_float, border
from tercet.core.indices import References
from tercet.pairwise.distances import Distance, as_distance, exact_pairs
from tercet.pairwise.inputs import all_hold, check_finite, raise_late, unchecked_features
from tercet.pairwise.mined import mined_rows
from tercet.pairwise.relations import label_rows
from tercet.pairwise.tiles import tile_height
from tercet.pairwise.torch_modes import widest_float
from tercet.pairwise.transfer import SentDown

__all__ = ["LateFigures", "describe", "describe_later", "described"]


@torch.no_grad()
def describe(
    embeddings: Shaped[Tensor, "n d"],
    labels: Shaped[Tensor, "n *c"],
    mined: Any,
    *,
    margin: float | None = 0.2,
    distance: Distance | str = "euclidean",
    ref: References | None = None,
) -> dict[str, float]:
    """Eight numbers about mined triplets or pairs, the same eight for both, so that every step logs alike.

    - `rows`, `classes`: how many the batch has.
    - `mined`: how many triplets, or pairs, positive and negative together.
    - `anchors`: the share of the rows that are an anchor of any of them.
    - `d_ap`, `d_an`: the mean distance to the positives and to the negatives.
    - `active`: the share of triplets with D(a,p) − D(a,n) + m > 0, which still teach a hinge loss. A negative
      pair has no positive of its own: the share of negative pairs with D(a,n) < mean D(a,p) + m.
    - `collapse`: ‖x̄‖² / mean ‖x‖², the share of the embeddings' energy that all of them have in common. For
      unit vectors it is the mean cosine over all pairs: near 0 when they spread over the sphere, 1 when
      they have become one point. Embeddings far from the origin are near 1 without having collapsed.

    A mean over nothing is NaN. The call waits for an accelerator once, and once more to check tuples that
    did not come from a miner of this library.

    Args:
        embeddings: [n, d] floats.
        labels: [n] integers or bools, or [n, c]; rows that agree in all c are one class.
        mined: `Triplets` or `Pairs`, or any three or four index tensors like them.
        margin: m, in units of the distance; with None `active` is NaN.
        distance: a `Distance` or its name; take the miner's.
        ref: the columns that positives and negatives are rows of; None for the batch itself.

    Returns:
        A dict of eight floats.

    Raises:
        ValueError: rows that do not exist, embeddings that are NaN or infinite, or shapes that do not fit.

    Example:
        >>> from tercet.core.indices import Triplets
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> a, p, n = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
        >>> for name, value in describe(x, torch.tensor([0, 0, 1]), Triplets(a, p, n)).items():
        ...     print(name, round(value, 3))
        rows 3.0
        classes 2.0
        mined 1.0
        anchors 0.333
        d_ap 1.414
        d_an 2.0
        active 0.0
        collapse 0.111
    """
    margin = math.nan if margin is None else as_float("describe", "margin", margin)
    return described("describe", embeddings, labels, mined, margin, as_distance("describe", distance), ref)


@torch.no_grad()
def described(
    caller: str,
    embeddings: Shaped[Tensor, "n d"],
    labels: Shaped[Tensor, "n *c"],
    mined: Any,
    margin: float,
    metric: Distance,
    ref: References | None,
) -> dict[str, float]:
    """`describe` for another public function.

    Args:
        caller: its name, for refusals.
        embeddings, labels, mined, ref: as for `describe`.
        margin: m, in units of the distance; NaN for none.
        metric: the distance.

    Raises:
        ValueError: as `describe`.
    """
    with border(caller):
        inputs, checks = unchecked_features(embeddings, metric, ref)
        x, y = inputs[0], inputs[-1]
        if x.device.type != "cpu":
            raise_late(x.device)
        else:
            check_finite(checks)
            checks = []
    classes = label_rows(caller, "labels", labels, len(x), x.device)
    with border(caller):
        rows = mined_rows(mined, len(x), len(y), x.device)
    numbers = _numbers(metric, embeddings, inputs, classes, rows, margin)
    # Read at once, with the checks that an accelerator has not answered yet.
    finite = [all_hold(checks).to(numbers[0])] if checks else []
    read = torch.stack([*finite, *numbers]).tolist()
    if not all(read[: len(finite)]):
        with border(caller):
            check_finite(checks)
    return _named(len(x), _count(rows), *read[len(finite) :])


class LateFigures(Mapping[str, float]):
    """The eight figures of `describe`, which an accelerator has not given yet: a look at any reads them all.

    `dict(figures)` is the dict that `describe` gives.

    Args:
        sent: the numbers that come from the accelerator.
        rows: how many rows the batch has.
        count: how many tuples were mined.
    """

    def __init__(self, sent: SentDown, rows: int, count: int) -> None:
        self._sent, self._sizes = sent, (rows, count)
        self._found: dict[str, float] | None = None

    def _read(self) -> dict[str, float]:
        if self._found is None:
            self._found = _named(*self._sizes, *self._sent.read())
        return self._found

    def __getitem__(self, name: str) -> float:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def __reduce__(self) -> Any:
        return dict, (self._read(),)


@torch.no_grad()
def describe_later(
    embeddings: Shaped[Tensor, "n d"],
    labels: Int[Tensor, "n *c"],
    mined: Any,
    margin: float,
    metric: Distance,
) -> Mapping[str, float]:
    """`describe` of what a miner of this library gave for a batch, and has checked, without waiting.

    Args:
        embeddings: [n, d] floats, on an accelerator.
        labels: [n], or [n, c], on the same device.
        mined: `Triplets` or `Pairs`, as the miner gave them.
        margin: m, in units of the distance; NaN for none.
        metric: the miner's distance.
    """
    with border("describe"):
        inputs, _ = unchecked_features(embeddings, metric)
        rows = mined_rows(mined, len(embeddings), len(embeddings), embeddings.device)
    classes = label_rows("describe", "labels", labels, len(embeddings), embeddings.device)
    numbers = torch.stack(_numbers(metric, embeddings, inputs, classes, rows, margin))
    return LateFigures(SentDown(numbers), len(embeddings), _count(rows))


def _named(rows: int, count: int, distinct: float, named: float, *means: float) -> dict[str, float]:
    """The figures by name; `means` are `d_ap`, `d_an`, `active` and `collapse`."""
    return {
        "rows": float(rows),
        "classes": distinct,
        "mined": float(count),
        "anchors": named / max(1, rows),
        **dict(zip(("d_ap", "d_an", "active", "collapse"), means, strict=True)),
    }


def _count(rows: tuple[Tensor, ...]) -> int:
    """How many tuples a list has."""
    return len(rows[0]) + (len(rows[2]) if len(rows) == 4 else 0)


def _numbers(
    metric: Distance,
    embeddings: Shaped[Tensor, "n d"],
    inputs: tuple[Float[Tensor, "_ k"], ...],
    classes: Int[Tensor, "n *c"],
    rows: tuple[Int[Tensor, " _"], ...],
    margin: float,
) -> list[Float[Tensor, ""]]:
    """How many classes and anchors there are, and the means that `_named` takes, in the widest float."""
    x, y = inputs[0], inputs[-1]
    if len(rows) == 3:
        a, p, q = rows
        anchors = a
        d_ap, d_an = _distances(metric, x, y, a, p), _distances(metric, x, y, a, q)
        bound = d_ap + margin
    else:
        a, p, b, q = rows
        anchors = torch.cat([a, b])
        d_ap, d_an = _distances(metric, x, y, a, p), _distances(metric, x, y, b, q)
        bound = d_ap.mean() + margin
    wide = widest_float(x.device)
    points = embeddings.to(wide)
    common, energy = points.mean(0).square().sum(), points.square().sum(1).mean()
    marked = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, anchors, True)
    numbers = [
        _count_of_different(classes),
        marked.sum(),
        d_ap.to(wide).mean(),
        d_an.to(wide).mean(),
        (d_an < bound).to(wide).masked_fill(bound.isnan(), math.nan).mean(),
        torch.where(energy == 0, 1.0, common / energy),
    ]
    return [number.to(wide) for number in numbers]


def _count_of_different(labels: Int[Tensor, "n *c"]) -> Int[Tensor, ""]:
    """How many different rows there are, on their device, in shapes that do not depend on it."""
    labels = labels.reshape(len(labels), math.prod(labels.shape[1:]))  # [n, c]
    order = torch.arange(len(labels), device=labels.device)
    for column in labels.T.flip(0):  # by the last column, then stably by the one before
        order = order[column[order].argsort(stable=True)]
    labels = labels[order]
    return (labels[1:] != labels[:-1]).any(1).sum() + min(1, len(labels))


def _distances(
    distance: Distance,
    x: Float[Tensor, "n k"],
    y: Float[Tensor, "r k"],
    i: Int[Tensor, " t"],
    j: Int[Tensor, " t"],
) -> Float[Tensor, " t"]:
    """D(x_i, y_j) for each pair of row numbers, a chunk of them at a time."""
    height = tile_height(x.shape[1], x, None)
    parts = zip(i.split(height), j.split(height), strict=True)
    return torch.cat([exact_pairs(distance, x[a], y[b]) for a, b in parts])
