"""A bound on the time and the memory of a call."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

SECONDS, BYTES = 20, 2 << 30  # a call that takes more is a fault


class TookLong(BaseException):
    """A call was stopped."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What runs here may take so long, and so much memory."""

    def stop(number: int, frame: Any) -> None:
        raise TookLong

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
