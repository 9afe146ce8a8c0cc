"""Promises: what a class says of its own methods, so that a faster way than calling them may be taken."""

from __future__ import annotations

from typing import Any

__all__ = ["promised"]


def promised(caller: Any, promise: str, *methods: str) -> Any:
    """The attribute `promise` of an object, or None where it no longer speaks of the object's methods.

    A promise is void once any of `methods` is overridden nearer to the object than the promise stands: on the
    object itself before its class, in a class before its bases. A subclass that overrides a method and keeps
    to the promise states it again, as a line of its own class. What `__getattr__` makes up is no promise.

    Args:
        caller: an object that may make the promise.
        promise: the name of the attribute.
        methods: the names of the methods that the promise is about.

    Returns:
        The attribute's value; None where there is none or it is void.

    Example:
        >>> class Symmetric:
        ...     is_symmetric = True
        ...     def sides(self): ...
        >>> class Plain(Symmetric): ...
        >>> class Overriding(Symmetric):
        ...     def sides(self): ...
        >>> class Restating(Overriding):
        ...     is_symmetric = True
        >>> [promised(kind(), "is_symmetric", "sides") for kind in (Symmetric, Plain, Overriding, Restating)]
        [True, True, None, True]
    """
    names: Any = getattr(caller, "__dict__", {})
    for kind in (None, *type(caller).__mro__):
        if kind is not None:
            names = kind.__dict__
        if promise in names:
            return getattr(caller, promise)
        if not names.keys().isdisjoint(methods):
            return None
    return None
