"""How relevant two images of a class are to each other: numbers in [0, 1] from four kinds of sources."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from tercet.core.checks import Refusal, as_bool, border, refusal
from tercet.core.indices import row_numbers
from tercet.data.io.positional import NpyFile
from tercet.data.io.tables import read_columns

__all__ = [
    "FolderRelevance",
    "FunctionRelevance",
    "Relevance",
    "TableRelevance",
    "TeacherRelevance",
    "unit_rows",
]

_STEPS = 2**11  # teacher coordinates are whole multiples of 1 / _STEPS
CELLS = 2**18  # coordinates converted to float32 at a time: 1 MB, which stays in the cache
_MOST = 2**31  # the bound of row numbers, so that two of them fit into one int64


@runtime_checkable
class Relevance(Protocol):
    """The protocol of `relevance=`: r of pairs of row numbers, independent of the other pairs of a call."""

    def check(self, count: int, /) -> None:
        """Check that it covers rows 0 to count − 1.

        Args:
            count: the number of images.

        Raises:
            ValueError: it does not.
        """
        ...

    def of(
        self, rows: Int[np.ndarray, "*b a"], columns: Int[np.ndarray, "*b r"], /
    ) -> Float[np.ndarray, "*b a r"]:
        """The relevance of columns to rows, as a new array.

        Args:
            rows: int [*b, a], row numbers of images; leading axes are batches.
            columns: int [*b, r], row numbers of images.

        Returns:
            Floats [*b, a, r], each from 0 to 1.
        """
        ...

    def pairs(self, i: Int[np.ndarray, " t"], j: Int[np.ndarray, " t"], /) -> Float[np.ndarray, " t"]:
        """The relevance of row j[k] to row i[k].

        Args:
            i, j: int [t] each, row numbers of images.

        Returns:
            Floats [t], each from 0 to 1.
        """
        ...


class TeacherRelevance:
    """Relevance by the cosine of a teacher model's embeddings, 0 where it is negative.

        r_ij = max(0, x_i · x_j),  ‖x_i‖ = 1

    Coordinates are rounded to multiples of 2⁻¹¹, so that float32 sums of their products are exact in any
    order, and relevances are the same on every machine and for blocks of any shape. Sums are divided by the
    lengths of the rounded rows, so equal rows have r = 1. Rounding changes a cosine by about 2·10⁻⁴ +
    2·10⁻⁸·d, and by at most 2·asin(√d / 4096): 0.03 at d = 2048, 0.19 at 150528. It takes 2·n·d bytes. A row
    of zeros has r = 0.

    Args:
        embeddings: [n, d] numbers of any scale; or the path of a .npy file of them, which is read once, in
            blocks of rows.

    Raises:
        ValueError: no such file, not [n, d], or a number that is not finite.

    Example:
        >>> teacher = TeacherRelevance(np.array([[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]))
        >>> teacher.of(np.array([0]), np.array([0, 1, 2])).round(3).tolist()
        [[1.0, 0.6000000238418579, 0.0]]
    """

    def __init__(self, embeddings: Any) -> None:
        with border(type(self).__name__, "embeddings"):
            self._round(_opened(embeddings))

    def _round(self, array: np.ndarray | NpyFile) -> None:
        """Keep unit rows as whole multiples of 1 / _STEPS, and the length of each."""
        if len(array.shape) != 2 or not math.prod(array.shape) or array.dtype.kind not in "fiu":
            found = f"array of {array.dtype} {list(array.shape)}"
            raise Refusal(None, found, "numbers [n, d], one row for each image")
        n, d = array.shape
        self._steps: np.ndarray = np.empty(array.shape, dtype=np.int16)
        self._scale = np.empty(n)  # 1 / length of the rounded row
        rows = max(1, CELLS // d)
        for first in range(0, n, rows):
            block = np.array(array[first : first + rows], dtype=np.float64)
            if not np.isfinite(block).all():
                bad = int(first + np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise Refusal(None, f"row {bad} with NaN or infinity", "finite numbers")
            block = np.rint(unit_rows(block) * _STEPS)
            self._steps[first : first + rows] = block
            square = np.square(block).sum(axis=1)  # of whole numbers, so exact in any order
            self._scale[first : first + rows] = 1 / np.sqrt(np.maximum(square, 1))

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"TeacherRelevance({len(self)} images, {self._steps.shape[1]} dimensions)"

    def check(self, count: int) -> None:
        """Check that there is one embedding for each image.

        Args:
            count: the number of images.

        Raises:
            ValueError: another number of embeddings.
        """
        _same_count(self, count)

    def of(
        self, rows: Int[np.ndarray, "*b a"], columns: Int[np.ndarray, "*b r"]
    ) -> Float[np.ndarray, "*b a r"]:
        """The relevance of columns to rows, float32.

        Args:
            rows: int [*b, a], row numbers of images; leading axes are batches.
            columns: int [*b, r], row numbers of images.

        Returns:
            float32 [*b, a, r], each from 0 to 1.

        Raises:
            ValueError: a row number of no image.
        """
        rows, columns = _known(self, rows), _known(self, columns)
        a, r, d = rows.shape[-1], columns.shape[-1], self._steps.shape[1]
        batches = math.prod(rows.shape[:-1])
        left, right = rows.reshape(batches, a), columns.reshape(batches, r)
        out = np.empty((batches, a, r), dtype=np.float32)
        width = max(1, min(r, CELLS // d))
        height = max(1, CELLS // (width * d))
        for b in range(0, batches, height):
            ours = self._steps[left[b : b + height]].astype(np.float32)  # [h, a, d]
            for first in range(0, r, width):
                theirs = self._steps[right[b : b + height, first : first + width]].astype(np.float32)
                np.matmul(ours, theirs.transpose(0, 2, 1), out=out[b : b + height, :, first : first + width])
            one, other = self._scale[left[b : b + height], None], self._scale[right[b : b + height]][:, None]
            for first in range(0, a, tall := max(1, CELLS // max(1, height * r))):
                _cosine(out[b : b + height, first : first + tall], one[:, first : first + tall] * other)
        return out.reshape(*rows.shape, r)

    def pairs(self, i: Int[np.ndarray, " t"], j: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """The relevance of row j[k] to row i[k], float32.

        Args:
            i, j: int [t] each, row numbers of images.

        Returns:
            float32 [t], each from 0 to 1.

        Raises:
            ValueError: a row number of no image.
        """
        i, j = _known(self, i), _known(self, j)
        out = np.empty(len(i), dtype=np.float32)
        step = max(1, CELLS // self._steps.shape[1])
        for first in range(0, len(i), step):
            part = slice(first, first + step)
            ours, theirs = (self._steps[rows[part]].astype(np.float32) for rows in (i, j))
            out[part] = np.einsum("td,td->t", ours, theirs)
        return _cosine(out, self._scale[i] * self._scale[j])


class FolderRelevance:
    """Relevance by the share of the folders in their paths that two images have in common.

        r_ij = (leading folders that agree) / (folders on the longer of the two paths)

    Two images of one folder have r = 1. If a class folder contains two folders, images of one of them have
    r = 1 to each other and 1/2 to those of the other.

    Args:
        paths: [n] the path of each image, with forward slashes, such as `catalog.paths`.

    Raises:
        ValueError: no paths, or an item that is not a path.

    Example:
        >>> folders = FolderRelevance(["ant/red/1.png", "ant/red/2.png", "ant/black/1.png", "bee/1.png"])
        >>> folders.of(np.array([0]), np.arange(4)).tolist()
        [[1.0, 1.0, 0.5, 0.0]]
    """

    def __init__(self, paths: Any) -> None:
        caller = type(self).__name__
        try:
            names: list[Any] = [os.fspath(path) for path in paths]
        except Exception:  # not iterable, or not of paths
            names = []
        if not names or isinstance(paths, (str, Mapping)) or not all(isinstance(name, str) for name in names):
            raise refusal(caller, "paths", paths, "one path for each of 1 or more images")
        number: dict[str, int] = {}
        self._folder = np.array([number.setdefault(name.rpartition("/")[0], len(number)) for name in names])
        ways = [[part for part in folder.split("/") if part not in ("", ".")] for folder in number]
        self._depth = np.array([len(way) for way in ways])
        # [folders, levels]: equal numbers at a level mean equal paths down to it; −1 is below the folder
        self._ways = np.full((len(ways), self._depth.max()), -1, dtype=np.int64)
        prefixes: dict[tuple[str, ...], int] = {}
        for row, way in zip(self._ways, ways, strict=True):
            row[: len(way)] = [
                prefixes.setdefault(tuple(way[: n + 1]), len(prefixes)) for n in range(len(way))
            ]

    def __len__(self) -> int:
        return len(self._folder)

    def __repr__(self) -> str:
        return f"FolderRelevance({len(self)} images, {len(self._depth)} folders)"

    def check(self, count: int) -> None:
        """Check that there is one path for each image.

        Args:
            count: the number of images.

        Raises:
            ValueError: another number of paths.
        """
        _same_count(self, count)

    def of(
        self, rows: Int[np.ndarray, "*b a"], columns: Int[np.ndarray, "*b r"]
    ) -> Float[np.ndarray, "*b a r"]:
        """The relevance of columns to rows, float64.

        Args:
            rows: int [*b, a], row numbers of images; leading axes are batches.
            columns: int [*b, r], row numbers of images.

        Returns:
            float64 [*b, a, r], each from 0 to 1.

        Raises:
            ValueError: a row number of no image.
        """
        return self._share(_known(self, rows)[..., :, None], _known(self, columns)[..., None, :])

    def pairs(self, i: Int[np.ndarray, " t"], j: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """The relevance of row j[k] to row i[k], float64.

        Args:
            i, j: int [t] each, row numbers of images.

        Returns:
            float64 [t], each from 0 to 1.

        Raises:
            ValueError: a row number of no image.
        """
        return self._share(_known(self, i), _known(self, j))

    def _share(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        ours, theirs = self._folder[i], self._folder[j]
        longer = np.maximum(self._depth[ours], self._depth[theirs])
        equal = longer - self._ways.shape[1]  # levels below both folders are −1 in both: subtracted
        for level in self._ways.T:
            equal = equal + (level[ours] == level[theirs])
        return np.where(longer > 0, equal / np.maximum(longer, 1), 1.0)


class TableRelevance:
    """Relevance from a table of pairs, 0 for pairs that are not in it.

    Args:
        i, j: [m] row numbers of images.
        r: [m] the relevance of j to i, from 0 to 1.
        symmetric: r_ji = r_ij for each pair; False takes the table as it is.

    Raises:
        ValueError: columns of unequal length, invalid row numbers, r out of [0, 1], or a pair with two
            relevances.

    Example:
        >>> table = TableRelevance([0, 0], [1, 2], [0.9, 0.4])
        >>> table.of(np.array([0, 1]), np.arange(3)).tolist()
        [[0.0, 0.9, 0.4], [0.9, 0.0, 0.0]]
    """

    def __init__(self, i: Any, j: Any, r: Any, *, symmetric: bool = True) -> None:
        with border(type(self).__name__):
            symmetric = as_bool(None, "symmetric", symmetric)
            i, j, r = _columns(i, j, r)
            self._keys, self._values = _merged(i, j, r, symmetric)
        self._highest = int(max(i.max(initial=-1), j.max(initial=-1)))

    @classmethod
    def read(cls, path: str | Path, *, symmetric: bool = True) -> TableRelevance:
        """Read a table with columns i, j and r, .csv or .parquet.

        Args:
            path: the table.
            symmetric: r_ji = r_ij for each pair; False takes the table as it is.

        Returns:
            The relevance of the pairs in the table.

        Raises:
            ValueError: not such a table, invalid row numbers, r out of [0, 1], or a pair with two relevances.

        Example:
            >>> _ = Path("relevance.csv").write_text("i,j,r\\n0,1,0.9\\n")
            >>> TableRelevance.read("relevance.csv")
            TableRelevance(2 pairs)
        """
        with border(f"{cls.__name__}.read"):
            columns = read_columns(path, others=(), numbers=("r",), integers=("i", "j"))
        return cls(columns["i"], columns["j"], columns["r"], symmetric=symmetric)

    def __repr__(self) -> str:
        return f"TableRelevance({len(self._keys)} pairs)"

    def check(self, count: int) -> None:
        """Check that all row numbers of the table are those of images.

        Args:
            count: the number of images.

        Raises:
            ValueError: the table has a row number of `count` or more.
        """
        if self._highest >= count:
            expected = f"row numbers from 0 to {count - 1}, as there are {count} labels"
            raise Refusal("relevance", f"{self} with row {self._highest}", expected)

    def of(
        self, rows: Int[np.ndarray, "*b a"], columns: Int[np.ndarray, "*b r"]
    ) -> Float[np.ndarray, "*b a r"]:
        """The relevance of columns to rows, float64.

        Args:
            rows: int [*b, a], row numbers of images; leading axes are batches.
            columns: int [*b, r], row numbers of images.

        Returns:
            float64 [*b, a, r], each from 0 to 1; 0 for pairs that are not in the table.

        Raises:
            ValueError: not row numbers.
        """
        return self._found(rows[..., :, None], columns[..., None, :])

    def pairs(self, i: Int[np.ndarray, " t"], j: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """The relevance of row j[k] to row i[k], float64.

        Args:
            i, j: int [t] each, row numbers of images.

        Returns:
            float64 [t], each from 0 to 1; 0 for pairs that are not in the table.

        Raises:
            ValueError: not row numbers.
        """
        return self._found(i, j)

    def _found(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        with border(type(self).__name__):
            i, j = (row_numbers(name, rows, _MOST) for name, rows in (("i", i), ("j", j)))
        wanted = i << 32 | j
        if not self._keys.size:
            return np.zeros(wanted.shape)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[place] == wanted, self._values[place], 0.0)


def _columns(
    i: Any, j: Any, r: Any
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The columns of a table of relevances, each checked, and against the others."""
    i, j = (row_numbers(name, values, _MOST) for name, values in (("i", i), ("j", j)))
    expected = "a number from 0 to 1 for each pair"
    try:
        values = np.asarray(r, dtype=np.float64)
    except Exception:
        raise Refusal("r", r, expected) from None
    if not i.shape == j.shape == values.shape:
        shapes = ", ".join(str(list(column.shape)) for column in (i, j, values))
        raise Refusal("r", f"i, j and r of shapes {shapes}", "three columns of equal length")
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN too
    if bad.size:
        raise Refusal("r", f"{values[bad[0]]} of rows {i[bad[0]]} and {j[bad[0]]}", expected)
    return i, j, values


def _merged(
    i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"], r: Float[np.ndarray, " m"], symmetric: bool
) -> tuple[Int[np.ndarray, " u"], Float[np.ndarray, " u"]]:
    """The distinct pairs as rising keys i · 2³² + j, and the relevance of each; refused where it has two."""
    keys = i << 32 | j
    if symmetric:
        keys, r = np.append(keys, j << 32 | i), np.append(r, r)
    order = np.argsort(keys, kind="stable")
    keys, r = keys[order], r[order]
    again = keys[1:] == keys[:-1]
    two = np.flatnonzero(again & (r[1:] != r[:-1]))
    if two.size:
        (row, column), which = divmod(int(keys[two[0]]), 2**32), r[two[0] : two[0] + 2]
        found = f"{which[0]} and {which[1]} of rows {row} and {column}"
        hint = "pass symmetric=False if r_ij and r_ji differ" if symmetric else ""
        raise Refusal("r", found, "one relevance for each pair", hint)
    once = np.append(True, ~again)[: len(keys)]
    return keys[once], r[once]


class FunctionRelevance:
    """Relevance by a function of two arrays of row numbers.

    Args:
        function: called as `function(i, j)` with int64 [t] each; returns the relevance of j[k] to i[k], [t]
            numbers from 0 to 1. The relevance of a pair must not depend on the other pairs of the call.

    Raises:
        ValueError: not callable; or, when called, a result of another shape or out of [0, 1].

    Example:
        >>> near_in_time = FunctionRelevance(lambda i, j: 1 / (1 + abs(i - j)))
        >>> near_in_time.of(np.array([0, 2]), np.array([0, 1])).tolist()
        [[1.0, 0.5], [0.3333333333333333, 0.5]]
    """

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], Any]) -> None:
        if not callable(function):
            raise refusal(type(self).__name__, "function", function, "a function of two row arrays")
        self._function = function

    def __repr__(self) -> str:
        name = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        return f"FunctionRelevance({name})"

    def check(self, count: int) -> None:
        """Accept any number of images: the function is only called for existing rows.

        Args:
            count: the number of images.
        """

    def of(
        self, rows: Int[np.ndarray, "*b a"], columns: Int[np.ndarray, "*b r"]
    ) -> Float[np.ndarray, "*b a r"]:
        """The relevance of columns to rows, float64.

        Args:
            rows: int [*b, a], row numbers of images; leading axes are batches.
            columns: int [*b, r], row numbers of images.

        Returns:
            float64 [*b, a, r], each from 0 to 1.

        Raises:
            ValueError: the function gives another shape, or numbers out of [0, 1].
        """
        i, j = np.broadcast_arrays(rows[..., :, None], columns[..., None, :])
        return self.pairs(i.ravel(), j.ravel()).reshape(i.shape)

    def pairs(self, i: Int[np.ndarray, " t"], j: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """The relevance of row j[k] to row i[k], float64.

        Args:
            i, j: int [t] each, row numbers of images.

        Returns:
            float64 [t], each from 0 to 1.

        Raises:
            ValueError: the function gives another shape, or numbers out of [0, 1].
        """
        caller, result = type(self).__name__, self._function(i, j)
        expected = "a number from 0 to 1 for each pair"
        try:
            r = np.array(result)
            r = r.astype(np.float64, copy=False, casting="unsafe" if r.dtype.kind == "O" else "same_kind")
        except (TypeError, ValueError):  # also for complex numbers and strings
            raise refusal(caller, "function", f"it gave {result!r}", expected) from None
        if r.shape != i.shape:
            raise refusal(caller, "function", f"it gave shape {r.shape} for {len(i)} pairs", expected)
        bad = np.flatnonzero(~((r >= 0) & (r <= 1)))  # NaN too
        if bad.size:
            found = f"it gave {r[bad[0]]} for rows {i[bad[0]]} and {j[bad[0]]}"
            raise refusal(caller, "function", found, expected)
        return r


def _opened(embeddings: Any) -> np.ndarray | NpyFile:
    """An array unchanged, or an open .npy file for a path."""
    if not isinstance(embeddings, (str, os.PathLike)):
        try:
            return np.asarray(embeddings)
        except Exception as error:  # a tensor with a gradient, or of bfloat16
            found, hint = (
                type(embeddings).__name__,
                "convert a tensor with .detach().cpu().float().numpy()",
            )
            raise Refusal("embeddings", found, "an array [n, d]", hint) from error
    expected = "an existing .npy file of numbers [n, d]"
    if Path(embeddings).suffix != ".npy" or not Path(embeddings).is_file():
        raise Refusal("embeddings", os.fspath(embeddings), expected)
    return NpyFile(Path(embeddings))


def unit_rows(rows: Any) -> Float[np.ndarray, "n d"]:
    """Rows scaled to length 1, in float64; a row of zeros stays zero."""
    unit = np.array(rows, dtype=np.float64)
    largest = np.abs(unit).max(axis=1, initial=0, keepdims=True)
    unit /= np.where(largest > 0, largest, 1)  # so that no square overflows
    lengths = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))  # 1 or more, or 0
    return np.divide(unit, np.maximum(lengths, 1), out=unit)


def _cosine(sums: Float[np.ndarray, "*n"], scale: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Convert sums of products to cosines in place, negative ones to 0."""
    np.multiply(sums, scale, out=sums, casting="same_kind")  # in float64, rounded once
    return np.clip(sums, 0, 1, out=sums)


def _same_count(relevance: Any, count: int) -> None:
    if len(relevance) != count:
        raise Refusal("relevance", relevance, f"one of {count} images, as there are {count} labels")


def _known(relevance: Any, rows: np.ndarray) -> np.ndarray:
    """Row numbers, refused where the relevance has no such image."""
    with border(type(relevance).__name__):
        return row_numbers("rows", rows, len(relevance))
