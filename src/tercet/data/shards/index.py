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

from tercet.core.checks import as_bool, as_choice, as_int, border, refusal
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
from tercet.data.shards.tar_index import UNKNOWN, ShardTable, changed, table_path
from tercet.data.shards.tar_members import BLOCK

__all__ = ["ShardIndex"]

GAP = 1 << 14  # bytes between two samples up to which one read takes both
RUN = 1 << 24  # bytes of one read, unless a single sample is larger
AHEAD = 1 << 27  # bytes that the system is asked to prefetch at a time


class ShardIndex:
    """The images in tar shards as a catalog whose rows can be read: `index.read(rows)` gives their bytes.

    On all shards of a run of `write_shards` the rows are those of the catalog they were written from, in its
    order. So a sampler with the same seed gives the same batches, and the triplets of a manifest fit. If
    images were skipped, or only some of the tars are given, there are fewer rows, which have other numbers,
    and `TripletDataset` refuses triplets of all. Classes keep their numbers in any case: info.json, in the
    folder of the shards, lists them.

    On tars of other programs, such as webdataset's, the rows are the samples in the order of the tars.
    Classes are sorted, as numbers where all are. The headers are scanned, once if `write_index` keeps the
    result.

    A changed tar is refused. Its size and a few of its headers are compared with the index when the index is
    opened and again before the first read. Each read compares a CRC of the sample's header and, on shards of
    `write_shards`, of its content. Contents in tars of other programs have no CRC; of these the time of
    change is compared too, before and after each read. A tar of another program that differs from its index
    is scanned again when the index is opened: after a copy that keeps no times at each opening, until
    `write_index` has kept a scan.

    Files are opened at the first read, by each process for itself. An index can be pickled, inherited by
    forked workers and shared by threads.

    Args:
        tars: a folder of shards, a tar, or a list of different tars. A folder without info.json must hold
            one split. The split of a tar is the first of these words in its name: train, val, test, trainval,
            eval, query, gallery, or training, valid, validation, dev, testing, which mean one of them. So
            train-0.tar and val-0.tar are of two splits, and so are cars_test.tar and planes.tar, since one
            name has no such word; trainset-0.tar and valset-0.tar are of one, since neither has. A list of
            tars is not checked for splits.
        split: which of the splits in the folder's info.json; needed where it has several, or where shards
            lie beside its one of another that `write_shards` has not finished.
        image: the extension of the member that is the image, such as "jpg"; by default that of the indexes
            beside the tars, and without any the one that is an image's. Only for tars of other programs.
        label: where the class is: the extension of a member, or a field of the JSON member, such as
            "json:label"; by default that of the indexes beside the tars, and without any "cls". Only for tars
            of other programs.
        damaged: what to do with a tar of another program that is cut short or has a broken header: "error",
            or "drop" to keep the samples before that are surely whole.
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
        with border(caller, "tars"):
            self.tars, info = find_tars(tars, split, outside_root)
            folder = Path(tars) if isinstance(tars, (str, os.PathLike)) and Path(tars).is_dir() else None
            how = {"keep": write_index, "folder": folder, "verify": verify, "progress": progress}
            tables = find_tables(self.tars, image, label, damaged, **how)
            if not sum(map(len, tables)):
                raise refusal(caller, "tars", str(tars), "at least one sample with an image")
            plans = {table.facts.get("plan") for table in tables}
            refuse_other_runs(tars, info, plans)
            digests = {table.tar.name: table.facts.get("sha256") for table in tables}
            refuse_exchanged(info, digests)
            self._written = None not in plans  # by `write_shards`, all of them
            self._join(tables, by_row=self._written and len(plans) == 1)
        self._forget_files()

    def _join(self, tables: list[ShardTable], by_row: bool) -> None:
        """Join the tables of all tars to the columns of this index and to its catalog.

        Args:
            tables: of the tars, in their order.
            by_row: sort the images by their keys, which are row numbers of the catalog they come from.
        """
        columns = {name: np.concatenate([t.columns[name] for t in tables]) for name in tables[0].columns}
        shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        order = np.arange(len(shard))
        if by_row:
            order = np.argsort(columns["key"].astype(np.int64), kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        self._shard: Int64[np.ndarray, " n"] = shard[order]
        self._offset, self._size = columns["offset"], columns["size"]
        self._header_crc, self._crc = columns["header_crc32"], columns["crc32"]
        self._key, self._suffix = columns["key"], columns["suffix"]
        self._states = [table.state for table in tables]
        # A group that some of the tars lack is left out.
        names = sorted(set.intersection(*(set(table.groups) for table in tables)))
        groups = {name: np.concatenate([table.groups[name] for table in tables])[order] for name in names}
        labels, classes = self._numbered(tables, columns["label"])
        left_out = [item for table in tables for item in table.left_out]
        root = self.tars[0].parent
        self.catalog = Catalog(columns["path"], labels, classes, groups, root, left_out, outside_root=False)

    def _numbered(
        self, tables: list[ShardTable], names: np.ndarray
    ) -> tuple[Int64[np.ndarray, " n"], list[str]]:
        """The class number of each image, and the classes: those of info.json, or the sorted names."""
        classes = written_classes(tables) or sorted_classes(set(names))
        number = {name: code for code, name in enumerate(classes)}
        unknown = sorted(set(names) - number.keys())
        if unknown:
            expected = f"shards of the classes that info.json lists, and {unknown[0]!r} is none of them"
            hint = "restore info.json, or write them again"
            raise refusal("ShardIndex", "tars", str(self.tars[0].parent), expected, hint)
        return np.fromiter(map(number.__getitem__, names), np.int64, len(names)), classes

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
        """Tar and member of image `row`, as a path for messages; the file system has no such path.

        Args:
            row: the row number; negative ones count from the end.

        Returns:
            The path of the tar, and behind it the name of the member.

        Raises:
            IndexError: a number outside the index.
        """
        row = row_number("ShardIndex.file", row, len(self))
        return self.tars[self._shard[row]] / f"{self._key[row]}.{self._suffix[row]}"

    def read(self, rows: Any) -> list[bytes]:
        """The content of some images, in the order asked.

        Each tar is read from front to back, in few reads: neighbours are read together, a row that is asked
        for twice is read once, and the system is asked to prefetch what comes.

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
        ranges = [(shards[first], begin[first], end[last] - begin[first]) for first, last in runs]
        found: list[bytes] = [b""] * len(places)
        done = 0
        while done < len(runs):
            files, ahead = self._prefetched(ranges, done)
            for first, last in runs[done:ahead]:
                start = begin[first]
                block = files[shards[first]].pread(start, end[last] - start)
                for at in range(first, last + 1):
                    found[into[at]] = self._checked(rows[at], block[begin[at] - start : end[at] - start])
            if not self._written:  # contents of other programs' tars have no CRC
                self._refuse_written_over(files)
            del files  # else they would stay open while the next ones are opened
            done = ahead
        return [found[place] for place in position.tolist()]

    def _prefetched(
        self, ranges: list[tuple[int, int, int]], done: int
    ) -> tuple[dict[int, PositionalFile], int]:
        """Open files for the next ranges, and let the system read them ahead.

        Args:
            ranges: (shard, start, length) of each read.
            done: how many were read before.

        Returns:
            The open files by shard, and the number of the first range that is left for later: as many are
            taken as open files and memory allow, and at least one.
        """
        files: dict[int, PositionalFile] = {}
        total, ahead = 0, done
        while ahead < len(ranges):
            shard, start, length = ranges[ahead]
            full = shard not in files and len(files) == self.max_open
            if ahead > done and (full or total + length > AHEAD):
                break
            if shard not in files:
                files[shard] = self._file(shard)
            files[shard].prefetch([(start, length)])
            total, ahead = total + length, ahead + 1
        return files, ahead

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

    def _refuse_written_over(self, files: Mapping[int, PositionalFile]) -> None:
        """Refuse contents of tars that were written to while they were read."""
        for shard, file in files.items():
            if file.changed():
                raise self._changed(shard, "the time of change that it had", "it was written since")

    def _changed(self, shard: int, expected: str, what: str) -> ValueError:
        """The refusal of a tar that has changed since it was indexed."""
        tar = self.tars[shard]
        hint = "write the shards again with overwrite=True or --overwrite"
        if not self._written:
            hint = f"open the tars anew (delete {table_path(tar).name} if it is there)"
        hint = f"the tar has changed; restore it, or {hint}"
        return ValueError(f"ShardIndex: {tar}: expected {expected}, but {what}; {hint}")

    def _file(self, shard: int) -> PositionalFile:
        """The open file of a shard. Beyond `max_open`, the least recently used one is closed."""
        if self._process != os.getpid():  # forked: another thread may have held the lock at that moment
            self._forget_files()
        with self._lock:
            file = self._files.pop(shard, None)
            while len(self._files) >= self.max_open:
                del self._files[next(iter(self._files))]
            if file is None:
                tar = self.tars[shard]
                with border("ShardIndex", "tars"):
                    file = PositionalFile(tar, "a tar to read")
                    fault = changed(tar, self._states[shard], file)
                    if fault is not None:
                        raise fault
            self._files[shard] = file  # last in order: the most recently used
            return file

    def _forget_files(self) -> None:
        self._files: dict[int, PositionalFile] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        of_process = ("_files", "_lock", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_files()


def _runs(
    shards: Int64[np.ndarray, " m"], starts: Int64[np.ndarray, " m"], ends: Int64[np.ndarray, " m"]
) -> list[tuple[int, int]]:
    """(first, last) of each run of samples that one read takes, of samples sorted by shard and offset."""
    runs: list[tuple[int, int]] = []
    apart = (np.diff(shards) != 0) | (starts[1:] - ends[:-1] > GAP)
    breaks = [0, *(np.flatnonzero(apart) + 1).tolist(), len(shards)]
    for first, stop in pairwise(breaks):
        begin = first
        for at in range(first + 1, stop):
            if ends[at] - starts[begin] > RUN:
                runs.append((begin, at - 1))
                begin = at
        if begin < stop:
            runs.append((begin, stop - 1))
    return runs
