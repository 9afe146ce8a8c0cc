"""What is learned from other batches: confusable classes together, classes made by turning, pairs ignored.

    python tools/bench/bench_batches.py TREE [--steps 400] [--markdown tools/bench/RESULTS.md]

TREE holds alphabet/character/*.png, as Omniglot does. A small ConvNet learns the characters of the first
alphabets by semi-hard triplets, MAP@R is that of the others. All take the same number of steps of as many
images, from the same weights.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_learning import RATE, SmallNet, loaded, moved, score, spread
from page import table, told, write_section
from torch import Tensor, nn

import tercet

HEADS = ["batches", "MAP@R", "spread", "seed by seed"]


@dataclass
class Task:
    """Images, their labels as the relation takes them, and the classes that batches are drawn from."""

    images: Tensor
    labels: Tensor
    classes: Tensor
    relation: Any


def plain(images: Tensor, characters: Tensor) -> Task:
    return Task(images, characters, characters, tercet.SameLabel())


def turned(images: Tensor, characters: Tensor) -> Task:
    """Four classes of each character: itself and turned by 90°, 180° and 270°."""
    whole = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    classes = torch.cat([characters * 4 + turn for turn in range(4)])
    return Task(whole, classes, classes, tercet.SameLabel())


def turned_apart(images: Tensor, characters: Tensor) -> Task:
    """The same, but a character and its own turned ones are no negatives of each other."""
    task = turned(images, characters)
    labels = torch.stack([task.classes, task.classes // 4], dim=1)
    return Task(task.images, labels, task.classes, tercet.Ignore(negatives="same"))


@torch.no_grad()
def embedded(model: nn.Module, images: Tensor) -> Tensor:
    """The embeddings of all images."""
    model.eval()
    found = torch.cat([model(part) for part in images.split(500)])
    model.train()
    return found


def batches(task: Task, model: nn.Module, share: float, options: Any, seed: int) -> Iterator[list[int]]:
    """The rows of each batch; with a share, the sampler is made anew as the model changes."""
    done, epoch = 0, 0
    while True:
        sampler = tercet.PKSampler(
            task.classes,
            p=options.p,
            k=options.k,
            seed=seed,
            confusion=embedded(model, task.images).numpy() if share and done else None,
            confusion_share=share or 0.5,
        )
        for step in range(len(sampler)):
            yield [int(row) for row in sampler.batch(epoch, step)]
            done += 1
            if share and done % options.refresh == 0:
                break
        epoch += 1


VARIANTS: dict[str, tuple[Callable[[Tensor, Tensor], Task], float]] = {
    "plain P×K": (plain, 0.0),
    "half of each batch confusable": (plain, 0.5),
    "whole batches confusable": (plain, 1.0),
    "characters turned, as classes": (turned, 0.0),
    "the same, own turns ignored": (turned_apart, 0.0),
}


def learned(
    make: Callable[[Tensor, Tensor], Task], share: float, x: Tensor, y: Tensor, options: Any, seed: int
):
    """A network after its steps."""
    torch.manual_seed(seed)
    model, task = SmallNet(), make(x, y)
    miner = tercet.SemiHard(margin=0.2, relation=task.relation)
    head = tercet.TripletMargin(margin=0.2, relation=task.relation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    rows_of = batches(task, model, share, options, seed)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / options.steps)
        rows = next(rows_of)
        embeddings, labels = model(moved(task.images[rows], generator)), task.labels[rows]
        optimizer.zero_grad()
        head(embeddings, labels, miner(embeddings, labels)).backward()
        optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree", type=Path, help="a folder of alphabet/character/*.png")
    parser.add_argument("--learned", type=int, default=3, help="alphabets that are learned, by name")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--refresh", type=int, default=50, help="steps between two looks at what is confused")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--p", type=int, default=16, help="classes in a batch")
    parser.add_argument("--k", type=int, default=4, help="images of a class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    images, labels, alphabets = loaded(options.tree)
    names = sorted(set(alphabets.tolist()))
    seen = torch.from_numpy(sum(alphabets == name for name in names[: options.learned]).astype(bool))
    x, y = images[seen], torch.from_numpy(labels)[seen]
    unseen, unseen_labels = images[~seen], labels[~seen.numpy()]
    apart = f"learned: {', '.join(names[: options.learned])} ({len(x)} images); "
    apart += f"measured: {', '.join(names[options.learned :])} ({len(unseen)} images)"
    print(apart)
    rows = []
    for name, (make, share) in VARIANTS.items():
        found = []
        for seed in range(options.seeds):
            found.append(score(learned(make, share, x, y, options, seed), unseen, unseen_labels))
        each = ", ".join(f"{value:.4f}" for value in found)
        rows.append([name, f"{statistics.mean(found):.4f}", spread(found), each])
        print(*rows[-1], sep="  ", flush=True)
    if options.markdown:
        given = [each for each in sys.argv[1:] if each != str(options.tree)]
        command = shlex.join(["python", "tools/bench/bench_batches.py", "TREE", *given])
        about = (
            f"{told()} Regenerate with `{command}`. Omniglot's alphabets, {apart}. {options.steps} steps of "
            f"{options.p} × {options.k} images for each, {options.seeds} seeds; semi-hard triplets; a look "
            f"at what is confused each {options.refresh} steps; the mean, and as spread the largest less "
            "the smallest."
        )
        write_section(options.markdown, "batches", f"## Batches\n\n{about}\n\n{table(HEADS, rows, left=1)}")


if __name__ == "__main__":
    main()
