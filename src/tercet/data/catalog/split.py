"""`train_validation_split`: by image within each class, or by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import as_choice, as_float, as_seed, label_codes, refusal
from tercet.core.randomness import derive_key, keyed_bits

__all__ = ["train_validation_split"]


def train_validation_split(
    labels: Any, fraction: float, seed: int = 0, by: str = "image"
) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " v"]]:
    """Split rows into training and validation; every row is in exactly one of the two.

    By image, every class is split: of its n images, round(fraction · n) are for validation (halves to even),
    but never all, so a class of one image is for training. By class, all images of some classes are for
    validation, an open set: round(fraction · classes) of them, at least one and never all.

    Args:
        labels: [n] the class of each image, whole numbers or strings.
        fraction: the share for validation, above 0 and below 1.
        seed: a whole number of at least 0; another seed gives another split.
        by: "image" or "class".

    Returns:
        Two arrays of row numbers, ascending; `catalog.select(rows)` is the catalog of each.

    Raises:
        ValueError: a fraction out of range, an unknown `by`, a single class with `by="class"`, or classes so
            small that no image is for validation.

    Example:
        >>> train, validation = train_validation_split(["ant"] * 5 + ["bee"] * 10, fraction=0.2)
        >>> len(train), (validation < 5).sum(), (validation >= 5).sum()
        (12, np.int64(1), np.int64(2))
    """
    caller = "train_validation_split"
    codes, classes = label_codes(caller, labels)
    fraction = as_float(caller, "fraction", fraction, 0, 1)
    if fraction in (0, 1):
        raise refusal(caller, "fraction", fraction, "a number between 0 and 1, neither of them")
    seed = as_seed(caller, seed)
    by = as_choice(caller, "by", by, ("image", "class"))
    if by == "class":
        if len(classes) < 2:
            raise refusal(caller, "labels", f"{len(codes)} images of 1 class", "two classes or more to part")
        wanted = np.clip(np.rint(fraction * len(classes)), 1, len(classes) - 1)
        bits = keyed_bits(derive_key(caller, by, seed), np.arange(len(classes)))
        apart = np.argsort(np.argsort(bits, kind="stable")) < wanted  # by class
        validation = apart[codes]
    else:
        sizes = np.bincount(codes)
        wanted = np.minimum(np.rint(fraction * sizes), sizes - 1)
        if not wanted.any():
            found, expected = f"{len(codes)} images of {len(classes)} classes", "a class with images to spare"
            hint = f"the largest has {sizes.max()} images; raise fraction or split by class"
            raise refusal(caller, "labels", found, expected, hint)
        bits = keyed_bits(derive_key(caller, by, seed), np.arange(len(codes)))
        order = np.lexsort((bits, codes))
        nth = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[codes[order]]  # within the class
        validation = np.empty(len(codes), dtype=bool)
        validation[order] = nth < wanted[codes[order]]
    return np.flatnonzero(~validation), np.flatnonzero(validation)
