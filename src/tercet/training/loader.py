"""A DataLoader wrapped with a model and a miner: batches of images in, mined batches out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from tercet.core.checks import as_bool, as_float, as_int, refusal, with_length
from tercet.data.io.checked_json import CHECKSUM, checksum_fits, warn_unchecked, with_checksum
from tercet.metrics.mining_stats import describe as describe_mined
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
        stats: what `describe` says of them; empty where it was not asked.

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
    stats: dict[str, float]


class MiningLoader:
    """Batches of a DataLoader, embedded by the model and mined: each is a `MinedBatch`.

    The model is called as it is, in whatever mode and under whatever autocast the loop has set.

    Args:
        loader: an iterable of (images, labels) or (images, labels, rows); `rows` become the miner's `ids`.
        model: gives embeddings [n, d] for images.
        miner: a miner, or any callable of (embeddings, labels), and of `ids` where the loader gives rows.
        device: where images and labels are moved to; None to leave them where the loader put them.
        describe: fill `stats`, with the distance of a miner of this library, else the Euclidean; reading them
            waits for the device once a batch.
        margin: the head's margin, for the share of triplets that are active; None for the miner's own, and
            NaN where that has none.

    A miner that draws does so by `step`, the number of batches mined so far: two visits to one batch draw
    differently, and a resumed run draws what would have come.

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
        """Tell the epoch to the loader, and to all samplers and datasets in it that have `set_epoch`.

        So it reaches what is wrapped, as a sampler in a `BatchSampler` or a dataset in a `Subset`.

        Raises:
            ValueError: none of them has `set_epoch`.
        """
        told = [part for part in _parts(self.loader) if callable(getattr(part, "set_epoch", None))]
        for part in told:
            part.set_epoch(epoch)
        if told:
            return
        kind = type(self.loader).__name__
        hint = "make the DataLoader with batch_sampler=PKSampler(...)"
        raise refusal("MiningLoader", "loader", kind, "something with set_epoch", hint)

    def state_dict(self) -> dict[str, Any]:
        """The loader's own state, and the step.

        Raises:
            ValueError: the loader has no `state_dict`. Its sampler's will not do: workers run ahead of it.
        """
        return {"loader": self._stateful("state_dict")(), **with_checksum({"step": self.step})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`.

        Raises:
            ValueError: the loader has no `load_state_dict`, or the state is another's, or was changed.
        """
        caller, expected = "MiningLoader.load_state_dict", "what state_dict() gave"
        give = self._stateful("load_state_dict")
        if not isinstance(state, dict) or set(state) - {CHECKSUM} != {"loader", "step"}:
            shown = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise refusal(caller, "state", shown, expected)
        fits = checksum_fits({name: fact for name, fact in state.items() if name != "loader"})
        if fits is False:
            raise refusal(caller, "step", state["step"], expected, "it was changed or damaged")
        if fits is None:
            warn_unchecked(f"the state given to {caller}")
        step = as_int(caller, "step", state["step"])
        give(state["loader"])
        self.step = step

    def _stateful(self, method: str) -> Any:
        if not callable(getattr(self.loader, method, None)):
            kind = type(self.loader).__name__
            raise refusal(
                "MiningLoader",
                "loader",
                kind,
                f"a loader with {method}",
                "use torchdata's StatefulDataLoader",
            )
        return getattr(self.loader, method)

    def _mined(self, batch: Any) -> MinedBatch:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise refusal(
                "MiningLoader", "batch", with_length(batch), "(images, labels) or (images, labels, rows)"
            )
        images, labels, *rows = (self._moved(part) for part in batch)
        embeddings = self.model(images)
        for name, part in {"model": embeddings, "labels": labels}.items():
            if not isinstance(part, Tensor):
                raise refusal("MiningLoader", name, type(part).__name__, f"a tensor of {_TENSORS[name]}")
        labels = labels.to(embeddings.device)
        named: dict[str, Any] = {"step": self.step} if isinstance(self.miner, Miner) else {}
        self.step += 1
        mined = self.miner(embeddings, labels, **({"ids": rows[0]} if rows else {}), **named)
        stats = {}
        if self.describe:
            margin = getattr(self.miner, "margin", None) if self.margin is None else self.margin
            metric = self.miner.distance if isinstance(self.miner, Miner) else "euclidean"
            stats = describe_mined(embeddings, labels, mined, margin=margin, distance=metric)
        return MinedBatch(embeddings, labels, mined, stats)

    def _moved(self, part: Any) -> Any:
        if self.device is not None and isinstance(part, Tensor):
            return part.to(self.device, non_blocking=True)
        return part


def _parts(loader: Any) -> list[Any]:
    """A loader, and the samplers and datasets that it is made of, each once."""
    parts = [loader]
    for part in parts:  # which grows on the way
        inner = [getattr(part, name, None) for name in ("batch_sampler", "sampler", "dataset")]
        several = getattr(part, "datasets", None)  # of a ConcatDataset or a ChainDataset
        inner += several if isinstance(several, (list, tuple)) else []
        parts += [one for one in inner if one is not None and all(one is not part for part in parts)]
    return parts
