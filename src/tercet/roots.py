"""Whether a file lies in a folder, through whatever dots and links its path leads."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["inside"]


def inside(root: str | Path, path: str | Path) -> bool:
    """Whether `path`, its links followed, is `root` or lies in it.

    Example:
        >>> inside("photos", "photos/../photos/a.jpg"), inside("photos", "photos/../a.jpg")
        (True, False)
    """
    top = os.path.realpath(root)
    real = os.path.realpath(path)
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)
