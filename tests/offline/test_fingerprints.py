"""Fingerprints: equal for what computes the same, another for any change, also in another process."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import pytest
import torch
from torch import nn

from tercet.offline.fingerprints import fingerprint, modules_within

SCALE = 2


def times(x):
    return x * SCALE


def scaled(x):
    return times(x)


@torch.no_grad()
def decorated(x):
    return times(x)


def recursive(x):
    return recursive(x - 1) if x else 0


@dataclasses.dataclass
class Settings:
    size: int = 3

    def __call__(self, x):
        return x * self.size


class Pair(NamedTuple):
    size: int = 3

    def __call__(self, x):
        return x * self.size


class Kept:
    factor = 2

    def __init__(self, size):
        self.size = size

    @property
    def double(self):
        return self.size * self.factor

    @functools.cached_property
    def half(self):
        return self.size / 2

    def __call__(self, x):
        return x * self.double


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, x):
        return x


class Hooked(nn.Module):
    def __init__(self, hook):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.ones_(self.layer.weight)
        nn.init.ones_(self.layer.bias)
        self.layer.register_forward_hook(hook)

    def forward(self, x):
        return self.layer(x)


def same(x):
    return x


SAME = {
    "function": lambda: scaled,
    "lambda": lambda: lambda x: np.flip(x),
    "closure": lambda: (lambda k: lambda x: x * k)(3),
    "partial": lambda: functools.partial(scaled, 3),
    "recursive": lambda: recursive,
    "method": lambda: Kept(3).__call__,
    "dataclass": lambda: Settings(4),
    "named tuple": lambda: Pair(4),
    "object": lambda: Kept(3),
    "pipeline": lambda: A.Compose(
        [A.Resize(8, 8), A.RandomCrop(4, 4), A.OneOf([A.Normalize(), A.ToFloat()])]
    ),
    "lambda of albumentations": lambda: A.Lambda(image=same, name="same"),
    "set": lambda: functools.partial(sorted, frozenset({"a", "b", "c", "d"})),
    "array": lambda: functools.partial(np.add, np.arange(3)),
    "hooks": lambda: Hooked(lambda module, given, found: found * 2),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(Hooked(same).layer),
    "installed": lambda: torch.nn.functional.relu,
    "attention": lambda: nn.TransformerEncoderLayer(8, 2).requires_grad_(False).apply(ones),
    "recurrent": lambda: nn.LSTM(2, 3).apply(ones),
}


def ones(module):
    for parameter in module.parameters():
        nn.init.ones_(parameter)


@pytest.mark.parametrize("name", SAME)
def test_made_again_it_is_the_same_in_this_process(name):
    assert fingerprint(SAME[name]()) == fingerprint(SAME[name]())
    assert len({fingerprint(make()) for make in SAME.values()}) == len(SAME)


def test_made_again_it_is_the_same_in_another_process():
    code = f"from {__name__} import *\nfor make in SAME.values(): print(*fingerprint(make()))"
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": f"src:{root}", "PYTHONHASHSEED": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=env)
    here = [" ".join(fingerprint(make())) for make in SAME.values()]
    assert done.stdout.splitlines() == here


def returning(number):
    def double(x):
        return x * number

    return double


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.min(), lambda x: x.max()),
        (lambda x, k=1: x, lambda x, k=2: x),
        (returning(1), returning(2)),
        (functools.partial(scaled, 1), functools.partial(scaled, 2)),
        (Settings(3), Settings(4)),
        (Pair(3), Pair(4)),
        (Kept(3), Kept(4)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros(2), np.array([0.0, -0.0])),
        (A.Normalize(), A.Normalize(mean=(0, 0, 0))),
        (A.Lambda(image=same, name="x"), A.Lambda(image=scaled, name="x")),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (Hooked(lambda m, i, o: o), Hooked(lambda m, i, o: o * 2)),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": True}),
        (torch.float32, torch.float16),
    ],
)
def test_a_change_is_seen(one, other):
    assert fingerprint(one).code != fingerprint(other).code


@pytest.mark.parametrize("function", [scaled, decorated])
def test_a_global_that_a_function_of_a_function_reads_is_seen(function, monkeypatch):
    before = fingerprint(function)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3)
    assert fingerprint(function) != before
    monkeypatch.undo()
    assert fingerprint(function) == before
    monkeypatch.setattr(sys.modules[__name__], "times", lambda x: x)
    assert fingerprint(function) != before


def test_a_method_of_a_class_is_seen(monkeypatch):
    before = fingerprint(Kept(3))
    monkeypatch.setattr(Kept, "factor", 3)
    assert fingerprint(Kept(3)) != before
    monkeypatch.undo()
    monkeypatch.setattr(Kept, "double", property(lambda self: self.size))
    assert fingerprint(Kept(3)) != before


def test_what_a_property_has_computed_is_no_parameter():
    kept = Kept(3)
    before = fingerprint(kept)
    assert kept.half == 1.5
    assert fingerprint(kept) == before


@dataclasses.dataclass
class Holding:
    first: object
    second: object


def test_equal_values_are_equal_whether_they_are_one_or_two():
    one, two = (1, 2.5), tuple([1, 2.5])
    assert one is not two
    assert fingerprint(Holding(one, one)) == fingerprint(Holding(one, two))
    code, again = (compile("x + (1, 2)", "f", "eval") for _ in range(2))
    assert fingerprint(Holding(code, code)) == fingerprint(Holding(code, again))
    shared = [1]
    assert fingerprint(Holding(shared, shared)) != fingerprint(Holding(shared, [1]))  # a list may change


def test_a_method_of_a_named_tuple_is_seen(monkeypatch):
    before = fingerprint(Pair(3))
    monkeypatch.setattr(Pair, "__call__", lambda self, x: x)
    assert fingerprint(Pair(3)) != before


def test_sets_of_words_have_no_order():
    assert fingerprint({"a", "b", "c"}) == fingerprint({"c", "b", "a"})
    assert fingerprint({"a"}) != fingerprint(frozenset({"a"}))


@pytest.mark.parametrize("dtype", ["f2", ">f4", "c8", "M8[s]", "bool", "O", [("a", "i4")]])
def test_arrays_of_any_type(dtype):
    zeros, other = np.zeros(2, dtype), np.zeros((2, 1), dtype)
    assert fingerprint(zeros) == fingerprint(zeros.copy())
    assert fingerprint(zeros) != fingerprint(other)


def test_a_handler_of_errors_is_code():
    def one(x):
        try:
            return x.a
        except ValueError:
            return 0

    def two(x):
        try:
            return x.a
        except KeyError:
            return 0

    two.__name__ = "one"
    assert fingerprint(one) != fingerprint(two)


def test_a_docstring_is_no_code():
    def one(x):
        """One text."""
        return x

    def two(x):
        """Another."""
        return x

    two.__name__ = "one"
    assert fingerprint(one) == fingerprint(two)


def test_weights_apart_from_code():
    net, other = Hooked(same), Hooked(same)
    with torch.no_grad():
        other.layer.bias[1] += 1e-6
    one, two = fingerprint(net), fingerprint(other)
    assert one.code == two.code
    assert one.weights != two.weights
    assert fingerprint([net, 3]).weights == one.weights
    assert fingerprint(nn.Linear(2, 2).to(torch.bfloat16)).weights  # a type that numpy lacks
    tied = Hooked(same)
    tied.again = tied.layer
    assert fingerprint(tied) == fingerprint(tied)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Locked(), "a lock, of which nothing tells what it is"),
        (A.Compose([A.Lambda(image=same)]), "a Compose that does not serialise"),
        (torch.ones(2, device="meta"), "a tensor without plain numbers"),
        (nn.Linear(2, 2, device="meta"), "a tensor without plain numbers"),
        (torch.eye(2).to_sparse(), "a tensor without plain numbers"),
    ],
)
def test_what_cannot_be_told(value, what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # albumentations, of a Lambda without a name
        with pytest.raises(ValueError, match=what):
            fingerprint(value)


def test_modules_within():
    net = Hooked(same)
    assert modules_within([net.forward, lambda x: net.layer(x)]) == [net]
    assert modules_within(functools.partial(net.layer.forward, 3)) == [net.layer]
    assert modules_within(Locked()) == []
    assert modules_within((lambda x: net(x), threading.Lock())) == [net]
