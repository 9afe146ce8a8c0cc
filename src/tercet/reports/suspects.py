"""`suspects`: doubtful labels, leaks, duplicates, isolated images and confused classes, with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import (
    Refusal,
    as_array,
    as_bool,
    as_choice,
    as_float,
    as_int,
    border,
    escaped,
    label_codes,
)
from tercet.data.io.atomic import fresh_target
from tercet.data.io.tables import write_columns
from tercet.offline.mining_inputs import matrix_of, usable_rows
from tercet.offline.neighbor_graph import NeighborGraph, neighbor_graph, own_scores, pair_scores
from tercet.offline.verdict_table import as_catalog, verdict_columns
from tercet.offline.verdicts import UNDECIDED, Verdicts, joined, suspected_labels
from tercet.reports.copies import copies, equal_files
from tercet.reports.suspect_reasons import confused_rows, copy_rows, isolated_rows, label_reasons

__all__ = ["DISTANCES", "KINDS", "Suspects", "class_names", "mask_of", "suspects", "suspects_among"]

KINDS = ("label", "leak", "duplicate", "isolated", "confused")
DISTANCES = ("cosine", "euclidean", "squared_euclidean")


@dataclass(frozen=True, eq=False, repr=False)
class Suspects:
    """Suspected images in the order of `KINDS`, within each the most suspicious first.

    Args:
        kind: [v] "label", "leak", "duplicate", "isolated" or "confused".
        image: int64 [v], rows of the collection.
        other: int64 [v], the row that each is suspected because of: the nearest image of the class that it
            looks like, the image that it is a copy of, the nearest image.
        score: [v] of the two, 1 − D under cosine, else −D; of "label" the mean over the nearest images of
            that class.
        own_score: [v] of the nearest image of its own class; of "label" the mean over the nearest.
        reason: [v] why, in words.
        unread: rows of files that could not be read, whose bytes were not compared.
        catalog: the images, or None.

    Example:
        >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [0.3]])
        >>> found = suspects(x, list("aaabbbb"), distance="euclidean", k=3)
        >>> found, found.of("label").image.tolist()
        (Suspects(1 label), [6])
    """

    kind: Sequence[str]
    image: Int64[np.ndarray, " v"]
    other: Int64[np.ndarray, " v"]
    score: Float[np.ndarray, " v"]
    own_score: Float[np.ndarray, " v"]
    reason: Sequence[str]
    unread: Sequence[int] = ()
    catalog: Any = None

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        counts = Counter(self.kind)
        return f"Suspects({', '.join(f'{count:,} {kind}' for kind, count in counts.items())})"

    def of(self, kind: str) -> Suspects:
        """Those of one kind.

        Args:
            kind: one of "label", "leak", "duplicate", "isolated" and "confused".

        Returns:
            `Suspects` of that kind alone, in the same order.

        Raises:
            ValueError: another word.
        """
        kind = as_choice("Suspects.of", "kind", kind, KINDS)
        at = np.flatnonzero([each == kind for each in self.kind])
        image, other, score, own_score = (
            column[at] for column in (self.image, self.other, self.score, self.own_score)
        )
        reason = [self.reason[place] for place in at.tolist()]
        return Suspects([kind] * len(at), image, other, score, own_score, reason, self.unread, self.catalog)

    @property
    def verdicts(self) -> Verdicts:
        """The same pairs for `write_verdicts`, with no verdict yet."""
        return Verdicts(self.image, self.other, self.score, self.own_score, [UNDECIDED] * len(self))

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a table: kind, reason, and the columns of the table of verdicts.

        A person replaces `?` in its column `verdict`; `read_verdicts` and `tercet mine --verdicts` read it.

        Args:
            path: the table, .csv or .parquet.
            overwrite: replace an existing table, with all that was written into it.

        Raises:
            ValueError: suspects of no catalog, another suffix, or an existing file.
        """
        with border("Suspects.write"):
            overwrite = as_bool(None, "overwrite", overwrite)
            if self.catalog is None:
                raise Refusal("catalog", None, "suspects of a catalog: pass catalog= to suspects()")
            target = fresh_target(path, overwrite, (".csv", ".parquet"))
        columns = {"kind": list(self.kind), "reason": list(self.reason)}
        write_columns({**columns, **verdict_columns(self.verdicts, self.catalog)}, target, overwrite)


def suspects(
    embeddings: Any,
    labels: Any = None,
    *,
    catalog: Any = None,
    test: Any = None,
    k: int = 10,
    copy_share: float = 0.25,
    isolated: float = 2.0,
    distance: str = "cosine",
    memory: int | None = None,
    progress: bool = False,
) -> Suspects:
    """Images that look wrong, from one exact k-NN graph, each with its reason in words.

    A doubtful label is one of `suspected_labels`, the only images of their classes last; its reason adds the
    leave-one-out vote of the k nearest images, each weighted by 1 / (l + m), how many of them are mutual
    neighbours of another class, and the rank of the nearest image of its own class. Here l is a length and m,
    the scale, its median over the nearest images. Two images are one picture where their files have the same
    bytes, or where l ≤ `copy_share` · m: a leak where one of them is a test image and one is not, else a
    duplicate. An image is isolated where its nearest is farther than `isolated` · m. Two classes are confused
    where the vote takes two images or more of one for the other.

    Args:
        embeddings: [n, d]: numpy, a memory map, a tensor, or `Embeddings`. Rows of NaN are left out.
        labels: [n] whole numbers or strings; None for those of `Embeddings` or of the catalog.
        catalog: the images, whose files are compared by their bytes; None for that of `Embeddings`.
        test: which images are test images: bool [n], or row numbers; None for none.
        k: neighbours of each image in the graph.
        copy_share: two images are one picture up to this share of the scale, from 0 to 1.
        isolated: an image is isolated beyond so many times the scale.
        distance: "cosine", "euclidean" or "squared_euclidean".
        memory: bytes of each search above the inputs, as for `nearest`.
        progress: show a progress bar.

    Returns:
        `Suspects`, in the order of label, leak, duplicate, isolated and confused.

    Raises:
        ValueError: embeddings that are no matrix or infinite, columns that do not fit, or numbers out of
            range.

    Example:
        >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [0.3]])
        >>> print(suspects(x, list("aaabbbb"), distance="euclidean", k=3).reason[0])
        looks like 'a': 100% of the vote of its 3 nearest images, 0% for its own class 'b'; ...
        >>> suspects(np.array([[1.0], [1.0], [2.0], [4.0]]), [0, 0, 1, 1], test=[1], distance="euclidean")
        Suspects(1 label, 1 leak, 1 confused)
    """
    with border("suspects"):
        k = as_int(None, "k", k, 1)
        copy_share = as_float(None, "copy_share", copy_share, 0, 1)
        isolated = as_float(None, "isolated", isolated, 1)
        distance = as_choice(None, "distance", distance, DISTANCES)
        catalog = getattr(embeddings, "catalog", None) if catalog is None else as_catalog(catalog)
        if labels is None and not hasattr(embeddings, "labels"):
            labels = getattr(catalog, "labels", None)
        of_catalog = labels is None or labels is getattr(catalog, "labels", ())
        x, labels = matrix_of(embeddings, labels)
        codes, values = label_codes(None, labels)
        if len(codes) != len(x):
            raise Refusal("labels", f"{len(codes)} values", f"one for each of the {len(x)} embeddings")
        if catalog is not None and len(catalog) != len(x):
            raise Refusal("catalog", f"{len(catalog)} images", f"one for each of the {len(x)} embeddings")
        tested = mask_of(test, len(x))
        names = class_names(values, catalog if of_catalog else None)
    search: dict[str, Any] = {"memory": memory, "progress": progress}
    graph = neighbor_graph(x, k, distance, **search)
    return suspects_among(x, codes, names, graph, catalog, tested, copy_share, isolated, distance, search)


def class_names(values: np.ndarray, catalog: Any) -> list[str]:
    """Names of classes.

    Args:
        values: the distinct labels: positions in the classes of a catalog, or names.
        catalog: the catalog that they are positions of, or None.
    """
    return [str(value if catalog is None else catalog.classes[value]) for value in values.tolist()]


def suspects_among(
    x: Any,
    codes: Int64[np.ndarray, " n"],
    names: Sequence[str],
    graph: NeighborGraph,
    catalog: Any,
    tested: Bool[np.ndarray, " n"],
    copy_share: float,
    isolated: float,
    distance: str,
    search: Mapping[str, Any],
) -> Suspects:
    """What `suspects` gives, of checked arguments and a graph that is there already.

    Args:
        x: [n, d].
        codes: class numbers.
        names: of the classes.
        graph: the k-NN graph of x.
        catalog: the images, or None.
        tested: which images are test images.
        copy_share: as for `suspects`.
        isolated: as for `suspects`.
        distance: as for `suspects`.
        search: `memory` and `progress` of further searches.
    """
    names, usable, votes = [escaped(name) for name in names], usable_rows(x), graph.votes(codes)
    numbers, unread = (np.arange(len(x)), []) if catalog is None else equal_files(catalog)
    doubtful = suspected_labels(x, codes, distance=distance, **search)
    doubtful = joined(*(_at(doubtful, np.isinf(doubtful.own_score) == alone) for alone in (False, True)))
    parts = [("label", doubtful.image, doubtful.other, label_reasons(doubtful, graph, votes, codes, names))]
    for kind, leaks in (("leak", True), ("duplicate", False)):
        found = copies(graph, copy_share, numbers, tested, leaks=leaks)
        parts.append(
            (kind, *copy_rows(found.at(usable[found.image] & usable[found.other]), codes, names, leaks))
        )
    parts.append(("isolated", *isolated_rows(graph, isolated)))
    parts.append(("confused", *confused_rows(graph, votes, codes, names)))
    image, other = (np.concatenate([part[side] for part in parts]).astype(np.int64) for side in (1, 2))
    score = pair_scores(x, distance, image, other).astype(np.float64)
    own = own_scores(x, distance, codes, image, search["memory"])
    score[: len(doubtful.image)], own[: len(doubtful.image)] = doubtful.score, doubtful.own_score
    kinds = [kind for kind, rows, *_ in parts for _ in rows]
    return Suspects(
        kinds, image, other, score, own, [each for part in parts for each in part[3]], unread, catalog
    )


def _at(verdicts: Verdicts, kept: Bool[np.ndarray, " v"]) -> Verdicts:
    image, other, score, own = (column[kept] for column in verdicts[:4])
    return Verdicts(image, other, score, own, [UNDECIDED] * len(image))


def mask_of(test: Any, n: int) -> Bool[np.ndarray, " n"]:
    """Which of n images are test images.

    Args:
        test: a mask [n], row numbers, or None.
        n: images.

    Raises:
        ValueError: another mask, or rows that do not exist.
    """
    mask = np.zeros(n, dtype=bool)
    if test is None:
        return mask
    rows = as_array(None, "test", test, "a mask [n] or row numbers")
    rows = rows.astype(np.int64) if not rows.size else rows
    fits = rows.shape == (n,) if rows.dtype == bool else rows.ndim == 1 and rows.dtype.kind in "iu"
    if not fits or (rows.dtype != bool and ((rows < 0) | (rows >= n)).any()):
        expected = f"bool [{n}], or row numbers from 0 to {n - 1}"
        raise Refusal("test", f"{rows.dtype} of shape {rows.shape}", expected)
    mask[rows] = True
    return mask
