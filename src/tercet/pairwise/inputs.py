"""Checks of torch inputs: tensors with data, devices, tables that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tercet.core.checks import refusal

__all__ = ["allocated", "device_of", "lack_of_data", "tensor_of"]


def lack_of_data(values: Tensor) -> str:
    """Which kind of tensor without a number at each place this is; empty where it is an ordinary one.

    Example:
        >>> lack_of_data(torch.ones(2)), lack_of_data(torch.ones(2, device="meta"))
        ('', 'torch.strided on meta')
    """
    if values.is_nested:
        return "a nested tensor"
    if values.is_quantized:
        return f"{values.dtype}, quantized"
    if values.layout != torch.strided or values.is_meta:
        return f"{values.layout} on {values.device}"
    return ""


def device_of(caller: str, device: Any) -> torch.device:
    """`device` as torch names it, with its number.

    Raises:
        ValueError: no device, or one that this machine does not have.

    Example:
        >>> device_of("MiningLoader", "cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=torch.device(device)).device
    except Exception as error:  # an unknown kind, one that is not here, or no name
        said = str(error).partition("\n")[0]
        raise refusal(caller, "device", device, 'a device, such as "cpu" or "cuda:0"', said) from None


@contextmanager
def allocated(caller: str, **sizes: int) -> Iterator[None]:
    """A context in which a failed allocation is reported with these sizes.

    Raises:
        ValueError: torch cannot count, or finds no memory for, so many numbers.

    Example:
        >>> with allocated("ArcFace", num_classes=2, dim=3):
        ...     proxies = torch.zeros(2, 3)
    """
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, MemoryError):
        names, shape = ", ".join(sizes), " × ".join(map(str, sizes.values()))
        raise refusal(caller, names, shape, "a table that fits into memory") from None


def tensor_of(values: Any) -> Any:
    """A numpy array of numbers as a tensor that shares its memory where torch can; anything else unchanged.

    Example:
        >>> tensor_of(np.ones(2, ">f4")).dtype
        torch.float32
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        return values
    native = values.dtype.newbyteorder("=")
    native = np.dtype(np.float64) if native.itemsize > 8 else native
    return torch.from_numpy(np.require(values, native, ["W", "C"]))
