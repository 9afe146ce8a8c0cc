"""`TripletDataset` and `PairDataset`: batches of listed triplets or pairs that hold each image once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from tercet.core.checks import Refusal, as_bool, as_choice, border, refusal
from tercet.core.indices import LabeledPairs, Pairs, PairSequence, Triplets, TripletSequence, rows_at
from tercet.core.randomness import KeyedRow, derive_key
from tercet.data.datasets.decoding import Decoder, DecodingDataset
from tercet.data.io.images import MAX_PIXELS
from tercet.data.manifests.provenance import refuse_other_catalog
from tercet.data.samplers.by_anchor import images_each

__all__ = ["PairBatch", "PairDataset", "TripletBatch", "TripletDataset"]

MOST_COUNTERS = 1 << 20  # counters of visits; a virtual sequence can be of any length


class _Batch:
    """What `TripletBatch` and `PairBatch` share: unpacking and moving to a device."""

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        """The batch on another device.

        Args:
            device: the device, such as "cuda:0".
            non_blocking: copy asynchronously where possible.

        Returns:
            A new batch; tensors that are there already are not copied.

        Raises:
            ValueError: no such device, or `non_blocking` is not a boolean.
        """
        caller = f"{type(self).__name__}.to"
        non_blocking = as_bool(caller, "non_blocking", non_blocking)
        try:
            where = torch.device(device)
            return self._each(lambda tensor: tensor.to(where, non_blocking=non_blocking))
        except (RuntimeError, TypeError, AssertionError) as error:  # not a device, or not one of this machine
            said = str(error).partition("\n")[0]
            raise refusal(caller, "device", device, 'a device, such as "cpu" or "cuda:0"', said) from None

    def pin_memory(self) -> Any:
        """The batch in page-locked memory; a DataLoader calls it where `pin_memory=True`."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Any) -> Any:
        kind: Any = type(self)
        images, tuples, labels, rows = self
        return kind(function(images), type(tuples)(*map(function, tuples)), function(labels), function(rows))


@dataclass(frozen=True, eq=False)
class TripletBatch(_Batch):
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


@dataclass(frozen=True, eq=False)
class PairBatch(_Batch):
    """A batch of pairs that holds each image once: `images, pairs, labels, rows = batch`.

    Args:
        images: [u, …], the distinct images, by catalog row.
        pairs: `Pairs` of torch int64, positions in `images`: the positive pairs, then the negative ones.
        labels: int64 [u].
        rows: int64 [u], rows of the catalog.

    Example:
        >>> pairs = Pairs(*torch.tensor([[0], [1], [0], [2]]))
        >>> labels, rows = torch.tensor([0, 0, 1]), torch.tensor([4, 7, 9])
        >>> batch = PairBatch(torch.zeros(3, 3, 8, 8), pairs, labels, rows)
        >>> batch.rows[batch.pairs.positive], batch.rows[batch.pairs.negative]
        (tensor([7]), tensor([9]))
    """

    images: Shaped[Tensor, "u *shape"]
    pairs: Pairs
    labels: Int64[Tensor, " u"]
    rows: Int64[Tensor, " u"]


def _collate(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    """Concatenate batches; an image that is in two of them occurs twice."""
    if len(batch) == 1:
        return batch[0]
    images, tuples, labels, rows = zip(*batch, strict=True)
    starts = np.cumsum([0, *map(len, rows[:-1])]).tolist()
    columns = [
        torch.cat([one + start for one, start in zip(column, starts, strict=True)])
        for column in zip(*tuples, strict=True)
    ]
    joined = type(tuples[0])(*columns)
    return type(batch[0])(torch.cat(images), joined, torch.cat(labels), torch.cat(rows))


# The documented way to register a type with `default_collate`.
default_collate_fn_map.update({TripletBatch: _collate, PairBatch: _collate})


class _Listed(NamedTuple):
    """What `_ListedImages.batch` gives: b triplets or pairs of u images.

    Attributes:
        tuples: the triplets or pairs that are not skipped, as the manifest gives them.
        images: [u, …], the distinct images.
        rows: int64 [u], the row of the catalog that each image is of.
        position: int64 [b, c], the positions of each triplet or pair in `images`.
    """

    tuples: Any
    images: Tensor
    rows: Int64[np.ndarray, " u"]
    position: Int64[np.ndarray, "b c"]


class _ListedImages:
    """The images of listed triplets or pairs, each decoded once a batch; one for each dataset.

    Args:
        caller: the dataset, for messages.
        kind: "triplets" or "pairs".
        manifest: a `Manifest` of that kind, or another sequence of it.
        transform, catalog, seed, on_unreadable, max_pixels: as for `TripletDataset`.

    Raises:
        ValueError: as for `TripletDataset`.
        OSError: no shared memory for the counters.
    """

    def __init__(
        self,
        caller: str,
        kind: str,
        manifest: Any,
        transform: Any,
        catalog: Any,
        seed: int,
        on_unreadable: str,
        max_pixels: int,
    ) -> None:
        with border(caller, "manifest"):
            self.catalog = _catalog_of(kind, manifest, catalog)
            images_each(manifest)
        counters = min(len(manifest), MOST_COUNTERS)
        self.decoder = Decoder(caller, self.catalog, transform, seed, counters, on_unreadable, max_pixels)
        self._caller, self._one, self._manifest = caller, kind.removesuffix("s"), manifest
        self._corners = 2 if kind == "pairs" else 3  # columns that are rows of the catalog

    def batch(self, index: Any) -> _Listed:
        """The triplets or pairs at an index, less those that are skipped, with their images."""
        tuples, rows, keys = self._at(index)
        wanted = np.column_stack([rows.reshape(-1), keys.repeat(rows.shape[1], axis=0)])  # [b·c, 3]
        distinct, position = np.unique(wanted, axis=0, return_inverse=True)
        position = position.reshape(rows.shape)  # [b, c]
        images: list[Tensor] = []
        place = np.full(len(distinct), -1)  # of each image among those that are not skipped
        row_keys = [(epoch, view) for epoch, view in distinct[:, 1:].tolist()]
        decoded = self.decoder.decoded(distinct[:, 0].tolist(), row_keys, repeats=False)
        for number, found in enumerate(decoded):
            if found is not None:
                place[number] = len(images)
                row, epoch, view = distinct[number].tolist()
                images += self.decoder.augmented(found, row, epoch, [view])
                distinct[number, 0] = found.row
        complete = (place >= 0)[position].all(axis=1)  # [b]
        if not complete.any():
            raise self.decoder.all_skipped(distinct[:, 0].tolist())
        used, position = np.unique(position[complete], return_inverse=True)
        rows_used = distinct[used, 0]
        stacked = self.decoder.stacked([images[at] for at in place[used].tolist()], rows_used.tolist())
        tuples = type(tuples)(*(column[complete] for column in tuples))
        return _Listed(tuples, stacked, rows_used, position.reshape(-1, rows.shape[1]))

    def labels_and_rows(
        self, rows: Int64[np.ndarray, " u"]
    ) -> tuple[Int64[Tensor, " u"], Int64[Tensor, " u"]]:
        """Labels and rows of images as tensors."""
        return torch.from_numpy(self.catalog.labels[rows]), torch.from_numpy(np.ascontiguousarray(rows))

    def _at(self, index: Any) -> tuple[Any, Int64[np.ndarray, "b c"], Int64[np.ndarray, "b 2"]]:
        """The triplets or pairs at an index, their rows of the catalog, and the epoch and view of each."""
        try:
            numbers = rows_at(index, len(self._manifest))
        except IndexError as error:
            raise IndexError(f"{self._caller}: {error}") from None
        if not numbers.size:
            raise refusal(self._caller, "index", index, f"at least one {self._one}")
        tuples = self._manifest[numbers]
        rows = np.stack(tuples[: self._corners], axis=1)
        if not 0 <= rows.min() <= rows.max() < len(self.catalog):
            worst = rows.max() if rows.max() >= len(self.catalog) else rows.min()
            expected = f"rows of the catalog, from 0 to {len(self.catalog) - 1}"
            raise refusal(self._caller, "manifest", f"a {self._one} with row {worst}", expected)
        asked = index if isinstance(index, (list, tuple)) else [index] * len(numbers)
        keys = np.array([(one.epoch, one.view) if isinstance(one, KeyedRow) else (-1, 0) for one in asked])
        plain = keys[:, 0] < 0
        if plain.any():
            keys[plain] = self._next_key(int(numbers[plain][0]))
        return tuples, rows, keys

    def _next_key(self, first: int) -> tuple[int, int]:
        """The epoch and the view of a batch of plain ints.

        All images get one view, so that each comes once. The view is a function of the batch's first number
        and of how many batches have begun with it, so every batch is augmented anew, in the same way with any
        number of workers.
        """
        visits = self.decoder.visits
        return visits.epoch, derive_key("batch", first, *visits.views([first])) >> 1


def _catalog_of(kind: str, manifest: Any, catalog: Any) -> Any:
    """The catalog that a manifest's rows are rows of, refused unless manifest and catalog fit together."""
    if getattr(manifest, "kind", "triplets") != kind:
        hint = "TripletDataset takes triplets, and PairDataset pairs"
        raise Refusal("manifest", manifest, f"a manifest or another sequence of {kind}", hint)
    if catalog is not None:
        refuse_other_catalog(manifest, catalog)
    catalog = getattr(manifest, "catalog", None) if catalog is None else catalog
    if catalog is None:
        expected = f"the Catalog that the {kind} are rows of"
        raise Refusal("catalog", None, expected, "only a Manifest brings its own")
    if isinstance(manifest, (Triplets, LabeledPairs)):
        hint = "write them with tercet.write_manifest, and pass what read_manifest gives"
        raise Refusal("manifest", manifest, f"a sequence of {kind}, not their columns", hint)
    return catalog


class TripletDataset(DecodingDataset):
    """The images of triplets, a batch at a time: `dataset[numbers]` is a `TripletBatch`.

    `DataLoader(dataset, batch_size=64, sampler=tercet.ShuffledSampler(dataset))` gives batches of 64 triplets
    and decodes each image of a batch once. The numbers of that sampler, or of `AnchorSampler`, carry their
    epoch: within an epoch, an image has the same augmentation in all its triplets.

    Batches of plain ints, as `shuffle=True` or a `Subset` passes them, are augmented anew each time, whatever
    the epoch. Their draws depend on the first number of the batch and on how often a batch has begun with it
    since `set_epoch`, so the same batches in the same order draw the same with any number of workers.

    Args:
        manifest: a `Manifest` of triplets, or another sequence of triplets such as `RandomTriplets`.
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)`, or as `transform(image, rng=rng)` with a `numpy.random.Generator` if
            it has a parameter `rng`. It gets uint8 [h, w, 3] and must return images of one size: tensors, or
            arrays, which become float32 [c, h, w], divided by 255 if uint8. None for no transform.
        catalog: the catalog whose rows the triplets are; by default the manifest's. In place of the
            manifest's own, one with the same images and classes in the same order, such as a `ShardIndex`.
        seed: a whole number of at least 0; another seed gives other augmentations.
        layout: "unique" holds each image once; "interleaved" lays images out as q p n q p n …, with
            repetitions, for a network that takes triplets in that order.
        on_unreadable: what to do with an image that does not decode: raise an error ("error"); replace it by
            another of its class that is not in the batch ("replace"); or leave its triplets out of the batch
            ("skip"), as is done where there is no replacement. The first such image causes a warning, and
            `unreadable()` lists all.
        max_pixels: the most pixels of an image; one with more does not decode. It is compared with the
            header, so that a small file cannot unpack to gigabytes.

    Raises:
        ValueError: pairs instead of triplets, no catalog, a catalog that does not fit the manifest, an option
            out of range, or a transform that is not callable.
        OSError: not enough shared memory for the counters, up to 4 MiB.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> from tercet.data.triplets.random import RandomTriplets
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
        on_unreadable: str = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        name = type(self).__name__
        self._listed = _ListedImages(
            name, "triplets", manifest, transform, catalog, seed, on_unreadable, max_pixels
        )
        super().__init__(self._listed.decoder)
        self.manifest, self.catalog = manifest, self._listed.catalog
        self.layout = as_choice("TripletDataset", "layout", layout, ("unique", "interleaved"))

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """What a DataLoader asks for: the batch, in a list that `default_collate` takes it out of."""
        return [self[indices]]

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
        _, images, rows, position = self._listed.batch(index)
        triplets = Triplets(*position.T)
        if self.layout == "interleaved":
            images, rows = images[torch.from_numpy(position.reshape(-1))], rows[position.reshape(-1)]
            triplets = Triplets.interleaved(triplets.count)
        corners = Triplets(*(torch.from_numpy(np.ascontiguousarray(corner)) for corner in triplets))
        return TripletBatch(images, corners, *self._listed.labels_and_rows(rows))


class PairDataset(DecodingDataset):
    """The images of labeled pairs, a batch at a time: `dataset[numbers]` is a `PairBatch`.

    `PairBatch.pairs` is what loss heads take: the positive pairs separate from the negative ones.
    `DataLoader(dataset, batch_size=64, sampler=tercet.ShuffledSampler(dataset))` gives batches of 64 pairs
    and decodes each image of a batch once; `AnchorSampler` batches all pairs of some first images. The
    numbers of these samplers carry their epoch: within an epoch, an image has the same augmentation in all
    its pairs.

    Batches of plain ints, as `shuffle=True` or a `Subset` passes them, are augmented anew each time, whatever
    the epoch. Their draws depend on the first number of the batch and on how often a batch has begun with it
    since `set_epoch`, so the same batches in the same order draw the same with any number of workers.

    Args:
        manifest: a `Manifest` of pairs, or another sequence of labeled pairs such as `RandomPairs`.
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)`, or as `transform(image, rng=rng)` with a `numpy.random.Generator` if
            it has a parameter `rng`. It gets uint8 [h, w, 3] and must return images of one size: tensors, or
            arrays, which become float32 [c, h, w], divided by 255 if uint8. None for no transform.
        catalog: the catalog whose rows the pairs are; by default the manifest's. In place of the manifest's
            own, one with the same images and classes in the same order, such as a `ShardIndex`.
        seed: a whole number of at least 0; another seed gives other augmentations.
        on_unreadable: what to do with an image that does not decode: raise an error ("error"); replace it by
            another of its class that is not in the batch ("replace"); or leave its pairs out of the batch
            ("skip"), as is done where there is no replacement. The first such image causes a warning, and
            `unreadable()` lists all.
        max_pixels: the most pixels of an image; one with more does not decode. It is compared with the
            header, so that a small file cannot unpack to gigabytes.

    Raises:
        ValueError: triplets instead of pairs, no catalog, a catalog that does not fit the manifest, an option
            out of range, or a transform that is not callable.
        OSError: not enough shared memory for the counters, up to 4 MiB.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> from tercet.data.triplets.pairs import RandomPairs
        >>> for name in ("ant/1.pgm", "ant/2.pgm", "bee/1.pgm"):
        ...     file = pathlib.Path("couples", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([0, 255]))
        >>> catalog = scan_folder("couples")
        >>> images, pairs, labels, rows = PairDataset(RandomPairs(catalog.labels), catalog=catalog)[:2]
        >>> images.shape, rows[pairs.positive], rows[pairs.negative]
        (torch.Size([3, 3, 1, 2]), tensor([1]), tensor([2]))
    """

    def __init__(
        self,
        manifest: PairSequence,
        transform: Any = None,
        *,
        catalog: Any = None,
        seed: int = 0,
        on_unreadable: str = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        name = type(self).__name__
        self._listed = _ListedImages(
            name, "pairs", manifest, transform, catalog, seed, on_unreadable, max_pixels
        )
        super().__init__(self._listed.decoder)
        self.manifest, self.catalog = manifest, self._listed.catalog

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """What a DataLoader asks for: the batch, in a list that `default_collate` takes it out of."""
        return [self[indices]]

    def __getitem__(self, index: Any) -> PairBatch:
        """The pairs at an int, a slice, or ints [B], with their images.

        Returns:
            A batch of B pairs, positive and negative together; B = 1 for an int.

        Raises:
            IndexError: a number outside the manifest.
            ValueError: no pair at all, a pair of rows outside the catalog, images of different sizes, a file
                that does not decode, or a transform that does not give an image.
            RuntimeError: the transform fails.
        """
        listed, images, rows, position = self._listed.batch(index)
        columns = (*position.T, listed.same)
        first, second, same = (torch.from_numpy(np.ascontiguousarray(column)) for column in columns)
        pairs = LabeledPairs(first, second, same).as_pairs()
        return PairBatch(images, pairs, *self._listed.labels_and_rows(rows))
