import torch

from tercet.miners.draws import batch_key, drawn_places, keyed
from tercet.pairwise.distances import euclidean
from tercet.pairwise.tiles import Pairwise


def pairwise(labels, ids=None):
    return Pairwise("test", torch.eye(len(labels)), torch.tensor(labels), ids=ids, distance=euclidean)


def test_the_key_of_a_batch_names_owner_seed_step_labels_order_and_ids():
    keys = [
        batch_key("A", 0, 0, pairwise([0, 0, 1])),
        batch_key("B", 0, 0, pairwise([0, 0, 1])),
        batch_key("A", 1, 0, pairwise([0, 0, 1])),
        batch_key("A", 0, 1, pairwise([0, 0, 1])),
        batch_key("A", 0, 0, pairwise([0, 1, 0])),
        batch_key("A", 0, 0, pairwise([0, 0, 1], torch.tensor([5, 6, 7]))),
    ]
    assert len(set(keys)) == len(keys)
    assert batch_key("A", 0, 0, pairwise([0, 0, 1])) == keys[0]


def test_places_are_different_and_rising():
    for key in range(20):
        places = drawn_places(30, 100, key, "cpu").tolist()
        assert places == sorted(set(places))
        assert len(places) == 30
        assert 0 <= places[0] <= places[-1] < 100
    assert drawn_places(0, 100, 0, "cpu").tolist() == []


def test_keyed_numbers_belong_to_their_rows():
    i, j = torch.cartesian_prod(torch.arange(50), torch.arange(50)).T
    u = keyed(7, i, j)
    assert torch.equal(u[100:200], keyed(7, i[100:200], j[100:200]))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.03
    assert not torch.equal(u, keyed(8, i, j))
