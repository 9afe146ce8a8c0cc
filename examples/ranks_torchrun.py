"""Training on several ranks under torchrun: each has its own classes of a step, and mines among those of all.

torchrun --standalone --nproc-per-node 2 examples/ranks_torchrun.py [--output out/ranks]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import torch
import torch.distributed as dist
from quickstart import SmallNet, write_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import tercet

EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/ranks"))
    output = parser.parse_args().output
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        write_digits(output / "digits")
    dist.barrier()

    # Every rank has the same labels and seed; rank and world_size say which part of each step is its own.
    catalog = tercet.scan_folder(output / "digits")
    sampler = tercet.PKSampler(catalog.labels, p=5, k=8, seed=0, rank=rank, world_size=world_size)
    loader = DataLoader(tercet.ImageDataset(catalog, return_rows=True), batch_sampler=sampler)

    torch.manual_seed(0)
    model, head = DistributedDataParallel(SmallNet()), tercet.SupCon()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, seen = [], []
    for _ in range(EPOCHS):
        for images, labels, rows in loader:
            embeddings = model(images)
            ids, columns = tercet.gather(embeddings, labels, rows)
            loss = head(embeddings, labels, ids=ids, ref=columns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen.append(rows.tolist())

    print(f"rank {rank} of {world_size}: {len(seen)} batches, loss from {losses[0]:.2f} to {losses[-1]:.2f}")
    result = {"rows": seen, "losses": losses, "weights": model.module.state_dict()}
    torch.save(result, output / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
