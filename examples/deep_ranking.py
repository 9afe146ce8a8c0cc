"""Deep Ranking from end to end: relevance → triplets in a manifest → the three-path network → both metrics.

On the handwritten digits that ship with scikit-learn. How similar two images of a digit are says a teacher:
the cosine of their pixels about the mean image, so sevens with a bar are near each other. The teacher has the
clean pictures; the network only ever sees them turned, moved and rescaled, which an untrained one takes for
other shapes. It learns the teacher's order from triplets, and is measured on images that it never saw.

    python examples/deep_ranking.py [--output out/deep_ranking] [--triplets 20000] [--epochs 3]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import tercet

SIZE = 32  # pixels a side, for the network
PERTURBED = A.Compose(
    [
        A.Resize(SIZE, SIZE),
        A.Affine(rotate=(-20, 20), scale=(0.85, 1.1), translate_percent=(-0.1, 0.1), p=1),
    ]
)
LAW = {"gap": 0.15, "out_of_class": 0.2, "seed": 0}


def write_digits(root: Path) -> tuple[tercet.Catalog, np.ndarray]:
    """Pictures of 8×8 pixels as <root>/<digit>/<number>.png; their catalog and the pixels [n, 64] by row."""
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:04d}.png"), (image * 255 / 16).round().astype("uint8"))
    catalog = tercet.scan_folder(root)
    return catalog, digits.data[[int(Path(path).stem) for path in catalog.paths]]


def sampled(
    labels: np.ndarray, pixels: np.ndarray, count: int
) -> tuple[tercet.TeacherRelevance, tercet.DeepRankingTriplets]:
    """The teacher of some images, and triplets drawn by it."""
    teacher = tercet.TeacherRelevance(pixels - pixels.mean(axis=0))
    return teacher, tercet.DeepRankingTriplets(labels, teacher, count, **LAW)


def network() -> tercet.DeepRankingNet:
    """Images [b, 3, 32, 32] to embeddings [b, 64] of unit length."""
    layers: list[nn.Module] = []
    for wide, out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(wide, out, 3, stride=2, padding=1), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.Flatten())
    return tercet.DeepRankingNet(backbone, image_size=SIZE, embedding_size=64)


@torch.no_grad()
def measure(model: nn.Module, catalog: tercet.Catalog, triplets: tercet.Triplets, name: str) -> None:
    """Both metrics of a catalog; the candidate list of a query is its digit, as for a text query."""
    loader = DataLoader(tercet.ImageDataset(catalog, PERTURBED, seed=1), batch_size=256)
    embeddings = torch.cat([model.eval()(images) for images, _ in loader])
    precision = tercet.similarity_precision(embeddings, triplets)
    score = tercet.score_at_top_k(embeddings, triplets, k=30, groups=catalog.labels)
    print(
        f"  {name:>9}: similarity precision {precision:.3f}"
        f"   score-at-top-30 {score:+,.0f} of {score.counted:,} triplets ({score / score.counted:+.3f})"
    )


def draw(
    path: Path, catalog: tercet.Catalog, teacher: tercet.TeacherRelevance, drawn: tercet.Triplets
) -> None:
    """For one query of each digit: its positive, a negative of the same digit and one of another."""
    labels, rows = catalog.labels, np.stack(drawn, axis=1)  # [t, 3]
    inside = labels[drawn.negative] == labels[drawn.anchor]
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    figure.suptitle("triplets drawn by relevance r to the query, the teacher's cosine within the digit")
    panels = figure.subplots(4, len(catalog.classes))
    titles = ("query", "positive", "negative\nin class", "negative\nout of class")
    for digit in range(len(catalog.classes)):
        # The first query of this digit that has a negative of each kind; none among very few triplets.
        mine = rows[inside & (labels[drawn.anchor] == digit)]
        both = mine[np.isin(mine[:, 0], drawn.anchor[~inside])]
        if not len(both):
            continue
        query, positive, near = both[0]
        far = rows[~inside & (drawn.anchor == query)][0, 2]
        for panel, row, title in zip(panels[:, digit], (query, positive, near, far), titles, strict=True):
            panel.imshow(cv2.imread(str(catalog.file(row)), cv2.IMREAD_GRAYSCALE), cmap="gray_r")
            panel.set(xticks=[], yticks=[])
            if row in (positive, near):
                relevance = teacher.pairs(np.array([query]), np.array([row]))[0]
                panel.set_title(f"r = {relevance:.2f}", fontsize=9)
            if digit == 0:
                panel.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=11)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/deep_ranking"))
    parser.add_argument("--triplets", type=int, default=20_000, help="how many are drawn to train on")
    parser.add_argument("--epochs", type=int, default=3, help="times that they are shown")
    options = parser.parse_args()
    output = options.output

    catalog, pixels = write_digits(output / "digits")
    unseen_rows = np.arange(len(catalog)) % 3 == 0
    seen, unseen = catalog.select(~unseen_rows), catalog.select(unseen_rows)

    # The data side: triplets by relevance, in a file that any program reads.
    teacher, triplets = sampled(seen.labels, pixels[~unseen_rows], options.triplets)
    tercet.write_manifest(output / "triplets.parquet", triplets, seen, overwrite=True)
    manifest = tercet.read_manifest(output / "triplets.parquet", root=output / "digits")
    print(f"{triplets}\nin {output / 'triplets.parquet'}")
    draw(output / "triplets.png", seen, teacher, triplets[:])
    print(f"a few of them: {output / 'triplets.png'}")

    # The training side: all triplets of some anchors in a batch, each of its images embedded once.
    sampler = tercet.AnchorSampler(manifest, anchors=32, per_class=8, seed=0)
    dataset = tercet.TripletDataset(manifest, PERTURBED, seed=0)
    loader = DataLoader(dataset, batch_sampler=sampler)
    torch.manual_seed(0)
    model, head = network(), tercet.TripletMargin(margin=0.2, distance="squared_euclidean")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.001)

    _, held_out = sampled(unseen.labels, pixels[unseen_rows], 20_000)
    print(f"\n{len(held_out):,} triplets of {len(unseen)} images that training never saw:")
    measure(model, unseen, held_out[:], "untrained")
    embedded = 0
    for epoch in range(options.epochs):
        model.train()
        for images, mined, labels, _ in track(loader, f"epoch {epoch + 1} of {options.epochs}"):
            loss = head(model(images), labels, mined)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            embedded += len(images)
    measure(model, unseen, held_out[:], "trained")
    shown = options.epochs * len(manifest)
    print(f"\n{embedded:,} images embedded for {shown:,} triplets: {embedded / shown:.2f} a triplet, not 3")


if __name__ == "__main__":
    main()
