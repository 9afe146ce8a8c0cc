"""Images whose label is doubtful, and what a person said of them: a table that is edited and read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from tercet.core.checks import Refusal, as_choice, as_float, border
from tercet.offline.engines import Engine, collection_search
from tercet.offline.filters import scores_of
from tercet.offline.mining_inputs import codes_of, matrix_of, usable_rows
from tercet.pairwise.distances import Distance, as_distance

__all__ = [
    "UNDECIDED",
    "VERDICTS",
    "SetAside",
    "Verdicts",
    "as_verdicts",
    "find_suspects",
    "joined",
    "named",
    "no_verdicts",
    "set_aside",
    "suspected_labels",
    "undecided",
    "without",
]

UNDECIDED = "?"
VERDICTS = (UNDECIDED, "same", "different", "duplicate", "skip")
_VOTES = 3  # neighbours of each class that are compared
_LOOKED_AT = 10  # neighbours of other classes


class Verdicts(NamedTuple):
    """Images that look like another class, each beside its nearest image there, the most doubtful first.

    Args:
        image: int64 [v], rows of the collection.
        other: int64 [v], the nearest row of the class that the image looks like.
        score: [v] mean score of the nearest images of that class.
        own_score: [v] mean score of the nearest images of its own class; −inf where it has none.
        verdict: [v] what a person says: `"same"`, both show what one class shows; `"different"`, they do not;
            `"duplicate"`, they are one picture; `"skip"`, leave the image out; `"?"`, nothing yet.

    Example:
        >>> found = Verdicts(np.array([4]), np.array([9]), np.array([0.9]), np.array([0.2]), ["?"])
        >>> found.doubt.round(1).tolist()
        [0.7]
    """

    image: Int64[np.ndarray, " v"]
    other: Int64[np.ndarray, " v"]
    score: Float[np.ndarray, " v"]
    own_score: Float[np.ndarray, " v"]
    verdict: Sequence[str]

    @property
    def doubt(self) -> Float[np.ndarray, " v"]:
        """[v] by how much the other class is nearer than the image's own."""
        return self.score - self.own_score


class SetAside:
    """Which rows are not mined against each other: an image and a class that it looks like, or single pairs.

    Args:
        classes: [n] class numbers.
        images: [v] rows, each set aside for the class of the row in `others`, in both directions.
        others: [v] rows.
        pairs: (rows, rows) set aside for each other alone.
        skipped: rows that are set aside for every other.

    Example:
        >>> aside = SetAside(np.array([0, 0, 1, 1]), np.array([1]), np.array([2]))
        >>> aside(np.array([1, 0, 3]), np.array([3, 3, 1])).tolist()
        [True, False, True]
    """

    def __init__(
        self,
        classes: Int64[np.ndarray, " n"],
        images: Int64[np.ndarray, " v"],
        others: Int64[np.ndarray, " v"],
        pairs: tuple[np.ndarray, np.ndarray] | None = None,
        skipped: Int64[np.ndarray, " s"] | None = None,
    ) -> None:
        n = len(classes)
        self._classes, self._n = classes, n
        self._involved = np.zeros(n, dtype=bool)
        self._involved[images] = True
        # Each (row, class) and (row, row) is one number, row · n + class, so that one search finds it.
        self._row_class = np.unique(images * n + classes[others])
        first, second = (np.empty(0, np.int64),) * 2 if pairs is None else pairs
        self._involved[first] = self._involved[second] = True
        self._pairs = np.unique(np.concatenate([first * n + second, second * n + first]))
        self._skipped = np.zeros(n, dtype=bool)
        if skipped is not None:
            self._skipped[skipped] = True

    def __bool__(self) -> bool:
        return bool(len(self._row_class) or len(self._pairs) or self._skipped.any())

    def __call__(
        self, anchors: Int64[np.ndarray, "..."], rows: Int64[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "..."]:
        """Whether each row is set aside for its anchor."""
        found = self._skipped[rows] | self._skipped[anchors]
        at = np.nonzero(self._involved[rows] | self._involved[anchors])
        a, r = anchors[at], rows[at]
        found[at] |= np.isin(a * self._n + self._classes[r], self._row_class)
        found[at] |= np.isin(r * self._n + self._classes[a], self._row_class)
        found[at] |= np.isin(a * self._n + r, self._pairs)
        return found


def without(verdicts: Verdicts, images: Int64[np.ndarray, " s"]) -> Verdicts:
    """Those of other images."""
    return _at(verdicts, np.flatnonzero(~np.isin(verdicts.image, images)))


def undecided(suspects: Verdicts, said: Verdicts, most: int) -> Verdicts:
    """The most doubtful suspects of which a person has not decided yet."""
    waiting = np.isin(suspects.image, named(said, UNDECIDED).image)
    known = np.isin(suspects.image, said.image)
    return _at(suspects, np.flatnonzero(waiting | ~known)[:most])


def named(verdicts: Verdicts, word: str) -> Verdicts:
    """Those of one verdict."""
    return _at(verdicts, np.flatnonzero([each == word for each in verdicts.verdict]))


def set_aside(verdicts: Verdicts, classes: Int64[np.ndarray, " n"]) -> SetAside:
    """What the verdicts forbid: "same" an image and a class, "duplicate" a pair, "skip" an image."""
    same, twice = named(verdicts, "same"), named(verdicts, "duplicate")
    skipped = named(verdicts, "skip").image
    return SetAside(classes, same.image, same.other, (twice.image, twice.other), skipped)


def _at(verdicts: Verdicts, places: Int64[np.ndarray, " s"]) -> Verdicts:
    words = np.asarray(verdicts.verdict, dtype=object)[places].tolist()
    image, other = verdicts.image[places], verdicts.other[places]
    return Verdicts(image, other, verdicts.score[places], verdicts.own_score[places], words)


def suspected_labels(
    embeddings: Any,
    labels: Any = None,
    *,
    share: float = 1.0,
    groups: Any = None,
    ids: Any = None,
    distance: Distance | str = "cosine",
    memory: int | None = None,
    progress: bool = False,
) -> Verdicts:
    """Images that are nearer to another class than to their own, the most doubtful first.

    doubt(i) = max over classes c ≠ y_i of mean{ s(i, j) : j of the 3 nearest of c } − mean{ s(i, j) : j of
    the 3 nearest of y_i }, where c is among the classes of the 10 nearest images of other classes and has as
    many images there as are compared. Images of a doubt above 0 are listed.

    Args:
        embeddings: [n, d]: numpy, a memory map, a tensor, or `Embeddings`. Rows of NaN are left out.
        labels: [n] whole numbers or strings; None for those of `Embeddings`.
        share: at most so many of the images are listed, from 0 to 1.
        groups: [n] groups whose images are not compared, such as cameras, or None.
        ids: [n] which image each row is, or None.
        distance: a `Distance` or its name.
        memory: bytes of the search, as for `nearest`.
        progress: show a progress bar.

    Returns:
        `Verdicts` with no verdict yet.

    Raises:
        ValueError: embeddings that are no matrix or infinite, columns that do not fit, or a share outside
            of 0 to 1.

    Example:
        >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [0.3]])
        >>> suspected_labels(x, list("aaabbbb"), distance="euclidean").image.tolist()
        [6]
    """
    with border("suspected_labels"):
        share = as_float(None, "share", share, 0, 1)
        metric = as_distance(None, distance)
        x, labels = matrix_of(embeddings, labels)
        codes = codes_of("labels", labels, len(x))
        groups = None if groups is None else codes_of("groups", groups, len(x))
        ids = None if ids is None else codes_of("ids", ids, len(x))
        usable_rows(x)
        search = {"distance": metric, "memory": memory, "progress": progress}
        found = find_suspects(x, codes, groups, ids, **search)
    return _at(found, np.arange(len(found.image))[: math.ceil(share * len(codes))])


def find_suspects(
    x: Any,
    codes: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"] | None,
    ids: Int64[np.ndarray, " n"] | None,
    *,
    distance: Distance,
    backend: str = "exact",
    min_recall: float | None = None,
    engine: Engine | None = None,
    **search: Any,
) -> Verdicts:
    """`suspected_labels` of checked arguments: all that are listed.

    Args:
        x: [n, d].
        codes: class numbers.
        groups: group numbers, or None.
        ids: image numbers, or None.
        distance: a `Distance`.
        backend, min_recall: of the search of other classes, as for `nearest`; a class is searched exactly.
        engine: who searches; None for this process.
        search: memory and progress, as for `nearest`.

    Raises:
        ValueError: what the search refuses: a `Refusal`.
    """
    is_cosine = distance is as_distance(None, "cosine")
    search |= {"labels": codes, "groups": groups, "ids": ids, "distance": distance, "engine": engine}
    aside = [name for name, values in (("group", groups), ("id", ids)) if values is not None]
    own = collection_search(x, k=_VOTES, exclude=["self", "other classes", *aside], **search).found()
    search |= {"backend": backend, "min_recall": min_recall}
    far = collection_search(x, k=_LOOKED_AT, exclude=["class", *aside], **search).found()
    own_score = _mean(scores_of(own.distances, is_cosine))
    scores = scores_of(far.distances, is_cosine)
    kinds = np.where(far.rows >= 0, codes[far.rows], -1)
    size = np.bincount(codes)
    best, at = np.full(len(codes), -math.inf), np.zeros(len(codes), dtype=np.int64)
    for place in range(far.rows.shape[1]):  # the class of the place-th neighbour, where it is its first
        kind = kinds[:, place]
        member = (kinds == kind[:, None]) & (kinds >= 0)
        nth = member.cumsum(1)
        compared = member & (nth <= _VOTES)
        enough = compared.sum(1) == np.minimum(_VOTES, size[np.maximum(kind, 0)])
        mean = _mean(np.where(compared, scores, -math.inf))
        better = (kind >= 0) & enough & (nth[:, place] == 1) & (mean > best)
        best, at = np.where(better, mean, best), np.where(better, place, at)
    doubt, known = np.full(len(codes), -math.inf), best > -math.inf
    doubt[known] = best[known] - own_score[known]
    listed = np.flatnonzero(doubt > 0)
    listed = listed[np.lexsort((listed, -doubt[listed]))]
    other = far.rows[listed, at[listed]]
    return Verdicts(listed, other, best[listed], own_score[listed], [UNDECIDED] * len(listed))


def no_verdicts() -> Verdicts:
    """Nothing suspected, nothing said."""
    none = np.empty(0, dtype=np.int64)
    return Verdicts(none, none, np.empty(0), np.empty(0), [])


def joined(first: Verdicts, second: Verdicts) -> Verdicts:
    """The verdicts of both, one after the other."""
    image, other, score, own_score = (
        np.concatenate(pair) for pair in zip(first[:4], second[:4], strict=True)
    )
    return Verdicts(image, other, score, own_score, [*first.verdict, *second.verdict])


def as_verdicts(verdicts: Any, n: int) -> Verdicts:
    """Checked verdicts over n rows.

    Raises:
        ValueError: no `Verdicts`, rows that do not exist, or an unknown word.
    """
    if not isinstance(verdicts, Verdicts):
        raise Refusal("verdicts", type(verdicts).__name__, "Verdicts, of suspected_labels or read_verdicts")
    for name, rows in (("image", verdicts.image), ("other", verdicts.other)):
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" or ((rows < 0) | (rows >= n)).any():
            raise Refusal("verdicts", f"{name} {rows.tolist()[:5]}", f"rows from 0 to {n - 1}")
    for word in verdicts.verdict:
        as_choice(None, "verdicts", word, VERDICTS)
    return verdicts


def _mean(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """The mean of the finite scores of each row; −inf where there is none."""
    finite = np.isfinite(scores)
    count = finite.sum(1)
    total = np.where(finite, scores, 0).sum(1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), -math.inf)
