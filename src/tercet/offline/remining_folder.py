"""The folder of re-mining: rounds, weights that wait to be embedded, and the drift log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tercet.data.io.atomic import atomically

__all__ = ["RoundFolder"]

_ENDINGS = {"round": ".npz", "manifest": ".parquet", "table": ".table.npy", "weights": ".weights.pt"}


class RoundFolder:
    """Files of rounds by their number. A round is there once its .npz file is, which is written last.

    Args:
        path: an existing folder.

    Example:
        >>> folder = RoundFolder(Path("."))
        >>> folder.file(3, "round").name, folder.numbers("round")
        ('000003.npz', [])
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, number: int, kind: str) -> Path:
        """The file of a round: its "round", "manifest", "table" or "weights"."""
        return self.path / f"{number:06}{_ENDINGS[kind]}"

    def numbers(self, kind: str) -> list[int]:
        """The numbers of the rounds that have a file of a kind, rising."""
        ending = re.escape(_ENDINGS[kind])
        found = (re.fullmatch(rf"(\d{{6,}}){ending}", file.name) for file in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def remove(self, first: int, stop: int | None = None, *kinds: str) -> None:
        """Remove the files of rounds from `first` to `stop` − 1, of some kinds; by default of all."""
        for kind in kinds or _ENDINGS:
            for number in self.numbers(kind):
                if first <= number and (stop is None or number < stop):
                    self.file(number, kind).unlink(missing_ok=True)

    @property
    def log(self) -> Path:
        """The drift log."""
        return self.path / "drift.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the drift log."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Replace the drift log, a JSON object a line."""
        with atomically(self.log) as unfinished:
            unfinished.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
