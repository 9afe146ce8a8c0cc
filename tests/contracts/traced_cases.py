"""Heads and batch hard inside the graph of `torch.compile`, in a process without type checks.

python -m tests.contracts.traced_cases aot_eager
python -m tests.contracts.traced_cases inductor TripletMargin "mined, swap"
python -m tests.contracts.traced_cases refusals
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import tercet
from tercet.pairwise.budget import override
from tests.contracts.card_cases import HEADS, LARGE, batch

TRACED = HEADS | {
    "MarginLoss, classes": lambda classes: tercet.MarginLoss(num_classes=classes),
    "MarginLoss, classes, ν": lambda classes: tercet.MarginLoss(num_classes=classes, nu=0.1, reduction="sum"),
    "MarginLoss, ν": lambda classes: tercet.MarginLoss(nu=0.1),
    "Histogram, 7 bins": lambda classes: tercet.Histogram(7),
}


def compiled(name: str, backend: str, n: int, sizes: dict[str, int]) -> bool:
    """Whether a step of model and head in one graph has the plain loss and gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    x, labels = batch(n)
    model, head = nn.Linear(128, 128), TRACED[name](n // 4)

    def step(x: Tensor) -> Tensor:
        return head(nn.functional.normalize(model(x)), labels)

    return is_plain(step, x, (model, head), backend, sizes)


def is_plain(
    step: Callable[[Tensor], Tensor],
    x: Tensor,
    modules: tuple[nn.Module, ...],
    backend: str,
    sizes: dict[str, int],
) -> bool:
    """Whether a step in one graph has the loss and the gradients that it has outside."""

    saved = [copy.deepcopy(module.state_dict()) for module in modules]

    def result(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        for module, state in zip(modules, saved, strict=True):  # a step may change what a head knows
            module.load_state_dict(state)
            module.zero_grad()
        loss = call(x)
        loss.backward()
        known = [v.clone().double() for module in modules for v in module.buffers()]
        return [loss.detach(), *known, *(v.grad.clone() for module in modules for v in module.parameters())]

    expected = result(step)
    with override(**sizes):
        found = result(torch.compile(step, backend=backend, fullgraph=True))
    moved = all(b.any() for b in expected)
    return moved and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
        for a, b in zip(found, expected, strict=True)
    )


MINED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # a distance, options of miner and head
    "mined, hinge": ("euclidean", {}, {"margin": 0.4}),
    "mined, soft": ("squared_euclidean", {}, {"soft": True}),
    "mined, swap": ("cosine", {}, {"margin": 0.4, "swap": True, "reduction": "mean"}),
    "mined, product": ("dot", {}, {"margin": 0.4, "power": 2, "reduction": "sum"}),
    "mined, groups": ("euclidean", {"relation": tercet.CrossGroup()}, {"margin": 0.4}),
}


def compiled_with_miner(name: str, backend: str, n: int) -> bool:
    """Whether a step of model, batch hard and head in one graph has the plain loss and gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    x, labels = batch(n)
    if name == "mined, groups":
        labels = torch.stack([labels, labels.argsort().argsort() % 2], 1)  # two of a class in each group
    distance, *options = MINED[name]
    model, head = nn.Linear(128, 128), tercet.TripletMargin(distance=distance, **options[1])
    miner = tercet.BatchHard(complete=True, distance=distance, **options[0])

    def step(x: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(model(x))
        return head(embeddings, labels, miner(embeddings, labels))

    return is_plain(step, x, (model, head), backend, {})


def same_triplets(n: int) -> bool:
    """Whether a traced miner gives what it gives outside: ties, repeated rows and all."""
    torch.compiler.reset()
    labels = torch.arange(n) % (n // 4)
    grid = torch.randint(0, 3, (n, 4), generator=torch.Generator().manual_seed(n)).float()
    miner = tercet.BatchHard(complete=True)
    traced = torch.compile(miner, backend="aot_eager", fullgraph=True)
    return all(torch.equal(a, b) for a, b in zip(traced(grid, labels), miner(grid, labels), strict=True))


def refused(call: Callable[[], Any]) -> str:
    try:
        return f"passed: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def refusals() -> dict[str, str]:
    """What compiled heads say to bad numbers, when the graph is run."""
    found = {}
    x, labels = batch(16)
    spoiled = x.clone()
    spoiled[3, 5] = torch.nan
    for name in ("Contrastive", "Histogram", "FastAP", "MarginLoss, classes", "ArcFace"):
        torch.compiler.reset()
        head = TRACED[name](4)
        step = torch.compile(head, backend="aot_eager", fullgraph=True)
        found[name] = refused(lambda step=step: step(x, labels).ndim)
        found[f"{name}, NaN"] = refused(lambda step=step: step(spoiled, labels))
        if name.startswith(("Margin", "Arc")):
            found[f"{name}, class 4"] = refused(lambda step=step: step(x, labels + 1))
    torch.compiler.reset()
    never = torch.compile(type(head)(4, 128, check_finite="never"), backend="aot_eager", fullgraph=True)
    found["ArcFace, never"] = refused(lambda: never(spoiled, labels).ndim)
    torch.compiler.reset()
    weighted, weight = torch.compile(head, backend="aot_eager", fullgraph=True), torch.arange(16.0)
    near = abs(weighted(x, labels, weight=weight) - head(x, labels, weight=weight)) < 1e-4
    found["ArcFace, weights"] = refused(lambda: bool(near))
    found["ArcFace, weight −1"] = refused(lambda: weighted(x, labels, weight=weight - 1))
    torch.compiler.reset()
    miner, listing = tercet.BatchHard(complete=True), tercet.TripletMargin()
    mine = torch.compile(miner, backend="aot_eager", fullgraph=True)
    found["BatchHard"] = refused(lambda: mine(x, labels).count)
    found["BatchHard, NaN"] = refused(lambda: mine(spoiled, labels).count)
    found["BatchHard, a row alone"] = refused(lambda: mine(x, labels.index_fill(0, labels[:1], 9)).count)
    torch.compiler.reset()
    step, rows = torch.compile(listing, backend="aot_eager", fullgraph=True), miner(x, labels)
    found["listed"] = refused(lambda: step(x, mined=rows).ndim)
    found["listed, row 16"] = refused(lambda: step(x, mined=rows._replace(negative=rows.negative + 16)).ndim)
    for name, call in {"BatchHard, not complete": tercet.BatchHard(), "BatchHard, 260 rows": miner}.items():
        torch.compiler.reset()
        far = batch(260 if call is miner else 16)
        found[name] = refused(lambda call=call, far=far: torch.compile(call, fullgraph=True)(*far).count)
    return found


def sizes_that_change() -> bool:
    """Whether batches of several sizes follow each other in one compiled step."""
    torch.compiler.reset()
    head = HEADS["TripletMargin"](0)
    step = torch.compile(head, backend="aot_eager")
    return all(torch.allclose(step(*batch(n)), head(*batch(n)), rtol=1e-4) for n in (16, 24, 40, 16))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    backend, *names = sys.argv[1:]
    if backend == "refusals":
        said: dict[str, Any] = refusals() | {"sizes that change": sizes_that_change()}
        said["the same triplets"] = same_triplets(24) and same_triplets(256)
    else:
        said = {
            f"{name}, {n}, {bool(sizes)}": compiled(name, backend, n, sizes)
            for name in names or TRACED
            for n, sizes in ((16, {}), (40, LARGE))
            if name in TRACED
        }
        said |= {name: compiled_with_miner(name, backend, 32) for name in names or MINED if name in MINED}
    print(json.dumps(said))
