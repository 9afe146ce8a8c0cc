"""The bytes of a shard: of a file by offset, or of a compressed file or a URL from front to back."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal
from tercet.data.io.positional import PositionalFile
from tercet.data.shards.tar_members import DamagedTar

__all__ = ["ShardBytes"]

_MAGIC = 257  # the offset of "ustar" in the header of a tar
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class ShardBytes:
    """The decompressed bytes of a shard that is open.

    Args:
        shard: a path or a URL.
        url: whether it is a URL; otherwise it is opened as a file, whatever its name.

    Attributes:
        file: the open file; None for a URL.
        size: bytes of the tar; None where only its end shows: of a compressed file and of a URL.

    Raises:
        ValueError: it cannot be opened, is an empty file, or is compressed by zstd.
    """

    def __init__(self, shard: str, url: bool) -> None:
        self.file: PositionalFile | None = None
        self.size: int | None = None
        self._url: Any = None
        if url:
            self._url, start = _opened_url(shard)
            source: Any = _Joined(start, self._url)
        else:
            self.file = PositionalFile(Path(shard), "a tar that can be read")
            if not self.file.size:
                raise Refusal(None, shard, "a tar that can be read", "it is empty")
            start = bytes(self.file.pread(0, _MAGIC + 5))
            source = _Sequential(self.file)
        if start.startswith(_ZSTANDARD):
            self.close()
            expected = "a tar, as it is or packed by gzip, bzip2 or xz"
            raise Refusal(None, shard, expected, "it is packed by zstd; unpack it first")
        decompress = _decompressor(start)
        if self.file is not None and decompress is None:
            self.size = self.file.size
        self._stream = source if decompress is None else decompress(source)
        self._at = 0

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Up to `length` bytes from `start` on, fewer where the tar ends.

        Calls come in ascending order of `start`: a compressed file or a URL is read only forwards.

        Raises:
            DamagedTar: the file or the URL breaks off.
        """
        if self.size is not None and self.file is not None:  # a plain file is read by offset
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
        """Close a URL; a file closes by itself.

        Returns:
            Why the URL failed, where its opener says so only when it is closed; otherwise "".
        """
        try:
            if self._url is not None:
                self._url.close()
        except OSError as error:
            return _reason(error)
        return ""


def _opened_url(shard: str) -> tuple[Any, bytes]:
    """An open URL, and its first bytes."""
    from webdataset.gopen import gopen_schemes

    try:
        url = gopen_schemes[shard.partition(":")[0].lower()](shard, "rb")
        return url, _filled(url, _MAGIC + 5)
    except Exception as error:  # openers of other schemes raise whatever they like
        hint = f"see whether its address is right ({_reason(error)})"
        raise Refusal(None, shard, "a URL that can be opened", hint) from error


def _decompressor(start: bytes) -> Callable[[Any], Any] | None:
    """The function that decompresses a stream with these first bytes; None for a plain tar."""
    if start[_MAGIC:] == b"ustar":
        return None
    if start.startswith(b"\x1f\x8b\x08"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        return bz2.BZ2File
    return lzma.LZMAFile if start.startswith((b"\xfd7zXZ", b"\x5d\0\0\x80")) else None


def _filled(file: Any, length: int) -> bytes:
    """`length` bytes of a stream, fewer at its end.

    They are read in pieces: a damaged header may claim more bytes than memory has.
    """
    found: list[bytes] = []
    while length and (chunk := file.read(min(_CHUNK, length))):
        found.append(chunk)
        length -= len(chunk)
    return b"".join(found)


def _reason(error: Exception) -> str:
    """What failed, in short. Of a command only its exit code: its other words repeat the address."""
    reason = str(getattr(error, "strerror", None) or (error.args or [error])[0])
    failed = re.search(r"exit \d+", reason)
    return failed[0] if failed else reason


class _Sequential:
    """A file as a stream, read from front to back."""

    def __init__(self, file: PositionalFile) -> None:
        self._file, self._at = file, 0

    def read(self, length: int) -> bytes:
        found = bytes(self._file.pread(self._at, length))
        self._at += len(found)
        return found


class _Joined:
    """A stream of some bytes and then of another stream."""

    def __init__(self, start: bytes, rest: Any) -> None:
        self._start, self._rest = start, rest

    def read(self, length: int) -> bytes:
        found, self._start = self._start[:length], self._start[length:]
        return found or self._rest.read(length)
