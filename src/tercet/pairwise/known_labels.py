"""Which rows are positives of which, by class numbers on the host, before an accelerator is asked."""

from __future__ import annotations

import numpy as np

__all__ = ["positive_pairs", "positive_table"]

Listed = tuple[np.ndarray, np.ndarray]


def positive_pairs(of_row: np.ndarray, sizes: np.ndarray) -> Listed:
    """The rows and columns of all positive pairs, by row and then by column.

    Args:
        of_row: the class of each row, [n].
        sizes: how many rows each class has.

    Example:
        >>> positive_pairs(np.array([0, 1, 0, 0]), np.array([3, 1]))
        (array([0, 0, 2, 2, 3, 3]), array([2, 3, 0, 3, 0, 2]))
    """
    by_class, first = of_row.argsort(kind="stable"), sizes.cumsum() - sizes
    count = sizes[of_row]
    row = np.repeat(np.arange(len(of_row)), count)
    within = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
    column = by_class[first[of_row[row]] + within]
    other = row != column
    return row[other], column[other]


def positive_table(pairs: Listed | None, rows: int, widest: int) -> Listed | None:
    """The positives of each row as a table, where that is no waste.

    Args:
        pairs: from `positive_pairs`; None where they are not known.
        rows: how many rows there are, each with a positive.
        widest: the most columns that the table may have.

    Returns:
        Columns [n, p], rising in each row, where a row that has fewer repeats its last; and how many each row
        has, [n]. None where more than half of the table would be repetitions.

    Example:
        >>> positive_table(positive_pairs(np.array([0, 1, 0, 0, 1]), np.array([3, 2])), 5, widest=2)
        (array([[2, 3],
               [4, 4],
               [0, 3],
               [0, 2],
               [1, 1]]), array([2, 1, 2, 2, 1]))
    """
    if pairs is None:
        return None
    row, column = pairs
    counts = np.bincount(row, minlength=rows)
    p = int(counts.max())
    if p > widest or 2 * len(row) < p * rows:
        return None
    if len(row) == p * rows:
        return column.reshape(rows, p), counts
    within = np.minimum(np.arange(p), counts[:, None] - 1)
    return column[(counts.cumsum() - counts)[:, None] + within], counts
