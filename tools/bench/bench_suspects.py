"""How many planted faults `suspects` finds in a tree of drawings: wrong labels, duplicates and leaks.

    python tools/bench/bench_suspects.py TREE [--seeds 5]

TREE holds alphabet/character/*.png, as Omniglot does. Ten labels are made wrong; ten images are copied, every
second one as JPEG, and five more into a test part. Embeddings are maps of the directions of strokes, which no
network has learned. The last column counts pairs that were not planted, such as scans that are there twice.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

import tercet
from tercet.data.io.images import read_image


def strokes(path: Path) -> np.ndarray:
    """Where strokes of each of eight directions are, in 8 × 8 places of the drawing's own frame."""
    image = 255 - read_image(path)[..., 0].astype(np.float32)
    image[image < 128] = 0  # a JPEG is not quite white
    y, x = np.nonzero(image)
    image = cv2.resize(
        image[y.min() : y.max() + 1, x.min() : x.max() + 1], (32, 32), interpolation=cv2.INTER_AREA
    )
    image = cv2.GaussianBlur(image, (0, 0), 2.0)
    along, across = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    angle, strength = np.arctan2(across, along), np.hypot(along, across)
    maps = [np.maximum(0, np.cos(angle - turn * np.pi / 4)) ** 4 * strength for turn in range(8)]
    small = [
        cv2.resize(cv2.GaussianBlur(one, (0, 0), 1.5), (8, 8), interpolation=cv2.INTER_AREA) for one in maps
    ]
    return np.sqrt(np.maximum(np.stack(small), 0)).ravel()


def copied(source: Path, number: int) -> Path:
    """A copy beside an image: of the same bytes, or every second one as JPEG."""
    target = source.with_name(f"{source.stem}-copy{'.jpg' if number % 2 else '.png'}")
    if number % 2:
        cv2.imwrite(str(target), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, 90])
    else:
        shutil.copyfile(source, target)
    return target


def planted(tree: Path, seed: int) -> list[str]:
    """The figures of one seed."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tree")
        shutil.copytree(tree, root)
        catalog = tercet.scan_folder(root, class_depth=2)
        sources = rng.choice(len(catalog), 15, replace=False)
        made = [
            copied(catalog.file(row), number).relative_to(root).as_posix()
            for number, row in enumerate(sources)
        ]
        catalog = tercet.scan_folder(root, class_depth=2)
        rows = [catalog.paths.tolist().index(path) for path in made]
        x = np.stack([strokes(catalog.file(row)) for row in range(len(catalog))])
        x -= x.mean(0)
        free = np.setdiff1d(np.arange(len(catalog)), rows)
        wrong = rng.choice(free, 10, replace=False)
        labels = catalog.labels.copy()
        labels[wrong] = (labels[wrong] + rng.integers(1, len(catalog.classes), 10)) % len(catalog.classes)
        found = tercet.suspects(x, catalog=replace(catalog, labels=labels), test=rows[10:])
    pairs = {}
    for kind in ("duplicate", "leak"):
        part = found.of(kind)
        pairs[kind] = [{i, j} for i, j in zip(part.image.tolist(), part.other.tolist(), strict=True)]
    duplicates = sum(any(row in pair for pair in pairs["duplicate"]) for row in rows[:10])
    leaks = sum(any(row in pair for pair in pairs["leak"]) for row in rows[10:])
    doubtful = found.of("label").image
    natural = len(pairs["duplicate"]) + len(pairs["leak"]) - duplicates - leaks
    return [
        str(seed),
        *(f"{np.isin(doubtful[:n], wrong).sum()} of 10" for n in (10, 20)),
        f"{duplicates} of 10",
        f"{leaks} of 5",
        str(natural),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    table = Table("seed", "wrong labels in top 10", "in top 20", "duplicates", "leaks", "other pairs listed")
    for seed in range(asked.seeds):
        table.add_row(*planted(asked.tree, seed))
    Console().print(table)


if __name__ == "__main__":
    main()
