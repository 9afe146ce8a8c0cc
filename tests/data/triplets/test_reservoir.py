"""The reservoir: who stays and what is drawn against exact laws by plain loops; its bias, measured."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections import Counter

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tercet.core.randomness import derive_key, keyed_uniform
from tercet.data.triplets.reservoir import ReservoirTriplets
from tercet.data.triplets.reservoir_buffer import Distinct
from tests.helpers import listed, uniforms


@pytest.fixture
def unchecked(monkeypatch):
    """So many images come that the checks of annotations would take most of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def kept(reservoir):
    """The keys in the buffers, by label."""
    return {label: set(b.keys[: b.fill].tolist()) for label, b in reservoir._buffers.items()}


def p_value(drawn, chance):
    """Chi-square of counts against their law, rare outcomes together; 0 outside of it."""
    if set(drawn) - set(chance):
        return 0.0
    count = sum(drawn.values())
    rare = {outcome for outcome, share in chance.items() if share * count < 8}
    cells = [(drawn[outcome], share * count) for outcome, share in chance.items() if outcome not in rare]
    cells.append((sum(drawn[outcome] for outcome in rare), sum(chance[outcome] for outcome in rare) * count))
    observed, expected = np.array([cell for cell in cells if cell[1] > 0]).T
    return stats.chisquare(observed, expected).pvalue


def law_of_staying(totals, capacity):
    """Which images stay, by draws without replacement in proportion to r: what the keys come to."""
    chance = Counter()
    for order in itertools.permutations(range(len(totals)), capacity):
        share, left = 1.0, sum(totals)
        for image in order:
            share *= totals[image] / left
            left -= totals[image]
        chance[frozenset(order)] += share
    return dict(chance)


@pytest.mark.parametrize("capacity", [2, 3])
def test_those_who_stay_are_drawn_in_proportion_to_their_relevance(capacity, unchecked):
    totals = [0.2, 1.0, 3.0, 0.7, 2.0, 0.5]
    stayed = Counter()
    for seed in range(3000):
        reservoir = ReservoirTriplets(capacity, seed=seed)
        for key, total in enumerate(totals):
            reservoir.add(key, "ant", [1.0], total)
        stayed[frozenset(kept(reservoir)["ant"])] += 1
    assert p_value(stayed, law_of_staying(totals, capacity)) > 1e-3
    assert p_value(stayed, law_of_staying([1.0] * 6, capacity)) < 1e-6  # the test sees another law


def test_with_known_totals_the_order_of_arrival_is_all_the_same():
    totals, labels = uniforms(60, "totals") + 0.1, np.arange(60) % 3
    orders = [range(60), reversed(range(60)), np.argsort(uniforms(60, "order")).tolist()]
    stayed = []
    for order in orders:
        reservoir = ReservoirTriplets(4, seed=7)
        for key in order:
            reservoir.add(key, labels[key], [1.0], totals[key])
        stayed.append(kept(reservoir))
    assert stayed[0] == stayed[1] == stayed[2]
    # and those are the largest k = u^(1/r), computed one by one
    u = keyed_uniform(derive_key("ReservoirTriplets", "admission", 7), np.arange(60))
    for label in range(3):
        mine = [key for key in range(60) if labels[key] == label]
        best = sorted(mine, key=lambda key: u[key] ** (1 / totals[key]))[-4:]
        assert stayed[0][label] == set(best)


@settings(deadline=None, max_examples=40)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=60),
    capacity=st.integers(2, 5),
    known=st.booleans(),
)
def test_what_add_returns_lets_the_caller_keep_what_stays(arrivals, capacity, known):
    reservoir = ReservoirTriplets(capacity, seed=1)
    held, came = set(), set()
    for key, label in arrivals:
        key = key * 3 + label  # so that a key has one label
        gone = reservoir.add(key, label, uniforms(3, key), float(key % 5) if known else None)
        held = (held | {key}) - {gone}
        came.add(key)
        assert gone is None or gone % 3 == label
    stay = kept(reservoir)
    assert set().union(*stay.values()) == held if stay else not held
    assert len(reservoir) == len(held)
    assert reservoir.seen == len(came)
    if not known:
        different = Counter(key % 3 for key in came)
        assert all(len(stay[label]) == min(capacity, count) for label, count in different.items())


def test_what_is_not_known_is_estimated():
    # Images around one centre, each further off than the one before: true totals from 64 to 285.
    n, capacity = 400, 40
    x = (uniforms(n * 16, "noise").reshape(n, 16) - 0.5) * np.linspace(0, 3, n)[:, None]
    x[:, 0] += 1
    unit = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    r = np.clip(unit @ unit.T, 0, 1)
    true = r.sum(axis=1) - 1
    errors = []
    for seed in range(5):
        reservoir = ReservoirTriplets(capacity, seed=seed)
        for key in np.argsort(uniforms(n, "order", seed)).tolist():
            reservoir.add(key, 0, x[key])
        buffer = reservoir._buffers[0]
        assert buffer.seen == n
        errors.append(buffer.totals() / true[buffer.keys] - 1)
    errors = np.concatenate(errors)
    assert true.max() / true.min() > 2
    assert abs(errors.mean()) < 0.03
    assert errors.std() < 0.1


FIGURES = {  # by law and share of the class in the buffer: the top tenth and the bottom tenth, of their due
    ("uniform", 0.05): (0.98, 1.03),
    ("uniform", 0.2): (0.94, 1.14),
    ("uniform", 0.5): (0.82, 1.51),
    ("exponential", 0.05): (0.96, 1.06),
    ("exponential", 0.2): (0.84, 1.23),
    ("exponential", 0.5): (0.58, 1.91),
}


@pytest.mark.parametrize(("name", "share"), FIGURES)
def test_the_bias_is_what_the_docstring_says(name, share, unchecked):
    n, repeats = 200, 100
    ranks = (np.arange(n) + 0.5) / n
    totals = ranks if name == "uniform" else -np.log(1 - ranks)
    capacity = int(share * n)
    came = np.zeros(n)
    for seed in range(repeats):
        reservoir = ReservoirTriplets(capacity, seed=seed)
        for key in range(n):
            reservoir.add(key, 0, [1.0], totals[key])
        came[list(kept(reservoir)[0])] += 1
    due = repeats * capacity * totals / totals.sum()
    for tenth, figure in zip((slice(-20, None), slice(0, 20)), FIGURES[name, share], strict=True):
        said = f"{figure:.2f}"
        assert said in ReservoirTriplets.__doc__
        noise = np.sqrt(figure * due[tenth].sum()) / due[tenth].sum()  # of a count, at most
        assert abs(came[tenth].sum() / due[tenth].sum() - figure) < 3.5 * noise + 0.005


def test_it_warns_of_a_buffer_that_holds_over_a_fifth_of_a_class():
    reservoir = ReservoirTriplets(5, seed=0)
    for key in range(24):
        reservoir.add(key, 0, uniforms(3, key))
    said = (
        r"^ReservoirTriplets\(capacity=5\): the buffer holds over a fifth of what came so far of 1 of 1 "
        r"class, whose most relevant images come less often than is their due; lower capacity or draw later$"
    )
    with pytest.warns(UserWarning, match=said):
        reservoir.triplets(3)
    reservoir.triplets(3)  # once is enough
    reservoir = ReservoirTriplets(5, seed=0)
    for key in range(25):
        reservoir.add(key, 0, uniforms(3, key))
    reservoir.triplets(3)


# What is drawn from given buffers.

SIZES = {"ant": 4, "bee": 3, "cow": 1}


def filled(seed=0, **options):
    """A reservoir in which all images stay, what they are called, their relevance and totals."""
    labels = [label for label, size in SIZES.items() for _ in range(size)]
    r = np.triu(uniforms(64, "r").reshape(8, 8), 1)
    r += r.T
    totals = np.round(uniforms(8, "total") * 2 + 0.3, 2)

    def relevance(a, b):
        return r[a[:, 0].astype(int)[:, None], b[:, 0].astype(int)]

    reservoir = ReservoirTriplets(8, relevance, seed, **options)
    for image, label in enumerate(labels):
        assert reservoir.add(100 + image, label, [float(image)], totals[image]) is None
    return reservoir, labels, r, totals


def law(labels, r, totals, cap, gap, out_of_class, tries):
    """(query, positive, negative) or the reason of failure → probability: every try played through."""
    chance = Counter()
    images = range(len(labels))
    for q in images:
        mates = [p for p in images if labels[p] == labels[q] and p != q]
        others = [n for n in images if labels[n] != labels[q]]
        scale = max(1, min(totals[p] for p in [q, *mates]) / cap)
        accept = {p: min(1, scale * min(cap, r[q][p]) / totals[p]) for p in mates}
        for positive, share in tried(mates, accept, tries).items():
            share /= len(labels)
            if positive is None:
                chance["no positive accepted"] += share
                continue
            for n in others:
                chance[q, positive, n] += share * out_of_class / len(others)
            allowed = {
                n: accept[n] if n != positive and r[q][positive] - r[q][n] >= gap else 0.0 for n in mates
            }
            for n, part in tried(mates, allowed, tries).items():
                outcome = "no in-class negative accepted" if n is None else (q, positive, n)
                chance[outcome] += share * (1 - out_of_class) * part
    assert abs(sum(chance.values()) - 1) < 1e-9
    return {outcome: share for outcome, share in chance.items() if share > 0}


def tried(mates, accept, tries):
    """Who is accepted first of uniform candidates, None for nobody, one try after another."""
    found, alive = Counter(), 1.0
    for _ in range(tries if mates else 0):
        for mate in mates:
            found[mate] += alive * accept[mate] / len(mates)
        alive *= 1 - sum(accept.values()) / len(mates)
    found[None] = alive
    return found


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
@pytest.mark.parametrize(
    ("cap", "gap", "out_of_class", "tries"),
    [(1.0, 0.0, 0.5, 1), (0.4, 0.0, 0.2, 3), (0.4, 0.15, 0.5, 3), (0.3, 0.2, 0.0, 50), (0.6, 0.1, 1.0, 2)],
)
def test_the_draws_follow_the_law(cap, gap, out_of_class, tries):
    for seed in range(3):
        options = {"cap": cap, "gap": gap, "out_of_class": out_of_class, "tries": tries}
        reservoir, labels, r, totals = filled(seed, **options)
        triplets = np.stack(reservoir.triplets(60_000)) - 100
        drawn = Counter(listed(triplets)) + reservoir.given_up
        assert sum(drawn.values()) == 60_000
        assert p_value(drawn, law(labels, r, totals, **options)) > 1e-3
        if cap < 0.5:
            assert p_value(drawn, law(labels, r, totals, **{**options, "cap": 1.0})) < 1e-6


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
def test_the_scale_changes_no_law_of_a_querys_positive():
    reservoir, _, r, totals = filled(cap=0.4, out_of_class=1.0)
    drawn = Counter((q - 100, p - 100) for q, p, _ in listed(reservoir.triplets(60_000)))
    for q in range(4):  # the class whose totals are all above T_p, so that it is scaled
        mates = [p for p in range(4) if p != q]
        due = {p: min(0.4, r[q][p]) / totals[p] for p in mates}  # as in the paper, none above 1
        assert max(due.values()) <= 1 < min(totals[:4]) / 0.4
        of_q = Counter({p: drawn[q, p] for p in mates})
        assert p_value(of_q, {p: share / sum(due.values()) for p, share in due.items()}) > 1e-3


def test_the_yield_depends_neither_on_the_size_of_a_class_nor_on_replays(unchecked):
    shares = []
    for size, epochs in [(100, 1), (4000, 1), (100, 16)]:
        reservoir = ReservoirTriplets(16, seed=3, out_of_class=1, tries=20)
        for key in list(range(2 * size)) * epochs:
            reservoir.add(key, key % 2, uniforms(8, key))
        shares.append(reservoir.triplets(2000).count / 2000)
        assert shares[-1] * 2000 + reservoir.given_up.total() == 2000
    assert min(shares) > 0.95
    assert max(shares) - min(shares) < 0.03


def test_a_replayed_stream_is_counted_once():
    for images, warned in [(20, True), (25, False)]:
        reservoir = ReservoirTriplets(5, seed=0)
        for key in list(range(images)) * 10:
            reservoir.add(key, 0, uniforms(3, key))
        assert reservoir.seen == images
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            reservoir.triplets(3)
        assert [str(one.message)[:30] for one in told] == ["ReservoirTriplets(capacity=5):"] * warned


def test_different_numbers_are_counted_exactly_up_to_the_limit_and_well_beyond():
    shares = []
    for run in range(300):
        came, u = Distinct(50), uniforms(400, "distinct", run).tolist()
        for n, number in enumerate(u):
            for again in (number, u[n // 2], u[0]):
                came.add(again)
            if n in (0, 30, 49):
                assert came.count == n + 1
        shares.append(came.count / 400)
    spread = 1 / np.sqrt(50 - 2)
    assert abs(np.mean(shares) - 1) < 4 * spread / np.sqrt(300)
    assert 0.75 * spread < np.std(shares) < 1.25 * spread


def test_case_float16_features_are_as_float32():
    x = (np.random.default_rng(0).standard_normal((50, 512)) * 12).astype(np.float16)
    drawn = []
    for kind in (np.float16, np.float32, np.float64):
        reservoir = ReservoirTriplets(5, seed=1, gap=0.01)
        for key, row in enumerate(x.astype(kind)):
            reservoir.add(key, key % 2, row)
        drawn.append(listed(reservoir.triplets(200)))
    assert drawn[0]
    assert drawn[0] == drawn[1] == drawn[2]


def test_features_of_a_wider_kind_are_not_narrowed():
    reservoir = ReservoirTriplets(5, seed=1)
    reservoir.add(1, 0, np.array([1.0, 2.0], dtype=np.float16))
    reservoir.add(2, 0, np.array([1e30, 1.0], dtype=np.float32))
    reservoir.add(1, 0, np.array([1e300, 1.0]))
    assert reservoir._buffers[0].features[:2].tolist() == [[1e300, 1.0], [float(np.float32(1e30)), 1.0]]


def test_with_a_gap_of_0_what_is_equal_but_for_rounding_is_equal():
    def relevance(a, b):
        return np.where(a[:, :1] == b[:, 0], 1, np.where(a[:, :1] * b[:, 0] == 2, 0.45, 0.45 - 2**-54))

    reservoir = ReservoirTriplets(3, relevance, gap=0, out_of_class=0)
    for key in (1, 2, 3):
        reservoir.add(key, 0, [float(key)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = set(listed(reservoir.triplets(500)))
    assert found == set(itertools.permutations((1, 2, 3)))


def test_what_is_refused_leaves_no_trace():
    reservoir = ReservoirTriplets(3, lambda a, b: np.full((len(a), len(b)), a[0, 0]))
    reservoir.add(1, "ant", [0.5])
    for bad in ({"features": [7.0]}, {"label": "bee", "features": [0.5, 0.5]}, {"total": -1}):
        with pytest.raises(ValueError, match=r"expected"):
            reservoir.add(**{"key": 2, "label": "ant", "features": [0.5], **bad})
        assert repr(reservoir) == "ReservoirTriplets(1 of 1 images, 1 classes)"


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
def test_a_key_has_one_label_while_it_is_in_a_buffer():
    reservoir = ReservoirTriplets(2, seed=0)
    reservoir.add(7, "ant", [1.0, 0.0])
    said = r"add\(label='bee'\): expected 'ant', as key 7 is in the buffer of that label"
    with pytest.raises(ValueError, match=said):
        reservoir.add(7, "bee", [1.0, 0.0])
    gone = None
    for key in range(8, 40):
        gone = reservoir.add(key, "ant", [1.0, 0.0])
        if gone == 7:
            break
    assert gone == 7
    reservoir.add(7, "bee", [1.0, 0.0])  # no longer there


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
def test_draws_go_on_where_those_before_ended():
    one, two = filled(3)[0], filled(3)[0]
    both = listed(one.triplets(20)) + listed(one.triplets(0)) + listed(one.triplets(30))
    assert both == listed(two.triplets(50))
    assert listed(pickle_safe().triplets(40)) == listed(
        pickle.loads(pickle.dumps(pickle_safe())).triplets(40)
    )
    assert listed(filled(4)[0].triplets(50)) != both


def pickle_safe():
    reservoir = ReservoirTriplets(3, seed=2)
    for key in range(40):
        reservoir.add(key, key % 2, uniforms(4, key))
    return reservoir


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
def test_case_nothing_there_one_class_one_image_no_relevance():
    reservoir = ReservoirTriplets(4, out_of_class=0.5)
    assert reservoir.triplets(3).count == 0
    assert reservoir.given_up == {"no image in any buffer": 3}  # no reason with 0
    reservoir.add(5, "ant", [1.0, 0.0])
    assert listed(reservoir.triplets(10)) == []
    assert reservoir.given_up == {"no image in any buffer": 3, "no positive accepted": 10}  # each once
    reservoir.add(6, "ant", [1.0, 0.0])
    reservoir.add(7, "ant", [1.0, 0.0])
    found = reservoir.triplets(10)  # equally relevant, and of one class
    assert found.count == 0
    assert found.anchor.dtype == np.int64
    assert reservoir.given_up["no image of another class"] > 0
    assert reservoir.given_up["no in-class negative accepted"] > 0
    nothing = ReservoirTriplets(4, lambda a, b: np.zeros((len(a), len(b))))
    for key in range(30):
        nothing.add(key, key % 2, [1.0])
    assert nothing.triplets(50).count == 0
    assert nothing.given_up["no positive accepted"] == 50
    of_none = ReservoirTriplets(4)
    assert of_none.add(3, 0, [1.0], total=0) == 3
    assert (len(of_none), of_none.seen) == (0, 1)


def test_labels_may_be_strings_and_numbers():
    reservoir = ReservoirTriplets(2, out_of_class=1)
    for key in range(60):
        reservoir.add(np.int64(key), ["ant", np.int32(-3), 0][key % 3], uniforms(3, key))
    assert repr(reservoir) == "ReservoirTriplets(6 of 60 images, 3 classes)"
    anchor, positive, negative = reservoir.triplets(50)
    assert (anchor % 3 == positive % 3).all()
    assert (anchor % 3 != negative % 3).all()
    assert (anchor != positive).all()


@pytest.mark.filterwarnings("ignore:ReservoirTriplets:UserWarning")
def test_an_image_that_comes_again_is_renewed():
    reservoir = ReservoirTriplets(4, out_of_class=1)
    for key in range(4):
        reservoir.add(key, key % 2, [1.0, key])
    assert reservoir.add(2, 0, [1.0, 9.0]) is None
    assert (len(reservoir), reservoir.seen) == (4, 4)
    assert reservoir._buffers[0].features[:2].tolist() == [[1.0, 0.0], [1.0, 9.0]]


def test_no_global_generator_is_read_or_written():
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filled()[0].triplets(50)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


ADD = {"key": 1, "label": 0, "features": [1.0, 0.0]}


def lone(**options):
    return ReservoirTriplets(**{"capacity": 3, **options})


def after(add, **options):
    """What a second image meets."""
    reservoir = lone(**options)
    reservoir.add(**ADD)
    reservoir.add(**{**ADD, "key": 2, **add})
    return reservoir


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lone(capacity=1), "ReservoirTriplets(capacity=1): expected a whole number of at least 2"),
        (
            lambda: lone(capacity=2.0),
            "ReservoirTriplets(capacity=2.0): expected a whole number of at least 2",
        ),
        (lambda: lone(relevance=3), "(relevance=3): expected a function of features [a, …] and [r, …]"),
        (lambda: lone(seed=-1), "ReservoirTriplets(seed=-1): expected a whole number of at least 0"),
        (lambda: lone(cap=0), "ReservoirTriplets(cap=0): expected a number above 0; pass 1 for no cap"),
        (lambda: lone(cap=2), "ReservoirTriplets(cap=2): expected a finite number from 0 to 1"),
        (lambda: lone(gap=-1), "ReservoirTriplets(gap=-1): expected a finite number of at least 0"),
        (lambda: lone(out_of_class=7), "(out_of_class=7): expected a finite number from 0 to 1"),
        (lambda: lone(tries=0), "ReservoirTriplets(tries=0): expected a whole number of at least 1"),
        (
            lambda: lone().triplets(-1),
            "ReservoirTriplets.triplets(n=-1): expected a whole number of at least 0",
        ),
        (lambda: after({"key": -1}), "ReservoirTriplets.add(key=-1): expected a whole number from 0 to "),
        (lambda: after({"key": "a"}), "ReservoirTriplets.add(key='a'): expected a whole number from 0 to "),
        (
            lambda: after({"label": 0.5}),
            "ReservoirTriplets.add(label=0.5): expected a whole number of at least",
        ),
        (lambda: after({"features": [1.0, np.nan]}), "expected an array of finite numbers"),
        (lambda: after({"features": ["a", "b"]}), "expected an array of finite numbers"),
        (lambda: after({"features": [1.0]}), "'shape (1,)'): expected shape (2,), as of the images before"),
        (
            lambda: after({"features": [[1.0], [1.0, 2.0]]}),
            "ReservoirTriplets.add(features='list'): expected an array of finite numbers; ",
        ),
        (
            lambda: lone().add(1, 0, [[1.0], [2.0]]),
            "(features='shape (2, 1)'): expected a vector [d]; pass a relevance of your own for others",
        ),
        (lambda: lone().add(1, 0, 3.0), "(features='shape ()'): expected a vector [d]"),
        (
            lambda: after({}, relevance=lambda a, b: np.array([[0.5j]])),
            "'it gave an array of complex128'): expected numbers from 0 to 1",
        ),
        (lambda: after({"total": -1.0}), "(total=-1.0): expected a finite number of at least 0"),
        (lambda: after({"total": 1.0}), "(total=1.0): expected a total for every image or for none"),
        (
            lambda: after({}, relevance=lambda a, b: [[1.5]]),
            "(relevance='it gave 1.5'): expected numbers from 0 to 1",
        ),
        (
            lambda: after({}, relevance=lambda a, b: [[np.nan]]),
            "'it gave nan'): expected numbers from 0 to 1",
        ),
        (
            lambda: after({}, relevance=lambda a, b: [0.5]),
            "'it gave shape (1,)'): expected shape (1, 1), [a, r]",
        ),
    ],
)
def test_bad_input_gets_a_sentence(monkeypatch, call, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r".") as raised:
        call()
    assert said in str(raised.value)
