"""Every miner of triplets against one table of demands."""

import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.miners.hard import BatchHard
from tercet.pairwise.relations import CrossGroup
from tests.contracts.miners import (
    BATCHES,
    DISTANCES,
    DTYPES,
    MINERS,
    check_equal,
    check_permutation_equivariant,
    check_tile_invariant,
    check_valid,
    every_batch,
    every_miner,
    expected_of,
    make,
    mined_on_a_card,
)
from tests.helpers import as_set, grid, points, unchecked
from tests.oracles import triplets as reference


@every_batch
@every_miner
@pytest.mark.usefixtures("width")
def test_a_miner_is_valid_and_equals_the_loop(name, batch):
    x, labels = BATCHES[batch]
    mined = make(name)(x, labels)
    check_valid(mined, labels)
    check_equal(mined, expected_of(name, x, labels))


@every_batch
@every_miner
@pytest.mark.usefixtures("width")
def test_a_miner_does_not_depend_on_the_tile_height(name, batch):
    check_tile_invariant(lambda height: make(name, tile_rows=height)(*BATCHES[batch]))


@pytest.mark.parametrize("batch", ["P × K", "uneven positives per anchor", "near duplicates"])
@every_miner
@pytest.mark.usefixtures("width")
def test_rows_shuffled_are_mined_alike(name, batch):
    check_permutation_equivariant(make(name), *BATCHES[batch])


@pytest.mark.parametrize("distance", DISTANCES)
@every_miner
@pytest.mark.usefixtures("width")
def test_a_miner_equals_the_loop_under_every_distance(name, distance):
    x, labels = BATCHES["P ≠ K, shuffled"]
    check_equal(make(name, distance=distance)(x, labels), expected_of(name, x, labels, distance))


@every_miner
def test_hamming_mines_codes(name):
    codes, labels = grid(14, 3).long(), torch.arange(14) % 3
    check_equal(make(name, distance="hamming")(codes, labels), expected_of(name, codes, labels, "hamming"))


@pytest.mark.parametrize("dtype", DTYPES)
@every_miner
def test_fp16_and_bf16_embeddings_are_mined_in_float32(name, dtype):
    x, labels = BATCHES["P × K"][0].to(dtype), BATCHES["P × K"][1]
    mined = make(name)(x, labels)
    check_valid(mined, labels)
    check_equal(mined, expected_of(name, x, labels))


@pytest.mark.parametrize("distance", DISTANCES)
@every_miner
def test_autocast_changes_nothing(name, distance):
    x, labels = BATCHES["P × K"]
    with torch.autocast("cpu", torch.bfloat16):
        mined = make(name, distance=distance)(x, labels)
    check_equal(mined, as_set(make(name, distance=distance)(x, labels)))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
@every_miner
def test_labels_of_every_whole_kind_are_the_same_labels(name, kind):
    x, labels = points(10, 6), torch.arange(10) % 2
    check_equal(make(name)(x, labels.to(kind)), as_set(make(name)(x, labels)))


@every_miner
def test_labels_above_2_to_the_24_are_told_apart(name):
    x, few = points(8, 6), torch.arange(8) % 2
    for large in (2**24, 2**53, 2**62):
        check_equal(make(name)(x, few + large), as_set(make(name)(x, few)))


@every_miner
def test_a_graph_on_the_embeddings_is_left_alone(name):
    x, labels = BATCHES["P × K"]
    check_valid(make(name)(x.clone().requires_grad_() * 2, labels), labels)


@every_miner
def test_the_anchor_is_not_in_its_own_candidate_set_even_under_another_distance(name):
    # Under `dot` a long vector is not the nearest to itself, so a mask by distance 0 would miss it.
    x, labels = points(9, 6) * torch.arange(1.0, 10.0)[:, None], torch.arange(9) % 3
    check_valid(make(name, distance="dot")(x, labels), labels)


@every_miner
def test_equal_ids_are_one_image_and_never_meet(name):
    x, labels = points(9, 6, seed=4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    ids = torch.tensor([5, 5, 6, 7, 8, 5, 9, 10, 11])  # 0 and 1 in one class, 5 in another
    mined = make(name)(x, labels, ids=ids)
    check_valid(mined, labels)
    check_equal(mined, expected_of(name, x, labels, ids=ids))
    assert (ids[mined.anchor] != ids[mined.positive]).all()
    assert (ids[mined.anchor] != ids[mined.negative]).all()


@pytest.mark.parametrize("r", [0, 1, 4, 30])
@every_miner
def test_references_of_another_size_than_the_batch(name, r):
    x, labels = BATCHES["P × K"]
    ref = References(points(r, 6, seed=5), torch.arange(r) % 5)
    mined = make(name)(x, labels, ref=ref)
    check_valid(mined, labels, ref.labels)
    check_equal(mined, expected_of(name, x, labels, ref=ref))
    check_tile_invariant(lambda height: make(name, tile_rows=height)(x, labels, ref=ref))


@every_miner
def test_an_image_is_not_mined_against_itself_among_references(name):
    x, labels = BATCHES["P × K"]
    ref = References(
        torch.cat([points(4, 6, seed=6), x]), torch.cat([torch.arange(4), labels]), torch.arange(16) - 4
    )
    ids = torch.arange(12)
    mined = make(name)(x, labels, ids=ids, ref=ref)
    check_equal(mined, expected_of(name, x, labels, ids=ids, ref=ref))
    assert (mined.anchor != mined.positive - 4).all()


@every_miner
def test_no_positives_and_no_negatives_give_empty_triplets_not_an_error(name):
    for batch in ("singletons", "one class only", "one row", "empty"):
        mined = make(name)(*BATCHES[batch])
        assert mined.count == 0
        assert [index.shape for index in mined] == [(0,)] * 3


@every_miner
def test_nan_or_infinite_embeddings_are_a_clear_error(name):
    x, labels = BATCHES["P × K"]
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[3] = bad
        kind = MINERS[name][0].__name__
        with pytest.raises(
            ValueError, match=rf"{kind}\(embeddings='1 of 12 rows, the first is row 3'\): expected fin"
        ):
            make(name)(broken, labels)


@every_miner
def test_a_misspelt_option_is_refused(name):
    kind = MINERS[name][0]
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(distance='cosin'\).*did you mean 'cosine'\?"):
        kind(distance="cosin")
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}\(tile_rows=0\): expected a whole number of at least 1"
    ):
        kind(tile_rows=0)


@every_miner
def test_miners_are_values(name):
    assert make(name) == make(name, distance="euclidean")
    assert hash(make(name)) == hash(make(name))
    assert "distance=euclidean" in repr(make(name))


@pytest.mark.parametrize("batch", ["P × K", "ties", "collapsed", "uneven positives per anchor"])
@every_miner
def test_at_most_max_count_are_drawn_from_all(name, batch):
    x, labels = BATCHES[batch]
    every = make(name)(x, labels)
    for count in (1, 4, every.count, every.count + 1):
        few = make(name, max_count=count)(x, labels) if count else every
        check_valid(few, labels)
        assert few.count == min(count or every.count, every.count)
        assert as_set(few) <= as_set(every)
        check_tile_invariant(lambda height: make(name, max_count=count or 1, tile_rows=height)(x, labels))  # noqa: B023


@every_miner
def test_a_relation_takes_the_place_of_the_labels(name):
    x, labels = points(18, 6, seed=7), torch.stack([torch.arange(18) % 3, torch.arange(18) // 3 % 2], 1)
    mined = make(name, relation=CrossGroup())(x, labels)
    pairs = [(i, j) for i in range(18) for j in range(18) if i != j]
    same = {(i, j): (labels[i] == labels[j]).tolist() for i, j in pairs}
    positive = {pair for pair in pairs if same[pair] == [True, False]}
    negative = {pair for pair in pairs if not same[pair][0]}
    _, oracle, options = MINERS[name]
    check_equal(mined, oracle(reference.distances("euclidean", x), positive, negative, **options))
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"\(relation='same'\): expected a relation: SameLabel\(\)"),
    ):
        make(name, relation="same")


@pytest.mark.parametrize("batch", ["large", "near the origin's far side", "half collapsed", "tight clusters"])
@every_miner
@pytest.mark.usefixtures("width")
def test_products_propose_and_differences_decide(name, batch):
    """Sizes at which the search by groups of columns and its doubts are at work."""
    x, labels = points(70, 16, seed=8), torch.arange(70) % 14
    if batch == "near the origin's far side":
        x = x + 1000
    elif batch == "half collapsed":
        x[::2] = x[0]
    elif batch == "tight clusters":
        x = x[:10].repeat(7, 1) + 1e-4 * x
    if name.startswith("all"):
        x, labels = x[:40], labels[:40]
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    if MINERS[name][2].get("margin") is None:
        _, oracle, options = MINERS[name]
        check_equal(make(name)(x, labels), oracle(d, *reference.relation(labels), **options))
    check_tile_invariant(lambda height: make(name, tile_rows=height)(x, labels), heights=(9,))


@pytest.mark.parametrize(
    "wrong",
    [
        Triplets(*torch.tensor([[0], [1], [1]])),  # the negative has the anchor's label
        Triplets(*torch.tensor([[0], [2], [2]])),  # the positive has not
        Triplets(*torch.tensor([[0], [0], [2]])),  # the anchor is its own positive
        Triplets(*torch.tensor([[1, 0], [0, 1], [2, 2]])),  # not sorted
        Triplets(*torch.tensor([[0, 0], [1, 1], [2, 2]])),  # one twice
        Triplets(*torch.tensor([[0], [1], [2]], dtype=torch.int32)),
        Triplets(torch.tensor([0]), torch.tensor([1]), torch.tensor([2, 2])),
        tuple(torch.tensor([[0], [1], [2]])),
    ],
)
def test_the_check_of_validity_can_fail(wrong):
    labels = torch.tensor([0, 0, 1])
    check_valid(Triplets(*torch.tensor([[0], [1], [2]])), labels)
    with pytest.raises((AssertionError, RuntimeError)):
        check_valid(wrong, labels)


def test_the_check_against_the_loop_can_fail():
    one = Triplets(*torch.tensor([[0], [1], [2]]))
    check_equal(one, {(0, 1, 2)})
    for expected in (set(), {(0, 1, 3)}, {(0, 1, 2), (1, 0, 2)}):
        with pytest.raises(AssertionError):
            check_equal(one, expected)


def test_the_check_of_tile_invariance_can_fail():
    x, labels = BATCHES["P × K"]
    spoilers = [lambda index: index[1:], lambda index: index.flip(0)]  # a triplet lost, another order
    for spoil in spoilers:

        def mine(height, spoil=spoil):
            mined = BatchHard()(x, labels)
            return Triplets(*map(spoil, mined)) if height == 3 else mined

        with pytest.raises(AssertionError):
            check_tile_invariant(mine)


def test_the_check_of_equivariance_can_fail():
    first = lambda x, labels: Triplets(*(index[:1] for index in BatchHard()(x, labels)))  # noqa: E731
    with pytest.raises(AssertionError):
        check_permutation_equivariant(first, *BATCHES["P × K"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_miner
@pytest.mark.usefixtures("width")
def test_a_cuda_device_mines_what_the_cpu_does(name):
    x, labels = points(96, 6, seed=12), torch.arange(96) % 12
    check_equal(mined_on_a_card(make(name), x, labels), as_set(make(name)(x, labels)))
