"""What `torch.compile` traces whole: heads without mined tuples, and batch hard with its head."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tercet.pairwise import traced

ROOT = Path(__file__).parents[2]
BUILDS = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()
SOME = ["TripletMargin", "TripletMargin, swap", "InfoNCE", "SoftTriple"]
COUNTED = ["Histogram", "Histogram, 7 bins", "FastAP"]
BOUNDED = ["MarginLoss, classes", "MarginLoss, classes, ν", "MarginLoss, ν"]
MINED = [f"mined, {name}" for name in ("hinge", "soft", "swap", "product", "groups")]


def run(*program):
    """What `traced_cases` prints, in a process whose code is not wrapped in type checks."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.contracts.traced_cases", *program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def check(found, count):
    assert len(found) == count
    assert [name for name, same in found.items() if not same] == []


def test_heads_are_traced_whole_with_the_plain_loss_and_gradient():
    check(run("aot_eager", *SOME), 2 * len(SOME))


def test_heads_of_two_passes_and_of_a_bound_per_class_are_traced_whole():
    check(run("aot_eager", *COUNTED, *BOUNDED), 2 * len(COUNTED + BOUNDED))


def test_batch_hard_is_traced_with_its_head():
    check(run("aot_eager", *MINED), len(MINED))


@pytest.mark.skipif(not BUILDS, reason="no C++ compiler, or no headers of Python")
def test_generated_code_has_the_plain_loss_and_gradient():
    check(run("inductor", "Contrastive", "Histogram", "FastAP", BOUNDED[0], MINED[0]), 9)


def test_bad_numbers_are_refused_when_a_graph_is_run_and_some_calls_stand_outside():
    found = run("refusals")
    finite = "expected finite embeddings, none larger than 4e+17; look for NaN or infinite values in what the"
    for name in ("Contrastive", "Histogram", "FastAP", "MarginLoss, classes", "ArcFace"):
        assert found.pop(name) == "passed: 0"
        told = name.partition(",")[0]
        text = f"ValueError: {told}(embeddings='not finite'): {finite} model gives"
        assert found.pop(f"{name}, NaN") == text
    text = "ValueError: ArcFace(labels='others'): expected class numbers from 0 to 3, as num_classes says; "
    assert found.pop("ArcFace, class 4").startswith(text)
    text = "ValueError: MarginLoss(labels='others'): expected classes from 0 to 3; num_classes=4 is how"
    assert found.pop("MarginLoss, classes, class 4").startswith(text)
    assert found.pop("ArcFace, never") == "passed: 0"
    assert found.pop("ArcFace, weights") == "passed: True"
    text = "ValueError: ArcFace(weight='others'): expected 16 finite numbers of at least 0"
    assert found.pop("ArcFace, weight −1") == text
    assert found.pop("BatchHard") == "passed: 16"
    text = f"ValueError: BatchHard(embeddings='not finite'): {finite} model gives"
    assert found.pop("BatchHard, NaN") == text
    text = "ValueError: BatchHard(labels='rows that lack one of them'): expected a positive and a negative"
    assert found.pop("BatchHard, a row alone").startswith(text)
    assert found.pop("listed") == "passed: 0"
    assert found.pop("listed, row 16").startswith(
        "ValueError: TripletMargin(mined='other rows'): expected rows"
    )
    assert found.pop("sizes that change")
    assert found.pop("the same triplets")
    assert set(found) == {"BatchHard, not complete", "BatchHard, 260 rows"}
    assert all(text.startswith("Unsupported") for text in found.values())


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no tag that says so")
def test_checks_are_no_part_of_a_recorded_cuda_graph():
    assert torch.Tag.cudagraph_unsafe in traced._checked._opoverload.tags


@pytest.mark.campaign
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_all_that_is_traced_is_traced_whole(backend):
    check(run(backend), 56 + len(MINED))
