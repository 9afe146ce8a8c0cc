"""From rows of a catalog to augmented images: decoding, keyed augmentation, unreadable files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tercet.core.checks import as_choice, as_int, as_seed, escaped, refusal
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits
from tercet.data.datasets.augment import KeyedTransform
from tercet.data.datasets.visits import SharedCounts, Visits
from tercet.data.io.images import decode_image, read_image

__all__ = ["Decoded", "Decoder", "DecodingDataset", "image_tensor"]

ON_UNREADABLE = ("error", "replace", "skip")


class Decoded(NamedTuple):
    """A decoded image and its row.

    Args:
        row: the row of the catalog; of the replacement, where the requested image is unreadable.
        image: uint8 [h, w, 3].
    """

    row: int
    image: np.ndarray


class Decoder:
    """Decodes and augments the images of a catalog, with an epoch and a view for each request.

    Args:
        caller: the dataset, for messages.
        catalog: a `Catalog` or a `ShardIndex`.
        transform: an albumentations transform or another callable, as for `ImageDataset`; None for none.
        seed: the seed of the augmentation.
        numbers: how many counters of visits the dataset needs; None for one a row of the catalog.
        on_unreadable: "error", "replace" or "skip".
        max_pixels: the most pixels of an image.

    Raises:
        ValueError: not a catalog, a transform that is not callable, or an option out of range.
    """

    def __init__(
        self,
        caller: str,
        catalog: Any,
        transform: Any,
        seed: int,
        numbers: int | None,
        on_unreadable: str,
        max_pixels: int,
    ) -> None:
        if not hasattr(catalog, "file") or not hasattr(catalog, "labels"):
            raise refusal(caller, "catalog", catalog, "a Catalog, such as tercet.scan_folder gives")
        self._seed = as_seed(caller, seed)
        if not (transform is None or callable(transform)):
            raise refusal(caller, "transform", transform, "an albumentations transform or another callable")
        self._caller = caller
        self._catalog = catalog
        self._transform = None if transform is None else KeyedTransform(transform, self._seed)
        self.on_unreadable = as_choice(caller, "on_unreadable", on_unreadable, ON_UNREADABLE)
        self.max_pixels = as_int(caller, "max_pixels", max_pixels, minimum=1)
        numbers = len(catalog) if numbers is None else numbers
        self.visits = Visits(caller, 1 if transform is None else numbers)
        self._failed = None if on_unreadable == "error" else SharedCounts(caller, len(catalog))

    def draws(self, asked: Sequence[Any], numbers: Sequence[int]) -> list[tuple[int, int]]:
        """The epoch and view of each request: those of a `KeyedRow`, or the next view for a plain int.

        Args:
            asked: b indices as they were requested, `KeyedRow` or int.
            numbers: the b numbers that they mean.

        Returns:
            b pairs (epoch, view).
        """
        plain = [number for one, number in zip(asked, numbers, strict=True) if not isinstance(one, KeyedRow)]
        upcoming = iter(self.visits.views(plain)) if plain else iter(())
        epoch = self.visits.epoch if plain else 0
        return [
            (one.epoch, one.view) if isinstance(one, KeyedRow) else (epoch, next(upcoming)) for one in asked
        ]

    def decoded(self, rows: Sequence[int], keys: Sequence[Any], repeats: bool) -> Iterator[Decoded | None]:
        """Decode the images of a batch one by one; files in shards are read together.

        Args:
            rows: b rows.
            keys: b keys (epoch, view), by which replacements of unreadable images are drawn.
            repeats: whether an image of the batch may be a replacement, where no other of its class decodes.

        Yields:
            b images; None for one that is skipped or has no replacement.

        Raises:
            ValueError: an image does not decode, and `on_unreadable` is "error".
        """
        taken = set(rows)
        for row, key, content in zip(rows, keys, self._contents(rows), strict=True):
            found = None
            try:
                found = Decoded(row, self._decode(row, content))
            except ValueError as error:
                if self.on_unreadable == "error":
                    raise
                self._count(row, error)
                if self.on_unreadable == "replace":
                    found = self._substitute(row, key, taken, repeats)
                    taken |= {found.row} if found else set()
            yield found

    def augmented(self, found: Decoded, sample: int, epoch: int, views: Sequence[int]) -> list[Tensor]:
        """Augmented views of an image as tensors.

        Args:
            found: the image.
            sample: the row that was requested, by which the augmentation is keyed.
            epoch: the epoch.
            views: the number of each view.

        Raises:
            RuntimeError: the transform fails.
            ValueError: the transform does not return an image.
        """
        if self._transform is None:
            return [image_tensor(found.image)] * len(views)
        copies = [found.image.copy() for _ in views[1:]]  # a transform may write into its image
        try:
            images = [
                self._transform(image, epoch=epoch, sample=sample, view=view)
                for image, view in zip([found.image, *copies], views, strict=True)
            ]
        except Exception as error:
            what = f"{self._catalog.file(found.row)}: {type(error).__name__}: {error}"
            raise RuntimeError(escaped(f"{self._caller}: the transform fails on {what}")) from error
        try:
            return [image_tensor(image) for image in images]
        except TypeError as error:
            raise ValueError(f"{self._caller}: the transform gives {error}") from None

    def stacked(self, images: list[Tensor], rows: list[int]) -> Tensor:
        """Stack images of one size.

        Args:
            images: n tensors.
            rows: their rows, for messages.

        Raises:
            ValueError: images of different sizes.
        """
        for image, row in zip(images, rows, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"{self._caller}: images of one batch have different sizes, {list(images[0].shape)} of "
                    f"{escaped(self._catalog.file(rows[0]))} and {list(image.shape)} of "
                    f"{escaped(self._catalog.file(row))}; give a transform that resizes or crops, such as "
                    "albumentations.Resize(224, 224)"
                )
        return torch.stack(images)

    def unreadable(self) -> dict[str, tuple[int, str]]:
        """By path, how often an unreadable image was requested in all workers, and why it does not decode."""
        report: dict[str, tuple[int, str]] = {}
        failed = np.empty(0) if self._failed is None else self._failed.array
        for row in np.flatnonzero(failed).tolist():
            reason = "it is readable by now"
            try:
                self._decode(row, *self._contents([row]))
            except ValueError as error:
                reason = str(error)
            report[str(self._catalog.file(row))] = int(failed[row]), reason
        return report

    def all_skipped(self, rows: Sequence[int]) -> ValueError:
        """The error for a batch in which no image decodes."""
        images = len(set(rows))
        why = f"{escaped(self._catalog.file(rows[0]))} "
        why += f"and the others of its {images} images do not decode" if images > 1 else "does not decode"
        hint = 'repair what does not, take larger batches, or pass on_unreadable="replace"'
        if images == 1:
            hint += "; a ConcatDataset asks for one image at a time, which leaves no batch to be shorter"
        return ValueError(
            f'{self._caller}(on_unreadable="{self.on_unreadable}"): nothing is left of a batch, as {why}; '
            f"{hint}"
        )

    def _contents(self, rows: Sequence[int]) -> list[bytes | None]:
        """The content of the files of some rows, read together from shards; None for each image in a file."""
        if hasattr(self._catalog, "read"):
            return self._catalog.read(list(rows))
        return [None] * len(rows)

    def _decode(self, row: int, content: bytes | None) -> np.ndarray:
        path = self._catalog.file(row)
        if content is None:
            return read_image(path, max_pixels=self.max_pixels)
        return decode_image(content, str(path), max_pixels=self.max_pixels)

    def _count(self, row: int, error: ValueError) -> None:
        """Count an image that does not decode; the first one causes a warning."""
        assert self._failed is not None
        if not self._failed.array.any():
            what = {"replace": "another of its class stands in", "skip": "its batch is shorter"}
            warnings.warn(
                f"{error} ({what[self.on_unreadable]}; {self._caller}.unreadable() tells of all)",
                stacklevel=2,
            )
        self._failed.add(row)

    def _substitute(self, row: int, key: Any, taken: set[int], repeats: bool) -> Decoded | None:
        """The first image of the class, in a keyed order, that decodes; images of the batch come last."""
        same = np.flatnonzero(np.asarray(self._catalog.labels) == self._catalog.labels[row])
        bits = keyed_bits(derive_key("stands in", self._seed, row, *key), same)
        in_batch = np.isin(same, list(taken))
        for other in same[np.lexsort((bits, in_batch))].tolist():
            if other == row or (other in taken and not repeats):
                continue
            try:
                return Decoded(other, self._decode(other, *self._contents([other])))
            except ValueError as error:
                self._count(other, error)
        if not repeats:
            return None
        path = escaped(self._catalog.file(row))
        raise ValueError(
            f'{self._caller}(on_unreadable="replace"): no image of the class of {path} decodes; repair one, '
            'or pass on_unreadable="skip"'
        )


def image_tensor(image: Any) -> Tensor:
    """An image as a tensor: an array [h, w, c] or [h, w] becomes float32 [c, h, w], uint8 scaled to [0, 1].

    A tensor is returned unchanged.

    Raises:
        TypeError: another type, number type or shape.
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


class DecodingDataset(Dataset):
    """A dataset of decoded images: what `ImageDataset`, `TripletDataset` and `PairDataset` share.

    Args:
        decoder: decodes the images, and knows the epoch.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain int indices, and count their draws from 0, also in workers that are running.

        Args:
            epoch: the epoch, from 0.

        Raises:
            ValueError: not a whole number of at least 0.
        """
        self._decoder.visits.set_epoch(epoch)

    def unreadable(self) -> dict[str, tuple[int, str]]:
        """What did not decode, in all workers together.

        Returns:
            By path, how often the image was asked for, and the reason why it does not decode.
        """
        return self._decoder.unreadable()
