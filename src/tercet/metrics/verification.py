"""Verification: are two images of one class? Figures of all pairs, exact, in bounded memory.

The similarities of positive pairs are sorted; those of negative pairs stream past them, and only how many lie
above each positive is kept. So ROC, AUC, EER and TAR@FAR are exact, and no list of negatives is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tercet.core.checks import as_float, refusal
from tercet.core.indices import References
from tercet.metrics.compared import ComparedPairs, compared
from tercet.metrics.roc_tables import RocTables

__all__ = ["Verification", "verification"]

_MOST = 2**25  # positive pairs, whose similarities are held
_RATES = (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Verification:
    """How well a threshold on the similarity tells positive pairs from negative ones.

    Args:
        auc: the area under the ROC: P(positive > negative) + ½ P(positive = negative).
        eer: the error rate where as many positives are rejected as negatives are accepted.
        tar: TAR@FAR by FAR: the largest share of positives accepted by a threshold that accepts at most
            that share of negatives. FNMR@FMR is 1 less it.
        p_exceeds: P(negative ≥ positive), what the histogram loss estimates.
        positives: how many positive pairs there are.
        negatives: how many negative pairs.
        curve: float64 [m, 2], FAR and TAR along the ROC, some thousand points of it.
        without: each figure without each class, float64 [c]: what its interval is made of.

    Example:
        >>> found = Verification(0.9, 0.1, {0.01: 0.75}, 0.1, 40, 5000)
        >>> print(found)
        ROC-AUC                 0.900
        EER                     0.100
        TAR@FAR=0.01            0.750
        P(negative ≥ positive)  0.100
        40 positive and 5,000 negative pairs
        >>> found.fnmr
        {0.01: 0.25}
    """

    auc: float
    eer: float
    tar: Mapping[float, float]
    p_exceeds: float
    positives: int
    negatives: int
    curve: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    without: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def fnmr(self) -> dict[float, float]:
        """FNMR@FMR by FMR: the share of positives that is rejected."""
        return {rate: 1 - share for rate, share in self.tar.items()}

    def figures(self) -> dict[str, float]:
        """The figures by name.

        Returns:
            A dict of floats.
        """
        tar = {f"TAR@FAR={rate:g}": share for rate, share in self.tar.items()}
        exceeds = {"P(negative ≥ positive)": self.p_exceeds}
        return {"ROC-AUC": self.auc, "EER": self.eer, **tar, **exceeds}

    def __str__(self) -> str:
        named = self.figures()
        width = max(map(len, named))
        lines = [f"{name:<{width}}  {value:.3f}" for name, value in named.items()]
        return "\n".join([*lines, f"{self.positives:,} positive and {self.negatives:,} negative pairs"])


@torch.no_grad()
def verification(
    embeddings: Any,
    labels: Any,
    far: float | Iterable[float] | None = None,
    *,
    ids: Any = None,
    ref: References | None = None,
    groups: Any = None,
    exclude: str | None = None,
    ignore: Any = None,
    distractors: Any = None,
) -> Verification:
    """ROC-AUC, EER, TAR@FAR and FNMR@FMR by the cosine similarity over all pairs of images, each pair once.

    TAR(θ) = P(s ≥ θ | positive), FAR(θ) = P(s ≥ θ | negative), TAR@FAR=f = max {TAR(θ) : FAR(θ) ≤ f}

    The EER is where the ROC, with lines between its points, meets FAR = 1 − TAR. Similarities are computed in
    float64 and compared as multiples of 2⁻²⁴, so that equal pairs are equal. The positive similarities are
    sorted and held, at most 2²⁵ of them; negatives stream past them. Both take about n² d operations.

    Args:
        embeddings: float [n, d] of any length, torch or numpy.
        labels: [n] whole numbers, bools or strings.
        far: false accept rates, one or several; None for those of 0.1, 0.01, … 1e-6 that there are enough
            negative pairs for.
        ids: [n] integers, which image each row is; an image is no pair with itself.
        ref: the gallery, torch or numpy: each query makes a pair with each of its images; None for the pairs
            of the embeddings themselves.
        groups: [n] whole numbers or strings, the camera or session of each image; with `ref` two such
            columns, [n] and [r].
        exclude: which pairs are left out, with `groups`: `"group positives"`, those of one class and one
            group, the default; or `"group"`, all those of one group.
        ignore: a label, or several, of junk: such images are in no pair.
        distractors: a label, or several, of images of no class: they make negative pairs with all others, and
            none with each other.

    Returns:
        A `Verification`; figures are NaN where there are no pairs of either kind.

    Raises:
        ValueError: a rate f for which there are fewer than 10/f negative pairs, more positive pairs than are
            held, or embeddings that are not finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.9]])
        >>> print(verification(x, [0, 0, 1, 1], far=[]))
        ROC-AUC                 0.750
        EER                     0.500
        P(negative ≥ positive)  0.250
        2 positive and 4 negative pairs

    Reference:
        Phillips, Moon, Rizvi & Rauss, "The FERET evaluation methodology for face-recognition algorithms",
        2000.
    """
    caller = "verification"
    pairs = compared(caller, embeddings, labels, ids, ref, groups, exclude, ignore, distractors)
    positives, negatives = pairs.counts()
    rates = _rates(caller, far, negatives)
    if positives > _MOST:
        hint = "take a sample of the images of each class"
        raise refusal(caller, "labels", f"{positives} positive pairs", f"at most {_MOST}", hint)
    if not positives or not negatives:
        nothing = dict.fromkeys(rates, math.nan)
        return Verification(math.nan, math.nan, nothing, math.nan, positives, negatives)
    similar = _positive_similarities(pairs)
    marks, which = np.unique(similar, return_inverse=True)
    tables = RocTables(pairs, similar)
    above, upto = _past(pairs, marks, tables)
    rest = negatives - upto
    beats = (rest + (upto - above) / 2) / negatives  # of each mark, P(negative below it) + ½ P(equal)
    held = np.bincount(which, minlength=len(marks))
    accepted = held[::-1].cumsum()[::-1] / positives  # TAR at each mark
    tar = {rate: float(accepted[upto <= rate * negatives].max(initial=0.0)) for rate in rates}
    curve = _roc(above / negatives, upto / negatives, accepted)
    found = Verification(
        float(held @ beats / positives),
        _equal_error(curve),
        tar,
        float(held @ (upto / negatives) / positives),
        positives,
        negatives,
        curve[np.unique(np.linspace(0, len(curve) - 1, 4000).round().astype(int))],
    )
    return replace(found, without=dict(zip(found.figures(), tables.without(rates).T, strict=True)))


def _rates(caller: str, far: Any, negatives: int) -> list[float]:
    if far is None:
        return [rate for rate in _RATES if negatives >= 10 / rate]
    several = isinstance(far, Iterable) and getattr(far, "ndim", 1) > 0 and not isinstance(far, str)
    rates = [as_float(caller, "far", each, 0, 1) for each in (far if several else [far])]
    for rate in rates:
        if not rate or negatives < 10 / rate:
            expected = f"a rate of at least {10 / max(negatives, 1):.3g}"
            hint = f"10/FAR negative pairs are needed, and there are {negatives:,}"
            raise refusal(caller, "far", rate, expected, hint)
    return rates


def _rounded(similar: Float[Tensor, "a r"]) -> Float[Tensor, "a r"]:
    """Multiples of 2⁻²⁴, as whole numbers in float32: a product's last bits tell nothing."""
    return (similar * 2**24).round_().float()


def _positive_similarities(pairs: ComparedPairs) -> Float[np.ndarray, " p"]:
    """The similarity of each positive pair."""
    return np.concatenate([_rounded(each.similar)[each.positive].numpy() for each in pairs.positives()])


def _past(
    pairs: ComparedPairs, marks: Float[np.ndarray, " m"], tables: RocTables
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """How many negative pairs are above each mark, and how many at it or above; all go into the tables."""
    above, upto = np.zeros(len(marks), np.int64), np.zeros(len(marks), np.int64)
    for block in pairs.blocks():
        steps = _rounded(block.similar)
        tables.add(block, steps)
        values = np.sort(steps.masked_fill_(~block.negative, -math.inf).view(-1).numpy())
        above += len(values) - np.searchsorted(values, marks, "right")
        upto += len(values) - np.searchsorted(values, marks, "left")
    return above, upto


def _roc(
    above: Float[np.ndarray, " m"], upto: Float[np.ndarray, " m"], accepted: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "l 2"]:
    """The points (FAR, TAR) of the ROC from (0, 0) to (1, 1): before and at each mark, from the highest."""
    before = np.concatenate([accepted[1:], [0.0]])  # TAR just above each mark
    points = np.stack([np.stack([above, before], 1), np.stack([upto, accepted], 1)], 1)[::-1]  # [m, 2, 2]
    return np.concatenate([[[0.0, 0.0]], points.reshape(-1, 2), [[1.0, 1.0]]])


def _equal_error(curve: Float[np.ndarray, "l 2"]) -> float:
    """Where the ROC meets FAR = 1 − TAR."""
    gap = curve[:, 0] + curve[:, 1] - 1  # rises from −1 to 1
    i = int(np.argmax(gap >= 0))
    share = -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(curve[i - 1, 0] + share * (curve[i, 0] - curve[i - 1, 0]))
