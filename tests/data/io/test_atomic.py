"""Files appear whole or not at all, whoever is killed, and nothing that others planted is followed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tercet.core.checks import border
from tercet.data.io.atomic import (
    atomically,
    atomically_together,
    fresh_target,
    journal,
    lock_file,
    locked,
    remove_leftovers,
)
from tercet.data.io.checked_json import with_checksum
from tercet.data.io.journal import JOURNAL, current_places, pending_names
from tests.contracts.killing import killed_at
from tests.helpers import names

TABLES = (".csv", ".parquet")


# fresh_target


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t.txt", "f(path='t.txt'): expected a name ending in .csv, .parquet"),
        ("t", "f(path='t'): expected a name ending in .csv, .parquet"),
        (".csv", "f(path='.csv'): expected a name ending in .csv, .parquet"),
        ("t.CSV", "f(path='t.CSV'): expected a name ending in .csv, .parquet"),
        ("d.csv", "f(path='d.csv'): expected a file, not a folder"),
        (
            "old.csv",
            "f(path='old.csv'): expected a new file; it exists; overwrite=True or --overwrite replaces it",
        ),
        ("no/t.csv", "f(path='no/t.csv'): expected an existing folder to write in; make no first"),
        (
            "old.csv/t.csv",
            "f(path='old.csv/t.csv'): expected an existing folder to write in; make old.csv first",
        ),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ValueError, match=r".") as raised, border("f"):
        fresh_target(name, False, TABLES)
    assert str(raised.value) == said


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"expected a folder that may be written$"):
        fresh_target(tmp_path / "t.csv", False, TABLES)


def test_a_good_target_is_returned_and_not_touched(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    assert fresh_target(tmp_path / "new.csv", False, TABLES) == tmp_path / "new.csv"
    assert fresh_target(str(tmp_path / "old.csv"), True, TABLES) == tmp_path / "old.csv"
    assert [file.name for file in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


# atomically


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "t.csv"
    with atomically(target) as unfinished:
        unfinished.write_text("all of it")
        assert unfinished.parent == tmp_path
        assert not target.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]
    assert target.read_text() == "all of it"


def write_half(target, error):
    with atomically(target) as unfinished:
        unfinished.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_interruption_leaves_what_was_there(tmp_path, error, old):
    target = tmp_path / "t.csv"
    if old:
        target.write_text(old)
    with pytest.raises(error):
        write_half(target, error)
    assert [file.read_text() for file in tmp_path.iterdir()] == [old] * bool(old)


def test_an_error_of_writing_names_the_file_that_was_to_be(tmp_path):
    target = tmp_path / "t.csv"
    unwritable = tmp_path / "none" / "t.csv"
    with pytest.raises(FileNotFoundError) as raised, atomically(unwritable) as unfinished:
        unfinished.write_text("x")
    assert raised.value.filename == str(unwritable)
    with pytest.raises(OSError, match="No space left on device") as raised, atomically(target):
        raise OSError(errno.ENOSPC, "in pyarrow's words, and without a name")
    assert raised.value.filename == str(target)
    with pytest.raises(PermissionError) as raised, atomically(target):
        raise PermissionError(errno.EACCES, "of what is read", "source.jpg")
    assert raised.value.filename == "source.jpg"
    assert list(tmp_path.iterdir()) == []


def test_two_threads_may_write_one_file(tmp_path):
    with atomically(tmp_path / "t") as first:
        first.write_text("first")
        names = []

        def other():
            with atomically(tmp_path / "t") as second:
                names.append(second)
                second.write_text("second")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert names != [first]
    assert (tmp_path / "t").read_text() == "first"


# overwrite


@pytest.mark.parametrize("overwrite", ["no", 0, None, 1])
def test_overwrite_is_true_or_false_and_no_word(tmp_path, monkeypatch, overwrite):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"f\(overwrite=.*expected True or False"), border("f"):
        fresh_target(tmp_path / "t.csv", overwrite, TABLES)


@pytest.mark.parametrize("links", [None, errno.EPERM, errno.EXDEV, errno.EINVAL])
def test_of_two_runs_at_once_one_ends_well_and_the_other_is_refused(tmp_path, monkeypatch, links):
    if links is not None:

        def unable(*_, **__):
            raise OSError(links, "no second name on this file system")

        monkeypatch.setattr(os, "link", unable)
    target = tmp_path / "t"
    ready, told = threading.Barrier(4), []

    def write(number):
        try:
            with atomically(target, overwrite=False) as unfinished:
                unfinished.write_text(number)
                ready.wait(60)
        except FileExistsError as error:
            told.append(str(error))
        else:
            told.append(number)

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = f"{str(target)!r}: expected a new file; another run has written it meanwhile; "
    assert sorted(told, key=len)[1:] == [refused + "overwrite=True or --overwrite replaces it"] * 3
    assert target.read_text() == sorted(told, key=len)[0]
    assert names(tmp_path) == ["t"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch, code):
    def unable(*_):
        raise OSError(code, "no locks on this file system")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", unable)
    for overwrite in (False, True):
        with atomically_together([tmp_path / "a", tmp_path / "b"], overwrite) as files:
            for file in files:
                file.write_text(str(overwrite))
    with pytest.raises(FileExistsError), atomically(tmp_path / "a", overwrite=False):
        pass
    with locked(lock_file(tmp_path, "train"), wait=False) as held:
        assert held
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "True"


def test_a_lock_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "of the disk")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="of the disk"), atomically(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_set_is_not_written_where_one_of_its_names_is_taken(tmp_path):
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError), atomically_together([tmp_path / "a", tmp_path / "b"], False):
        pass
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "old"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_set_is_not_written_where_a_folder_has_one_of_its_names(tmp_path, overwrite):
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(OSError, match="b") as raised,
        atomically_together([tmp_path / "a", tmp_path / "b"], overwrite),
    ):
        pass
    assert raised.value.filename in (str(tmp_path / "b"), None)
    assert names(tmp_path) == ["b"]


# Durable


def test_files_and_folder_are_on_the_disk_before_and_after_the_renaming(tmp_path, monkeypatch):
    steps = []
    synced, replaced = os.fsync, os.replace

    def sync(descriptor):
        steps.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("rename"), replaced(*names)))
    with atomically(tmp_path / "a") as file:
        file.write_text("a")
    assert steps == ["file", "rename", "folder"]
    steps.clear()
    with atomically_together([tmp_path / "a", tmp_path / "b"]) as files:
        for file in files:
            file.write_text("b")
    listed = ["file", "folder"]  # the journal
    assert steps == ["file", "file", *listed, "rename", "rename", "folder", "file"]


# Killed


def write_set(folder, order, kill=0):
    """Write files a and b in another process, killed before its step of the file system of number `kill`."""

    def work():
        with atomically_together([folder / "a", folder / "b"], order == "overwrite") as files:
            for file, word in zip(files, ("new a", "new b"), strict=True):
                file.write_text(word)

    return killed_at(kill, work)


@pytest.mark.parametrize("order", ["new", "overwrite"])
def test_a_set_is_old_or_new_wherever_its_run_is_killed(tmp_path, order):
    """Killed before each step of the file system in turn, until a run is through."""
    old, new = ["old a", "old b"] if order == "overwrite" else [None, None], ["new a", "new b"]
    seen = []
    for kill in range(1, 40):
        folder = tmp_path / str(kill)
        folder.mkdir()
        if order == "overwrite":
            for name, word in zip("ab", old, strict=True):
                (folder / name).write_text(word)
        code = write_set(folder, order, kill)
        found = [
            place.read_text() if place.exists() else None
            for place in current_places(folder / "a", folder / "b")
        ]
        assert found in (old, new), kill
        seen.append(found == new)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        remove_leftovers(folder)
        left = [name for name in ("a", "b") if (folder / name).exists()]
        assert names(folder) == left
        words = [(folder / name).read_text() for name in left]
        assert words in ([], new) if order == "new" else words in (old, new)
        if words != new:
            with atomically_together([folder / "a", folder / "b"], order == "overwrite") as files:
                for file, word in zip(files, new, strict=True):
                    file.write_text(word)
        assert names(folder) == ["a", "b"]
        assert [(folder / name).read_text() for name in "ab"] == new
    assert seen == sorted(seen)  # old, and from one step on new
    assert code == 0
    assert len(seen) > 8


HOLDER = """
import sys, time
from pathlib import Path
from tercet.data.io.atomic import atomically
from tercet.data.io.atomic import lock_file, locked
folder = Path(sys.argv[1])
with locked(lock_file(folder, "train")), atomically(folder / "t") as unfinished:
    print(unfinished.name, flush=True)
    time.sleep(600)
"""


def test_what_a_dead_run_left_is_removed_and_what_a_run_at_work_has_stays(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ours = sorted([process.stdout.readline().strip(), lock_file(tmp_path, "train").name])
        assert names(tmp_path) == ours
        fresh_target(tmp_path / "t.csv", False, TABLES)
        assert names(tmp_path) == ours
        process.kill()
    for foreign in (".t.unfinished", ".t.lock", "t.0123456789abcdef.unfinished"):
        (tmp_path / foreign).write_text("of others")
    fresh_target(tmp_path / "t.csv", False, TABLES)
    assert names(tmp_path) == sorted([".t.unfinished", ".t.lock", "t.0123456789abcdef.unfinished"])


def test_a_file_of_others_that_took_a_name_of_a_dead_set_is_not_taken_back(tmp_path):
    for kill in range(1, 40):
        write_set(tmp_path, "new", kill)
        if (tmp_path / "a").exists() and not (tmp_path / "b").exists():
            break
        remove_leftovers(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("of others")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "of others"


def test_a_journal_that_was_not_written_to_its_end_lists_nothing(tmp_path):
    for name, word in zip("ab", ("old a", "old b"), strict=True):
        (tmp_path / name).write_text(word)
    for kill in range(1, 40):
        write_set(tmp_path, "overwrite", kill)
        if pending_names(tmp_path):
            break
        remove_leftovers(tmp_path)
    content = (tmp_path / JOURNAL).read_bytes()
    assert json.loads(content)["names"] == ["a", "b"]
    for cut in (0, 5, len(content) // 2, len(content) - 1):
        (tmp_path / JOURNAL).write_bytes(content[:cut] + bytes(7))
        assert pending_names(tmp_path) == {}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "old a"


# Planted


def test_a_link_at_the_name_of_the_journal_is_not_followed(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    victim = tmp_path / "victim"
    for present in (True, False):
        if present:
            victim.write_text("precious")
        (folder / JOURNAL).symlink_to(victim)
        with pytest.raises(OSError, match=r"tercet\.journal': expected a file that tercet made"):
            fresh_target(folder / "t.csv", False, TABLES)
        with pytest.raises(OSError, match=r"tercet\.journal': expected a file that tercet made"):
            write_one(folder / "t")
        assert names(folder) == [JOURNAL]
        (folder / JOURNAL).unlink()
        assert victim.exists() == present
        if present:
            assert victim.read_text() == "precious"
            victim.unlink()


def write_one(target):
    with atomically(target) as file:
        file.write_text("x")


@pytest.mark.parametrize("kind", ["second name", "pipe", "folder", "text"])
def test_another_thing_at_the_name_of_the_journal_is_refused_and_stays(tmp_path, kind):
    folder, place = tmp_path / "f", tmp_path / "f" / JOURNAL
    folder.mkdir()
    (tmp_path / "victim").write_text("")
    make = {
        "second name": lambda: os.link(tmp_path / "victim", place),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
        "text": lambda: place.write_text("of others"),
    }
    make[kind]()
    with pytest.raises(OSError, match="expected a file that tercet made there, or none"):
        write_one(folder / "t")
    assert names(folder) == [JOURNAL]
    assert (tmp_path / "victim").read_text() == ""


def test_a_link_at_the_name_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="expected a file that tercet made"), locked(tmp_path / ".lock"):
        pass
    assert names(tmp_path) == [".lock"]


def test_links_among_leftovers_are_not_followed(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "victim").write_text("precious")
    for name in (".t.0123456789abcdef.unfinished", ".train.tercet.lock"):
        (tmp_path / "f" / name).symlink_to(tmp_path / "victim")
    remove_leftovers(tmp_path / "f")
    assert len(names(tmp_path / "f")) == 2
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_temporary_name_cannot_be_foreseen_and_is_made_anew(tmp_path, monkeypatch):
    planted = ["0" * 16, "1" * 16]
    drawn = iter([*planted, "2" * 16])
    monkeypatch.setattr("secrets.token_hex", lambda size: next(drawn))
    for name in planted:
        (tmp_path / f".t.{name}.unfinished").symlink_to(tmp_path / "victim")
    with atomically(tmp_path / "t") as file:
        assert file.name == f".t.{'2' * 16}.unfinished"
        file.write_text("x")
    assert not (tmp_path / "victim").exists()


def test_a_journal_names_files_of_its_folder_alone(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (tmp_path / "victim").write_text("precious")
    (folder / "b").write_text("old")
    for kill in range(1, 40):
        write_set(folder, "overwrite", kill)
        if pending_names(folder):
            break
        remove_leftovers(folder)
    facts = json.loads((folder / JOURNAL).read_text())
    (folder / JOURNAL).write_text(json.dumps(with_checksum({**facts, "names": ["../victim", "b"]})))
    assert pending_names(folder) == {}
    remove_leftovers(folder)
    assert (tmp_path / "victim").read_text() == "precious"


def planted(folder, order, temporary, name):
    """A journal that lists a file of others, with all that can be told of it from outside of this machine."""
    status = os.stat(folder / name) if (folder / name).exists() else os.stat(folder)
    facts = {
        "tercet": "journal",
        "order": order,
        "temporary": [temporary],
        "names": [name],
        "sizes": [status.st_size],
        "times": [status.st_mtime_ns],
        "inodes": [status.st_ino + 1],
    }
    (folder / JOURNAL).write_text(json.dumps(with_checksum(facts)))


UNFINISHED = f"{'a' * 16}.unfinished"


@pytest.mark.parametrize("order", ["new", "replace"])
@pytest.mark.parametrize("temporary", [f".victim.{UNFINISHED}", f".other.{UNFINISHED}"])
def test_a_planted_journal_removes_and_replaces_no_file_of_others(tmp_path, order, temporary):
    (tmp_path / "victim").write_text("precious")
    if "victim" not in temporary:
        (tmp_path / temporary).write_text("of others")
    planted(tmp_path, order, temporary, "victim")
    remove_leftovers(tmp_path)
    assert (tmp_path / "victim").read_text() == "precious"
    assert names(tmp_path) == ["victim"]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "", "..", "d/victim"])
def test_a_planted_journal_with_names_that_no_file_has_lists_nothing(tmp_path, name):
    with suppress(ValueError, OSError):
        planted(tmp_path, "replace", f".{name}.{UNFINISHED}", "x")
    facts = json.loads((tmp_path / JOURNAL).read_text())
    (tmp_path / JOURNAL).write_text(json.dumps(with_checksum({**facts, "names": [name]})))
    assert pending_names(tmp_path) == {}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_of_a_planted_journal_of_any_size_the_start_is_read(tmp_path):
    with open(tmp_path / JOURNAL, "wb") as file:
        file.write(b'{"tercet": "journal"')
        file.truncate(1 << 40)
    assert pending_names(tmp_path) == {}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_the_journal_waits_for_who_holds_it(tmp_path):
    order = []

    def second():
        with journal(tmp_path):
            order.append("second")

    with journal(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert names(tmp_path) == []


# locks


LOCK_HOLDER = """
import sys, time
from pathlib import Path
from tercet.data.io.atomic import locked
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
    words = [sys.executable, "-c", LOCK_HOLDER, str(tmp_path / ".lock")]
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
