#!/usr/bin/env python
"""How many of ten wrong labels, planted at random, are among the first twenty rows of the table of suspects.

    python tools/bench/bench_wrong_labels.py [TREE] [--seeds 10] [--markdown tools/bench/RESULTS.md]

The embeddings are no model's: pixels of scikit-learn's digits, and of TREE, a folder of class folders of
drawings such as Omniglot's, the ink cut out and blurred. A trained model should give no less.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
from page import table, told, write_section

import tercet

PLANTED, FIRST = 10, 20
SIDE, BLUR = 28, 2.0
ABOUT = """
Ten images, drawn at random, get the label of another class; `suspected_labels` lists images that look like
another class, the most doubtful first. The table tells how many of the ten are among the first twenty rows:
the median, the least and the most over seeds. Embeddings are pixels, not a model's: of scikit-learn's
digits as they are, of the drawings of TREE cut out, scaled to 28 × 28 and blurred. *1-NN* is the share of
images whose nearest other image is of their class, before labels are changed.
"""


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images of 8 × 8 pixels of ten classes."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return x.astype(np.float32), labels


def drawings(tree: Path) -> tuple[np.ndarray, np.ndarray]:
    """Drawings of dark ink on white: cut out, made square, scaled, blurred, less their mean."""
    catalog = tercet.scan_folder(tree)
    found = []
    for path in catalog.paths:
        ink = 255 - cv2.imread(str(Path(catalog.root) / path), cv2.IMREAD_GRAYSCALE)
        rows, columns = np.nonzero(ink)
        ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        height, width = ink.shape
        side = max(height, width)
        square = np.zeros((side, side), np.float32)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = ink
        small = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(np.pad(small, 4), (0, 0), BLUR)
        found.append((small - small.mean()).ravel())
    return np.stack(found), np.asarray(catalog.labels)


def planted(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which ten are wrong, and which."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), PLANTED, replace=False)
    given, classes = labels.copy(), int(labels.max()) + 1
    given[wrong] = (given[wrong] + rng.integers(1, classes, PLANTED)) % classes
    return given, wrong


def found_of(x: np.ndarray, labels: np.ndarray, seeds: int) -> list[int]:
    """How many of the planted labels the first rows hold, for each seed."""
    counts = []
    for seed in range(seeds):
        given, wrong = planted(labels, seed)
        counts.append(int(np.isin(tercet.suspected_labels(x, given).image[:FIRST], wrong).sum()))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted wrong labels among the first suspects.")
    parser.add_argument("tree", type=Path, nargs="?", help="a folder of class folders of drawings")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    heads, lines = ["images", "N", "classes", "1-NN", "median", "least", "most"], []
    given = {"digits": digits()} | ({"drawings of TREE": drawings(options.tree)} if options.tree else {})
    for name, (x, labels) in given.items():
        nearest = tercet.nearest(x, k=1, distance="cosine").rows[:, 0]
        counts = found_of(x, labels, options.seeds)
        shares = [f"{(labels[nearest] == labels).mean():.3f}", f"{np.median(counts):g}"]
        sizes = [f"{len(x):,}", f"{labels.max() + 1:,}"]
        lines.append([name, *sizes, *shares, str(min(counts)), str(max(counts))])
        print(*(f"{field:>16}" for field in lines[-1]), flush=True)
    if options.markdown:
        words = ["TREE" if options.tree and word == str(options.tree) else word for word in sys.argv[1:]]
        command = shlex.join(["python", "tools/bench/bench_wrong_labels.py", *words])
        text = [
            "## Planted wrong labels",
            f"{told()} Regenerate with `{command}`.",
            " ".join(ABOUT.split()),
            table(heads, lines),
        ]
        write_section(options.markdown, "wrong labels", "\n\n".join(text))


if __name__ == "__main__":
    main()
