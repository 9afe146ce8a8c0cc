"""Heads with proxies for the contract: batches, and heads of four classes by name."""

import torch

from tests.contracts.heads import PROXIED as HEADS
from tests.helpers import double_points as points

BATCHES = {
    "all classes": (points(8), torch.arange(8) % 4),
    "some classes": (points(9, seed=1), torch.tensor([3, 3, 3, 3, 1, 1, 1, 3, 1])),
    "one class only": (points(5, seed=2), torch.full((5,), 2)),
    "one row": (points(1, seed=3), torch.tensor([1])),
    "collapsed": (torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 4),
}


def make(name, dtype=torch.float64, num_classes=4, dim=4, **more):
    return HEADS[name].make(num_classes, dim, **{**HEADS[name].options, **more}).to(dtype)


def expected_of(name, head, x, labels):
    return HEADS[name].expected(x, labels, head=head)


def at_proxies(head, sign=1.0):
    """Embeddings that stand on the proxies of their classes, or opposite to them, and the labels."""
    own = head.proxies.detach()[:: len(head.proxies) // head.num_classes]
    return sign * 2 * own, torch.arange(head.num_classes)
