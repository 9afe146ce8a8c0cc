"""Relations of pairs: some pairs ignored, a table of pairs, a function of two rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_choice, promised, refusal
from tercet.pairwise.inputs import answer_later, lack_of_data
from tercet.pairwise.relations import (
    Relation,
    SameLabel,
    SharedLabel,
    as_relation,
    label_rows,
    whole_numbers,
)

__all__ = ["Ignore", "PairFunction", "PairTable"]

_WHERE = ("same", "other")


@dataclass(frozen=True)
class Ignore:
    """Some positives or negatives of another relation are neither, by a number beside each row's label.

    Labels are [n, c + 1]: those of the other relation, and in the last column the number.

    - Classes made from others by augmentation, as a character and the same one turned by 90°, may look alike
      and are then no negatives of each other. The number is the character's: `negatives="same"`.
    - Two data sets whose labels are not comparable, so that an identity may be in both: the number is the
      data set's: `negatives="other"`.
    - Positives of the same video are too easy: the number is the video's: `positives="same"`, which
      `CrossGroup()` is, by its faster way.

    Args:
        negatives: which negatives are ignored: those of the "same" number, of an "other", or None.
        positives: which positives are ignored: those of the "same" number, of an "other", or None.
        relation: whose pairs these are. Its labels are whole numbers.

    Raises:
        ValueError: neither of the two, another word, or no relation.

    Example:
        >>> from tercet import BatchAll, Ignore
        >>> import torch
        >>> labels = torch.tensor([[0, 7], [0, 7], [1, 7], [2, 8]])  # class, character; 1 is 0 turned
        >>> x = torch.arange(8.0).reshape(4, 2)
        >>> BatchAll(relation=Ignore(negatives="same"))(x, labels).negative.tolist()
        [3, 3]
    """

    negatives: str | None = None
    positives: str | None = None
    relation: Relation = field(default_factory=SameLabel)
    _takes_one: bool = field(init=False, repr=False, compare=False)  # whether the other's labels are [n]

    def __post_init__(self) -> None:
        for name, value in (("negatives", self.negatives), ("positives", self.positives)):
            if value is not None:
                as_choice("Ignore", name, value, _WHERE)
        if self.negatives is None and self.positives is None:
            hint = 'as negatives="same"'
            raise refusal("Ignore", "negatives", None, "which negatives or positives are neither", hint)
        as_relation("Ignore", self.relation)
        object.__setattr__(self, "_takes_one", _takes_one_label(self.relation))

    @property
    def is_symmetric(self) -> bool:
        """True where the other relation is, since equality is."""
        return bool(promised(self.relation, "is_symmetric", "sides"))

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, "n c1"]:
        """Labels [n, c + 1] as int64.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n, c + 1] of whole numbers: labels as the other relation takes them, and the
                number by which pairs are ignored.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n, c + 1] on `device`.

        Raises:
            ValueError: labels of another kind or shape, or ones that the other relation refuses.
        """
        found = whole_numbers(caller, argument, labels, count, device, "labels and the number to ignore by")
        if found.shape[1] < 2:
            expected = f"shape ({count}, c + 1), labels and the number to ignore by"
            raise refusal(caller, argument, f"shape {tuple(found.shape)}", expected)
        inner = self.relation.check(caller, argument, self._inner(found), count, device)
        if inner.is_floating_point() and not isinstance(self.relation, SharedLabel):
            expected = "a relation whose labels are whole numbers"
            raise refusal(caller, "relation", f"Ignore(relation={self.relation!r})", expected)
        return found

    def key(self, labels: Int[Tensor, "n c1"]) -> Int[Tensor, " n"] | None:
        """The other relation's key where all its negatives are kept; else None.

        Args:
            labels: int64 [n, c + 1].

        Returns:
            int64 [n], or None.
        """
        return self.relation.key(self._inner(labels)) if self.negatives is None else None

    def sides(
        self, rows: Int[Tensor, "a c1"], columns: Int[Tensor, "r c1"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """The other relation's sides, without the pairs that are ignored.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.
        """
        positive, negative = self.relation.sides(self._inner(rows), self._inner(columns))
        same = rows[:, None, -1] == columns[None, :, -1]  # [a, r]
        for side, where in ((positive, self.positives), (negative, self.negatives)):
            if where is not None:
                side &= ~same if where == "same" else same
        return positive, negative

    def _inner(self, labels: Int[Tensor, "n c1"]) -> Int[Tensor, "n *c"]:
        """The labels for the other relation: [n] where it takes one a row and there is one."""
        return labels[:, 0] if self._takes_one and labels.shape[1] == 2 else labels[:, :-1]


@dataclass(frozen=True, eq=False)
class PairTable:
    """Positives and negatives by a table of all pairs; the labels are row numbers of the table.

    Args:
        positive: [m, m] bools, true where column j is a positive of anchor i.
        negative: [m, m] bools, true where it is a negative; None for all that are no positives.

    Raises:
        ValueError: no square tables of bools of one size, or a pair that is both.

    Example:
        >>> from tercet import BatchAll, PairTable
        >>> import torch
        >>> clicked = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
        >>> x, rows = torch.arange(6.0).reshape(3, 2), torch.arange(3)
        >>> tuple(column.tolist() for column in BatchAll(relation=PairTable(clicked))(x, rows))
        ([0, 1], [1, 0], [2, 2])
    """

    positive: Bool[Tensor, "m m"]
    negative: Bool[Tensor, "m m"] | None = None
    is_symmetric: bool = field(init=False, repr=False)
    _sent: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        tables = {"positive": self.positive}
        if self.negative is not None:
            tables["negative"] = self.negative
        for name, table in tables.items():
            expected = "a square tensor of bools" if name == "positive" else "bools of the shape of positive"
            right = isinstance(table, Tensor) and not lack_of_data(table) and table.dtype == torch.bool
            if not right or table.ndim != 2 or table.shape != (len(self.positive),) * 2:
                is_tensor = isinstance(table, Tensor)
                shown = f"{table.dtype} {tuple(table.shape)}" if is_tensor else type(table).__name__
                raise refusal("PairTable", name, shown, expected)
        negative = ~self.positive if self.negative is None else self.negative
        both = (self.positive & negative).nonzero()
        if len(both):
            row, column = both[0].tolist()
            raise refusal(
                "PairTable", "negative", f"pair ({row}, {column})", "no pair that is a positive too"
            )
        same = torch.equal(self.positive, self.positive.T) and torch.equal(negative, negative.T)
        object.__setattr__(self, "is_symmetric", same)
        self._sent[self.positive.device] = self.positive, negative

    def __repr__(self) -> str:
        return f"PairTable(<{len(self.positive)} × {len(self.positive)}>)"

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, " n"]:
        """Row numbers of the table.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n] of whole numbers from 0 to m − 1.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n] on `device`.

        Raises:
            ValueError: labels of another kind, shape or range.
        """
        rows = whole_numbers(caller, argument, labels, count, device)
        if not count:
            return rows
        inside = ((rows >= 0) & (rows < len(self.positive))).all()
        expected = f"row numbers of the table, from 0 to {len(self.positive) - 1}"
        if rows.device.type == "cpu":
            if not bool(inside):
                outside = rows[(rows < 0) | (rows >= len(self.positive))]
                raise refusal(caller, argument, int(outside[0]), expected)
            return rows
        answer_later(inside, refusal(caller, argument, "other numbers", expected))
        return rows.clamp(0, max(0, len(self.positive) - 1))

    def key(self, labels: Int[Tensor, " n"]) -> None:
        """None: a table has no classes.

        Args:
            labels: [n].

        Returns:
            None.
        """

    def sides(
        self, rows: Int[Tensor, " a"], columns: Int[Tensor, " r"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """The table's entries.

        Args:
            rows: row numbers of a rows, as `check` gives them.
            columns: row numbers of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.
        """
        if rows.device not in self._sent:
            positive, negative = self._sent[self.positive.device]
            self._sent[rows.device] = positive.to(rows.device), negative.to(rows.device)
        positive, negative = self._sent[rows.device]
        return positive[rows[:, None], columns[None, :]], negative[rows[:, None], columns[None, :]]


@dataclass(frozen=True)
class PairFunction:
    """Positives and negatives by a function of two rows of labels.

    Args:
        function: takes labels [a] or [a, c] of rows and [r] or [r, c] of columns, int64 tensors, and gives
            two bool tensors [a, r]: positives and negatives. A pair of neither side is left out.

    Raises:
        ValueError: no function; in use, one that gives something else, or a pair on both sides.

    Example:
        >>> from tercet import BatchAll, PairFunction
        >>> import torch
        >>> def close(a, b):
        ...     apart = (a[:, None] - b).abs()
        ...     return apart <= 1, apart >= 10
        >>> x, seconds = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 30])
        >>> tuple(column.tolist() for column in BatchAll(relation=PairFunction(close))(x, seconds))
        ([0, 1], [1, 0], [2, 2])
    """

    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if not callable(self.function):
            expected = "a function of two label tensors that gives (positive, negative)"
            raise refusal("PairFunction", "function", self.function, expected)

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, "n *c"]:
        """Labels [n] or [n, c] as int64.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n] or [n, c] of whole numbers or bools.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n] or [n, c] on `device`.

        Raises:
            ValueError: labels of another kind or shape.
        """
        return label_rows(caller, argument, labels, count, device)

    def key(self, labels: Shaped[Tensor, "n *c"]) -> None:
        """None: a function has no classes.

        Args:
            labels: [n] or [n, c].

        Returns:
            None.
        """

    def sides(
        self, rows: Int[Tensor, "a *c"], columns: Int[Tensor, "r *c"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """What the function gives, checked.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.

        Raises:
            ValueError: no two bool tensors [a, r], or a pair on both sides.
        """
        given = self.function(rows, columns)
        shape = (len(rows), len(columns))
        if not isinstance(given, tuple) or [getattr(side, "shape", None) for side in given] != [shape, shape]:
            shown = (
                [tuple(getattr(side, "shape", ())) for side in given] if isinstance(given, tuple) else given
            )
            raise refusal(
                "PairFunction", "function", shown, f"one that gives two bool tensors of shape {shape}"
            )
        positive, negative = given
        if positive.dtype != torch.bool or negative.dtype != torch.bool:
            shown = f"{positive.dtype} and {negative.dtype}"
            raise refusal("PairFunction", "function", shown, "one that gives two bool tensors")
        error = refusal(
            "PairFunction", "function", "a pair on both sides", "one whose sides exclude each other"
        )
        exclusive = ~(positive & negative).any()
        if exclusive.device.type != "cpu":
            answer_later(exclusive, error)
        elif not bool(exclusive):
            raise error
        return positive.clone(), negative.clone()  # the caller may write into its sides


def _takes_one_label(relation: Relation) -> bool:
    """Whether a relation takes labels [n], found by trying."""
    if isinstance(relation, SameLabel):
        return True
    try:
        relation.check("Ignore", "labels", torch.zeros(1, dtype=torch.int64), 1, "cpu")
    except ValueError:
        return False
    return True
