"""Training from a stream: class folders → tar shards → P×K batches by several workers → a trained embedding.

The handwritten digits that ship with scikit-learn are written out as class folders, and those as tar shards
that webdataset reads. A small ConvNet is trained on seven of the ten classes from a stream that reads the
shards from front to back; what it is worth is measured on the three it never saw, read from their shards by
offset. How much of the stream ends in batches is predicted before, and counted after.

    python examples/streaming.py [--output out/streaming] [--workers 2] [--epochs 6]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import torch
from quickstart import UNSEEN, SmallNet, embed, write_digits
from rich.progress import track
from torch.utils.data import DataLoader

import tercet

LANES = 2  # parts of the shards, each with a buffer: batches depend on it, and not on the number of workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/streaming"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    write_digits(options.output / "digits")

    # Two splits in one folder. Of few classes with many images each, "mixed" puts all into every shard; of
    # many classes with few images each, "by_class" keeps a class in one shard, and its images side by side.
    catalog = tercet.scan_folder(options.output / "digits")
    unseen = [catalog.classes[label] in UNSEEN for label in catalog.labels]
    parts = {"train": catalog.select([not each for each in unseen]), "unseen": catalog.select(unseen)}
    folder = options.output / "shards"
    train, test = (
        tercet.write_shards(folder, part, layout="mixed", images_per_shard=110, split=name, overwrite=True)
        for name, part in parts.items()
    )
    print(f"{train} and {test} in {folder}")

    transform = A.Affine(rotate=(-20, 20), scale=(0.85, 1.15), translate_percent=(-0.1, 0.1), p=1)
    stream = tercet.PKStream(train.tars, 7, 8, transform, lanes=LANES, seed=0, return_keys=True)
    loader = DataLoader(stream, batch_size=None, num_workers=options.workers)

    torch.manual_seed(0)
    model = SmallNet()
    miner, head = tercet.SemiHard(margin=0.2), tercet.TripletMargin(margin=0.2)
    optimizer = torch.optim.AdamW(model.parameters())
    steps = options.epochs * len(stream)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    before = embed(model, test)
    used = []
    for epoch in range(options.epochs):
        model.train()
        came = set()
        for images, labels, keys in track(loader, f"epoch {epoch + 1} of {options.epochs}"):
            embeddings = model(images)
            loss = head(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            came.update(keys)
        used.append(len(came) / len(train))
    after = embed(model, test)

    predicted = stream.predicted
    print(f"\n{len(stream)} batches of {stream.p} classes × {stream.k} an epoch; of the images in batches")
    print(f"  predicted {predicted.share:.3f}   counted {sum(used) / len(used):.3f}")
    print(f"The {len(test)} images of {', '.join(UNSEEN)}, classes that training never saw:")
    for name, embeddings in (("untrained", before), ("trained", after)):
        found = tercet.evaluate(embeddings, test.labels, k=1)
        print(f"  {name:>9}: Recall@1 {found['Recall@1']:.3f}   MAP@R {found['MAP@R']:.3f}")


if __name__ == "__main__":
    main()
