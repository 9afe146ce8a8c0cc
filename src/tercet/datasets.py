"""Datasets that decode: one image a row, or the images of a batch of triplets, each decoded once."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from tercet.augment import KeyedTransform
from tercet.checks import choice, escaped, refusal, whole
from tercet.images import decode_image, read_image
from tercet.provenance import refuse_other_catalog
from tercet.randomness import KeyedRow
from tercet.tuples import Triplets, TripletSequence, rows_at

__all__ = ["ImageDataset", "TripletBatch", "TripletDataset"]


class ImageDataset(Dataset):
    """The images of a catalog: `dataset[row]` is (image, label).

    What the transform draws is a function of (seed, epoch, row, view), so neither the number of workers nor
    resuming changes it. The rows that a sampler of this library hands out know their epoch and view:
    `DataLoader(dataset, sampler=tercet.ShuffledSampler(dataset), …)`. For a plain int the view is 0 and
    the epoch that of `set_epoch`; so with a plain `shuffle=True` call `set_epoch` before each epoch, or every
    epoch repeats its augmentations.

    The transform gets uint8 [h, w, 3], RGB. If it gives a tensor, that is the image. If it gives a numpy
    array, [h, w] or [h, w, c], the image is float32 [c, h, w], divided by 255 if it was uint8; so it is
    without a transform. Images of different sizes only make a batch with a `collate_fn` for that.

    Args:
        catalog: a `Catalog`, or a `ShardIndex`; `labels`, `file(row)` and `len` of it are used, and `read`.
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)`, or as `transform(image, rng=rng)` where it has such a parameter,
            with a `numpy.random.Generator`. See `KeyedTransform`.
        seed: names the stream of augmentations.
        views: the number of augmented views of an image; 2 or more come stacked.
        return_rows: give (image, label, row).

    Raises:
        ValueError: not a catalog, a transform that is not callable, or a number out of range.

    Example:
        >>> import pathlib
        >>> from tercet.catalog import scan_folder
        >>> for name in ("ant/1.pgm", "bee/1.pgm"):
        ...     file = pathlib.Path("pictures", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> image, label = ImageDataset(scan_folder("pictures"))[1]
        >>> image.shape, image[0].tolist(), label
        (torch.Size([3, 1, 2]), [[0.0, 1.0]], 1)
    """

    def __init__(
        self,
        catalog: Any,
        transform: Any = None,
        *,
        seed: int = 0,
        views: int = 1,
        return_rows: bool = False,
    ) -> None:
        self._pictures = _Pictures("ImageDataset", catalog, transform, seed)
        self.catalog = catalog
        self.views = whole("ImageDataset", "views", views, minimum=1)
        self.return_rows = return_rows

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain int rows, also in workers that are running."""
        self._pictures.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, row: Any) -> tuple[Any, ...]:
        """The image at a row, and its label.

        Args:
            row: an int or a `KeyedRow`; negative numbers count from the end.

        Returns:
            (image [c, h, w] or [views, c, h, w], label), or (image, label, row); label and row are ints.

        Raises:
            IndexError: a number outside the catalog.
            ValueError: the file does not decode, or the transform does not give an image.
            RuntimeError: the transform fails.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[Any]) -> list[tuple[Any, ...]]:
        """What a DataLoader asks for: the items of a batch, whose files are read together from shards."""
        numbers = [_row_number(row, len(self)) for row in rows]
        contents = self._pictures.contents(numbers)
        return [self._item(*each) for each in zip(rows, numbers, contents)]

    def _item(self, row: Any, number: int, content: bytes | None) -> tuple[Any, ...]:
        epoch, view = self._pictures.epoch_and_view(row)
        views = range(view * self.views, (view + 1) * self.views)
        images = self._pictures.load(number, epoch, views, content)
        image = images[0] if self.views == 1 else self._pictures.stacked(images, [number] * self.views)
        label = int(self.catalog.labels[number])
        return (image, label, number) if self.return_rows else (image, label)


@dataclass(frozen=True, eq=False)
class TripletBatch:
    """A batch of triplets that holds each image once: `images, triplets, labels, rows = batch`.

    Args:
        images: [u, …], the distinct images, by catalog row; in the interleaved layout [3B, …].
        triplets: `Triplets` of torch int64 [B], positions in `images`.
        labels: int64 [u].
        rows: int64 [u], rows of the catalog.

    Example:
        >>> triplets = Triplets(*torch.tensor([[0], [1], [2]]))
        >>> labels, rows = torch.tensor([0, 0, 1]), torch.tensor([4, 7, 9])
        >>> batch = TripletBatch(torch.zeros(3, 3, 8, 8), triplets, labels, rows)
        >>> images, triplets, labels, rows = batch.to("cpu")
        >>> rows[triplets.negative], labels[triplets.negative]
        (tensor([9]), tensor([1]))
    """

    images: Shaped[Tensor, "u *shape"]
    triplets: Triplets
    labels: Int64[Tensor, " u"]
    rows: Int64[Tensor, " u"]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.images, self.triplets, self.labels, self.rows))

    def to(self, device: Any, non_blocking: bool = False) -> TripletBatch:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TripletBatch:
        """The batch in page-locked memory; a DataLoader calls it where `pin_memory=True`."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Any) -> TripletBatch:
        triplets = Triplets(*map(function, self.triplets))
        return TripletBatch(function(self.images), triplets, function(self.labels), function(self.rows))


def _collate(batch: Sequence[TripletBatch], *, collate_fn_map: Any = None) -> TripletBatch:
    """One batch out of several, end to end; an image of two of them stays twice."""
    if len(batch) == 1:
        return batch[0]
    starts = np.cumsum([0, *(len(part.rows) for part in batch)]).tolist()
    triplets = [
        torch.cat([part.triplets[corner] + start for part, start in zip(batch, starts)])
        for corner in range(3)
    ]
    images, labels, rows = (
        torch.cat([getattr(part, name) for part in batch]) for name in ("images", "labels", "rows")
    )
    return TripletBatch(images, Triplets(*triplets), labels, rows)


# The way that torch documents for teaching `default_collate` a type.
default_collate_fn_map[TripletBatch] = _collate


class TripletDataset(Dataset):
    """The images of triplets, a batch at a time: `dataset[numbers]` is a `TripletBatch`.

    `DataLoader(dataset, batch_size=64, sampler=tercet.ShuffledSampler(dataset))` gives batches of 64
    triplets, and decodes each image of a batch once. The numbers of that sampler know their epoch; with a
    plain `shuffle=True` call `set_epoch` before each epoch, or every epoch repeats its augmentations. Within
    an epoch an image is augmented in the same way in all its triplets; otherwise transforms, epochs and seeds
    are those of `ImageDataset`.

    Args:
        manifest: a `Manifest`, or any sequence of triplets such as `RandomTriplets`.
        transform: as in `ImageDataset`; it must make the images equal in size.
        catalog: what the triplets are rows of; by default the manifest's. Instead of a manifest's own one
            with the same images and classes in the same order, such as the `ShardIndex` of all its images.
        seed: names the stream of augmentations.
        layout: "unique" holds each image once; "interleaved" lays images out as q p n q p n …, the
            repeated ones too, for a network that takes triplets in that order.

    Raises:
        ValueError: no catalog, or another than that of the manifest, an unknown layout, a transform that is
            not callable, a bad seed.

    Example:
        >>> import pathlib
        >>> from tercet.catalog import scan_folder
        >>> from tercet.triplets.random import RandomTriplets
        >>> for name in ("ant/1.pgm", "ant/2.pgm", "bee/1.pgm"):
        ...     file = pathlib.Path("insects", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> catalog = scan_folder("insects")
        >>> dataset = TripletDataset(RandomTriplets(catalog.labels), catalog=catalog)
        >>> batch = dataset[:2]
        >>> batch.images.shape, batch.triplets.anchor, batch.triplets.negative
        (torch.Size([3, 3, 1, 2]), tensor([0, 1]), tensor([2, 2]))
    """

    def __init__(
        self,
        manifest: TripletSequence,
        transform: Any = None,
        *,
        catalog: Any = None,
        seed: int = 0,
        layout: str = "unique",
    ) -> None:
        if getattr(manifest, "kind", "triplets") != "triplets":
            raise refusal("TripletDataset", "manifest", manifest, "triplets, not pairs")
        if catalog is not None:
            refuse_other_catalog("TripletDataset", manifest, catalog)
        catalog = getattr(manifest, "catalog", None) if catalog is None else catalog
        if catalog is None:
            expected = "the Catalog that the triplets are rows of"
            raise refusal("TripletDataset", "catalog", None, expected, "only a Manifest brings its own")
        self._pictures = _Pictures("TripletDataset", catalog, transform, seed)
        self.manifest = manifest
        self.catalog = catalog
        self.layout = choice("TripletDataset", "layout", layout, ("unique", "interleaved"))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain int numbers, also in workers that are running."""
        self._pictures.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: Any) -> TripletBatch:
        """The triplets at an int, a slice, or ints [B], with their images.

        Returns:
            A batch of B triplets; B = 1 for an int.

        Raises:
            IndexError: a number outside the manifest.
            ValueError: no triplet at all, a triplet of rows outside the catalog, images of different sizes,
                a file that does not decode, or a transform that does not give an image.
            RuntimeError: the transform fails.
        """
        try:
            numbers = rows_at(index, len(self))
        except IndexError as error:
            raise IndexError(f"TripletDataset: {error}") from None
        if not numbers.size:
            raise refusal("TripletDataset", "index", index, "at least one triplet")
        rows = np.stack(self.manifest[numbers], axis=1)  # [b, 3]
        if not 0 <= rows.min() <= rows.max() < len(self.catalog):
            worst = rows.max() if rows.max() >= len(self.catalog) else rows.min()
            expected = f"rows of the catalog, from 0 to {len(self.catalog) - 1}"
            raise refusal("TripletDataset", "manifest", f"a triplet with row {worst}", expected)
        asked = index if isinstance(index, (list, tuple)) else [index] * len(numbers)
        when = np.array([self._pictures.epoch_and_view(number) for number in asked])  # [b, 2]
        drawn = np.column_stack([rows.reshape(-1), when.repeat(3, axis=0)])  # [3b, 3]: row, epoch, view
        distinct, position = np.unique(drawn, axis=0, return_inverse=True)
        contents = self._pictures.contents(distinct[:, 0].tolist())
        images = [
            self._pictures.load(row, epoch, [view], content)[0]
            for (row, epoch, view), content in zip(distinct.tolist(), contents)
        ]
        return self._batch(images, distinct[:, 0], position.reshape(-1))

    def __getitems__(self, indices: list[Any]) -> list[TripletBatch]:
        """What a DataLoader asks for: the batch, in a list that `default_collate` takes it out of."""
        return [self[indices]]

    def _batch(
        self, images: list[Tensor], rows: Int64[np.ndarray, " u"], position: Int64[np.ndarray, " c"]
    ) -> TripletBatch:
        stacked = self._pictures.stacked(images, rows.tolist())
        triplets = Triplets(*position.reshape(-1, 3).T)
        if self.layout == "interleaved":
            stacked, rows = stacked[torch.from_numpy(position)], rows[position]
            triplets = Triplets.interleaved(triplets.count)
        labels = torch.from_numpy(self.catalog.labels[rows])
        corners = Triplets(*(torch.from_numpy(np.ascontiguousarray(corner)) for corner in triplets))
        return TripletBatch(stacked, corners, labels, torch.from_numpy(np.ascontiguousarray(rows)))


class _Pictures:
    """The augmented images of a catalog, and the epoch that they are drawn in."""

    def __init__(self, owner: str, catalog: Any, transform: Any, seed: int) -> None:
        if not hasattr(catalog, "file") or not hasattr(catalog, "labels"):
            raise refusal(owner, "catalog", catalog, "a Catalog, such as tercet.scan_folder gives")
        seed = whole(owner, "seed", seed)
        if not (transform is None or callable(transform)):
            raise refusal(owner, "transform", transform, "an albumentations transform or another callable")
        self._owner = owner
        self._catalog = catalog
        self._transform = None if transform is None else KeyedTransform(transform, seed)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a plain copy of a shared tensor is not shared

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = whole(f"{self._owner}.set_epoch", "epoch", epoch)

    def epoch_and_view(self, number: Any) -> tuple[int, int]:
        """The epoch and view in which a number is drawn."""
        if isinstance(number, KeyedRow):
            return number.epoch, number.view
        return int(self._epoch[0]), 0

    def contents(self, rows: list[int]) -> list[bytes | None]:
        """The files of some rows, read together, where they lie in shards; else None for each."""
        if hasattr(self._catalog, "read"):
            return self._catalog.read(rows)
        return [None] * len(rows)

    def load(self, row: int, epoch: int, views: Sequence[int], content: bytes | None = None) -> list[Tensor]:
        """Views of one image, which is decoded once, from `content` or from its own file."""
        path = self._catalog.file(row)
        decoded = read_image(path) if content is None else decode_image(content, str(path))
        if self._transform is None:
            return [image_tensor(decoded)] * len(views)
        copies = [decoded.copy() for _ in views[1:]]  # a transform may write into its image
        try:
            images = [
                self._transform(image, epoch=epoch, sample=row, view=view)
                for image, view in zip([decoded, *copies], views)
            ]
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise RuntimeError(escaped(f"{self._owner}: the transform fails on {path}: {what}")) from error
        try:
            return [image_tensor(image) for image in images]
        except TypeError as error:
            raise ValueError(f"{self._owner}: the transform gives {error}") from None

    def stacked(self, images: list[Tensor], rows: list[int]) -> Tensor:
        """Images of one size in one tensor.

        Args:
            images: n tensors.
            rows: n rows, for the sentence.
        """
        for image, row in zip(images, rows):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"{self._owner}: images of one batch have different sizes, {list(images[0].shape)} of "
                    f"{self._catalog.file(rows[0])} and {list(image.shape)} of {self._catalog.file(row)}; "
                    "give a transform that resizes or crops, such as albumentations.Resize(224, 224)"
                )
        return torch.stack(images)


def _row_number(row: Any, length: int) -> int:
    try:
        number = operator.index(row)
    except TypeError:
        raise TypeError(f"ImageDataset: expected a row number, got {row!r}") from None
    if not -length <= number < length:
        raise IndexError(f"ImageDataset: expected a row from 0 to {length - 1}, got {number}")
    return number % length


def image_tensor(image: Any) -> Tensor:
    """A tensor as it is, an array [h, w, c] or [h, w] as float32 [c, h, w]; uint8 becomes [0, 1].

    Raises:
        TypeError: anything else, with what it is and the way out.
    """
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray) and image.ndim == 2:
        image = image[..., None]
    if not isinstance(image, np.ndarray):
        got = f"{type(image).__name__}"
    elif image.ndim == 3 and image.shape[2] <= 4 and (image.dtype == np.uint8 or image.dtype.kind == "f"):
        chw = np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C")
        return torch.from_numpy(chw).div_(255) if image.dtype == np.uint8 else torch.from_numpy(chw)
    else:
        got = f"an array of {image.dtype} {list(image.shape)}"
    raise TypeError(
        f"{got}; expected a tensor, or a numpy array of uint8 or floats, [h, w] or [h, w, c] with c up to 4"
    )
