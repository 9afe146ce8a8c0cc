"""A search of a collection in blocks, anchors × columns, each in a file of its own in a work folder.

A block is named by a digest of all that decides what is in it: the embeddings, the labels, groups and ids
that are left out, the distance, the number of neighbours, the version of tercet, and which anchors and
columns it is of. So a block that is there, and whole, is the result, whichever process made it and when; and
blocks of other inputs have other names. Blocks of the same anchors are merged by (distance, row), in any
order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from tercet.core.checks import Refusal
from tercet.neighbors.nearest_search import NearestSearch, Neighbors
from tercet.neighbors.search_plan import plan_search
from tercet.neighbors.stored_rows import StoredRows
from tercet.offline.block_files import ArrayFile, as_file, chunks_of, read_block, write_block
from tercet.offline.fingerprints import fingerprint
from tercet.pairwise.budget import budget
from tercet.pairwise.distances import Distance

__all__ = ["Block", "SearchWork", "merged", "plan_blocks", "work_of"]


class Block(NamedTuple):
    """A block of a search.

    Args:
        first, stop: the places of its anchors, in their list.
        start, end: its columns, rows of the collection.
    """

    first: int
    stop: int
    start: int
    end: int


def plan_blocks(anchors: int, columns: int, height: int, width: int) -> list[Block]:
    """Blocks that cover every (anchor, column) once, those of the same columns one after the other.

    Args:
        anchors: how many anchors.
        columns: how many columns.
        height: anchors of a block, at most.
        width: columns of a block, at most.

    Example:
        >>> [tuple(block) for block in plan_blocks(3, 2, 2, 2)]
        [(0, 2, 0, 2), (2, 3, 0, 2)]
    """
    return [
        Block(first, min(first + height, anchors), start, min(start + width, columns))
        for start in range(0, columns, width)
        for first in range(0, anchors, height)
    ]


def merged(parts: Iterable[Neighbors], k: int) -> Neighbors:
    """The k nearest of what was found in parts of the columns, by (distance, row).

    Args:
        parts: of the same queries, in any order; no column is in two of them.
        k: how many.

    Returns:
        Rows and distances [q, k]; −1 and inf where a query has fewer.

    Example:
        >>> a = Neighbors(np.array([[4, 9]]), np.array([[1.0, 3.0]]))
        >>> b = Neighbors(np.array([[2, -1]]), np.array([[3.0, np.inf]]))
        >>> merged([a, b], 3).rows.tolist() == merged([b, a], 3).rows.tolist() == [[4, 2, 9]]
        True
    """
    parts = list(parts)
    rows, distances = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))  # [q, m]
    lacking = max(0, k - rows.shape[1])
    rows = np.pad(rows, ((0, 0), (0, lacking)), constant_values=-1)
    distances = np.pad(distances, ((0, 0), (0, lacking)), constant_values=np.inf)
    last = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((last, distances), axis=1)[:, :k]
    return Neighbors(np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1))


@dataclass(frozen=True)
class SearchWork:
    """The blocks of one search; `work_of` makes it.

    Args:
        folder: the work folder.
        matrix: the embeddings [n, d], or the file in which they are.
        anchors: int64 [a], rows of the collection that are the queries.
        codes: numbers [n] of labels, groups and ids, by the names that `NearestSearch` gives them.
        search: further arguments of `NearestSearch`, the same for each block.
        k: how many nearest rows.
        blocks: all blocks, those of the same columns one after the other.
        names: the file of each block, without its suffix.
    """

    folder: Path
    matrix: Any
    anchors: Int64[np.ndarray, " a"]
    codes: Mapping[str, Int64[np.ndarray, " n"]]
    search: Mapping[str, Any]
    k: int
    blocks: Sequence[Block]
    names: Sequence[str]

    def is_done(self, number: int) -> bool:
        """Whether a block is there, and whole."""
        return self.read(number) is not None

    def read(self, number: int) -> Neighbors | None:
        """What was found in a block; None where it is not there, or is damaged."""
        arrays = read_block(self._file(number), self.names[number])
        block = self.blocks[number]
        if arrays is None or {array.shape[0] for array in arrays} != {block.stop - block.first}:
            return None
        rows, distances = arrays
        return Neighbors(rows.astype(np.int64), distances)

    def compute(self, number: int) -> Neighbors:
        """Search a block, and keep it."""
        block = self.blocks[number]
        rows, columns = self.anchors[block.first : block.stop], slice(block.start, block.end)
        x = self._embeddings
        named: dict[str, Any] = {name: codes[rows] for name, codes in self.codes.items()}
        named |= {f"column_{name}": codes[columns] for name, codes in self.codes.items()}
        queries = x[torch.from_numpy(rows).to(x.device)] if isinstance(x, torch.Tensor) else x[rows]
        k = min(self.k, block.end - block.start)
        named |= {"nan": "skip", "argument": "embeddings"}
        found = NearestSearch(queries, x[columns], k, **named, **self.search).found()
        rows = np.where(found.rows < 0, -1, found.rows + block.start)
        kept = rows.astype(np.int32) if len(x) < 2**31 else rows
        write_block(self._file(number), self.names[number], [kept, found.distances])
        return Neighbors(rows, found.distances)

    def found(self, some: slice) -> Neighbors:
        """The k nearest rows of some of the anchors, once all blocks are done.

        A block that is damaged, or was removed, is searched again.
        """
        first, stop, _ = some.indices(len(self.anchors))
        of_anchors: dict[int, list[int]] = {}
        for number, block in enumerate(self.blocks):
            if max(block.first, first) < min(block.stop, stop):
                of_anchors.setdefault(block.first, []).append(number)
        found = [Neighbors(np.empty((0, self.k), np.int64), np.empty((0, self.k), np.float32))]
        for start, numbers in of_anchors.items():
            whole = merged([self.read(number) or self.compute(number) for number in numbers], self.k)
            inside = slice(max(0, first - start), stop - start)
            found.append(Neighbors(whole.rows[inside], whole.distances[inside]))
        rows, distances = (np.concatenate(each) for each in zip(*found[len(found) > 1 :], strict=True))
        return Neighbors(rows, distances)

    def portable(self) -> SearchWork:
        """The same with the embeddings in a file, for another process."""
        device = torch.device(self.search["device"]).type  # each process has its own first device
        return replace(
            self, matrix=as_file(self.matrix, self.folder), search={**self.search, "device": device}
        )

    @cached_property
    def _embeddings(self) -> Any:
        return self.matrix.opened() if isinstance(self.matrix, ArrayFile) else self.matrix

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.names[number]}.block"


def work_of(
    folder: Path,
    x: Any,
    anchors: Int64[np.ndarray, " a"],
    k: int,
    distance: Distance,
    codes: Mapping[str, Int64[np.ndarray, " n"]],
    exclude: Sequence[str],
    memory: int | None,
) -> SearchWork:
    """The blocks of a search for the k nearest rows of anchors in their collection.

    Args:
        folder: the work folder.
        x: the embeddings [n, d]; rows of NaN are left out.
        anchors: int64 [a], rows that are the queries.
        k: how many nearest rows.
        distance: a `Distance`.
        codes: numbers [n] of labels, groups and ids, as far as `exclude` needs them.
        exclude: what a query does not find, as for `nearest`; an anchor finds itself unless one of these
            leaves it out.
        memory: bytes of the search of a block, as for `nearest`.

    Raises:
        ValueError: less memory than one tile takes, or a distance of which nothing tells what it is.
    """
    device = x.device if isinstance(x, torch.Tensor) else torch.device("cpu")
    sample = StoredRows("embeddings", x, distance, device).sample(1)
    sizes = budget(device)
    height, width = min(sizes.work_anchors, len(anchors)), min(sizes.work_columns, len(x))
    plan = plan_search(height, width, min(k, width), sample.shape[1], sample.dtype, device, memory)
    blocks = plan_blocks(len(anchors), len(x), plan.block, width)
    try:
        measure = fingerprint(distance)
    except (ValueError, RecursionError) as error:
        expected = "one whose changes can be told, since blocks are found again by it"
        raise Refusal("distance", distance, f"{expected}; it holds {error}") from None
    digest = hashlib.sha256()
    facts = ["search", version("tercet"), torch.__version__, device.type, *measure, k, *exclude]
    digest.update(repr([*facts, *codes, str(x.dtype), tuple(x.shape)]).encode())
    for array in codes.values():
        digest.update(array.tobytes())
    for chunk in chunks_of(x):
        digest.update(chunk)

    def name(block: Block) -> str:
        one = digest.copy()
        one.update(repr((block.start, block.end)).encode())
        one.update(anchors[block.first : block.stop].tobytes())
        return one.hexdigest()[:32]

    search = {"exclude": list(exclude), "distance": distance, "memory": memory}
    search["device"] = str(device)
    return SearchWork(folder, x, anchors, codes, search, k, blocks, [name(block) for block in blocks])
