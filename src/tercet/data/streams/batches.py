"""What the lanes of `PKStream` give, epoch by epoch: batches as they are dealt, and as tensors."""

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
from tercet.data.streams.class_buffer import Group, GroupBuffer
from tercet.data.streams.lanes import REACHES, Lanes
from tercet.data.streams.pk_stage import PKStage, StreamEnded
from tercet.data.streams.samples import Sample, image_field, label_of, name_of
from tercet.data.streams.shard_samples import read_shard
from tercet.data.streams.sources import KnownShard

__all__ = ["Dealt", "LaneBatches"]


class Dealt(NamedTuple):
    """A batch that is not decoded yet: its samples, and the stage and buffer that another one comes from."""

    stage: PKStage
    held: GroupBuffer
    groups: list[Group]


@dataclass(frozen=True)
class LaneBatches:
    """The batches of one rank, lane by lane.

    Args:
        lanes: which shards a pass reads.
        known: what is known of each shard, by its address.
        stage: the settings of `pk_batched`.
        seed: names draws and views.
        rank: whose lanes they are.
        image: the field that holds the image; None for the one with an image's extension.
        transform: what is done to each image; None for nothing.
        return_keys: give (images, labels, keys) instead of (images, labels).
    """

    lanes: Lanes
    known: dict[str, KnownShard]
    stage: PKStage
    seed: int
    rank: int
    image: str | None
    transform: KeyedTransform | None
    return_keys: bool

    def dealt(self, epoch: int, lane: int) -> Iterator[Dealt]:
        """The batches of a lane without end, not decoded yet."""
        reach = 0
        for lap in count():
            held, batches = self._pass(epoch, lane, lap, reach)
            yield from batches
            if not held.batches:
                reach += 1
                if reach == REACHES:
                    raise self._nothing(held)

    def _pass(self, epoch: int, lane: int, lap: int, reach: int) -> tuple[GroupBuffer, Iterator[Dealt]]:
        """One pass of a lane over the shards: its buffer, and the batches."""
        decode = partial(self._decoded, epoch=epoch, lap=lap)
        seed = derive_key("PKStream", self.seed, epoch, self.rank, lane, lap)
        stage = replace(self.stage, decode=decode, seed=seed)
        held, order = stage.held(), self.lanes.order(epoch, self.rank, lane, lap, reach)
        return held, (Dealt(stage, held, groups) for groups in stage.groups(self._samples(order), held))

    def _nothing(self, held: GroupBuffer) -> ValueError:
        """The error of a pass over all shards that gave no batch."""
        if not held.seen:
            see = "what they hold" + (", and what the handler was told" if self.stage.handler else "")
            return ValueError(f"PKStream: no shard gave a sample; see {see}")
        why = ", ".join(f"{number} {reason}" for reason, number in held.dropped.items())
        return ValueError(
            f"PKStream(p={held.p}, k={held.k}, buffer={held.buffer}): a pass over all "
            f"{len(self.lanes.shards)} shards gave no batch of {held.seen} samples ({why}); "
            "lower p or k, or raise buffer"
        )

    def _samples(self, shards: list[str]) -> Iterator[Sample]:
        for shard in shards:  # each alone: else half a sample could join with one of the next shard
            handler = self.stage.handler
            if not (yield from read_shard(shard, self.known[shard], self.image, handler)):
                return

    def _decoded(self, sample: Sample, epoch: int, lap: int) -> tuple[Any, Any, str]:
        """The image of a sample as a tensor, its label and its name."""
        name = name_of(sample)
        field = image_field(sample, self.image)
        if field is None:
            found = ", ".join(sorted(one for one in sample if not one.startswith("__")))
            lacks, hint = "not one image", "pass image=, the field that holds it"
            if self.image is not None:
                lacks, hint = f"no field image={self.image!r}", "name the one that holds the image"
            hint = f"half a sample ends a truncated tar; else {hint}"
            raise ValueError(escaped(f"PKStream: {name} has {lacks}, only {found}; {hint}"))
        image: Any = decode_image(sample[field], name)
        if self.transform is not None:
            view = sample["__view__"] + (lap << 32)  # each pass counts its views from 0
            image = self.transform(image, epoch=epoch, sample=name, view=view)
        try:
            return image_tensor(image), label_of(sample, self.stage.label), name
        except TypeError as error:
            raise ValueError(f"PKStream: the transform gives {error}") from None

    def instead(self, epoch: int, lane: int, turn: int) -> tuple[Any, ...]:
        """What comes in place of a batch for which too few images decode: the first of passes of its own.

        So the batches after it are the same whether this one is decoded or passed over.
        """
        for reach in range(REACHES):
            _, batches = self._pass(epoch, lane, -1 - turn, reach)
            for dealt in batches:
                batch = self.made(dealt)
                if batch is not None:
                    return batch
        raise ValueError("PKStream: too many images fail to decode, and all shards give no batch of others")

    def made(self, dealt: Dealt) -> tuple[Any, ...] | None:
        """A batch as tensors; None where too few images decode, and the handler says to go on."""
        try:
            found = dealt.stage.filled(dealt.groups, dealt.held)
        except StreamEnded as error:
            hint = "return true to have another image stand in, or raise the error"
            raise ValueError(
                f"PKStream: the handler ends the stream, which each rank needs whole; {hint}"
            ) from error
        if found is None:
            return None
        images, labels, names = zip(*found)
        for image, name, label in zip(images, names, labels):
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
