"""Heads inside the graph of `torch.compile`, in a process without the type checks of the test run.

python -m tests.contracts.traced_cases aot_eager
python -m tests.contracts.traced_cases inductor TripletMargin CosFace
python -m tests.contracts.traced_cases refusals
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tercet.pairwise.budget import override
from tests.contracts.card_cases import HEADS, LARGE, batch

OUTSIDE = ("Histogram", "FastAP")  # their gradient is their own, over two passes


def compiled(name: str, backend: str, n: int, sizes: dict[str, int]) -> bool:
    """Whether a step of model and head in one graph has the plain loss and gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    x, labels = batch(n)
    model, head = nn.Linear(128, 128), HEADS[name](n // 4)

    def step(x: Tensor) -> Tensor:
        return head(nn.functional.normalize(model(x)), labels)

    def result(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        for module in (model, head):
            module.zero_grad()
        loss = call(x)
        loss.backward()
        return [loss.detach(), *(v.grad.clone() for module in (model, head) for v in module.parameters())]

    expected = result(step)
    with override(**sizes):
        found = result(torch.compile(step, backend=backend, fullgraph=True))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, expected, strict=True))


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
    for name in ("Contrastive", "ArcFace"):
        torch.compiler.reset()
        head = HEADS[name](4)
        step = torch.compile(head, backend="aot_eager", fullgraph=True)
        found[name] = refused(lambda step=step: step(x, labels).ndim)
        found[f"{name}, NaN"] = refused(lambda step=step: step(spoiled, labels))
    found["ArcFace, class 4"] = refused(lambda: step(x, labels + 1))
    torch.compiler.reset()
    never = torch.compile(type(head)(4, 128, check_finite="never"), backend="aot_eager", fullgraph=True)
    found["ArcFace, never"] = refused(lambda: never(spoiled, labels).ndim)
    for name in OUTSIDE:
        torch.compiler.reset()
        found[name] = refused(lambda name=name: torch.compile(HEADS[name](4), fullgraph=True)(x, labels))
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
    else:
        said = {
            f"{name}, {n}, {bool(sizes)}": compiled(name, backend, n, sizes)
            for name in names or [name for name in HEADS if name not in OUTSIDE]
            for n, sizes in ((16, {}), (40, LARGE))
        }
    print(json.dumps(said))
