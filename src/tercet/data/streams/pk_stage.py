"""Stages for a webdataset pipeline: P×K batches, and Deep Ranking's triplets, from a stream of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import as_choice, as_int, refusal, seed_number
from tercet.core.indices import Triplets
from tercet.core.randomness import derive_key
from tercet.data.streams.class_buffer import ON_SHORT, Group, GroupBuffer, sized
from tercet.data.streams.samples import Handler, Sample, base_name, label_of, raw, told
from tercet.data.triplets.reservoir import ReservoirTriplets

__all__ = [
    "DeepRankingStage",
    "PKStage",
    "StreamEnded",
    "StreamedTriplets",
    "deep_ranking_batched",
    "pk_batched",
]


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
    seed = seed_number(caller, seed)
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


class StreamedTriplets(NamedTuple):
    """Samples of a stream, each once, and triplets of them.

    Args:
        samples: u raw samples.
        triplets: `Triplets` of int64 [t], positions in `samples`.
    """

    samples: list[Sample]
    triplets: Triplets


def deep_ranking_batched(
    count: int,
    features: Callable[[Sample], Any],
    *,
    capacity: int,
    every: int | None = None,
    warmup: int = 0,
    label: str | Callable[[Sample], Any] = "cls",
    handler: Handler | None = None,
    seed: int = 0,
    **law: Any,
) -> DeepRankingStage:
    """A stage that draws Deep Ranking's triplets from a stream of samples, through `ReservoirTriplets`.

    `webdataset.WebDataset(shards).compose(deep_ranking_batched(64, features, capacity=20))` gives
    `StreamedTriplets`: raw samples, each once, and triplets of positions in them; decode after it.

    Args:
        count: triplets drawn at a time; those of queries that are given up are missing.
        features: a function of a sample that gives what `relevance` takes, an array of one shape for all.
        capacity: samples held of each class.
        every: samples that come between two draws; by default `count`.
        warmup: samples that come before the first draw.
        label: where the class is, as for `pk_batched`.
        handler: webdataset's, as for `pk_batched`.
        seed: names the reservoir's draws.
        law: `relevance`, `cap`, `gap`, `out_of_class` and `tries`, as for `ReservoirTriplets`.

    Returns:
        A function from an iterable of samples to an iterator of `StreamedTriplets`.

    Raises:
        ValueError: an argument out of range; while running, a sample without label or with bad features.
        TypeError: an argument that `ReservoirTriplets` does not have.

    Example:
        >>> rows = np.random.default_rng(0).random((40, 8))
        >>> stream = [{"__key__": str(n), "cls": b"%d" % (n % 2), "row": row} for n, row in enumerate(rows)]
        >>> stage = deep_ranking_batched(8, lambda sample: sample["row"], capacity=3, warmup=32)
        >>> samples, (anchor, positive, negative) = next(stage(stream))
        >>> all(samples[a]["cls"] == samples[p]["cls"] for a, p in zip(anchor, positive))
        True
    """
    caller = "deep_ranking_batched"
    count = as_int(caller, "count", count, 1)
    every = count if every is None else as_int(caller, "every", every, 1)
    warmup = as_int(caller, "warmup", warmup)
    if not callable(features):
        raise refusal(caller, "features", features, "a function of a sample")
    if not (handler is None or callable(handler)):
        raise refusal(caller, "handler", handler, "a function or None")
    if not (isinstance(label, str) or callable(label)):
        raise refusal(caller, "label", label, "the name of a field or a function of a sample")
    law = {"capacity": capacity, "seed": seed, **law}
    ReservoirTriplets(**law)  # refuses what it does not take now, not in a worker
    return DeepRankingStage(count, features, every, warmup, label, handler, law)


@dataclass(frozen=True)
class DeepRankingStage:
    """What `deep_ranking_batched` gives: a function from samples to `StreamedTriplets`."""

    count: int
    features: Callable[[Sample], Any]
    every: int
    warmup: int
    label: str | Callable[[Sample], Any]
    handler: Handler | None
    law: dict[str, Any]

    def __call__(self, samples: Iterable[Sample]) -> Iterator[StreamedTriplets]:
        """Triplets from a stream."""
        reservoir = ReservoirTriplets(**self.law)
        held: dict[int, Sample] = {}
        shards: dict[str, dict[str, int]] = {}  # by name, in which places there is one: each its number
        came = 0
        for sample in raw("deep_ranking_batched", samples):
            url = str(sample.get("__url__"))
            places = shards.setdefault(base_name(url), {})
            place = places.setdefault(url, len(places))
            key = derive_key("sample", base_name(url), place, str(sample.get("__key__"))) >> 1
            try:
                gone = reservoir.add(key, label_of(sample, self.label), self.features(sample))
            except Exception as error:
                if not told(self.handler, error):
                    break
                continue
            held[key] = sample
            if gone is not None:
                del held[gone]
            came += 1
            if came >= self.warmup and came % self.every == 0:
                triplets = reservoir.triplets(self.count)
                if triplets.count:
                    yield _together(triplets, held)


def _together(triplets: Triplets, held: dict[int, Sample]) -> StreamedTriplets:
    """Triplets of keys as triplets of positions, and the samples there."""
    keys, position = np.unique(np.stack(triplets), return_inverse=True)
    corners = position.reshape(3, -1)
    return StreamedTriplets([held[key] for key in keys.tolist()], Triplets(*corners))
