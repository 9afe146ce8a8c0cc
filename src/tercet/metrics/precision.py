"""Retrieval of all positives: R-precision, average precision in its variants, and the ranks at the ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from tercet.core.checks import as_choice, refusal
from tercet.core.indices import References
from tercet.metrics import figures
from tercet.metrics.figures import by_depth, depths, measured
from tercet.metrics.protocol import opened
from tercet.metrics.scores import Score
from tercet.pairwise.distances import Distance

__all__ = ["map_at_r", "mean_average_precision", "mean_inp", "mrr", "r_precision"]


@torch.no_grad()
def map_at_r(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The mean average precision of the first R results, R the number of images that a query could find.

    MAP@R = mean over queries of (1/R) Σ_{i=1..R} P(i), where R is the number of images of the query's class
    to find, and P(i) the precision among the first i if the i-th is one of them, else 0

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not
            fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(map_at_r(x, [0, 0, 1, 0]), 3)
        0.333

    Reference:
        Musgrave, Belongie & Lim, "A metric learning reality check", 2020.
    """
    queries = opened(
        "map_at_r",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return measured(queries, {"": figures.map_at_r()})[""]


@torch.no_grad()
def r_precision(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The share of a query's first R results that is of its class, R the number of images it could find.

    R-precision = mean over queries of (1/R) #{positives among the R nearest}

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not
            fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(r_precision(x, [0, 0, 1, 0]), 3)
        0.5

    Reference:
        Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, chapter 8.
    """
    queries = opened(
        "r_precision",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return measured(queries, {"": figures.r_precision()})[""]


@torch.no_grad()
def mean_average_precision(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    k: int | Iterable[int] | None = None,
    *,
    rule: str = "rectangle",
    over: str = "R",
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score | dict[int, Score]:
    """The mean over queries of the precision at each of their positives.

    AP = (1/R) Σ_{i=1..R} P_i, P_i = i/rank_i, over all results: rule="rectangle"
    AP = (1/R) Σ_{i=1..R} (P_i + P'_i)/2, P'_i = (i − 1)/(rank_i − 1), 1 at rank 1: rule="trapezoid"
    AP@k = (1/R) Σ_{rank_i ≤ k} P_i, with k and over="R"; over="min(k, R)" divides by that

    rank_i is the rank of the i-th nearest positive. Papers report all four under one name. Over R, AP@k
    cannot reach 1 where k < R. The trapezoid is that of Oxford5k and Market-1501; it differs most where there
    are few positives.

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        k: how many are retrieved, one number or several; None for all.
        rule: `"rectangle"` or `"trapezoid"`.
        over: what AP@k is divided by, `"R"` or `"min(k, R)"`.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`, or with several k a dict of them by k.

    Raises:
        ValueError: k below 1, an unknown rule, or one that does not go with k, labels of mixed kinds,
            embeddings that are NaN or infinite, or shapes that do not fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(mean_average_precision(x, [0, 0, 1, 0]), 3)
        0.667
        >>> round(mean_average_precision(x, [0, 0, 1, 0], rule="trapezoid"), 3)
        0.542
        >>> mean_average_precision(x, [0, 0, 1, 0], k=(1, 2), over="min(k, R)")
        {1: 0.3333333333333333, 2: 0.3333333333333333}

    Reference:
        Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, chapter 8; the trapezoid:
        Philbin, Chum, Isard, Sivic & Zisserman, "Object retrieval with large vocabularies and fast
        spatial matching", 2007.
    """
    caller = "mean_average_precision"
    trapezoid = as_choice(caller, "rule", rule, ("rectangle", "trapezoid")) == "trapezoid"
    by_r = as_choice(caller, "over", over, ("R", "min(k, R)")) == "R"
    if k is None and not by_r:
        raise refusal(caller, "over", over, "k= beside it; over all results R is what it is divided by")
    if k is not None and trapezoid:
        raise refusal(caller, "rule", rule, "no k beside it: the trapezoid is defined over all results")
    ks, several = ([], False) if k is None else depths(caller, k)
    queries = opened(
        "mean_average_precision",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    if k is None:
        return measured(queries, {"": figures.mean_average(trapezoid)})[""]
    return by_depth(measured(queries, {str(k): figures.map_at_k(k, by_r) for k in ks}), ks, several)


@torch.no_grad()
def mrr(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The mean reciprocal rank: 1 over the rank of each query's nearest positive.

    MRR = mean over queries of 1/rank_1

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not
            fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(mrr(x, [0, 0, 1, 0]), 3)
        0.667

    Reference:
        Voorhees, "The TREC-8 question answering track report", 1999.
    """
    queries = opened(
        "mrr",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return measured(queries, {"": figures.mrr()})[""]


@torch.no_grad()
def mean_inp(
    embeddings: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Any,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
    no_positives: str = "skip",
    distance: Distance | str = "euclidean",
    tile_rows: int | None = None,
) -> Score:
    """The mean inverse negative penalty: R over the rank of each query's farthest positive.

    mINP = mean over queries of R/rank_R: 1 where all positives come first

    Args:
        embeddings: [n, d], torch or numpy.
        labels: [n] integers, bools or strings: a tensor, an array or a list.
        ids: [n] integers, which image each row is; an image never retrieves itself.
        ref: the gallery, torch or numpy; None for the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: what a query does not retrieve, with `groups`: `"group positives"`, images of its class and
            group, as benchmarks of re-identification have it, and the default; or `"group"`, all images of
            its group.
        ignore: a label, or several, of junk: such images neither ask nor count.
        distractors: a label, or several, of images that nobody is to find: they do not ask, and count as
            negatives.
        no_positives: a query with nothing to find is left out (`"skip"`) and counted in the `Score`, or it
            is worth 0 (`"zero"`).
        distance: a `Distance` or its name.
        tile_rows: queries compared at once; None for as many as fit the memory of a tile.

    Returns:
        A `Score`.

    Raises:
        ValueError: labels of mixed kinds, embeddings that are NaN or infinite, or shapes that do not
            fit.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.4], [2.5]])
        >>> round(mean_inp(x, [0, 0, 1, 0]), 3)
        0.667

    Reference:
        Ye, Shen, Lin, Xiang, Shao & Hoi, "Deep learning for person re-identification: a survey and outlook",
        2021.
    """
    queries = opened(
        "mean_inp",
        embeddings,
        labels,
        ids,
        ref,
        groups,
        exclude,
        ignore,
        distractors,
        no_positives,
        distance,
        tile_rows,
    )
    return measured(queries, {"": figures.minp()})[""]
