import copy
import math
import pickle

import pytest
import torch

from tercet.core.indices import References
from tercet.losses.angles import Angular
from tercet.losses.composed import EmbeddingPenalty, Sum
from tercet.losses.histogram import Histogram
from tercet.losses.listwise import InfoNCE, NPair, SupCon
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.pair_weighting import LiftedStructure
from tercet.losses.ranked_list import RankedList
from tercet.losses.softmax import CosFace
from tercet.losses.triplet import TripletMargin
from tercet.miners.hard import BatchHard
from tercet.pairwise import distances
from tests.contracts.heads import BATCHES, check_alike, gradient_of
from tests.helpers import double_points as points
from tests.helpers import unchecked


def everything():
    """Heads of three distances, with and without tables, with parameters of their own and without."""
    heads = [
        TripletMargin(1.0),
        TripletMargin(power=2, distance="squared_euclidean", reduction="sum"),
        TripletMargin(1.0, swap=True),
        Contrastive(2.0, reduction="mean"),
        Contrastive(3.0, 0.5, power=1, two_means=True),
        MarginLoss(0.7, 2.0),
        LiftedStructure(),
        RankedList(distance="cosine"),
        SupCon(),
        InfoNCE(reduction="sum"),
        NPair(),
        Histogram(),
        Angular(),
        CosFace(5, 4),
        EmbeddingPenalty(1.0, 2.0),
    ]
    return [head.double() for head in heads], [0.5 + 0.25 * i for i in range(len(heads))]


def one_by_one(heads, weights):
    """The same sum, of heads that know nothing of each other."""

    def loss(x, labels, mined=None, **call):
        plain = [head(x, labels) for head in heads if isinstance(head, (CosFace, EmbeddingPenalty))]
        paired = [
            head(x, labels, mined, **call)
            for head in heads
            if not isinstance(head, (CosFace, EmbeddingPenalty))
        ]
        return sum(w * part for w, part in zip(weights, [*paired, *plain], strict=True))

    return loss


@pytest.mark.parametrize("batch", BATCHES)
def test_a_sum_is_the_sum_of_its_heads(batch):
    heads, weights = everything()
    check_alike(
        gradient_of(Sum(heads, weights), *BATCHES[batch]),
        gradient_of(one_by_one(heads, weights), *BATCHES[batch]),
    )


def test_a_sum_of_a_list_of_references_and_of_ids_is_the_sum_of_its_heads():
    heads, weights = everything()
    heads, weights = [*heads[:9], *heads[12:]], [*weights[:9], *weights[12:]]
    x, labels = BATCHES["P × K"]
    ref = References(points(7, seed=4), torch.arange(7) % 3, torch.arange(7) + 5)
    for call in ({"mined": BatchHard()(x, labels)}, {"ids": torch.arange(9), "ref": ref}):
        check_alike(
            gradient_of(Sum(heads, weights), x, labels, **call),
            gradient_of(one_by_one(heads, weights), x, labels, **call),
        )


def test_a_list_needs_no_ids_beside_those_of_its_references():
    x, y = points(6), points(8, seed=1)
    labels, columns = torch.arange(6) // 2, torch.arange(8) // 2
    ref = References(y, columns, torch.arange(8))
    mined = BatchHard()(x, labels, ids=torch.arange(6) + 20, ref=ref)
    heads = [TripletMargin(1.0), Contrastive(2.0), SupCon()]
    alone = sum(head(x, labels, mined, ref=ref) for head in heads)
    torch.testing.assert_close(Sum(heads)(x, labels, mined, ref=ref), alone)


def test_a_sum_of_several_tiles_is_the_sum_of_its_heads():
    x, labels = BATCHES["uneven positives per anchor"]
    heads = [TripletMargin(1.0, tile_rows=2), Contrastive(2.0, tile_rows=2)]
    check_alike(gradient_of(Sum(heads), x, labels), gradient_of(one_by_one(heads, [1, 1]), x, labels))


def test_what_a_miner_has_prepared_is_taken():
    x, labels = BATCHES["P × K"]
    x = x.clone().requires_grad_()
    miner, head = BatchHard(), Sum([TripletMargin(1.0), Contrastive(2.0), CosFace(3, 4).double()])
    pairwise = miner.pairwise(x, labels)
    assert torch.equal(head(pairwise), head(x, labels))
    mined = miner(x, labels)
    assert torch.equal(head(pairwise, mined=mined), head(x, labels, mined))
    with pytest.raises(
        ValueError, match=r"SupCon\(pairwise='distance=euclidean'\): expected distance=cosine"
    ):
        Sum([SupCon()])(pairwise)


def test_distances_are_computed_once(monkeypatch):
    calls = []

    class Seen(type(distances.euclidean)):
        def tile(self, x, y):
            calls.append(len(x))
            return super().tile(x, y)

    x, labels = BATCHES["P × K"]
    heads = [kind(distance=Seen()) for kind in (TripletMargin, Contrastive, RankedList)]
    gradient_of(Sum(heads), x, labels)
    assert calls == [9]
    calls.clear()
    gradient_of(one_by_one(heads, [1, 1, 1]), x, labels)
    assert calls == [9, 9, 9]


def test_parameters_of_all_heads_learn_and_are_saved():
    x, labels = BATCHES["P × K"]
    head = Sum([MarginLoss(0.7, 2.0), CosFace(3, 4)]).double()
    assert [name for name, _ in head.named_parameters()] == ["heads.0.beta", "heads.1.proxies"]
    head(x, labels).backward()
    assert all(value.grad.abs().sum() > 0 for value in head.parameters())
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(x, labels), head(x, labels))
        assert repr(other) == repr(head)


def test_a_head_may_stand_in_it_twice_and_a_sum_in_a_sum():
    x, labels = BATCHES["P × K"]
    head = TripletMargin(1.0)
    twice = Sum([head, Sum([head, head]), head], [1, 2, 3])
    torch.testing.assert_close(twice(x, labels), 8 * head(x, labels))
    mined = BatchHard()(x, labels)
    torch.testing.assert_close(twice(x, labels, mined), 8 * head(x, labels, mined))


def test_no_rows_have_a_loss_of_0_with_a_graph():
    x = points(0).requires_grad_()
    loss = Sum([TripletMargin(), SupCon(), EmbeddingPenalty(1.0, 1.0)])(x, torch.zeros(0).long())
    assert loss.item() == 0
    loss.backward()
    assert x.grad.shape == x.shape


def test_what_a_sum_cannot_be_of_is_refused():
    with unchecked():
        for heads in ([], 3, [1], ["SupCon"]):
            with pytest.raises(ValueError, match=r"Sum\(heads=.*\): expected a list of one head or more"):
                Sum(heads)
        for weights in ([], [1.0, 2.0], 3, "1", {0: 1.0}, torch.tensor(1.0)):
            with pytest.raises(ValueError, match=r"Sum\(weights=.*\): expected 1 numbers, one for each head"):
                Sum([SupCon()], weights)
    with pytest.raises(ValueError, match=r"Sum\(weights=nan\): expected a finite number"):
        Sum([SupCon()], [math.nan])
    with pytest.raises(ValueError, match=r"Sum\(heads=.*expected heads with another reduction than"):
        Sum([SupCon(reduction="none")])
    with pytest.raises(ValueError, match=r"SupCon\(labels=None\): expected labels, or mined pairs"):
        Sum([SupCon()])(points(3))


def test_bad_embeddings_are_refused_by_a_head_that_sees_them():
    x, labels = points(4), torch.arange(4) // 2
    x[2, 0] = math.nan
    for heads in ([TripletMargin(), Contrastive()], [EmbeddingPenalty()]):
        with pytest.raises(
            ValueError, match=r"embeddings='1 of 4 rows, the first is row 2'\): expected finit"
        ):
            Sum(heads)(x, labels)


def test_a_penalty_is_the_mean_squared_length_and_the_length_of_the_mean():
    x = points(6).requires_grad_()
    rows = x.detach().tolist()
    length = sum(v * v for row in rows for v in row) / 6
    mean = [sum(row[k] for row in rows) / 6 for k in range(4)]
    expected = 0.5 * length + 3 * sum(v * v for v in mean)
    head = EmbeddingPenalty(0.5, 3.0)
    assert head(x).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(head, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x.float()).dtype == torch.float32
    assert repr(head) == "EmbeddingPenalty(length=0.5, mean=3)"


def test_a_sum_is_compiled():
    x, labels = BATCHES["P × K"]
    head = Sum([SupCon(), InfoNCE(), EmbeddingPenalty(0.1)], [1, 2, 3])

    def step(x):
        return head(2 * x, labels)

    torch.compiler.reset()
    with unchecked():
        found = torch.compile(step, backend="eager")(x)
    torch.testing.assert_close(found, step(x))
