"""Roots: the folder that the paths of a table start from, and lead out of only where that is asked for."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np

from tercet.core.checks import refusal

__all__ = ["inside", "leads_out", "refuse_leading_out", "refuse_outside"]


def inside(root: str | Path, path: str | Path) -> bool:
    """Whether `path`, its links followed, is `root` or lies in it.

    Example:
        >>> inside("photos", "photos/../photos/a.jpg"), inside("photos", "photos/../a.jpg")
        (True, False)
    """
    top = os.path.realpath(root)
    try:
        real = os.path.realpath(path)
    except ValueError:  # a name that no file can have
        return False
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def leads_out(root: str | Path, name: str) -> bool:
    """Whether a path leads out of the root that it starts from: by dots, by a link, or as an absolute one.

    One `lstat` for each part of a path without any of them.

    Args:
        root: a folder; it may be a link itself.
        name: a path from there, with forward slashes.

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
    """Refuse to open an image whose path leads out of its root.

    Raises:
        PermissionError: it does. Not a ValueError: it must not pass for an image that does not decode.
    """
    if leads_out(root, name):
        expected = f"a path that stays in the root {root}"
        hint = "read table or manifest with outside_root=True (--outside-root) if that is meant"
        raise PermissionError(str(refusal("Catalog.file", "row", name, expected, hint)))


def refuse_outside(caller: str, path: str | Path, root: str | Path, names: np.ndarray, rows: bool) -> None:
    """Refuse a table or manifest that names a path which leads out of its root, as far as the name tells.

    Links are looked at where a file is opened: a table of many images is read without looking for them.

    Args:
        caller: who reads it, for the sentence.
        path: the table or manifest.
        root: the folder that the paths start from.
        names: str object array [n], the paths, with forward slashes.
        rows: whether the paths are in the order of the rows, so that the row of the first can be told.

    Raises:
        ValueError: the row and the path, how many there are, and the way out.

    Example:
        >>> names = np.array(["a.jpg", "b/../c.jpg"], dtype=object)
        >>> refuse_outside("read_catalog", "t.csv", "photos", names, rows=True)
    """
    names = names.tolist()
    joined = "\n".join(names)
    if ".." not in joined and not joined.startswith("/") and "\n/" not in joined:  # of most tables
        return
    top = os.path.join(os.path.abspath(root), "")

    @cache
    def of_another_name(folder: str) -> bool:  # of the root, such as one that a link makes
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
        raise refusal(caller, "path", str(path), expected, f"{where} {first!r}{more}; {hint}")
