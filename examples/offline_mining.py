"""Hard negatives of the whole collection, twice: embed, mine, train on the triplets, and again.

The digits of scikit-learn, without three of the ten classes, are embedded by a network that has had one
epoch of random batches. The network trains on hard negatives that are safe; a second round mines with what it
has become. The report says why each candidate is, or is not, a negative, and the drift log how far the second
round is from the first.

    python examples/offline_mining.py [--output out/offline_mining]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import numpy as np
import torch
from quickstart import UNSEEN, SmallNet, write_digits
from torch.utils.data import DataLoader

import tercet

ROUNDS, STEPS = 2, 53  # 53 batches are about a pass over the triplets of a round


def as_given(image: np.ndarray) -> np.ndarray:
    """The pixels of an image from 0 to 1, as the transform of `embed`."""
    return image.astype(np.float32) / 255


def figures(model: torch.nn.Module, catalog: tercet.Catalog, out: Path) -> str:
    """Recall@1 and MAP@R of images that training never saw."""
    embeddings = tercet.embed(model, catalog, out, transform=as_given, workers=0, overwrite=True)
    found = tercet.evaluate(np.asarray(embeddings.array), catalog.labels, k=1)
    return f"Recall@1 {found['Recall@1']:.3f}   MAP@R {found['MAP@R']:.3f}"


def train(model: torch.nn.Module, batches: Iterable[Any], rate: float) -> None:
    """One pass over batches of images and, where there are any, their triplets."""
    head, miner = tercet.TripletMargin(margin=0.2), tercet.SemiHard(margin=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for batch in batches:
        if isinstance(batch, tercet.TripletBatch):
            loss = head(model(batch.images), batch.labels, batch.triplets)
        else:
            images, labels = batch
            embeddings = model(images)
            loss = head(embeddings, labels, miner(embeddings, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/offline_mining"))
    output = parser.parse_args().output
    write_digits(output / "digits")
    catalog = tercet.scan_folder(output / "digits")
    unseen = catalog.select([catalog.classes[label] in UNSEEN for label in catalog.labels])
    seen = catalog.select([catalog.classes[label] not in UNSEEN for label in catalog.labels])
    transform = A.Affine(rotate=(-20, 20), scale=(0.85, 1.15), translate_percent=(-0.1, 0.1), p=1)

    torch.manual_seed(0)
    model = SmallNet()
    print(f"{'untrained':>20}: {figures(model, unseen, output / 'unseen.npy')}")
    sampler = tercet.PKSampler(seen.labels, p=7, k=8, seed=0)
    train(model, DataLoader(tercet.ImageDataset(seen, transform), batch_sampler=sampler), 2e-3)
    print(f"{'after random batches':>20}: {figures(model, unseen, output / 'unseen.npy')}")

    def loader(triplets: tercet.Manifest) -> DataLoader:
        sampler = tercet.AnchorSampler(triplets, anchors=24, images=96)
        return DataLoader(tercet.TripletDataset(triplets, transform), batch_sampler=sampler)

    remining = tercet.Remining(
        model,
        seen,
        output / "rounds",
        every=STEPS,
        embedding={"transform": as_given},
        mining={
            "positives": "easiest",
            "negatives": 2,
            "max_quantile": 0.05,
            "strategy": "random",
            "ranks": (1, 30),
        },
        overwrite=True,
    )
    for number in range(1, ROUNDS + 1):
        train(model, remining.batches(loader), 3e-4)
        print(f"\nround {number}\n{remining.report}")
        drift = remining.drift[-1]
        if drift["changed"] is not None:
            print(
                f"{drift['changed']:.0%} of (anchor, negative) were not in the last round, whose negatives' "
                f"scores had changed by {drift['score_change']:+.3f}; {drift['stale']:.0%} were stale"
            )
        print(f"{f'after round {number}':>20}: {figures(model, unseen, output / 'unseen.npy')}")


if __name__ == "__main__":
    main()
