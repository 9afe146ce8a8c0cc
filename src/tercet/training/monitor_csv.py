"""A CSV file that grows by a line a step, survives a kill with whole lines, and goes on after a resume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tercet.core.checks import Refusal, as_path
from tercet.data.io.atomic import atomically

__all__ = ["CsvLog"]


class CsvLog:
    """Lines of figures, each appended by one write to the end of the file.

    Args:
        path: the file, its name ending in .csv, in a folder that exists.
        columns: the names of the figures; the first is `step`, a whole number.
        overwrite: replace a file that is there already, at the first line.

    Raises:
        ValueError: another suffix, or no such folder; at the first line, a file that is there already,
            without `overwrite` or `resume`.

    Example:
        >>> log = CsvLog("log.csv", ["step", "loss"], overwrite=True)
        >>> log.append({"step": 0, "loss": 0.5}); log.append({"step": 10, "loss": 0.25})
        >>> log.resume(10)
        >>> with open("log.csv") as file:
        ...     print(file.read(), end="")
        step,loss
        0,0.5
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str], overwrite: bool) -> None:
        self._path = as_path(None, "to", path, new=True)
        if self._path.suffix != ".csv" or self._path.is_dir():
            raise Refusal("to", str(path), "a file, its name ending in .csv")
        if not self._path.parent.is_dir():
            raise Refusal(
                "to", str(path), "an existing folder to write in", f"make {self._path.parent} first"
            )
        self._columns, self._overwrite = list(columns), overwrite
        self._begun = False

    def append(self, figures: Mapping[str, float]) -> None:
        """Write a line.

        Args:
            figures: a number for each column.
        """
        line = self._line([repr(figures[name]) for name in self._columns])
        if not self._begun:
            if self._path.exists() and not self._overwrite:
                hint = "overwrite=True replaces it, load_state_dict(state) goes on with it"
                raise Refusal("to", str(self._path), "a new file; it exists", hint)
            self._write(self._line(self._columns) + line)
            return
        with self._path.open("ab", buffering=0) as file:
            file.write(line)

    def resume(self, step: int) -> None:
        """Go on with the file before a step: later lines, and a last one without its end, are removed.

        Args:
            step: the first step that is logged anew.

        Raises:
            ValueError: a file with other columns, or a line that is none of this file.
        """
        if not self._path.exists():
            return
        header, *lines = self._path.read_bytes().split(b"\n")[:-1] or [b""]
        if header + b"\n" != self._line(self._columns):
            raise Refusal("to", str(self._path), f"the columns {', '.join(self._columns)}")
        kept = [header]
        for number, line in enumerate(lines, 2):
            first, *rest = line.split(b",")
            if len(rest) != len(self._columns) - 1 or not first.isdigit():
                raise Refusal("to", f"{self._path}, line {number}", "a step and its figures", "mend the file")
            if int(first) < step:
                kept.append(line)
        self._write(b"\n".join(kept) + b"\n")

    def _line(self, fields: Sequence[str]) -> bytes:
        return (",".join(fields) + "\n").encode()

    def _write(self, content: bytes) -> None:
        with atomically(self._path) as unfinished:
            unfinished.write_bytes(content)
        self._begun = True
