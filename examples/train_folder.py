"""Train an embedding on any folder of class folders, and measure it on classes that it never saw.

Where classes lie below parent folders (alphabet/character, camera/person, …), each batch takes its classes
from as few parents as it can: the classes that are easiest to confuse meet each other.

    python examples/train_folder.py PATH [--steps 300] [--p 8] [--k 4] [--size 32] [--unseen 0.25]
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

import tercet


class ConvNet(nn.Module):
    """Images [b, 3, s, s] of any size s ≥ 16 to embeddings [b, 64] of unit length."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, out in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(wide, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.layers(images))


def parents(catalog: tercet.Catalog, p: int) -> dict[str, Any]:
    """The sampler's options for classes of as few parents in a batch as have enough of them."""
    if "parent" not in catalog.groups:
        return {}
    parent_of = dict(zip(catalog.labels.tolist(), catalog.groups["parent"].tolist(), strict=True))
    classes = Counter(parent_of.values())  # how many each parent has
    for number in range(1, p + 1):
        if p % number == 0 and sum(count >= p // number for count in classes.values()) >= number:
            return {"super_labels": catalog.groups["parent"], "supers_per_batch": number}
    return {}


@torch.no_grad()
def evaluate(model: nn.Module, catalog: tercet.Catalog, resize: A.Compose) -> str:
    """Recall@1 and MAP@R of a catalog, each image searched among all others."""
    model.eval()
    loader = DataLoader(tercet.ImageDataset(catalog, resize), batch_size=256)
    embeddings = torch.cat([model(images) for images, _ in loader])
    found = tercet.evaluate(embeddings, catalog.labels, k=1)
    return f"Recall@1 {found['Recall@1']:.3f}   MAP@R {found['MAP@R']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="a folder of class folders, nested or not")
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    parser.add_argument("--p", type=int, default=8, help="classes in a batch")
    parser.add_argument("--k", type=int, default=4, help="images of each class in a batch")
    parser.add_argument("--size", type=int, default=32, help="images are resized to size × size")
    parser.add_argument("--unseen", type=float, default=0.25, help="the share of classes kept for measuring")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    options = parser.parse_args()

    catalog = tercet.scan_folder(options.path)
    print(catalog, catalog.left_out_counts() or "")
    shuffled = np.random.default_rng(0).permutation(len(catalog.classes))
    kept_back = shuffled[: max(2, round(options.unseen * len(shuffled)))]
    unseen = catalog.select(np.isin(catalog.labels, kept_back))
    seen = catalog.select(~np.isin(catalog.labels, kept_back))

    resize = A.Resize(options.size, options.size)
    turn = A.Affine(rotate=(-10, 10), scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), p=1)
    sampler = tercet.PKSampler(
        seen.labels, p=options.p, k=options.k, epoch_length=options.steps, seed=0, **parents(seen, options.p)
    )
    dataset = tercet.ImageDataset(seen, A.Compose([resize, turn]), seed=0)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=options.workers)

    torch.manual_seed(0)
    model = ConvNet()
    miner, head = tercet.BatchHard(), tercet.TripletMargin(soft=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    print("unseen classes, untrained:", evaluate(model, unseen, resize))
    model.train()
    for images, labels in track(loader, "training"):
        embeddings = model(images)
        loss = head(embeddings, labels, miner(embeddings, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("unseen classes, trained:  ", evaluate(model, unseen, resize))


if __name__ == "__main__":
    main()
