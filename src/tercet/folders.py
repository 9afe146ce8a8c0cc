"""A walk through a folder of class folders: every image below it, and why each other file is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["IMAGE_SUFFIXES", "LeftOut", "decodable", "walk_images"]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""The file name suffixes that `scan_folder` takes for images, in lower case."""


class LeftOut(NamedTuple):
    """A file or folder that is not in the catalog, and why.

    Args:
        path: relative to the catalog's root, with forward slashes.
        reason: a phrase, the same for all of its kind, such as "not an image".
    """

    path: str
    reason: str


def walk_images(top: Path, suffixes: frozenset[str], left_out: list[LeftOut]) -> Iterator[tuple[str, ...]]:
    """The parts of the path of every image below `top`, in no order; what is no image goes into `left_out`.

    Args:
        top: the folder to walk; links are followed, loops are not.
        suffixes: what counts as an image, in lower case.
        left_out: is extended.

    Yields:
        ("class", …, "image.jpg"), at least two parts.
    """
    pending: list[tuple[tuple[str, ...], frozenset[str]]] = [((), frozenset())]
    while pending:
        folder, ancestors = pending.pop()
        here = "/".join(folder)
        real_path = os.path.realpath(top / here)
        if real_path in ancestors:
            left_out.append(LeftOut(here, "link back to a folder above it"))
            continue
        try:
            with os.scandir(top / here) as listing:
                entries = list(listing)
        except OSError as error:
            left_out.append(LeftOut(here or ".", f"folder cannot be read: {error.strerror}"))
            continue
        images = subfolders = 0
        for entry in entries:
            parts = (*folder, entry.name)
            reason = _why_not(entry, folder, suffixes)
            if reason == "folder":
                subfolders += 1
                pending.append((parts, ancestors | {real_path}))
            elif reason:
                shown = "/".join(parts).encode("utf-8", "backslashreplace").decode()
                left_out.append(LeftOut(shown, reason))
            else:
                images += 1
                yield parts
        if folder and not images and not subfolders:
            left_out.append(LeftOut(here, "folder without an image"))


def _why_not(entry: os.DirEntry[str], folder: tuple[str, ...], suffixes: frozenset[str]) -> str:
    """Why an entry is no image of a class: "folder" to be entered, a reason, or "" for an image."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "name is not valid UTF-8"
    try:
        if entry.is_dir():
            return "hidden folder" if entry.name.startswith(".") else "folder"
    except OSError as error:  # a link that leads to itself
        return f"link cannot be followed: {error.strerror}"
    if entry.name.startswith("."):
        return "hidden file"
    if os.path.splitext(entry.name)[1].lower() not in suffixes:
        return "not an image"
    try:
        if not entry.is_file():
            return "link to nothing" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return f"link cannot be followed: {error.strerror}"
    return "" if folder else "image outside any class folder"


def decodable(
    top: Path, found: list[tuple[str, ...]], left_out: list[LeftOut], progress: bool
) -> list[tuple[str, ...]]:
    """Those of `found` that decode, in their order; the others go into `left_out`.

    Args:
        top: the folder that the parts start from.
        found: parts of the paths of images.
        left_out: is extended.
        progress: show a progress bar.
    """
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    from tercet.images import why_unreadable

    def verdict(parts: tuple[str, ...]) -> str | None:
        return why_unreadable(top.joinpath(*parts))

    console, kept = Console(stderr=True), []
    # Threads are enough: OpenCV decodes outside the interpreter lock. A chunk at a time, so that neither
    # memory nor the wait after an interrupt grows with the number of images.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = (
            reason
            for start in range(0, len(found), 1024)
            for reason in pool.map(verdict, found[start : start + 1024])
        )
        shown = track(verdicts, "verifying images", len(found), console=console, disable=not progress)
        for parts, reason in zip(found, shown):
            if reason:
                left_out.append(LeftOut("/".join(parts), reason))
            else:
                kept.append(parts)
    return kept
