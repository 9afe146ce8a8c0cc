"""Batches of listed triplets or pairs, each image of a batch decoded, augmented and embedded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from tercet.core.checks import as_bool, as_choice, refusal
from tercet.core.indices import LabeledPairs, Pairs, PairSequence, Triplets, TripletSequence, rows_at
from tercet.core.randomness import KeyedRow, derive_key
from tercet.data.datasets.decoding import Decoder
from tercet.data.io.images import MAX_PIXELS
from tercet.data.manifests.provenance import refuse_other_catalog
from tercet.data.samplers.by_anchor import images_each

__all__ = ["PairBatch", "PairDataset", "TripletBatch", "TripletDataset"]

_MOST_COUNTERS = 1 << 20  # of visits; a virtual sequence can be of any length


class _Batch:
    """Images, positions in them, and what each image is: what `TripletBatch` and `PairBatch` share."""

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        """The batch on another device."""
        caller = f"{type(self).__name__}.to"
        non_blocking = as_bool(caller, "non_blocking", non_blocking)
        try:
            where = torch.device(device)
            return self._each(lambda tensor: tensor.to(where, non_blocking=non_blocking))
        except (RuntimeError, TypeError, AssertionError) as error:  # no device, or none of this machine
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
    """One batch out of several, end to end; an image of two of them stays twice."""
    if len(batch) == 1:
        return batch[0]
    images, tuples, labels, rows = zip(*batch)
    starts = np.cumsum([0, *map(len, rows)]).tolist()
    columns = [torch.cat([one + start for one, start in zip(column, starts)]) for column in zip(*tuples)]
    joined = type(tuples[0])(*columns)
    return type(batch[0])(torch.cat(images), joined, torch.cat(labels), torch.cat(rows))


# The way that torch documents for teaching `default_collate` a type.
default_collate_fn_map.update({TripletBatch: _collate, PairBatch: _collate})


class _ListedDataset(Dataset):
    """Rows that are listed together, a batch at a time: what `TripletDataset` and `PairDataset` share."""

    _kind: str  # "triplets" or "pairs"

    def __init__(
        self,
        manifest: Any,
        transform: Any,
        catalog: Any,
        seed: int,
        on_unreadable: str,
        max_pixels: int,
    ) -> None:
        caller, kind = type(self).__name__, self._kind
        if getattr(manifest, "kind", "triplets") != kind:
            hint = "TripletDataset takes triplets, and PairDataset pairs"
            raise refusal(caller, "manifest", manifest, f"a manifest or another sequence of {kind}", hint)
        if catalog is not None:
            refuse_other_catalog(caller, manifest, catalog)
        catalog = getattr(manifest, "catalog", None) if catalog is None else catalog
        if catalog is None:
            expected = f"the Catalog that the {kind} are rows of"
            raise refusal(caller, "catalog", None, expected, "only a Manifest brings its own")
        if isinstance(manifest, (Triplets, LabeledPairs)):
            hint = "write them with tercet.write_manifest, and pass what read_manifest gives"
            raise refusal(caller, "manifest", manifest, f"a sequence of {kind}, not their columns", hint)
        images_each(manifest, caller, "manifest")
        counters = min(len(manifest), _MOST_COUNTERS)
        self._decoder = Decoder(caller, catalog, transform, seed, counters, on_unreadable, max_pixels)
        self.manifest = manifest
        self.catalog = catalog

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain int numbers, and count batches from 0, also in workers that are running.

        Args:
            epoch: the epoch, from 0.

        Raises:
            ValueError: not a whole number of at least 0.
        """
        self._decoder.visits.set_epoch(epoch)

    def unreadable(self) -> dict[str, tuple[int, str]]:
        """What did not decode: path → (how often it was asked for, the reason), in all workers together."""
        return self._decoder.unreadable()

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """What a DataLoader asks for: the batch, in a list that `default_collate` takes it out of."""
        return [self[indices]]

    def _images(self, index: Any) -> tuple[Any, list[Tensor], np.ndarray, np.ndarray]:
        """What is listed at an index, less what is skipped: with its images, their rows, and positions."""
        listed, rows, keys = self._listed(index)
        drawn = np.column_stack([rows.reshape(-1), keys.repeat(rows.shape[1], axis=0)])  # [b·c, 3]
        distinct, position = np.unique(drawn, axis=0, return_inverse=True)
        position = position.reshape(rows.shape)  # [b, c]
        images: list[Tensor] = []
        place = np.full(len(distinct), -1)  # of each image among those that are not skipped
        for number, found in enumerate(self._decoder.decoded(*_columns(distinct), repeats=False)):
            if found is not None:
                place[number] = len(images)
                row, epoch, view = distinct[number].tolist()
                images += self._decoder.augmented(found, row, epoch, [view])
                distinct[number, 0] = found.row
        whole = (place >= 0)[position].all(axis=1)  # [b]
        if not whole.any():
            raise self._decoder.all_skipped(distinct[:, 0].tolist())
        used, position = np.unique(position[whole], return_inverse=True)
        kept = [images[at] for at in place[used].tolist()]
        listed = type(listed)(*(column[whole] for column in listed))
        return listed, kept, distinct[used, 0], position.reshape(-1, rows.shape[1])

    def _listed(self, index: Any) -> tuple[Any, Int64[np.ndarray, "b c"], Int64[np.ndarray, "b 2"]]:
        """What is listed at an index, its rows of the catalog, and the epoch and view of each."""
        caller = type(self).__name__
        try:
            numbers = rows_at(index, len(self))
        except IndexError as error:
            raise IndexError(f"{caller}: {error}") from None
        if not numbers.size:
            raise refusal(caller, "index", index, f"at least one {self._kind.removesuffix('s')}")
        listed = self.manifest[numbers]
        rows = np.stack(self._corners(listed), axis=1)
        if not 0 <= rows.min() <= rows.max() < len(self.catalog):
            worst = rows.max() if rows.max() >= len(self.catalog) else rows.min()
            expected = f"rows of the catalog, from 0 to {len(self.catalog) - 1}"
            raise refusal(caller, "manifest", f"a {self._kind.removesuffix('s')} with row {worst}", expected)
        asked = index if isinstance(index, (list, tuple)) else [index] * len(numbers)
        keys = np.array([(one.epoch, one.view) if isinstance(one, KeyedRow) else (-1, 0) for one in asked])
        plain = keys[:, 0] < 0
        if plain.any():
            keys[plain] = self._next(int(numbers[plain][0]))
        return listed, rows, keys

    def _next(self, first: int) -> tuple[int, int]:
        """The epoch and the view of a batch of plain numbers.

        One view for all, so that each image comes once. It is named by the first number and by how often
        a batch began with that one, so each batch draws anew, in the same way with any number of workers.
        """
        visits = self._decoder.visits
        return visits.epoch, derive_key("batch", first, *visits.views([first])) >> 1

    def _corners(self, listed: Any) -> Sequence[np.ndarray]:
        """The columns of what is listed that are rows of the catalog."""
        return listed

    def _labels(self, rows: Int64[np.ndarray, " u"]) -> tuple[Int64[Tensor, " u"], Int64[Tensor, " u"]]:
        """Labels and rows of images as tensors."""
        return torch.from_numpy(self.catalog.labels[rows]), torch.from_numpy(np.ascontiguousarray(rows))


class TripletDataset(_ListedDataset):
    """The images of triplets, a batch at a time: `dataset[numbers]` is a `TripletBatch`.

    `DataLoader(dataset, batch_size=64, sampler=tercet.ShuffledSampler(dataset))` gives batches of 64
    triplets, and decodes each image of a batch once. The numbers of that sampler, or of `AnchorSampler`, know
    their epoch: in an epoch an image is augmented in the same way in all its triplets. A batch of plain ints,
    as `shuffle=True` or a `Subset` asks for it, draws anew each time, whatever the epoch, in a way that
    depends on its first number and on how often a batch began with it since `set_epoch`; so the same
    batches in the same order draw the same with any number of workers. Otherwise transforms, epochs and seeds
    are those of `ImageDataset`.

    Args:
        manifest: a `Manifest`, or any sequence of triplets such as `RandomTriplets`.
        transform: as in `ImageDataset`; it must make the images equal in size.
        catalog: what the triplets are rows of; by default the manifest's. Instead of a manifest's own one
            with the same images and classes in the same order, such as the `ShardIndex` of all its images.
        seed: names the stream of augmentations.
        layout: "unique" holds each image once; "interleaved" lays images out as q p n q p n …, the
            repeated ones too, for a network that takes triplets in that order.
        on_unreadable: an image that does not decode is an error ("error"), gives way to another of its class
            that is not in the batch ("replace"), or its triplets are left out of their batch ("skip"), as
            they are where none can stand in. The first such image is warned of, and `unreadable()` tells of
            all.
        max_pixels: how many pixels an image may have: one of more does not decode. It is compared with the
            header, so that a small file does not unpack to gigabytes.

    Raises:
        ValueError: pairs instead of triplets, no catalog, or another than that of the manifest, an option out
            of range, or a transform that is not callable.
        OSError: no shared memory for the counters, up to 4 MiB.

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

    _kind = "triplets"

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
        super().__init__(manifest, transform, catalog, seed, on_unreadable, max_pixels)
        self.layout = as_choice("TripletDataset", "layout", layout, ("unique", "interleaved"))

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
        _, images, rows, position = self._images(index)
        stacked = self._decoder.stacked(images, rows.tolist())
        triplets = Triplets(*position.T)
        if self.layout == "interleaved":
            stacked, rows = stacked[torch.from_numpy(position.reshape(-1))], rows[position.reshape(-1)]
            triplets = Triplets.interleaved(triplets.count)
        corners = Triplets(*(torch.from_numpy(np.ascontiguousarray(corner)) for corner in triplets))
        return TripletBatch(stacked, corners, *self._labels(rows))


class PairDataset(_ListedDataset):
    """The images of labeled pairs, a batch at a time: `dataset[numbers]` is a `PairBatch`.

    As `TripletDataset`, for manifests of pairs: `PairBatch.pairs` is what heads take, the positive pairs
    apart from the negative ones. `AnchorSampler` batches the pairs of some first images.

    Args:
        manifest: a `Manifest` of pairs, or any sequence of labeled pairs such as `RandomPairs`.
        transform: as in `ImageDataset`; it must make the images equal in size.
        catalog: what the pairs are rows of; by default the manifest's. Instead of a manifest's own one
            with the same images and classes in the same order, such as the `ShardIndex` of all its images.
        seed: names the stream of augmentations.
        on_unreadable: "error", "replace" or "skip", as in `TripletDataset`.
        max_pixels: how many pixels an image may have: one of more does not decode. It is compared with the
            header, so that a small file does not unpack to gigabytes.

    Raises:
        ValueError: triplets instead of pairs, no catalog, or another than that of the manifest, an option out
            of range, or a transform that is not callable.
        OSError: no shared memory for the counters, up to 4 MiB.

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

    _kind = "pairs"

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
        super().__init__(manifest, transform, catalog, seed, on_unreadable, max_pixels)

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
        listed, images, rows, position = self._images(index)
        first, second, same = (torch.from_numpy(np.ascontiguousarray(c)) for c in (*position.T, listed.same))
        pairs = LabeledPairs(first, second, same).as_pairs()
        return PairBatch(self._decoder.stacked(images, rows.tolist()), pairs, *self._labels(rows))

    def _corners(self, listed: LabeledPairs) -> Sequence[np.ndarray]:
        return listed[:2]


def _columns(distinct: Int64[np.ndarray, "u 3"]) -> tuple[list[int], list[tuple[int, int]]]:
    """Rows, and (epoch, view) of each, as plain ints."""
    return distinct[:, 0].tolist(), [(epoch, view) for epoch, view in distinct[:, 1:].tolist()]
