"""One training step over a batch that does not fit into memory: its gradient is cached at the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tercet.core.checks import refusal, with_length
from tercet.core.indices import References
from tercet.losses.base import Head
from tercet.losses.proxy import ProxyHead
from tercet.miners.base import Miner
from tercet.pairwise.inputs import answer_later, device_of, raise_late
from tercet.pairwise.relations import label_rows, whole_numbers

__all__ = ["CachedStep", "cached_backward"]

_CALLER = "cached_backward"
_DRIFT = 0.05  # relative; another order of summation stays far below it, another dropout far above


class CachedStep(NamedTuple):
    """What `cached_backward` computed, without graph.

    Args:
        loss: float, a scalar.
        embeddings: float [n, d], those of all chunks.
        labels: int64 [n].
        ids: int64 [n], or None.
        mined: `Triplets` or `Pairs` of rows of the batch, or None without a miner.
        ref: the `References` whose columns `mined` names, or None for the batch itself.

    Example:
        >>> step = CachedStep(torch.tensor(0.5), torch.eye(2), torch.arange(2), None, None, None)
        >>> step.loss.item()
        0.5
    """

    loss: Any
    embeddings: Any
    labels: Any
    ids: Any = None
    mined: Any = None
    ref: Any = None


def cached_backward(
    model: nn.Module,
    chunks: Iterable[Any],
    head: Any,
    *,
    miner: Any = None,
    ref: References | Callable[..., Any] | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    device: Any = None,
) -> CachedStep:
    """Add the gradients of one step over all chunks to `.grad`, in the memory that one chunk takes.

        ∂L/∂θ = Σ_c (∂x_c/∂θ)ᵀ ∂L/∂x_c,  x_c the embeddings of chunk c

    1. Embed chunk by chunk, without a graph.
    2. Mine and compute the loss over all embeddings, and its gradient ∂L/∂x by them. The gradients of a
       head's own parameters are computed here.
    3. Embed each chunk again, with a graph, and continue backward from its part of ∂L/∂x.

    The cost is a second forward pass. It repeats the first:

    - It draws the same numbers from torch's generators, on the CPU and on the devices of the model and the
      images. For this the global generators are read and set; they are left as one forward pass over the
      chunks leaves them. A model that draws from other generators cannot be repeated, and is refused.
    - It starts from the same buffers, so running statistics are updated once. In training mode BatchNorm
      normalises each chunk by itself: that is the one difference from a batch in one piece.
    - Under autocast both passes run as the context says, and gradients are computed outside of it.

    On an accelerator the comparison of the two passes is not waited for: the next call of this library on the
    device raises what it found, and at most the miner reads the device.

    Under DDP the ranks exchange gradients with the last chunk; give each rank equally many chunks.

        step = cached_backward(model, islice(loader, 8), head, miner=miner)
        optimizer.step()

    Args:
        model: a module that gives embeddings [n, d] for images.
        chunks: (images, labels) or (images, labels, rows) each, as a loader gives them; `rows` become ids.
            All are in memory at once: take from a loader as many as one step needs.
        head: a loss head, called once with all embeddings; its loss is a scalar.
        miner: a miner, or any callable with its arguments; None for all pairs or triplets. Pass the step to
            one that draws by `functools.partial(miner, step=step)`.
        ref: the columns as `References`; None for the batch itself. Or a function of (embeddings, labels,
            ids) that gives (ids, references) with a graph: `gather`, or one that adds those of a memory.
        backward: called with the loss in place of `loss.backward()`, for instance
            `lambda loss: scaler.scale(loss).backward()`.
        device: where images and labels are moved to, chunk by chunk; None leaves them where they are.

    Returns:
        `CachedStep`: the loss, the embeddings, labels and ids, and what was mined.

    Raises:
        ValueError: a model that is no `nn.Module`, no chunks or chunks of another form, a loss that is no
            scalar, or a second pass that gives other embeddings than the first (on an accelerator, that of
            an earlier call).

    Example:
        >>> from tercet.losses.triplet import TripletMargin
        >>> from tercet.miners.hard import BatchHard
        >>> images, labels = torch.tensor([[0.0], [1.0], [0.4], [1.4]]), torch.tensor([0, 1, 0, 1])
        >>> model = nn.Linear(1, 1)
        >>> chunks = list(zip(images.split(3), labels.split(3)))
        >>> step = cached_backward(model, chunks, TripletMargin(margin=1.0), miner=BatchHard())
        >>> step.mined.count, model.weight.grad.shape
        (4, torch.Size([1, 1]))

    Reference:
        Gao, Zhang, Han & Callan, "Scaling deep contrastive learning batch size under memory limited setup",
        2021.
    """
    _refuse_others(model, head, miner, ref, backward)
    device = None if device is None else device_of(_CALLER, device)
    images, labels, ids = _parts(chunks)
    # 1. All embeddings without a graph. The buffers are restored for the second pass.
    with torch.no_grad(), _unchanged(model):
        first = [_Chunk(model, one, device) for one in images]
    # Older torch would reuse in the second pass weights that autocast has cast without a graph.
    torch.clear_autocast_cache()
    # 2. The loss over all of them: its graph ends at this leaf.
    embeddings = torch.cat([chunk.embeddings for chunk in first]).requires_grad_()
    sizes = [len(chunk.embeddings) for chunk in first]
    where = embeddings.device
    if where.type != "cpu":
        raise_late(where)  # what an earlier step was sent to ask
    step = _loss(
        embeddings,
        _joined("labels", labels, sizes),
        None if ids is None else _joined("rows", ids, sizes),
        head,
        miner,
        ref,
    )
    with torch.autocast(where.type, enabled=False):
        backward(step.loss)
    upstream = _gradient(embeddings).split(sizes)
    # 3. Each chunk again, with a graph, from its part of the gradient.
    no_sync = getattr(model, "no_sync", nullcontext)  # of DDP: gradients are exchanged with the last chunk
    for c, (chunk, grad) in enumerate(zip(first, upstream, strict=True)):
        with no_sync() if c < len(first) - 1 else nullcontext():
            again = chunk.again(model, c)
            if again.requires_grad:
                with torch.autocast(where.type, enabled=False):
                    torch.autograd.backward(again, grad)
    if step.ref is not None:
        step = step._replace(ref=step.ref._replace(embeddings=step.ref.embeddings.detach()))
    return step._replace(loss=step.loss.detach(), embeddings=embeddings.detach())


def _refuse_others(model: Any, head: Any, miner: Any, ref: Any, backward: Any) -> None:
    """Refuse a model, head, miner, ref or backward of another kind than `cached_backward` takes."""
    if not isinstance(model, nn.Module):
        hint = "wrap a function in one that holds its modules, so that their buffers are found"
        raise refusal(_CALLER, "model", type(model).__name__, "an nn.Module", hint)
    for name, part in {"head": head, "miner": head if miner is None else miner, "backward": backward}.items():
        if not callable(part):
            raise refusal(_CALLER, name, part, "something to call with embeddings and labels")
    if not (ref is None or callable(ref) or isinstance(ref, References)):
        raise refusal(_CALLER, "ref", type(ref).__name__, "References, or a function that gives them")


def _gradient(embeddings: Tensor) -> Float[Tensor, "n d"]:
    """The gradient of the loss by the embeddings, 0 where the loss does not depend on them."""
    if embeddings.grad is None:
        return torch.zeros_like(embeddings)
    if embeddings.grad.requires_grad:
        expected = "a call without create_graph=True, since chunks are differentiated once"
        raise refusal(_CALLER, "backward", "create_graph=True", expected, "take the whole batch in one piece")
    return embeddings.grad


def _parts(chunks: Iterable[Any]) -> tuple[list[Any], list[Any], list[Any] | None]:
    """The chunks' images, labels and ids; None where no chunk has ids."""
    if not isinstance(chunks, Iterable):
        raise refusal(_CALLER, "chunks", chunks, "(images, labels) or (images, labels, rows) for each chunk")
    chunks = list(chunks)
    for chunk in chunks:
        if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
            expected = "(images, labels) or (images, labels, rows) in each"
            raise refusal(_CALLER, "chunks", with_length(chunk), expected)
    with_rows = sum(len(chunk) == 3 for chunk in chunks)
    if not chunks or with_rows not in (0, len(chunks)):
        shown = f"{len(chunks)} chunks, {with_rows} with rows"
        raise refusal(_CALLER, "chunks", shown, "1 or more, all with rows or all without")
    images, labels, *ids = map(list, zip(*chunks, strict=True))
    return images, labels, ids[0] if ids else None


def _joined(argument: str, values: list[Any], sizes: list[int]) -> Int[Tensor, "n *c"]:
    """The labels or the ids of all chunks, each checked against the size of its chunk, where the first is."""
    check = label_rows if argument == "labels" else whole_numbers
    where = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
    return torch.cat([check(_CALLER, argument, v, n, where) for v, n in zip(values, sizes, strict=True)])


def _loss(
    embeddings: Tensor, labels: Tensor, ids: Int[Tensor, " n"] | None, head: Any, miner: Any, ref: Any
) -> CachedStep:
    """The loss over all embeddings, with a graph back to them and no further.

    Labels and ids that are on the host stay there for a miner or head of this library, which then knows
    without a read how many positives there are; others get them on the embeddings' device.
    """
    where = embeddings.device
    near, sent = (labels, ids), where.type != "cpu"  # down to the host, the numbers have to have arrived
    labels = labels.to(where, non_blocking=sent)
    ids = None if ids is None else ids.to(where, non_blocking=sent)
    if ref is not None and not isinstance(ref, References):
        given = ref(embeddings, labels, ids)
        if not isinstance(given, tuple) or len(given) != 2:
            raise refusal(_CALLER, "ref", with_length(given), "a function that gives (ids, references)")
        ids, ref = given
        near = near[0], ids
    columns = {} if ref is None else {"ref": ref}

    def call(part: Any, x: Tensor) -> Any:
        y, i = near if isinstance(getattr(part, "func", part), (Miner, Head, ProxyHead)) else (labels, ids)
        return part(x, y, **columns, **({} if i is None else {"ids": i}))

    if miner is None:
        mined, loss = None, call(head, embeddings)
    else:
        mined = call(miner, embeddings.detach())
        loss = head(embeddings, labels, mined, **columns)
    if not isinstance(loss, Tensor) or loss.ndim:
        shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise refusal(_CALLER, "head", shown, "a head whose loss is a scalar")
    return CachedStep(loss, embeddings, labels, ids, mined, ref)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore every buffer at the end, also one that forward replaced by another tensor."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # DDP notes after each forward whether the next one has to copy the buffers of rank 0.
    shares = getattr(model, "require_forward_param_sync", None)
    try:
        yield
    finally:
        for module, name, buffer, value in kept:
            setattr(module, name, buffer.copy_(value))
        if shares is not None:
            model.require_forward_param_sync = shares


class _Chunk:
    """A chunk that was embedded without a graph, and the state of the generators to embed it again.

    Args:
        model: the model.
        images: those of the chunk.
        device: where the images are moved to; None for where they are.
    """

    def __init__(self, model: nn.Module, images: Any, device: Any) -> None:
        self.source, self.device = images, device
        images = self._images()
        tensors = [*model.parameters(), *model.buffers(), *([images] if isinstance(images, Tensor) else [])]
        devices = {tensor.device for tensor in tensors} - {torch.device("cpu")}
        self.cpu_state = torch.get_rng_state()
        self.states = {d: torch.get_device_module(d).get_rng_state(d) for d in devices}
        self.embeddings = _embedded(model, images)

    def again(self, model: nn.Module, number: int) -> Float[Tensor, "n d"]:
        """The same embeddings with a graph. The generators are left as they are now.

        Raises:
            ValueError: other embeddings than the first time.
        """
        kind = next((device.type for device in self.states), "cuda")
        with torch.random.fork_rng(list(self.states), device_type=kind):
            torch.set_rng_state(self.cpu_state)
            for device, state in self.states.items():
                torch.get_device_module(device).set_rng_state(state, device)
            again = _embedded(model, self._images())
        shown = f"other embeddings for chunk {number} in the second pass"
        hint = "let it draw from torch's global generators alone, and not write into its images"
        here = again.device.type == "cpu"
        if not here and again.shape == self.embeddings.shape:
            shown += " of an earlier call"
            hint += "; the call that raises this was not run"
            error = refusal(_CALLER, "model", shown, "the same embeddings twice", hint)
            answer_later(_alike(again.detach(), self.embeddings), error)
        elif again.shape != self.embeddings.shape or not bool(_alike(again.detach(), self.embeddings)):
            raise refusal(_CALLER, "model", shown, "the same embeddings twice", hint)
        return again

    def _images(self) -> Any:
        """The images on the device, moved anew each time: so it has those of one chunk only."""
        if self.device is not None and isinstance(self.source, Tensor):
            return self.source.to(self.device, non_blocking=True)
        return self.source


def _embedded(model: nn.Module, images: Any) -> Float[Tensor, "n d"]:
    out = model(images)
    if not isinstance(out, Tensor) or out.ndim != 2:
        shown = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise refusal(_CALLER, "model", shown, "a model that gives a tensor [n, d]")
    return out


def _alike(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Bool[Tensor, ""]:
    """Whether two embeddings of a chunk are equal up to rounding, on their device."""
    drift, size = (torch.linalg.vector_norm(v.float()) for v in (x - y, y))
    return ~(drift > _DRIFT * size)  # NaN in both passes counts as alike
