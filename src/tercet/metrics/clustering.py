"""Clustering: do k-means clusters of the embeddings agree with the classes?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tercet.core.checks import as_int, label_codes, refusal
from tercet.metrics.inputs import unit_rows

__all__ = ["Clustering", "clustered", "clustering"]


class Clustering(NamedTuple):
    """How well clusters agree with classes.

    Args:
        nmi: normalised mutual information, by the arithmetic mean of both entropies; it grows with the number
            of clusters alone.
        ami: adjusted mutual information: 0 on average for clusters at random.
        ari: adjusted Rand index, likewise.
        f1: F1 of the pairs of images in one cluster against the pairs of one class.
        clusters: k.
        restarts: how many times k-means was started; the run of least inertia counts.

    Example:
        >>> print(Clustering(0.9, 0.85, 0.8, 0.82, clusters=10, restarts=5))
        NMI  0.900
        AMI  0.850
        ARI  0.800
        F1   0.820
        k-means, 10 clusters, best of 5 restarts
    """

    nmi: float
    ami: float
    ari: float
    f1: float
    clusters: int
    restarts: int

    def figures(self) -> dict[str, float]:
        """The figures by name.

        Returns:
            A dict of floats.
        """
        return {"NMI": self.nmi, "AMI": self.ami, "ARI": self.ari, "F1": self.f1}

    def __str__(self) -> str:
        lines = [f"{name:<3}  {value:.3f}" for name, value in self.figures().items()]
        return "\n".join([*lines, f"k-means, {self.clusters} clusters, best of {self.restarts} restarts"])


def clustering(
    embeddings: Any, labels: Any, *, clusters: int | None = None, restarts: int = 10, seed: int = 0
) -> Clustering:
    """NMI, AMI, ARI and pairwise F1 of k-means on the unit vectors, against the classes.

    F1 = 2 TP / (2 TP + FP + FN) over pairs of images: TP in one cluster and of one class, FP in one cluster
    alone, FN of one class alone

    k-means ends in a local optimum that depends on its start, so figures of one start vary by some percent;
    `restarts` says how many starts the best is of.

    Args:
        embeddings: float [n, d] of any length, n ≥ 1; torch or numpy.
        labels: [n] whole numbers, bools or strings.
        clusters: k; None for the number of classes.
        restarts: how many times k-means is started.
        seed: of the starts, below 2³².

    Returns:
        A `Clustering`.

    Raises:
        ValueError: more clusters than images, embeddings that are not finite, or shapes that do not fit.

    Example:
        >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> found = clustering(x, ["a", "a", "b", "b"], restarts=2)
        >>> found.nmi, found.f1
        (1.0, 1.0)

    Reference:
        Manning, Raghavan & Schütze, "Introduction to information retrieval", 2008, chapter 16; Vinh, Epps &
        Bailey, "Information theoretic measures for clusterings comparison", 2010.
    """
    return clustered(embeddings, labels, clusters, restarts, seed)[0]


def clustered(
    embeddings: Any, labels: Any, clusters: int | None, restarts: int, seed: int
) -> tuple[Clustering, dict[str, Float[np.ndarray, " c"]]]:
    """`clustering`, and each figure without each class, in the same clusters: k-means does not run again."""
    caller = "clustering"
    rows = unit_rows(caller, embeddings)
    codes, classes = label_codes(caller, labels)
    if len(codes) != len(rows):
        raise refusal(caller, "labels", f"shape {codes.shape}", f"shape ({len(rows)},)")
    restarts = as_int(caller, "restarts", restarts, minimum=1)
    seed = as_int(caller, "seed", seed, maximum=2**32 - 1)
    k = len(classes) if clusters is None else as_int(caller, "clusters", clusters, 1, len(rows))
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    starts: Any = restarts  # scikit-learn's types know "auto" alone
    assigned = KMeans(k, n_init=starts, random_state=seed).fit_predict(rows.numpy()).astype(np.int64)
    found = Clustering(
        float(normalized_mutual_info_score(codes, assigned)),
        float(adjusted_mutual_info_score(codes, assigned)),
        float(adjusted_rand_score(codes, assigned)),
        _pair_f1(codes, assigned),
        k,
        restarts,
    )
    return found, dict(zip(found.figures(), _without(codes, assigned, found.ami).T, strict=True))


def _pair_f1(classes: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> float:
    """F1 over pairs; 1 where no two images are together in either."""
    width = int(clusters.max()) + 1
    both, own, theirs = (
        int((counts * (counts - 1)).sum())
        for counts in map(np.bincount, (classes * width + clusters, classes, clusters))
    )
    return 2 * both / (own + theirs) if own + theirs else 1.0


def _without(
    classes: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], ami: float
) -> Float[np.ndarray, "c 4"]:
    """NMI, AMI, ARI and F1 of all classes but one, for each class.

    Of images in classes of a, clusters of b and both of n: I = (Σ n ln n − Σ a ln a − Σ b ln b)/N + ln N. The
    information that clusters at random share, which AMI subtracts, is kept as it is.

    Args:
        classes: int64 [n], from 0, none empty.
        clusters: int64 [n].
        ami: of all classes.
    """
    cells, n = np.unique(np.stack([classes, clusters]), axis=1, return_counts=True)
    own, count = cells[0], np.bincount(classes)
    size = np.bincount(clusters)[cells[1]]  # b, of the cluster of each cell

    def rest(f: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        """Σ f(n), Σ f(a) and Σ f(b) without each class [c]."""
        per_class = np.bincount(own, f(n)), f(count), np.bincount(own, f(size) - f(size - n))
        whole = f(n).sum(), f(count).sum(), f(np.bincount(clusters)).sum()
        return [total - part for total, part in zip(whole, per_class, strict=True)]

    left = (len(classes) - count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        both, a, b = (each / left for each in rest(_entropy_term))
        shared, mean = both - a - b + np.log(left), np.log(left) - (a + b) / 2  # I, (H + H)/2
        everything = _mutual_information(classes, clusters)
        # AMI = (I − E)/(H − E): E from the figures of all classes.
        expected = (everything[0] - ami * everything[1]) / (1 - ami) if ami != 1 else 0.0
        nmi, adjusted = shared / mean, (shared - expected) / (mean - expected)
        both, a, b = rest(lambda m: m * (m - 1.0))
        chance = a * b / (left * (left - 1))
        ari, f1 = (both - chance) / ((a + b) / 2 - chance), 2 * both / (a + b)
    return np.stack([nmi, adjusted, ari, f1], 1)


def _mutual_information(
    classes: Int[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """I of classes and clusters, and the mean of their entropies, in nats."""
    n = len(classes)
    cells = np.unique(np.stack([classes, clusters]), axis=1, return_counts=True)[1]
    both, a, b = (
        float(_entropy_term(each).sum()) / n for each in (cells, np.bincount(classes), np.bincount(clusters))
    )
    return both - a - b + math.log(n), math.log(n) - (a + b) / 2


def _entropy_term(m: np.ndarray) -> np.ndarray:
    """m ln m, 0 of 0."""
    return m * np.log(np.maximum(m, 1))
