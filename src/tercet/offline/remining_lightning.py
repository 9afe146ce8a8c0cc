"""The Lightning callback of `Remining`: it logs each round, and sees to it that the batches are its."""

from __future__ import annotations

from typing import Any

from tercet.core.checks import refusal

__all__ = ["drift_callback"]

_LOGGED = ("changed", "score_change", "stale", "replaced", "triplets", "seconds")


def drift_callback(remining: Any) -> Any:
    """A callback that logs the drift of each round at the step from which it is trained on.

    Args:
        remining: the `Remining` whose batches the trainer takes.

    Returns:
        A `lightning.pytorch.Callback`; `remining/changed`, `remining/stale`, … are what it logs.

    Raises:
        ImportError: lightning is not installed.
        ValueError: at the start of training, where the trainer's loader is another one.

    Example:
        >>> drift_callback(None).__class__.__name__
        'ReminingCallback'
    """
    from lightning.pytorch import Callback

    class ReminingCallback(Callback):
        """Logs the drift of each round."""

        def __init__(self) -> None:
            self._logged = -1  # the last round

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            loader = trainer.train_dataloader
            if getattr(loader, "remining", None) is not remining:
                hint = "trainer.fit(module, remining.batches(loader))"
                raise refusal("Remining.callback", "loader", type(loader).__name__, "its own batches", hint)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            row = remining.drift[-1]
            if row["round"] > self._logged:
                self._logged = row["round"]
                facts = {f"remining/{name}": row[name] for name in _LOGGED if row[name] is not None}
                for logger in trainer.loggers:
                    logger.log_metrics(facts, step=trainer.global_step)

    return ReminingCallback()
