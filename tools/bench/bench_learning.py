"""What is learned in the same seconds: our miners and heads against the peer's, on classes never seen.

    python tools/bench/bench_learning.py TREE [--seconds 30] [--markdown tools/bench/RESULTS.md]

TREE holds alphabet/character/*.png, as Omniglot does. A small ConvNet learns the characters of the first
alphabets, MAP@R is that of the others. Both sides take the same batches from the same PKSampler and start
from the same weights; they take their steps by turns, and only those are timed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
import torch
from cases import MARGIN, OURS, PML, Mined, triplet
from page import table, told, write_section
from pytorch_metric_learning import losses, miners
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tercet

SIZE = 28  # pixels
RATE = 1e-3  # at which learning begins
HEADS = ["rule", "side", "MAP@R", "spread", "steps a second", "steps"]

RULES: dict[str, Callable[[], dict[str, Mined]]] = {
    "batch hard": lambda: {
        OURS: Mined(tercet.BatchHard(), tercet.TripletMargin(soft=True)),
        PML: Mined(miners.BatchHardMiner(), triplet(margin=0, smooth_loss=True)),
    },
    "semi-hard": lambda: {
        OURS: Mined(tercet.SemiHard(margin=MARGIN, negatives="all"), tercet.TripletMargin(MARGIN)),
        PML: Mined(miners.TripletMarginMiner(MARGIN, "semihard"), triplet(margin=MARGIN)),
    },
    "semi-hard, nearest": lambda: {  # FaceNet's choice, which the peer does not have
        OURS: Mined(tercet.SemiHard(margin=MARGIN), tercet.TripletMargin(MARGIN)),
    },
    "multi-similarity": lambda: {
        OURS: Mined(tercet.MultiSimilarityMiner(), tercet.MultiSimilarity()),
        PML: Mined(miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()),
    },
}


class SmallNet(nn.Module):
    """Images [b, 1, 28, 28] to embeddings [b, 64] of unit length."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, out in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(wide, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 64))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(images))


def loaded(tree: Path) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images [n, 1, 28, 28] with ink as 1; of each the number of its character and its alphabet's name."""
    catalog = tercet.scan_folder(tree)
    images = np.empty((len(catalog), 1, SIZE, SIZE), dtype=np.float32)
    for row, path in enumerate(catalog.paths):
        image = cv2.imread(str(Path(catalog.root) / path), cv2.IMREAD_GRAYSCALE)
        images[row, 0] = 1 - cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA) / 255.0
    alphabets = np.array([Path(path).parts[0] for path in catalog.paths])
    return torch.from_numpy(images), np.asarray(catalog.labels), alphabets


def batches(labels: np.ndarray, p: int, k: int, seed: int) -> Iterator[list[int]]:
    """The rows of every batch, epoch after epoch, by our sampler."""
    sampler = tercet.PKSampler(labels, p=p, k=k, seed=seed)
    for epoch in count():
        for number in range(len(sampler)):
            yield [int(row) for row in sampler.batch(epoch=epoch, step=number)]


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 12°, scaled by up to 1/8 and shifted by up to 2 pixels, at random."""
    turn, scale, x, y = torch.rand(4, len(images), generator=generator) * 2 - 1
    cos, sin = (1 + scale / 8) * torch.cos(turn / 5), (1 + scale / 8) * torch.sin(turn / 5)
    rows = torch.stack([cos, -sin, x * 4 / SIZE]), torch.stack([sin, cos, y * 4 / SIZE])
    grid = nn.functional.affine_grid(
        torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False
    )
    return nn.functional.grid_sample(images, grid, align_corners=False)


class Run:
    """A network that learns by one side's miner and loss, and the seconds that its steps have taken."""

    def __init__(self, step: Mined, images: Tensor, labels: Tensor, seed: int, options: Any) -> None:
        torch.manual_seed(seed)
        self.model = SmallNet()
        self.spent, self.done = 0.0, 0
        self._step, self._images, self._labels, self._options = step, images, labels, options
        self._batches = batches(labels.numpy(), options.p, options.k, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW([*self.model.parameters(), *step.parameters()], lr=RATE)

    def advance(self) -> None:
        """One step."""
        rows = next(self._batches)
        x, y = moved(self._images[rows], self._generator), self._labels[rows]
        for (
            group
        ) in self._optimizer.param_groups:  # falls to 0, so that the last steps settle what is measured
            group["lr"] = RATE * (1 - self.spent / self._options.seconds)
        start = time.perf_counter()
        self._optimizer.zero_grad()
        self._step(self.model(x), y).backward()
        self._optimizer.step()
        if self.done >= self._options.warm:  # the first steps load code and count for nobody
            self.spent += time.perf_counter() - start
        self.done += 1


def trained(runs: list[Run], seconds: float) -> None:
    """Lets each learn for so many seconds, by turns: a machine that slows down does so for all of them."""
    while waiting := [run for run in runs if run.spent < seconds]:
        min(waiting, key=lambda run: (run.spent, run.done)).advance()


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: np.ndarray) -> float:
    """MAP@R of the images."""
    model.eval()
    return float(tercet.map_at_r(torch.cat([model(part) for part in images.split(500)]), labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree", type=Path, help="a folder of alphabet/character/*.png")
    parser.add_argument("--learned", type=int, default=3, help="alphabets that are learned, by name")
    parser.add_argument("--seconds", type=float, default=15.0, help="of training a side and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--p", type=int, default=32, help="classes in a batch")
    parser.add_argument("--k", type=int, default=4, help="images of a class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm", type=int, default=3, help="steps that are taken but not timed")
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    images, labels, alphabets = loaded(options.tree)
    names = sorted(set(alphabets.tolist()))
    if len(names) <= options.learned:
        expected = f"expected more than --learned {options.learned}"
        parser.error(f"{options.tree} has {len(names)} alphabets; {expected}")
    seen = np.isin(alphabets, names[: options.learned])
    x, y, unseen, unseen_labels = images[seen], torch.from_numpy(labels[seen]), images[~seen], labels[~seen]
    apart = f"learned: {', '.join(names[: options.learned])} ({len(x)} images); "
    apart += f"measured: {', '.join(names[options.learned :])} ({len(unseen)} images)"
    print(apart)

    untrained = []
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        untrained.append(score(SmallNet(), unseen, unseen_labels))
        for turn, (rule, make) in enumerate(RULES.items()):
            sides = list(make().items())
            if (seed + turn) % 2:
                sides.reverse()
            runs = [Run(step, x, y, seed, options) for _, step in sides]
            trained(runs, options.seconds)
            for (side, _), run in zip(sides, runs, strict=True):
                found.setdefault((rule, side), []).append((score(run.model, unseen, unseen_labels), run.done))
                shown = f"MAP@R {found[rule, side][-1][0]:.4f}  {run.done} steps"
                print(f"seed {seed}  {rule:<20}{side:<26}{shown}", flush=True)

    rows = [["untrained", "", f"{statistics.mean(untrained):.4f}", spread(untrained), "", ""]]
    for rule in RULES:
        for side in (OURS, PML) if (rule, PML) in found else (OURS,):
            scores, steps = zip(*found[rule, side], strict=True)
            a_second = (statistics.mean(steps) - options.warm) / options.seconds
            shown = [f"{statistics.mean(scores):.4f}", spread(scores), f"{a_second:.1f}"]
            rows.append([rule, side, *shown, f"{statistics.mean(steps):.0f}"])
    shown = Table(*HEADS)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
    if options.markdown:
        given = [each for each in sys.argv[1:] if each != str(options.tree)]
        command = shlex.join(["python", "tools/bench/bench_learning.py", "TREE", *given])
        about = (
            f"{told()} Regenerate with `{command}`. Omniglot's alphabets, {apart}. {options.seconds:g} s of "
            f"training for each side and seed, both by turns, {options.seeds} seeds, batches of "
            f"{options.p} × {options.k}, turned, scaled and shifted at random, {options.threads} threads; "
            "the means, and as spread the largest less the smallest."
        )
        write_section(options.markdown, "learning", f"## Learning\n\n{about}\n\n{table(HEADS, rows, left=2)}")


def spread(values: Any) -> str:
    """The largest less the smallest."""
    return f"{max(values) - min(values):.4f}"


if __name__ == "__main__":
    main()
