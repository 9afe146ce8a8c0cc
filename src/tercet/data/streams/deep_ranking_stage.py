"""A stage of a webdataset pipeline: Deep Ranking's triplets from a stream of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tercet.core.checks import as_int, refusal
from tercet.core.indices import Triplets
from tercet.core.randomness import derive_key
from tercet.data.streams.samples import Handler, Sample, base_name, keep_going, label_of, raw_samples
from tercet.data.triplets.reservoir import ReservoirTriplets

__all__ = ["DeepRankingStage", "StreamedTriplets", "deep_ranking_batched"]


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
    `StreamedTriplets`: raw samples, each once, and triplets of positions in them. Decode after it.

    Args:
        count: triplets to draw at a time. A query for which the reservoir finds no triplet gives none, so
            fewer may come.
        features: a function of a sample that gives what `relevance` takes, an array of one shape for all.
        capacity: the most samples of each class in the reservoir.
        every: samples that come between two draws; by default `count`.
        warmup: samples that come before the first draw.
        label: the field that holds the class, as "cls", a field of its JSON, as "json:id", or a function of
            the sample that gives it: a whole number or a name.
        handler: called with the error, as webdataset's handlers are: a true result goes on without the
            sample, a false one ends the stream. By default the error is raised.
        seed: names the reservoir's draws.
        law: further options of `ReservoirTriplets`: `relevance`, `cap`, `gap`, `out_of_class` and `tries`.

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

    Reference:
        J. Wang, Y. Song, T. Leung, C. Rosenberg, J. Wang, J. Philbin, B. Chen, Y. Wu, "Learning fine-grained
        image similarity with deep ranking", CVPR 2014.
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
    ReservoirTriplets(**law)  # refuses a bad argument here rather than in a worker
    return DeepRankingStage(count, features, every, warmup, label, handler, law)


@dataclass(frozen=True)
class DeepRankingStage:
    """What `deep_ranking_batched` returns: a function from samples to `StreamedTriplets`."""

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
        buffered: dict[int, Sample] = {}  # by key, the samples in the reservoir
        # Names key the draws, not places: so these do not depend on where the shards lie. Two shards of one
        # name are told apart by the order in which they come.
        numbers: dict[str, dict[str, int]] = {}  # by name, by URL
        came = 0
        for sample in raw_samples("deep_ranking_batched", samples):
            url = str(sample.get("__url__"))
            same_name = numbers.setdefault(base_name(url), {})
            number = same_name.setdefault(url, len(same_name))
            key = derive_key("sample", base_name(url), number, str(sample.get("__key__"))) >> 1
            try:
                evicted = reservoir.add(key, label_of(sample, self.label), self.features(sample))
            except Exception as error:
                if not keep_going(self.handler, error):
                    break
                continue
            buffered[key] = sample
            if evicted is not None:
                del buffered[evicted]
            came += 1
            if came >= self.warmup and came % self.every == 0:
                triplets = reservoir.triplets(self.count)
                if triplets.count:
                    yield _with_samples(triplets, buffered)


def _with_samples(triplets: Triplets, buffered: dict[int, Sample]) -> StreamedTriplets:
    """Triplets of keys as triplets of positions, with the samples at these."""
    keys, position = np.unique(np.stack(triplets), return_inverse=True)
    corners = position.reshape(3, -1)
    return StreamedTriplets([buffered[key] for key in keys.tolist()], Triplets(*corners))
