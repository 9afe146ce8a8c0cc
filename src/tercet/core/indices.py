"""Row numbers, the integers that cross every border: triplets, pairs, references, and sequences of them."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tercet.core.checks import Refusal, as_array, as_int, refusal, shown

__all__ = [
    "GatheredReferences",
    "LabeledPairs",
    "PairSequence",
    "Pairs",
    "References",
    "TripletSequence",
    "Triplets",
    "row_number",
    "row_numbers",
    "rows_at",
]


class Triplets(NamedTuple):
    """Row numbers of anchors, positives and negatives, one triplet a position.

    In a miner's result they are rows of the batch; with references, `positive` and `negative` are rows of the
    references. In a manifest they are rows of the catalog. It unpacks as the 3-tuple that
    pytorch-metric-learning calls `indices_tuple`, so each of its losses takes it.

    Args:
        anchor: int64 [t], numpy or torch.
        positive: int64 [t], the same kind.
        negative: int64 [t], the same kind.

    Example:
        >>> triplets = Triplets(np.array([0, 1]), np.array([1, 0]), np.array([2, 2]))
        >>> triplets.count
        2
    """

    anchor: Any
    positive: Any
    negative: Any

    @property
    def count(self) -> int:  # type: ignore[override]
        """The number of triplets t; it replaces `tuple.count`."""
        return int(self.anchor.shape[0])

    @classmethod
    def interleaved(cls, count: int) -> Triplets:
        """The triplets of a batch laid out q p n q p n …, `count` of them in 3 × `count` rows.

        Args:
            count: the number of triplets, B.

        Returns:
            Triplets of int64 [B], numpy.

        Raises:
            ValueError: `count` is not a whole number of at least 0.

        Example:
            >>> Triplets.interleaved(2)
            Triplets(anchor=array([0, 3]), positive=array([1, 4]), negative=array([2, 5]))
        """
        count = as_int("Triplets.interleaved", "count", count)
        try:
            anchor = np.arange(count, dtype=np.int64) * 3
        except (MemoryError, ValueError):
            raise refusal("Triplets.interleaved", "count", count, "a number that fits into memory") from None
        return cls(anchor, anchor + 1, anchor + 2)


class Pairs(NamedTuple):
    """Row numbers of positive pairs and of negative pairs: pytorch-metric-learning's 4-tuple.

    Args:
        pos_anchor: int64 [u], numpy or torch.
        positive: int64 [u].
        neg_anchor: int64 [v].
        negative: int64 [v].

    Example:
        >>> Pairs(np.array([0]), np.array([1]), np.array([0, 1]), np.array([2, 2])).count
        3
    """

    pos_anchor: Any
    positive: Any
    neg_anchor: Any
    negative: Any

    @property
    def count(self) -> int:  # type: ignore[override]
        """The number of pairs, positive and negative together."""
        return int(self.pos_anchor.shape[0]) + int(self.neg_anchor.shape[0])


class LabeledPairs(NamedTuple):
    """Pairs of row numbers in order, each with whether both images are of one class.

    Args:
        first: int64 [t].
        second: int64 [t].
        same: bool [t].

    Example:
        >>> pairs = LabeledPairs(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
        >>> pairs.count, pairs.as_pairs().negative.tolist()
        (2, [2])
    """

    first: Any
    second: Any
    same: Any

    kind = "pairs"

    @property
    def count(self) -> int:  # type: ignore[override]
        """The number of pairs t; it replaces `tuple.count`."""
        return int(self.first.shape[0])

    def as_pairs(self) -> Pairs:
        """Positive and negative pairs separately, as loss heads take them."""
        same = self.same
        return Pairs(self.first[same], self.second[same], self.first[~same], self.second[~same])

    @classmethod
    def of(cls, pairs: Pairs) -> LabeledPairs:
        """The pairs of `Pairs`, such as a miner's result, as labeled pairs: positive ones first.

        Args:
            pairs: `Pairs` or another sequence of four columns of row numbers.

        Returns:
            Labeled pairs of numpy columns: [p + n] of p positive and n negative pairs.

        Raises:
            ValueError: not four columns, or columns of unequal length.
        """
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 4:
            raise refusal("LabeledPairs.of", "pairs", pairs, "Pairs, four columns of row numbers")
        expected = "columns of row numbers"
        columns = [as_array("LabeledPairs.of", "pairs", column, expected) for column in pairs]
        first, positive, again, negative = columns
        if {column.ndim for column in columns} != {1} or first.shape + again.shape != (
            positive.shape + negative.shape
        ):
            shapes = ", ".join(str(column.shape) for column in columns)
            raise refusal(
                "LabeledPairs.of", "pairs", f"shapes {shapes}", "as many anchors as rows of each kind"
            )
        same = np.arange(len(first) + len(again)) < len(first)
        return cls(np.concatenate([first, again]), np.concatenate([positive, negative]), same)


class References(NamedTuple):
    """Columns that are not the batch: a memory, other ranks' embeddings, a collection.

    Args:
        embeddings: float [r, d].
        labels: int [r].
        ids: int64 [r], the id of each column's image, so that an image is never mined against itself;
            None where no column can be a row of the batch.

    Example:
        >>> References(np.eye(2), labels=np.array([0, 1])).ids is None
        True
    """

    embeddings: Any
    labels: Any
    ids: Any = None


class GatheredReferences(References):
    """`References` that hold the rows of all ranks, as `gather` makes them of several.

    A head whose loss is not a sum over anchors refuses them: the losses of the ranks would not add up to the
    loss of one process.

    Example:
        >>> isinstance(GatheredReferences(np.eye(2), labels=np.array([0, 1])), References)
        True
    """

    __slots__ = ()


@runtime_checkable
class TripletSequence(Protocol):
    """What `write_manifest` and `TripletDataset` take: triplets by their number, computed or stored."""

    def __len__(self) -> int:
        """The number of triplets."""
        ...

    def __getitem__(self, index: Any) -> Triplets:
        """The triplets at an int, a slice or an int array [t]; always `Triplets` of int64."""
        ...


@runtime_checkable
class PairSequence(Protocol):
    """What `write_manifest` and `PairDataset` take: labeled pairs by their number, computed or stored."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: Any) -> LabeledPairs:
        """The pairs at an int, a slice or an int array [t]."""
        ...


def row_number(caller: str, row: Any, length: int, hint: str = "") -> int:
    """One row of a sequence of `length`; negative ones count from the end.

    Args:
        caller: the class or method that was called, for messages.
        row: a whole number.
        length: how many rows there are.
        hint: what to do where a list of rows comes instead; empty for nothing to say.

    Raises:
        TypeError: not a whole number.
        IndexError: a number outside [−length, length).

    Example:
        >>> row_number("ImageDataset", -1, 5)
        4
    """
    try:
        number = operator.index(row)
    except Exception:  # of a tensor without data it is a RuntimeError
        way = f"; {hint}" if hint and isinstance(row, list) else ""
        raise TypeError(f"{caller}: expected a row number, got {shown(row)}{way}") from None
    if not -length <= number < length:
        raise IndexError(f"{caller}: expected a row from 0 to {length - 1}, got {shown(number)}")
    return number % length


def row_numbers(argument: str, rows: Any, count: int) -> np.ndarray:
    """Row numbers of any shape as int64.

    Raises:
        ValueError: not whole numbers, or outside [0, count).

    Example:
        >>> row_numbers("i", [[0, 2]], 3).tolist()
        [[0, 2]]
    """
    array = as_array(None, argument, rows, "row numbers")
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise Refusal(argument, f"array of {array.dtype}", "row numbers")
    if not 0 <= array.min() <= array.max() < count:
        worst = array.max() if array.max() >= count else array.min()
        raise Refusal(argument, int(worst), f"row numbers from 0 to {count - 1}")
    return array.astype(np.int64, copy=False)


def rows_at(index: Any, length: int) -> np.ndarray:
    """The row numbers, int64 [t], that an int, a slice or an int array selects from a sequence of `length`.

    Raises:
        IndexError: a number outside [−length, length), or no whole numbers at all.

    Example:
        >>> rows_at(slice(-2, None), 5).tolist(), rows_at([-1, 0], 5).tolist()
        ([3, 4], [4, 0])
    """
    try:
        if isinstance(index, slice):
            return np.arange(*index.indices(length), dtype=np.int64)
        rows = np.atleast_1d(np.asarray(index))
    except Exception:  # slice bounds that are not numbers, or a tensor without data
        rows = np.empty(0, dtype=object)
    if not rows.size and rows.dtype != object:
        return np.empty(0, dtype=np.int64)
    if rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise IndexError(f"expected a whole number, a slice or whole numbers [t], got {shown(index)}")
    if rows.dtype == np.uint64:
        rows = np.minimum(rows, np.uint64(2**63 - 1))  # longer than any sequence, and refused below
    rows = rows.astype(np.int64)
    if rows.min() < -length or rows.max() >= length:
        worst = rows.max() if rows.max() >= length else rows.min()
        raise IndexError(f"expected numbers from {-length} to {length - 1}, got {worst}")
    return np.where(rows < 0, rows + length, rows)
