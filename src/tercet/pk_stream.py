"""P×K batches of decoded images from tar shards that are read from front to back."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tercet.augment import KeyedTransform
from tercet.checks import flag, refusal, whole
from tercet.datasets import image_tensor
from tercet.epochs import saved_position
from tercet.folders import IMAGE_SUFFIXES
from tercet.grouping import ON_SHORT, Group, GroupBuffer
from tercet.images import decode_image
from tercet.randomness import derive_key, permute
from tercet.shared_epochs import SharedEpochs
from tercet.stream_shards import KnownShard, base_name, known_shards
from tercet.stream_yield import StreamYield, play
from tercet.streams import Handler, PKStage, Sample, label_of, pk_batched, told
from tercet.tars import extension, other_size

__all__ = ["PKStream", "PKStreamIterator"]

_LEAST = 0.1  # the share of samples in batches below which a stream is refused


class PKStream(IterableDataset):
    """Batches (images, labels) of exactly p classes with k images each, from tar shards read through.

    `DataLoader(PKStream("shards/", 32, 4, transform), batch_size=None, num_workers=4)`. Shards come in
    another order each epoch and go through `pk_batched`; images are decoded and augmented after that, keyed
    by (seed, epoch, image, view). An image that fails to decode goes to the handler, and another of its
    class stands in.

    Each rank gives `steps` batches an epoch, so none waits for another. Its shards are dealt to `lanes`, each
    with a buffer of its own: step s comes from lane s mod lanes. A lane that has read its shards begins
    again, in another order; what a lane has left at the end of the epoch is in no batch.

    Batches do not depend on the number of workers: worker w of W makes steps w, w + W, …, and passes over
    the others without decoding. It reads the shards of the lanes it makes steps of; so with `lanes` the
    number of workers or a multiple, each reads its own part only, and with one lane each reads all.

    Epochs follow each other, with persistent workers too. An iterator has `state_dict` and
    `load_state_dict`, which torchdata's StatefulDataLoader uses; with a plain DataLoader count the batches,
    save `state_at(epoch, step)` and resume by `load_state_dict`, with any number of workers. Resuming reads
    the stream again up to there, without decoding.

    Args:
        shards: a folder of tars, those that its info.json lists if it has one; a tar, webdataset's notation
            as "train-{000000..000099}.tar", or a list.
        p: classes in a batch, on each rank.
        k: images of each class in a batch, at least 2.
        transform: as in `ImageDataset`; it must make the images equal in size.
        steps: batches of an epoch on each rank; by default what one pass gives, predicted from the labels of
            the tars, which have to be local files.
        lanes: parts of a rank's shards.
        on_short, buffer, cap, label, handler: as for `pk_batched`; `buffer` is that of a lane. A handler
            that ends the stream ends a pass over the shards.
        image: the field that holds the image; by default the one with an image's extension.
        split: which of the splits in the folder's info.json; needed where it has several.
        seed: names the order of shards, the draws and the augmentations.
        rank: the part of the shards that this process takes, from 0.
        world_size: the number of processes.
        return_keys: give (images, labels, keys), keys as "shard.tar/key".

    Attributes:
        predicted: the `StreamYield` that `steps` comes from; None where `steps` is given.

    Raises:
        ValueError: an argument out of range, shards that are missing or have changed since they were
            indexed, fewer shards than lanes and ranks need, or shards of whose samples nearly none would
            end in a batch; while running, what `pk_batched` raises, a tar that has changed since, a label
            that is no whole number, or images of different sizes.

    Example:
        >>> import io, tarfile
        >>> with tarfile.open("stream.tar", "w") as tar:
        ...     for n in range(8):
        ...         picture = b"P5 2 1 255 " + bytes([n, 255])
        ...         for name, content in ((f"{n}.pgm", picture), (f"{n}.cls", b"%d" % (n // 4))):
        ...             info = tarfile.TarInfo(name)
        ...             info.size = len(content)
        ...             tar.addfile(info, io.BytesIO(content))
        >>> stream = PKStream("stream.tar", p=2, k=4)
        >>> len(stream), [(images.shape, sorted(labels.tolist())) for images, labels in stream]
        (1, [(torch.Size([8, 3, 1, 2]), [0, 0, 0, 0, 1, 1, 1, 1])])
    """

    def __init__(
        self,
        shards: Any,
        p: int,
        k: int,
        transform: Any = None,
        *,
        steps: int | None = None,
        lanes: int = 1,
        on_short: str = "repeat",
        buffer: int | None = None,
        cap: int | None = None,
        label: Any = "cls",
        image: str | None = None,
        split: str | None = None,
        handler: Handler | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        return_keys: bool = False,
    ) -> None:
        owner = "PKStream"
        self.image = None if image is None else extension(owner, "image", image)
        label = extension(owner, "label", label) if isinstance(label, str) else label
        self._made = {"on_short": on_short, "buffer": buffer, "cap": cap, "label": label, "handler": handler}
        stage = pk_batched(p, k, **self._made)  # refuses what it does not take
        self.p, self.k = stage.p, stage.k
        self.lanes, self.seed = whole(owner, "lanes", lanes, 1), whole(owner, "seed", seed)
        self.world_size = whole(owner, "world_size", world_size, 1)
        self.rank = whole(owner, "rank", rank, 0, self.world_size - 1)
        self.return_keys = flag(owner, "return_keys", return_keys)
        looked_for: dict[str, Any] = {"image": self.image, "label": label, "handler": handler}
        known = known_shards(shards, split, **looked_for, count=steps is None)
        self.shards = list(known)
        self._sizes = {shard: one.size for shard, one in known.items() if one.size is not None}
        self._check_parts()
        self._transform = None if transform is None else KeyedTransform(transform, self.seed)
        self.predicted = self._predict(stage, known) if steps is None else None
        if self.predicted is not None:
            steps = max(1, self.predicted.batches // self.world_size)
        self.steps = whole(owner, "steps", steps, 1, (1 << 31) - 1)
        self._settings = {
            "p": self.p,
            "k": self.k,
            "seed": self.seed,
            "steps": self.steps,
            "lanes": self.lanes,
            "buffer": stage.buffer,
            "cap": stage.cap,
            "on_short": ON_SHORT.index(on_short),
            "world_size": self.world_size,
            "label": _crc([label]) if isinstance(label, str) else 0,
            "image": _crc([self.image or ""]),
            "shards": _crc(map(base_name, self.shards)),
            "contents": _crc(str(one.contents) for one in known.values()),
        }
        self._epochs = SharedEpochs()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> PKStreamIterator:
        return PKStreamIterator(self)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Lets the next iteration be `epoch` from `step` on, in persistent workers too.

        Args:
            epoch: the epoch, from 0.
            step: the number of its batches to pass over: those the training loop has seen.

        Raises:
            ValueError: not whole numbers, or a step beyond the end.
        """
        self._epochs.set(*self._whole_position("set_epoch", epoch, step))

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        """The state at `step` of `epoch`, whatever workers have made ahead: small ints.

        Args:
            epoch: the epoch, from 0.
            step: the number of its batches that the training loop has seen.

        Raises:
            ValueError: not whole numbers, or a step beyond the end.
        """
        epoch, step = self._whole_position("state_at", epoch, step)
        return {"epoch": epoch, "step": step, "settings": {**self._settings, "workers": 1}}

    def load_state_dict(self, state: Any) -> None:
        """Lets the next iteration go on at a `state_at`, in persistent workers too.

        Raises:
            ValueError: not a state, one saved under other settings, which give other batches, or the state
                of one worker's part.
        """
        self._epochs.set(*self._restored(state, 1))

    def _whole_position(self, method: str, epoch: Any, step: Any) -> tuple[int, int]:
        """(epoch, step), refused in the method's name where that is no position."""
        owner = f"PKStream.{method}"
        return whole(owner, "epoch", epoch), whole(owner, "step", step, 0, self.steps)

    def _restored(self, state: Any, workers: int) -> tuple[int, int]:
        """The position in `state`, refused unless it was saved under the same settings."""
        owner, source = "PKStream.load_state_dict", "state_at() or an iterator's state_dict() returned"
        here = "here is", "build stream and loader as they were, or use set_epoch(epoch, step)"
        epoch, step = saved_position(owner, state, {**self._settings, "workers": workers}, source, *here)
        return epoch, whole(owner, "step", step, 0, self.steps + workers - 1)  # of one that has ended

    def _check_parts(self) -> None:
        """Refuses fewer shards than the lanes of all ranks need."""
        number, ranks = len(self.shards), self.world_size
        if number < ranks:
            expected = f"at most as many as shards, and there are {number}"
            way_out = "use fewer ranks or write smaller shards"
            raise refusal("PKStream", "world_size", ranks, expected, way_out)
        if number < self.lanes * ranks:
            expected = f"at most as many as shards, and there are {number}"
            expected += f" on {ranks} ranks" if ranks > 1 else ""
            raise refusal("PKStream", "lanes", self.lanes, expected, "lower lanes or write smaller shards")

    def _predict(self, stage: PKStage, known: dict[str, KnownShard]) -> StreamYield:
        """What one pass gives, by the labels of the shards."""
        labels = {shard: one.labels for shard, one in known.items() if one.labels is not None}
        parts = [
            [labels[shard] for shard in self._order(0, rank, lane)]
            for rank in range(self.world_size)
            for lane in range(self.lanes)
        ]
        if not sum(map(len, labels.values())):
            raise refusal("PKStream", "shards", self.shards[0], "samples with an image and a label")
        made = {"p": stage.p, "k": stage.k, "buffer": stage.buffer, "cap": stage.cap}
        found = play(parts, {**made, "on_short": stage.on_short}, 0, self.seed, equal=True)
        if found.share < _LEAST or not found.batches:
            raise ValueError(
                f"PKStream(p={self.p}, k={self.k}, buffer={stage.buffer}, lanes={self.lanes}): "
                f"{found.share:.2f} of the samples would end in a batch; write the shards with "
                'layout="identity", raise buffer or lower lanes (tercet.predict_yield tells by how much), '
                "or lower p or k; steps= leaves this check out"
            )
        return found

    def _order(self, epoch: int, rank: int, lane: int, lap: int = 0) -> list[str]:
        """The shards of a lane, in the order in which it reads them for the `lap`-th time in an epoch."""
        key = derive_key("PKStream shards", self.seed, epoch)
        places = permute(np.arange(len(self.shards)), len(self.shards), key)
        mine = places[rank :: self.world_size][lane :: self.lanes]
        if lap:
            mine = mine[permute(np.arange(len(mine)), len(mine), derive_key(key, rank, lane, lap))]
        return [self.shards[place] for place in mine.tolist()]

    def _lane(self, epoch: int, lane: int) -> Iterator[tuple[PKStage, list[Group], GroupBuffer]]:
        """The batches of a lane without end, not decoded yet."""
        for lap in count():
            decode = partial(self._decoded, epoch=epoch, lap=lap)
            seed = derive_key("PKStream", self.seed, epoch, self.rank, lane, lap)
            stage = pk_batched(self.p, self.k, **self._made, decode=decode, seed=seed)
            held = stage.held()
            order = self._order(epoch, self.rank, lane, lap)
            for groups in stage.groups(self._samples(order), held):
                yield stage, groups, held
            if not held.batches:
                why = ", ".join(f"{number} {reason}" for reason, number in held.dropped.items())
                raise ValueError(
                    f"PKStream(p={self.p}, k={self.k}, lanes={self.lanes}): a pass over the {len(order)} "
                    f"shards of a lane gave no batch of {held.seen} samples ({why or 'none came'}); "
                    "lower lanes, p or k, or raise buffer"
                )

    def _samples(self, shards: list[str]) -> Iterator[Sample]:
        from webdataset.handlers import reraise_exception
        from webdataset.tariterators import tarfile_samples

        for shard in shards:  # each alone: else half a sample could join with one of the next shard
            if shard in self._sizes and Path(shard).is_file():  # a cut between two members goes unnoticed
                changed = other_size("PKStream", "shards", Path(shard), self._sizes[shard])
                if changed and not told(self._made["handler"], changed):
                    return
            source: dict[str, Any] = {"url": shard}
            try:
                yield from tarfile_samples([source], handler=self._made["handler"] or reraise_exception)
            finally:
                if "stream" in source:
                    source["stream"].close()

    def _decoded(self, sample: Sample, epoch: int, lap: int) -> tuple[Any, Any, str]:
        """The image of a sample as a tensor, its label and its name."""
        name = _name(sample)
        fields = [field for field in sample if f".{field}" in IMAGE_SUFFIXES]
        field = self.image or (fields[0] if len(fields) == 1 else None)
        if field not in sample:
            found = ", ".join(sorted(one for one in sample if not one.startswith("__")))
            way_out = "half a sample ends a truncated tar; else pass image=, the field that holds it"
            raise ValueError(f"PKStream: {name} has not one image, only {found}; {way_out}")
        image: Any = decode_image(sample[field], name)
        if self._transform is not None:
            view = sample["__view__"] + (lap << 32)  # each pass counts its views from 0
            image = self._transform(image, epoch=epoch, sample=name, view=view)
        try:
            return image_tensor(image), label_of(sample, self._made["label"]), name
        except TypeError as error:
            raise ValueError(f"PKStream: the transform gives {error}") from None

    def _batch(self, stage: PKStage, groups: list[Group], held: GroupBuffer) -> tuple[Any, ...]:
        made = stage.filled(groups, held)
        if made is None:
            way_out = "return true to have another image stand in, or raise the error"
            raise ValueError(f"PKStream: the handler ends the stream, which each rank needs whole; {way_out}")
        images, labels, names = zip(*made)
        for image, name, label in zip(images, names, labels):
            if not isinstance(label, (int, np.integer)):
                way_out = "write numbers, or pass label=, a function of a sample that gives them"
                raise refusal("PKStream", "label", label, f"a whole number as the class of {name}", way_out)
            if image.shape != images[0].shape:
                raise ValueError(
                    f"PKStream: images of one batch have different sizes, {list(images[0].shape)} of "
                    f"{names[0]} and {list(image.shape)} of {name}; give a transform that resizes or crops, "
                    "such as albumentations.Resize(224, 224)"
                )
        batch = torch.stack(images), torch.tensor(labels, dtype=torch.int64)
        return (*batch, list(names)) if self.return_keys else batch


class PKStreamIterator:
    """One worker's part of an epoch, and the position in it."""

    def __init__(self, stream: Any) -> None:
        worker = get_worker_info()
        self._stream: PKStream = stream
        self._offset, self._stride = (worker.id, worker.num_workers) if worker else (0, 1)
        self._ticket = stream._epochs.ticket()
        self._position: tuple[int, int] | None = None
        self._forget_lanes()

    def __iter__(self) -> PKStreamIterator:
        return self

    def __next__(self) -> tuple[Any, ...]:
        stream = self._stream
        if self._position is None:
            epoch, step = stream._epochs.begin(self._ticket)
            self._position = epoch, step + self._offset
        epoch, step = self._position
        if step >= stream.steps:
            self._forget_lanes()
            raise StopIteration
        index, lane = divmod(step, stream.lanes)
        if lane not in self._lanes:
            self._lanes[lane] = stream._lane(epoch, lane)
        while self._done.setdefault(lane, 0) < index:  # steps of other workers, or from before a stop
            next(self._lanes[lane])
            self._done[lane] += 1
        batch = stream._batch(*next(self._lanes[lane]))
        self._done[lane] += 1
        self._position = epoch, step + self._stride
        return batch

    def _forget_lanes(self) -> None:
        self._lanes: dict[int, Iterator[Any]] = {}
        self._done: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the next step of this worker, and the settings they depend on: small ints."""
        if self._position is None:
            epoch, step = self._stream._epochs.peek(self._ticket)
            step += self._offset
        else:
            epoch, step = self._position
        settings = {**self._stream._settings, "workers": self._stride}
        return {"epoch": epoch, "step": step, "settings": settings}

    def load_state_dict(self, state: Any) -> None:
        """Goes on where `state` was saved; the iteration after this one is the epoch after that.

        Raises:
            ValueError: not a state, or one saved under other settings, which give other batches.
        """
        self._position = self._stream._restored(state, self._stride)
        self._forget_lanes()
        self._stream._epochs.follow(self._position[0])


def _crc(words: Iterable[str]) -> int:
    return zlib.crc32("\n".join(words).encode(errors="surrogatepass"))


def _name(sample: Sample) -> str:
    """What keys the augmentation of a sample: its shard, wherever that lies, and its key."""
    return f"{base_name(str(sample.get('__url__', '')))}/{sample.get('__key__', '')}"
