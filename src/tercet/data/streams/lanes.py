"""Which shards the lanes of all ranks read, in which order, and what that gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tercet.core.checks import refusal
from tercet.core.randomness import derive_key, permute
from tercet.data.streams.pk_stage import PKStage
from tercet.data.streams.sources import KnownShard
from tercet.data.streams.yield_prediction import StreamYield, gives_batch, play

__all__ = ["REACHES", "Lanes"]

REACHES = 4
_LEAST = 0.1  # the share of samples in batches below which a stream is refused


@dataclass(frozen=True)
class Lanes:
    """Shards that are dealt to ranks and then to lanes, anew each epoch.

    Args:
        shards: their addresses.
        count: lanes of each rank.
        world_size: the number of ranks.
        seed: names the orders.

    Raises:
        ValueError: fewer shards than the lanes of all ranks need.

    Example:
        >>> lanes = Lanes(["a", "b", "c", "d"], count=2, world_size=2, seed=0)
        >>> sorted(lanes.order(0, rank, lane)[0] for rank in range(2) for lane in range(2))
        ['a', 'b', 'c', 'd']
    """

    shards: list[str]
    count: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        number, ranks = len(self.shards), self.world_size
        if number < ranks:
            expected = f"at most as many as shards, and there are {number}"
            hint = "use fewer ranks or write smaller shards"
            raise refusal("PKStream", "world_size", ranks, expected, hint)
        if number < self.count * ranks:
            expected = f"at most as many as shards, and there are {number}"
            expected += f" on {ranks} ranks" if ranks > 1 else ""
            raise refusal("PKStream", "lanes", self.count, expected, "lower lanes or write smaller shards")

    def order(self, epoch: int, rank: int, lane: int, lap: int = 0, reach: int = 0) -> list[str]:
        """The shards of one pass of a lane.

        Args:
            epoch, rank, lane: whose pass it is.
            lap: which pass, in an order of its own.
            reach: over which shards: 0 those of the lane, 1 those of its rank, 2 all; 3 all by name, the
                order in which `predict` has seen that they give a batch.
        """
        if reach >= REACHES - 1:
            return list(self.shards)
        key = derive_key("PKStream shards", self.seed, epoch)
        places = permute(np.arange(len(self.shards)), len(self.shards), key)
        if reach < 2:
            places = places[rank :: self.world_size]
        if reach < 1:
            places = places[lane :: self.count]
        if lap:
            places = places[permute(np.arange(len(places)), len(places), derive_key(key, rank, lane, lap))]
        return [self.shards[place] for place in places.tolist()]

    def predict(self, stage: PKStage, known: dict[str, KnownShard]) -> StreamYield:
        """What an epoch gives, by the labels of the shards: as many steps as one pass makes, on each rank.

        Raises:
            ValueError: nearly nothing, or no batch even of all shards.
        """
        labels = {shard: one.labels for shard, one in known.items() if one.labels is not None}
        number = sum(map(len, labels.values()))
        if not number:
            raise refusal("PKStream", "shards", self.shards[0], "samples with an image and a label")
        names = ("p", "k", "buffer", "cap", "on_short")
        made = {name: getattr(stage, name) for name in names}
        parts = [
            [labels[shard] for shard in self.order(0, rank, lane)]
            for rank in range(self.world_size)
            for lane in range(self.count)
        ]
        image_bytes = sum(one.image_bytes for one in known.values()) / number
        found = play(parts, made, image_bytes * self.count, self.seed, lanes=self.count)
        told = f"PKStream(p={stage.p}, k={stage.k}, buffer={stage.buffer}, lanes={self.count})"
        if found.share < _LEAST or not found.batches:
            raise ValueError(
                f"{told}: {found.share:.2f} of the samples would end in a batch; write the shards with "
                'layout="identity", raise buffer or lower lanes (tercet.predict_yield tells by how much), '
                "or lower p or k; steps= leaves this check out"
            )
        if not gives_batch(labels.values(), made):
            raise ValueError(
                f"{told}: a pass over all shards, by name, gives no batch; raise buffer or lower p or k"
            )
        return found
