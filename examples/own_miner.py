"""A miner of one's own: for every pair of a class, the k-th nearest image of another class.

A miner is a frozen dataclass with `select`. It gets the batch as a `Pairwise`: tiles of distances with masks,
a few rows at a time, so that memory stays bounded. It returns row numbers, and every head takes them.

    python examples/own_miner.py

prints

    96 triplets, the first: (0, 1, 5)
    they are those of a loop: True
    loss 0.588
"""

from dataclasses import dataclass

import torch

import tercet


# %% The rule.
@dataclass(frozen=True)
class KthNegative(tercet.Miner):
    """(a, p, n) for every positive pair, n the k-th nearest negative of a."""

    k: int = 3

    def select(self, pairwise, step):
        parts = []
        for tile in pairwise.tiles():
            distance = tile.distance.masked_fill(~tile.negative, torch.inf)  # [a, r]
            kth = distance.argsort(dim=1, stable=True)[:, self.k - 1]
            enough = tile.negative.sum(1) >= self.k
            anchor, positive = (tile.positive & enough[:, None]).nonzero(as_tuple=True)
            parts.append(torch.stack([anchor + tile.start, positive, kth[anchor]]))
        return tercet.Triplets(*torch.cat(parts, dim=1))


# %% A batch of 8 classes × 4 images.
torch.manual_seed(0)
embeddings = torch.nn.functional.normalize(torch.randn(32, 8))
labels = torch.arange(8).repeat_interleave(4)
mined = KthNegative(k=3)(embeddings, labels)
print(f"{mined.count} triplets, the first: {tuple(int(part[0]) for part in mined)}")

# %% The same by a loop.
looped = []
for a in range(32):
    others = [n for n in range(32) if labels[n] != labels[a]]
    others.sort(key=lambda n, a=a: float((embeddings[a] - embeddings[n]).norm()))
    looped += [(a, p, others[2]) for p in range(32) if p != a and labels[p] == labels[a]]
print("they are those of a loop:", looped == list(zip(*(part.tolist() for part in mined), strict=True)))

# %% Any head takes them.
print(f"loss {float(tercet.TripletMargin(margin=0.2)(embeddings, labels, mined)):.3f}")
