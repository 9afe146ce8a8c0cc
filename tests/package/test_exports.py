"""The public names: a list in the test, so that adding or losing one is a decision."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tercet

NAMES = [
    "AnchorSampler",
    "Angular",
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
    "DynamicSoftMargin",
    "EasyHard",
    "EasyPositive",
    "EmbeddingHead",
    "EmbeddingPenalty",
    "Embeddings",
    "FastAP",
    "FolderRelevance",
    "FunctionRelevance",
    "GeneralizedLifted",
    "Graded",
    "HardestN",
    "Histogram",
    "Ignore",
    "ImageDataset",
    "InfoNCE",
    "IntraPairVariance",
    "KeyedTransform",
    "LabeledPairs",
    "LiftedStructure",
    "Mahalanobis",
    "Manifest",
    "MarginLoss",
    "MinedBatch",
    "MinedTriplets",
    "Miner",
    "MiningLoader",
    "Monitor",
    "MultiSimilarity",
    "MultiSimilarityMiner",
    "NCA",
    "NPair",
    "Neighbors",
    "NormalizedSoftmax",
    "PairFunction",
    "PairTable",
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
    "RankedList",
    "RecallSurrogate",
    "References",
    "Remining",
    "ReservoirTriplets",
    "SameLabel",
    "SemiHard",
    "ShardIndex",
    "SharedLabel",
    "ShuffledSampler",
    "SignalToNoise",
    "SmoothAP",
    "SoftTriple",
    "Sum",
    "SupCon",
    "Suspects",
    "TableRelevance",
    "TeacherRelevance",
    "TripletBatch",
    "TripletDataset",
    "TripletMargin",
    "Triplets",
    "TupletMargin",
    "VICReg",
    "Verdicts",
    "cached_backward",
    "clustering",
    "cmc",
    "deep_ranking_batched",
    "describe",
    "embed",
    "evaluate",
    "few_shot",
    "gather",
    "geometry",
    "global_average_precision",
    "inspect",
    "map_at_r",
    "mean_average_precision",
    "mean_inp",
    "mine_hard_triplets",
    "mrr",
    "ndcg",
    "nearest",
    "pk_batched",
    "plot_similarities",
    "precision_at_k",
    "predict_yield",
    "r_precision",
    "read_catalog",
    "read_embeddings",
    "read_manifest",
    "read_verdicts",
    "recall_at_k",
    "scan_folder",
    "score_at_top_k",
    "similarity_precision",
    "suspected_labels",
    "suspects",
    "train_validation_split",
    "verification",
    "write_manifest",
    "write_mined_table",
    "write_shards",
    "write_verdicts",
    "AdaFace",
    "CurricularFace",
    "SphereFace",
    "P2SGrad",
    "SubCenterArcFace",
    "AngularMiner",
    "HDC",
    "UniformHistogram",
]


def typed_names(stub: str) -> dict[str, str]:
    """{name: module} of the imports of a stub, as a type checker sees them."""
    found = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = alias.name
                assert alias.asname == name, f"write `{name} as {name}`: only so is it exported"
                found[name] = f"tercet.{node.module}"
    return found


HOME = typed_names(Path(tercet.__file__).with_suffix(".pyi").read_text("utf-8"))


def lacks(value: object) -> str:
    """What the documentation of a class or function lacks; empty where it lacks nothing."""
    text = value.__doc__ or ""
    if not text.strip():
        return "a docstring"
    return "" if ">>>" in text or "Example:" in text else "an example"


def test_the_public_names_are_these():
    assert sorted(tercet.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(tercet))


def test_the_stub_names_each_public_name_once_and_nothing_else():
    assert sorted(HOME) == sorted(NAMES)


def fresh(code: str, **environment: str) -> str:
    """What a program prints in a process of its own, where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert not done.returncode, done.stderr
    return done.stdout


def test_every_name_loads_with_the_package_where_that_is_asked_for():
    loaded = "import sys, tercet; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    assert fresh(loaded) == "False False\n"
    assert fresh(loaded, EAGER_IMPORT="1") == "True False\n"


def test_gather_still_works_under_its_old_name_with_a_warning_and_torch_is_loaded_no_sooner():
    code = """
import sys, warnings, tercet
assert "torch" not in sys.modules
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert tercet.distributed.gather is tercet.gather
    assert not hasattr(tercet.distributed, "scatter")
print(*(f"{one.category.__name__}: {one.message}" for one in said))
"""
    assert fresh(code) == "DeprecationWarning: tercet.distributed.gather is now tercet.gather\n"


def test_the_reader_of_typed_names_sees_a_difference():
    assert typed_names("from .data.io import A as A\n") == {"A": "tercet.data.io"}
    with pytest.raises(AssertionError, match="only so is it exported"):
        typed_names("from .data.io import A\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_loads_and_is_documented_with_an_example(name):
    value = getattr(tercet, name)
    assert value is getattr(tercet, name)
    assert value.__name__ == name
    assert value.__module__ == HOME[name]
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


def described(text: str, section: str) -> str:
    """A section of a docstring, such as "Args"; empty where there is none."""
    found = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)+)", inspect.cleandoc(text) + "\n", re.MULTILINE)
    return found[1] if found else ""


def undescribed(function: object, text: str) -> list[str]:
    """What help() of a function with parameters leaves to ask: parameters and the result."""
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    heads = re.findall(r"^    ([\w, *]+):", described(text, "Args"), re.MULTILINE)
    known = {name.strip(" *") for head in heads for name in head.split(",")}
    lacking = [name for name in names if name not in known]
    given = str(signature.return_annotation) not in ("None", str(inspect.Signature.empty))
    if names and given and not described(text, "Returns"):
        lacking.append("Returns")
    return lacking


def public_functions(value: type) -> dict[str, object]:
    """The public methods of a class that this package defines, by name."""
    found = {}
    for name in dir(value):
        owner = next((kind for kind in value.__mro__ if name in vars(kind)), None)
        if not name.startswith("_") and owner is not None and owner.__module__.startswith("tercet."):
            method = inspect.unwrap(getattr(value, name))
            if inspect.isfunction(method) or inspect.ismethod(method):
                found[name] = method
    return found


@pytest.mark.parametrize("name", NAMES)
def test_help_describes_each_argument_and_result(name):
    value = getattr(tercet, name)
    if not inspect.isclass(value):
        assert not undescribed(value, inspect.getdoc(value))
        return
    own = value.__init__ if "__init__" in vars(value) else value
    assert not [each for each in undescribed(own, value.__doc__) if each not in ("Returns", "args", "kwargs")]
    for method, function in public_functions(value).items():
        text = inspect.getdoc(getattr(value, method)) or ""
        assert not (lacking := undescribed(function, text)), f"{name}.{method}: {lacking}"


def test_an_argument_or_result_that_is_not_described_is_seen():
    def half(a: int, *rest: int, b: int = 0) -> int:
        """A sum.

        Args:
            a, rest: numbers.
        """

    assert undescribed(half, half.__doc__) == ["b", "Returns"]
    assert undescribed(half, "A sum.") == ["a", "rest", "b", "Returns"]

    class Held:
        shown = property(lambda self: 1)

        def given(self) -> int: ...

    Held.__module__ = "tercet.test"
    assert list(public_functions(Held)) == ["given"]


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
