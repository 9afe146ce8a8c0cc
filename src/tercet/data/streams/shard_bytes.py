"""What a shard of a stream is read from: a file by offset, a compressed file, or a URL from front to back."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tercet.core.checks import refusal
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.tar_members import DamagedTar

__all__ = ["ShardBytes"]

_MAGIC = 257  # where the header of a tar says that it is one
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class ShardBytes:
    """An open shard.

    Args:
        caller, argument: who reads, and of which argument, for the sentences.
        shard: a path, opened as a file whatever it is called, or a URL.
        url: which of the two it is.

    Attributes:
        file: the open file; None for a URL.
        size: bytes of the tar; None where that shows only at its end.

    Raises:
        ValueError: it cannot be opened, is an empty file, or is packed by zstd.
    """

    def __init__(self, caller: str, argument: str, shard: str, url: bool) -> None:
        self.file: PositionalFile | None = None
        self.size: int | None = None
        self._url: Any = None
        if url:
            self._url, start = _opened_url(caller, argument, shard)
            below: Any = _Joined(start, self._url)
        else:
            self.file = PositionalFile(caller, argument, Path(shard), "a tar that can be read")
            if not self.file.size:
                raise refusal(caller, argument, shard, "a tar that can be read", "it is empty")
            start = bytes(self.file.pread(0, _MAGIC + 5))
            below = _Sequential(self.file)
        if start.startswith(_ZSTANDARD):
            self.close()
            expected = "a tar, as it is or packed by gzip, bzip2 or xz"
            raise refusal(caller, argument, shard, expected, "it is packed by zstd; unpack it first")
        decompressed = _decompressor(start)
        if self.file is not None and decompressed is None:
            self.size = self.file.size
        self._stream = below if decompressed is None else decompressed(below)
        self._at = 0

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Up to `length` bytes from `start` on, fewer where the tar ends; `start` never goes back.

        Raises:
            DamagedTar: what lies below breaks off.
        """
        if self.size is not None and self.file is not None:
            return self.file.pread(start, length)
        try:
            while self._at < start and (passed := _filled(self._stream, min(_CHUNK, start - self._at))):
                self._at += len(passed)
            found = _filled(self._stream, length) if self._at == start else b""
        except _FAULTS as error:
            raise DamagedTar(_reason(error), start) from error
        self._at += len(found)
        return found

    def close(self) -> str:
        """Let go of it. Returns why a URL failed, where one hears of it only now, or nothing."""
        try:
            if self._url is not None:
                self._url.close()
        except OSError as error:
            return _reason(error)
        return ""


def _opened_url(caller: str, argument: str, shard: str) -> tuple[Any, bytes]:
    """An open URL, and the bytes that it begins with."""
    from webdataset.gopen import gopen_schemes

    try:
        url = gopen_schemes[shard.partition(":")[0].lower()](shard, "rb")
        return url, _filled(url, _MAGIC + 5)
    except Exception as error:  # whatever the opener of a scheme raises
        hint = f"see whether its address is right ({_reason(error)})"
        raise refusal(caller, argument, shard, "a URL that can be opened", hint) from error


def _decompressor(start: bytes) -> Callable[[Any], Any] | None:
    """What decompresses a tar that begins so; None where it is not compressed."""
    if start[_MAGIC:] == b"ustar":
        return None
    if start.startswith(b"\x1f\x8b\x08"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        return bz2.BZ2File
    return lzma.LZMAFile if start.startswith((b"\xfd7zXZ", b"\x5d\0\0\x80")) else None


def _filled(file: Any, length: int) -> bytes:
    """`length` bytes, fewer at the end; in pieces, as a header may claim more bytes than memory has."""
    found: list[bytes] = []
    while length and (chunk := file.read(min(_CHUNK, length))):
        found.append(chunk)
        length -= len(chunk)
    return b"".join(found)


def _reason(error: Exception) -> str:
    """What failed, in short; of a command its exit code, as the rest is the address."""
    reason = str(getattr(error, "strerror", None) or (error.args or [error])[0])
    failed = re.search(r"exit \d+", reason)
    return failed[0] if failed else reason


class _Sequential:
    """A file that is read from front to back."""

    def __init__(self, file: PositionalFile) -> None:
        self._file, self._at = file, 0

    def read(self, length: int) -> bytes:
        found = bytes(self._file.pread(self._at, length))
        self._at += len(found)
        return found


class _Joined:
    """Some bytes, and what follows them."""

    def __init__(self, start: bytes, rest: Any) -> None:
        self._start, self._rest = start, rest

    def read(self, length: int) -> bytes:
        found, self._start = self._start[:length], self._start[length:]
        return found or self._rest.read(length)
