"""Training on several ranks under Accelerate: it prepares model and optimizer, and not the loader.

    torchrun --standalone --nproc-per-node 2 examples/ranks_accelerate.py [--output out/ranks]

On GPUs `accelerate launch --multi_gpu --num_processes 2` does as well. On CPUs, without MPI, `accelerate
launch --cpu --num_processes 2` starts one process and says nothing: hence torchrun.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import torch
from accelerate import Accelerator
from quickstart import SmallNet, write_digits
from torch.utils.data import DataLoader

import tercet

EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/ranks"))
    output = parser.parse_args().output
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if accelerator.is_main_process:
        write_digits(output / "digits")
    accelerator.wait_for_everyone()

    catalog = tercet.scan_folder(output / "digits")
    sampler = tercet.PKSampler(catalog.labels, p=5, k=8, seed=0, rank=rank, world_size=world_size)
    loader = DataLoader(tercet.ImageDataset(catalog, return_rows=True), batch_sampler=sampler)

    torch.manual_seed(0)
    net, head = SmallNet(), tercet.SupCon()
    # The loader stays out: prepared, each rank would take only some of the batches that are its own already.
    model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=2e-3))
    losses, seen = [], []
    for _ in range(EPOCHS):
        for images, labels, rows in loader:
            labels = labels.to(accelerator.device)
            embeddings = model(images.to(accelerator.device))
            ids, columns = tercet.gather(embeddings, labels, rows.to(accelerator.device))
            loss = head(embeddings, labels, ids=ids, ref=columns)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            seen.append(rows.tolist())

    print(f"rank {rank} of {world_size}: {len(seen)} batches, loss from {losses[0]:.2f} to {losses[-1]:.2f}")
    result = {"rows": seen, "losses": losses, "weights": accelerator.unwrap_model(model).state_dict()}
    torch.save(result, output / f"rank{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
