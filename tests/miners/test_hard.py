import pytest
import torch

from tercet.core.indices import References, Triplets
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import PairMargin
from tercet.pairwise.budget import override
from tercet.pairwise.distances import Mahalanobis
from tercet.pairwise.relations import CrossGroup
from tests.helpers import unchecked
from tests.oracles import triplets as reference

# One row an algorithm: how to make it, and the loop it must equal.
MINERS = {
    "all": (BatchAll, reference.batch_all, {}),
    "all within a margin": (BatchAll, reference.batch_all, {"margin": 0.5}),
    "hard": (BatchHard, reference.batch_hard, {}),
    "semi-hard": (SemiHard, reference.semi_hard, {}),
    "semi-hard, wide": (SemiHard, reference.semi_hard, {"margin": 1.0}),
    "semi-hard, unbounded": (SemiHard, reference.semi_hard, {"margin": None}),
    "semi-hard or easiest": (SemiHard, reference.semi_hard, {"fallback": "easiest"}),
    "semi-hard, all": (SemiHard, reference.semi_hard, {"margin": 0.5, "negatives": "all"}),
    "semi-hard, all, unbounded": (SemiHard, reference.semi_hard, {"margin": None, "negatives": "all"}),
    "semi-hard, all, or easiest": (
        SemiHard,
        reference.semi_hard,
        {"margin": 0.3, "fallback": "easiest", "negatives": "all"},
    ),
    "easy positive": (EasyPositive, reference.easy_positive, {}),
    "easy positive, hard negative": (EasyPositive, reference.easy_positive, {"negative": "hard"}),
    "three hardest": (HardestN, reference.hardest_n, {"k": 3}),
    "hardest but two": (HardestN, reference.hardest_n, {"k": 2, "skip": 2}),
}
DISTANCES = ["euclidean", "squared_euclidean", "cosine", "dot"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_miner = pytest.mark.parametrize("name", MINERS)


def points(n, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def grid(n, d=3, seed=0):
    """Whole numbers from 0 to 2: full of exact ties and duplicates."""
    return torch.randint(0, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


BATCHES = {
    "P × K": (points(12), torch.arange(4).repeat_interleave(3)),
    "P ≠ K, shuffled": (points(15, seed=1), torch.arange(15) % 5),
    "uneven positives per anchor": (points(11, seed=2), torch.tensor([0] * 6 + [1] * 3 + [2, 3])),
    "singletons": (points(5), torch.arange(5)),
    "one class only": (points(5), torch.zeros(5).long()),
    "one positive pair and one negative pair": (points(3), torch.tensor([0, 0, 1])),
    "one row": (points(1), torch.zeros(1).long()),
    "empty": (points(0), torch.zeros(0).long()),
    "two identical images": (points(6)[[0, 0, 1, 2, 3, 4]], torch.tensor([0, 0, 1, 1, 0, 1])),
    "identical images of two classes": (points(6)[[0, 1, 2, 0, 3, 4]], torch.tensor([0, 0, 0, 1, 1, 1])),
    "collapsed": (torch.ones(8, 3), torch.arange(8) % 2),
    "ties": (grid(14), torch.arange(14) % 3),
    "near duplicates": (points(1).repeat(8, 1) + 1e-3 * points(8, seed=3), torch.arange(8) % 2),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


def as_set(mined):
    return set(map(tuple, torch.stack(tuple(mined)).T.tolist()))


def check_valid(mined, labels, ref_labels=None):
    """int64 rows without gradient, sorted by anchor, none twice; right labels; no anchor with itself."""
    columns = labels if ref_labels is None else ref_labels
    a, p, n = mined
    assert isinstance(mined, Triplets)
    assert all(index.dtype == torch.int64 and not index.requires_grad for index in mined)
    assert len(a) == len(p) == len(n) == mined.count == len(as_set(mined))
    assert torch.equal(a, a.sort().values)
    assert (labels[a] == columns[p]).all()
    assert (labels[a] != columns[n]).all()
    assert ref_labels is not None or ((a != p) & (a != n)).all()


def check_equal(mined, expected):
    """The same set of tuples."""
    assert as_set(mined) == expected


def check_tile_invariant(mine, heights=(1, 2, 3, 5, 100)):
    """The same tensors, in the same order, at every tile height."""
    whole = mine(None)
    for height in heights:
        assert all(torch.equal(u, v) for u, v in zip(whole, mine(height), strict=True))


def check_permutation_equivariant(mine, embeddings, labels):
    """Mining shuffled rows and renaming them is mining the rows."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = mine(embeddings[order], labels[order])
    check_equal(Triplets(*(order[index] for index in shuffled)), as_set(mine(embeddings, labels)))


def expected_of(name, x, labels, distance="euclidean", ids=None, ref=None):
    _, oracle, options = MINERS[name]
    d = reference.distances(distance, x, None if ref is None else ref.embeddings)
    return oracle(d, *reference.relation(labels, ref and ref.labels, ids, ref and ref.ids), **options)


def make(name, **more):
    kind, _, options = MINERS[name]
    return kind(**options, **more)


@pytest.fixture(params=[0, 512], ids=["as a wide batch", "as a narrow batch"])
def width(request):
    with override(class_order_rows=request.param, argmin_columns=request.param):
        yield


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
    codes, labels = grid(14).long(), torch.arange(14) % 3
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
    x, labels = points(10), torch.arange(10) % 2
    check_equal(make(name)(x, labels.to(kind)), as_set(make(name)(x, labels)))


@every_miner
def test_labels_above_2_to_the_24_are_told_apart(name):
    x, few = points(8), torch.arange(8) % 2
    for large in (2**24, 2**53, 2**62):
        check_equal(make(name)(x, few + large), as_set(make(name)(x, few)))


@every_miner
def test_a_graph_on_the_embeddings_is_left_alone(name):
    x, labels = BATCHES["P × K"]
    check_valid(make(name)(x.clone().requires_grad_() * 2, labels), labels)


@every_miner
def test_the_anchor_is_not_in_its_own_candidate_set_even_under_another_distance(name):
    # Under `dot` a long vector is not the nearest to itself, so a mask by distance 0 would miss it.
    x, labels = points(9) * torch.arange(1.0, 10.0)[:, None], torch.arange(9) % 3
    check_valid(make(name, distance="dot")(x, labels), labels)


@every_miner
def test_equal_ids_are_one_image_and_never_meet(name):
    x, labels = points(9, seed=4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
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
    ref = References(points(r, seed=5), torch.arange(r) % 5)
    mined = make(name)(x, labels, ref=ref)
    check_valid(mined, labels, ref.labels)
    check_equal(mined, expected_of(name, x, labels, ref=ref))
    check_tile_invariant(lambda height: make(name, tile_rows=height)(x, labels, ref=ref))


@every_miner
def test_an_image_is_not_mined_against_itself_among_references(name):
    x, labels = BATCHES["P × K"]
    ref = References(
        torch.cat([points(4, seed=6), x]), torch.cat([torch.arange(4), labels]), torch.arange(16) - 4
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


def test_a_draw_is_a_function_of_the_seed_the_step_and_the_batch():
    x, labels = BATCHES["ties"]
    draw = lambda seed=0, step=0, labels=labels, **more: as_set(  # noqa: E731
        BatchAll(max_count=20, seed=seed)(x, labels, step=step, **more)
    )
    assert draw() == draw()
    assert (
        len({frozenset(each) for each in (draw(), draw(1), draw(0, 1), draw(ids=torch.arange(14) + 1))}) == 4
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("margin", [None, 0.5])
def test_every_triplet_is_drawn_equally_often(margin):
    x, labels = BATCHES["uneven positives per anchor"]
    seen = {triplet: 0 for triplet in as_set(BatchAll(margin)(x, labels))}
    for step in range(100):
        for triplet in as_set(BatchAll(margin, max_count=10)(x, labels, step=step)):
            seen[triplet] += 1
    expected = 1000 / len(seen)
    chi = sum((count - expected) ** 2 / expected for count in seen.values())
    assert abs(chi - len(seen)) < 5 * (2 * len(seen)) ** 0.5


@every_batch
@pytest.mark.parametrize("margin", [None, 0.5])
def test_triplets_are_counted_without_a_list(margin, batch):
    count = BatchAll(margin, max_count=1).count(*BATCHES[batch])
    assert count == BatchAll(margin)(*BATCHES[batch]).count


@every_miner
def test_a_relation_takes_the_place_of_the_labels(name):
    x, labels = points(18, seed=7), torch.stack([torch.arange(18) % 3, torch.arange(18) // 3 % 2], 1)
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


@pytest.fixture
def few_bounds():
    with override(sorted_bounds=8):
        yield


@pytest.fixture(params=[64, 200, 2**20])
def parts(request):
    with override(gathered_keys=request.param, numpy_numbers=50, masked_numbers=50):
        yield


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("options", [{}, {"margin": None}, {"fallback": "easiest"}], ids=str)
@pytest.mark.usefixtures("width", "few_bounds")
def test_rows_asked_often_are_sorted_once_and_mined_alike(options, spread):
    """Two classes of 20: so many positives an anchor that its negatives are sorted."""
    x = grid(40, 2, seed=5) + spread * points(40, 2, seed=6)
    labels = torch.arange(40) % 2
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    expected = reference.semi_hard(d, *reference.relation(labels), **options)
    check_equal(SemiHard(**options)(x, labels), expected)
    check_tile_invariant(lambda height: SemiHard(**options, tile_rows=height)(x, labels), heights=(13,))


@pytest.mark.parametrize("options", [{"fallback": "easiest"}, {"margin": None}], ids=str)
@pytest.mark.usefixtures("width", "parts")
def test_pairs_and_tables_taken_in_several_parts_are_mined_alike(options):
    """Parts of unequal heights, in room that is kept and grows."""
    x, labels = points(41, 3, seed=7), torch.arange(41) % 7
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    expected = reference.semi_hard(d, *reference.relation(labels), **options)
    check_equal(SemiHard(**options)(x, labels), expected)
    check_tile_invariant(lambda height: SemiHard(**options, tile_rows=height)(x, labels), heights=(13,))


def test_a_row_of_other_layout_or_precision_is_still_the_same_row():
    x, labels = points(40, 7, seed=9), torch.arange(40) % 4
    turned, ref = x.T.contiguous().T, References(x, labels)
    for distance in ("euclidean", "cosine"):
        for batch in (turned, x.double()):
            pairs = PairMargin(0.0, 1e-30, distance=distance)(batch, labels, ref=ref)
            assert not (pairs.pos_anchor == pairs.positive).any()
        mined = SemiHard(distance=distance)(turned, labels)
        assert all(
            torch.equal(u, v) for u, v in zip(mined, SemiHard(distance=distance)(x, labels), strict=True)
        )
    mapped = Mahalanobis(points(7, 5, seed=10))
    for n in (1, 3, 40):
        pairs = PairMargin(0.0, 1e-30, distance=mapped)(x[:n], labels[:n], ref=ref)
        assert not (pairs.pos_anchor == pairs.positive).any()


def test_what_underflows_is_decided_by_differences_too():
    x, labels = points(60, 1, seed=11) * 3e-21, torch.arange(60) % 26
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    check_equal(BatchHard()(x, labels), reference.batch_hard(d, *reference.relation(labels)))


def test_the_largest_embeddings_let_through_are_mined():
    s = 2e18
    x = torch.tensor([[s]] * 19 + [[-s], [-0.75 * s]])
    pairs = PairMargin(1e3, 1.0)(x, torch.zeros(21).long())
    expected = {(i, j) for i in range(21) for j in range(21) if x[i] != x[j]}
    assert set(zip(pairs.pos_anchor.tolist(), pairs.positive.tolist(), strict=True)) == expected


def test_more_negatives_asked_for_than_there_are():
    x, labels = points(9), torch.arange(9) % 3
    every = HardestN(k=6)(x, labels)
    for k in (7, 10**6, 2**62):
        assert all(torch.equal(u, v) for u, v in zip(HardestN(k=k)(x, labels), every, strict=True))
    assert HardestN(k=2, skip=2**62)(x, labels).count == 0


def test_a_count_in_a_compiled_step_is_the_count():
    x, labels = BATCHES["P × K"]
    miner = BatchAll(margin=0.5)
    compiled = torch.compile(lambda x: miner.count(x * 1, labels), backend="eager")
    assert compiled(x) == miner.count(x, labels)


def test_a_margin_that_is_none_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"SemiHard\(margin=-0.1\): expected a finite number of at least 0"):
        SemiHard(margin=-0.1)
    with pytest.raises(ValueError, match=r"BatchAll\(margin=nan\): expected a finite number"):
        BatchAll(margin=float("nan"))
    with pytest.raises(ValueError, match=r"SemiHard\(fallback='easyest'\).*did you mean 'easiest'\?"):
        SemiHard(fallback="easyest")
    with pytest.raises(ValueError, match=r"SemiHard\(negatives='every'\): expected one of 'nearest', 'all'"):
        SemiHard(negatives="every")
    with pytest.raises(ValueError, match=r"EasyPositive\(negative='semihard'\).*did you mean 'semi_hard'\?"):
        EasyPositive(negative="semihard")
    with pytest.raises(ValueError, match=r"HardestN\(k=0\): expected a whole number of at least 1"):
        HardestN(k=0)
    with pytest.raises(ValueError, match=r"HardestN\(skip=-1\): expected a whole number of at least 0"):
        HardestN(skip=-1)
    with pytest.raises(ValueError, match=r"BatchHard\(max_count=0\): expected a whole number of at least 1"):
        BatchHard(max_count=0)
    with unchecked(), pytest.raises(ValueError, match=r"BatchAll\(margin='all'\): expected a finite number"):
        BatchAll(margin="all")


def test_semi_hard_is_strict_on_both_sides():
    x, labels = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [1.5]]), torch.tensor([0, 0, 1, 1, 1])
    mined = SemiHard(margin=1.0)(x, labels)
    assert (0, 1, 4) in as_set(mined)  # not 2, which is as far as the positive, nor 3, a whole margin farther
    assert (0, 1, 4) not in as_set(SemiHard(margin=0.5)(x, labels))


def test_ties_go_to_the_lower_row():
    x, labels = torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    assert as_set(BatchHard()(x, labels)) == {
        (0, 2, 1),
        (1, 3, 0),
        (2, 0, 1),
        (3, 1, 0),
        (4, 0, 1),
        (5, 1, 0),
    }
    assert {n for _, _, n in as_set(SemiHard(fallback="easiest")(x, labels))} == {0, 1}


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


def mined_on_a_card(miner, x, labels):
    """What a miner gives on a CUDA device, brought back."""
    mined = miner(x.cuda(), labels.cuda())
    assert all(index.is_cuda for index in mined)
    return type(mined)(*(index.cpu() for index in mined))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_miner
@pytest.mark.usefixtures("width")
def test_a_cuda_device_mines_what_the_cpu_does(name):
    x, labels = points(96, seed=12), torch.arange(96) % 12
    check_equal(mined_on_a_card(make(name), x, labels), as_set(make(name)(x, labels)))
