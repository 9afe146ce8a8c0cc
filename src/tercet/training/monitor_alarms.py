"""When the figures of a run are ill: collapse, nothing left to learn, norms that explode or vanish."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Alarm", "Alarms"]

_REMEDY = {
    "collapse": "mine with SemiHard instead of BatchHard or take TripletMargin(soft=True), lower the "
    "learning rate, give embeddings unit length",
    "inactive": "take a harder miner, a larger batch, super-labels, CrossBatchMemory, or hard negatives of "
    "the whole collection (mine_hard_triplets)",
    "norm": "lower the learning rate, clip gradients, give embeddings unit length",
}


class Alarm(UserWarning):
    """A warning of `Monitor`: which figure is ill, by which threshold, and what to do about it."""


class Alarms:
    """Which alarms are in force, from the figures of each logged step.

    Args:
        collapse: `collapse` above it is ill; None for no such alarm.
        active: `active` below it is ill, and so is `mined` of 0; None for no such alarm.
        growth: `norm` is ill where it is this many times what it was at first, or that many times less; None
            for no such alarm.
        patience: the alarms of collapse and inactivity are given at so many ill steps in a row, that of the
            norm at once.

    Attributes:
        first: `norm` of the first step.
        streaks: for each kind, how many steps in a row it has been ill by now.

    Example:
        >>> alarms = Alarms(collapse=0.95, active=0.01, growth=100.0, patience=1)
        >>> figures = {"step": 5, "mined": 8.0, "active": 1.0, "collapse": 0.1, "norm": 1.0}
        >>> alarms.judged(figures)
        []
        >>> (sentence,) = alarms.judged(figures | {"step": 6, "active": 0.0})
        >>> sentence[:73]
        'Monitor: active is 0, below 0.01, at step 6: hardly a tuple teaches any m'
    """

    def __init__(
        self, collapse: float | None, active: float | None, growth: float | None, patience: int
    ) -> None:
        self._collapse, self._active, self._growth = collapse, active, growth
        self._patience = {"collapse": patience, "inactive": patience, "norm": 1}
        self.first = 0.0
        self.streaks = dict.fromkeys(_REMEDY, 0)

    def judged(self, figures: Mapping[str, float]) -> list[str]:
        """The sentences of the alarms that a step begins; one that is in force already is not repeated.

        Args:
            figures: `step`, `mined`, `active`, `collapse` and `norm`; a NaN is not judged.
        """
        self.first = self.first or figures["norm"]
        ill, sentences = self._ill(figures), []
        for kind, patience in self._patience.items():
            self.streaks[kind] = self.streaks[kind] + 1 if kind in ill else 0
            if self.streaks[kind] == patience:
                fact, meaning = ill[kind]
                since = f", the last of {patience} logged steps in a row" if patience > 1 else ""
                text = f"Monitor: {fact}, at step {figures['step']:.0f}{since}: {meaning}"
                sentences.append(f"{text}; {_REMEDY[kind]}")
        return sentences

    def in_force(self) -> list[str]:
        """The kinds of the alarms that were given and are not over yet."""
        return [kind for kind, streak in self.streaks.items() if streak >= self._patience[kind]]

    def _ill(self, figures: Mapping[str, float]) -> dict[str, tuple[str, str]]:
        """For each kind that is ill, the figure beside its threshold, and what that means."""
        found = {}
        if self._collapse is not None and figures["collapse"] > self._collapse:
            fact = f"collapse is {figures['collapse']:.4g}, above {self._collapse:g}"
            found["collapse"] = fact, "all embeddings become one point"
        elif self._active is not None and figures["mined"] == 0:  # of one point a harder miner makes no more
            found["inactive"] = "mined is 0", "no tuple is left to learn from"
        elif self._active is not None and figures["active"] < self._active:
            fact = f"active is {figures['active']:.3g}, below {self._active:g}"
            found["inactive"] = fact, "hardly a tuple teaches any more"
        if self._growth is not None:
            change = figures["norm"] / self.first if self.first else 1.0
            fact = f"norm is {figures['norm']:.3g}, {change:.3g} times the {self.first:.3g} of the first step"
            if change > self._growth:
                found["norm"] = f"{fact} and more than {self._growth:g}", "embeddings explode"
            elif change < 1 / self._growth:
                found["norm"] = f"{fact} and less than 1/{self._growth:g}", "embeddings shrink to the origin"
        return found
