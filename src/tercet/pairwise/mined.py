"""Tuples that a head is given: index tensors of any kind, as row numbers of the batch that exist."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tercet.core.checks import Refusal, with_length
from tercet.pairwise.budget import budget
from tercet.pairwise.inputs import lack_of_data

__all__ = ["is_remembered", "mined_rows", "remember"]


def mined_rows(mined: Any, rows: int, columns: int, device: torch.device) -> tuple[Int[Tensor, " _"], ...]:
    """The index tensors of triplets or pairs as int64 on `device`, checked to name rows that exist.

    Args:
        mined: `Triplets` or `Pairs`, or any three or four index tensors or arrays like them.
        rows: the number of rows, of which anchors are.
        columns: the number of columns, of which positives and negatives are.
        device: where the embeddings are.

    Returns:
        The same three or four tensors.

    Raises:
        ValueError: another form, unequal lengths, rows that do not exist, or a pair that is listed both as
            positive and as negative. Checking that reads an accelerator once, where the tensors are on it
            and are not what a miner gave.
    """
    if not isinstance(mined, (tuple, list)) or len(mined) not in (3, 4):
        expected = "Triplets (three index tensors) or Pairs (four index tensors)"
        raise Refusal("mined", with_length(mined), expected)
    try:
        out = [torch.as_tensor(index) for index in mined]
    except Exception:  # strings, None, ragged lists
        shown = ", ".join(type(index).__name__ for index in mined)
        raise Refusal("mined", shown, "one-dimensional tensors of row numbers") from None
    for index in out:
        lacking = lack_of_data(index)
        if lacking:
            raise Refusal("mined", lacking, "dense tensors with data")
        if not index.numel() and index.ndim == 1:
            continue
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.ndim != 1:
            shown = f"{index.dtype} of shape {tuple(index.shape)}"
            raise Refusal("mined", shown, "one-dimensional tensors of row numbers")
    lengths = [len(index) for index in out]
    if lengths[0] != lengths[1] or lengths[-2] != lengths[-1]:
        shown = f"index tensors of {', '.join(map(str, lengths))}"
        raise Refusal("mined", shown, "as many positives, and as many negatives, as anchors")
    if not (came_mined := is_remembered(mined, rows, columns)):
        # Where all of them are on the host they are checked there, before they are sent.
        here = device if any(index.device.type != "cpu" for index in out) else torch.device("cpu")
        out = [index.to(here, torch.int64) for index in out]
        _check_rows(out, rows, columns)
    sent = device.type != "cpu" and not came_mined
    return tuple(index.to(device, torch.int64, non_blocking=sent) for index in out)


def _check_rows(out: list[Int[Tensor, " _"]], rows: int, columns: int) -> None:
    """Refuse row numbers that do not exist and pairs on both sides: on an accelerator, one read."""
    sizes = (rows, columns, columns) if len(out) == 3 else (rows, columns, rows, columns)
    some = [(index, size) for index, size in zip(out, sizes, strict=True) if len(index)]
    if not some:
        return
    ends, shared = torch.stack([end for index, _ in some for end in index.aminmax()]), None
    paired = len(out) == 4 and len(out[0]) > 0 and len(out[2]) > 0
    if paired and ends.device.type != "cpu":
        # Counted before it is known that the rows exist; where they do not, nobody looks at the count.
        a, p, b, n = (index.clamp(0, max(0, size - 1)) for index, size in zip(out, sizes, strict=True))
        shared = _of_both_sides(a, p, b, n, rows, columns)[1].sum()
        ends = torch.cat([ends, shared[None]])
    found = ends.tolist()
    for (index, size), low, high in zip(some, found[::2], found[1::2], strict=False):
        if low < 0 or high >= size:
            first = int(index[(index < 0) | (index >= size)][0])
            hint = "pass the embeddings, and the ref, that were mined"
            raise Refusal("mined", f"row {first}", f"rows below {size}", hint)
    if paired and (shared is None or found[-1]):
        pairs, which = _of_both_sides(out[0], out[1], out[2], out[3], rows, columns)
        both = pairs[which]
        if len(both):
            pair = f"pair ({int(both[0]) // columns}, {int(both[0]) % columns})"
            expected = "pairs (anchor, column) listed as positive or as negative, not as both"
            raise Refusal("mined", pair, expected, "take it out of one of the two sides")


def _of_both_sides(
    anchor: Int[Tensor, " p"],
    positive: Int[Tensor, " p"],
    other: Int[Tensor, " n"],
    negative: Int[Tensor, " n"],
    rows: int,
    columns: int,
) -> tuple[Int[Tensor, " c"], Bool[Tensor, " c"]]:
    """One list's pairs, as row · columns + column, and which of them the other list names too.

    They are found in a table of marks, one for each possible pair, or by sorting the shorter list where that
    table would be too large.
    """
    pairs, others = anchor * columns + positive, other * columns + negative
    sizes = budget(anchor.device)
    if rows * columns <= sizes.mark_bytes * (len(pairs) + len(others)) + sizes.free_mark_bytes:
        marks = torch.zeros(rows * columns, dtype=torch.bool, device=anchor.device)
        marks[pairs] = True
        return others, marks.index_select(0, others)
    few, many = sorted((pairs, others), key=len)
    few = few.sort().values
    return many, few[torch.searchsorted(few, many).clamp_(max=len(few) - 1)] == many


# By the id of their first tensor, until that one is gone: a reference to it, the other tensors, the versions
# of all, which torch counts up with every change of their numbers, and how many rows and columns were mined.
_REMEMBERED: dict[int, tuple[weakref.ref[Tensor], list[Tensor], list[int], int, int]] = {}


def remember(mined: Sequence[Any], rows: int, columns: int) -> None:
    """Note that tuples are right, since a miner of ours has just made them: no head looks at them again.

    Args:
        mined: three or four index tensors.
        rows: the number of rows that were mined.
        columns: the number of columns.

    Example:
        >>> mined = [torch.tensor([v]) for v in (0, 1, 2)]
        >>> remember(mined, 3, 3)
        >>> is_remembered(mined, 3, 3), is_remembered(mined, 2, 2)
        (True, False)
        >>> mined[2] += 1
        >>> is_remembered(mined, 3, 3)
        False
    """
    first, *others = mined
    if first.is_inference():  # torch does not count their changes
        return
    key = id(first)
    # At exit a tensor may outlive this module's names.
    weak = weakref.ref(first, lambda _, known=_REMEMBERED: known.pop(key, None))
    _REMEMBERED[key] = weak, others, [index._version for index in mined], rows, columns


def is_remembered(mined: Sequence[Any], rows: int, columns: int) -> bool:
    """Whether these are tuples that a miner gave for so many rows and columns, unchanged and together."""
    known = _REMEMBERED.get(id(mined[0]))
    if known is None or known[3:] != (rows, columns) or len(known[2]) != len(mined):
        return False
    tensors = known[0](), *known[1]
    parts = zip(tensors, known[2], mined, strict=True)
    return all(tensor is index and index._version == version for tensor, version, index in parts)
