"""The main job from end to end: class folders → triplet manifest → P×K batches → a trained embedding.

Real images, the handwritten digits that ship with scikit-learn, are written out as class folders. A small
ConvNet is trained on seven of the ten classes; what it is worth is measured on the three it never saw.

    python examples/quickstart.py [--output out/quickstart]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import cv2
import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import tercet
from tercet.reports.similarities import plot_similarities

UNSEEN = ["7", "8", "9"]
EPOCHS = 3


def write_digits(root: Path) -> None:
    """1797 pictures of 8×8 pixels as <root>/<digit>/<number>.png."""
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:04d}.png"), (image * 255 / 16).round().astype("uint8"))


class SmallNet(nn.Module):
    """Images [b, 3, 8, 8] to embeddings [b, 8] of unit length."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, out in ((3, 32), (32, 32), (32, 64)):
            layers += [nn.Conv2d(wide, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if wide != 3 else []
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 2 * 2, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.layers(images))


@torch.no_grad()
def embed(model: nn.Module, catalog: tercet.Catalog) -> torch.Tensor:
    """Embeddings [n, 8] of a catalog, without augmentation."""
    model.eval()
    loader = DataLoader(tercet.ImageDataset(catalog), batch_size=256)
    return torch.cat([model(images) for images, _ in loader])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/quickstart"))
    output = parser.parse_args().output
    write_digits(output / "digits")

    # Triplets for a program that wants them from a file.
    manifest = output / "triplets.parquet"
    command = ["make-triplets", "random", str(output / "digits"), str(manifest), "--overwrite"]
    options = ["--positives", "5", "--negatives", "5", "--quiet"]
    subprocess.run([sys.executable, "-m", "tercet.cli", *command, *options], check=True)
    print(f"{len(tercet.read_manifest(manifest)):,} triplets in {manifest}")

    # Training needs no file: the sampler decides which images meet, the miner which of those count.
    catalog = tercet.scan_folder(output / "digits")
    unseen = catalog.select([catalog.classes[label] in UNSEEN for label in catalog.labels])
    seen = catalog.select([catalog.classes[label] not in UNSEEN for label in catalog.labels])
    transform = A.Affine(rotate=(-20, 20), scale=(0.85, 1.15), translate_percent=(-0.1, 0.1), p=1)
    sampler = tercet.PKSampler(seen.labels, p=7, k=8, seed=0)
    loader = DataLoader(tercet.ImageDataset(seen, transform, seed=0), batch_sampler=sampler)

    torch.manual_seed(0)
    model = SmallNet()
    miner, head = tercet.SemiHard(margin=0.2), tercet.TripletMargin(margin=0.2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=EPOCHS * len(loader))
    before = embed(model, unseen)
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in track(loader, f"epoch {epoch + 1} of {EPOCHS}"):
            embeddings = model(images)
            loss = head(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    after = embed(model, unseen)

    print(f"\nThe {len(unseen)} images of {', '.join(UNSEEN)}, classes that training never saw:")
    for name, embeddings in (("untrained", before), ("trained", after)):
        found = tercet.evaluate(embeddings, unseen.labels, k=1)
        print(f"  {name:>9}: Recall@1 {found['Recall@1']:.3f}   MAP@R {found['MAP@R']:.3f}")
    picture = output / "similarities.png"
    plot_similarities(
        picture, {"unseen, untrained": before, "unseen, trained": after}, unseen.labels, overwrite=True
    )
    print(f"similarities of positive and negative pairs: {picture}")


if __name__ == "__main__":
    main()
