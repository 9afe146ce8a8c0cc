"""`Evaluation`: figures by name with their intervals, as a table, as JSON and as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tercet.core.checks import as_choice, border, refusal
from tercet.data.io.atomic import atomically, fresh_target
from tercet.metrics import breakdown
from tercet.metrics.intervals import (
    Difference,
    Interval,
    class_intervals,
    class_sums,
    jackknife_interval,
    paired_difference,
)
from tercet.metrics.scores import Score
from tercet.reports.families import UNBOUNDED

__all__ = ["Evaluation"]


class Evaluation(Mapping[str, float]):
    """Figures of one evaluation by name; printed, they are a table with intervals.

    Args:
        figures: the figures by name, in the order in which they are shown: a `Score` where it is a mean over
            queries, else a float.
        labels: [n], the class of each row: intervals draw classes.
        without: of figures that are no mean over queries, the figure without each class [c].
        notes: further lines of the table.
        choices: what the figures are of, for the JSON.
        curves: arrays to plot, by name: "roc", "cmc", "recall", "similarities".
        seed: of the intervals.

    Example:
        >>> values = np.array([1.0, 1.0, 0.0, 0.0, np.nan])
        >>> score = Score(0.5, queries=4, left_out=1, values=values)
        >>> found = Evaluation({"Recall@1": score}, ["a", "a", "b", "b", "c"])
        >>> found["Recall@1"], list(found), found.macro("Recall@1"), found.worst("Recall@1")
        (0.5, ['Recall@1'], 0.5, 0.0)
        >>> print(found)
        Recall@1  0.500 [0.000, 1.000]
        4 queries, 1 left out: no other image of their class
        intervals: 95 %, classes drawn with replacement
    """

    def __init__(
        self,
        figures: Mapping[str, float],
        labels: Any = None,
        without: Mapping[str, np.ndarray] | None = None,
        notes: Iterable[str] = (),
        choices: Mapping[str, Any] | None = None,
        curves: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self._figures = dict(figures)
        self.labels = labels
        self._without, self._notes = dict(without or {}), list(notes)
        self.choices, self.curves, self.seed = dict(choices or {}), dict(curves or {}), seed

    def __getitem__(self, name: str) -> float:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"Evaluation({self._figures})"

    def __str__(self) -> str:
        width = max(map(len, self._figures), default=0)
        lines = []
        for name, value in self._figures.items():
            interval = self.intervals.get(name)
            lines.append(f"{name:<{width}}  {value:.3f}" + (f" {interval}" if interval else ""))
        return "\n".join([*lines, *self.notes()])

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % interval of each figure that has one.

        Of means over queries classes are drawn with replacement, by one matrix product for all figures; of
        other figures it comes from the figure without each class, as `jackknife_interval` has it.
        """
        per_class = {name: class_sums(values, self.labels) for name, values in self._values().items()}
        together: dict[int, list[str]] = {}
        for name, (sums, _) in per_class.items():
            together.setdefault(len(sums), []).append(name)
        found: dict[str, Interval] = {}
        for names in together.values():
            sums, counts = (np.stack([per_class[name][i] for name in names], 1) for i in (0, 1))
            kept = counts.any(1)  # [c], classes that have queries
            found |= dict(zip(names, class_intervals(sums[kept], counts[kept], seed=self.seed), strict=True))
        for name, each in self._without.items():
            found[name] = jackknife_interval(self._figures[name], each, name not in UNBOUNDED)
        return {
            name: found[name] for name in self._figures if name in found and not math.isnan(found[name].low)
        }

    def _values(self) -> dict[str, np.ndarray]:
        """The values of each row, of the figures that are means over rows."""
        if self.labels is None:
            return {}
        scores = {name: getattr(value, "values", None) for name, value in self._figures.items()}
        return {
            name: each for name, each in scores.items() if each is not None and len(each) == len(self.labels)
        }

    def values(self) -> Any:
        """The figures, as of any mapping.

        Returns:
            A view of floats.
        """
        return self._figures.values()

    def of_rows(self, name: str) -> np.ndarray:
        """The value of each row of a figure.

        Args:
            name: of a figure that is a mean over queries.

        Returns:
            float64 [n], NaN where a row does not count.

        Raises:
            ValueError: a figure that has no value a row.
        """
        return self._values()[as_choice("Evaluation", "name", name, self._values())]

    def macro(self, name: str) -> float:
        """The mean over classes of a figure.

        Args:
            name: of a figure that is a mean over queries.

        Returns:
            A float.
        """
        return breakdown.macro(self.of_rows(name), self.labels)

    def worst(self, name: str, share: float = 0.1) -> float:
        """The mean of a figure over the worst classes.

        Args:
            name: of a figure that is a mean over queries.
            share: of the classes.

        Returns:
            A float.
        """
        return breakdown.worst(self.of_rows(name), self.labels, share)

    def by_class(self, name: str) -> dict[Any, tuple[float, int]]:
        """The mean of a figure over the queries of each class, and how many they are; the worst first.

        Args:
            name: of a figure that is a mean over queries.

        Returns:
            (mean, queries) by class.
        """
        return breakdown.by_name(self.of_rows(name), self.labels)

    def by_group(self, name: str, groups: Any) -> dict[Any, tuple[float, int]]:
        """The mean of a figure over the queries of each group, and how many they are; the worst first.

        Args:
            name: of a figure that is a mean over queries.
            groups: [n] whole numbers or strings.

        Returns:
            (mean, queries) by group.
        """
        return breakdown.by_name(self.of_rows(name), groups)

    def by_size(self, name: str) -> dict[str, tuple[float, int]]:
        """The mean of a figure over the queries of classes of 1, 2, 3–4, 5–8, … rows.

        Args:
            name: of a figure that is a mean over queries.

        Returns:
            (mean, queries) by size of the class.
        """
        return breakdown.by_size(self.of_rows(name), self.labels)

    def notes(self) -> list[str]:
        """What the figures are of, and what was left out, tied or clipped, a sentence each.

        Returns:
            A list of lines.
        """
        lines = []
        scores = {name: score for name, score in self._figures.items() if isinstance(score, Score)}
        for name, score in list(scores.items())[:1]:
            reason = "no other image of their class"
            said = f"{score.queries:,} queries"
            if score.left_out:
                said += f", {score.left_out:,} left out: {reason}"
            elif score.without_positives:
                said += f", {score.without_positives:,} of them worth 0: {reason}"
            lines.append(said)
            if score.tied:
                lines.append(
                    f"{name} of {score.tied:.1%} of them depends on ties: the mean over their orders"
                )
        for name, score in scores.items():
            if score.clipped:
                lines.append(f"{name}: {score.clipped:,} queries are compared with fewer images")
        lines += self._notes
        if self.intervals.keys() & self._values().keys():
            lines.append("intervals: 95 %, classes drawn with replacement")
        if self.intervals.keys() & self._without.keys():
            lines.append(f"intervals of {self._listed(self._without)}: 95 %, jackknife over classes")
        lacking = self._figures.keys() - self.intervals.keys()
        if lacking and self.labels is not None:
            why = "not defined, or not when one of the classes is left out"
            lines.append(f"no interval of {self._listed(lacking)}: {why}")
        return lines

    def _listed(self, names: Collection[str]) -> str:
        return ", ".join(name for name in self._figures if name in names)

    def compare(self, other: Evaluation) -> dict[str, Difference]:
        """How much better these figures are than those of another model on the same rows.

        Classes are drawn for both at once, and p is of random signs of the classes' differences.

        Args:
            other: the evaluation of the other model.

        Returns:
            A `Difference` for each figure that is a mean over queries and that both have.

        Raises:
            ValueError: other rows or classes.

        Example:
            >>> labels, values = ["a", "a", "b", "b"], (np.ones(4), np.array([1.0, 0.0, 1.0, 0.0]))
            >>> good, bad = (Evaluation({"MRR": Score(0.0, 4, 0, values=each)}, labels) for each in values)
            >>> good.compare(bad)["MRR"].value
            0.5
        """
        here, there = self.labels, other.labels
        if here is None or there is None or list(here) != list(there):
            raise refusal("compare", "other", "other rows or classes", "an evaluation of the same rows")
        mine, theirs = self._values(), other._values()
        return {
            name: paired_difference(mine[name], theirs[name], np.asarray(here), seed=self.seed)
            for name in mine
            if name in theirs
        }

    def to_json(self) -> str:
        """The figures with intervals and counts, and the choices that they are of; NaN is null.

        Returns:
            A text in JSON.
        """
        figures = {}
        for name, value in self._figures.items():
            figure: dict[str, Any] = {"value": _number(value)}
            if name in self.intervals:
                figure["interval"] = [_number(each) for each in self.intervals[name]]
            if isinstance(value, Score):
                counts = ("queries", "left_out", "without_positives", "tied", "clipped")
                figure |= {each: getattr(value, each) for each in counts}
            if name in self._values():
                figure |= {"macro": _number(self.macro(name)), "worst tenth": _number(self.worst(name))}
            figures[name] = figure
        return json.dumps({"figures": figures, "choices": self.choices, "notes": self.notes()}, indent=1)

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write `to_json` into a file.

        Args:
            path: where to, ending in .json.
            overwrite: replace an existing file.

        Raises:
            ValueError: another suffix, or an existing file.
        """
        with border("write"):
            target = fresh_target(path, overwrite, (".json",))
        with atomically(target, overwrite) as unfinished:
            unfinished.write_text(self.to_json() + "\n", "utf-8")

    def plot(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Draw what there is of ROC, CMC, recall curve and histograms of similarity.

        Args:
            path: where to, ending in .png, .pdf or .svg.
            overwrite: replace an existing picture.

        Raises:
            ValueError: another suffix, an existing file, or nothing to draw.
        """
        from tercet.reports.curves import draw_curves

        draw_curves(path, self.curves, overwrite)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
