"""Every head of rows and columns, by every relation: the loop's loss of the pairs that it names."""

import pytest
import torch

from tercet.core.indices import References
from tercet.losses.histogram import Histogram
from tercet.losses.listwise import NPair
from tercet.losses.margin import MarginLoss
from tercet.pairwise.pair_relations import Ignore, PairTable
from tercet.pairwise.relations import CrossGroup, Graded, SameLabel, SharedLabel
from tests.contracts.heads import PAIRED, PROXIED, check_alike, check_equal, gradient_of
from tests.helpers import double_points as points
from tests.helpers import jaccard
from tests.oracles import triplets as reference


def ahead(a, b):
    return (a[:, None] > b).double().mean(2)


# By name: the relation, what it says of two rows of labels, and the labels of ten rows and of seven columns.
TAGS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]])
VIEWS = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0], [2, 0], [3, 1], [2, 1]])
TABLE = torch.rand(10, 10, generator=torch.Generator().manual_seed(5))
TABLE = (TABLE + TABLE.T) / 2
ROWS = torch.arange(10)
RELATIONS = {
    "same label": (SameLabel(), reference.same_label, VIEWS[:, 0]),
    "shared label": (
        SharedLabel(),
        lambda a, b: (jaccard(a, b) > 0, jaccard(a, b) == 0),
        TAGS.repeat(2, 1)[:10],
    ),
    "cross group": (CrossGroup(), lambda a, b: (a[0] == b[0] and a[1] != b[1], a[0] != b[0]), VIEWS),
    "graded": (
        Graded(0.5, 0.2),
        lambda a, b: (jaccard(a, b) >= 0.5, jaccard(a, b) <= 0.2),
        TAGS.repeat(2, 1)[:10],
    ),
    "graded, one way": (
        Graded(0.5, 0.0, ahead),
        lambda a, b: (
            sum(u > v for u, v in zip(a, b, strict=True)) >= 1,
            all(u <= v for u, v in zip(a, b, strict=True)),
        ),
        VIEWS,
    ),
}
RELATIONS |= {
    "ignored negatives": (Ignore("same"), lambda a, b: (a[0] == b[0], a[0] != b[0] and a[1] != b[1]), VIEWS),
    "a table": (
        PairTable(TABLE > 0.5, TABLE < 0.3),
        lambda a, b: (TABLE[a, b] > 0.5, TABLE[a, b] < 0.3),
        ROWS,
    ),
}
CLASSLESS = ["shared label", "graded", "graded, one way", "ignored negatives", "a table"]


def takes(name, relation):
    return relation not in CLASSLESS or not name.startswith(("N-pair", "margin loss, β a class"))


PAIRS = [(name, relation) for name in PAIRED for relation in RELATIONS if takes(name, relation)]


@pytest.mark.parametrize("with_ref", [False, True], ids=["the batch", "references"])
@pytest.mark.parametrize(("name", "relation"), PAIRS)
def test_a_head_takes_the_pairs_that_the_relation_names(name, relation, with_ref):
    row, (by, says, labels) = PAIRED[name], RELATIONS[relation]
    x = points(10, seed=3)
    ref = References(points(7, seed=5), labels[[3, 1, 0, 5, 2, 9, 6]]) if with_ref else None
    one_way = relation == "graded, one way" and name.startswith("histogram") and not with_ref
    expected = None if one_way else row.expected(x, labels, ref=ref, says=says)
    for head in row.heights(None, 3):
        head.relation = by
        loss, grad = gradient_of(head, x, labels, ref=ref)
        if not one_way:  # where the loop, and a list, take (i, j) and (j, i) for one
            check_equal(loss, expected)
            if row.lists:
                mined = row.everything(labels, ref=ref, says=says)
                check_alike(gradient_of(head, x, labels, mined=mined, ref=ref), (loss, grad))


def test_a_histogram_of_a_relation_one_way_is_of_ordered_pairs():
    by, says, labels = RELATIONS["graded, one way"]
    x, row = points(10, seed=3), PAIRED["histogram, 7 bins"]
    ref = References(x, labels, torch.arange(10))
    expected = row.expected(x, labels, ids=torch.arange(10), ref=ref, says=says)
    for height in (None, 3):
        head = Histogram(7, relation=by, tile_rows=height)
        check_equal(head(x, labels), expected)
        x.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, head=head: head(x, labels), x, fast_mode=True)
        x.requires_grad_(False)


@pytest.mark.parametrize("name", PAIRED)
def test_a_relation_is_an_option_and_is_shown(name):
    head = PAIRED[name].head(relation=CrossGroup())
    assert head.relation == CrossGroup()
    assert "relation=CrossGroup()" in repr(head)
    assert "relation" not in repr(PAIRED[name].head())


@pytest.mark.parametrize("relation", CLASSLESS)
def test_a_relation_without_classes_is_refused_where_a_class_is_needed(relation):
    by, _, labels = RELATIONS[relation]
    x = points(10)
    mined = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    for given in ((x, labels), (x, labels, mined)):
        with pytest.raises(
            ValueError, match=r"NPair\(relation=.*\): expected SameLabel\(\) or CrossGroup\(\), by which"
        ):
            NPair(relation=by)(*given)
        with pytest.raises(ValueError, match=r"MarginLoss\(num_classes=4\): expected None with relation="):
            MarginLoss(num_classes=4, relation=by)(*given)
        assert MarginLoss(relation=by)(*given).isfinite()


@pytest.mark.parametrize("name", PAIRED)
def test_several_labels_a_row_need_a_relation_that_takes_them(name):
    caller = type(PAIRED[name].head()).__name__
    with pytest.raises(
        ValueError, match=rf"{caller}\(labels='shape \(10, 2\)'\): .*; pass a relation that takes several"
    ):
        PAIRED[name].head()(points(10), VIEWS)


@pytest.mark.parametrize("name", PROXIED)
def test_a_head_with_proxies_refuses_several_labels_a_row(name):
    head = PROXIED[name].head()
    expected = r"expected shape \(10,\), a class number for each embedding; take a head with relation= for"
    with pytest.raises(ValueError, match=rf"{type(head).__name__}\(labels='shape \(10, 2\)'\): {expected}"):
        head(points(10), VIEWS)
