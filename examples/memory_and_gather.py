"""Negatives from beyond the batch: those of other ranks (`gather`) and of past batches (`CrossBatchMemory`).

Two processes each take half of every P×K batch. Each mines its own rows against the rows of both and against
the memory; the loss of the two is that of one process with the whole batch.

    python examples/memory_and_gather.py

prints

    two ranks, 24 rows each, 48 columns: the mean of their losses 0.712, one process 0.712
    with a memory of 3 past batches: 192 columns, hardest negatives at 0.77 instead of 0.89
"""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import tercet

RANKS = 2
miner, head = tercet.BatchHard(), tercet.TripletMargin(margin=0.2, reduction="mean")


# %% A step of the epoch: 12 classes × 4 images of made-up embeddings; a rank has 6 of the classes.
def batch(step):
    labels = torch.arange(12).repeat_interleave(4)
    torch.manual_seed(step)
    x = torch.nn.functional.one_hot(labels, 12) + 0.6 * torch.randn(48, 12)
    return torch.nn.functional.normalize(x), labels


# %% What a rank does.
def rank_main(rank, port, losses):
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=RANKS)
    x, labels = (part.chunk(RANKS)[rank] for part in batch(0))
    ids, columns = tercet.gather(x, labels)  # ids keep a row from being its own positive
    mined = miner(x, labels, ids=ids, ref=columns)
    losses[rank] = head(x, labels, mined, ids=ids, ref=columns).detach()
    dist.destroy_process_group()


# %% Two ranks beside one process, then a memory.
if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    losses = torch.zeros(RANKS).share_memory_()
    mp.spawn(rank_main, (port, losses), nprocs=RANKS)
    x, labels = batch(0)
    whole = float(head(x, labels, miner(x, labels)))
    shown = f"the mean of their losses {float(losses.mean()):.3f}, one process {whole:.3f}"
    print(f"two ranks, {48 // RANKS} rows each, 48 columns: {shown}")

    # Columns with a memory: the batch of all ranks first (here of this process), then the past batches.
    memory = tercet.CrossBatchMemory(size=144, dim=12)
    for step in (1, 2, 3):
        memory.update(*batch(step))
    ids, own = tercet.gather(x, labels)
    columns = memory.columns(own)
    far, near = miner(x, labels, ids=ids, ref=columns), miner(x, labels)
    with_memory = (x[far.anchor] - columns.embeddings[far.negative]).norm(dim=1).mean()
    without = (x[near.anchor] - x[near.negative]).norm(dim=1).mean()
    print(f"with a memory of 3 past batches: {len(columns.embeddings)} columns, ", end="")
    print(f"hardest negatives at {with_memory:.2f} instead of {without:.2f}")
