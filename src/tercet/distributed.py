"""The old place of `tercet.gather`; it goes with version 0.3."""

import warnings
from typing import Any

from tercet.training import distributed as _place


def __getattr__(name: str) -> Any:
    if name not in _place.__all__:
        raise AttributeError(f"module 'tercet.distributed' has no attribute {name!r}")
    instead = "tercet.gather" if name == "gather" else f"tercet.training.distributed.{name}"
    warnings.warn(f"tercet.distributed.{name} is now {instead}", DeprecationWarning, stacklevel=2)
    return getattr(_place, name)
