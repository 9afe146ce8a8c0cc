"""P×K batches with exact guarantees: each is a function of (seed, epoch, step)."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tercet.core.checks import as_batch_size, as_choice, as_int, label_codes, refusal
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits, permute
from tercet.data.samplers.balanced_plan import assign, occurrences, water_fill
from tercet.data.samplers.resumable import EpochSampler

__all__ = ["PKSampler"]

BLOCK_ROWS = 8192  # rows computed at a time while iterating, to spread the cost of numpy's calls


class PKSampler(EpochSampler):
    """Batches of exactly p classes with exactly k images of each, for `DataLoader(batch_sampler=...)`.

    A batch is a list of p · k row numbers, positions in `labels`, those of a class side by side. Each is a
    `KeyedRow`: an int that carries the epoch and the view, by which the datasets of this library augment.
    Each iteration over the sampler is the next epoch, in another order; `set_epoch` is not needed.

    Class c has n_c images and is in at least m_c batches an epoch: m_c = ⌈n_c / k⌉, so that each of its
    images is drawn ("every_image"), or m_c = 1 ("every_label"). An epoch has the fewest steps for that,

        S = max(max_c m_c, ⌈Σ_c m_c / (p · world_size)⌉),

    and the classes share evenly what is left of its S · p · world_size places: each class gets as many
    further batches as any other, to within one, unless it is in every batch already. The images of a class
    are drawn equally often, to within one. So a small class beside a large one comes back often, and its
    images with it, as further views: the view of a row counts how often its image came before in the epoch,
    so each time it is augmented differently.

    With super-labels, coarser labels of which each has several classes, a batch takes `supers_per_batch` of
    them and q = p / supers_per_batch classes of each. A super-label is in at least max(max_c m_c,
    ⌈Σ_c m_c / q⌉) batches, with c over its classes, and S follows from these numbers as it does from m_c
    above.

    The batches are a function of (seed, epoch, step). So training resumes at any batch (see `state_at`), the
    number of workers changes nothing, and each rank takes its slice of the same plan.

    Args:
        labels: [n] one for each image: whole numbers or strings, a list, an array or a CPU tensor.
        p: classes in a batch, on each rank.
        k: images of each class in a batch, at least 2.
        seed: a whole number of at least 0; the same seed gives the same batches, on any machine.
        epoch_length: "every_image" draws each image at least once an epoch, "every_label" each class, all
            ranks together. A whole number is the number of batches of each rank; the classes are spread
            evenly over them, whether that is enough for each image or not.
        short_classes: what happens to a class of fewer than k images: its images are repeated in the batch as
            evenly as possible ("repeat"), it is left out ("skip"), or that is an error ("error"). "repeat"
            leaves out a class of one image, which gives no positive pair. A warning counts what is left out.
        super_labels: [n] a coarser label for each image, the same for all images of a class; None for none.
            A super-label with fewer than p / supers_per_batch usable classes is left out with its classes,
            and with "error" it is an error.
        supers_per_batch: super-labels in a batch, on each rank; a divisor of p.
        rank: the part of each step that this process takes, from 0.
        world_size: the number of processes. The p · world_size classes of a step are distinct.

    Attributes:
        left_out: a dict of the classes that are in no batch, with the number of images of each.

    Raises:
        ValueError: an argument out of range, an image whose super-label differs from that of its class, or
            too few classes for p · world_size distinct ones in a step.

    Example:
        >>> from tercet import PKSampler
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
        codes, names = label_codes("PKSampler", labels)
        self.p, self.k = as_batch_size("PKSampler", p, k)
        if self.p * self.world_size == 1:
            way = "take p of at least 2, or a loss that needs none"
            warnings.warn(f"PKSampler(p=1): a batch of one class has no negatives; {way}", stacklevel=2)
        self.supers_per_batch = self._checked_supers(super_labels, supers_per_batch)
        self._each = self.p // self.supers_per_batch  # classes of each super-label in a batch
        as_choice("PKSampler", "short_classes", short_classes, ("repeat", "skip", "error"))
        epoch_length = _checked_length(epoch_length)
        super_of = None if super_labels is None else _super_of_class(super_labels, codes, names)
        self._index_classes(codes, names, super_of, short_classes)
        self._length = self._size_epoch(epoch_length)
        self._block = max(1, BLOCK_ROWS // (self.p * self.k))
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None  # of the epoch that was asked for last
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

    def _checked_supers(self, super_labels: Any, supers_per_batch: Any) -> int:
        """`supers_per_batch`, refused where it does not divide p, or where there are no super-labels."""
        number = as_int("PKSampler", "supers_per_batch", supers_per_batch, 1)
        if self.p % number:
            raise refusal("PKSampler", "supers_per_batch", supers_per_batch, f"a divisor of p={self.p}")
        if super_labels is None and number > 1:
            raise refusal("PKSampler", "supers_per_batch", supers_per_batch, "super_labels beside it")
        return number

    def _index_classes(
        self, codes: np.ndarray, names: np.ndarray, super_of: np.ndarray | None, short_classes: str
    ) -> None:
        """Find which classes batches are drawn from, and where the rows of each are."""
        sizes = np.bincount(codes)
        usable = self._usable(sizes, names, super_of, short_classes)
        unusable = names[~usable].tolist(), sizes[~usable].tolist()
        self.left_out: dict[Any, int] = dict(zip(*unusable, strict=True))
        self._members = np.argsort(codes, kind="stable")  # [n] rows, class after class
        # [c] of the c usable classes: the number among all, the images, the place of the first in `_members`,
        # and the super-label.
        self._numbers = np.flatnonzero(usable)
        self._sizes = sizes[usable]
        self._first = (np.cumsum(sizes) - sizes)[usable]
        self._super = None if super_of is None else np.unique(super_of[usable], return_inverse=True)[1]

    def _usable(
        self, sizes: np.ndarray, names: np.ndarray, super_of: np.ndarray | None, mode: str
    ) -> Bool[np.ndarray, " all"]:
        """Which classes batches are drawn from; a warning or an error names the others."""
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
            warnings.warn(f"PKSampler(k={self.k}): left out {lost}; {hint}", stacklevel=4)
        return usable

    def _require_enough(
        self, sizes: np.ndarray, usable: np.ndarray, super_of: np.ndarray | None, least: int
    ) -> None:
        """Refuse fewer classes, or super-labels, than a step has distinct ones."""
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
        """The number of steps; sets in how many of them each class and each super-label has to be.

        Each step has `_width` distinct items: classes, or super-labels where there are such. Item i is in at
        least `_demand[i]` steps.
        """
        if epoch_length == "every_image":
            self._class_demand = -(-self._sizes // self.k)  # [c]
        else:
            self._class_demand = np.full(len(self._sizes), int(epoch_length == "every_label"))
        self._demand, self._width = self._class_demand, self.p * self.world_size
        if self._super is not None:
            # A class is at most once in a batch, and a batch has `_each` classes of a super-label.
            total = np.bincount(self._super, weights=self._class_demand).astype(np.int64)
            self._demand = -(-total // self._each)
            np.maximum.at(self._demand, self._super, self._class_demand)
            self._width = self.supers_per_batch * self.world_size
        if isinstance(epoch_length, int):
            most = (1 << 32) // self._width  # the plan of an epoch is in memory, 16 bytes a place
            if epoch_length > most:
                expected = f"at most {most} steps of this width"
                raise refusal("PKSampler", "epoch_length", epoch_length, expected)
            return epoch_length
        return max(int(self._demand.max()), -(-int(self._demand.sum()) // self._width))

    def batch(self, epoch: int, step: int) -> list[KeyedRow]:
        """The batch at `step` of `epoch`, as iterating yields it: p · k rows, those of a class side by side.

        Args:
            epoch: the epoch, from 0.
            step: the step, from 0 to `len(self)` − 1.

        Returns:
            p · k row numbers, each a `KeyedRow`: an int with the epoch and the view of its image.

        Raises:
            ValueError: a negative epoch, or a step outside it.
        """
        step = as_int("PKSampler.batch", "step", step, 0, len(self) - 1)
        return self._items(as_int("PKSampler.batch", "epoch", epoch), step, step + 1)[0]

    def _items(self, epoch: int, start: int, stop: int) -> list[list[KeyedRow]]:
        classes, rounds = (part[start:stop].ravel() for part in self._planned(epoch))
        drawn = self._drawn(epoch, classes, rounds)
        rows, views = (part.reshape(stop - start, -1).tolist() for part in drawn)
        return [
            [KeyedRow(row, epoch, view) for row, view in zip(*batch, strict=True)]
            for batch in zip(rows, views, strict=True)
        ]

    def _drawn(
        self, epoch: int, classes: Int[np.ndarray, " b"], rounds: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """The k rows of each class in its given round of the epoch, and how often each came before.

        A round takes the next k images of a class in a keyed order, and after the last image the first one
        again. After n / gcd(n, k) rounds, k / gcd(n, k) passes over the order end together with a round; the
        next cycle of rounds has another order.
        """
        n = self._sizes[classes]
        common = np.gcd(n, self.k)
        cycle, round_ = np.divmod(rounds, n // common)
        pass_, place = np.divmod(round_[:, None] * self.k + np.arange(self.k), n[:, None])  # [b, k]
        key = keyed_bits(derive_key("PKSampler rows", self.seed, epoch), self._numbers[classes], cycle)
        place = permute(place.ravel(), np.repeat(n, self.k), np.repeat(key, self.k)).reshape(place.shape)
        rows = self._members[self._first[classes][:, None] + place]
        return rows, (cycle * (self.k // common))[:, None] + pass_

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's classes in each step of an epoch, and the round of each class: two int [S, p]."""
        if self._plan is None or self._plan[0] != epoch:
            classes = self._plan_epoch(derive_key("PKSampler plan", self.seed, epoch))
            mine = slice(self.rank * self.p, (self.rank + 1) * self.p)
            self._plan = epoch, classes[:, mine].copy(), occurrences(classes)[:, mine].copy()
        return self._plan[1:]

    def _plan_epoch(self, key: int) -> Int[np.ndarray, "S w"]:
        """The classes in each step, those of rank 0 first."""
        steps, group = np.array([len(self)]), np.zeros(len(self._demand), dtype=np.int64)
        counts = water_fill(self._demand, group, steps, self._width, key)
        plan = assign(counts, group, steps, self._width, key)
        if self._super is None:
            return plan
        # Each step has super-labels. In the same way, each appearance of a super-label gets `_each` of its
        # classes: its appearances are the batches, and its classes the items.
        key = derive_key("classes", key)
        class_counts = water_fill(self._class_demand, self._super, counts, self._each, key)
        assigned = assign(class_counts, self._super, counts, self._each, key)
        first = np.cumsum(counts) - counts  # of each super-label, in `assigned`
        return assigned[first[plan] + occurrences(plan)].reshape(len(self), -1)


def _checked_length(epoch_length: Any) -> int | str:
    if isinstance(epoch_length, str):
        return as_choice("PKSampler", "epoch_length", epoch_length, ("every_image", "every_label"))
    return as_int("PKSampler", "epoch_length", epoch_length, 1)


def _number(count: Any, noun: str) -> str:
    """The count and its noun: 1 class, 3 classes, 2 images."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count != 1 else ''}"


def _super_of_class(super_labels: Any, codes: np.ndarray, names: np.ndarray) -> Int[np.ndarray, " all"]:
    """The super-label of each class; refused where images of one class have several."""
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
