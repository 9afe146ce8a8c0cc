"""What the tests of the samplers share: labels, epochs as plain tuples, loaders over them."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from torch.utils.data import Dataset

stateful = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
laws = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def labels_of(sizes, seed=0):
    """One label an image, class c with sizes[c] images, in mixed order."""
    labels = [c for c, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(labels)
    return labels


def plain(batches):
    """Batches as lists of (row, epoch, view), which compare by value."""
    return [[(int(row), row.epoch, row.view) for row in batch] for batch in batches]


def epoch_of(sampler, epoch):
    return plain(sampler.batch(epoch, step) for step in range(len(sampler)))


def refusal_of(call, *arguments, **keywords):
    """The sentence with which a call is refused."""
    try:
        call(*arguments, **keywords)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


class Rows(Dataset):
    """What arrives in a worker."""

    def __getitem__(self, row):
        return int(row), row.epoch, row.view


def loaded(loader):
    """Batches of a loader over `Rows`, as `plain` gives them."""
    return [list(zip(*(column.tolist() for column in batch), strict=True)) for batch in loader]


UNEVEN = labels_of([2, 3, 3, 4, 5, 7, 9, 12])
