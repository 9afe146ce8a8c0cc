"""The page about scale shows what its command prints, and the simulation does what it says."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = str(ROOT / "tools" / "bench")
sys.path.insert(0, BENCH)
try:
    import simulate_cluster as simulation
finally:
    sys.path.remove(BENCH)

PAGE = (ROOT / "docs" / "scale.md").read_text()
BLOCKS = simulation.plan_blocks(1000, 1000, 100, 250)


def section(name):
    return PAGE.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0]


def test_the_page_shows_what_the_command_prints():
    paper, runs = simulation.tables(10**8, 64, simulation.HEIGHT, simulation.WIDTH, seed=0)
    assert section("paper") == paper
    command = "python tools/bench/simulate_cluster.py --page docs/scale.md"
    assert section("simulation") == f"`{command}`\n\n{runs}"
    _, small = simulation.tables(10**6, 5, 50_000, 250_000, seed=1)
    assert small != runs
    assert "1,000,000 images, 5 workers, 80 blocks of 50,000 × 250,000" in small


@pytest.fixture
def by_compute(monkeypatch):
    """Nothing but computing takes time: a block of 100 × 250 one second."""
    monkeypatch.setattr(simulation, "START", 0.0)
    monkeypatch.setattr(simulation, "READ", math.inf)
    monkeypatch.setattr(simulation, "PRODUCT", 100 * 250 * 2 * simulation.DIM * simulation.SEARCH)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 40), (3, 14), (40, 1), (64, 1)])
def test_equal_machines_take_the_rounds_that_their_blocks_make(by_compute, workers, seconds):
    run = simulation.simulated(BLOCKS, simulation.Cluster(workers))
    assert run.seconds == pytest.approx(seconds)
    assert run.repeated == 0
    assert run.idle == pytest.approx(1 - 40 / (workers * seconds))


def test_a_slow_machine_takes_fewer_blocks(by_compute):
    run = simulation.simulated(BLOCKS, simulation.Cluster(4, slow=0.25))
    assert run.seconds == pytest.approx(12, abs=1.1)  # 3.5 blocks a second, not 4: cut evenly it were 20 s


def test_a_lost_machine_costs_its_block_and_what_it_would_have_done(by_compute, monkeypatch):
    monkeypatch.setattr(simulation, "NOTICED", 5.0)
    whole = simulation.simulated(BLOCKS, simulation.Cluster(4))
    lost = simulation.simulated(BLOCKS, simulation.Cluster(4, lost=1))
    assert lost.repeated == 1
    assert whole.seconds < lost.seconds < whole.seconds / 3 * 4 + 5 + 2
    alone = simulation.simulated(BLOCKS[:2], simulation.Cluster(2, lost=1))
    assert alone.seconds > 5  # the other waits until the lock is free
    with pytest.raises(ValueError, match="all 4 are lost"):
        simulation.simulated(BLOCKS, simulation.Cluster(4, lost=4))


def test_it_is_a_function_of_its_seed():
    runs = [simulation.simulated(BLOCKS, simulation.Cluster(4, 0.25, 1, 0.3, seed)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_each_process_reads_its_columns_once_a_change():
    run = simulation.simulated(BLOCKS, simulation.Cluster(1))
    assert run.read == simulation.bytes_of(1000 + 40 * 100)
