"""Odd values for every argument of every public callable give a right result, or a sentence of ours.

Each call is a valid one (`fuzz_calls`) in which one or two arguments are odd (`fuzz_values`). It may raise
TypeError, ValueError or OSError with a sentence that names the callable or the argument, and where it looks
something up by position, IndexError. Nonsense must be refused. Which calls are made follows from a seed.
"""

from __future__ import annotations

import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jaxtyping
import pytest

import tercet
from tests.contracts.bounds import TookLong, bounded
from tests.contracts.fuzz_calls import KIND_OF, Row, arguments, may_be_none, rows, world
from tests.contracts.fuzz_values import KINDS, SPACE

SENTENCES = (TypeError, ValueError, OSError)
BY_POSITION = (
    "__getitem__",
    "batch",
    "read",
    "file",
    "select",
    "ImageDataset",
    "TripletDataset",
    "PairDataset",
)
FILES = ("source", "target", "folder or None")  # kinds of arguments whose file a sentence may name instead
OPTIONS = ("count", "real", "flag", "choice")  # kinds that are read whatever the other arguments are
# Methods that only our own code calls, with what it has checked, or that take nothing; a class of warnings.
INNER = """
    between few listed loss_of losses_of of_all of_mined parts select extra_repr key sides of pairs check
    provenance state_dict reset left_out_counts pin_memory as_pairs unreadable
    entries prepare tile paired Alarm
""".split()


def fault(name: str, row: Row, odd: dict[str, str], must_refuse: bool) -> str:
    """What a call does wrong with odd values: "foreign: …", "taken: …", or nothing.

    Args:
        name: the callable, "PKSampler" or "PKSampler.batch".
        row: a valid call of it.
        odd: expressions by the argument whose place they take.
        must_refuse: whether one of them is nonsense.
    """
    call, given = row.make()
    given |= {argument: eval(value, SPACE) for argument, value in odd.items()}
    try:
        with bounded():
            row.use(call(**given))
    except TookLong:
        return "foreign: takes too long"
    except Exception as error:
        said = str(error)
        if isinstance(error, IndexError):
            ours = any(part in name for part in BY_POSITION) and "expected" in said
        else:
            files = [eval(value, SPACE) for argument, value in odd.items() if row.kind(argument) in FILES]
            names = [*name.split("."), *odd, *(str(file) for file in files if isinstance(file, str) and file)]
            ours = isinstance(error, SENTENCES) and any(one in said for one in names)
        if not ours:
            return f"foreign: {type(error).__name__}: {said[:200]!r}"
        return "" if said.isprintable() else f"foreign: not escaped: {said[:200]!r}"
    return "taken: no refusal" if must_refuse else ""


class Case(NamedTuple):
    """A call to make."""

    name: str
    odd: dict[str, str]
    must_refuse: bool


def values(row: Row, argument: str, parameter: Any) -> tuple[list[str], list[str]]:
    """Nonsense and odd values of an argument."""
    nonsense, odd = (list(some) for some in KINDS[row.kind(argument)])
    if row.kind(argument) == "anything":
        return nonsense, odd
    if may_be_none(parameter):
        return [value for value in nonsense if value != "None"], [*odd, "None"]
    return list(dict.fromkeys([*nonsense, "None"])), odd


def cases(table: dict[str, Row], count: int, seed: int) -> Iterator[Case]:
    """`count` calls: one odd value of an argument each, one in four with a second odd value."""
    draw = random.Random(seed)
    choices = []
    for name, row in table.items():
        parameters = arguments(row.make()[0])
        if parameters:
            choices.append((name, row, parameters, len(parameters) / row.dear))
    weights = [weight for *_, weight in choices]
    for _ in range(count):
        name, row, parameters, _ = draw.choices(choices, weights)[0]
        odd, nonsense = {}, []
        for argument in draw.sample(sorted(parameters), k=min(len(parameters), draw.choice((1, 1, 1, 2)))):
            refused, others = values(row, argument, parameters[argument])
            odd[argument] = draw.choice(refused + others)
            nonsense += [argument] * (odd[argument] in refused)
        # What another odd argument makes unnecessary may go unread, but for options.
        must_refuse = len(odd) == len(nonsense) == 1 or any(row.kind(one) in OPTIONS for one in nonsense)
        yield Case(name, odd, must_refuse)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Iterator[dict[str, Row]]:
    """The rows, in a folder with the files that they read, without the tests' check of annotations."""
    folder, before = tmp_path_factory.mktemp("fuzz"), os.getcwd()
    checked = jaxtyping.config.jaxtyping_disable
    world(folder)
    os.chdir(folder)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield rows()
    finally:
        jaxtyping.config.update("jaxtyping_disable", checked)
        os.chdir(before)


def faults(table: dict[str, Row], some: Iterator[Case]) -> list[str]:
    """A line for each call that does wrong."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in some:
            wrong = fault(case.name, table[case.name], case.odd, case.must_refuse)
            if wrong:
                shown = ", ".join(f"{name}={value}" for name, value in case.odd.items())
                found.append(f"{case.name}({shown}): {wrong}")
    return found


def test_a_sample_of_odd_calls(table):
    assert not faults(table, cases(table, 600, seed=0))


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(10))
def test_thirty_thousand_odd_calls(table, part):
    assert not faults(table, cases(table, 3000, seed=1 + part))


@pytest.mark.filterwarnings("ignore")
def test_every_valid_call_succeeds(table):
    raised = {}
    for name, row in table.items():
        call, given = row.make()
        try:
            row.use(call(**given))
        except Exception as error:
            raised[name] = f"{type(error).__name__}: {error}"
    assert not raised


def test_every_public_name_has_a_row_and_every_method_too(table):
    missing = [name for name in tercet.__all__ if name not in table]
    for name in tercet.__all__:
        value = getattr(tercet, name)
        for method, function in vars(value).items() if isinstance(value, type) else ():
            ours = callable(function) and not method.startswith("_") and method not in INNER
            ours = ours and not isinstance(function, type)  # such as the class of a warning
            if ours and f"{name}.{method}" not in table:
                missing.append(f"{name}.{method}")
    assert not missing


def test_every_argument_has_a_kind(table):
    for name, row in table.items():
        for argument, parameter in arguments(row.make()[0]).items():
            assert argument in {**KIND_OF, **row.kinds}, f"give {name}({argument}=) a kind in fuzz_calls.py"
            assert any(values(row, argument, parameter)), f"{name}({argument}=) has no values"


# The checker is checked: fed a wrong callable, it says so.


def looked_up(count: int) -> int:
    """Raises KeyError for what it does not know."""
    return {1: 2}[count]


def silent(count: int) -> int:
    """Takes anything."""
    return 1


def nameless(count: int) -> int:
    """Raises a ValueError that names nothing."""
    raise ValueError("bad")


def endless(count: int) -> int:
    """Never ends."""
    while True:
        pass


def greedy(count: int) -> int:
    """Takes all memory."""
    return len(bytearray(1 << 40))


def forging(count: int) -> int:
    """Raises a sentence with a control character."""
    raise ValueError("forging(count='\x1b[2J')")


def right(count: int) -> int:
    """Refuses what is no whole number from 1."""
    from tercet.core.checks import as_int

    return as_int("right", "count", count, minimum=1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (looked_up, "foreign: KeyError"),
        (silent, "taken: no refusal"),
        (nameless, "foreign: ValueError: 'bad'"),
        (endless, "foreign: takes too long"),
        (greedy, "foreign: MemoryError"),
        (forging, "foreign: not escaped"),
        (right, ""),
    ],
)
def test_the_checker_sees_what_a_call_does_wrong(call: Callable[..., Any], said, monkeypatch):
    monkeypatch.setattr("tests.contracts.bounds.SECONDS", 1)
    row = Row(lambda: (call, {"count": 1}))
    found = fault(call.__name__, row, {"count": "'3'"}, must_refuse=True)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_sample_reaches_every_kind_of_value_and_callable(table):
    some = list(cases(table, 60_000, seed=0))
    assert some[:100] == list(cases(table, 100, seed=0))
    called = Counter(case.name for case in some)
    named = {name for name, row in table.items() if arguments(row.make()[0])}
    assert set(called) == named
    kinds = {table[case.name].kind(argument) for case in some for argument in case.odd}
    assert kinds == set(KINDS)
