"""Images of a catalog or of shards in batches, each decoded once and prepared for a model; never shuffled."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tercet.core.checks import as_choice, as_int, refusal
from tercet.data.datasets.decoding import Decoded, Decoder
from tercet.data.io.images import MAX_PIXELS, decoded, file_content

__all__ = ["ImageBatch", "ImageBatches", "Resize", "as_transform", "loaded"]

_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue


class ImageBatch(NamedTuple):
    """A batch for the model.

    Args:
        rows: of the images that decode, in their order.
        images: float [b, c, h, w]; None where none decodes.
        unreadable: row and reason of each of the others.
    """

    rows: list[int]
    images: Any
    unreadable: list[tuple[int, str]]


@dataclass(frozen=True)
class Resize:
    """Images of one size with the normalisation of ImageNet, which most published weights expect.

        y = (x / 255 − mean) / std

    Args:
        size: height and width.
        crop: resize the shorter side to `size` and take the central square; without it, the whole image is
            resized to a square.

    Example:
        >>> Resize(8)(np.zeros((20, 30, 3), np.uint8)).shape
        torch.Size([3, 8, 8])
    """

    size: int = _SIZE
    crop: bool = False

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 s s"]:
        """The image as a tensor."""
        import cv2

        height, width = image.shape[:2]
        sides = (self.size, self.size)
        if self.crop:
            scale = self.size / min(height, width)
            sides = tuple(max(self.size, round(side * scale)) for side in (height, width))
        way = cv2.INTER_AREA if sides[0] < height else cv2.INTER_LINEAR
        image = cv2.resize(image, sides[::-1], interpolation=way)  # it takes the width first
        top, left = ((side - self.size) // 2 for side in sides)
        image = image[top : top + self.size, left : left + self.size]
        y = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)  # [3, s, s]
        return y.sub_(torch.tensor(_MEAN)[:, None, None]).div_(torch.tensor(_STD)[:, None, None])


def as_transform(caller: str | None, transform: Any, size: Any) -> Any:
    """The transform that an option names.

    Args:
        caller: the function that was called, for messages.
        transform: "resize", "crop", a callable, or None.
        size: for the named ones; None for 224.

    Raises:
        ValueError: another name, no callable, or a size for a callable.

    Example:
        >>> as_transform("embed", "crop", 32)
        Resize(size=32, crop=True)
    """
    if isinstance(transform, str):
        crop = as_choice(caller, "transform", transform, ("resize", "crop")) == "crop"
        return Resize(as_int(caller, "size", _SIZE if size is None else size, 1, 1 << 14), crop)
    if transform is not None and not callable(transform):
        expected = '"resize", "crop", an albumentations transform or another callable, or None'
        raise refusal(caller, "transform", transform, expected)
    if size is not None:
        raise refusal(caller, "size", size, 'a size with transform="resize" or "crop" alone')
    return transform


class ImageBatches(Dataset):
    """Batch i of the images: rows i·b … (i+1)·b − 1, wherever a run begins.

    Args:
        caller: the function that was called, for messages.
        data: a `Catalog` or a `ShardIndex`.
        transform: what `as_transform` gives; its random draws are those of the row, in any run.
        batch_size: b.

    Example:
        >>> from tercet.data.catalog.catalog import Catalog
        >>> batches = ImageBatches("embed", Catalog(["missing.jpg"] * 3, [0] * 3, ["ant"]), None, 2)
        >>> len(batches), batches[1].unreadable
        (2, [(2, 'the file cannot be read: No such file or directory')])
    """

    def __init__(self, caller: str, data: Any, transform: Any, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size
        self._decoder = Decoder(caller, data, transform, 0, 1, "error", MAX_PIXELS)

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch_size)

    def __getitem__(self, number: int) -> ImageBatch:
        first = number * self._batch_size
        rows = list(range(first, min(first + self._batch_size, len(self._data))))
        kept, images, unreadable = [], [], []
        for row, content in zip(rows, self._contents(rows), strict=True):
            try:
                data = file_content(self._data.file(row)) if content is None else content
                image = decoded(data)
            except ValueError as error:
                unreadable.append((row, str(error)))
                continue
            images += self._decoder.augmented(Decoded(row, image), row, 0, [0])
            kept.append(row)
        return ImageBatch(kept, self._decoder.stacked(images, kept) if kept else None, unreadable)

    def _contents(self, rows: list[int]) -> list[Any]:
        return self._data.read(rows) if hasattr(self._data, "read") else [None] * len(rows)


def loaded(batches: ImageBatches, numbers: Iterable[int], workers: int, pinned: bool) -> Iterator[ImageBatch]:
    """Some of the batches in this order, read ahead by worker processes.

    Args:
        batches: the batches.
        numbers: which; each number is asked for when its batch is read.
        workers: how many processes; 0 for this one.
        pinned: whether images are copied to pinned memory, for a device that reads from there.

    Example:
        >>> from tercet.data.catalog.catalog import Catalog
        >>> batches = ImageBatches("embed", Catalog(["missing.jpg"] * 3, [0] * 3, ["ant"]), None, 2)
        >>> [batch.unreadable[0][0] for batch in loaded(batches, [1], 0, False)]
        [2]
    """
    if not workers:
        yield from (batches[number] for number in numbers)
        return
    loader = DataLoader(
        _Carried(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # otherwise the global one is advanced
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


class _Carried(Dataset):
    """Batches of a worker, or its error: a DataLoader would raise a traceback of the worker as text."""

    def __init__(self, batches: ImageBatches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Any:
        try:
            return self._batches[number]
        except Exception as error:
            try:
                return pickle.loads(pickle.dumps(error))
            except Exception:  # one that cannot be sent
                return RuntimeError(f"{type(error).__name__}: {error}")


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals(number: int) -> None:
    """Leave an interrupt, which a terminal sends to all processes, to the one that waits for the workers."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
