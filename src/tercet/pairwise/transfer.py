"""Numbers on their way between the host and an accelerator, in as few copies as can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["SentDown", "bits_of", "number_of", "sent_up"]

_WHOLE = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def sent_up(values: np.ndarray, device: torch.device | str) -> Tensor:
    """A tensor of these numbers on the device; to an accelerator the copy is asynchronous.

    Example:
        >>> sent_up(np.arange(3), torch.device("cpu"))
        tensor([0, 1, 2])
    """
    here, kind = torch.from_numpy(values), torch.device(device).type
    if kind != "cpu" and hasattr(getattr(torch, kind, None), "Event"):
        here = here.pin_memory()  # from other memory a copy waits
    return here.to(device, non_blocking=True)


class SentDown:
    """Numbers on their way to the host: the copy is asynchronous, and only who reads them waits for it.

    Args:
        values: on any device.

    Example:
        >>> sent = SentDown(torch.tensor([1.0, 2.0]))
        >>> sent.has_arrived(), sent.read()
        (True, [1.0, 2.0])
    """

    def __init__(self, values: Shaped[Tensor, "*s"]) -> None:
        kind = values.device.type
        module: Any = None if kind == "cpu" else getattr(torch, kind, None)
        has_events = hasattr(module, "Event")
        self._here = torch.empty(values.shape, dtype=values.dtype, pin_memory=has_events)
        self._here.copy_(values, non_blocking=True)
        self._event: Any = None
        if has_events:
            self._event = module.Event()
            self._event.record()

    def has_arrived(self) -> bool:
        """Whether reading does not wait."""
        return self._event is None or self._event.query()

    def read(self) -> Any:
        """The numbers, as `Tensor.tolist` gives them."""
        if self._event is not None:
            self._event.synchronize()
        return self._here.tolist()


def bits_of(number: Float[Tensor, ""]) -> Int[Tensor, ""]:
    """A number's bits as a whole one, without a launch: so it is read in one tensor with counts."""
    return number.view(_WHOLE[number.dtype.itemsize])


def number_of(bits: int, dtype: torch.dtype) -> float:
    """The number that has these bits.

    Example:
        >>> number_of(int(bits_of(torch.tensor(2.5))), torch.float32)
        2.5
    """
    return float(torch.tensor(bits, dtype=_WHOLE[dtype.itemsize]).view(dtype))
