"""`describe` over time: to a file, a TensorBoard, a table or a function, with alarms that say what to do."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from tercet.core.checks import Refusal, as_bool, as_float, as_int, border, refusal, shown
from tercet.core.indices import References, Triplets
from tercet.data.io.checked_json import checksum_fits, with_checksum
from tercet.metrics.mining_stats import described
from tercet.pairwise.distances import Distance, as_distance
from tercet.pairwise.inputs import lack_of_data
from tercet.pairwise.torch_modes import widest_float
from tercet.training.monitor_alarms import Alarm, Alarms
from tercet.training.monitor_csv import CsvLog
from tercet.training.monitor_table import LiveTable

__all__ = ["Monitor"]

_OF_MINED = ("mined", "anchors", "d_ap", "d_an", "active")
_COLUMNS = ("step", "loss", "rows", "classes", *_OF_MINED, "collapse", "norm")


class Monitor:
    """What mining does over time, every n steps, to a file, a writer or a function; warns where a run is ill.

    The figures of a step are those of `describe`, and `step`, counted from 0, `loss`, and `norm`, the mean
    ‖x‖ of the embeddings. What is not known is NaN: `loss` where none was passed, and what is said of mined
    tuples where there are none. Steps between are counted only: nothing of them is looked at, and an
    accelerator is not read.

    An alarm is a `Monitor.Alarm`, a `UserWarning` that names the figure, its threshold and a remedy. Each
    kind is given once, and again only after a logged step without it:

    - collapse: `collapse` is above its threshold. Embeddings far from the origin have a high one without
      having collapsed: pass `collapse=None` for them.
    - inactive: nothing was mined, or `active` is below its threshold. It is not judged while `collapse` is
      ill.
    - norm: `norm` is more than `growth` times what it was at the first step, or that many times less.

    `warnings.simplefilter("error", tercet.Monitor.Alarm)` stops a run at the first alarm.

    Under torch.distributed the first rank alone describes its batches; the others count steps.

    Args:
        to: where figures go: a path that ends in .csv; an object with `add_scalar(name, value, step)`, as
            TensorBoard's `SummaryWriter`, which gets `mining/active`, …; a callable of a dict; None for
            alarms alone. A line of the .csv is written whole, so a killed run leaves whole lines.
        every: n; steps 0, n, 2n, … are logged.
        margin: m, the head's margin, in units of the distance; with None `active` is NaN.
        distance: a `Distance` or its name; take the miner's.
        collapse: the threshold of `collapse`, from 0 to 1; None for no such alarm.
        active: the threshold of `active`, from 0 to 1; None for no such alarm.
        growth: above 1; the factor by which `norm` may change. None for no such alarm.
        patience: at so many logged steps in a row collapse and inactive are given; norm is given at once.
        table: show the last steps in the terminal, as a table that is drawn anew in its place; True, or a
            `rich.console.Console` to show it on.
        overwrite: replace a .csv that exists, unless the run was resumed.

    Attributes:
        step: how many steps there were.
        alarms: the kinds of the alarms in force, "collapse", "inactive" or "norm".

    Raises:
        ValueError: an argument of another kind or out of range; at the first step, a .csv that exists.

    Example:
        >>> import tercet
        >>> monitor = tercet.Monitor(lambda figures: print(figures["step"], figures["mined"]), every=2)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
        >>> miner, head = tercet.BatchHard(), tercet.TripletMargin(margin=0.2)
        >>> for _ in range(4):
        ...     mined = miner(x, y)
        ...     loss = head(x, y, mined)
        ...     _ = monitor(x, y, mined, loss=loss)
        0 2.0
        2 2.0
    """

    Alarm = Alarm

    def __init__(
        self,
        to: Any = None,
        *,
        every: int = 10,
        margin: float | None = 0.2,
        distance: Distance | str = "euclidean",
        collapse: float | None = 0.95,
        active: float | None = 0.01,
        growth: float | None = 100.0,
        patience: int = 3,
        table: Any = False,
        overwrite: bool = False,
    ) -> None:
        self.step = 0
        self._every = as_int("Monitor", "every", every, 1)
        self._margin = math.nan if margin is None else as_float("Monitor", "margin", margin)
        self._distance = as_distance("Monitor", distance)
        self._alarms = Alarms(
            None if collapse is None else as_float("Monitor", "collapse", collapse, 0, 1),
            None if active is None else as_float("Monitor", "active", active, 0, 1),
            None if growth is None else as_float("Monitor", "growth", growth, above=1),
            as_int("Monitor", "patience", patience, 1),
        )
        overwrite = as_bool("Monitor", "overwrite", overwrite)
        self._table = _table(table)
        self._file: CsvLog | None = None
        self._write: Callable[[dict[str, float]], Any] = _nowhere
        if isinstance(to, (str, os.PathLike)):
            with border("Monitor", "to"):
                self._file = CsvLog(to, _COLUMNS, overwrite)
            self._write = self._file.append
        elif callable(getattr(to, "add_scalar", None)):
            self._write = _Scalars(to)
        elif callable(to):
            self._write = to
        elif to is not None:
            expected = "a path that ends in .csv, an object with add_scalar, a callable, or None"
            raise refusal("Monitor", "to", to, expected)

    def __call__(
        self,
        embeddings: Shaped[Tensor, "n d"],
        labels: Shaped[Tensor, "n *c"],
        mined: Any = None,
        *,
        loss: Any = None,
        ref: References | None = None,
    ) -> dict[str, float]:
        """Count a step, and log it if it is its turn.

        Args:
            embeddings: [n, d] floats.
            labels: [n] integers or bools, or [n, c], as for `describe`.
            mined: `Triplets` or `Pairs`, or any three or four index tensors like them; None where the head
                took none.
            loss: a number, or a tensor of one.
            ref: the columns that positives and negatives are rows of; None for the batch itself.

        Returns:
            The figures by name; {} where the step is not logged.

        Raises:
            ValueError: as `describe`, and a loss that is no number.
            OSError: the .csv cannot be written.
        """
        step, self.step = self.step, self.step + 1
        if step % self._every or not _is_first_rank():
            return {}
        number = _one_number(loss)
        figures: dict[str, float] = {
            "step": step,
            "loss": math.nan,
            **self._described(embeddings, labels, mined, ref),
        }
        points = embeddings.detach().to(widest_float(embeddings.device))
        read = [points.norm(dim=1).mean(), *([number.to(points)] if isinstance(number, Tensor) else [])]
        figures["norm"], *told = torch.stack(read).tolist()
        figures["loss"] = told[0] if isinstance(number, Tensor) else number
        sentences = self._alarms.judged(figures)
        with border("Monitor", "to"):
            self._write(dict(figures))
        if self._table is not None:
            changing = {name: value for name, value in figures.items() if name not in ("rows", "classes")}
            self._table.add(changing, self.alarms)
        for sentence in sentences:
            warnings.warn(sentence, Alarm, stacklevel=2)
        return figures

    @property
    def alarms(self) -> list[str]:
        """The kinds of the alarms in force."""
        return self._alarms.in_force()

    def state_dict(self) -> dict[str, Any]:
        """Where the monitor stands: the step, the first norm, and how long each figure has been ill.

        Returns:
            A dict that `json` and `torch.save` can write.
        """
        return with_checksum(
            {"step": self.step, "first": self._alarms.first, "streaks": dict(self._alarms.streaks)}
        )

    def load_state_dict(self, state: Any) -> None:
        """Go on where a state was saved. Lines of the .csv of later steps are removed: these come again.

        Args:
            state: from `state_dict`.

        Raises:
            ValueError: not a state, or one that was changed; a .csv that this monitor did not write.
        """
        with border("Monitor.load_state_dict", "state"):
            is_state = isinstance(state, dict) and state.keys() == self.state_dict().keys()
            if not is_state or not checksum_fits(state):
                raise Refusal(None, type(state).__name__, "what state_dict() gave, unchanged")
            if self._file is not None and _is_first_rank():
                self._file.resume(state["step"])
        self.step = state["step"]
        self._alarms.first, self._alarms.streaks = state["first"], dict(state["streaks"])

    def close(self) -> None:
        """Leave the live table as it is. The end of the program does so too."""
        if self._table is not None:
            self._table.close()

    def callback(self) -> Any:
        """A Lightning callback, for `Trainer(callbacks=[...])`, that calls the monitor after each batch.

        `training_step` returns a dict with `loss`, `embeddings`, `labels` and `mined`. Figures go to the
        trainer's loggers too, and Lightning's checkpoints hold the state.

        Returns:
            A `lightning.pytorch.Callback`.

        Raises:
            ImportError: lightning is not installed.
        """
        from tercet.training.monitor_lightning import monitor_callback

        return monitor_callback(self)

    def _described(self, embeddings: Any, labels: Any, mined: Any, ref: Any) -> Mapping[str, float]:
        """The figures of `describe`; NaN for those of mined tuples where there are none."""
        given = mined
        if mined is None:
            nothing = torch.zeros(0, dtype=torch.int64)
            given = Triplets(nothing, nothing, nothing)
        figures = described("Monitor", embeddings, labels, given, self._margin, self._distance, ref)
        return figures if mined is not None else figures | dict.fromkeys(_OF_MINED, math.nan)


class _Scalars:
    """Figures for a TensorBoard's writer; what is NaN is left out.

    Args:
        writer: an object with `add_scalar(name, value, step)`.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if name != "step" and not math.isnan(value):
                self._writer.add_scalar(f"mining/{name}", value, figures["step"])


def _nowhere(figures: dict[str, float]) -> None:
    """Alarms alone."""


def _table(table: Any) -> LiveTable | None:
    """The live table that was asked for."""
    from rich.console import Console

    if isinstance(table, Console):
        return LiveTable(table)
    return LiveTable() if as_bool("Monitor", "table", table) else None


def _one_number(loss: Any) -> Tensor | float:
    """A loss as a tensor [], not read yet, or as a float: NaN for None."""
    if loss is None:
        return math.nan
    if isinstance(loss, Tensor):
        whole = not lack_of_data(loss) and not loss.is_complex() and loss.dtype != torch.bool
        if whole and loss.numel() == 1:
            return loss.detach().reshape(())
    elif not isinstance(loss, (str, bytes, bool, complex)):
        try:
            return float(loss)
        except Exception:  # not a number
            pass
    raise refusal("Monitor", "loss", shown(loss), "a number, or a tensor of one")


def _is_first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
