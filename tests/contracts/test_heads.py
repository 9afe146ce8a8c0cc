"""What every loss head must do, one function a demand, and for each demand a head that breaks it."""

import copy
import inspect
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tercet.core.indices import References
from tercet.losses.listwise import NPair
from tercet.losses.triplet import TripletMargin
from tercet.losses.variance import IntraPairVariance
from tests.contracts.heads import (
    BATCHES,
    COINCIDENT,
    HEADS,
    ONE_SIDED,
    PAIRED,
    check_alike,
    check_equal,
    check_finite,
    check_gradient,
    check_second_derivative,
    check_zero,
    gradient_of,
    hinge,
)
from tests.helpers import double_points as points
from tests.helpers import unchecked

UNEVEN = BATCHES["uneven positives per anchor"]
NOBODY = torch.zeros(0).long()


def refused(match, call, *given, **more):
    with pytest.raises(ValueError, match=match):
        call(*given, **more)


def uneven_positives_and_p_unlike_k_equal_the_loop_at_every_tile_height(row):
    for x, labels in BATCHES.values():
        expected = row.expected(x, labels)
        for head in row.heights(None, 1, 4):
            check_equal(head(x, labels), expected)
        check_equal(row.head().float()(x.float(), labels), expected, rel=1e-4)


def equals_the_loop_under_every_reduction(row):
    for reduction in ("mean_active", "mean", "sum") if row.reduction else ():
        expected = row.expected(*UNEVEN, reduction=reduction)
        check_equal(row.head(reduction=reduction)(*UNEVEN), expected)


def has_the_gradient_of_finite_differences(row):
    if not row.smooth:
        return
    for head in row.heights(None, 2):
        check_gradient(head, *UNEVEN)


def is_differentiated_twice_as_finite_differences_are_or_refuses_it(row):
    if not row.reduction:
        assert not row.smooth or check_second_derivative(row.head(), *UNEVEN) != row.tiled
        return
    for head in row.heights(None, 2):
        assert not check_second_derivative(head, *UNEVEN)
    one_by_one = row.head(reduction="none"), *UNEVEN, row.everything(UNEVEN[1])
    assert check_second_derivative(*one_by_one) == row.smooth


def identical_images_have_a_finite_second_derivative(row):
    if row.tiled and not (row.reduction and row.smooth):
        return  # it is refused
    for batch in COINCIDENT:
        x, labels = BATCHES[batch]
        x = x.clone().requires_grad_()
        head = row.head(reduction="none") if row.tiled else row.head()
        losses = head(x, labels, row.everything(labels) if row.tiled else None)
        (grad,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        assert torch.autograd.grad(grad.square().sum(), x)[0].isfinite().all()


def one_positive_pair_and_one_negative_pair_have_a_loss(row):
    x, labels = torch.tensor([[1.0, 0.1, 0, 0], [0.8, 0.8, 0, 0], [1.0, 0.8, 0, 0]]), torch.tensor([0, 0, 1])
    x = x.double()
    expected = row.expected(x, labels)
    assert expected or row.make in (NPair, IntraPairVariance)  # nothing to tell its one pair from
    for head in row.heights(None, 1):
        check_equal(head(x, labels), expected)
        check_finite(head, x, labels)


def no_positives_no_negatives_one_class_or_no_rows_have_the_loops_loss_and_a_graph(row):
    for x, labels in ONE_SIDED.values():
        expected = row.expected(x, labels)
        for head in row.heights(None, 2):
            for v in (x, x.float()):
                if expected == 0:
                    check_zero(head, v, labels)
                else:
                    check_equal(head(v, labels), expected, rel=1e-9 if v is x else 1e-4)
                    check_finite(head, v, labels)


def identical_images_and_collapsed_embeddings_have_a_finite_gradient(row):
    for batch in COINCIDENT:
        x, labels = BATCHES[batch]
        for v in (x, x.float(), torch.zeros_like(x)):
            check_finite(row.head(), v, labels)
            for mined in row.lists_of_all(labels) if row.lists else ():
                check_finite(row.head(), v, labels, mined=mined)


def is_0_with_gradient_0_when_satisfied(row):
    if row.satisfied is not None:
        x = torch.tensor([[0.0], [0.1], [100.0], [100.1]])
        check_zero(row.head(**row.satisfied), x, torch.tensor([0, 0, 1, 1]))


def rows_shuffled_give_the_same_loss_and_the_shuffled_gradient(row):
    x, labels = UNEVEN
    order = torch.tensor([7, 5, 8, 0, 1, 6, 2, 3, 4])  # N-pair takes the first rows of a class
    loss, grad = gradient_of(row.head(), x, labels)
    check_alike(gradient_of(row.head(), x[order], labels[order]), (loss, grad[order]))


def labels_are_uint8_int32_int64_bool_and_above_2_to_the_24(row):
    x, labels = points(6), torch.arange(6) % 2
    expected = row.head()(x, labels)
    for kind in (torch.uint8, torch.int32, torch.int64, torch.bool):
        assert torch.equal(row.head()(x, labels.to(kind)), expected)
    if "beta" not in dict(row.head().named_parameters()) and row.tiled:
        assert torch.equal(row.head()(x, labels + 2**53), expected)


def ids_are_exact_above_2_to_the_24(row):
    x, labels = points(6), torch.arange(6) % 2
    ids = 2**24 + torch.arange(6)  # of which a float32 keeps four
    check_alike([row.head()(x, labels, ids=ids)], [row.head()(x, labels)])


def fp16_and_bf16_are_compared_in_float32(row):
    x, labels = BATCHES["P × K"]
    for dtype in (torch.bfloat16, torch.float16):
        loss, grad = gradient_of(row.head(), x.to(dtype), labels)
        exact, exact_grad = gradient_of(row.head(), x.to(dtype).float(), labels)
        assert loss.dtype == torch.float32
        assert grad.dtype == dtype
        assert loss.item() == exact.item()
        assert torch.equal(grad, exact_grad.to(dtype))


def autocast_changes_nothing(row):
    def one_by_one(*given, **call):
        return row.head(reduction="none")(*given, **call).sum()

    x, labels = BATCHES["P × K"][0], BATCHES["P × K"][1]
    heads = [(row.head(), {})]
    if row.lists:
        listed = {"mined": row.everything(labels)}
        heads += [(row.head(), listed)] + ([(one_by_one, listed)] if row.reduction else [])
    for dtype in (torch.float32, torch.bfloat16):
        for head, call in heads:
            outside = gradient_of(head, x.to(dtype), labels, **call)
            with torch.autocast("cpu", torch.bfloat16):
                inside = gradient_of(head, x.to(dtype), labels, **call)
            assert inside[0].dtype == torch.float32
            assert all(torch.equal(u, v) for u, v in zip(inside, outside, strict=True))


def nan_and_infinite_embeddings_are_refused(row):
    x, labels = BATCHES["P × K"]
    caller = type(row.head()).__name__
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[3, 0] = bad
        text = rf"{caller}\(embeddings='1 of 9 rows, the first is row 3'\): expected finite"
        for mined in (None, (NOBODY, NOBODY, NOBODY)) if row.lists else (None,):
            refused(text, row.head(), broken, labels, mined)


def neither_labels_nor_tuples_is_refused(row):
    refused(rf"{type(row.head()).__name__}\(labels=None\): expected labels", row.head(), points(4))


def is_copied_and_pickled_with_the_same_loss(row):
    head = row.head()
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)) if row.tiled else head):
        assert torch.equal(other(*UNEVEN), head(*UNEVEN))
        assert repr(other) == repr(head)


def gives_no_gradient_where_none_is_wanted(row):
    small, classes = UNEVEN
    collapsed = torch.ones_like(small)  # all pairs are near
    for x, labels in ((small, classes), (small[:5], classes[:5]), (collapsed, classes)):
        x = x.clone().requires_grad_()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                loss, copy = row.head()(x, labels), x.detach().clone()
            assert not loss.requires_grad
            assert torch.equal(loss, row.head()(x, labels).detach())
            assert torch.equal(loss, row.head()(copy, labels).detach())  # of inference, outside it
            with mode():
                copied = labels.clone()
            row.head()(x, copied).backward()


def references_of_another_size_than_the_batch(row):
    x, labels = BATCHES["P × K"]
    for r in (0, 1, 4, 20):
        ref = References(points(r, seed=5), torch.arange(r) % 4)
        expected = row.expected(x, labels, ref=ref)
        for head in row.heights(None, 2):
            check_equal(head(x, labels, ref=ref), expected)


def the_gradient_flows_to_references_too(row):
    x, labels = BATCHES["P × K"]
    y = points(5, seed=7).requires_grad_()
    for head in row.heights(None, 2) if row.smooth else ():

        def loss(x, y, head=head):
            return head(x, labels, ref=References(y, torch.arange(5) % 4))

        assert torch.autograd.gradcheck(loss, (x.clone().requires_grad_(), y), fast_mode=True)


def the_anchor_is_never_its_own_candidate(row):
    x, labels = BATCHES["P × K"]
    more = torch.cat([x, points(4, seed=6)]), torch.cat([labels, torch.arange(4)]), torch.arange(13)
    twice = torch.tensor([0, 0, 1, 2, 3, 0, 4, 5, 6])
    calls = {"ids": torch.arange(9), "ref": References(*more)}, {"ids": twice}
    for call in calls:
        expected = row.expected(x, labels, **call)
        for head in row.heights(None, 2):
            check_equal(head(x, labels, **call), expected)


def the_list_of_all_gives_the_loss_of_all(row):
    x, labels = BATCHES["P ≠ K, shuffled"]
    ref = References(points(7, seed=4), torch.arange(7) % 3)
    for call in ({}, {"ref": ref}) if row.lists else ():
        for head in row.heights(None, 3):
            expected = gradient_of(head, x, labels, **call)
            for mined in row.lists_of_all(labels, **call):
                check_alike(gradient_of(head, x, labels, mined=mined, **call), expected)


def an_empty_list_is_0_with_a_graph(row):
    x, labels = BATCHES["P × K"]
    for mined in ((NOBODY,) * 3, (NOBODY,) * 4) if row.lists else ():
        if spread := row.expected(x, labels, sides=(set(), set())):  # of the embeddings, whatever is listed
            check_equal(row.head()(x, labels, mined), spread)
            check_finite(row.head(), x, labels, mined=mined)
        else:
            check_zero(row.head(), x, labels, mined=mined)
            check_zero(row.head(), x, labels, mined=mined, ref=References(x[:0], labels[:0]))
        check_zero(row.head(), x[:0], labels[:0], mined=mined)


def what_is_no_list_of_rows_of_the_batch_is_refused(row):
    x, rows, caller = points(4), torch.tensor([0, 1]), type(row.head()).__name__
    labels = torch.tensor([0, 0, 1, 1])
    if row.lists:
        refused(rf"{caller}\(mined='tuple of 2'\): expected Triplets", row.head(), x, labels, (rows, rows))
        wrong = (rows, rows, rows + 3)
        refused(rf"{caller}\(mined='row 4'\): expected rows below 4; pass the", row.head(), x, labels, wrong)


def a_misspelt_option_is_refused(row):
    caller = type(row.head()).__name__
    if row.reduction:
        refused(rf"{caller}\(reduction='means'\).*did you mean 'mean'\?", row.head, reduction="means")
    refused(rf"{caller}\(check_finite='newer'\).*did you mean 'never'\?", row.head, check_finite="newer")
    refused(rf"{caller}\(tile_rows=0\): expected a whole number of at least 1", row.head, tile_rows=0)
    with unchecked():
        refused(rf"{caller}\(relation='same'\): expected a relation: Same", row.make, relation="same")


def documents_every_option(row):
    """In the class itself, whatever a base or another head says."""
    kind = type(row.head())
    text = kind.__doc__
    sections = ["Args:", "Returns:", "Raises:", "Example:", "Reference:"]
    at = [text.find(f"\n    {section}\n") for section in sections]
    assert -1 not in at
    assert at == sorted(at)
    named = re.findall(r"^        (\w+): ", text[at[0] : at[1]], re.MULTILINE)
    assert named == list(inspect.signature(kind).parameters)
    assert " as for " not in text


OF_ALL = [
    uneven_positives_and_p_unlike_k_equal_the_loop_at_every_tile_height,
    equals_the_loop_under_every_reduction,
    has_the_gradient_of_finite_differences,
    is_differentiated_twice_as_finite_differences_are_or_refuses_it,
    identical_images_have_a_finite_second_derivative,
    one_positive_pair_and_one_negative_pair_have_a_loss,
    no_positives_no_negatives_one_class_or_no_rows_have_the_loops_loss_and_a_graph,
    identical_images_and_collapsed_embeddings_have_a_finite_gradient,
    is_0_with_gradient_0_when_satisfied,
    rows_shuffled_give_the_same_loss_and_the_shuffled_gradient,
    labels_are_uint8_int32_int64_bool_and_above_2_to_the_24,
    ids_are_exact_above_2_to_the_24,
    fp16_and_bf16_are_compared_in_float32,
    autocast_changes_nothing,
    nan_and_infinite_embeddings_are_refused,
    neither_labels_nor_tuples_is_refused,
    is_copied_and_pickled_with_the_same_loss,
    gives_no_gradient_where_none_is_wanted,
    documents_every_option,
]
OF_PAIRED = [
    references_of_another_size_than_the_batch,
    the_gradient_flows_to_references_too,
    the_anchor_is_never_its_own_candidate,
    the_list_of_all_gives_the_loss_of_all,
    an_empty_list_is_0_with_a_graph,
    what_is_no_list_of_rows_of_the_batch_is_refused,
    a_misspelt_option_is_refused,
]


@pytest.mark.parametrize("demand", OF_ALL, ids=lambda demand: demand.__name__)
@pytest.mark.parametrize("name", HEADS)
def test_a_head(name, demand):
    demand(HEADS[name])


@pytest.mark.parametrize("demand", OF_PAIRED, ids=lambda demand: demand.__name__)
@pytest.mark.parametrize("name", PAIRED)
def test_a_head_of_rows_and_columns(name, demand):
    demand(PAIRED[name])


class Spoiled(nn.Module):
    """A hinge that is wrong in one way."""

    def __init__(self, spoil, options):
        super().__init__()
        self.inner = TripletMargin(**options)
        self.spoil = spoil

    def forward(self, embeddings, labels=None, mined=None, **call):
        return self.spoil(self.inner, embeddings, labels, mined, **call)

    def extra_repr(self):
        return str(id(self))


def spoiled(spoil, **options):
    """The row of a hinge with every list, whose head is spoiled."""
    return replace(hinge(margin=0.2), satisfied={}, make=lambda **more: Spoiled(spoil, {**more, **options}))


def of_value(change):
    """A head whose loss is another."""
    return spoiled(lambda head, x, *given, **call: change(head(x, *given, **call), x))


def beside(extra):
    """A head with something added that is 0 and whose gradient is not."""
    return of_value(lambda loss, x: loss + extra(x) - extra(x).detach())


def without(*arguments):
    """A head that does not look at some arguments."""

    def called(head, x, labels, mined, **call):
        kept = {name: value for name, value in call.items() if name not in arguments}
        return head(x, labels, None if "mined" in arguments else mined, **kept)

    return spoiled(called)


class Forgetful(TripletMargin):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.margin += 1


def careless(head, x, labels, mined, **call):
    return head(x.nan_to_num(0.0, 0.0, 0.0), labels, mined, **call)


WRONG = {
    uneven_positives_and_p_unlike_k_equal_the_loop_at_every_tile_height: of_value(
        lambda loss, x: loss * 1.001
    ),
    equals_the_loop_under_every_reduction: spoiled(
        lambda head, *given, **call: head(*given, **call), reduction="sum"
    ),
    has_the_gradient_of_finite_differences: beside(lambda x: 0.1 * x.sum()),
    is_differentiated_twice_as_finite_differences_are_or_refuses_it: beside(lambda x: (x * x.detach()).sum()),
    identical_images_have_a_finite_second_derivative: beside(
        lambda x: (x[:1] - x[1:]).norm(dim=1).square().sum()
    ),
    one_positive_pair_and_one_negative_pair_have_a_loss: of_value(lambda loss, x: loss * (len(x) > 3)),
    no_positives_no_negatives_one_class_or_no_rows_have_the_loops_loss_and_a_graph: of_value(
        lambda loss, x: loss.detach()
    ),
    identical_images_and_collapsed_embeddings_have_a_finite_gradient: beside(
        lambda x: (x[:1] - x[1:]).norm(dim=1).sqrt().sum()
    ),
    is_0_with_gradient_0_when_satisfied: beside(lambda x: 0.1 * x.sum()),
    rows_shuffled_give_the_same_loss_and_the_shuffled_gradient: of_value(lambda loss, x: loss + x[0, 0]),
    labels_are_uint8_int32_int64_bool_and_above_2_to_the_24: spoiled(
        lambda head, x, labels, mined: head(x, labels.float().long(), mined)
    ),
    ids_are_exact_above_2_to_the_24: spoiled(
        lambda head, x, labels, mined, ids=None: head(
            x, labels, mined, ids=None if ids is None else ids.float().long()
        )
    ),
    fp16_and_bf16_are_compared_in_float32: of_value(lambda loss, x: loss.to(x.dtype)),
    autocast_changes_nothing: of_value(lambda loss, x: loss + (x.float() @ x.float().T).sum().float()),
    nan_and_infinite_embeddings_are_refused: spoiled(careless),
    neither_labels_nor_tuples_is_refused: spoiled(
        lambda head, x, labels, mined: head(x, torch.arange(len(x)) if labels is None else labels, mined)
    ),
    is_copied_and_pickled_with_the_same_loss: replace(hinge(margin=0.2), make=Forgetful),
    gives_no_gradient_where_none_is_wanted: of_value(lambda loss, x: loss.clone().requires_grad_()),
    documents_every_option: of_value(lambda loss, x: loss),
    references_of_another_size_than_the_batch: without("ref"),
    the_gradient_flows_to_references_too: spoiled(
        lambda head, x, labels, mined, ref: head(
            x, labels, mined, ref=ref._replace(embeddings=ref.embeddings.detach())
        )
    ),
    the_anchor_is_never_its_own_candidate: spoiled(
        lambda head, x, labels, mined, ids, ref=None: head(
            x, labels, mined, ref=None if ref is None else ref._replace(ids=None)
        )
    ),
    the_list_of_all_gives_the_loss_of_all: spoiled(
        lambda head, x, labels, mined, **call: head(x, labels, mined and [v[1:] for v in mined], **call)
    ),
    an_empty_list_is_0_with_a_graph: without("mined"),
    what_is_no_list_of_rows_of_the_batch_is_refused: without("mined"),
    a_misspelt_option_is_refused: replace(hinge(margin=0.2), make=lambda **options: TripletMargin()),
}


def test_every_demand_has_a_head_that_breaks_it():
    assert set(WRONG) == {*OF_ALL, *OF_PAIRED}


@pytest.mark.parametrize("demand", WRONG, ids=lambda demand: demand.__name__)
def test_a_wrong_head_is_found_out(demand):
    demand(replace(hinge(margin=0.2), satisfied={}))
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        demand(WRONG[demand])
