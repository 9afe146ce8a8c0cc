"""Processes that share items do each once, and what a dead one had claimed is done by another."""

import os
import signal

from tercet.data.io.atomic import lock_file
from tercet.offline.claims import Claims
from tests.contracts.killing import in_another_process
from tests.helpers import names

ITEMS = ["a", "b", "c", "d"]


def claims_of(folder, first=0):
    return Claims(folder, ITEMS, lambda item: (folder / ITEMS[item]).exists(), first)


def finish(claims, folder, item):
    (folder / ITEMS[item]).touch()
    claims.finish(item)


def test_two_share_all_items_and_leave_no_lock(tmp_path):
    one, other = claims_of(tmp_path), claims_of(tmp_path, first=2)
    seen = []
    for mine, theirs in zip(one.available(), other.available(), strict=True):
        seen += [mine, theirs]
        finish(one, tmp_path, mine)
        finish(other, tmp_path, theirs)
    assert seen == [0, 2, 1, 3]
    assert not one.wait()
    assert not other.wait()
    assert names(tmp_path) == ITEMS


def test_what_another_holds_is_passed_over_and_waited_for(tmp_path):
    one, other = claims_of(tmp_path), claims_of(tmp_path)
    held = one.available()
    assert next(held) == 0
    seen = []
    for item in other.available():
        finish(other, tmp_path, item)
        seen.append(item)
    assert seen == [1, 2, 3]
    assert other.left == 1
    one.close()  # it gives up: now the item is free
    assert other.wait()
    assert list(other.available()) == [0]
    other.close()
    assert names(tmp_path) == ["b", "c", "d"]


def test_the_items_of_a_process_that_was_killed_are_free(tmp_path):
    def killed():
        claims = claims_of(tmp_path)
        assert next(claims.available()) == 0
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_another_process(killed) == -signal.SIGKILL
    assert lock_file(tmp_path, "a").exists()
    claims = claims_of(tmp_path)
    assert next(claims.available()) == 0
    claims.close()


def test_an_item_that_is_given_up_can_be_claimed_again(tmp_path):
    claims = claims_of(tmp_path)
    assert next(claims.available()) == 0
    claims.close()
    assert names(tmp_path) == []
    assert next(claims.available()) == 0
    claims.close()
