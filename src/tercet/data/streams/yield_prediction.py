"""What P×K batches a stream will give, by a simulation on labels: share of the samples, delay, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import as_choice, as_float, as_int, as_seed, border, label_codes, refusal
from tercet.core.randomness import derive_key, permute
from tercet.data.shards.layouts import LAYOUTS, as_layout, by_class, mixed
from tercet.data.streams.class_buffer import ON_SHORT, ClassBuffer, checked_sizes

__all__ = ["StreamYield", "gives_batch", "predict_yield", "simulate"]

_MOST = 200_000  # samples that are simulated, unless the buffer is larger than a 20th of that


@dataclass(frozen=True)
class StreamYield:
    """What a stream gives, as `predict_yield` computes it.

    Each worker has a buffer; in a `PKStream` each of the `lanes` into which the shards of a rank are divided.

    Args:
        share: the share of the samples that end in a batch. It is computed for one order of the shards, for
            a `PKStream` that of the first epoch.
        batches: batches an epoch, of all workers and ranks together.
        first_batch: samples that go into a buffer before its first batch, on average.
        held: the most samples in a buffer at any time.
        memory: bytes of the images in all buffers of a rank. A lane of a `PKStream` that several workers of
            a loader read has a buffer in each, which is not counted.
    """

    share: float
    batches: int
    first_batch: int
    held: int
    memory: int


def predict_yield(
    labels: Any,
    p: int,
    k: int,
    *,
    layout: str = "by_class",
    images_per_shard: int = 5000,
    buffer: int | None = None,
    cap: int | None = None,
    on_short: str = "repeat",
    workers: int = 1,
    ranks: int = 1,
    image_bytes: int = 100_000,
    least: float = 0.1,
    seed: int = 0,
) -> StreamYield:
    """What share of a stream of these labels ends in P×K batches, how late they begin, and their memory.

    `pk_batched` is simulated on labels alone, with the shards in a keyed order, divided into ranks and then
    into workers. Up to 200,000 samples are simulated, or 20 buffers if that is more: many workers get alike
    streams, so a few of them stand for all.

    Args:
        labels: [n] the class of each image: whole numbers or strings. With the layout "stored" in the order
            of the shards, otherwise in any order.
        p: classes in a batch.
        k: samples of each class in a batch, at least 2.
        layout: "by_class" or "mixed", as `write_shards` lays the images out; or "stored": shards are runs of
            `labels` as they stand.
        images_per_shard: about how many images a shard has.
        buffer: the most samples in the buffer, at least p · k; by default 4 · p · k.
        cap: the most samples of one class in the buffer, from k to buffer / p; by default buffer / p.
        on_short: what happens to fewer than k samples of a class that leave the buffer, as for `pk_batched`:
            "repeat", "drop" or "error".
        workers: workers of a rank; each has a buffer of its own and reads its part of the shards. For
            `PKStream` its `lanes`, if each has equally many shards; otherwise see its `predicted`.
        ranks: the number of processes.
        image_bytes: the size of a compressed image.
        least: the share below which the setting is refused; 0 refuses nothing.
        seed: names the order of the shards.

    Returns:
        The prediction.

    Raises:
        ValueError: an argument out of range, fewer shards than ranks or workers, or a share below `least`,
            with what would help and how much.

    Example:
        >>> labels = np.arange(3000) // 5
        >>> predict_yield(labels, 8, 4, images_per_shard=250, workers=4).share > 0.9
        True
        >>> predict_yield(labels, 8, 4, images_per_shard=250, layout="mixed", buffer=64, on_short="drop")
        Traceback (most recent call last):
          ...
        ValueError: predict_yield(layout='mixed', buffer=64, workers=1): 0.0... of the samples ...
    """
    caller = "predict_yield"
    codes, _ = label_codes(caller, labels)
    with border(caller):
        p, k, buffer, checked_cap = checked_sizes(p, k, buffer, cap)
    layout = as_layout(caller, "layout", layout, (*LAYOUTS, "stored"))
    as_choice(caller, "on_short", on_short, ON_SHORT)
    setting = _Setting(
        codes,
        {"p": p, "k": k, "on_short": on_short},
        as_int(caller, "images_per_shard", images_per_shard, 1),
        as_int(caller, "ranks", ranks, 1),
        as_int(caller, "image_bytes", image_bytes),
        as_seed(caller, seed),
    )
    workers = as_int(caller, "workers", workers, 1)
    least = as_float(caller, "least", least, 0, 1)
    found = setting.simulate(layout, buffer, checked_cap, workers)
    if found.share >= least:
        return found
    remedies = setting.remedies(layout, buffer, checked_cap, workers, max(least, 2 * found.share))
    raise ValueError(
        f"predict_yield(layout={layout!r}, buffer={buffer}, workers={workers}): {found.share:.2f} of the "
        f"samples would end in a batch of {p} classes × {k}; "
        + (" or ".join(remedies) or f"too few classes have {k} images for that; lower p or k")
    )


@dataclass(frozen=True)
class _Setting:
    """What stays the same while remedies are tried."""

    codes: Int64[np.ndarray, " n"]
    options: dict[str, Any]  # of the buffers
    images_per_shard: int
    ranks: int
    image_bytes: int
    seed: int

    def simulate(self, layout: str, buffer: int, cap: int | None, workers: int) -> StreamYield:
        """The prediction for a layout, the size of the buffer, and a number of workers."""
        shards = self._shards(layout)
        parts = self.ranks * workers
        if len(shards) < self.ranks:
            expected = f"at most as many as shards, and there are {len(shards)}"
            hint = "lower ranks or images_per_shard"
            raise refusal("predict_yield", "ranks", self.ranks, expected, hint)
        if len(shards) < parts:
            expected = f"at most {len(shards)} shards / {self.ranks} ranks"
            raise refusal("predict_yield", "workers", workers, expected, "lower workers or images_per_shard")
        options = {**self.options, "buffer": buffer, "cap": cap}
        streams = [shards[part::parts] for part in range(parts)]
        return simulate(streams, options, self.image_bytes * workers, self.seed)

    def remedies(self, layout: str, buffer: int, cap: int | None, workers: int, least: float) -> list[str]:
        """Changes that raise the share to `least` or more, each tried alone, with the share that it gives."""
        changes: list[tuple[str, tuple[str, int, int | None, int]]] = []
        if layout != "by_class":
            text = 'write the shards with layout="by_class"'
            changes.append((text, ("by_class", buffer, cap, workers)))
        if workers > 1:
            changes.append(("use 1 worker", (layout, buffer, cap, 1)))
        for larger in (buffer * 4, buffer * 16, buffer * 64):
            if larger < 4 * len(self.codes) // (self.ranks * workers):
                changes.append((f"raise buffer to {larger}", (layout, larger, None, workers)))
        remedies = []
        for text, change in changes:
            try:
                share = self.simulate(*change).share
            except ValueError:  # a change that would be refused does not help
                continue
            if share >= least:
                remedies.append(f"{text} ({share:.2f})")
        return remedies

    def _shards(self, layout: str) -> list[Int64[np.ndarray, " s"]]:
        """The labels of each shard, in a keyed order of shards."""
        n, size = len(self.codes), self.images_per_shard
        if layout == "stored":
            rows = np.split(np.arange(n), range(size, n, size))
        elif layout == "mixed":
            rows = mixed(n, size, self.seed)
        else:
            rows = by_class(self.codes, self.options["k"], size, self.seed)
        order = permute(np.arange(len(rows)), len(rows), derive_key("predict_yield", self.seed))
        return [self.codes[rows[place]] for place in order.tolist()]


def simulate(
    parts: list[list[np.ndarray]],
    options: dict[str, Any],
    bytes_a_sample: float,
    seed: int,
    partitions: int | None = None,
) -> StreamYield:
    """Simulate buffers on labels alone, worker after worker, until 200,000 samples or 20 buffers have come.

    Args:
        parts: for each worker of each rank, the labels of its shards.
        options: arguments of the `ClassBuffer` of each.
        bytes_a_sample: bytes that a rank keeps for each sample in the buffer of one worker, its other workers
            included.
        seed: names the draws.
        partitions: for a `PKStream`, how many partitions each rank has. They give batches in turn, and all
            ranks make equally many steps: a partition with more samples does not use them all, one with
            fewer reads them again. None for workers that each stop when their samples are used up.

    Returns:
        The prediction.

    Example:
        >>> simulate([[np.arange(8) // 4]], {"p": 2, "k": 4, "buffer": 8}, 10, 0)
        StreamYield(share=1.0, batches=1, first_batch=8, held=8, memory=80)
    """
    most = max(_MOST, 20 * options["buffer"])
    sizes = [sum(map(len, part)) for part in parts]
    seen = peak = 0
    firsts: list[int] = []
    used: list[list[int]] = []  # by part that is simulated, the samples used after each of its batches
    for number, part in enumerate(parts):
        buffer = ClassBuffer(**options, key=derive_key("predict_yield", seed, number), caller="predict_yield")
        first, after = 0, []
        for _ in _batches(buffer, part, most - seen):
            first = first or buffer.seen
            after.append(buffer.used)
        used.append(after)
        seen, peak = seen + buffer.seen, max(peak, buffer.peak)
        firsts.append(first or buffer.seen)
        if seen >= most:
            break
    share = sum(after[-1] for after in used if after) / seen
    batches = round(sum(map(len, used)) * sum(sizes) / seen)
    if partitions and batches:
        ranks = len(parts) // partitions
        steps = max(1, batches // ranks)
        share, batches = _share_of_equal_steps(used, sizes, seen, steps, partitions), steps * ranks
    return StreamYield(share, batches, round(float(np.mean(firsts))), peak, round(peak * bytes_a_sample))


def gives_batch(shards: Iterable[np.ndarray], options: dict[str, Any]) -> bool:
    """Whether one pass over all shards gives a batch. It depends on the labels in their order, not on draws.

    Args:
        shards: the labels of each.
        options: arguments of the `ClassBuffer`.

    Example:
        >>> [gives_batch([np.arange(8) // size], {"p": 2, "k": 4, "buffer": 8}) for size in (4, 8)]
        [True, False]
    """
    return next(_batches(ClassBuffer(**options), shards, None), None) is not None


def _share_of_equal_steps(
    used: list[list[int]], sizes: list[int], seen: int, steps: int, partitions: int
) -> float:
    """The share of samples in batches where each rank makes `steps`, its partitions in turn.

    Args:
        used: samples used after each batch, of the parts that were simulated; the last may be cut short.
        sizes: samples of each part.
        seen: samples that were simulated.
        steps: batches of each rank.
        partitions: parts of each rank.
    """
    whole = used if sum(sizes[: len(used)]) == seen else used[:-1]
    # For parts that were not simulated: samples used, and batches, for each sample that came.
    used_rate = sum(after[-1] for after in used if after) / seen
    batch_rate = sum(map(len, used)) / seen
    kept = 0.0
    for number, size in enumerate(sizes):
        rounds = -((number % partitions - steps) // partitions)  # the steps that this partition makes
        if number >= len(whole):
            kept += used_rate * size * min(1, rounds / (batch_rate * size)) if size else 0
        elif whole[number] and rounds:
            kept += whole[number][min(len(whole[number]), rounds) - 1]
    return kept / sum(sizes)


def _batches(buffer: ClassBuffer, shards: Iterable[np.ndarray], most: int | None) -> Iterator[Any]:
    """The batches that a buffer gives for the first `most` samples of some shards; None for all."""
    labels = chain.from_iterable(map(np.ndarray.tolist, shards))
    stop = None if most is None else min(most, sys.maxsize)  # the largest that `islice` takes
    for number, label in enumerate(islice(labels, stop)):
        yield from buffer.put(label, number)
    yield from buffer.flush()
