"""Path traversal: refuse paths of a table that lead out of their root by `..`, links or absolute names."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np

from tercet.core.checks import Refusal, refusal

__all__ = ["inside", "leads_out", "refuse_leading_out", "refuse_outside"]


def inside(root: str | Path, path: str | Path) -> bool:
    """Whether `path`, with links resolved, is `root` or lies in it.

    Example:
        >>> inside("photos", "photos/../photos/a.jpg"), inside("photos", "photos/../a.jpg")
        (True, False)
    """
    top = os.path.realpath(root)
    try:
        real = os.path.realpath(path)
    except ValueError:  # no file can have such a name
        return False
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def leads_out(root: str | Path, name: str) -> bool:
    """Whether a relative path leads out of its root: by `..`, by a link, or by being absolute.

    A path without these costs one `lstat` for each of its parts.

    Args:
        root: the folder that the path starts from; it may be a link.
        name: the path, with forward slashes.

    Example:
        >>> leads_out("photos", "ant/1.jpg"), leads_out("photos", "../secret.jpg")
        (False, True)
    """
    parts, place = name.split("/"), os.fspath(root)
    if not os.path.isabs(name) and ".." not in parts:
        for part in parts:
            place = os.path.join(place, part)
            if os.path.islink(place):
                break
        else:
            return False
    return not inside(root, os.path.join(root, name))


def refuse_leading_out(root: str | Path, name: str) -> None:
    """Refuse an image path that leads out of its root.

    Args:
        root: the folder that the path starts from.
        name: the path, with forward slashes.

    Raises:
        PermissionError: it leads out. No ValueError, which would mark an undecodable image.
    """
    if leads_out(root, name):
        expected = f"a path that stays in the root {root}"
        hint = "read table or manifest with outside_root=True (--outside-root) if that is meant"
        raise PermissionError(str(refusal("Catalog.file", "row", name, expected, hint)))


def refuse_outside(path: str | Path, root: str | Path, names: np.ndarray, rows: bool) -> None:
    """Refuse a table or manifest with a path that leads out of its root by `..` or by being absolute.

    Links are checked when an image is opened (`refuse_leading_out`), so that no file is accessed here.

    Args:
        path: the table or manifest.
        root: the folder that the paths start from.
        names: str object array [n], the paths, with forward slashes.
        rows: whether the paths are in the order of the rows, so that the message can name the row.

    Raises:
        ValueError: the first such path, its row, how many there are, and what to do.

    Example:
        >>> names = np.array(["a.jpg", "b/../c.jpg"], dtype=object)
        >>> refuse_outside("t.csv", "photos", names, rows=True)
    """
    names = names.tolist()
    joined = "\n".join(names)
    if ".." not in joined and not joined.startswith("/") and "\n/" not in joined:  # true of most tables
        return
    top = os.path.join(os.path.abspath(root), "")

    @cache
    def of_another_name(folder: str) -> bool:  # the root by another name, such as a link to it
        return inside(root, folder)

    outside = []
    for row, name in enumerate(names):
        absolute = name[:1] == "/"
        if ".." not in name and (not absolute or name.startswith(top)):
            continue
        place = os.path.normpath(os.path.join(top, name))
        if os.path.join(place, "").startswith(top) or (absolute and of_another_name(os.path.dirname(place))):
            continue
        outside.append(row)
    if outside:
        first = names[outside[0]]
        where = f"row {outside[0] + 1} names" if rows else "it names"
        more = f" and {len(outside) - 1:,} more that do not" if len(outside) > 1 else ""
        hint = "pass outside_root=True (--outside-root) if that is meant"
        if len(outside) == len(names) and all(map(os.path.isabs, names)):
            common = os.path.commonpath(list(map(os.path.dirname, names)))
            if common != os.sep:
                hint = f"pass root={common!r}, the folder above them, or outside_root=True (--outside-root)"
        expected = f"paths that stay in the root {str(root) or '.'}"
        raise Refusal("path", str(path), expected, f"{where} {first!r}{more}; {hint}")
