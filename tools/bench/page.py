"""The results page: one section for each command, replaced where it stands, and what machine it was."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = [
    "tercet",
    "pytorch-metric-learning",
    "sentence-transformers",
    "open-metric-learning",
    "faiss-cpu",
    "webdataset",
    "torch",
    "numpy",
    "pyarrow",
]


def machine(device: str = "cpu") -> str:
    """The processor, or the card, with its memory."""
    if device != "cpu":
        card = torch.cuda.get_device_properties(0)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def versions() -> str:
    """The libraries that the figures are about."""
    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def told(device: str = "cpu") -> str:
    """Machine, versions and day, as lines of Markdown."""
    return f"{machine(device)}. {versions()}. {time.strftime('%Y-%m-%d')}."


def short(value: float | None, unit: str = "") -> str:
    """Three significant digits at most."""
    if value is None:
        return "–"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 2)}f}{unit}"


def ratio(above: float | None, below: float | None) -> float | None:
    """One figure as a share of another, where there are both."""
    return None if above is None or below is None or below <= 0 else above / below


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` stand to the right."""
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def write_section(page: Path, name: str, text: str) -> None:
    """Put the text between the marks of its section, which are added at the end of the page if need be."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text() if page.exists() else ""
    if start not in old:
        old = f"{old.rstrip()}\n\n{start}\n{end}\n".lstrip()
    before, rest = old.split(start, 1)
    page.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")
