"""The queries of labelled images, and the nth positive and the nth negative of each, without a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from tercet.core.checks import Refusal, as_choice, as_int, as_seed, border, label_codes, refusal
from tercet.core.randomness import derive_key, keyed_bits, permute

__all__ = ["ClassQueries"]


class ClassQueries(ABC):
    """What `RandomTriplets` and `RandomPairs` share: all but how positives and negatives are combined.

    `_rows` holds the images sorted by class and, with groups, by group within the class. A cell is a class,
    or the images of one group in a class. All queries of a cell have the same number of positives, so one
    binary search leads from the number of a triplet to its cell, its query and its slot within the query.
    """

    kind = ""
    _stream = ""  # part of the random key; fixed, so that a renamed subclass draws the same

    def __init__(
        self,
        labels: Any,
        positives: int = 1,
        negatives: int = 1,
        seed: int = 0,
        *,
        negatives_from: str = "images",
        groups: Any = None,
        limit: int | None = None,
    ) -> None:
        caller = type(self).__name__
        codes, classes = label_codes(caller, labels)
        self.positives = as_int(caller, "positives", positives, minimum=1)
        self.negatives = as_int(caller, "negatives", negatives, minimum=1)
        self.seed = as_seed(caller, seed)
        self.negatives_from = as_choice(caller, "negatives_from", negatives_from, ("images", "classes"))
        self.limit = None if limit is None else as_int(caller, "limit", limit, minimum=1)
        self._key = derive_key(self._stream, self.seed)
        self._sizes = np.bincount(codes)  # [classes]
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._refuse_too_few(len(codes), len(classes))
        cells = self._sort_into_cells(codes, groups)
        others = self._count_others(len(classes))
        queries = self._choose_queries(codes, cells, others)
        self._number(queries, others)
        if self.negatives_from == "classes":
            self._plan_rounds()

    def _refuse_too_few(self, images: int, classes: int) -> None:
        """Refuse labels that leave no negative or no positive."""
        caller = type(self).__name__
        if classes < 2:
            found, expected = f"{images} images of 1 class", "images of 2 classes or more"
            raise refusal(caller, "labels", found, expected, "a negative is of another class")
        if self._sizes.max() < 2:
            found, expected = f"{classes} classes of 1 image", "a class of 2 images or more"
            raise refusal(caller, "labels", found, expected, "a positive is another image of it")

    def _sort_into_cells(self, codes: Int64[np.ndarray, " n"], groups: Any) -> Int64[np.ndarray, " n"]:
        """Sort the images by cell, and give the cell of each image."""
        self._grouped = groups is not None
        with border(type(self).__name__):
            cells, self.groups = (codes, 0) if groups is None else _cells(codes, groups)
        self._rows = np.argsort(cells, kind="stable")  # images, class by class; a place is a position here
        self._cell_size = np.bincount(cells)
        self._cell_start = np.cumsum(self._cell_size) - self._cell_size
        self._cell_label = codes[self._rows[self._cell_start]]
        return cells

    def _count_others(self, classes: int) -> Int64[np.ndarray, " c"]:
        """How many positives there are for a query of each cell."""
        others = self._sizes[self._cell_label] - (self._cell_size if self._grouped else 1)
        self.alone = int((self._sizes == 1).sum())
        self.same_group = int(self._cell_size[others == 0].sum()) - self.alone
        if not others.any():
            found, expected = f"one group in each of {classes} classes", "two groups in a class"
            hint = "a positive is of another group than its query"
            raise refusal(type(self).__name__, "groups", found, expected, hint)
        return others

    def _choose_queries(
        self, codes: Int64[np.ndarray, " n"], cells: Int64[np.ndarray, " n"], others: Int64[np.ndarray, " c"]
    ) -> Int64[np.ndarray, " c"]:
        """Choose the queries, all that have a positive unless there is a limit; how many each cell has."""
        self._chosen = None  # the places of the queries; None where a cell is all queries or none
        self._first, queries = self._cell_start, np.where(others > 0, self._cell_size, 0)
        able = int(queries.sum())
        if self.limit is not None and self.limit < self._sizes.max():
            places = np.flatnonzero(others[cells[self._rows]] > 0)
            self._chosen = self._keyed_choice(codes, places, self.limit)
            queries = np.bincount(cells[self._rows[self._chosen]], minlength=len(others))
            self._first = np.cumsum(queries) - queries
        self.queries = int(queries.sum())
        self.over_limit = able - self.queries
        return queries

    def _number(self, queries: Int64[np.ndarray, " c"], others: Int64[np.ndarray, " c"]) -> None:
        """Number the triplets or pairs cell by cell: where the numbers of each cell begin and end."""
        most = len(self._rows)  # an option that no int64 holds is cut to it
        self._positives = np.minimum(min(self.positives, most), others)  # of a query in each cell
        self._negatives = np.minimum(min(self.negatives, most), most - self._sizes)  # by class
        self._per_query = self._slots(self._positives, self._negatives[self._cell_label])
        if (queries * self._per_query.astype(float)).sum() >= 2.0**63:
            expected = f"fewer than 2⁶³ {self.kind}"
            raise refusal(type(self).__name__, "positives", self.positives, expected, "lower it or negatives")
        self._ends = np.cumsum(queries * self._per_query)
        self._begins = self._ends - queries * self._per_query

    def _plan_rounds(self) -> None:
        """Prepare `_negative_by_class`: the classes by size, and the images before each round."""
        self._by_size = np.argsort(-self._sizes, kind="stable")
        self._rank = np.argsort(self._by_size)
        having = np.cumsum(np.bincount(self._sizes)[::-1])[::-1]  # classes of r images or more, at r
        self._having = np.append(having[1:], 0)  # of more than r images
        self._before = np.cumsum(self._having) - self._having  # images of rounds before r
        self._before_others = self._before - np.arange(len(self._before))  # while the own class has any

    @abstractmethod
    def _slots(self, positives: Int64[np.ndarray, " c"], negatives: Int64[np.ndarray, " c"]) -> np.ndarray:
        """How many triplets or pairs a query has."""

    def _keyed_choice(
        self, codes: Int64[np.ndarray, " n"], places: Int64[np.ndarray, " m"], limit: int
    ) -> Int64[np.ndarray, " k"]:
        """`limit` places in each class, those with the smallest bits, so a larger limit adds to them."""
        rows = self._rows[places]
        bits = keyed_bits(derive_key("ClassQueries", "limit", self.seed), rows)
        order = np.lexsort((bits, codes[rows]))
        label = codes[rows[order]]
        nth = np.arange(len(order)) - np.searchsorted(label, label)  # within the class
        return np.sort(places[order[nth < limit]])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        more = "" if self.negatives_from == "images" else f", negatives_from={self.negatives_from!r}"
        more += f", {self.groups} groups" if self._grouped else ""
        more += "" if self.limit is None else f", limit={self.limit}"
        return (
            f"{type(self).__name__}({len(self)} {self.kind}: {self.queries} queries, "
            f"positives={self.positives}, negatives={self.negatives}, seed={self.seed}{more})"
        )

    def _located(
        self, number: Int64[np.ndarray, " t"]
    ) -> tuple[
        Int64[np.ndarray, " t"], Int64[np.ndarray, " t"], Int64[np.ndarray, " t"], Int64[np.ndarray, " t"]
    ]:
        """The cell of each triplet or pair, its class, the place of its query, and its slot in the query."""
        cell = np.searchsorted(self._ends, number, side="right")
        per_query = self._per_query[cell]
        within = number - self._begins[cell]
        query = within // per_query
        slot = within - query * per_query
        place = self._first[cell] + query
        if self._chosen is not None:
            place = self._chosen[place]
        return cell, self._cell_label[cell] if self._grouped else cell, place, slot

    def _positive(
        self,
        cell: Int64[np.ndarray, " t"],
        label: Int64[np.ndarray, " t"],
        place: Int64[np.ndarray, " t"],
        nth: Int64[np.ndarray, " t"],
        key: UInt64[np.ndarray, " t"],
    ) -> Int64[np.ndarray, " t"]:
        """The row of the nth positive: an image of the class, except the query itself or its group."""
        start = self._starts[label]
        if self._grouped:
            begin, width = self._cell_start[cell] - start, self._cell_size[cell]
        else:
            begin, width = place - start, 1
        position = permute(nth, self._sizes[label] - width, key)
        position += width * (position >= begin)
        return self._rows[start + position]

    def _negative(
        self, label: Int64[np.ndarray, " t"], nth: Int64[np.ndarray, " t"], key: UInt64[np.ndarray, " t"]
    ) -> Int64[np.ndarray, " t"]:
        """The row of the nth negative."""
        if self.negatives_from == "classes":
            return self._negative_by_class(label, nth, key)
        size, start = self._sizes[label], self._starts[label]
        position = permute(nth, len(self._rows) - size, key)
        position += size * (position >= start)  # skips the class, which is contiguous in _rows
        return self._rows[position]

    def _negative_by_class(
        self, label: Int64[np.ndarray, " t"], nth: Int64[np.ndarray, " t"], key: UInt64[np.ndarray, " t"]
    ) -> Int64[np.ndarray, " t"]:
        """The row of the nth negative, one of each class before a second of any.

        Round r takes one image of each other class with more than r images, in a random order of the round.
        These classes are the first of `_by_size`. The rounds before r take before_r − min(r, n_c) images,
        where n_c is the size of the query's class; r is the last round for which this is at most nth.
        """
        size = self._sizes[label]
        last = np.searchsorted(self._before_others, nth, side="right") - 1
        late = np.searchsorted(self._before, nth + size, side="right") - 1
        round_ = np.where(last < size, last, late)
        nth = nth - self._before[round_] + np.minimum(round_, size)
        own = size > round_  # the query's class is among those of the round, and is skipped
        position = permute(nth, self._having[round_] - own, keyed_bits(key, 0, round_))
        position += own & (position >= self._rank[label])
        other = self._by_size[position]
        image = permute(round_, self._sizes[other], keyed_bits(key, 1, other))
        return self._rows[self._starts[other] + image]

    def provenance(self) -> dict[str, Any]:
        """The provenance for a manifest: the strategy, its parameters and its counts."""
        counts = {"queries": self.queries, "images alone in their class": self.alone}
        if self._grouped:
            counts |= {"groups": self.groups, "images of classes of one group": self.same_group}
        if self.limit is not None:
            counts["images over the limit"] = self.over_limit
        names = ("positives", "negatives", "seed", "negatives_from", "limit")
        parameters = {name: getattr(self, name) for name in names}
        return {"strategy": "random", "parameters": parameters, "counts": counts}


def _cells(codes: Int64[np.ndarray, " n"], groups: Any) -> tuple[Int64[np.ndarray, " n"], int]:
    """The number of each image's (class, group), sorted by class first; and how many groups there are."""
    numbers, names = label_codes(None, groups, "groups")
    if numbers.shape != codes.shape:
        found, expected = f"{len(numbers)} groups", f"one group for each of {len(codes)} labels"
        raise Refusal("groups", found, expected)
    return np.unique(codes * len(names) + numbers, return_inverse=True)[1].astype(np.int64), len(names)
