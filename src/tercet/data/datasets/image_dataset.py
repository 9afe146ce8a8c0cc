"""`ImageDataset`: the images of a catalog, decoded and augmented, one a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from tercet.core.checks import as_bool, as_int, refusal
from tercet.core.indices import row_number
from tercet.data.datasets.decoding import Decoded, Decoder, DecodingDataset
from tercet.data.io.images import MAX_PIXELS

__all__ = ["ImageDataset"]


_MOST_VIEWS = 1 << 16


class ImageDataset(DecodingDataset):
    """The images of a catalog: `dataset[row]` is (image, label).

    The random draws of the transform are a function of (seed, epoch, row, view). The rows that a sampler of
    this library yields carry their epoch and view, so neither the number of workers nor resuming changes the
    images: `DataLoader(dataset, sampler=tercet.ShuffledSampler(dataset), …)`.

    For a plain int, as `shuffle=True` or a `Subset` passes it, the view counts how often the row was
    requested, in memory that all workers share. So every epoch draws anew under any sampler, and the same
    order of requests gives the same draws; `set_epoch` is not needed. To resume a loader of plain rows,
    call it before each epoch: then the first draw of a row depends on (seed, epoch, row) and the rank alone.
    A `Subset` turns the rows of a sampler into plain ints; `catalog.select(rows)` is a subset that does not.
    A new dataset counts from 0.

    The transform gets uint8 [h, w, 3], RGB. A tensor that it returns is the image. A numpy array, [h, w] or
    [h, w, c], becomes float32 [c, h, w], divided by 255 if it is uint8; the same holds without a transform.
    Images of different sizes need a `collate_fn` that can batch them.

    Args:
        catalog: a `Catalog` or a `ShardIndex`; its `labels`, `file(row)`, `len` and, if there is one, `read`
            are used.
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)`, or as `transform(image, rng=rng)` with a `numpy.random.Generator` if
            it has a parameter `rng`. `KeyedTransform` describes how it is keyed. None for no transform.
        seed: a whole number of at least 0; another seed gives other augmentations.
        views: the number of augmented views of an image; 2 or more are stacked.
        return_rows: return (image, label, row) instead of (image, label).
        on_unreadable: what to do with an image that does not decode: raise an error ("error"); replace it by
            another of its class, if possible one that is not in the batch ("replace"; `row` is then that of
            the replacement); or leave it out of its batch ("skip"), which then is not P×K any more. The first
            such image causes a warning, and `unreadable()` lists all.
        max_pixels: the most pixels of an image; one with more does not decode. It is compared with the
            header, so that a small file cannot unpack to gigabytes.

    Raises:
        ValueError: not a catalog, a transform that is not callable, or an option out of range.
        OSError: not enough shared memory for the counters, 4 bytes a row.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
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
        on_unreadable: str = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(Decoder("ImageDataset", catalog, transform, seed, None, on_unreadable, max_pixels))
        self.catalog = catalog
        self.views = as_int("ImageDataset", "views", views, minimum=1)
        if self.views > _MOST_VIEWS:
            raise refusal("ImageDataset", "views", views, f"at most {_MOST_VIEWS}, which come stacked")
        self.return_rows = as_bool("ImageDataset", "return_rows", return_rows)

    def __len__(self) -> int:
        return len(self.catalog)

    def __repr__(self) -> str:
        views = f", views={self.views}" if self.views > 1 else ""
        return f"ImageDataset({len(self)} images, {len(self.classes)} classes{views})"

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, int64 [n]: what a sampler takes."""
        return self.catalog.labels

    @property
    def targets(self) -> np.ndarray:
        """`labels`, by torchvision's name."""
        return self.catalog.labels

    @property
    def classes(self) -> list[str]:
        """The class names, by label."""
        return self.catalog.classes

    def __getitem__(self, row: Any) -> tuple[Any, ...]:
        """The image at a row, and its label.

        Args:
            row: an int or a `KeyedRow`; negative numbers count from the end.

        Returns:
            (image [c, h, w] or [views, c, h, w], label), or (image, label, row); label and row are ints.

        Raises:
            IndexError: a number outside the catalog.
            ValueError: the file does not decode and has no replacement, or the transform returns no image.
            RuntimeError: the transform fails.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[Any]) -> list[tuple[Any, ...]]:
        """What a DataLoader asks for: the items of a batch, whose files are read together from shards."""
        hint = "pass a sampler of batches as batch_sampler="
        numbers = [row_number("ImageDataset", row, len(self), hint) for row in rows]
        keys = self._decoder.draws(rows, numbers)
        decoded = self._decoder.decoded(numbers, keys, repeats=True)
        items = [
            self._item(number, *key, found)
            for number, key, found in zip(numbers, keys, decoded, strict=True)
            if found is not None
        ]
        if numbers and not items:
            raise self._decoder.all_skipped(numbers)
        return items

    def _item(self, number: int, epoch: int, view: int, found: Decoded) -> tuple[Any, ...]:
        views = range(view * self.views, (view + 1) * self.views)
        images = self._decoder.augmented(found, number, epoch, views)
        image = images[0] if self.views == 1 else self._decoder.stacked(images, [found.row] * self.views)
        label = int(self.catalog.labels[found.row])
        return (image, label, found.row) if self.return_rows else (image, label)
