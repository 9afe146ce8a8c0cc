"""Keyed augmentation: the random draws of a transform are a function of (seed, epoch, sample, view)."""

from __future__ import annotations

import copy
import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tercet.core.checks import as_seed, refusal
from tercet.core.randomness import derive_key

__all__ = ["KeyedTransform"]

_PROOFS = 8  # keys that a transform is tested with, twice each
_turn = threading.RLock()  # generators are replaced for the duration of a call, so calls take turns


def _fresh_turn() -> None:
    """A new lock in a forked child: one that another thread held at the fork would stay locked for ever."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_turn)


class KeyedTransform:
    """A transform whose randomness is a function of (seed, epoch, sample, view), in any process or thread.

    The same key gives the same augmentation whatever was drawn before, so neither the number of workers
    nor resuming changes it; another epoch, sample or view gives an unrelated one. How the transform is keyed
    depends on its type:

    - An albumentations pipeline: all its transforms draw from one keyed pair of generators, one after the
      other. A seed given to the pipeline is ignored; it would make them draw the same numbers.
    - A callable with a parameter `rng`: it gets a keyed `numpy.random.Generator`.
    - Any other callable, and a pipeline with a `Lambda` or with transforms that are not the library's own:
      the global generators of `random`, `numpy.random` and torch (on the CPU) are keyed while it runs.

    The state of the generators is restored afterwards. A transform of the third kind may draw from a
    generator that is not keyed. It is therefore tested before its first use, on copies of the image, twice
    with each of 8 keys, and refused if two results (arrays or tensors) of one key differ. Other results are
    not compared, and rare draws may go unnoticed.

    Args:
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)` or `transform(image, rng=rng)`.
        seed: a whole number of at least 0; another seed gives other draws.

    Raises:
        ValueError: `transform` is not callable, or `seed` not a whole number of at least 0.

    Example:
        >>> def jitter(image, rng):
        ...     return image + rng.integers(0, 10, image.shape)
        >>> augment = KeyedTransform(jitter, seed=1)
        >>> image = np.zeros(4, dtype=np.int64)
        >>> first = augment(image, epoch=0, sample=7)
        >>> bool((first == augment(image, epoch=0, sample=7)).all())
        True
        >>> bool((first == augment(image, epoch=1, sample=7)).all())
        False
    """

    def __init__(self, transform: Any, seed: int = 0) -> None:
        if not callable(transform):
            expected = "an albumentations transform or another callable"
            raise refusal("KeyedTransform", "transform", transform, expected)
        if isinstance(transform, KeyedTransform):
            raise refusal("KeyedTransform", "transform", transform, "a transform that is not keyed yet")
        self.transform: Any = transform
        self.seed = as_seed("KeyedTransform", seed)
        self._takes_rng = _takes_rng(transform)
        self._proven = False

    def __call__(self, image: Any, *, epoch: int = 0, sample: int | str = 0, view: int = 0) -> Any:
        """The transformed image.

        Args:
            image: the image, as the transform takes it.
            epoch: the epoch.
            sample: the row number or the name of the image.
            view: the number of the view of the image in the epoch.

        Returns:
            What the transform returns; for an albumentations transform, its item "image".

        Raises:
            ValueError: the transform draws from a generator that cannot be keyed.
        """
        key = derive_key("augment", self.seed, epoch, sample, view)
        if self._takes_rng:
            return self.transform(image, rng=np.random.default_rng(key))
        with _turn:
            nodes = _nodes(self.transform)  # for each call, as a pipeline can be changed
            self_contained = bool(nodes) and all(map(_is_library_own, nodes))
            if not (self_contained or self._proven):
                self._prove(image, nodes)
            return self._run(image, key, nodes, self_contained)

    def _run(self, image: Any, key: int, nodes: list[Any], self_contained: bool = False) -> Any:
        with ExitStack() as undo:
            if not self_contained:
                undo.enter_context(_keyed_globals(key))
            if not nodes:
                return self.transform(image)
            undo.enter_context(_keyed_nodes(nodes, key))
            return self.transform(image=image)["image"]

    def _prove(self, image: Any, nodes: list[Any]) -> None:
        """Refuse a transform that gives different results for one key."""
        self._run(
            copy.deepcopy(image), 0, nodes
        )  # first: the call may import torch, whose generator is not keyed before
        for number in range(_PROOFS):
            key = derive_key("proof", number)
            first, second = (self._run(copy.deepcopy(image), key, nodes) for _ in range(2))
            if not _equal(first, second):
                expected = "one that gives the same image twice when the global generators are seeded alike"
                hint = "it draws from a generator of its own; " + (
                    "draw from `self.random_generator` or `self.py_random` in its transforms"
                    if nodes
                    else "take a parameter `rng` and draw from that, or pass the albumentations pipeline "
                    "itself if it is a function around one"
                )
                raise refusal("KeyedTransform", "transform", self.transform, expected, hint)
        self._proven = True


def _takes_rng(transform: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(transform).parameters.get("rng")
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _nodes(transform: Any) -> list[Any]:
    """An albumentations transform and all transforms inside it; none for another callable."""
    library = sys.modules.get("albumentations")
    if library is None:
        return []
    kinds = (library.BaseCompose, library.BasicTransform)
    nodes = [transform] if isinstance(transform, kinds) else []
    for node in nodes:  # the list grows while it is iterated
        if isinstance(node, library.BaseCompose):
            nodes.extend(inner for inner in node.transforms if isinstance(inner, kinds))
    return nodes


def _is_library_own(node: Any) -> bool:
    """Whether it is a transform of albumentations itself, which draws only from its own generators."""
    kind = type(node)
    return kind.__module__.startswith("albumentations.") and kind.__name__ != "Lambda"


@contextmanager
def _keyed_nodes(nodes: list[Any], key: int) -> Iterator[None]:
    """Let the nodes draw from one keyed pair of generators in the block, and from their own after it."""
    before = [(node, node.random_generator, node.py_random) for node in nodes]
    shared = np.random.default_rng(key), random.Random(key)
    try:
        for node in nodes:
            node.random_generator, node.py_random = shared
        yield
    finally:
        for node, generator, python in before:
            node.random_generator, node.py_random = generator, python


@contextmanager
def _keyed_globals(key: int) -> Iterator[None]:
    """Seed the global generators in the block, each with another key, and restore them after it."""
    python, legacy = random.random.__self__, np.random.random.__self__
    torch = sys.modules.get("torch")
    with ExitStack() as undo:
        undo.callback(python.setstate, python.getstate())
        python.seed(derive_key(key, "python"))
        undo.callback(legacy.set_state, legacy.get_state(legacy=False))
        word = derive_key(key, "numpy")  # with Python's key, numpy would draw the same numbers
        legacy.seed([word & 0xFFFFFFFF, word >> 32])
        if torch is not None:
            source, word = torch.default_generator, derive_key(key, "torch")
            undo.callback(source.set_state, source.get_state())
            source.manual_seed(word)
            # The seed takes only 32 bits; skipping a number of draws uses 8 more.
            torch.rand(word >> 56, generator=source, dtype=torch.float32, device="cpu")
        yield


def _equal(first: Any, second: Any) -> bool:
    """Whether two arrays or tensors are equal, NaN included; other objects count as equal."""
    if not (hasattr(first, "dtype") and hasattr(second, "dtype")):
        return True
    if first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())
