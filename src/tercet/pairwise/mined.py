"""Tuples that a head is given: index tensors of any kind, as row numbers of the batch that exist."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tercet.core.checks import Refusal, with_length
from tercet.pairwise.budget import budget
from tercet.pairwise.inputs import lack_of_data

__all__ = ["mined_rows"]


def mined_rows(
    mined: Any, rows: int, columns: int, device: torch.device, kinds: tuple[int, ...] = (3, 4)
) -> tuple[Int[Tensor, " _"], ...]:
    """The index tensors of triplets or pairs as int64 on `device`, checked to name rows that exist.

    Args:
        mined: `Triplets` or `Pairs`, or any three or four index tensors or arrays like them.
        rows: the number of rows, of which anchors are.
        columns: the number of columns, of which positives and negatives are.
        device: where the embeddings are.
        kinds: 3 where triplets are accepted, 4 where pairs are.

    Returns:
        The same three or four tensors.

    Raises:
        ValueError: another form, unequal lengths, rows that do not exist, or a pair that is listed both as
            positive and as negative. Checking that waits for the device.
    """
    if not isinstance(mined, (tuple, list)) or len(mined) not in kinds:
        names = {3: "Triplets (three index tensors)", 4: "Pairs (four index tensors)"}
        raise Refusal("mined", with_length(mined), " or ".join(names[kind] for kind in kinds))
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
    out = [index.to(device, torch.int64) for index in out]
    sizes = (rows, columns, columns) if len(out) == 3 else (rows, columns, rows, columns)
    some = [(index, size) for index, size in zip(out, sizes, strict=True) if len(index)]
    ends = torch.stack([end for index, _ in some for end in index.aminmax()]).tolist() if some else []
    for (index, size), low, high in zip(some, ends[::2], ends[1::2], strict=True):
        if low < 0 or high >= size:
            first = int(index[(index < 0) | (index >= size)][0])
            hint = "pass the embeddings, and the ref, that were mined"
            raise Refusal("mined", f"row {first}", f"rows below {size}", hint)
    if len(out) == 4 and len(out[0]) and len(out[2]):
        anchor, positive, other_anchor, negative = out
        both = _on_both_sides(anchor, positive, other_anchor, negative, rows, columns)
        if len(both):
            pair = f"pair ({int(both[0]) // columns}, {int(both[0]) % columns})"
            expected = "pairs (anchor, column) listed as positive or as negative, not as both"
            raise Refusal("mined", pair, expected, "take it out of one of the two sides")
    return tuple(out)


def _on_both_sides(
    anchor: Int[Tensor, " p"],
    positive: Int[Tensor, " p"],
    other: Int[Tensor, " n"],
    negative: Int[Tensor, " n"],
    rows: int,
    columns: int,
) -> Int[Tensor, " b"]:
    """The pairs that both lists name, as row · columns + column.

    They are found in a table of marks, one for each possible pair, or by sorting the shorter list where that
    table would be too large.
    """
    pairs, others = anchor * columns + positive, other * columns + negative
    sizes = budget(anchor.device)
    if rows * columns <= sizes.mark_bytes * (len(pairs) + len(others)) + sizes.free_mark_bytes:
        marks = torch.zeros(rows * columns, dtype=torch.bool, device=anchor.device)
        marks[pairs] = True
        return others[marks.index_select(0, others)]
    few, many = sorted((pairs, others), key=len)
    few = few.sort().values
    return many[few[torch.searchsorted(few, many).clamp_(max=len(few) - 1)] == many]
