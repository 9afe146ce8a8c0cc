"""Triplets or pairs batched by anchor, so that an image that many share is decoded and embedded once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from tercet.core.checks import Refusal, as_array, as_int, border, label_codes, refusal
from tercet.core.indices import LabeledPairs, PairSequence, Triplets, TripletSequence
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits
from tercet.data.samplers.resumable import EpochSampler

__all__ = ["AnchorSampler", "images_each"]

_CALLER = "AnchorSampler"
READ = 2**18  # triplets read at a time
_MOST_KEYS = 2**62  # keys of (bundle, row) pairs that int64 holds


class AnchorSampler(EpochSampler):
    """Batches of all triplets of some anchors, for `DataLoader(TripletDataset(…), batch_sampler=…)`.

    Triplets of one anchor share images. With P positives and Q negatives for each, an anchor has P · Q
    triplets of 1 + P + P · Q images, instead of 3 · P · Q when each triplet loads its own: with P = 10 and
    Q = 5 that is 1.22 images a triplet instead of 3. Anchors of one class in a batch share positives as well.
    `TripletDataset` gives each image of a batch once. A loss over `TripletBatch.triplets` has the same value
    as over all three images of each triplet, unless the model looks across the batch, as batch normalisation
    does in training.

    Each triplet comes exactly once an epoch. Anchors are joined in bundles of up to `per_class` of one class.
    An epoch has S = ⌈bundles / (anchors / per_class)⌉ batches, rounded up to a multiple of `world_size`, of
    ⌊bundles / S⌋ or ⌈bundles / S⌉ bundles each. (If that makes more batches than bundles, which needs one
    bundle a batch, the first batches, at most `world_size` − 1, come once more, as a further view.) Each
    epoch draws anew which anchors meet, in batches of about equally many triplets: bundles in order of their
    number of triplets, equal ones shuffled, are dealt out S at a time, one to each batch.

    With `images`, no batch has more distinct images than that: with P = Q = 10, 16 anchors have up to 1,776.
    The bundles are then drawn once, by the seed, for all epochs. A bundle of more images is cut into parts,
    in the order of its triplets, and each part is a bundle of its own. The bound counts an image for each
    bundle that has it, so a batch is often below the bound. Bundles are dealt out by their number of images;
    with the i-th largest number w_i, S is the smallest number of batches with

        w_1 + w_(S+1) + w_(2S+1) + … ≤ images   and   ⌈bundles / S⌉ ≤ anchors / per_class.

    The anchors of all triplets are read once, and with `images` the other columns too. The state is a few
    integers; the memory is 24 bytes a triplet.

    Args:
        triplets: a `Manifest`, any sequence of triplets such as `RandomTriplets`, or `Triplets`; for
            `PairDataset` pairs likewise, with the first image of a pair as its anchor.
        anchors: the most anchors in a batch, a multiple of `per_class`.
        images: the most distinct images in a batch, at least those of one triplet; None for no bound.
        per_class: how many anchors of one class are joined.
        labels: [n] the class of each image that the triplets name, whole numbers or strings; by default those
            of the manifest's catalog. Read only where `per_class` is above 1.
        seed: the same seed gives the same batches, on any machine.
        rank: the part of the batches that this process takes, from 0.
        world_size: the number of processes; each takes equally many batches.

    Attributes:
        anchors_in_all: how many different anchors the triplets have.

    Raises:
        ValueError: an argument out of range, no triplets or pairs, no labels for `per_class`, or fewer
            bundles than processes.

    Example:
        >>> from tercet.data.triplets.random import RandomTriplets
        >>> triplets = RandomTriplets(["ant"] * 4 + ["bee"] * 4, positives=3, negatives=2)
        >>> sampler = AnchorSampler(triplets, anchors=4)
        >>> len(triplets), len(sampler), [len(numbers) for numbers in sampler]
        (48, 2, [24, 24])
        >>> len(set(triplets[sampler.batch(epoch=0, step=0)].anchor.tolist()))
        4
        >>> [len(numbers) for numbers in AnchorSampler(triplets, anchors=4, images=16)]
        [12, 12, 12, 12]
    """

    def __init__(
        self,
        triplets: Triplets | TripletSequence | LabeledPairs | PairSequence,
        anchors: int = 16,
        *,
        images: int | None = None,
        per_class: int = 1,
        labels: Any = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.per_class = as_int(_CALLER, "per_class", per_class, 1)
        self.anchors = as_int(_CALLER, "anchors", anchors, 1)
        if self.anchors % self.per_class:
            raise refusal(_CALLER, "anchors", anchors, f"a multiple of per_class={self.per_class}")
        with border(_CALLER, "triplets"):
            self.images = None if images is None else as_int(None, "images", images, images_each(triplets))
        column = _anchors_of(triplets)
        if not len(column):
            raise refusal(_CALLER, "triplets", triplets, "at least one triplet or pair")
        self._index_anchors(column, triplets, labels)
        self._settings: dict[str, int | str] = {
            "anchors": self.anchors,
            "per_class": self.per_class,
            "seed": self.seed,
            "world_size": self.world_size,
            "triplets": zlib.crc32(column.astype("<i8").tobytes()),
            "labels": zlib.crc32(self._class.astype("<i8").tobytes()),
        }
        if self.images is not None:
            self._settings["images"] = self.images
            self._divide(triplets, self.images)
            parts = np.concatenate([self._numbers, self._first, self._weight])
            self._settings["parts"] = zlib.crc32(parts.astype("<i8").tobytes())
        self._bundles = int(self._bundles_of.sum())
        if self._bundles < self.world_size:
            expected = f"at most {self._bundles}, as there are so many bundles of anchors"
            raise refusal(_CALLER, "world_size", world_size, expected)
        self._length = self._steps(self.anchors // self.per_class)  # of this rank
        self._block = 1
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None  # of the epoch that was asked for last

    def _index_anchors(self, column: Int[np.ndarray, " t"], triplets: Any, labels: Any) -> None:
        """Note the triplets of each anchor, its class and its weight."""
        self._numbers = np.argsort(column, kind="stable")  # [t] of triplets, anchor after anchor
        # [a] of each anchor: where its triplets begin in `_numbers`, and how many there are.
        rows, self._first, self._counts = np.unique(
            column[self._numbers], return_index=True, return_counts=True
        )
        self.anchors_in_all = len(rows)
        self._class = np.arange(len(rows))  # [a]; without `per_class` each anchor is a class of its own
        if self.per_class > 1:
            self._class = _classes(triplets, labels, rows)
        self._bundles_of = -(-np.bincount(self._class) // self.per_class)  # of each class
        self._weight = self._counts  # [a] batches are made of about equal weight

    def _divide(self, triplets: Any, most: int) -> None:
        """Bundle the anchors once for all epochs; each bundle, or part of one, then stands for an anchor."""
        anchor = np.repeat(np.arange(len(self._counts)), self._counts)  # [t]
        bundle = self._bundled(derive_key("AnchorSampler bundles", self.seed))[anchor]
        order = np.argsort(bundle, kind="stable")
        self._numbers, bundle = self._numbers[order], bundle[order]
        self._first, self._weight = _divided(triplets, self._numbers, bundle, most)
        self._counts = np.diff(self._first, append=len(self._numbers))
        self._class = np.arange(len(self._first))
        self._bundles_of = np.ones(len(self._first), dtype=np.int64)

    def _steps(self, each: int) -> int:
        """The batches of each rank: the fewest of at most `each` bundles, and of few enough images."""
        steps = -(-self._bundles // (each * self.world_size))
        if self.images is None:
            return steps
        weight, most = np.sort(self._weight)[::-1], -(-self._bundles // self.world_size)
        while steps < most:  # bisection: more batches never raise the largest sum over a batch
            middle = (steps + most) // 2
            fits = weight[:: middle * self.world_size].sum() <= self.images
            steps, most = (steps, middle) if fits else (middle + 1, most)
        return steps

    def batch(self, epoch: int, step: int) -> list[KeyedRow]:
        """The numbers of the triplets at `step` of `epoch`, those of an anchor side by side.

        Args:
            epoch: the epoch, from 0.
            step: the step, from 0 to `len(self)` − 1.

        Returns:
            Numbers of triplets, each a `KeyedRow`: an int with the epoch and the view.

        Raises:
            ValueError: a negative epoch, or a step outside it.
        """
        step = as_int(f"{_CALLER}.batch", "step", step, 0, len(self) - 1)
        return self._items(as_int(f"{_CALLER}.batch", "epoch", epoch), step, step + 1)[0]

    def _items(self, epoch: int, start: int, stop: int) -> list[list[KeyedRow]]:
        order, ends = self._planned(epoch)
        items = []
        for step in range(start, stop):
            pass_, batch = divmod(step * self.world_size + self.rank, self._bundles)
            here = order[ends[batch] : ends[batch + 1]].tolist()
            parts = [
                self._numbers[self._first[anchor] : self._first[anchor] + self._counts[anchor]]
                for anchor in here
            ]
            items.append([KeyedRow(number, epoch, pass_) for number in np.concatenate(parts).tolist()])
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
        """The batch and the bundle of each anchor.

        Bundles in descending weight are cut into rounds of one for each batch; within a round the batches are
        drawn.
        """
        bundle = self._bundled(key)
        weight = np.bincount(bundle, weights=self._weight).astype(np.int64)
        steps = len(self) * self.world_size
        tied = keyed_bits(derive_key("bundles", key), np.arange(len(weight)))
        round_of = np.empty(len(weight), dtype=np.int64)
        round_of[np.lexsort((tied, -weight))] = np.arange(len(weight)) // steps
        order = np.lexsort((keyed_bits(derive_key("batches", key), np.arange(len(weight))), round_of))
        batch = np.empty(len(weight), dtype=np.int64)
        batch[order] = np.arange(len(weight)) % steps
        return batch[bundle], bundle

    def _bundled(self, key: int) -> Int[np.ndarray, " a"]:
        """The bundle of each anchor: the anchors of a class are shuffled and cut into equal runs."""
        shuffled = keyed_bits(derive_key("anchors", key), np.arange(len(self._class)))
        order = np.lexsort((shuffled, self._class))
        sizes = np.bincount(self._class)
        of = self._class[order]
        nth = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[of]  # within the class
        bundle, count = np.empty(len(order), dtype=np.int64), self._bundles_of
        # Five anchors at four a bundle are three and two, not four and one.
        bundle[order] = (np.cumsum(count) - count)[of] + nth * count[of] // sizes[of]
        return bundle


def _classes(triplets: Any, labels: Any, rows: Int[np.ndarray, " a"]) -> Int[np.ndarray, " a"]:
    """The class number of each anchor."""
    if labels is None:
        labels = getattr(getattr(triplets, "catalog", None), "labels", None)
    if labels is None:
        expected = "the class of each image, as per_class is above 1"
        raise refusal(_CALLER, "labels", None, expected, "only a Manifest brings its own")
    codes, _ = label_codes(_CALLER, labels)
    if rows[0] < 0 or rows[-1] >= len(codes):
        expected = f"one for each image, as the triplets name row {rows[-1] if rows[0] >= 0 else rows[0]}"
        raise refusal(_CALLER, "labels", f"{len(codes)} labels", expected)
    return np.unique(codes[rows], return_inverse=True)[1].reshape(-1)


def images_each(triplets: Any) -> int:
    """How many images each entry of a sequence names: 3 of triplets, 2 of pairs.

    Args:
        triplets: the sequence.

    Raises:
        ValueError: a sequence of neither.
    """
    columns: Any = triplets
    if not isinstance(triplets, (Triplets, LabeledPairs)):
        expected = "a Manifest or another sequence of triplets or pairs"
        try:  # a list or a Subset takes no array of numbers
            columns = triplets[np.zeros(2, dtype=np.int64)] if len(triplets) else None
        except (ValueError, OSError):  # a damaged manifest says so itself
            raise
        except Exception:  # no length, or no such index
            raise Refusal(None, type(triplets).__name__, expected) from None
        if not (columns is None or isinstance(columns, (Triplets, LabeledPairs))):
            shown = f"{type(triplets).__name__} of {type(columns).__name__}"
            raise Refusal(None, shown, expected)
    return 2 if isinstance(columns, LabeledPairs) else 3


def _anchors_of(triplets: Any) -> Int[np.ndarray, " t"]:
    """The anchor of each triplet, or the first image of each pair.

    Raises:
        ValueError: no such sequence, columns that are not whole numbers, or columns of unequal length.
    """
    with border(_CALLER, "triplets"):
        each = images_each(triplets)
    if isinstance(triplets, (Triplets, LabeledPairs)):
        expected = "columns of row numbers, of one length"
        columns = [as_array(_CALLER, "triplets", column, expected) for column in triplets[:each]]
        shapes = {column.shape for column in columns}
        if any(column.dtype.kind not in "iu" and column.size for column in columns) or len(shapes) > 1:
            shown = ", ".join(f"{column.dtype} {column.shape}" for column in columns)
            raise refusal(_CALLER, "triplets", shown, expected)
        return columns[0].astype(np.int64)
    parts = [np.empty(0, dtype=np.int64)]
    parts += [triplets[first : first + READ][0] for first in range(0, len(triplets), READ)]
    return np.concatenate(parts)


def _divided(
    triplets: Any, numbers: Int[np.ndarray, " t"], bundle: Int[np.ndarray, " t"], most: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Divide bundles of triplets into parts of at most `most` distinct images.

    A bundle of no more images is one part. Another is cut, in the order of its triplets, wherever the next
    triplet would bring too many images.

    Args:
        triplets: the sequence.
        numbers: [t] the numbers of all triplets, bundle after bundle.
        bundle: [t] the bundle of each, in ascending order.
        most: the bound, at least the images of one triplet.

    Returns:
        Two int64 [parts]: where each part begins in `numbers`, and how many distinct images it has.

    Raises:
        ValueError: rows too far apart to be those of a catalog.

    Example:
        >>> triplets = Triplets(np.array([0, 0, 5]), np.array([1, 1, 6]), np.array([2, 3, 7]))
        >>> starts, images = _divided(triplets, np.arange(3), np.array([0, 0, 1]), most=3)
        >>> starts.tolist(), images.tolist()
        ([0, 1, 2], [3, 3, 3])
    """
    starts, sizes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for first, last in _blocks(bundle):
        rows = _rows(triplets, numbers[first:last])  # [m, c]
        begin = np.flatnonzero(np.diff(bundle[first:last], prepend=bundle[first] - 1))
        ends = np.append(begin[1:], last - first)
        place = np.repeat(np.arange(len(begin)), ends - begin)  # [m] the bundle of each, from 0
        low, span = int(rows.min()), int(rows.max()) - int(rows.min()) + 1
        if span * len(begin) > _MOST_KEYS:
            raise refusal(_CALLER, "triplets", f"row {rows.max()}", "row numbers of a catalog")
        keys = np.sort((place[:, None] * span + (rows - low)).reshape(-1))
        distinct = keys[np.diff(keys, prepend=-1) > 0]  # np.unique takes ten times as long
        images = np.bincount(distinct // span)  # of each bundle
        starts.append(first + begin)
        sizes.append(images)
        for one in np.flatnonzero(images > most).tolist():
            inner, inner_sizes = _cuts(rows[begin[one] : ends[one]], most)
            images[one] = inner_sizes[0]
            starts.append(first + begin[one] + np.array(inner[1:], dtype=np.int64))
            sizes.append(np.array(inner_sizes[1:], dtype=np.int64))
    start, size = np.concatenate(starts), np.concatenate(sizes)
    order = np.argsort(start)
    return start[order], size[order]


def _blocks(bundle: Int[np.ndarray, " t"]) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of whole bundles: about `READ` triplets, or one bundle that has more."""
    first = 0
    while first < len(bundle):
        last = int(np.searchsorted(bundle, bundle[min(first + READ, len(bundle)) - 1], side="right"))
        yield first, last
        first = last


def _rows(triplets: Any, numbers: Int[np.ndarray, " m"]) -> Int[np.ndarray, "m c"]:
    """The images of some triplets or pairs, a row each."""
    columns = triplets[: images_each(triplets)] if isinstance(triplets, tuple) else triplets[numbers]
    if isinstance(triplets, tuple):
        columns = [np.asarray(column)[numbers] for column in columns]
    return np.stack(columns[: images_each(triplets)], axis=1).astype(np.int64)


def _cuts(rows: Int[np.ndarray, "m c"], most: int) -> tuple[list[int], list[int]]:
    """Where the parts of one bundle begin, the first at 0, and how many distinct images each has."""
    starts, sizes, seen = [0], [], set[int]()
    for number, images in enumerate(map(set, rows.tolist())):
        new = images - seen
        if len(seen) + len(new) > most:
            starts.append(number)
            sizes.append(len(seen))
            seen = images
        else:
            seen |= new
    return starts, [*sizes, len(seen)]
