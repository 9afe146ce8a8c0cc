"""The samples of a shard, read from front to back and compared at its end with what is known of it."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

from tercet.core.checks import border, refusal
from tercet.data.shards.tar_index import changed, keys_and_classes_crc
from tercet.data.shards.tar_members import (
    LARGEST,
    DamagedTar,
    MemberTwice,
    grouped,
    members,
    sample_name,
    why_no_sample,
    with_member,
)
from tercet.data.shards.tar_scan import class_in
from tercet.data.streams.samples import Handler, Sample, image_field, keep_going
from tercet.data.streams.shard_bytes import ShardBytes
from tercet.data.streams.sources import KnownShard, damaged_shard

__all__ = ["read_shard"]

_CALLER = "PKStream"


def read_shard(
    shard: str, known: KnownShard, image: str | None, handler: Handler | None
) -> Generator[Sample, None, bool]:
    """The samples of a shard, as webdataset groups them.

    Args:
        shard: a path or a URL.
        known: what is known of it. Fewer samples, other keys or other classes are an error at its end.
        image: the field that holds the image; None for the one with an image's extension.
        handler: called with each error; None to raise it.

    Returns:
        Whether to go on with the next shard: False where the handler said no.

    Raises:
        ValueError: without a handler, a shard that cannot be read, has changed, breaks off or is not as its
            index says.
    """
    try:
        with border(_CALLER, "shards"):
            source = ShardBytes(shard, url=known.state is None)
    except ValueError as unread:
        return keep_going(handler, unread)
    if known.state is not None and source.file is not None:
        fault = changed(Path(shard), known.state, source.file)
        if fault and not keep_going(handler, fault.named(_CALLER, "shards")):
            return False
    reading = _Reading(shard, source, known, image)
    try:
        yield from reading.samples()
    finally:
        why = source.close()
    fault = reading.fault(why)
    return keep_going(handler, fault) if fault else True


class _Reading:
    """One pass over a shard, with checksums of what came.

    Args:
        shard: its path or URL.
        source: its bytes.
        known: what is known of it.
        image: the field that holds the image; None for the one with an image's extension.
    """

    def __init__(self, shard: str, source: ShardBytes, known: KnownShard, image: str | None) -> None:
        self._shard, self._source, self._known, self._image = shard, source, known, image
        self._broken: DamagedTar | MemberTwice | None = None
        self._crc = 0  # of the members
        self._keys: list[str] = []
        self._classes: list[str] = []

    def samples(self) -> Iterator[Sample]:
        """The samples up to the end of the tar, or up to where it breaks off.

        Each is given when the next one has begun. Where the tar breaks off the last one, which may be half a
        sample, is not given.
        """
        last: Sample | None = None
        # A CRC of all members covers keys and classes too.
        compare = self._known.members is None and self._known.label is not None
        try:
            for key, parts in grouped(self._members()):
                # One sample behind: where the tar breaks off, the last one may be half a sample.
                if last is not None:
                    yield last
                last = sample = {"__key__": key, "__url__": self._shard, **parts}
                if image_field(sample, self._image) is not None:
                    self._keys.append(key)
                    if compare:
                        self._classes.append(self._class_of(sample))
        except MemberTwice as error:
            self._broken = error
        if last is not None and self._broken is None:
            yield last

    def _members(self) -> Iterator[tuple[str, str, bytes]]:
        """Key, extension and content of each member of a sample; it ends where the tar breaks off."""
        source, check = self._source, self._known.members is not None
        try:
            for member in members(source.read, source.size):
                name = None if why_no_sample(member) else sample_name(member.name)
                if name is None:
                    if check:
                        self._crc = with_member(self._crc, zlib.crc32(member.header), 0)
                    continue
                if member.size > LARGEST:
                    raise DamagedTar(f"a member claims {member.size:,} bytes", member.offset)
                content = bytes(source.read(member.offset, member.size))
                if len(content) < member.size:
                    raise DamagedTar("it ends in a member", member.offset)
                if check:
                    self._crc = with_member(self._crc, zlib.crc32(member.header), zlib.crc32(content))
                yield *name, content
        except DamagedTar as error:
            self._broken = error

    def _class_of(self, sample: Sample) -> str:
        """The class where the index has found it; "" where there is none now."""
        assert self._known.label is not None
        extension, _, field = self._known.label.partition(":")
        try:
            return str(class_in(sample[extension], field))
        except (ValueError, LookupError, TypeError):
            return ""

    def fault(self, why: str) -> ValueError | None:
        """The refusal of a shard that broke off, or that gave other samples than are known; None if neither.

        Args:
            why: why a URL failed, or "".
        """
        known = self._known
        if why or self._broken is not None:
            return self._break(why)
        expected = ""
        if len(self._keys) < (known.samples or 0):
            expected = f"{known.samples} samples, as its index or a scan has them, and only "
            expected += f"{len(self._keys)} came"
        elif known.members not in (None, self._crc):
            expected = "the members that write_shards wrote, and their checksum differs"
        elif known.members is None and known.label is not None and known.contents != self._contents():
            expected = "the keys and classes that its index or a scan has, and others came"
        if not expected:
            return None
        return refusal(_CALLER, "shards", self._shard, expected, "it is damaged; restore it")

    def _contents(self) -> int:
        return keys_and_classes_crc(self._keys, self._classes)

    def _break(self, why: str) -> ValueError:
        """The refusal of a shard that broke off."""
        reason = why or str(self._broken)
        if isinstance(self._broken, MemberTwice):
            reason = f"{self._broken.args[0]!r} is there twice"
        if self._known.state is not None:
            return damaged_shard(self._shard, reason=reason)
        hint = f"restore it, or see whether its address is right ({reason})"
        fault = refusal(_CALLER, "shards", self._shard, "a tar that can be read to its end", hint)
        fault.__cause__ = self._broken
        return fault
