"""The public names: a list in the test, so that adding or losing one is a decision."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tercet

NAMES = [
    "AnchorSampler",
    "ArcFace",
    "BatchAll",
    "BatchHard",
    "Catalog",
    "Circle",
    "Contrastive",
    "CosFace",
    "CrossBatchMemory",
    "CrossGroup",
    "DeepRankingNet",
    "DeepRankingTriplets",
    "DistanceWeighted",
    "EasyPositive",
    "EmbeddingHead",
    "FastAP",
    "FolderRelevance",
    "FunctionRelevance",
    "Graded",
    "HardestN",
    "Histogram",
    "ImageDataset",
    "InfoNCE",
    "LabeledPairs",
    "LiftedStructure",
    "Manifest",
    "MarginLoss",
    "MinedBatch",
    "MiningLoader",
    "MultiSimilarity",
    "MultiSimilarityMiner",
    "NPair",
    "NormalizedSoftmax",
    "PKSampler",
    "PKStream",
    "PairBatch",
    "PairDataset",
    "PairMargin",
    "Pairs",
    "ProxyAnchor",
    "ProxyNCA",
    "RandomPairs",
    "RandomTriplets",
    "References",
    "ReservoirTriplets",
    "SameLabel",
    "SemiHard",
    "ShardIndex",
    "SharedLabel",
    "ShuffledSampler",
    "SoftTriple",
    "SupCon",
    "TableRelevance",
    "TeacherRelevance",
    "TripletBatch",
    "TripletDataset",
    "TripletMargin",
    "Triplets",
    "cached_backward",
    "deep_ranking_batched",
    "describe",
    "map_at_r",
    "pk_batched",
    "predict_yield",
    "read_catalog",
    "read_manifest",
    "recall_at_k",
    "scan_folder",
    "score_at_top_k",
    "similarity_precision",
    "train_validation_split",
    "write_manifest",
    "write_shards",
]


def typed_names(source: str) -> dict[str, str]:
    """{name: module} of the imports under `if TYPE_CHECKING`, as a type checker sees them."""
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"write `{alias.name} as {alias.name}`: only so is it exported"
            found[alias.name] = node.module
    return found


def lacks(value: object) -> str:
    """What the documentation of a class or function lacks; empty where it lacks nothing."""
    text = value.__doc__ or ""
    if not text.strip():
        return "a docstring"
    return "" if ">>>" in text or "Example:" in text else "an example"


def test_the_public_names_are_these():
    assert sorted(tercet.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(tercet))


def test_a_type_checker_sees_what_is_loaded_on_first_use():
    lazy = {name: f"tercet.{module}" for name, module in tercet._HOME.items()}
    lazy.update(dict.fromkeys(tercet._MODULES, "tercet"))
    assert typed_names(Path(tercet.__file__).read_text("utf-8")) == lazy


def test_gather_works_as_readme_writes_it_and_torch_is_loaded_no_sooner():
    code = """
import sys, tercet
assert "distributed" in dir(tercet)
assert "torch" not in sys.modules
print(tercet.training.distributed.gather.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "tercet.training.distributed\n"


def test_the_reader_of_typed_names_sees_a_difference():
    source = "if TYPE_CHECKING:\n    from tercet.data.catalog.catalog import Catalog as Catalog\n"
    assert typed_names(source) == {"Catalog": "tercet.data.catalog.catalog"}
    with pytest.raises(AssertionError, match="only so is it exported"):
        typed_names("if TYPE_CHECKING:\n    from tercet.data.catalog.catalog import Catalog\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_loads_and_is_documented_with_an_example(name):
    value = getattr(tercet, name)
    assert value is getattr(tercet, name)
    assert value.__name__ == name
    assert value.__module__ == f"tercet.{tercet._HOME[name]}"
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert not lacks(value), f"{name} lacks {lacks(value)}"


def test_a_missing_docstring_or_example_is_seen():
    def bare(): ...

    def told():
        """The sum."""

    def shown():
        """The sum.

        >>> 1 + 1
        2
        """

    assert [lacks(value) for value in (bare, told, shown)] == ["a docstring", "an example", ""]


@pytest.mark.parametrize("name", ["triplets_of_everything", "PKSamplers", "_private"])
def test_an_unknown_name_is_an_attribute_error(name):
    assert not hasattr(tercet, name)
    with pytest.raises(AttributeError, match=f"^module 'tercet' has no attribute '{name}'$"):
        getattr(tercet, name)


def test_no_public_name_is_also_a_module():
    # After `import tercet.x` the module would hide the class or function of that name.
    modules = {path.stem for path in Path(tercet.__file__).parent.iterdir()}
    assert not modules & set(NAMES)


def test_the_package_names_its_version():
    assert tercet.__version__.count(".") == 2
