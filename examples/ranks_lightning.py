"""Training on several ranks under Lightning: use_distributed_sampler=False, and the sampler knows its rank.

python examples/ranks_lightning.py [--output out/ranks]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import lightning
import torch
from quickstart import SmallNet, write_digits
from torch.utils.data import DataLoader

import tercet

EPOCHS = 2


class Embedding(lightning.LightningModule):
    """The ConvNet, the head, and the loader of this rank."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.net, self.head = root, SmallNet(), tercet.SupCon()
        self.losses: list[float] = []
        self.seen: list[list[int]] = []

    def prepare_data(self) -> None:  # on one rank of each machine, before the others go on
        write_digits(self.root)

    def train_dataloader(self) -> DataLoader:
        catalog = tercet.scan_folder(self.root)
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        sampler = tercet.PKSampler(catalog.labels, p=5, k=8, seed=0, **ranks)
        return DataLoader(tercet.ImageDataset(catalog, return_rows=True), batch_sampler=sampler)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels, rows = batch
        embeddings = self.net(images)
        ids, columns = tercet.gather(embeddings, labels, rows)
        loss = self.head(embeddings, labels, ids=ids, ref=columns)
        self.losses.append(loss.item())
        self.seen.append(rows.tolist())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/ranks"))
    output = parser.parse_args().output
    lightning.seed_everything(0, verbose=False)
    module = Embedding(output / "digits")
    trainer = lightning.Trainer(
        use_distributed_sampler=False,  # else it refuses PKSampler, and replaces ShuffledSampler by its own
        strategy="ddp",
        accelerator="cpu",
        devices=2,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)

    rank, losses = trainer.global_rank, module.losses
    shown = f"{len(module.seen)} batches, loss from {losses[0]:.2f} to {losses[-1]:.2f}"
    print(f"rank {rank} of {trainer.world_size}: {shown}")
    result = {"rows": module.seen, "losses": losses, "weights": module.net.state_dict()}
    torch.save(result, output / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
