"""Overrides are never passed over: what a subclass, or an object, overrides is what is computed."""

import copy
import pickle

import pytest
import torch

from tercet.losses.histogram import Histogram
from tercet.losses.listwise import NPair
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.metrics.mining_stats import describe
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard, SemiHard
from tercet.pairwise import distances
from tercet.pairwise.distances import Distance, EuclideanDistance, Mahalanobis, as_distance
from tercet.pairwise.relations import CrossGroup, SameLabel, whole_numbers
from tercet.pairwise.tiles import Pairwise
from tests.contracts.heads import as_triplets, check_alike, gradient_of
from tests.helpers import double_points as points


def ahead(rows, columns):
    """Decades of labels are classes, and a positive is of a higher label: one way only."""
    decade = rows[:, None] // 10 == columns[None, :] // 10
    return decade & (rows[:, None] < columns[None, :]), ~decade


class Plain:
    """A relation of one's own; the key names a class, and rows of two may be a positive pair."""

    def check(self, caller, argument, labels, count, device):
        return whole_numbers(caller, argument, labels, count, device)

    def key(self, labels):
        return labels

    def sides(self, rows, columns):
        return ahead(rows, columns)


class Ahead(SameLabel):
    def sides(self, rows, columns):
        return ahead(rows, columns)


class Twice(Ahead):
    pass


class Sides:
    def sides(self, rows, columns):
        return ahead(rows, columns)


class Mixed(Sides, SameLabel):
    pass


def on_an_object():
    relation = SameLabel()
    object.__setattr__(relation, "sides", ahead)
    return relation


class Wrapped:
    """Delegates what it does not override, promises included."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sides(self, rows, columns):
        return ahead(rows, columns)


ASYMMETRIC = {
    "a subclass": Ahead(),
    "a subclass of a subclass": Twice(),
    "a mixin": Mixed(),
    "an object": on_an_object(),
    "a wrapper": Wrapped(SameLabel()),
}
HEADS = {
    "Contrastive": lambda by: Contrastive(2.0, relation=by),
    "Histogram": lambda by: Histogram(20, relation=by),
    "MarginLoss": lambda by: MarginLoss(0.5, 1.5, relation=by),
    "NPair": lambda by: NPair(relation=by),
    "TripletMargin": lambda by: TripletMargin(0.5, relation=by),
}
LABELS = torch.tensor([3, 1, 12, 14, 2, 11, 5, 25, 21, 13])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("by", ASYMMETRIC)
def test_an_asymmetric_subclass_of_same_label_trains_as_a_relation_of_ones_own(by, head):
    x = points(10, seed=4)
    own = gradient_of(HEADS[head](Plain()), x, LABELS)
    check_alike(gradient_of(HEADS[head](ASYMMETRIC[by]), x, LABELS), own)
    assert own[1].abs().sum() > 0
    assert not torch.allclose(gradient_of(HEADS[head](SameLabel()), x, LABELS)[1], own[1])


@pytest.mark.parametrize("by", ASYMMETRIC)
def test_a_subclass_whose_positives_have_other_keys_is_mined_by_its_sides(by):
    """A batch so large that rows are taken in the order of the key, where one is promised."""
    x = points(600, 3, seed=5, dtype=torch.float32)
    labels = torch.randint(0, 60, (600,), generator=torch.Generator().manual_seed(5))
    for kind in (BatchHard, SemiHard):
        mined = kind(relation=ASYMMETRIC[by])(x, labels)
        expected = kind(relation=Keyless())(x, labels)
        assert all(torch.equal(u, v) for u, v in zip(mined, expected, strict=True))
        assert (labels[mined.anchor] != labels[mined.positive]).all()


class Keyless(Plain):
    def key(self, labels):
        return None


def test_a_promise_stated_again_holds():
    class Restated(Ahead):
        is_symmetric = True

        def key(self, labels):
            return labels // 10

    batch = Pairwise("test", points(10), LABELS, distance=distances.euclidean, relation=Restated())
    assert batch.is_symmetric
    for relation in (SameLabel(), CrossGroup()):
        labels = LABELS if isinstance(relation, SameLabel) else torch.stack([LABELS, LABELS], 1)
        assert Pairwise(
            "test", points(10), labels, distance=distances.euclidean, relation=relation
        ).is_symmetric
    for relation in ASYMMETRIC.values():
        batch = Pairwise("test", points(10), LABELS, distance=distances.euclidean, relation=relation)
        assert not batch.is_symmetric


class Squared(Mahalanobis):
    def tile(self, x, y):
        return super().tile(x, y) ** 2

    def paired(self, x, y):
        return super().paired(x, y) ** 2


class SquaredTwice(Squared):
    pass


def squared_on_an_object():
    distance = Mahalanobis(torch.eye(4, dtype=torch.float64))
    tile, paired = distance.tile, distance.paired
    distance.tile, distance.paired = lambda x, y: tile(x, y) ** 2, lambda x, y: paired(x, y) ** 2
    return distance


SQUARED = {
    "a subclass": lambda: Squared(torch.eye(4, dtype=torch.float64)),
    "a subclass of a subclass": lambda: SquaredTwice(torch.eye(4, dtype=torch.float64)),
    "an object": squared_on_an_object,
}


@pytest.mark.parametrize("way", SQUARED)
def test_a_subclass_of_mahalanobis_that_squares_is_squared_in_all_lists_and_miners(way):
    x, labels = points(40, seed=6), torch.arange(40) % 8
    own, squared = SQUARED[way](), distances.squared_euclidean
    miners = [BatchAll(margin=0.3, distance=each) for each in (own, squared)]
    mined, expected = (miner(x, labels) for miner in miners)
    assert all(torch.equal(u, v) for u, v in zip(mined, expected, strict=True))
    assert miners[0].count(x, labels) == expected.count
    every = BatchAll()(x, labels)
    for kind in (TripletMargin, Contrastive, MarginLoss):
        head, other = kind(0.3, distance=own), kind(0.3, distance=squared)
        check_alike(gradient_of(head, x, labels), gradient_of(other, x, labels))
        check_alike(gradient_of(head, x, labels, mined=every), gradient_of(other, x, labels, mined=every))
    told = [describe(x, labels, expected, distance=each) for each in (own, squared)]
    assert told[0] == pytest.approx(told[1])


def test_a_long_list_is_measured_by_the_override_too():
    """So long that the class's own `entries` would be taken."""
    x, labels = points(64, seed=7).repeat(1, 4), torch.arange(64) % 4
    every = BatchAll()(x, labels)
    own = TripletMargin(0.3, distance=Squared(torch.eye(16, dtype=torch.float64)))
    check_alike(gradient_of(own, x, labels, mined=every), gradient_of(own, x, labels))


def test_only_one_of_two_functions_is_overridden():
    class Doubled(Mahalanobis):
        def paired(self, x, y):
            return 2 * super().paired(x, y)

    x, labels = points(12, seed=8), torch.arange(12) % 3
    head = TripletMargin(5.0, distance=Doubled(torch.eye(4, dtype=torch.float64)), reduction="sum")
    triplets = as_triplets([(0, 3, 1), (0, 3, 2)])
    d = distances.euclidean.tile(x, x)
    expected = 2 * (2 * d[0, 3] - d[0, 1] - d[0, 2]) + 10
    torch.testing.assert_close(head(x, labels, triplets), expected)


def test_a_prepare_that_takes_whole_numbers_is_not_refused_them():
    class Codes(Mahalanobis):
        def prepare(self, embeddings):
            return super().prepare(embeddings.double())

    codes, labels = torch.randint(0, 5, (12, 4)), torch.arange(12) % 3
    mined = BatchHard(distance=Codes(torch.eye(4, dtype=torch.float64)))(codes, labels)
    expected = BatchHard()(codes.double(), labels)
    assert all(torch.equal(u, v) for u, v in zip(mined, expected, strict=True))


@pytest.mark.parametrize("name", ["euclidean", "squared_euclidean", "cosine", "dot", "hamming"])
def test_a_copied_and_a_pickled_distance_are_the_named_one(name):
    named = as_distance("test", name)
    for other in (copy.deepcopy(named), pickle.loads(pickle.dumps(named))):
        assert other == named
        assert hash(other) == hash(named)
        assert isinstance(other, Distance)
        assert distances.form_of(other) == distances.form_of(named)


def test_each_promise_of_a_distance_is_about_its_own_functions():
    class Prepared(Mahalanobis):
        def prepare(self, embeddings):
            return super().prepare(embeddings) * 2

    class Tiled(Mahalanobis):
        def tile(self, x, y):
            return super().tile(x, y)

    class Restated(Tiled):
        form = Mahalanobis.form

    asked = distances.form_of, distances.entries_of, distances.takes_floats_only
    for kind, expected in (
        (Mahalanobis, [True, True, True]),
        (Prepared, [True, True, False]),
        (Tiled, [False, False, True]),
        (Restated, [True, False, True]),
    ):
        distance = kind(torch.eye(4))
        assert isinstance(distance, EuclideanDistance)
        assert [bool(ask(distance)) for ask in asked] == expected
    hamming = distances.hamming
    assert not isinstance(hamming, EuclideanDistance)
    assert not any(ask(hamming) for ask in asked)


def test_a_named_distance_with_an_override_is_another_one():
    other = copy.copy(distances.cosine)
    other.tile = distances.squared_euclidean.tile
    assert other != distances.cosine
    assert distances.form_of(other) is None
