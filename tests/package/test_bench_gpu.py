"""The benchmark on a card, without one: what it makes of what a device says, and what it says without any."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))
try:
    import bench_gpu
    from bench_gpu import HEADS, MATMUL, OURS, Figures, figures, lines, markdown, slower, step_of
finally:
    sys.path.remove(str(BENCH))

ROWS = [
    (
        "batch hard",
        2048,
        {
            OURS: Figures(0.3, 48.0, 1),
            "PML": Figures(0.45, 96.0, 3),
            "OML": Figures(died="over the memory at N = 512"),
            MATMUL: Figures(0.1, 16.0, 0),
        },
    ),
    ("InfoNCE", 64, {OURS: Figures(0.5, 2.0, 2), "PML": Figures(0.25, 1.5, 1), MATMUL: Figures(0.02, 0, 0)}),
    ("three hardest", 64, {OURS: Figures(0.5, 2.0, 0), MATMUL: Figures(0.02, 0.0, 0)}),
]


def test_a_row_has_a_line_for_each_peer():
    assert [" ".join(line) for row in ROWS for line in lines(row)] == [
        "batch hard 2048 0.30 3.00 48.0 1 PML 0.45 1.50 96.0 3",
        "batch hard 2048 0.30 3.00 48.0 1 OML over the memory at N = 512 – – –",
        "InfoNCE 64 0.50 25.0 2.00 2 PML 0.25 0.50 1.50 1",
        "three hardest 64 0.50 25.0 2.00 0 – – – – –",
    ]
    assert all(len(line) == len(HEADS) for row in ROWS for line in lines(row))


def test_where_a_peer_is_ahead_is_told():
    assert slower(ROWS) == [
        "InfoNCE, N = 64: 0.50 ms against 0.25 of PML",
        "InfoNCE, N = 64: 2 reads against 1 of PML",
    ]
    dead = {OURS: Figures(died="RuntimeError"), "PML": Figures(1.0, 1.0, 1), MATMUL: Figures(1.0, 1.0, 0)}
    assert slower([("circle", 64, dead)]) == ["circle, N = 64: ours RuntimeError"]


def test_the_section_has_the_card_the_command_and_all_lines():
    text = markdown(ROWS, "A card, 80 GiB.", "python tools/bench/bench_gpu.py")
    assert text.startswith(
        "## On a card\n\nA card, 80 GiB. Regenerate with `python tools/bench/bench_gpu.py`."
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4  # head, rule, and a line for each peer
    assert all(row.count(" | ") == len(HEADS) - 1 for row in rows)
    assert text.endswith("- InfoNCE, N = 64: 2 reads against 1 of PML")
    assert markdown(ROWS[2:], "", "").endswith("No peer is ahead anywhere.")


class Scripted:
    """A device that says what it was told to."""

    def __init__(self, ms):
        self.asked, self.times = [], ms

    def ms(self, step):
        name = step()
        self.asked.append(name)
        return self.times[name].pop(0) if len(self.times[name]) > 1 else self.times[name][0]

    def mib(self, step):
        return len(step())

    def reads(self, step):
        return len(step()) + 1


def named(*names):
    return {name: (lambda name=name: name) for name in names}


def test_sides_take_turns_after_steps_that_do_not_count():
    meter = Scripted({"a": [9.0, 9.0, 9.0, 1.0, 2.0, 30.0], "bb": [5.0]})
    found = figures(named("a", "bb"), meter, {}, rounds=3)
    assert meter.asked == ["a"] * 3 + ["bb"] * 3 + ["a", "bb"] * 3
    assert found == {"a": Figures(2.0, 1, 2), "bb": Figures(5.0, 2, 3)}


def test_sides_that_fail_are_slow_or_gave_up_before_have_no_figures():
    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def broken():
        raise RuntimeError("no kernel")

    steps = {**named("fast", "slow", "before"), "full": full, "broken": broken}
    meter = Scripted({"fast": [1.0], "slow": [3000.0]})
    found = figures(steps, meter, {"before": "RuntimeError at N = 64"}, rounds=2, seconds=2)
    assert found["fast"].ms == 1.0
    died = {name: figure.died for name, figure in found.items() if figure.died}
    assert died == {
        "slow": "over 2 s",
        "before": "RuntimeError at N = 64",
        "full": "over the memory",
        "broken": "RuntimeError",
    }
    assert all(found[name].ms is None for name in died)


def test_a_side_that_has_had_its_seconds_sits_out():
    meter = Scripted({"long": [900.0], "short": [1.0]})
    figures(named("long", "short"), meter, {}, rounds=5, seconds=1)
    assert (meter.asked.count("long"), meter.asked.count("short")) == (3 + 2, 3 + 5)


def test_a_step_runs_backward_where_there_is_a_loss():
    x, labels, seen = torch.ones(2, 3), torch.arange(2), []

    def head(leaf, y):
        leaf.register_hook(lambda grad: seen.append(tuple(grad.shape)))
        return leaf.sum()

    step_of(head, x, labels, sent=True)()
    step_of(lambda leaf, y: seen.append(y is labels), x, labels, sent=False)()
    assert seen == [(2, 3), True]
    assert x.grad is None


class Called:
    """A device that makes each step and measures nothing."""

    def ms(self, step):
        step()
        return 1.0

    mib = reads = ms


@pytest.mark.peers
def test_cases_are_run_from_their_smallest_size_on_beside_their_peers(monkeypatch):
    pytest.importorskip("pytorch_metric_learning", reason="the bench extra is not installed")
    pytest.importorskip("oml", reason="make bench installs it without what it asks for")
    pytest.importorskip("sentence_transformers", reason="the bench extra is not installed")
    monkeypatch.syspath_prepend(str(BENCH))
    names = ["batch hard", "three hardest", "InfoNCE", "ArcFace", "batch hard + hinge"]
    options = argparse.Namespace(cases=names, sizes=[32, 16], dim=8, rounds=1, seconds=9.0)
    rows = list(bench_gpu.measured(options, Called(), "cpu"))
    assert [(case, n) for case, n, _ in rows] == [(name, n) for name in names for n in (16, 32)]
    peers = {case: [name for name in found if name not in (OURS, MATMUL)] for case, _, found in rows}
    assert peers["batch hard"] == ["PML", "OML"]
    assert peers["batch hard + hinge"] == ["PML", "S-T"]
    assert not [figure.died for _, _, found in rows for figure in found.values() if figure.died]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA card is there")
def test_without_a_card_it_says_so_and_fails():
    done = subprocess.run(
        [sys.executable, BENCH / "bench_gpu.py"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode
    assert "expected a CUDA card, found none; tools/bench/bench_card.py" in done.stderr
    assert not done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_card_is_asked_by_its_own_means():
    x = torch.ones(2**20, device="cuda")
    meter = bench_gpu.Cuda()
    assert meter.ms(lambda: x + 1) > 0
    assert 3.9 < meter.mib(lambda: x + 1) < 4.2
    assert meter.reads(lambda: (x.sum().item(), (x > 0).nonzero())) == 2
