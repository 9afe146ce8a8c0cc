"""A miner and a head that share one look at a batch give what they give apart, and look once."""

import pytest
import torch
from torch import nn

from tercet.core.indices import References
from tercet.losses.listwise import InfoNCE
from tercet.losses.margin import MarginLoss
from tercet.losses.pair_weighting import MultiSimilarity
from tercet.losses.triplet import TripletMargin
from tercet.miners.hard import BatchHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tercet.pairwise.distances import Mahalanobis, cosine
from tercet.pairwise.relations import CrossGroup
from tests.contracts.heads import PAIRED, check_alike
from tests.helpers import double_points as points
from tests.helpers import refusal_of, unchecked

LABELS = torch.arange(16) % 4


def gradient_of(call):
    x = points(16, 4, seed=3).requires_grad_()
    loss = call(x)
    loss.sum().backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_a_head_that_shares_has_the_same_loss_and_gradient(name, listed):
    row = PAIRED[name]
    if listed and not row.lists:
        return
    head = row.head()
    kind = BatchHard if row.lists == "triplets" else PairMargin
    miner = kind(distance=head.distance)

    def apart(x):
        return head(x, LABELS, miner(x, LABELS) if listed else None)

    def shared(x):
        pairwise = miner.pairwise(x, LABELS)
        mined = miner(pairwise)
        return head(pairwise, mined=mined if listed else None)

    if listed and kind is PairMargin:
        miner = PairMargin(-2.0, 9.0, distance=head.distance)
    found, expected = gradient_of(shared), gradient_of(apart)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    head.tile_rows = 5 if name != "FastAP" else head.tile_rows
    check_alike(gradient_of(shared), expected)


def test_ids_and_references_are_shared_too():
    ids = torch.arange(16) // 2
    ref = References(points(9, 4, seed=5), LABELS[:9], torch.arange(9))
    head, miner = TripletMargin(), BatchHard()
    for mined in (False, True):

        def apart(x, mined=mined):
            tuples = miner(x, LABELS, ids=ids, ref=ref) if mined else None
            return head(x, LABELS, tuples, ids=ids, ref=ref)

        def shared(x, mined=mined):
            pairwise = miner.pairwise(x, LABELS, ids=ids, ref=ref)
            return head(pairwise, mined=miner(pairwise) if mined else None)

        for one, other in zip(gradient_of(shared), gradient_of(apart), strict=True):
            assert torch.equal(one, other)


def test_labels_of_a_class_are_those_of_the_shared_look():
    head = MarginLoss(num_classes=4).double()
    miner = BatchHard()
    found = gradient_of(lambda x: head(pairwise := miner.pairwise(x, LABELS), mined=miner(pairwise)))
    expected = gradient_of(lambda x: head(x, LABELS, miner(x, LABELS)))
    assert torch.equal(found[1], expected[1])


class Watched:
    """The cosine, which counts how often rows are prepared."""

    differentiable, form = True, cosine.form
    tile, paired = cosine.tile, cosine.paired

    def __init__(self):
        self.prepared = 0

    def prepare(self, embeddings):
        self.prepared += 1
        return cosine.prepare(embeddings)


def test_embeddings_are_prepared_and_looked_at_once(monkeypatch):
    x, distance, looks = points(16, 4).requires_grad_(), Watched(), []
    miner = BatchHard(distance=distance)
    heads = TripletMargin(distance=distance), InfoNCE(distance=distance)
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda v: looks.append(v.shape) or aminmax(v))
    mined = miner(x, LABELS)
    sum(head(x, LABELS, mined) for head in heads).backward()
    assert (distance.prepared, len(looks)) == (3, 6)  # given and prepared numbers, each time
    distance.prepared, looks[:] = 0, []
    pairwise = miner.pairwise(x, LABELS)
    mined = miner(pairwise)
    sum(head(pairwise, mined=mined) for head in heads).backward()
    assert (distance.prepared, len(looks)) == (1, 2)


def test_the_miner_may_come_last():
    x = points(16, 4).requires_grad_()
    miner = BatchHard()
    pairwise = miner.pairwise(x, LABELS)
    TripletMargin()(pairwise).backward()
    for one, other in zip(miner(pairwise), miner(x, LABELS), strict=True):
        assert torch.equal(one, other)


def test_another_distance_or_relation_is_refused():
    x = points(16, 4)
    pairwise = BatchHard().pairwise(x, LABELS)
    hint = "make it by a miner with distance=cosine, or pass embeddings and labels"
    text = "pairwise='distance=euclidean'): expected distance=cosine, as"
    assert refusal_of(MultiSimilarity(), pairwise) == f"MultiSimilarity({text} MultiSimilarity has; {hint}"
    assert refusal_of(MultiSimilarityMiner(), pairwise).startswith(f"MultiSimilarityMiner({text}")
    other = TripletMargin(relation=CrossGroup())
    assert refusal_of(other, pairwise).startswith(
        "TripletMargin(pairwise='relation=SameLabel()'): expected relation=CrossGroup()"
    )
    assert other(pairwise, mined=BatchHard()(pairwise)).ndim == 0  # a list needs no relation


def test_what_was_changed_since_is_refused():
    for change in range(4):
        x, labels = points(16, 4).requires_grad_(), LABELS.clone()
        distance = Mahalanobis(nn.Parameter(torch.eye(4).double()))
        pairwise = BatchHard(distance=distance).pairwise(x, labels)
        with torch.no_grad():
            for place, changed in enumerate((x, labels, distance.L)):
                if place == change:
                    changed.mul_(2)
        head = TripletMargin(distance=distance)
        if change == 3:
            assert head(pairwise).ndim == 0
        else:
            text = refusal_of(head, pairwise)
            assert text.startswith(
                "TripletMargin(pairwise='numbers that were changed'): expected embeddings,"
            )
            assert text.endswith("make it anew, by miner.pairwise(embeddings, labels)")


def test_one_without_a_graph_is_refused_where_a_gradient_is_wanted():
    x = points(16, 4).requires_grad_()
    with torch.no_grad():
        pairwise = BatchHard(distance="cosine").pairwise(x, LABELS)
        assert TripletMargin(distance="cosine")(pairwise).ndim == 0
    text = refusal_of(TripletMargin(distance="cosine"), pairwise)
    assert text.startswith(
        "TripletMargin(pairwise='one that was made under no_grad'): expected embeddings with"
    )


def test_arguments_that_it_has_are_refused_beside_it():
    pairwise = BatchHard().pairwise(points(16, 4), LABELS)
    mined = BatchHard()(pairwise)
    with unchecked():
        for call in (BatchHard(), TripletMargin()):
            name = type(call).__name__
            text = f"{name}(labels='Tensor'): expected None beside a pairwise, which has its own"
            assert refusal_of(call, pairwise, LABELS).startswith(text)
            text = f"{name}(ids='Tensor'): expected None beside a pairwise, which has its own"
            assert refusal_of(call, pairwise, ids=LABELS) == text
        assert refusal_of(TripletMargin(), pairwise, mined).endswith("pass mined tuples as mined=")
        assert refusal_of(BatchHard(), points(16, 4)) == "BatchHard(labels=None): expected labels"


def test_bad_numbers_are_refused_when_the_look_is_taken():
    x = points(16, 4)
    x[3, 1] = torch.nan
    assert refusal_of(BatchHard().pairwise, x, LABELS).startswith("BatchHard(embeddings='1 of 16 rows")
