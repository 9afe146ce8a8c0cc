"""P×K batches with exact guarantees: each is a function of (seed, epoch, step)."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tercet.core.checks import as_batch_size, as_choice, as_int, label_codes, refusal
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits, permute
from tercet.data.samplers.balanced_plan import deal, occurrences, spread
from tercet.data.samplers.resumable import EpochSampler

__all__ = ["PKSampler"]

_BLOCK_ROWS = 8192  # rows computed at a time while iterating, to spread numpy's cost of a call


class PKSampler(EpochSampler):
    """Batches of exactly p classes with exactly k images of each, for `DataLoader(batch_sampler=...)`.

    Class c of n_c images appears at least m_c = ⌈n_c / k⌉ times an epoch ("every_image") or m_c = 1 times
    ("every_label"), in as few steps as that takes,

        S = max(max_c m_c, ⌈Σ_c m_c / (p · world_size)⌉),

    and the appearances that are left over are spread evenly over the classes. Two images of a class are drawn
    equally often, to within one. A small class beside a large one comes back often, its images as further
    views: `KeyedRow.view` counts them, and keys another augmentation. With super-labels, each appears as
    often as its classes need, and S follows from that in the same way.

    Args:
        labels: [n] one for each image: whole numbers or strings, a list, an array or a CPU tensor.
        p: classes in a batch, on each rank.
        k: images of each class in a batch, at least 2.
        seed: the same seed gives the same batches, on any machine.
        epoch_length: each image ("every_image") or each class ("every_label") at least once an epoch, all
            ranks together, or the number of batches, over which the classes are then spread evenly.
        short_classes: a class of fewer than k images repeats them as evenly as can be ("repeat"), is left
            out ("skip") or refused ("error"). A class of one image gives no positive pair: "repeat"
            leaves it out too. What is left out is warned of once, and stays in `left_out`.
        super_labels: [n] a coarser label for each image, one for all images of a class. Each batch then
            takes `supers_per_batch` of these and p / supers_per_batch classes of each. One with fewer
            classes than that is left out or refused, as `short_classes` says.
        supers_per_batch: super-labels in a batch, on each rank; a divisor of p.
        rank: the part of each step that this process takes, from 0.
        world_size: the number of processes. The p · world_size classes of a step are distinct.

    Attributes:
        left_out: class → its number of images, for each class that is in no batch.

    Raises:
        ValueError: an argument out of range, or too few classes for p · world_size distinct ones in a step.

    Example:
        >>> sampler = PKSampler(["ant", "ant", "bee", "bee", "bee", "cow", "cow"], p=2, k=2)
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [4, 4])
        >>> sampler.batch(epoch=0, step=1) == sampler.batch(epoch=0, step=1)
        True

    Reference:
        A. Hermans, L. Beyer, B. Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """

    def __init__(
        self,
        labels: Any,
        p: int,
        k: int,
        *,
        seed: int = 0,
        epoch_length: int | str = "every_image",
        short_classes: str = "repeat",
        super_labels: Any = None,
        supers_per_batch: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        caller = "PKSampler"
        codes, names = label_codes(caller, labels)
        self.p, self.k = as_batch_size(caller, p, k)
        self.supers_per_batch = as_int(caller, "supers_per_batch", supers_per_batch, 1)
        if self.p % self.supers_per_batch:
            raise refusal(caller, "supers_per_batch", supers_per_batch, f"a divisor of p={self.p}")
        if super_labels is None and self.supers_per_batch > 1:
            raise refusal(caller, "supers_per_batch", supers_per_batch, "super_labels beside it")
        self._each = self.p // self.supers_per_batch  # classes of each super-label in a batch
        as_choice(caller, "short_classes", short_classes, ("repeat", "skip", "error"))
        if isinstance(epoch_length, str):
            as_choice(caller, "epoch_length", epoch_length, ("every_image", "every_label"))
        else:
            epoch_length = as_int(caller, "epoch_length", epoch_length, 1)

        sizes = np.bincount(codes)
        super_of = None if super_labels is None else _super_of_class(super_labels, codes, names)
        usable = self._usable(sizes, names, super_of, short_classes)
        self.left_out: dict[Any, int] = dict(zip(names[~usable].tolist(), sizes[~usable].tolist()))
        self._members = np.argsort(codes, kind="stable")  # [n] rows, class after class
        self._numbers = np.flatnonzero(usable)  # [c], as are the next three: the usable classes
        self._sizes = sizes[usable]
        self._first = (np.cumsum(sizes) - sizes)[usable]
        self._super = None if super_of is None else np.unique(super_of[usable], return_inverse=True)[1]
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None
        self._length = self._size_epoch(epoch_length)
        self._block = max(1, _BLOCK_ROWS // (self.p * self.k))
        self._settings = {
            "p": self.p,
            "k": self.k,
            "seed": self.seed,
            "epoch_length": epoch_length,
            "short_classes": short_classes,
            "supers_per_batch": self.supers_per_batch,
            "world_size": self.world_size,
            "labels": zlib.crc32(codes.astype("<i8").tobytes()),
            "super_labels": 0 if super_of is None else zlib.crc32(super_of.astype("<i8").tobytes()),
        }

    def _usable(
        self, sizes: np.ndarray, names: np.ndarray, super_of: np.ndarray | None, mode: str
    ) -> Bool[np.ndarray, " all"]:
        """Which classes the batches draw from; the others are warned of or refused."""
        least = 2 if mode == "repeat" else self.k
        short, thin = sizes < least, np.zeros(len(sizes), dtype=bool)
        if super_of is not None:
            thin = ~short & (np.bincount(super_of, weights=~short) < self._each)[super_of]
        usable = ~(short | thin)
        causes = [(short, f"of fewer than {least} images")]
        causes += [(thin, f"in a super-label of fewer than {self._each} such classes")]
        why = [f"{m.sum()} {cause}, such as {names[m].tolist()[0]!r}" for m, cause in causes if m.any()]
        lost = f"{_number((~usable).sum(), 'class')} ({_number(sizes[~usable].sum(), 'image')}): "
        lost += ", ".join(why)
        if why and mode == "error":
            hint = 'drop them from the labels or pass short_classes="repeat" or "skip"'
            raise ValueError(f'PKSampler(k={self.k}, short_classes="error"): found {lost}; {hint}')
        self._require_enough(sizes, usable, super_of, least)
        if why:
            hint = "lower p or drop them from the labels"
            if short.any():
                hint = "add images (a positive pair takes 2) or drop them from the labels"
            if mode == "skip" and (sizes[short] > 1).any():
                hint = 'pass short_classes="repeat" to keep those of 2 images or more'
            warnings.warn(f"PKSampler(k={self.k}): left out {lost}; {hint}", stacklevel=3)
        return usable

    def _require_enough(
        self, sizes: np.ndarray, usable: np.ndarray, super_of: np.ndarray | None, least: int
    ) -> None:
        """Refuses fewer classes, or super-labels, than the distinct ones in a step."""
        argument, per_rank = "p", self.p
        have, unit, quality = usable.sum(), "class", f"{least} images or more"
        if super_of is not None:
            argument, per_rank = "supers_per_batch", self.supers_per_batch
            have, unit = np.unique(super_of[usable]).size, "super-label"
            quality = f"{_number(self._each, 'class')} of {quality}"
        need = per_rank * self.world_size
        if have >= need:
            return
        ranks, step, ways = "", "", [f"lower {argument}"] if per_rank > 1 or super_of is None else []
        if super_of is not None and self._each > 1:
            ways.append(f"lower p={self.p} for fewer classes of each super-label")
        if self.world_size > 1:
            ranks, step = f", world_size={self.world_size}", f", and a step needs {need}"
            ways.append("lower world_size")
        if super_of is None and (sizes > 1).sum() >= need:
            ways.append('pass short_classes="repeat"')
        raise ValueError(
            f"PKSampler({argument}={per_rank}{ranks}): only {_number(have, unit)} "
            f"{'has' if have == 1 else 'have'} {quality}{step}; {' or '.join(ways)}"
        )

    def _size_epoch(self, epoch_length: int | str) -> int:
        """The number of steps; notes how often each class, and each super-label, has to be in them."""
        if epoch_length == "every_image":
            self._appearances = -(-self._sizes // self.k)
        else:
            self._appearances = np.full(len(self._sizes), int(epoch_length == "every_label"))
        self._demand, self._width = self._appearances, self.p * self.world_size
        if self._super is not None:
            in_all = np.bincount(self._super, weights=self._appearances).astype(np.int64)
            self._demand = -(-in_all // self._each)
            np.maximum.at(self._demand, self._super, self._appearances)
            self._width = self.supers_per_batch * self.world_size
        if isinstance(epoch_length, int):
            most = (1 << 32) // self._width  # an epoch's plan is held, 16 bytes for a class of a batch
            if epoch_length > most:
                raise refusal(
                    "PKSampler", "epoch_length", epoch_length, f"at most {most} steps of this width"
                )
            return epoch_length
        return max(int(self._demand.max()), -(-int(self._demand.sum()) // self._width))

    def batch(self, epoch: int, step: int) -> list[KeyedRow]:
        """The batch at `step` of `epoch`, as iterating yields it: p · k rows, those of a class side by side.

        Raises:
            ValueError: a negative epoch, or a step outside it.
        """
        step = as_int("PKSampler.batch", "step", step, 0, len(self) - 1)
        return self._items(as_int("PKSampler.batch", "epoch", epoch), step, step + 1)[0]

    def _items(self, epoch: int, start: int, stop: int) -> list[list[KeyedRow]]:
        classes, turns = (part[start:stop].ravel() for part in self._planned(epoch))
        drawn = self._drawn(epoch, classes, turns)
        rows, views = (part.reshape(stop - start, -1).tolist() for part in drawn)
        return [[KeyedRow(row, epoch, view) for row, view in zip(*batch)] for batch in zip(rows, views)]

    def _drawn(
        self, epoch: int, classes: Int[np.ndarray, " b"], turns: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """The k rows of each class at its given turn of the epoch, and how often each came before.

        A class is walked round and round in a keyed order, k images a turn. After n / gcd(n, k) turns each
        image came k / gcd(n, k) times and the walk ends with a turn: then the order changes.
        """
        n = self._sizes[classes]
        common = np.gcd(n, self.k)
        walk, turn = np.divmod(turns, n // common)
        lap, place = np.divmod(turn[:, None] * self.k + np.arange(self.k), n[:, None])  # [b, k]
        key = keyed_bits(derive_key("PKSampler rows", self.seed, epoch), self._numbers[classes], walk)
        place = permute(place.ravel(), np.repeat(n, self.k), np.repeat(key, self.k)).reshape(place.shape)
        rows = self._members[self._first[classes][:, None] + place]
        return rows, (walk * (self.k // common))[:, None] + lap

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's classes in each step of an epoch, and which turn of theirs that is: two int [S, p]."""
        if self._plan is None or self._plan[0] != epoch:
            classes = self._plan_epoch(derive_key("PKSampler plan", self.seed, epoch))
            mine = slice(self.rank * self.p, (self.rank + 1) * self.p)
            self._plan = epoch, classes[:, mine].copy(), occurrences(classes)[:, mine].copy()
        return self._plan[1:]

    def _plan_epoch(self, key: int) -> Int[np.ndarray, "S w"]:
        """The classes in each step, those of rank 0 first."""
        hands, group = np.array([len(self)]), np.zeros(len(self._demand), dtype=np.int64)
        counts = spread(self._demand, group, hands, self._width, key)
        plan = deal(counts, group, hands, self._width, key)
        if self._super is None:
            return plan
        # As the steps are hands of super-labels, the appearances of a super-label are hands of its classes.
        key = derive_key("classes", key)
        inner = spread(self._appearances, self._super, counts, self._each, key)
        dealt = deal(inner, self._super, counts, self._each, key)
        return dealt[(np.cumsum(counts) - counts)[plan] + occurrences(plan)].reshape(len(self), -1)


def _number(count: Any, noun: str) -> str:
    """The count and its noun: 1 class, 3 classes, 2 images."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count != 1 else ''}"


def _super_of_class(super_labels: Any, codes: np.ndarray, names: np.ndarray) -> Int[np.ndarray, " all"]:
    """The super-label of each class; refused where the images of one class disagree."""
    super_codes, super_names = label_codes("PKSampler", super_labels, "super_labels")
    if len(super_codes) != len(codes):
        got = f"{len(super_codes)} super-labels"
        raise refusal("PKSampler", "super_labels", got, f"one for each of the {len(codes)} images")
    super_of = np.zeros(len(names), dtype=np.int64)
    super_of[codes] = super_codes
    astray = np.flatnonzero(super_of[codes] != super_codes)
    if astray.size:
        row = astray[0]
        name, one = names.tolist()[codes[row]], super_names.tolist()[super_codes[row]]
        other = super_names.tolist()[super_of[codes[row]]]
        raise ValueError(
            f"PKSampler(super_labels=...): class {name!r} has images in super-labels {one!r} and {other!r}; "
            "give each class one super-label"
        )
    return super_of
