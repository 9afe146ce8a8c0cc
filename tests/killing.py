"""Another process that is killed before a step of the file system of one's choice."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from functools import partial

STEPS = ("link", "replace", "unlink", "fsync", "pwrite", "ftruncate", "rmdir")


def killed_at(step: int, work: Callable[[], object]) -> int:
    """The exit code of a process that does `work`: −SIGKILL, or 0 if it was through before so many steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the fork does without
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        kill_before(step)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def kill_before(step: int) -> None:
    """Have this process kill itself before its step of this number; 0 for never."""
    left, counting = [step], threading.Lock()

    def counted(real, *args, **kwargs):
        with counting:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    for name in STEPS:
        setattr(os, name, partial(counted, getattr(os, name)))
