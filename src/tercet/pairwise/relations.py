"""Relations: which columns are positive for a row, which negative and which neither, by their labels.

A relation takes labels of its own shape, [n] or [n, c]. Whether two rows show the same image is decided by
`Pairwise`, from ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tercet.core.checks import as_choice, as_float, refusal
from tercet.pairwise.inputs import answer_later, lack_of_data
from tercet.pairwise.torch_modes import full_precision, widest_float

__all__ = [
    "CrossGroup",
    "Graded",
    "Relation",
    "SameLabel",
    "SharedLabel",
    "as_relation",
    "whole_numbers",
]


@runtime_checkable
class Relation(Protocol):
    """What `relation=` takes: three functions of labels.

    A relation of one's own is a class with these three, or a subclass of one here. A class may also make
    promises about its `sides`, which allow a faster way than calling it for every pair:

    - `is_symmetric`: True where two rows are on the same side of each other, whichever is the anchor.
    - `key_is_class`: True where rows are positive exactly if their keys are equal.
    - `key` is a promise itself: rows of unequal keys are negatives.

    A subclass that overrides `sides` takes all three back by that alone, and its `sides` is called for every
    pair; `key` still names the class of a row, for `NPair` and `MarginLoss`. Where a promise still holds, the
    subclass states it again, as a line of its own class. An override on an object counts like one in a class.

    Example:
        >>> class LaterGroup(CrossGroup):
        ...     key = CrossGroup.key  # another identity is a negative still; to be symmetric is taken back
        ...     def sides(self, rows, columns):
        ...         positive, negative = super().sides(rows, columns)
        ...         return positive & (rows[:, None, 1] < columns[None, :, 1]), negative
        >>> labels = torch.tensor([[7, 0], [7, 1], [8, 0]])
        >>> LaterGroup().sides(labels, labels)[0].nonzero().tolist()
        [[0, 1]]
    """

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any, /) -> Tensor:
        """The labels of the rows, checked.

        Args:
            caller, argument: the function that was called and its argument, for the sentence of an error.
            labels: what the user passed.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            [n] or [n, c] on `device`, as `key` and `sides` take them.

        Raises:
            ValueError: labels of another kind or shape.
        """
        ...

    def key(self, labels: Tensor, /) -> Int[Tensor, " n"] | None:
        """A number for each row, such that rows of unequal numbers are negatives; None where there is none.

        It makes mining fast: positives are searched among columns of the row's own number alone.
        """
        ...

    def sides(self, rows: Tensor, columns: Tensor, /) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """(positive, negative), each a new tensor and never both true."""
        ...


def whole_numbers(
    caller: str | None, argument: str, values: Any, count: int, device: Any, width: str = ""
) -> Int[Tensor, "n *c"]:
    """Labels or ids as int64 on the embeddings' device: exact for any integer or bool kind.

    Args:
        caller: the class or function that was called, for error messages; None where a `border` names it.
        argument: the name of the argument, for error messages.
        values: a tensor [count], or [count, c] with a `width`.
        count: the number of rows.
        device: where the embeddings are.
        width: what the c columns are, for error messages; empty where labels are [count].

    Raises:
        ValueError: no tensor, no whole numbers, or another shape.
    """
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex():
        shown = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        hint = "convert with .long()" if isinstance(values, Tensor) else "convert with torch.as_tensor()"
        raise refusal(caller, argument, shown, "a tensor of whole numbers or bools", hint)
    lacking = lack_of_data(values)
    if lacking:
        raise refusal(caller, argument, lacking, "a dense tensor with data")
    if width and (values.ndim != 2 or len(values) != count):
        hint = "one label a row is for SameLabel()" if values.ndim == 1 else ""
        raise refusal(caller, argument, f"shape {tuple(values.shape)}", f"shape ({count}, c), {width}", hint)
    if not width and values.shape != (count,):
        expected = f"shape ({count},), one for each embedding"
        hint = "pass a relation that takes several labels a row" if values.ndim == 2 else ""
        raise refusal(caller, argument, f"shape {tuple(values.shape)}", expected, hint)
    # A tensor made under inference_mode cannot be saved as an index by a graph outside it.
    compiling = torch.compiler.is_compiling()  # which does not trace the question
    outside = not compiling and values.is_inference() and not torch.is_inference_mode_enabled()
    # Up to an accelerator the copy is asynchronous; down to the host the numbers have to have arrived.
    sent = torch.device(device).type != "cpu"
    return values.to(device, torch.int64, non_blocking=sent, copy=outside)


def label_rows(
    caller: str | None, argument: str, labels: Any, count: int, device: Any
) -> Int[Tensor, "n *c"]:
    """Labels [count] or [count, c] as int64 on `device`, where any relation may read them later."""
    several = isinstance(labels, Tensor) and not lack_of_data(labels) and labels.ndim == 2
    return whole_numbers(caller, argument, labels, count, device, "several labels a row" if several else "")


@dataclass(frozen=True)
class SameLabel:
    """Positive: the same label. Negative: another one. Labels are [n].

    Example:
        >>> positive, negative = SameLabel().sides(torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
        >>> positive.tolist()
        [[True, True, False], [False, False, True]]
    """

    is_symmetric = True
    key_is_class = True

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, " n"]:
        """Labels [n] as int64.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n] of whole numbers or bools.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n] on `device`.

        Raises:
            ValueError: labels of another kind or shape.
        """
        return whole_numbers(caller, argument, labels, count, device)

    def key(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The label.

        Args:
            labels: int64 [n].

        Returns:
            int64 [n].
        """
        return labels

    def sides(
        self, rows: Int[Tensor, " a"], columns: Int[Tensor, " r"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which labels are equal, and which are not.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.
        """
        same = rows[:, None] == columns[None, :]  # [a, r]
        return same, ~same


@dataclass(frozen=True)
class SharedLabel:
    """For several labels an image: positive when two images share one, negative when they share none.

    Labels are [n, c], one column for each label: 1 or true where the image has it, else 0 or false. An image
    without any label is a negative of every image. `torch.nn.functional.one_hot(numbers).amax(1)` makes such
    columns from the numbers of each image's labels, as [[3, 17], [5, 5]].

    Example:
        >>> tags = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
        >>> positive, negative = SharedLabel().sides(tags, tags)
        >>> positive.tolist()
        [[True, True, False], [True, True, True], [False, True, True]]
    """

    is_symmetric = True

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Float[Tensor, "n c"]:
        """Labels [n, c] as 0 and 1.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n, c] of 0 and 1 or of bools.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            float32 [n, c] on `device`.

        Raises:
            ValueError: labels of another kind or shape.
        """
        found = whole_numbers(caller, argument, labels, count, device, "one column a label")
        _refuse_label_numbers(caller, argument, labels)
        return _bits(found)

    def key(self, labels: Shaped[Tensor, "n c"]) -> None:
        """None: sharing a label is not transitive.

        Args:
            labels: [n, c].

        Returns:
            None.
        """

    def sides(
        self, rows: Shaped[Tensor, "a c"], columns: Shaped[Tensor, "r c"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which rows share a label, and which share none.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.
        """
        shared = _common(_bits(rows), _bits(columns)) > 0  # [a, r]
        return shared, ~shared


@dataclass(frozen=True)
class CrossGroup:
    """Positive: the same identity seen by another camera. Negative: another identity.

    The same identity in the same group (camera, session, video) is neither: such pairs are too easy to learn
    from, and benchmarks of re-identification leave them out. Labels are [n, 2]: identity, group.

    Example:
        >>> labels = torch.tensor([[7, 0], [7, 0], [7, 1], [8, 0]])
        >>> positive, negative = CrossGroup().sides(labels, labels)
        >>> positive[0].tolist(), negative[0].tolist()
        ([False, False, True, False], [False, False, False, True])

    Reference:
        Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015.
    """

    is_symmetric = True

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, "n 2"]:
        """Labels [n, 2] as int64.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n, 2] of whole numbers: identity, group.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n, 2] on `device`.

        Raises:
            ValueError: labels of another kind or shape.
        """
        labels = whole_numbers(caller, argument, labels, count, device, "identity and group")
        if labels.shape[1] != 2:
            raise refusal(
                caller, argument, f"shape {tuple(labels.shape)}", f"shape ({count}, 2), identity and group"
            )
        return labels

    def key(self, labels: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        """The identity.

        Args:
            labels: int64 [n, 2].

        Returns:
            int64 [n].
        """
        return labels[:, 0]

    def sides(
        self, rows: Int[Tensor, "a 2"], columns: Int[Tensor, "r 2"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which are the same identity of another group, and which are another identity.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.
        """
        same = rows[:, None, 0] == columns[None, :, 0]  # [a, r]
        return same & (rows[:, None, 1] != columns[None, :, 1]), ~same


@dataclass(frozen=True)
class Graded:
    """By how relevant two images are to each other: r ≥ T⁺ is positive, r ≤ T⁻ negative, the rest neither.

    Args:
        positive: T⁺, in [0, 1].
        negative: T⁻, in [0, 1], below T⁺.
        relevance: r of label rows [a, c] and [r, c], a number in [0, 1]: `"overlap"`, labels are [n, c] with
            one column of 0 and 1 a label, r = |A ∩ B| / |A ∪ B| (0 of nothing); `"depth"`, labels are [n, c]
            from the coarsest to the finest, r = the share of leading columns that agree; or a function of two
            label tensors that gives r [a, r].

    Raises:
        ValueError: thresholds out of range or out of order, or an unknown relevance.

    Example:
        >>> labels = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0]])  # animal kind, breed
        >>> positive, negative = Graded(1.0, 0.0, "depth").sides(labels, labels)
        >>> positive[0].tolist(), negative[0].tolist()
        ([True, True, False, False], [False, False, False, True])
    """

    positive: float
    negative: float
    relevance: str | Callable[[Tensor, Tensor], Tensor] = "overlap"

    def __post_init__(self) -> None:
        positive = as_float("Graded", "positive", self.positive, 0, 1)
        negative = as_float("Graded", "negative", self.negative, 0, 1)
        if negative >= positive:
            raise refusal("Graded", "negative", negative, f"less than positive={positive:g}")
        if not callable(self.relevance):
            as_choice("Graded", "relevance", self.relevance, _RELEVANCES)
        object.__setattr__(self, "positive", positive)
        object.__setattr__(self, "negative", negative)

    @property
    def is_symmetric(self) -> bool:
        """True unless `relevance` is a function, which may not be the same in both directions."""
        return isinstance(self.relevance, str)

    def check(self, caller: str, argument: str, labels: Any, count: int, device: Any) -> Int[Tensor, "n c"]:
        """Labels [n, c] as int64.

        Args:
            caller, argument: the function that was called and its argument, for sentences.
            labels: a tensor [n, c] of whole numbers or bools; of 0 and 1 for `"overlap"`.
            count: n, the number of rows.
            device: where the embeddings are.

        Returns:
            int64 [n, c] on `device`.

        Raises:
            ValueError: labels of another kind or shape.
        """
        found = whole_numbers(caller, argument, labels, count, device, "several labels a row")
        if self.relevance == "overlap":
            _refuse_label_numbers(caller, argument, labels)
        return found

    def key(self, labels: Shaped[Tensor, "n c"]) -> None:
        """None: relevance is not transitive.

        Args:
            labels: [n, c].

        Returns:
            None.
        """

    def sides(
        self, rows: Shaped[Tensor, "a c"], columns: Shaped[Tensor, "r c"]
    ) -> tuple[Bool[Tensor, "a r"], Bool[Tensor, "a r"]]:
        """Which are relevant enough, and which irrelevant enough.

        Args:
            rows: labels of a rows, as `check` gives them.
            columns: labels of r columns.

        Returns:
            (positive, negative): bool [a, r] each, never both true.

        Raises:
            ValueError: a function `relevance` that gives another shape, or numbers out of [0, 1].
        """
        r = self._table(rows, columns)
        return r >= self.positive, r <= self.negative

    def _table(self, rows: Shaped[Tensor, "a c"], columns: Shaped[Tensor, "r c"]) -> Shaped[Tensor, "a r"]:
        """r of each pair, checked where it is a function's."""
        relevance = self.relevance if callable(self.relevance) else _RELEVANCES[self.relevance]
        r = relevance(rows, columns)  # [a, r]
        if callable(self.relevance):
            shape = (len(rows), len(columns))
            if not isinstance(r, Tensor) or r.shape != shape:
                shown = f"shape {tuple(r.shape)}" if isinstance(r, Tensor) else type(r).__name__
                raise refusal("Graded", "relevance", shown, f"a function that gives numbers of shape {shape}")
            inside = (r >= 0) & (r <= 1)  # NaN is not
            if not bool(inside.all()):
                shown = "NaN" if bool(r.isnan().any()) else float(r[~inside][0])
                expected = f"a function that gives numbers of shape {shape} from 0 to 1"
                raise refusal("Graded", "relevance", shown, expected)
        return r


def _refuse_label_numbers(caller: str, argument: str, labels: Shaped[Tensor, "n c"]) -> None:
    """Refuse numbers of labels, or counts, where each label has a column of 0 and 1.

    On an accelerator they are looked at without waiting: this call or a later one raises what was wrong.
    """
    if labels.dtype == torch.bool or not labels.numel():
        return
    expected = "0 or 1 in each column, one column a label"
    hint = "for numbers of labels pass torch.nn.functional.one_hot(labels).amax(1), for counts labels > 0"
    if labels.device.type != "cpu":
        outside = (labels != 0) & (labels != 1)
        hint += "; an accelerator has found it, in this call or an earlier one"
        answer_later(~outside.any(), refusal(caller, argument, "other numbers", expected, hint))
        return
    numbers = labels.to(torch.int64)
    low, high = numbers.aminmax()  # a fifth of the time of two comparisons
    if int(low) < 0 or int(high) > 1:
        row, column = ((numbers < 0) | (numbers > 1)).nonzero()[0].tolist()
        raise refusal(caller, argument, f"{int(numbers[row, column])} in row {row}", expected, hint)


def _bits(labels: Shaped[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return (labels != 0).float()


def _common(a: Float[Tensor, "a c"], b: Float[Tensor, "r c"]) -> Float[Tensor, "a r"]:
    """How many labels two rows share: sums of 0 and 1, exact also in lowered precision."""
    with full_precision(a.device):
        return a @ b.T


def _overlap(rows: Tensor, columns: Tensor) -> Tensor:
    a, b = _bits(rows), _bits(columns)
    shared = _common(a, b)  # [a, r]
    either = a.sum(1)[:, None] + b.sum(1)[None, :] - shared
    wide = widest_float(shared.device)
    return shared.to(wide) / either.to(wide).clamp(min=1)


def _depth(rows: Tensor, columns: Tensor) -> Tensor:
    width = rows.shape[1]
    agree = torch.ones(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    depth = torch.zeros(len(rows), len(columns), dtype=widest_float(rows.device), device=rows.device)
    for level in range(width):
        agree &= rows[:, None, level] == columns[None, :, level]
        depth += agree
    return depth / max(1, width)


_RELEVANCES = {"overlap": _overlap, "depth": _depth}


def as_relation(caller: str | None, relation: Any) -> Relation:
    """The relation itself, refused unless it has the three functions.

    Raises:
        ValueError: no `Relation`.

    Example:
        >>> as_relation("BatchHard", SameLabel())
        SameLabel()
    """
    if isinstance(relation, type) or not isinstance(relation, Relation):
        expected = "a relation: SameLabel(), SharedLabel(), CrossGroup() or Graded(positive, negative)"
        raise refusal(caller, "relation", relation, expected)
    return relation
