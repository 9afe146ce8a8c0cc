"""Answers of checks that are read later: each is raised once, in order, or told at exit."""

import pytest
import torch

from tercet.pairwise import inputs

HERE = torch.device("cpu")


def test_every_late_answer_is_raised_once_and_told_at_exit_until_then():
    inputs.answer_later(torch.tensor(True), ValueError("well"))
    inputs.answer_later(torch.tensor(False), ValueError("bad"))
    inputs.answer_later(torch.tensor(False), ValueError("worse"))
    with pytest.warns(RuntimeWarning) as said:
        inputs._warn_late()
    assert [str(one.message) for one in said] == ["unread until now: bad", "unread until now: worse"]
    for text in ("bad", "worse"):
        with pytest.raises(ValueError, match=f"^{text}$"):
            inputs.raise_late(HERE)
    inputs.raise_late(HERE)  # nothing is left
