"""Between a training loop and the process beside it: weights one way, rounds the other, in one folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tercet.core.checks import Refusal, escaped
from tercet.data.io.atomic import atomically
from tercet.offline.remining_folder import RoundFolder

__all__ = [
    "await_round",
    "from_first_rank",
    "is_first_rank",
    "load_weights",
    "next_to_mine",
    "with_patience",
    "write_weights",
]

POLL = 0.2  # seconds between two looks at the folder


def write_weights(folder: RoundFolder, number: int, model: Any) -> None:
    """Write the weights that a round is to be mined with.

    Args:
        folder: where to.
        number: of the round.
        model: a module.
    """
    with atomically(folder.file(number, "weights")) as unfinished:
        torch.save(model.state_dict(), unfinished)


def load_weights(folder: RoundFolder, number: int, model: Any) -> None:
    """Give a model the weights that a round is to be mined with.

    Args:
        folder: where from.
        number: of the round.
        model: a module like the one of the training process.

    Raises:
        ValueError: the weights are of another model.
    """
    weights = torch.load(folder.file(number, "weights"), map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = str(error).partition("\n")[2].strip()
        raise Refusal("model", type(model).__name__, "the model of the training process", said) from error


def await_round(folder: RoundFolder, number: int, patience: float) -> None:
    """Wait until a round is complete.

    Args:
        folder: where it will be.
        number: of the round.
        patience: seconds.

    Raises:
        TimeoutError: it is not there by then.
    """
    with_patience(
        lambda: folder.file(number, "round").exists() or None,
        patience,
        f"no round {number} in {folder.path}; is a process there that calls serve()?",
    )


def next_to_mine(
    folder: RoundFolder, newest_first: bool, last: int | None, patience: float
) -> tuple[int, int] | None:
    """Wait for weights: the number of the round to mine, and of the newest one that is there, −1 for none.

    Args:
        folder: where they appear.
        newest_first: take the newest weights and leave out older ones, save for the first round.
        last: the round that nothing has to be mined behind; None for none.
        patience: seconds.

    Returns:
        The two numbers; None once the round `last`, or a later one, is there.

    Raises:
        TimeoutError: there are no weights by then.
    """

    def found() -> tuple[int, int] | str | None:
        newest = max(folder.numbers("round"), default=-1)
        if last is not None and newest >= last:
            return "done"
        waiting = [number for number in folder.numbers("weights") if number > newest]
        if not waiting:
            return None
        return (waiting[-1] if newest_first and newest >= 0 else waiting[0]), newest

    answer = with_patience(found, patience, f"no weights to mine with in {folder.path}; does training run?")
    return None if answer == "done" else answer


def with_patience(look: Callable[[], Any], patience: float, said: str) -> Any:
    """What a look at the folder gives, once it gives something.

    Args:
        look: gives None as long as there is nothing.
        patience: seconds.
        said: the text of the error.

    Raises:
        TimeoutError: it is None for so long.

    Example:
        >>> with_patience(lambda: None, 0.0, "no round 3")
        Traceback (most recent call last):
        TimeoutError: Remining(patience=0): no round 3
    """
    end = time.monotonic() + patience
    while (found := look()) is None:
        if time.monotonic() >= end:
            raise TimeoutError(escaped(f"Remining(patience={patience:g}): {said}"))
        time.sleep(POLL)
    return found


def is_first_rank() -> bool:
    """Whether this process is the first of those that train together, or alone."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def from_first_rank(function: Callable[[], Any]) -> Any:
    """What a function gives on the first rank, on all ranks; or what it raises there.

    Args:
        function: called on the first rank alone.

    Example:
        >>> from_first_rank(lambda: 3)
        3
    """
    if not (dist.is_available() and dist.is_initialized()):
        return function()
    said: list[Any] = [None, None]
    if is_first_rank():
        try:
            said[0] = function()
        except Exception as error:
            said[1] = error
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return said[0]
