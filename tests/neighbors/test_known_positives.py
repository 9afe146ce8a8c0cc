"""The search for batches whose positives are known: what plain tables give, or a row is noted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tercet.neighbors.known_positives import KnownPositives
from tercet.pairwise.budget import override
from tercet.pairwise.distances import as_distance, exact, form_of
from tercet.pairwise.known_labels import positive_pairs, positive_table
from tercet.pairwise.tiles import Pairwise

DISTANCES = ["euclidean", "squared_euclidean", "cosine"]
LABELS = {
    "P × K": torch.arange(84) % 28,
    "uneven": torch.arange(28).repeat_interleave(2 + torch.arange(28) % 3),
}
MORE = 7  # columns measured beyond those asked for


def batches():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=g)
    twice = torch.cat([x[:45]] * 2)
    return {
        "random": x,
        "double": x.double(),
        "far": x + 1000,
        "twice": twice,
        "near": twice + 1e-6 * torch.randn(90, 6, generator=g),
        "grid": torch.randint(0, 3, (90, 3), generator=g).float(),
        "equal": torch.ones(90, 4),
        "tiny": x * 1e-22,
    }


BATCHES = batches()


def made(name, distance, labels, height=None, padded=False):
    """The search, and exact distances in its scale: to positives, inf elsewhere, and to negatives."""
    labels = LABELS[labels]
    x, distance = BATCHES[name][: len(labels)], as_distance("test", distance)
    pairwise = Pairwise("test", x, labels, distance=distance, tile_rows=height)
    _, of_row, sizes = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    columns, counts = positive_table(positive_pairs(of_row, sizes), len(x), 32)
    if padded:
        columns = np.pad(columns, ((0, 0), (0, 1 + MORE - columns.shape[1])), "edge")
    form = form_of(distance)
    table = exact(distance, pairwise.inputs[0], pairwise.inputs[0])
    table = table if form.root else table / form.scale
    positive, negative = pairwise.sides(slice(0, len(x)))
    away = table.masked_fill(~positive, torch.inf), table.masked_fill(~negative, torch.inf)
    return KnownPositives(pairwise, form, columns, counts, room=1 + MORE), *away


def found(search):
    """The answers to all questions, [n, …], and the rows that are sure."""
    every, sure = [], []
    for block in search.blocks():
        d_ap = block.distances
        a = len(block.rows)
        middle = (block.nearest_distance() + d_ap.amax(1)) / 2
        reach = 0.5 * d_ap.amax(1, keepdim=True)
        column, distance = block.nearest_above(d_ap)
        there = distance < search.keys.beyond
        easy, d_easy = block.nearest_positive()
        answers = [
            torch.stack([*block.hardest(), block.farthest_positive(), block.farthest(), easy], 1),
            block.nearest(5),
            torch.where(there, column, -1)[:, :1],
            torch.where(there, column, -1).amax(1, keepdim=True),
            block.nearer_than(middle[:, None])[:, 0],
            block.nearer_than(d_ap)[:, 0],
            block.between(d_ap, d_ap + reach)[:, 0],
        ]
        assert torch.equal(d_easy, d_ap.amin(1))
        every.append(torch.cat([each.reshape(a, -1).to(torch.int64) for each in answers], 1))
        sure.append(torch.zeros(a, dtype=torch.bool) if search.is_exact else block.unsure)
    return torch.cat(every), ~torch.cat(sure)


def expected(positives, negatives):
    """The same from tables of exact distances, inf where a column is on the other side."""
    apart, last = positives.masked_fill(positives == torch.inf, -torch.inf), negatives.clone()
    last[last == torch.inf] = -torch.inf
    near, d_an = negatives.sort(dim=1, stable=True).indices[:, :5], negatives.amin(1)
    per_row = []
    for row, others, least in zip(positives, negatives, d_an, strict=True):
        d_ap = row[row < torch.inf]  # by column
        above = [others.masked_fill(others <= d, torch.inf) for d in d_ap]
        first = [int(each.argmin()) if each.min() < torch.inf else -1 for each in above]
        high = d_ap[0] + 0.5 * d_ap.max()
        questions = others < (least + d_ap.max()) / 2, others < d_ap[0], (others > d_ap[0]) & (others < high)
        per_row.append(torch.cat([torch.tensor([first[0], max(first)]), *questions]))
    p = apart.argmax(1)
    hardest = torch.stack([p, near[:, 0], p, last.argmax(1), positives.argmin(1)], 1)
    return torch.cat([hardest, near, torch.stack(per_row)], 1)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("direct", [0, 2**30], ids=["rank keys", "exact tables"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", BATCHES)
def test_a_row_that_is_not_noted_is_answered_as_by_plain_tables(name, distance, direct, labels):
    wanted = None
    with override(direct_numbers=direct, measured_more=MORE):
        for height, padded in ((None, False), (33, True)):
            search, *tables = made(name, distance, labels, height, padded)
            answers, sure = found(search)
            wanted = expected(*tables) if wanted is None else wanted
            numbers = search.doubts()
            ambiguous, pairs = search.judged([int(number) for number in numbers])
            if direct:
                assert numbers == []
                assert sure.all()
            else:
                sure = ~search.unsure
                assert ambiguous == int((~sure).sum())
                counts = torch.isfinite(tables[0]).sum(1)
                assert pairs == int(counts[~sure].sum())
                if name == "random":
                    assert ambiguous == 0
                if name == "equal" or (name == "tiny" and distance != "cosine"):
                    assert ambiguous == len(answers)  # nothing that a product proposes can be sure here
            assert torch.equal(answers[sure], wanted[sure])


def test_bounds_that_were_too_narrow_would_be_seen():
    """The batches do hold rows whose products are in another order than their distances."""
    wrong = 0
    for name in ("near", "far"):
        with override(direct_numbers=0, measured_more=MORE):
            search, *tables = made(name, "euclidean", "P × K")
            search.keys._share = 0.0  # as if products were exact
            answers, _ = found(search)
        wrong += int((answers != expected(*tables)).sum())
    assert wrong


def test_questions_in_parts_find_the_same():
    with override(direct_numbers=0, measured_more=MORE):
        whole, sure = found(made("random", "euclidean", "P × K")[0])
        assert sure.all()
        with override(gathered_keys=1000, gathered_numbers=500):
            parts, _ = found(made("random", "euclidean", "P × K")[0])
    assert torch.equal(whole, parts)
