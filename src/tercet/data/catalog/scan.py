"""`scan_folder`: the images below a folder of class folders, and why each other file is none."""

from __future__ import annotations

import heapq
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tercet.core.checks import as_bool, as_int, as_path, as_strings, escaped, refusal
from tercet.data.catalog.catalog import Catalog, LeftOut
from tercet.data.io.images import IMAGE_SUFFIXES, MAX_PIXELS

__all__ = ["MAX_FILES", "ambiguous_names", "decodable", "scan_folder", "walk_images"]

MAX_FILES = 10**8
"""The most files and folders that a scan visits by default: a link may lead to an entire disk."""


def scan_folder(
    root: str | Path,
    *,
    class_depth: int | None = None,
    suffixes: Iterable[str] = IMAGE_SUFFIXES,
    verify: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_files: int = MAX_FILES,
    progress: bool = False,
) -> Catalog:
    """The catalog of a folder of class folders: every image below a folder, sorted by path.

    A folder that holds images is a class, named by its whole path below `root`; where classes lie deeper
    than the first level, `groups["parent"]` names the folder above each, for use as a super-label.
    Paths are sorted by their parts as plain strings, so on a flat tree the class numbers are those of
    torchvision's ImageFolder.

    Links are followed, also out of `root`: trees of links into a store are common. Each folder is entered
    once, by its own name or by the first link to it, so loops of links end.

    Args:
        root: the folder.
        class_depth: a class is named by its first `class_depth` folders and contains everything below them.
            None names it by its full path, with a warning where folders of one name become several classes.
        suffixes: the suffixes of images, in lower case; those of files are compared in any case.
        verify: decode every image, in parallel, and leave out those that do not decode.
        max_pixels: with `verify`, the most pixels of an image.
        max_files: the most files and folders below `root`.
        progress: show a progress bar while verifying.

    Returns:
        The catalog; its `left_out` lists each file or folder that is not in it, with the reason.

    Raises:
        ValueError: no such folder, no image in any class folder, or more files than `max_files`.

    Example:
        >>> import pathlib
        >>> for name in ("ant/1.JPG", "ant/2.jpg", "bee/x y.png", "bee/notes.txt"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"")
        >>> catalog = scan_folder("photos")
        >>> catalog, catalog.labels.tolist(), catalog.left_out_counts()
        (Catalog(3 images, 2 classes, 1 left out), [0, 0, 1], {'not an image': 1})
    """
    top = as_path("scan_folder", "root", root)
    verify, progress = as_bool("scan_folder", "verify", verify), as_bool("scan_folder", "progress", progress)
    if not top.is_dir():
        raise refusal("scan_folder", "root", str(root), "an existing folder")
    if class_depth is not None:
        class_depth = as_int("scan_folder", "class_depth", class_depth, minimum=1)
    wanted = frozenset(as_strings("scan_folder", "suffixes", suffixes))
    if not all(suffix.startswith(".") and suffix == suffix.lower() for suffix in wanted):
        expected = "suffixes in lower case with their dots"
        raise refusal("scan_folder", "suffixes", sorted(wanted), expected, 'such as [".jpg", ".png"]')
    left_out: list[LeftOut] = []
    max_pixels = as_int("scan_folder", "max_pixels", max_pixels, minimum=1)
    max_files = as_int("scan_folder", "max_files", max_files, minimum=1)
    found = list(walk_images(top, wanted, left_out, max_files))
    if verify:
        files = {"/".join(parts): top.joinpath(*parts) for parts in found}
        found = [tuple(name.split("/")) for name in decodable(files, left_out, max_pixels, progress)]
    if not found:
        reasons = Counter(item.reason for item in left_out)
        seen = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common()) or "it is empty"
        expected = "one folder per class with images in it"
        raise refusal("scan_folder", "root", str(root), expected, f"found none: {seen}")
    found.sort()
    folders = [parts[:-1][:class_depth] for parts in found]
    classes = sorted(set(folders))
    if class_depth is None and (warning := ambiguous_names(root, classes)):
        warnings.warn(warning, stacklevel=2)
    number = {folder: code for code, folder in enumerate(classes)}
    groups = {}
    if any(len(folder) > 1 for folder in classes):
        groups["parent"] = np.array(["/".join(folder[:-1]) for folder in folders], dtype=object)
    return Catalog(
        paths=["/".join(parts) for parts in found],
        labels=np.array([number[folder] for folder in folders], dtype=np.int64),
        classes=["/".join(folder) for folder in classes],
        groups=groups,
        root=top,
        left_out=sorted(left_out),
    )


def walk_images(
    top: Path, suffixes: frozenset[str], left_out: list[LeftOut], max_files: int = MAX_FILES
) -> Iterator[tuple[str, ...]]:
    """Walk a folder and yield the path of every image below it, in no order, as a tuple of parts.

    Links are followed. Each folder is entered once, by its own name or, where only links lead to it, by the
    first link in the order of paths.

    Args:
        top: the folder to walk.
        suffixes: the suffixes of images, in lower case.
        left_out: is extended by every other file, with the reason.
        max_files: the most files and folders below `top`.

    Yields:
        ("class", …, "image.jpg"), at least two parts.

    Raises:
        ValueError: there are more than `max_files`.
    """
    # A heap ordered by the number of links on the way, then by path: own names come before links.
    pending: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    entered: dict[object, tuple[str, ...]] = {}
    room = max_files
    while pending:
        links, folder = heapq.heappop(pending)
        here = "/".join(folder)
        place = os.path.join(top, here)
        try:
            identity = _identity(place)
            # Only links lead to a folder twice; without one, inode numbers, which may be wrong, are not used.
            if links and identity in entered:
                left_out.append(LeftOut(here, _entered_before(entered[identity], folder)))
                continue
            entered[identity] = folder
            with os.scandir(place) as listing:
                entries = list(islice(listing, room + 1))
        except OSError as error:
            left_out.append(LeftOut(here or ".", f"folder cannot be read: {error.strerror}"))
            continue
        room -= len(entries)
        if room < 0:
            expected = f"at most so many files and folders below {top}"
            hint = f"there are more, the last in {here or '.'}; pass a larger max_files or a smaller folder"
            raise refusal("scan_folder", "max_files", max_files, expected, hint)
        images = subfolders = 0
        for entry in entries:
            parts = (*folder, entry.name)
            reason = _why_not(entry, folder, suffixes)
            if reason == "folder":
                subfolders += 1
                heapq.heappush(pending, (links + entry.is_symlink(), parts))
            elif reason:
                shown = "/".join(parts).encode("utf-8", "backslashreplace").decode()
                left_out.append(LeftOut(shown, reason))
            else:
                images += 1
                yield parts
        if folder and not images and not subfolders:
            left_out.append(LeftOut(here, "folder without an image"))


def _identity(place: str) -> object:
    """A value that is equal for two names of one folder."""
    status = os.stat(place)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(place)


def _entered_before(first: tuple[str, ...], folder: tuple[str, ...]) -> str:
    above = folder[: len(first)] == first
    return "link back to a folder above it" if above else "link to a folder that is entered by another name"


def ambiguous_names(root: str | Path, classes: Sequence[tuple[str, ...]]) -> str | None:
    """A warning for a tree in which folders of one name are several classes; None where there are none.

    Args:
        root: the folder, for messages.
        classes: the parts of the path of each class.

    Example:
        >>> ambiguous_names("photos", [("ann", "front"), ("ann", "side"), ("bob", "front")]).split("; ")[1]
        'pass class_depth=1 (--class-depth 1) if a class is the folder above, as a person above cameras'
    """
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for folder in classes:
        by_name.setdefault(folder[-1], []).append(folder)
    several = [folders for folders in by_name.values() if len(folders) > 1]
    if not several:
        return None
    first, second = ("/".join(folder) for folder in several[0][:2])
    more = len(several) - 1
    others = f", and likewise folders of {more} other name{'s' * (more > 1)}" if more else ""
    above, whole = max(map(len, several[0])) - 1, max(map(len, classes))
    return escaped(
        f"scan_folder(root={str(root)!r}): {first!r} and {second!r} are two classes{others}; "
        f"pass class_depth={above} (--class-depth {above}) if a class is the folder above, as a person above "
        "cameras; scan one folder at a time if they are parts of one set, as train and val; "
        f"pass class_depth={whole} (--class-depth {whole}) if they are two"
    )


def _why_not(entry: os.DirEntry[str], folder: tuple[str, ...], suffixes: frozenset[str]) -> str:
    """Why an entry is not an image: "folder" for one to enter, a reason, or "" for an image."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "name is not valid UTF-8"
    try:
        if entry.is_dir():
            return "hidden folder" if entry.name.startswith(".") else "folder"
    except OSError as error:  # a link to itself
        return f"link cannot be followed: {error.strerror}"
    if entry.name.startswith("."):
        return "hidden file"
    if os.path.splitext(entry.name)[1].lower() not in suffixes:
        return "not an image"
    try:
        if not entry.is_file():
            return "not a regular file" if os.path.exists(entry.path) else "link to nothing"
    except OSError as error:
        return f"link cannot be followed: {error.strerror}"
    return "" if folder else "image outside any class folder"


def decodable(
    files: Mapping[str, Path], left_out: list[LeftOut], max_pixels: int, progress: bool
) -> list[str]:
    """The names of the files that decode, in their order; the others are added to `left_out`.

    Args:
        files: the images by name.
        left_out: is extended by those that do not decode, with the reason.
        max_pixels: the most pixels of an image.
        progress: show a progress bar.
    """
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    from tercet.data.io.images import why_unreadable

    names, kept = list(files), []

    def verdict(name: str) -> str | None:
        return why_unreadable(files[name], max_pixels=max_pixels)

    # Threads suffice: OpenCV releases the interpreter lock while it decodes. Work is submitted in chunks, so
    # that neither memory nor the delay after an interrupt grows with the number of images.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = (
            reason
            for start in range(0, len(names), 1024)
            for reason in pool.map(verdict, names[start : start + 1024])
        )
        console = Console(stderr=True)
        shown = track(verdicts, "verifying images", len(names), console=console, disable=not progress)
        for name, reason in zip(names, shown, strict=True):
            if reason:
                left_out.append(LeftOut(name, reason))
            else:
                kept.append(name)
    return kept
