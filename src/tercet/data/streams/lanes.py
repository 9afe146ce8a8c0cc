"""The shards that each partition of a rank (a lane of `PKStream`) reads, in order, and what they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tercet.core.checks import refusal
from tercet.core.randomness import derive_key, permute
from tercet.data.streams.pk_stage import PKStage
from tercet.data.streams.sources import KnownShard
from tercet.data.streams.yield_prediction import StreamYield, gives_batch, simulate

__all__ = ["FALLBACK_LEVELS", "Partitions"]

FALLBACK_LEVELS = 4
_LEAST = 0.1  # the share of samples in batches below which a stream is refused


@dataclass(frozen=True)
class Partitions:
    """The shards of a stream, divided into ranks and then into partitions of a rank, anew each epoch.

    Args:
        shards: their paths or URLs.
        count: partitions of each rank.
        world_size: the number of ranks.
        seed: names the orders.

    Raises:
        ValueError: fewer shards than the partitions of all ranks.

    Example:
        >>> partitions = Partitions(["a", "b", "c", "d"], count=2, world_size=2, seed=0)
        >>> sorted(partitions.order(0, rank, number)[0] for rank in range(2) for number in range(2))
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

    def order(self, epoch: int, rank: int, partition: int, nth: int = 0, level: int = 0) -> list[str]:
        """The shards of one pass of a partition, in the order in which they are read.

        Args:
            epoch: the epoch.
            rank: the rank.
            partition: which of the rank's partitions.
            nth: which pass of the epoch; each has an order of its own.
            level: the fallback level, which says over which shards: 0 those of the partition, 1 those of its
                rank, 2 all; 3 all by name, the order in which `predict` has seen that they give a batch.
        """
        if level >= FALLBACK_LEVELS - 1:
            return list(self.shards)
        # One order of all shards; ranks and partitions take every n-th of it, so sizes differ by one.
        key = derive_key("PKStream shards", self.seed, epoch)
        places = permute(np.arange(len(self.shards)), len(self.shards), key)
        if level < 2:
            places = places[rank :: self.world_size]
        if level < 1:
            places = places[partition :: self.count]
        if nth:
            key = derive_key(key, rank, partition, nth)
            places = places[permute(np.arange(len(places)), len(places), key)]
        return [self.shards[place] for place in places.tolist()]

    def predict(self, stage: PKStage, known: dict[str, KnownShard]) -> StreamYield:
        """What an epoch gives, from the labels of the shards: as many steps as one pass makes, on each rank.

        Args:
            stage: the settings of the batches.
            known: what is known of each shard, with labels.

        Raises:
            ValueError: nearly no sample ends in a batch, or all shards together give none.
        """
        labels = {shard: one.labels for shard, one in known.items() if one.labels is not None}
        number = sum(map(len, labels.values()))
        if not number:
            raise refusal("PKStream", "shards", self.shards[0], "samples with an image and a label")
        options = {name: getattr(stage, name) for name in ("p", "k", "buffer", "cap", "on_short")}
        parts = [
            [labels[shard] for shard in self.order(0, rank, partition)]
            for rank in range(self.world_size)
            for partition in range(self.count)
        ]
        image_bytes = sum(one.image_bytes for one in known.values()) / number
        found = simulate(parts, options, image_bytes * self.count, self.seed, partitions=self.count)
        shown = f"PKStream(p={stage.p}, k={stage.k}, buffer={stage.buffer}, lanes={self.count})"
        if found.share < _LEAST or not found.batches:
            raise ValueError(
                f"{shown}: {found.share:.2f} of the samples would end in a batch; write the shards with "
                'layout="by_class", raise buffer or lower lanes (tercet.predict_yield tells by how much), '
                "or lower p or k; steps= leaves this check out"
            )
        if not gives_batch(labels.values(), options):
            raise ValueError(
                f"{shown}: a pass over all shards, by name, gives no batch; raise buffer or lower p or k"
            )
        return found
