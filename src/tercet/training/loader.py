"""A DataLoader with a model and a miner around it: it gives batches that are embedded and mined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tercet.core.checks import as_bool, as_float, as_int, refusal, with_length
from tercet.data.io.checked_json import CHECKSUM, checksum_fits, warn_unchecked, with_checksum
from tercet.metrics.mining_stats import describe as describe_mined
from tercet.metrics.mining_stats import describe_later
from tercet.miners.base import Miner
from tercet.pairwise.inputs import device_of

__all__ = ["MinedBatch", "MiningLoader"]

_TENSORS = {"model": "embeddings from the model", "labels": "labels from the loader"}


class MinedBatch(NamedTuple):
    """A batch that was embedded and mined.

    Args:
        embeddings: float [n, d], with the model's graph.
        labels: int [n], on the embeddings' device.
        mined: `Triplets` or `Pairs` of rows of the batch.
        stats: the figures of `describe` for them; {} with `describe=False`. A dict, but on an accelerator a
            mapping that is read when it is looked at: `dict(stats)` makes it a dict.

    Example:
        >>> import torch
        >>> loader = [(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1]))]
        >>> from tercet.miners.hard import BatchHard
        >>> batch = next(iter(MiningLoader(loader, torch.nn.Identity(), BatchHard(), describe=False)))
        >>> batch.embeddings.shape, batch.mined.count
        (torch.Size([3, 1]), 2)
    """

    embeddings: Any
    labels: Any
    mined: Any
    stats: Mapping[str, float]


class MiningLoader:
    """Batches of a DataLoader, embedded by the model and mined: each is a `MinedBatch`.

    The model is called as it is, in the mode and under the autocast that the training loop has set.

    A miner of this library that draws gets `step`, the number of batches mined so far: two visits to one
    batch draw differently, and a resumed run draws what an uninterrupted one would have drawn.

    Args:
        loader: a DataLoader, or another iterable of (images, labels) or (images, labels, rows). `rows` are
            passed to the miner as `ids`.
        model: a callable that gives embeddings [n, d] for images.
        miner: a miner, or any callable of (embeddings, labels), and of `ids` where the loader gives rows.
        device: where images and labels are moved to; None leaves them where the loader put them. A miner of
            this library counts labels that are on the host there, which saves waiting for the device.
        describe: fill `stats`, by the distance of a miner of this library, otherwise by the Euclidean one.
            A miner of this library is waited for alone: its figures are sent after it, and reading them waits
            only where they have not arrived.
        margin: the head's margin, for the share of active triplets in `stats`; None for the miner's own, and
            NaN for the share where that has none.

    Attributes:
        step: the number of batches mined so far.

    Raises:
        ValueError: a loader, model or miner of another kind, or an option out of range; while iterating, a
            batch of another form, or a model that gives no tensor.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from tercet.losses.triplet import TripletMargin
        >>> from tercet.miners.hard import BatchHard
        >>> data = TensorDataset(torch.arange(8.0)[:, None], torch.tensor([0, 1] * 4))
        >>> model, head = torch.nn.Linear(1, 2), TripletMargin(margin=0.2)
        >>> for embeddings, labels, mined, stats in MiningLoader(DataLoader(data, 4), model, BatchHard()):
        ...     head(embeddings, labels, mined).backward()
        ...     print(mined.count, stats["anchors"])
        4 1.0
        4 1.0
    """

    def __init__(
        self,
        loader: Any,
        model: Any,
        miner: Any,
        *,
        device: Any = None,
        describe: bool = True,
        margin: float | None = None,
    ) -> None:
        for name, part in {"model": model, "miner": miner}.items():
            if not callable(part):
                raise refusal("MiningLoader", name, type(part).__name__, "something to call with a batch")
        if not hasattr(loader, "__iter__") or isinstance(loader, (str, Tensor)):
            raise refusal("MiningLoader", "loader", type(loader).__name__, "a DataLoader, or other batches")
        self.loader = loader
        self.model = model
        self.miner = miner
        self.device = None if device is None else device_of("MiningLoader", device)
        self.describe = as_bool("MiningLoader", "describe", describe)
        self.margin = None if margin is None else as_float("MiningLoader", "margin", margin)
        self.step = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[MinedBatch]:
        for batch in self.loader:
            yield self._mined(batch)

    def set_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of the loader, and of all samplers and datasets in it that have one.

        These may be wrapped, as a sampler in a `BatchSampler` or a dataset in a `Subset`.

        Args:
            epoch: the epoch, from 0.

        Raises:
            ValueError: none of them has `set_epoch`.
        """
        settable = [part for part in _parts(self.loader) if callable(getattr(part, "set_epoch", None))]
        for part in settable:
            part.set_epoch(epoch)
        if settable:
            return
        kind = type(self.loader).__name__
        hint = "make the DataLoader with batch_sampler=PKSampler(...)"
        raise refusal("MiningLoader", "loader", kind, "something with set_epoch", hint)

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader, and the step.

        Raises:
            ValueError: the loader has no `state_dict`. The state of its sampler would not do: workers draw
                ahead of the training loop.
        """
        return {"loader": self._stateful("state_dict")(), **with_checksum({"step": self.step})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.

        Raises:
            ValueError: the loader has no `load_state_dict`, or the state is of another form or was changed.
        """
        caller, expected = "MiningLoader.load_state_dict", "what state_dict() gave"
        load = self._stateful("load_state_dict")
        if not isinstance(state, dict) or set(state) - {CHECKSUM} != {"loader", "step"}:
            shown = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise refusal(caller, "state", shown, expected)
        fits = checksum_fits({name: fact for name, fact in state.items() if name != "loader"})
        if fits is False:
            raise refusal(caller, "step", state["step"], expected, "it was changed or damaged")
        if fits is None:
            warn_unchecked(f"the state given to {caller}")
        step = as_int(caller, "step", state["step"])
        load(state["loader"])
        self.step = step

    def _stateful(self, method: str) -> Any:
        """A method of the loader, refused where it has none of that name."""
        if not callable(getattr(self.loader, method, None)):
            kind = type(self.loader).__name__
            hint = "use torchdata's StatefulDataLoader"
            raise refusal("MiningLoader", "loader", kind, f"a loader with {method}", hint)
        return getattr(self.loader, method)

    def _mined(self, batch: Any) -> MinedBatch:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise refusal(
                "MiningLoader", "batch", with_length(batch), "(images, labels) or (images, labels, rows)"
            )
        images, labels, *rows = batch
        embeddings = self.model(self._moved(images))
        for name, part in {"model": embeddings, "labels": labels}.items():
            if not isinstance(part, Tensor):
                raise refusal("MiningLoader", name, type(part).__name__, f"a tensor of {_TENSORS[name]}")
        there = labels.to(embeddings.device, non_blocking=embeddings.device.type != "cpu")
        ours = isinstance(self.miner, Miner)  # it takes from the host what the loader left there, unread
        given = {"ids": rows[0] if ours else self._moved(rows[0])} if rows else {}
        named: dict[str, Any] = {"step": self.step} if ours else {}
        self.step += 1
        mined = self.miner(embeddings, labels if ours else there, **given, **named)
        labels = there
        stats: Mapping[str, float] = {}
        if self.describe:
            margin = getattr(self.miner, "margin", None) if self.margin is None else self.margin
            metric: Any = self.miner.distance if ours else "euclidean"
            if ours and embeddings.device.type != "cpu":
                margin = math.nan if margin is None else margin
                stats = describe_later(embeddings, labels, mined, margin, metric)
            else:
                stats = describe_mined(embeddings, labels, mined, margin=margin, distance=metric)
        return MinedBatch(embeddings, labels, mined, stats)

    def _moved(self, part: Any) -> Any:
        if self.device is not None and isinstance(part, Tensor):
            return part.to(self.device, non_blocking=True)
        return part


def _parts(loader: Any) -> list[Any]:
    """A loader, and all samplers and datasets in it, each once."""
    parts = [loader]
    for part in parts:  # the list grows while it is walked
        inner = [getattr(part, name, None) for name in ("batch_sampler", "sampler", "dataset")]
        several = getattr(part, "datasets", None)  # of ConcatDataset and ChainDataset
        inner += several if isinstance(several, (list, tuple)) else []
        parts += [one for one in inner if one is not None and all(one is not part for part in parts)]
    return parts
