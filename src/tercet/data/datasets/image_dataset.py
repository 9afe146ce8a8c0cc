"""The images of a catalog, decoded and augmented, one a row."""

from __future__ import annotations

from typing import Any

from tercet.core.checks import as_bool, as_int, refusal
from tercet.core.indices import row_number
from tercet.data.datasets.decoding import Decoded, Decoder, DecodingDataset
from tercet.data.io.images import MAX_PIXELS

__all__ = ["ImageDataset"]


_MOST_VIEWS = 1 << 16


class ImageDataset(DecodingDataset):
    """The images of a catalog: `dataset[row]` is (image, label).

    What the transform draws is a function of (seed, epoch, row, view). The rows that a sampler of this
    library hands out know their epoch and view, so neither the number of workers nor resuming changes it:
    `DataLoader(dataset, sampler=tercet.ShuffledSampler(dataset), …)`.

    For a plain int, as `shuffle=True` or a `Subset` asks for it, the view counts how often the row was asked
    for, in memory that all workers share: each epoch draws anew under any sampler, and the same order of
    requests gives the same draws. `set_epoch` is not needed. Call it before each epoch to resume a loader of
    plain rows: the first draw of a row after it depends on (seed, epoch, row) and the rank alone. A `Subset`
    makes plain ints of a sampler's rows; `catalog.select(rows)` is the subset that does not. A dataset that
    is made anew counts anew.

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
        on_unreadable: an image that does not decode is an error ("error"), gives way to another of its class,
            if possible one that is not in the batch ("replace"; `row` is then that of the other), or is
            missing in its batch ("skip"). A batch with a gap is not P×K. The first such image is warned of,
            and `unreadable()` tells of all.
        max_pixels: how many pixels an image may have: one of more does not decode. It is compared with the
            header, so that a small file does not unpack to gigabytes.

    Raises:
        ValueError: not a catalog, a transform that is not callable, or an option out of range.
        OSError: no shared memory for the counters, 4 bytes a row.

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

    def __getitem__(self, row: Any) -> tuple[Any, ...]:
        """The image at a row, and its label.

        Args:
            row: an int or a `KeyedRow`; negative numbers count from the end.

        Returns:
            (image [c, h, w] or [views, c, h, w], label), or (image, label, row); label and row are ints.

        Raises:
            IndexError: a number outside the catalog.
            ValueError: the file does not decode and nothing stands in, or the transform gives no image.
            RuntimeError: the transform fails.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[Any]) -> list[tuple[Any, ...]]:
        """What a DataLoader asks for: the items of a batch, whose files are read together from shards."""
        numbers = [row_number("ImageDataset", row, len(self)) for row in rows]
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
