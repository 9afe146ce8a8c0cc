"""What miners and heads ask of an accelerator, counted on a pretended one, and that results are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import pretended_card
from tests.contracts.card_cases import HEADS, MINERS, N_OF_HEADS, N_OF_MINERS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not pretended_card.is_offered(), reason="this torch does not let Python register a device"
)

# (reads, operations) at each N, as ceilings: a change may lower them.
CEILINGS: dict[str, list[tuple[int, int]]] = {
    "BatchAll": [(1, 21), (1, 34), (1, 34)],
    "BatchAll, margin": [(1, 11), (1, 29), (1, 29)],
    "BatchAll, max_count": [(1, 24), (1, 37), (1, 37)],
    "BatchHard": [(0, 9), (1, 20), (1, 20)],
    "SemiHard": [(1, 15), (1, 35), (1, 35)],
    "SemiHard, all": [(1, 13), (1, 39), (1, 39)],
    "SemiHard, easiest": [(0, 15), (1, 45), (1, 45)],
    "EasyPositive": [(1, 14), (1, 33), (1, 33)],
    "EasyPositive, hard": [(0, 9), (1, 24), (1, 24)],
    "EasyHard": [(1, 37), (1, 89), (1, 89)],
    "EasyHard, easy negatives": [(1, 34), (1, 85), (1, 85)],
    "EasyHard, semi-hard positives": [(1, 36), (1, 94), (1, 94)],
    "EasyHard, ranges": [(1, 56), (1, 172), (1, 172)],
    "EasyHard, all": [(1, 32), (1, 63), (1, 63)],
    "HardestN": [(0, 12), (1, 26), (1, 26)],
    "DistanceWeighted": [(1, 56), (1, 69), (1, 69)],
    "MultiSimilarityMiner": [(1, 25), (1, 48), (1, 48)],
    "PairMargin": [(1, 14), (1, 31), (1, 31)],
    "HDC": [(1, 64), (1, 64), (1, 64)],
    "UniformHistogram": [(1, 59), (1, 59), (1, 59)],
    "AngularMiner": [(1, 37), (1, 37), (1, 57)],
    "TripletMargin": [(0, 70), (0, 70), (0, 109)],
    "TripletMargin, soft": [(0, 70), (0, 70), (0, 109)],
    "TripletMargin, swap": [(0, 112), (0, 112), (0, 151)],
    "Contrastive": [(0, 37), (0, 37), (0, 75)],
    "MarginLoss": [(0, 42), (0, 42), (0, 80)],
    "MultiSimilarity": [(0, 68), (0, 68), (0, 68)],
    "Circle": [(0, 77), (0, 77), (0, 77)],
    "LiftedStructure": [(0, 57), (0, 57), (0, 96)],
    "NCA": [(0, 56), (0, 93), (0, 102)],
    "GeneralizedLifted": [(0, 59), (0, 59), (0, 98)],
    "RankedList": [(0, 74), (0, 74), (0, 113)],
    "TupletMargin": [(0, 92), (0, 142), (0, 138)],
    "Angular": [(0, 82), (0, 82), (0, 82)],
    "IntraPairVariance": [(0, 101), (0, 101), (0, 101)],
    "VICReg": [(0, 92), (0, 129), (0, 132)],
    "Sum": [(0, 94), (0, 94), (0, 133)],
    "SmoothAP": [(0, 96), (0, 96), (0, 96)],
    "RecallSurrogate": [(0, 180), (0, 180), (0, 180)],
    "NPair": [(0, 41), (0, 41), (0, 41)],
    "InfoNCE": [(0, 56), (0, 56), (0, 56)],
    "SupCon": [(0, 62), (0, 62), (0, 62)],
    "Histogram": [(0, 85), (0, 85), (0, 85)],
    "DynamicSoftMargin": [(4, 114), (4, 114), (4, 191)],
    "FastAP": [(0, 113), (0, 113), (0, 113)],
    "ProxyNCA": [(0, 55), (0, 55), (0, 55)],
    "ProxyAnchor": [(0, 81), (0, 81), (0, 81)],
    "NormalizedSoftmax": [(0, 44), (0, 44), (0, 44)],
    "ArcFace": [(0, 69), (0, 69), (0, 69)],
    "CosFace": [(0, 46), (0, 46), (0, 46)],
    "SoftTriple": [(0, 73), (0, 73), (0, 73)],
    "SubCenterArcFace": [(0, 91), (0, 91), (0, 91)],
    "SphereFace": [(0, 94), (0, 94), (0, 94)],
    "AdaFace": [(0, 97), (0, 97), (0, 97)],
    "CurricularFace": [(0, 84), (0, 84), (0, 84)],
    "P2SGrad": [(0, 49), (0, 49), (0, 49)],
}


# (reads, operations) of miner, head and backward together at 64 and 512 rows; long lists read no more.
CEILINGS_OF_LISTS: dict[str, list[tuple[int, int]]] = {
    "BatchHard, TripletMargin": [(0, 48), (1, 59)],
    "BatchHard, swap": [(0, 77), (1, 88)],
    "BatchHard, soft": [(0, 43), (1, 54)],
    "SemiHard, TripletMargin": [(1, 84), (1, 144)],
    "SemiHard all, TripletMargin": [(1, 64), (1, 97)],
    "SemiHard all, Contrastive": [(1, 51), (1, 77)],
    "BatchHard, MarginLoss": [(0, 80), (1, 91)],
    "BatchHard, LiftedStructure": [(0, 65), (1, 76)],
    "BatchHard, NPair": [(0, 54), (1, 65)],
    "BatchHard, Histogram": [(0, 189), (1, 200)],
    "PairMargin, Contrastive": [(1, 78), (1, 107)],
    "PairMargin, InfoNCE": [(1, 69), (1, 86)],
    "MultiSimilarity": [(1, 92), (1, 115)],
    "MultiSimilarity, TripletMargin": [(1, 84), (1, 107)],
}
# Reads of parts of a training step, as ceilings.
READS_OF_STEPS = {
    "memory.update": 1,
    "memory.update with ids": 1,
    "memory.columns": 0,
    "memory, mined and trained": 2,
    "memory and batch, mined and trained": 2,
    "mined and trained": 1,
    "mined and trained, one look": 1,
    "trained on all, mined and trained, one look": 1,
    "complete batches, labels on the card": 1,
    "complete batches, labels on the card, 256 rows": 0,
    "MiningLoader with describe": 1,
    "MiningLoader with describe, 256 rows": 0,
    "cached_backward": 1,
    "cached_backward, all triplets": 0,
}


def run(*program: str) -> Any:
    """What a program of `card_cases` prints."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.contracts.card_cases", *program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def counted() -> Any:
    return run("census")


def test_every_case_has_ceilings():
    assert list(CEILINGS) == [*MINERS, *HEADS]


@pytest.mark.parametrize("name", CEILINGS)
def test_no_more_is_asked_of_the_card_than_this_and_results_are_the_processors(counted, name):
    sizes = N_OF_MINERS if name in MINERS else N_OF_HEADS
    assert len(CEILINGS[name]) == len(sizes)
    for n, (reads, operations) in zip(sizes, CEILINGS[name], strict=True):
        found = counted[name][str(n)]
        assert found[2], f"{name} at N = {n}: another result than on the processor"
        assert found[0] <= reads, "\n".join(
            [f"{name} at N = {n}: {found[0]} reads, {reads} allowed", *found[3]]
        )
        assert found[1] <= operations, f"{name} at N = {n}: {found[1]} operations, {operations} allowed"


def test_miner_head_and_backward_together_ask_no_more_than_this():
    found = run("lists")
    assert list(found) == list(CEILINGS_OF_LISTS)
    for name, sizes in found.items():
        ceilings = [*CEILINGS_OF_LISTS[name], (1, None)]
        for (reads, operations, same, places), (most, launched) in zip(sizes, ceilings, strict=True):
            assert same, name
            assert reads <= most, "\n".join([name, *places])
            assert launched is None or operations <= launched, (name, operations)


def test_no_running_sum_is_asked_for_where_torch_is_to_be_deterministic():
    found = run("deterministic")
    assert found.pop("FastAP, otherwise")[0] > 0
    assert len(found) == 5
    assert set(map(tuple, found.values())) == {(0, True)}


def test_parts_of_a_training_step_read_no_more_than_this():
    found = run("steps")
    assert list(found) == list(READS_OF_STEPS)
    for name, (reads, _, places) in found.items():
        assert reads <= READS_OF_STEPS[name], "\n".join([name, *places])


def test_hard_batches_give_what_they_give_on_the_processor():
    found = run("matrix", "37")  # each 37th batch and call; the campaign makes them all
    assert found["tried"] > 60
    assert found["differ"] == []


def check_rounded(found: dict[str, Any], least: int) -> None:
    for precision, (tried, differ, untold) in found.items():
        assert tried > least
        assert differ == [], precision
        assert len(untold) > least // 5, f"{precision}: the rounding that nobody was told of went unnoticed"


def test_products_in_tf32_and_bfloat16_propose_what_differences_decide_alike():
    check_rounded(run("rounded", "7"), 10)


@pytest.mark.campaign
def test_all_miners_take_products_in_tf32_and_bfloat16():
    check_rounded(run("rounded"), 100)


@pytest.mark.campaign
def test_all_hard_batches_give_what_they_give_on_the_processor():
    found = run("matrix")
    assert found["tried"] > 2500
    assert found["differ"] == []


IN_FLOAT64 = ("AngularMiner", "DistanceWeighted")  # miners that refuse a device without it


def check_single(found: dict[str, Any], least: int) -> None:
    assert found["tried"] > least
    assert found["differ"] == []
    assert all(title.startswith(IN_FLOAT64) for title in found["refused"])
    assert found["large codes"].endswith("below 2²⁴ in size, since card:0 has no float64")


def test_a_card_without_float64_gives_what_the_processor_gives():
    check_single(run("single", "97"), 60)


@pytest.mark.campaign
def test_a_card_without_float64_gives_what_the_processor_gives_on_all_hard_batches():
    check_single(run("single"), 1500)


def test_planted_faults_are_caught_and_every_read_is_counted():
    found = run("planted")
    mixed = "RuntimeError: expected all tensors on one device, found card:0 and cpu"
    assert found.pop("mixed").startswith(mixed)
    assert found.pop("mixed in place").startswith(mixed)
    index = "RuntimeError: a tensor of the processor is indexed by one of the card"
    assert found.pop("mixed index").startswith(index)
    assert found.pop("numpy").startswith("RuntimeError: .numpy() is not supported")
    assert found.pop("wrong result") == "False"
    for name in ("float64", "float64 made"):
        assert found.pop(name).startswith("TypeError: the card does not support float64")
    finite = "expected finite embeddings, none larger than"
    rows = f"ValueError: SemiHard(embeddings='1 of 16 rows, the first is row 3'): {finite}"
    assert found.pop("NaN, read with the result").startswith(rows)
    assert found.pop("NaN, nothing read") == "0 reads"
    late = f"ValueError: BatchHard(embeddings='those of an earlier call'): {finite}"
    assert found.pop("NaN, at the next call").startswith(late)
    assert found.pop("a row alone, nothing read") == "passed: 16"
    late = "ValueError: BatchHard(labels='those of an earlier call'): expected a positive and a"
    assert found.pop("a row alone, at the next call").startswith(late)
    assert found.pop("NaN, once") == "passed: 3"
    assert found.pop("heads that take NaN") == ""
    assert found.pop("head, NaN now").startswith("ValueError: Contrastive(embeddings='1 of 16 rows")
    assert found.pop("head, NaN never") == found.pop("head, NaN later") == "passed: False"
    late = f"ValueError: Contrastive(embeddings='those of an earlier call'): {finite}"
    assert found.pop("head, NaN, at the next call").startswith(late)
    assert found.pop("head, NaN, once") == "passed: 0"
    for name, shown in {"MarginLoss": "'3 in row 0'", "ArcFace": "3"}.items():
        assert found.pop(f"{name}, class 3 now").startswith(
            f"ValueError: {name}(labels={shown}): expected class"
        )
        late = f"ValueError: {name}(labels='those of an earlier call'): expected class"
        assert found.pop(f"{name}, next call after later").startswith(late)
        for told in ("class 3 never", "class 3 later", "next call after now", "next call after never"):
            assert found.pop(f"{name}, {told}") == "passed: 0", told
    assert found.pop("ArcFace, class 3 on the host").startswith("ValueError: ArcFace(labels=3)")
    expected = "expected 0 or 1 in each column, one column a label"
    first = found.pop("numbers of labels")  # this card has answered before the call looks at embeddings
    assert first.startswith(f"ValueError: Contrastive(labels='other numbers'): {expected}"), first
    assert first.endswith(", 0 reads")
    assert found.pop("numbers of labels, at the next call") == "passed: 0"
    at_once = f"ValueError: Contrastive(labels='3 in row 0'): {expected}"
    assert found.pop("numbers of labels on the host").startswith(at_once)
    assert found.pop("cached_backward, other embeddings") == "passed: 0, 0 reads"
    late = "ValueError: cached_backward(model='other embeddings for chunk 0 in the second pass of an earlier"
    assert found.pop("cached_backward, at the next call").startswith(late)
    late = "ValueError: CrossBatchMemory.columns(batch.ids='those of an earlier call'): expected all of 0"
    for words, said in {"mixed": late, "other": late, "right": "passed: 0"}.items():
        assert found.pop(f"memory, {words} ids") == "passed: 1"
        assert found.pop(f"memory, after {words} ids").startswith(said)
    rows = f"ValueError: describe(embeddings='1 of 16 rows, the first is row 3'): {finite}"
    assert found.pop("describe, NaN").startswith(rows)
    assert found.pop("describe, numbers") == found.pop("describe, on the processor")
    assert found == {
        "item": "1 reads, 0 operations",
        "bool": "1 reads, 1 operations",
        "tolist": "1 reads, 1 operations",
        "nonzero": "1 reads, 2 operations",
        "mask": "1 reads, 2 operations",
        "down": "1 reads, 1 operations",
        "up": "1 reads, 0 operations",
        "up, not waiting": "0 reads, 0 operations",
        "down, not waiting": "0 reads, 1 operations",
        "number up": "1 reads, 0 operations",
        "repeat": "1 reads, 2 operations",
        "repeat, known": "0 reads, 2 operations",
        "mask filled": "0 reads, 2 operations",
        "product": "0 reads, 1 operations",
        "view": "0 reads, 0 operations",
    }
