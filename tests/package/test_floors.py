"""The floors, walked: imports go only downwards, heavy libraries are imported where they are used.

`breaches` reads source text alone, so it can be fed a house with one fault and must name it.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "tercet"

# A file or a folder directly under src/tercet is a room. A new one needs a floor here.
FLOORS = {
    "root": ["tercet"],
    "floor 0": ["checks", "promises", "randomness", "tuples"],
    "left wing": [
        *[
            "anchor_parts",
            "anchors",
            "atomic",
            "arrow_layout",
            "augment",
            "blocks",
            "catalog",
            "columns",
            "datasets",
            "dealing",
            "decoding",
            "epochs",
            "facts",
            "folders",
            "formats",
            "handles",
            "journal",
            "locks",
            "npy_file",
            "parquet_files",
            "provenance",
            "image_headers",
            "images",
        ],
        *["manifest", "manifest_reading", "samplers", "shards", "streams", "tables", "triplets", "relevance"],
        *["grouping", "pk_iterator", "pk_stream", "shared_epochs", "triplet_dataset", "visits"],
        *["stream_batches", "stream_lanes", "stream_samples", "stream_shards", "stream_yield"],
        *["layouts", "split_parts", "writing", "shard_sets", "shard_writing", "sharding", "tars"],
        *["roots", "shard_info", "stream_reading", "stream_sources", "tar_members", "tar_scan"],
    ],
    "right wing": [
        *["distances", "hard_negatives", "losses", "memory", "metrics", "miners", "models", "neighbors"],
        *["pairwise", "ranking", "relations", "stats"],
        *[
            "compiling",
            "draws",
            "inputs",
            "mining",
            "pair_miners",
            "selection",
            "squares",
            "sums",
            "weighted_miners",
        ],
        *["closed_forms", "differences", "small_tables", "strips"],
    ],
    "roof": ["distributed", "embed", "gradient_cache", "loader", "reports"],
    "cli": ["cli"],
}
WITH_TORCH = {
    "datasets",
    "decoding",
    "pk_stream",
    "stream_batches",
    "triplet_dataset",
    "visits",
}  # the rooms of the left wing that load it
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
BELOW = {
    "root": [],
    "floor 0": ["floor 0"],
    "left wing": ["floor 0", "left wing"],
    "right wing": ["floor 0", "right wing"],
    "roof": ["floor 0", "left wing", "right wing", "roof"],
    "cli": ["floor 0", "left wing", "right wing", "roof", "cli"],
}

# Third-party libraries: on which floors (or in which rooms) each may be imported at module level.
ALL = ["floor 0", "left wing", "right wing", "roof", "cli"]
LIBRARIES = {
    "numpy": ALL,
    "jaxtyping": ALL,
    "torch": ["right wing", "roof", *sorted(WITH_TORCH)],
    "typer": ["cli"],
    "rich": ["cli"],
    **dict.fromkeys(("albumentations", "cv2", "faiss", "lightning", "matplotlib", "pandas"), ()),
    **dict.fromkeys(("pyarrow", "ray", "sklearn", "webdataset"), ()),
}
MOST_LINES = 400


def module_of(path: str) -> str:
    """`losses/triplet.py` as `tercet.losses.triplet`, `losses/__init__.py` as `tercet.losses`."""
    return ".".join(["tercet", *path.removesuffix(".py").split("/")]).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`tercet.losses.triplet` as `losses`; the package itself as `tercet`."""
    return module.split(".")[min(1, module.count("."))]


def imports(source: str, modules: set[str]) -> Iterator[tuple[int, str, str]]:
    """(line, module, when) of every import: `loaded` with the file, `called` in a function, `typed` only."""

    def walk(node: ast.AST, when: str) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when = "called"
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for child in node.body for found in walk(child, "typed"))
            yield from (found for child in node.orelse for found in walk(child, when))
            return
        elif isinstance(node, ast.Import):
            for alias in node.names:
                # Without `as` the name that is bound is the root's.
                root = alias.name.startswith("tercet.") and not alias.asname
                yield node.lineno, "tercet" if root else alias.name, when
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if base != "tercet" and inner in modules else base, when
        for child in ast.iter_child_nodes(node):
            yield from walk(child, when)

    return walk(ast.parse(source), "loaded")


def fault(module: str, target: str, when: str) -> str:
    """What is wrong with one import of `target` in `module`; empty where nothing is."""
    room, other = room_of(module), room_of(target)
    floor, library = FLOOR[room], target.split(".")[0]
    if target.startswith("."):
        return "relative import; write the name in full"
    if library == "tercet":
        if other == "tercet" and (floor, when) == ("root", "typed"):
            return ""
        if other == "tercet":
            return "imports the package root; import from the module that has the name"
        if floor == "root":
            return "" if when == "typed" else f"loads {other} with the package; make the name lazy"
        if FLOOR.get(other) not in BELOW[floor]:
            return f"{floor} imports {other} ({FLOOR.get(other, 'no floor')})"
        if {room, other} == {"miners", "losses"}:
            return "miners and losses import each other; they meet in Triplets and Pairs"
        if floor == "left wing" and other in WITH_TORCH and room not in WITH_TORCH and when == "loaded":
            return f"loads {other}, and torch with it; import it where it is used"
    elif library not in sys.stdlib_module_names:
        if library not in LIBRARIES:
            return f"imports {library}, which is not in the table of libraries"
        if when == "loaded" and not {floor, room} & set(LIBRARIES[library]):
            return f"imports {library} at module level; import it where it is used"
    return ""


def breaches(sources: dict[str, str]) -> list[str]:
    """Every breach of the floors in a house of sources, a sentence each.

    Args:
        sources: the text of each file by its path under src/tercet, `losses/triplet.py`.
    """
    found, graph = [], {}
    modules = {module_of(path) for path in sources}
    for path, source in sources.items():
        module = module_of(path)
        if (lines := len(source.splitlines())) > MOST_LINES:
            found.append(f"{path}: {lines} lines; {MOST_LINES} at most")
        if room_of(module) not in FLOOR:
            found.append(f"{path}: no room of this name; give it a floor")
            continue
        uses = list(imports(source, modules))
        graph[module] = {target for _, target, _ in uses if target in modules and module != "tercet"}
        said = ((line, fault(module, target, when)) for line, target, when in uses)
        found += dict.fromkeys(f"{path}:{line}: {text}" for line, text in said if text)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import cycle: " + " → ".join(reversed(error.args[1])))
    return found


def test_the_floors_hold():
    sources = {path.relative_to(SRC).as_posix(): path.read_text("utf-8") for path in SRC.rglob("*.py")}
    assert "checks.py" in sources
    assert not breaches(sources), "\n".join(breaches(sources))


# The checker itself: a house without fault, and one fault at a time brought into it.


def lines(*texts: str) -> str:
    return "\n".join(texts) + "\n"


SOUND = {
    "__init__.py": lines(
        "from typing import TYPE_CHECKING",
        "if TYPE_CHECKING:",
        "    from tercet.miners import BatchHard as BatchHard",
    ),
    "checks.py": lines("from __future__ import annotations", "import math", "import numpy as np"),
    "tuples.py": lines("from jaxtyping import Int", "from tercet.checks import whole"),
    "catalog.py": lines(
        "from tercet.tuples import Triplets",
        "def read():",
        "    import pyarrow.parquet",
        "    import torch",
    ),
    "triplets/__init__.py": "",
    "triplets/random.py": lines("from tercet.catalog import Catalog", "from tercet.triplets import table"),
    "triplets/table.py": lines("import tercet.checks as checks"),
    "datasets.py": lines(
        "import torch", "from torch.utils.data import Dataset", "from tercet.catalog import Catalog"
    ),
    "streams.py": lines(
        "class PKStream:",
        "    async def __aiter__(self):",
        "        import webdataset",
        "        from tercet.datasets import ImageDataset",
    ),
    "miners.py": lines("import torch", "from tercet.tuples import Triplets"),
    "losses/__init__.py": "",
    "losses/triplet.py": lines("from torch import nn", "from tercet.losses.pair import Contrastive"),
    "losses/pair.py": lines("from tercet.checks import whole"),
    "loader.py": lines("from tercet.datasets import ImageDataset", "from tercet.miners import BatchHard"),
    "cli/__init__.py": lines("import typer", "from tercet.loader import MiningLoader"),
    "cli/embed.py": lines("from rich.progress import Progress"),
}
FAULTS = [
    ("checks.py", "from tercet.catalog import scan", "1: floor 0 imports catalog (left wing)"),
    ("checks.py", "def f():\n    from tercet.miners import X", "2: floor 0 imports miners (right wing)"),
    ("catalog.py", "from tercet.miners import X", "1: left wing imports miners (right wing)"),
    ("catalog.py", "from tercet.loader import X", "1: left wing imports loader (roof)"),
    ("triplets/random.py", "from tercet.losses.pair import X", "1: left wing imports losses (right wing)"),
    ("miners.py", "from tercet.catalog import X", "1: right wing imports catalog (left wing)"),
    ("losses/pair.py", "from tercet.loader import X", "1: right wing imports loader (roof)"),
    ("loader.py", "from tercet.cli import X", "1: roof imports cli (cli)"),
    ("catalog.py", "from tercet.attic import X", "1: left wing imports attic (no floor)"),
    (
        "catalog.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tercet.miners import X",
        "3: left wing imports miners (right wing)",
    ),
    (
        "miners.py",
        "from tercet.losses.pair import X",
        "1: miners and losses import each other; they meet in Triplets and Pairs",
    ),
    (
        "losses/pair.py",
        "from tercet.miners import X",
        "1: miners and losses import each other; they meet in Triplets and Pairs",
    ),
    *[
        (path, text, "1: imports the package root; import from the module that has the name")
        for path in ("catalog.py", "cli/embed.py")
        for text in (
            "import tercet",
            "from tercet import Catalog",
            "from tercet import tuples",
            "import tercet.tuples",
        )
    ],
    ("losses/pair.py", "from . import triplet", "1: relative import; write the name in full"),
    ("losses/pair.py", "from ..checks import whole", "1: relative import; write the name in full"),
    ("__init__.py", "from tercet.catalog import X", "1: loads catalog with the package; make the name lazy"),
    ("__init__.py", "import numpy", "1: imports numpy at module level; import it where it is used"),
    (
        "streams.py",
        "from tercet.datasets import X",
        "1: loads datasets, and torch with it; import it where it is used",
    ),
    *[
        (path, text, f"1: imports {library} at module level; import it where it is used")
        for path, text, library in [
            ("catalog.py", "import torch", "torch"),
            ("checks.py", "from torch import nn", "torch"),
            ("cli/embed.py", "import torch.nn as nn", "torch"),
            ("catalog.py", "from rich import print", "rich"),
            ("loader.py", "import typer", "typer"),
            ("datasets.py", "import cv2", "cv2"),
            ("streams.py", "import webdataset as wds", "webdataset"),
            ("augment.py", "from albumentations import Compose", "albumentations"),
            ("metrics.py", "from sklearn.metrics import f1_score", "sklearn"),
            ("neighbors.py", "import faiss", "faiss"),
            ("embed.py", "import ray", "ray"),
            ("reports.py", "import matplotlib.pyplot", "matplotlib"),
            ("tables.py", "import pyarrow.csv", "pyarrow"),
            ("tables.py", "import pandas", "pandas"),
        ]
    ],
    (
        "stats.py",
        "try:\n    import sklearn\nexcept ImportError:\n    pass",
        "2: imports sklearn at module level; import it where it is used",
    ),
    (
        "stats.py",
        "class A:\n    import sklearn",
        "2: imports sklearn at module level; import it where it is used",
    ),
    (
        "stats.py",
        "if True:\n    import sklearn",
        "2: imports sklearn at module level; import it where it is used",
    ),
    (
        "stats.py",
        "def f():\n    import torchvision",
        "2: imports torchvision, which is not in the table of libraries",
    ),
]


def test_a_sound_house_has_no_breach():
    assert breaches(SOUND) == []


@pytest.mark.parametrize(("path", "text", "said"), FAULTS)
def test_every_fault_is_named(path, text, said):
    # Upwards is the way that most often closes a cycle; that sentence has a test of its own.
    found = [text for text in breaches({**SOUND, path: text}) if not text.startswith("import cycle")]
    assert found == [f"{path}:{said}"]


@pytest.mark.parametrize("path", ["attic.py", "attic/__init__.py", "attic/box.py", "utils.py"])
def test_a_module_without_a_room_is_named(path):
    assert breaches({**SOUND, path: ""}) == [f"{path}: no room of this name; give it a floor"]


def test_a_long_file_is_named():
    assert breaches({**SOUND, "stats.py": "#\n" * 400}) == []
    assert breaches({**SOUND, "stats.py": "#\n" * 401}) == ["stats.py: 401 lines; 400 at most"]


def test_an_import_cycle_is_named():
    house = {
        **SOUND,
        "pairwise.py": "from tercet.distances import X\n",
        "distances.py": "from tercet.relations import X\n",
        "relations.py": "def f():\n    from tercet.pairwise import X\n",
    }
    (said,) = breaches(house)
    names = said.removeprefix("import cycle: ").split(" → ")
    assert set(pairwise(names)) == {
        ("tercet.pairwise", "tercet.distances"),
        ("tercet.distances", "tercet.relations"),
        ("tercet.relations", "tercet.pairwise"),
    }


# What a fresh process has loaded.


def loaded(*modules: str) -> set[str]:
    """The libraries of the table that a process holds after it has imported `modules`."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & set(LIBRARIES)


def test_the_package_loads_no_library_and_the_catalog_no_torch():
    assert loaded("tercet") == set()
    assert loaded("tercet.catalog") <= {"numpy", "jaxtyping"}


def test_floor_0_and_the_left_wing_load_numpy_alone():
    rooms = [room for floor in ("floor 0", "left wing") for room in FLOORS[floor] if room not in WITH_TORCH]
    paths = [
        path for path in SRC.rglob("*.py") if path.relative_to(SRC).parts[0].removesuffix(".py") in rooms
    ]
    assert loaded(*(module_of(path.relative_to(SRC).as_posix()) for path in paths)) <= {"numpy", "jaxtyping"}


def test_the_probe_of_a_fresh_process_sees_torch():
    assert "torch" in loaded("torch")
