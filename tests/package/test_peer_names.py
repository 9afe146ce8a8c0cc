"""The table of peers' names has a row for each, and what it names here exists."""

import importlib
import inspect
import pkgutil
import re
import warnings
from pathlib import Path

import pytest

import tercet
from tercet.pairwise.distances import as_distance

PAGE = (Path(__file__).parents[2] / "docs" / "migration" / "names.md").read_text()
LIBRARIES = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
TABLES = {
    text.split("\n", 1)[0]: dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.MULTILINE))
    for text in LIBRARIES
}


def test_no_row_is_empty_and_none_is_there_twice():
    assert len(TABLES) == 3
    for text, table in zip(LIBRARIES, TABLES.values(), strict=True):
        rows = re.findall(r"^\| .*$", text, flags=re.MULTILINE)[1:]
        assert len(rows) == len(table) > 10
        assert all(here.strip() and here != "none" for here in table.values())


def unknown(here):
    """Names in a row that are neither public here, nor an option's or torch's."""
    named = re.findall(r"`([^`]+)`", here)
    names = [name for name in named if re.fullmatch(r"[A-Z]\w+", name) or name in ("cached_backward",)]
    return [name for name in names if name not in tercet.__all__]


@pytest.mark.parametrize("library", TABLES)
def test_what_a_row_names_here_exists(library):
    wrong = {name: unknown(here) for name, here in TABLES[library].items()}
    assert not {name: found for name, found in wrong.items() if found}
    for here in TABLES[library].values():
        for distance in re.findall(r'distance="(\w+)"', here):
            assert as_distance("table", distance)


def test_the_test_sees_a_name_that_is_not_there():
    assert unknown("`TripletMargins` with `soft=True`") == ["TripletMargins"]


def classes_of(*names):
    """The public classes of modules."""
    found = set()
    for name in names:
        module = importlib.import_module(name)
        found |= {key for key, value in vars(module).items() if inspect.isclass(value) and key[0] != "_"}
    return found


@pytest.mark.peers
def test_pytorch_metric_learning_is_whole():
    peer = pytest.importorskip("pytorch_metric_learning", reason="the bench extra is not installed")
    kinds = ("losses", "miners", "samplers", "distances", "reducers", "regularizers")
    names = classes_of(*(f"{peer.__name__}.{kind}" for kind in kinds))
    assert names == set(TABLES["pytorch-metric-learning"])


@pytest.mark.peers
def test_open_metric_learning_is_whole():
    """Its losses import torchvision, so their names are read from the source."""
    peer = pytest.importorskip("oml", reason="the bench extra is not installed")
    names = set()
    for kind in ("losses", "miners", "samplers"):
        for module in pkgutil.iter_modules([str(Path(peer.__file__).parent / kind)]):
            source = (Path(peer.__file__).parent / kind / f"{module.name}.py").read_text()
            names |= set(re.findall(r"^class ([A-Z]\w+)", source, flags=re.MULTILINE))
    abstract = {name for name in names if name.startswith("I") and name[1].isupper()}
    assert names - abstract == set(TABLES["open-metric-learning"])


@pytest.mark.peers
def test_sentence_transformers_is_whole():
    pytest.importorskip("sentence_transformers", reason="the bench extra is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = importlib.import_module("sentence_transformers.losses")
        samplers = importlib.import_module("sentence_transformers.sampler")
    names = {name for name in dir(losses) if name[0].isupper()} | {"mine_hard_negatives"}
    names |= {name for name in dir(samplers) if name.endswith(("BatchSampler", "BatchSamplers"))}
    assert names - {"BatchSampler"} == set(TABLES["sentence-transformers"])
