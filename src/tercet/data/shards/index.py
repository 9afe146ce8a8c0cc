"""Random access to the images in tar shards, by offset."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import as_bool, as_choice, as_int, refusal
from tercet.core.indices import row_number, rows_at
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.positional import PositionalFile
from tercet.data.io.tables import sorted_classes
from tercet.data.shards.discovery import (
    find_tables,
    find_tars,
    refuse_exchanged,
    refuse_other_runs,
    written_classes,
)
from tercet.data.shards.tar_index import UNKNOWN, changed, table_path
from tercet.data.shards.tar_members import BLOCK

__all__ = ["ShardIndex"]

_GAP = 1 << 14  # bytes between two samples up to which one read takes both
_RUN = 1 << 24  # bytes of one read, unless a single sample is larger
_AHEAD = 1 << 27  # bytes that the system is told of before they are read


class ShardIndex:
    """The images in tar shards as a catalog whose rows can be read: `index.read(rows)` gives their bytes.

    On all shards of a run of `write_shards` the rows are those of the catalog they were written from, in its
    order, so that a sampler with the same seed gives the same batches, and a manifest's triplets fit; unless
    images were skipped, or the tars are only some: then the rows are fewer and have other numbers, and
    `TripletDataset` refuses triplets of all. Classes keep their numbers in any case: info.json, in the folder
    of the shards, lists them. On tars of other programs (webdataset's) the rows are the samples in
    the order of the tars, classes are sorted, as numbers where all are; the headers are scanned, once if
    `write_index` keeps the result.

    A changed tar is refused. Its size and a few of its headers are compared with the index when the index is
    opened and again before the first read, and each read compares a CRC of the sample's header and, on shards
    of `write_shards`, of its content. Of tars of other programs, whose contents have no CRC, the time of
    change is compared too, before and after each read. A tar of another program that is not as its index has
    it is scanned again when the index is opened; after a copy that keeps no times
    each opening does so, until `write_index` has kept one scan. Files are opened when first read from, in
    each process for itself; an index can be pickled, inherited by forked workers and shared by threads.

    Args:
        tars: a folder of shards, a tar, or a list of different tars. A folder without info.json must hold
            one split, which the first of these words in a name tells: train, val, test, trainval, eval,
            query, gallery, or training, valid, validation, dev, testing, which mean one of them. So
            train-0.tar and val-0.tar are of two, cars_test.tar and planes.tar too, as one name has no such
            word; trainset-0.tar and valset-0.tar, neither of which has one, are taken for one. A list of
            tars is taken as it is.
        split: which of the splits in the folder's info.json; needed where it has several, or where shards
            lie beside its one of another that `write_shards` has not finished.
        image: the extension of the member that is the image, such as "jpg"; by default what the indexes
            beside the tars are made with, and without any the one that is an image's. As the next two,
            for tars of other programs.
        label: where the class is: the extension of a member, or a field of the JSON member, such as
            "json:label"; by default what the indexes beside the tars are made with, and without any "cls".
        damaged: what to do with a tar that is cut short or has a broken header: "error", or "drop" to keep
            the samples before that are surely whole.
        write_index: keep what a scan found beside the tar, as name.index.parquet; it replaces an index
            made with another image or label.
        verify: read each tar whole and compare it with the SHA-256 that `write_shards` has kept; tars of
            other programs are scanned again, whatever their indexes say.
        outside_root: take tars that info.json lists but that lie outside of its folder, by "..", an absolute
            path or a link. No index is written beside them.
        max_open: files held open at a time.
        progress: show a progress bar while scanning.

    Attributes:
        catalog: paths, labels, classes, groups and what was left out; `root` is the folder of the first tar.
        tars: the files.

    Raises:
        ValueError: no tar, a tar that is missing, damaged, compressed or there twice, a shard of
            `write_shards` that has changed since it was indexed, shards that are not all there or lack their
            info.json, several splits, indexes of several images or labels while none is given, or a sample
            without a class.

    Example:
        >>> import pathlib
        >>> from tercet.data.catalog.scan import scan_folder
        >>> from tercet.data.shards.writing import write_shards
        >>> for name in ("ant/1.jpg", "ant/2.jpg", "bee/1.jpg"):
        ...     file = pathlib.Path("photos", name)
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(name.encode())
        >>> _ = write_shards("shards", scan_folder("photos"))
        >>> index = ShardIndex("shards")
        >>> index, index.labels.tolist(), index.read([2, 0])
        (ShardIndex(3 images, 2 classes, 1 tars), [0, 0, 1], [b'bee/1.jpg', b'ant/1.jpg'])
    """

    def __init__(
        self,
        tars: Any,
        *,
        split: str | None = None,
        image: str | None = None,
        label: str | None = None,
        damaged: str = "error",
        write_index: bool = False,
        verify: bool = False,
        outside_root: bool = False,
        max_open: int = 64,
        progress: bool = False,
    ) -> None:
        caller = "ShardIndex"
        as_choice(caller, "damaged", damaged, ("error", "drop"))
        self.max_open = as_int(caller, "max_open", max_open, minimum=1)
        write_index, progress = (
            as_bool(caller, "write_index", write_index),
            as_bool(caller, "progress", progress),
        )
        verify, outside_root = (
            as_bool(caller, "verify", verify),
            as_bool(caller, "outside_root", outside_root),
        )
        self.tars, info = find_tars(caller, "tars", tars, split, outside_root)
        folder = Path(tars) if isinstance(tars, (str, os.PathLike)) and Path(tars).is_dir() else None
        how = {"keep": write_index, "folder": folder, "verify": verify, "progress": progress}
        tables = find_tables(caller, self.tars, image, label, damaged, **how)
        if not sum(map(len, tables)):
            raise refusal(caller, "tars", str(tars), "at least one sample with an image")
        plans = {table.facts.get("plan") for table in tables}
        refuse_other_runs(caller, "tars", tars, info, plans)
        digests = {table.tar.name: table.facts.get("sha256") for table in tables}
        refuse_exchanged(caller, "tars", info, digests)
        self._written = None not in plans
        columns = {name: np.concatenate([t.columns[name] for t in tables]) for name in tables[0].columns}
        shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        order = np.arange(len(shard))
        if self._written and len(plans) == 1:  # keys are row numbers of the catalog
            order = np.argsort(columns["key"].astype(np.int64), kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        self._shard: Int64[np.ndarray, " n"] = shard[order]
        self._offset, self._size = columns["offset"], columns["size"]
        self._header_crc, self._crc = columns["header_crc32"], columns["crc32"]
        self._key, self._suffix = columns["key"], columns["suffix"]
        self._states = [table.state for table in tables]
        names = set.intersection(*(set(table.groups) for table in tables))
        groups = {
            name: np.concatenate([table.groups[name] for table in tables])[order] for name in sorted(names)
        }
        classes = written_classes(caller, "tars", tables) or sorted_classes(set(columns["label"]))
        number = {name: code for code, name in enumerate(classes)}
        unknown = sorted(set(columns["label"]) - number.keys())
        if unknown:
            expected = f"shards of the classes that info.json lists, and {unknown[0]!r} is none of them"
            raise refusal(
                caller, "tars", str(self.tars[0].parent), expected, "restore info.json, or write them again"
            )
        labels = np.fromiter(map(number.__getitem__, columns["label"]), np.int64, len(order))
        left_out = [item for table in tables for item in table.left_out]
        root = self.tars[0].parent
        self.catalog = Catalog(columns["path"], labels, classes, groups, root, left_out, outside_root=False)
        self._forget_handles()

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """The class of each image, a position in `classes`."""
        return self.catalog.labels

    @property
    def classes(self) -> list[str]:
        """The class names."""
        return self.catalog.classes

    @property
    def groups(self) -> Mapping[str, np.ndarray]:
        """Further columns by name, each [n]."""
        return self.catalog.groups

    @property
    def paths(self) -> np.ndarray:
        """The path of each image in the catalog it was written from; in other tars the member's name."""
        return self.catalog.paths

    @property
    def fingerprint(self) -> str:
        """That of `catalog`: SHA-256 of paths, labels, classes and groups."""
        return self.catalog.fingerprint

    def __len__(self) -> int:
        return len(self._shard)

    def __repr__(self) -> str:
        left_out = f", {len(self.catalog.left_out)} left out" if self.catalog.left_out else ""
        return f"ShardIndex({len(self)} images, {len(self.classes)} classes, {len(self.tars)} tars{left_out})"

    def file(self, row: int) -> Path:
        """Where image `row` is, as tar and member, for a sentence; it is no path of the file system."""
        row = row_number("ShardIndex.file", row, len(self))
        return self.tars[self._shard[row]] / f"{self._key[row]}.{self._suffix[row]}"

    def read(self, rows: Any) -> list[bytes]:
        """The content of some images, in the order asked.

        The reads go through each tar from front to back; neighbours are read at once, a row that is asked
        for twice is read once, and the system hears of all of them before the first.

        Args:
            rows: int [m], row numbers; negative ones count from the end.

        Returns:
            m contents of image files, not decoded.

        Raises:
            IndexError: a number outside the index.
            ValueError: a tar that is missing, cut short, or not as it was when it was indexed.
        """
        try:
            asked = rows_at(rows, len(self))
        except IndexError as error:
            raise IndexError(f"ShardIndex.read: {error}") from None
        distinct, position = np.unique(asked, return_inverse=True)
        walk = np.lexsort((self._offset[distinct], self._shard[distinct]))
        places = distinct[walk]
        starts = self._offset[places] - BLOCK
        ends = self._offset[places] + self._size[places]
        runs = _runs(self._shard[places], starts, ends)
        # Lists: reading a number out of an array costs as much as a small read.
        shards, rows = self._shard[places].tolist(), places.tolist()
        begin, end, into = starts.tolist(), ends.tolist(), walk.tolist()
        found: list[bytes] = [b""] * len(places)
        done = 0
        while done < len(runs):  # as many runs at a time as open files and memory allow
            handles: dict[int, PositionalFile] = {}
            announced, ahead = 0, done
            while ahead < len(runs):
                first, last = runs[ahead]
                shard, length = shards[first], end[last] - begin[first]
                full = shard not in handles and len(handles) == self.max_open
                if ahead > done and (full or announced + length > _AHEAD):
                    break
                if shard not in handles:
                    handles[shard] = self._handle(shard)
                handles[shard].prefetch([(begin[first], length)])
                announced, ahead = announced + length, ahead + 1
            for first, last in runs[done:ahead]:
                start = begin[first]
                block = handles[shards[first]].pread(start, end[last] - start)
                for at in range(first, last + 1):
                    found[into[at]] = self._checked(rows[at], block[begin[at] - start : end[at] - start])
            if not self._written:  # contents of other programs' tars have no CRC
                self._refuse_written_over(handles)
            done = ahead
        return [found[place] for place in position.tolist()]

    def _checked(self, row: int, block: memoryview) -> bytes:
        """The content after the header at the front of `block`, refused unless both are as indexed."""
        content = bytes(block[BLOCK:])
        whole_length = len(block) == BLOCK + self._size[row]
        header = whole_length and zlib.crc32(block[:BLOCK]) == self._header_crc[row]
        if header and self._crc[row] in (UNKNOWN, zlib.crc32(content)):
            return content
        what = "the file ends before it" if not whole_length else "its content is another"
        if whole_length and not header:
            what = "another header stands in its place"
        raise self._changed(int(self._shard[row]), f"{self.file(row).name} as it was indexed", what)

    def _refuse_written_over(self, handles: Mapping[int, PositionalFile]) -> None:
        for shard, handle in handles.items():
            if handle.changed():
                raise self._changed(shard, "the time of change that it had", "it was written since")

    def _changed(self, shard: int, expected: str, what: str) -> ValueError:
        tar = self.tars[shard]
        hint = "write the shards again with overwrite=True or --overwrite"
        if not self._written:
            hint = f"open the tars anew (delete {table_path(tar).name} if it is there)"
        hint = f"the tar has changed; restore it, or {hint}"
        return ValueError(f"ShardIndex: {tar}: expected {expected}, but {what}; {hint}")

    def _handle(self, shard: int) -> PositionalFile:
        """The open file of a shard; beyond `max_open` the one that was asked for longest ago is let go."""
        if self._process != os.getpid():  # forked: the lock may have been held at that moment
            self._forget_handles()
        with self._lock:
            handle = self._handles.pop(shard, None)
            while len(self._handles) >= self.max_open:
                del self._handles[next(iter(self._handles))]
            if handle is None:
                tar = self.tars[shard]
                handle = PositionalFile("ShardIndex", "tars", tar, "a tar to read")
                fault = changed("ShardIndex", "tars", tar, self._states[shard], handle)
                if fault is not None:
                    raise fault
            self._handles[shard] = handle  # now the last to go
            return handle

    def _forget_handles(self) -> None:
        self._handles: dict[int, PositionalFile] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_handles", "_lock", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_handles()


def _runs(
    shards: Int64[np.ndarray, " m"], starts: Int64[np.ndarray, " m"], ends: Int64[np.ndarray, " m"]
) -> list[tuple[int, int]]:
    """(first, last) of each run of samples that one read takes, in samples sorted by shard and offset."""
    runs: list[tuple[int, int]] = []
    apart = (np.diff(shards) != 0) | (starts[1:] - ends[:-1] > _GAP)
    breaks = [0, *(np.flatnonzero(apart) + 1).tolist(), len(shards)]
    for first, stop in pairwise(breaks):
        begin = first
        for at in range(first + 1, stop):
            if ends[at] - starts[begin] > _RUN:
                runs.append((begin, at - 1))
                begin = at
        if begin < stop:
            runs.append((begin, stop - 1))
    return runs
