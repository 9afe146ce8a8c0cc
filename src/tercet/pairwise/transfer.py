"""Numbers on their way between the host and an accelerator, in as few copies as can be."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["bits_of", "number_of", "sent_up"]

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
