"""A model over batches of images: in eval mode, with its views and precision, every output checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tercet.core.checks import Refusal, as_choice, escaped
from tercet.pairwise.distances import cosine

__all__ = ["PRECISIONS", "ModelRun", "as_views", "device_of_modules", "evaluating"]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def as_views(views: Any) -> list[Callable[[Any], Any]]:
    """The views that an option names, as functions of a batch of images.

    Args:
        views: "flip", a list of callables, or None.

    Raises:
        ValueError: another name, or no callables.

    Example:
        >>> [view(torch.arange(3)[None]).tolist() for view in as_views("flip")]
        [[[0, 1, 2]], [[2, 1, 0]]]
    """
    if views is None:
        return [_same]
    if isinstance(views, str):
        as_choice(None, "views", views, ("flip",))
        return [_same, _mirrored]
    if not isinstance(views, (list, tuple)) or not views or not all(map(callable, views)):
        raise Refusal("views", views, '"flip", a list of callables, or None')
    return list(views)


def _same(images: Any) -> Any:
    return images


def _mirrored(images: Any) -> Any:
    return images.flip(-1)


def device_of_modules(modules: Sequence[nn.Module]) -> torch.device:
    """Where the parameters and buffers of the modules are; the CPU where there are none.

    Example:
        >>> device_of_modules([nn.Linear(1, 1)])
        device(type='cpu')
    """
    tensors = (one for module in modules for one in chain(module.parameters(), module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode in the block, and give each module in them its mode back.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating([net]):
        ...     print(net.training, net[0].training)
        False False
        >>> [module.training for module in net.modules()]
        [True, True, False]
    """
    modes = [(module, module.training) for outer in modules for module in outer.modules()]
    trained: list[nn.Module] = []
    try:
        for module in modules:
            with suppress(NotImplementedError):  # a program of torch.export is what it was exported as
                was = module.training
                module.eval()
                trained += [module] * was
        yield
    finally:
        for module in trained:
            module.train()  # it may do more than to set the modes
        for module, mode in modes:
            module.training = mode


class ModelRun:
    """A model with its views and its precision.

    Args:
        model: a callable that gives [b, d] for images.
        views: functions of a batch of images; the embedding is the mean over them.
        device: where images are moved to.
        precision: a key of `PRECISIONS`.
        normalize: divide each embedding by its length.
        dtype: of the numbers that are kept.
        name: the path of a row, for messages.

    Example:
        >>> run = ModelRun(lambda x: x.mean((2, 3)), [_same], torch.device("cpu"), "float32", True,
        ...                np.dtype("float16"), str)
        >>> run.embedded(torch.ones(1, 4, 2, 2), [0], 0)
        array([[0.5, 0.5, 0.5, 0.5]], dtype=float16)
    """

    def __init__(
        self,
        model: Any,
        views: list[Any],
        device: torch.device,
        precision: str,
        normalize: bool,
        dtype: np.dtype,
        name: Callable[[int], str],
    ) -> None:
        self._model, self._views, self._device = model, views, device
        self._precision, self._normalize = PRECISIONS[precision], normalize
        self._dtype, self._name = dtype, name

    @torch.no_grad()
    def embedded(self, images: Any, rows: list[int], width: int) -> np.ndarray:
        """The embeddings [b, d] of a batch of images.

        Args:
            images: the batch.
            rows: their rows, for messages.
            width: d, as of earlier batches; 0 for the first.

        Raises:
            ValueError: the model gives something else than finite numbers [b, d].
        """
        images = images.to(self._device, non_blocking=True)
        lower = self._precision
        mean: Any = None
        with nullcontext() if lower is None else torch.autocast(self._device.type, lower):
            for view in self._views:
                try:
                    found = self._model(view(images))
                except Exception as error:
                    shape = list(getattr(images, "shape", ()))
                    error.add_note(f"embed: in the model, for images {shape} of rows {rows[0]} to {rows[-1]}")
                    raise
                _refuse_other_shape(found, len(rows), width)
                width = found.shape[1]
                mean = found.float() if mean is None else mean + found.float()
        mean = mean / len(self._views) if len(self._views) > 1 else mean
        mean = cosine.prepare(mean) if self._normalize else mean
        exact = mean.cpu().numpy()
        with np.errstate(over="ignore"):
            kept = exact.astype(self._dtype)
        self._refuse_not_finite(exact, kept, rows)
        return kept

    def _refuse_not_finite(self, exact: np.ndarray, kept: np.ndarray, rows: list[int]) -> None:
        wrong = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        if not wrong.size:
            return
        first = wrong[0]
        place = f"for {escaped(self._name(rows[first]))}"
        if np.isfinite(exact[first]).all():
            most = float(np.abs(exact[first]).max())
            expected = f"numbers up to {np.finfo(self._dtype).max:g}, the largest of {self._dtype}"
            raise Refusal(
                "dtype", self._dtype.name, expected, f'{most:g} is one {place}; pass dtype="float32"'
            )
        what = "NaN" if np.isnan(exact[first]).any() else "infinity"
        hint = 'with precision="fp16" numbers may overflow; "bf16" or "float32" has a larger range'
        hint = f"; {hint}" if self._precision is torch.float16 else ""
        raise Refusal("model", f"it gives {what}", "finite numbers", f"{what} is among those {place}{hint}")


def _refuse_other_shape(found: Any, count: int, width: int) -> None:
    """Refuse what is not a tensor of floats [count, width], with any width where it is 0."""
    expected = f"a model that gives a tensor of floats [{count}, d] for {count} images"
    if not isinstance(found, Tensor):
        hint = "wrap it in a function that takes the embeddings out of it"
        raise Refusal("model", f"it gives a {type(found).__name__}", expected, hint)
    shape = list(found.shape)
    if not found.is_floating_point() or found.ndim != 2 or shape[0] != count or not shape[1]:
        hint = "flatten what it gives, or take the mean over the other axes" if found.ndim > 2 else ""
        raise Refusal("model", f"it gives {str(found.dtype).removeprefix('torch.')} {shape}", expected, hint)
    if width not in (0, shape[1]):
        raise Refusal("model", f"it gives {shape}", f"{width} numbers an image, as of earlier ones")
