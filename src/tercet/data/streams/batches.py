"""The batches of each partition of a `PKStream`, epoch by epoch: as raw samples, and decoded to tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch

from tercet.core.checks import escaped, refusal
from tercet.core.randomness import derive_key
from tercet.data.datasets.augment import KeyedTransform
from tercet.data.datasets.decoding import image_tensor
from tercet.data.io.images import decode_image
from tercet.data.streams.class_buffer import ClassBuffer, Group
from tercet.data.streams.lanes import FALLBACK_LEVELS, Partitions
from tercet.data.streams.pk_stage import PKStage, StreamEnded
from tercet.data.streams.samples import Sample, image_field, label_of, name_of
from tercet.data.streams.shard_samples import read_shard
from tercet.data.streams.sources import KnownShard

__all__ = ["PartitionBatches", "RawBatch"]


class RawBatch(NamedTuple):
    """A batch that is not decoded yet, the stage that decodes it, and the buffer that has replacements."""

    stage: PKStage
    buffer: ClassBuffer
    groups: list[Group]


@dataclass(frozen=True)
class PartitionBatches:
    """The batches of one rank, partition by partition.

    Args:
        partitions: which shards a pass reads.
        known: what is known of each shard, by its path or URL.
        stage: the settings of `pk_batched`.
        seed: names draws and views.
        rank: the rank.
        image: the field that holds the image; None for the one with an image's extension.
        transform: what is done to each image; None for nothing.
        return_keys: give (images, labels, keys) instead of (images, labels).
    """

    partitions: Partitions
    known: dict[str, KnownShard]
    stage: PKStage
    seed: int
    rank: int
    image: str | None
    transform: KeyedTransform | None
    return_keys: bool

    def raw(self, epoch: int, partition: int) -> Iterator[RawBatch]:
        """The batches of a partition, without end and not decoded yet.

        Where a pass gives no batch, this one and the passes after it read more shards: the next fallback
        level of `Partitions.order`.

        Raises:
            ValueError: a pass over all shards gave no batch.
        """
        level = 0
        for nth in count():
            buffer, batches = self._pass(epoch, partition, nth, level)
            yield from batches
            if not buffer.batches:
                level += 1
                if level == FALLBACK_LEVELS:
                    raise self._nothing(buffer)

    def decoded(self, raw: RawBatch) -> tuple[Any, ...] | None:
        """A batch as tensors; None where too few images decode, and the handler says to go on.

        Raises:
            ValueError: the handler ends the stream, a class is no whole number, or images differ in size.
        """
        try:
            found = raw.stage.decoded(raw.groups, raw.buffer)
        except StreamEnded as error:
            hint = "return true to have another image stand in, or raise the error"
            raise ValueError(
                f"PKStream: the handler ends the stream, which each rank needs whole; {hint}"
            ) from error
        if found is None:
            return None
        images, labels, names = zip(*found, strict=True)
        for image, name, label in zip(images, names, labels, strict=True):
            if isinstance(label, str):
                hint = "write numbers, or pass label=, a function of a sample that gives them"
                raise refusal("PKStream", "label", label, f"a whole number as the class of {name}", hint)
            if image.shape != images[0].shape:
                raise ValueError(
                    f"PKStream: images of one batch have different sizes, {list(images[0].shape)} of "
                    f"{escaped(names[0])} and {list(image.shape)} of {escaped(name)}; "
                    "give a transform that resizes or crops, such as albumentations.Resize(224, 224)"
                )
        batch = torch.stack(images), torch.tensor(labels, dtype=torch.int64)
        return (*batch, list(names)) if self.return_keys else batch

    def replacement(self, epoch: int, partition: int, round_: int) -> tuple[Any, ...]:
        """The batch in place of one for which too few images decode: the first that passes of its own give.

        Because these passes are its own, later batches are the same whether this one is decoded or skipped.

        Raises:
            ValueError: all shards give no batch that decodes.
        """
        for level in range(FALLBACK_LEVELS):
            # Negative numbers name passes that `raw` never makes.
            _, batches = self._pass(epoch, partition, -1 - round_, level)
            for raw in batches:
                batch = self.decoded(raw)
                if batch is not None:
                    return batch
        raise ValueError("PKStream: too many images fail to decode, and all shards give no batch of others")

    def _pass(
        self, epoch: int, partition: int, nth: int, level: int
    ) -> tuple[ClassBuffer, Iterator[RawBatch]]:
        """One pass of a partition over shards: its buffer, and the batches."""
        # Draws and views depend on nothing that other workers do: epoch, rank, partition, pass.
        decode = partial(self._image, epoch=epoch, nth=nth)
        seed = derive_key("PKStream", self.seed, epoch, self.rank, partition, nth)
        stage = replace(self.stage, decode=decode, seed=seed)
        buffer = stage.new_buffer()
        samples = self._samples(self.partitions.order(epoch, self.rank, partition, nth, level))
        return buffer, (RawBatch(stage, buffer, groups) for groups in stage.groups(samples, buffer))

    def _nothing(self, buffer: ClassBuffer) -> ValueError:
        """The error of a pass over all shards that gave no batch."""
        if not buffer.seen:
            see = "what they hold" + (", and what the handler was told" if self.stage.handler else "")
            return ValueError(f"PKStream: no shard gave a sample; see {see}")
        why = ", ".join(f"{number} {reason}" for reason, number in buffer.dropped.items())
        return ValueError(
            f"PKStream(p={buffer.p}, k={buffer.k}, buffer={buffer.size}): a pass over all "
            f"{len(self.partitions.shards)} shards gave no batch of {buffer.seen} samples ({why}); "
            "lower p or k, or raise buffer"
        )

    def _samples(self, shards: list[str]) -> Iterator[Sample]:
        # Each shard is grouped alone: otherwise half a sample at the end of one could join with the next.
        for shard in shards:
            handler = self.stage.handler
            if not (yield from read_shard(shard, self.known[shard], self.image, handler)):
                return

    def _image(self, sample: Sample, epoch: int, nth: int) -> tuple[Any, Any, str]:
        """The image of a sample as a tensor, its label and its name."""
        name = name_of(sample)
        field = image_field(sample, self.image)
        if field is None:
            raise self._no_image(sample, name)
        image: Any = decode_image(sample[field], name)
        if self.transform is not None:
            view = sample["__view__"] + (nth << 32)  # each pass counts its views from 0
            image = self.transform(image, epoch=epoch, sample=name, view=view)
        try:
            return image_tensor(image), label_of(sample, self.stage.label), name
        except TypeError as error:
            raise ValueError(f"PKStream: the transform gives {error}") from None

    def _no_image(self, sample: Sample, name: str) -> ValueError:
        """The error of a sample in which the field of the image is missing, or one of several."""
        found = ", ".join(sorted(one for one in sample if not one.startswith("__")))
        lacks, hint = "not one image", "pass image=, the field that holds it"
        if self.image is not None:
            lacks, hint = f"no field image={self.image!r}", "name the one that holds the image"
        hint = f"half a sample ends a truncated tar; else {hint}"
        return ValueError(escaped(f"PKStream: {name} has {lacks}, only {found}; {hint}"))
