"""tercet decides which images meet: P×K batches, triplets, pairs and hard negatives for metric learning.

The public names are listed in `__init__.pyi` and load on first use: `import tercet` is quick and leaves torch
unloaded.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("tercet")
    if name == "distributed":  # the old place of `gather`, which no list names
        return import_module("tercet.distributed")
    if name not in __all__:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    return _load(name)
