"""Keyed augmentation: what a transform draws is a function of (seed, epoch, sample, view)."""

from __future__ import annotations

import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from tercet.checks import refusal, whole
from tercet.randomness import derive_key

__all__ = ["KeyedTransform"]

_turn = threading.RLock()  # generators are set for the length of a call, so calls take turns


def _fresh_turn() -> None:
    """In a forked child, a lock that another thread held would stay locked for ever."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_turn)


class KeyedTransform:
    """A transform whose randomness is a function of (seed, epoch, sample, view), in any process or thread.

    The same key gives the same augmentation whatever was drawn before, so neither the number of workers
    nor resuming changes it; another epoch, sample or view gives an unrelated one. How, depends on the
    transform:

    - albumentations: each transform of the pipeline gets generators of its own for the call. A seed given
      to the pipeline counts for nothing; it would make its transforms draw the same numbers.
    - a callable with a parameter `rng` gets a `numpy.random.Generator` there, and nothing else is done.
    - any other callable runs with the global generators of `random`, `numpy.random` and torch (on the CPU)
      keyed; so do the generators and albumentations transforms in its attributes, its closure and the
      globals that it names. Generators are put back afterwards as they were. One that the callable makes
      afresh, from the clock or the operating system, stays beyond reach.

    Args:
        transform: an albumentations transform, called as `transform(image=image)["image"]`; or a callable,
            called as `transform(image)` or `transform(image, rng=rng)`.
        seed: names the stream.

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
        self.seed = whole("KeyedTransform", "seed", seed)
        self._takes_rng = _takes_rng(transform)
        self._is_pipeline = isinstance(transform, _pipeline_kinds())
        self._sources: list[Any] | None = None

    def __call__(self, image: Any, *, epoch: int = 0, sample: int | str = 0, view: int = 0) -> Any:
        """The transformed image.

        Args:
            image: what the transform takes.
            epoch: the epoch.
            sample: the row number or the name of the image.
            view: which of several views of it in the epoch.

        Returns:
            What the transform returns; of an albumentations transform, the item "image".
        """
        key = derive_key("augment", self.seed, epoch, sample, view)
        if self._takes_rng:
            return self.transform(image, rng=np.random.default_rng(key))
        with _turn:
            if self._sources is None:
                self._sources = _sources(self.transform, self._is_pipeline)
            with _keyed(self._sources, key):
                return self.transform(image=image)["image"] if self._is_pipeline else self.transform(image)

    def __getstate__(self) -> dict[str, Any]:
        # In another process, what a function names or closes over is another object.
        return {**self.__dict__, "_sources": None}


def _takes_rng(transform: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(transform).parameters.get("rng")
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _pipeline_kinds() -> tuple:
    """The classes of albumentations' transforms and pipelines; none where it was never imported."""
    library = sys.modules.get("albumentations")
    return (library.BaseCompose, library.BasicTransform) if library else ()


def _generator_kinds() -> tuple:
    torch = sys.modules.get("torch")
    return (random.Random, np.random.Generator, np.random.RandomState, *((torch.Generator,) if torch else ()))


def _sources(transform: Any, is_pipeline: bool) -> list[Any]:
    """What `transform` draws from: albumentations transforms and generators, each once, in a fixed order."""
    kinds = _pipeline_kinds() + _generator_kinds()
    seen: dict[int, Any] = {}  # holds on to what it has seen, for an id is free again after its object
    pending = [transform]
    while pending:
        thing = pending.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            pending.extend(reversed(list(_parts(thing))))
    found = [thing for thing in seen.values() if isinstance(thing, kinds)]
    if not (is_pipeline and all(map(_is_albumentations_own, found))):
        found += [source for source in _global_generators() if id(source) not in seen]
    return [source for source in found if not isinstance(source, random.SystemRandom)]


def _parts(thing: Any) -> Iterable[Any]:
    """What a thing holds or names and may draw from; of other modules' functions, not what these name."""
    if isinstance(thing, (list, tuple)):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, MethodType):
        return (thing.__self__, thing.__func__)
    if isinstance(thing, partial):
        return (thing.func, thing.args, thing.keywords)
    if isinstance(thing, FunctionType):
        return _function_parts(thing)
    if isinstance(thing, (type, ModuleType)) or not hasattr(thing, "__dict__"):
        return ()
    if _is_albumentations_own(thing):
        return vars(thing).get("transforms", ())
    return (*vars(thing).values(), *([type(thing).__call__] if callable(thing) else ()))


def _function_parts(function: FunctionType) -> Iterator[Any]:
    """What a function closes over, has as defaults and attributes, and what globals its code names."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    home = function.__globals__
    for name in _names(function.__code__):
        if name in home and getattr(home[name], "__globals__", home) is home:
            yield home[name]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function or comprehension inside
            yield from _names(constant)


def _is_albumentations_own(thing: Any) -> bool:
    """Whether it is a transform of the library itself, which draws from its own generators only."""
    own = type(thing).__module__.partition(".")[0] == "albumentations"
    return own and type(thing).__name__ != "Lambda"


def _global_generators() -> list[Any]:
    """Those of `random` and `numpy.random`, and torch's for the CPU where torch is loaded."""
    torch = sys.modules.get("torch")
    return [random.random.__self__, np.random.random.__self__, *((torch.default_generator,) if torch else ())]


@contextmanager
def _keyed(sources: Iterable[Any], key: int) -> Iterator[None]:
    """Within, each source draws from a stream of its own; afterwards the generators are as they were."""
    with ExitStack() as undo:
        for number, source in enumerate(sources):
            _set(source, derive_key(key, number), undo)
        yield


def _set(source: Any, word: int, undo: ExitStack) -> None:
    """Seed one source with 64 bits; what puts it back goes into `undo`."""
    if hasattr(source, "py_random"):  # an albumentations transform
        source.random_generator, source.py_random = np.random.default_rng(word), random.Random(word)
    elif isinstance(source, random.Random):
        undo.callback(source.setstate, source.getstate())
        source.seed(word)
    elif isinstance(source, np.random.Generator):
        bits = source.bit_generator
        undo.callback(setattr, bits, "state", bits.state)
        bits.state = type(bits)(word).state
    elif isinstance(source, np.random.RandomState):
        undo.callback(source.set_state, source.get_state(legacy=False))
        source.seed(word & 0xFFFFFFFF)
    else:  # torch's
        undo.callback(source.set_state, source.get_state())
        source.manual_seed(word)
