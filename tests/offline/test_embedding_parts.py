"""Parts of one run are taken by it alone, and only whole."""

import numpy as np
import pytest

from tercet.offline.embedding_parts import Parts, parts_of
from tests.helpers import names

PLAN = {"key": {"weights": "1"}, "overwrite": False, "batch_size": 2, "device": "cpu", "compile": False}
PLAN |= {"height": 4}


def begun(folder, **other):
    parts = Parts(folder / "parts", np.dtype(np.float32), 10)
    parts.begin({**PLAN, **other})
    return parts


def resumed(folder, **other):
    parts = Parts(folder / "parts", np.dtype(np.float32), 10)
    parts.resume({**PLAN, **other})
    return parts


def block(parts, number, width=3):
    return np.full((len(parts.rows_of(number)), width), number, np.float32)


def test_parts_cover_the_rows_once(tmp_path):
    parts = begun(tmp_path)
    assert [list(parts.rows_of(number)) for number in range(len(parts))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_parts_are_found_in_any_order_and_with_gaps(tmp_path):
    parts = begun(tmp_path)
    for number in (2, 0):
        parts.add(number, block(parts, number), [(8, "why")] if number == 2 else [])
    again = resumed(tmp_path)
    assert [again.is_done(number) for number in range(3)] == [True, False, True]
    assert (again.rows, again.width, again.plan()) == (6, 3, PLAN)
    assert [part.start for part in again.done] == [0, 8]
    assert again.done[1].unreadable == [(8, "why")]
    assert np.array_equal(again.done[1].numbers(again.dtype), block(parts, 2))


@pytest.mark.parametrize(
    "other", [{"key": {"weights": "2"}}, {"height": 2}, {"batch_size": 1}, {"device": "cuda"}]
)
def test_a_part_of_another_run_is_none_of_this(tmp_path, other):
    """As where a process of a run that was given up writes its last part into the folder of the next run."""
    late, parts = begun(tmp_path), begun(tmp_path, **other)
    late.add(0, block(late, 0), [])
    assert not resumed(tmp_path, **other).is_done(0)
    assert parts.rows == 0
    parts.clear()
    assert names(tmp_path) == []


def test_a_part_under_the_name_of_another_is_not_taken(tmp_path):
    parts = begun(tmp_path)
    parts.add(0, block(parts, 0), [])
    (file,) = (tmp_path / "parts").glob("*.part")
    file.rename(file.with_name(file.name.replace("000000000000", "000000000004")))
    assert not any(resumed(tmp_path).is_done(number) for number in range(3))


def test_parts_of_two_widths_are_refused(tmp_path):
    parts = begun(tmp_path)
    parts.add(0, block(parts, 0), [])
    parts.add(1, block(parts, 1, width=0), [(row, "why") for row in range(4, 8)])
    assert parts.width == 3
    parts.add(2, block(parts, 2, width=5), [])
    with pytest.raises(ValueError, match=r"it gives 3 and 5 numbers.*expected as many numbers for every"):
        assert parts.width


def test_a_plan_that_is_damaged_is_no_plan(tmp_path):
    parts = begun(tmp_path)
    (tmp_path / "parts" / "plan.json").write_text('{"height": 3, "batch_size": 2}')
    assert parts.plan() == {}
    (tmp_path / "parts" / "plan.json").write_text("{")
    assert parts.plan() == {}


def test_ranks_share_the_parts_and_keep_others_out(tmp_path):
    kind = np.dtype(np.float32)
    refused = pytest.raises(ValueError, match="expected a file that no other run is writing")

    def opened(shared):
        return parts_of(tmp_path / "x.npy", kind, 10, shared)

    with opened(True):
        with opened(True):
            pass
        with refused, opened(False):
            pass
    with opened(False), refused, opened(True):
        pass
    assert names(tmp_path) == []
