"""Which classes P×K batches are drawn from, and where the images of each are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tercet.core.checks import as_array, as_float, label_codes, refusal

__all__ = [
    "ClassRules",
    "ClassTable",
    "Labels",
    "count_of",
    "labels_within",
    "numbers_of",
    "supers_of_classes",
]


@dataclass(frozen=True)
class Labels:
    """Labels as numbers.

    Args:
        codes: [n] the class of each image.
        names: [all] the label of each class, in sorted order.
        supers: [all] the super-label (or group) of each class; None where there are none.
        super_names: the name of each super-label, in sorted order.
        label_of: [all] the number of each class's label; None where classes are labels.
    """

    codes: Int[np.ndarray, " n"]
    names: list[Any]
    supers: Int[np.ndarray, " all"] | None = None
    super_names: tuple[Any, ...] = ()
    label_of: Int[np.ndarray, " all"] | None = None


@dataclass(frozen=True)
class ClassRules:
    """What a class needs in order to be in batches.

    Args:
        p: classes in a batch, on each rank.
        k: images of each class in a batch; "all" where a batch has all of them.
        short_classes: "repeat", "skip" or "error".
        world_size: the number of processes.
        argument: the argument that says how many items a batch has, for sentences.
        items: the items in a step of all ranks: classes, or super-labels where there are such.
        unit: what the items are called: "class", "super-label" or "group".
        each: classes of each super-label in a step.
        short_supers: "repeat" takes super-labels of fewer than `each` classes too; "skip" leaves them out.
    """

    p: int
    k: int | str
    short_classes: str
    world_size: int
    argument: str
    items: int
    unit: str
    each: int
    short_supers: str

    @property
    def least(self) -> int:
        """The images that a class has to have: two where one image gives no positive pair."""
        if isinstance(self.k, str):
            return 2
        return min(2, self.k) if self.short_classes == "repeat" else self.k


class ClassTable:
    """The classes that batches are drawn from.

    Args:
        labels: the labels.
        rules: what a class needs.

    Attributes:
        members: [n] the rows of all images, class after class.
        numbers: [c] the number of each usable class among all.
        sizes: [c] its images.
        first: [c] the place of its first image in `members`.
        supers: [c] its super-label, from 0 without gaps; None where there are none.
        super_names: the names of these.
        names: [c] the labels of the classes.
        left_out: the classes that are in no batch, with the number of images of each.

    Raises:
        ValueError: too few classes, or with short_classes="error" one that is too small.
    """

    def __init__(self, labels: Labels, rules: ClassRules) -> None:
        self._rules = rules
        sizes = np.bincount(labels.codes, minlength=len(labels.names))
        usable = self._usable(sizes, labels)
        lost = np.flatnonzero(~usable)
        self.left_out: dict[Any, int] = {labels.names[c]: int(sizes[c]) for c in lost.tolist()}
        self.members = np.argsort(labels.codes, kind="stable")
        self.numbers = np.flatnonzero(usable)
        self.sizes = sizes[usable]
        self.first = (np.cumsum(sizes) - sizes)[usable]
        self.names = [labels.names[c] for c in self.numbers.tolist()]
        self.supers: Int[np.ndarray, " c"] | None = None
        self.super_names: list[Any] = []
        if labels.supers is not None:
            kept, self.supers = np.unique(labels.supers[usable], return_inverse=True)
            self.super_names = [labels.super_names[s] for s in kept.tolist()]

    def _usable(self, sizes: Int[np.ndarray, " all"], labels: Labels) -> Bool[np.ndarray, " all"]:
        """Which classes batches are drawn from; a warning or an error names the others."""
        rules, mode, least = self._rules, self._rules.short_classes, self._rules.least
        short, thin = sizes < least, np.zeros(len(sizes), dtype=bool)
        if labels.supers is not None and rules.short_supers == "skip":
            thin = ~short & (np.bincount(labels.supers, weights=~short) < rules.each)[labels.supers]
        usable = ~(short | thin)
        causes = [(short, f"of fewer than {count_of(least, 'image')}")]
        causes += [(thin, f"in a {rules.unit} of fewer than {rules.each} such classes")]
        why = [f"{m.sum()} {cause}, such as {labels.names[m.argmax()]!r}" for m, cause in causes if m.any()]
        lost = f"{count_of((~usable).sum(), 'class')} ({count_of(sizes[~usable].sum(), 'image')}): "
        lost += ", ".join(why)
        if why and mode == "error":
            hint = 'drop them from the labels or pass short_classes="repeat" or "skip"'
            raise ValueError(f'PKSampler(k={rules.k!r}, short_classes="error"): found {lost}; {hint}')
        self._require_enough(sizes, usable, labels.supers)
        if why:
            hint = "lower p or drop them from the labels"
            if thin.any() and not short.any() and rules.unit == "super-label":
                hint = 'lower p, drop them from the labels or pass short_supers="repeat"'
            if short.any():
                hint = "add images (a positive pair takes 2) or drop them from the labels"
            if mode == "skip" and (sizes[short] > 1).any():
                hint = 'pass short_classes="repeat" to keep those of 2 images or more'
            warnings.warn(f"PKSampler(k={rules.k!r}): left out {lost}; {hint}", stacklevel=5)
        return usable

    def _require_enough(
        self,
        sizes: Int[np.ndarray, " all"],
        usable: Bool[np.ndarray, " all"],
        supers: Int[np.ndarray, " all"] | None,
    ) -> None:
        """Refuse fewer classes, or super-labels, than a step has distinct ones."""
        rules = self._rules
        have, quality = usable.sum(), f"{count_of(rules.least, 'image')} or more"
        if supers is not None:
            have = np.unique(supers[usable]).size
            each = rules.each if rules.short_supers == "skip" else 1
            quality = f"{count_of(each, 'class')} of {quality}"
        if have >= rules.items:
            return
        per_rank = rules.items // rules.world_size if rules.argument != "p" else rules.p
        ranks, step = "", ""
        ways = [f"lower {rules.argument}"] if per_rank > 1 or supers is None else []
        if supers is not None and rules.argument != "p" and rules.each > 1:
            ways.append(f"lower p={rules.p} for fewer classes of each {rules.unit}")
        if rules.world_size > 1:
            needed = rules.items if supers is None or rules.argument != "p" else rules.each
            ranks, step = f", world_size={rules.world_size}", f", and a step needs {needed}"
            ways.append("lower world_size")
        if supers is None and (sizes > 1).sum() >= rules.items:
            ways.append('pass short_classes="repeat"')
        ways = ways or [f"give a {rules.unit} more classes or images"]
        raise ValueError(
            f"PKSampler({rules.argument}={per_rank}{ranks}): only {count_of(have, rules.unit)} "
            f"{'has' if have == 1 else 'have'} {quality}{step}; {' or '.join(ways)}"
        )


def count_of(count: Any, noun: str) -> str:
    """The count and its noun: 1 class, 3 classes, 2 images.

    Example:
        >>> count_of(1, "class"), count_of(3, "class")
        ('1 class', '3 classes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count != 1 else ''}"


def supers_of_classes(labels: Labels, super_labels: Any) -> Labels:
    """The labels with the super-label of each class; refused where images of one class have several."""
    super_codes, super_names = _codes_beside(labels, super_labels, "super_labels", "super-label")
    super_of = np.zeros(len(labels.names), dtype=np.int64)
    super_of[labels.codes] = super_codes
    astray = np.flatnonzero(super_of[labels.codes] != super_codes)
    if astray.size:
        row = astray[0]
        one, other = super_names[super_codes[row]], super_names[super_of[labels.codes[row]]]
        raise ValueError(
            f"PKSampler(super_labels=...): class {labels.names[labels.codes[row]]!r} has images in "
            f"super-labels {one!r} and {other!r}; give each class one super-label"
        )
    return Labels(labels.codes, labels.names, super_of, super_names)


def labels_within(labels: Labels, groups: Any) -> Labels:
    """The labels of each group by itself: a class of two groups is two classes, of one group each."""
    group_codes, group_names = _codes_beside(labels, groups, "pure_groups", "group")
    both, codes = np.unique(labels.codes * len(group_names) + group_codes, return_inverse=True)
    old, group = np.divmod(both, len(group_names))
    names = [(labels.names[c], group_names[g]) for c, g in zip(old.tolist(), group.tolist(), strict=True)]
    return Labels(codes, names, group, group_names, old)


def _codes_beside(
    labels: Labels, values: Any, argument: str, noun: str
) -> tuple[Int[np.ndarray, " n"], tuple[Any, ...]]:
    """A second label for each image as codes and their names."""
    codes, names = label_codes("PKSampler", values, argument)
    if len(codes) != len(labels.codes):
        expected = f"one for each of the {len(labels.codes)} images"
        raise refusal("PKSampler", argument, count_of(len(codes), noun), expected)
    return codes, tuple(names.tolist())


def numbers_of(
    argument: str, values: Any, all_names: Sequence[Any], names: list[Any], default: float | None
) -> Float[np.ndarray, " c"]:
    """Numbers above 0 for names, from a dict by name or an array with one for each of all names.

    Args:
        argument: the name of the argument, for sentences.
        values: what the user gave.
        all_names: the names that an array is for.
        names: [c] those that are wanted.
        default: for names that a dict lacks; None refuses them.

    Returns:
        float64 [c].

    Raises:
        ValueError: another length, unknown or missing names, or numbers that are not above 0.
    """
    if isinstance(values, Mapping):
        known = set(all_names)
        unknown = [name for name in values if name not in known]
        if unknown:
            raise refusal("PKSampler", argument, unknown[0], f"names among {list(all_names[:3])!r}, …")
        missing = [name for name in names if name not in values]
        if missing and default is None:
            raise refusal("PKSampler", argument, f"nothing for {missing[0]!r}", "a number for each")
        numbers = [values.get(name, default) for name in names]
    else:
        array = as_array("PKSampler", argument, values, "numbers above 0")
        if array.shape != (len(all_names),):
            raise refusal(
                "PKSampler", argument, f"array of shape {array.shape}", f"a dict, or {len(all_names)} numbers"
            )
        place = {name: n for n, name in enumerate(all_names)}
        entries = array.tolist()
        numbers = [entries[place[name]] for name in names]
    for number in numbers:
        as_float("PKSampler", argument, number, above=0)
    # Within these bounds neither their sums nor their shares leave the range of floats.
    found = [as_float("PKSampler", argument, number, 1e-100, 1e100) for number in numbers]
    return np.array(found, dtype=np.float64)
