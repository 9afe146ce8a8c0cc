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
    "BatchAll": [(5, 15), (5, 15), (30, 134)],
    "BatchAll, margin": [(8, 58), (8, 58), (114, 1160)],
    "BatchAll, max_count": [(12, 24), (12, 24), (59, 198)],
    "BatchHard": [(6, 48), (11, 59), (56, 712)],
    "SemiHard": [(12, 86), (20, 123), (120, 1860)],
    "SemiHard, all": [(8, 71), (8, 78), (74, 982)],
    "SemiHard, easiest": [(12, 109), (25, 157), (106, 2114)],
    "EasyPositive": [(9, 80), (19, 101), (68, 914)],
    "EasyPositive, hard": [(9, 63), (19, 84), (66, 728)],
    "HardestN": [(7, 70), (14, 119), (66, 918)],
    "DistanceWeighted": [(14, 66), (14, 66), (56, 440)],
    "MultiSimilarityMiner": [(11, 104), (16, 163), (64, 1342)],
    "PairMargin": [(7, 56), (7, 56), (42, 450)],
    "TripletMargin": [(4, 101), (4, 101)],
    "TripletMargin, soft": [(4, 101), (4, 101)],
    "TripletMargin, swap": [(7, 234), (11, 451)],
    "Contrastive": [(3, 67), (3, 67)],
    "MarginLoss": [(3, 72), (3, 72)],
    "MultiSimilarity": [(5, 68), (5, 68)],
    "Circle": [(7, 77), (7, 77)],
    "LiftedStructure": [(8, 284), (8, 284)],
    "NPair": [(5, 35), (5, 35)],
    "InfoNCE": [(6, 59), (6, 59)],
    "SupCon": [(7, 62), (7, 62)],
    "Histogram": [(4, 85), (4, 85)],
    "FastAP": [(7, 113), (7, 113)],
    "ProxyNCA": [(5, 59), (5, 59)],
    "ProxyAnchor": [(5, 85), (5, 85)],
    "NormalizedSoftmax": [(5, 48), (5, 48)],
    "ArcFace": [(5, 73), (5, 73)],
    "CosFace": [(5, 50), (5, 50)],
    "SoftTriple": [(5, 71), (5, 71)],
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


def test_hard_batches_give_what_they_give_on_the_processor():
    found = run("matrix", "23")  # each 23rd comparison; the campaign makes them all
    assert found["tried"] > 60
    assert found["differ"] == []


@pytest.mark.campaign
def test_all_hard_batches_give_what_they_give_on_the_processor():
    found = run("matrix")
    assert found["tried"] > 1500
    assert found["differ"] == []


def test_planted_faults_are_caught_and_every_read_is_counted():
    found = run("planted")
    mixed = "RuntimeError: expected all tensors on one device, found card:0 and cpu"
    assert found.pop("mixed").startswith(mixed)
    assert found.pop("mixed in place").startswith(mixed)
    index = "RuntimeError: a tensor of the processor is indexed by one of the card"
    assert found.pop("mixed index").startswith(index)
    assert found.pop("numpy").startswith("RuntimeError: .numpy() is not supported")
    assert found.pop("wrong result") == "False"
    assert found == {
        "item": "1 reads, 0 operations",
        "bool": "1 reads, 1 operations",
        "tolist": "1 reads, 1 operations",
        "nonzero": "1 reads, 2 operations",
        "mask": "1 reads, 2 operations",
        "down": "1 reads, 1 operations",
        "up": "1 reads, 0 operations",
        "up, not waiting": "0 reads, 0 operations",
        "number up": "1 reads, 0 operations",
        "repeat": "1 reads, 2 operations",
        "repeat, known": "0 reads, 2 operations",
        "mask filled": "0 reads, 2 operations",
        "product": "0 reads, 1 operations",
        "view": "0 reads, 0 operations",
    }
