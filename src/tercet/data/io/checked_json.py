"""JSON objects with a checksum: read within a size limit, each field checked by type and range."""

from __future__ import annotations

import json
import operator
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal, escaped
from tercet.data.io.positional import open_plain

__all__ = [
    "CHECKSUM",
    "JsonRecord",
    "checksum_fits",
    "json_round_trip",
    "read_bounded",
    "to_json",
    "warn_unchecked",
    "with_checksum",
]

CHECKSUM = "crc32"  # the field that holds the checksum of the others
_MOST = 1 << 30  # bytes of JSON text that are read by default
_INT64 = 2**63 - 1
_REQUIRED: Any = object()


def with_checksum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields and, last, the field "crc32": a CRC of their canonical JSON.

    The canonical form has sorted keys and no spaces, so re-indenting a file keeps its checksum valid.

    Args:
        facts: the fields by name: strings, numbers, booleans, None, and lists and dicts of them.

    Raises:
        TypeError, ValueError: a value that JSON cannot represent.

    Example:
        >>> with_checksum({"seed": 0})
        {'seed': 0, 'crc32': 1556822760}
        >>> checksum_fits(with_checksum({"seed": 0}))
        True
    """
    rest = {name: fact for name, fact in facts.items() if name != CHECKSUM}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, CHECKSUM: zlib.crc32(canonical.encode())}


def checksum_fits(facts: Mapping[str, Any]) -> bool | None:
    """Whether the checksum is that of the other fields; None where there is no checksum."""
    if CHECKSUM not in facts:
        return None
    try:
        return with_checksum(facts)[CHECKSUM] == facts[CHECKSUM]
    except (TypeError, ValueError, RecursionError):
        return False


def json_round_trip(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields as they come back from JSON: keys as strings, tuples as lists.

    Raises:
        TypeError, ValueError: a value that JSON cannot represent.

    Example:
        >>> json_round_trip({3: (1, 2)})
        {'3': [1, 2]}
    """
    return json.loads(json.dumps(facts))


def to_json(facts: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON text of the fields and their checksum, which `JsonRecord` reads.

    Args:
        facts: the fields by name, values that JSON can represent; `json_round_trip` converts others.
        indent: spaces of indentation a level; None for one line.

    Raises:
        TypeError, ValueError: a value that JSON cannot represent.

    Example:
        >>> to_json({"seed": 0})
        '{"seed": 0, "crc32": 1556822760}'
    """
    return json.dumps(with_checksum(facts), indent=indent, ensure_ascii=False)


def read_bounded(path: str | Path, most: int = _MOST) -> bytes:
    """The content of a regular file, of at most `most` bytes.

    Args:
        path: the file.
        most: the largest size in bytes that is read.

    Raises:
        OSError: it cannot be read, is a folder or a device, or is larger.

    Example:
        >>> _ = Path("some.json").write_text("{}")
        >>> read_bounded("some.json")
        b'{}'
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"{str(path)!r} has {size:,} bytes, and at most {most:,} are read")
        content = file.read(size + 1)  # Python allocates as much as is asked for
    if len(content) > size:
        raise OSError(f"{str(path)!r} grew while it was read")
    return content


def warn_unchecked(source: str | Path) -> None:
    """Warn that a file or state of an older version has no checksum, so that damage may go unnoticed."""
    import warnings

    text = f"{escaped(source)} has no checksum, so damage in it may pass; write or save it again to have one"
    warnings.warn(text, UserWarning, stacklevel=3)


class JsonRecord:
    """A JSON object whose fields are read by name, type and range.

    A field that is missing, of another type or out of range is a ValueError that names the file and the
    field. So is JSON that is damaged or nested too deep, or that has a field twice, a whole number of more
    than 4,300 digits, or a wrong checksum. Each is a `Refusal`: the border around names caller and argument.

    Args:
        content: the JSON text.
        source: the file that contains it.
        what: what the object is, for messages, such as "provenance".
        hint: what to do about a damaged one, for messages.

    Attributes:
        fields: the fields without the checksum.
        checked: whether there was a checksum, which was right.

    Raises:
        ValueError: as above.

    Example:
        >>> text = '{"seed": 3, "counts": {"triplets": 5}}'
        >>> record = JsonRecord(text, "t.csv.json")
        >>> record.integer("seed"), record.part("counts").integer("triplets", 1)
        (3, 5)
        >>> from tercet.core.checks import border
        >>> with border("read_manifest", "path"):
        ...     record.string("seed")
        Traceback (most recent call last):
        ValueError: read_manifest(path='t.csv.json'): expected text in its field 'seed'; it has 3, so it is \
damaged or of another program; write it again, or restore it
    """

    def __init__(
        self,
        content: str | bytes,
        source: str | Path,
        what: str = "facts",
        hint: str = "write it again, or restore it",
    ) -> None:
        self._source = str(source)
        self._hint = f"; {hint}" if hint else ""
        self._above = ""  # the names of the enclosing fields, each followed by a dot
        try:
            text = content if isinstance(content, str) else content.decode()
            read = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            found = str(error)
            if isinstance(error, RecursionError):
                found = "brackets nested too deep"
            elif "set_int_max_str_digits" in found:
                found = "a number of thousands of digits"
            raise self._refusal(f"its {what} as JSON", f"it is damaged ({found})") from error
        if not isinstance(read, dict):
            raise self._refusal(f"its {what} as a JSON object", f"it has a {type(read).__name__}")
        fits = checksum_fits(read)
        if fits is False or (fits is None and any(map(_nearly_checksum, read))):
            raise self._refusal(f"its {what} to fit its checksum", "it was changed or damaged")
        read.pop(CHECKSUM, None)
        self.fields: dict[str, Any] = read
        self.checked = fits is not None

    @classmethod
    def read(cls, path: str | Path, *words: str, most: int = _MOST) -> JsonRecord:
        """The JSON object in a file.

        Args:
            path: the file.
            words: `what` and `hint`, for messages.
            most: the largest size in bytes that is read.

        Raises:
            ValueError: as above.
            OSError: the file does not exist, cannot be read or is larger.
        """
        return cls(read_bounded(path, most), path, *words)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def integer(self, name: str, low: int = 0, high: int = _INT64, default: Any = _REQUIRED) -> int:
        """The whole number in a field, from `low` to `high`."""
        expected = f"a whole number from {low} to {high}"
        return self._field(name, expected, lambda value: _are_integers([value], low, high), default)

    def string(self, name: str, default: Any = _REQUIRED) -> str:
        """The text in a field."""
        return self._field(name, "text", lambda value: isinstance(value, str), default)

    def strings(self, name: str, default: Any = _REQUIRED) -> list[str]:
        """The list of texts in a field."""
        return self._field(name, "a list of texts", lambda value: _are(value, str), default)

    def integers(self, name: str, low: int = 0, high: int = _INT64, default: Any = _REQUIRED) -> list[int]:
        """The list of whole numbers in a field, each from `low` to `high`."""
        expected = f"a list of whole numbers from {low} to {high}"
        return self._field(name, expected, lambda value: _are_integers(value, low, high), default)

    def items(self, name: str, default: Any = _REQUIRED) -> list[Any]:
        """The list in a field, of values of any type."""
        return self._field(name, "a list", lambda value: isinstance(value, list), default)

    def part(self, name: str, default: Any = _REQUIRED) -> JsonRecord:
        """The object in a field; where the field is missing, `default`, a dict."""
        fields = self._field(name, "a JSON object", lambda value: isinstance(value, dict), default)
        part = object.__new__(JsonRecord)
        part.__dict__.update(self.__dict__, fields=fields, _above=f"{self._above}{name}.")
        return part

    def wrong(self, name: str, expected: str) -> ValueError:
        """The error for a field's value, for a caller that expects more than a type."""
        found = f"it has {_short(self.fields[name])}" if name in self.fields else "it has none"
        hint = f"{found}, so it is damaged or of another program"
        return self._refusal(f"{expected} in its field {self._above + name!r}", hint)

    def _field(self, name: str, expected: str, fits: Callable[[Any], bool], default: Any) -> Any:
        if name not in self.fields and default is not _REQUIRED:
            return default
        if name not in self.fields or not fits(self.fields[name]):
            raise self.wrong(name, expected)
        return self.fields[name]

    def _refusal(self, expected: str, hint: str) -> Refusal:
        return Refusal(None, self._source, expected, hint + self._hint)


def _nearly_checksum(name: str) -> bool:
    """Whether a field is the checksum with one character of its name damaged; it must not pass as a field."""
    return len(name) == len(CHECKSUM) and sum(map(operator.ne, name, CHECKSUM)) == 1


def _are(value: Any, kind: type) -> bool:
    """Whether it is a list of items of exactly one type; True is not an int here."""
    return isinstance(value, list) and set(map(type, value)) <= {kind}


def _are_integers(value: Any, low: int, high: int) -> bool:
    return _are(value, int) and (not value or low <= min(value) <= max(value) <= high)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where a field is there twice: readers differ on which value counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {_short(twice)} is there twice")
    return fields


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested deep, or a number of thousands of digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:40]}...{shown[-15:]}"
