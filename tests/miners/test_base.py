import subprocess
import sys

import pytest
import torch

from tercet.miners.collected import Collected
from tercet.pairwise.budget import override

MIB = 64
MINED = """
import sys
import torch
from tercet import *

def told(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

g = torch.Generator().manual_seed(0)
labels = torch.arange(8192) // 8
x = torch.randn(1024, 128, generator=g)[labels] + 0.8 * torch.randn(8192, 128, generator=g)
x = torch.nn.functional.normalize(x)
miner = eval(sys.argv[1])
miner(x[:64], labels[:64])
before = told("VmRSS")
found = miner(x, labels)
assert len(found[0]) > 0
print(told("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "miner",
    [
        *[
            "BatchHard()",
            "SemiHard()",
            "SemiHard(fallback='easiest')",
            "EasyHard()",
            "EasyPositive()",
            "HardestN(3, skip=1)",
        ],
        *["DistanceWeighted()", "MultiSimilarityMiner()", "PairMargin()"],
    ],
)
def test_a_miner_takes_64_mib_for_8192_rows(miner):
    done = subprocess.run([sys.executable, "-c", MINED, miner], capture_output=True, text=True, check=True)
    assert float(done.stdout) < MIB


@pytest.fixture
def small_blocks():
    with override(collected_tuples=4):
        yield


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [3], [2, 0, 5], [1] * 40, [7, 1, 1, 30, 2]])
@pytest.mark.usefixtures("small_blocks")
def test_what_is_collected_is_all_that_came_in_order(counts):
    found, at, expected = Collected(), 0, []
    for count in counts:
        rows = torch.arange(at, at + count)
        found.append((rows, -rows))
        expected += rows.tolist()
        at += count
    columns = found.columns()
    if counts:
        assert [column.tolist() for column in columns] == [expected, [-row for row in expected]]
        assert all(column.dtype == torch.int64 for column in columns)
    else:
        assert columns == ()
