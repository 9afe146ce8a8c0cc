"""How long calls would take on a card, by a model made of their operations: an estimate, never a measurement.

The host launches kernels one after the other, the device works on them in turn, and a read joins the two. A
kernel takes as long as its bytes or its arithmetic do. What Python itself takes is not in it, and no kernel's
real time is: only a card can tell these. The figures are round ones for a card of 2023.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.pretended_card import Event, Numbers

LAUNCH, READ = 5e-6, 20e-6  # seconds
FLOPS, BYTES = 50e12, 4e12  # a second

# Kernels of an operation where they are not one: round figures from reading ATen and cub.
KERNELS = {
    **dict.fromkeys(
        """
        cumsum masked_fill scatter scatter_add scatter_reduce index_put index_add index_fill constant_pad_nd
        count_nonzero histc logcumsumexp cummax equal diag_embed
        """.split(),
        2,
    ),
    **dict.fromkeys(("_cdist_backward", "repeat_interleave", "randperm"), 3),
    **dict.fromkeys(("nonzero", "sort", "argsort", "topk", "bincount"), 4),
    **dict.fromkeys(("masked_select", "nonzero_static"), 5),
    **dict.fromkeys(("logsumexp", "unique_consecutive", "multinomial"), 8),
    "median": 6,
    "_unique2": 10,
    "_euclidean_dist": 10,
    "unique_dim": 12,
    "index_fill_": 1,
}
GATHERS = ("index", "gather", "index_select", "embedding", "take")
SCATTERS = ("index_put_", "scatter_", "scatter_add_", "index_add_", "index_copy_", "index_fill_")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")


def seconds(events: Iterable[Event]) -> float:
    """What the model makes of a call's operations."""
    host = device = 0.0
    for event in events:
        if event.launches:
            host += LAUNCH * _kernels(event)
            device = max(host, device) + _work(event)
        if event.read:
            host = max(host, device) + READ
    return max(host, device)


def _kernels(event: Event) -> int:
    found = KERNELS.get(event.op, KERNELS.get(event.op.rstrip("_"), 1))
    if event.op.startswith("index") and event.read == "shape":  # by a mask, which is made row numbers first
        found += 4
    return found


def _work(event: Event) -> float:
    """How long the device takes, in seconds."""
    given, made = event.given, event.made
    if event.op in ("_cdist_forward", "_cdist_backward"):
        forward = event.op == "_cdist_forward"
        width = given[0 if forward else 1].shape[-1]
        pairs = math.prod((made[0] if forward else given[-1]).shape)
        back = 0 if forward else pairs * width * 12 / BYTES
        return pairs * (1e-9 + 8 * width / 10e12) + back  # a block of threads for each pair
    moved = _bytes(given) + _bytes(made)
    if event.op in GATHERS:
        moved = 2 * _bytes(made) + _bytes(given[1:])
    elif event.op in SCATTERS:
        moved = 3 * _bytes(given[1:])
    elif "sort" in event.op or event.op == "topk":
        moved *= 8 if "sort" in event.op else 3
    flops = 0.0
    if event.op in PRODUCTS:
        a, b = [numbers for numbers in given if len(numbers.shape) >= 2][-2:]
        flops = 2.0 * math.prod(a.shape) * b.shape[-1]
    return max(moved / BYTES, flops / FLOPS)


def _bytes(numbers: Iterable[Numbers]) -> int:
    return sum(math.prod(each.shape) * each.itemsize for each in numbers)
