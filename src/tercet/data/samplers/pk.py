"""P×K batches with exact guarantees: each is a function of (seed, epoch, step)."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from tercet.core.checks import (
    as_batch_size,
    as_bool,
    as_choice,
    as_float,
    as_int,
    label_codes,
    refusal,
)
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits, permute
from tercet.data.samplers.balanced_plan import occurrences
from tercet.data.samplers.class_plan import ClassPlan, Mixing
from tercet.data.samplers.class_table import (
    ClassRules,
    ClassTable,
    Labels,
    labels_within,
    numbers_of,
    supers_of_classes,
)
from tercet.data.samplers.near_classes import class_directions, near_items
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
    above. With `pure_groups` each step takes its classes and images from one group, on all ranks.

    With `confusion`, the classes that a model finds alike meet more often: they are hard negatives of each
    other. Each class is in as many batches as without it.

    The batches are a function of (seed, epoch, step). So training resumes at any batch (see `state_at`), the
    number of workers changes nothing, and each rank takes its slice of the same plan.

    Args:
        labels: [n] one for each image: whole numbers or strings, a list, an array or a CPU tensor.
        p: classes in a batch, on each rank.
        k: images of each class in a batch, at least 2; "all" takes all of them, so that batches differ in
            size. A batch of k=1 has no positive pair: it is for heads with class centers.
        seed: a whole number of at least 0; the same seed gives the same batches, on any machine.
        epoch_length: "every_image" draws each image at least once an epoch, "every_label" each class, all
            ranks together. A whole number is the number of batches of each rank; the classes are spread
            evenly over them, whether that is enough for each image or not.
        short_classes: what happens to a class of fewer than k images: its images are repeated in the batch as
            evenly as possible ("repeat"), it is left out ("skip"), or that is an error ("error"). "repeat"
            leaves out a class of one image, which gives no positive pair. A warning counts what is left out.
        class_weights: how often each class is drawn, in proportion: numbers above 0, a dict by label (1 for
            labels it lacks) or an array with one for each label in sorted order. A class is in each batch at
            most once. An epoch is as long as it takes the lightest class to get its m_c batches; a whole
            number for `epoch_length` bounds it.
        super_labels: [n] a coarser label for each image, the same for all images of a class; None for none.
            A super-label with fewer than p / supers_per_batch usable classes is left out with its classes,
            and with short_classes="error" it is an error; see `short_supers`.
        supers_per_batch: super-labels in a batch, on each rank; a divisor of p.
        short_supers: "repeat" keeps a super-label of too few classes, and repeats them in the batch as evenly
            as possible: such a class has several times k images there, others each time while it has any.
        spread_pairs: True lets any two super-labels meet in equally many batches, to within one; with
            supers_per_batch=2. Otherwise they meet by chance.
        pure_groups: [n] a group of each image, as its camera, data set or language; None for none. Each step
            is of one group. A class of several groups is drawn from each by itself.
        group_shares: the share of the steps of each group, in proportion: a dict by group, or an array with
            one for each group in sorted order; None for what each group's images need.
        confusion: where a model sees the images, or the classes: [n, d] an embedding for each image, of which
            class means are taken, or [c, d] a vector for each label in sorted order. Classes whose vectors
            have a large cosine are near. Finding the nearest takes c² · d operations, once.
        confusion_share: the share of the classes of a batch (of each super-label in it) that are near each
            other, above 0 and at most 1, half if not given; at least two classes.
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
        k: int | str,
        *,
        seed: int = 0,
        epoch_length: int | str = "every_image",
        short_classes: str = "repeat",
        class_weights: Any = None,
        super_labels: Any = None,
        supers_per_batch: int = 1,
        short_supers: str = "skip",
        spread_pairs: bool = False,
        pure_groups: Any = None,
        group_shares: Any = None,
        confusion: Any = None,
        confusion_share: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        codes, names = label_codes("PKSampler", labels)
        given = Labels(codes, names.tolist())
        self._set_batch(p, k)
        as_choice("PKSampler", "short_classes", short_classes, ("repeat", "skip", "error"))
        epoch_length = _checked_length(epoch_length)
        rules = self._rules(short_classes, super_labels, supers_per_batch, short_supers, pure_groups)
        within = given
        if super_labels is not None:
            within = supers_of_classes(given, super_labels)
        elif pure_groups is not None:
            within = labels_within(given, pure_groups)
        self._table = ClassTable(within, rules)
        self.left_out = self._table.left_out
        demand, steps = self._least_turns(epoch_length)
        mixing = self._mixing(
            given, within, rules, spread_pairs, class_weights, group_shares, confusion, confusion_share
        )
        self._class_plan = ClassPlan(self._table, rules, demand, steps, mixing)
        self._length = self._class_plan.length
        self._block = max(1, BLOCK_ROWS // (self.p * (1 if isinstance(self.k, str) else self.k)))
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None  # of the epoch that was asked for last
        self._settings = {
            "p": self.p,
            "k": self.k,
            "seed": self.seed,
            "epoch_length": epoch_length,
            "short_classes": short_classes,
            "supers_per_batch": self.supers_per_batch,
            "world_size": self.world_size,
            "labels": _checksum(codes),
            "super_labels": 0 if super_labels is None else _checksum(within.supers),
        }
        # What is not asked for is no setting, so that states saved before there was such a choice go on.
        choices = {
            "short_supers": short_supers if short_supers != "skip" else None,
            "spread_pairs": int(mixing.spread_pairs) or None,
            "pure_groups": None if pure_groups is None else _checksum(within.codes, within.supers),
            "weights": None if mixing.weights is None else _checksum(mixing.weights),
            "confusion": None if mixing.neighbors is None else _checksum(mixing.neighbors, mixing.near),
        }
        self._settings |= {name: value for name, value in choices.items() if value is not None}

    def _set_batch(self, p: Any, k: Any) -> None:
        """Take p and k; warn where no pair of a batch could be positive, or negative."""
        self.k: int | str
        if isinstance(k, str):
            self.k = as_choice("PKSampler", "k", k, ("all",))
            self.p = as_int("PKSampler", "p", p, 1, 1 << 24)
        else:
            self.p, self.k = as_batch_size("PKSampler", p, k, least=1)
        if self.k == 1:
            way = "take k of at least 2, or a head with class centers (ProxyAnchor, ArcFace, …)"
            warnings.warn(f"PKSampler(k=1): a batch has no positive pair; {way}", stacklevel=3)
        if self.p * self.world_size == 1:
            way = "take p of at least 2, or a loss that needs none"
            warnings.warn(f"PKSampler(p=1): a batch of one class has no negatives; {way}", stacklevel=3)

    def _rules(
        self, short_classes: str, super_labels: Any, supers_per_batch: Any, short_supers: Any, groups: Any
    ) -> ClassRules:
        """How many classes, super-labels and groups a step has; refused where they do not go together."""
        number = as_int("PKSampler", "supers_per_batch", supers_per_batch, 1)
        if self.p % number:
            raise refusal("PKSampler", "supers_per_batch", supers_per_batch, f"a divisor of p={self.p}")
        if super_labels is None and number > 1:
            raise refusal("PKSampler", "supers_per_batch", supers_per_batch, "super_labels beside it")
        as_choice("PKSampler", "short_supers", short_supers, ("skip", "repeat"))
        if super_labels is None and short_supers == "repeat":
            raise refusal("PKSampler", "short_supers", short_supers, "super_labels beside it")
        if super_labels is not None and groups is not None:
            hint = "give pairs of super-label and group as pure_groups, if a batch is to be of one of both"
            raise refusal("PKSampler", "pure_groups", "<groups>", "no super_labels beside it", hint)
        self.supers_per_batch = number
        step = (self.p, self.k, short_classes, self.world_size)
        if super_labels is not None:
            items, each = number * self.world_size, self.p // number
            return ClassRules(*step, "supers_per_batch", items, "super-label", each, short_supers)
        if groups is not None:
            return ClassRules(*step, "p", 1, "group", self.p * self.world_size, "skip")
        return ClassRules(*step, "p", self.p * self.world_size, "class", 1, "skip")

    def _least_turns(self, epoch_length: int | str) -> tuple[Int[np.ndarray, " c"], int | None]:
        """The least number of batches of each class, and the number of steps where it is given."""
        sizes = self._table.sizes
        if epoch_length == "every_image" and not isinstance(self.k, str):
            return -(-sizes // self.k), None
        if isinstance(epoch_length, str):
            return np.ones(len(sizes), dtype=np.int64), None
        return np.zeros(len(sizes), dtype=np.int64), epoch_length

    def _mixing(
        self,
        given: Labels,
        within: Labels,
        rules: ClassRules,
        spread_pairs: Any,
        class_weights: Any,
        group_shares: Any,
        confusion: Any,
        confusion_share: Any,
    ) -> Mixing:
        """How classes are mixed; refused where the arguments do not go together."""
        table = self._table
        spreads = as_bool("PKSampler", "spread_pairs", spread_pairs)
        if spreads and (rules.unit != "super-label" or self.supers_per_batch != 2):
            expected = "super_labels and supers_per_batch=2 beside it"
            raise refusal("PKSampler", "spread_pairs", spread_pairs, expected)
        weights = None
        if group_shares is not None:
            if rules.unit != "group":
                raise refusal("PKSampler", "group_shares", "<shares>", "pure_groups beside it")
            weights = numbers_of("group_shares", group_shares, within.super_names, table.super_names, None)
        if class_weights is not None:
            if rules.unit != "class":
                expected = "no super_labels or pure_groups beside it"
                raise refusal("PKSampler", "class_weights", "<weights>", expected)
            weights = numbers_of("class_weights", class_weights, given.names, table.names, 1.0)
        share = 0.5
        if confusion_share is not None:
            share = as_float("PKSampler", "confusion_share", confusion_share, maximum=1, above=0)
            if confusion is None:
                raise refusal("PKSampler", "confusion_share", confusion_share, "confusion beside it")
        if confusion is None:
            return Mixing(weights, spreads)
        together = rules.each if rules.unit == "super-label" else self.p
        if together < 2:
            per = " of each super-label" if rules.unit == "super-label" else ""
            expected = f"at least two classes{per} in a batch"
            raise refusal("PKSampler", "confusion", "<vectors>", expected, "raise p")
        if rules.short_supers == "repeat":
            raise refusal("PKSampler", "confusion", "<vectors>", 'short_supers="skip" beside it')
        near = min(together, max(2, round(share * together)))
        directions = class_directions(confusion, given, within)[table.numbers]
        group = np.zeros(len(directions), dtype=np.int64) if table.supers is None else table.supers
        return Mixing(weights, spreads, near, near_items(directions, group, near))

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
        if isinstance(self.k, str):
            rows, views, sizes = self._whole(epoch, classes, rounds)
            ends = np.cumsum(sizes.reshape(stop - start, -1).sum(axis=1))[:-1]
            parts = [[part.tolist() for part in np.split(values, ends)] for values in (rows, views)]
        else:
            drawn = self._drawn(epoch, classes, rounds)
            parts = [part.reshape(stop - start, -1).tolist() for part in drawn]
        return [
            [KeyedRow(row, epoch, view) for row, view in zip(*batch, strict=True)]
            for batch in zip(*parts, strict=True)
        ]

    def _drawn(
        self, epoch: int, classes: Int[np.ndarray, " b"], rounds: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """The k rows of each class in its given round of the epoch, and how often each came before.

        A round takes the next k images of a class in a keyed order, and after the last image the first one
        again. After n / gcd(n, k) rounds, k / gcd(n, k) passes over the order end together with a round; the
        next cycle of rounds has another order.
        """
        table, k = self._table, int(self.k)
        n = table.sizes[classes]
        common = np.gcd(n, k)
        cycle, round_ = np.divmod(rounds, n // common)
        pass_, place = np.divmod(round_[:, None] * k + np.arange(k), n[:, None])  # [b, k]
        key = keyed_bits(derive_key("PKSampler rows", self.seed, epoch), table.numbers[classes], cycle)
        place = permute(place.ravel(), np.repeat(n, k), np.repeat(key, k)).reshape(place.shape)
        rows = table.members[table.first[classes][:, None] + place]
        return rows, (cycle * (k // common))[:, None] + pass_

    def _whole(
        self, epoch: int, classes: Int[np.ndarray, " b"], rounds: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"], Int[np.ndarray, " b"]]:
        """All rows of each class in a keyed order, how often each came before, and the classes' sizes."""
        table = self._table
        n = table.sizes[classes]
        key = keyed_bits(derive_key("PKSampler rows", self.seed, epoch), table.numbers[classes], rounds)
        place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        place = permute(place, np.repeat(n, n), np.repeat(key, n))
        return table.members[np.repeat(table.first[classes], n) + place], np.repeat(rounds, n), n

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's classes in each step of an epoch, and the round of each class: two int [S, p]."""
        if self._plan is None or self._plan[0] != epoch:
            classes = self._class_plan.epoch(derive_key("PKSampler plan", self.seed, epoch))
            mine = slice(self.rank * self.p, (self.rank + 1) * self.p)
            self._plan = epoch, classes[:, mine].copy(), occurrences(classes)[:, mine].copy()
        return self._plan[1:]


def _checked_length(epoch_length: Any) -> int | str:
    if isinstance(epoch_length, str):
        return as_choice("PKSampler", "epoch_length", epoch_length, ("every_image", "every_label"))
    return as_int("PKSampler", "epoch_length", epoch_length, 1)


def _checksum(*values: Any) -> int:
    """A checksum of arrays of numbers, the same on every machine."""
    found = 0
    for value in values:
        array = np.asarray(value)
        found = zlib.crc32(array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes(), found)
    return found
