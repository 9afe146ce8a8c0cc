"""Checks of arguments. Each raises a ValueError of one sentence: argument, value, what was expected, hint.

The sentence begins with the public name that was called, and a check that runs deep inside does not know it.
So it raises a `Refusal`, the fact without that name, and the public function names itself once, by a `border`
around its work. A check that is called with the name raises the complete sentence at once.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Iterable
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Refusal",
    "as_array",
    "as_batch_size",
    "as_bool",
    "as_choice",
    "as_float",
    "as_int",
    "as_path",
    "as_seed",
    "as_string",
    "as_strings",
    "border",
    "escaped",
    "label_codes",
    "promised",
    "refusal",
    "shown",
    "with_length",
]

_LARGEST = (1 << 63) - 1  # the largest int64


def escaped(text: object) -> str:
    r"""A text as one line that a terminal shows as it is: what does not print is escaped, as `repr` does.

    Names of files and classes come from other people. A control character in a name could clear the screen,
    a line break could forge a line of output, and a right-to-left mark could show the name backwards.

    Args:
        text: a text, or what `str` makes one of, such as an error.

    Returns:
        A text for which `str.isprintable` is true. A printable text is returned unchanged; backslashes stay
        single.

    Example:
        >>> print(escaped("cat\n\x1b[2J.jpg"))
        cat\n\x1b[2J.jpg
        >>> escaped("é x.jpg")
        'é x.jpg'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


class Refusal(ValueError):
    """A refusal that does not know yet who was called; the `border` around it names the caller.

    It is a sentence by itself, and pickles as a plain ValueError with that sentence.

    Args:
        argument: the name of the argument, `"p"`; None for the one that the border names.
        got: the value, as for `refusal`; only its text is kept.
        expected: what would have been accepted.
        hint: what to do instead; empty where `expected` already says it.

    Example:
        >>> fact = Refusal("p", 0, "a whole number of at least 1")
        >>> print(fact)
        p=0: expected a whole number of at least 1
        >>> print(fact.named("PKSampler"))
        PKSampler(p=0): expected a whole number of at least 1
    """

    def __init__(self, argument: str | None, got: object, expected: str, hint: str = "") -> None:
        tail = f"; {hint}" if hint else ""
        self._argument, self._got, self._fact = argument, shown(got), f"expected {expected}{tail}"
        super().__init__(escaped(f"{self._value(argument)}: {self._fact}"))

    def named(self, caller: str, argument: str | None = None) -> ValueError:
        """The complete ValueError, with the traceback and the cause of this one.

        Args:
            caller: the class or function that was called.
            argument: the name of the argument where this refusal has none.
        """
        error = ValueError(self.sentence(caller, argument))
        error.__cause__ = self.__cause__  # also hides this refusal, which says the same without the caller
        return error.with_traceback(self.__traceback__)

    def sentence(self, caller: str, argument: str | None = None) -> str:
        """The complete sentence; arguments as for `named`."""
        argument = argument if self._argument is None else self._argument
        return escaped(f"{caller}({self._value(argument)}): {self._fact}")

    def _value(self, argument: str | None) -> str:
        return self._got if argument is None else f"{argument}={self._got}"

    def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
        return ValueError, (str(self),)


class border(ContextDecorator):
    """A context or a decorator of a public function, which names the function in each `Refusal` from inside.

    What has a name already passes unchanged, so of nested borders the innermost one names the caller. A
    border keeps no state: one object may be entered again and by several threads.

    Args:
        caller: the class or function that was called, `"ShardIndex"`.
        argument: the argument that inner functions work on, `"tars"`, for those that do not name one.

    Raises:
        ValueError: for a `Refusal`, the same with the caller.

    Example:
        >>> with border("ShardIndex", "tars"):
        ...     raise Refusal(None, "a.tar", "an existing tar")
        Traceback (most recent call last):
        ValueError: ShardIndex(tars='a.tar'): expected an existing tar
    """

    def __init__(self, caller: str, argument: str | None = None) -> None:
        self._caller, self._argument = caller, argument

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Refusal):
            raise error.named(self._caller, self._argument)


def refusal(
    caller: str | None, argument: str | None, got: object, expected: str, hint: str = ""
) -> ValueError:
    """A ValueError that names the argument, its value, what was expected and what to do instead.

    Args:
        caller: the class or function that was called, `"PKSampler"`; None for a `Refusal`, which the border
            names. So it is for all checks here.
        argument: the name of the argument, `"p"`.
        got: the value; `shown` shortens it in the middle, since the end of a path is its file name.
        expected: what would have been accepted, `"a whole number of at least 1"`.
        hint: what to do instead; empty where `expected` already says it.

    Returns:
        The error, its text `escaped`. It is returned, not raised, so that the traceback ends at the
        caller's `raise`.

    Example:
        >>> print(refusal("PKSampler", "p", 0, "a whole number of at least 1"))
        PKSampler(p=0): expected a whole number of at least 1
    """
    fact = Refusal(argument, got, expected, hint)
    return fact if caller is None else ValueError(fact.sentence(caller))


def shown(got: object) -> str:
    """A value for a message: its `repr` on one line of at most 80 characters, or its type where that fails.

    Example:
        >>> shown("x" * 100)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    try:
        text = escaped(re.sub(r"\s*\n\s*", " ", repr(got)))
    except Exception:  # a number of 5,000 digits, a list in a list a thousand times, a class of the user's
        text = f"<{type(got).__name__}>"
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"


def with_length(value: Any) -> object:
    """The type and length of a collection, for a message; any other value as it is.

    Example:
        >>> with_length((1, 2)), with_length(3)
        ('tuple of 2', 3)
    """
    try:
        return f"{type(value).__name__} of {len(value)}"
    except Exception:  # no length
        return value


def _boolean(value: Any) -> bool:
    """Whether `value` is a boolean of Python, numpy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def as_int(
    caller: str | None, argument: str | None, value: Any, minimum: int = 0, maximum: int | None = None
) -> int:
    """`value` as an int, refused unless it is a whole number in [minimum, maximum]; by default below 2⁶³.

    Raises:
        ValueError: not a whole number (booleans, floats and strings are not), or out of range.

    Example:
        >>> as_int("PKSampler", "p", np.int32(16), minimum=1)
        16
    """
    expected = f"a whole number of at least {minimum}"
    if maximum is not None:
        expected = f"a whole number from {minimum} to {maximum}"
    try:
        number = operator.index(value)
    except Exception:  # of a tensor without data it is a RuntimeError
        raise refusal(caller, argument, value, expected) from None
    if _boolean(value) or number < minimum or (maximum is not None and number > maximum):
        raise refusal(caller, argument, value, expected)
    if maximum is None and number > _LARGEST:
        raise refusal(caller, argument, value, f"a whole number from {minimum} to {_LARGEST}")
    return number


def as_seed(caller: str | None, seed: Any) -> int:
    """A seed as an int: a whole number from 0 of at most 128 bits, the size of numpy's seed entropy.

    Raises:
        ValueError: not a whole number, or out of range.

    Example:
        >>> as_seed("PKSampler", 2**100) == 2**100
        True
    """
    try:
        large = not _boolean(seed) and operator.index(seed) > _LARGEST
    except Exception:
        large = False
    if not large:
        return as_int(caller, "seed", seed)
    if (number := operator.index(seed)).bit_length() > 128:
        raise refusal(caller, "seed", seed, "a whole number from 0 to 2¹²⁸ − 1")
    return number


def as_batch_size(caller: str | None, p: Any, k: Any, *, least: int = 2) -> tuple[int, int]:
    """p and k as ints, refused unless a batch of p classes with k images each has at most 2²⁴ images.

    Args:
        caller: the class or function that was called, for messages.
        p: classes in a batch.
        k: images of each.
        least: the least k.

    Raises:
        ValueError: not whole numbers of at least 1 and `least`, or too many images.

    Example:
        >>> as_batch_size("PKSampler", 16, 4)
        (16, 4)
    """
    p, k = as_int(caller, "p", p, 1), as_int(caller, "k", k, least)
    if p * k > 1 << 24:
        raise refusal(caller, "p, k", f"{p} · {k}", f"at most {1 << 24} images in a batch")
    return p, k


def as_float(
    caller: str | None,
    argument: str | None,
    value: Any,
    minimum: int | float = -math.inf,
    maximum: int | float = math.inf,
    *,
    above: int | float | None = None,
) -> float:
    """`value` as a float, refused unless it is finite, in [minimum, maximum], and greater than `above`.

    Args:
        caller: the class or function that was called, for the message.
        argument: the name of the argument, for the message.
        value: the value to check.
        minimum: the least number that is accepted.
        maximum: the greatest number that is accepted.
        above: a number that `value` must exceed, for ranges such as (0, ∞); it stands in place of
            `minimum`.

    Raises:
        ValueError: not a finite number, or out of range.

    Example:
        >>> as_float("TripletMargin", "margin", 1, minimum=0)
        1.0
        >>> as_float("InfoNCE", "temperature", 0, above=0)
        Traceback (most recent call last):
        ValueError: InfoNCE(temperature=0): expected a finite number above 0
    """
    expected = "a finite number" if above is None else f"a finite number above {above:g}"
    if above is not None and maximum < math.inf:
        expected += f" and at most {maximum:g}"
    elif minimum > -math.inf or maximum < math.inf:
        low = f"of at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        expected += f" {low}" if minimum > -math.inf else f" of at most {maximum:g}"
    if isinstance(value, (str, bytes, complex)) or _boolean(value):
        raise refusal(caller, argument, value, expected)
    try:
        number = float(value)
    except Exception:  # of a tensor without data it is a RuntimeError
        raise refusal(caller, argument, value, expected) from None
    within = minimum <= number <= maximum and (above is None or number > above)
    if not (math.isfinite(number) and within):
        raise refusal(caller, argument, value, expected)
    return number


def as_bool(caller: str | None, argument: str | None, value: Any) -> bool:
    """`value` as a bool, refused unless it is a boolean; strings such as "no" are not.

    Raises:
        ValueError: not a boolean.

    Example:
        >>> as_bool("TripletMargin", "swap", True)
        True
    """
    try:
        if _boolean(value):
            return bool(value)
    except Exception:  # an array of several, or a tensor without data
        pass
    raise refusal(caller, argument, value, "True or False")


def as_choice(caller: str | None, argument: str | None, value: Any, options: Iterable[str]) -> Any:
    """`value`, refused unless it is one of `options`; the message suggests the closest option.

    Raises:
        ValueError: not one of the options.

    Example:
        >>> as_choice("PKSampler", "short_classes", "repeat", ("repeat", "skip", "error"))
        'repeat'
    """
    known = list(options)
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
    expected = "one of " + ", ".join(repr(option) for option in known)
    raise refusal(caller, argument, value, expected, f"did you mean {near[0]!r}?" if near else "")


def as_path(caller: str | None, argument: str | None, value: Any, new: bool = False) -> Path:
    """`value` as a path, refused unless it is a string or a path that a system can hold.

    Args:
        caller: the class or function that was called, for messages.
        argument: the name of the argument, for messages.
        value: the value to check.
        new: whether the path will be written, by libraries that accept only names in UTF-8.

    Raises:
        ValueError: bytes, a number, None, an empty string, or one with a zero character.

    Example:
        >>> as_path("read_catalog", "path", "images.csv").suffix
        '.csv'
    """
    try:
        text = os.fspath(value)
    except Exception:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        expected = "a path: a string or a pathlib.Path, not empty and without zero characters"
        raise refusal(caller, argument, value, expected)
    if new and "\udc80" <= max(text, default="") <= "\udcff":
        raise refusal(caller, argument, text, "a name that is text in UTF-8")
    return Path(value)


def as_string(caller: str | None, argument: str | None, value: Any) -> str:
    """`value`, refused unless it is a string.

    Raises:
        ValueError: anything else.

    Example:
        >>> as_string("read_catalog", "path_column", "path")
        'path'
    """
    if not isinstance(value, str):
        raise refusal(caller, argument, value, "a string")
    return value


def as_strings(caller: str | None, argument: str | None, values: Any) -> list[str]:
    """`values` as a list of strings; one string is a list of one.

    Raises:
        ValueError: neither a string nor an iterable of strings.

    Example:
        >>> as_strings("scan_folder", "suffixes", ".jpg")
        ['.jpg']
    """
    found: list[Any]
    try:
        found = [values] if isinstance(values, str) else list(values)
    except Exception:  # not iterable
        found = [None]
    if not all(isinstance(each, str) for each in found):
        raise refusal(caller, argument, values, "strings")
    return found


def as_array(caller: str | None, argument: str | None, values: Any, expected: str) -> np.ndarray:
    """`values` as a numpy array, without a copy of a large one of numbers.

    Lists of unequal length become arrays of objects, and so do lists of strings: numpy would turn
    `["a", 1]` into two strings.

    Raises:
        ValueError: numpy cannot convert it: a tensor that is sparse, quantized, without data or with a
            gradient, or an object whose `__array__` fails.

    Example:
        >>> as_array("TableRelevance", "i", [1, 2], "row numbers").tolist()
        [1, 2]
    """
    try:
        try:
            array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
        except ValueError:
            return np.asarray(values, dtype=object)
        if array.dtype.kind == "U" and not isinstance(values, np.ndarray):
            return np.asarray(values, dtype=object)
        return array
    except Exception as error:
        raise refusal(caller, argument, f"<{type(values).__name__}>", expected, str(error)) from None


def label_codes(caller: str | None, labels: Any, argument: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Labels of any kind as class numbers, in sorted order: the same labels give the same codes everywhere.

    Args:
        caller: the class or function that was called, for messages.
        labels: [n] whole numbers, booleans or strings: a list, a numpy array, a tensor, or what has them as
            `labels`, such as a catalog.
        argument: the name of the argument, for messages.

    Returns:
        `codes` int64 [n] into `classes` [c], the sorted distinct labels.

    Raises:
        ValueError: empty, not one-dimensional, or neither whole numbers nor strings.

    Example:
        >>> codes, classes = label_codes("PKSampler", ["cat", "ant", "cat"])
        >>> codes.tolist(), classes.tolist()
        ([1, 0, 1], ['ant', 'cat'])
    """
    if argument == "labels":
        labels = getattr(labels, "labels", labels)  # of a catalog or a dataset
    array = as_array(caller, argument, labels, "whole numbers or strings, one for each image")
    if array.ndim != 1 or not array.size:
        raise refusal(
            caller, argument, f"array of shape {array.shape}", "one label for each of 1 or more images"
        )
    if array.dtype == object:
        items = array.tolist()
        kinds = {type(item) for item in items}
        if type(None) in kinds:
            missing = [row for row, item in enumerate(items) if item is None]
            got = f"{len(missing)} missing, the first at row {missing[0]}"
            raise refusal(caller, argument, got, "a label for each image", "drop these rows")
        if not any(all(issubclass(kind, one) for kind in kinds) for one in (str, (int, np.integer))):
            names = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise refusal(caller, argument, names, "all whole numbers or all strings")
        if issubclass(next(iter(kinds)), str):
            return _string_codes(items)
        array = np.asarray(items)
    if array.dtype.kind in "UT":
        return _string_codes(array.tolist())
    if array.dtype.kind not in "iub":
        raise refusal(
            caller,
            argument,
            str(array.dtype),
            "whole numbers or strings",
            "convert with .astype(int) or .astype(str)",
        )
    classes, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64, copy=False), classes


def _string_codes(labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """`label_codes` of strings by a dict: six times as fast as `np.unique`, in a fraction of the memory."""
    classes = sorted(set(labels))
    number = {name: code for code, name in enumerate(classes)}
    return np.fromiter(map(number.__getitem__, labels), np.int64, len(labels)), np.array(
        classes, dtype=object
    )


def promised(instance: Any, promise: str, *methods: str) -> Any:
    """The attribute `promise` of an object, or None where it no longer speaks of the object's methods.

    A promise is void once any of `methods` is overridden nearer to the object than the promise stands: on the
    object itself before its class, in a class before its bases. A subclass that overrides a method and keeps
    to the promise states it again, as a line of its own class. What `__getattr__` makes up is no promise.

    Args:
        instance: the object that may make the promise.
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
    names: Any = getattr(instance, "__dict__", {})
    for kind in (None, *type(instance).__mro__):
        if kind is not None:
            names = kind.__dict__
        if promise in names:
            return getattr(instance, promise)
        if not names.keys().isdisjoint(methods):
            return None
    return None
