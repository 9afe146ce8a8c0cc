"""Keyed randomness: the laws by hypothesis, the values by plain integers, the quality by chi-square."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from tercet.core import randomness
from tercet.core.randomness import KeyedRow, derive_key, keyed_bits, keyed_integers, keyed_uniform, permute

WORD = 1 << 64
LARGEST = 1 << 62
KEYS = keyed_bits(derive_key("tests", 0), np.arange(300_000))

# Every kind of n: small, any, and beside an even square, where the rounding of √n decides the grid.
sizes = st.one_of(
    st.integers(1, 60),
    st.integers(1, LARGEST),
    st.builds(lambda m, d: min(max(1, 4 * m * m + d), LARGEST), st.integers(1, 1 << 30), st.integers(-2, 2)),
)
words = st.integers(0, WORD - 1)


# The definitions again, on Python's unbounded integers.


def mixed(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def bits_by_hand(key, *indices):
    for index in indices:
        key = mixed((key + (index + 1) * 0x9E3779B97F4A7C15) % WORD)
    return key


def grid(n):
    a = 2 * math.ceil(math.sqrt(n) / 2)
    return a, -(-n // a)


def shift(source, r, size, key):
    return (mixed((source * 20 + r + 1) * 0x9E3779B97F4A7C15 % WORD ^ key) >> 32) * size >> 32


def permuted_by_hand(x, n, key, back=False):
    """π(x), or with `back` the x that π sends there: the rounds undone from the last to the first."""
    a, b = grid(n)
    sign = -1 if back else 1
    while True:
        left, right = divmod(x, b)
        for r in range(20)[::sign]:
            if r % 2 == 0:
                left = (left + sign * shift(right, r, a, key)) % a
            else:
                right = (right + sign * shift(left, r, b, key)) % b
        x = left * b + right
        if x < n:
            return x


# Values.


def test_golden_values_are_the_same_on_every_machine():
    key = derive_key("golden", 0)
    assert key == 1965554672753489449
    assert keyed_bits(key, 0).tolist() == [17335715031061914304]
    assert keyed_bits(key, np.arange(2), -1).tolist() == [189878888027556009, 14061290129139473771]
    assert [u.hex() for u in keyed_uniform(key, np.arange(2)).tolist()] == [
        "0x1.e129a9f1c3b0cp-1",
        "0x1.a2fceb185a270p-5",
    ]
    assert keyed_integers(key, np.arange(8), high=1000).tolist() == [939, 51, 709, 882, 977, 535, 914, 223]
    assert permute(np.arange(10), 10, key).tolist() == [3, 1, 8, 4, 2, 9, 6, 7, 5, 0]
    assert permute([0, LARGEST - 1], LARGEST, key).tolist() == [151282432530040705, 789712091057540207]


def test_another_hash_seed_in_another_process_changes_nothing():
    program = (
        "import numpy as np; from tercet.core.randomness import *;"
        "key = derive_key('photos', 7, 'é');"
        "print(key, keyed_bits(key, 5).tolist(), permute(np.arange(20), 20, key).tolist())"
    )
    key = derive_key("photos", 7, "é")
    here = f"{key} {keyed_bits(key, 5).tolist()} {permute(np.arange(20), 20, key).tolist()}"
    for seed in ("1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", program]
        there = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=True)
        assert there.stdout.strip() == here


@given(key=words, first=st.integers(-(1 << 63), (1 << 63) - 1), second=words)
@example(key=WORD - 1, first=-1, second=WORD - 1)
@settings(deadline=None)
def test_bits_are_the_definition_on_plain_integers(key, first, second):
    assert keyed_bits(key, first, second).tolist() == [bits_by_hand(key, first, second)]
    assert keyed_bits(np.uint64(key), np.int64(first), np.uint64(second)).tolist() == [
        bits_by_hand(key, first, second)
    ]


@given(n=sizes, where=st.floats(0, 1), key=words)
@example(n=1, where=0, key=0)
@example(n=2, where=1, key=WORD - 1)
@example(n=LARGEST, where=1, key=WORD - 1)
@example(n=LARGEST - 1, where=1, key=1)
@example(n=4 * (2**30 - 1) ** 2 + 1, where=1, key=1)  # √n rounds down to an even whole number
@example(n=2**53 + 1, where=1, key=1)
@settings(deadline=None, max_examples=300)
def test_permute_is_the_definition_and_has_an_inverse_for_any_n(n, where, key):
    index = min(n - 1, int(where * n))
    (value,) = permute(index, n, key).tolist()
    assert 0 <= value < n
    assert value == permuted_by_hand(index, n, key)
    assert permuted_by_hand(value, n, key, back=True) == index


@given(n=sizes)
@example(n=LARGEST)
@settings(deadline=None, max_examples=300)
def test_the_grid_holds_n_has_an_even_side_and_few_cells_to_spare(n):
    a, b = grid(n)
    assert a % 2 == 0
    assert n <= a * b < n + a
    assert max(a, b) <= 1 << 32


# Laws.


@given(n=st.integers(1, 3000), key=words)
@example(n=1, key=0)
@example(n=2, key=0)
@example(n=3, key=0)
@settings(deadline=None, max_examples=60)
def test_permute_is_a_bijection(n, key):
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_permute_is_a_bijection_of_a_large_set():
    n = 200_003
    assert np.array_equal(np.sort(permute(np.arange(n), n, derive_key("large"))), np.arange(n))


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_value_alone_is_the_value_in_a_batch(data):
    rows = data.draw(st.lists(st.tuples(sizes, words, st.integers(0, 1 << 40)), min_size=1, max_size=20))
    n = np.array([row[0] for row in rows], dtype=np.uint64)
    key = np.array([row[1] for row in rows], dtype=np.uint64)
    index = np.array([row[2] for row in rows], dtype=np.uint64) % n
    high = np.minimum(n, 1 << 32)
    for i in range(len(rows)):
        assert permute(index, n, key)[i] == permute(int(index[i]), int(n[i]), int(key[i]))[0]
        assert keyed_bits(key, index)[i] == keyed_bits(int(key[i]), int(index[i]))[0]
        assert keyed_uniform(key, index)[i] == keyed_uniform(int(key[i]), int(index[i]))[0]
        alone = keyed_integers(int(key[i]), int(index[i]), high=int(high[i]))
        assert keyed_integers(key, index, high=high)[i] == alone[0]


@pytest.mark.parametrize(
    ("index", "n", "key", "shape"),
    [
        (3, 10, 5, (1,)),
        (np.int64(3), np.array(10), np.uint64(5), (1,)),
        (torch.tensor(3), torch.tensor(10), 5, (1,)),
        (np.arange(10), 10, 5, (10,)),
        (np.arange(10, dtype=np.uint8), np.int32(10), 5, (10,)),
        (3, np.arange(4, 8), 5, (4,)),
        (3, 10, KEYS[:6], (6,)),
        (np.arange(10)[None, :], 10, KEYS[:6, None], (6, 10)),
        (np.arange(10)[::2], 10, KEYS[:5], (5,)),
        (np.arange(0), 10, 5, (0,)),
        ([], 10, 5, (0,)),
    ],
)
def test_scalars_and_arrays_broadcast(index, n, key, shape):
    got = permute(index, n, key)
    assert got.shape == shape
    assert got.dtype == np.int64
    filled = np.broadcast_arrays(np.atleast_1d(index), np.atleast_1d(n), np.atleast_1d(key))
    cases = zip(*(part.ravel().astype(object) for part in filled), strict=True)
    assert got.ravel().tolist() == [permuted_by_hand(int(i), int(m), int(k)) for i, m, k in cases]
    assert keyed_bits(key, index).shape == np.broadcast_shapes(np.shape(index) or (1,), np.shape(key))
    assert keyed_integers(key, index, high=n).dtype == np.int64
    assert keyed_uniform(key, index).dtype == np.float64


def test_inputs_are_left_as_they_came():
    index, n, keys = np.arange(50, dtype=np.uint64), np.full(50, 50, dtype=np.uint64), KEYS[:50].copy()
    before = index.copy(), n.copy(), keys.copy()
    permute(index, n, keys)
    keyed_integers(keys, index, high=n)
    for array, old in zip((index, n, keys), before, strict=True):
        assert np.array_equal(array, old)


def test_no_global_generator_is_read_or_written():
    before = global_states()
    permute(np.arange(100), 100, derive_key("global"))
    keyed_integers(1, np.arange(100), high=7)
    assert global_states() == before
    np.random.seed(1)  # noqa: NPY002
    first = keyed_bits(1, 2).tolist()
    np.random.seed(2)  # noqa: NPY002
    assert keyed_bits(1, 2).tolist() == first


def global_states():
    state = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (state[1].tobytes(), state[2]), torch.get_rng_state().numpy().tobytes()


# Refusals.


def test_an_index_outside_n_is_refused():
    for index, n in ((10, 10), (-1, 10), (np.array([0, 11]), np.array([1, 11]))):
        with pytest.raises(ValueError, match=r"^permute: expected every index in \[0, n\)$"):
            permute(index, n, 0)


@pytest.mark.parametrize("n", [0, -1, LARGEST + 1, np.array([3, 0])])
def test_an_n_out_of_range_is_refused(n):
    with pytest.raises(ValueError, match=r"^permute: expected every n in \[1, 2⁶²\]$"):
        permute(0, n, 0)


@pytest.mark.parametrize("high", [0, -1, (1 << 32) + 1, np.array([3, 0])])
def test_a_high_out_of_range_is_refused(high):
    with pytest.raises(ValueError, match=r"^keyed_integers: expected every high in \[1, 2³²\]$"):
        keyed_integers(0, 0, high=high)


@pytest.mark.parametrize("index", [1.5, np.array([0.0, 1.0]), np.nan, "1", [2**64], None])
def test_what_is_no_whole_number_is_refused(index):
    with pytest.raises(TypeError, match=r"^expected whole numbers, got an array of "):
        keyed_bits(0, index)


# derive_key.

word = st.one_of(st.integers(), st.text(max_size=8))


def named(ws):
    return [(type(w), w) for w in ws]


@given(first=st.lists(word, max_size=4), second=st.lists(word, max_size=4))
@settings(deadline=None, max_examples=300)
def test_two_lists_of_words_have_one_key_only_when_they_are_one_list(first, second):
    assert (derive_key(*first) == derive_key(*second)) == (named(first) == named(second))


def test_words_do_not_run_into_one_another():
    lists = [
        *[(), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), ("2:i1",), ("i1",)],
        *[(1,), ("1",), (1, 1), (11,), (-1,), ("-1",), (0,), (2**64,), (2**64 + 1,), (-(2**200),), (2**200,)],
        *[("a", 0, 1), ("a", 1, 0), ("é",), ("e\u0301",), ("\udce9",)],
    ]
    keys = {derive_key(*words) for words in lists}
    assert len(keys) == len(lists)
    assert all(0 <= key < WORD for key in keys)


def test_a_word_of_any_integer_type_is_its_number():
    for seven in (np.int64(7), np.uint8(7), KeyedRow(7, epoch=3)):
        assert derive_key(seven) == derive_key(7)


@pytest.mark.parametrize("words", [(1.0,), (None,), (b"a",), (("a", 1),)])
def test_a_word_of_another_type_is_refused(words):
    with pytest.raises(TypeError, match=r"cannot be interpreted as an integer$"):
        inspect.unwrap(derive_key)(*words)  # past the annotation check, which is there in tests alone


# Quality: p-values of chi-square, for a fixed seed; each checker is also shown a law it must reject.


def chi_square(counts, expected):
    counts, expected = np.ravel(counts), np.ravel(expected)
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert expected.min() > 5
    return stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


def p_of_orders(shuffle, n, keys):
    """All n! orders are equally likely."""
    orders = shuffle(np.arange(n)[None, :], n, keys[:, None]) @ n ** np.arange(n)
    counts = np.zeros(math.factorial(n))
    seen = np.unique(orders, return_counts=True)[1]
    counts[: len(seen)] = seen
    return chi_square(counts, np.full(len(counts), len(keys) / len(counts)))


def p_of_place(shuffle, n, keys, i):
    """π(i) is uniform on [0, n)."""
    return chi_square(np.bincount(shuffle(i, n, keys), minlength=n), np.full(n, len(keys) / n))


def p_of_pair(shuffle, n, keys, i, j, width):
    """(π(i), π(j)) is uniform on the ordered pairs of different values, counted in cells of width²."""
    cells = n // width
    pairs = shuffle(i, n, keys) // width * cells + shuffle(j, n, keys) // width
    expected = np.full((cells, cells), width * width) - np.eye(cells) * width
    return chi_square(np.bincount(pairs, minlength=cells**2), expected * len(keys) / (n * (n - 1)))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_every_order_is_equally_likely(n):
    assert p_of_orders(permute, n, KEYS) > 1e-3


@pytest.mark.parametrize("n", [9, 50, 1000])
def test_every_place_is_uniform(n):
    for i in (0, 1, n // 2, n - 1):
        assert p_of_place(permute, n, KEYS, i) > 1e-3


@pytest.mark.parametrize(("n", "width"), [(9, 1), (50, 1), (1000, 25)])
def test_every_pair_of_places_is_uniform(n, width):
    for i, j in ((0, 1), (0, n - 1), (n // 2, n // 2 + 1), (n - 1, n - 2)):
        assert p_of_pair(permute, n, KEYS, i, j, width) > 1e-3


def test_two_epochs_are_independent():
    n, half = 9, len(KEYS) // 2
    for i, j in ((0, 0), (0, 1), (8, 3)):
        pairs = permute(i, n, KEYS[0::2]) * n + permute(j, n, KEYS[1::2])
        assert chi_square(np.bincount(pairs, minlength=n * n), np.full(n * n, half / n**2)) > 1e-3


def rotated(index, n, keys):
    """A bijection for every key, of n orders only; each place is uniform."""
    return ((index + (keys >> np.uint64(32)).astype(np.int64)) % n).astype(np.int64)


def often_untouched(index, n, keys):
    """The right law, but every fiftieth key shuffles nothing."""
    return np.where(keys % np.uint64(50) == 0, index, permute(index, n, keys))


def test_the_checkers_reject_a_biased_shuffle():
    assert p_of_orders(rotated, 4, KEYS) < 1e-9
    assert p_of_pair(rotated, 50, KEYS, 0, 1, width=5) < 1e-9
    assert p_of_orders(often_untouched, 6, KEYS) < 1e-9
    assert p_of_place(often_untouched, 50, KEYS, 0) < 1e-9
    assert p_of_pair(often_untouched, 50, KEYS, 0, 1, width=1) < 1e-9


def test_the_checker_of_orders_rejects_too_few_rounds(monkeypatch):
    monkeypatch.setattr(randomness, "ROUNDS", 8)
    assert p_of_orders(permute, 6, KEYS) < 1e-9


def test_uniform_numbers_are_uniform_and_consecutive_ones_independent():
    key = derive_key("tests", "uniform")
    u = keyed_uniform(key, np.arange(200_000))
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(u**1.05, "uniform").pvalue < 1e-9
    cells = (u[0::2] * 20).astype(int) * 20 + (u[1::2] * 20).astype(int)
    assert chi_square(np.bincount(cells, minlength=400), np.full(400, 100_000 / 400)) > 1e-3
    seeds = keyed_uniform(np.array([derive_key("tests", seed) for seed in range(50_000)], dtype=np.uint64))
    assert stats.kstest(seeds, "uniform").pvalue > 1e-3


def test_the_largest_and_the_smallest_bits_give_numbers_in_the_unit_interval():
    assert keyed_uniform(np.array([0, WORD - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2.0**-53]


def test_each_of_the_64_bits_is_a_fair_coin():
    bits = keyed_bits(derive_key("tests", "bits"), np.arange(50_000))
    ones = [int((bits >> np.uint64(s) & np.uint64(1)).sum()) for s in range(64)]
    z = (np.array(ones) - 25_000) / math.sqrt(12_500)
    assert np.abs(z).max() < 4.2  # p = 1e-3 over 64 bits at once
    assert stats.chi2.sf((z**2).sum(), 64) > 1e-3


@pytest.mark.parametrize("high", [2, 3, 7, 97, 1000])
def test_whole_numbers_are_uniform(high):
    values = keyed_integers(derive_key("tests", "integers"), np.arange(200_000), high=high)
    assert chi_square(np.bincount(values, minlength=high), np.full(high, 200_000 / high)) > 1e-3


@pytest.mark.parametrize("high", [1, (1 << 31) + 1, (1 << 32) - 1, 1 << 32])
def test_whole_numbers_keep_to_their_bounds(high):
    bits = np.concatenate([KEYS[:100_000], np.array([0, WORD - 1], dtype=np.uint64)])
    values = keyed_integers(bits, high=high)
    assert values.min() == 0
    assert values.max() == high - 1
    assert values[-1000:].tolist() == [b * high >> 64 for b in bits[-1000:].tolist()]
    if high > 1:
        sixteenths = values[:100_000] * 16 // high
        assert chi_square(np.bincount(sixteenths, minlength=16), np.full(16, 100_000 / 16)) > 1e-3


@given(bits=words, high=st.integers(1, 1 << 32))
@settings(deadline=None, max_examples=200)
def test_a_whole_number_is_the_high_word_of_the_product(bits, high):
    assert keyed_integers(bits, high=high).tolist() == [bits * high >> 64]


# KeyedRow.


def test_a_keyed_row_survives_pickle_and_copies():
    row = KeyedRow(7, epoch=2, view=1)
    pickled = [pickle.loads(pickle.dumps(row, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in (*pickled, copy.copy(row), copy.deepcopy(row)):
        assert (type(twin), int(twin), twin.epoch, twin.view) == (KeyedRow, 7, 2, 1)


def test_a_keyed_row_is_an_int_and_indexes_what_an_int_indexes():
    row = KeyedRow(7, epoch=2)
    assert isinstance(row, int)
    assert (row.epoch, row.view) == (2, 0)
    assert row == 7
    assert hash(row) == hash(7)
    assert type(row + 0) is int
    assert list(range(10))[row] == 7
    assert np.arange(10)[row] == 7
    assert np.arange(10)[[row, KeyedRow(1)]].tolist() == [7, 1]
    assert torch.arange(10)[row] == 7
    assert torch.arange(10)[[row, KeyedRow(1)]].tolist() == [7, 1]
    assert torch.tensor([row]).dtype == torch.int64
    assert np.asarray([row]).dtype == np.int64


class RowsSeen(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, row):
        return type(row).__name__, int(row), row.epoch, row.view


@pytest.mark.parametrize("workers", [0, 1])
def test_a_keyed_row_reaches_the_dataset_through_a_worker_queue(workers):
    batches = [[KeyedRow(3, epoch=5), KeyedRow(3, epoch=5, view=1)], [KeyedRow(0, epoch=6)]]
    loader = DataLoader(RowsSeen(), batch_sampler=batches, num_workers=workers, collate_fn=list)
    assert list(loader) == [[("KeyedRow", 3, 5, 0), ("KeyedRow", 3, 5, 1)], [("KeyedRow", 0, 6, 0)]]
