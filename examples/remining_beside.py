"""Re-mining in a process beside training, which goes on meanwhile: weights one way, rounds the other.

Both processes build the same `Remining`; one iterates over its batches, the other serves. The second may run
on another device, or on another machine that sees the folder. Here the first starts it.

    python examples/remining_beside.py [--output out/remining_beside]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import torch
from quickstart import SmallNet, write_digits
from torch.utils.data import DataLoader

import tercet

EVERY, STEPS = 20, 80


def loader(triplets: tercet.Manifest) -> DataLoader:
    """The batches of a round."""
    sampler = tercet.AnchorSampler(triplets, anchors=24, images=96)
    return DataLoader(tercet.TripletDataset(triplets), batch_sampler=sampler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/remining_beside"))
    parser.add_argument("--serve", action="store_true", help="be the process that mines")
    options = parser.parse_args()
    if not options.serve:
        write_digits(options.output / "digits")

    torch.manual_seed(0)
    model = SmallNet()
    remining = tercet.Remining(
        model,
        tercet.scan_folder(options.output / "digits"),
        options.output / "rounds",
        every=EVERY,
        beside="wait",
        embedding={"transform": None},
        mining={"positives": "easiest", "negatives": 2, "max_quantile": 0.05, "on_short": "random"},
        patience=300,
    )
    if options.serve:
        remining.serve(steps=STEPS)
        return

    miner = subprocess.Popen([sys.executable, __file__, "--serve", "--output", str(options.output)])
    head, optimizer = tercet.TripletMargin(margin=0.2), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for images, triplets, labels, _ in remining.batches(loader, steps=STEPS):
        loss = head(model(images), labels, triplets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    miner.wait()
    for row in remining.drift:
        print(f"round {row['round']}: weights of step {row['step']}, trained on from step {row['from_step']}")


if __name__ == "__main__":
    main()
