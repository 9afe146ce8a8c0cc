"""Cross-batch memory: embeddings of past batches, as columns for later batches."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tercet.core.checks import Refusal, as_int, border, refusal
from tercet.core.indices import References
from tercet.pairwise.inputs import allocated, answer_later, lack_of_data
from tercet.pairwise.relations import label_rows, whole_numbers

__all__ = ["CrossBatchMemory"]

_NOBODY = torch.iinfo(torch.int64).min  # the id of a column that came without one; no row has it


class CrossBatchMemory(nn.Module):
    """The last `size` embeddings, without gradient: more columns to mine than a batch has.

    A model changes slowly, so the embeddings of past batches are nearly those that it would give now, and
    they cost only their distances. Update the memory after the loss: it must not have the batch itself.

        columns = memory.columns()
        loss = head(embeddings, labels, miner(embeddings, labels, ref=columns), ref=columns)
        memory.update(embeddings, labels)

    To mine the batch as well, pass its columns to `columns`. On many ranks `gather` gives those of all ranks,
    and all memories have the same content. The same lines run in a single process:

        ids, batch = gather(embeddings, labels)
        columns = memory.columns(batch)
        loss = head(embeddings, labels, miner(embeddings, labels, ids=ids, ref=columns), ref=columns)
        memory.update(*batch)

    With ids (rows of the catalog), an image is not compared with itself in an earlier batch. Update a memory
    always with ids or always without. Ids below 0, which `gather` makes where it gets none, are valid for one
    step and are not kept.

    All content is in buffers, so `state_dict` resumes exactly and `to` moves it.

    Args:
        size: the most embeddings in the memory.
        dim: d, the dimension of an embedding.
        label_columns: c, where labels are [n, c] for a relation of several labels; None where they are [n].
        dtype: the precision in which embeddings are kept.

    Raises:
        ValueError: a size, dim or label_columns below 1, or a dtype that is not floating-point.

    Example:
        >>> memory = CrossBatchMemory(size=3, dim=1)
        >>> for step in range(2):
        ...     memory.update(torch.tensor([[1.0], [2.0]]) + 10 * step, torch.tensor([0, 1]))
        >>> columns = memory.columns()
        >>> columns.embeddings.flatten().tolist(), columns.labels.tolist(), len(memory)
        ([2.0, 11.0, 12.0], [1, 0, 1], 3)

    Reference:
        Wang, Zhang, Huang & Scott, "Cross-batch memory for embedding learning", 2020.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    written: Tensor

    def __init__(
        self, size: int, dim: int, *, label_columns: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.size = as_int("CrossBatchMemory", "size", size, minimum=1)
        self.dim = as_int("CrossBatchMemory", "dim", dim, minimum=1)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize == 1:
            raise refusal(
                "CrossBatchMemory", "dtype", dtype, "a floating-point torch.dtype of 16 bits or more"
            )
        if label_columns is not None:
            label_columns = as_int("CrossBatchMemory", "label_columns", label_columns, minimum=1)
        self.label_columns = label_columns
        shape = (self.size,) if label_columns is None else (self.size, label_columns)
        # A ring buffer: the i-th row that was written, counted from 0, is at place i mod size.
        with allocated("CrossBatchMemory", size=self.size, dim=self.dim, label_columns=label_columns or 1):
            self.register_buffer("embeddings", torch.zeros(self.size, self.dim, dtype=dtype))
            self.register_buffer("labels", torch.zeros(shape, dtype=torch.int64))
            self.register_buffer("ids", torch.full((self.size,), _NOBODY))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        # (`written`, its version, its number, whether rows have ids): what the host knows without a read.
        self._known: tuple[Tensor, int, int, bool] | None = None

    def __len__(self) -> int:
        """How many embeddings are in the memory now."""
        return min(self._on_host()[0], self.size)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: versions of buffers mean nothing elsewhere."""
        return {**self.__dict__, "_known": None}

    def _on_host(self) -> tuple[int, bool]:
        """How many rows were ever written, and whether they have ids, by the place that is filled first.

        Read from the device only after somebody else changed the buffer, as `load_state_dict` does.
        """
        counted = not self.written.is_inference()  # such tensors have no version
        known = self._known
        if known is None or not counted or known[0] is not self.written or known[1] != self.written._version:
            number, first = torch.stack([self.written, self.ids[0]]).tolist()
            known = self.written, self.written._version if counted else 0, number, first != _NOBODY
            self._known = known
        return known[2], known[3]

    @torch.no_grad()
    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        ids: Shaped[Tensor, " n"] | None = None,
    ) -> None:
        """Put a batch, without its graph, in the place of the oldest rows.

        Of a batch of more than `size` rows the last ones are kept.

        Args:
            embeddings: [n, dim] floats of any precision, on the memory's device.
            labels: [n] integers or bools, or [n, label_columns].
            ids: [n] integers of 0 or more that name the image of each row; None, or all below 0, for none.

        Raises:
            ValueError: another shape or device, numbers that are not finite in the memory's precision, or
                ids now and none before, or the other way round.
        """
        with border("CrossBatchMemory.update"):
            labels = self._checked_labels(embeddings, labels)
            n, device = len(embeddings), self.embeddings.device
            rows = embeddings.to(self.embeddings.dtype)
            given = ids is not None and n > 0
            ids = (
                torch.full((n,), _NOBODY, device=device)
                if ids is None
                else whole_numbers(None, "ids", ids, n, device)
            )
            # One read for all that has to be looked at.
            looks = [rows.isfinite().all(), *([(ids >= 0).any(), (ids >= 0).all()] if given else [])]
            finite, *of_catalog = torch.stack(looks).tolist()
            if not finite:
                bad = ~rows.isfinite().all(1)
                shown = f"{int(bad.sum())} of {n} rows, the first is row {int(bad.nonzero()[0])}"
                raise Refusal("embeddings", shown, f"finite embeddings in {rows.dtype}")
            has_ids = self._checked_kind("ids", ids, *(of_catalog or (False, False)))
        number, had_ids = self._on_host()
        kept = slice(max(0, n - self.size), n)
        places = (number + torch.arange(n, device=device)[kept]) % self.size
        self.embeddings[places] = rows[kept]
        self.labels[places] = labels[kept]
        self.ids[places] = ids[kept].masked_fill(ids[kept] < 0, _NOBODY)
        self.written += n
        if not self.written.is_inference():
            self._known = self.written, self.written._version, number + n, has_ids if n else had_ids

    def columns(self, batch: References | None = None) -> References:
        """The embeddings in the memory, oldest first; with `batch`, its columns first, with their graph.

        Ties break to the lower column: to the batch, then to the older embedding. The tensors are copies, so
        a later `update` changes neither them nor a graph that uses them.

        Args:
            batch: columns with ids, as `gather` gives them.

        Returns:
            `References` [n + r, dim], r = `len(memory)`. Their ids are None where neither has any.

        Raises:
            ValueError: a batch without ids, of another dimension or device, or with ids that are rows of the
                catalog where the memory's are not, or the other way round. Ids on an accelerator are looked
                at without waiting, and the next call on it raises what was wrong with them.
        """
        number, has_ids = self._on_host()
        filled, oldest = min(number, self.size), number % self.size
        parts = [slice(oldest, filled), slice(oldest)]  # of a ring that is not full, the first is empty
        embeddings, labels, ids = (
            torch.cat([ring[part] for part in parts]) for ring in (self.embeddings, self.labels, self.ids)
        )
        if batch is None:
            return References(embeddings, labels, ids if filled and has_ids else None)
        with border("CrossBatchMemory.columns"):
            own_labels, own = self._checked_batch(batch)
        return batch._replace(
            embeddings=torch.cat([batch.embeddings, embeddings]),
            labels=torch.cat([own_labels, labels]),
            ids=torch.cat([own, ids]),
        )

    def reset(self) -> None:
        """Empty the memory."""
        self.written.zero_()

    def extra_repr(self) -> str:
        """The size, the dimension and how much is filled, for `print`."""
        return f"size={self.size}, dim={self.dim}, filled={len(self)}"

    def _checked_batch(self, batch: References) -> tuple[Int[Tensor, "n *c"], Int[Tensor, " n"]]:
        """The labels and the ids of columns that can stand beside the memory's."""
        if not isinstance(batch, References):
            raise Refusal("batch", type(batch).__name__, "References(embeddings, labels, ids)")
        labels = self._checked_labels(batch.embeddings, batch.labels, "batch.")
        if batch.ids is None:
            hint = "take ids and batch from gather(embeddings, labels), or name the catalog's rows"
            raise Refusal("batch.ids", None, "ids, so that no row of the batch meets itself", hint)
        ids = whole_numbers(None, "batch.ids", batch.ids, len(labels), self.embeddings.device)
        if len(ids) and batch.ids.device.type == "cpu":
            of_catalog = batch.ids >= 0
            self._checked_kind("batch.ids", batch.ids, bool(of_catalog.any()), bool(of_catalog.all()))
        elif len(ids):  # asked without waiting
            number, has_ids = self._on_host()
            expected = "all of 0 or more, or all below 0, as those that it holds"
            hint = "give ids always or never, or reset() it; the call that raises this was not run"
            late = Refusal("batch.ids", "those of an earlier call", expected, hint)
            agree = (ids >= 0) == (has_ids if number else ids[:1] >= 0)
            answer_later(agree.all(), late.named("CrossBatchMemory.columns"))
        return labels, ids

    def _checked_labels(self, embeddings: Any, labels: Any, prefix: str = "") -> Int[Tensor, "n *c"]:
        """The labels of a batch as int64, after its embeddings are checked but for what they hold.

        Args:
            embeddings: refused unless a dense tensor of floats [n, dim] on the device of the memory.
            labels: refused unless [n] or [n, label_columns].
            prefix: what stands before these names in a sentence.
        """
        name = f"{prefix}embeddings"
        if not isinstance(embeddings, Tensor):
            raise Refusal(name, type(embeddings).__name__, f"a tensor [n, {self.dim}]")
        if embeddings.device != self.embeddings.device:
            expected = f"the memory's device {self.embeddings.device}"
            raise Refusal(name, str(embeddings.device), expected, "move it with memory.to(device)")
        lacking = lack_of_data(embeddings)
        if lacking:
            raise Refusal(name, lacking, "a dense tensor with data")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim or not embeddings.is_floating_point():
            shown = f"{embeddings.dtype} of shape {tuple(embeddings.shape)}"
            raise Refusal(name, shown, f"floats of shape [n, {self.dim}]")
        labels = label_rows(None, f"{prefix}labels", labels, len(embeddings), self.labels.device)
        if labels.shape[1:] != self.labels.shape[1:]:
            shape = "n" if self.label_columns is None else f"n, {self.label_columns}"
            hint = "name the labels of a row in CrossBatchMemory(label_columns=)"
            raise Refusal(f"{prefix}labels", f"shape {tuple(labels.shape)}", f"shape [{shape}]", hint)
        return labels

    def _checked_kind(
        self, name: str, ids: Int[Tensor, " n"], any_of_catalog: bool, all_of_catalog: bool
    ) -> bool:
        """Whether ids are rows of the catalog; refused where some are and others are not, now or before."""
        if any_of_catalog != all_of_catalog:
            raise Refusal(name, ids.tolist(), "all of 0 or more, or all below 0")
        number, has_ids = self._on_host()
        if len(ids) and number and any_of_catalog != has_ids:
            kinds = "none, or below 0", "of 0 or more"
            expected = f"ids {kinds[not any_of_catalog]}, as all that it holds came with"
            hint = "give ids always or never, or reset() it"
            raise Refusal(name, kinds[any_of_catalog], expected, hint)
        return any_of_catalog
