"""The classes of each step of an epoch: how many steps there are, and which classes meet in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from tercet.core.checks import refusal
from tercet.core.randomness import derive_key
from tercet.data.samplers.balanced_plan import assign, every_pair, occurrences, water_fill, weighted_fill
from tercet.data.samplers.class_table import ClassRules, ClassTable
from tercet.data.samplers.near_classes import assign_near

__all__ = ["ClassPlan", "Mixing"]


@dataclass(frozen=True)
class Mixing:
    """How classes are mixed, where it is not evenly and by chance.

    Args:
        weights: [i] how often each item (class, or group) is drawn, in proportion; None for evenly.
        spread_pairs: whether any two super-labels meet equally often.
        near: how many classes of a batch are near each other; 0 for any.
        neighbors: [c, m] the nearest classes of each, itself first, where `near` is not 0.
    """

    weights: Float[np.ndarray, " i"] | None = None
    spread_pairs: bool = False
    near: int = 0
    neighbors: Int[np.ndarray, "c m"] | None = None


class ClassPlan:
    """The classes of each step of an epoch, each in as many steps as it needs or more.

    Items are what a step has distinct ones of: classes, or super-labels (groups) where there are such, which
    then have `each` classes in each of their steps.

    Args:
        table: the classes.
        rules: how many of them a step has.
        demand: [c] the least number of turns of each class in an epoch.
        epoch_length: the number of steps; None for the fewest that give each class its turns.
        mixing: how they are mixed.

    Attributes:
        length: S, the number of steps.
    """

    def __init__(
        self,
        table: ClassTable,
        rules: ClassRules,
        demand: Int[np.ndarray, " c"],
        epoch_length: int | None,
        mixing: Mixing,
    ) -> None:
        self._rules, self._mixing = rules, mixing
        self._slot_class, self._is_fixed, turns = _slots(table, rules)
        self._slot_super = None if table.supers is None else table.supers[self._slot_class]
        self._slot_demand = np.where(self._is_fixed, 0, demand[self._slot_class])
        self._demand = demand  # [i] of each item
        if table.supers is not None:
            # A class has at most `turns` turns in a batch, and a batch has `each` turns of a super-label.
            total = np.bincount(table.supers, weights=demand).astype(np.int64)
            self._demand = -(-total // rules.each)
            np.maximum.at(self._demand, table.supers, -(-demand // turns))
            repeated = np.unique(table.supers[self._slot_class[self._is_fixed]])
            self._slot_demand[np.isin(table.supers[self._slot_class], repeated)] = 0
        most = (1 << 32) // (rules.items * rules.each)  # the plan of an epoch is in memory, 16 bytes a place
        self.length = self._fewest_steps(most) if epoch_length is None else epoch_length
        if self.length > most:
            expected = f"at most {most} steps of this width"
            hint = "a whole number bounds an epoch that weights or pairs make long"
            raise refusal("PKSampler", "epoch_length", self.length, expected, hint)

    def _fewest_steps(self, most: int) -> int:
        """The least number of steps that gives each item what it needs."""
        width, demand = self._rules.items, self._demand
        needed = max(int(demand.max()), -(-int(demand.sum()) // width))
        enough = None
        if self._mixing.spread_pairs:
            enough = self._pairs_suffice
        elif self._mixing.weights is not None:
            enough = self._weights_suffice
        if enough is None or enough(needed):
            return needed
        low, high = needed, 2 * needed
        while not enough(high) and high <= most:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _weights_suffice(self, steps: int) -> bool:
        weights = self._mixing.weights
        assert weights is not None
        return bool((weighted_fill(weights, steps, self._rules.items, None) >= self._demand).all())

    def _pairs_suffice(self, steps: int) -> bool:
        # The counts of a tournament are the same whichever item has which place in it, but not who has them.
        plan = every_pair(len(self._demand), steps, self._rules.items // 2, 0)
        return bool(np.bincount(plan.ravel(), minlength=len(self._demand)).min() >= self._demand.max())

    def epoch(self, key: int) -> Int[np.ndarray, "S w"]:
        """The classes in each step, those of rank 0 first.

        Args:
            key: names all draws.
        """
        items, width = len(self._demand), self._rules.items
        steps, group = np.array([self.length]), np.zeros(items, dtype=np.int64)
        if self._mixing.spread_pairs:
            plan = every_pair(items, self.length, width // 2, key)
            counts = np.bincount(plan.ravel(), minlength=items)
        else:
            if self._mixing.weights is None:
                counts = water_fill(self._demand, group, steps, width, key)
            else:
                counts = weighted_fill(self._mixing.weights, self.length, width, key)
            if self._slot_super is None and self._mixing.near:
                return self._near(counts, group, steps, key)
            plan = assign(counts, group, steps, width, key)
        if self._slot_super is None:
            return plan
        # Each step has super-labels. In the same way, each appearance of a super-label gets `each` of its
        # classes: its appearances are the batches, and its classes the items.
        key = derive_key("classes", key)
        least = np.where(self._is_fixed, counts[self._slot_super], self._slot_demand)
        slot_counts = water_fill(least, self._slot_super, counts, self._rules.each, key)
        if self._mixing.near:
            assigned = self._near(slot_counts, self._slot_super, counts, key)
        else:
            assigned = self._slot_class[assign(slot_counts, self._slot_super, counts, self._rules.each, key)]
        first = np.cumsum(counts) - counts  # of each super-label, in `assigned`
        return assigned[first[plan] + occurrences(plan)].reshape(self.length, -1)

    def _near(
        self,
        counts: Int[np.ndarray, " s"],
        group: Int[np.ndarray, " s"],
        batches: Int[np.ndarray, " g"],
        key: int,
    ) -> Int[np.ndarray, "b w"]:
        """Assign classes to the batches of each group, near ones together."""
        rules, neighbors = self._rules, self._mixing.neighbors
        assert neighbors is not None
        per_rank = rules.p if rules.unit != "super-label" else rules.each
        ranks = rules.world_size if rules.unit != "super-label" else 1
        parts = []
        for g, steps in enumerate(batches.tolist()):
            of_group = np.where(group == g, counts, 0)
            part_key = derive_key("near", g, key)
            parts.append(
                assign_near(of_group, steps, ranks, per_rank, self._mixing.near, neighbors, part_key)
            )
        return np.concatenate(parts)


def _slots(
    table: ClassTable, rules: ClassRules
) -> tuple[Int[np.ndarray, " s"], np.ndarray, Int[np.ndarray, " c"]]:
    """What a batch takes of a super-label: each of its classes once, or several times where it has few.

    Returns:
        The class of each slot; whether the slot is in each batch of its super-label; and how many turns each
        class has in such a batch at least. A super-label of g < each classes has ⌊each / g⌋ slots of each
        class in all its batches, and one more of each class, which take turns.
    """
    supers, classes = table.supers, np.arange(len(table.sizes))
    size = None if supers is None else np.bincount(supers)[supers]  # [c] the classes of its super-label
    if size is None or (size >= rules.each).all():
        return classes, np.zeros(len(classes), dtype=bool), np.ones(len(classes), dtype=np.int64)
    turns = np.maximum(1, rules.each // size)
    slots = np.where(size < rules.each, turns + (rules.each % size > 0), 1)
    slot_class = np.repeat(classes, slots)
    nth = np.arange(len(slot_class)) - np.repeat(np.cumsum(slots) - slots, slots)
    return slot_class, (size < rules.each)[slot_class] & (nth < turns[slot_class]), turns
