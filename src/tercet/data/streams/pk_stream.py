"""P×K batches of decoded images from tar shards that are read from front to back."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch.utils.data import IterableDataset

from tercet.core.checks import as_bool, as_int, as_seed, border
from tercet.data.datasets.augment import KeyedTransform
from tercet.data.samplers.resumable import Resumable
from tercet.data.shards.tar_scan import extension
from tercet.data.streams.batches import PartitionBatches
from tercet.data.streams.class_buffer import ON_SHORT
from tercet.data.streams.iterator import LAST_EPOCH, PKStreamIterator, SharedEpochs
from tercet.data.streams.lanes import Partitions
from tercet.data.streams.pk_stage import PKStage, pk_batched
from tercet.data.streams.samples import Handler, base_name
from tercet.data.streams.sources import KnownShard, known_shards

__all__ = ["PKStream"]


class PKStream(Resumable, IterableDataset):
    """Batches (images, labels) of exactly p classes with k images each, from tar shards read front to back.

    `DataLoader(PKStream("shards/", 32, 4, transform), batch_size=None, num_workers=4)`. Shards come in
    another order each epoch and go through `pk_batched`. Images are decoded and augmented after that, keyed
    by (seed, epoch, image, view). An image that fails to decode goes to the handler and is replaced by
    another of its class. A batch for which too few images are left is replaced by one from a pass of its own
    over the shards.

    Each rank gives `steps` batches an epoch, so none waits for another. The shards of a rank are divided into
    `lanes`, each with a buffer of its own: step s comes from lane s mod lanes. A lane that has read its
    shards reads them again, in another order; samples that a lane has left at the end of the epoch are in no
    batch. Where its own shards give no batch, a lane reads all shards of its rank, and where these give none,
    the shards of all ranks.

    Batches do not depend on the number of workers: worker w of W makes steps w, w + W, …, and skips the
    others without decoding. It reads the shards of the lanes whose steps it makes. So with as many lanes as
    workers, or a multiple, each worker reads only its part of the shards; with one lane each reads all.

    Each iteration is the next epoch, with persistent workers too. An iterator has `state_dict` and
    `load_state_dict`, which torchdata's StatefulDataLoader uses. With a plain DataLoader count the batches,
    save `state_at(epoch, step)` and resume by `load_state_dict`, with any number of workers. Resuming reads
    the stream again up to there, without decoding. A state fits shards of the same names, of the same
    sizes where they are local, and of the same keys and classes where these are known: from an index, or
    because `steps` was not given. Two different functions `label` are not noticed.

    Args:
        shards: a folder of tars; a tar; webdataset's notation, as "train-{000000..000099}.tar"; or a list. Of
            a folder, the tars that its info.json lists; without one all, unless their names are of two
            splits, as train-0.tar and val-0.tar. Names, without folders, have to differ: they key the images,
            so that batches do not depend on where shards lie.
        p: classes in a batch, on each rank.
        k: images of each class in a batch, at least 2.
        transform: a function of an image, [h, w, 3] uint8 RGB, or an albumentations transform, as for
            `ImageDataset`; it must make the images equal in size. None leaves them as they are.
        steps: batches of an epoch on each rank. By default what one pass gives, predicted from the labels of
            the tars, which have to be local files. With `steps` no labels are read in advance, and whether
            the shards give a batch shows while running.
        lanes: the number of parts into which the shards of a rank are divided.
        on_short: what happens to fewer than k images of a class that have to leave the buffer: "repeat" fills
            them up, "drop" leaves them out, "error" raises; see `pk_batched`.
        buffer: the most images in the buffer of a lane, at least p · k; by default 4 · p · k.
        cap: the most images of one class in the buffer, from k to buffer / p; by default buffer / p.
        label: the field that holds the class, as "cls", a field of its JSON, as "json:id", or a function of
            the sample that gives it: a whole number.
        image: the field that holds the image; by default the one with an image's extension.
        split: which of the splits in the folder's info.json; needed where it has several.
        urls: read a string "scheme://…" that is passed here as a URL, of a scheme that webdataset opens:
            http, https, gs, hf and others, not s3. Without it, and for all that a folder or an info.json
            lists, a name is the path of a file, whatever it is. No command is ever run: "pipe:…" is
            refused; `webdataset.WebDataset("pipe:…").compose(pk_batched(p, k))` runs one.
        outside_root: take tars that info.json lists but that lie outside of its folder, by "..", an absolute
            path or a link.
        handler: called with each error of a sample or a shard; by default the error is raised. A true result
            goes on, after a damaged shard without what is lost; where ranks have copies of their own, `steps`
            keeps them equal. A false one ends a pass over the shards at a damaged shard, and is refused where
            an image fails to decode.
        seed: names the order of shards, the draws and the augmentations.
        rank: the part of the shards that this process takes, from 0.
        world_size: the number of processes.
        return_keys: give (images, labels, keys), keys as "shard.tar/key".

    Attributes:
        shards: their paths or URLs, in the order of their names.
        predicted: the `StreamYield` that `steps` comes from, with steps · world_size `batches`; None where
            `steps` is given. Its `share` is that of the first epoch; the others divide the shards anew, so
            theirs differ a little. What a lane reads when it begins again does not count.

    Raises:
        ValueError: an argument out of range, shards that are missing, of one name, cannot be read, are
            damaged or have changed since they were indexed, fewer shards than lanes and ranks need, labels
            that are names, or shards of whose samples nearly none would end in a batch; while running, what
            `pk_batched` raises, a tar that has changed since, breaks off or gives fewer samples, other keys
            or other classes than its index or a scan found, or of `write_shards` other bytes, a label that is
            no whole number, images of different sizes, or shards that all together give no batch.

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

    _last_epoch = LAST_EPOCH
    _place, _hint = "here is", "build stream and loader as they were, or use set_epoch(epoch, step)"
    _state_source = "state_at() or an iterator's state_dict() returned"
    _checksums = MappingProxyType(
        {
            "label": "another label=",
            "image": "another image=",
            "shards": "other shards",
            "sizes": "shards of other sizes",
            "contents": "shards of other contents",
        }
    )

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
        urls: bool = False,
        outside_root: bool = False,
        handler: Handler | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        return_keys: bool = False,
    ) -> None:
        caller = "PKStream"
        with border(caller):
            self.image = None if image is None else extension("image", image)
            label = extension("label", label) if isinstance(label, str) else label
        stage = pk_batched(p, k, on_short=on_short, buffer=buffer, cap=cap, label=label, handler=handler)
        self.p, self.k = stage.p, stage.k
        self.lanes, self.seed = as_int(caller, "lanes", lanes, 1), as_seed(caller, seed)
        self.world_size = as_int(caller, "world_size", world_size, 1)
        self.rank = as_int(caller, "rank", rank, 0, self.world_size - 1)
        self.return_keys = as_bool(caller, "return_keys", return_keys)
        transform = None if transform is None else KeyedTransform(transform, self.seed)

        with border(caller, "shards"):
            known = known_shards(
                shards,
                split,
                urls=as_bool(caller, "urls", urls),
                outside_root=as_bool(caller, "outside_root", outside_root),
                image=self.image,
                label=label,
                handler=handler,
                count=steps is None,
            )
        self.shards = list(known)
        partitions = Partitions(self.shards, self.lanes, self.world_size, self.seed)
        self.predicted = partitions.predict(stage, known) if steps is None else None
        if self.predicted is not None:
            steps = self.predicted.batches // self.world_size
        self.steps = as_int(caller, "steps", steps, 1, LAST_EPOCH)
        self._settings = self._of_batches(stage, known)
        self._batches = PartitionBatches(
            partitions,
            {shard: replace(one, labels=None) for shard, one in known.items()},  # workers need no labels
            stage,
            self.seed,
            self.rank,
            self.image,
            transform,
            self.return_keys,
        )
        self._epochs = SharedEpochs()  # shared with the workers, which get copies of the stream

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> PKStreamIterator:
        return PKStreamIterator(self, self._batches)

    def _all_settings(self, parts: int) -> Mapping[str, int | str]:
        return {**self._settings, "workers": parts}

    def _of_batches(self, stage: PKStage, known: dict[str, KnownShard]) -> dict[str, int | str]:
        """All that the batches depend on, save the rank, as small ints: what a state is compared by."""
        sizes = [one.state and one.state.size for one in known.values()]
        contents = [one.contents for one in known.values()]
        return {
            "p": self.p,
            "k": self.k,
            "seed": self.seed,
            "steps": self.steps,
            "lanes": self.lanes,
            "buffer": stage.buffer,
            "cap": stage.cap,
            "on_short": ON_SHORT.index(stage.on_short),
            "world_size": self.world_size,
            "label": _crc(["label", stage.label if isinstance(stage.label, str) else ""]),
            "image": _crc(["image", self.image or ""]),
            "shards": _crc(map(base_name, self.shards)),
            "sizes": 0 if None in sizes else _crc(map(str, sizes)),
            "contents": _crc(map(str, contents)) if all(contents) else 0,
        }


def _crc(words: Iterable[str]) -> int:
    return zlib.crc32("\n".join(words).encode(errors="surrogatepass"))
