"""A stage of a webdataset pipeline: P×K batches from a stream of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tercet.core.checks import as_choice, as_seed, border, refusal
from tercet.core.randomness import derive_key
from tercet.data.streams.class_buffer import ON_SHORT, ClassBuffer, Group, checked_sizes
from tercet.data.streams.samples import Handler, Sample, keep_going, label_of, raw_samples

__all__ = ["PKStage", "StreamEnded", "pk_batched"]


def pk_batched(
    p: int,
    k: int,
    *,
    on_short: str = "repeat",
    buffer: int | None = None,
    cap: int | None = None,
    label: str | Callable[[Sample], Any] = "cls",
    decode: Callable[[Sample], Any] | None = None,
    handler: Handler | None = None,
    seed: int = 0,
) -> PKStage:
    """A stage that turns a stream of samples into batches of exactly p classes with exactly k samples each.

    `webdataset.WebDataset(shards).compose(pk_batched(32, 4))` gives lists of p · k samples, those of a class
    side by side. It belongs before decoding: the buffer then holds compressed images. Pass the decoding as
    `decode`: a sample that fails is then replaced by another of its class, in the same batch, and a batch
    for which too few samples are left in the buffer is skipped.

    The stage fills a buffer and draws each batch from all of it. So the size of the buffer sets how well
    classes mix, and how much is read before the first batch. The draws are a function of the seed and of the
    samples that came, so the order of the shards should differ from epoch to epoch. `predict_yield` says
    which share of a stream ends in batches: next to nothing, where samples come in random order over more
    classes than the buffer has room for.

    webdataset runs what follows "pipe:" as a shell command, even where that is the name of a listed file;
    `PKStream` opens files only.

    A sample that has no label, such as half a sample at the end of a truncated tar, goes to the handler.

    Args:
        p: classes in a batch.
        k: samples of each class in a batch, at least 2.
        on_short: what happens to fewer than k samples of a class that have to leave the buffer, because it
            is full or the stream ends. "repeat": they are filled up to k with samples that were in a batch
            with them, or by repeating them; a single sample is dropped. "drop": they are in no batch.
            "error": a ValueError. At the end, samples of the last classes, fewer than p, are in no batch.
        buffer: the most samples in the buffer, at least p · k; by default 4 · p · k.
        cap: the most samples of one class in the buffer, from k to buffer / p; by default buffer / p. For
            one more, batches are drawn while the buffer is half full; after that one of them is dropped,
            drawn by the seed.
        label: the field that holds the class, as "cls", a field of its JSON, as "json:id", or a function of
            the sample that gives it: a whole number or a name.
        decode: a function of a sample that gives what stands in the batch for it. It gets a copy with the
            field "__view__": how often the sample was in a batch before, or a number below 0 where it
            replaces another.
        handler: called with the error, as webdataset's handlers are: a true result goes on without the
            sample, or without the batch that is skipped, a false one ends the stream. By default the error
            is raised.
        seed: names the draws.

    Returns:
        A function from an iterable of samples to an iterator of lists of p · k samples. It can be pickled.

    Raises:
        ValueError: an argument out of range; while running, samples that are no dicts, one without a
            label, or a short class with "error".

    Example:
        >>> stream = [{"__key__": str(n), "cls": b"%d" % (n // 4)} for n in range(16)]
        >>> batches = list(pk_batched(2, 4)(stream))
        >>> [sorted(sample["cls"] for sample in batch)[::4] for batch in batches]
        [[b'0', b'1'], [b'2', b'3']]
    """
    caller = "pk_batched"
    with border(caller):
        p, k, buffer, cap = checked_sizes(p, k, buffer, cap)
    as_choice(caller, "on_short", on_short, ON_SHORT)
    for name, value in (("decode", decode), ("handler", handler)):
        if not (value is None or callable(value)):
            raise refusal(caller, name, value, "a function or None")
    if not (isinstance(label, str) or callable(label)):
        raise refusal(caller, "label", label, "the name of a field or a function of a sample")
    seed = as_seed(caller, seed)
    return PKStage(p, k, on_short, buffer, cap, label, decode, handler, seed)


@dataclass(frozen=True)
class PKStage:
    """What `pk_batched` returns: a function from samples to batches."""

    p: int
    k: int
    on_short: str
    buffer: int
    cap: int
    label: str | Callable[[Sample], Any]
    decode: Callable[[Sample], Any] | None
    handler: Handler | None
    seed: int

    def __call__(self, samples: Iterable[Sample]) -> Iterator[list[Any]]:
        """The batches of a stream."""
        buffer = self.new_buffer()
        for groups in self.groups(samples, buffer):
            try:
                batch = self.decoded(groups, buffer)
            except StreamEnded:
                return
            if batch is not None:
                yield batch

    def new_buffer(self) -> ClassBuffer:
        """An empty buffer with the bounds of this stage."""
        sizes = {"buffer": self.buffer, "cap": self.cap}
        key = derive_key("pk_batched", self.seed)
        return ClassBuffer(self.p, self.k, **sizes, on_short=self.on_short, key=key, caller="pk_batched")

    def groups(self, samples: Iterable[Sample], buffer: ClassBuffer) -> Iterator[list[Group]]:
        """The batches as groups of raw samples. Nothing is decoded, so skipping a batch is cheap."""
        for sample in raw_samples("pk_batched", samples):
            try:
                name = label_of(sample, self.label)
            except Exception as error:
                if not keep_going(self.handler, error):
                    break
                continue
            yield from buffer.put(name, sample, str(sample.get("__key__", "")))
        yield from buffer.flush()

    def decoded(self, groups: list[Group], buffer: ClassBuffer) -> list[Any] | None:
        """The decoded samples of a batch; None where too few decode, and the handler says to go on.

        A replacement of a sample that fails stays in the buffer, so later batches are the same whether this
        one is decoded or skipped.

        Raises:
            StreamEnded: the handler says so.
        """
        if self.decode is None:
            return [_viewed(*one) for group in groups for one in zip(group.items, group.views, strict=True)]
        replacements = _Replacements(self, groups, buffer)
        images: list[Any] = []
        for group in groups:
            decoded = replacements.decoded(group)
            if decoded is None:
                return None
            images += decoded
        return images


class StreamEnded(Exception):
    """The handler ends the stream."""


class _Replacements:
    """Decodes the groups of a batch, and replaces samples that fail.

    Args:
        stage: its settings.
        groups: those of the batch.
        buffer: where replacements come from.
    """

    def __init__(self, stage: PKStage, groups: list[Group], buffer: ClassBuffer) -> None:
        self._stage, self._buffer = stage, buffer
        self._taken = {group.label for group in groups}
        self._failed: set[int] = set()  # ids of samples, which the groups and the buffer keep alive

    def decoded(self, group: Group) -> list[Any] | None:
        """k decoded samples of the group's class, or of another class where fewer than two of it decode.

        None where no other class in the buffer has two either; at the end of a stream the buffer is empty.

        Raises:
            StreamEnded: the handler says so.
        """
        of_class = self._buffer.buffered(group.label).get(group.label, [])
        images = self._of_one_class(group.items, group.views, of_class)
        if images is None:
            images = self._of_another_class()
        if images is None:
            stage = self._stage
            error = ValueError(
                f"pk_batched(p={stage.p}, k={stage.k}): a batch is passed over, as too many samples fail in "
                f"decode: neither class {group.label!r} nor another that is left in the buffer has 2 that do "
                "not; repair them"
            )
            self._ask(error)
        return images

    def _of_another_class(self) -> list[Any] | None:
        """k decoded samples of the first class in the buffer that has two and is not in the batch."""
        for label, items in list(self._buffer.buffered().items()):
            if label in self._taken:
                continue
            images = self._of_one_class([], [], items)
            if images is not None:
                self._taken.add(label)
                return images
        return None

    def _of_one_class(self, items: list[Sample], views: list[int], others: list[Sample]) -> list[Any] | None:
        """k decoded samples of a class; None where fewer than two of it decode.

        Args:
            items: those of the group, each decoded into its place.
            views: how often each was in a batch before.
            others: further samples of the class, which fill the places of those that fail.
        """
        k = self._stage.k
        images: dict[int, Any] = {}  # by place
        good: list[Sample] = []  # distinct samples that decode

        def place(at: int, item: Sample, view: int) -> None:
            if id(item) not in self._failed and self._decode(images, at, item, view):
                good.extend([item] * all(item is not one for one in good))

        for at, (item, view) in enumerate(zip(items, views, strict=True)):
            place(at, item, view)
        empty = [at for at in range(k) if at not in images]
        for item in others:
            if not empty:
                break
            place(empty[0], item, -1)
            empty = empty[empty[0] in images :]
        if len(good) < 2:  # one sample may fill all places: it is reusable, and repeats itself
            return None
        for number, at in enumerate(empty):
            if not self._decode(images, at, good[number % len(good)], -2 - number):
                return None
        return [images[at] for at in range(k)]

    def _decode(self, images: dict[int, Any], at: int, item: Sample, view: int) -> bool:
        """Decode a sample into its place; False where it fails, and the handler says to go on."""
        stage = self._stage
        assert stage.decode is not None
        try:
            images[at] = stage.decode({**item, "__view__": view})
        except Exception as error:
            self._failed.add(id(item))
            self._ask(error)
            return False
        return True

    def _ask(self, error: Exception) -> None:
        if not keep_going(self._stage.handler, error):
            raise StreamEnded from error


def _viewed(sample: Sample, view: int) -> Sample:
    return {**sample, "__view__": view} if view else sample
