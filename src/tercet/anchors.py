"""Triplets batched by anchor, so that an image that many of them share is decoded and embedded once."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from tercet.checks import label_codes, refusal, whole
from tercet.epochs import EpochSampler
from tercet.randomness import KeyedRow, derive_key, keyed_bits
from tercet.tuples import Triplets, TripletSequence

__all__ = ["AnchorSampler"]

_READ = 2**18  # triplets read at a time


class AnchorSampler(EpochSampler):
    """Batches of all triplets of some anchors, for `DataLoader(TripletDataset(…), batch_sampler=…)`.

    With P positives and for each Q negatives, an anchor has P · Q triplets of 1 + P + P · Q images, where one
    at a time they would be 3 · P · Q: with P = 10 and Q = 5 that is 1.22 images a triplet and not 3. Several
    anchors of one class in a batch share positives as well. `TripletDataset` gives each image of a batch
    once, and a loss over `TripletBatch.triplets` is the same number as over all three images of each, unless
    the model looks across the batch, as batch normalisation does in training.

    Anchors are joined in bundles of up to `per_class` of one class; S = ⌈bundles / (anchors / per_class)⌉
    batches, rounded up to a multiple of `world_size`, each take ⌊bundles / S⌋ or ⌈bundles / S⌉ of them. Each
    triplet comes exactly once an epoch. (Only with one bundle a batch can rounding up make more batches than
    bundles; then the first batches, at most `world_size` − 1, come once more, as a further view.) Which
    anchors meet is drawn anew for each epoch, in such a way that batches have about equally many triplets:
    bundles in order of their number of triplets, equal ones shuffled, are dealt S at a time, one to each.

    The anchors of all triplets are read once. The state is a few integers; the memory, 24 bytes a triplet.

    Args:
        triplets: a `Manifest`, or any sequence of triplets such as `RandomTriplets`; or `Triplets`.
        anchors: the most anchors in a batch, a multiple of `per_class`.
        per_class: how many anchors of one class are joined.
        labels: [n] the class of each image that the triplets name, whole numbers or strings; by default those
            of the manifest's catalog. Read only where `per_class` is above 1.
        seed: the same seed gives the same batches, on any machine.
        rank: the part of the batches that this process takes, from 0.
        world_size: the number of processes; each takes equally many batches.

    Attributes:
        anchors_in_all: how many different anchors the triplets have.

    Raises:
        ValueError: an argument out of range, no triplets, no labels for `per_class`, or fewer bundles than
            processes.

    Example:
        >>> from tercet.triplets.random import RandomTriplets
        >>> triplets = RandomTriplets(["ant"] * 4 + ["bee"] * 4, positives=3, negatives=2)
        >>> sampler = AnchorSampler(triplets, anchors=4)
        >>> len(triplets), len(sampler), [len(numbers) for numbers in sampler]
        (48, 2, [24, 24])
        >>> len(set(triplets[sampler.batch(epoch=0, step=0)].anchor.tolist()))
        4
    """

    def __init__(
        self,
        triplets: Triplets | TripletSequence,
        anchors: int = 16,
        *,
        per_class: int = 1,
        labels: Any = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        owner = "AnchorSampler"
        self.per_class = whole(owner, "per_class", per_class, 1)
        self.anchors = whole(owner, "anchors", anchors, 1)
        if self.anchors % self.per_class:
            raise refusal(owner, "anchors", anchors, f"a multiple of per_class={self.per_class}")
        column = _anchors(triplets)
        if not len(column):
            raise refusal(owner, "triplets", triplets, "at least one triplet")
        self._numbers = np.argsort(column, kind="stable")  # [t], anchor after anchor
        rows, self._first, self._counts = np.unique(
            column[self._numbers], return_index=True, return_counts=True
        )
        self.anchors_in_all = len(rows)
        self._class = np.arange(len(rows))  # of each anchor; alone without per_class
        if self.per_class > 1:
            self._class = _classes(triplets, labels, rows)
        sizes = np.bincount(self._class)
        self._hands = -(-sizes // self.per_class)  # bundles of each class
        self._bundles, each = int(self._hands.sum()), self.anchors // self.per_class
        if self._bundles < self.world_size:
            expected = f"at most {self._bundles}, as there are so many bundles of anchors"
            raise refusal(owner, "world_size", world_size, expected)
        self._length = -(-self._bundles // (each * self.world_size))  # of this rank
        self._block = 1
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None
        self._settings = {
            "anchors": self.anchors,
            "per_class": self.per_class,
            "seed": self.seed,
            "world_size": self.world_size,
            "triplets": zlib.crc32(column.astype("<i8").tobytes()),
            "labels": zlib.crc32(self._class.astype("<i8").tobytes()),
        }

    def batch(self, epoch: int, step: int) -> list[KeyedRow]:
        """The numbers of the triplets at `step` of `epoch`, those of an anchor side by side.

        Raises:
            ValueError: a negative epoch, or a step outside it.
        """
        step = whole("AnchorSampler.batch", "step", step, 0, len(self) - 1)
        return self._items(whole("AnchorSampler.batch", "epoch", epoch), step, step + 1)[0]

    def _items(self, epoch: int, start: int, stop: int) -> list[list[KeyedRow]]:
        order, ends = self._planned(epoch)
        items = []
        for step in range(start, stop):
            lap, batch = divmod(step * self.world_size + self.rank, self._bundles)
            here = order[ends[batch] : ends[batch + 1]].tolist()
            parts = [
                self._numbers[self._first[anchor] : self._first[anchor] + self._counts[anchor]]
                for anchor in here
            ]
            items.append([KeyedRow(number, epoch, lap) for number in np.concatenate(parts).tolist()])
        return items

    def _planned(self, epoch: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " s"]]:
        """The anchors of an epoch, batch after batch, and where each batch begins; then the end."""
        if self._plan is None or self._plan[0] != epoch:
            batch, bundle = self._plan_epoch(derive_key("AnchorSampler", self.seed, epoch))
            order = np.lexsort((bundle, batch))
            starts = np.searchsorted(batch[order], np.arange(len(self) * self.world_size + 1))
            self._plan = epoch, order, starts
        return self._plan[1:]

    def _plan_epoch(self, key: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " a"]]:
        """The batch and the bundle of each anchor."""
        shuffled = keyed_bits(derive_key("anchors", key), np.arange(self.anchors_in_all))
        order = np.lexsort((shuffled, self._class))
        sizes = np.bincount(self._class)
        of = self._class[order]
        nth = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[of]  # within the class
        bundle = np.empty(len(order), dtype=np.int64)
        # Five anchors at four a bundle are three and two, not four and one.
        bundle[order] = (np.cumsum(self._hands) - self._hands)[of] + nth * self._hands[of] // sizes[of]
        weight = np.bincount(bundle, weights=self._counts).astype(np.int64)
        steps = len(self) * self.world_size
        tied = keyed_bits(derive_key("bundles", key), np.arange(len(weight)))
        round_of = np.empty(len(weight), dtype=np.int64)
        round_of[np.lexsort((tied, -weight))] = np.arange(len(weight)) // steps
        dealt = np.lexsort((keyed_bits(derive_key("batches", key), np.arange(len(weight))), round_of))
        batch = np.empty(len(weight), dtype=np.int64)
        batch[dealt] = np.arange(len(weight)) % steps
        return batch[bundle], bundle


def _anchors(triplets: Any) -> Int[np.ndarray, " t"]:
    """The anchor of each triplet."""
    if isinstance(triplets, Triplets):
        columns = [np.asarray(column) for column in triplets]
        shapes = {column.shape for column in columns}
        if any(column.dtype.kind not in "iu" and column.size for column in columns) or len(shapes) > 1:
            shown = ", ".join(f"{column.dtype} {column.shape}" for column in columns)
            raise refusal("AnchorSampler", "triplets", shown, "three columns of row numbers, of one length")
        return columns[0].astype(np.int64)
    if not isinstance(triplets, TripletSequence) or getattr(triplets, "kind", "triplets") != "triplets":
        shown = getattr(triplets, "kind", type(triplets).__name__)
        raise refusal("AnchorSampler", "triplets", shown, "a Manifest or another sequence of triplets")
    if len(triplets) and not isinstance(triplets[:1], Triplets):
        shown = f"{type(triplets).__name__} of {type(triplets[:1]).__name__}"
        raise refusal("AnchorSampler", "triplets", shown, "a Manifest or another sequence of triplets")
    parts = [np.empty(0, dtype=np.int64)]
    parts += [triplets[first : first + _READ].anchor for first in range(0, len(triplets), _READ)]
    return np.concatenate(parts)


def _classes(triplets: Any, labels: Any, rows: Int[np.ndarray, " a"]) -> Int[np.ndarray, " a"]:
    """The class number of each anchor."""
    if labels is None:
        labels = getattr(getattr(triplets, "catalog", None), "labels", None)
    if labels is None:
        expected = "the class of each image, as per_class is above 1"
        raise refusal("AnchorSampler", "labels", None, expected, "only a Manifest brings its own")
    codes, _ = label_codes("AnchorSampler", labels)
    if rows[0] < 0 or rows[-1] >= len(codes):
        expected = f"one for each image, as the triplets name row {rows[-1] if rows[0] >= 0 else rows[0]}"
        raise refusal("AnchorSampler", "labels", f"{len(codes)} labels", expected)
    return np.unique(codes[rows], return_inverse=True)[1].reshape(-1)
