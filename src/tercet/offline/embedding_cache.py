"""The key of embeddings: what they were made of, and how two keys differ, in words."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal, shown
from tercet.data.io.images import file_content
from tercet.offline.fingerprints import Fingerprint, fingerprint

__all__ = ["FIELDS", "differing", "digests_of", "images_digest", "key_of"]

FIELDS = {
    "version": "version of tercet",
    "model": "model (its layers or code)",
    "weights": "weights",
    "transform": "transform",
    "views": "views",
    "normalize": "normalize",
    "precision": "precision",
    "dtype": "dtype",
    "key": "key",
    "paths": "paths of the images",
    "images": "images (size or time of change)",
    "content": "images (content)",
}
"""What embeddings depend on, in the words of messages."""
_READABLE = ("version", "normalize", "precision", "dtype", "key")  # not digests


def key_of(
    data: Any, model: Any, transform: Any, views: Any, options: Mapping[str, Any], content: bool
) -> dict[str, Any]:
    """The key: a value for each of `FIELDS`, digests but for the options; `content` only where asked for.

    Args:
        data: a `Catalog` or a `ShardIndex`.
        model, transform, views: the callables.
        options: normalize, precision, dtype and key.
        content: read all files and add a digest of their content.

    Raises:
        ValueError: nothing tells what one of the callables is, and `options["key"]` is empty.
    """
    facts: dict[str, Any] = {"version": version("tercet"), **options}
    facts |= digests_of(model, transform, views, options["key"])
    facts |= {"paths": _digest(map(os.fsencode, data.paths.tolist())), "images": images_digest(data)}
    if content:
        facts["content"] = _content_digest(data)
    return {name: facts[name] for name in FIELDS if name in facts}


def digests_of(model: Any, transform: Any, views: Any, key: str) -> dict[str, str]:
    """The fields of a key that tell of callables.

    Args:
        model, transform, views: the callables.
        key: the caller's text; where it is not empty, it stands for what cannot be told.

    Raises:
        ValueError: as `key_of`.

    Example:
        >>> sorted(digests_of(len, None, [], ""))
        ['model', 'transform', 'views', 'weights']
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile: it has other names for the weights
    code, weights = _told("model", model, key)
    others = (_told("transform", transform, key), _told("views", views, key))
    joined = [_digest(map(str.encode, digest)) for digest in others]
    return {"model": code, "weights": weights, "transform": joined[0], "views": joined[1]}


def _told(argument: str, value: Any, key: str) -> Fingerprint:
    try:
        return fingerprint(value)
    except (ValueError, RecursionError) as error:
        if key:
            return fingerprint(None)
        expected = f"one whose changes can be told; it holds {error}"
        hint = 'pass key="v1" (--key v1), and another one whenever it changes'
        raise Refusal(argument, value, expected, hint) from None


def _digest(items: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(b"%d " % len(item) + item)
    return digest.hexdigest()


def images_digest(data: Any) -> str:
    """SHA-256 of size and time of change of each file; of shards, those of the tars."""
    if hasattr(data, "tars"):
        files = iter(data.tars)
    else:
        files = (data.file(row) for row in range(len(data)))

    def told(file: Path) -> bytes:
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            return b"none"
        return b"%d %d" % (status.st_size, status.st_mtime_ns)

    return _digest(map(told, files))


def _content_digest(data: Any) -> str:
    """SHA-256 of the content of all files; one that cannot be read counts as its reason."""
    if hasattr(data, "read"):
        blocks = (range(first, min(first + 256, len(data))) for first in range(0, len(data), 256))
        return _digest(hashlib.sha256(content).digest() for rows in blocks for content in data.read(rows))

    def told(row: int) -> bytes:
        try:
            return hashlib.sha256(file_content(data.file(row))).digest()
        except ValueError as error:
            return str(error).encode()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and reading release the interpreter lock
        chunks = (range(first, min(first + 1024, len(data))) for first in range(0, len(data), 1024))
        return _digest(chain.from_iterable(pool.map(told, chunk) for chunk in chunks))


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The fields that differ, as a phrase; empty where the key is the same.

    Where both have a digest of contents, it stands for size and time of change.

    Args:
        there: the key in a file.
        here: the key of a call.

    Example:
        >>> differing({"dtype": "float32", "weights": "1f"}, {"dtype": "float16", "weights": "2e"})
        "weights, dtype ('float32' there, 'float16' here)"
    """
    fields = [name for name in FIELDS if name in here and there.get(name) != here[name]]
    if "content" in here and "content" in there and "images" in fields:
        fields.remove("images")
    said = []
    for name in fields:
        values = f" ({shown(there.get(name))} there, {shown(here[name])} here)" if name in _READABLE else ""
        lacks = ", of which no digest was kept" if name == "content" and name not in there else ""
        said.append(FIELDS[name] + values + lacks)
    return ", ".join(said)
