"""The laws of the layout: who may import whom, and where heavy libraries may be loaded.

The order is read from docs/architecture.md. `breaches` reads source text alone, so it can be fed a house with
one fault and must name it.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import import_graph as graph  # noqa: E402

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROOMS = graph.order(PAGE)
SOURCES = graph.house()


def test_the_order_is_that_of_the_eighteen_folders():
    inner = ["io", "catalog", "triplets", "manifests", "samplers", "shards", "datasets", "streams"]
    outer = ["pairwise", "neighbors", "miners", "losses", "metrics", "training", "offline", "reports", "cli"]
    assert ["core", *(f"data/{name}" for name in inner), *outer] == ROOMS


def test_the_laws_hold():
    assert "core/checks.py" in SOURCES
    found = graph.breaches(SOURCES, ROOMS)
    assert not found, "\n".join(found)


def test_the_page_shows_the_graph_as_it_is():
    assert graph.drawn(PAGE, graph.picture(SOURCES, ROOMS)) == PAGE
    assert graph.drawn(PAGE, "another") != PAGE


# The checker itself: a house without fault, and one fault at a time brought into it.


def lines(*texts: str) -> str:
    return "\n".join(texts) + "\n"


SOUND = {
    "__init__.py": "import lazy_loader\n",
    "distributed.py": "from tercet.training.distributed import gather\n",
    "core/checks.py": lines("from __future__ import annotations", "import math", "import numpy as np"),
    "core/indices.py": lines("from jaxtyping import Int", "from tercet.core.checks import as_int"),
    "data/__init__.py": "",
    "data/catalog/catalog.py": lines(
        "from tercet.core.indices import Triplets",
        "def read():",
        "    import pyarrow.parquet",
        "    import torch",
    ),
    "data/triplets/random.py": lines(
        "from tercet.data.catalog.catalog import Catalog", "from tercet.data.triplets import table"
    ),
    "data/triplets/table.py": lines("import tercet.core.checks as checks"),
    "data/shards/index.py": lines(
        "class ShardIndex:",
        "    async def __aiter__(self):",
        "        import webdataset",
        "        from tercet.data.triplets.random import RandomTriplets",
    ),
    "data/datasets/image_dataset.py": lines(
        "import torch",
        "from torch.utils.data import Dataset",
        "from tercet.data.catalog.catalog import Catalog",
    ),
    "miners/hard.py": lines("import torch", "from tercet.core.indices import Triplets"),
    "losses/triplet.py": lines("from torch import nn", "from tercet.losses.pair import Contrastive"),
    "losses/pair.py": lines("from tercet.core.checks import as_int"),
    "training/loader.py": lines(
        "from tercet.data.datasets.image_dataset import ImageDataset",
        "from tercet.miners.hard import BatchHard",
    ),
    "cli/__init__.py": lines("import typer", "from tercet.training.loader import MiningLoader"),
    "cli/embed.py": lines("from rich.progress import Progress"),
}
HEAVY = "at module level; import it where it is used"
FAULTS = [
    (
        "core/checks.py",
        "from tercet.data.catalog.catalog import X",
        "1: core imports data/catalog, which stands below it",
    ),
    (
        "core/checks.py",
        "def f():\n    from tercet.miners.hard import X",
        "2: core imports miners, which stands below it",
    ),
    (
        "data/io/atomic.py",
        "from tercet.data.catalog.catalog import X",
        "1: data/io imports data/catalog, which stands below it",
    ),
    (
        "data/catalog/catalog.py",
        "from tercet.data.triplets.random import X",
        "1: data/catalog imports data/triplets, which stands below it",
    ),
    (
        "data/catalog/catalog.py",
        "from tercet.miners.hard import X",
        "1: data/catalog imports miners; they meet in training",
    ),
    (
        "data/catalog/catalog.py",
        "from tercet.training.loader import X",
        "1: data/catalog imports training, which stands below it",
    ),
    (
        "data/streams/lanes.py",
        "from tercet.losses.pair import X",
        "1: data/streams imports losses; they meet in training",
    ),
    (
        "miners/hard.py",
        "from tercet.data.catalog.catalog import X",
        "1: miners imports data/catalog; they meet in training",
    ),
    (
        "metrics/retrieval.py",
        "from tercet.data.io.atomic import X",
        "1: metrics imports data/io; they meet in training",
    ),
    (
        "pairwise/tiles.py",
        "from tercet.neighbors.exact import X",
        "1: pairwise imports neighbors, which stands below it",
    ),
    (
        "losses/pair.py",
        "from tercet.training.loader import X",
        "1: losses imports training, which stands below it",
    ),
    ("training/loader.py", "from tercet.cli import X", "1: training imports cli, which stands below it"),
    (
        "data/catalog/catalog.py",
        "from tercet.attic import X",
        "1: imports tercet.attic, which lies in no folder of the layout",
    ),
    (
        "data/catalog/catalog.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tercet.miners.hard import X",
        "3: data/catalog imports miners; they meet in training",
    ),
    (
        "miners/hard.py",
        "from tercet.losses.pair import X",
        "1: miners imports losses; they meet in Triplets and Pairs",
    ),
    (
        "losses/pair.py",
        "from tercet.miners.hard import X",
        "1: losses imports miners; they meet in Triplets and Pairs",
    ),
    *[
        (path, text, "1: imports the package root; import from the module that has the name")
        for path in ("data/catalog/catalog.py", "cli/embed.py")
        for text in (
            "import tercet",
            "from tercet import Catalog",
            "from tercet import core",
            "import tercet.core",
        )
    ],
    ("losses/pair.py", "from . import triplet", "1: relative import; write the name in full"),
    ("losses/pair.py", "from ..core.checks import as_int", "1: relative import; write the name in full"),
    (
        "__init__.py",
        "from tercet.data.catalog.catalog import X",
        "1: loads data/catalog with the package; name it in the stub",
    ),
    ("__init__.py", "import numpy", f"1: imports numpy {HEAVY}"),
    (
        "data/shards/index.py",
        "from tercet.data.datasets.image_dataset import X",
        "1: data/shards imports data/datasets, which stands below it",
    ),
    (
        "data/datasets/augment.py",
        "from tercet.data.streams.lanes import X",
        "1: data/datasets imports data/streams, which stands below it",
    ),
    *[
        (path, text, f"1: imports {library} {HEAVY}")
        for path, text, library in [
            ("data/catalog/catalog.py", "import torch", "torch"),
            ("core/checks.py", "from torch import nn", "torch"),
            ("cli/embed.py", "import lazy_loader", "lazy_loader"),
            ("data/catalog/catalog.py", "from rich import print", "rich"),
            ("training/loader.py", "import typer", "typer"),
            ("data/datasets/image_dataset.py", "import cv2", "cv2"),
            ("data/streams/lanes.py", "import webdataset as wds", "webdataset"),
            ("data/datasets/augment.py", "from albumentations import Compose", "albumentations"),
            ("metrics/retrieval.py", "from sklearn.metrics import f1_score", "sklearn"),
            ("neighbors/exact.py", "import faiss", "faiss"),
            ("offline/embed.py", "import ray", "ray"),
            ("reports/similarities.py", "import matplotlib.pyplot", "matplotlib"),
            ("data/io/tables.py", "import pyarrow.csv", "pyarrow"),
            ("data/io/tables.py", "import pandas", "pandas"),
        ]
    ],
    *[
        ("metrics/mining_stats.py", text, f"2: imports sklearn {HEAVY}")
        for text in (
            "try:\n    import sklearn\nexcept ImportError:\n    pass",
            "class A:\n    import sklearn",
            "if True:\n    import sklearn",
        )
    ],
    (
        "metrics/mining_stats.py",
        "def f():\n    import torchvision",
        "2: imports torchvision, which is not in the table of libraries",
    ),
]


def test_a_sound_house_has_no_breach():
    assert graph.breaches(SOUND, ROOMS) == []


@pytest.mark.parametrize(("path", "text", "said"), FAULTS)
def test_every_fault_is_named(path, text, said):
    # Upwards is the way that most often closes a cycle; that sentence has a test of its own.
    found = graph.breaches({**SOUND, path: text}, ROOMS)
    assert [text for text in found if not text.startswith("import cycle")] == [f"{path}:{said}"]


@pytest.mark.parametrize("path", ["attic.py", "attic/__init__.py", "attic/box.py", "utils.py", "data/box.py"])
def test_a_module_without_a_room_is_named(path):
    assert graph.breaches({**SOUND, path: ""}, ROOMS) == [f"{path}: lies in no folder of the layout"]


def test_a_file_of_too_much_code_is_named_and_its_docstrings_are_not_counted():
    path = "metrics/mining_stats.py"
    text = '"""What it is.\n\n' + "a line\n" * 300 + '"""\n\n# why\n'
    assert graph.breaches({**SOUND, path: text + "a = 1\n" * 250}, ROOMS) == []
    assert graph.breaches({**SOUND, path: text + "a = 1\n" * 251}, ROOMS) == [
        f"{path}: 251 lines of code; 250 at most"
    ]


def test_an_import_cycle_is_named():
    house = {
        **SOUND,
        "pairwise/tiles.py": "from tercet.pairwise.distances import X\n",
        "pairwise/distances.py": "from tercet.pairwise.relations import X\n",
        "pairwise/relations.py": "def f():\n    from tercet.pairwise.tiles import X\n",
    }
    (said,) = graph.breaches(house, ROOMS)
    names = said.removeprefix("import cycle: ").split(" → ")
    assert set(pairwise(names)) == {
        ("tercet.pairwise.tiles", "tercet.pairwise.distances"),
        ("tercet.pairwise.distances", "tercet.pairwise.relations"),
        ("tercet.pairwise.relations", "tercet.pairwise.tiles"),
    }


def test_too_many_arrows_are_counted(monkeypatch):
    assert graph.breaches(SOUND, ROOMS) == []
    count = sum(map(len, graph.edges(SOUND, ROOMS).values()))
    monkeypatch.setattr(graph, "MOST_ARROWS", count - 1)
    assert graph.breaches(SOUND, ROOMS) == [f"{count} arrows between folders; {count - 1} at most"]


def test_the_command_of_ci_fails_where_the_page_shows_another_picture(tmp_path, monkeypatch, capsys):
    page = tmp_path / "architecture.md"
    page.write_text(PAGE, "utf-8")
    monkeypatch.setattr(graph, "PAGE", page)

    def run(option: str) -> int:
        monkeypatch.setattr(sys, "argv", ["import_graph.py", option])
        with pytest.raises(SystemExit) as stopped:
            graph.main()
        return stopped.value.code

    assert run("--check") == 0
    page.write_text(PAGE.replace("arrows, 18 folders", "arrows, 17 folders"), "utf-8")
    assert run("--check") == 1
    assert "shows another picture" in capsys.readouterr().out
    assert run("--write") == 0
    assert page.read_text("utf-8") == PAGE


# What a fresh process has loaded.


def loaded(*modules: str) -> set[str]:
    """The libraries of the table that a process holds after it has imported `modules`."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & set(graph.LIBRARIES)


def test_the_package_loads_no_library_and_the_catalog_no_torch():
    assert loaded("tercet") == {"lazy_loader"}
    assert loaded("tercet.data.catalog.catalog") <= {"numpy", "jaxtyping", "lazy_loader"}


def test_core_and_data_load_numpy_alone():
    rooms = [room for room in ROOMS if room == "core" or room.startswith("data/")]
    rooms = [room for room in rooms if room not in graph.WITH_TORCH]
    modules = [graph.module_of(path) for path in SOURCES if graph.room_of(path, rooms)]
    assert loaded(*modules) <= {"numpy", "jaxtyping", "lazy_loader"}


def test_the_probe_of_a_fresh_process_sees_torch():
    assert "torch" in loaded("torch")
