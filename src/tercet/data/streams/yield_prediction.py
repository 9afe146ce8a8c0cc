"""What P×K batching of a stream will give, before it is run: the share used, the delay, the memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import as_choice, as_float, as_int, as_seed, label_codes, refusal
from tercet.core.randomness import derive_key, permute
from tercet.data.shards.layouts import by_identity, mixed
from tercet.data.streams.class_buffer import ON_SHORT, GroupBuffer, sized

__all__ = ["StreamYield", "gives_batch", "play", "predict_yield"]

_LAYOUTS = ("identity", "mixed", "stored")
_MOST = 200_000  # samples that are played through, if the buffer is not large beside that


@dataclass(frozen=True)
class StreamYield:
    """What a stream gives.

    Args:
        share: of the samples, those that end in a batch, for one order of the shards: that of the first epoch
            of a `PKStream`.
        batches: of an epoch, all workers and ranks together.
        first_batch: samples that a worker, or a lane, reads before its first batch, on average.
        held: the most samples held at a time, in one worker, or one lane.
        memory: bytes of images held on one rank, all its workers together; for `PKStream` all its lanes, as
            if no two workers read the same one.
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
    layout: str = "identity",
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
    """How much of a stream of these labels ends in P×K batches, how late they begin, and what they hold.

    The rule of `pk_batched` is played through on labels alone: for shards dealt to ranks and then workers,
    in a keyed order. Up to 200,000 samples are played, or 20 buffers if that is more; what
    many workers get is alike, so a few of them stand for all.

    Args:
        labels: [n] the class of each image: whole numbers or strings. With the layout "stored" in the order
            of the shards, else in any order.
        p, k, buffer, cap, on_short: as for `pk_batched`.
        layout: as for `write_shards`: "identity" or "mixed"; or "stored", shards cut out of `labels`.
        images_per_shard: as for `write_shards`.
        workers: of a rank; each has a buffer of its own and takes its part of the shards. For `PKStream`
            its `lanes`, if each has as many shards: else see its `predicted`.
        ranks: the number of processes.
        image_bytes: the size of a compressed image.
        least: the share below which the setting is refused; 0 refuses nothing.
        seed: names the order of the shards.

    Returns:
        The prediction.

    Raises:
        ValueError: an argument out of range, fewer shards than ranks or workers, or a share below `least`:
            then with what would help, and how much.

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
    p, k, buffer, cap_ = sized(caller, p, k, buffer, cap)
    as_choice(caller, "layout", layout, _LAYOUTS)
    as_choice(caller, "on_short", on_short, ON_SHORT)
    images_per_shard = as_int(caller, "images_per_shard", images_per_shard, 1)
    workers, ranks = as_int(caller, "workers", workers, 1), as_int(caller, "ranks", ranks, 1)
    image_bytes = as_int(caller, "image_bytes", image_bytes)
    least = as_float(caller, "least", least, 0, 1)
    seed = as_seed(caller, seed)

    def played(layout: str, buffer: int, cap: int | None, workers: int) -> StreamYield:
        shards = _shards(codes, k, layout, images_per_shard, seed)
        parts = ranks * workers
        if len(shards) < ranks:
            expected = f"at most as many as shards, and there are {len(shards)}"
            raise refusal(caller, "ranks", ranks, expected, "lower ranks or images_per_shard")
        if len(shards) < parts:
            hint = "lower workers or images_per_shard"
            raise refusal(caller, "workers", workers, f"at most {len(shards)} shards / {ranks} ranks", hint)
        made = {"p": p, "k": k, "buffer": buffer, "cap": cap, "on_short": on_short}
        return play([shards[part::parts] for part in range(parts)], made, image_bytes * workers, seed)

    found = played(layout, buffer, cap_, workers)
    if found.share >= least:
        return found
    # What would help, each tried alone.
    ways = []
    if layout != "identity":
        ways.append(('write the shards with layout="identity"', ("identity", buffer, cap_, workers)))
    if workers > 1:
        ways.append(("use 1 worker", (layout, buffer, cap_, 1)))
    for larger in (buffer * 4, buffer * 16, buffer * 64):
        if larger < 4 * len(codes) // (ranks * workers):
            ways.append((f"raise buffer to {larger}", (layout, larger, None, workers)))
    told = []
    for way, setting in ways:
        try:
            share = played(*setting).share
        except ValueError:  # a remedy that would be refused is none
            continue
        if share >= max(least, 2 * found.share):
            told.append(f"{way} ({share:.2f})")
    raise ValueError(
        f"predict_yield(layout={layout!r}, buffer={buffer}, workers={workers}): {found.share:.2f} of the "
        f"samples would end in a batch of {p} classes × {k}; "
        + (" or ".join(told) or f"too few classes have {k} images for that; lower p or k")
    )


def _shards(
    codes: Int64[np.ndarray, " n"], k: int, layout: str, images_per_shard: int, seed: int
) -> list[Int64[np.ndarray, " s"]]:
    """The labels of each shard, in a keyed order of shards."""
    if layout == "stored":
        rows = np.split(np.arange(len(codes)), range(images_per_shard, len(codes), images_per_shard))
    elif layout == "mixed":
        rows = mixed(len(codes), images_per_shard, seed)
    else:
        rows = by_identity(codes, k, images_per_shard, seed)
    order = permute(np.arange(len(rows)), len(rows), derive_key("predict_yield", seed))
    return [codes[rows[place]] for place in order.tolist()]


def play(
    parts: list[list[np.ndarray]],
    made: dict[str, Any],
    bytes_a_sample: float,
    seed: int,
    lanes: int | None = None,
) -> StreamYield:
    """Plays the streams of some workers through, until enough samples have come.

    Args:
        parts: for each worker of each rank the labels of its shards.
        made: how their buffers are made: arguments of `GroupBuffer`.
        bytes_a_sample: what a sample held by one worker comes to, on all workers of a rank.
        seed: names the draws.
        lanes: the parts are so many lanes of each rank, which take turns, and each rank makes as many steps:
            of a lane with more samples some are left, one with fewer begins again.

    Example:
        >>> play([[np.arange(8) // 4]], {"p": 2, "k": 4, "buffer": 8}, 10, 0)
        StreamYield(share=1.0, batches=1, first_batch=8, held=8, memory=80)
    """
    most = max(_MOST, 20 * made["buffer"])
    sizes = [sum(map(len, part)) for part in parts]
    seen = held = 0
    firsts: list[int] = []
    used: list[list[int]] = []  # of each part that is played, after each of its batches
    for number, part in enumerate(parts):
        buffer = GroupBuffer(**made, key=derive_key("predict_yield", seed, number), caller="predict_yield")
        first, after = 0, []
        for _ in _batches(buffer, part, most - seen):
            first = first or buffer.seen
            after.append(buffer.used)
        used.append(after)
        seen, held = seen + buffer.seen, max(held, buffer.most)
        firsts.append(first or buffer.seen)
        if seen >= most:
            break
    share = sum(after[-1] for after in used if after) / seen
    batches = round(sum(map(len, used)) * sum(sizes) / seen)
    if lanes and batches:
        ranks = len(parts) // lanes
        steps = max(1, batches // ranks)
        share, batches = _of_equal(used, sizes, seen, steps, lanes), steps * ranks
    return StreamYield(share, batches, round(float(np.mean(firsts))), held, round(held * bytes_a_sample))


def gives_batch(shards: Iterable[np.ndarray], made: dict[str, Any]) -> bool:
    """Whether one pass gives a batch: that depends on the labels and their order only, not on the draws.

    Example:
        >>> [gives_batch([np.arange(8) // size], {"p": 2, "k": 4, "buffer": 8}) for size in (4, 8)]
        [True, False]
    """
    return next(_batches(GroupBuffer(**made), shards, None), None) is not None


def _of_equal(used: list[list[int]], sizes: list[int], seen: int, steps: int, lanes: int) -> float:
    """The share of samples in batches where each rank makes `steps`, its lanes in turn.

    Args:
        used: samples used after each batch, of the parts that were played; the last may be cut short.
        sizes: samples of each part.
        seen: samples that were played.
        steps: batches of each rank.
        lanes: parts of each rank.
    """
    whole = used if sum(sizes[: len(used)]) == seen else used[:-1]
    each, rate = (sum(counts) / seen for counts in ([after[-1] for after in used if after], map(len, used)))
    kept = 0.0
    for number, size in enumerate(sizes):
        turns = -((number % lanes - steps) // lanes)  # of the steps, those that are this lane's
        if number >= len(whole):
            kept += each * size * min(1, turns / (rate * size)) if size else 0
        elif whole[number] and turns:
            kept += whole[number][min(len(whole[number]), turns) - 1]
    return kept / sum(sizes)


def _batches(buffer: GroupBuffer, shards: Iterable[np.ndarray], most: int | None) -> Iterator[Any]:
    labels = chain.from_iterable(map(np.ndarray.tolist, shards))
    stop = None if most is None else min(most, sys.maxsize)  # `islice` takes no more
    for number, label in enumerate(islice(labels, stop)):
        yield from buffer.put(label, number)
    yield from buffer.flush()
