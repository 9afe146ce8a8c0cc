"""Another process that is killed before a step of the file system, or a call of a function, of one's choice.

As a script it is given a command as JSON and kills it at such points; see `test_kills`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.helpers import contents

STEPS = ("link", "replace", "unlink", "fsync", "pwrite", "ftruncate", "mkdir", "rmdir")


def killed_at(step: int, work: Callable[[], object]) -> int:
    """The exit code of a process that does `work`: −SIGKILL, or 0 if it was through before so many steps."""
    return in_another_process(lambda: (kill_before_step(step), work()))


def in_another_process(work: Callable[[], object]) -> int:
    """The exit code of a copy of this process that does `work`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the fork does without
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os._exit(code)


def kill_before_step(step: int) -> None:
    """Have this process kill itself before its step of this number; 0 for never."""
    count = _countdown(step)

    def counted(real, *args, **kwargs):
        count()
        return real(*args, **kwargs)

    for name in STEPS:
        setattr(os, name, partial(counted, getattr(os, name)))


def kill_at_call(number: int) -> list[int]:
    """Have this process kill itself at its call of a function of this number, in any thread; 0 for never.

    Returns:
        The countdown, which goes on below 0.
    """
    left = [number]

    def seen(frame, event, argument):
        if event == "call":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(seen)
    sys.setprofile(seen)
    return left


def _countdown(number: int) -> Callable[[], None]:
    left, lock = [number], threading.Lock()

    def count():
        with lock:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    return count


# The script. This process never uses pyarrow itself, whose threads a fork would not have.


def run(command: list[str]) -> None:
    """A command of the console script, or `catalog` for `Catalog.write`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    if command[0] == "catalog":
        from tercet.data.catalog.scan import scan_folder

        scan_folder(command[1]).write(command[2], overwrite="--overwrite" in command)
        return
    from tercet.cli.app import main
    from tercet.pairwise.budget import override

    sys.argv = ["tercet", *command]
    with override(work_anchors=3, work_columns=4):  # several blocks of a few images
        main()


def count_calls(command: list[str], report: Path) -> None:
    left = kill_at_call(0)
    try:
        run(command)
    finally:
        sys.setprofile(None)
        report.write_text(str(-left[0]))


def readable(folder: Path, targets: list[str], states: list[list[Any]]) -> None:
    """Exit with 1 unless the manifests are together as in one of `states`, or none of them is there."""
    from tercet.data.manifests.manifest import read_manifest

    found = []
    for name in targets:
        try:
            read = read_manifest(folder / name)
        except ValueError as error:
            if "expected an existing file" not in str(error):
                raise
            found.append(None)
        else:
            found.append([read.provenance["parameters"]["seed"], [column.tolist() for column in read[:]]])
    seeds = {one and one[0] for one in found}
    if len(seeds) > 1 or (seeds != {None} and found not in states):
        sys.exit(1)


def state(folder: Path, targets: list[str], report: Path) -> None:
    from tercet.data.manifests.manifest import read_manifest

    read = [read_manifest(folder / name) for name in targets]
    told = [[one.provenance["parameters"]["seed"], [column.tolist() for column in one[:]]] for one in read]
    report.write_text(json.dumps(told))


def campaign(case: dict[str, Any]) -> dict[str, Any]:
    """Kill a command at each step, or at random calls, and run it again.

    Args:
        case: `place`, an empty folder; `before` and `command` with `{}` for the folder to write in;
            `targets`, the manifests; `given`, a folder whose files are there from the beginning; `steps` and
            `calls`, how many kills of either kind at most; `every`, to take each so many steps one alone.

    Returns:
        Counts of kills, of runs that were through, and what failed.
    """
    place, targets = Path(case["place"]), case["targets"]
    work, whole, told, number = place / "work", place / "whole", place / "told", place / "number"

    def command(name: str, folder: Path) -> list[str]:
        return [word.replace("{}", str(folder)) for word in case[name]]

    def fresh(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if case["given"]:
            shutil.copytree(case["given"], folder)
        else:
            folder.mkdir()
        if case["before"]:
            assert in_another_process(lambda: run(command("before", folder))) == 0

    states = []
    fresh(whole)
    if case["before"] and targets:
        assert in_another_process(lambda: state(whole, targets, told)) == 0
        states.append(json.loads(told.read_text()))
    assert in_another_process(lambda: count_calls(command("command", whole), number)) == 0
    if targets:
        assert in_another_process(lambda: state(whole, targets, told)) == 0
        states.append(json.loads(told.read_text()))
    wanted = contents(whole)
    draw = random.Random(case["command"][-1])
    calls = [draw.randrange(1, int(number.read_text())) for _ in range(case["calls"])]
    plans = [(kill_before_step, step) for step in range(1, case["steps"] + 1, case.get("every", 1))]
    plans += [(kill_at_call, call) for call in calls]
    counts: dict[str, Any] = {"killed": 0, "through": 0, "complete": 0, "failed": []}
    stepped = False  # a run was through before so many steps: further ones would be too
    for kill, at in plans:
        if stepped and kill is kill_before_step:
            continue
        fresh(work)
        code = in_another_process(lambda kill=kill, at=at: (kill(at), run(command("command", work))))
        point = f"{kill.__name__}({at})"
        if code == 0:
            counts["through"] += 1
            stepped = True
            continue
        if code != -signal.SIGKILL:
            counts["failed"].append(f"{point}: exit code {code}")
            continue
        counts["killed"] += 1
        if targets and in_another_process(lambda: readable(work, targets, states)):
            counts["failed"].append(f"{point}: a reader sees a mixed set")
        code = in_another_process(lambda: run(command("command", work)))
        if code == 1 and targets and "--overwrite" not in case["command"] and contents(work) == wanted:
            counts["complete"] += 1  # the killed run had given all names, so the second is refused
        elif code:
            counts["failed"].append(f"{point}: the next run ends with {code}")
        found = contents(work)
        if found.keys() != wanted.keys():
            counts["failed"].append(f"{point}: {sorted(found.keys() ^ wanted.keys())}")
        elif found != wanted:
            counts["failed"].append(f"{point}: other bytes")
    return counts


if __name__ == "__main__":
    from tercet.cli import app  # noqa: F401
    from tercet.data.io import journal  # noqa: F401
    from tercet.data.manifests import manifest  # noqa: F401
    from tercet.data.manifests import writing as manifest_writing  # noqa: F401
    from tercet.data.shards import writing as shard_writing  # noqa: F401
    from tercet.offline import embed, hard_negatives, model_files  # noqa: F401

    print(json.dumps(campaign(json.loads(sys.argv[1]))))
