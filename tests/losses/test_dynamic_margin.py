"""The dynamic soft margin: the moving average of its histogram, its state and its gradient."""

import copy
import math

import pytest
import torch

import tercet
from tercet.core.indices import GatheredReferences, Pairs, References
from tests.contracts.heads import BATCHES, check_equal
from tests.oracles import dynamic_margin as loops
from tests.oracles import triplets as reference

X, LABELS = BATCHES["uneven positives per anchor"]
UNIT = torch.nn.functional.normalize(X)


def numbers_of(x, labels, triplets=None):
    d = reference.distances("euclidean", x)
    every = triplets or reference.all_triplets(*reference.relation(labels))
    return [d[a][p] - d[a][n] for a, p, n in every]


@pytest.mark.parametrize("height", [None, 1, 4])
def test_the_histogram_is_the_first_batch_and_then_a_moving_average(height):
    head = tercet.DynamicSoftMargin(9, momentum=0.25, tile_rows=height).double()
    kept = None
    for x in (UNIT, UNIT.flip(0), UNIT.roll(2, 0)):
        numbers = numbers_of(x, LABELS)
        found = loops.soft_histogram(numbers, 9, 2.0)
        kept = found if kept is None else [0.75 * u + 0.25 * v for u, v in zip(kept, found, strict=True)]
        weights = loops.weights(numbers, kept, 2.0)
        check_equal(head(x, LABELS), sum(w * z for w, z in zip(weights, numbers, strict=True)) / len(numbers))
        torch.testing.assert_close(head.histogram, torch.tensor(kept, dtype=torch.float64))


def test_state_that_is_loaded_or_copied_goes_on_as_it_was():
    head = tercet.DynamicSoftMargin(16, momentum=0.5)
    head(UNIT, LABELS)
    other = tercet.DynamicSoftMargin(16, momentum=0.5)
    other.load_state_dict(head.state_dict())
    for each in (other, copy.deepcopy(head)):
        going_on = copy.deepcopy(head)
        for x in (UNIT.flip(0), UNIT.roll(2, 0)):
            assert torch.equal(each(x, LABELS), going_on(x, LABELS))
        assert torch.equal(each.histogram, going_on.histogram)
        assert not torch.equal(each.histogram, head.histogram)


def test_the_histogram_stays_in_evaluation_mode_and_where_there_is_no_triplet():
    head = tercet.DynamicSoftMargin(16)
    fresh = copy.deepcopy(head).eval()
    first = fresh(UNIT, LABELS)
    assert not fresh.histogram.any()
    assert torch.equal(head(UNIT, LABELS), first)  # the batch's own
    kept = head.histogram.clone()
    head(UNIT, torch.arange(9))
    assert torch.equal(head.histogram, kept)
    head.eval()(UNIT.flip(0), LABELS)
    assert torch.equal(head.histogram, kept)
    still = tercet.DynamicSoftMargin(16, momentum=0.0)
    still(UNIT, LABELS)
    still(UNIT.flip(0), LABELS)
    torch.testing.assert_close(still.histogram, kept)


def test_the_gradient_is_that_of_weights_that_are_constants():
    head = tercet.DynamicSoftMargin(9).double()
    head(UNIT, LABELS)
    head.eval()
    triplets = torch.tensor(reference.all_triplets(*reference.relation(LABELS)))
    weights = torch.tensor(loops.weights(numbers_of(UNIT, LABELS), head.histogram.tolist(), 2.0)).double()
    assert len(weights.unique()) > 3
    a, p, n = triplets.T
    pairs = Pairs(*(v for side in reference.relation(LABELS) for v in torch.tensor(sorted(side)).T))
    everyone = torch.arange(9)
    calls = [{}, {"mined": (a, p, n)}, {"mined": pairs}]
    calls.append({"ids": everyone, "ref": References(UNIT, LABELS, everyone)})
    for call in calls:
        x = UNIT.clone().requires_grad_()
        if "ref" in call:
            call["ref"] = References(x, LABELS, everyone)
        loss = head(x, LABELS, **call)
        y = UNIT.clone().requires_grad_()
        expected = (weights * ((y[a] - y[p]).norm(dim=1) - (y[a] - y[n]).norm(dim=1))).mean()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(u, v)[0] for u, v in ((loss, x), (expected, y))))


def test_numbers_beyond_the_span_count_at_the_last_nodes():
    x = torch.tensor([[0.0], [1.0], [50.0]], dtype=torch.float64)
    head = tercet.DynamicSoftMargin(4).double()
    check_equal(head(x, torch.tensor([0, 0, 1])), (-49 - 48) / 2)  # both at the first node, so F is 1
    assert head.histogram.tolist() == [1, 0, 0, 0, 0]


def test_columns_of_several_ranks_and_options_out_of_range_are_refused():
    head, ref = tercet.DynamicSoftMargin(), GatheredReferences(X, LABELS)
    with pytest.raises(ValueError, match=r"DynamicSoftMargin\(ref='columns from gather'\)"):
        head(X, LABELS, ref=ref)
    for wrong in ({"bins": 0}, {"span": 0.0}, {"momentum": 1.5}, {"momentum": math.nan}):
        with pytest.raises(ValueError, match=rf"DynamicSoftMargin\({next(iter(wrong))}="):
            tercet.DynamicSoftMargin(**wrong)
