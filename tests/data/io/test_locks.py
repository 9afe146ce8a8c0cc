"""Locks on files: one holder among threads and processes, released on death, no file left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from tercet.data.io.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from tercet.data.io.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_threads_hold_it_one_at_a_time_and_leave_no_file(tmp_path):
    inside, most = [0], []

    def work():
        for _ in range(50):
            with locked(tmp_path / ".lock") as held:
                assert held
                inside[0] += 1
                most.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 200
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with locked(tmp_path / ".lock", wait=False) as held:
            assert not held
        assert (tmp_path / ".lock").exists()
        process.kill()
    with locked(tmp_path / ".lock", wait=False) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_user_is_refused_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text("")
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError) as raised, locked(tmp_path / "lock"):
        pass
    assert str(raised.value).endswith(
        "lock': expected a file of this user, or none; another user's run is at work there or was killed; "
        "wait for it to end, or remove the file"
    )
    with pytest.raises(PermissionError, match="of the folder"), locked(tmp_path / "other"):
        pass


def refused(*_, **__):
    raise PermissionError(errno.EACCES, "of the folder")
