"""A signal that asks a command to end: one line, 128 + its number, and no file that is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import typer

from tercet.cli.app import run
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.atomic import atomically
from tercet.data.shards.writing import write_shards

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def heeded():
    """Signals as a shell leaves them, also where the tests run in the background and ignore some."""
    before = {one: signal.getsignal(one) for one in ENDING}
    for one in ENDING:
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def command(work):
    app = typer.Typer()
    app.command()(work)
    return app


def ended(monkeypatch, work):
    """The exit code of a command that does `work`."""
    monkeypatch.setattr(sys, "argv", ["tercet"])
    with pytest.raises(SystemExit) as raised:
        run(command(work))
    return raised.value.code


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_with_one_line_and_nothing_left(tmp_path, monkeypatch, capsys, number):
    def work():
        with atomically(tmp_path / "t") as unfinished:
            unfinished.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(60)

    before = [signal.getsignal(one) for one in ENDING]
    assert ended(monkeypatch, work) == 128 + number
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    name = signal.Signals(number).name
    assert (said.out, said.err) == ("", f"Ended by {name}: nothing unfinished is left under a final name.\n")
    assert [signal.getsignal(one) for one in ENDING] == before


def test_a_second_signal_does_not_break_off_the_removing(tmp_path, monkeypatch):
    def work():
        try:
            with atomically(tmp_path / "t"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    assert ended(monkeypatch, work) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, monkeypatch):
    def work():
        os.kill(os.getpid(), signal.SIGHUP)
        (tmp_path / "t").write_text("through")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert ended(monkeypatch, work) is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "t").read_text() == "through"


def test_a_signal_stops_the_threads_that_write_shards(tmp_path, monkeypatch):
    for row in range(8):
        (tmp_path / f"{row}.jpg").write_bytes(bytes(2000))
    catalog = Catalog([f"{row}.jpg" for row in range(8)], [0] * 8, ["a"], root=tmp_path)
    from tercet.data.shards import shard_file

    real, both = shard_file._add_sample, threading.Barrier(2)
    come: set[int] = set()

    def slow(*given):
        if threading.get_ident() not in come:
            come.add(threading.get_ident())
            if both.wait(60) == 0:  # only now, when both threads have been started
                os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(shard_file, "_add_sample", slow)
    options = {"layout": "mixed", "images_per_shard": 4, "workers": 2}
    before = set(threading.enumerate())
    assert ended(monkeypatch, lambda: write_shards(tmp_path / "out", catalog, **options)) == 143
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    hidden = [file.name for file in tmp_path.rglob(".*")]
    assert hidden == []
    monkeypatch.undo()
    assert len(write_shards(tmp_path / "out", catalog, **options)) == 8


AT_WORK = """
import sys, time
from tercet.cli import app, options
def scan_folder(*_, **__):
    print("at work", flush=True)
    time.sleep(600)
options.scan_folder = scan_folder
app.main()
"""


def test_the_console_script_ends_by_a_signal_without_a_traceback(tmp_path):
    (tmp_path / "ant").mkdir()
    command = [sys.executable, "-c", AT_WORK, "make-triplets", "random", tmp_path, tmp_path / "o.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == 143
    assert said == "Ended by SIGTERM: nothing unfinished is left under a final name.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["ant"]
