"""A stage of a webdataset pipeline: P×K batches from a stream of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tercet.core.checks import as_choice, as_seed, refusal
from tercet.core.randomness import derive_key
from tercet.data.streams.class_buffer import ON_SHORT, Group, GroupBuffer, sized
from tercet.data.streams.samples import Handler, Sample, label_of, raw, told

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
    """A stage that makes batches of exactly p classes with exactly k samples each of a stream of samples.

    `webdataset.WebDataset(shards).compose(pk_batched(32, 4))` gives lists of p · k samples, those of a class
    side by side. It belongs before decoding: the buffer then holds compressed images. Give the decoding to
    the stage, as `decode`, and a sample that fails is replaced by another of its class, in the same batch; a
    batch for which too few are left in the buffer is passed over.

    The stage fills a buffer, then draws each batch from all of it; so the buffer also sets how well classes
    mix, and what is read before the first batch. The draws are a function of the seed and of the samples that
    came: let shards come in another order each epoch. `predict_yield` says how much of a stream ends in
    batches; of samples in random order over more classes than the buffer has room for, nearly nothing does.

    webdataset runs what follows "pipe:" as a command, also where that is the name of a file which was listed;
    `PKStream` opens files alone.

    A sample that has no label, or half a sample at the end of a truncated tar, goes to the handler.

    Args:
        p: classes in a batch.
        k: samples of each class in a batch, at least 2.
        on_short: what happens to fewer than k samples of a class when they have to leave the buffer, as it is
            full or the stream ends: k are made of them and of samples that were in a batch with them
            ("repeat"; one sample alone is dropped), they are in no batch ("drop"), or that is an
            error ("error"). At the end, samples of the last classes, fewer than p, are in no batch.
        buffer: samples held, at least p · k; by default 4 · p · k.
        cap: samples of one class held, from k to buffer / p; by default buffer / p. For those that come
            beyond, batches are drawn while the buffer is half full; then keyed ones are dropped.
        label: the field that holds the class, as "cls", a field of its JSON, as "json:id", or a function of
            the sample that gives it: a whole number or a name.
        decode: a function of a sample that gives what stands in the batch for it; it gets a copy with the
            field "__view__": how often the sample was in a batch before, or below 0 where it stands in
            for another.
        handler: webdataset's: gets the error, gives true to go on without the sample, or without the batch
            that is passed over, and false to end the stream. By default the error is raised.
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
    p, k, buffer, cap = sized(caller, p, k, buffer, cap)
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
    """What `pk_batched` gives: a function from samples to batches."""

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
        held = self.held()
        for groups in self.groups(samples, held):
            try:
                batch = self.filled(groups, held)
            except StreamEnded:
                return
            if batch is not None:
                yield batch

    def held(self) -> GroupBuffer:
        """An empty buffer with the bounds of this stage."""
        sizes = {"buffer": self.buffer, "cap": self.cap}
        key = derive_key("pk_batched", self.seed)
        return GroupBuffer(self.p, self.k, **sizes, on_short=self.on_short, key=key, caller="pk_batched")

    def groups(self, samples: Iterable[Sample], held: GroupBuffer) -> Iterator[list[Group]]:
        """The batches as groups of raw samples; nothing is decoded, so to pass over one is cheap."""
        for sample in raw("pk_batched", samples):
            try:
                name = label_of(sample, self.label)
            except Exception as error:
                if not told(self.handler, error):
                    break
                continue
            yield from held.put(name, sample, str(sample.get("__key__", "")))
        yield from held.flush()

    def filled(self, groups: list[Group], held: GroupBuffer) -> list[Any] | None:
        """A batch, decoded; None where too few samples decode, and the handler says to go on.

        What stands in for a sample that fails stays in the buffer, so that the batches after this one
        are the same whether this one is decoded or passed over.

        Raises:
            StreamEnded: the handler says so.
        """
        if self.decode is None:
            return [_viewed(*one) for group in groups for one in zip(group.items, group.views)]
        stand_ins = _StandIns(self, groups, held)
        images: list[Any] = []
        for group in groups:
            made = stand_ins.of(group)
            if made is None:
                return None
            images += made
        return images


class StreamEnded(Exception):
    """The handler ends the stream."""


class _StandIns:
    """Decodes the groups of a batch; for a sample that fails another stands in."""

    def __init__(self, stage: PKStage, groups: list[Group], held: GroupBuffer) -> None:
        self._stage, self._held = stage, held
        self._taken = {group.label for group in groups}
        self._failed: set[int] = set()  # ids of samples, which the groups and the buffer keep alive

    def of(self, group: Group) -> list[Any] | None:
        """k decoded samples of the group's class, or of another where that has not two that decode.

        None where no other class in the buffer has two either: at the end of a stream it is empty.

        Raises:
            StreamEnded: the handler says so.
        """
        images = self._made(group.items, group.views, self._held.held(group.label).get(group.label, []))
        if images is None:
            for label, items in list(self._held.held().items()):
                if label in self._taken:
                    continue
                images = self._made([], [], items)
                if images is not None:
                    self._taken.add(label)
                    break
        if images is None:
            stage = self._stage
            error = ValueError(
                f"pk_batched(p={stage.p}, k={stage.k}): a batch is passed over, as too many samples fail in "
                f"decode: neither class {group.label!r} nor another that is left in the buffer has 2 that do "
                "not; repair them"
            )
            self._ask(error)
        return images

    def _made(self, items: list[Sample], views: list[int], others: list[Sample]) -> list[Any] | None:
        """k images of a class, each in its place; None where fewer than two of its samples decode."""
        k = self._stage.k
        images: dict[int, Any] = {}
        good: list[Sample] = []

        def place(at: int, item: Sample, view: int) -> None:
            if id(item) not in self._failed and self._decode(images, at, item, view):
                good.extend([item] * all(item is not one for one in good))

        for at, (item, view) in enumerate(zip(items, views)):
            place(at, item, view)
        empty = [at for at in range(k) if at not in images]
        for item in others:
            if not empty:
                break
            place(empty[0], item, -1)
            empty = empty[empty[0] in images :]
        if len(good) < 2:  # also where one fills all places, as a spare of its own group
            return None
        for turn, at in enumerate(empty):
            if not self._decode(images, at, good[turn % len(good)], -2 - turn):
                return None
        return [images[at] for at in range(k)]

    def _decode(self, images: dict[int, Any], at: int, item: Sample, view: int) -> bool:
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
        if not told(self._stage.handler, error):
            raise StreamEnded from error


def _viewed(sample: Sample, view: int) -> Sample:
    return {**sample, "__view__": view} if view else sample
