"""Training from tar shards that stops in the middle of an epoch and goes on in another process.

The handwritten digits of scikit-learn are written as shards. A small ConvNet is trained on them twice: once
without a stop, and once stopped after some batches, with a checkpoint of model, optimizer, memory and the
position in the data. A fresh process loads the checkpoint, with another number of workers, and goes on. Both
end with the same weights, bit for bit: with the shards read as a stream, and with rows read at random.

    python examples/resume.py [--output out/resume]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import torch
from quickstart import SmallNet, write_digits
from torch.utils.data import DataLoader

import tercet

EPOCHS, STEPS = 2, 25  # short epochs: 25 batches of 5 classes × 8 images
STOP = 1, 7  # the epoch, and the batches of it that the loop has seen


def data(kind: str, shards: Path, workers: int) -> tuple[Any, DataLoader]:
    """What keeps the position, and a loader."""
    transform = A.Affine(rotate=(-20, 20), scale=(0.85, 1.15), translate_percent=(-0.1, 0.1), p=1)
    if kind == "stream":
        stream = tercet.PKStream(shards, p=5, k=8, transform=transform, steps=STEPS, seed=0)
        return stream, DataLoader(stream, batch_size=None, num_workers=workers)
    index = tercet.ShardIndex(shards)
    sampler = tercet.PKSampler(index.labels, p=5, k=8, epoch_length=STEPS, seed=0)
    dataset = tercet.ImageDataset(index, transform)
    return sampler, DataLoader(dataset, batch_sampler=sampler, num_workers=workers)


def train(kind: str, shards: Path, checkpoint: Path, stop: bool = False, resume: bool = False) -> Any:
    """The weights at the end; with `stop` those of the checkpoint, with `resume` from there on."""
    torch.manual_seed(0)
    model = SmallNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    memory = tercet.CrossBatchMemory(size=200, dim=8)
    miner, head = tercet.BatchHard(), tercet.TripletMargin(margin=0.2)
    # Each makes the same batches, whatever the number of workers.
    position, loader = data(kind, shards, workers=2 if resume else 0)

    first, seen = 0, 0
    if resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        memory.load_state_dict(saved["memory"])
        position.load_state_dict(saved["position"])
        first, seen = saved["position"]["epoch"], saved["position"]["step"]
    model.train()
    for epoch in range(first, EPOCHS):
        for step, (images, labels) in enumerate(loader, seen if epoch == first else 0):
            if stop and (epoch, step) == STOP:
                saved = {"model": model, "optimizer": optimizer, "memory": memory}
                states = {name: part.state_dict() for name, part in saved.items()}
                torch.save({**states, "position": position.state_at(epoch, step)}, checkpoint)
                return model.state_dict()
            embeddings = model(images)
            ids, batch = tercet.gather(embeddings, labels)
            columns = memory.columns(batch)
            mined = miner(embeddings, labels, ids=ids, ref=columns)
            loss = head(embeddings, labels, mined, ref=columns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            memory.update(*batch)
    return model.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/resume"))
    parser.add_argument("--resume", action="store_true", help="what the second process is told")
    options = parser.parse_args()
    output, kinds = options.output, ("stream", "index")
    shards = output / "shards"
    torch.use_deterministic_algorithms(True)

    if options.resume:
        for kind in kinds:
            torch.save(train(kind, shards, output / f"{kind}.pt", resume=True), output / f"{kind}-end.pt")
        return

    write_digits(output / "digits")
    catalog = tercet.scan_folder(output / "digits")
    index = tercet.write_shards(shards, catalog, layout="mixed", images_per_shard=200, overwrite=True)
    print(f"{len(index):,} images in {len(index.tars)} shards")
    whole = {kind: train(kind, shards, output / f"{kind}.pt") for kind in kinds}
    stopped = {kind: train(kind, shards, output / f"{kind}.pt", stop=True) for kind in kinds}
    subprocess.run([sys.executable, __file__, "--resume", "--output", str(output)], check=True)
    for kind in kinds:
        resumed = torch.load(output / f"{kind}-end.pt", weights_only=True)
        went_on = any(not torch.equal(stopped[kind][name], resumed[name]) for name in resumed)
        same = all(torch.equal(whole[kind][name], resumed[name]) for name in resumed)
        print(
            f"{kind:>6}: stopped after {STOP[0] * STEPS + STOP[1]} of {EPOCHS * STEPS} batches, resumed with "
            f"2 workers; weights {'equal, bit for bit' if same and went_on else 'DIFFER'}"
        )
        if not (same and went_on):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
