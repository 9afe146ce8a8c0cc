"""The sentences of refusal are part of the interface: every one is tested word for word."""

from __future__ import annotations

import math
import pickle
import traceback
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.core.checks import (
    Refusal,
    as_array,
    as_bool,
    as_choice,
    as_float,
    as_int,
    as_path,
    as_seed,
    border,
    label_codes,
    refusal,
    shown,
)
from tests.helpers import refusal_of

# refusal


def test_refusal_is_returned_and_says_owner_argument_got_expected_and_way_out():
    error = refusal("PKSampler", "p", 16, "at most 9 classes", 'lower p or pass short_classes="repeat"')
    assert type(error) is ValueError
    assert str(error) == (
        'PKSampler(p=16): expected at most 9 classes; lower p or pass short_classes="repeat"'
    )
    assert str(refusal("f", "x", "a", "a number")) == "f(x='a'): expected a number"


def test_refusal_shortens_what_came_to_80_characters():
    assert str(refusal("f", "x", "a" * 78, "b")) == f"f(x='{'a' * 78}'): expected b"
    shown = f"'{'a' * 29}...{'c' * 46}'"  # a long path is told by its end
    assert str(refusal("f", "x", "a" * 40 + "c" * 60, "b")) == f"f(x={shown}): expected b"


# Refusal, border


def test_a_refusal_without_a_caller_is_a_sentence_by_itself():
    assert str(Refusal("p", 0, "at least 1", "raise p")) == "p=0: expected at least 1; raise p"
    assert str(Refusal(None, "a\nb", "an existing tar")) == "'a\\nb': expected an existing tar"
    assert isinstance(refusal(None, "p", 0, "at least 1"), Refusal)
    assert isinstance(Refusal("p", 0, "at least 1"), ValueError)


def test_a_border_completes_the_sentence_as_refusal_would_have_said_it():
    for got in (0, "a" * 200, [1, "x\n"], torch.ones(2)):
        for name in ("p", None):
            with pytest.raises(ValueError, match="expected") as caught, border("f", "tars"):
                raise Refusal(name, got, "at least 1", "raise p")
            assert type(caught.value) is ValueError
            assert str(caught.value) == str(refusal("f", name or "tars", got, "at least 1", "raise p"))


def test_a_border_without_an_argument_names_the_caller_alone():
    with pytest.raises(ValueError, match=r"^f\(0\): expected at least 1$"), border("f"):
        raise Refusal(None, 0, "at least 1")


def test_the_innermost_border_names_the_caller():
    with pytest.raises(ValueError, match=r"^inner\(y=0\)"), border("outer", "x"), border("inner", "y"):
        raise Refusal(None, 0, "at least 1")


def test_a_border_decorates_a_function_that_may_be_called_again():
    @border("make-shards", "folder")
    def command(got):
        """Make shards."""
        if got:
            raise Refusal(None, got, "nothing")
        return "made"

    for _ in range(2):
        with pytest.raises(ValueError, match=r"^make-shards\(folder=3\): expected nothing$"):
            command(3)
        assert command(0) == "made"
    assert command.__doc__ == "Make shards."


def test_a_border_lets_other_errors_and_values_through():
    for error in (ValueError("f(x=1): no"), OSError("gone"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, border("f", "x"):
            raise error
        assert caught.value is error
    with border("f", "x"):
        found = 3
    assert found == 3


def test_a_border_keeps_the_traceback_and_the_cause_and_hides_the_short_form():
    cause = OSError("gone")

    def inside():
        raise Refusal(None, 0, "at least 1") from cause

    with pytest.raises(ValueError, match="f") as caught, border("f", "x"):
        inside()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "inside"
    assert caught.value.__cause__ is cause
    with pytest.raises(ValueError, match="f") as caught, border("f", "x"):
        raise Refusal(None, 0, "at least 1")
    said = "".join(traceback.format_exception(caught.value))
    assert "Refusal:" not in said
    assert "During handling" not in said


def test_errors_pickle_with_their_sentence():
    short = pickle.loads(pickle.dumps(Refusal("p", 0, "at least 1")))
    assert (type(short), str(short)) == (ValueError, "p=0: expected at least 1")
    named = Refusal("p", 0, "at least 1").named("f")
    assert str(pickle.loads(pickle.dumps(named))) == str(named) == "f(p=0): expected at least 1"


def test_checks_leave_the_caller_to_the_border():
    for check, value in ((as_int, -1), (as_float, "x"), (as_bool, 2), (as_path, 3)):
        expected = refusal_of(check, "f", "x", value)
        with pytest.raises(ValueError, match="f") as caught, border("f", "x"):
            check(None, None, value)
        assert str(caught.value) == expected


# whole


@pytest.mark.parametrize(
    "value",
    [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
    ids=repr,
)
def test_whole_takes_any_whole_number_and_gives_an_int(value):
    number = as_int("f", "k", value, minimum=3, maximum=3)
    assert type(number) is int
    assert number == 3


def test_whole_takes_what_numpy_and_torch_count_with():
    assert as_int("f", "k", 2**63 - 1) == 2**63 - 1
    expected = "a whole number from 0 to 9223372036854775807"
    assert refusal_of(as_int, "f", "k", 2**63) == f"f(k={2**63}): expected {expected}"
    assert refusal_of(as_int, "f", "k", 10**5000) == f"f(k=<int>): expected {expected}"


def test_a_seed_has_at_most_128_bits():
    assert as_seed("f", 2**128 - 1) == 2**128 - 1
    assert "expected a whole number from 0 to 2¹²⁸ − 1" in refusal_of(as_seed, "f", 2**128)
    assert refusal_of(as_seed, "f", -1) == "f(seed=-1): expected a whole number of at least 0"
    assert refusal_of(as_seed, "f", True) == "f(seed=True): expected a whole number of at least 0"


@pytest.mark.parametrize(
    "value",
    [
        *[True, np.True_, np.array(True), torch.tensor(True)],
        *[3.0, np.float64(3), torch.tensor(3.0), math.nan, math.inf, Fraction(3)],
        *["3", b"3", None, [3], np.array([3])],
    ],
    ids=repr,
)
def test_whole_refuses_what_is_no_whole_number(value):
    assert refusal_of(as_int, "f", "k", value) == f"f(k={value!r}): expected a whole number of at least 0"


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (-1, {}, "a whole number of at least 0"),
        (0, {"minimum": 1}, "a whole number of at least 1"),
        (-6, {"minimum": -5}, "a whole number of at least -5"),
        (11, {"minimum": 1, "maximum": 10}, "a whole number from 1 to 10"),
        (0, {"minimum": 1, "maximum": 10}, "a whole number from 1 to 10"),
        (1.5, {"maximum": 10}, "a whole number from 0 to 10"),
    ],
)
def test_whole_refuses_what_is_out_of_range(value, bounds, expected):
    assert (
        refusal_of(as_int, "PKSampler", "p", value, **bounds) == f"PKSampler(p={value}): expected {expected}"
    )


# real


@pytest.mark.parametrize(
    "value",
    [2, 2.0, np.float16(2), np.int64(2), np.array(2.0), torch.tensor(2), torch.tensor(2.0), Decimal(2)],
    ids=repr,
)
def test_real_takes_any_number_and_gives_a_float(value):
    number = as_float("f", "margin", value, minimum=2, maximum=2)
    assert type(number) is float
    assert number == 2.0
    assert as_float("f", "margin", value, above=1) == 2.0


@pytest.mark.parametrize(
    "value",
    [
        *[math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf), 10**400],
        *[True, np.False_, np.array(True), torch.tensor(True)],
        *["1", b"1", None, [1.0], np.array([1.0, 2.0]), torch.ones(2), 1 + 0j, np.complex128(1)],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_real_refuses_what_is_no_finite_number(value):
    assert refusal_of(as_float, "f", "margin", value) == str(refusal("f", "margin", value, "a finite number"))


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (-0.1, {"minimum": 0}, "a finite number of at least 0"),
        (0, {"above": 0}, "a finite number above 0"),
        (0.5, {"above": 0.5}, "a finite number above 0.5"),
        (1.5, {"maximum": 1}, "a finite number of at most 1"),
        (1.5, {"above": 0, "maximum": 1}, "a finite number above 0 and at most 1"),
        (0, {"above": 0, "maximum": 1}, "a finite number above 0 and at most 1"),
        (1.5, {"minimum": 0.05, "maximum": 1}, "a finite number from 0.05 to 1"),
        (0.0, {"minimum": 1e-12}, "a finite number of at least 1e-12"),
        (math.inf, {"minimum": 0}, "a finite number of at least 0"),
    ],
)
def test_real_refuses_what_is_out_of_range(value, bounds, expected):
    assert (
        refusal_of(as_float, "Circle", "margin", value, **bounds)
        == f"Circle(margin={value}): expected {expected}"
    )


# flag


@pytest.mark.parametrize("value", [True, False, np.True_, torch.tensor(False)])
def test_a_flag_is_a_bool(value):
    assert as_bool("f", "swap", value) is bool(value)


@pytest.mark.parametrize("value", ["no", 0, 1, None])
def test_what_is_no_flag_is_refused(value):
    with pytest.raises(ValueError, match=rf"f\(swap={value!r}\): expected True or False"):
        as_bool("f", "swap", value)


# choice


def test_choice_gives_the_option_back():
    assert as_choice("f", "swap", "mean", ("mean", "sum")) == "mean"
    assert as_choice("f", "swap", "sum", iter(["mean", "sum"])) == "sum"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("maen", "f(reduction='maen'): expected one of 'mean', 'sum'; did you mean 'mean'?"),
        ("Mean", "f(reduction='Mean'): expected one of 'mean', 'sum'; did you mean 'mean'?"),
        ("all", "f(reduction='all'): expected one of 'mean', 'sum'"),
        ("", "f(reduction=''): expected one of 'mean', 'sum'"),
        (None, "f(reduction=None): expected one of 'mean', 'sum'"),
        (1, "f(reduction=1): expected one of 'mean', 'sum'"),
        (["mean"], "f(reduction=['mean']): expected one of 'mean', 'sum'"),
    ],
)
def test_choice_refuses_a_misspelt_option_and_names_the_nearest(value, said):
    assert refusal_of(as_choice, "f", "reduction", value, ("mean", "sum")) == said


# what has no data, or cannot be asked


class Unreadable:
    """Its every use fails."""

    def fails(self, *given, **more):
        raise RuntimeError("no")

    __repr__ = __len__ = __array__ = __float__ = __index__ = __bool__ = __fspath__ = fails


META = torch.tensor(3, device="meta")


@pytest.mark.parametrize("value", [Unreadable(), META, torch.ones(2, 2), np.array("a")], ids=shown)
def test_a_number_that_cannot_be_read_is_refused(value):
    for check in (as_int, as_float, as_bool):
        assert refusal_of(check, "f", "x", value).startswith(f"f(x={shown(value)}): expected ")


def test_a_flag_without_data_or_of_several_is_refused():
    several = [torch.tensor(True, device="meta"), torch.tensor([True, False]), np.array([True, False])]
    for value in several:
        assert refusal_of(as_bool, "f", "x", value) == f"f(x={shown(value)}): expected True or False"


@pytest.mark.parametrize("value", ["a.csv", "é x.csv", Path("a")])
def test_a_path_is_a_string_or_a_path(value):
    assert as_path("f", "path", value) == Path(value)


@pytest.mark.parametrize("value", [3, True, None, b"a.csv", "", "a\0.csv", ["a"], Unreadable()], ids=shown)
def test_what_is_no_path_is_refused(value):
    expected = "a path: a string or a pathlib.Path, not empty and without zero characters"
    assert refusal_of(as_path, "f", "path", value) == f"f(path={shown(value)}): expected {expected}"


NO_ARRAYS = {
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.ones(2, device="meta"),
    "grad": torch.ones(2, requires_grad=True),
    "nested": torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
    "unreadable": Unreadable(),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_numpy_makes_no_array_of_is_refused(kind):
    for said in (
        refusal_of(as_array, "f", "x", NO_ARRAYS[kind], "numbers"),
        refusal_of(label_codes, "f", NO_ARRAYS[kind], "x"),
    ):
        assert said.startswith(f"f(x='<{type(NO_ARRAYS[kind]).__name__}>'): expected ")


# label_codes


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "a", "b", "é"],
        ("b", "a", "b", "é"),
        np.array(["b", "a", "b", "é"]),
        np.array(["b", "a", "b", "é"], dtype=object),
        np.array([np.str_("b"), "a", "b", "é"], dtype=object),
        np.array(["b", "a", "b", "é"], dtype=np.dtypes.StringDType()),
        [7, 3, 7, 9],
        [np.int64(7), 3, np.uint8(7), 9],
        np.array([7, np.int32(3), 7, 9], dtype=object),
        *[np.array([7, 3, 7, 9], dtype=kind) for kind in ("u1", "i1", "i4", "u4", "i8", "u8", ">i8")],
        *[torch.tensor([7, 3, 7, 9], dtype=kind) for kind in (torch.uint8, torch.int32, torch.int64)],
        np.array([2**40 + 1, 2**24, 2**40 + 1, 2**60]),
        [2**24 + 1, 2**24, 2**24 + 1, 2**24 + 2],  # alike as float32
        np.array([2**64 - 2, 5, 2**64 - 2, 2**64 - 1], dtype=np.uint64),
        np.array([-1, -5, -1, 0]),
        np.array([7, 0, 3, 0, 7, 0, 9, 0])[::2],
    ],
    ids=lambda labels: f"{type(labels).__name__}-{getattr(labels, 'dtype', '')}",
)
def test_labels_of_any_kind_give_the_same_codes(labels):
    codes, classes = label_codes("PKSampler", labels)
    assert codes.dtype == np.int64
    assert codes.tolist() == [1, 0, 1, 2]
    assert [classes[code] for code in codes] == list(labels)
    assert sorted(classes.tolist()) == classes.tolist()


@pytest.mark.parametrize(
    "labels",
    [[True, False, True], np.array([True, False, True]), torch.tensor([True, False, True])],
    ids=["list", "numpy", "torch"],
)
def test_boolean_labels_are_two_classes(labels):
    codes, classes = label_codes("f", labels)
    assert codes.tolist() == [1, 0, 1]
    assert classes.tolist() == [False, True]


def test_one_image_and_one_class_are_labels_enough():
    assert label_codes("f", ["a"])[0].tolist() == [0]
    assert label_codes("f", [5, 5, 5])[0].tolist() == [0, 0, 0]


@given(
    labels=st.one_of(
        st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=4), min_size=1),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    ),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_codes_do_not_depend_on_the_order_of_the_labels(labels, order):
    codes, classes = label_codes("f", labels)
    rows = list(range(len(labels)))
    order.shuffle(rows)
    shuffled, same = label_codes("f", [labels[row] for row in rows])
    assert shuffled.tolist() == codes[rows].tolist()
    assert same.tolist() == classes.tolist() == sorted(set(labels))
    assert classes[codes].tolist() == labels


NUMBERS = "whole numbers or strings; convert with .astype(int) or .astype(str)"
ONE_KIND = "all whole numbers or all strings"
ONE_EACH = "one label for each of 1 or more images"


@pytest.mark.parametrize(
    ("labels", "got", "expected"),
    [
        (np.array([1.0, 2.0]), "float64", NUMBERS),
        (torch.tensor([1.0, 2.0]), "float32", NUMBERS),
        ([1, 2.5], "float64", NUMBERS),
        ([math.nan, 1.0], "float64", NUMBERS),
        (np.array([b"a", b"b"]), "|S1", NUMBERS),
        (np.array(["2024-01-01"], dtype="M8[D]"), "datetime64[D]", NUMBERS),
        ([2**64, 1], "object", NUMBERS),
        ([1, "a"], "int and str", ONE_KIND),
        (("a", 1.5), "float and str", ONE_KIND),
        ([True, "a"], "bool and str", ONE_KIND),
        (["a", None], "1 missing, the first at row 1", "a label for each image; drop these rows"),
        (np.array(["a", math.nan], dtype=object), "float and str", ONE_KIND),
        (np.array([1, 2.0], dtype=object), "float and int", ONE_KIND),
        ([["a"], ["a", "b"]], "list", ONE_KIND),
        ([], "array of shape (0,)", ONE_EACH),
        (np.empty(0, dtype=np.int64), "array of shape (0,)", ONE_EACH),
        ([["a", "b"], ["c", "d"]], "array of shape (2, 2)", ONE_EACH),
        (torch.zeros(3, 1, dtype=torch.int64), "array of shape (3, 1)", ONE_EACH),
        (np.array(3), "array of shape ()", ONE_EACH),
        ("abc", "array of shape ()", ONE_EACH),
        ({"a", "b"}, "array of shape ()", ONE_EACH),
        (None, "array of shape ()", ONE_EACH),
    ],
)
def test_labels_that_are_none_are_refused(labels, got, expected):
    said = refusal_of(label_codes, "PKSampler", labels)
    assert said == f"PKSampler(labels={got!r}): expected {expected}"


def test_the_sentence_names_the_argument():
    assert refusal_of(label_codes, "f", [], argument="groups").startswith("f(groups=")
