"""The Lightning callback of `Monitor`: it hands on what a training step returns, and logs the figures."""

from __future__ import annotations

from typing import Any

from tercet.core.checks import refusal, with_length

__all__ = ["monitor_callback"]


def monitor_callback(monitor: Any) -> Any:
    """A callback that calls a monitor after each training batch, and logs its figures.

    Args:
        monitor: the `Monitor`; its state is kept in Lightning's checkpoints.

    Returns:
        A `lightning.pytorch.Callback`; the trainer's loggers get `mining/active`, `mining/collapse`, …

    Raises:
        ImportError: lightning is not installed.
        ValueError: while training, where `training_step` does not return a dict with loss, embeddings, labels
            and mined.

    Example:
        >>> monitor_callback(None).__class__.__name__
        'MonitorCallback'
    """
    from lightning.pytorch import Callback

    class MonitorCallback(Callback):
        """Calls the monitor after each batch."""

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            needed = ("embeddings", "labels", "mined")
            if not isinstance(outputs, dict) or not outputs.keys() >= set(needed):
                got = sorted(outputs) if isinstance(outputs, dict) else with_length(outputs)
                hint = "return them, so that the monitor sees them"
                raise refusal("Monitor.callback", "training_step", got, f"a dict with {needed}", hint)
            figures = monitor(*(outputs[name] for name in needed), loss=outputs.get("loss"))
            scalars = {f"mining/{name}": value for name, value in figures.items() if value == value}
            scalars.pop("mining/step", None)
            for logger in trainer.loggers if scalars else ():
                logger.log_metrics(scalars, step=trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            monitor.close()

        def state_dict(self) -> dict[str, Any]:
            return monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            monitor.load_state_dict(state_dict)

    return MonitorCallback()
