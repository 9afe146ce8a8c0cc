"""A raw sample of a stream: its name, its class, and the handler that decides about one that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tercet.core.checks import as_int, escaped, refusal
from tercet.data.io.images import IMAGE_SUFFIXES
from tercet.data.shards.tar_scan import class_in

__all__ = [
    "Handler",
    "Sample",
    "base_name",
    "image_field",
    "keep_going",
    "label_of",
    "name_of",
    "number_in",
    "raw_samples",
]

Sample = dict[str, Any]
Handler = Callable[[Exception], Any]

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # the range of int64, which labels become


def raw_samples(caller: str, samples: Iterable[Any]) -> Iterator[Sample]:
    """The samples of a stream, refused where one is no dict: its fields would have no names.

    Raises:
        ValueError: a sample that is no dict.
    """
    for sample in samples:
        if not isinstance(sample, Mapping):
            hint = "put this stage before decode() and to_tuple()"
            raise refusal(caller, "samples", type(sample).__name__, "raw samples, which are dicts", hint)
        yield sample  # pyright: ignore[reportReturnType]


def base_name(shard: str) -> str:
    """The name of a shard, without its folder or host."""
    return shard.replace("\\", "/").rpartition("/")[2]


def name_of(sample: Sample) -> str:
    """The name of a sample, "shard.tar/key", without the folder or host of its shard."""
    return f"{base_name(str(sample.get('__url__', '')))}/{sample.get('__key__', '')}"


def image_field(sample: Sample, image: str | None) -> str | None:
    """The field that holds the image: `image`, by default the only one with an image's extension.

    None where there is no such field, or several.
    """
    if image is None:
        found = [field for field in sample if f".{field}" in IMAGE_SUFFIXES]
        image = found[0] if len(found) == 1 else None
    return image if image in sample else None


def keep_going(handler: Handler | None, error: Exception) -> bool:
    """Whether the handler says to go on after an error; without a handler the error is raised."""
    if handler is None:
        raise error
    return bool(handler(error))


def label_of(sample: Sample, label: str | Callable[[Sample], Any]) -> int | str:
    """The class of a raw sample: an int where it is a whole number of int64, otherwise text.

    Args:
        sample: as webdataset gives it.
        label: the name of a field, a field of a JSON member, as "json:id", or a function of the sample.

    Raises:
        ValueError: the sample has no such field, or it is no whole number or name.

    Example:
        >>> label_of({"__key__": "a", "cls": b"17"}, "cls"), label_of({"__key__": "b", "cls": b"ant"}, "cls")
        (17, 'ant')
        >>> label_of({"__key__": "c", "json": b'{"id": 4}'}, "json:id")
        4
    """
    if callable(label):
        what, value, field = "what label= gives", label(sample), ""
    else:
        what = repr(label)
        name, field = (label, "") if label in sample else label.partition(":")[::2]
        if name not in sample:
            fields = ", ".join(sorted(name for name in sample if not name.startswith("__")))
            raise ValueError(
                f"{_which(sample)} has no field {name!r}, only {escaped(fields) or 'its name'}; "
                "half a sample ends a truncated tar; else pass label=, a field or a function of a sample"
            )
        value = sample[name]
    try:
        if field and not isinstance(value, (bytes, bytearray, str)):
            value, field = value[field], ""  # JSON that was decoded before
        if isinstance(value, (bytes, bytearray, str)):
            value = str(class_in(value, field))
    except (ValueError, LookupError, TypeError) as error:
        expected = f"expected a whole number or a name as {what}"
        raise ValueError(f"{_which(sample)}: {expected}; {type(error).__name__}: {escaped(error)}") from error
    if isinstance(value, str):
        return number_in(value)
    try:
        # An int also of a tensor: equal tensors would be different keys of a dict.
        return as_int("", "", value, _LEAST, _MOST)
    except ValueError:
        shown = repr(value) if isinstance(value, (float, type(None))) else type(value).__name__
        raise ValueError(
            f"{_which(sample)}: expected a whole number or a name as {what}, and it is {shown}; "
            "convert it with int() or str() in a function label="
        ) from None


def number_in(name: str) -> int | str:
    """The whole number of int64 that a name spells, otherwise the name: "010" and "10" are two classes.

    Example:
        >>> number_in("10"), number_in("010")
        (10, '010')
    """
    number = int(name) if _NUMBER.fullmatch(name) else _MOST + 1
    return number if _LEAST <= number <= _MOST else name


def _which(sample: Sample) -> str:
    return f"sample {sample.get('__key__')!r} of {sample.get('__url__')!r}"
