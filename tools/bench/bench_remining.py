"""What is learned in as many steps: re-mined triplets, random ones, and semi-hard ones of the batch.

    python tools/bench/bench_remining.py TREE [--steps 240] [--markdown tools/bench/RESULTS.md]

TREE holds alphabet/character/*.png, as Omniglot does. A small ConvNet learns the characters of the first
alphabets, MAP@R is that of the others. All arms start from the same weights and take as many steps, with at
most as many images each; only what meets in a batch differs.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench_learning import RATE, SIZE, SmallNet, batches, loaded, moved, score, spread
from cases import MARGIN
from page import table, told, write_section
from rich.console import Console
from rich.table import Table
from torch import Tensor

import tercet

HEADS = ["triplets", "MAP@R", "spread", "images a step", "triplets a step", "time of mining"]
DRIFT = "round from_step mined_anchors changed stale score_change replaced unreplaced".split()
SAFE = {"max_quantile": 0.05, "strategy": "random", "ranks": (1, 50), "on_short": "random"}
SEMI_HARD = {"strategy": "semi-hard", "on_short": "random"}
PAIRS = {"positives": 10, "negatives": 3, "reserve": 6}  # of 19 positives the one in the middle

ARMS: dict[str, dict[str, Any] | None] = {
    "semi-hard in the batch": None,
    "random": {},
    "re-mined, hardest": {"mining": PAIRS},
    "re-mined, semi-hard": {"mining": {**PAIRS, **SEMI_HARD}},
    "re-mined, safe": {"mining": {**PAIRS, **SAFE}},
    "re-mined, safe, a quarter random": {"mining": {**PAIRS, **SAFE, "uniform": 0.25}},
    "re-mined, semi-hard, in four parts": {"mining": {**PAIRS, **SEMI_HARD}, "parts": 4},
    "re-mined, safe, semi-hard in the batch": {"mining": {**PAIRS, **SAFE}, "semi_hard": True},
}
"""None for batches of P × K, {} for random triplets, else options of `Remining`."""


def prepared(image: np.ndarray) -> Tensor:
    """An image as `loaded` gives it, for `embed`."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(
        1 - cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA) / np.float32(255)
    )[None]


class Listed:
    """Batches of listed triplets, by anchor: (rows, triplets of positions in them)."""

    def __init__(self, seed: int, images: int, triplets: Any) -> None:
        self._triplets = triplets
        self._sampler = tercet.AnchorSampler(triplets, anchors=64, images=images, seed=seed)

    def set_epoch(self, epoch: int, step: int) -> None:
        self._sampler.set_epoch(epoch, step)

    def __iter__(self) -> Iterator[tuple[np.ndarray, tercet.Triplets]]:
        for numbers in self._sampler:
            rows, places = np.unique(np.stack(self._triplets[np.array(numbers)]), return_inverse=True)
            yield rows, tercet.Triplets(*torch.from_numpy(places.reshape(3, -1)))


class Run:
    """A network that learns by one arm."""

    def __init__(
        self, arm: dict[str, Any] | None, catalog: Any, images: Tensor, seed: int, options: Any
    ) -> None:
        torch.manual_seed(seed)
        self.model = SmallNet()
        self._options, self._images = options, images
        self._labels = torch.from_numpy(catalog.labels)
        self._generator = torch.Generator().manual_seed(seed)
        self._miner, self._head = tercet.SemiHard(margin=MARGIN), tercet.TripletMargin(MARGIN)
        self.embedded, self.listed, self.remining = [], [], None
        self._mines = arm is None  # whether a miner chooses among the images of the batch
        self._batches = self._of(arm, catalog, seed)

    def _of(self, arm: dict[str, Any] | None, catalog: Any, seed: int) -> Iterator[Any]:
        p_k = self._options.p * self._options.k
        if arm is None:
            return ((rows, None) for rows in batches(catalog.labels, self._options.p, self._options.k, seed))
        make = partial(Listed, seed, p_k)
        if not arm:
            return self._random(make, catalog, seed)
        given = dict(arm)
        self._mines = given.pop("semi_hard", False)
        self._folder = tempfile.TemporaryDirectory()
        self.remining = tercet.Remining(
            self.model,
            catalog,
            self._folder.name,
            every=self._options.every,
            seed=seed,
            embedding={"transform": prepared, "batch_size": 256},
            **given,
        )
        return iter(self.remining.batches(make, self._options.steps))

    def _random(self, make: Callable[[Any], Listed], catalog: Any, seed: int) -> Iterator[Any]:
        listed = make(tercet.RandomTriplets(catalog.labels, positives=1, negatives=3, seed=seed))
        while True:
            yield from listed

    def train(self) -> None:
        """All steps; the rate falls to 0, so that the last ones settle what is measured."""
        start = time.perf_counter()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        for step in range(self._options.steps):
            rows, triplets = next(self._batches)
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / self._options.steps)
            x, y = self.model(moved(self._images[rows], self._generator)), self._labels[rows]
            mined = self._miner(x, y) if self._mines else triplets
            self.embedded.append(len(x))
            self.listed.append(mined.count)
            optimizer.zero_grad()
            self._head(x, y, mined).backward()
            optimizer.step()
        self._took = time.perf_counter() - start

    @property
    def share(self) -> float:
        """The share of the time that embedding and mining took."""
        return sum(row["seconds"] for row in self.remining.drift) / self._took if self.remining else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree", type=Path, help="a folder of alphabet/character/*.png")
    parser.add_argument("--learned", type=int, default=3, help="alphabets that are learned, by name")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=30, help="steps from one round to the next")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--p", type=int, default=32, help="classes in a batch")
    parser.add_argument("--k", type=int, default=8, help="images of a class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    images, labels, alphabets = loaded(options.tree)
    names = sorted(set(alphabets.tolist()))
    if len(names) <= options.learned:
        parser.error(
            f"{options.tree} has {len(names)} alphabets; expected more than --learned {options.learned}"
        )
    seen = np.isin(alphabets, names[: options.learned])
    catalog = tercet.scan_folder(options.tree).select(seen)
    x, unseen, unseen_labels = images[seen], images[~seen], labels[~seen]
    apart = f"learned: {', '.join(names[: options.learned])} ({len(x)} images); "
    apart += f"measured: {', '.join(names[options.learned :])} ({len(unseen)} images)"
    print(apart)

    untrained: list[float] = []
    scores: dict[str, list[float]] = {name: [] for name in ARMS}
    last: dict[str, Run] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        untrained.append(score(SmallNet(), unseen, unseen_labels))
        for name, arm in ARMS.items():
            last[name] = Run(arm, catalog, x, seed, options)
            last[name].train()
            scores[name].append(score(last[name].model, unseen, unseen_labels))
            print(f"seed {seed}  {name:<40}MAP@R {scores[name][-1]:.4f}", flush=True)

    rows = [["untrained", f"{statistics.mean(untrained):.4f}", spread(untrained), "", "", ""]]
    for name, run in last.items():
        counts = [f"{statistics.mean(some):.0f}" for some in (run.embedded, run.listed)]
        shown = [f"{statistics.mean(scores[name]):.4f}", spread(scores[name]), *counts]
        rows.append([name, *shown, f"{run.share:.0%}" if run.remining else ""])
    shown = Table(*HEADS)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
    if options.markdown:
        given = [each for each in sys.argv[1:] if each != str(options.tree)]
        command = shlex.join(["python", "tools/bench/bench_remining.py", "TREE", *given])
        about = (
            f"{told()} Regenerate with `{command}`. Omniglot's alphabets, {apart}. {options.steps} steps of "
            f"each arm and seed, {options.seeds} seeds, of at most {options.p * options.k} images, turned, "
            f"scaled and shifted at random; rounds every {options.every} steps; the hinge of margin {MARGIN} "
            "over the triplets of each batch. In lists, each anchor has one positive, the tenth by distance "
            "or a random one, and three negatives. Re-mined *semi-hard* ones are the hardest that are "
            "farther than the positive, *safe* ones drawn from ranks 1 to 50 and farther than 95 % of "
            "positives, both at random where there are none. MAP@R is the mean, spread the largest less the "
            "smallest; what follows is of the last seed."
        )
        in_parts = last["re-mined, semi-hard, in four parts"].remining
        log = [[_shown(row[kind]) for kind in DRIFT] for row in (in_parts.drift if in_parts else [])]
        text = f"## Re-mining\n\n{about}\n\n{table(HEADS, rows)}"
        text += f"\n\nThe drift log of *in four parts*:\n\n{table(DRIFT, log, left=0)}"
        write_section(options.markdown, "remining", text)


def _shown(fact: float | None) -> str:
    return "" if fact is None else f"{fact:.3f}" if isinstance(fact, float) else f"{fact:,}"


if __name__ == "__main__":
    main()
