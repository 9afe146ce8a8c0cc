"""What runs outside the graph that torch.compile makes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["outside_graph"]

P = ParamSpec("P")
T = TypeVar("T")


def outside_graph(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called as it is where it stands in something compiled.

    Mining reads what it found before it knows what to do next, and the shapes it gives follow from the
    data: a graph of it would break at every step. `torch.compiler.disable` as a decorator would load the
    compiler with this library; here it is asked only while one is at work.

    Example:
        >>> @outside_graph
        ... def nonzero(x):
        ...     return x.nonzero()
        >>> nonzero(torch.tensor([0, 3])).tolist()
        [[1]]
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[call-arg]
        return function(*args, **kwargs)

    return called
