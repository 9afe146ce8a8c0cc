"""What embeds the parts of a collection, in this process or in another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tercet.offline.claims import Claims
from tercet.offline.embedding_cache import digests_of
from tercet.offline.embedding_parts import Parts
from tercet.offline.fingerprints import modules_within
from tercet.offline.image_batches import ImageBatch, ImageBatches, loaded
from tercet.offline.model_run import ModelRun, evaluating

__all__ = ["EmbeddedPart", "EmbeddingWork", "PartEmbedder", "fill"]


@dataclass(frozen=True)
class EmbeddingWork:
    """All that decides the embeddings of some images, and how they are computed.

    Args:
        data: a `Catalog` or a `ShardIndex`.
        transform: of the images, or None.
        batch_size: images at a time.
        workers: processes that decode; 0 for the one that embeds.
        model: a callable that gives [b, d] for images.
        views: functions of a batch of images.
        device: where images are moved to.
        precision: a key of `PRECISIONS`.
        normalize: divide each embedding by its length.
        dtype: of the numbers that are kept.
        compile: run `torch.compile(model)`.
        key: what the embeddings depend on.
    """

    data: Any
    transform: Any
    batch_size: int
    workers: int
    model: Any
    views: list[Callable[[Any], Any]]
    device: torch.device
    precision: str
    normalize: bool
    dtype: np.dtype
    compile: bool
    key: Mapping[str, Any]

    def left_by_running(self) -> dict[str, Any]:
        """Digests that are others once the model has run: some keep what they computed, as Swin does."""
        try:
            found = digests_of(self.model, self.transform, self.views, self.key["key"])
        except ValueError:  # it keeps something that cannot be told
            return {}
        return {name: one for name, one in found.items() if one != self.key[name]}


class EmbeddedPart(NamedTuple):
    """A part, embedded.

    Args:
        number: of the part.
        numbers: [count, d], NaN for images that do not decode; [count, 0] where none does.
        unreadable: row and reason of these.
    """

    number: int
    numbers: np.ndarray
    unreadable: list[tuple[int, str]]


class PartEmbedder:
    """A model that is ready to embed parts; the caller puts it into eval mode.

    Args:
        work: what embeds.
    """

    def __init__(self, work: EmbeddingWork) -> None:
        self._work = work
        self._batches = ImageBatches("embed", work.data, work.transform, work.batch_size)
        model = torch.compile(work.model) if work.compile else work.model
        settings = (work.views, work.device, work.precision, work.normalize, work.dtype)
        self._run = ModelRun(model, *settings, lambda row: str(work.data.file(row)))

    def embedded(
        self, parts: Parts, numbers: Iterable[int], advance: Callable[[int], Any]
    ) -> Iterator[EmbeddedPart]:
        """Embed parts, whose images are read ahead across their borders.

        Args:
            parts: says which rows a part has; nothing is added to it.
            numbers: of the parts.
            advance: is called with the number of images after each batch.

        Raises:
            ValueError: as `ModelRun.embedded`.
        """
        size, width = self._work.batch_size, parts.width

        def of_batches() -> Iterator[int]:
            for number in numbers:
                rows = parts.rows_of(number)
                yield from range(rows.start // size, -(-rows.stop // size))

        held: list[tuple[ImageBatch, Any]] = []
        pinned = self._work.device.type == "cuda"
        for batch in loaded(self._batches, of_batches(), self._work.workers, pinned):
            found = self._run.embedded(batch.images, batch.rows, width) if batch.rows else None
            width = width if found is None else found.shape[1]
            held.append((batch, found))
            advance(len(batch.rows) + len(batch.unreadable))
            part = _joined(parts, held)
            if part is not None:
                yield part
                held = []


def _joined(parts: Parts, held: list[tuple[ImageBatch, Any]]) -> EmbeddedPart | None:
    """The batches of a part as one; None as long as some are missing."""
    unreadable = [item for batch, _ in held for item in batch.unreadable]
    decoded = [row for batch, _ in held for row in batch.rows]
    number = min([*decoded[:1], *(row for row, _ in unreadable[:1])]) // parts.height
    rows = parts.rows_of(number)
    if len(decoded) + len(unreadable) < len(rows):
        return None
    width = next((found.shape[1] for _, found in held if found is not None), 0)
    block = np.full((len(rows), width), np.nan, parts.dtype)
    for batch, found in held:
        if batch.rows:
            block[np.array(batch.rows) - rows.start] = found
    return EmbeddedPart(number, block, unreadable)


def fill(work: EmbeddingWork, parts: Parts, claims: Claims, advance: Callable[[int], Any]) -> int:
    """Embed the parts that are neither done nor claimed by other processes, until all are done.

    Args:
        work: what embeds.
        parts: are added to.
        claims: of the parts, by number.
        advance: is called with the number of images after each batch.

    Returns:
        How many images this process has embedded, those that do not decode included.

    Raises:
        ValueError: as `ModelRun.embedded`.
    """
    count = 0
    with evaluating(modules_within(work.model)):
        embedder = PartEmbedder(work)
        try:
            while True:
                for part in embedder.embedded(parts, claims.available(), advance):
                    parts.add(*part)
                    claims.finish(part.number)
                    count += len(part.numbers)
                if not claims.wait():
                    return count
        finally:
            claims.close()
